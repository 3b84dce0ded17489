"""The K-step objective of one site, restricted to the weights its mask keeps.

    L(W) = sum_k c_k mean((y_k - yhat_k(W * Z))^2)                                        (paper equation 5)

`Objective` is what `solver.newton_cg` minimizes over the flat vector of kept weights: its loss, gradient, curvature products
without ever forming the Hessian, and a preconditioner. `rows.row_systems` gives what both the exact K = 0 solution and the
preconditioner come from.

Shapes: R output rows, P inputs a row (for a convolution: kernel position by input channel, see `sparsity.to_matrix`), S kept
weights in a row, n kept weights in all.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from snows.method.graph import SAVED, Window
from snows.method.linearization import Linearization, gradient_of
from snows.method.operations import Values, moved
from snows.method.rows import KeptWeights, RowSystems
from snows.method.sparsity import to_matrix

Product = Callable[[Tensor], Tensor]
_POINTS_REMEMBERED = 8


@dataclass(frozen=True)
class Batch:
    """One calibration batch as a window sees it: its inputs, and the target for each captured value."""

    inputs: Values
    targets: Sequence[Tensor]
    images: int


class Remade(Sequence[Tensor]):
    """Targets that are not held: the outputs of the window with the dense `weight` on `inputs`, made again for each look."""

    def __init__(self, window: Window, weight: Tensor, inputs: Values) -> None:
        self.window, self.weight, self.inputs = window, weight, inputs

    def __len__(self) -> int:
        return len(self.window.captured)

    def __iter__(self) -> Iterator[Tensor]:
        with torch.no_grad():
            return iter(self.window.outputs(self.weight, moved(self.inputs, self.weight.device)))

    def __getitem__(self, k):  # type: ignore[no-untyped-def]
        return list(self)[k]


class Spared(Sequence[Tensor]):
    """Targets of which some values do not count: where `removed` says so, for each captured value or None, they are what the
    window makes with `weight` on `inputs`, so that the loss of what is gone for good is zero. Made again for each look."""

    def __init__(
        self, targets: Sequence[Tensor], removed: Sequence[Tensor | None], window: Window, weight: Tensor, inputs: Values
    ) -> None:
        self.targets, self.removed, self.own = targets, removed, Remade(window, weight, inputs)

    def __len__(self) -> int:
        return len(self.targets)

    def __iter__(self) -> Iterator[Tensor]:
        for target, removed, own in zip(self.targets, self.removed, self.own, strict=True):
            yield target if removed is None else torch.where(removed.to(own.device), own, target.to(own.device))

    def __getitem__(self, k):  # type: ignore[no-untyped-def]
        return list(self)[k]


def mean_squares(batches: Sequence[Batch]) -> list[float]:
    """Of the targets at each captured value, k = 0 … K; empty for no batches."""
    images = sum(batch.images for batch in batches)
    squares = [torch.stack([t.norm().square() / t.numel() for t in batch.targets]).double().cpu() for batch in batches]
    total = sum(square * (batch.images / images) for square, batch in zip(squares, batches, strict=True))
    return total.tolist() if isinstance(total, Tensor) else []


# --- the objective ---


class Objective:
    """The K-step loss of one window as a function of the kept weights (n,), over all calibration batches, plus a pull toward
    the dense values: `pull` times the squared distance of the whole weight, pruned ones at zero, to `dense` (parameter shape).

    `coefficients` are the c_k, one per captured value. `curvature_kind` is a name of `config.CURVATURES`, or
    `empirical_fisher`, to be set beside them. Curvature is measured on batches of about `curvature_share` of the images, drawn
    anew for every Newton step from `seed`; loss and gradient always on all of them. With `row_systems`, which gives them once
    they are wanted, it comes with `row_scales` (R,), how much more each row's weights matter over K steps than at K = 0, and
    where `preconditioned`, with a preconditioner made of both. `num_passes` says how often all images were looked at: a loss, a
    gradient, a linearization and a product count alike, each by the share of the images that it is made on.
    """

    def __init__(
        self,
        window: Window,
        kept: KeptWeights,
        batches: Sequence[Batch],
        *,
        coefficients: Sequence[float],
        device: torch.device,
        curvature_kind: str = "gauss_newton",
        curvature_share: float = 1.0,
        damping: float = 0.0,
        dense: Tensor | None = None,
        pull: float = 0.0,
        row_systems: Callable[[], RowSystems] | None = None,
        preconditioned: bool = True,
        seed: int = 0,
        memory: float = math.inf,
    ) -> None:
        self.window, self.kept, self.batches = window, kept, batches
        self.coefficients, self.device = coefficients, device
        self.curvature_kind, self.curvature_share, self.damping = curvature_kind, curvature_share, damping
        self.row_systems, self.preconditioned, self.seed = row_systems, preconditioned, seed
        self.dense, self.pull, self.memory = dense, pull, memory
        self.num_products = 0
        self.num_passes = 0.0
        self.last_damping = 0.0
        self.row_scales: Tensor | None = None
        self._seen: list[tuple[Tensor, list[float], Tensor | None]] = []
        self._probed: tuple[Tensor, int, Product, Tensor, Tensor] | None = None

    def inputs(self, batch: Batch) -> Values:
        """The batch's window inputs on the device."""
        return moved(batch.inputs, self.device)

    def _errors(self, weight: Tensor, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs at the captured values, and how far they are from their targets."""
        outputs = self.window.outputs(weight, self.inputs(batch))
        return outputs, [y.detach() - t.to(self.device) for y, t in zip(outputs, batch.targets, strict=True)]

    def losses(self, kept: Tensor) -> list[float]:
        """The mean squared error at each captured value, k = 0 … K, without coefficients."""
        return self._evaluated(kept)[0]

    def loss(self, kept: Tensor) -> float:
        return self._weighted(self.losses(kept)) + self._penalty(kept)

    def loss_and_gradient(self, kept: Tensor) -> tuple[float, Tensor]:
        """The loss and its gradient (n,)."""
        losses, gradient = self._evaluated(kept, with_gradient=True)
        assert gradient is not None
        return self._weighted(losses) + self._penalty(kept), self.kept.restrict(self._pulled(kept, gradient))

    def gradient(self, kept: Tensor, chosen: Sequence[int]) -> Tensor:
        """The gradient (n,) of the loss over the `chosen` batches alone."""
        gradient = self._evaluate(kept, chosen, with_gradient=True)[1]
        assert gradient is not None
        return self.kept.restrict(self._pulled(kept, gradient))

    def full_gradient(self, kept: Tensor) -> Tensor:
        """The gradient with respect to all weights (R, P), the pruned ones at zero: which of them would help."""
        gradient = self._evaluated(kept, with_gradient=True)[1]
        assert gradient is not None
        return to_matrix(self._pulled(kept, gradient))

    def _penalty(self, kept: Tensor) -> float:
        return float((self.pull * self._distance(kept).double().square()).sum()) if self.pull > 0 else 0.0

    def _pulled(self, kept: Tensor, gradient: Tensor) -> Tensor:
        """A gradient of the window's loss, with the pull's."""
        return gradient + 2 * self.pull * self._distance(kept) if self.pull > 0 else gradient

    def _distance(self, kept: Tensor) -> Tensor:
        assert self.dense is not None
        return self.kept.expand(kept) - self.dense

    def _weighted(self, losses: Sequence[float]) -> float:
        return sum(c * error for c, error in zip(self.coefficients, losses, strict=True))

    def _evaluated(self, kept: Tensor, with_gradient: bool = False) -> tuple[list[float], Tensor | None]:
        # A solve comes back to the points it knows: the start that was compared, the step that was accepted.
        for point, losses, gradient in self._seen:
            if point is kept and (gradient is not None or not with_gradient):
                return losses, gradient
        evaluation = self._evaluate(kept, range(len(self.batches)), with_gradient)
        self._seen = [(kept, *evaluation), *self._seen[: _POINTS_REMEMBERED - 1]]
        return evaluation

    def _evaluate(self, kept: Tensor, chosen: Sequence[int], with_gradient: bool) -> tuple[list[float], Tensor | None]:
        weight = self.kept.expand(kept).requires_grad_(with_gradient)
        images = sum(self.batches[i].images for i in chosen)
        self.num_passes += self._share(chosen)
        losses, gradient = torch.zeros(len(self.coefficients), dtype=torch.float64), torch.zeros_like(weight)
        with torch.set_grad_enabled(with_gradient):
            for i in chosen:
                outputs, errors = self._errors(weight, self.batches[i])
                share = self.batches[i].images / images
                losses += share * torch.stack([e.norm().square() / e.numel() for e in errors]).double().cpu()
                if with_gradient:
                    slopes = [e.mul_(2 * share * c / e.numel()) for c, e in zip(self.coefficients, errors, strict=True)]
                    gradient += gradient_of(outputs, weight, slopes)
        return losses.tolist(), gradient if with_gradient else None

    def _share(self, chosen: Sequence[int]) -> float:
        """Of all images, how many the `chosen` batches hold."""
        return sum(self.batches[i].images for i in chosen) / sum(batch.images for batch in self.batches)

    def curvature_batches(self, step: int) -> list[int]:
        """The batches that curvature is measured on in Newton step `step`: as many as come nearest to the share of images."""
        wanted = self.curvature_share * sum(batch.images for batch in self.batches)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        chosen: list[int] = []
        images = 0
        for i in torch.randperm(len(self.batches), generator=generator).tolist():
            if chosen and images + self.batches[i].images / 2 > wanted:
                break
            chosen.append(i)
            images += self.batches[i].images
        return sorted(chosen)

    def sampled_loss(self, kept: Tensor, step: int) -> float:
        """The loss on as many other images as curvature is measured on in step `step`, or on as many as there are."""
        curved = self.curvature_batches(step)
        others = [i for i in range(len(self.batches)) if i not in curved][: len(curved)] or curved
        return self._weighted(self._evaluate(kept, others, with_gradient=False)[0]) + self._penalty(kept)

    def product(self, kept: Tensor, chosen: Sequence[int] | None = None, epsilon: float | None = None) -> Product:
        """v (n,) -> C v (n,), with C the chosen kind of curvature of the loss at `kept` over the `chosen` batches (all by
        default). `epsilon`: the relative step of finite differences, near the best one by default.

        The empirical Fisher matrix is the mean over images of g gᵀ, g an image's own gradient (Kunstner, Balles & Hennig, 2019,
        "Limitations of the empirical Fisher approximation for natural gradient descent"). Its size goes with the square of the
        errors and says nothing of the curvature's, so it is scaled to bend along the gradient as Gauss-Newton does.

        The window is run and its derivative graph built once, and every product reuses them, as far as `memory` goes.
        """
        chosen = range(len(self.batches)) if chosen is None else chosen
        if self.curvature_kind == "finite_difference":
            return self._finite_difference(kept, chosen, epsilon)
        if self.curvature_kind != "empirical_fisher":
            return self._linearized(_LINEARIZED[self.curvature_kind], kept, chosen)
        fisher = self._linearized(_empirical_fisher, kept, chosen)
        slope = self.gradient(kept, chosen)
        own, bend = (float(slope @ of(slope)) for of in (fisher, self._linearized(_gauss_newton, kept, chosen)))
        scale = bend / own if own > 0 else 1.0
        return lambda v: fisher(v).mul_(scale)

    def _linearized(
        self, linearize: Callable[["Objective", Tensor, Batch], Product], kept: Tensor, chosen: Sequence[int]
    ) -> Product:
        weight = self.kept.expand(kept).requires_grad_()
        images = sum(self.batches[i].images for i in chosen)
        once = SAVED * self.window.image_bytes * images <= self.memory
        self.num_passes += self._share(chosen)

        def of(batch: Batch) -> Product:
            return linearize(self, weight, batch) if once else lambda v: linearize(self, weight, batch)(v)

        parts = [(self.batches[i].images / images, of(self.batches[i])) for i in chosen]

        def product(v: Tensor) -> Tensor:
            self.num_products += 1
            self.num_passes += self._share(chosen)
            full = self.kept.expand(v)
            return self.kept.restrict(sum(share * part(full) for share, part in parts))  # type: ignore[arg-type]

        return product

    def _finite_difference(self, kept: Tensor, chosen: Sequence[int], epsilon: float | None = None) -> Product:
        # Central differences: the error is epsilon^2 (truncation) plus precision / epsilon (rounding), least near
        # precision^(1/3).
        relative = epsilon or torch.finfo(kept.dtype).eps ** (1 / 3)

        def product(v: Tensor) -> Tensor:
            self.num_products += 1
            norm = v.norm()
            if norm == 0:
                return torch.zeros_like(v)
            step = relative * (1 + kept.norm()) / norm
            ahead = self._evaluate(kept + step * v, chosen, with_gradient=True)[1]
            behind = self._evaluate(kept - step * v, chosen, with_gradient=True)[1]
            return self.kept.restrict(ahead - behind) / (2 * step)  # type: ignore[operator]

        return product

    def curvature(self, kept: Tensor, step: int) -> tuple[Product, Product]:
        """The damped curvature product at `kept`, with the pull's, and a preconditioner (the identity without row systems).

        One probe with random signs v gives both scales: v·Cv / n estimates C's mean diagonal, which the damping is relative to
        (Hutchinson, 1990); row by row, v_r·(Cv)_r against v_r·block_r v_r says how much more the row matters over K steps than
        at K = 0.
        """
        raw, probe, image = self._probe(kept, step)
        self._probed = None
        pull = 2 * self.pull
        image = image + pull * probe
        self.last_damping = damping = self.damping * abs(float(probe @ image)) / self.kept.count

        def product(v: Tensor) -> Tensor:
            return raw(v).add_((pull + damping) * v)

        if self.row_systems is None:
            return product, lambda r: r
        blocks = self.row_systems()
        own, seen = blocks.quadratic(probe), self.kept.row_sums(probe * image)
        overall = seen.sum().abs() / own.sum()
        # A single probe is noisy for a row with few weights: it may say a row matters more or less, but not absurdly so.
        self.row_scales = scales = (seen / own.clamp(min=1e-300)).clamp(0.05 * overall, 20 * overall)
        return product, (lambda r: blocks.solve(r, scales)) if self.preconditioned else (lambda r: r)

    def _probe(self, kept: Tensor, step: int) -> tuple[Product, Tensor, Tensor]:
        """The window's own curvature product C for Newton step `step` at `kept`, random signs v (n,), and C v."""
        if self._probed is None or self._probed[0] is not kept or self._probed[1] != step:
            raw = self.product(kept, self.curvature_batches(step))
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            probe = torch.randint(0, 2, kept.shape, generator=generator).to(kept).mul_(2).sub_(1)
            self._probed = kept, step, raw, probe, raw(probe)
        return self._probed[2:]

    def pull_like(self, ridge: float, kept: Tensor) -> None:
        """Set the pull to what a `ridge` on the input Gram matrix's diagonal is at K = 0, in proportion to how much more the
        weights matter over K steps: measured at `kept` by the probe that the first Newton step there needs anyway."""
        assert self.row_systems is not None
        _, probe, image = self._probe(kept, 0)
        own = float(self.row_systems().quadratic(probe).sum()) - ridge * self.kept.count  # its Gram matrix holds the ridge
        self.pull = ridge / 2 * abs(float(probe @ image)) / own if own > 0 else 0.0


