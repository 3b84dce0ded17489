"""Would plain gradients do? Ways down one layer's K-step loss from the same point, to see what curvature buys there.

Newton's steps by three kinds of curvature, with the run's own solver settings: Gauss-Newton, the exact Hessian, and the
empirical Fisher matrix (`Objective.product` says what it is here). Beside them Adam (Kingma & Ba, 2015), a step a batch with
the pace of a joint fit, and gradient descent, each step as far as Armijo's rule allows. All see the same images, and the loss
is paper equation 5 without a pull toward the dense values.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from snows.method import joint
from snows.method.objective import Objective
from snows.method.problem import SiteProblem
from snows.method.solver import Status, line_search, newton_cg

WAYS = {
    "gauss_newton": "Gauss-Newton",
    "hessian": "Exact Hessian",
    "empirical_fisher": "Empirical Fisher",
    "adam": "Adam",
    "gradient": "Gradient descent",
}
STARTS = {"masked": "the mask alone", "least_squares": "least squares"}
# Adam's steps, as shares of the median size of the kept weights: all are tried, and the best one counts.
RATES = (0.03, 0.1, 0.3, 1.0)
PASSES = 30
BATCH = joint.BATCH  # images of a batch where a problem is made for this
# Where a way's loss is no further than this above another's, it has come as far.
AS_FAR = 0.01


@dataclass(frozen=True)
class Point:
    """Where a way has come to: the loss over all images after so many iterations (Newton steps, gradient steps, or for Adam
    passes over the images), after so many passes over the images (see `Objective.num_passes`) and seconds of its own work.

    `rate` is Adam's, one of `RATES`. `ended`: of the last point, the name of the solver's `Status`, or nothing where it ended
    for having had its passes.
    """

    way: str
    iteration: int
    passes: float
    seconds: float
    loss: float
    rate: float | None = None
    ended: str = ""


@dataclass
class _Clock:
    """Seconds that a way's own work took; the device has finished it when they are read."""

    device: torch.device
    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = self._now()
        yield
        self.seconds += self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def descents(
    problem: SiteProblem,
    *,
    start: str = "masked",
    passes: int = PASSES,
    ways: Sequence[str] = tuple(WAYS),
    rates: Sequence[float] = RATES,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Point]:
    """The points of all `ways`, in turns: next is always the one that has had the fewest passes. None gets more than `passes`;
    a step that takes more is not counted.

    `start`: the kept dense values (`masked`), or the layer's exact solution for K = 0 (`least_squares`). Newton's ways end as
    a run's solves do, too: where a step lowers the loss by less than its settings ask for. Their seconds hold making the
    systems of the rows, which precondition them, from the layer's inputs on. Adam takes a step for each of the problem's
    batches. `check` is called between curvature products and gradients, and may raise to stop.
    """
    if start not in STARTS:
        raise ValueError(f"Unknown start {start!r}. Choose one of {', '.join(STARTS)}.")
    if unknown := [way for way in ways if way not in WAYS]:
        raise ValueError(f"Unknown way {unknown[0]!r}. Choose some of {', '.join(WAYS)}.")
    here = problem.masked if start == "masked" else problem.least_squares
    loss = _objective(problem).loss(here)
    walks: dict[Iterator[Point], float] = {}
    for way in ways:
        for rate in rates if way == "adam" else (None,):
            yield Point(way, 0, 0.0, 0.0, loss, rate)
            walks[_walk(problem, way, rate, here, passes, check)] = 0.0
    while walks:
        walk = min(walks, key=walks.__getitem__)
        point = next(walk, None)
        if point is None or point.passes > passes + 1e-6:
            del walks[walk]
            continue
        walks[walk] = point.passes
        yield point


def best_rate(points: Iterable[Point]) -> float | None:
    """Adam's rate of those tried that ends lowest; None where there is none."""
    last = {point.rate: point.loss for point in points if point.way == "adam"}
    finite = {rate: loss for rate, loss in last.items() if math.isfinite(loss)}
    return min(finite, key=finite.__getitem__, default=None)


def lowest(points: Iterable[Point]) -> dict[str, Point]:
    """Each way's first point with its lowest loss, Adam's at its best rate."""
    points = list(points)
    rate = best_rate(points)
    own = {way: [p for p in points if p.way == way and p.rate in (None, rate)] for way in WAYS}
    return {way: min(of_way, key=lambda point: point.loss) for way, of_way in own.items() if of_way}


