"""A study of K or of the number of images, ready to draw: what each brought and cost, on one curve a network, and which is
enough.

Pure functions of run folders and of `snows.plans.study`; no torch.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from app import words
from app.charts import palette
from snows.bundled import ASSETS
from snows.measures.names import MEASURES
from snows.plans import study
from snows.plans.comparisons import Row
from snows.plans.study import Curve, Outcome, Recommendation
from snows.plans.words import network_name
from snows.runs.store import Comparison, Run, RunStore

# The study that comes with the app: runs without their weights.
RECORDED = RunStore(ASSETS / "study")


# What is drawn against K, or the number of images.
DRAWN = (
    "accuracy",
    "agreement",
    "divergence",
    "window_error",
    "held_back_error",
    "own_error",
    "num_products",
    "memory",
    "seconds",
)
LOSSES = {
    "divergence": "At the network's end",
    "window_error": "In the window",
    "held_back_error": "On images held back",
    "own_error": "At the layer itself",
}
# Against what: the axis of the study, its title in a figure, and in a choice.
AGAINST = {
    "k": ("k", "K (operations ahead)", "K itself"),
    "share": ("k", "K ÷ operations of the network (%)", "K ÷ operations of the network"),
    "images": ("images", "Calibration images", "Calibration images"),
}


@dataclass(frozen=True)
class Study:
    """Curves with their names and what is recommended on each, None while a curve has but one point."""

    curves: list[Curve]
    names: list[str]
    advice: list[Recommendation | None]

    @property
    def measure(self) -> str:
        """`accuracy`, or `agreement` where a curve has no accuracy."""
        return "accuracy" if all(curve.measure == "accuracy" for curve in self.curves) else "agreement"


def read(runs: Iterable[Run]) -> Study:
    """What the finished ones of these runs say. Runs that this version cannot read are left out."""
    outcomes = []
    for run in runs:
        try:
            if run.metrics():
                outcomes.append(Outcome.of(run))
        except ValueError:  # written by another version, or damaged
            continue
    return of(outcomes)


def of(outcomes: Sequence[Outcome], axis: str | None = None) -> Study:
    """A study of finished runs along one of `snows.plans.study.AXES`, by default the one that they differ in."""
    curves = study.curves(outcomes, axis or study.usual_axis([outcome.config for outcome in outcomes]))
    return Study(curves, study.names(curves), [study.recommend(curve, outcomes) for curve in curves])


def is_study(comparison: Comparison) -> bool:
    """Whether the runs of a comparison differ in K, or in the number of images."""
    configs = []
    for run in comparison.runs():
        with suppress(ValueError):
            configs.append(run.config())
    return bool(study.swept(configs))


def against(outcomes: Sequence[Outcome]) -> list[str]:
    """Of `AGAINST` what these runs can be drawn against, the usual one first."""
    axes = study.swept([outcome.config for outcome in outcomes]) or ["k"]
    shares = all(outcome.operations for outcome in outcomes)
    return [name for name, (axis, *_) in AGAINST.items() if axis in axes and (name != "share" or shares)]


def points(study: Study) -> pd.DataFrame:
    """One row a point: curve (its name), k, share (of the network's operations, in percent; NaN where it is not known), images
    (to calibrate with), level
    (within the noise of the best), recommended, a column a measure of `DRAWN`, and its standard deviation over seeds as
    `MEASURE_deviation`. Numbers in the units of the axes, NaN where not measured."""
    rows = []
    for curve, name, advice in zip(study.curves, study.names, study.advice, strict=True):
        for row in curve.rows:
            k = row.config.prune.k_steps
            rows.append(
                {
                    "curve": name,
                    "k": k,
                    "share": 100 * k / curve.operations if curve.operations else float("nan"),
                    "images": row.config.num_calibration,
                    "level": advice is None or any(row is other for other in advice.level),
                    "recommended": advice is not None and row is advice.row,
                    **_values(row),
                }
            )
    columns = ["curve", "k", "share", "images", "level", "recommended"]
    columns += [name + more for name in DRAWN for more in ("", "_deviation")]
    return pd.DataFrame(rows, columns=columns)


def _values(row: Row) -> dict[str, float]:
    numbers = {}
    for name in DRAWN:
        if (spread := row.values.get(name)) is not None:
            scale = MEASURES[name].scale
            numbers[name] = scale * spread.mean
            numbers[f"{name}_deviation"] = scale * (spread.deviation or 0.0)
    return numbers


def conditions(study: Study) -> list[str]:
    """What all points have in common, in words: what a figure's title says beside its measure."""
    rows = [row for curve in study.curves for row in curve.rows]
    configs = [row.config for row in rows]
    seeds, images = {len(row.runs) for row in rows}, {row.num_evaluation for row in rows}
    of_k = study.curves[0].axis == "k"
    parts = [
        {network_name(config) for config in configs},
        {words.pattern_words(config.prune.pattern).lower() for config in configs},
        {f"{config.num_calibration:,} calibration images" for config in configs}
        if of_k
        else {f"K = {config.prune.k_steps}" for config in configs if config.prune.update == "snows"},
        {"one seed" if count == 1 else f"{count} seeds" for count in seeds},
        {f"measured on {count:,} images" for count in images if count},
    ]
    return [values.pop() for values in parts if len(values) == 1]


def dense(study: Study) -> dict[str, float]:
    """The dense networks' accuracy in percent by network, or their agreement with themselves."""
    scale = MEASURES[study.measure].scale
    if study.measure == "agreement":
        return {"the dense network": scale}
    accuracies = {curve.config.model: scale * curve.rows[0].values["accuracy_dense"].mean for curve in study.curves}
    if len(accuracies) == 1:
        return {"dense": accuracies.popitem()[1]}
    return {f"{network}, dense": value for network, value in accuracies.items()}


def marks(study: Study) -> dict[str, palette.Line]:
    """How each curve is drawn: in the color of its update; a network has its symbol, what else differs its dash."""
    networks = list(dict.fromkeys(curve.config.model for curve in study.curves))
    within: dict[str, int] = {}
    lines = {}
    for curve, name in zip(study.curves, study.names, strict=True):
        place = within[curve.config.model] = within.get(curve.config.model, -1) + 1
        lines[name] = palette.Line.of(curve.config.prune.update, networks.index(curve.config.model), place)
    return lines


def table(study: Study) -> pd.DataFrame:
    """One row a curve: network, operations, k or images (the recommended one), share (of the operations, in percent), the
    measure there, curvature products there, and best_k or best_images (the one with the best measure).
    Operations and share are of K."""
    rows = []
    for curve, name, advice in zip(study.curves, study.names, study.advice, strict=True):
        row = advice.row if advice else None
        value = curve.value(row) if row else None
        share = 100 * value / curve.operations if curve.operations and value is not None else None
        rows.append(
            {
                "network": name,
                **({"operations": curve.operations} if curve.axis == "k" else {}),
                curve.axis: value,
                **({"share": share} if curve.axis == "k" else {}),
                study.measure: row.values[study.measure].mean if row else None,
                "num_products": row.values["num_products"].mean if row and "num_products" in row.values else None,
                f"best_{curve.axis}": curve.value(advice.best) if advice else None,
            }
        )
    return pd.DataFrame(rows)
