"""What a screen shows of a run's solver: data frames of every Newton step, what went wrong in words, live checks as frames.

Pure functions of a list of events, or of a `SiteProblem`. A layer that was begun twice counts from its last beginning.
"""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import pandas as pd

from app.words import CG_ENDED, counted, layer
from snows.config import SolverConfig
from snows.events import CGIteration, Event, NewtonStep, SiteFinished, SiteStarted
from snows.measures.names import duration, number
from snows.runs.log import by_layer

if TYPE_CHECKING:
    from snows.measures.descents import Point
    from snows.method.problem import SiteProblem

# A step that brought less than this share of what the quadratic model promised: where a trust region would shrink (Nocedal &
# Wright, 2006, algorithm 4.1).
_TRUSTED = 0.25

KINDS = {"gauss_newton": "Gauss-Newton", "hessian": "exact Hessian", "finite_difference": "finite differences"}
PRECONDITIONERS = {"row_blocks": "With row blocks", "none": "Without"}


# --- every Newton step ---


@dataclass(frozen=True)
class Measure:
    """Something to compare all Newton steps by. `parts`: which columns of `newton_steps` it shows, and what they are called."""

    axis: str
    help: str
    parts: dict[str, str]
    log: bool = True


MEASURES = {
    "Residual": Measure(
        "Residual ÷ gradient when the solve ended",
        "How much of the linear system conjugate gradient left unsolved, of 1 where it began. It should end left of the "
        "tolerance.",
        {"residual": "left at the end"},
    ),
    "Iterations": Measure(
        "Conjugate-gradient iterations",
        "Each iteration costs one curvature product. Many mean a stretched problem; at the limit the step is unfinished.",
        {"iterations": "taken"},
        log=False,
    ),
    "Reduction": Measure(
        "Reduction ÷ loss before the step",
        "What the quadratic model promised, and what the loss did. Close together: the model can be trusted. A step that was "
        "not taken has only a promise, or no mark.",
        {"promised_share": "promised by the model", "actual_share": "came true"},
    ),
    "Curvature": Measure(
        "Curvature, p·Cp ÷ p·p",
        "The flattest and the steepest direction of each solve. The further apart, the more iterations it takes.",
        {"flattest": "flattest", "steepest": "steepest"},
    ),
    "Step size": Measure(
        "Step size ÷ whole Newton step",
        "The line search tries the whole step first and halves it until the loss falls enough. Only open marks: none did.",
        {"tried": "tried", "step_size": "taken"},
    ),
}


@dataclass(frozen=True)
class Step:
    """One Newton step as a screen shows it; the columns of `newton_steps`."""

    index: int  # of the layer, in network order
    site: str
    layer: str
    step: int  # from 1
    before: float  # the loss
    loss: float  # after the step
    gradient: float
    cg: str  # how conjugate gradient ended, a key of CG_ENDED
    iterations: int
    residual: float  # at the end, relative to the gradient
    flattest: float  # curvature along a direction; NaN where none was searched to its end
    steepest: float
    predicted: float  # reduction of the loss by the quadratic model
    actual: float
    promised_share: float  # the same as shares of the loss before; NaN where not positive
    actual_share: float
    trust: float  # actual / predicted; NaN where no step was taken
    tried: list[float]
    step_size: float  # NaN where no step was taken
    damping: float
    status: str
    at_limit: bool  # the three signatures of failure
    unstable: bool
    stuck: bool
    trouble: str  # them in words, or empty


def newton_steps(events: list[Event]) -> pd.DataFrame:
    """One row a Newton step, layers in network order; the columns are the fields of `Step`."""
    rows = []
    for begun, *own in by_layer(events).values():
        assert isinstance(begun, SiteStarted)
        for step in own:
            if isinstance(step, NewtonStep):
                solve = [e for e in own if isinstance(e, CGIteration) and e.step == step.step]
                rows.append(_step(begun.index, step, solve))
    frame = pd.DataFrame(rows, columns=[field.name for field in fields(Step)])
    return frame.sort_values(["index", "step"], ignore_index=True)


