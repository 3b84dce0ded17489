"""Updates: what values the kept weights take. One entry in `UPDATES` and its tests make an update.

An update is a function of a `SiteProblem`, which offers everything one site's objective is made of and computes each part when
first asked. It returns the kept weights, and how it went.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from snows.method import solver
from snows.method.problem import SiteProblem
from snows.method.refinement import refine
from snows.method.saliency import sparsegpt_sweep
from snows.method.sparsity import to_matrix


@dataclass(frozen=True)
class UpdateResult:
    """`kept` (n,) are the values of the kept weights of `problem`, the one that was given or the same with another mask.
    `status` is a member's name of `solver.Status` or a word of the update's. `by_k`: the losses at each k of the stages that
    the update passed through; `held_back`: likewise on the images held back."""

    problem: "SiteProblem"
    kept: Tensor
    status: str
    message: str
    by_k: dict[str, list[float]] = field(default_factory=dict)
    num_products: int = 0
    held_back: dict[str, list[float]] = field(default_factory=dict)


def no_update(problem: SiteProblem) -> UpdateResult:
    """Keep the dense values: the mask alone."""
    return UpdateResult(problem, problem.masked, "MASKED", "The mask alone: kept weights have their dense values.")


def least_squares(problem: SiteProblem) -> UpdateResult:
    """The exact minimizer of the layer's own output error on the mask (K = 0), row by row. Layer-wise optimal brain surgeon in
    closed form (Hassibi & Stork, 1993; Frantar & Alistarh, 2022)."""
    problem = exchange_in_layer(problem)
    return UpdateResult(
        problem, problem.least_squares, "EXACT", "The layer's own output is matched as well as the mask allows."
    )


def sparsegpt(problem: SiteProblem) -> UpdateResult:
    """SparseGPT's column sweep on the given mask (Frantar & Alistarh, 2023, algorithm 1).

    The sweep starts from the weight that best reproduces the targets without a mask: ||Y - W X||^2 and ||(W0 - W) X||^2 differ
    by a constant when W0 is that weight. With propagated targets it is the dense weight itself.
    """
    start = to_matrix(problem.weight)
    if not problem.propagated:
        # Where all inputs are zero, anything above zero will do.
        share = (1e-6 * problem.gram.diagonal().mean().double()).clamp(min=torch.finfo(torch.float64).tiny)
        ridge = share * torch.eye(len(problem.gram), dtype=torch.float64, device=problem.gram.device)
        # Solve for the change, so that directions the inputs never visit keep their dense values.
        change = torch.linalg.solve(problem.gram.double() + ridge, (problem.cross - start @ problem.gram).T.double()).T
        start = start + change.to(start.dtype)
    swept = sparsegpt_sweep(start, problem.gram, mask=problem.mask).weight
    return UpdateResult(problem, swept.flatten()[problem.kept.places], "SWEPT", "One pass over the columns of the weight.")


def snows(problem: SiteProblem) -> UpdateResult:
    """Newton-CG on the K-step objective (Lucas & Mazumder, 2025, algorithm 1), from `problem.start`.

    With `refinement="window"` the mask is refined once more before every Newton step but the first, by the curvature that the
    step before has measured.
    """
    problem = exchange_in_layer(problem)
    steps, in_window = problem.config.newton_steps, problem.refinement == "window"
    start = problem.start
    if problem.ridge > 0:
        problem.objective.pull_like(problem.ridge, start)
    result = _newton(problem, start, 1 if in_window else steps, more_follows=in_window and steps > 1)
    by_k, held_back = {}, {}
    if problem.starts_at_least_squares:
        by_k["least_squares"] = problem.least_squares_losses
        held_back["least_squares"] = problem.held_back_losses(problem.least_squares)
    products = problem.objective.num_products
    for step in range(1, steps if in_window else 1):
        if result.status in (solver.Status.NOT_FINITE, solver.Status.ALREADY_OPTIMAL):
            break
        exchanged, x = exchange_in_window(problem, result.x, result.loss)
        if exchanged is problem and result.status is not solver.Status.MAX_STEPS:
            break
        before = exchanged.objective.num_products
        result = _newton(exchanged, x, 1, first_step=step, more_follows=step + 1 < steps)
        products += exchanged.objective.num_products - before
        problem = exchanged
    return UpdateResult(problem, result.x, result.status.name, result.status.value, by_k, products, held_back)


def _newton(
    problem: SiteProblem, x: Tensor, max_steps: int, first_step: int = 0, more_follows: bool = False
) -> solver.NewtonResult:
    config, objective = problem.config, problem.objective
    return solver.newton_cg(
        objective,
        x,
        max_steps=max_steps,
        max_iters=config.max_iters,
        rtol=config.rtol,
        min_decrease=config.min_decrease,
        first_step=first_step,
        more_follows=more_follows,
        on_iteration=problem.on_iteration,
        on_step=lambda step: problem.on_step(step, objective.last_damping),
    )


def exchange_in_layer(problem: SiteProblem) -> SiteProblem:
    """The problem with the mask that reproduces the layer's own output best, as far as exchanges get. As it was without
    refinement, and in a second sweep, whose masks have seen more than that."""
    if problem.refinement == "none" or problem.earlier is not None:
        return problem
    start = to_matrix(problem.kept.expand(problem.least_squares))
    return problem.with_mask(*refine(problem.mask, start, problem.gram, problem.cross, problem.pattern))


def exchange_in_window(problem: SiteProblem, x: Tensor, loss: float) -> tuple[SiteProblem, Tensor]:
    """The problem and a point of it, after exchanges by what matters K operations later; as they were where the loss does not
    fall by them.

    Near `x` (n,) the loss is g · d + d C d / 2, with the gradient g over all weights, pruned ones too, and the curvature C of
    a row approximated as in the preconditioner: the input Gram matrix, scaled row by row.
    """
    scales, gram = problem.objective.row_scales, problem.exact_gram
    assert scales is not None  # a Newton step has measured them
    weight = to_matrix(problem.kept.expand(x)).double()
    cross = weight @ gram - problem.objective.full_gradient(x).double() / scales[:, None]
    mask, near = refine(problem.mask, weight, gram, cross, problem.pattern)
    if torch.equal(mask, problem.mask):
        return problem, x
    exchanged = problem.with_mask(mask, near)
    start = exchanged.row_systems.least_squares(cross.to(x.dtype), exchanged.masked, exchanged.near)
    reached, _ = exchanged.objective.loss_and_gradient(start)  # the gradient is wanted next, and the loss comes with it
    return (exchanged, start) if reached < loss else (problem, x)


UPDATES: dict[str, Callable[[SiteProblem], UpdateResult]] = {
    "none": no_update,
    "least-squares": least_squares,
    "sparsegpt": sparsegpt,
    "snows": snows,
}
