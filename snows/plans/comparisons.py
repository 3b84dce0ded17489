"""Many ways to prune one network, side by side: which to try, and what came of each.

`expand` makes the configs, `RunStore.create_comparison` makes ordinary runs of them, and `summarize` sets whatever has finished
side by side. Runs that differ in nothing but their seed are one row, with its spread.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from snows.config import InputError, PruneConfig, RunConfig
from snows.measures.names import MEASURES, Measure
from snows.method import cards

MOST_RUNS = 200


@dataclass(frozen=True)
class Method:
    """How weights are chosen, what the kept ones become, what they are to reproduce, by what the mask is refined, whether batch
    norms measure their statistics again, toward what all layers' weights move together in the end, whether channels are
    repaired, and whether a fit has the ridge that the settings ask for, or none."""

    mask: str
    update: str
    targets: str = "dense"
    refine: str = "none"
    batch_norm_reestimate: bool = False
    joint: str = "none"
    repair: bool = False
    has_ridge: bool = True

    @property
    def touches(self) -> tuple[str, ...]:
        """What is no longer as in the dense network: mask, values, channel statistics, statistics of batch norms."""
        parts = {
            "mask": True,
            "values": self.update != "none" or self.joint != "none",
            "channel statistics": self.repair,
            "statistics": self.batch_norm_reestimate,
        }
        return tuple(name for name, touched in parts.items() if touched)


# As published: what a paper leaves alone is left alone, and what it fits is fitted to the dense layer's output on the pruned
# network's input, without a ridge. OBS on a mask that is given is least squares; so are OBC's values on its mask, and ALPS's,
# which the paper solves for by conjugate gradient. References are those of the cards.
METHODS = {
    "Magnitude only": Method("magnitude", "none"),
    "Wanda": Method("wanda", "none"),
    "SparseGPT": Method("sparsegpt", "sparsegpt", "propagated", has_ridge=False),
    "Least squares (OBS)": Method("magnitude", "least-squares", "propagated", has_ridge=False),
    "SNOWS, as published": Method("magnitude", "snows", "propagated", has_ridge=False),
    "SNOWS, dense targets": Method("magnitude", "snows", "dense"),
    "SNOWS, refined mask": Method("magnitude", "snows", "dense", "window"),
    "SNOWS, joint fit": Method("magnitude", "snows", "dense", "window", joint="network"),
    "Block reconstruction": Method("magnitude", "none", joint="network"),
    "Short distillation": Method("magnitude", "none", joint="answers"),
    "RIA": Method("ria", "none"),
    "ALPS": Method("alps", "least-squares", "propagated", has_ridge=False),
    "OBC": Method("obc", "least-squares", "propagated", has_ridge=False),
    "SparseSwaps": Method("sparseswaps", "none"),
    "DSnoT": Method("dsnot", "none"),
    "Variance repair": Method("magnitude", "none", repair=True),
    "Batch-norm recalibration": Method("magnitude", "none", batch_norm_reestimate=True),
    "Random": Method("random", "none"),
}
# What is compared where nothing else is chosen: the common ones, none of which takes much longer than the others.
USUAL = tuple(METHODS)[:7]
_TARGETS = {
    "dense": "The fit is to the untouched network's values, so that losses of earlier layers are repaired too.",
    "propagated": "The fit is to the dense layer's output on the pruned network's input.",
}


@dataclass(frozen=True)
class MethodCard:
    """A method in sentences: `idea` part by part, `references` without repetition, `touches` and `cost` in words."""

    idea: str
    references: tuple[str, ...]
    touches: str
    cost: str


def describe(method: Method) -> MethodCard:
    """What a method of known parts is, from the cards of its parts."""
    parts = [cards.MASKS[method.mask], cards.UPDATES[method.update]]
    if method.refine != "none":
        parts.append(cards.REFINEMENT)
    if method.repair:
        parts.append(cards.REPAIR)
    if method.batch_norm_reestimate:
        parts.append(cards.BATCH_NORM)
    if method.joint != "none":
        parts.append(cards.JOINTS[method.joint])
    ideas = [part.idea for part in parts]
    ideas.insert(2, _TARGETS[method.targets] if method.update != "none" else "")
    ideas.insert(3, "" if method.has_ridge else "Nothing pulls the weights toward their dense values.")
    costs = [part.cost for part in parts if part.cost != cards.NO_COST] or [cards.NO_COST]
    references = dict.fromkeys(part.reference for part in parts if part.reference)
    idea, cost = (" ".join(dict.fromkeys(filter(None, sentences))) for sentences in (ideas, costs))
    return MethodCard(idea, tuple(references), " and ".join(method.touches), cost)


def combinations(masks: Sequence[str], updates: Sequence[str], targets: Sequence[str], refine: Sequence[str]) -> list[Method]:
    """Every method of these parts, each once: targets and refinement count only for what is fitted."""
    methods = []
    for mask, update, target, refinement in itertools.product(masks, updates, targets, refine):
        if update == "none":
            target = "dense"
        if update in ("none", "sparsegpt"):
            refinement = "none"
        methods.append(Method(mask, update, target, refinement))
    return list(dict.fromkeys(methods))


def expand(
    base: RunConfig,
    methods: Sequence[Method],
    patterns: Sequence[str],
    k_steps: Sequence[int],
    seeds: Sequence[int],
    num_calibration: Sequence[int] = (),
) -> list[RunConfig]:
    """Every combination as a config of its own, else as `base`; K multiplies only what looks K operations ahead. No number of
    calibration images is the base's own.

    A first seed comes whole before the next one, so that a first whole table is there early. Raises `ValidationError` for a
    value that cannot be, `InputError` for none or too many combinations.
    """
    for what, given in {"method": methods, "pattern": patterns, "seed": seeds}.items():
        if not given:
            raise InputError(f"There is no {what} to compare. Choose at least one.")
    if not k_steps and any(method.update == "snows" for method in methods):
        raise InputError("SNOWS needs a K: how many operations ahead it looks. Choose at least one.")
    content = base.model_dump()
    made: dict[str, RunConfig] = {}
    sizes = num_calibration or (base.num_calibration,)
    for seed, images, pattern, method in itertools.product(seeds, sizes, patterns, methods):
        for k in k_steps if method.update == "snows" else (base.prune.k_steps,):
            sweeps = base.prune.sweeps if method.update == "snows" else 1
            changes = {**asdict(method), "pattern": pattern, "k_steps": k, "seed": seed, "sweeps": sweeps}
            if not changes.pop("has_ridge"):
                changes["ridge"] = 0.0
            changes["batch_norm_reestimate"] |= base.prune.batch_norm_reestimate
            changes["repair"] |= base.prune.repair
            # From the inside out, so that a sentence names the setting and not the path to it.
            prune = PruneConfig.model_validate(content["prune"] | changes)
            config = RunConfig.model_validate(content | {"num_calibration": images, "prune": prune})
            made[config.model_dump_json()] = config
    if len(made) > MOST_RUNS:
        raise InputError(f"These are {len(made)} runs, and a comparison has at most {MOST_RUNS}. Choose fewer at once.")
    return list(made.values())


# --- what came of them ---


# What rows are compared by: the best of each is marked.
COMPARED = ("accuracy", "agreement", "divergence", "density", "packed_bytes", "multiply_adds", "seconds")
# What is read of a run besides: the dense network's own, and what its solver asked for.
_BESIDES = ("accuracy_dense", "dense_bytes", "dense_multiply_adds", "num_products")
# A network is of use that keeps this share of what the dense one has over chance.
USEFUL = 0.5
_BITS = 32  # of a weight of the dense network


@dataclass(frozen=True)
class Spread:
    """A value over seeds: their mean, and their sample standard deviation, None where there is but one."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def said(self, measure: str) -> str:
        """As a value of that measure of `measures.names`: `93.31 ± 0.12 %`."""
        return MEASURES[measure].say(self.mean, self.deviation)


