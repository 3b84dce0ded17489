"""What the first screen and a run's end say."""

import numpy as np
import pytest

from app.tables import play
from app.tables.play import Answer, Ending
from snows.plans.levels import Level

NAMES = ("boot", "coat", "bag")


def level(pattern: str, density: float, cut: float, refitted: float) -> Level:
    return Level(pattern, density, cut, refitted)


def test_an_answer_says_what_it_was_where_it_is_another() -> None:
    dense = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1]])
    shown = play.answers(np.array([[0.1, 0.2, 0.7], [0.3, 0.6, 0.1]]), dense, NAMES)
    assert shown == [Answer("bag", 0.7, "boot"), Answer("coat", 0.6)]
    assert [answer.was for answer in play.answers(dense, dense, NAMES)] == [None, None]


BAGS = [Answer("bag", 0.5, "boot"), Answer("bag", 0.5, "coat"), Answer("bag", 0.5)]
SAME = [Answer("boot", 0.9), Answer("coat", 0.9)]


@pytest.mark.parametrize(
    ("at", "refitted", "shown", "said"),
    [
        (
            level("dense", 1.0, 0.938, 0.938),
            False,
            SAME,
            "The whole network is right on 94 of 100 test pictures. Now take weights away: move the slider.",
        ),
        (
            level("1:8", 0.125, 0.1, 0.918),
            False,
            BAGS,
            "With 1 of 8 weights left, just cut, it calls all 3 of these “bag”, and is right on 10 of 100 test pictures, about "
            "as guessing would be. Refitted, as many weights are right on 92.",
        ),
        (
            level("2:4", 0.5, 0.71, 0.937),
            False,
            [],
            "With half of its weights left, just cut, it is right on 71 of 100 test pictures. Refitted, as many weights are "
            "right on 94.",
        ),
        (
            level("1:8", 0.125, 0.1, 0.918),
            True,
            [Answer("boot", 0.9), Answer("bag", 0.5, "coat")],
            "With 1 of 8 weights left and refitted, it is right on 92 of 100 test pictures, where just cut it was right on 10. "
            "1 answer of these 2 is another than before.",
        ),
        (
            level("2:4", 0.5, 0.937, 0.937),
            True,
            SAME,
            "With half of its weights left and refitted, it is right on 94 of 100 test pictures. All 2 answers here are the "
            "whole network's.",
        ),
    ],
)
def test_the_sentence_follows_the_state(at: Level, refitted: bool, shown: list[Answer], said: str) -> None:
    assert play.sentence(at, refitted, shown) == said


MEASURED = {"accuracy_dense": 0.9381, "accuracy_masked": 0.11, "accuracy": 0.9331, "agreement_masked": 0.12, "agreement": 0.97}


@pytest.mark.parametrize(
    ("changed", "update", "said", "bars"),
    [
        (
            {},
            "snows",
            "Of 100 pictures it gets 94 right while it is dense, 11 when just cut and 93 refitted: refitting brought back 82 "
            "of the 83 points that cutting took.",
            [("Dense", "dense", 0.9381), ("Just cut", "none", 0.11), ("Refitted", "snows", 0.9331)],
        ),
        (
            {"accuracy_masked": 0.935},
            "least-squares",
            "Of 100 pictures it gets 94 right while it is dense, 94 when just cut and 93 refitted: cutting alone cost next to "
            "nothing.",
            [("Dense", "dense", 0.9381), ("Just cut", "none", 0.935), ("Refitted", "least-squares", 0.9331)],
        ),
        (
            {"accuracy": 0.05},
            "snows",
            "Of 100 pictures it gets 94 right while it is dense, 11 when just cut and 5 refitted: the fit made it worse.",
            [("Dense", "dense", 0.9381), ("Just cut", "none", 0.11), ("Refitted", "snows", 0.05)],
        ),
        (
            {},
            "none",
            "Of 100 pictures it gets 94 right while it is dense, 93 when just cut.",
            [("Dense", "dense", 0.9381), ("Just cut", "none", 0.9331)],
        ),
        (
            {"accuracy_masked": None},
            "snows",
            "Of 100 pictures it gets 94 right while it is dense, 93 refitted.",
            [("Dense", "dense", 0.9381), ("Refitted", "snows", 0.9331)],
        ),
        (
            {"accuracy": None, "accuracy_dense": None, "accuracy_masked": None},
            "snows",
            "Of 100 pictures it gives the dense network's answer just cut on 12, refitted on 97.",
            [("Dense", "dense", 1.0), ("Just cut", "none", 0.12), ("Refitted", "snows", 0.97)],
        ),
    ],
)
def test_a_run_ends_with_bars_and_a_sentence(changed: dict, update: str, said: str, bars: list) -> None:
    ending = Ending.of(MEASURED | changed, update)
    assert ending is not None
    assert ending.sentence() == said
    assert list(ending.bars(update).itertuples(index=False, name=None)) == bars


def test_a_run_that_was_not_measured_has_no_ending() -> None:
    assert Ending.of({}, "snows") is None


def test_the_accuracy_so_far_stands_beside_the_dense_one() -> None:
    dense = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    labels = np.array([0, 1, 1, 1])
    said = play.right_so_far(1 - dense, dense, labels)
    assert said == "; 25.0 % of 4 test pictures right, the dense network 75.0 %"
    assert play.right_so_far(dense, dense, labels[:0]) == ""