def _gauss_newton(objective: Objective, weight: Tensor, batch: Batch) -> Product:
    """2 Jᵀ diag(c_k / size_k) J for one batch. Positive semi-definite, since the loss is a sum of squares."""
    linear = Linearization(objective.window, weight, objective.inputs(batch))
    factors = [2 * c / y.numel() for c, y in zip(objective.coefficients, linear.outputs, strict=True)]
    return lambda v: linear.pull([f * y for f, y in zip(factors, linear.push(v), strict=True)])


def _hessian(objective: Objective, weight: Tensor, batch: Batch) -> Product:
    """The exact Hessian of one batch's loss by double backward (the paper's product)."""
    outputs = objective.window.outputs(weight, objective.inputs(batch))
    targets = (t.to(objective.device) for t in batch.targets)
    losses = [c * F.mse_loss(y, t) for c, y, t in zip(objective.coefficients, outputs, targets, strict=True) if c]
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), weight, create_graph=True)
    return lambda v: torch.autograd.grad(gradient, weight, v, retain_graph=True)[0]


def _empirical_fisher(objective: Objective, weight: Tensor, batch: Batch) -> Product:
    """The mean over one batch's images i of g_i g_iᵀ, with g_i = Jᵀ u_i the gradient of image i's own loss: Jᵀ of the u_i, each
    times its g_i · v = u_i · Jv. No gradient is held."""
    linear = Linearization(objective.window, weight, objective.inputs(batch))
    slopes = [
        2 * c * batch.images / y.numel() * (y.detach() - t.to(objective.device))
        for c, y, t in zip(objective.coefficients, linear.outputs, batch.targets, strict=True)
    ]

    def product(v: Tensor) -> Tensor:
        moves = [u * y for u, y in zip(slopes, linear.push(v), strict=True)]
        along = torch.stack([m.flatten(1).sum(1) for m in objective.window.by_image(moves, batch.images)]).sum(0)
        pulled = [u.clone() for u in slopes]
        for view in objective.window.by_image(pulled, batch.images):
            view.mul_(along.div(batch.images).view(-1, *[1] * (view.ndim - 1)))
        return linear.pull(pulled)

    return product


_LINEARIZED = {"gauss_newton": _gauss_newton, "hessian": _hessian}
