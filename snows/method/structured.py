"""Which units are cut away: the masks of a structured pattern, for a whole network at once.

All is measured in the dense network, where every unit still is: of each layer that reads units, one Gram matrix of its inputs
serves all its rows. `Choice` says which units go, and where each layer's fit begins.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from snows.config import PruneConfig, Structured
from snows.method.coverage import Coverage
from snows.method.graph import Frontier, NetworkGraph, Site, Window
from snows.method.operations import Values
from snows.method.rows import input_gram
from snows.method.sparsity import from_matrix, keep_highest, to_matrix
from snows.method.units import NO_UNITS, Group, Units


@dataclass(frozen=True)
class Choice:
    """`gone`: the numbers of the units that are cut. `masks` (R, P), True = kept, and `start`, the weights that the network
    has before any layer is fitted, by site: what reads units makes up at once for those that are gone."""

    units: Units
    gone: Tensor
    masks: dict[str, Tensor]
    start: dict[str, Tensor]

    def removed(self, node: fx.Node) -> Tensor | None:
        """Where a value belongs to a unit that is gone: bool, of the value's sizes or 1; None where it nowhere does."""
        numbers = self.units.numbers.get(node)
        if numbers is None or isinstance(numbers, list):
            return None
        gone = torch.isin(numbers, self.gone)
        return gone if bool(gone.any()) else None


def stay(group: Group, pattern: Structured) -> int:
    """How many units of a group a pattern leaves: one at least."""
    return max(1, round(pattern.density * len(group)))


@torch.no_grad()
def choose(
    graph: NetworkGraph,
    covered: Coverage,
    config: PruneConfig,
    batches: Sequence[Tensor],
    device: torch.device,
    check: Callable[[], None] = lambda: None,
) -> Choice:
    """The units of `covered.groups` that go, each group's share, by `config.mask`.

    magnitude: the root of the sum of the squares of all weights that make or read a unit (as in Fang et al., 2023, "DepGraph:
    Towards Any Structural Pruning"). random: uniform. taylor: see `taylor`. obc: see `remove`.
    """
    assert covered.units is not None
    sites = {site.name: site for site in graph.sites}
    dense = {name: to_matrix(graph.parameters[name]) for group, _ in covered.groups for name in group.sites}
    readers = [site for site in graph.sites if any(site.name in group.columns for group, _ in covered.groups)]
    grams = _grams(graph, readers, config, batches, device, check)
    scores = taylor(graph, readers, batches, device, check) if config.mask == "taylor" else {}
    gone = []
    for index, (group, pattern) in enumerate(covered.groups):
        check()
        count = stay(group, pattern)
        columns = {name: group.matrix_columns(sites[name]).to(device) for name in group.columns}
        if config.mask == "obc":
            kept = remove([Reading(dense[name], grams[name], columns[name]) for name in columns], count)
        else:
            if config.mask == "magnitude":
                squares = sum(dense[name].double().square().sum(0)[places].sum(1) for name, places in columns.items())
                for name, rows in group.rows.items():
                    squares = squares + dense[name].double().square().sum(1)[rows.to(device)].sum(1)
                score = squares.sqrt()  # type: ignore[union-attr]
            elif config.mask == "taylor":
                score = sum(scores[name].sum(0)[places].sum(1) for name, places in columns.items()).abs()  # type: ignore[union-attr]
            else:
                generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
                score = torch.rand(len(group), generator=generator, dtype=torch.float64).to(device)
            kept = keep_highest(score, count)
        gone.append(group.numbers[~kept.cpu()])
    return _choice(graph, covered, torch.cat([NO_UNITS, *gone]), grams, fit=config.update != "none")


def _choice(graph: NetworkGraph, covered: Coverage, gone: Tensor, grams: dict[str, Tensor], fit: bool) -> Choice:
    assert covered.units is not None
    sites = {site.name: site for site in graph.sites}
    masks: dict[str, Tensor] = {}
    for group, _ in covered.groups:
        here = torch.isin(group.numbers, gone)
        for name in group.sites:
            weight = to_matrix(graph.parameters[name])
            mask = masks.setdefault(name, torch.ones_like(weight, dtype=torch.bool))
            if name in group.rows:
                mask[group.rows[name][here].flatten().to(mask.device)] = False
            if name in group.columns:
                mask[:, group.matrix_columns(sites[name])[here].flatten().to(mask.device)] = False
    start = {}
    for name, mask in masks.items():
        weight = to_matrix(graph.parameters[name])
        columns = mask.any(0)
        if fit and name in grams and not bool(columns.all()):
            gram = grams[name]
            solved = torch.linalg.solve(gram[columns][:, columns], gram[columns] @ weight.double().T).T
            weight = weight.clone()
            weight[:, columns] = solved.to(weight.dtype)
        start[name] = from_matrix(weight.masked_fill(~mask, 0), sites[name].shape)
    return Choice(covered.units, gone, masks, start)


