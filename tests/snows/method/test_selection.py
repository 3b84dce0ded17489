"""Searches for masks against plain loops: inverses computed anew, every exchange tried, every choice of weights."""

from itertools import combinations, pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snows.config import NM, Dense, InputError, Unstructured
from snows.method import selection
from snows.method.saliency import SCORERS
from snows.method.sparsity import check_compliance, keep_mask, kept_count
from tests.snows.method.test_saliency import damped, problem

PATTERNS = [NM(n=2, m=4), NM(n=1, m=8), Unstructured(sparsity=0.5), Unstructured(sparsity=0.9)]
every_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=str)


def error(weight: Tensor, mask: Tensor, gram: Tensor) -> Tensor:
    """Of each row, with its values untouched: (R,)."""
    pruned = weight * ~mask
    return ((pruned @ gram) * pruned).sum(1)


def refitted(row: Tensor, kept: list[int], h: Tensor) -> float:
    """The error of one row when the kept weights take their best values, by its normal equations."""
    best = torch.zeros_like(row)
    if kept:
        best[kept] = torch.linalg.solve(h[kept][:, kept], h[kept] @ row)
    return float((row - best) @ h @ (row - best))


def group_of(pattern: NM | Unstructured, columns: int) -> int:
    return pattern.m if isinstance(pattern, NM) else columns


# --- greedy removal ---


