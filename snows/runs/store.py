"""`RunStore`: one folder a run, the only channel between a worker and a screen.

    RUN/config.json           the RunConfig, written once
    RUN/events.jsonl          one event a line, append-only
    RUN/sites/NNNN.safetensors  a finished site's weight and mask; present means finished
    RUN/joint.safetensors     where the joint fit stands, while it is under way
    RUN/metrics.json          written when the run has finished
    RUN/weights.safetensors   the pruned network's state dict
    RUN/label.json            what a person calls the run; the only file that may change at any time
    RUN/cancel                present when somebody asked the worker to stop
    RUN/reserve               room for the last event on a disk that is full
    RUN/lock                  locked by the one worker that has the run, see `lock`
    .batches/ID.json          the ids of runs that were made together, in order
    .trash/TIME/RUN           a deleted run, until `purge`; TIME in nanoseconds
    .import/TIME              a run or an upload on its way in, see `archive` and `uploads`
    .uploads/HASH/NAME        pictures or a checkpoint that somebody brought, see `uploads`

The contract is *append* and *read from an offset*. A last line without its line end is not there yet: a reader leaves it for
the next call, and the next writer cuts it off. Files other than the event log are written beside their place and renamed, so a
reader sees all of one or none of it. Any number of readers, in any process, need no lock. Do not put the folder on a file
system without atomic rename.

A run has one writer. `Run.queue` takes it, by a lock of the operating system, and the `Hold` that it gives writes the run's
life: that it is queued, and how it ended. In between the worker writes what it does. Nobody else writes any of this; whoever
wants a run to end asks (`Run.request_cancel`), and a run that nobody holds and that has not ended was interrupted. `lock` says
on which file systems this holds between hosts.
"""

import errno
import json
import math
import os
import re
import secrets
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from snows.config import AnyPath, Cancelled, InputError, RunConfig, as_path
from snows.events import Event, Queued, RunCancelled, RunFailed, RunFinished, from_json, to_json
from snows.runs import lock
from snows.runs.log import ENDINGS, Log

if TYPE_CHECKING:
    from torch import Tensor

ACTIVE = ("queued", "running")
RESERVE_BYTES = 16_384
_TAIL_BYTES = 4096
_METRICS = TypeAdapter(dict[str, float | None])
# How long a deleted run can be had back.
TRASH_SECONDS = 7 * 24 * 3600.0


class RunError(RuntimeError):
    """A run cannot go on, though its input is not at fault. The message says what happened, why, and what to do."""


class StoreError(RunError):
    """The disk refused: the message says which file, why, and what to do."""


class RunTakenError(InputError):
    """Somebody else works on the run, or there is nothing left to do. The message says which, and what to do."""


class Labels(BaseModel):
    """What a person adds to a run. It is no part of what the run computes, so the config stays as it was."""

    model_config = ConfigDict(frozen=True)
    name: str = Field("", max_length=80)
    tags: tuple[str, ...] = Field((), max_length=20)
    compare: bool = False  # marked to be set beside others

    @field_validator("name")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return " ".join(value.split())

    @field_validator("tags")
    @classmethod
    def _short_and_once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        tags = tuple(dict.fromkeys(" ".join(tag.split()) for tag in value if tag.strip()))
        if long := next((tag for tag in tags if len(tag) > 40), None):
            raise ValueError(f"The tag {long!r} is longer than 40 characters. Choose a shorter one.")
        return tags


def default_root() -> Path:
    """`$SNOWS_RUNS`, else `~/.snows/runs`."""
    return as_path(os.environ.get("SNOWS_RUNS", "~/.snows/runs"))


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "Set SNOWS_RUNS to a folder that can be written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = (
                "Free some space there and resume the run, whose finished layers are kept; or set SNOWS_RUNS to a folder with "
                "more room, for new runs"
            )
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "Let fewer runs wait at once, or raise the limit (`ulimit -n`), and resume the rest"
        raise StoreError(f"Could not write {path}: {error.strerror}. {remedy}.") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whoever else reads or writes it. Raises `OSError`."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with _disk(path):
        write_whole(path, content)


Execute = Callable[["Run"], RunFinished]


