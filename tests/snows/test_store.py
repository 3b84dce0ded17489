"""The run store: torn lines, killed workers, many readers, full disks, and what a person reads when the disk refuses."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from snows import store as store_module
from snows.config import InputError, PruneConfig, RunConfig, explain
from snows.events import CGIteration, Event, Phase, Queued, RunCancelled, RunFailed, RunFinished, RunStarted
from snows.store import Labels, Run, RunStore, StoreError, default_root

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


@given(st.lists(st.lists(events, max_size=3), max_size=6), st.data())
@settings(deadline=None)
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


@given(st.lists(events, min_size=1, max_size=3), events, st.data())
@settings(deadline=None)
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
from snows.store import Run
run = Run(Path(sys.argv[1]))
for i in range(400):
    run.append(Phase(time=float(i), name="x" * (i % 200)))
"""


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
from pathlib import Path
from snows.events import RunStarted
from snows.store import Run
run = Run(Path(sys.argv[1]))
with run.held():
    run.append(RunStarted(device="cpu", sites=[], skipped={}))
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "Phase", "na')
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_worker_leaves_an_interrupted_run_that_goes_on(run: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, run.path], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"held\n"
        assert run.state() == "running"
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert run.state() == "interrupted"  # at once, not after the heartbeat has gone stale
    with run.held():
        run.append(Phase(time=1.0, name="prune"))
        assert run.state() == "running"
    assert [type(event) for event in run.events()[0]] == [RunStarted, Phase]


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
    with run.held():
        assert run.state() == "queued"
        run.append(Queued())
        assert run.state() == "queued"
        run.append(STARTED)
        assert run.state() == "running"
    assert run.state() == "interrupted"


def test_a_finished_run_that_is_resumed_is_active_again(run: Run) -> None:
    run.append(RunCancelled(finished_sites=1))
    with run.held():
        run.append(Queued())
        assert run.state() == "queued"


def test_the_heartbeat_beats_and_stops(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "HEARTBEAT_SECONDS", 0.01)
    record = run.path / "worker.json"

    def seen() -> float:
        return json.loads(record.read_text())["seen"]

    threads = threading.active_count()

    def hold_and_fail() -> None:
        with run.held():
            first, deadline = seen(), time.monotonic() + 10
            while seen() == first and time.monotonic() < deadline:
                time.sleep(0.01)
            assert seen() > first
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        hold_and_fail()
    assert not record.exists()
    assert threading.active_count() == threads


def test_a_full_disk_does_not_stop_the_heartbeat(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "HEARTBEAT_SECONDS", 0.01)
    record = run.path / "worker.json"
    write, beats = store_module._write, threading.Semaphore(0)

    def refuse_once(path: Path, content: bytes) -> None:
        beats.release()
        if not record.exists():
            write(path, content)
            return
        record.write_text(json.dumps({"pid": os.getpid(), "host": os.uname().nodename, "seen": 0.0}))
        monkeypatch.setattr(store_module, "_write", lambda p, c: (write(p, c), beats.release()))
        raise StoreError("full")

    monkeypatch.setattr(store_module, "_write", refuse_once)
    with run.held():
        for _ in range(4):  # the reserve, the first beat, the refused one, and one after it
            assert beats.acquire(timeout=10)
        assert run.state() == "queued"


@pytest.mark.parametrize(
    ("worker", "alive"),
    [
        ({"pid": os.getpid(), "host": os.uname().nodename, "age": 0}, True),
        ({"pid": os.getpid(), "host": os.uname().nodename, "age": 60}, False),  # stuck, or the process id was given again
        ({"pid": 1, "host": "elsewhere", "age": 5}, True),
        ({"pid": os.getpid(), "host": "elsewhere", "age": 60}, False),
    ],
)
def test_a_worker_counts_as_alive_by_process_and_age(run: Run, worker: dict[str, Any], alive: bool) -> None:
    record = {"pid": worker["pid"], "host": worker["host"], "seen": time.time() - worker["age"]}
    (run.path / "worker.json").write_text(json.dumps(record))
    assert run.state() == ("queued" if alive else "interrupted")


def test_cancel_is_asked_seen_and_cleared(run: Run) -> None:
    assert not run.cancel_requested()
    run.request_cancel()
    run.request_cancel()
    assert Run(run.path).cancel_requested()
    run.clear_cancel()
    run.clear_cancel()
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
    with pytest.raises(StoreError, match=r"Could not write .*file.*set SNOWS_RUNS"):
        RunStore(tmp_path / "file").create(RunConfig())
    monkeypatch.setattr(Path, "touch", no_space)
    with pytest.raises(StoreError, match=r"cancel: No space left"):
        run.request_cancel()
    monkeypatch.setattr(Path, "mkdir", no_space)
    with pytest.raises(StoreError, match=r"sites: No space left"):
        run.save_site(0, torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool))


# --- all runs ---


def test_the_config_comes_back(store: RunStore) -> None:
    config = RunConfig(model="vit-fashion", prune=PruneConfig(pattern="1:8", overrides={"head.weight": "dense"}, k_steps=10))
    assert store.create(config).config() == config


def test_runs_are_listed_newest_first_and_found_by_id(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.list() == []
    made = []
    for second in range(3):
        monkeypatch.setattr(time, "strftime", lambda _, second=second: f"20260101-00000{second}")
        made.append(store.create(RunConfig()))
    assert store.list() == made[::-1]
    assert store.get(made[1].id) == made[1]
    store.delete(made[1].id)
    assert store.list() == [made[2], made[0]]
    assert not made[1].path.exists()


def test_runs_made_in_one_second_are_apart(store: RunStore) -> None:
    assert len({store.create(RunConfig()).id for _ in range(20)}) == 20


def test_folders_that_are_no_run_are_passed_over(store: RunStore, run: Run) -> None:
    (store.root / "notes").mkdir()
    (store.root / "file.txt").write_text("")
    assert store.list() == [run]


@pytest.mark.parametrize("run_id", ["absent", "", ".", "..", "../outside", "/etc", ".hidden"])
def test_an_unknown_or_foreign_id_is_refused(store: RunStore, tmp_path: Path, run_id: str) -> None:
    store.create(RunConfig())
    for folder in (tmp_path / "outside", store.root / ".hidden", store.root):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
    for call in (store.get, store.delete):
        with pytest.raises(KeyError, match=r"There is no run .*`python -m snows list`"):
            call(run_id)
    assert (store.root / "config.json").exists()


# --- names, tags, marks ---


def test_a_run_from_before_masks_were_refined_says_so(run: Run) -> None:
    path = run.path / "config.json"
    content = json.loads(path.read_text())
    del content["prune"]["refine"]
    path.write_text(json.dumps(content))
    assert RunConfig().prune.refine == "window"
    assert run.config().prune.refine == "none"


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
    assert {p.name: p.read_bytes() for p in run.path.iterdir()} == before
    assert store.trashed() == []
    assert set(store.list()) == {run, other}


def test_the_last_deleted_comes_first(store: RunStore) -> None:
    runs = [store.create(RunConfig()) for _ in range(3)]
    for run in (runs[1], runs[2], runs[0]):
        store.trash(run.id)
    assert [r.id for r in store.trashed()] == [runs[0].id, runs[2].id, runs[1].id]


@pytest.mark.parametrize("event", [None, STARTED])
def test_an_active_run_is_not_deleted(store: RunStore, run: Run, event: Event | None) -> None:
    with run.held():
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