def _step(index: int, e: NewtonStep, solve: list[CGIteration]) -> Step:
    curvatures = [iteration.curvature for iteration in solve]
    residual = solve[-1].residual if solve else 1.0  # cut at its first direction
    before = e.loss + e.actual
    taken = e.step_size > 0
    cut = {
        "NOT_FINITE": "a curvature product was NaN or infinite",
        "NEGATIVE_CURVATURE": "the curvature was negative along a direction",
    }
    at_limit, unstable = e.cg_status == "MAX_ITERS", e.cg_status in cut or not residual <= 1
    stuck = e.status == "rejected" or not math.isfinite(e.loss)
    trouble = [
        "conjugate gradient stopped at its limit" if at_limit else "",
        cut.get(e.cg_status, "the residual grew") if unstable else "",
        "no step size lowered the loss" if stuck else "",
    ]

    def share(reduction: float) -> float:
        return reduction / before if before > 0 and reduction > 0 else math.nan

    return Step(
        index=index,
        site=e.site,
        layer=layer(e.site),
        step=e.step + 1,
        before=before,
        loss=e.loss,
        gradient=e.gradient_norm,
        cg=e.cg_status,
        iterations=e.cg_iterations,
        residual=residual,
        flattest=min(curvatures, default=math.nan),
        steepest=max(curvatures, default=math.nan),
        predicted=e.predicted,
        actual=e.actual,
        promised_share=share(e.predicted),
        actual_share=share(e.actual),
        trust=e.actual / e.predicted if taken and e.predicted > 0 else math.nan,
        tried=e.tried,
        step_size=e.step_size if taken else math.nan,
        damping=e.damping,
        status=e.status,
        at_limit=at_limit,
        unstable=unstable,
        stuck=stuck,
        trouble=", ".join(filter(None, trouble)),
    )