@dataclass(frozen=True, init=False)
class Run:
    """A handle on one run folder. Holds no state: every call reads the disk."""

    path: Path

    def __init__(self, path: AnyPath) -> None:
        object.__setattr__(self, "path", as_path(path))

    @property
    def id(self) -> str:
        return self.path.name

    def config(self) -> RunConfig:
        path = self.path / "config.json"
        there = path.stat()
        return _config(path, (there.st_ino, there.st_mtime_ns, there.st_size))

    def created(self) -> float:
        """When the run was made, in seconds since the epoch."""
        with suppress(FileNotFoundError, ValueError, TypeError), (self.path / "events.jsonl").open("rb") as file:
            line = file.readline()
            if line.endswith(b"\n") and (first := from_json(line)) is not None:
                return first.time  # unlike a file's own time, it is the same wherever the run is copied to
        return (self.path / "config.json").stat().st_mtime

    def labels(self) -> Labels:
        """Raises `ValidationError` for a label file that somebody else wrote."""
        try:
            return Labels.model_validate_json((self.path / "label.json").read_bytes())
        except FileNotFoundError:
            return Labels()

    def save_labels(self, labels: Labels) -> None:
        _write(self.path / "label.json", labels.model_dump_json().encode())

    # --- events ---

    def append(self, *new: Event) -> None:
        lines = "".join(to_json(e) + "\n" for e in new).encode()
        path = self.path / "events.jsonl"
        with _disk(path), path.open("ab+") as file:
            _cut_torn_line(file)
            file.write(lines)

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """The whole events from byte `offset` on, and the offset to ask for next."""
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:
            return [], 0
        end = content.rfind(b"\n") + 1
        parsed = map(from_json, content[:end].split(b"\n")[:-1])
        return [e for e in parsed if e is not None], offset + end

    def log(self, known: Log | None = None) -> Log:
        """What the events say. `known`, which an earlier call gave, is read on from where it stands, and returned."""
        log = known or Log()
        new, log.offset = self.events(log.offset)
        return log.add(*new)

    # --- state ---

    def state(self) -> str:
        """`queued`, `running`, `finished`, `failed`, `cancelled`, or `interrupted` (its worker is gone; it can be resumed)."""
        return self.state_after(self.last())

    def last(self) -> Event | None:
        """The last event, found from the end."""
        # A list of runs asks each for its state; the log of a long run has thousands of lines, and the last one says it all.
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                size, tail = file.seek(0, os.SEEK_END), _TAIL_BYTES
                while True:
                    file.seek(max(0, size - tail))
                    lines = file.read(min(size, tail)).split(b"\n")[:-1]
                    # The first line may have begun before the tail did.
                    for line in reversed(lines if tail >= size else lines[1:]):
                        if (event := from_json(line)) is not None:
                            return event
                    if tail >= size:
                        return None
                    tail *= 8  # a long line, or events of another version
        except FileNotFoundError:
            return None

    def state_after(self, last: Event | None) -> str:
        """`state` for a reader that already holds the last event."""
        for _ in range(2):
            if (ending := ENDINGS.get(type(last))) is not None:  # type: ignore[arg-type]
                return ending
            if lock.is_taken(self._lock_path):
                return "queued" if last is None or isinstance(last, Queued) else "running"
            last = self.last()  # its worker may have ended, and said so, between the reader's look and this one
        return "interrupted"

    # --- its life ---

    def queue(self) -> "Hold":
        """Take this run, so that nobody else writes it until the hold is let go, and say that it waits for its device.

        Raises `RunTakenError` where somebody else has it, where it has finished, or where it is no longer there.
        """
        held = self._take("is {state}: {holder} works on it. Wait for it, or cancel it.")
        try:
            with _disk(self.path):
                if self.state() == "finished":
                    what = f"Run {self.id} is finished; there is nothing to resume."
                    raise RunTakenError(f"{what} Start its settings as a new run.")
                _write(self.path / "reserve", bytes(RESERVE_BYTES))
                (self.path / "cancel").unlink(missing_ok=True)
                self.append(Queued())
        except BaseException:
            held.release()
            raise
        return Hold(self, held)

    def _take(self, refusal: str) -> FileLock:
        if (self.path / "config.json").exists():
            try:
                with _disk(self._lock_path):
                    held = lock.take(self._lock_path)
            except lock.TakenError:
                state = self.state() if self.state() in ACTIVE else "in use"
                holder = lock.holder(self._lock_path) or "another process"
                raise RunTakenError(f"Run {self.id} {refusal.format(state=state, holder=holder)}") from None
            if (self.path / "config.json").exists():
                return held
            held.release()  # it was put into the trash meanwhile, and the lock made a folder of its own
            with suppress(OSError):
                self._lock_path.unlink()
                self.path.rmdir()
        raise RunTakenError(f"Run {self.id} is no longer in {self.path.parent}. Look for it in the trash.")

    @property
    def _lock_path(self) -> Path:
        return self.path / "lock"

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nobody begins to work on this run until the block ends. Writes nothing. Raises `RunTakenError`."""
        try:
            with lock.shared(self._lock_path):
                yield
        except lock.TakenError:
            raise RunTakenError(f"Run {self.id} is {self.state()}.") from None

    def request_cancel(self) -> None:
        with _disk(self.path / "cancel"):
            (self.path / "cancel").touch()

    def cancel_requested(self) -> bool:
        return (self.path / "cancel").exists()

    # --- results ---

    def save_site(self, index: int, weight: "Tensor", mask: "Tensor") -> None:
        """A finished site. `weight` and `mask` (bool, True = kept) share the parameter's shape."""
        from safetensors.torch import save

        with _disk(self.path / "sites"):
            (self.path / "sites").mkdir(exist_ok=True)
        tensors = {"weight": weight.detach().cpu().contiguous(), "mask": mask.cpu().contiguous()}
        _write(self.path / "sites" / f"{index:04d}.safetensors", save(tensors))

    def load_site(self, index: int) -> tuple["Tensor", "Tensor"] | None:
        from safetensors.torch import load_file

        path = self.path / "sites" / f"{index:04d}.safetensors"
        if not path.exists():
            return None
        tensors = load_file(path)
        return tensors["weight"], tensors["mask"]

    def save_joint(self, state: Mapping[str, "Tensor"]) -> None:
        """Where the joint fit stands, as `method.joint` has it."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        with _disk(self._joint_path):
            try:  # three times the weights: without a copy in between, and whole or not at all as `_write` does it
                save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, self._joint_path)
            except SafetensorError as error:
                said = re.search(r"os error (\d+)", str(error))
                number = int(said[1]) if said else errno.EIO
                raise OSError(number, os.strerror(number)) from error

    def load_joint(self) -> dict[str, "Tensor"] | None:
        """What `save_joint` wrote last; None where there is nothing. Raises `SafetensorError` for what the disk damaged."""
        from safetensors.torch import load_file

        return load_file(self._joint_path) if self._joint_path.exists() else None

    def forget_joint(self) -> None:
        """Nobody has to go on from there any more."""
        self._joint_path.unlink(missing_ok=True)

    @property
    def _joint_path(self) -> Path:
        return self.path / "joint.safetensors"

    def layers(self, log: Log | None = None) -> dict[str, tuple["Tensor", "Tensor"]]:
        """Weight and mask (bool, True = kept), both in the parameter's shape, of every layer that has a file, by name and in
        network order: those of the last sweep that finished it."""
        log = log or self.log()
        weights_and_masks = {}
        for index, name in enumerate(log.sites):
            files = (self.load_site(log.place(sweep, index)) for sweep in reversed(range(log.sweeps)))
            if (pair := next((pair for pair in files if pair is not None), None)) is not None:
                weights_and_masks[name] = pair
        return weights_and_masks

    def finished_sites(self) -> Iterator[int]:
        """The indices of the sites that are finished, counted on through the sweeps."""
        return (int(p.stem) for p in sorted(self.path.glob("sites/[0-9]*.safetensors")))

    def masks(self) -> dict[str, "Tensor"]:
        """The masks (bool, True = kept, in the parameter's shape) of the finished sites, by name."""
        from safetensors import safe_open

        log = self.log()
        masks = {name: mask for name, (_, mask) in self.layers(log).items()}
        missing = [name for name in log.sites if name not in masks]
        if missing and self.weights_path.exists():  # a run that came without its sites' files: what is zero was pruned
            with safe_open(self.weights_path, "pt") as file:
                masks |= {name: file.get_tensor(name) != 0 for name in missing}
        return {name: masks[name] for name in log.sites if name in masks}

    def save_weights(self, state_dict: dict[str, "Tensor"]) -> None:
        from safetensors.torch import save

        # A copy each: safetensors refuses two names for one storage, which is what tied weights are.
        _write(self.weights_path, save({k: v.detach().to("cpu", copy=True).contiguous() for k, v in state_dict.items()}))

    @property
    def weights_path(self) -> Path:
        return self.path / "weights.safetensors"

    def save_metrics(self, metrics: Mapping[str, float | None]) -> dict[str, float | None]:
        """Write what was measured and return it as written: what is not finite has no number in JSON, and is None."""
        finite = _finite(metrics)
        _write(self.path / "metrics.json", json.dumps(finite, indent=2, allow_nan=False).encode())
        return finite

    def metrics(self) -> dict[str, float | None] | None:
        """What was measured at the end, None for what could not be (`names.said` has the reason); None before.

        Raises `ValidationError` for a file that somebody else wrote."""
        try:
            measured = _METRICS.validate_json((self.path / "metrics.json").read_bytes())
        except FileNotFoundError:
            return None
        return _finite(measured)  # until November 2026 a NaN was written as it is


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is None or math.isfinite(value) else None for name, value in metrics.items()}