@dataclass(frozen=True)
class Row:
    """One setting over its seeds. `runs`: their places in what was given. `values` by name of a measure; also
    `accuracy_dense`, `change` (of accuracy, against the dense network) and `bits` (of storage, a weight). `missing`: those that
    a run has no value of. `chance`: the accuracy of guessing, 0 where it is not on record. `by_seed`: the values themselves.

    `best`: the measures in which no row of its network and pattern that `is_of_use` is better. `level`: those in which a better
    row's lead is within the noise, see `is_level`.
    """

    config: RunConfig
    runs: list[int]
    values: dict[str, Spread]
    missing: set[str]
    num_evaluation: int
    chance: float = 0.0
    by_seed: dict[str, dict[int, float]] = field(default_factory=dict)
    best: set[str] = field(default_factory=set)
    level: set[str] = field(default_factory=set)

    @property
    def is_of_use(self) -> bool:
        """Whether it keeps half of what the dense network has over chance: of accuracy, or of agreement where there is none.

        What is small or quick and knows next to nothing is no choice, so it is the best of no column.
        """
        if "accuracy" in self.values and "accuracy_dense" in self.values:
            value, whole = self.values["accuracy"].mean, self.values["accuracy_dense"].mean
        elif "agreement" in self.values:
            value, whole = self.values["agreement"].mean, 1.0
        else:
            return True  # nothing is known against it
        return value - self.chance >= USEFUL * (whole - self.chance)


