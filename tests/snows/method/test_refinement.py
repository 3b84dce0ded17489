"""Exchanges against every mask there is, and what they must leave alone."""

import itertools

import pytest
import torch
from torch import Tensor

from snows.config import NM, Unstructured
from snows.method import refinement
from snows.method.sparsity import keep_mask, kept_count

PATTERNS = [NM(n=1, m=4), NM(n=2, m=4), NM(n=3, m=8), Unstructured(sparsity=0.7), Unstructured(sparsity=0.7, scope="global")]


def refine(mask: Tensor, weight: Tensor, gram: Tensor, cross: Tensor, pattern: NM | Unstructured) -> Tensor:
    """The mask that exchanges end at."""
    return refinement.refine(mask, weight, gram, cross, pattern)[0]


each_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


def problem(rows: int = 6, columns: int = 24, seed: int = 0, samples: int = 60) -> tuple[Tensor, Tensor]:
    """The Gram matrix of correlated inputs, and a right-hand side."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    x = torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ (torch.eye(columns) + mix)
    y = torch.randn(samples, rows, generator=generator, dtype=torch.float64) + x[:, :rows]
    return x.T @ x / samples, y.T @ x / samples


def chosen(pattern: NM | Unstructured, rows: int = 6, columns: int = 24, seed: int = 0) -> Tensor:
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    if isinstance(pattern, Unstructured):
        pattern = pattern.model_copy(update={"scope": "layer"})
    return keep_mask(scores, pattern)


def solve(mask: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """The best weights on a mask (R, P), row by row."""
    weight = torch.zeros_like(cross)
    for r, row in enumerate(mask):
        weight[r, row] = torch.linalg.solve(gram[row][:, row], cross[r, row])
    return weight


def model(weight: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
    """The model of each row (R,)."""
    return ((weight @ gram) * weight).sum(1) - 2 * (weight * cross).sum(1)


@each_pattern
@pytest.mark.parametrize("seed", range(4))
def test_no_row_gets_worse_and_most_get_better(pattern: NM | Unstructured, seed: int) -> None:
    gram, cross = problem(seed=seed)
    before = chosen(pattern, seed=seed)
    start = solve(before, gram, cross)
    after = refine(before, start, gram, cross, pattern)
    gained = model(start, gram, cross) - model(solve(after, gram, cross), gram, cross)
    assert bool((gained >= -1e-9).all())
    assert int((gained > 1e-6).sum()) >= 4


@each_pattern
def test_each_group_keeps_as_many_as_before(pattern: NM | Unstructured) -> None:
    gram, cross = problem(columns=96)
    before = chosen(pattern, columns=96)
    after = refine(before, solve(before, gram, cross), gram, cross, pattern)
    assert not torch.equal(after, before)
    assert after.dtype == torch.bool
    if isinstance(pattern, NM):
        assert bool((after.view(6, -1, pattern.m).sum(2) == pattern.n).all())
    else:
        assert torch.equal(after.sum(1), before.sum(1))
        assert int(after.sum()) == kept_count(after.numel(), pattern)


@pytest.mark.parametrize("seed", range(6))
def test_no_single_exchange_is_left_that_helps(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "_PASSES", 300)
    monkeypatch.setattr(refinement, "_AT_REST", -1.0)  # values come to rest after the last exchange
    pattern = NM(n=1, m=4)
    gram, cross = problem(rows=3, columns=12, seed=seed)
    mask = refine(chosen(pattern, 3, 12), solve(chosen(pattern, 3, 12), gram, cross), gram, cross, pattern)
    weight = solve(mask, gram, cross)
    best = model(weight, gram, cross)
    for r, i, j in itertools.product(range(3), range(12), range(12)):
        if mask[r, i] and i // 4 == j // 4 and i != j:
            other = weight.clone()
            other[r, i] = 0
            other[r, j] = (cross[r, j] - other[r] @ gram[:, j]) / gram[j, j]
            assert float(model(other, gram, cross)[r]) >= float(best[r]) - 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_near_the_best_of_all_masks(seed: int) -> None:
    pattern, columns = NM(n=1, m=4), 12
    gram, cross = problem(rows=4, columns=columns, seed=seed)
    before = chosen(pattern, 4, columns, seed)
    after = refine(before, solve(before, gram, cross), gram, cross, pattern)
    every = []
    for places in itertools.product(range(4), repeat=columns // 4):
        mask = torch.zeros(columns, dtype=torch.bool)
        mask[[4 * group + place for group, place in enumerate(places)]] = True
        every.append(model(solve(mask.expand(4, -1), gram, cross), gram, cross))
    least, greatest = torch.stack(every).min(0).values, torch.stack(every).max(0).values
    reached = (greatest - model(solve(after, gram, cross), gram, cross)) / (greatest - least)
    assert float(reached.mean()) > 0.95
    assert float(reached.min()) > 0.8


@pytest.mark.parametrize("pattern", [NM(n=2, m=4), NM(n=3, m=8)], ids=str)
def test_inputs_without_correlation_are_chosen_by_what_each_explains(pattern: NM) -> None:
    _, cross = problem(columns=24)
    scale = 0.5 + torch.arange(24, dtype=torch.float64)
    before = chosen(pattern)
    after = refine(before, before.double(), scale.diag(), cross, pattern)
    assert torch.equal(after, keep_mask(cross.square() / scale, pattern))


@pytest.mark.parametrize("seed", range(3))
def test_a_sparse_weight_that_explains_all_is_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "_AT_REST", 0.0)  # to the end, however little it brings
    pattern, (gram, _) = NM(n=1, m=4), problem(rows=16, columns=32, seed=seed, samples=2000)
    truth = chosen(pattern, 16, 32, seed)
    weight = truth * (1 + torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    before = chosen(pattern, 16, 32, seed + 1)
    found = refine(before, solve(before, gram, weight @ gram), gram, weight @ gram, pattern)
    assert float((found == truth).double().mean()) > 0.97
    assert float((before == truth).double().mean()) < 0.7


@pytest.mark.slow
@each_pattern
def test_the_rows_of_a_large_layer_are_taken_in_parts(pattern: NM | Unstructured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "_AT_REST", -1.0)  # each part rests for itself
    gram, cross = problem(columns=96)
    before = chosen(pattern, columns=96)
    start = solve(before, gram, cross)
    whole = refine(before, start, gram, cross, pattern)
    monkeypatch.setattr(refinement, "_CHUNK_BYTES", 1)
    assert torch.equal(refine(before, start, gram, cross, pattern), whole)


@each_pattern
@pytest.mark.parametrize("block", [1, 16, 10_000])
def test_blocks_change_nothing(pattern: NM | Unstructured, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gram, cross = problem(columns=96)
    before = chosen(pattern, columns=96)
    start = solve(before, gram, cross)
    expected = refine(before, start, gram, cross, pattern)
    monkeypatch.setattr(refinement, "_BLOCK", block)
    assert torch.equal(refine(before, start, gram, cross, pattern), expected)


def test_a_pass_says_by_how_much_the_model_falls() -> None:
    gram, cross = problem()
    mask = chosen(NM(n=2, m=4))
    mask[0] = False  # a row may keep nothing
    weight = solve(mask, gram, cross)
    before = model(weight, gram, cross).sum()
    transposed = weight.T.contiguous()
    fall = refinement._one_pass(mask.T.contiguous(), transposed, gram, cross.T.contiguous(), 4)
    assert fall > 0
    assert fall == pytest.approx(float(before - model(transposed.T, gram, cross).sum()), rel=1e-9)


@each_pattern
def test_the_weights_come_near_the_best_on_their_mask(pattern: NM | Unstructured) -> None:
    gram, cross = problem()
    before = chosen(pattern)
    mask, weight = refinement.refine(before, torch.zeros_like(cross), gram, cross, pattern)
    assert torch.equal(weight, weight * mask)
    reached, best = model(weight, gram, cross), model(solve(mask, gram, cross), gram, cross)
    assert bool((reached <= 0.95 * best).all())  # from none, whose model is zero


def test_what_is_given_stays_as_it_was() -> None:
    gram, cross = problem()
    mask = chosen(NM(n=1, m=4))
    start = solve(mask, gram, cross)
    copies = [t.clone() for t in (mask, start, gram, cross)]
    refine(mask, start, gram, cross, NM(n=1, m=4))
    assert all(torch.equal(a, b) for a, b in zip(copies, (mask, start, gram, cross), strict=True))


def test_an_input_that_is_always_zero_is_not_exchanged_for_one_that_counts() -> None:
    gram, cross = problem()
    gram[::4], gram[:, ::4], cross[:, ::4] = 0, 0, 0
    before = chosen(NM(n=1, m=4))
    start = torch.where(before, 1.0, 0.0).double()
    after = refine(before, start, gram, cross, NM(n=1, m=4))
    assert not bool(after[:, ::4].any())
    nothing = refine(before, start, 0 * gram, 0 * cross, NM(n=1, m=4))
    assert bool((nothing.view(6, -1, 4).sum(2) == 1).all())


def test_rows_that_keep_nothing_or_everything_stay() -> None:
    gram, cross = problem(rows=3, columns=40)
    mask = chosen(Unstructured(sparsity=0.5), 3, 40)
    mask[0], mask[1] = False, True
    after = refine(mask, solve(mask, gram, cross), gram, cross, Unstructured(sparsity=0.5))
    assert torch.equal(after[:2], mask[:2])
    assert not torch.equal(after[2], mask[2])


def test_single_precision_is_enough() -> None:
    gram, cross = problem(columns=48)
    before = chosen(NM(n=1, m=8), columns=48)
    start = solve(before, gram, cross)
    expected = refine(before, start, gram, cross, NM(n=1, m=8))
    found = refine(before, start.float(), gram.float(), cross.float(), NM(n=1, m=8))
    assert float((found == expected).double().mean()) > 0.97