def marks(steps: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """What a chart of all steps shows by one measure, a row a mark: index, layer, step, part (in words), value, trouble."""
    rows = [
        (row["index"], row["layer"], row["step"], words, float(value), row["trouble"])
        for column, words in measure.parts.items()
        for row in steps.to_dict("records")
        for value in (row[column] if isinstance(row[column], list) else [row[column]])
        if math.isfinite(value)
    ]
    return pd.DataFrame(rows, columns=["index", "layer", "step", "part", "value", "trouble"])


def directions(events: list[Event], site: str) -> pd.DataFrame:
    """One row a CG iteration of a layer, counted through its Newton steps: layer, step (from 1), iteration, residual,
    curvature (along the iteration's direction)."""
    solve = [e for e in by_layer(events).get(site, []) if isinstance(e, CGIteration)]
    rows = [(layer(site), e.step + 1, count, e.residual, e.curvature) for count, e in enumerate(solve, start=1)]
    return pd.DataFrame(rows, columns=["layer", "step", "iteration", "residual", "curvature"])


def outcome(events: list[Event], site: str) -> SiteFinished | None:
    """How a layer ended; None while it has not."""
    own = by_layer(events).get(site, [])
    return own[-1] if own and isinstance(own[-1], SiteFinished) else None


def hardest(steps: pd.DataFrame) -> str | None:
    """The layer to look at first: the first in trouble, else the one that took the most iterations in one step."""
    if steps.empty:
        return None
    troubled = steps[steps["trouble"] != ""]
    return str(troubled["layer"].iloc[0] if len(troubled) else steps["layer"][steps["iterations"].idxmax()])


# --- what went wrong ---


@dataclass(frozen=True)
class Finding:
    """Something to know about a run's solves. `failure`: one of the three signatures of failure; else only worth knowing."""

    failure: bool
    what: str
    why: str  # and what to do
    layers: list[str]


def findings(steps: pd.DataFrame, config: SolverConfig) -> list[Finding]:
    """The signatures of failure first: conjugate gradient at its limit, unstable products, a loss that does not fall."""
    signs = []
    limit, unstable, stuck = (steps[steps[name]] for name in ("at_limit", "unstable", "stuck"))
    if len(limit):
        better = "Turn the row-block preconditioner on, allow" if config.preconditioner == "none" else "Allow"
        signs.append(
            _finding(
                limit,
                f"Conjugate gradient stopped at its limit of {counted(config.max_iters, 'iteration')}",
                f"The residual was still {number(limit['residual'].max())} of the gradient where {config.rtol:g} was asked, so "
                f"these are only parts of a Newton step. {better} more iterations, or raise the damping.",
            )
        )
    if len(unstable):
        signs.append(_finding(unstable, "The curvature products were unstable", _why_unstable(unstable, config)))
    if len(stuck):
        share = (
            f", or measure curvature on more than {100 * config.curvature_share:g} % of the batches"
            if config.curvature_share < 1
            else ""
        )
        smallest = min((size for tried in stuck["tried"] for size in tried), default=1.0)
        signs.append(
            _finding(
                stuck,
                "The loss did not fall",
                f"No step size down to {number(smallest)} lowered it, so the weights were kept as they were: the loss is not "
                f"the quadratic that the solver took it for. Raise the damping{share}.",
            )
        )
    overpromised = steps[steps["trust"] < _TRUSTED]
    if len(overpromised):
        signs.append(
            _finding(
                overpromised,
                "The quadratic model promised over four times what came true",
                "The loss still fell, but the model cannot be trusted there. A higher damping makes shorter, surer steps; a "
                "larger share of the batches measures the curvature better.",
                failure=False,
            )
        )
    return signs


def _finding(steps: pd.DataFrame, what: str, why: str, failure: bool = True) -> Finding:
    layers = list(dict.fromkeys(steps["layer"]))
    return Finding(failure, f"{what} in {counted(len(steps), 'Newton step')} of {counted(len(layers), 'layer')}", why, layers)


def _why_unstable(steps: pd.DataFrame, config: SolverConfig) -> str:
    reasons = []
    if count := int((steps["cg"] == "NOT_FINITE").sum()):
        reasons.append(
            f"A product was NaN or infinite ({counted(count, 'step')}): use float64, raise the damping, or check the weights "
            "and the images."
        )
    if count := int((steps["cg"] == "NEGATIVE_CURVATURE").sum()):
        gauss_newton = "raise the damping" if config.curvature == "gauss_newton" else "use Gauss-Newton, which has none"
        reasons.append(
            f"The curvature was negative along a direction ({counted(count, 'step')}), where the step was cut: {gauss_newton}."
        )
    if count := int((~steps["cg"].isin(["NOT_FINITE", "NEGATIVE_CURVATURE"])).sum()):
        reasons.append(
            f"The residual ended above where it began ({counted(count, 'step')}): rounding or a nearly flat direction "
            "spoiled it. Raise the damping, or use float64."
        )
    return " ".join([*reasons, "The live checks on the Convergence page compare the products."])


# --- live checks ---


def products(problem: "SiteProblem") -> pd.DataFrame:
    """The three curvature products by pair: pair, here, without_errors (relative differences), allowed, agree."""
    from snows.measures.checks import compare_products

    comparison = compare_products(problem)
    rows = [
        (f"{KINDS[a]} and {KINDS[b]}", here, comparison.without_errors[a, b], comparison.allowed[a, b], comparison.agree)
        for (a, b), here in comparison.differences.items()
    ]
    return pd.DataFrame(rows, columns=["pair", "here", "without_errors", "allowed", "agree"])


def valley(problem: "SiteProblem") -> pd.DataFrame:
    """Finite differences as their step grows: epsilon, error (relative), default (the solver's own step, bool)."""
    from snows.measures.checks import finite_difference_sweep

    sweep = finite_difference_sweep(problem)
    rows = [(e, error, math.isclose(e, sweep.default)) for e, error in zip(sweep.epsilons, sweep.errors, strict=True)]
    return pd.DataFrame(rows, columns=["epsilon", "error", "default"])


def solves(problem: "SiteProblem") -> pd.DataFrame:
    """The first Newton step's system, solved with and without a preconditioner: preconditioner, iteration, residual, status."""
    from snows.measures.checks import compare_preconditioners

    rows = [
        (PRECONDITIONERS[name], iteration, residual, solve.status.name)
        for name, solve in compare_preconditioners(problem).items()
        for iteration, residual in enumerate(solve.residuals)
    ]
    return pd.DataFrame(rows, columns=["preconditioner", "iteration", "residual", "status"])


def eigenvalues(problem: "SiteProblem") -> pd.DataFrame:
    """The curvature's Ritz values with and without a preconditioner: preconditioner, value, bound (of its error), weight."""
    from snows.measures.checks import spectrum

    rows = [
        (PRECONDITIONERS[name], value, bound, weight)
        for name, ritz in spectrum(problem).items()
        for value, bound, weight in zip(ritz.values, ritz.bounds, ritz.weights, strict=True)
    ]
    return pd.DataFrame(rows, columns=["preconditioner", "value", "bound", "weight"])


def products_said(pairs: pd.DataFrame) -> str:
    """What `products` found, in a sentence."""
    if not pairs["without_errors"].notna().all():
        return "A product is NaN or infinite. Use float64, or check the weights and the images."
    worst = number(pairs["without_errors"].max())
    if pairs["agree"].all():
        return (
            f"The three agree where they must: with all errors zero they differ by {worst} at the most. With the layer's own "
            f"errors they are up to {number(pairs['here'].max())} apart, by what Gauss-Newton leaves out and by the kinks that "
            "finite differences step over."
        )
    row = pairs.loc[(pairs["without_errors"] / pairs["allowed"]).idxmax()]
    return (
        f"They disagree: with all errors zero, {row['pair']} should differ by {number(row['allowed'])} at the most, but differ "
        f"by {number(row['without_errors'])}. Use float64, and prefer Gauss-Newton."
    )


def valley_said(sweep: pd.DataFrame) -> str:
    """What `valley` found, in a sentence."""
    finite = sweep.dropna()
    if finite.empty:
        return "Every product is NaN or infinite. Use float64, or check the weights and the images."
    best, default = finite.loc[finite["error"].idxmin()], finite[finite["default"]]
    own = f" The solver's own step errs by {number(default['error'].iloc[0])}." if len(default) else ""
    return f"The least error is {number(best['error'])}, at ε = {number(best['epsilon'])}.{own}"


def solves_said(residuals: pd.DataFrame) -> str:
    """What `solves` found, in a sentence."""
    parts = []
    for name, rows in residuals.groupby("preconditioner", sort=False):
        last = rows.iloc[-1]
        ended = "" if last["status"] == "CONVERGED" else f" ({CG_ENDED[last['status']]})"
        after = counted(int(last["iteration"]), "iteration")
        parts.append(f"{str(name).lower()}, the residual is {number(last['residual'])} after {after}{ended}")
    return "; ".join(parts).capitalize() + "."


def eigenvalues_said(spectrum: pd.DataFrame) -> str:
    """What `eigenvalues` found, in a sentence."""
    if spectrum.empty:
        return "The first product is NaN or infinite, so there is no eigenvalue to see."
    spreads = spectrum.groupby("preconditioner", sort=False)["value"].agg(["min", "max"])
    negative = spectrum[spectrum["value"] <= 0]
    if len(negative):
        return (
            f"Not all eigenvalues are positive: the lowest found is {number(negative['value'].min())}. Conjugate gradient is "
            "cut there. Use Gauss-Newton, or raise the damping."
        )
    spread = (spreads["max"] / spreads["min"]).map(lambda ratio: f"{float(number(ratio)):,.6g}")
    parts = [f"{ratio} {str(name).lower()}" for name, ratio in spread.items()]
    return f"Largest ÷ smallest eigenvalue: {', '.join(parts)}."


# --- curvature or plain gradients ---

AGAINST = {"passes": "Passes over the images", "seconds": "Seconds", "iteration": "Iterations"}


def descents(points: "list[Point]") -> pd.DataFrame:
    """Every point of every way down: way (in words), key (of `descents.WAYS`), iteration, passes, seconds, loss, rate (NaN but
    for Adam), chosen (bool: not one of Adam's rates that end higher), ended."""
    from snows.measures.descents import WAYS, best_rate

    best = best_rate(points)
    rows = [
        (
            WAYS[p.way],
            p.way,
            p.iteration,
            p.passes,
            p.seconds,
            p.loss,
            math.nan if p.rate is None else p.rate,
            p.rate in (None, best),
            p.ended,
        )
        for p in points
    ]
    names = ["way", "key", "iteration", "passes", "seconds", "loss", "rate", "chosen", "ended"]
    return pd.DataFrame(rows, columns=names).sort_values(["key", "rate", "iteration"], kind="stable", ignore_index=True)


def had_passes(points: "list[Point]") -> float:
    """How many passes over the images the way has had that has had the fewest and is not at its end."""
    had: dict[tuple[str, float | None], float] = {}
    for point in points:
        had[point.way, point.rate] = point.passes
        if point.ended:
            del had[point.way, point.rate]
    return min(had.values(), default=0.0)


def descents_said(points: "list[Point]") -> str:
    """What the ways down show, in a sentence or two: which came lowest, and what each took to come as far."""
    from snows.measures.descents import AS_FAR, WAYS, as_far, lowest

    ends = lowest(points)
    best = min(ends, key=lambda way: ends[way].loss)
    loss = ends[best].loss
    there = as_far(points, loss)
    taken = [f"{WAYS[way]} took {point.passes:.1f} passes and {duration(point.seconds)}" for way, point in there.items()]
    behind = [
        f"{WAYS[way]} {number(100 * (point.loss / loss - 1))} % above it" for way, point in ends.items() if way not in there
    ]
    said = f"The lowest loss is {number(loss)}, by {WAYS[best]}. To come within {100 * AS_FAR:g} % of it, {'; '.join(taken)}."
    return said + (f" Not as far down: {', '.join(behind)}." if behind else "")


def descents_note(points: "list[Point]") -> str:
    """What is to be known of how the ways were compared."""
    from snows.measures.descents import RATES, best_rate

    rate = best_rate(points)
    adam = ""
    if rate is not None:
        adam = (
            f" Adam's steps begin at {rate:g} times the median weight, the best of {len(RATES)} sizes that were tried (the "
            "others are faint); the trying is not counted."
        )
    return (
        "A pass is a loss, a gradient or a curvature product over all images. Newton's seconds hold the factors of its "
        f"preconditioner.{adam} Where only ReLUs follow the layer, the exact Hessian is Gauss-Newton. The empirical Fisher "
        "matrix is made of the images' own gradients, scaled to bend as Gauss-Newton along their mean."
    )
