"""The form of a run as a page: its cards, its bar, and what is kept of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app import words
from app.forms.run import MASK_WORDS
from snows.config import MASKS, MASKS_OF_UNITS, InputError, RunConfig
from snows.method import cards
from snows.runs.estimate import Plan
from snows.runs.store import RunStore
from tests.app import helpers
from tests.app.conftest import ROOT, OpenPage
from tests.app.test_pages import button, text_of

pytestmark = pytest.mark.slow


def address(app: AppTest) -> dict[str, str]:
    return {name: texts[-1] if isinstance(texts, list) else texts for name, texts in app.query_params.items()}


def test_three_numbered_cards_with_two_visible_fields_each(open_page: OpenPage) -> None:
    app = open_page("prune")
    assert [heading.value for heading in app.header] == [
        "1\N{EN SPACE}Network and images",
        "2\N{EN SPACE}What stays",
        "3\N{EN SPACE}How it is refitted",
    ]
    folded = [expander.label for expander in app.expander]
    assert len([label for label in folded if label.startswith("More: ")]) == 3
    hidden = {
        widget.key
        for expander in app.expander
        for kind in ("selectbox", "number_input", "text_input", "text_area", "checkbox")
        for widget in expander.get(kind)
    }
    visible = {
        widget.key for kind in (app.selectbox, app.number_input, app.text_input, app.checkbox) for widget in kind
    } - hidden
    assert visible == {"form.data", "form.prune.pattern", "form.prune.mask", "form.prune.update", "form.prune.k_steps"}
    assert len([part for part in app.get("bidi_component") if '"Network"' in part.proto.json]) == 1  # the sixth


def test_the_chosen_mask_says_what_it_is(open_page: OpenPage) -> None:
    app = open_page("prune")
    assert app.selectbox("form.prune.mask").options == [f"{cards.MASKS[m].name}: {cards.MASKS[m].short}" for m in MASKS]
    app.selectbox("form.prune.mask").set_value("alps").run()
    card = cards.MASKS["alps"]
    assert words.plain(card.idea) in text_of(app)
    explanation = app.selectbox("form.prune.mask").help
    assert words.plain(card.reference) in explanation
    assert words.plain(card.cost) in explanation
    app.selectbox("form.prune.pattern").set_value("70% global").run()
    assert "so 70% global cannot rank all layers' weights by it. Use 70%" in text_of(app)
    assert button(app, "Start").disabled


def test_a_pattern_of_units_offers_the_masks_of_units(open_page: OpenPage) -> None:
    app = open_page("prune")
    app.selectbox("form.prune.pattern").set_value("width 50%").run()
    assert not app.exception
    offered = app.selectbox("form.prune.mask").options
    assert offered == [MASK_WORDS[mask] for mask in MASKS_OF_UNITS]
    app.selectbox("form.prune.mask").set_value("taylor").run()
    assert words.plain(cards.UNIT_MASKS["taylor"].idea) in text_of(app)
    assert "faint ones are cut away" in text_of(app)
    assert not button(app, "Start").disabled
    # A mask that chooses single weights is no choice any more, and the bar says which are.
    app.selectbox("form.prune.pattern").set_value("2:4").run()
    assert "Mask 'taylor' scores whole units" in text_of(app)
    assert button(app, "Start").disabled


def test_the_bar_says_what_will_be_done_and_what_it_takes(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page("prune")
    text = text_of(app)
    assert "**ResNet-20, trained on Fashion-MNIST** · keep 2 of 4 weights (2:4) · 21 layers · SNOWS, K = 3 · about **20" in text
    assert "about **20\N{EN DASH}40 s** · **410 MB** of memory" in text
    assert "busy" not in text
    assert not button(app, "Start").disabled

    def busy(config: RunConfig) -> Plan:
        plan = helpers.plan(config)
        return Plan(plan.sites, plan.skipped, plan.seconds, plan.bytes, unsteady=3.0, busy=True)

    app = open_page("overview")
    st.cache_data.clear()  # the page knows the plan of these settings by now
    monkeypatch.setattr("app.state.planner", lambda: SimpleNamespace(start=lambda: None, plan=busy))
    text = text_of(app.switch_page("../pages/prune.py").run())
    assert "about **20 s\N{EN DASH}2 min**" in text
    assert "This machine is busy with other work, so it may well take longer." in text


def test_a_mask_of_another_network_cannot_be_started(open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(config: RunConfig) -> Plan:
        raise InputError("The mask file has no mask for conv1.weight, which has shape (16, 1, 3, 3). Use another.")

    app = open_page("overview")
    monkeypatch.setattr("app.state.planner", lambda: SimpleNamespace(start=lambda: None, plan=refuses))
    app.session_state["form.prune.mask"] = "/some where/.uploads/0123/other.safetensors"
    app.switch_page("../pages/prune.py").run()
    assert button(app, "Start").disabled
    assert "The mask file has no mask for conv1.weight" in text_of(app)
    assert "some where" not in text_of(app)
    assert "Of the file other.safetensors" in app.selectbox("form.prune.mask").options


def test_a_reload_finds_all_that_was_set(open_page: OpenPage, store: RunStore) -> None:
    app = open_page("prune")
    assert address(app) == {}
    app.selectbox("form.prune.pattern").set_value("1:8")
    app.number_input("form.prune.k_steps").set_value(5)
    app.text_area("form.prune.overrides").set_value("fc = dense").run()
    said = address(app)
    assert said == {"pattern": "1:8", "k_steps": "5", "overrides": "fc = dense"}

    fresh = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=60)
    fresh.switch_page("../pages/prune.py")
    for name, text in said.items():
        fresh.query_params[name] = text
    fresh.run()
    assert fresh.selectbox("form.prune.pattern").value == "1:8"
    assert fresh.number_input("form.prune.k_steps").value == 5
    button(fresh, "Start").click().run()
    assert [str(run.config().prune.pattern) for run in store.list()] == ["1:8"]
    # The form now begins with that run's settings, and the address names the run alone.
    assert address(fresh) == {"run": store.list()[0].id}


def test_coming_back_to_the_page_the_address_says_it_again(open_page: OpenPage) -> None:
    app = open_page("prune")
    app.number_input("form.prune.k_steps").set_value(7).run()
    app.switch_page("../pages/overview.py").run()
    app.switch_page("../pages/prune.py").run()
    assert app.number_input("form.prune.k_steps").value == 7
    assert address(app) == {"k_steps": "7"}


def test_a_link_into_an_open_form_is_followed(open_page: OpenPage) -> None:
    app = open_page("prune")
    app.number_input("form.prune.k_steps").set_value(7).run()
    app.query_params.clear()
    app.query_params["pattern"] = "1:16"
    app.run()
    assert app.selectbox("form.prune.pattern").value == "1:16"
    assert app.number_input("form.prune.k_steps").value == 3


def test_a_mask_is_brought_as_a_file(open_page: OpenPage, store: RunStore, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    app = open_page("prune")
    upload = next(u for u in app.get("file_uploader") if u.label == "A mask of your own")
    upload.set_value(("my mask.safetensors", save({"conv1.weight": torch.zeros(2, 2, dtype=torch.bool)}), "")).run()
    mask = Path(app.session_state["form.prune.mask"])
    assert mask.is_relative_to(store.root)
    assert mask.suffix == ".safetensors"
    assert app.selectbox("form.prune.refine").disabled
