"""What a budget goes by, measured on the dense network and the calibration images: see `events.BudgetLayer`."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from snows.config import Budget, Dense, LayerPattern, PruneConfig
from snows.events import BudgetLayer
from snows.method.budget import MEASURED, options
from snows.method.coverage import Coverage, PruneError, share_out
from snows.method.graph import Frontier, NetworkGraph, Site, Window
from snows.method.objective import Batch, mean_squares
from snows.method.operations import move
from snows.method.problem import SiteProblem
from snows.method.rows import input_gram
from snows.method.sparsity import keep_mask, to_matrix
from snows.method.updates import least_squares

OUTLIER = 5.0  # times the mean of its layer: OWL's M
# Curves of so many images and of four times as many differ by a tenth, where layers differ a hundredfold.
MOST_IMAGES = 128


def layers(
    graph: NetworkGraph,
    covered: Coverage,
    config: PruneConfig,
    batches: Sequence[Tensor],
    device: torch.device,
    needs: Collection[str],
    on_images: Callable[[int, int], None] = lambda done, total: None,
) -> list[BudgetLayer]:
    """The layers that the budget of `config` is of, in network order, with what `needs` names of `curve`, `outliers` and `tail`
    measured of those that have no pattern of their own. `on_images` is told how many of how many images went through a layer,
    and may raise to cancel.

    Raises `PruneError` where an error is not a number.
    """
    budget = config.pattern
    assert isinstance(budget, Budget)
    found = unmeasured(graph, covered)
    free = [site for site in covered.sites if site.name not in covered.own]
    measured: dict[str, dict[str, Any]] = {site.name: {} for site in free}
    if "tail" in needs:
        for site in free:
            measured[site.name]["tail"] = tail(to_matrix(graph.parameters[site.name]))
    if {"curve", "outliers"} & set(needs):
        for site, gram, problem in _problems(graph, free, config, batches, device, on_images):
            if "outliers" in needs:
                measured[site.name]["outliers"] = outliers(to_matrix(problem.weight), gram)
            if "curve" in needs:
                measured[site.name]["curve"] = {str(pattern): _error(problem, pattern) for pattern in measured_at(site, budget)}
    return [replace(layer, **measured.get(layer.name, {})) for layer in found]


def unmeasured(graph: NetworkGraph, covered: Coverage) -> list[BudgetLayer]:
    """The layers that a budget is of, in network order: those that it may prune, and those that have a pattern of their own."""
    return [
        BudgetLayer(name=site.name, kind=site.kind, shape=site.shape, positions=graph.positions(site))
        for site in graph.sites
        if site.name in covered.patterns or site.name in covered.own
    ]


def tail(weight: Tensor) -> float:
    """The exponent of the power law that the larger half of the eigenvalues of W Wᵀ follows, by Hill's estimator
    (AlphaPruning: Lu et al., 2024, equation 1): of the n eigenvalues in ascending order, with k = n / 2,

        alpha = 1 + k / sum over i = 1 .. k of ln(lambda_(n-i+1) / lambda_(n-k)).

    `weight` (R, P), of a convolution as `to_matrix` has it. 0 where there is but one eigenvalue.
    """
    values = torch.linalg.svdvals(weight.double()).square().sort().values
    k = len(values) // 2
    if k == 0:
        return 0.0
    values = values.clamp(min=torch.finfo(torch.float64).tiny)
    spread = float((values[-k:] / values[-k - 1]).log().sum())
    return 1 + k / max(spread, 1e-12)


def outliers(weight: Tensor, gram: Tensor) -> float:
    """The share of a layer's weights (R, P) whose magnitude times the norm of their input is more than five times the layer's
    mean: see `budget.owl`. `gram` (P, P) is the mean of x xᵀ over the inputs."""
    scores = weight.abs().double() * gram.diagonal().double().clamp(min=0).sqrt()
    return float((scores > OUTLIER * scores.mean()).double().mean())


def measured_at(site: Site, budget: Budget) -> list[LayerPattern]:
    """The patterns at which a layer's curve is measured."""
    patterns = options(site.kind, site.shape, budget) if budget.patterns else MEASURED
    return [pattern for pattern in patterns if not isinstance(pattern, Dense)]


def _error(given: SiteProblem, pattern: LayerPattern) -> float:
    """How far the network's output moves when the layer alone is pruned, relative to its norm: by least squares, on the mask
    that magnitude chooses and exchanges within the layer improve.

    Distances, not their squares: those of several layers at once come to at most their sum. Of what was tried as the loss of a
    layer it takes the two bundled networks furthest (README).
    """
    dense, _, _ = to_matrix(given.weight), given.exact_gram, given.cross  # the matrices once for all patterns
    result = least_squares(given.with_mask(keep_mask(dense.abs(), pattern), dense, pattern))
    (loss,) = result.problem.objective.losses(result.kept)
    (scale,) = mean_squares(given.batches)
    error = math.sqrt(loss / scale) if scale > 0 else 0.0
    if not math.isfinite(error):
        raise PruneError(
            f"{given.window.site.name}: pruned alone to {pattern}, its error at the network's output is NaN or infinite. Use "
            "float64, or check the weights and images."
        )
    return error


def _problems(
    graph: NetworkGraph,
    sites: Sequence[Site],
    config: PruneConfig,
    batches: Sequence[Tensor],
    device: torch.device,
    on_images: Callable[[int, int], None],
) -> Iterator[tuple[Site, Tensor, SiteProblem]]:
    """Each site, its inputs' Gram matrix (P, P), and its problem in the dense network, with a window that ends at the network's
    output. The mask is yet to be chosen."""
    windows = [Window(graph, [site], [graph.output]) for site in sites]
    few: list[Tensor] = []
    for batch in batches:
        few.append(batch[: MOST_IMAGES - sum(map(len, few))])
    batches = share_out([batch for batch in few if len(batch)], windows, config)
    images = sum(map(len, batches))
    frontier, parameters = Frontier(graph, batches), graph.bind({})
    for number, (site, window) in enumerate(zip(sites, windows, strict=True)):
        on_images(number * images, len(sites) * images)
        frontier.advance(graph.index[site.node], parameters, device, keep=window.outside)
        weight, given = parameters[graph.tensor_node(site.name)], []
        for i, batch in enumerate(batches):
            held = {n: move(frontier.values(i)[n], device) for n in window.outside}
            inputs = window.inputs(held, parameters)
            with torch.no_grad():
                targets = window.outputs(weight, inputs)
            given.append(
                Batch({n: v if n in parameters else move(v, frontier.storage) for n, v in inputs.items()}, targets, len(batch))
            )
        site_inputs = [batch.inputs[site.input] for batch in given]
        gram = input_gram(site, site_inputs, device)
        problem = SiteProblem(
            window,
            weight,
            torch.ones_like(to_matrix(weight), dtype=torch.bool),
            Dense(),
            given,
            site_inputs,
            propagated=True,
            bias=None,
            config=config.solver,
            device=device,
            seed=config.seed,
            refinement="layer",
            ridge=config.ridge / images,
            gram=gram,
        )
        yield site, gram, problem
