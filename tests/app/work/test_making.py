"""What is made in the background: pieces come as they are made, and it ends when asked, done, or wrong."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from app.work.making import Making
from snows.config import InputError
from snows.measures.descents import Point

POINTS = [Point("gradient", i, float(i), 0.1 * i, 1 / (1 + i)) for i in range(3)]


def until_ended(work: Making[Point]) -> None:
    deadline = time.monotonic() + 20
    while work.active:
        assert time.monotonic() < deadline, "it does not end"
        time.sleep(0.01)


def test_pieces_can_be_read_while_it_works_and_stay() -> None:
    go_on, made = threading.Event(), threading.Event()

    def points(check: Callable[[], None]) -> Iterator[Point]:
        yield POINTS[0]
        made.set()
        assert go_on.wait(20)
        yield from POINTS[1:]

    work = Making(points)
    assert made.wait(20)
    assert (work.active, work.pieces()) == (True, POINTS[:1])
    go_on.set()
    until_ended(work)
    assert (work.pieces(), work.error, work.stopped) == (POINTS, "", False)


def test_it_ends_between_two_pieces_of_work_once_asked() -> None:
    begun = threading.Event()

    def points(check: Callable[[], None]) -> Iterator[Point]:
        yield POINTS[0]
        begun.set()
        while True:
            check()
            time.sleep(0.001)

    work = Making(points)
    assert begun.wait(20)
    work.stop()
    until_ended(work)
    assert (work.pieces(), work.error, work.stopped) == (POINTS[:1], "", True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(InputError("The layer is gone. Choose another."), "The layer is gone"), (KeyError("x"), "nobody foresaw")],
)
def test_what_went_wrong_is_a_sentence(wrong: Exception, said: str) -> None:
    def points(check: Callable[[], None]) -> Iterator[Point]:
        yield POINTS[0]
        raise wrong

    work = Making(points)
    until_ended(work)
    assert said in work.error
    assert work.pieces() == POINTS[:1]
