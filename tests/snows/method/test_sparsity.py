"""Masks against brute force, the matrix view against its definition, compliance against broken weights."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from snows.config import NM, Dense, Unstructured
from snows.method.sparsity import (
    MaskError,
    check_compliance,
    check_compliance_global,
    from_matrix,
    keep_mask,
    keep_masks_global,
    kept_count,
    obstacle,
    read_mask_file,
    to_matrix,
)

nm_patterns = st.integers(2, 16).flatmap(lambda m: st.integers(1, m - 1).map(lambda n: NM(n=n, m=m)))
sparsities = st.floats(0.01, 0.99)


def scores_like(rows: int, columns: int, seed: int, levels: int) -> Tensor:
    """Scores with many ties: whole numbers below `levels`."""
    return torch.randint(0, levels, (rows, columns), generator=torch.Generator().manual_seed(seed)).double()


# --- the matrix view ---


def test_matrix_columns_are_input_channels_at_one_kernel_position() -> None:
    weight = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    matrix = to_matrix(weight)
    for o in range(2):
        for i in range(3):
            for y in range(2):
                for x in range(2):
                    assert matrix[o, (y * 2 + x) * 3 + i] == weight[o, i, y, x]


@given(st.tuples(*[st.integers(1, 5)] * 4))
def test_matrix_and_back_is_the_identity(shape: tuple[int, int, int, int]) -> None:
    weight = torch.randn(shape)
    back = from_matrix(to_matrix(weight), shape)
    assert torch.equal(back, weight)
    assert back.is_contiguous()


def test_matrix_of_a_linear_weight_is_the_weight() -> None:
    weight = torch.randn(3, 5)
    assert to_matrix(weight) is weight
    assert torch.equal(from_matrix(weight, weight.shape), weight)


def test_matrix_rejects_other_ranks() -> None:
    with pytest.raises(ValueError, match=r"2 to 5 dimensions.*\(3,\)"):
        to_matrix(torch.zeros(3))


def test_matrix_view_is_differentiable() -> None:
    matrix = torch.randn(2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: to_matrix(from_matrix(m, (2, 3, 2, 2))), matrix)


# --- what a pattern cannot be applied to ---


@pytest.mark.parametrize(
    ("shape", "kind", "pattern", "parts"),
    [
        ((16, 3, 3, 3), "conv2d", NM(n=2, m=4), ["2 of 4", "input channels", "has 3", "Choose M from 3", "dense"]),
        ((16, 1, 3, 3), "conv2d", NM(n=1, m=8), ["1 of 8", "has 1", "Use a percentage or leave the layer dense"]),
        ((10, 12), "linear", NM(n=1, m=8), ["input features", "has 12", "Choose M from 2, 3, 4, 6, 12"]),
    ],
)
def test_obstacle_names_sizes_and_remedy(shape: tuple[int, ...], kind: str, pattern: NM, parts: list[str]) -> None:
    sentence = obstacle(shape, kind, pattern)
    assert sentence is not None
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize("pattern", [NM(n=2, m=4), Unstructured(sparsity=0.7), Dense()])
def test_no_obstacle_where_the_pattern_fits(pattern: NM | Unstructured | Dense) -> None:
    assert obstacle((16, 64, 3, 3), "conv2d", pattern) is None


def test_obstacle_looks_at_channels_not_at_matrix_width() -> None:
    # 4 divides the width 2 * 2 * 3 of the matrix, but a group would span two kernel positions.
    assert obstacle((8, 3, 2, 2), "conv2d", NM(n=2, m=4)) is not None


# --- one layer ---


@given(nm_patterns, st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31), st.sampled_from([2, 5, 1000]))
def test_nm_mask_is_the_best_choice_in_every_group(pattern: NM, rows: int, groups: int, seed: int, levels: int) -> None:
    scores = scores_like(rows, groups * pattern.m, seed, levels)
    mask = keep_mask(scores, pattern)
    for row in range(rows):
        for group in range(groups):
            columns = slice(group * pattern.m, (group + 1) * pattern.m)
            values = scores[row, columns].tolist()
            # Stable by construction: highest score first, then lowest index.
            expected = sorted(range(pattern.m), key=lambda i, values=values: (-values[i], i))[: pattern.n]
            assert sorted(expected) == mask[row, columns].nonzero().flatten().tolist()


@pytest.mark.parametrize("pattern", [NM(n=2, m=4), NM(n=1, m=4), NM(n=4, m=8)])
def test_nm_mask_beats_every_other_choice(pattern: NM) -> None:
    scores = scores_like(3, 2 * pattern.m, 0, 10_000).view(-1, pattern.m)
    mask = keep_mask(scores.view(3, -1), pattern).view(-1, pattern.m)
    best = torch.stack([scores[:, list(c)].sum(1) for c in combinations(range(pattern.m), pattern.n)]).amax(0)
    assert torch.equal((scores * mask).sum(1), best)


@given(sparsities, st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([1, 3, 1000]))
def test_unstructured_mask_keeps_the_exact_count_of_the_highest(
    sparsity: float, rows: int, columns: int, seed: int, levels: int
) -> None:
    pattern = Unstructured(sparsity=sparsity)
    scores = scores_like(rows, columns, seed, levels)
    mask = keep_mask(scores, pattern)
    flat = scores.flatten().tolist()
    count = max(1, round((1 - sparsity) * len(flat)))
    expected = sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:count]
    assert sorted(expected) == mask.flatten().nonzero().flatten().tolist()


def test_a_layer_is_never_emptied() -> None:
    assert keep_mask(torch.rand(2, 3), Unstructured(sparsity=0.999)).sum() == 1


@given(nm_patterns, st.integers(0, 2**31))
def test_mask_ignores_the_scale_of_scores(pattern: NM, seed: int) -> None:
    scores = scores_like(3, 4 * pattern.m, seed, 50)
    assert torch.equal(keep_mask(scores, pattern), keep_mask(scores * 2.0**-40, pattern))


def test_dense_keeps_everything() -> None:
    assert keep_mask(torch.zeros(2, 3), Dense()).all()


def test_mask_misuse_is_named() -> None:
    with pytest.raises(ValueError, match=r"width that 4 divides.*6 columns"):
        keep_mask(torch.rand(2, 6), NM(n=2, m=4))
    with pytest.raises(ValueError, match=r"1 of 8 scores are not numbers"):
        keep_mask(torch.tensor([[1.0, float("nan"), 2, 3, 4, 5, 6, 7]]), NM(n=2, m=4))
    with pytest.raises(ValueError, match="keep_masks_global"):
        keep_mask(torch.rand(2, 6), Unstructured(sparsity=0.5, scope="global"))


# --- all layers together ---

layer_shapes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 20)), min_size=1, max_size=4)


@given(layer_shapes, sparsities, st.floats(0, 1), st.integers(0, 2**31), st.sampled_from([2, 1000]))
def test_global_masks_meet_total_and_caps(
    shapes: list[tuple[int, int]], sparsity: float, room: float, seed: int, levels: int
) -> None:
    pattern = Unstructured(sparsity=sparsity, scope="global", layer_cap=min(0.999, sparsity + room * (1 - sparsity)))
    # Layers differ in scale by factors of ten, so that without a cap the first would be emptied.
    scores = {f"layer{i}": 10.0**i * scores_like(r, c, seed + i, levels) for i, (r, c) in enumerate(shapes)}
    masks = keep_masks_global(scores, pattern)
    floors = {name: max(1, s.numel() - int(pattern.layer_cap * s.numel() + 1e-9)) for name, s in scores.items()}
    wanted = max(1, round(pattern.density * sum(s.numel() for s in scores.values())))
    assert sum(int(m.sum()) for m in masks.values()) == max(wanted, sum(floors.values()))
    for name, mask in masks.items():
        assert mask.shape == scores[name].shape
        assert mask.sum() >= floors[name]
        # Within a layer the kept are the highest, whatever the other layers hold.
        count = int(mask.sum())
        flat = scores[name].flatten().tolist()
        best = sorted(range(len(flat)), key=lambda i, flat=flat: (-flat[i], i))[:count]
        assert sorted(best) == mask.flatten().nonzero().flatten().tolist()
    assert check_compliance_global(masks, pattern).ok


@given(st.integers(0, 2**31))
@settings(max_examples=20)
def test_global_masks_maximize_the_kept_score(seed: int) -> None:
    pattern = Unstructured(sparsity=0.6, scope="global", layer_cap=0.75)
    scores = {"a": scores_like(1, 4, seed, 100), "b": 3 * scores_like(1, 6, seed + 1, 100)}
    values = torch.cat([s.flatten() for s in scores.values()]).tolist()
    # Exhaustive: 4 of 10 kept, at least 1 of 4 in the first layer and 2 of 6 in the second.
    best = max(
        sum(values[i] for i in kept)
        for kept in combinations(range(10), 4)
        if sum(i < 4 for i in kept) >= 1 and sum(i >= 4 for i in kept) >= 2
    )
    masks = keep_masks_global(scores, pattern)
    assert sum(float((scores[n] * masks[n]).sum()) for n in scores) == best


def test_global_without_active_cap_is_one_ranking() -> None:
    pattern = Unstructured(sparsity=0.5, scope="global", layer_cap=0.99)
    scores = {"low": torch.arange(10.0).view(2, 5), "high": torch.arange(5.0, 15.0).view(2, 5)}
    masks = keep_masks_global(scores, pattern)
    # The two sevens tie for the last place: the earlier layer's stays.
    assert torch.cat([masks["low"].flatten(), masks["high"].flatten()]).sum() == 10
    assert masks["high"].flatten().tolist() == [False] * 3 + [True] * 7
    assert masks["low"].flatten().tolist() == [False] * 7 + [True] * 3


def test_global_cap_protects_the_best_of_a_quiet_layer() -> None:
    pattern = Unstructured(sparsity=0.5, scope="global", layer_cap=0.8)
    scores = {"quiet": 1e-6 * torch.arange(10.0).view(2, 5), "loud": torch.arange(10.0).view(2, 5)}
    masks = keep_masks_global(scores, pattern)
    assert masks["quiet"].flatten().nonzero().flatten().tolist() == [8, 9]
    assert masks["loud"].sum() == 8


# --- compliance ---


@given(nm_patterns, st.integers(0, 2**31))
def test_masks_comply_and_one_weight_more_does_not(pattern: NM, seed: int) -> None:
    scores = scores_like(3, 3 * pattern.m, seed, 100)
    mask = keep_mask(scores, pattern)
    assert check_compliance(mask, pattern).ok
    assert check_compliance(mask, pattern).density == pytest.approx(pattern.density)
    row, column = (~mask).nonzero()[seed % int((~mask).sum())].tolist()
    mask[row, column] = True
    verdict = check_compliance(mask, pattern)
    assert not verdict.ok
    assert verdict.worst_group == (row, column - column % pattern.m)
    assert verdict.worst_kept == pattern.n + 1


def test_compliance_reads_groups_along_input_channels() -> None:
    pattern = NM(n=1, m=4)
    weight = torch.zeros(2, 4, 3, 3)
    weight[0, 1] = 1.0  # one channel at all nine positions: one per group
    assert check_compliance(weight, pattern).ok
    weight[0, 2, 1, 1] = 1.0
    verdict = check_compliance(weight, pattern)
    assert not verdict.ok
    assert verdict.worst_group == (0, 4 * 4)
    assert "1 of 18 groups" in verdict.message


def test_compliance_allows_kept_weights_that_are_zero_by_value() -> None:
    assert check_compliance(torch.zeros(4, 8), NM(n=2, m=4)).ok
    assert check_compliance(torch.zeros(4, 8), Unstructured(sparsity=0.5)).ok


def test_compliance_counts_an_unstructured_layer() -> None:
    pattern = Unstructured(sparsity=0.7)
    mask = keep_mask(torch.rand(10, 10), pattern)
    assert check_compliance(mask, pattern).ok
    mask.view(-1)[int((~mask).flatten().nonzero()[0])] = True
    verdict = check_compliance(mask, pattern)
    assert not verdict.ok
    assert "31 of 100 weights are kept, 30 are allowed" in verdict.message


def test_compliance_refuses_a_width_that_m_does_not_divide() -> None:
    verdict = check_compliance(torch.zeros(8, 3, 2, 2), NM(n=2, m=4))
    assert not verdict.ok
    assert "does not divide" in verdict.message


def test_global_compliance_names_the_layer_below_its_cap_and_the_total() -> None:
    pattern = Unstructured(sparsity=0.5, scope="global", layer_cap=0.8)
    full, empty = torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)
    emptied = check_compliance_global({"a": full, "b": empty}, pattern)
    assert not emptied.ok
    assert emptied.message.startswith("b: 0 of 10")
    unpruned = check_compliance_global({"a": full, "b": full}, pattern)
    assert not unpruned.ok
    assert "20 of 20 weights are kept, 10 are allowed" in unpruned.message


@given(st.integers(1, 10_000), sparsities)
def test_kept_count_is_the_nearest_whole_number(size: int, sparsity: float) -> None:
    count = kept_count(size, Unstructured(sparsity=sparsity))
    assert 1 <= count <= size
    assert abs(count - (1 - sparsity) * size) <= 0.5 or count == 1


# --- mask files ---


def test_mask_file_of_bool_tensors(tmp_path: Path) -> None:
    masks = {"a.weight": torch.rand(3, 4) > 0.5, "b.weight": torch.rand(2, 3, 1, 1) > 0.5}
    masks["a.weight"][0, 0] = False
    save_file(masks | {"a.bias": torch.zeros(3)}, tmp_path / "mask.safetensors")
    read = read_mask_file(tmp_path / "mask.safetensors")
    assert read.keys() == masks.keys()
    assert all(torch.equal(read[name], mask) for name, mask in masks.items())


def test_mask_file_from_a_checkpoints_zeros(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    save_file({"fc.weight": weight, "fc.bias": torch.zeros(2), "steps": torch.tensor(3)}, tmp_path / "pruned.safetensors")
    read = read_mask_file(tmp_path / "pruned.safetensors")
    assert read.keys() == {"fc.weight"}
    assert read["fc.weight"].tolist() == [[True, False], [True, False]]


def test_mask_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({"w": torch.zeros(2, 2, dtype=torch.bool)}, whole)
    content = whole.read_bytes()
    torn = tmp_path / "torn.safetensors"
    for length in range(len(content)):
        torn.write_bytes(content[:length])
        with pytest.raises(MaskError, match="cannot be read as a safetensors file"):
            read_mask_file(torn)


def test_mask_file_missing_or_without_a_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"no mask file .*absent"):
        read_mask_file(tmp_path / "absent.safetensors")
    save_file({"w": torch.ones(2, 2)}, tmp_path / "dense.safetensors")
    with pytest.raises(MaskError, match="removes no weight"):
        read_mask_file(tmp_path / "dense.safetensors")
    with pytest.raises(MaskError, match="cannot be read"):
        read_mask_file(tmp_path)
