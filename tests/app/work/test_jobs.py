"""The queue: order, cancel, resume, crashes, and what a killed server leaves behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.work.jobs import JobManager
from snows.config import PruneConfig, RunConfig
from snows.events import Queued, RunCancelled, RunFailed, RunFinished, RunStarted, SiteFinished
from snows.runs.log import Log
from snows.runs.store import ACTIVE, Run, RunStore, RunTakenError
from tests.app import helpers

ON_CPU = RunConfig(prune=PruneConfig(device="cpu"))
ON_CUDA = RunConfig(prune=PruneConfig(device="cuda"))


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


class Gate:
    """An engine that notes which runs it was given and lets each end only when told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.release = threading.Semaphore(0)
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    def __call__(self, run: Run) -> RunFinished:
        with self._lock:
            self.begun.append(run.id)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        assert self.release.acquire(timeout=20)
        with self._lock:
            self._at_once -= 1
        return RunFinished(metrics={})


def test_one_at_a_time_first_come_first_served(store: RunStore) -> None:
    gate = Gate()
    manager = JobManager(store, gate)
    ids = [manager.submit(ON_CPU) for _ in range(4)]
    until(lambda: gate.begun == ids[:1])
    assert [manager.position(store.get(run)) for run in ids] == [None, 1, 2, 3]
    assert [store.get(run).state() for run in ids] == ["queued"] * 4  # the engine has said nothing yet
    for _ in ids:
        gate.release.release()
    until(lambda: all(store.get(run).state() == "finished" for run in ids))
    assert gate.begun == ids
    assert gate.most_at_once == 1


def test_runs_that_wait_are_no_threads(store: RunStore) -> None:
    gate = Gate()
    manager = JobManager(store, gate)
    before = threading.active_count()
    comparison = store.comparison(manager.submit_comparison([ON_CPU] * 60))
    until(lambda: len(gate.begun) == 1)
    assert threading.active_count() == before + 1  # the worker
    assert [run.state() for run in comparison.runs()] == ["queued"] * 60
    manager.cancel_comparison(comparison.id)
    gate.release.release()
    until(lambda: not any(run.state() in ACTIVE for run in comparison.runs()))


@pytest.mark.slow
def test_a_comparison_of_200_runs_in_its_order_while_others_look_on(store: RunStore) -> None:
    begun: list[str] = []

    def execute(run: Run) -> RunFinished:
        begun.append(run.id)
        run.append(*helpers.opening(), *helpers.site_events(0))
        return RunFinished(metrics={})

    manager = JobManager(store, execute)
    comparison = store.comparison(manager.submit_comparison([ON_CPU] * 200))
    ids = [run.id for run in comparison.runs()]
    assert len(set(ids)) == 200
    seen: dict[str, list[str]] = {run_id: [] for run_id in ids}
    stop = threading.Event()
    problems: list[Exception] = []

    def look_on() -> None:
        logs = {run.path: Log() for run in comparison.runs()}
        try:
            while not stop.is_set():
                for run in comparison.runs():
                    seen[run.id].append(run.state())
                    run.log(logs[run.path])
        except Exception as error:
            problems.append(error)

    looking = threading.Thread(target=look_on)
    looking.start()
    until(lambda: len(begun) > 100, seconds=120)
    manager.cancel_comparison(comparison.id)
    until(lambda: all(run.state() not in ACTIVE for run in comparison.runs()), seconds=120)
    stop.set()
    looking.join()
    assert problems == []
    assert begun == ids[: len(begun)]
    order = {state: place for place, state in enumerate(["queued", "running", "finished", "cancelled"])}
    for states in seen.values():  # none was seen interrupted, and none went back
        places = [order[state] for state in states]
        assert places == sorted(places)


def test_what_another_process_works_on_is_left_to_it(store: RunStore) -> None:
    gate = Gate()
    manager = JobManager(store, gate)
    comparison = store.create_comparison([ON_CPU] * 3)
    elsewhere = comparison.runs()[1].queue()
    manager.resume_comparison(comparison.id)
    gate.release.release(2)
    until(lambda: [run.state() for run in comparison.runs()] == ["finished", "queued", "finished"])
    assert gate.begun == [comparison.runs()[0].id, comparison.runs()[2].id]
    manager.cancel(comparison.runs()[1].id)
    assert comparison.runs()[1].cancel_requested()  # for its holder to see
    with elsewhere:
        elsewhere.work(gate)
    assert comparison.runs()[1].state() == "cancelled"


