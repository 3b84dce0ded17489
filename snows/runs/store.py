"""`RunStore`: one folder a run, the only channel between a worker and a screen.

    RUN/config.json           the RunConfig and the folder's form, see `formats`, written once
    RUN/events.jsonl          one event a line, append-only
    RUN/sites/NNNN.safetensors  a finished site's weight and mask; present means finished
    RUN/joint.safetensors     where the joint fit stands, while it is under way
    RUN/metrics.json          written when the run has finished
    RUN/weights.safetensors   the pruned network's state dict
    RUN/label.json            what a person calls the run; the only file that may change at any time
    RUN/owner                 whose run it is, where a store is shared by people who shall not see each other's; written first
    RUN/cancel                present when somebody asked the worker to stop
    RUN/reserve               room for the last event on a disk that is full
    RUN/lock                  locked by the one worker that has the run, see `lock`
    .queue/RUN                its place in line, from when it is handed to the workers until it has ended, see `line`
    .batches/ID.json          the ids of runs that were made together, in order
    .trash/TIME/RUN           a deleted run, until `purge`; TIME in nanoseconds
    .import/TIME              a run or an upload on its way in, see `archive` and `uploads`
    .uploads/HASH/NAME        pictures or a checkpoint that somebody brought, see `uploads`
    .slurm/                   what SLURM's jobs were given and said, see `clusters`
    .visitors/OWNER           what belongs to an owner beside the runs: such uploads, saved views; see `app.work.public`

The contract is *append* and *read from an offset*. A last line without its line end is not there yet: a reader leaves it for
the next call, and the next writer cuts it off. Files other than the event log are written beside their place and renamed, so a
reader sees all of one or none of it. A file's content is on the disk before it gets its name, and a layer's file and its name
are before its record; records that the next worker goes by are there when `append` returns. Any number of readers, in any
process, need no lock. Do not put the folder on a file system without atomic rename.

A run has one writer: whoever has its lock, which the operating system gives to one and takes back from the dead. It writes the
run's life: that it is queued, what is done, how it ended. Nobody else writes any of this; whoever wants a run to end asks
(`Run.cancel`). `lock` says on which file systems this holds between hosts.

There are two ways through this life. `Run.queue` takes a run and keeps it: who has the `Hold` works on it, and when that one
dies the run is interrupted, until a person resumes it. `RunStore.enqueue` takes it, writes that it is queued and puts it in
line, and lets it go: then it lies there in nobody's hands, until a worker claims it (`Run.claim`), which is again to take it
and to write what was missing. A run in line that has not ended is some worker's to do: when its worker dies it still is in
line, and the next one goes on at the first unfinished layer. So a run that waits needs no owner, and one that is written has
always one. That it is in line is a fact of its own, beside the run, for the events alone cannot tell whether somebody is to go
on without being asked.
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
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from snows.config import AnyPath, Cancelled, InputError, RunConfig, as_path
from snows.events import (
    BudgetChosen,
    Event,
    Note,
    Queued,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
    SiteFinished,
    from_json,
    to_json,
)
from snows.runs import formats, line, lock
from snows.runs.line import Line, Place
from snows.runs.log import ENDINGS, Log

if TYPE_CHECKING:
    from torch import Tensor

ACTIVE = ("queued", "running")
RESERVE_BYTES = 16_384
# So many workers in a row may be lost on a run without a layer finished. It may be what ended them, and shall not end them all.
MOST_LOST = 3
# What the next worker goes by. The rest of a log may be lost with the power.
_LASTING = (RunStarted, BudgetChosen, SiteFinished, *ENDINGS)
_TAIL_BYTES = 4096
_DAMAGED_LINE = "A line of this run's log (events.jsonl) is damaged and was passed over: what it told is missing here."
_METRICS = TypeAdapter(dict[str, float | None])
# How long a deleted run can be had back.
TRASH_SECONDS = 7 * 24 * 3600.0


class RunError(RuntimeError):
    """A run cannot go on, though its input is not at fault. The message says what happened, why, and what to do."""


class StoreError(RunError):
    """The disk refused: the message says which file, why, and what to do."""


class DeviceLostError(RunError):
    """The device is gone for this whole process: only another one can go on, from the finished layers. The message says so."""


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
    """Write a file whole or not at all, whoever else reads or writes it, and where the power fails. Raises `OSError`."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        scratch.write_bytes(content)
        _onto_disk(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with _disk(path):
        write_whole(path, content)


def _onto_disk(*paths: Path) -> None:
    """Return once the disk has a file's content, or the names in a folder. Raises `OSError`."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems write the names of a folder at once
                raise
        finally:
            os.close(descriptor)


Execute = Callable[["Run"], RunFinished]


def _never() -> bool:
    return False


@dataclass(frozen=True, init=False)
class Run:
    """A handle on one run folder. Holds no state: every call reads the disk. `stopping`: whether its worker is to put it
    back."""

    path: Path
    stopping: Callable[[], bool] = field(compare=False, repr=False)

    def __init__(self, path: AnyPath, stopping: Callable[[], bool] = _never) -> None:
        object.__setattr__(self, "path", as_path(path))
        object.__setattr__(self, "stopping", stopping)

    @classmethod
    def _in(cls, root: Path, name: str) -> "Run":
        """The run of that name, which lies there: of thousands in a list, none is asked whether it can be a path."""
        run = object.__new__(cls)
        object.__setattr__(run, "path", root / name)
        object.__setattr__(run, "stopping", _never)
        return run

    @property
    def id(self) -> str:
        return self.path.name

    def config(self) -> RunConfig:
        """Raises `InputError` for a run of a newer version, and `ValidationError` for what is no config."""
        path = self.path / "config.json"
        return _config(path, _version(path))

    def version(self) -> tuple[object, ...]:
        """As long as it is the same, config, labels, metrics and events are. Whether somebody works on it may have changed."""
        return tuple(_version(f"{self.path}/{name}") for name in ("config.json", "label.json", "metrics.json", "events.jsonl"))

    def unreadable(self) -> str:
        """Why this version cannot read the run's settings, in a sentence; nothing where it can."""
        try:
            self.config()
        except InputError as error:
            return f"Run {self.id} cannot be shown. {error}"
        except ValueError:
            return f"Run {self.id} was written by another version of the app, or is damaged, so it cannot be shown."
        return ""

    def created(self) -> float:
        """When the run was made, in seconds since the epoch."""
        with suppress(FileNotFoundError, ValueError, TypeError), (self.path / "events.jsonl").open("rb") as file:
            line = file.readline()
            if line.endswith(b"\n") and (first := from_json(line)) is not None and _is_a_time(first.time):
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

    def owner(self) -> str:
        """Whose run it is; empty where it is nobody's in particular."""
        try:
            return (self.path / "owner").read_text()
        except FileNotFoundError:
            return ""

    # --- events ---

    def append(self, *new: Event) -> None:
        lines = "".join(to_json(e) + "\n" for e in new).encode()
        path = self.path / "events.jsonl"
        with _disk(path), path.open("ab+") as file:
            _cut_torn_line(file)
            file.write(lines)
            if any(isinstance(event, _LASTING) for event in new):
                file.flush()
                os.fsync(file.fileno())
            if any(isinstance(event, RunStarted) for event in new):  # what layers are about to be kept in
                _onto_disk(self.path, self.path.parent)

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """The whole events from byte `offset` on, and the offset to ask for next. A damaged line is a note that says so."""
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:
            return [], 0
        end = content.rfind(b"\n") + 1
        return list(_readable(content[:end].split(b"\n")[:-1])), offset + end

    def log(self, known: Log | None = None) -> Log:
        """What the events say. `known`, which an earlier call gave, is read on from where it stands, and returned."""
        log = known or Log()
        new, log.offset = self.events(log.offset)
        return log.add(*new)

    # --- state ---

    def state(self) -> str:
        """`queued`, `running`, `finished`, `failed`, `cancelled`, or `interrupted` (its worker is gone; it can be resumed).

        Queued is what waits for the one who keeps it, and what is in line and in nobody's hands, its last worker's neither.
        """
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
                    whole = lines if tail >= size else lines[1:]  # the first line may have begun before the tail did
                    with suppress(ValueError, RecursionError):
                        if whole and (event := from_json(whole[-1])) is not None:
                            return event
                    if events := list(_readable(whole)):
                        return events[-1]
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
            if self.in_line():
                return "queued"
            last = self.last()  # its worker may have ended, and said so, between the reader's look and this one
        return "interrupted"

    # --- its life ---

    def queue(self) -> "Hold":
        """Take this run, so that nobody else writes it until the hold is let go, and say that it waits for its device.

        It is in line no more. Raises `RunTakenError` where somebody else has it, where it has finished, or where it is no
        longer there.
        """
        with self._to_queue() as hold:
            self._reserve()
            self.append(Queued())
            self._leave_line()
        return hold

    def _enqueue(self, place: Place) -> None:
        """Put this run in line and let it go; one that is in line stays where it is. Raises as `queue`."""
        with self._to_queue() as hold, hold:
            if not self.in_line():
                self.append(Queued())
                line.path_of(self.path).parent.mkdir(exist_ok=True)
                _write(line.path_of(self.path), line.content_of(place))

    @contextmanager
    def _to_queue(self) -> Iterator["Hold"]:
        """This run, unfinished, taken, and asked to end by nobody. It is let go where the block raises."""
        held = self._take("is {state}: {holder} works on it. Wait for it, or cancel it.")
        try:
            with _disk(self.path):
                if self.state() == "finished":
                    what = f"Run {self.id} is finished; there is nothing to resume."
                    raise RunTakenError(f"{what} Start its settings as a new run.")
                (self.path / "cancel").unlink(missing_ok=True)
                yield Hold(self, held)
        except BaseException:
            held.release()
            raise

    def claim(self, stopping: Callable[[], bool] = _never) -> "Hold | None":
        """Take this run out of the line, for a worker. None where it is in another's hands or has ended.

        `stopping`: whether the worker is to put it back, asked for while it works. A run on which `MOST_LOST` workers in a row
        were lost without a layer finished ends here: it fails with a sentence. Raises `StoreError`.
        """
        try:
            held = self._locked(waits=False)
        except lock.TakenError:
            return None
        if held is None:
            self._leave_line()
            return None
        hold = Hold(Run(self.path, stopping), held)
        try:
            with _disk(self.path):
                if hold._begin():
                    return hold
        except BaseException:
            hold.__exit__()
            raise
        hold.__exit__()
        return None

    def _reserve(self) -> None:
        reserve = self.path / "reserve"
        with _disk(reserve):
            try:
                reserve.write_bytes(bytes(RESERVE_BYTES))
            except OSError:
                with suppress(OSError):
                    reserve.unlink(missing_ok=True)
                raise

    def in_line(self) -> bool:
        """Whether this run was handed to the workers and has not ended."""
        return line.path_of(self.path).exists()

    def _is_to_do(self) -> bool:
        # One that has ended is still in line where its worker was lost between the two.
        return self.in_line() and type(self.last()) not in ENDINGS

    def _leave_line(self) -> None:
        with suppress(OSError):  # who finds an ended run there takes it out
            line.path_of(self.path).unlink(missing_ok=True)

    def holder(self) -> str:
        """`process 123 on host` of who has this run, nothing where nobody has."""
        return lock.holder(self._lock_path) if lock.is_taken(self._lock_path) else ""

    def _take(self, refusal: str) -> FileLock:
        try:
            held = self._locked(waits=True)
        except lock.TakenError:
            state = self.state() if self.state() in ACTIVE else "in use"
            holder = lock.holder(self._lock_path) or "another process"
            raise RunTakenError(f"Run {self.id} {refusal.format(state=state, holder=holder)}") from None
        if held is None:
            raise RunTakenError(f"Run {self.id} is no longer in {self.path.parent}. Look for it in the trash.")
        return held

    def _locked(self, *, waits: bool) -> FileLock | None:
        """The run's lock, which is now the caller's; None where there is no such run. Raises `lock.TakenError`."""
        if not (self.path / "config.json").exists():
            return None
        with _disk(self._lock_path):
            held = lock.take(self._lock_path, waits=waits)
        if (self.path / "config.json").exists():
            return held
        held.release()  # it was put into the trash meanwhile, and the lock made a folder of its own
        with suppress(OSError):
            self._lock_path.unlink()
            self.path.rmdir()
        return None

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

    def cancel(self) -> None:
        """Have this run end: at its worker's next look, or, where it is in line and in nobody's hands, at once."""
        self.request_cancel()
        if not self.in_line():
            return
        with suppress(lock.TakenError):
            if (held := self._locked(waits=False)) is not None:
                with Hold(self, held) as hold:
                    if self._is_to_do():
                        hold.cancel()

    def request_cancel(self) -> None:
        with _disk(self.path / "cancel"):
            (self.path / "cancel").touch()

    def cancel_requested(self) -> bool:
        return (self.path / "cancel").exists()

    def stop_requested(self) -> bool:
        """Whether who works on it is to raise `Cancelled`: somebody wants the run to end, or its worker to put it back."""
        return self.stopping() or self.cancel_requested()

    # --- results ---

    def save_site(self, index: int, weight: "Tensor", mask: "Tensor") -> None:
        """A finished site. `weight` and `mask` (bool, True = kept) share the parameter's shape."""
        from safetensors.torch import save

        folder = self.path / "sites"
        with _disk(folder):
            folder.mkdir(exist_ok=True)
        tensors = {"weight": weight.detach().cpu().contiguous(), "mask": mask.cpu().contiguous()}
        _write(folder / f"{index:04d}.safetensors", save(tensors))
        with _disk(folder):
            _onto_disk(folder, self.path)  # before its record says that it is there

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
            scratch = self._joint_path.with_name(".joint.safetensors")
            try:  # three times the weights: without a copy in between, and whole or not at all as `_write` does it
                save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, scratch)
                _onto_disk(scratch)
                scratch.replace(self._joint_path)
            except SafetensorError as error:
                said = re.search(r"os error (\d+)", str(error))
                number = int(said[1]) if said else errno.EIO
                raise OSError(number, os.strerror(number)) from error
            finally:
                scratch.unlink(missing_ok=True)

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

    def has_finished_sites(self) -> bool:
        """Whether there is a finished site, and so something to look at or to keep."""
        return next(self.finished_sites(), None) is not None

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
        with _disk(self.path):
            _onto_disk(self.path)

    @property
    def weights_path(self) -> Path:
        return self.path / "weights.safetensors"

    def save_metrics(self, metrics: Mapping[str, float | None]) -> dict[str, float | None]:
        """Write what was measured and return it as written: what is not finite has no number in JSON, and is None."""
        finite = _finite(metrics)
        _write(self.path / "metrics.json", json.dumps(finite, indent=2, allow_nan=False).encode())
        with _disk(self.path):
            _onto_disk(self.path)
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


