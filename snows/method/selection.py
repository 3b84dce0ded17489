"""Masks that are searched for: which weights of a layer serve best together, where a score judges each by itself.

Every search is of one layer: its weight W (R, P), one row an output feature, and the Gram matrix of its inputs G = X^T X
(P, P), whose scale decides nothing. It works in float64, on so many rows at once as `_CHUNK_BYTES` allow: no object of
R x P x P is ever made. `saliency` makes scores of what is found.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from snows.config import NM, Dense, InputError, LayerPattern
from snows.method.sparsity import keep_mask, kept_count

_CHUNK_BYTES = 2**26
# Removals after which the inverses of optimal brain compression are brought up to date, as one matrix product.
_PENDING = 32
_MOST_ADMM_STEPS = 300
_MOST_CYCLES = 50  # of prune and grow, the paper's
_SMALL_ERROR = 0.1
_MOST_SWAPS = 100  # of a row


def damped(gram: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """H = G + damping * mean(diag G) * I in float64, and the dead columns (bool): inputs that are zero in all calibration data.
    These have the mean on their diagonal. Raises `InputError` for a Gram matrix that is not finite."""
    h = gram.double().clone()
    if not h.isfinite().all():
        raise InputError("The Gram matrix of the layer's inputs is not finite. Check the images and weights for NaN.")
    dead = h.diagonal() == 0
    scale = h.diagonal()[~dead].mean() if not dead.all() else h.new_ones(())
    h.diagonal()[dead] = scale
    h.diagonal().add_(damping * scale)
    return h, dead


def factor(h: Tensor, damping: float) -> Tensor:
    """The lower Cholesky factor of a damped H. Raises `InputError` for one that is indefinite."""
    lower, failed = torch.linalg.cholesky_ex(h)
    if failed:
        raise InputError(
            f"The Gram matrix of the layer's inputs is not positive definite under a damping of {damping:g}. "
            "Raise the damping, or use more calibration images."
        )
    return lower


# --- greedy removal ---


class Removals(NamedTuple):
    """`mask` (R, P), True = kept. `costs` (R, P): what the row's error had risen by, at the most at once, when a weight went;
    infinite for what was never removed."""

    mask: Tensor
    costs: Tensor


def remove_greedily(weight: Tensor, gram: Tensor, pattern: LayerPattern, damping: float = 0.01) -> Removals:
    """Remove weights one by one, in every row the one whose loss the others best make up for, and adjust these.

    Frantar & Alistarh (2022), "Optimal Brain Compression", algorithm 1: of a row w with H = G + damping * mean(diag G) * I
    the weight of least w_p^2 / [H^-1]_pp goes, w falls by w_p / [H^-1]_pp times column p of H^-1, and H^-1 becomes the inverse
    for the weights that are left. Under N:M only groups that keep more than N lose a weight. Under an unstructured pattern each
    row is emptied, and as many removals as the layer allows count, the cheapest of all rows first, as there. Inputs that
    are always zero get weight zero, and so go first.

    Costs about R P^3 operations, a third of it where most weights go. Raises `InputError` as `damped` and `factor` do.
    """
    h, dead = damped(gram, damping)
    inverse, columns = torch.cholesky_inverse(factor(h, damping)), len(h)
    w = weight.double().masked_fill(dead, 0)
    mask, costs = torch.ones_like(w, dtype=torch.bool), torch.full_like(w, torch.inf)
    if isinstance(pattern, Dense):
        return Removals(mask, costs)
    rows = max(1, _CHUNK_BYTES // (8 * columns**2))
    traces = [_removals(part, inverse, pattern) for part in w.split(rows)]
    order, met = (torch.cat(parts) for parts in zip(*traces, strict=True))
    # A removal waits for those before it in its row, so it is as dear as the dearest of them.
    met = met.cummax(1).values
    costs.scatter_(1, order, met)
    if isinstance(pattern, NM):
        return Removals(mask.scatter_(1, order, False), costs)
    # Equal costs of a row stay in their order, because the sort is stable.
    first = met.flatten().argsort(stable=True)[: w.numel() - kept_count(w.numel(), pattern)]
    places = order + columns * torch.arange(len(w), device=w.device)[:, None]
    mask.view(-1)[places.flatten()[first]] = False
    return Removals(mask, costs)


def _removals(weight: Tensor, inverse: Tensor, pattern: LayerPattern) -> tuple[Tensor, Tensor]:
    """For some rows (r, P): the columns in the order of their removal, and what each removal costs (r, steps)."""
    count, columns = weight.shape
    size, least = (pattern.m, pattern.n) if isinstance(pattern, NM) else (columns, 0)
    steps = columns // size * (size - least)
    left = weight.new_full((count, columns // size), size, dtype=torch.int64)
    every = torch.arange(count, device=weight.device)
    # What is left of each row: its columns, values and inverse, less u uᵀ for each removal since that was brought up to date.
    place = torch.arange(columns, device=weight.device).repeat(count, 1)
    w, inverses = weight.clone(), inverse.repeat(count, 1, 1)
    diagonal = inverses.diagonal(dim1=1, dim2=2).clone()
    pending: list[Tensor] = []
    gone = torch.zeros_like(w, dtype=torch.bool)
    order, costs = [], []
    for step in range(steps):
        cost = w.square() / diagonal
        cost.masked_fill_(gone | (left.gather(1, place // size) <= least), torch.inf)
        cheapest, p = cost.min(1)
        pivot, column = diagonal[every, p], inverses[every, :, p]
        if pending:
            changes = torch.stack(pending, 2)
            column = column - (changes @ changes[every, p, :, None])[..., 0]
        order.append(place[every, p])
        costs.append(cheapest)
        w -= (w[every, p] / pivot)[:, None] * column
        gone[every, p] = True
        w.masked_fill_(gone, 0)
        left[every, order[-1] // size] -= 1
        u = column / pivot.sqrt()[:, None]
        # What is gone has no part in anything; what is left stays above zero, rounding aside.
        diagonal = (diagonal - u.square()).clamp(min=torch.finfo(torch.float64).tiny).masked_fill(gone, 1)
        pending.append(u)
        if len(pending) == _PENDING and step + 1 < steps:
            changes, pending = torch.stack(pending, 2), []
            stays = (~gone).nonzero()[:, 1].view(count, -1)
            changes = changes.gather(1, stays[..., None].expand(-1, -1, _PENDING))
            inverses = inverses[every[:, None, None], stays[:, :, None], stays[:, None, :]]
            inverses.baddbmm_(changes, changes.mT, alpha=-1)
            place, w, diagonal = place.gather(1, stays), w.gather(1, stays), diagonal.gather(1, stays)
            gone = torch.zeros_like(w, dtype=torch.bool)
    return torch.stack(order, 1), torch.stack(costs, 1)


# --- operator splitting ---


def split(weight: Tensor, gram: Tensor, pattern: LayerPattern, damping: float = 0.01) -> Tensor:
    """The mask (R, P) at which weights that reproduce the layer's output and weights that obey the pattern have met.

    Meng et al. (2024), "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning", algorithm 1: the alternating direction
    method of multipliers on  min ||X W0 - X W||^2 where W = D, D in the pattern,  with D the projection of W + V / rho, which
    keeps what is largest. Every third step rho grows by a factor of 1.3, 1.2 or 1.1, where the mask of D has changed in at
    least 0.1, 0.005 of its weights or in fewer, and the search ends where it has not changed. As there, inputs are first scaled
    to one length, so that a rho of 0.1 to begin with means the same in every layer. H is damped as in `remove_greedily`.

    Ends after 300 steps at the latest. Costs one eigendecomposition, about 10 P^3, and 4 R P^2 operations a step.
    """
    h, dead = damped(gram, damping)
    lengths = h.diagonal().sqrt()
    h = h / lengths / lengths[:, None]
    dense = weight.double().masked_fill(dead, 0) * lengths
    values, vectors = torch.linalg.eigh(h)
    wanted, dual, obeying = dense @ h, torch.zeros_like(dense), dense
    mask = before = torch.ones_like(dense, dtype=torch.bool)
    rho = 0.1
    for step in range(1, _MOST_ADMM_STEPS + 1):
        w = ((wanted - dual + rho * obeying) @ vectors / (values + rho)) @ vectors.T
        aim = w + dual / rho
        mask = keep_mask(aim.abs(), pattern)
        obeying = aim * mask
        dual = dual + rho * (w - obeying)
        if step % 3 == 0:
            changed = int((mask ^ before).sum())
            if not changed:
                break
            share = changed / int(mask.sum())
            rho *= 1.3 if share >= 0.1 else 1.2 if share >= 0.005 else 1.1
            before = mask
    return mask


# --- exchanges that leave values alone ---


def prune_and_grow(mask: Tensor, weight: Tensor, gram: Tensor, mean: Tensor, scores: Tensor, pattern: LayerPattern) -> Tensor:
    """The mask (R, P) after exchanges that each bring a row's expected error, W x over what is pruned, nearer to zero.

    Zhang et al. (2023), "Dynamic Sparse No Training": a row grows the pruned weight of largest
    sign(error) * W_k E[x_k] / Var[x_k], and prunes the kept one of least `scores` (Wanda's there) among those whose loss brings
    the error nearer to zero too, sign(error) * W_k E[x_k] < 0. Under N:M both are of one group. At most 50 times; a row ends
    where the next exchange would bring nothing, or below an error of 0.1, here in units of the row's own root mean square,
    because the paper's are those of language models. `gram` (P, P) is the mean of x xᵀ, `mean` (P,) that of x.

    Costs R P operations a cycle.
    """
    size = pattern.m if isinstance(pattern, NM) else mask.shape[1]
    mask, part, mean = mask.clone(), weight.double() * mean.double(), mean.double()
    # Rounding makes a constant input's variance anything near zero.
    power = gram.double().diagonal()
    variance = torch.maximum(power - mean.square(), 1e-12 * power).clamp(min=torch.finfo(torch.float64).tiny)
    every = torch.arange(len(mask), device=mask.device)
    enough = _SMALL_ERROR * ((weight.double() @ gram.double()) * weight).sum(1).clamp(min=0).sqrt()
    for _ in range(_MOST_CYCLES):
        error = (part * ~mask).sum(1)
        nearer = error.sign()[:, None] * part  # by growing; the same by pruning moves it away
        may_go = (mask & (nearer < 0)).unflatten(1, (-1, size))
        candidates = ~mask.unflatten(1, (-1, size)) & may_go.any(2, keepdim=True)
        gain, grown = (nearer / variance).masked_fill(~candidates.flatten(1), -torch.inf).max(1)
        group = grown // size
        gone = scores.unflatten(1, (-1, size))[every, group].masked_fill(~may_go[every, group], torch.inf).argmin(1)
        gone = gone + group * size
        after = error - part[every, grown] + part[every, gone]
        better = (gain > 0) & gain.isfinite() & (after.abs() < error.abs()) & (error.abs() > enough)
        if not better.any():
            break
        rows = every[better]
        mask[rows, grown[better]] = True
        mask[rows, gone[better]] = False
    return mask


def swap(mask: Tensor, weight: Tensor, gram: Tensor, pattern: LayerPattern) -> Tensor:
    """The mask (R, P) after exchanges of a kept for a pruned weight of its row that each lower the row's error the most.

    Zimmer et al. (2025), "SparseSwaps": with the values of a row untouched its error is z G zᵀ, z being what is pruned. With
    c = G zᵀ an exchange of the kept weight p for the pruned one u changes it by
    2 w_p c_p + w_p^2 G_pp - 2 w_u c_u + w_u^2 G_uu - 2 w_p w_u G_pu, exactly. Under N:M both are of one group. A row ends where
    no exchange lowers its error, or after 100 of them.

    An exchange costs P^2 operations a row, under N:M M P.
    """
    columns = mask.shape[1]
    size = pattern.m if isinstance(pattern, NM) else columns
    h = gram.double()
    blocks = torch.stack([h[i : i + size, i : i + size] for i in range(0, columns, size)])  # (groups, size, size)
    few = max(1, _CHUNK_BYTES // (8 * columns * size))
    parts = zip(mask.split(few), weight.double().split(few), strict=True)
    return torch.cat([_swapped(own_mask.clone(), own, h, blocks) for own_mask, own in parts])


def _swapped(mask: Tensor, weight: Tensor, gram: Tensor, blocks: Tensor) -> Tensor:
    """For some rows (r, P), in place."""
    size = blocks.shape[1]
    slope = (weight * ~mask) @ gram
    # What is lower by no more than rounding would go to and fro.
    least = 1e-12 * ((weight @ gram) * weight).sum(1)
    working = torch.arange(len(mask), device=mask.device)
    for _ in range(_MOST_SWAPS):
        w, c, kept = (t[working].unflatten(1, (-1, size)) for t in (weight, slope, mask))
        own = w.square() * blocks.diagonal(dim1=1, dim2=2)
        lost = (own + 2 * w * c).masked_fill(~kept, torch.inf)
        won = (own - 2 * w * c).masked_fill(kept, torch.inf)
        change = torch.addcmul(lost[..., None] + won[..., None, :], w[..., None] * w[..., None, :], blocks, value=-2)
        change, at = change.flatten(1).min(1)
        lower = change < -least[working]
        working, at = working[lower], at[lower]
        if not len(working):
            break
        group, place = at // size**2, at % size**2
        pruned, grown = group * size + place // size, group * size + place % size
        mask[working, pruned], mask[working, grown] = False, True
        slope[working] += weight[working, pruned, None] * gram[pruned] - weight[working, grown, None] * gram[grown]
    return mask
