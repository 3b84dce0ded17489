"""Scores of maps that know nothing, and of maps that were cut and refitted."""

import pytest
import torch

from app.lessons import still_looking
from app.lessons.networks import Opened
from app.lessons.still_looking import Looks, rescaled, truth
from snows.measures.attention import similarity
from snows.plans import levels


@pytest.fixture(scope="module")
def looks() -> Looks:
    return Looks.of(Opened.open(still_looking.MODEL))


def test_the_score_is_the_apps(looks: Looks) -> None:
    parameters = dict(levels.network(still_looking.MODEL, "1:8", refitted=False).module.named_parameters())
    score = float(similarity(looks.network.graph, looks.pictures, parameters).overlap.mean())
    assert looks.preserved(looks.pruned("1:8", refitted=False)) == pytest.approx(score, abs=1e-5)


def test_what_knows_nothing_scores_about_as_much_as_what_was_cut(looks: Looks) -> None:
    even, cut, refitted = (looks.preserved(m) for m in (looks.even(), looks.pruned("1:8", False), looks.pruned("1:8", True)))
    assert looks.preserved(looks.dense) == pytest.approx(1, abs=1e-6)
    assert truth(even) == "high"
    assert rescaled(cut, even) < 0.25
    assert rescaled(refitted, even) > 0.75
    assert looks.preserved(looks.same()) > cut


@pytest.mark.parametrize(("score", "guess"), [(0.1, "low"), (0.5, "half"), (0.9, "high")])
def test_the_guess_that_is_right(score: float, guess: str) -> None:
    assert truth(score) == guess


def test_the_scale_from_even_to_dense() -> None:
    assert [rescaled(score, 0.8) for score in (0.8, 0.9, 1.0)] == pytest.approx([0, 0.5, 1])


def test_a_map_on_the_picture_is_what_the_class_token_sees(looks: Looks) -> None:
    block = next(iter(looks.dense))
    shown = looks.on_picture(looks.dense, block, 3)
    assert shown.shape == (7, 7)
    assert torch.equal(shown.flatten(), looks.dense[block][3].mean(0)[0, 1:])