def summarize(finished: Sequence[tuple[RunConfig, Mapping[str, float | None]]]) -> list[Row]:
    """A row a setting, in the order of their first runs. Takes configs and metrics.

    The best of each column is marked, among the rows of one network, its images and one pattern that are of use: what keeps
    twice as many weights is no better method. Where all of these are alike, or there is but one, none is marked.
    """
    groups: dict[str, list[int]] = {}
    for place, (config, _) in enumerate(finished):
        groups.setdefault(but_for_the_seed(config), []).append(place)
    rows = [_row(finished, places) for places in groups.values()]
    alike: dict[tuple[str | None, ...], list[Row]] = {}
    for row in rows:
        config = row.config
        alike.setdefault((config.model, config.checkpoint, config.data, str(config.prune.pattern)), []).append(row)
    for group in alike.values():
        for name in COMPARED:
            _mark([row for row in group if name in row.values], name, MEASURES[name])
    return rows


def but_for_the_seed(config: RunConfig) -> str:
    """The same text for configs that differ in nothing but the seed, and in what changes no result."""
    prune = config.prune.model_copy(update={"seed": 0})
    return config.model_copy(update={"name": "", "num_held_back": 0, "prune": prune}).model_dump_json()


def _row(finished: Sequence[tuple[RunConfig, Mapping[str, float | None]]], places: list[int]) -> Row:
    measured = [finished[place][1] for place in places]
    seeds = [finished[place][0].prune.seed for place in places]
    values, by_seed = {}, {}
    for name in (*COMPARED, *_BESIDES):
        over_seeds = [value for metrics in measured if (value := metrics.get(name)) is not None]
        # A time is no result: those that are on record stand for the others too.
        if over_seeds and (name == "seconds" or len(over_seeds) == len(measured)):
            values[name] = Spread.of(over_seeds)
            if len(set(seeds)) == len(seeds) == len(over_seeds):
                by_seed[name] = dict(zip(seeds, over_seeds, strict=True))
    if "accuracy" in values and "accuracy_dense" in values:
        values["change"] = Spread.of([(m["accuracy"] or 0.0) - (m["accuracy_dense"] or 0.0) for m in measured])
    if "packed_bytes" in values and "dense_bytes" in values:
        values["bits"] = Spread.of([_BITS * (m["packed_bytes"] or 0.0) / (m["dense_bytes"] or 1.0) for m in measured])
    images = min(int(metrics.get("num_evaluation") or 0) for metrics in measured)
    chance = max(metrics.get("chance") or 0.0 for metrics in measured)
    without = {name for metrics in measured for name, value in metrics.items() if value is None}
    if {"accuracy", "accuracy_dense"} & without:
        without.add("change")
    config = finished[places[0]][0]
    if any(finished[place][0].name != config.name for place in places):  # a name of one is none of all
        config = config.model_copy(update={"name": ""})
    return Row(config, places, values, without, images, chance, by_seed)