@pytest.mark.slow
def test_a_run_that_is_being_copied_is_resumed_with_a_sentence_or_later(store: RunStore) -> None:
    gate = Gate()
    manager = JobManager(store, gate)
    comparison = store.create_comparison([ON_CPU] * 2)
    first, second = comparison.runs()
    first.queue().__exit__()
    with first.at_rest():
        with pytest.raises(RunTakenError, match="is in use: process"):
            manager.resume(first.id)
        with pytest.raises(RunTakenError, match="is in use: process"):
            manager.resume_comparison(comparison.id)
        assert second.state() == "queued"  # that one is no reason to leave out the others
    manager.resume(first.id)
    gate.release.release(2)
    until(lambda: [run.state() for run in comparison.runs()] == ["finished"] * 2)


def test_each_device_has_a_line_of_its_own(store: RunStore) -> None:
    gate = Gate()
    manager = JobManager(store, gate)
    ids = [manager.submit(ON_CPU), manager.submit(ON_CUDA)]
    until(lambda: sorted(gate.begun) == sorted(ids))
    gate.release.release(2)
    until(lambda: all(store.get(run).state() == "finished" for run in ids))


def test_a_fresh_run_is_never_seen_as_interrupted(store: RunStore) -> None:
    manager = JobManager(store, helpers.slow_execute)
    for _ in range(5):
        assert store.get(manager.submit(ON_CPU)).state() in ("queued", "running")


def test_cancel_of_a_waiting_run_ends_it_at_once(store: RunStore) -> None:
    gate = Gate()
    manager = JobManager(store, gate)
    first, second, third = (manager.submit(ON_CPU) for _ in range(3))
    until(lambda: gate.begun == [first])
    manager.cancel(second)
    assert store.get(second).state() == "cancelled"
    assert isinstance(store.get(second).events()[0][-1], RunCancelled)
    assert manager.position(store.get(third)) == 1
    gate.release.release(2)
    until(lambda: store.get(third).state() == "finished")
    assert gate.begun == [first, third]


@pytest.mark.slow
def test_cancel_of_a_running_run_reaches_its_worker_then_resume_finishes_it(store: RunStore) -> None:
    manager = JobManager(store, lambda run: helpers.slow_execute(run, pause=0.002))
    run = store.get(manager.submit(ON_CPU))
    until(lambda: len(run.events()[0]) > 60)
    manager.cancel(run.id)
    until(lambda: run.state() == "cancelled")
    done = run.events()[0][-1].finished_sites
    assert 0 < done < len(helpers.PRUNED)
    manager.resume(run.id)
    until(lambda: run.state() == "finished")
    kinds = [type(e) for e in run.events()[0]]
    assert kinds.count(Queued) == 2
    assert kinds.count(RunFinished) == 1


def test_resume_leaves_active_and_finished_runs_alone(store: RunStore) -> None:
    gate = Gate()
    manager = JobManager(store, gate)
    run = store.get(manager.submit(ON_CPU))
    manager.resume(run.id)
    gate.release.release(2)
    until(lambda: run.state() == "finished")
    manager.resume(run.id)
    assert gate.begun == [run.id]
    assert run.state() == "finished"


