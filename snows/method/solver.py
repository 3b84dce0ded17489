"""Newton-CG: conjugate gradient, Armijo line search, and the outer loop over them.

Flat vectors and operators in, result objects out; this file knows no network, mask or file. The outer loop is algorithm 7.1 of
Nocedal & Wright (2006, section 7.1) with a fixed relative tolerance, preconditioned CG as their algorithm 5.3. How a solve
ended is data: a `Status`, whose text names the remedy. A callback may raise to stop a solve between two CG iterations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


class Status(Enum):
    """How a solve ended; the value says it in words, with the remedy."""

    CONVERGED = "Converged: the requested tolerance was reached."
    NO_FURTHER_DECREASE = "Converged: going on would lower the loss by less than the requested share."
    MAX_ITERS = "Conjugate gradient stopped at its iteration cap; allow more iterations, or raise the damping."
    MAX_STEPS = "Took all the Newton steps it was given; more steps would lower the loss further."
    MODEL_FAILED = "The step was cut where the loss itself no longer fell as its quadratic model had promised."
    NEGATIVE_CURVATURE = (
        "The curvature is negative along a search direction, so the step was cut there; use Gauss-Newton, or raise the damping."
    )
    LINE_SEARCH_FAILED = (
        "No step length lowered the loss, so the weights were kept; raise the damping, or measure curvature on a larger share."
    )
    NOT_FINITE = (
        "The loss, its gradient or a curvature product was NaN or infinite, and the solve ended there; use float64, raise the "
        "damping, or check the weights and images."
    )
    ALREADY_OPTIMAL = "The gradient is zero: there was nothing to improve."


@dataclass(frozen=True)
class CGResult:
    """`residuals[i]` is ||r_i|| / ||b|| after i iterations; `curvatures[i]` is p·Ap / p·p along direction i."""

    x: Tensor
    status: Status
    residuals: list[float]
    curvatures: list[float]

    @property
    def num_products(self) -> int:
        return len(self.curvatures)


# A solve's iterates are looked at after so many iterations, and then each time there are twice as many.
_FIRST_CHECK = 3


def cg(
    product: Operator,
    b: Tensor,
    *,
    rtol: float,
    max_iters: int,
    least_decrease: float = 0.0,
    loss_at: Callable[[Tensor], float] | None = None,
    preconditioner: Operator = lambda r: r,
    on_iteration: Callable[[int, float, float], None] = lambda iteration, residual, curvature: None,
) -> CGResult:
    """Solve `A x = b` for symmetric `A` given by `product`, until ||b - A x|| <= rtol ||b||, or until two iterations in a row
    lower the quadratic x·Ax / 2 - b·x by less than `least_decrease` each. All vectors are flat.

    The quadratic is a model of a loss, and promises most where it knows least. With `loss_at`, iterates 3, 6, 12, … are looked
    at, and where the loss itself no longer falls from one to the next, the earlier one is returned (after Martens, 2010, "Deep
    learning via Hessian-free optimization", section 4.6, which looks back at the end).

    `preconditioner` applies a symmetric positive definite approximation of A's inverse. On a direction p with p·Ap <= 0 the
    solve is truncated: the iterate so far is returned, or, at the first iteration, the preconditioned right-hand side itself,
    which is a descent direction (Nocedal & Wright, section 7.1). Where a value is NaN or infinite, the last iterate before
    it is returned.
    """
    norm = float(b.norm())
    x = torch.zeros_like(b)
    if norm == 0:
        return CGResult(x, Status.ALREADY_OPTIMAL, [0.0], [])
    residual = b.clone()
    residuals, curvatures = [1.0], []
    z = preconditioner(residual)
    direction, rz, idle = z, residual @ z, 0
    checked: tuple[Tensor, float] | None = None
    check_at = _FIRST_CHECK
    for iteration in range(1, max_iters + 1):
        image = product(direction)
        bend = direction @ image
        curvatures.append(float(bend / (direction @ direction)))
        if not bool(torch.isfinite(bend)):
            return CGResult(x, Status.NOT_FINITE, residuals, curvatures)
        if bend <= 0:
            return CGResult(direction if iteration == 1 else x, Status.NEGATIVE_CURVATURE, residuals, curvatures)
        alpha = rz / bend
        residual = residual - alpha * image
        reached = float(residual.norm()) / norm
        if not math.isfinite(reached):
            return CGResult(x, Status.NOT_FINITE, residuals, curvatures)
        x = x + alpha * direction
        residuals.append(reached)
        on_iteration(iteration, residuals[-1], curvatures[-1])
        if residuals[-1] <= rtol:
            return CGResult(x, Status.CONVERGED, residuals, curvatures)
        if loss_at is not None and iteration == check_at:
            reached_loss = loss_at(x)
            if checked is not None and not reached_loss < checked[1]:
                return CGResult(checked[0], Status.MODEL_FAILED, residuals, curvatures)
            checked, check_at = (x, reached_loss), 2 * check_at
        idle = idle + 1 if least_decrease and bool(alpha * rz / 2 < least_decrease) else 0
        if idle == 2:
            return CGResult(x, Status.NO_FURTHER_DECREASE, residuals, curvatures)
        z = preconditioner(residual)
        rz, previous = residual @ z, rz
        direction = z + (rz / previous) * direction
    return CGResult(x, Status.MAX_ITERS, residuals, curvatures)


@dataclass(frozen=True)
class LineSearchResult:
    """`step_size` is 0 and `loss` the starting loss when no step was accepted; `tried` lists every step size evaluated."""

    step_size: float
    loss: float
    tried: list[float]


def line_search(
    loss_at: Callable[[float], float],
    loss: float,
    slope: float,
    *,
    first: float = 1.0,
    sufficient_decrease: float = 1e-4,
    shrink: float = 0.5,
    max_tries: int = 12,
) -> LineSearchResult:
    """Backtracking until `loss_at(t) <= loss + sufficient_decrease * t * slope` (Armijo; Nocedal & Wright, algorithm 3.1).

    `slope` is the directional derivative at 0 and must be negative. A loss that is not finite is rejected like one too high.
    """
    if not slope < 0:
        return LineSearchResult(0.0, loss, [])
    step_size, tried = first, []
    for _ in range(max_tries):
        tried.append(step_size)
        reached = loss_at(step_size)
        if reached <= loss + sufficient_decrease * step_size * slope:
            return LineSearchResult(step_size, reached, tried)
        step_size *= shrink
    return LineSearchResult(0.0, loss, tried)


class Problem(Protocol):
    """What `newton_cg` minimizes: a function of one flat vector."""

    def sampled_loss(self, x: Tensor, step: int) -> float:
        """The loss on a sample, another than the one that the curvature of this step is measured on where there are more."""
        ...

    def loss(self, x: Tensor) -> float: ...

    def loss_and_gradient(self, x: Tensor) -> tuple[float, Tensor]: ...

    def curvature(self, x: Tensor, step: int) -> tuple[Operator, Operator]:
        """The product with the curvature at `x` (damping included) and a preconditioner for it."""
        ...


@dataclass(frozen=True)
class StepResult:
    """One Newton step. `predicted` and `actual` are reductions of the loss; `predicted` is the quadratic model's."""

    step: int
    loss: float
    gradient_norm: float
    cg: CGResult
    step_size: float
    tried: list[float]
    predicted: float
    actual: float


@dataclass(frozen=True)
class NewtonResult:
    """`x` is the best point found: its `loss` is never above the loss at the start."""

    x: Tensor
    loss: float
    status: Status
    steps: list[StepResult] = field(default_factory=list)

    @property
    def num_products(self) -> int:
        return sum(s.cg.num_products for s in self.steps)


# Of what makes a Newton step worth taking: what an iteration of its solve must bring. Ten slow ones more would make a step.
_WORTH_AN_ITERATION = 0.1


def newton_cg(
    problem: Problem,
    x: Tensor,
    *,
    max_steps: int,
    max_iters: int,
    rtol: float,
    min_decrease: float,
    first_step: int = 0,
    more_follows: bool = False,
    on_iteration: Callable[[int, int, float, float], None] = lambda step, iteration, residual, curvature: None,
    on_step: Callable[[StepResult], None] = lambda step: None,
) -> NewtonResult:
    """Minimize `problem` from the flat vector `x`, counting steps from `first_step`. `more_follows`: the caller will want the
    gradient at the end, so that it is taken with the loss there.

    Stops after `max_steps` Newton steps, when a step lowers the loss by less than the share `min_decrease` or the model
    promises no more than that, when the gradient vanishes, when no step length lowers the loss, or where a value is NaN or
    infinite. Every accepted step lowers it.
    """
    loss, gradient = problem.loss_and_gradient(x)
    steps: list[StepResult] = []
    last_step = first_step + max_steps - 1
    for step in range(first_step, last_step + 1):
        gradient_norm = float(gradient.norm())
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return NewtonResult(x, loss, Status.NOT_FINITE, steps)
        if gradient_norm == 0:
            return NewtonResult(x, loss, Status.ALREADY_OPTIMAL, steps)
        product, preconditioner = problem.curvature(x, step)
        solve = cg(
            product,
            -gradient,
            rtol=rtol,
            max_iters=max_iters,
            least_decrease=_WORTH_AN_ITERATION * min_decrease * loss,
            loss_at=lambda s, x=x, step=step: problem.sampled_loss(x + s, step),  # type: ignore[misc]
            preconditioner=preconditioner,
            on_iteration=lambda i, r, c, step=step: on_iteration(step, i, r, c),  # type: ignore[misc]
        )
        slope = float(gradient @ solve.x)
        whole = solve.status in (
            Status.CONVERGED,
            Status.NO_FURTHER_DECREASE,
            Status.MODEL_FAILED,
            Status.MAX_ITERS,
        )  # what was cut short promises nothing
        if whole and 0 <= -slope / 2 < min_decrease * loss:
            # Not worth the passes of a line search, and near the minimum rounding would make it fail.
            steps.append(StepResult(step, loss, gradient_norm, solve, 0.0, [], -slope / 2, 0.0))
            on_step(steps[-1])
            return NewtonResult(x, loss, Status.NO_FURTHER_DECREASE, steps)
        points: dict[float, Tensor] = {0.0: x}

        def loss_at(
            t: float, x: Tensor = x, s: Tensor = solve.x, points: dict[float, Tensor] = points, step: int = step
        ) -> float:
            points[t] = x + t * s
            # The first try is nearly always the one that is taken, and its gradient comes cheaper with its loss than later.
            wanted = t == 1 and (step < last_step or more_follows)
            return problem.loss_and_gradient(points[t])[0] if wanted else problem.loss(points[t])

        search = line_search(loss_at, loss, slope)
        t = search.step_size
        # The model falls by -(t g·s + t² s·Hs / 2). At a CG iterate s·Hs = -g·s; a solve that is cut at once has measured it.
        cut = solve.status is Status.NEGATIVE_CURVATURE and solve.num_products == 1
        bend = solve.curvatures[0] * float(solve.x @ solve.x) if cut else -slope
        predicted = -t * slope - t * t / 2 * bend
        result = StepResult(step, search.loss, gradient_norm, solve, t, search.tried, predicted, loss - search.loss)
        steps.append(result)
        on_step(result)
        if t == 0 and solve.status is not Status.NOT_FINITE:
            return NewtonResult(x, loss, Status.LINE_SEARCH_FAILED, steps)
        x = points[t]  # the very tensor that was evaluated, so that a problem may know it again
        decrease = (loss - search.loss) / loss if loss > 0 else 0.0
        loss = search.loss
        if solve.status is Status.NOT_FINITE:
            return NewtonResult(x, loss, Status.NOT_FINITE, steps)
        if decrease < min_decrease:
            return NewtonResult(x, loss, Status.NO_FURTHER_DECREASE, steps)
        if step < last_step:
            _, gradient = problem.loss_and_gradient(x)
    return NewtonResult(x, loss, Status.MAX_STEPS, steps)