def dense_row(rows: Sequence[Row]) -> Row | None:
    """The dense network beside `rows` of it, as far as their runs measured it; None where they did not."""
    values = {"agreement": Spread.of([1.0]), "divergence": Spread.of([0.0]), "density": Spread.of([1.0])}
    of_dense_network = {"accuracy": "accuracy_dense", "packed_bytes": "dense_bytes", "multiply_adds": "dense_multiply_adds"}
    for name, of_dense in of_dense_network.items():
        if (known := next((row.values[of_dense] for row in rows if of_dense in row.values), None)) is not None:
            values[name] = Spread.of([known.mean])
    if "packed_bytes" in values:
        values["bits"] = Spread.of([float(_BITS)])
    measured = {name: spread for name, spread in values.items() if any(name in row.values for row in rows)}
    return Row(rows[0].config, [], measured, set(), rows[0].num_evaluation) if measured else None


def _mark(rows: list[Row], name: str, measure: Measure) -> None:
    useful = [row for row in rows if row.is_of_use]
    if not useful or len({row.values[name].said(name) for row in rows}) < 2:
        return
    choose = max if measure.more_is_better else min
    best = choose(useful, key=lambda row: row.values[name].mean)
    for row in useful:
        # Also what is said alike: nobody could see why the other has the star.
        if row is best or row.values[name].said(name) == best.values[name].said(name):
            row.best.add(name)
        elif is_level(row.values[name], best.values[name], image_noise(row, best, name) if measure.of_images else 0.0):
            row.level.add(name)


def difference(one: Row, other: Row, name: str) -> Spread:
    """By how much `one` is above `other` in a measure, with its spread over seeds.

    Seed by seed where both have the same ones: a seed draws the same calibration images for both, and what these do to both
    alike is no difference. Else between the means, the spread being that of two that have nothing to do with each other; none
    where one of the two has a single seed.
    """
    first, second = one.by_seed.get(name, {}), other.by_seed.get(name, {})
    if first and first.keys() == second.keys():
        return Spread.of([first[seed] - second[seed] for seed in first])
    above, below = one.values[name], other.values[name]
    spreads = [spread.deviation for spread in (above, below) if spread.deviation is not None]
    deviation = math.hypot(*spreads) if len(spreads) == 2 else None
    return Spread(above.mean - below.mean, deviation, min(above.count, below.count))


def image_noise(one: Row, other: Row, name: str) -> float:
    """At most the variance that the choice of evaluation images gives to the difference of two shares of them.

    That of two independent samples; but both networks saw the same images, and can be unequally right only where one of them
    left the dense network's answer, so often less. `comparison.sign_test` looks at the images themselves.
    """
    images = min(one.num_evaluation, other.num_evaluation)
    shares = [row.values[name].mean for row in (one, other)]
    apart = [sum(share * (1 - share) for share in shares)]
    if all("agreement" in row.values for row in (one, other)):
        apart.append(sum(1 - row.values["agreement"].mean for row in (one, other)))
    return min(apart) / images if images else 0.0


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Between which shares the true one lies, with 95 % confidence, where it was `share` of `count`: Wilson's interval (1927),
    which stays within 0 and 1 and holds for shares near them too."""
    middle, reach = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (middle - reach) / (1 + z**2 / count), (middle + reach) / (1 + z**2 / count)


def is_level(one: Spread, other: Spread, image_noise: float = 0.0) -> bool:
    """Whether two means are within two standard errors of each other, so that chance alone may have made the difference:
    that of the seeds, and that of the images, a variance."""
    seeds = sum(s.deviation**2 / s.count for s in (one, other) if s.deviation is not None)
    return abs(one.mean - other.mean) < 2 * math.sqrt(seeds + image_noise)


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Which points no other beats: none has at most its cost and at least its value, and one of the two better."""
    points = list(zip(costs, values, strict=True))
    return [not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points) for cost, value in points]
