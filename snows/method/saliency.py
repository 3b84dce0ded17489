"""Scores: how much a layer would miss each of its weights. The highest scores stay (`sparsity.keep_mask`).

A scorer is a pure function of a layer's weight W (R, P), one row an output feature, and for some the Gram matrix of its inputs
G = X^T X (P, P), where X holds one row for each sample and position. No score depends on the scale of G within its layer, so a
sum and a mean over samples serve alike. One entry in `SCORERS` and its tests make a scorer.

`sparsegpt_sweep` also gives the kept weights new values; as a scorer only its choice of weights is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snows.config import NM, Dense, InputError, Unstructured
from snows.method.sparsity import keep_highest, keep_mask, kept_count


@dataclass(frozen=True)
class Scorer:
    """`function(weight (R, P), *, gram (P, P) or None, pattern, generator or None) -> scores (R, P)`, higher = keep."""

    function: Callable[..., Tensor]
    needs_gram: bool
    label: str
    source: str


def magnitude(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: NM | Unstructured | Dense | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """|W|. Han et al. (2015), "Learning both Weights and Connections for Efficient Neural Networks"."""
    return weight.abs()


def wanda(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: NM | Unstructured | Dense | None = None,
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
    pattern: NM | Unstructured | Dense | None = None,
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
    return sweep.scores / sweep.scores.max().clamp(min=torch.finfo(sweep.scores.dtype).tiny) + 2 * sweep.mask


def random(
    weight: Tensor,
    *,
    gram: Tensor | None = None,
    pattern: NM | Unstructured | Dense | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Uniform scores from `generator`, drawn on its device: the control that any method must beat.

    A generator on the CPU gives the same scores wherever the weight lies.
    """
    if generator is None:
        raise ValueError("Random scores need a seeded generator, so that a run can be repeated.")
    return torch.rand(weight.shape, generator=generator, device=generator.device, dtype=torch.float64).to(weight)


SCORERS: dict[str, Scorer] = {
    "magnitude": Scorer(magnitude, False, "Magnitude", "Han et al. 2015"),
    "wanda": Scorer(wanda, True, "Wanda", "Sun et al. 2023, equation 1"),
    "sparsegpt": Scorer(sparsegpt, True, "SparseGPT", "Frantar & Alistarh 2023, algorithm 1"),
    "random": Scorer(random, False, "Random", "control"),
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
    pattern: NM | Unstructured | Dense | None = None,
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


def _decide(scores: Tensor, pattern: NM | Unstructured | Dense, size: int, reach: slice, columns: int) -> Tensor:
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
    h = gram.double().clone()
    if not h.isfinite().all():
        raise InputError("The Gram matrix of the layer's inputs is not finite. Check the images and weights for NaN.")
    dead = h.diagonal() == 0
    scale = h.diagonal()[~dead].mean() if not dead.all() else h.new_ones(())
    h.diagonal()[dead] = scale
    h.diagonal().add_(damping * scale)
    # H = A A^T with A upper is the Cholesky factorization read backwards, and U = A^-1: no inverse of H is ever formed.
    lower, failed = torch.linalg.cholesky_ex(h.flip(0, 1))
    if failed:
        raise InputError(
            f"The Gram matrix of the layer's inputs is not positive definite under a damping of {damping:g}. "
            "Raise the damping, or use more calibration images."
        )
    identity = torch.eye(len(h), dtype=h.dtype, device=h.device)
    return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True), dead


def _require_gram(gram: Tensor | None, method: str) -> Tensor:
    if gram is None:
        raise ValueError(f"{method} scores weights by their inputs and needs the Gram matrix of the calibration data.")
    return gram