def _failure(error: Exception) -> RunFailed:
    if isinstance(error, InputError):
        return RunFailed(message=str(error), bad_input=True)
    if isinstance(error, RunError):
        return RunFailed(message=str(error), detail=str(error.__cause__ or ""))
    what = f"The run stopped on an unexpected error ({type(error).__name__}: {error})."
    remedy = "Finished layers are kept; resume the run, and report the trace if it happens again."
    return RunFailed(message=f"{what} {remedy}", detail="".join(traceback.format_exception(error)))


@dataclass(frozen=True)
class Hold:
    """A run that the caller has taken, and nobody else: what waits for its device, then does it, and says how that ended.

    A context manager, at whose end the run is let go. So is it when the process ends in any way.
    """

    run: Run
    _lock: FileLock

    def work(self, execute: Execute) -> Event:
        """Let `execute` do what the run's config says, write how it ended, and return that, the run's last event.

        `execute` appends what it does, obeys `run.stop_requested`, and returns the end; what it raises is how the run ended. A
        worker that is to put it back writes that the run is queued, again. Raises `StoreError` where not even the end can be
        written, and `DeviceLostError` where the run stays in line for a worker that has its device.
        """
        try:
            if self.run.stop_requested():  # while it waited
                raise Cancelled
            return self._end(execute(self.run))
        except Exception as error:
            # A process that ends takes the engine down around its workers, so what fails then is for the next one to try.
            if self.run.stopping() and not self.run.cancel_requested():
                return self._put_back()
            if isinstance(error, DeviceLostError) and self.run.in_line():  # for another process, as if this one had been lost
                self.run.append(Note(message=str(error)))
                raise
            return self.cancel() if isinstance(error, Cancelled) else self._end(_failure(error))

    def cancel(self) -> Event:
        """End the run as it is, and return its last event."""
        return self._end(RunCancelled(finished_sites=self.run.log().done))

    def _end(self, event: Event) -> Event:
        # In the room that was kept for it: a full disk must not hide that it was full.
        (self.run.path / "reserve").unlink(missing_ok=True)
        (self.run.path / "cancel").unlink(missing_ok=True)
        try:
            self.run.append(event)
        finally:  # what cannot even be ended is no worker's to try again and again
            self.run._leave_line()
        return event

    def _put_back(self) -> Event:
        (self.run.path / "reserve").unlink(missing_ok=True)
        self.run.append(again := Queued())
        return again

    def _begin(self) -> bool:
        """Make a run that is in line ready for this worker, where there is still something to do."""
        last = self.run.last()
        if not self.run.in_line():  # another worker was quicker
            return False
        if type(last) in ENDINGS:  # its worker was lost after it had said so
            self.run._leave_line()
            return False
        try:
            self.run.config()
        except ValueError as error:  # a worker that stumbled over it would leave it to the next one, and that one too
            what = "The settings of this run (config.json) cannot be read: they are damaged, or of another version"
            message = str(error) if isinstance(error, InputError) else f"{what}. Start it again as a new run."
            self._end(RunFailed(message=message, detail=str(error), bad_input=True))
            return False
        self.run._reserve()
        if not isinstance(last, Queued):
            lost = self.run.log().lost
            if lost >= MOST_LOST:
                what = f"{lost} workers in a row were lost while they worked on this run, and finished no layer of it"
                why = "The system may have ended them for want of memory, so no other one takes it"
                remedy = "Use a smaller batch size, a smaller K or fewer images, or resume it where there is more memory"
                self._end(RunFailed(message=f"{what}. {why}. {remedy}; finished layers are kept."))
                return False
            self.run.append(Queued(lost=lost))
        return True

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock.is_locked:
            with suppress(OSError):  # the folder may be gone
                (self.run.path / "reserve").unlink(missing_ok=True)
            self._lock.release()


