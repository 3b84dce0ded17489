"""Workers that share a store: who is next, one writer a run, and nothing lost whichever of them is killed."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snows.config import Cancelled, PruneConfig, RunConfig
from snows.events import Event, JointEpoch, Phase, Queued, RunCancelled, RunFailed, RunFinished, SiteFinished
from snows.runs import executors
from snows.runs.executors import Worker, device_of, takes
from snows.runs.store import MOST_LOST, Run, RunStore, RunTakenError, StoreError
from tests.bench import workers

CPU = RunConfig(prune=PruneConfig(device="cpu"))
DONE = SiteFinished(
    **{"site": "a.weight", "index": 0, "losses": {}, "by_k": {}, "scale": [], "density": 0.5, "status": "", "message": ""},
    **{"seconds": 1.0, "num_products": 0},
)


def kinds(run: Run) -> list[str]:
    return [type(event).__name__ for event in run.events()[0]]


def finishes(run: Run) -> RunFinished:
    return RunFinished(metrics={})


def work_through(store: RunStore, device: str = "cpu", count: int = 1_000) -> list[str]:
    """What a worker does of what is in line, by id, in its order."""
    worker, done = Worker(store, device), []
    while len(done) < count and (hold := worker.claim()) is not None:
        with hold:
            hold.work(finishes)
        done.append(hold.run.id)
    return done


def in_line(store: RunStore, config: RunConfig = CPU) -> Run:
    run = store.create(config)
    store.enqueue([run])
    return run


def lose_a_worker(run: Run, *events: Event) -> None:
    """Claim a run and go away in the middle of it, as a process that is killed does."""
    hold = run.claim()
    assert hold is not None
    run.append(Phase(name="load"), *events)
    hold.__exit__()


# --- a run in line ---


def test_a_run_in_line_waits_in_nobodys_hands_until_a_worker_claims_it(store: RunStore) -> None:
    run = in_line(store)
    assert (run.state(), run.holder(), kinds(run)) == ("queued", "", ["Queued"])
    hold = run.claim()
    assert hold is not None
    with hold:
        assert run.claim() is None
        assert run.holder().startswith(f"process {os.getpid()} on ")
        assert run.state() == "queued"
        assert hold.work(lambda run: (run.append(Phase(name="load")), finishes(run))[1]) == run.last()
    assert (run.state(), run.in_line()) == ("finished", False)
    assert kinds(run) == ["Queued", "Phase", "RunFinished"]
    assert run.claim() is None


def test_a_run_that_a_shell_takes_is_no_workers_any_more(store: RunStore) -> None:
    run = in_line(store)
    run.queue().__exit__()
    assert (run.state(), run.in_line()) == ("interrupted", False)
    assert work_through(store) == []


def test_what_is_in_line_is_not_queued_again_nor_deleted(store: RunStore) -> None:
    run = in_line(store)
    store.enqueue([run])
    assert kinds(run) == ["Queued"]
    for remove in (store.trash, store.delete):
        with pytest.raises(RunTakenError, match=f"{run.id} is queued, so it was not deleted. Cancel it first"):
            remove(run.id)
    assert work_through(store) == [run.id]
    store.delete(run.id)


def test_a_run_that_waits_is_cancelled_at_once_and_one_in_work_by_its_worker(store: RunStore) -> None:
    waiting, working = in_line(store), in_line(store)
    waiting.cancel()
    assert (waiting.state(), waiting.in_line()) == ("cancelled", False)
    hold = working.claim()
    assert hold is not None

    def obeys(run: Run) -> RunFinished:
        run.cancel()
        assert run.stop_requested()
        raise Cancelled

    with hold:
        hold.work(obeys)
    assert working.state() == "cancelled"
    assert kinds(waiting) == kinds(working) == ["Queued", "RunCancelled"]


def test_those_that_can_be_queued_are_whatever_becomes_of_another(store: RunStore) -> None:
    runs = [store.create(CPU) for _ in range(3)]
    with runs[1].queue(), pytest.raises(RunTakenError, match=f"Run {runs[1].id} is queued: process"):
        store.enqueue(runs)
    assert [run.in_line() for run in runs] == [True, False, True]
    with runs[1].queue() as hold:
        hold.work(finishes)
    with pytest.raises(RunTakenError, match="is finished; there is nothing to resume"):
        store.enqueue(runs)


def test_a_run_that_was_removed_by_hand_and_one_that_ended_are_taken_out_of_the_line(store: RunStore) -> None:
    gone, ended, left = (in_line(store) for _ in range(3))
    for file in gone.path.iterdir():
        file.unlink()
    gone.path.rmdir()
    ended.append(RunFinished(metrics={}))  # and its worker was killed before it could take it out
    assert ended.state() == "finished"
    assert work_through(store) == [left.id]
    assert store.line().places() == {}
    assert not gone.path.exists()
    assert kinds(ended) == ["Queued", "RunFinished"]


def test_a_copy_in_the_making_is_waited_out(store: RunStore) -> None:
    run, other = in_line(store), in_line(store)
    with run.at_rest():
        assert work_through(store) == [other.id]
    assert work_through(store) == [run.id]


def test_a_run_that_the_disk_refuses_keeps_nobody_from_the_others(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, other = in_line(store), in_line(store)
    (refused.path / "reserve").mkdir()  # where a file is to be written
    worker = Worker(store, "cpu")
    hold = worker.claim()
    assert hold is not None
    assert hold.run == other
    with pytest.raises(StoreError, match="reserve"), hold:
        worker.claim()
    assert refused.in_line()


@pytest.mark.parametrize("what", ["the line", "the run"])
def test_a_disk_that_refuses_a_place_in_line_lets_the_run_go(what: str, store: RunStore) -> None:
    run = store.create(CPU)
    if what == "the line":
        (store.root / ".queue").write_text("in the way")
    else:
        (run.path / "events.jsonl").mkdir()
    with pytest.raises(StoreError, match=r"Could not write .*\. Set SNOWS_RUNS"):
        store.enqueue([run])
    assert (run.holder(), run.in_line()) == ("", False)


# --- who is next ---


def test_comparisons_are_served_in_rotation_and_a_run_by_itself_after_one_of_each(store: RunStore) -> None:
    first, second = (store.create_comparison([CPU] * count) for count in (5, 3))
    store.enqueue(first.runs(), first.id)
    began = work_through(store, count=2)
    store.enqueue(second.runs(), second.id)
    alone = [in_line(store), in_line(store)]
    names = {run.id: f"a{i}" for i, run in enumerate(first.runs())} | {run.id: f"b{i}" for i, run in enumerate(second.runs())}
    names |= {run.id: f"alone{i}" for i, run in enumerate(alone)}
    order = [names[run_id] for run_id in began + work_through(store)]
    # a2 had its turn before the others came; then each has one a turn.
    assert order == ["a0", "a1", "a2", "alone0", "a3", "b0", "alone1", "a4", "b1", "b2"]


def test_none_starves_however_many_come_later(store: RunStore) -> None:
    long = store.create_comparison([CPU] * 6)
    store.enqueue(long.runs(), long.id)
    left, served = {run.id for run in long.runs()}, 0
    while left:
        newcomers = store.create_comparison([CPU] * 2)
        store.enqueue(newcomers.runs(), newcomers.id)
        left -= set(work_through(store, count=2))
        served += 2
        assert served < 100, "the first comparison is never finished"


def test_what_is_resumed_comes_at_the_end_of_its_comparison(store: RunStore) -> None:
    comparison = store.create_comparison([CPU] * 3)
    runs = comparison.runs()
    store.enqueue(runs, comparison.id)
    runs[0].cancel()
    store.enqueue(runs[:1], comparison.id)
    assert work_through(store) == [runs[1].id, runs[2].id, runs[0].id]


def test_a_worker_takes_what_its_device_can_do(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["auto", "cpu", "cuda", "cuda:0", "cuda:1"]
    for has_cuda, on_cpu in ((False, {"auto", "cpu"}), (True, {"cpu"})):
        monkeypatch.setattr(executors, "_has_cuda", lambda has_cuda=has_cuda: has_cuda)
        assert {device for device in wanted if takes("cpu", device)} == on_cpu
        assert {device for device in wanted if takes("cuda:1", device)} == {"auto", "cuda", "cuda:1"}
        best = "cuda:0" if has_cuda else "cpu"
        named = {"auto": best, "cpu": "cpu", "cuda": "cuda:0", "cuda:1": "cuda:1"}
        assert {name: device_of(RunConfig(prune=PruneConfig(device=name))) for name in named} == named
    runs = {device: in_line(store, RunConfig(prune=PruneConfig(device=device))) for device in wanted}
    assert work_through(store, "cuda:1") == [runs[device].id for device in ("auto", "cuda", "cuda:1")]
    assert work_through(store, "cpu") == [runs["cpu"].id]
    assert list(store.line().places()) == [runs["cuda:0"].id]


# --- workers that come and go ---


def test_an_idle_worker_takes_what_comes_and_ends_when_it_is_told(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "LOOK_SECONDS", 0.01)
    worker, done = Worker(store, "cpu"), []

    def work() -> None:
        while (hold := worker.next()) is not None:
            with hold:
                hold.work(finishes)
            done.append(hold.run.id)

    thread = threading.Thread(target=work)
    thread.start()
    ids = [in_line(store).id for _ in range(3)]
    until(lambda: done == ids)
    worker.stop()
    thread.join(20)
    assert not thread.is_alive()


def test_until_empty_waits_for_what_another_may_leave(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "LOOK_SECONDS", 0.01)
    run = in_line(store)
    other = run.claim()
    assert other is not None
    taken: list[Run] = []

    def wait() -> None:
        while (hold := Worker(store, "cpu").next(until_empty=True)) is not None:
            with hold:
                hold.work(finishes)
            taken.append(hold.run)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    assert (thread.is_alive(), taken) == (True, [])
    run.append(Phase(name="load"))
    other.__exit__()
    thread.join(20)
    assert taken == [run]
    assert kinds(run) == ["Queued", "Phase", "Queued", "RunFinished"]


def test_a_worker_that_is_stopped_puts_its_run_back_unless_a_person_wants_its_end(store: RunStore) -> None:
    for cancelled in (False, True):
        run, worker = in_line(store), Worker(store, "cpu")
        hold = worker.claim()
        assert hold is not None

        def stopped(run: Run, worker: Worker = worker, cancelled: bool = cancelled) -> RunFinished:
            run.append(Phase(name="load"))
            worker.stop()
            if cancelled:
                run.cancel()
            assert run.stop_requested()
            raise Cancelled

        with hold:
            ending = hold.work(stopped)
        assert isinstance(ending, RunCancelled if cancelled else Queued)
        assert (run.state(), run.in_line()) == (("cancelled", False) if cancelled else ("queued", True))
        assert not (run.path / "reserve").exists()
        assert worker.next() is None  # it takes no other
        assert work_through(store) == ([] if cancelled else [run.id])


def test_what_fails_while_its_worker_is_stopped_is_tried_again(store: RunStore) -> None:
    run, worker = in_line(store), Worker(store, "cpu")
    hold = worker.claim()
    assert hold is not None

    def comes_down(run: Run) -> RunFinished:
        worker.stop()
        raise AttributeError("the engine is no longer there")

    with hold:
        hold.work(comes_down)
    assert (run.state(), kinds(run)) == ("queued", ["Queued", "Queued"])
    assert work_through(store) == [run.id]


def test_a_lost_worker_leaves_a_run_that_the_next_one_goes_on_with(store: RunStore) -> None:
    run = in_line(store)
    lose_a_worker(run)
    assert run.state() == "queued"
    assert work_through(store) == [run.id]
    assert kinds(run) == ["Queued", "Phase", "Queued", "RunFinished"]
    assert run.events()[0][2].lost == 1


def test_a_run_on_which_workers_are_lost_in_a_row_fails_with_a_sentence(store: RunStore) -> None:
    run = in_line(store)
    for _ in range(MOST_LOST):
        lose_a_worker(run)
    other = in_line(store)
    assert work_through(store) == [other.id]
    last = run.last()
    assert isinstance(last, RunFailed)
    assert last.message.startswith("3 workers in a row were lost while they worked on this run, and finished no layer of it.")
    assert (run.state(), run.in_line()) == ("failed", False)
    store.enqueue([run])  # a person may know better, and then it has as many again
    lose_a_worker(run)
    assert work_through(store) == [run.id]


def test_a_layer_finished_between_two_losses_clears_the_run(store: RunStore) -> None:
    run = in_line(store)
    for index in range(MOST_LOST):
        lose_a_worker(run, replace(DONE, index=index))
    for epoch in range(MOST_LOST):  # so does a pass of the joint fit
        lose_a_worker(run, JointEpoch(epoch=epoch, loss=1.0))
    assert work_through(store) == [run.id]
    for _ in range(MOST_LOST - 1):
        other = in_line(store)
        lose_a_worker(other, DONE)
    assert run.state() == "finished"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


# --- several processes; `python -m tests.bench reliability` is the long version ---


@pytest.mark.slow
def test_of_two_processes_that_claim_a_run_at_once_one_gets_it(tmp_path: Path) -> None:
    won = workers.one_writer(tmp_path / "runs", tries=30)
    assert sum(won) == 30


@pytest.mark.slow
def test_two_workers_share_what_is_in_line(tmp_path: Path) -> None:
    took = workers.overhead(tmp_path / "runs", CPU, workers.pretend, runs=40)
    assert min(took.by_worker) > 0


@pytest.mark.slow
def test_what_a_killed_worker_finished_is_kept_and_the_result_is_the_same(tmp_path: Path) -> None:
    outcomes: list[Any] = workers.killed(tmp_path / "runs", kills=3)
    assert [(outcome.lost, outcome.same) for outcome in outcomes] == [(0, True)] * 3
