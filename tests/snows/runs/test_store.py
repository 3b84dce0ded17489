"""The run store: torn lines, killed workers, many readers, full disks, and what a person reads when the disk refuses."""

import errno
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import SafetensorError

from snows.config import Cancelled, InputError, PruneConfig, RunConfig, explain
from snows.events import CGIteration, Event, Phase, Queued, RunCancelled, RunFailed, RunFinished, RunStarted, SiteFinished
from snows.runs import lock
from snows.runs.store import Labels, Run, RunError, RunStore, RunTakenError, StoreError, default_root

events = st.builds(
    CGIteration,
    time=st.floats(0, 1e10),
    site=st.text(max_size=30),
    step=st.integers(0, 100),
    iteration=st.integers(0, 10_000),
    residual=st.floats(allow_nan=False),
    curvature=st.floats(allow_nan=False),
)
STARTED = RunStarted(device="cpu", sites=["fc.weight"], skipped={})
SITE = SiteFinished(
    site="fc.weight",
    index=0,
    losses={"final": 1.0},
    by_k={},
    scale=[],
    density=0.5,
    status="",
    message="",
    seconds=1.0,
    num_products=1,
)


@contextmanager
def fresh_run() -> Iterator[Run]:
    """A run of its own for each example that hypothesis tries."""
    with tempfile.TemporaryDirectory() as folder:
        yield RunStore(Path(folder)).create(RunConfig())


@pytest.fixture
def run(store: RunStore) -> Run:
    return store.create(RunConfig())


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --- events ---


@pytest.mark.slow
@given(st.lists(st.lists(events, max_size=3), max_size=6), st.data())
def test_tailing_in_any_rhythm_gives_every_event_once_in_order(batches: list[list[Event]], data: st.DataObject) -> None:
    with fresh_run() as run:
        seen: list[Event] = []
        offset = 0
        for batch in batches:
            run.append(*batch)
            if data.draw(st.booleans()):
                new, offset = run.events(offset)
                seen += new
        new, offset = run.events(offset)
        written = [event for batch in batches for event in batch]
        assert seen + new == written
        assert run.events() == (written, offset)
        assert run.events(offset) == ([], offset)


def check_torn(run: Run, content: bytes, length: int, written: list[Event], later: Event) -> None:
    (run.path / "events.jsonl").write_bytes(content[:length])
    whole = written[: content[:length].count(b"\n")]
    before, offset = run.events()
    assert before == whole
    run.append(later)  # the next worker
    assert run.events(offset)[0] == [later]
    assert run.events()[0] == [*whole, later]


def test_a_log_torn_at_every_byte_reads_whole_lines_and_goes_on(run: Run) -> None:
    written: list[Event] = [STARTED, Phase(time=1.0, name="Schrödinger\u2028"), RunCancelled(time=2.0, finished_sites=0)]
    run.append(*written)
    content = (run.path / "events.jsonl").read_bytes()
    for length in range(len(content) + 1):
        check_torn(run, content, length, written, Queued(time=3.0))


@pytest.mark.slow
@given(st.lists(events, min_size=1, max_size=3), events, st.data())
def test_any_log_torn_at_any_byte_goes_on(written: list[Event], later: Event, data: st.DataObject) -> None:
    with fresh_run() as run:
        run.append(*written)
        content = (run.path / "events.jsonl").read_bytes()
        check_torn(run, content, data.draw(st.integers(0, len(content))), written, later)


def test_a_line_being_written_is_left_for_the_next_call(run: Run) -> None:
    run.append(STARTED)
    _, offset = run.events()
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "Phase", "time": 1.0, "na')
        file.flush()
        assert run.events(offset) == ([], offset)
        file.write(b'me": "load"}\n')
        file.flush()
        assert run.events(offset)[0] == [Phase(time=1.0, name="load")]


def test_events_of_a_newer_version_are_passed_over(run: Run) -> None:
    run.append(STARTED)
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"kind": "AddedLater", "time": 1.0}\n')
    run.append(Phase(time=2.0, name="load"))
    assert run.events()[0] == [STARTED, Phase(time=2.0, name="load")]


