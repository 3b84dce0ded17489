"""All rows' systems by one Gram matrix, against each row's own dense system in float64."""

import pytest
import torch
from torch import Tensor

from snows.method.rows import KeptWeights, RowProducts
from snows.method.sparsity import to_matrix

RIDGE = 1e-8


def inputs(samples: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / (1 + torch.arange(columns))
    return torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ mixing.T


def masks(rows: int, columns: int, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if kind == "2:4":
        scores = torch.rand(rows, columns // 4, 4, generator=generator)
        return (scores >= scores.topk(2, -1).values[..., -1:]).view(rows, columns)
    mask = torch.rand(rows, columns, generator=generator) < torch.rand(rows, 1, generator=generator)  # ragged
    mask[3], mask[5] = False, True
    return mask


@pytest.mark.parametrize("kind", ["2:4", "ragged"])
@pytest.mark.parametrize("samples", [400, 30], ids=["more samples than inputs", "fewer samples than inputs"])
@pytest.mark.parametrize("rank", [8, 96])
def test_loss_is_that_of_each_rows_dense_solution(kind: str, samples: int, rank: int) -> None:
    x = inputs(samples, 96)
    gram, mask = x.T @ x / samples, masks(20, 96, kind)
    dense = torch.randn(20, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    wanted = x @ dense.T + 0.01 * torch.randn(samples, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    cross, kept = wanted.T @ x / samples, KeptWeights(mask, (20, 96))
    ridge, expected = RIDGE * gram.diagonal().mean(), torch.zeros(20, 96, dtype=torch.float64)
    for row, columns in enumerate(mask):
        block = gram[columns][:, columns] + ridge * torch.eye(int(columns.sum()), dtype=torch.float64)
        expected[row, columns] = torch.linalg.solve(block, cross[row, columns] + ridge * dense[row, columns])
    systems, prior = RowProducts(gram, kept, RIDGE, rank), kept.restrict(dense)

    def loss(weight: Tensor) -> float:
        return float((x @ weight.T - wanted).square().mean())

    far = torch.randn(kept.count, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    for near in (None, kept.restrict(0.999 * expected), far):
        found = to_matrix(kept.expand(systems.least_squares(cross, prior, near)))
        assert torch.equal(found, found * mask)
        assert loss(found) <= loss(expected) * (1 + 1e-4) + 1e-6 * loss(dense * mask)


def test_a_start_near_the_solution_saves_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    x, mask = inputs(400, 96), masks(20, 96, "2:4")
    gram, kept = x.T @ x / 400, KeptWeights(mask, (20, 96))
    systems = RowProducts(gram, kept, RIDGE, rank=8)
    cross = torch.randn(20, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) @ gram
    products, precondition = [], systems._precondition
    monkeypatch.setattr(systems, "_precondition", lambda r: products.append(r) or precondition(r))
    solution = systems.least_squares(cross)
    from_zero = len(products)
    products.clear()
    systems.least_squares(cross, near=1.001 * solution)
    assert len(products) <= from_zero / 2


def test_preconditioner_inverts_its_model_row_by_row() -> None:
    x = inputs(400, 40)
    gram, mask = x.T @ x / 400, masks(8, 40, "ragged")
    kept = KeptWeights(mask, (8, 40))
    systems = RowProducts(gram, kept, rank=16)
    v = torch.randn(kept.count, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    wanted, found = to_matrix(kept.expand(v)), to_matrix(kept.expand(systems.solve(v, torch.full((8,), 2.0))))
    model = systems._low @ systems._low.T + systems._rest.diag()
    assert bool((torch.linalg.eigvalsh(gram - systems._low @ systems._low.T) > -1e-9).all())
    for row, columns in enumerate(mask):
        expected = torch.linalg.solve(2 * model[columns][:, columns], wanted[row, columns])
        torch.testing.assert_close(found[row, columns], expected, rtol=1e-8, atol=1e-10)


def test_inputs_that_are_all_zero_keep_the_prior() -> None:
    kept = KeptWeights(torch.ones(2, 4, dtype=torch.bool), (2, 4))
    prior = torch.arange(8.0)
    assert torch.equal(RowProducts(torch.zeros(4, 4), kept).least_squares(torch.zeros(2, 4), prior), prior)
