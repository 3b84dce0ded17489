"""`SNOWS_PUBLIC=1`: the app for people who do not know each other, and whom its operator does not know either.

Each of them is an *owner*, a word that nobody guesses. Runs are in one store, for any worker to do, and each is shown to its
owner alone (`RunStore(root, owner)`); what is beside the runs, such as uploads, is in a folder of the owner's, the *home*:

    RUNS/.visitors/OWNER/.uploads/HASH/NAME

What a run may be is checked here, whatever a form, an address or a typed name says: it reads a file only from its owner's
uploads, downloads nothing, and is small. `Turns` gives what pages compute besides runs its turn and its share. `Keeper` ends
what takes too long and removes what is old. Without `SNOWS_PUBLIC` none of this is in force: the app is one person's, or that
of people who trust each other.
"""

import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from snows.config import MASKS, MASKS_OF_UNITS, InputError, RunConfig
from snows.measures.names import duration, size
from snows.runs.store import ACTIVE, Run, RunStore, RunTakenError

if TYPE_CHECKING:
    from snows.runs.estimate import Plan

_log = logging.getLogger(__name__)
# What comes with the app, and is read without a network. A test compares the first with the catalogue, which takes its time to
# import.
NETWORKS = ("resnet20-fashion", "vit-fashion")
IMAGES = "fashion-mnist"
# How much longer than its limit, of the estimate, a run may take before it is ended. An estimate knows no busy machine.
PATIENCE = 2
_KEEP_SECONDS = 5.0
# How long a page may wait until others' looks are done; what is computed in the background waits as long as it takes.
_PAGE_SECONDS = 20.0
_HOUR = 3600.0

Piece = TypeVar("Piece")
_PURGE_SECONDS = 60.0


