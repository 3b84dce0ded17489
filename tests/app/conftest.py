"""The app over an engine that computes nothing, so that a page's test takes as long as drawing the page."""

import json
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import snows.runs
from snows.runs.store import RunStore
from snows.sources import models
from tests.app import helpers

ROOT = Path(__file__).parent.parent.parent
OpenPage = Callable[..., AppTest]


@pytest.fixture
def hold() -> Iterator[ExitStack]:
    """Keeps active runs held until the test ends."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """`snows.runs.runner` with an `execute` of no cost; a test may set its own."""
    fake = types.ModuleType("snows.runs.runner")
    fake.execute = lambda run, device: helpers.slow_execute(run, pause=0)
    monkeypatch.setitem(sys.modules, "snows.runs.runner", fake)
    monkeypatch.setattr(snows.runs, "runner", fake, raising=False)
    return fake


@pytest.fixture
def open_page(store: RunStore, engine: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[OpenPage]:
    """Open a page as a browser would: `open_page("prune", run=ID)`. The app comes without recorded runs."""
    # Handles live as long as the process, and would carry one test's store into the next.
    st.cache_resource.clear()
    st.cache_data.clear()
    models.every_name()  # a form waits for it before it can start anything
    monkeypatch.setattr("app.state.recorded_runs", lambda: RunStore(tmp_path / "recorded"))
    monkeypatch.setattr("app.state.planner", lambda: types.SimpleNamespace(start=lambda: None, plan=helpers.plan))

    def visit(page: str, run: str | None = None) -> AppTest:
        app = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=60)
        app.run()
        if run:
            app.query_params["run"] = run
        if page != "overview":
            app.switch_page(f"../pages/{page}.py").run()
        return app

    yield visit
    st.cache_resource.clear()


def figures(app: AppTest) -> dict[str, dict]:
    """The figures of a page (`app.parts.live`), by their description."""
    drawn = [json.loads(element.proto.json) for element in app.get("bidi_component") if '"figure"' in element.proto.json]
    return {data["alt"]: json.loads(data["figure"]) for data in drawn}
