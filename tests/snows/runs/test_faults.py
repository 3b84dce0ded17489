"""Power, disk, memory, clock and app taken from under runs; `python -m tests.bench reliability` is the long version."""

import errno
import os
import random
import subprocess
from pathlib import Path

import pytest
import torch

from snows.config import PruneConfig, RunConfig
from snows.events import Note, Phase, Queued, RunFailed, RunFinished
from snows.runs import runner
from snows.runs.executors import Worker
from snows.runs.log import Log
from snows.runs.store import DeviceLostError, Run, RunError, RunStore
from snows.sources import checkpoints
from tests.bench import faults, mutations

CPU = RunConfig(prune=PruneConfig(device="cpu"))


@pytest.fixture
def run(store: RunStore) -> Run:
    run = store.create(CPU)
    store.enqueue([run])
    return run


# --- power ---


@pytest.mark.slow
def test_a_power_cut_loses_no_finished_layer(tmp_path: Path) -> None:
    outcomes = faults.power_cuts(tmp_path, cuts=12)
    assert {(cut.lost, cut.same) for cut in outcomes} == {(0, True)}
    assert sum(cut.done for cut in outcomes) > 0


def test_a_power_cut_is_one_where_nothing_is_synced(tmp_path: Path) -> None:
    # What the measurement takes for synced is what was: without it there is nothing.
    root, onto = tmp_path / "runs", tmp_path / "cut"
    root.mkdir()
    cut = faults.PowerCut(root, onto, 0, random.Random(1))
    (root / "a").write_bytes(b"a" * 100)
    cut.chance.choice = lambda options: options[0]  # type: ignore[method-assign]
    cut._put(root.stat().st_ino, onto, {path.stat().st_ino: path for path in [root, root / "a"]})
    assert list(onto.iterdir()) == []


# --- disk ---


@pytest.fixture
def mounts(tmp_path: Path) -> None:
    try:
        with faults.small_disk(tmp_path / "disk", 1 << 20):
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here, which takes root: {error}")


@pytest.mark.slow
@pytest.mark.usefixtures("mounts")
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_once_there_is_room(tmp_path: Path) -> None:
    full = faults.full_disks(tmp_path / "disks", by=6 * 4096)
    assert {"make", "work", "bring", "upload"} <= full.said.keys()


# --- memory, and a device that is gone ---


@pytest.mark.slow
def test_a_run_without_memory_ends_in_a_sentence_and_is_done_where_there_is_some(tmp_path: Path) -> None:
    outcome = faults.no_memory(tmp_path / "runs", [0, 60])
    assert (outcome.same, outcome.finished) == (2, 0)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
            "The computer ran",
        ),
        (MemoryError(), "The computer ran out of memory. Use a smaller batch size"),
        (torch.OutOfMemoryError("CUDA out of memory"), "The device ran out of memory. Use a smaller batch size"),
    ],
)
def test_no_memory_has_many_names(error: Exception, sentence: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(runner, "_execute", fails)
    with pytest.raises(RunError, match=sentence):
        runner.execute(run)


def test_a_checkpoint_that_finds_no_memory_is_not_called_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoints, "load_file", full)
    path = Path(checkpoints.__file__).parents[2] / "assets" / "resnet20-fashion.safetensors"
    with pytest.raises(checkpoints.CheckpointError, match="cannot be read: the computer ran out of memory"):
        checkpoints.read(path, torch.nn.Linear(500, 500))


LOST = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported"


def test_a_lost_device_leaves_the_run_to_another_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        run.append(Phase(name="load"))
        raise torch.AcceleratorError(LOST)

    monkeypatch.setattr(runner, "_execute", lost)
    hold = run.claim()
    assert hold is not None
    with pytest.raises(DeviceLostError, match=r"The device was lost \(CUDA error: unspecified launch failure\)"), hold:
        hold.work(runner.execute)
    last = run.last()
    assert isinstance(last, Note)
    assert "finished layers are kept" in last.message
    assert (run.state(), run.holder()) == ("queued", "")
    monkeypatch.setattr(runner, "_execute", lambda *_: RunFinished(metrics={}))
    again = Worker(RunStore(run.path.parent), "cpu").claim()
    assert again is not None
    with again:
        again.work(runner.execute)
    assert run.state() == "finished"
    assert [event.lost for event in run.events()[0] if isinstance(event, Queued)] == [0, 1]