def as_far(points: Iterable[Point], loss: float) -> dict[str, Point]:
    """The first point at which each way has come as far down as `loss`, within `AS_FAR` of it; ways that never do are left
    out. Of Adam at its best rate."""
    points = list(points)
    rate = best_rate(points)
    there = [p for p in points if p.rate in (None, rate) and p.loss <= (1 + AS_FAR) * loss]
    return {way: next(p for p in there if p.way == way) for way in WAYS if any(p.way == way for p in there)}


def _objective(problem: SiteProblem, kind: str = "gauss_newton") -> Objective:
    """The problem's objective anew, without a pull, with its solver's settings and its own systems of the rows."""
    own, config = problem.objective, problem.config
    return Objective(
        own.window,
        own.kept,
        own.batches,
        coefficients=own.coefficients,
        device=own.device,
        curvature_kind=kind,
        curvature_share=config.curvature_share,
        damping=config.damping,
        row_systems=cache(problem.row_systems_anew) if config.preconditioner == "row_blocks" else None,
        seed=own.seed,
        memory=own.memory,
    )


Walk = Iterator[tuple[Tensor, float | None, str]]  # a point, its loss where it is known, and how the way ended there


def _walk(
    problem: SiteProblem, way: str, rate: float | None, start: Tensor, passes: int, check: Callable[[], None]
) -> Iterator[Point]:
    clock, judge = _Clock(problem.device), _objective(problem)
    objective = _objective(problem, way if way in ("hessian", "empirical_fisher") else "gauss_newton")
    match way:
        case "adam":
            assert rate is not None
            walk = _adam(objective, start, rate, passes, clock, check)
        case "gradient":
            walk = _gradient_descent(objective, start, clock, check)
        case _:
            walk = _newton(objective, problem, start, clock, check)
    for iteration, (x, known, ended) in enumerate(walk, start=1):
        loss = judge.loss(x) if known is None else known
        ended = ended or ("" if math.isfinite(loss) else Status.NOT_FINITE.name)
        yield Point(way, iteration, objective.num_passes, clock.seconds, loss, rate, ended)
        if ended:
            return


def _newton(objective: Objective, problem: SiteProblem, x: Tensor, clock: _Clock, check: Callable[[], None]) -> Walk:
    config, step = problem.config, 0
    while True:
        with clock.running():
            result = newton_cg(
                objective,
                x,
                max_steps=1,
                max_iters=config.max_iters,
                rtol=config.rtol,
                min_decrease=config.min_decrease,
                first_step=step,
                more_follows=True,
                on_iteration=lambda *_: check(),
            )
        x, step = result.x, step + 1
        yield x, result.loss, "" if result.status is Status.MAX_STEPS else result.status.name


def _gradient_descent(objective: Objective, x: Tensor, clock: _Clock, check: Callable[[], None]) -> Walk:
    """Each search begins at twice the step before it, the first where the slope alone would bring the loss to zero."""
    step = 0.0
    while True:
        with clock.running():
            loss, gradient = objective.loss_and_gradient(x)
            slope = -float(gradient.square().sum())
            points: dict[float, Tensor] = {0.0: x}

            def loss_at(t: float, points: dict[float, Tensor] = points, gradient: Tensor = gradient) -> float:
                check()
                points[t] = points[0.0] - t * gradient
                return objective.loss_and_gradient(points[t])[0]  # the gradient is wanted next where the step is taken

            search = line_search(loss_at, loss, slope, first=2 * step or -loss / (slope or -1.0))
        x, step = points[search.step_size], search.step_size
        yield x, search.loss, "" if step else (Status.LINE_SEARCH_FAILED if slope else Status.ALREADY_OPTIMAL).name


def _adam(objective: Objective, start: Tensor, rate: float, passes: int, clock: _Clock, check: Callable[[], None]) -> Walk:
    leaf, batches = start.clone(), len(objective.batches)
    optimizer = torch.optim.Adam([leaf], lr=rate * float(start.abs().median()))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: joint.pace(step, passes * batches))
    generator = torch.Generator().manual_seed(objective.seed)
    for _ in range(passes):
        with clock.running():
            for i in torch.randperm(batches, generator=generator).tolist():
                check()
                leaf.grad = objective.gradient(leaf, [i])
                optimizer.step()
                schedule.step()
        yield leaf.clone(), None, ""
