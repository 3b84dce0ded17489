"""SNOWS as the paper states it, to measure ours against: Lucas & Mazumder (2025), section 3 and algorithm 1.

From the masked dense weights, three Newton passes over batches of 128 images; in each, the batch's exact Hessian by double
backward (a new graph for every product), conjugate gradient without a preconditioner, and an Armijo search on the batch. The
window, the tolerance and the cap on iterations are ours, so that the two differ in the method alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from snows.method import solver
from snows.method.graph import Window
from snows.method.objective import Batch
from snows.method.rows import KeptWeights

PASSES = 3


def plain_snows(
    window: Window,
    kept: KeptWeights,
    start: Tensor,
    batches: Sequence[Batch],
    *,
    rtol: float,
    max_iters: int,
    on_pass: Callable[[Tensor], None] = lambda x: None,
) -> Tensor:
    """The kept weights (n,) after three passes from `start` (n,); `on_pass` sees those after each."""
    x = start
    for _ in range(PASSES):
        for batch in batches:
            x = _newton_step(window, kept, x, batch, rtol, max_iters)
        on_pass(x)
    return x


def _newton_step(window: Window, kept: KeptWeights, x: Tensor, batch: Batch, rtol: float, max_iters: int) -> Tensor:
    def loss_at(point: Tensor) -> Tensor:
        outputs = window.outputs(kept.expand(point), batch.inputs)
        return torch.stack([(y - t).square().mean() for y, t in zip(outputs, batch.targets, strict=True)]).sum()

    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss := loss_at(point), point)

    def product(v: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(loss_at(point), point, create_graph=True)
        return torch.autograd.grad(slope, point, v)[0]

    solve = solver.cg(product, -gradient, rtol=rtol, max_iters=max_iters)
    with torch.no_grad():
        search = solver.line_search(lambda t: float(loss_at(x + t * solve.x)), float(loss.detach()), float(gradient @ solve.x))
    return x + search.step_size * solve.x