def _grams(
    graph: NetworkGraph,
    readers: Sequence[Site],
    config: PruneConfig,
    batches: Sequence[Tensor],
    device: torch.device,
    check: Callable[[], None],
) -> dict[str, Tensor]:
    """Of each layer's inputs in the dense network, mean over positions, (P, P) in float64, with the ridge of its fit."""
    frontier, parameters, grams = Frontier(graph, batches), graph.bind({}), {}
    for site in readers:
        frontier.advance(graph.index[site.node], parameters, device, check=check)
        gram = input_gram(site, [frontier.values(i)[site.input] for i in range(len(frontier))], device).double()
        mean = gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        gram.diagonal().add_(max(config.ridge / sum(map(len, batches)), 1e-8) * mean)
        grams[site.name] = gram
    return grams


# --- by reconstruction ---


class Reading:
    """One layer that reads units: what its output loses without some of them, once the others make up for it.

    The loss of a set of columns is  min over W' of  tr (W - W') G (W - W')^T  with W' zero outside of it, as a share of
    tr W G W^T: the optimal brain surgeon (Hassibi & Stork, 1993) over whole columns, which all rows share. The tableau holds,
    for the columns inside, the inverse of their part of G and the fitted weights; for those outside, G less what the inside
    explains, and what is left to fit. A unit's columns B then cost tr X_B^T T_BB^-1 X_B, and to take them out is one principal
    pivot on them, which is its own inverse.

    `weight` (R, P), `gram` (P, P), `columns` (U, c).
    """

    def __init__(self, weight: Tensor, gram: Tensor, columns: Tensor) -> None:
        weight, self.columns = weight.double(), columns
        self.size = float(((weight @ gram) * weight).sum()) or 1.0
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self.tableau, self.inputs = torch.cat([inverse, weight.T], 1), len(gram)

    def values(self) -> Tensor:
        """What each unit costs to take out, as a share of the output; of one that is out, what it gained: (U,)."""
        own = self.tableau[self.columns[:, :, None], self.columns[:, None, :]]
        right = self.tableau[:, self.inputs :][self.columns]
        if own.shape[1] == 1:
            return right.square().sum((1, 2)) / own[:, 0, 0] / self.size
        return (right * torch.linalg.solve(own, right)).sum((1, 2)) / self.size

    def pivot(self, unit: Tensor) -> None:
        """Take a unit out that is inside, or in that is outside."""
        places = self.columns[unit]
        inverse = torch.linalg.inv(self.tableau[places][:, places])
        row, column = inverse @ self.tableau[places], self.tableau[:, places].clone()
        self.tableau.addmm_(column, row, alpha=-1)
        self.tableau[places] = row
        self.tableau[:, places] = -column @ inverse
        self.tableau[places[:, None], places] = inverse


def remove(readings: Sequence[Reading], count: int) -> Tensor:
    """The mask (U,) of `count` units, after the unit that costs the least, all others adjusted, was taken out time and again.
    Frantar & Alistarh (2022), "Optimal Brain Compression", section 4, over columns instead of weights."""
    kept = torch.ones(len(readings[0].columns), dtype=torch.bool, device=readings[0].columns.device)
    while int(kept.sum()) > count:
        cost = torch.stack([reading.values() for reading in readings]).sum(0)
        least = cost.masked_fill(~kept, torch.inf).argmin()
        for reading in readings:
            reading.pivot(least)
        kept[least] = False
    return kept


# --- by a Taylor expansion ---


def taylor(
    graph: NetworkGraph, readers: Sequence[Site], batches: Sequence[Tensor], device: torch.device, check: Callable[[], None]
) -> dict[str, Tensor]:
    """W * dL/dW of each reader (R, P): summed over a unit's columns and taken by its size, the first-order estimate of what the
    loss changes by without it (Molchanov et al., 2017, "Pruning Convolutional Neural Networks for Resource Efficient
    Inference").

    No labels are asked for: the loss is the cross entropy of the dense network's answers with the class that it itself finds
    the most likely, mean over the images.
    """
    window, dense = Window(graph, readers, [graph.output]), graph.bind({})
    weights = torch.cat([graph.parameters[site.name].flatten() for site in readers])
    total, images = torch.zeros_like(weights, dtype=torch.float64), sum(map(len, batches))
    for batch in batches:
        check()
        x = graph.laid_out(batch.to(device))
        values: Values = {graph.input: x, **graph.run(x, capture={*window.outside} - {graph.input})[1]}
        with torch.enable_grad():
            leaf = weights.clone().requires_grad_()
            assigned = leaf.view(readers[0].shape) if len(readers) == 1 else leaf
            logits = window.outputs(assigned, window.inputs(values, dense))[0].flatten(1)
            loss = F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum") / images
            total += torch.autograd.grad(loss, leaf)[0].double()
    parts = (weights.double() * total).split([math.prod(site.shape) for site in readers])
    return {site.name: to_matrix(part.view(site.shape)) for site, part in zip(readers, parts, strict=True)}
