"""The app's pages, run again and again, over many runs, and with what nobody would type: by Streamlit's own test runner.

Each measurement has a process of its own, whose store is in a temporary folder.
"""

import gc
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import streamlit as st
from streamlit import config
from streamlit.testing.v1 import AppTest

from app import state
from app.work.jobs import JobManager
from snows.runs.store import Run, RunStore
from tests.app import helpers
from tests.app.test_hostile_names import acting, shown
from tests.bench.workers import processes, start

ROOT = Path(__file__).parents[2]
HOSTILE = (
    "<img src=x onerror=alert(1)><b>b</b> **b** [a](http://x) :red[r] $x^2$",
    "🙂🏳️‍🌈 ‮abc",
    "x" * 10_000,
    "../../../../etc/passwd",
    "..",
    "/dev/zero",
    "a\0b",
    "{}[]%s%n\\",
    "-1",
    "nan",
    "",
)


def _open(page: str, run: str | None = None) -> AppTest:
    config.set_option("runner.postScriptGC", False)  # as the app is served
    app = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=600)
    app.run()
    if run is not None:
        app.query_params["run"] = run
    if page != "overview":
        app.switch_page(f"../pages/{page}.py").run()
    assert not app.exception, (page, app.exception)
    return app


def _in_a_process(measure: Callable[..., Any], root: Path, *arguments: Any) -> Any:
    """What `measure` returns in a process of its own, whose runs are in that folder."""
    receive, say = processes().Pipe(duplex=False)
    process = start(_say, measure, root, say, *arguments)
    say.close()
    try:
        return receive.recv()
    finally:
        process.join()


def _say(measure: Callable[..., Any], root: Path, say: Any, *arguments: Any) -> None:
    os.environ["SNOWS_RUNS"] = str(root)
    say.send(measure(root, *arguments))


def _a_run(root: Path) -> str:
    """The id of a run that is there and can be looked into."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "assets/runs/recorded-2-resnet20-fashion", root / "whole", dirs_exist_ok=True)
    return "whole"


def says_that_it_waits(store: RunStore, run: Run) -> None:
    """The app's pages, over a store whose app was killed, show each run that waits, and the one that was in work."""
    os.environ["SNOWS_RUNS"] = str(store.root)
    st.cache_resource.clear()
    with mock.patch.object(JobManager, "work_on"):  # or it goes on while one looks
        app = _open("prune", run.id)
        assert "waiting" in shown(app).lower(), shown(app)[:2000]
        assert "queued" in shown(_open("runs"))
    st.cache_resource.clear()


# --- again and again ---

LOOKS = 5


def _used() -> tuple[int, int, int]:
    """Bytes of memory, threads, files that are open."""
    gc.collect()
    with Path("/proc/self/statm").open() as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    return resident, threading.active_count(), len(os.listdir("/proc/self/fd"))


def _rerun(root: Path, page: str, count: int) -> dict[str, Any]:
    app = _open(page, _a_run(root))

    def used_after(runs: int) -> tuple[int, int, int]:
        """What is used after so many runs; of memory, which the allocator lets go up and down, the least after the last few."""
        looks = []
        for number in range(runs):
            app.run()
            if number >= runs - LOOKS:
                looks.append(_used())
        return (min(look[0] for look in looks), *looks[-1][1:])

    before, after = used_after(max(count // 2, LOOKS)), used_after(count)
    assert not app.exception, app.exception
    return {"memory": after[0] / before[0] - 1, "threads": after[1] - before[1], "files": after[2] - before[2]}


def reruns(root: Path, count: int, pages: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """By page: the share by which the memory of its process grew in so many reruns, after half as many to begin with; and how
    many threads and open files more there are."""
    return {page: _in_a_process(_rerun, root / page, page, count) for page in pages or list(state.PAGES)}


# --- many runs ---


def fill(root: Path, count: int) -> None:
    """A store of so many finished runs, of all of which a page of runs has something to say."""
    store = RunStore(root)
    one = helpers.write_run(store, "finished")
    for number in range(count - 1):
        shutil.copytree(one.path, root / f"20260101-000000-{number:08x}")


def _look(root: Path, tries: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {}
    for page in state.PAGES:
        app = _open(page)
        app.run()
        for _ in range(tries):
            before = time.perf_counter()
            app.run()
            seconds.setdefault(page, []).append(time.perf_counter() - before)
        assert not app.exception, app.exception
    return seconds


def rerun_seconds(root: Path, runs: int, tries: int) -> dict[str, float]:
    """Seconds of a rerun with so many runs in the store: the 95th percentile by page, and over all of them as `all`."""
    fill(root, runs)
    seconds = _in_a_process(_look, root, tries)
    every = [value for values in seconds.values() for value in values]
    return {name: float(np.percentile(values, 95)) for name, values in {**seconds, "all": every}.items()}


# --- what nobody would type ---


def _type(root: Path, page: str) -> tuple[int, list[str]]:
    run, tried, faults = _a_run(root), 0, list[str]()

    def check(app: AppTest, what: str) -> None:
        nonlocal tried
        tried += 1
        if app.exception:
            faults.append(f"{page}, {what}: {app.exception[0].message[:200]}")
        elif said := acting(app):
            faults.append(f"{page}, {what}: {said[:1]}")

    fields = [(kind, place) for kind in ("text_input", "text_area") for place in range(len(_open(page, run).get(kind)))]
    for kind, place in fields:
        app = _open(page, run)
        for text in HOSTILE:
            if place < len(app.get(kind)):
                field = app.get(kind)[place]
                if not field.disabled:
                    check(field.set_value(text).run(), f"{kind} {field.label!r}: {text[:20]!r}")
    for name in sorted({"run", "runs", *state.KEPT.get(page, ()), *state.SHARED.get(page, ())}):
        for text in HOSTILE:
            app = AppTest.from_file(str(ROOT / "app/main.py"), default_timeout=600)
            app.run()
            app.query_params[name] = text
            check(app.switch_page(f"../pages/{page}.py").run(), f"address {name}: {text[:20]!r}")
    return tried, faults


def hostile(root: Path, pages: list[str] | None = None) -> tuple[int, list[str]]:
    """Type what nobody would into each field of each page, and into each of its addresses: how often, and what went wrong."""
    outcomes = [_in_a_process(_type, root / page, page) for page in pages or list(state.PAGES)]
    return sum(tried for tried, _ in outcomes), [fault for _, faults in outcomes for fault in faults]
