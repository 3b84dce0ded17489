"""What becomes of runs where something gives way under them: power, disk, memory, the clock, the app itself.

Each measurement lets a worker go until a moment drawn at random, takes something away from it there, gives it back, and lets
another worker finish. `pretend_layers` stands for a run where the moments shall be many: it writes all that a run writes, and
computes nothing.
"""

import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

from app.tables import runs as runs_table
from app.work.jobs import JobManager
from snows.config import InputError, PruneConfig, RunConfig
from snows.events import Event, Phase, RunFailed, RunFinished, RunStarted, SiteFinished, SiteStarted
from snows.runs import runner
from snows.runs.archive import import_run, pack
from snows.runs.executors import Worker
from snows.runs.store import Labels, Run, RunError, RunStore, StoreError
from snows.sources import uploads
from tests.bench.workers import processes, results_of, small, start

PRETENDED = RunConfig(prune=PruneConfig(device="cpu"))
LAYERS = 5
Execute = Callable[[Run], RunFinished]


def pretend_layers(run: Run) -> RunFinished:
    """Write what a run of five layers writes, going on where an earlier worker stopped, as the runner does."""
    names = [f"layer{index}.weight" for index in range(LAYERS)]
    before = run.log()
    done = {index for _, index in before.records if runner._finished_site(run, before, index) is not None}
    run.append(RunStarted(device="cpu", sites=names, skipped={}, resumed=len(done)))
    state = {}
    for index, name in enumerate(names):
        weight = torch.full((4, 4), float(index))
        state[name] = weight
        if index in done:
            continue
        run.append(SiteStarted(site=name, index=index, operations=[], shape=[4, 4]))
        run.save_site(index, weight, weight > 0)
        losses = {"final": 0.1}
        run.append(
            SiteFinished(
                **{"site": name, "index": index, "losses": losses, "by_k": {"final": [0.1]}, "scale": [1.0], "density": 0.5},
                **{"status": "", "message": "", "seconds": 0.1, "num_products": 0},
            )
        )
    run.save_joint({"weight": torch.ones(4)})
    run.append(Phase(name="save"))
    run.save_weights(state)
    run.forget_joint()
    return RunFinished(metrics=run.save_metrics({"accuracy": 0.5}))


def work_through(store: RunStore, execute: Execute) -> None:
    """Do what is in line, after having put there what stopped."""
    for run in store.list():
        if run.state() in ("interrupted", "failed", "cancelled"):
            store.enqueue([run])
    worker = Worker(store, "cpu")
    while (hold := worker.claim()) is not None:
        with hold:
            hold.work(execute)


def open_all(store: RunStore) -> None:
    """Read every run as a screen does. Raises where one cannot be."""
    for run in store.list():
        run.config(), run.labels(), run.metrics(), run.log(), run.created(), run.state()
    for comparison in store.comparisons():
        comparison.runs()
    store.line().places()
    states = list(runs_table.table(store.list())["state"])
    assert runs_table.UNREADABLE not in states, states


# --- power cut ---


