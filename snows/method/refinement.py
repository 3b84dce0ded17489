"""Mask refinement: exchange kept weights for pruned ones where a quadratic model of the loss falls by it.

Scores judge each weight by itself. Which weights serve best together depends on how their inputs correlate, and is a question
of combinations: this is a local search over them, a block coordinate descent over weights and mask at once (as for sparse
regression: Hazimeh & Mazumder, 2020, "Fast Best Subset Selection"). It starts at a mask that some score chose.

The model of an output row w is  w G wᵀ - 2 w · c,  with one Gram matrix G (P, P) for all rows and a right-hand side c for each:
at K = 0 the layer's own output error, exactly; near a point, an approximation of the loss K operations later
(`updates.exchange_in_window`).
"""

import torch
from torch import Tensor

from snows.config import NM, LayerPattern

_PASSES = 10
_AT_REST = 0.05  # a pass that lowers the model by less than this share of what all have leaves nothing worth looking for
# An unstructured pattern has no groups of its own: exchanges stay within a row, among so many of its columns.
_COLUMNS = 32
# Columns whose slope is computed at once; among them it is kept up to date by what changes.
_BLOCK = 128
_CHUNK_BYTES = 2**24


@torch.no_grad()
def refine(mask: Tensor, weight: Tensor, gram: Tensor, cross: Tensor, pattern: LayerPattern) -> tuple[Tensor, Tensor]:
    """The mask (R, P), True = kept, after exchanges that each lower the model, so that it ends; and the weights that the
    exchanges came to, on their way to the best ones for this mask.

    `weight` (R, P) is the point to start from, `gram` (P, P) and `cross` (R, P) are the model. Every group keeps as many
    weights as before: those of N:M, and for an unstructured pattern 32 columns of a row, in turn neighbours and far apart. Ends
    after ten passes over the groups, or once a pass brings next to nothing.
    """
    # As much as keeps an input that is always zero from dividing by it.
    ridge = 1e-8 * gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    gram = gram.to(torch.float64, copy=True)
    gram.diagonal().add_(ridge)
    size, orders = _groups(pattern, mask.shape[1])
    grams = [gram, *(gram[order][:, order] for order in orders[1:])]  # the first order is that of the columns
    rows = max(1, _CHUNK_BYTES // (8 * size * size))
    parts = zip(mask.split(rows), weight.double().split(rows), cross.double().split(rows), strict=True)
    masks, weights = [], []
    for own_mask, own_weight, own_cross in parts:
        # Transposed: what is done to a group of few columns is done to many rows at once, and those lie side by side.
        found = _search(own_mask.T.contiguous(), own_weight.T.contiguous(), own_cross.T.contiguous(), grams, size, orders)
        masks.append(found[0].T)
        weights.append(found[1].T)
    return torch.cat(masks), torch.cat(weights).to(cross.dtype)


def _groups(pattern: LayerPattern, columns: int) -> tuple[int, list[Tensor]]:
    """The size of a group, and the orders of columns in which groups are neighbours."""
    if isinstance(pattern, NM):
        return pattern.m, [torch.arange(columns)]
    stride = -(-columns // _COLUMNS)
    return min(columns, _COLUMNS), [torch.arange(columns), torch.cat([torch.arange(i, columns, stride) for i in range(stride)])]


def _search(
    mask: Tensor, weight: Tensor, cross: Tensor, grams: list[Tensor], size: int, orders: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mask and weights after the passes; all (P, r), transposed."""
    fallen, resting = 0.0, 0
    for number in range(_PASSES):
        order, gram = orders[number % len(orders)], grams[number % len(orders)]
        ordered_mask, values = mask[order], weight[order]
        fall = _one_pass(ordered_mask, values, gram, cross[order], size)
        mask[order], weight[order] = ordered_mask, values
        fallen += fall
        resting = 0 if fall > _AT_REST * fallen else resting + 1
        if resting == len(orders):
            break
    return mask, weight


def _one_pass(mask: Tensor, weight: Tensor, gram: Tensor, cross: Tensor, size: int) -> float:
    """Go through all groups once, in place. Returns by how much the model of all rows falls."""
    columns, fallen = len(mask), torch.zeros_like(weight[0])
    block = size * max(1, _BLOCK // size)
    for start in range(0, columns, block):
        reach = slice(start, min(start + block, columns))
        slope, own = cross[reach] - gram[reach] @ weight, gram[reach, reach]  # half the way down
        for first in range(start, reach.stop, size):
            group, here = slice(first, first + size), slice(first - start, first - start + size)
            change, fall = _exchange(mask[group], weight[group], slope[here], own[here, here])
            slope[here.stop :].addmm_(own[here.stop :, here], change, alpha=-1)
            fallen += fall
    return float(fallen.sum())


def _exchange(mask: Tensor, weight: Tensor, slope: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """In every row, the one exchange in a group (m, r) that lowers the model the most, in place: weight i out and j in at its
    best value, or i itself to its best value. All others stay. Returns the change of the weights (m, r), and by how much the
    model of each row falls (r,)."""
    size, scale = len(gram), gram.diagonal()[:, None]
    slope_without = slope + weight[:, None] * gram[..., None]  # (i, j, r): at j, with i at zero
    gain = slope_without.square().div_(scale).sub_((weight * (weight * scale + 2 * slope))[:, None])
    same = torch.eye(size, dtype=torch.bool, device=mask.device)[..., None]
    gain.masked_fill_(~(mask[:, None] & (~mask | same)), -torch.inf)
    best, at = gain.flatten(0, 1).max(0, keepdim=True)
    some = best.isfinite()  # a row may keep nothing here
    out, into = at // size, at % size
    value = slope_without.flatten(0, 1).gather(0, at) / scale[:, 0][into]
    before = weight.clone()
    mask.scatter_(0, out, False).scatter_(0, into, some)
    weight.scatter_(0, out, 0.0).scatter_(0, into, torch.where(some, value, 0.0))
    return weight - before, torch.where(some, best, 0.0)[0]