WRITER = """
import sys
from pathlib import Path
from snows.events import Phase
from snows.runs.store import Run
run = Run(Path(sys.argv[1]))
for i in range(400):
    run.append(Phase(time=float(i), name="x" * (i % 200)))
"""


@pytest.mark.slow
def test_two_readers_of_a_writing_process_miss_nothing(run: Run) -> None:
    def tail(seen: list[Event]) -> None:
        offset, deadline = 0, time.monotonic() + 60
        while len(seen) < 400 and time.monotonic() < deadline:
            new, offset = run.events(offset)
            seen += new

    logs: list[list[Event]] = [[], []]
    readers = [threading.Thread(target=tail, args=(log,)) for log in logs]
    for reader in readers:
        reader.start()
    subprocess.run([sys.executable, "-c", WRITER, run.path], check=True, timeout=60)
    for reader in readers:
        reader.join()
    assert all([event.time for event in log] == list(range(400)) for log in logs)


# --- who holds the run ---

HOLDER = """
import sys, time
from snows.events import RunStarted
from snows.runs.store import Run
run = Run(sys.argv[1])
with run.queue():
    run.append(RunStarted(device="cpu", sites=[], skipped={}))
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "Phase", "na')
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def worker_on(run: Run) -> Iterator[subprocess.Popen]:
    """Another process that works on `run` until the block ends, or it is killed."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, run.path], stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"held\n"
            yield worker
        finally:
            worker.kill()
            worker.wait()


def goes_on(run: Run) -> RunFinished:
    run.append(Phase(time=1.0, name="prune"))
    assert run.state() == "running"
    return RunFinished(time=2.0, metrics={})


def kinds(run: Run) -> list[str]:
    return [type(event).__name__ for event in run.events()[0]]


@pytest.mark.slow
def test_a_killed_worker_leaves_an_interrupted_run_that_goes_on(run: Run) -> None:
    with worker_on(run) as worker:
        assert run.state() == "running"
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        assert run.state() == "interrupted"  # at once
        with run.queue() as hold:
            assert hold.work(goes_on) == RunFinished(time=2.0, metrics={})
    assert kinds(run) == ["Queued", "RunStarted", "Queued", "Phase", "RunFinished"]
    assert run.state() == "finished"


@pytest.mark.slow
def test_nobody_else_takes_or_removes_a_run_in_work(store: RunStore, run: Run) -> None:
    with worker_on(run) as worker:
        where = f"process {worker.pid} on {socket.gethostname()}"
        with pytest.raises(RunTakenError, match=rf"Run {run.id} is running: {where} works on it. Wait for it, or cancel it\."):
            run.queue()
        for remove in (store.trash, store.delete):
            with pytest.raises(RunTakenError, match=rf"{run.id} is running, so it was not deleted. Cancel it first"):
                remove(run.id)
        with pytest.raises(RunTakenError, match="is running"), run.at_rest():
            pass
        assert run.state() == "running"  # whoever was refused and has left changed nothing
        assert kinds(run) == ["Queued", "RunStarted"]
    assert store.restore(store.trash(run.id)) == run


@pytest.mark.slow
def test_a_worker_that_says_nothing_for_long_is_still_at_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with worker_on(run) as worker:
        worker.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(time, "time", lambda: 4e9)
        assert run.state() == "running"
        with pytest.raises(RunTakenError):
            run.queue()
        worker.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_a_second_hold_in_the_same_thread_is_refused_and_its_end_lets_nothing_go(run: Run) -> None:
    with run.queue() as first:
        for _ in range(2):
            with pytest.raises(RunTakenError, match="is queued: process"):
                run.queue()
            assert run.state() == "queued"
        assert kinds(run) == ["Queued"]
        first.cancel()
    with run.queue() as second:
        first.__exit__()  # a hold that was let go is no longer one
        assert run.state() == "queued"
        assert (run.path / "reserve").exists()
        second.cancel()
    assert run.state() == "cancelled"


