"""Updates: what values the kept weights take. One entry in `UPDATES` and its tests make an update.

An update is a function of a `SiteProblem`, which offers everything one site's objective is made of and computes each part when
first asked. It returns the kept weights, and how it went.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from snows import solver
from snows.config import SolverConfig
from snows.graph import Window
from snows.reconstruction import Batch, KeptWeights, Objective, RowBlocks, input_gram, input_output_cross
from snows.saliency import sparsegpt_sweep
from snows.sparsity import to_matrix


@dataclass(frozen=True)
class UpdateResult:
    """`kept` (n,) are the values of the kept weights. `status` is a member's name of `solver.Status` or a word of the
    update's."""

    kept: Tensor
    status: str
    message: str


class SiteProblem:
    """One site's reconstruction problem: window, mask, calibration batches and targets.

    `weight` is the dense weight (parameter shape), `mask` (R, P). `site_inputs` are the pruned network's inputs to the layer
    and `site_outputs` the values its own output should reproduce, one tensor a batch; None stands for the dense weight's own
    output on `site_inputs` (propagated targets).
    """

    def __init__(
        self,
        window: Window,
        weight: Tensor,
        mask: Tensor,
        batches: Sequence[Batch],
        site_inputs: Sequence[Tensor],
        site_outputs: Sequence[Tensor] | None,
        *,
        bias: Tensor | None,
        config: SolverConfig,
        device: torch.device,
        seed: int,
        gram: Tensor | None = None,
        on_iteration: Callable[[int, int, float, float], None] = lambda step, iteration, residual, curvature: None,
        on_step: Callable[[solver.StepResult, float], None] = lambda step, damping: None,
    ) -> None:
        self.window, self.weight, self.mask, self.batches = window, weight, mask, batches
        self.config, self.device, self.seed = config, device, seed
        self.on_iteration, self.on_step = on_iteration, on_step
        self._site_inputs, self.site_outputs, self._bias, self._gram = site_inputs, site_outputs, bias, gram
        self.kept = KeptWeights(mask, weight.shape)

    @cached_property
    def gram(self) -> Tensor:
        return self._gram if self._gram is not None else input_gram(self.window.site, self._site_inputs, self.device)

    @cached_property
    def cross(self) -> Tensor:
        if self.site_outputs is None:
            return to_matrix(self.weight) @ self.gram
        return input_output_cross(self.window.site, self._site_inputs, self.site_outputs, self._bias, self.device)

    @cached_property
    def row_blocks(self) -> RowBlocks:
        return RowBlocks(self.gram, self.kept)

    @cached_property
    def masked(self) -> Tensor:
        """The dense weight's own values at the kept places (n,)."""
        return self.kept.restrict(self.weight)

    @cached_property
    def least_squares(self) -> Tensor:
        """The exact solution for K = 0 (n,)."""
        return self.row_blocks.least_squares(self.cross)

    @cached_property
    def objective(self) -> Objective:
        config = self.config
        return Objective(
            self.window,
            self.kept,
            self.batches,
            coefficients=[1.0] * len(self.window.captured),
            device=self.device,
            curvature_kind=config.curvature,
            curvature_share=config.curvature_share,
            damping=config.damping,
            row_blocks=self.row_blocks if config.preconditioner == "row_blocks" else None,
            seed=self.seed,
        )

    @cached_property
    def masked_losses(self) -> list[float]:
        """The window's loss at each k with the masked dense weights."""
        return self.objective.losses(self.masked)

    @cached_property
    def least_squares_losses(self) -> list[float]:
        return self.objective.losses(self.least_squares)


def no_update(problem: SiteProblem) -> UpdateResult:
    """Keep the dense values: the mask alone."""
    return UpdateResult(problem.masked, "MASKED", "The mask alone: kept weights have their dense values.")


def least_squares(problem: SiteProblem) -> UpdateResult:
    """The exact minimizer of the layer's own output error on the mask (K = 0), row by row. Layer-wise optimal brain surgeon in
    closed form (Hassibi & Stork, 1993; Frantar & Alistarh, 2022)."""
    return UpdateResult(problem.least_squares, "EXACT", "The layer's own output is matched as well as the mask allows.")


def sparsegpt(problem: SiteProblem) -> UpdateResult:
    """SparseGPT's column sweep on the given mask (Frantar & Alistarh, 2023, algorithm 1).

    The sweep starts from the weight that best reproduces the targets without a mask: ||Y - W X||^2 and ||(W0 - W) X||^2 differ
    by a constant when W0 is that weight. With propagated targets it is the dense weight itself.
    """
    start = to_matrix(problem.weight)
    if problem.site_outputs is not None:
        ridge = 1e-6 * problem.gram.diagonal().mean() * torch.eye(len(problem.gram), device=problem.gram.device)
        # Solve for the change, so that directions the inputs never visit keep their dense values.
        change = torch.linalg.solve((problem.gram + ridge).double(), (problem.cross - start @ problem.gram).T.double()).T
        start = start + change.to(start.dtype)
    sweep = sparsegpt_sweep(start, problem.gram, mask=problem.mask)
    return UpdateResult(sweep.weight.flatten()[problem.kept.places], "SWEPT", "One pass over the columns of the weight.")


def snows(problem: SiteProblem) -> UpdateResult:
    """Newton-CG on the K-step objective (Lucas & Mazumder, 2025, algorithm 1), from the better of its start and the mask
    alone."""
    config, objective = problem.config, problem.objective
    start = problem.masked
    if config.start == "least_squares" and sum(problem.least_squares_losses) <= sum(problem.masked_losses):
        start = problem.least_squares
    result = solver.newton_cg(
        objective,
        start,
        max_steps=config.newton_steps,
        max_iters=config.max_iters,
        rtol=config.rtol,
        min_decrease=config.min_decrease,
        on_iteration=problem.on_iteration,
        on_step=lambda step: problem.on_step(step, objective.last_damping),
    )
    return UpdateResult(result.x, result.status.name, result.status.value)


UPDATES: dict[str, Callable[[SiteProblem], UpdateResult]] = {
    "none": no_update,
    "least-squares": least_squares,
    "sparsegpt": sparsegpt,
    "snows": snows,
}