@dataclass
class PowerCut:
    """What a disk has of the files under a folder, as far as programs may rely on it (POSIX): a file's content as it was when
    it was last synced, a folder's names as they were when the folder was.

    At the moment counted to, among opened, renamed and removed files and all that is synced, the process ends; what the disk
    has then is in `onto`. Of what was not synced a part may be there as well, by chance: all the names of a folder or none, the
    content of a file whole, up to a byte, or with zeros from there on.
    """

    root: Path
    onto: Path
    moment: int
    chance: random.Random
    count: int = 0
    done: list[tuple[str, int]] = field(default_factory=list)  # runs and layers whose record is written, as the worker knows
    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)  # so that no number of a file is given to another
    within: bool = False

    def start(self) -> None:
        for path in [self.root, *self.root.rglob("*")]:
            descriptor = os.open(path, os.O_RDONLY)
            self._has(descriptor)
            os.close(descriptor)
        append = Run.append

        def fsync(descriptor: int) -> None:
            self._tick()
            self._has(descriptor)
            self._tick()

        def told(run: Run, *new: Event) -> None:
            append(run, *new)
            self.done += [(run.id, event.index) for event in new if isinstance(event, SiteFinished)]

        os.fsync = fsync  # type: ignore[assignment]
        Run.append = told  # type: ignore[method-assign]
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(str(self.root)):
            self._tick()

    def _has(self, descriptor: int) -> None:
        self.within = True
        status = os.fstat(descriptor)
        self.held.append(os.dup(descriptor))
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self.folders[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.files[status.st_ino] = path.read_bytes()
        self.within = False

    def _tick(self) -> None:
        if self.within:
            return
        self.count += 1
        if self.count == self.moment:
            self.within = True
            paths = {path.stat().st_ino: path for path in [self.root, *self.root.rglob("*")]}
            self._put(self.root.stat().st_ino, self.onto, paths)
            (self.onto.parent / "done").write_text(json.dumps(self.done))
            os._exit(9)

    def _put(self, number: int, place: Path, paths: dict[int, Path]) -> None:
        path = paths.get(number)
        if number in self.folders or (path is not None and path.is_dir()):
            synced = self.folders.get(number, {})
            now = synced if path is None else {entry.name: entry.inode() for entry in os.scandir(path)}
            place.mkdir()
            for name, inner in self.chance.choice([synced, now]).items():
                self._put(inner, place / name, paths)
            return
        there = self.files.get(number, b"")
        if path is not None:
            now_there = path.read_bytes()
            if now_there.startswith(there):
                length = self.chance.randint(len(there), len(now_there))
                part = now_there[:length]
                there = self.chance.choice([there, now_there, part, part + bytes(len(now_there) - length)])
        place.write_bytes(there)


@dataclass(frozen=True)
class Cut:
    """How many layers the worker had finished, how many of these were lost, and whether the next one came to the same results;
    how many runs of the comparison there were."""

    done: int
    lost: int
    same: bool
    runs: int


def _until_the_cut(root: Path, onto: Path, moment: int, seed: float, config: RunConfig, execute: Execute, count: int) -> None:
    torch.set_num_threads(1)
    root.mkdir()
    cut = PowerCut(root, onto, moment, random.Random(seed))
    cut.start()
    store = RunStore(root)
    comparison = store.create_comparison([config] * count)
    store.enqueue(comparison.runs(), comparison.id)
    work_through(store, execute)
    (onto.parent / "moments").write_text(str(cut.count))


def power_cuts(
    folder: Path, cuts: int, config: RunConfig = PRETENDED, execute: Execute = pretend_layers, count: int = 2, seed: int = 0
) -> list[Cut]:
    """Cut the power at so many random moments of a comparison's life, from its making to its end."""
    chance, whole = random.Random(seed), _whole(folder / "whole", config, execute)
    start(_until_the_cut, folder / "whole" / "again", folder / "whole" / "cut", 0, 0.0, config, execute, count).join()
    moments, outcomes = int((folder / "whole" / "moments").read_text()), list[Cut]()
    for number in range(cuts):
        place = folder / str(number)
        place.mkdir()
        moment, seed_of_cut = chance.randint(1, moments), chance.random()
        process = start(_until_the_cut, place / "runs", place / "cut", moment, seed_of_cut, config, execute, count)
        process.join()
        assert process.exitcode == 9, process.exitcode
        store = RunStore(place / "cut")
        open_all(store)
        done = {(run_id, index) for run_id, index in json.loads((place / "done").read_text())}
        lost = done - {(run.id, index) for run in store.list() for index in _finished(run)}
        work_through(store, execute)
        open_all(store)
        runs = store.list()
        assert {run.state() for run in runs} <= {"finished"}, [run.last() for run in runs]
        outcomes.append(Cut(len(done), len(lost), all(results_of(run) == whole for run in runs), len(runs)))
        shutil.rmtree(place)
    return outcomes


def _finished(run: Run) -> set[int]:
    """The layers that the next worker takes over."""
    log = run.log()
    return {index for sweep, index in log.records if runner._finished_site(run, log, log.place(sweep, index)) is not None}


def _whole(root: Path, config: RunConfig, execute: Execute) -> Any:
    """The results of a run that was left alone."""
    store = RunStore(root)
    run = store.create(config)
    store.enqueue([run])
    work_through(store, execute)
    assert run.state() == "finished", run.last()
    return results_of(run)


# --- a full disk ---


@contextmanager
def small_disk(place: Path, num_bytes: int, num_files: int = 0) -> Iterator[Path]:
    """A disk in memory of that size, and with room for so many files (0: any number), which takes the right to mount one."""
    place.mkdir(parents=True)
    options = f"size={num_bytes},nr_inodes={num_files}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@dataclass
class Full:
    """How many times somebody was told that the disk is full, by what was done, and with how many limits nobody was. Each time
    everything was as it had been, or went on to the same results, once there was room."""

    limits: int = 0
    said: Counter[str] = field(default_factory=Counter)
    unharmed: int = 0


_PAGE = 4096


def full_disks(folder: Path, config: RunConfig = PRETENDED, execute: Execute = pretend_layers, by: int = _PAGE) -> Full:
    """Have a disk run out of room after each page, `by` bytes apart, that the life of two runs takes, with an archive of one, a
    picture and labels; and after each file."""
    whole, outcome = _whole(folder / "whole", config, execute), Full()
    archive = (folder / "whole.zip").open("w+b")
    pack(RunStore(folder / "whole").list()[0], archive)
    picture = _picture()
    with small_disk(folder / "measured", 64 << 20) as place:
        _live(RunStore(place / "runs"), config, execute, archive, picture, Full())
        used = os.statvfs(place)
        num_bytes = (used.f_blocks - used.f_bfree) * used.f_bsize
        num_files = used.f_files - used.f_ffree
    limits = [(size, 0) for size in range(_PAGE, num_bytes + 4 * by, by)] + [(64 << 20, n) for n in range(2, num_files + 6)]
    for number, (size, files) in enumerate(limits):
        with small_disk(folder / str(number), size, files) as place:
            store = RunStore(place / "runs")
            before = sum(outcome.said.values())
            _live(store, config, execute, archive, picture, outcome)
            outcome.limits += 1
            outcome.unharmed += before == sum(outcome.said.values())
            subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=0", str(place)], check=True)
            open_all(store)
            work_through(store, execute)
            open_all(store)
            assert all(results_of(run) == whole for run in store.list())
            assert not list(place.glob("runs/.import/*"))
            archive.seek(0)
            assert import_run(store, archive, as_copy=True).state() == "finished"
    return outcome


def _live(store: RunStore, config: RunConfig, execute: Execute, archive: Any, picture: bytes, outcome: Full) -> None:
    """What people and workers do with a store; each is told in a sentence that the disk is full, and the next one tries."""

    def make() -> None:
        comparison = store.create_comparison([config] * 2)
        store.enqueue(comparison.runs(), comparison.id)

    def work() -> None:
        worker = Worker(store, "cpu")
        while (hold := worker.claim()) is not None:
            with hold:
                ending = hold.work(execute)
            if isinstance(ending, RunFailed):
                assert not ending.detail.startswith("Traceback"), ending.detail
                raise RunError(ending.message)

    def bring() -> None:
        archive.seek(0)
        import_run(store, archive, as_copy=True)

    def upload() -> None:
        uploads.keep_pictures(store.root, [("a.png", io.BytesIO(picture))])

    def name() -> None:
        for run in store.list():
            run.save_labels(Labels(name="name"))

    for act in (make, work, work, bring, upload, name):
        try:
            act()
        except (StoreError, RunError, InputError) as error:
            message = str(error)
            assert re.search(r"(?i)space|room|free", message), message
            outcome.said[act.__name__] += 1


def _picture() -> bytes:
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "png")
    return content.getvalue()