RESUMER = """
import sys, time, types
import snows
from pathlib import Path
from snows.__main__ import main
from snows.events import Phase, RunFinished

def execute(run, device):
    for number in range(200):
        run.append(Phase(name=str(number)))
        time.sleep(0.002)
    run.save_metrics({"accuracy": 1.0})
    return RunFinished(metrics={"accuracy": 1.0})

sys.modules["snows.runs.runner"] = snows.runs.runner = types.SimpleNamespace(execute=execute)
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main([sys.argv[1], "--resume", sys.argv[2], "--json"]))
"""


def two_shells(command: str, name: str) -> tuple[list[int], list[str]]:
    """Resume `name` in two shells at once: their exit codes, and what each said on stderr."""
    pipes = {stream: subprocess.PIPE for stream in ("stdin", "stdout", "stderr")}
    line = [sys.executable, "-c", RESUMER, command, name]
    shells = [subprocess.Popen(line, text=True, **pipes) for _ in range(2)]
    for shell in shells:
        assert shell.stdout.readline() == "ready\n"
    for shell in shells:
        shell.stdin.write("go\n")
        shell.stdin.flush()
    said = [shell.communicate(timeout=120)[1] for shell in shells]
    return [shell.returncode for shell in shells], said


@pytest.mark.slow
def test_of_two_shells_that_resume_a_run_at_once_one_gets_it_and_the_other_a_sentence(run: Run) -> None:
    codes, said = two_shells("prune", run.id)
    assert sorted(codes) == [0, 2], said
    refused = said[codes.index(2)]
    assert re.fullmatch(
        # "in use" while the first has said that it ended and not yet let go, "finished" where the second came later still
        rf"Run {run.id} is ((queued|running|in use): process \d+ on .* works on it\. Wait for it, or cancel it|"
        r"finished; there is nothing to resume\. Start its settings as a new run)\.\n",
        refused,
    )
    assert [event.name for event in run.events()[0] if isinstance(event, Phase)] == [str(number) for number in range(200)]
    assert kinds(run).count("Queued") == 1


@pytest.mark.slow
def test_two_shells_that_resume_a_batch_at_once_work_on_each_run_once(store: RunStore) -> None:
    batch = store.create_comparison([RunConfig(), RunConfig(num_calibration=64), RunConfig(num_calibration=32)])
    codes, said = two_shells("compare", batch.id)
    assert 0 in codes, said
    assert any("Another process works on" in words for words in said)
    for run in batch.runs():
        assert run.state() == "finished"
        assert kinds(run) == ["Queued", *["Phase"] * 200, "RunFinished"]


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (RunFinished(metrics={}), "finished"),
        (RunFailed(message="No images."), "failed"),
        (RunCancelled(finished_sites=1), "cancelled"),
        (STARTED, "interrupted"),
        (Queued(), "interrupted"),
        (None, "interrupted"),
    ],
)
def test_state_without_a_worker_is_the_last_events(run: Run, last: Event | None, state: str) -> None:
    if last is not None:
        run.append(last)
    assert run.state() == state
    assert run.state_after(last) == state


def test_state_with_a_worker_is_queued_then_running(run: Run) -> None:
    with run.queue():
        assert run.state() == "queued"
        run.append(STARTED)
        assert run.state() == "running"
    assert run.state() == "interrupted"


def test_a_reader_that_looks_while_a_worker_ends_never_sees_it_interrupted(run: Run) -> None:
    with run.queue() as hold:
        seen = run.events()[0][-1]
        hold.work(lambda run: RunFinished(metrics={}))
    assert run.state_after(seen) == "finished"  # the events were read before it ended, the lock was looked at after


@pytest.mark.parametrize("size", [10, 100, 30_000, 300_000])
def test_the_last_event_is_found_behind_long_lines_and_those_of_another_version(run: Run, size: int) -> None:
    run.append(STARTED, RunFailed(message="x" * size))
    with (run.path / "events.jsonl").open("a") as file:
        file.write('{"kind": "AddedLater", "more": "' + "y" * size + '"}\n' + '{"kind": "Phase", "na')
    assert run.state() == "failed"
    (run.path / "events.jsonl").write_text('{"kind": "AddedLater"}\n')
    assert run.state() == "interrupted"


