"""Pages run again, over many runs, with what nobody would type, and after the app was killed: `tests.bench.screens`, the short
version."""

from pathlib import Path

import pytest

from snows.events import Phase
from snows.runs.store import RunStore
from tests.app.helpers import opening, site_events
from tests.bench import screens
from tests.bench.workers import PRETENDED


@pytest.mark.slow
def test_a_page_that_is_run_again_keeps_nothing_open(tmp_path: Path) -> None:
    (used,) = screens.reruns(tmp_path, 6, ["runs"]).values()
    assert (used["threads"], used["files"]) == (0, 0)
    assert used["memory"] < 0.05


@pytest.mark.slow
def test_what_nobody_would_type_is_text_or_a_sentence(tmp_path: Path) -> None:
    tried, wrong = screens.hostile(tmp_path, ["runs"])
    assert wrong == []
    assert tried > len(screens.HOSTILE)


@pytest.mark.slow
def test_pages_say_what_a_killed_app_left_waiting(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.create(PRETENDED)
    store.enqueue([run])
    hold = run.claim()
    assert hold is not None
    run.append(Phase(name="load"), *opening(), *site_events(0))
    hold.__exit__()
    monkeypatch.setenv("SNOWS_RUNS", str(store.root))
    screens.says_that_it_waits(store, run)
