"""Scorers against their formulas; SparseGPT's sweep against optimal brain surgeon with every inverse written out."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snows.config import MASKS, MASKS_OF_ONE_LAYER, NM, UPDATES, Dense, Unstructured
from snows.method import cards, selection
from snows.method.saliency import SCORERS, sparsegpt_sweep
from snows.method.sparsity import check_compliance, keep_mask, keep_masks_global

DAMPING = 0.01


def problem(rows: int, columns: int, seed: int = 0, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """A weight and the Gram matrix of correlated inputs, float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.5 * torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(samples or 3 * columns, columns, generator=generator).double() @ mix.double()
    return torch.randn(rows, columns, generator=generator).double(), inputs.T @ inputs


def inputs(name: str, gram: Tensor, scale: float = 1.0) -> dict:
    """What that scorer asks of inputs that are so many times as large: their Gram matrix, mean and a generator."""
    scorer = SCORERS[name]
    mean = gram.diagonal().sqrt() / 2 * torch.linspace(-1, 1, len(gram), dtype=gram.dtype)
    asked = {"gram": gram * scale**2} if scorer.needs_gram else {}
    return asked | ({"mean": mean * scale} if scorer.needs_mean else {}) | {"generator": torch.Generator().manual_seed(0)}


def damped(gram: Tensor) -> Tensor:
    return gram + DAMPING * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def reference_update(weight: Tensor, gram: Tensor, mask: Tensor) -> Tensor:
    """Column by column and row by row, with the inverse of the remaining Hessian computed anew each time."""
    w, h = weight.clone(), damped(gram)
    for j in range(w.shape[1]):
        inverse = torch.linalg.inv(h[j:, j:])
        for row in range(w.shape[0]):
            if not mask[row, j]:
                w[row, j:] -= w[row, j] / inverse[0, 0] * inverse[0]
                w[row, j] = 0
    return w


