"""Scores: how much a layer would miss each of its weights. The highest scores stay (`sparsity.keep_mask`).

A scorer is a pure function of a layer's weight W (R, P), one row an output feature, and for some the Gram matrix of its inputs
G = X^T X (P, P), where X holds one row for each sample and position. No score depends on the scale of G within its layer, so a
sum and a mean over samples serve alike; a scorer that also takes the mean of the inputs wants G as a mean. One entry in
`SCORERS`, its card in `cards.MASKS` and its tests make a scorer.

What chooses a mask by a search, not weight by weight (`sparsegpt_sweep`, `selection`), gives scores that put its choice first.
`sparsegpt_sweep` also gives the kept weights new values; as a scorer only its choice of weights is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snows.config import NM, InputError, LayerPattern, Unstructured
from snows.method import selection
from snows.method.sparsity import keep_highest, keep_mask, kept_count


@dataclass(frozen=True)
class Scorer:
    """`function(weight (R, P), *, gram (P, P) or None, pattern, generator or None) -> scores (R, P)`, higher = keep. With
    `needs_mean` it takes the inputs' `mean` (P,) too."""

    function: Callable[..., Tensor]
    needs_gram: bool
    needs_mean: bool = False


def magnitude(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: LayerPattern | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """|W|. Han et al. (2015), "Learning both Weights and Connections for Efficient Neural Networks"."""
    return weight.abs()


def wanda(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: LayerPattern | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """|W_ij| * ||X_j||_2. Sun et al. (2023), "A Simple and Effective Pruning Approach for Large Language Models", equation 1.

    The paper ranks within each output row; under an unstructured pattern ours ranks within the layer.
    """
    return weight.abs() * _require_gram(gram, "Wanda").diagonal().clamp(min=0).sqrt().to(weight.dtype)


def sparsegpt(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: LayerPattern | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scores whose `keep_mask` is the mask that SparseGPT's sweep chooses (`sparsegpt_sweep`).

    Under a global pattern, which the paper does not know, each layer is swept at the overall sparsity and the saliencies that
    the sweep met, w^2 / [H^-1]_cc, are ranked across layers.
    """
    if pattern is None:
        raise ValueError("SparseGPT decides its mask during the sweep and needs the pattern.")
    sweep = sparsegpt_sweep(weight, _require_gram(gram, "SparseGPT"), pattern=pattern)
    if not (isinstance(pattern, Unstructured) and pattern.scope == "layer"):
        return sweep.scores
    # The sweep fills a quota per block of columns, so a ranking of the whole layer must put its choice first.
    return _first(sweep.mask, sweep.scores)


def ria(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: LayerPattern | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(|W_ij| / sum_j |W_ij| + |W_ij| / sum_i |W_ij|) * ||X_j||_2 ^ 1/2: relative importance and activations.

    Zhang et al. (2024), "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", with its exponent
    of a half. The paper's channel permutation is not part of this.
    """
    size = weight.double().abs()
    rows, columns = (size.sum(axis, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny) for axis in (1, 0))
    lengths = _require_gram(gram, "RIA").double().diagonal().clamp(min=0).sqrt()
    return ((size / rows + size / columns) * lengths.sqrt()).to(weight.dtype)


def obc(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: LayerPattern | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scores whose `keep_mask` is the mask that optimal brain compression leaves (`selection.remove_greedily`).

    Its values are least squares on that mask, which update `least-squares` computes. Under a global pattern, which the paper
    does not know, each row is emptied and what its removals cost is ranked across layers.
    """
    if pattern is None:
        raise ValueError("Optimal brain compression removes weights as the pattern allows, and needs it.")
    found = selection.remove_greedily(weight, _require_gram(gram, "Optimal brain compression"), pattern)
    if isinstance(pattern, Unstructured) and pattern.scope == "global":
        return found.costs.to(weight.dtype)
    return _first(found.mask, found.costs.masked_fill(found.mask, 0)).to(weight.dtype)


def alps(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: LayerPattern | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scores whose `keep_mask` is the mask that ALPS ends at (`selection.split`), its weights ranked by magnitude.

    For its values the paper solves least squares on that mask by conjugate gradient, which update `least-squares` solves, too.
    """
    pattern = _of_one_layer(pattern, "ALPS")
    return _first(selection.split(weight, _require_gram(gram, "ALPS"), pattern), weight.abs())


def dsnot(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    mean: Tensor | None = None,
    pattern: LayerPattern | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scores whose `keep_mask` is the mask of dynamic sparse no training (`selection.prune_and_grow`), from Wanda's mask.

    Rows keep as many weights as Wanda, here over the whole layer, left them.
    """
    pattern, gram = _of_one_layer(pattern, "DSnoT"), _require_gram(gram, "DSnoT")
    if mean is None:
        raise ValueError("DSnoT weighs what inputs are on average and needs their mean.")
    scores = wanda(weight, gram=gram)
    return _first(selection.prune_and_grow(keep_mask(scores, pattern), weight, gram, mean, scores, pattern), scores)


def sparseswaps(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: LayerPattern | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Scores whose `keep_mask` is the mask of SparseSwaps (`selection.swap`), from Wanda's mask.

    Rows keep as many weights as Wanda, here over the whole layer, left them; the paper has equally many in each.
    """
    pattern, gram = _of_one_layer(pattern, "SparseSwaps"), _require_gram(gram, "SparseSwaps")
    scores = wanda(weight, gram=gram)
    return _first(selection.swap(keep_mask(scores, pattern), weight, gram, pattern), scores)


def random(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: LayerPattern | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Uniform scores from `generator`, drawn on its device: the control that any method must beat.

    A generator on the CPU gives the same scores wherever the weight lies.
    """
    if generator is None:
        raise ValueError("Random scores need a seeded generator, so that a run can be repeated.")
    return torch.rand(weight.shape, generator=generator, device=generator.device, dtype=torch.float64).to(weight)


SCORERS: dict[str, Scorer] = {
    "magnitude": Scorer(magnitude, False),
    "wanda": Scorer(wanda, True),
    "sparsegpt": Scorer(sparsegpt, True),
    "ria": Scorer(ria, True),
    "alps": Scorer(alps, True),
    "obc": Scorer(obc, True),
    "sparseswaps": Scorer(sparseswaps, True),
    "dsnot": Scorer(dsnot, True, needs_mean=True),
    "random": Scorer(random, False),
}


class Sweep(NamedTuple):
    """All (R, P): updated `weight`, exactly zero where removed; `mask`, True = kept; `scores` w^2 / [H^-1]_cc as met."""

    weight: Tensor
    mask: Tensor
    scores: Tensor


def sparsegpt_sweep(
    weight: Tensor,
    gram: Tensor,
    *,
    mask: Tensor | None = None,
    pattern: LayerPattern | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> Sweep:
    """Remove weights column by column, left to right; what stays to the right of a removed weight makes up for it.

    Frantar & Alistarh (2023), "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", algorithm 1: each
    removal is an optimal-brain-surgeon step on the columns not yet passed, and all rows share one Cholesky factor of H^-1,
    where H = G + damping * mean(diag G) * I. Updates beyond the current block of columns are applied once a block.

    `weight` (R, P), `gram` (P, P). Give either a `mask` (R, P) or a `pattern`. N:M groups are decided when the sweep reaches
    them; unstructured weights once a block of columns, by a quota that adds up to the layer's exact count. Inputs that are zero
    in all calibration data get weight zero, as in the authors' code, and so are removed first. Work is done in float64.

    Raises `InputError` for a weight or Gram matrix that is not finite, and for one that is indefinite under the damping.
    """
    if (mask is None) == (pattern is None):
        raise ValueError("A sweep needs either a mask or a pattern, and not both.")
    rows, columns = weight.shape
    if gram.shape != (columns, columns):
        raise ValueError(f"The Gram matrix must be {columns} x {columns} for this weight, but is {tuple(gram.shape)}.")
    if not weight.isfinite().all():
        raise InputError("The layer's weight holds values that are not finite. Check the checkpoint for NaN.")
    group = block
    if isinstance(pattern, NM):
        group = pattern.m
        block = -(-block // group) * group  # a group that straddled two blocks would be decided on stale columns
    factor, dead = _inverse_factor(gram, damping)
    pivots = factor.diagonal()
    w = weight.double().clone()
    w[:, dead] = 0
    kept = torch.ones_like(w, dtype=torch.bool) if mask is None else mask.clone()
    scores = torch.empty_like(w)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = w.new_empty(rows, stop - start)
        for j in range(start, stop):
            if (j - start) % group == 0:
                reach = slice(j, min(j + group, stop))
                scores[:, reach] = (w[:, reach] / pivots[reach]).square()
                if pattern is not None:
                    kept[:, reach] = _decide(scores[:, reach], pattern, rows * columns, reach, columns)
            errors[:, j - start] = (w[:, j] / pivots[j]).masked_fill(kept[:, j], 0)
            w[:, j:stop] -= errors[:, j - start, None] * factor[j, j:stop]
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    return Sweep(w.masked_fill(~kept, 0).to(weight.dtype), kept, scores.to(weight.dtype))


def _decide(scores: Tensor, pattern: LayerPattern, size: int, reach: slice, columns: int) -> Tensor:
    if not isinstance(pattern, Unstructured):
        return keep_mask(scores, pattern)
    total = kept_count(size, pattern)
    # Differences of one rounded line: the quotas of all blocks add up to the layer's count exactly.
    quota = round(total * reach.stop / columns) - round(total * reach.start / columns)
    return keep_highest(scores.flatten(), quota).view(scores.shape)


def _inverse_factor(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Upper U with U^T U = H^-1, and the dead columns (bool).

    U_jj^2 is the first diagonal entry of the inverse of H's trailing block from j on, and row j of U over U_jj its first row:
    all that the sweep asks of the Hessian of the columns not yet passed.
    """
    h, dead = selection.damped(gram, damping)
    # H = A A^T with A upper is the Cholesky factorization read backwards, and U = A^-1: no inverse of H is ever formed.
    lower = selection.factor(h.flip(0, 1), damping)
    identity = torch.eye(len(h), dtype=h.dtype, device=h.device)
    return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True), dead


def _first(mask: Tensor, scores: Tensor) -> Tensor:
    """Scores (R, P), none of them negative, raised where `mask` keeps, so that every ranking has those first."""
    return scores / scores.max().clamp(min=torch.finfo(scores.dtype).tiny) + 2 * mask


def _of_one_layer(pattern: LayerPattern | None, method: str) -> LayerPattern:
    if pattern is None or (isinstance(pattern, Unstructured) and pattern.scope == "global"):
        raise ValueError(f"{method} chooses the mask of one layer and needs its pattern, not one of the whole network.")
    return pattern


def _require_gram(gram: Tensor | None, method: str) -> Tensor:
    if gram is None:
        raise ValueError(f"{method} scores weights by their inputs and needs the Gram matrix of the calibration data.")
    return gram
