"""The puzzle's errors, against least squares by PyTorch, and its best choice, against all."""

import pytest
import torch

from app.lessons import which_stay
from app.lessons.which_stay import Puzzle


def puzzle(likeness: float = 0.6) -> Puzzle:
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(500, 12, generator=generator, dtype=torch.float64)
    inputs = own + likeness * torch.randn(500, 1, generator=generator, dtype=torch.float64) + own.roll(1, 1) * likeness
    return Puzzle(torch.randn(4, 12, generator=generator, dtype=torch.float64), inputs.T @ inputs / 500)


def test_every_mask_keeps_two_of_four() -> None:
    masks = which_stay.every_mask()
    assert masks.shape == (216, 12)
    assert len({tuple(mask) for mask in masks.tolist()}) == 216
    assert (masks.view(216, 3, 4).sum(2) == 2).all()


def test_an_error_is_that_of_least_squares() -> None:
    game, mask = puzzle(), which_stay.every_mask()[77]
    factor = torch.linalg.cholesky(game.gram).T  # inputs with this very Gram matrix
    wanted = factor @ game.weights[2]
    solution = torch.linalg.lstsq(factor[:, mask], wanted[:, None]).solution
    expected = (factor[:, mask] @ solution - wanted[:, None]).square().sum() / wanted.square().sum()
    assert float(game.errors(2, mask[None])) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(game.refitted(2, mask)[mask], solution[:, 0], rtol=1e-5, atol=1e-7)


def test_the_exchanges_are_no_worse_than_magnitude_and_no_better_than_the_best() -> None:
    game = puzzle()
    contests = [which_stay.contest(game, row) for row in range(4)]
    for row, found in enumerate(contests):
        assert found.best <= found.exchanged * (1 + 1e-9)
        assert found.exchanged <= found.magnitude * (1 + 1e-9)
        assert found.best == float(game.errors(row, which_stay.every_mask()).min())
        assert float(game.errors(row, found.best_mask[None])) == pytest.approx(found.best)
    assert any(found.best < 0.99 * found.magnitude for found in contests)
    by_size, by_exchange = which_stay.times_best(contests)
    assert by_size <= by_exchange


def test_of_unlike_inputs_of_one_size_the_largest_are_best() -> None:
    game = Puzzle(puzzle().weights, torch.eye(12, dtype=torch.float64))
    assert which_stay.times_best([which_stay.contest(game, row) for row in range(4)]) == (4, 4)
