"""The ways down a valley, against its closed form; Hessian products, against the matrix written out by hand."""

import pytest
import torch

from app.lessons import downhill
from app.lessons.downhill import Valley


def matrix(stretch: float) -> torch.Tensor:
    cos, sin = 3**0.5 / 2, 0.5
    turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
    return turn.T @ torch.diag(torch.tensor([1.0, stretch], dtype=torch.float64)) @ turn


@pytest.mark.parametrize("stretch", [1.0, 30.0])
def test_an_even_valleys_product_is_its_matrix(stretch: float) -> None:
    x = torch.tensor([0.3, -2.0], dtype=torch.float64)
    torch.testing.assert_close(Valley(stretch, False).hessian(x), matrix(stretch))


def test_a_bent_valleys_product_is_rosenbrocks() -> None:
    a, b, k = -1.5, 0.5, 10.0
    written = torch.tensor([[1 + k * (6 * a * a - 2 * b), -2 * k * a], [-2 * k * a, k]], dtype=torch.float64)
    torch.testing.assert_close(Valley(k, True).hessian(torch.tensor([a, b], dtype=torch.float64)), written)


def test_in_an_even_valley_newton_takes_one_step_and_conjugate_gradient_two() -> None:
    found = downhill.ways(30, False, (-2.0, 1.5))
    for name in ("newton", "conjugate", "preconditioned"):
        assert found[name].points[-1] == pytest.approx((1.0, 0.5), abs=1e-6), name
    assert len(found["newton"].points) == 2
    assert len(found["conjugate"].points) == 3
    assert len(found["descent"].points) > 15
    assert downhill.truth() == "many"


def test_in_a_round_valley_all_take_one_step() -> None:
    assert {len(way.points) for way in downhill.ways(1, False, (-1.0, 2.0)).values()} == {2}


def test_a_bent_valleys_bottom_is_reached_by_newton_and_no_step_goes_up() -> None:
    found = downhill.ways(10, True, (-1.0, 1.5))
    for name in ("newton", "conjugate", "preconditioned"):
        assert found[name].points[-1] == pytest.approx((1.0, 1.0), abs=0.01), name
    valley = Valley(10, True)
    for way in found.values():
        heights = [valley.loss(torch.tensor(point, dtype=torch.float64)) for point in way.points]
        assert heights == sorted(heights, reverse=True)


def test_a_difference_is_wrong_when_its_step_is_too_long_or_too_short() -> None:
    long, between, short = (downhill.difference_error(30, True, (-2.0, 1.5), e)[2] for e in (1e-1, 1e-5, 1e-12))
    assert between < 1e-8
    assert between < 1e-3 * long
    assert between < 1e-3 * short


@pytest.mark.parametrize("start", [(x, y) for x in (-2.0, 0.0, 2.0) for y in (-2.0, 0.0, 2.0)])
@pytest.mark.parametrize("bent", [False, True])
def test_every_start_has_ways(start: tuple[float, float], bent: bool) -> None:
    for way in downhill.ways(100, bent, start).values():
        assert way.loss <= Valley(100, bent).loss(torch.tensor(start, dtype=torch.float64))
