"""Budgets: one share to keep of the whole network, and which layer gets how much of it.

`choose` is a function of plain numbers about each layer (`events.BudgetLayer`): its sizes, and what an allocator goes by, which
`curves` measures. The choice among patterns is exact: `knapsack`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from snows import events
from snows.config import NM, Budget, Dense, InputError, LayerPattern, Unstructured, parse_pattern
from snows.method.sparsity import kept_count, obstacle, packed_bytes

Layer = events.BudgetLayer


def size(layer: Layer) -> int:
    """How many weights the layer has."""
    return math.prod(layer.shape)


def cost(layer: Layer, pattern: LayerPattern, by: str) -> int:
    """What the layer keeps under `pattern`, in weights, multiply-adds of one image (operations), or bytes in float32."""
    kept = size(layer) // pattern.m * pattern.n if isinstance(pattern, NM) else kept_count(size(layer), pattern)
    match by:
        case "weights":
            return kept
        case "operations":
            return kept * layer.positions
    return packed_bytes(size(layer), kept, pattern, 4)


@dataclass(frozen=True)
class Choice:
    """`patterns` by layer, those of overrides too; `share`: what they keep of what the budget counts."""

    patterns: dict[str, LayerPattern]
    share: float


# What an unstructured budget chooses from, layer by layer: eight shares to each factor of two. From their texts, so that these
# say the patterns exactly.
SHARES: tuple[LayerPattern, ...] = (*(parse_pattern(f"{100 - 0.5 * 2 ** (i / 8):.2f}%") for i in range(61)), Dense())
# Where its curves are measured; in between they are interpolated.
MEASURED: tuple[LayerPattern, ...] = tuple(parse_pattern(f"{100 - kept}%") for kept in (1, 2, 4, 8, 16, 32, 64))


def options(kind: str, shape: Sequence[int], budget: Budget) -> list[LayerPattern]:
    """The patterns that a layer may get: of the budget's, those that fit it; with none given, any of `SHARES`."""
    return [pattern for pattern in budget.patterns or SHARES if obstacle(tuple(shape), kind, pattern) is None]


def choose(layers: Sequence[Layer], budget: Budget, fixed: Mapping[str, LayerPattern] | None = None) -> Choice:
    """The pattern of each layer, together within the budget. `fixed` are those that have one already.

    Raises `InputError` for a budget that not even the smallest patterns meet.
    """
    fixed = fixed or {}
    total = sum(cost(layer, Dense(), budget.by) for layer in layers)
    # The small addend undoes the rounding of a share that is no binary fraction.
    taken = sum(cost(layer, fixed[layer.name], budget.by) for layer in layers if layer.name in fixed)
    limit = int(budget.share * total + 1e-6) - taken
    free = [layer for layer in layers if layer.name not in fixed]
    of_each = [options(layer.kind, layer.shape, budget) for layer in free]
    costs = [[cost(layer, pattern, budget.by) for pattern in patterns] for layer, patterns in zip(free, of_each, strict=True)]
    least = sum(map(min, costs))
    if least > limit:
        share = (least + taken) / total
        raise InputError(
            f"A budget of {100 * budget.share:g}% of the {budget.by} cannot be met: with the least that each layer can have "
            f"they keep {100 * share:.3g}%. Raise the budget, give it smaller patterns to choose from, or free layers that "
            "have a pattern of their own."
        )
    if budget.allocate == "loss" or not free:
        losses = [[loss_of(layer.curve, p) for p in patterns] for layer, patterns in zip(free, of_each, strict=True)]
    else:
        targets = _met(free, ALLOCATORS[budget.allocate](free, budget.share), of_each, costs, limit)
        losses = [
            [size(layer) * math.log2(pattern.density / target) ** 2 for pattern in patterns]
            for layer, target, patterns in zip(free, targets, of_each, strict=True)
        ]
    chosen = knapsack(costs, losses, limit)
    patterns = dict(fixed) | {layer.name: of_each[i][chosen[i]] for i, layer in enumerate(free)}
    patterns = {layer.name: patterns[layer.name] for layer in layers}
    return Choice(patterns, sum(cost(layer, patterns[layer.name], budget.by) for layer in layers) / total)