def raises(error: BaseException) -> Any:
    def execute(run: Run) -> RunFinished:
        run.append(STARTED)
        raise error

    return execute


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (Cancelled(), RunCancelled(time=0.0, finished_sites=0)),
        (InputError("There is no such model."), RunFailed(time=0.0, message="There is no such model.", bad_input=True)),
        (RunError("No memory."), RunFailed(time=0.0, message="No memory.")),
        (StoreError("No room."), RunFailed(time=0.0, message="No room.")),
    ],
)
def test_what_a_worker_raises_is_how_its_run_ended(run: Run, error: Exception, ending: Event) -> None:
    with run.queue() as hold:
        assert replace(hold.work(raises(error)), time=0.0) == ending
        run.request_cancel()  # too late
    assert replace(run.events()[0][-1], time=0.0) == ending
    with run.queue():  # it may go on, and nothing of before stops it
        assert not run.cancel_requested()
        assert run.state() == "queued"


def test_an_error_that_nobody_foresaw_is_a_sentence_and_its_trace(run: Run) -> None:
    with run.queue() as hold:
        hold.work(raises(ZeroDivisionError("by zero")))
    last = run.events()[0][-1]
    assert isinstance(last, RunFailed)
    assert last.message.startswith("The run stopped on an unexpected error (ZeroDivisionError: by zero). Finished layers are")
    assert "Traceback" in last.detail


def test_a_second_ctrl_c_leaves_the_run_interrupted_and_free(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt), run.queue() as hold:
        hold.work(raises(KeyboardInterrupt()))
    assert run.state() == "interrupted"
    run.queue().__exit__()


def test_a_run_that_was_cancelled_while_it_waited_does_not_begin(run: Run) -> None:
    run.append(STARTED, replace(SITE, index=0), replace(SITE, index=0), replace(SITE, index=1))
    with run.queue() as hold:
        run.request_cancel()
        hold.work(lambda run: pytest.fail("it began"))
    assert run.events()[0][-1].finished_sites == 2
    assert not run.cancel_requested()


def test_a_finished_run_is_not_gone_on_with(run: Run) -> None:
    with run.queue() as hold:
        hold.work(lambda run: RunFinished(metrics={}))
    before = (run.path / "events.jsonl").read_bytes()
    with pytest.raises(RunTakenError, match="is finished; there is nothing to resume"):
        run.queue()
    assert (run.path / "events.jsonl").read_bytes() == before
    assert run.state() == "finished"


def test_a_run_that_was_deleted_meanwhile_is_not_brought_back_by_half(store: RunStore, run: Run) -> None:
    store.trash(run.id)
    with pytest.raises(RunTakenError, match="is no longer in"):
        run.queue()
    assert not run.path.exists()