def test_two_tabs_resume_once(store: RunStore) -> None:
    gate = Gate()
    manager = JobManager(store, gate)
    run = helpers.write_run(store, "failed")
    tabs = [threading.Thread(target=manager.resume, args=(run.id,)) for _ in range(2)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    gate.release.release(2)
    until(lambda: run.state() == "finished")
    assert gate.begun == [run.id]


def test_a_crash_is_an_event_and_the_line_goes_on(store: RunStore) -> None:
    def crash_once(run: Run) -> RunFinished:
        if not crashed:
            crashed.append(run.id)
            raise RuntimeError("the sky fell")
        return RunFinished(metrics={})

    crashed: list[str] = []
    manager = JobManager(store, crash_once)
    first, second = manager.submit(ON_CPU), manager.submit(ON_CPU)
    until(lambda: store.get(second).state() == "finished")
    last = store.get(first).events()[0][-1]
    assert isinstance(last, RunFailed)
    assert "the sky fell" in last.message
    assert "resume the run" in last.message
    assert "crash_once" in last.detail


def test_a_vanished_folder_does_not_stop_the_line(store: RunStore, caplog: pytest.LogCaptureFixture) -> None:
    def lose(run: Run) -> RunFinished:
        if not lost:
            lost.append(run.id)
            shutil.rmtree(run.path)
            raise RuntimeError("and nowhere to say so")
        return RunFinished(metrics={})

    lost: list[str] = []
    manager = JobManager(store, lose)
    manager.submit(ON_CPU)
    second = manager.submit(ON_CPU)
    until(lambda: store.get(second).state() == "finished")
    assert "could not record how it ended" in caplog.text


def test_unknown_run_is_named(store: RunStore) -> None:
    manager = JobManager(store, helpers.slow_execute)
    with pytest.raises(KeyError, match="no run 'nonsense'"):
        manager.cancel("nonsense")
    with pytest.raises(KeyError, match="no run 'nonsense'"):
        manager.resume("nonsense")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a thread a priority of its own")
def test_a_worker_on_the_cpu_yields_to_the_app(store: RunStore) -> None:
    seen: list[int] = []

    def note(run: Run) -> RunFinished:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return RunFinished(metrics={})

    run = store.get(JobManager(store, note).submit(ON_CPU))
    until(lambda: run.state() == "finished")
    assert seen[0] > os.getpriority(os.PRIO_PROCESS, os.getpid())


@pytest.mark.slow
def test_what_a_killed_server_leaves_is_gone_on_with_by_the_next(store: RunStore) -> None:
    script = (
        "import sys, time\n"
        "from app.work.jobs import JobManager\n"
        "from snows.config import PruneConfig, RunConfig\n"
        "from snows.runs.store import RunStore, default_root\n"
        "from tests.app.helpers import slow_execute\n"
        "manager = JobManager(RunStore(default_root()), lambda run: slow_execute(run, 0.01))\n"
        "for _ in range(2): manager.submit(RunConfig(prune=PruneConfig(device='cpu')))\n"
        "time.sleep(60)\n"
    )
    server = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    try:
        until(lambda: len(store.list()) == 2, seconds=300)  # on a busy machine the imports alone take minutes
        until(lambda: any(len(run.events()[0]) > 60 for run in store.list()))
        assert sorted(run.state() for run in store.list()) == ["queued", "running"]
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert [run.state() for run in store.list()] == ["queued"] * 2

    JobManager(store, lambda run: helpers.slow_execute(run, pause=0)).work_on("cpu")
    until(lambda: all(run.state() == "finished" for run in store.list()))
    assert sorted(len(starts(run)) for run in store.list()) == [1, 2]


def starts(run: Run) -> list[RunStarted]:
    return [event for event in run.events()[0] if isinstance(event, RunStarted)]


@pytest.mark.slow
def test_a_server_that_is_stopped_puts_back_what_it_does(store: RunStore) -> None:
    manager = JobManager(store, lambda run: helpers.slow_execute(run, pause=0.002))
    working, waiting = (store.get(manager.submit(ON_CPU)) for _ in range(2))
    until(lambda: len(working.events()[0]) > 60)
    manager.stop()
    assert [run.state() for run in (working, waiting)] == ["queued"] * 2
    assert working.events()[0][-1].lost == 0  # that was no accident
    JobManager(store, lambda run: helpers.slow_execute(run, pause=0)).work_on("cpu")
    until(lambda: all(run.state() == "finished" for run in (working, waiting)))
    assert [event.resumed for event in starts(working)][1:] == [working.log().done - fresh(working)]


def fresh(run: Run) -> int:
    """How many layers were finished since the run began last."""
    events = run.events()[0]
    last = max(place for place, event in enumerate(events) if isinstance(event, RunStarted))
    return sum(isinstance(event, SiteFinished) for event in events[last:])


def test_what_a_shell_puts_in_line_is_done_and_what_waits_for_another_device_waits(store: RunStore) -> None:
    gate = Gate()
    gate.release.release(9)
    manager = JobManager(store, gate)
    manager.work_on("cpu")
    mine, other = store.create(ON_CPU), store.create(RunConfig(prune=PruneConfig(device="cuda:7")))
    store.enqueue([other, mine])
    until(lambda: mine.state() == "finished")
    assert (other.state(), gate.begun) == ("queued", [mine.id])
    assert (manager.attends_to(mine), manager.attends_to(other)) == (True, False)
    assert manager.position(other) == 1  # in a line of its own
