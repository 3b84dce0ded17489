"""Least squares under a mask, against the normal equations and against other values."""

import pytest
import torch

from app.lessons import making_up


def test_refitting_solves_the_normal_equations() -> None:
    cut, likeness = [1, 4, 6], 0.6
    found = making_up.neuron(cut, likeness)
    kept = [i for i in range(making_up.INPUTS) if i not in cut]
    gram, weights = making_up.alike(likeness), torch.tensor(making_up.WEIGHTS, dtype=torch.float64)
    expected = torch.linalg.solve(gram[kept][:, kept], (gram @ weights)[kept])
    torch.testing.assert_close(found.after[0, kept], expected, rtol=1e-6, atol=1e-9)
    assert found.after[0, cut].tolist() == [0, 0, 0]


def test_an_error_is_the_mean_square_over_inputs_drawn_so() -> None:
    gram = making_up.alike(0.5)
    found = making_up.neuron([1, 4], 0.5)
    x = torch.randn(400_000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.linalg.cholesky(gram).T
    measured = ((x @ (found.before - found.after)[0]) ** 2).mean() / ((x @ found.before[0]) ** 2).mean()
    assert float(found.refitted) == pytest.approx(float(measured), rel=0.02)


def test_without_likeness_no_weight_moves_and_with_it_less_is_lost() -> None:
    apart, close = making_up.neuron([1, 4, 6, 7], 0), making_up.neuron([1, 4, 6, 7], 0.9)
    kept = apart.after != 0
    torch.testing.assert_close(apart.after[kept], apart.before[kept], rtol=1e-6, atol=1e-9)
    assert float(apart.refitted) == pytest.approx(float(apart.cut))
    assert float(close.refitted) < 0.5 * float(apart.refitted)
    assert making_up.truth() == "alike"


def test_no_other_values_on_the_mask_are_better() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(200, 12, generator=generator, dtype=torch.float64)
    weights = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    found = making_up.layer(weights, inputs.T @ inputs / 200, 0.5)
    assert (found.after != 0).sum(1).tolist() == [6, 6, 6]
    for _ in range(20):
        other = found.after + 0.05 * torch.randn(3, 12, generator=generator, dtype=torch.float64) * (found.after != 0)
        assert (making_up.relative_error(weights, other, inputs.T @ inputs / 200) >= found.refitted).all()
    assert (found.refitted < found.cut).all()