def test_a_run_that_is_deleted_while_somebody_takes_it_can_be_had_back(
    store: RunStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, trashed = lock.take, []

    def too_late(path: Path, **how: bool) -> Any:
        monkeypatch.undo()
        trashed.append(store.trash(run.id))
        return take(path, **how)

    monkeypatch.setattr(lock, "take", too_late)
    with pytest.raises(RunTakenError, match="is no longer in"):
        run.queue()
    assert store.restore(trashed[0]) == run
    assert run.events() == ([], 0)


def test_a_disk_without_room_refuses_a_run_and_lets_it_go(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", no_space)
        with pytest.raises(StoreError, match=r"No space left on device\. Free some space"):
            run.queue()
    run.queue().__exit__()


def test_a_result_that_finds_no_room_is_a_failure_with_its_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Run.append

    def full(self: Run, *new: Event) -> None:
        if isinstance(new[0], RunFinished):
            raise StoreError("Could not write it: no space.")
        append(self, *new)

    monkeypatch.setattr(Run, "append", full)
    with run.queue() as hold:
        hold.work(lambda run: RunFinished(metrics={}))
    assert run.events()[0][-1].message == "Could not write it: no space."


def test_cancel_is_asked_and_seen(run: Run) -> None:
    assert not run.cancel_requested()
    run.request_cancel()
    run.request_cancel()
    assert Run(run.path).cancel_requested()
    with run.queue():
        assert not run.cancel_requested()


# --- results ---


def test_a_finished_site_comes_back(run: Run) -> None:
    weight = torch.randn(4, 3, 3, 3)
    mask = weight > 0
    assert run.load_site(7) is None
    run.save_site(7, weight.requires_grad_(), mask)
    loaded = run.load_site(7)
    assert loaded is not None
    assert torch.equal(loaded[0], weight.detach())
    assert torch.equal(loaded[1], mask)
    assert run.load_site(0) is None


def test_final_weights_come_back_even_where_names_share_them(run: Run) -> None:
    from safetensors.torch import load_file

    weight = torch.randn(3, 5)
    run.save_weights({"embedding": weight, "head": weight, "transposed": weight.T})
    loaded = load_file(run.weights_path)
    assert torch.equal(loaded["head"], weight)
    assert torch.equal(loaded["transposed"], weight.T)


def test_metrics_come_back(run: Run) -> None:
    assert run.metrics() is None
    run.save_metrics({"accuracy": 0.9, "accuracy_dense": None})
    assert run.metrics() == {"accuracy": 0.9, "accuracy_dense": None}


@pytest.mark.slow
@given(st.dictionaries(st.text(min_size=1), st.none() | st.floats()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_metrics_are_json_whatever_was_measured(run: Run, measured: dict[str, float | None]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    saved = run.save_metrics(measured)
    assert json.loads((run.path / "metrics.json").read_text(), parse_constant=refuse) == saved == run.metrics()
    assert saved == {n: v if v is not None and math.isfinite(v) else None for n, v in measured.items()}


def test_metrics_of_before_are_read_without_their_nan(run: Run) -> None:
    (run.path / "metrics.json").write_text('{"accuracy": 0.5, "divergence": NaN, "seconds": Infinity, "density": -Infinity}')
    assert run.metrics() == {"accuracy": 0.5, "divergence": None, "seconds": None, "density": None}


def test_no_scratch_file_stays_or_is_read(run: Run) -> None:
    run.save_site(0, torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool))
    run.save_metrics({})
    assert sorted(p.name for p in run.path.rglob("*")) == ["0000.safetensors", "config.json", "metrics.json", "sites"]
    # What a worker killed in the middle of a write leaves behind.
    (run.path / "sites" / ".0001.safetensors.123.456").write_bytes(b"half")
    assert run.load_site(1) is None


# --- a disk that refuses ---


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (lambda run: run.save_site(0, torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)), "0000.safetensors"),
        (lambda run: run.save_weights({"w": torch.ones(2)}), "weights.safetensors"),
        (lambda run: run.save_metrics({}), "metrics.json"),
    ],
    ids=["site", "weights", "metrics"],
)
def test_a_full_disk_is_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch, write: Any, file: str) -> None:
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(StoreError, match=rf"Could not write .*{file}: No space left on device\. Free some space"):
        write(run)
    assert not list(run.path.rglob(file))


def test_a_full_disk_keeps_the_file_that_was_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save_metrics({"accuracy": 0.5})
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(StoreError):
        run.save_metrics({"accuracy": 0.9})
    assert run.metrics() == {"accuracy": 0.5}