def loss_of(curve: Mapping[str, float], pattern: LayerPattern) -> float:
    """What a curve says of a pattern: as measured; nothing for `dense`; in between shares by a line on log axes, and from the
    largest share on by a line to nothing."""
    if isinstance(pattern, Dense):
        return 0.0
    if str(pattern) in curve:
        return curve[str(pattern)]
    points = sorted((parse_pattern(text).density, loss) for text, loss in curve.items() if text.endswith("%"))
    if not isinstance(pattern, Unstructured) or len(points) < 2:
        raise ValueError(f"The curve says nothing of {pattern}; it holds {', '.join(curve) or 'nothing'}.")
    densities, losses = zip(*points, strict=True)
    if pattern.density > densities[-1]:
        return losses[-1] * (1 - pattern.density) / (1 - densities[-1])
    right = min(max(int(np.searchsorted(densities, pattern.density)), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    along = math.log(pattern.density / x0) / math.log(x1 / x0)
    return math.exp((1 - along) * math.log(max(y0, 1e-30)) + along * math.log(max(y1, 1e-30)))


# --- how much each layer should have, by other rules ---


def uniform(layers: Sequence[Layer], share: float) -> list[float]:
    """The same share of each layer."""
    return [share] * len(layers)


def owl(layers: Sequence[Layer], share: float) -> list[float]:
    """Outlier-weighed layerwise sparsity (Yin et al., 2023, section 3.2): the share of a layer's weights that are outliers,

        D_l = mean over i, j of [A_ij > M mean(A)],   A_ij = ||X_j||_2 |W_ij|,

    says how much it keeps: densities in proportion to D_l, mapped to an interval of width 2 lambda around the overall share.
    M = 5 (see `curves.outliers`), lambda = 0.08, and at most half of the share, or a layer could be left with nothing.
    """
    most = min(0.08, share / 2)
    raised = [2 * most * place for place in _places([layer.outliers for layer in layers])]
    mean = sum(raised) / len(raised)
    return [share + one - mean for one in raised]


def alphapruning(layers: Sequence[Layer], share: float) -> list[float]:
    """AlphaPruning (Lu et al., 2024, equation 2): the sparsity of a layer grows linearly with the exponent alpha_l of its
    spectrum's tail (see `curves.tail`); a heavy tail, a small exponent, tells a layer that has learned much,

        s_l = eta ((alpha_l - alpha_min) / (alpha_max - alpha_min) (s_2 - s_1) + s_1),   s_1, s_2 = 1 -+ tau,

    with eta such that all weights together have the sparsity asked for. tau = 0.3, and at most what leaves about half of the
    share to each layer.
    """
    tau = min(0.3, share / (4 * (1 - share)))
    raw = [1 - tau + 2 * tau * place for place in _places([layer.tail for layer in layers])]
    sizes = [size(layer) for layer in layers]
    eta = (1 - share) * sum(sizes) / sum(size * one for size, one in zip(sizes, raw, strict=True))
    return [max(1 - eta * one, share / 100) for one in raw]


def erdos_renyi(layers: Sequence[Layer], share: float) -> list[float]:
    """Erdős-Rényi, with the kernel (Mocanu et al., 2018; Evci et al., 2020, "Rigging the Lottery", section 3): densities in
    proportion to (n_out + n_in + height + width) / (n_out n_in height width). The factor is the budget's."""
    return [sum(layer.shape) / size(layer) for layer in layers]


ALLOCATORS: dict[str, Callable[[Sequence[Layer], float], list[float]]] = {
    "uniform": uniform,
    "owl": owl,
    "alphapruning": alphapruning,
    "erdos-renyi": erdos_renyi,
}
# What of a layer is to be measured before.
NEEDS = {"loss": "curve", "owl": "outliers", "alphapruning": "tail", "uniform": "", "erdos-renyi": ""}


def _places(values: Sequence[float]) -> list[float]:
    """Each value's place between the least, 0, and the largest, 1; all in the middle where they are alike."""
    least, largest = min(values), max(values)
    return [(value - least) / (largest - least) if largest > least else 0.5 for value in values]


def _met(
    layers: Sequence[Layer],
    densities: Sequence[float],
    of_each: Sequence[Sequence[LayerPattern]],
    costs: Sequence[Sequence[int]],
    limit: int,
) -> list[float]:
    """The densities times one factor, none above 1 nor below what a layer can have, such that they cost `limit`, a cost between
    two patterns being in proportion."""
    points = []
    for patterns, own in zip(of_each, costs, strict=True):
        points.append(tuple(zip(*sorted((p.density, cost) for p, cost in zip(patterns, own, strict=True)), strict=True)))

    def price(factor: float) -> float:
        pairs = zip(densities, points, strict=True)
        return sum(float(np.interp(density * factor, known, prices)) for density, (known, prices) in pairs)

    low, high = 0.0, 1 / min(densities)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if price(middle) <= limit else (low, middle)
    scaled = zip(densities, points, strict=True)
    return [min(max(density * low, known[0]), known[-1]) for density, (known, _) in scaled]


# --- the choice ---


def knapsack(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], limit: int) -> list[int]:
    """Which option each layer gets, so that the losses sum to the least that there is with costs of at most `limit` together.
    Exact: a multiple-choice knapsack (Kellerer, Pferschy & Pisinger, 2004, "Knapsack Problems", chapter 11).

    Dynamic programming over the partial choices that no other beats in both cost and loss. Those that cannot end below the
    best choice known are dropped: of any multiplier, sum min(loss + multiplier * cost) - multiplier * limit is a lower bound
    (Lagrange), and the best multiplier's is close. Costs are whole numbers, 0 or more. Raises `ValueError` where not even the
    cheapest options fit.
    """
    prices = [np.asarray(own, dtype=np.int64) for own in costs]
    values = [np.asarray(own, dtype=np.float64) for own in losses]
    if sum(int(own.min()) for own in prices) > limit:
        raise ValueError(f"The cheapest options cost {sum(int(own.min()) for own in prices)}, more than {limit}.")
    multiplier, known = _relaxed(prices, values, limit)
    best = sum(float(own[i]) for own, i in zip(values, known, strict=True))
    bounds = [float((value + multiplier * price).min()) for price, value in zip(prices, values, strict=True)]
    rest_bound, rest_cost = sum(bounds), sum(int(own.min()) for own in prices)
    slack = 1e-9 * (abs(best) + multiplier * limit)
    cost, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, int]] = []
    for price, value, bound in zip(prices, values, bounds, strict=True):
        rest_bound, rest_cost = rest_bound - bound, rest_cost - int(price.min())
        new_cost, new_loss = (cost[:, None] + price).ravel(), (loss[:, None] + value).ravel()
        lowest = new_loss + multiplier * (new_cost - limit) + rest_bound
        open_places = np.flatnonzero((new_cost + rest_cost <= limit) & (lowest <= best + slack))
        order = open_places[np.lexsort((new_loss[open_places], new_cost[open_places]))]
        before = np.minimum.accumulate(np.concatenate(([np.inf], new_loss[order][:-1])))
        order = order[new_loss[order] < before]
        steps.append((order, len(price)))
        cost, loss = new_cost[order], new_loss[order]
    place, chosen = int(loss.argmin()), []
    for order, count in reversed(steps):
        place, option = divmod(int(order[place]), count)
        chosen.append(option)
    return chosen[::-1]