@dataclass(frozen=True)
class Hold:
    """A run that the caller has taken, and nobody else: what waits for its device, then does it, and says how that ended.

    A context manager, at whose end the run is let go. So is it when the process ends in any way.
    """

    run: Run
    _lock: FileLock

    def work(self, execute: Execute) -> Event:
        """Let `execute` do what the run's config says, write how it ended, and return that, the run's last event.

        `execute` appends what it does, obeys `run.cancel_requested`, and returns the end; what it raises is how the run ended.
        Raises `StoreError` where not even the end can be written.
        """
        try:
            if self.run.cancel_requested():  # while it waited
                raise Cancelled
            return self._end(execute(self.run))
        except Cancelled:
            return self.cancel()
        except InputError as error:
            return self._end(RunFailed(message=str(error), bad_input=True))
        except RunError as error:
            return self._end(RunFailed(message=str(error), detail=str(error.__cause__ or "")))
        except Exception as error:
            what = f"The run stopped on an unexpected error ({type(error).__name__}: {error})."
            remedy = "Finished layers are kept; resume the run, and report the trace if it happens again."
            return self._end(RunFailed(message=f"{what} {remedy}", detail=traceback.format_exc()))

    def cancel(self) -> Event:
        """End the run as it is, and return its last event."""
        return self._end(RunCancelled(finished_sites=self.run.log().done))

    def _end(self, event: Event) -> Event:
        # In the room that was kept for it: a full disk must not hide that it was full.
        (self.run.path / "reserve").unlink(missing_ok=True)
        (self.run.path / "cancel").unlink(missing_ok=True)
        self.run.append(event)
        return event

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock.is_locked:
            with suppress(OSError):  # the folder may be gone
                (self.run.path / "reserve").unlink(missing_ok=True)
            self._lock.release()