def test_a_disk_that_fills_up_in_the_middle_of_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append(STARTED)
    whole = Path.open

    @contextmanager
    def filling(path: Path, mode: str) -> Iterator[Any]:
        class Full:
            def __init__(self, file: BinaryIO) -> None:
                self.seek, self.read, self.truncate, self._file = file.seek, file.read, file.truncate, file

            def write(self, content: bytes) -> None:
                self._file.write(content[: len(content) // 2])
                self._file.flush()
                no_space()

        with whole(path, mode) as file:
            yield Full(file)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", filling)
        with pytest.raises(StoreError, match=r"Could not write .*events\.jsonl: No space left on device"):
            run.append(Phase(name="load"))
    assert run.events()[0] == [STARTED]
    run.append(Phase(time=1.0, name="load"))
    assert run.events()[0] == [STARTED, Phase(time=1.0, name="load")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which only Linux has")
def test_a_log_on_a_device_that_is_really_full(run: Run) -> None:
    (run.path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"events\.jsonl: No space left on device"):
        run.append(STARTED)


def test_folders_that_cannot_be_made_or_written_are_named(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"Could not write .*file.*Set SNOWS_RUNS"):
        RunStore(tmp_path / "file").create(RunConfig())
    monkeypatch.setattr(Path, "touch", no_space)
    with pytest.raises(StoreError, match=r"cancel: No space left"):
        run.request_cancel()
    monkeypatch.setattr(Path, "mkdir", no_space)
    with pytest.raises(StoreError, match=r"sites: No space left"):
        run.save_site(0, torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool))


def test_a_joint_fit_that_cannot_be_kept_is_told_in_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    state = {"weight": torch.arange(6.0).view(2, 3).T}
    run.save_joint(state)
    assert torch.equal(run.load_joint()["weight"], state["weight"])
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(StoreError, match=r"joint\.safetensors: No space left on device\. Free some space"):
            run.save_joint(state)
    run.forget_joint()
    run.forget_joint()
    assert run.load_joint() is None
    (run.path / "joint.safetensors").mkdir()
    with pytest.raises(StoreError, match=r"joint\.safetensors: Is a directory"):
        run.save_joint(state)


# --- all runs ---


def test_the_config_comes_back(store: RunStore) -> None:
    config = RunConfig(model="vit-fashion", prune=PruneConfig(pattern="1:8", overrides={"head.weight": "dense"}, k_steps=10))
    assert store.create(config).config() == config


def test_runs_are_listed_newest_first_and_found_by_id(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.list() == []
    made = []
    for second in range(3):
        monkeypatch.setattr(time, "strftime", lambda *_, second=second: f"20260101-00000{second}")
        made.append(store.create(RunConfig()))
    assert store.list() == made[::-1]
    assert store.get(made[1].id) == made[1]
    store.delete(made[1].id)
    assert store.list() == [made[2], made[0]]
    assert not made[1].path.exists()


def test_a_list_of_a_few_looks_at_no_other_run(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [store.create(RunConfig()) for _ in range(5)]
    looked_at = []
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: looked_at.append(str(path)) or exists(path))
    assert store.list(2) == made[:2:-1]
    assert len(looked_at) == 2
    assert RunStore(store.root, "somebody").list(2) == []  # a run that is another's does not count


def test_the_run_at_work_is_found_however_many_wait_behind_it(store: RunStore) -> None:
    runs = [store.create(RunConfig()) for _ in range(6)]
    store.enqueue(runs[:5])
    with runs[0].claim() as at_work, runs[5].queue():
        at_work.run.append(Phase(name="prune"))
        states = [(run, state) for run, state in store.active(newest=1)]
        assert states == [(runs[0], "running"), *((run, "queued") for run in runs[1:])]
        assert [run for run, _ in store.active(newest=0)] == runs[:5]  # but who keeps one has it among the newest
    assert RunStore(store.root, "somebody").active() == []
    runs[1].cancel()
    assert [run for run, _ in store.active()] == [runs[0], *runs[2:5]]


def test_what_is_written_makes_another_version(store: RunStore) -> None:
    run = store.create(RunConfig())
    versions = {run.version()}
    for write in (
        lambda: run.append(Queued()),
        lambda: run.append(Queued()),
        lambda: run.save_labels(Labels(name="a")),
        lambda: run.save_labels(Labels(name="b")),
        lambda: run.save_metrics({"accuracy": 0.5}),
    ):
        before = len(versions)
        write()
        versions.add(run.version())
        assert len(versions) == before + 1
    assert run.version() in versions


CREATOR = """
import random, sys
from snows.runs import store
from snows.config import RunConfig
store.secrets.token_hex = lambda count: f"{random.randrange(1500):04x}"
store.time.time = lambda: 1.8e9
runs = store.RunStore(sys.argv[1])
batch = runs.create_comparison([RunConfig()] * 200)
assert len(batch.runs()) == 200
print(batch.id, *(run.id for run in batch.runs()))
"""


@pytest.mark.slow
def test_runs_made_at_once_are_apart_even_where_chance_has_little_room(store: RunStore) -> None:
    """Four processes, 200 runs each, all in one moment, with 1,500 ids to choose from."""
    command = [sys.executable, "-c", CREATOR, store.root]
    makers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    made = [maker.communicate(timeout=120)[0].split() for maker in makers]
    assert [maker.returncode for maker in makers] == [0] * 4
    assert len({name for names in made for name in names}) == 4 * 201
    assert len(store.list()) == 4 * 200
    assert sorted(batch.id for batch in store.comparisons()) == sorted(names[0] for names in made)


def test_ids_sort_by_the_time_of_creation(store: RunStore) -> None:
    made = []
    for _ in range(20):
        made.append(store.create(RunConfig()))
        time.sleep(0.001)
    assert store.list() == made[::-1]


def test_a_run_that_found_no_room_leaves_no_folder(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(StoreError, match="No space left"):
        store.create_comparison([RunConfig()] * 3)
    assert [path for path in store.root.iterdir() if not path.name.startswith(".")] == []


def test_folders_that_are_no_run_are_passed_over(store: RunStore, run: Run) -> None:
    (store.root / "notes").mkdir()
    (store.root / "file.txt").write_text("")
    assert store.list() == [run]


@pytest.mark.parametrize("run_id", ["absent", "", ".", "..", "../outside", "/etc", ".hidden", "x" * 10_000, "\0", "\ud800"])
def test_an_unknown_or_foreign_id_is_refused(store: RunStore, tmp_path: Path, run_id: str) -> None:
    store.create(RunConfig())
    for folder in (tmp_path / "outside", store.root / ".hidden", store.root):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
    for call in (store.get, store.delete):
        with pytest.raises(KeyError, match=r"There is no run .* among those kept here"):
            call(run_id)
    assert (store.root / "config.json").exists()


# --- names, tags, marks ---


def test_labels_come_back_and_leave_the_config_alone(run: Run) -> None:
    assert run.labels() == Labels()
    before = (run.path / "config.json").read_bytes()
    run.save_labels(Labels(name="  My\n best ", tags=(" talk", "talk", "", "two  words"), compare=True))
    assert run.labels() == Labels(name="My best", tags=("talk", "two words"), compare=True)
    assert (run.path / "config.json").read_bytes() == before
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "label.json"]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"name": "x" * 81}, "name .*80"),
        ({"tags": ["x" * 41]}, "longer than 40 characters"),
        ({"tags": [str(i) for i in range(21)]}, "tags .*20"),
    ],
)
def test_labels_of_any_length_are_refused(labels: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Labels.model_validate(labels)
    assert re.search(sentence, explain(refusal.value))


def test_a_label_file_of_somebody_else_is_an_error_and_a_full_disk_a_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.path / "label.json").write_text('{"name": ["a"]}')
    with pytest.raises(ValidationError):
        run.labels()
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(StoreError, match=r"label\.json: No space left"):
        run.save_labels(Labels(name="mine"))