def test_a_lost_device_of_a_run_that_a_shell_keeps_is_its_end(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise torch.AcceleratorError(LOST)

    monkeypatch.setattr(runner, "_execute", lost)
    run = store.create(CPU)
    with run.queue() as hold:
        ending = hold.work(runner.execute)
    assert isinstance(ending, RunFailed)
    assert "Start the program again and resume the run" in ending.message


# --- the clock ---


def test_a_clock_that_was_set_back_takes_no_time_away() -> None:
    log = Log.of([Queued(time=100.0), Phase(time=1000.0, name="load"), Phase(time=400.0, name="prune")])
    assert [log.elapsed(now) for now in (1010.0, 500.0)] == [10.0, 0.0]
    log.add(RunFinished(time=200.0, metrics={}))
    assert log.elapsed(5000.0) == 0.0


@pytest.mark.slow
def test_nothing_is_interrupted_by_a_clock(tmp_path: Path) -> None:
    assert faults.wrong_clocks(tmp_path / "runs", runs=1) == 1


# --- the app ---


@pytest.mark.slow
def test_an_app_that_is_killed_leaves_its_runs_to_the_next(tmp_path: Path) -> None:
    (outcome,) = faults.app_kills(tmp_path / "runs", kills=1)
    assert (outcome.lost, outcome.same, outcome.left) == (0, 3, True)


# --- damaged files ---


def test_a_damaged_line_is_told_of_and_passed_over(run: Run) -> None:
    run.append(Phase(time=5.0, name="load"))
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b"\0\0\0{broken\n")
    run.append(Phase(time=9.0, name="prune"))
    assert [type(event) for event in run.events()[0]] == [Queued, Phase, Note, Phase]
    assert "is damaged and was passed over" in run.log().notes[0]
    assert run.last() == Phase(time=9.0, name="prune")
    with (run.path / "events.jsonl").open("wb") as file:
        file.write(b"nothing\nof it\n")
    assert run.state() == "queued"
    assert run.created() == (run.path / "config.json").stat().st_mtime
    assert run.log().elapsed(1e9) == 0.0


def test_a_run_whose_settings_are_damaged_fails_and_keeps_nobody_from_the_others(store: RunStore, run: Run) -> None:
    (run.path / "config.json").write_bytes(b"\0" * 40)
    other = store.create(CPU)
    store.enqueue([other])
    hold = Worker(store, "cpu").claim()
    assert hold is not None
    with hold:
        assert hold.run.id == other.id
    last = run.last()
    assert isinstance(last, RunFailed)
    assert "(config.json) cannot be read" in last.message
    assert not run.in_line()


@pytest.mark.slow
@pytest.mark.parametrize("kind", mutations.KINDS)
def test_no_mutated_file_does_harm(kind: str) -> None:
    outcome = mutations.mutate(kind, 30, seed=1)
    assert (outcome.crashes, outcome.outside, outcome.over_memory, outcome.over_time) == ([], [], 0, 0)
    assert outcome.read + outcome.refused == 30


def test_a_write_that_cannot_be_synced_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuses)
    for write in (lambda: run.save_metrics({}), lambda: run.append(RunFinished(metrics={}))):
        with pytest.raises(RunError, match=r"Could not write .*: Input/output error"):
            write()
    run.append(Phase(name="load"))


def test_folders_that_cannot_be_synced_are_left_to_their_file_system(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuses)
    run.save_metrics({"accuracy": 0.5})
    assert run.metrics() == {"accuracy": 0.5}