# --- no memory ---


@dataclass
class Starved:
    """How runs ended whose process was given less memory than they take: with a sentence, by the system, or after all; and how
    many of them another process then finished to the same result."""

    said: int = 0
    ended: int = 0
    finished: int = 0
    same: int = 0


def _work_within(root: Path, num_bytes: int) -> None:
    torch.set_num_threads(1)
    with Path("/proc/self/statm").open() as file:
        own = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + num_bytes, own + num_bytes))
    hold = Worker(RunStore(root), "cpu").claim()
    assert hold is not None
    with hold:
        hold.work(runner.execute)


def no_memory(root: Path, megabytes: list[int]) -> Starved:
    """Let a small real run do with each of these amounts of memory beyond that of the process, then with all that there is."""
    store, outcome, whole = RunStore(root), Starved(), _whole(root.with_name("whole"), small(), runner.execute)
    for size in megabytes:
        run = store.create(small())
        store.enqueue([run])
        process = start(_work_within, root, size << 20)
        process.join()
        last = run.last()
        if isinstance(last, RunFailed):
            assert "ran out of memory" in last.message, (last.message, last.detail)
            outcome.said += 1
        elif run.state() == "finished":
            outcome.finished += 1
        else:
            assert process.exitcode != 0
            outcome.ended += 1
        if run.state() != "finished":
            work_through(store, runner.execute)
        outcome.same += results_of(run) == whole
    return outcome


# --- the clock ---


def _work_by_a_wrong_clock(root: Path, seed: int) -> None:
    """Work, each event at a time that a clock says which is set by up to a month, back or forward."""
    torch.set_num_threads(1)
    chance, append = random.Random(seed), Run.append
    shift, right = 0.0, time.time

    def wrong(run: Run, *new: Event) -> None:
        nonlocal shift
        if chance.random() < 0.2:
            shift = chance.uniform(-1, 1) * chance.choice([60, 3600, 30 * 24 * 3600])
        append(run, *(replace(event, time=event.time + shift) for event in new))

    Run.append = wrong  # type: ignore[method-assign]
    time.time = lambda: right() + shift
    work_through(RunStore(root), runner.execute)