def test_a_run_was_made_when_it_first_did_something_wherever_its_files_lie(run: Run) -> None:
    os.utime(run.path / "config.json", (1e9, 1e9))
    assert run.created() == 1e9
    (run.path / "events.jsonl").write_text('{"kind": "Phase", "time": 2.0}\n')  # no event of this version
    assert run.created() == 1e9
    (run.path / "events.jsonl").unlink()
    run.append(Queued(time=5.0), Phase(time=6.0, name="load"))
    assert run.created() == 5.0


def test_masks_come_from_the_sites_or_from_what_is_zero(run: Run) -> None:
    run.append(RunStarted(device="cpu", sites=["a", "b"], skipped={}))
    assert run.masks() == {}
    mask = torch.tensor([True, False])
    run.save_site(0, torch.tensor([0.0, 0.0]), mask)  # a kept weight may be zero
    assert {name: m.tolist() for name, m in run.masks().items()} == {"a": [True, False]}
    run.save_weights({"a": torch.zeros(2), "b": torch.tensor([0.0, 3.0]), "c": torch.ones(1)})
    assert {name: m.tolist() for name, m in run.masks().items()} == {"a": [True, False], "b": [False, True]}


# --- the trash ---


def test_a_deleted_run_is_out_of_sight_and_can_be_had_back(store: RunStore, run: Run) -> None:
    run.save_labels(Labels(name="mine"))
    other = store.create(RunConfig())
    before = {p.name: p.read_bytes() for p in run.path.iterdir()}
    trashed = store.trash(run.id)
    assert store.list() == [other]
    with pytest.raises(KeyError):
        store.get(run.id)
    assert (trashed.id, trashed.labels().name) == (run.id, "mine")
    assert store.trashed() == [trashed]
    assert store.restore(trashed) == run
    assert {p.name: p.read_bytes() for p in run.path.iterdir() if p.name != "lock"} == before
    assert store.trashed() == []
    assert set(store.list()) == {run, other}