def is_public(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the app is open to visitors. Raises `InputError` for a word that may have been meant so."""
    said = environment.get("SNOWS_PUBLIC", "")
    if said not in ("", "0", "1"):
        raise InputError(f"SNOWS_PUBLIC is 1, for an app that is open to visitors, or 0, but is {said!r}.")
    return said == "1"


@dataclass(frozen=True)
class Limits:
    """What a visitor may have. Each is a whole number, which its variable sets: `SNOWS_PUBLIC_IMAGES` and so on."""

    images: int = 12_000  # of a run: calibration, held back and evaluation together
    parameters: int = 5_000_000  # of a network
    minutes: int = 5  # of a run, as estimated
    memory: int = 4  # of a run in GB, as estimated
    runs: int = 4  # of one visitor, in work or waiting
    line: int = 100  # runs of everybody, in work or waiting
    computing: int = 10  # minutes in an hour, of what one visitor's pages compute besides runs
    uploads: int = 50  # MB of one visitor
    hours: int = 24  # until a run or an upload is removed

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> "Limits":
        """Raises `InputError` with a sentence."""
        given = {}
        for limit in fields(cls):
            variable = f"SNOWS_PUBLIC_{limit.name.upper()}"
            if text := environment.get(variable, ""):
                if not text.isdecimal() or int(text) < 1:
                    raise InputError(f"{variable} must be a whole number of at least 1, but is {text!r}.")
                given[limit.name] = int(text)
        return cls(**given)

    @property
    def longest(self) -> int:
        """After how many minutes of work a run is stopped."""
        return PATIENCE * self.minutes

    def __str__(self) -> str:
        return (
            f"A run may take {self.images:,} images, a network of {self.parameters:,} parameters, {self.memory} GB of memory "
            f"and {self.minutes} minutes by the estimate; after {self.longest} it is stopped. {self.runs} of your runs may "
            f"work or wait, and what you bring may have {self.uploads} MB. Only you see these, and after {self.hours} hours "
            f"they are removed. What else you have computed, such as timings, checks and files, may take {self.computing} min "
            "of each hour."
        )


def home(root: Path, owner: str) -> Path:
    """The folder of what belongs to an owner beside the runs. `root`: of the store."""
    return root / ".visitors" / owner


# --- what a run may be ---


def check(config: RunConfig, of: Path) -> None:
    """Raises `InputError` for a run that would read what is not its visitor's, or that is asked to be too large. Opens nothing.

    `of`: the visitor's home.
    """
    limits = Limits.read()
    if config.checkpoint is not None and not _is_in(config.checkpoint, of):
        raise InputError("Weights are read only from a file that you bring: drop it under “Your own weights”.")
    if config.checkpoint is None and config.model not in NETWORKS:
        raise InputError(
            f"Nothing is downloaded here, so {config.model} has no weights. Choose {' or '.join(NETWORKS)}, or bring its "
            "weights under “Your own weights”."
        )
    if config.data != IMAGES and not _is_in(config.data, of):
        raise InputError("Images are those that come with the app, or pictures that you bring: drop them under “More”.")
    if config.prune.mask not in (*MASKS, *MASKS_OF_UNITS) and not _is_in(config.prune.mask, of):
        raise InputError("A mask is read only from a file that you bring: drop it under “A mask of your own”.")
    if config.prune.device != "auto":
        raise InputError(f"The device is chosen here for all, so it must be auto, but is {config.prune.device}.")
    images = config.num_calibration + config.num_held_back + config.num_evaluation
    if images > limits.images:
        raise InputError(
            f"Calibration, held back and evaluation come to {images:,} images; a run may take {limits.images:,} here. Take "
            "fewer."
        )


def _is_in(path: str, of: Path) -> bool:
    try:
        return Path(path).expanduser().resolve(strict=True).is_relative_to((of / ".uploads").resolve(strict=True))
    except (OSError, ValueError, RuntimeError):  # not there, no path at all, no such user
        return False


def check_network(config: RunConfig) -> None:
    """Raises `InputError` for a network that is too large. `config`: one that passed `check`."""
    most = Limits.read().parameters
    if (count := _parameters(config.model, config.checkpoint)) > most:
        raise InputError(f"The network has {count:,} parameters; it may have {most:,} here. Choose a smaller one.")


@lru_cache(maxsize=256)
def _parameters(model: str, checkpoint: str | None) -> int:
    # What was brought does not change where it lies.
    from snows.sources import models

    return sum(parameter.numel() for parameter in models.outline(model, checkpoint).module.parameters())


def check_plan(plan: "Plan") -> None:
    """Raises `InputError` for a run that takes too long or too much memory."""
    limits = Limits.read()
    # The middle of what is expected: the most is several times that on a machine that is busy just now.
    if plan.seconds > 60 * limits.minutes:
        raise InputError(
            f"The run would take about {duration(plan.seconds)}; {limits.minutes} minutes are allowed here. Take fewer images, "
            "a smaller K or a cheaper update."
        )
    if plan.bytes > limits.memory * 1000**3:
        raise InputError(
            f"The run would take {size(plan.bytes)} of memory; {limits.memory} GB are allowed here. Take fewer images or a "
            "smaller K."
        )


def check_room(own: RunStore, count: int) -> None:
    """Raises `InputError` where `count` more runs of a visitor would be too many. `own`: the visitor's store."""
    limits = Limits.read()
    active = sum(run.state() in ACTIVE for run in own.list())
    if active + count > limits.runs:
        raise InputError(
            f"{active} of your runs work or wait, and a visitor may have {limits.runs}: {count} more would be too many. Wait "
            "until they have ended, or cancel some."
        )
    if len(RunStore(own.root).line().places()) + count > limits.line:
        raise InputError(f"{limits.line} runs wait already, of all visitors together. Try again later.")


def room_for_uploads(of: Path) -> int:
    """How many bytes a visitor may still bring. `of`: the visitor's home."""
    taken = sum(path.stat().st_size for path in of.glob(".uploads/**/*") if path.is_file())
    return max(Limits.read().uploads * 1000**2 - taken, 0)


# --- what pages compute besides runs ---


class Turns:
    """What visitors have computed besides their runs: one on a page and one in the background at a time, in the whole process,
    and so many minutes in an hour of each visitor. For any thread.

    Minutes are counted and not clicks, so that what is in a cache costs nothing, and a long look as much as it takes.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """`now`: a clock that only goes forward, seconds."""
        self._now = now
        self._changed = threading.Condition()
        self._on_pages, self._behind = deque[tuple[str, object]](), deque[tuple[str, object]]()
        self._spent: dict[str, deque[tuple[float, float]]] = {}  # by owner: when it ended, and the seconds it took

    def seconds_left(self, owner: str) -> float:
        """Of the visitor's minutes in this hour."""
        with self._changed:
            oldest = self._now() - _HOUR
            for known, ended in list(self._spent.items()):
                while ended and ended[0][0] < oldest:
                    ended.popleft()
                if not ended:
                    del self._spent[known]
            taken = sum(seconds for _, seconds in self._spent.get(owner, ()))
        return max(60.0 * Limits.read().computing - taken, 0.0)

    def refusal(self, owner: str) -> str:
        """Why the visitor may have nothing more computed now, in a sentence; empty where they may."""
        if self.seconds_left(owner) > 0:
            return ""
        return (
            f"What you have had computed here, besides runs, took {Limits.read().computing} min of the last hour, which is "
            "what a visitor may have. Try again later, or start a run, which is not counted."
        )

    def waits(self, owner: str) -> bool:
        """Whether something that the visitor has computed in the background waits for its turn."""
        with self._changed:
            return any(of == owner for of, _ in list(self._behind)[1:])

    @contextmanager
    def on_page(self, owner: str) -> Iterator[None]:
        """A turn for what somebody waits for before a page. Raises `InputError` where the visitor's minutes are used up, and
        where others' looks do not end."""
        deadline = self._now() + _PAGE_SECONDS

        def check() -> None:
            if self._now() > deadline:
                raise InputError(
                    "Other visitors have something computed just now, and here one waits for the other. Try again in a minute."
                )

        with self._turn(self._on_pages, owner, check):
            yield

    def behind(
        self, owner: str, make: Callable[[Callable[[], None]], Iterable[Piece]]
    ) -> Callable[[Callable[[], None]], Iterator[Piece]]:
        """`make`, of `app.work.making.Making`, in a turn that waits for those before it, and ended with `InputError` where the
        visitor's minutes are used up."""

        def pieces(check: Callable[[], None]) -> Iterator[Piece]:
            with self._turn(self._behind, owner, check):
                begun, left = self._now(), self.seconds_left(owner)

                def check_both() -> None:
                    check()
                    if self._now() - begun > left:
                        raise InputError(
                            f"It was ended: it took more than was left of the {Limits.read().computing} min that a visitor may "
                            "have computed in an hour, besides runs. Try again later."
                        )

                yield from make(check_both)

        return pieces

    def _refuse(self, owner: str) -> None:
        if refusal := self.refusal(owner):
            raise InputError(refusal)

    @contextmanager
    def _turn(self, line: deque[tuple[str, object]], owner: str, check: Callable[[], None]) -> Iterator[None]:
        mine = owner, object()
        with self._changed:
            self._refuse(owner)
            line.append(mine)
        try:
            with self._changed:
                while line[0] is not mine:
                    check()
                    self._changed.wait(0.1)
                self._refuse(owner)  # what waited with it may have taken what was left
            begun = self._now()
            try:
                yield
            finally:
                with self._changed:
                    self._spent.setdefault(owner, deque()).append((self._now(), self._now() - begun))
        finally:
            with self._changed:
                line.remove(mine)
                self._changed.notify_all()


# --- keeping it small ---


class Keeper:
    """Ends visitors' runs that take too long, whoever works on them, and removes what is old. For one thread."""

    def __init__(self, root: Path) -> None:
        self._store = RunStore(root)
        self._begun: dict[str, float] = {}

    def work(self) -> None:
        """Until the process ends."""
        purged = -_PURGE_SECONDS
        while True:
            try:
                self.stop_long(time.monotonic())
                if time.monotonic() - purged > _PURGE_SECONDS:
                    purged = time.monotonic()
                    self.purge()
            except Exception:  # the disk refuses; the next look may find it well again
                _log.exception("What is old or takes too long could not be looked after")
            time.sleep(_KEEP_SECONDS)

    def stop_long(self, now: float) -> None:
        """Ask the runs to end that have been seen in work for too long. `now`: by a clock that only goes forward, seconds."""
        runs = (Run(self._store.root / run_id) for run_id in self._store.line().places())
        self._begun = {run.id: self._begun.get(run.id, now) for run in runs if run.owner() and run.holder()}
        for run_id, begun in self._begun.items():
            if now - begun > 60 * Limits.read().longest:
                Run(self._store.root / run_id).request_cancel()

    def purge(self) -> None:
        """Remove the visitors' runs and uploads that are old, each for good; a run that is still active is cancelled first."""
        from snows.sources import uploads  # which takes its time to import

        store, seconds = self._store, 3600.0 * Limits.read().hours
        oldest = time.time() - seconds
        for run in store.list():
            if run.owner() and run.created() < oldest:
                if run.state() in ACTIVE:
                    run.cancel()
                with suppress(KeyError, RunTakenError):
                    store.delete(run.id)
        for run in store.trashed():
            if run.owner() and run.created() < oldest:
                shutil.rmtree(run.path.parent, ignore_errors=True)
        for of in store.root.glob(".visitors/*"):
            uploads.purge(of, seconds, runs=store.root)
            if not any(of.glob(".uploads/*")) and of.stat().st_mtime < oldest:
                shutil.rmtree(of, ignore_errors=True)
