"""The budget in the form's second card: what is set there is the pattern's text, and what is edited an override."""

import pytest
from streamlit.testing.v1 import AppTest

from app.forms import budget
from snows.config import Budget
from snows.runs.store import RunStore
from tests.app.conftest import OpenPage
from tests.app.test_pages import button, text_of

pytestmark = pytest.mark.slow


def with_budget(open_page: OpenPage, text: str = "budget 6.25%") -> AppTest:
    app = open_page("prune")
    return app.selectbox("form.prune.pattern").set_value(text).run()


def figures(app: AppTest) -> list[str]:
    return [part.proto.json for part in app.get("bidi_component") if "What each layer keeps" in part.proto.json]


def test_without_a_budget_there_is_none_of_it(open_page: OpenPage) -> None:
    app = open_page("prune")
    assert not app.select_slider
    assert not figures(app)
    assert "budget 6.25%" in "".join(app.selectbox("form.prune.pattern").options)


def test_the_slider_answers_at_once_with_a_bar_a_layer(open_page: OpenPage, store: RunStore) -> None:
    app = with_budget(open_page)
    assert app.select_slider("budget.share").value == 6.25
    (before,) = figures(app)
    assert "keep 6.25 % of the weights, spread where it hurts least" in text_of(app)
    app.select_slider("budget.share").set_value(25.0).run()
    assert app.selectbox("form.prune.pattern").value == "budget 25%"
    (after,) = figures(app)
    assert after != before
    app.selectbox("budget.allocate").set_value("erdos-renyi").run()
    app.selectbox("budget.by").set_value("bytes").run()
    assert app.selectbox("form.prune.pattern").value == "budget 25% of bytes, erdos-renyi"
    app.selectbox("budget.from").set_value("Any percentage").run()
    button(app, "Start").click().run()
    (run,) = store.list()
    assert run.config().prune.pattern == Budget(share=0.25, by="bytes", allocate="erdos-renyi", patterns=())


def test_a_typed_budget_sets_the_slider(open_page: OpenPage) -> None:
    app = open_page("overview")
    app.session_state["form.prune.pattern"] = "budget 7.5%, owl, from 1:16 1:8 dense"
    app.switch_page("../pages/prune.py").run()
    assert app.select_slider("budget.share").value == 7.5
    assert app.selectbox("budget.allocate").value == "owl"
    app.select_slider("budget.share").set_value(10.0).run()
    assert app.selectbox("form.prune.pattern").value == "budget 10%, owl, from 1:16 1:8 dense"


def test_an_edited_bar_is_a_layer_with_a_pattern_of_its_own(open_page: OpenPage) -> None:
    app = with_budget(open_page)
    app.text_area("form.prune.overrides").set_value("layer3.2.conv2 = 1:8").run()
    assert "1:8 (yours)" in figures(app)[0]
    app.text_area("form.prune.overrides").set_value("layer3.2.conv2 = dense\nlayer3.1.conv1 = dense").run()
    assert not figures(app)  # more than the budget, and the bar says so


def test_an_edit_in_the_table_replaces_that_layers_line(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {
        "form.prune.overrides": "layer1.0.conv1.weight = dense\n\nfc = 1:4",
        "table": {"edited_rows": {"1": {"keeps": "1:8"}, "0": {"keeps": "1:32"}}},
    }
    monkeypatch.setattr(budget.st, "session_state", held)
    budget._edited("table", ["layer1.0.conv1", "layer1.0.conv2"])
    assert held["form.prune.overrides"] == "fc = 1:4\nlayer1.0.conv2 = 1:8\nlayer1.0.conv1 = 1:32"


def test_of_other_networks_the_run_measures_first(open_page: OpenPage) -> None:
    app = open_page("prune")
    app.session_state["form.checkpoint"] = "/nowhere/mine.safetensors"
    app.selectbox("form.prune.pattern").set_value("budget 6.25%").run()
    assert not figures(app)
    assert "of this network nothing is recorded" in text_of(app)