def test_the_last_deleted_comes_first(store: RunStore) -> None:
    runs = [store.create(RunConfig()) for _ in range(3)]
    for run in (runs[1], runs[2], runs[0]):
        store.trash(run.id)
    assert [r.id for r in store.trashed()] == [runs[0].id, runs[2].id, runs[1].id]


@pytest.mark.slow
@pytest.mark.parametrize("event", [None, STARTED])
def test_an_active_run_is_not_deleted(store: RunStore, run: Run, event: Event | None) -> None:
    with run.queue():
        if event is not None:
            run.append(event)
        with pytest.raises(InputError, match=rf"{run.id} is (queued|running), so it was not deleted. Cancel it first"):
            store.trash(run.id)
    assert store.list() == [run]
    store.trash(run.id)  # its worker is gone
    assert store.list() == []


def test_a_run_that_took_the_place_of_a_deleted_one_stays(store: RunStore, run: Run) -> None:
    first = store.trash(run.id)
    run.path.mkdir()
    (run.path / "config.json").write_text(RunConfig(name="new").model_dump_json())
    with pytest.raises(InputError, match=r"There is a run .* again, so the deleted one was left in the trash"):
        store.restore(first)
    second = store.trash(run.id)
    assert [r.path for r in store.trashed()] == [second.path, first.path]
    assert store.restore(first).config().name == ""
    with pytest.raises(InputError, match="There is a run"):
        store.restore(second)
    store.purge(seconds=0)
    with pytest.raises(KeyError):
        store.get(second.path.parent.name)
    assert not second.path.exists()
    assert store.list() == [run]


def test_what_was_purged_cannot_be_restored(store: RunStore, run: Run) -> None:
    trashed = store.trash(run.id)
    store.purge(seconds=0)
    with pytest.raises(InputError, match="no longer in the trash"):
        store.restore(trashed)


def test_the_trash_is_emptied_after_a_while(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old, recent, new = (store.create(RunConfig()) for _ in range(3))
    day = 24 * 3600
    left = store.root / ".import" / str(time.time_ns() - 8 * day * 10**9)
    left.mkdir(parents=True)
    for run, ago in ((old, 8), (recent, 6)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time_ns", lambda ago=ago: int((time.time() - ago * day) * 1e9))
            store.trash(run.id)
    store.trash(new.id)
    assert [r.id for r in store.trashed()] == [new.id, recent.id]
    assert not left.exists()


@pytest.mark.parametrize("run_id", ["absent", "", "..", ".trash", "../outside"])
def test_only_runs_go_into_the_trash(store: RunStore, run: Run, run_id: str) -> None:
    store.trash(run.id)
    with pytest.raises(KeyError, match="There is no run"):
        store.trash(run_id)


def test_the_default_root_follows_the_environment(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_root() == store.root
    monkeypatch.delenv("SNOWS_RUNS")
    assert default_root() == Path.home() / ".snows" / "runs"