def _relaxed(prices: Sequence[np.ndarray], values: Sequence[np.ndarray], limit: int) -> tuple[float, list[int]]:
    """The multiplier at which the options of least loss + multiplier * cost just fit, and those options, with what is left
    spent on single exchanges that lower the loss the most."""

    def at(multiplier: float) -> list[int]:
        # Among equals the cheapest.
        return [int(np.lexsort((price, value + multiplier * price))[0]) for price, value in zip(prices, values, strict=True)]

    def spent(chosen: Sequence[int]) -> int:
        return sum(int(price[i]) for price, i in zip(prices, chosen, strict=True))

    if spent(at(0.0)) <= limit:
        return 0.0, at(0.0)
    low, high = 0.0, 1.0
    while spent(at(high)) > limit:
        if high > 1e300:  # losses so far apart that no multiplier tells them: the cheapest fit
            return 0.0, [int(price.argmin()) for price in prices]
        low, high = high, 4 * high
    for _ in range(120):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(at(middle)) > limit else (low, middle)
    chosen = at(high)
    while True:
        left, gains = limit - spent(chosen), []
        for i, (price, value) in enumerate(zip(prices, values, strict=True)):
            gain = np.where(price - price[chosen[i]] <= left, value[chosen[i]] - value, -np.inf)
            gains.append((float(gain.max()), -i, int(gain.argmax())))
        most, place, option = max(gains)
        if most <= 0:
            return high, chosen
        chosen[-place] = option