@contextmanager
def set_forward(seconds: float) -> Iterator[None]:
    """This process's clock, for what reads it anew each time."""
    right = time.time
    with mock.patch("time.time", side_effect=lambda: right() + seconds):
        yield


def wrong_clocks(root: Path, runs: int, seed: int = 0) -> int:
    """Have runs done while the clock is set again and again, and their process is suspended while the looker's clock goes on by
    an hour. How many came to the same results; while they were in work nobody took them for anything else."""
    store, same, whole = RunStore(root), 0, _whole(root.with_name("whole"), small(), runner.execute)
    for number in range(runs):
        run = store.create(small())
        store.enqueue([run])
        process = start(_work_by_a_wrong_clock, root, seed + number)
        suspended = False
        while process.is_alive():
            log = run.log()
            for now in (time.time(), time.time() - 3600, time.time() + 3600):
                assert log.elapsed(now) >= 0
                assert (log.left(now) or 0.0) >= 0
            assert run.state() in ("queued", "running", "finished"), run.state()
            if run.state() == "running" and log.done and not suspended:
                suspended = True
                os.kill(process.pid, signal.SIGSTOP)  # type: ignore[arg-type]
                with set_forward(3600):
                    assert (run.state(), run.claim()) == ("running", None)
                    store.purge()
                    uploads.purge(root)
                os.kill(process.pid, signal.SIGCONT)  # type: ignore[arg-type]
            time.sleep(0.02)
        assert run.state() == "finished", run.last()
        same += results_of(run) == whole
    return same


# --- the app, killed ---


class _Slow(io.BytesIO):
    """An upload that is never over."""

    def read(self, size: int | None = -1) -> bytes:
        time.sleep(0.05)
        return super().read(min(size or 1, 1000) if self.tell() else size)


def _app(root: Path, ids: Any) -> None:
    """What the app's process does: a run, a comparison that waits behind it, an upload."""
    torch.set_num_threads(1)
    jobs = JobManager(RunStore(root))
    ids.put((jobs.submit(small()), jobs.submit_comparison([small()] * 2)))
    content = random.Random(0).randbytes(10_000_000)
    with suppress(InputError):
        uploads.keep_checkpoint(root, _Slow(b"\x80" + content), "mine.pt")


@dataclass(frozen=True)
class AppKilled:
    """`done`, `lost`: layers; `same`: of its three runs; `left`: whether a half upload was there, and gone after a look."""

    done: int
    lost: int
    same: int
    left: bool


def app_kills(root: Path, kills: int, seen: Callable[[RunStore, Run], None] | None = None, seed: int = 0) -> list[AppKilled]:
    """Kill the app's process at random moments of a run, with a comparison waiting and an upload half in, and start another.

    `seen`: looks at the store between the two, at which the run that was in work is given to it.
    """
    chance, outcomes = random.Random(seed), list[AppKilled]()
    whole_root = root / "whole"
    whole = _whole(whole_root, small(), runner.execute)
    events = len(RunStore(whole_root).list()[0].events()[0])
    for number in range(kills):
        store = RunStore(root / str(number))
        ids = processes().Queue()
        process = start(_app, store.root, ids)
        run_id, comparison_id = ids.get()
        run, after = store.get(run_id), chance.randrange(2, events - 1)
        while len(run.events()[0]) < after or not list(store.root.glob(".import/*/*")):
            assert process.is_alive()
            time.sleep(0.001)
        process.kill()
        process.join()
        open_all(store)
        done = len(_finished(run))
        half = bool(list(store.root.glob(".import/*/*")))
        before = len(run.events()[0])
        if seen is not None:
            seen(store, run)
        with set_forward(8 * 24 * 3600):  # a week later, as the next start finds it
            store.purge()
        gone = not list(store.root.glob(".import/*"))
        jobs = JobManager(store, runner.execute)
        jobs.work_on("cpu")
        runs = [run, *store.comparison(comparison_id).runs()]
        while any(other.state() != "finished" for other in runs):
            assert not {other.state() for other in runs} & {"failed", "interrupted"}
            time.sleep(0.05)
        jobs.stop()
        starts = [event for event in run.events()[0][before:] if isinstance(event, RunStarted)]
        lost = done - (starts[0].resumed if starts else done)
        outcomes.append(AppKilled(done, lost, sum(results_of(other) == whole for other in runs), half and gone))
    return outcomes