def reference_sweep(weight: Tensor, gram: Tensor, pattern: NM | Unstructured, block: int) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the paper without lazy updates; groups are decided by trying every choice of what to keep."""
    w, h, (rows, columns) = weight.clone(), damped(gram), weight.shape
    mask = torch.ones_like(w, dtype=torch.bool)
    step = pattern.m if isinstance(pattern, NM) else block
    pivots = torch.stack([torch.linalg.inv(h[c:, c:])[0, 0] for c in range(columns)])
    for j in range(columns):
        if j % step == 0:
            stop = min(j + step, columns)
            scores = w[:, j:stop] ** 2 / pivots[j:stop]
            if isinstance(pattern, NM):
                for row in range(rows):
                    kept = max(combinations(range(pattern.m), pattern.n), key=lambda c: float(scores[row, list(c)].sum()))
                    mask[row, j:stop] = torch.tensor([c in kept for c in range(pattern.m)])
            else:
                total = round(pattern.density * w.numel())
                quota = round(total * stop / columns) - round(total * j / columns)
                mask[:, j:stop] = scores >= scores.flatten().sort(descending=True).values[quota - 1]
        inverse = torch.linalg.inv(h[j:, j:])
        removed = ~mask[:, j]
        w[removed, j:] -= w[removed, j, None] / inverse[0, 0] * inverse[0]
        w[removed, j] = 0
    return w, mask


# --- scorers ---


def test_magnitude() -> None:
    weight, _ = problem(3, 8)
    assert torch.equal(SCORERS["magnitude"].function(weight, gram=None, pattern=NM(n=2, m=4), generator=None), weight.abs())


def test_wanda_multiplies_by_the_norm_of_each_input() -> None:
    weight = torch.randn(3, 8, dtype=torch.float64)
    inputs = torch.randn(20, 8, dtype=torch.float64)
    scores = SCORERS["wanda"].function(weight, gram=inputs.T @ inputs, pattern=NM(n=2, m=4), generator=None)
    for i in range(3):
        for j in range(8):
            assert scores[i, j] == pytest.approx(abs(float(weight[i, j])) * float(inputs[:, j].norm()), rel=1e-12)


def test_ria_adds_what_a_weight_is_of_its_row_and_of_its_column() -> None:
    weight, gram = problem(3, 8)
    weight[:, 2], weight[1] = 0, 0  # a column and a row of nothing
    scores = SCORERS["ria"].function(weight, gram=gram, pattern=NM(n=2, m=4), generator=None)
    for i in range(3):
        for j in range(8):
            size, row, column = abs(float(weight[i, j])), float(weight[i].abs().sum()), float(weight[:, j].abs().sum())
            relative = size / row + size / column if size else 0.0
            assert scores[i, j] == pytest.approx(relative * float(gram[j, j]) ** 0.25, rel=1e-12)


def test_random_repeats_under_a_seed_and_differs_between_seeds() -> None:
    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return SCORERS["random"].function(torch.zeros(4, 8), gram=None, pattern=NM(n=2, m=4), generator=generator)

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize(
    "pattern", [NM(n=2, m=4), Unstructured(sparsity=0.7), Unstructured(sparsity=0.7, scope="global")], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scorers_share_one_contract(name: str, pattern: NM | Unstructured, dtype: torch.dtype) -> None:
    weight, gram = (t.to(dtype) for t in problem(6, 40))
    before = weight.clone(), gram.clone()
    if name in MASKS_OF_ONE_LAYER and pattern.kind == "unstructured" and pattern.scope == "global":
        with pytest.raises(ValueError, match="chooses the mask of one layer"):
            SCORERS[name].function(weight, pattern=pattern, **inputs(name, gram))
        return
    scores = SCORERS[name].function(weight, pattern=pattern, **inputs(name, gram))
    assert scores.shape == weight.shape
    assert scores.dtype == dtype
    assert scores.isfinite().all()
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])
    masks = (
        keep_masks_global({"w": scores}, pattern)["w"] if pattern.kind == "unstructured" and pattern.scope == "global" else None
    )
    mask = keep_mask(scores, pattern) if masks is None else masks
    assert mask.double().mean() == pytest.approx(pattern.density)


@pytest.mark.parametrize("name", [n for n, s in SCORERS.items() if s.needs_gram])
@pytest.mark.parametrize("pattern", [NM(n=2, m=4), Unstructured(sparsity=0.7)], ids=str)
def test_masks_do_not_depend_on_the_scale_of_the_inputs(name: str, pattern: NM | Unstructured) -> None:
    weight, gram = problem(6, 40)
    scores = [
        SCORERS[name].function(weight, pattern=pattern, **inputs(name, gram, scale)) for scale in (1.0, 2.0**-10, 2.0**10)
    ]
    masks = [keep_mask(s, pattern) for s in scores]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("name", [n for n, s in SCORERS.items() if s.needs_gram])
def test_what_is_missing_of_the_inputs_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="needs the Gram matrix"):
        SCORERS[name].function(torch.zeros(2, 4), gram=None, pattern=NM(n=2, m=4), generator=None)


def test_a_missing_mean_is_named() -> None:
    with pytest.raises(ValueError, match="needs their mean"):
        SCORERS["dsnot"].function(torch.zeros(2, 4), gram=torch.eye(4), pattern=NM(n=2, m=4), generator=None)


def test_random_without_a_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="seeded generator"):
        SCORERS["random"].function(torch.zeros(2, 4), gram=None, pattern=NM(n=2, m=4), generator=None)


@pytest.mark.parametrize(
    "pattern", [NM(n=2, m=4), NM(n=1, m=8), Unstructured(sparsity=0.7), Unstructured(sparsity=0.9)], ids=str
)
def test_scores_give_back_the_mask_that_a_search_chose(pattern: NM | Unstructured) -> None:
    weight, gram = problem(7, 200)
    weight[:, 5] = 0
    mean = inputs("dsnot", gram)["mean"]
    wanda = SCORERS["wanda"].function(weight, gram=gram)
    from_wanda = keep_mask(wanda, pattern)
    chosen = {
        "sparsegpt": sparsegpt_sweep(weight, gram, pattern=pattern).mask,
        "obc": selection.remove_greedily(weight, gram, pattern).mask,
        "alps": selection.split(weight, gram, pattern),
        "sparseswaps": selection.swap(from_wanda, weight, gram, pattern),
        "dsnot": selection.prune_and_grow(from_wanda, weight, gram, mean, wanda, pattern),
    }
    for name, mask in chosen.items():
        scores = SCORERS[name].function(weight, pattern=pattern, **inputs(name, gram))
        assert torch.equal(keep_mask(scores, pattern), mask), name
    assert len({mask.numpy().tobytes() for mask in chosen.values()}) == len(chosen)  # five methods, no two of them alike


def test_a_scorer_has_a_card_and_a_name_in_the_config() -> None:
    assert list(SCORERS) == list(cards.MASKS) == list(MASKS)
    assert set(UPDATES) == set(cards.UPDATES)


# --- the sweep ---


@pytest.mark.parametrize("block", [1, 7, 16, 50, 64, 300])
def test_update_on_a_mask_equals_the_dense_reference(block: int) -> None:
    weight, gram = problem(5, 50)
    mask = keep_mask(weight.abs(), Unstructured(sparsity=0.6))
    sweep = sparsegpt_sweep(weight, gram, mask=mask, damping=DAMPING, block=block)
    torch.testing.assert_close(sweep.weight, reference_update(weight, gram, mask), rtol=1e-9, atol=1e-10)
    assert torch.equal(sweep.mask, mask)
    assert (sweep.weight[~mask] == 0).all()


def test_update_equals_the_reference_above_the_default_block() -> None:
    weight, gram = problem(3, 150)
    mask = keep_mask(weight.abs(), NM(n=1, m=5))
    sweep = sparsegpt_sweep(weight, gram, mask=mask)
    torch.testing.assert_close(sweep.weight, reference_update(weight, gram, mask), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("block", [4, 6, 16, 200])
@pytest.mark.parametrize("pattern", [NM(n=2, m=4), NM(n=1, m=4), NM(n=4, m=8), NM(n=3, m=12)], ids=str)
def test_nm_sweep_equals_the_exhaustive_reference(pattern: NM, block: int) -> None:
    weight, gram = problem(4, 48)
    sweep = sparsegpt_sweep(weight, gram, pattern=pattern, damping=DAMPING, block=block)
    expected_weight, expected_mask = reference_sweep(weight, gram, pattern, block)
    assert torch.equal(sweep.mask, expected_mask)
    torch.testing.assert_close(sweep.weight, expected_weight, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("block", [5, 16, 200])
@pytest.mark.parametrize("sparsity", [0.5, 0.73, 0.9])
def test_unstructured_sweep_equals_the_reference(sparsity: float, block: int) -> None:
    weight, gram = problem(4, 48)
    pattern = Unstructured(sparsity=sparsity)
    sweep = sparsegpt_sweep(weight, gram, pattern=pattern, damping=DAMPING, block=block)
    expected_weight, expected_mask = reference_sweep(weight, gram, pattern, block)
    assert torch.equal(sweep.mask, expected_mask)
    torch.testing.assert_close(sweep.weight, expected_weight, rtol=1e-9, atol=1e-10)


def test_scores_are_the_cost_of_each_removal() -> None:
    # With nothing removed, w^2 / [H^-1]_cc is the rise of the damped error when column c goes and the later ones adjust.
    weight, gram = problem(2, 6)
    h = damped(gram)
    scores = sparsegpt_sweep(weight, gram, mask=torch.ones_like(weight, dtype=torch.bool), damping=DAMPING).scores
    for row in range(2):
        for c in range(6):
            later = h[c + 1 :, c + 1 :]
            adjust = torch.linalg.solve(later, h[c + 1 :, c] * weight[row, c])
            change = torch.cat([-weight[row, c].view(1), adjust])
            assert float(scores[row, c]) == pytest.approx(float(change @ h[c:, c:] @ change), rel=1e-9)


@given(
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([NM(n=2, m=4), NM(n=1, m=3)]),
    st.integers(1, 30),
)
@settings(max_examples=40)
def test_nm_sweep_properties(seed: int, rows: int, groups: int, pattern: NM, block: int) -> None:
    weight, gram = problem(rows, groups * pattern.m, seed)
    sweep = sparsegpt_sweep(weight, gram, pattern=pattern, block=block)
    assert check_compliance(sweep.mask, pattern).ok
    assert sweep.mask.double().mean() == pytest.approx(pattern.density)
    assert (sweep.weight[~sweep.mask] == 0).all()
    # The same mask given from outside leads to the same values.
    torch.testing.assert_close(sparsegpt_sweep(weight, gram, mask=sweep.mask).weight, sweep.weight, rtol=1e-9, atol=1e-10)
    # Rows are independent of each other.
    alone = sparsegpt_sweep(weight[:1], gram, pattern=pattern, block=block)
    torch.testing.assert_close(alone.weight, sweep.weight[:1], rtol=1e-9, atol=1e-10)


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 20), st.floats(0.05, 0.95), st.integers(1, 30))
@settings(max_examples=40)
def test_unstructured_sweep_keeps_the_exact_count(seed: int, rows: int, columns: int, sparsity: float, block: int) -> None:
    weight, gram = problem(rows, columns, seed)
    mask = sparsegpt_sweep(weight, gram, pattern=Unstructured(sparsity=sparsity), block=block).mask
    assert int(mask.sum()) == max(1, round((1 - sparsity) * weight.numel()))


def test_sweep_lowers_the_error_of_its_mask() -> None:
    weight, gram = problem(6, 60)
    mask = keep_mask(weight.abs(), NM(n=2, m=4))

    def error(w: Tensor) -> float:
        return float(((w - weight) @ gram * (w - weight)).sum())

    assert error(sparsegpt_sweep(weight, gram, mask=mask).weight) < error(weight * mask)


def test_independent_inputs_need_no_repair() -> None:
    weight, _ = problem(4, 12)
    mask = keep_mask(weight.abs(), NM(n=2, m=4))
    sweep = sparsegpt_sweep(weight, torch.diag(torch.rand(12, dtype=torch.float64) + 0.1), mask=mask)
    assert torch.equal(sweep.weight, weight * mask)


def test_dense_pattern_and_full_mask_change_nothing() -> None:
    weight, gram = problem(4, 12)
    assert torch.equal(sparsegpt_sweep(weight, gram, pattern=Dense()).weight, weight)
    assert torch.equal(sparsegpt_sweep(weight, gram, mask=torch.ones_like(weight, dtype=torch.bool)).weight, weight)


def test_dead_inputs_are_removed_first_and_get_zero() -> None:
    weight, gram = problem(4, 12)
    gram[[1, 6]] = 0
    gram[:, [1, 6]] = 0
    weight[:, [1, 6]] = 100
    sweep = sparsegpt_sweep(weight, gram, pattern=NM(n=3, m=4))
    assert not sweep.mask[:, [1, 6]].any()
    kept = torch.ones_like(weight, dtype=torch.bool)
    assert (sparsegpt_sweep(weight, gram, mask=kept).weight[:, [1, 6]] == 0).all()
    # The living columns do not notice: their values are those of the problem without the dead ones.
    alive = [c for c in range(12) if c not in (1, 6)]
    mask = keep_mask(weight.abs(), NM(n=2, m=4))
    with_dead = sparsegpt_sweep(weight, gram, mask=mask).weight[:, alive]
    without = sparsegpt_sweep(weight[:, alive], gram[alive][:, alive], mask=mask[:, alive]).weight
    torch.testing.assert_close(with_dead, without, rtol=1e-9, atol=1e-10)


def test_all_inputs_dead_still_keeps_the_pattern() -> None:
    weight, _ = problem(2, 8)
    sweep = sparsegpt_sweep(weight, torch.zeros(8, 8), pattern=NM(n=2, m=4))
    assert check_compliance(sweep.mask, NM(n=2, m=4)).ok
    assert (sweep.weight == 0).all()


def test_fewer_samples_than_inputs_work_under_damping() -> None:
    weight, gram = problem(4, 40, samples=10)
    mask = keep_mask(weight.abs(), NM(n=2, m=4))
    sweep = sparsegpt_sweep(weight, gram, mask=mask)
    torch.testing.assert_close(sweep.weight, reference_update(weight, gram, mask), rtol=1e-7, atol=1e-8)


def test_sweep_leaves_its_arguments_alone_and_keeps_the_dtype() -> None:
    weight, gram = (t.float() for t in problem(4, 12))
    mask = keep_mask(weight.abs(), NM(n=2, m=4))
    before = weight.clone(), gram.clone(), mask.clone()
    assert sparsegpt_sweep(weight, gram, mask=mask).weight.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip((weight, gram, mask), before, strict=True))


def test_misuse_and_bad_numbers_are_named() -> None:
    weight, gram = problem(2, 8)
    mask = torch.ones_like(weight, dtype=torch.bool)
    with pytest.raises(ValueError, match="either a mask or a pattern"):
        sparsegpt_sweep(weight, gram)
    with pytest.raises(ValueError, match="either a mask or a pattern"):
        sparsegpt_sweep(weight, gram, mask=mask, pattern=NM(n=2, m=4))
    with pytest.raises(ValueError, match=r"8 x 8 for this weight, but is \(7, 7\)"):
        sparsegpt_sweep(weight, gram[:7, :7], mask=mask)
    with pytest.raises(ValueError, match="not positive definite under a damping of 0"):
        sparsegpt_sweep(weight, torch.ones(8, 8), mask=mask, damping=0)
    with pytest.raises(ValueError, match="not positive definite"):
        sparsegpt_sweep(weight, -gram, mask=mask)
    with pytest.raises(ValueError, match="Gram matrix of the layer's inputs is not finite"):
        sparsegpt_sweep(weight, gram * float("nan"), mask=mask)
    weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight holds values that are not finite"):
        sparsegpt_sweep(weight, gram, mask=mask)