_BEFORE = {"refine": "none", "ridge": 0.0}


@lru_cache(maxsize=4096)
def _config(path: Path, version: tuple[int, int, int]) -> RunConfig:
    # Written once, and asked for by every list of runs, each second.
    config = RunConfig.model_validate_json(path.read_text())
    # What a run did that is from before there was this setting.
    absent = {name: value for name, value in _BEFORE.items() if name not in config.prune.model_fields_set}
    return config.model_copy(update={"prune": config.prune.model_copy(update=absent)}) if absent else config


def _cut_torn_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    # A worker died in the middle of a line. Nobody has read it, and nobody can; the log goes on from the last whole one.
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def new_id() -> str:
    """An id that sorts by time of creation: the second, a 65,536th of it, and chance. Whoever makes its folder has it."""
    now = time.time()
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{int(now % 1 * 65536):04x}{secrets.token_hex(2)}"


@dataclass(frozen=True)
class Comparison:
    """Runs that were made together. A run that was deleted is no longer among them; the others stay."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.stem

    def runs(self) -> list[Run]:
        """In the order in which they are worked on."""
        root = self.path.parent.parent
        folders = (root / run_id for run_id in json.loads(self.path.read_text()))
        return [Run(folder) for folder in folders if (folder / "config.json").exists()]


@dataclass(frozen=True, init=False)
class RunStore:
    """All runs under one folder."""

    root: Path

    def __init__(self, root: AnyPath) -> None:
        object.__setattr__(self, "root", as_path(root))

    def create(self, config: RunConfig) -> Run:
        """A new, empty run."""
        run = Run(self._new_folder())
        try:
            _write(run.path / "config.json", config.model_dump_json(indent=2).encode())
        except StoreError:
            run.path.rmdir()
            raise
        return run

    def _new_folder(self) -> Path:
        while True:
            path = self.root / new_id()
            with _disk(path):
                self.root.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):  # somebody was faster: another id then
                    path.mkdir()
                    return path

    def create_comparison(self, configs: Sequence[RunConfig]) -> Comparison:
        """A new, empty run a config, made together: all of them, or, where the disk refuses, none."""
        runs: list[Run] = []
        try:
            for config in configs:
                runs.append(self.create(config))
            comparison = Comparison(self.root / ".batches" / f"{runs[0].id}-batch.json")  # an id as unique as a run's
            with _disk(comparison.path):
                comparison.path.parent.mkdir(parents=True, exist_ok=True)
            _write(comparison.path, json.dumps([run.id for run in runs]).encode())
        except StoreError:
            for run in runs:
                shutil.rmtree(run.path, ignore_errors=True)
            raise
        return comparison

    def comparison(self, comparison_id: str) -> Comparison:
        """Raises `KeyError` with a sentence."""
        comparisons_by_id = {comparison.id: comparison for comparison in self.comparisons()}
        if comparison_id not in comparisons_by_id:
            raise KeyError(f"There is no comparison {comparison_id!r} in {self.root}; its runs may have been deleted.")
        return comparisons_by_id[comparison_id]

    def comparisons(self) -> Sequence[Comparison]:
        """Newest first; without those whose runs are all deleted."""
        every_comparison = (Comparison(path) for path in sorted(self.root.glob(".batches/*.json"), reverse=True))
        return [comparison for comparison in every_comparison if comparison.runs()]

    def get(self, run_id: str) -> Run:
        """Raises `KeyError` with a sentence."""
        run = Run(self.root / run_id)
        if not run_id or "/" in run_id or run_id.startswith(".") or not (run.path / "config.json").exists():
            raise KeyError(f"There is no run {run_id!r} among those kept here.")
        return run

    def list(self) -> list[Run]:
        """Newest first."""
        if not self.root.exists():
            return []
        folders = (p for p in sorted(self.root.iterdir(), reverse=True) if not p.name.startswith("."))
        return [Run(p) for p in folders if (p / "config.json").exists()]

    def delete(self, run_id: str) -> None:
        """Remove a run for good. Raises `KeyError` for an unknown id, `RunTakenError` for an active run."""
        with self._out_of_work(run_id) as run:
            shutil.rmtree(run.path)

    def trash(self, run_id: str) -> Run:
        """Put a run into the trash, and what has lain there too long out of the world. Returns the handle to `restore` it by.

        Raises `KeyError` for an unknown id, `RunTakenError` for an active run.
        """
        self.purge()
        place = self.root / ".trash" / str(time.time_ns())
        with self._out_of_work(run_id) as run, _disk(place):
            place.mkdir(parents=True)
            return Run(run.path.rename(place / run.id))

    @contextmanager
    def _out_of_work(self, run_id: str) -> Iterator[Run]:
        """The run, which nobody can begin to work on until the block ends."""
        run = self.get(run_id)
        held = run._take("is {state}, so it was not deleted. Cancel it first, then delete it.")
        try:
            yield run
        finally:
            held.release()

    def trashed(self) -> Sequence[Run]:
        """The runs in the trash, the last deleted first."""
        return [Run(p.parent) for p in sorted(self.root.glob(".trash/*/*/config.json"), reverse=True)]

    def restore(self, trashed: Run) -> Run:
        """Take a run out of the trash again. Raises `InputError` when another has its id by now, or when it is gone."""
        place = self.root / trashed.id
        if place.exists():
            raise InputError(
                f"There is a run {trashed.id} again, so the deleted one was left in the trash. Delete that one first."
            )
        if not trashed.path.exists():
            raise InputError(f"Run {trashed.id} is no longer in the trash, so it cannot be restored.")
        with _disk(place):
            trashed.path.rename(place)
            trashed.path.parent.rmdir()
        return Run(place)

    def purge(self, seconds: float = TRASH_SECONDS) -> None:
        """Remove for good what was deleted more than `seconds` ago, and what broken-off imports left behind."""
        for place in (*self.root.glob(".trash/*"), *self.root.glob(".import/*")):
            if place.name.isdecimal() and time.time() - int(place.name) / 1e9 > seconds:
                shutil.rmtree(place, ignore_errors=True)
