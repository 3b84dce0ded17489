"""How far ahead to look, and on how many images: one setting pruned with several K, or several numbers of calibration images,
what each brings and costs, and which is enough.

`expand` makes the configs, `RunStore.create_comparison` makes ordinary runs of them, `curves` puts those that differ in nothing
but what is swept (and the seed) on one curve each, and `recommend` chooses on a curve. How K should grow with the depth of the
network is open (Lucas and Mazumder, 2025); so a curve also knows how many operations its network has.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from snows.config import InputError, RunConfig, as_path
from snows.events import RunFinished, SiteFinished
from snows.measures.names import MEASURES
from snows.plans import comparisons
from snows.plans.comparisons import MOST_RUNS, Method, Row, Spread, image_noise, is_level, summarize, wilson
from snows.plans.words import data_name, mask_name, method_name, network_name, set_apart
from snows.runs.store import Run

# Measured beside what comparisons compare by. Errors are relative to the target's mean square, of the layer in the middle.
OF_LAYERS = ("own_error", "window_error", "held_back_error", "memory")


@dataclass(frozen=True)
class Axis:
    """What a study sweeps. `value` of a config, the config `without` it, and the words of it in a sentence."""

    value: Callable[[RunConfig], int]
    without: Callable[[RunConfig], RunConfig]
    say: Callable[[int], str]
    noun: str  # one value of it
    things: str  # what there is more or less of
    least: str
    plural: bool  # whether what `say` gives is one thing or several


AXES = {
    "k": Axis(
        lambda config: config.prune.k_steps,
        lambda config: config.model_copy(update={"prune": config.prune.model_copy(update={"k_steps": 0})}),
        lambda value: f"K = {value}",
        noun="K",
        things="K",
        least="smallest",
        plural=False,
    ),
    "images": Axis(
        lambda config: config.num_calibration,
        lambda config: config.model_copy(update={"num_calibration": 1}),
        lambda value: f"{value:,} image{'s' if value > 1 else ''}",
        noun="number",
        things="images",
        least="fewest",
        plural=True,
    ),
}


def swept(configs: Sequence[RunConfig]) -> list[str]:
    """The axes along which these configs differ: K of those that look ahead, the number of images of those that are fitted."""
    on = {
        "k": [config for config in configs if config.prune.update == "snows"],
        "images": [config for config in configs if config.prune.update != "none"],
    }
    return [name for name, axis in AXES.items() if len({axis.value(config) for config in on[name]}) > 1]


def usual_axis(configs: Sequence[RunConfig]) -> str:
    """K, unless only the number of images differs."""
    return next(iter(swept(configs)), "k")


def expand(bases: Sequence[RunConfig], k_steps: Sequence[int], num_calibration: Sequence[int] = ()) -> list[RunConfig]:
    """Each of `bases` with every K, and with each number of calibration images if there are any, else its own.

    A small K comes before a large one, so that all curves begin soon. Raises `ValidationError` for a value that cannot be,
    `InputError` for none or too many combinations.
    """
    if not bases:
        raise InputError("There is no network to study. Choose at least one.")
    if len(set(k_steps)) < 2 and len(set(num_calibration)) < 2:
        raise InputError(
            "A study compares several K, how many operations after a layer it looks at, or several numbers of calibration "
            "images. Choose two or more of one of them."
        )
    made: list[RunConfig] = []
    for base in bases:
        prune = base.prune
        snows = Method(prune.mask, "snows", prune.targets, prune.refine)
        made += comparisons.expand(base, [snows], [str(prune.pattern)], k_steps, [prune.seed], num_calibration)
    order = list(dict.fromkeys(config.num_calibration for config in made))
    made.sort(key=lambda config: (order.index(config.num_calibration), config.prune.k_steps))
    if len(made) > MOST_RUNS:
        raise InputError(f"These are {len(made)} runs, and a comparison has at most {MOST_RUNS}. Choose fewer at once.")
    return made


# --- what came of them ---


@dataclass(frozen=True)
class Outcome:
    """A finished run, as a study reads it. `right` as in `events.RunFinished`; `measures` by name of `OF_LAYERS`, as far as the
    run recorded them."""

    config: RunConfig
    metrics: Mapping[str, float | None]
    right: str = ""
    operations: int | None = None
    measures: Mapping[str, float] | None = None

    @classmethod
    def of(cls, run: Run) -> "Outcome":
        """Raises `ValueError` for a run that this version cannot read."""
        log = run.log()
        right = log.last.right if isinstance(log.last, RunFinished) else ""
        operations = log.started.operations if log.started else None
        return cls(run.config(), run.metrics() or {}, right, operations, _measures(log.layers()))


def _measures(layers: Sequence[SiteFinished]) -> dict[str, float]:
    measures: dict[str, float] = {}
    finals = [(layer.by_k["final"], layer.scale) for layer in layers if "final" in layer.by_k and all(layer.scale)]
    if finals:
        measures["own_error"] = statistics.median(errors[0] / scale[0] for errors, scale in finals)
        measures["window_error"] = statistics.median(sum(errors) / sum(scale) for errors, scale in finals)
    unseen = [(layer.held_back["final"], layer.held_back_scale) for layer in layers if "final" in layer.held_back]
    if unseen and all(sum(scale) for _, scale in unseen):
        measures["held_back_error"] = statistics.median(sum(errors) / sum(scale) for errors, scale in unseen)
    held = [layer.held_memory if layer.peak_memory is None else layer.peak_memory for layer in layers]
    if held and None not in held:
        measures["memory"] = max(size for size in held if size is not None)
    return measures


@dataclass(frozen=True)
class Curve:
    """One network in one setting with several K, or numbers of images: `axis`, of `AXES`. `rows` by ascending value of it,
    their `runs` being places in what was given.

    `operations`: how many operations the network has that K counts. `measure`: what tells the rows apart, accuracy, or
    agreement where there is no accuracy.
    """

    config: RunConfig
    rows: list[Row]
    operations: int | None
    measure: str
    axis: str = "k"

    def value(self, row: Row) -> int:
        """Where a row of it stands on the axis."""
        return AXES[self.axis].value(row.config)

    @property
    def values(self) -> list[int]:
        return [self.value(row) for row in self.rows]


def curves(outcomes: Sequence[Outcome], axis: str = "k") -> list[Curve]:
    """The curves along an axis of `AXES`, in the order of their first runs. Runs that look at no later operation are on none
    against K, those that are not fitted on none at all."""
    groups: dict[str, list[int]] = {}
    for place, outcome in enumerate(outcomes):
        if outcome.config.prune.update == "snows" or (axis == "images" and outcome.config.prune.update != "none"):
            groups.setdefault(comparisons.but_for_the_seed(AXES[axis].without(outcome.config)), []).append(place)
    all_curves = []
    for places in groups.values():
        own = sorted(places, key=lambda place: AXES[axis].value(outcomes[place].config))
        rows = [_placed(row, own, outcomes) for row in summarize([(outcomes[i].config, outcomes[i].metrics) for i in own])]
        operations = next((outcomes[i].operations for i in own if outcomes[i].operations), None)
        labelled = all("accuracy" in row.values for row in rows)
        all_curves.append(Curve(rows[0].config, rows, operations, "accuracy" if labelled else "agreement", axis))
    return all_curves


def _placed(row: Row, places: list[int], outcomes: Sequence[Outcome]) -> Row:
    runs = [places[i] for i in row.runs]
    measured = [outcomes[i].measures or {} for i in runs]
    extra = {name: Spread.of([own[name] for own in measured]) for name in OF_LAYERS if all(name in own for own in measured)}
    return replace(row, runs=runs, values=row.values | extra)


# --- what is enough ---


@dataclass(frozen=True)
class Recommendation:
    """`row` is the recommended one; `level` those within the noise of the best, itself included, in the curve's order.

    `settled`: whether some were told apart, and more than one seed says so.
    """

    row: Row
    best: Row
    level: list[Row]
    settled: bool
    reason: str


def recommend(curve: Curve, outcomes: Sequence[Outcome]) -> Recommendation | None:
    """The smallest K, or the fewest images, within the noise of the best; None while there is but one. `outcomes` as `curves`
    was given them."""
    rows = [row for row in curve.rows if curve.measure in row.values]
    if len(rows) < 2:
        return None
    best = max(rows, key=lambda row: row.values[curve.measure].mean)  # of equals the first, which is the smallest
    level = [row for row in rows if _is_level(row, best, curve.measure, outcomes)]
    settled = len(level) < len(rows) and _seeds(rows) > 1
    return Recommendation(level[0], best, level, settled, _reason(curve, rows, level, best))


def _seeds(rows: Sequence[Row]) -> int:
    """How many seeds each of these has at the least."""
    return min(len(row.runs) for row in rows)


def _is_level(row: Row, best: Row, measure: str, outcomes: Sequence[Outcome]) -> bool:
    """Whether the difference of two rows' means is within two of its standard errors.

    Where the runs say which images they got right, they are compared image by image: of n images, b that only one gets right
    and c that only the other does, the variance of (b - c) / n is ((b + c) / n - ((b - c) / n)^2) / n (Agresti, "Categorical
    Data Analysis", on comparing dependent proportions). Both networks err on much the same images, so this sees differences
    that a comparison of two independent samples cannot. The variance over seeds comes on top, where there are several.
    """
    if row.values[measure].mean == best.values[measure].mean:
        return True
    pairs = _pairs([outcomes[i] for i in row.runs], [outcomes[i] for i in best.runs])
    if pairs is None:
        return is_level(row.values[measure], best.values[measure], image_noise(row, best, measure))
    shares = [((one & ~other).bit_count() / n, (other & ~one).bit_count() / n, n) for one, other, n in pairs]
    differences = [ours - theirs for ours, theirs, _ in shares]
    # Every seed is measured on the same images, so that more seeds do not make the images' part smaller.
    variance = statistics.fmean((ours + theirs - (ours - theirs) ** 2) / n for ours, theirs, n in shares)
    if len(differences) > 1:
        variance += statistics.variance(differences) / len(differences)
    return abs(statistics.fmean(differences)) <= 2 * math.sqrt(variance)


def _pairs(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> list[tuple[int, int, int]] | None:
    """Bits of the images that each got right, and how many images there are, by seed; None where that is not on record."""
    by_seed = {outcome.config.prune.seed: outcome for outcome in theirs}
    pairs = []
    for one in ours:
        other = by_seed.get(one.config.prune.seed)
        images = int(one.metrics.get("num_evaluation") or 0)
        if other is None or not images or not one.right or len(one.right) != len(other.right):
            return None
        # A folder that is not divided is evaluated on what calibration leaves, so that its images are others.
        if one.config.num_calibration != other.config.num_calibration and as_path(one.config.data).is_dir():
            return None
        pairs.append((int(one.right, 16), int(other.right, 16), images))
    return pairs


def _reason(curve: Curve, rows: list[Row], level: list[Row], best: Row) -> str:
    axis, measure = AXES[curve.axis], curve.measure
    chosen, worst = level[0], min(rows, key=lambda row: row.values[measure].mean)
    several = axis.plural and curve.value(chosen) > 1
    is_, has = ("are", "have") if several else ("is", "has")

    def said(row: Row) -> str:
        return axis.say(curve.value(row))

    def value(row: Row, named: str = "") -> str:
        share = row.values[measure].mean
        text = MEASURES[measure].say(share)
        if not row.num_evaluation:
            return text
        low, high = wilson(share, row.num_evaluation)
        return f"{text} ({named}{100 * low:.1f} to {100 * high:.1f} %)"

    interval = "95 % interval "
    if len(level) == len(rows):
        spread = f"goes from {value(worst, interval)} at {said(worst)} to {value(best)} at {said(best)}"
        alike = f"is {value(best, interval)} at each"
        reason = (
            f"No {axis.noun} that was tried can be told from another beyond the noise: the {measure} "
            f"{alike if worst.values[measure].mean == best.values[measure].mean else spread}. More evaluation images, more "
            "seeds, or fewer weights kept may tell them apart."
        )
    elif chosen is best:
        more = " It is the largest that was tried, so try larger ones too." if best is rows[-1] else ""
        best_value = f"{said(best)} {has} the best {measure}, {value(best, interval)}"
        reason = f"{best_value}, and no smaller {axis.noun} is within the noise of it.{more}"
    else:
        reason = (
            f"{said(chosen)} {is_} the {axis.least} whose {measure}, {value(chosen, interval)}, is within the noise of the "
            f"best, {value(best)} at {said(best)}."
        )
    one_seed = " All of one seed: another draw of calibration images may order them otherwise."
    return reason + (one_seed if _seeds(rows) == 1 else "")


def names(all_curves: Sequence[Curve]) -> list[str]:
    """What sets curves apart: against K the network, against the number of images the method, and whatever else is not the same
    in all."""
    parts: list[tuple[str, ...]] = []
    for curve in all_curves:
        config, prune = curve.config, curve.config.prune
        setting = str(prune.pattern), data_name(config)
        if curve.axis == "images":
            parts.append((method_name(prune), network_name(config), *setting))
            continue
        method = mask_name(prune.mask), f"mask refined by {prune.refine}", f"{prune.targets} targets"
        sizes = f"{prune.sweeps} sweeps", f"{config.num_calibration:,} images"
        parts.append((network_name(config), *setting, *method, *sizes))
    return set_apart(parts)
