"""The line of a store: the runs that wait for a worker, whichever and wherever that may be, and in which order.

    .queue/RUN    its turn, the comparison it is queued with and the device it wants; from when it is queued until it has ended

A worker that looks for work reads one folder of small files, however many runs the store has. A file is written whole and does
not change, so it is read once.

Whose turn it is is decided when a run comes into the line: one after the last turn of its comparison, and one after the turn
that is being taken now. Workers take the lowest turn first. So comparisons are served in rotation, a run each, every one in its
own order; runs that are queued by themselves are together one more of them, which comes first within a turn: such a run waits
for at most one run of each comparison, and for those that were queued by themselves before it. None starves: a turn that is
being taken gets no more runs, so it comes to an end, and the next is taken. There are no priorities beside this. It needs no
clock, and nothing that two workers would have to agree on.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

FOLDER = ".queue"


@dataclass(frozen=True)
class Place:
    """Where a run is in the line. `comparison`: the id of the one it is queued with, or nothing. `device`: as its config names
    it."""

    turn: int
    comparison: str
    device: str


_PLACE = TypeAdapter(Place)


def path_of(run: Path) -> Path:
    """The file that says that a run is in line."""
    return run.parent / FOLDER / run.name


def content_of(place: Place) -> bytes:
    return _PLACE.dump_json(place)


class Line:
    """The line as one reader sees it, who keeps what was read."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER
        self._known: dict[str, Place] = {}

    def places(self) -> dict[str, Place]:
        """The runs in line by their ids, the next first; those in work stand where they stood."""
        known = {name: place for name in self.names() if (place := self._known.get(name) or self._read(name)) is not None}
        self._known = dict(sorted(known.items(), key=_order))
        return self._known

    def names(self) -> list[str]:
        """The ids of the runs in line, in no order."""
        try:
            return [name for name in os.listdir(self._folder) if not name.startswith(".")]
        except FileNotFoundError:
            return []

    def _read(self, name: str) -> Place | None:
        try:
            return _PLACE.validate_json((self._folder / name).read_bytes())
        except (FileNotFoundError, ValidationError):  # it has ended just now, or another version wrote it
            return None


def _order(named: tuple[str, Place]) -> tuple[int, bool, str]:
    name, place = named
    return place.turn, bool(place.comparison), name


def next_turn(places: Mapping[str, Place], comparison: str, device: str, waits: Callable[[str], bool]) -> int:
    """The first turn of what comes now into the line of `places`. `waits`: whether a run there is in nobody's hands."""
    alike = {name: place for name, place in places.items() if place.device == device}
    taken_now = next((place.turn for name, place in alike.items() if waits(name)), -1)
    return 1 + max([taken_now, *(place.turn for place in alike.values() if place.comparison == comparison)])
