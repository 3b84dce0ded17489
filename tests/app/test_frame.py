"""The frame around every page: its menu, what is at work, and what pages that look into a run have in common."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from streamlit.testing.v1 import AppTest

from app import state
from app.parts import comparison_view
from app.tables import runs
from snows.config import RunConfig
from snows.events import Phase
from snows.plans.words import name_of
from snows.runs.log import Log
from snows.runs.store import RunStore
from tests.app import helpers
from tests.app.conftest import OpenPage
from tests.app.test_pages import button, labelled, text_of, until_ended

pytestmark = pytest.mark.slow


def pill(app: Any) -> str | None:
    """The words of the link at the right of the menu, if it is there."""
    (frame,) = [block for block in app.main.children.values() if "frame" in str(getattr(block, "key", "") or block.proto)]
    links = [element.proto for element in frame if getattr(element, "type", "") == "page_link"]
    assert len(links) <= 1
    return links[0].label if links else None


def go(app: AppTest, page: str) -> None:
    """Choose a page of the menu, whose address says nothing; AppTest would keep the last one's."""
    app.query_params.clear()
    app.switch_page(f"../pages/{page}.py").run()


def test_the_menu_is_in_the_order_of_work() -> None:
    assert list(state.PAGES) == [
        "overview",
        "prune",
        "layers",
        "convergence",
        "attention",
        "compare",
        "study",
        "lessons",
        "runs",
    ]
    assert state.MENU == {"Inspect": ("layers", "convergence", "attention"), "Compare": ("compare", "study")}


@pytest.mark.parametrize("page", [name for name in state.PAGES if name != "attention"])
def test_every_page_says_what_is_at_work_and_where(page: str, open_page: OpenPage, store: RunStore, hold: ExitStack) -> None:
    run = helpers.write_run(store, "running", hold, RunConfig.model_validate({"prune": {"pattern": "1:8"}}))
    helpers.write_run(store, "queued", hold)
    words = pill(open_page(page))
    assert words == f"layer 8 of 21 · 33 % · {name_of(run)} · 1 more"


def test_without_a_run_at_work_there_is_no_pill(open_page: OpenPage, store: RunStore) -> None:
    helpers.write_run(store, "finished")
    assert pill(open_page("overview")) is None


def test_how_far_a_run_is_in_every_phase() -> None:
    assert runs.at_work("it", "queued", Log()) == "waiting · it"
    log = Log.of(helpers.opening()[:1])
    assert runs.at_work("it", "running", log) == "loading · it"
    log.add(*helpers.opening()[1:])
    assert runs.at_work("it", "running", log) == "layer 1 of 20 · 0 % · it".replace("20", str(len(helpers.PRUNED)))
    for index in range(len(helpers.PRUNED)):
        log.add(*helpers.site_events(index))
    assert "100 %" in runs.at_work("it", "running", log)
    log.add(Phase(name="evaluate"))
    assert runs.at_work("it", "running", log) == "measuring · it"


def test_pages_that_inspect_follow_the_run_just_started(open_page: OpenPage, store: RunStore) -> None:
    older = helpers.write_run(store, "finished")
    older.save_site(0, torch.ones(2), torch.ones(2, dtype=torch.bool))
    app = open_page("layers")
    assert app.query_params["run"] in (older.id, [older.id])
    go(app, "overview")
    button(app, "Run the demonstration").click().run()
    started = next(run for run in store.list() if run != older)
    assert until_ended(started) == "finished"
    for page in ("layers", "convergence"):
        go(app, page)
        assert labelled(app.selectbox, "Run").value == started.id


def test_a_layer_is_chosen_once_for_all_pages_that_inspect(open_page: OpenPage, store: RunStore) -> None:
    run = helpers.write_run(store, "finished")
    app = open_page("layers", run=run.id)
    labelled(app.selectbox, "Layer").set_value("layer2.0.conv2").run()
    go(app, "convergence")
    assert labelled(app.selectbox, "Layer").value == "layer2.0.conv2"
    assert app.query_params["layer"] in ("layer2.0.conv2", ["layer2.0.conv2"])
    first = helpers.PRUNED[0].removesuffix(".weight")
    labelled(app.selectbox, "Layer").set_value(first).run()
    go(app, "layers")
    assert labelled(app.selectbox, "Layer").value == first
    # Another run of the same network shows the same layer; one that has no such layer shows its own, and says nothing.
    other = helpers.write_run(store, "finished", config=RunConfig.model_validate({"prune": {"pattern": "1:8"}}))
    other.save_site(0, torch.ones(2), torch.ones(2, dtype=torch.bool))
    labelled(app.selectbox, "Layer").set_value("layer3.2.conv1").run()
    labelled(app.selectbox, "Run").set_value(other.id).run()
    assert labelled(app.selectbox, "Layer").value == "layer3.2.conv1"
    app.query_params["layer"] = "blocks.0.attn.qkv"
    app.run()
    assert "has no layer 'blocks.0.attn.qkv'" in text_of(app)
    go(app, "convergence")
    assert labelled(app.selectbox, "Layer").value == ""
    assert "prunes no layer" not in text_of(app)


def test_batches_are_listed_in_the_order_they_were_made_newest_first(store: RunStore) -> None:
    made = [store.create_comparison([RunConfig(), RunConfig()]) for _ in range(3)]
    titles = comparison_view.titles({comparison.id: comparison for comparison in store.comparisons()})
    assert list(titles) == [comparison.id for comparison in reversed(made)]
    assert not titles[made[0].id].endswith(")")  # the oldest keeps its name, later ones of that minute are numbered
    assert titles[made[2].id].endswith("(3)")
