"""One layer's problem, as updates see it."""

import math
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from weakref import proxy

import torch
from torch import Tensor

from snows.config import LayerPattern, SolverConfig
from snows.method import solver
from snows.method.graph import Window
from snows.method.objective import Batch, Objective
from snows.method.rows import KeptWeights, RowBlocks, RowSystems, input_gram, input_output_cross, row_systems
from snows.method.sparsity import to_matrix


class SiteProblem:
    """One site's reconstruction problem: window, mask, calibration batches and targets.

    `weight` is the dense weight (parameter shape), `mask` (R, P). `site_inputs` are the pruned network's inputs to the layer,
    one tensor a batch; `propagated` says that the targets are what the dense weight makes of them. `earlier` is the weight that
    a sweep before this one found. `refinement` says by what an update may exchange weights of the mask within the groups of
    `pattern`: `none`, `layer` or `window`. `ridge` pulls the weights toward their dense values, as a share of the mean diagonal
    of the input Gram matrix. `memory`: bytes that linearizations of the window may take. `held_back` are batches of images that
    nothing here is fitted on: only `held_back_losses` looks at them.
    """

    def __init__(
        self,
        window: Window,
        weight: Tensor,
        mask: Tensor,
        pattern: LayerPattern,
        batches: Sequence[Batch],
        site_inputs: Sequence[Tensor],
        *,
        propagated: bool = False,
        bias: Tensor | None,
        config: SolverConfig,
        device: torch.device,
        seed: int,
        refinement: str = "none",
        ridge: float = 0.0,
        memory: float = math.inf,
        gram: Tensor | None = None,
        earlier: Tensor | None = None,
        held_back: Sequence[Batch] = (),
        on_iteration: Callable[[int, int, float, float], None] = lambda step, iteration, residual, curvature: None,
        on_step: Callable[[solver.StepResult, float], None] = lambda step, damping: None,
    ) -> None:
        self.window, self.weight, self.mask, self.pattern, self.batches = window, weight, mask, pattern, batches
        self.config, self.device, self.seed, self.refinement = config, device, seed, refinement
        self.on_iteration, self.on_step, self.held_back = on_iteration, on_step, held_back
        self._site_inputs, self.propagated, self._bias, self._gram = site_inputs, propagated, bias, gram
        self.kept = KeptWeights(mask, weight.shape)
        self.earlier = None if earlier is None else self.kept.restrict(earlier)
        self._ridge, self._memory = ridge, memory
        self._pull = 0.0
        self.near: Tensor | None = None

    def with_mask(self, mask: Tensor, near: Tensor, pattern: LayerPattern | None = None) -> "SiteProblem":
        """The same problem for another mask (R, P), of another `pattern` if one is given; what the mask has no part in is
        computed once for both. `near` (R, P) is near its least squares: where one that iterates begins."""
        other = self._forgetful("ridge", "gram", "exact_gram", "cross", "_input_gram")
        other.mask, other.kept, other.earlier = mask, KeptWeights(mask, self.weight.shape), None
        other.pattern = pattern or self.pattern
        other.near = near.flatten()[other.kept.places]
        other._pull = self.objective.pull
        return other

    def _forgetful(self, *remembered: str) -> "SiteProblem":
        """The same problem, with nothing computed but what is `remembered`."""
        other = copy(self)
        for name, attribute in vars(SiteProblem).items():
            if isinstance(attribute, cached_property) and name not in remembered:
                vars(other).pop(name, None)
        return other

    @cached_property
    def _input_gram(self) -> Tensor:
        return self._gram if self._gram is not None else input_gram(self.window.site, self._site_inputs, self.device)

    @cached_property
    def ridge(self) -> float:
        """The pull toward the dense values at K = 0, in the units of the Gram matrix."""
        return self._ridge * float(self._input_gram.diagonal().double().mean())

    @cached_property
    def gram(self) -> Tensor:
        """(P, P), the ridge on its diagonal."""
        if not self._ridge:
            return self._input_gram
        gram = self._input_gram.clone()
        gram.diagonal().add_(self.ridge)
        return gram

    @cached_property
    def exact_gram(self) -> Tensor:
        """The same in float64, for what squares its condition number: once for all masks, for a wide layer's is large."""
        return self.gram.double()

    @cached_property
    def cross(self) -> Tensor:
        """(R, P), with the ridge's share: the minimizer of w G wᵀ - 2 w · c is pulled toward the dense weight."""
        dense = to_matrix(self.weight)
        if self.propagated:
            return dense @ self.gram
        outputs = (batch.targets[0] for batch in self.batches)
        cross = input_output_cross(self.window.site, self._site_inputs, outputs, self._bias, self.device)
        return cross + self.ridge * dense if self._ridge else cross

    @cached_property
    def row_systems(self) -> RowSystems:
        return row_systems(self.gram, self.kept, self.exact_gram)

    def row_systems_anew(self) -> RowSystems:
        """As `row_systems`, made once more from the layer's inputs on: for who measures what they take."""
        other = self._forgetful()
        other._gram = None
        return other.row_systems

    @property
    def chosen_systems(self) -> str:
        """`factors` or `products`, the form that the size of the layer called for; empty where nobody asked for them."""
        return "" if "row_systems" not in vars(self) else "factors" if isinstance(self.row_systems, RowBlocks) else "products"

    @cached_property
    def masked(self) -> Tensor:
        """The dense weight's own values at the kept places (n,)."""
        return self.kept.restrict(self.weight)

    @cached_property
    def least_squares(self) -> Tensor:
        """The solution for K = 0 (n,), exact, under the pull; what images leave open has its dense values."""
        return self.row_systems.least_squares(self.cross, self.masked, self.near)

    @cached_property
    def objective(self) -> Objective:
        config, preconditioned = self.config, self.config.preconditioner == "row_blocks"
        problem = proxy(self)  # in a circle, a layer's images would stay until Python looks for circles, some layers later
        return Objective(
            self.window,
            self.kept,
            self.batches,
            coefficients=[1.0] * len(self.window.captured),
            device=self.device,
            curvature_kind=config.curvature,
            curvature_share=config.curvature_share,
            damping=config.damping,
            dense=self.weight,
            pull=self._pull,
            row_systems=(lambda: problem.row_systems) if preconditioned or self.refinement == "window" or self._ridge else None,
            preconditioned=preconditioned,
            seed=self.seed,
            memory=self._memory,
        )

    @cached_property
    def masked_losses(self) -> list[float]:
        """The window's loss at each k with the masked dense weights."""
        return self.objective.losses(self.masked)

    @cached_property
    def least_squares_losses(self) -> list[float]:
        return self.objective.losses(self.least_squares)

    def held_back_losses(self, kept: Tensor) -> list[float]:
        """The window's loss at each k on the images held back; none where there are none."""
        if not self.held_back:
            return []
        coefficients = [1.0] * len(self.window.captured)
        return Objective(self.window, self.kept, self.held_back, coefficients=coefficients, device=self.device).losses(kept)

    @cached_property
    def start(self) -> Tensor:
        """Where SNOWS begins (n,): the better of the mask alone and, as configured, least squares; or in a second sweep, what
        the first one found."""
        if self.earlier is None and not self.starts_at_least_squares:
            return self.masked
        other = self.least_squares if self.earlier is None else self.earlier
        loss, _ = self.objective.loss_and_gradient(other)  # the gradient is wanted next, and the loss comes with it
        return self.masked if sum(self.masked_losses) < loss or not math.isfinite(loss) else other

    @property
    def starts_at_least_squares(self) -> bool:
        return self.earlier is None and self.config.start == "least_squares"