def _version(path: AnyPath) -> tuple[int, int, int] | None:
    """Another one for another content; None for what is not there."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return None
    return there.st_ino, there.st_mtime_ns, there.st_size


@lru_cache(maxsize=4096)
def _config(path: Path, version: tuple[int, int, int] | None) -> RunConfig:
    # Written once, and asked for by every list of runs, each second.
    return formats.read(path.read_text())


def _readable(whole_lines: Sequence[bytes]) -> Iterator[Event]:
    """The events of whole lines, without those of another version."""
    time = 0.0
    for content in whole_lines:
        try:
            event = from_json(content)
        except (ValueError, RecursionError):  # a disk or a person did this; the rest of the run is still to be seen
            event = Note(time=time, message=_DAMAGED_LINE)
        if event is not None:
            time = event.time
            yield event


def _is_a_time(seconds: float) -> bool:
    """Whether a calendar has a day for it."""
    return 0 <= seconds < 2**33


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
    """All runs under one folder; or, with an `owner`, only those that were made for that owner, as if there were no others.

    What the shell and the app share: `default_root()` is `$SNOWS_RUNS`, or `~/.snows/runs`. A `Run` is a handle on a folder,
    whose `config`, `state`, `metrics`, `log` and `masks` (bool, in each parameter's shape, True = kept) read the disk; the
    folder's files are in this module's head. Every method that writes raises `StoreError`, with a sentence, where the disk
    refuses; `get` raises `KeyError` for an id that is not there.

    >>> import tempfile
    >>> store = snows.RunStore(tempfile.mkdtemp())
    >>> run = store.create(snows.RunConfig(model="vit-fashion"))
    >>> store.get(run.id).config().model, run.state(), run.metrics()
    ('vit-fashion', 'interrupted', None)
    >>> store.delete(run.id)
    >>> store.list()
    []
    """

    root: Path
    owner: str | None

    def __init__(self, root: AnyPath, owner: str | None = None) -> None:
        object.__setattr__(self, "root", as_path(root))
        object.__setattr__(self, "owner", owner)

    def _shows(self, run: Run) -> bool:
        return self.owner is None or run.owner() == self.owner

    def create(self, config: RunConfig) -> Run:
        """A new, empty run."""
        run = Run(self._new_folder())
        try:
            if self.owner is not None:
                _write(run.path / "owner", self.owner.encode())
            _write(run.path / "config.json", formats.written(config))
        except StoreError:
            shutil.rmtree(run.path, ignore_errors=True)
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

    def enqueue(self, runs: Sequence[Run], comparison_id: str = "") -> None:
        """Put unfinished runs in line for whichever worker is free, in this order; see `line`. `comparison_id`: the one they
        are queued with. Those that are in line stay where they are.

        Raises `StoreError`; `RunTakenError` where one of them is in somebody's hands or has finished, after the others are in
        line.
        """
        refusal, turns = None, dict[str, int]()
        with _disk(self.root / line.FOLDER):
            in_line = self.line().places()
        for run in runs:
            device = run.config().prune.device
            if device not in turns:
                turns[device] = line.next_turn(in_line, comparison_id, device, self._waits)
            try:
                run._enqueue(Place(turns[device], comparison_id, device))
            except RunTakenError as error:
                refusal = error
            else:
                turns[device] += 1
        if refusal is not None:
            raise refusal

    def line(self) -> Line:
        """A reader of the line."""
        return Line(self.root)

    def _waits(self, run_id: str) -> bool:
        return not Run(self.root / run_id).holder()

    def comparison(self, comparison_id: str) -> Comparison:
        """Raises `KeyError` with a sentence."""
        comparisons_by_id = {comparison.id: comparison for comparison in self.comparisons()}
        if comparison_id not in comparisons_by_id:
            raise KeyError(
                f"There is no comparison {comparison_id[:80]!r} among those kept here; its runs may have been deleted."
            )
        return comparisons_by_id[comparison_id]

    def comparisons(self) -> Sequence[Comparison]:
        """Newest first; without those whose runs are all deleted."""
        every_comparison = (Comparison(path) for path in sorted(self.root.glob(".batches/*.json"), reverse=True))
        return [one for one in every_comparison if (runs := one.runs()) and all(map(self._shows, runs))]

    def get(self, run_id: str) -> Run:
        """Raises `KeyError` with a sentence."""
        is_id = bool(run_id) and not run_id.startswith(".") and not {"/", "\0"} & set(run_id)
        # `os.path` says no to a name that no file can have, where a `Path` raises.
        if not is_id or not os.path.exists(self.root / run_id / "config.json") or not self._shows(Run(self.root / run_id)):
            raise KeyError(f"There is no run {run_id[:80]!r} among those kept here.")
        return Run(self.root / run_id)

    def list(self, most: int | None = None) -> list[Run]:
        """Newest first; no more than `most`, for which no other run is looked at."""
        try:
            names = sorted((name for name in os.listdir(self.root) if not name.startswith(".")), reverse=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        runs = (Run._in(self.root, name) for name in names if os.path.exists(f"{self.root}/{name}/config.json"))
        return list(islice(filter(self._shows, runs), most))

    def active(self, newest: int = 50) -> Sequence[tuple[Run, str]]:
        """The runs that work or wait, with their state: those in line, and of the `newest` those that somebody keeps. Those at
        work come first, the older before the newer."""
        in_line = {name for name in self.line().names() if os.path.exists(f"{self.root}/{name}/config.json")}
        held = [(run, run.state()) for run in self.list(newest) if run.id not in in_line]
        # Of those in line that nobody has in hand there may be thousands, and what they wait for is known.
        waiting = [run for name in in_line if self._shows(run := Run._in(self.root, name))]
        states = [*held, *((run, run.state() if run.holder() else "queued") for run in waiting)]
        return sorted((pair for pair in states if pair[1] in ACTIVE), key=lambda pair: (pair[1] != "running", pair[0].id))

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
        refusal = "is {state}, so it was not deleted. Cancel it first, then delete it."
        held = run._take(refusal)
        try:
            if run._is_to_do():
                raise RunTakenError(f"Run {run.id} {refusal.format(state='queued')}")
            yield run
        finally:
            held.release()

    def trashed(self) -> Sequence[Run]:
        """The runs in the trash, the last deleted first."""
        runs = (Run(p.parent) for p in sorted(self.root.glob(".trash/*/*/config.json"), reverse=True))
        return [run for run in runs if self._shows(run)]

    def restore(self, trashed: Run) -> Run:
        """Take a run out of the trash again. Raises `InputError` when another has its id by now, or when it is gone."""
        place = self.root / trashed.id
        if place.exists():
            raise InputError(
                f"There is a run {trashed.id} again, so the deleted one was left in the trash. Delete that one first."
            )
        if not trashed.path.exists() or not self._shows(trashed):
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