def reference_removals(row: Tensor, h: Tensor, size: int, least: int) -> tuple[list[int], list[float]]:
    """Every weight that may go is tried, each time with all others at their best values."""
    kept, order, errors = list(range(len(row))), [], [0.0]
    while True:
        may_go = [p for p in kept if sum(q // size == p // size for q in kept) > least]
        if not may_go:
            return order, [later - before for before, later in pairwise(errors)]
        tried = {p: refitted(row, [q for q in kept if q != p], h) for p in may_go}
        chosen = min(tried, key=tried.__getitem__)
        kept.remove(chosen)
        order.append(chosen)
        errors.append(tried[chosen])


def reference_greedy(weight: Tensor, gram: Tensor, pattern: NM | Unstructured) -> Tensor:
    h, (rows, columns) = damped(gram), weight.shape
    least = pattern.n if isinstance(pattern, NM) else 0
    traces = [reference_removals(row, h, group_of(pattern, columns), least) for row in weight]
    mask = torch.ones_like(weight, dtype=torch.bool)
    if isinstance(pattern, NM):
        for row, (order, _) in enumerate(traces):
            mask[row, order] = False
        return mask
    # One removal at a time, always the cheapest next one of any row.
    done = [0] * rows
    for _ in range(weight.numel() - kept_count(weight.numel(), pattern)):
        row = min((r for r in range(rows) if done[r] < columns), key=lambda r: traces[r][1][done[r]])
        mask[row, traces[row][0][done[row]]] = False
        done[row] += 1
    return mask


@every_pattern
@pytest.mark.parametrize("pending", [1, 3, 32])
def test_greedy_removal_equals_trying_every_weight(
    pattern: NM | Unstructured, pending: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_PENDING", pending)
    weight, gram = problem(5, 16)
    assert torch.equal(selection.remove_greedily(weight, gram, pattern).mask, reference_greedy(weight, gram, pattern))


def test_a_removal_costs_what_the_row_loses() -> None:
    weight, gram = problem(3, 12)
    found = selection.remove_greedily(weight, gram, Unstructured(sparsity=0.5, scope="global"))
    for row, costs in zip(weight, found.costs, strict=True):
        order, rises = reference_removals(row, damped(gram), 12, 0)
        dearest = [max(rises[: i + 1]) for i in range(len(rises))]
        assert costs[order].tolist() == pytest.approx(dearest, rel=1e-8)


def test_rows_in_parts_are_rows_together(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = problem(7, 24)
    mask = keep_mask(weight.abs(), NM(n=2, m=4))
    together = [
        selection.remove_greedily(weight, gram, Unstructured(sparsity=0.6)).mask,
        selection.swap(mask, weight, gram, NM(n=2, m=4)),
    ]
    monkeypatch.setattr(selection, "_CHUNK_BYTES", 1)  # a row at a time
    assert torch.equal(selection.remove_greedily(weight, gram, Unstructured(sparsity=0.6)).mask, together[0])
    assert torch.equal(selection.swap(mask, weight, gram, NM(n=2, m=4)), together[1])


def test_dead_inputs_go_first() -> None:
    weight, gram = problem(4, 12)
    gram[[1, 6]] = 0
    gram[:, [1, 6]] = 0
    weight[:, [1, 6]] = 100
    for pattern in (NM(n=3, m=4), Unstructured(sparsity=0.5)):
        assert not selection.remove_greedily(weight, gram, pattern).mask[:, [1, 6]].any()
        assert not selection.split(weight, gram, pattern)[:, [1, 6]].any()


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 6), st.sampled_from(PATTERNS))
@settings(max_examples=30)
def test_masks_keep_their_pattern_exactly(seed: int, rows: int, groups: int, pattern: NM | Unstructured) -> None:
    weight, gram = problem(rows, 8 * groups, seed)
    start = keep_mask(weight.abs(), pattern)
    for mask in (
        selection.remove_greedily(weight, gram, pattern).mask,
        selection.split(weight, gram, pattern),
        selection.swap(start, weight, gram, pattern),
        selection.prune_and_grow(start, weight, gram, gram[0] / gram[0, 0], weight.abs(), pattern),
    ):
        assert check_compliance(mask, pattern).ok
        assert int(mask.sum()) == int(start.sum())


def test_a_dense_pattern_removes_nothing() -> None:
    weight, gram = problem(3, 8)
    assert selection.remove_greedily(weight, gram, Dense()).mask.all()
    assert selection.split(weight, gram, Dense()).all()


def test_a_gram_matrix_that_is_not_finite_is_named() -> None:
    weight, gram = problem(3, 8)
    for search in (selection.remove_greedily, selection.split):
        with pytest.raises(InputError, match="Gram matrix of the layer's inputs is not finite"):
            search(weight, gram * float("nan"), NM(n=2, m=4))
    with pytest.raises(InputError, match="not positive definite under a damping"):
        selection.remove_greedily(weight, -gram, NM(n=2, m=4))


# --- operator splitting ---


def reference_split(weight: Tensor, gram: Tensor, pattern: NM | Unstructured) -> Tensor:
    """Weight by weight, a linear system solved anew in every step."""
    h, (rows, columns) = damped(gram), weight.shape
    lengths = [float(h[j, j]) ** 0.5 for j in range(columns)]
    h = torch.stack([torch.stack([h[i, j] / lengths[i] / lengths[j] for j in range(columns)]) for i in range(columns)])
    dense = weight * torch.tensor(lengths, dtype=weight.dtype)
    obeying, dual, rho = dense.clone(), torch.zeros_like(dense), 0.1
    support: set[tuple[int, int]] = set(product(range(rows), range(columns)))
    before = support
    for step in range(1, 301):
        system = h + rho * torch.eye(columns, dtype=h.dtype)
        w = torch.stack([torch.linalg.solve(system, h @ dense[r] - dual[r] + rho * obeying[r]) for r in range(rows)])
        aim = w + dual / rho
        size = group_of(pattern, columns)
        places = list(product(range(rows), range(columns)))
        if isinstance(pattern, NM):
            pools = [[(r, c) for c in range(g, g + size)] for r in range(rows) for g in range(0, columns, size)]
            count = pattern.n
        else:
            pools, count = [places], kept_count(rows * columns, pattern)
        support = {p for pool in pools for p in sorted(pool, key=lambda p: -abs(float(aim[p])))[:count]}
        for place in places:
            obeying[place] = aim[place] if place in support else 0.0
            dual[place] += rho * (w[place] - obeying[place])
        if step % 3 == 0:
            changed = len(support ^ before)
            if changed == 0:
                break
            rho *= 1.3 if changed >= 0.1 * len(support) else 1.2 if changed >= 0.005 * len(support) else 1.1
            before = support
    mask = torch.zeros_like(weight, dtype=torch.bool)
    for place in support:
        mask[place] = True
    return mask


@every_pattern
def test_splitting_equals_the_plain_steps(pattern: NM | Unstructured) -> None:
    for seed in range(3):
        weight, gram = problem(4, 16, seed)
        assert torch.equal(selection.split(weight, gram, pattern), reference_split(weight, gram, pattern))


def test_splitting_ends_at_masks_that_serve_better_than_magnitude() -> None:
    for seed, pattern in product(range(4), PATTERNS):
        weight, gram = problem(8, 32, seed, samples=40)
        h = damped(gram)

        def lost(mask: Tensor, weight: Tensor = weight, h: Tensor = h) -> float:
            return sum(refitted(row, own.nonzero()[:, 0].tolist(), h) for row, own in zip(weight, mask, strict=True))

        assert lost(selection.split(weight, gram, pattern)) < lost(keep_mask(weight.abs(), pattern))
        assert lost(selection.remove_greedily(weight, gram, pattern).mask) < lost(keep_mask(weight.abs(), pattern))


# --- exchanges that leave values alone ---


def reference_swaps(mask: Tensor, weight: Tensor, gram: Tensor, size: int) -> Tensor:
    """Every exchange of every row tried by its error, the best one made, until none lowers it."""
    masks = []
    for own, row in zip(mask, weight, strict=True):
        kept = own.clone()
        for _ in range(100):
            now, best = float(error(row[None], kept[None], gram)), (0.0, -1, -1)
            for p, u in product(range(len(row)), repeat=2):
                if kept[p] and not kept[u] and p // size == u // size:
                    tried = kept.clone()
                    tried[p], tried[u] = False, True
                    best = min(best, (float(error(row[None], tried[None], gram)) - now, p, u))
            if best[0] > -1e-10 * now:
                break
            kept[best[1]], kept[best[2]] = False, True
        masks.append(kept)
    return torch.stack(masks)


@every_pattern
def test_swaps_equal_trying_every_exchange(pattern: NM | Unstructured) -> None:
    weight, gram = problem(4, 16)
    start = keep_mask(weight.abs() * gram.diagonal().sqrt(), pattern)
    found = selection.swap(start, weight, gram, pattern)
    assert torch.equal(found, reference_swaps(start, weight, gram, group_of(pattern, 16)))
    assert torch.equal(found.sum(1), start.sum(1))
    assert (error(weight, found, gram) <= error(weight, start, gram) * (1 + 1e-12)).all()
    assert error(weight, found, gram).sum() < error(weight, start, gram).sum()


def test_swaps_come_near_the_best_of_all_masks() -> None:
    weight, gram = problem(6, 8)
    pattern = NM(n=4, m=8)
    masks = torch.tensor([[column in kept for column in range(8)] for kept in combinations(range(8), 4)])
    best = torch.stack([error(row.expand(len(masks), 8), masks, gram).min() for row in weight])
    start = keep_mask(weight.abs(), pattern)
    found = error(weight, selection.swap(start, weight, gram, pattern), gram)
    assert (found >= best * (1 - 1e-12)).all()
    assert float(found.sum()) < 1.1 * float(best.sum()) < float(error(weight, start, gram).sum())


def with_mean(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, and the mean of x xᵀ and of x for inputs that are not centred."""
    weight, _ = problem(rows, columns, seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = (torch.randn(5 * columns, columns, generator=generator).double() + 0.5).relu()
    return weight, inputs.T @ inputs / len(inputs), inputs.mean(0)


def reference_prune_and_grow(mask: Tensor, weight: Tensor, gram: Tensor, mean: Tensor, scores: Tensor, size: int) -> Tensor:
    masks = []
    for row, own, own_scores in zip(weight, mask, scores, strict=True):
        kept = own.tolist()
        part = [float(w * m) for w, m in zip(row, mean, strict=True)]
        variance = [float(gram[k, k] - mean[k] ** 2) for k in range(len(row))]
        small = 0.1 * float(row @ gram @ row) ** 0.5
        for _ in range(50):
            off = sum(p for p, stays in zip(part, kept, strict=True) if not stays)
            sign = 1 if off > 0 else -1
            may_go = [k for k in range(len(row)) if kept[k] and sign * part[k] < 0]
            may_come = [k for k in range(len(row)) if not kept[k] and any(j // size == k // size for j in may_go)]
            if not may_come:
                break
            grown = max(may_come, key=lambda k: sign * part[k] / variance[k])
            gone = min((j for j in may_go if j // size == grown // size), key=lambda j: float(own_scores[j]))
            if abs(off) <= small or sign * part[grown] <= 0 or abs(off - part[grown] + part[gone]) >= abs(off):
                break
            kept[grown], kept[gone] = True, False
        masks.append(torch.tensor(kept))
    return torch.stack(masks)


@every_pattern
def test_prune_and_grow_equals_plain_loops(pattern: NM | Unstructured) -> None:
    moved = False
    for seed in range(4):
        weight, gram, mean = with_mean(6, 24, seed)
        scores = SCORERS["wanda"].function(weight, gram=gram)
        start = keep_mask(scores, pattern)
        found = selection.prune_and_grow(start, weight, gram, mean, scores, pattern)
        expected = reference_prune_and_grow(start, weight, gram, mean, scores, group_of(pattern, 24))
        assert torch.equal(found, expected)
        off = [((weight * ~mask) @ mean).abs() for mask in (start, found)]
        assert (off[1] <= off[0]).all()
        moved = moved or bool((off[1] < off[0]).any())
    assert moved


def test_inputs_that_never_vary_divide_by_nothing() -> None:
    weight, gram, mean = with_mean(4, 8)
    gram[3], gram[:, 3] = 0, 0
    gram[3, 3], mean[3] = 4.0, 2.0
    gram[5], gram[:, 5], mean[5] = 0, 0, 0
    mask = keep_mask(weight.abs(), NM(n=2, m=4))
    found = selection.prune_and_grow(mask, weight, gram, mean, weight.abs(), NM(n=2, m=4))
    assert check_compliance(found, NM(n=2, m=4)).ok
