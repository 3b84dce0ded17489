"""Live checks on one site: do the solver's parts keep their promises there, and how hard is the problem?

Each is a pure function of a `SiteProblem`. It looks at the point where the update "snows" starts, on all of the problem's
batches, and costs some dozens of curvature products, so a problem with few images answers within seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from snows.config import CURVATURES
from snows.method.objective import Objective
from snows.method.problem import SiteProblem
from snows.method.solver import CGResult, Operator, cg

PRECONDITIONERS = ("row_blocks", "none")


def _objective(problem: SiteProblem, **changes: Any) -> Objective:
    """The problem's objective with other settings; curvature is measured on all batches."""
    own = problem.objective
    settings: dict[str, Any] = {
        "batches": own.batches,
        "coefficients": own.coefficients,
        "device": own.device,
        "curvature_kind": own.curvature_kind,
        "damping": own.damping,
        "seed": own.seed,
    }
    return Objective(own.window, own.kept, **(settings | changes))


def _probe(problem: SiteProblem, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(problem.seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _difference(a: Tensor, b: Tensor) -> float:
    """||a - b|| relative to the longer of the two."""
    longer = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) / longer if longer else 0.0


# --- the three products ---


@dataclass(frozen=True)
class ProductsResult:
    """Products C v with one random v, by each way of measuring curvature.

    `curvatures` are v·Cv / v·v by kind. `differences` are ||C_a v - C_b v|| relative to the longer one, by pair of kinds.
    `without_errors` are the same with the start's own values as targets, where all three measure one operator: Gauss-Newton
    leaves out what the errors contribute, and there are none. All are NaN where a product is not finite. `allowed` is how large
    `without_errors` may be: for finite differences some times their own error, for the two exact products rounding alone.
    """

    curvatures: dict[str, float]
    differences: dict[tuple[str, str], float]
    without_errors: dict[tuple[str, str], float]
    allowed: dict[tuple[str, str], float]

    @property
    def agree(self) -> bool:
        """Whether the three are one operator where they must be."""
        return all(self.without_errors[pair] <= limit for pair, limit in self.allowed.items())  # NaN is not


def compare_products(problem: SiteProblem) -> ProductsResult:
    """The three curvature products against each other, at the start and on a random direction."""
    here = problem.start
    v = _probe(problem, here)
    weight = problem.kept.expand(here)
    with torch.no_grad():
        reached = [
            replace(b, targets=problem.window.outputs(weight, problem.objective.inputs(b))) for b in problem.objective.batches
        ]

    def images(**changes: Any) -> dict[str, Tensor]:
        return {kind: _objective(problem, curvature_kind=kind, **changes).product(here)(v) for kind in CURVATURES}

    def differences(images: dict[str, Tensor]) -> dict[tuple[str, str], float]:
        return {(a, b): _difference(images[a], images[b]) for a, b in combinations(CURVATURES, 2)}

    products = images()
    precision = torch.finfo(here.dtype).eps
    return ProductsResult(
        {kind: float(v @ image) / float(v @ v) for kind, image in products.items()},
        differences(products),
        differences(images(batches=reached)),
        {
            pair: 4 * precision ** (1 / 3) if "finite_difference" in pair else 1e3 * precision
            for pair in combinations(CURVATURES, 2)
        },
    )


# --- finite differences ---


@dataclass(frozen=True)
class SweepResult:
    """The relative error of finite differences at each step `epsilons[i]`, relative to 1 + ||weights||; `default` is the step
    the solver would take."""

    epsilons: list[float]
    errors: list[float]
    default: float


def finite_difference_sweep(problem: SiteProblem, epsilons: Sequence[float] | None = None) -> SweepResult:
    """Finite differences against the exact Hessian's product as their step grows, from the precision of the numbers to 1.

    Small steps lose digits to rounding (error falls as 1 / epsilon), large ones leave the neighbourhood (error grows as
    epsilon^2 where the loss is smooth); the best lies between (Nocedal & Wright, 2006, section 8.1).
    """
    here = problem.start
    precision = torch.finfo(here.dtype).eps
    default = precision ** (1 / 3)
    if epsilons is None:
        epsilons = [precision ** (1 - i / 18) for i in range(19)]
    v = _probe(problem, here)
    exact = _objective(problem, curvature_kind="hessian").product(here)(v)
    differences = _objective(problem, curvature_kind="finite_difference")
    norm = float(exact.norm())
    errors = [float((differences.product(here, epsilon=e)(v) - exact).norm()) / (norm or 1.0) for e in epsilons]
    return SweepResult(list(epsilons), errors, default)


# --- conjugate gradient and the spectrum it sees ---


def _systems(problem: SiteProblem, here: Tensor) -> dict[str, tuple[Operator, Operator]]:
    """The damped curvature and its preconditioner, by name of the preconditioner."""
    blocks = {"row_blocks": lambda: problem.row_systems, "none": None}
    return {name: _objective(problem, row_systems=blocks[name]).curvature(here, 0) for name in PRECONDITIONERS}


def compare_preconditioners(problem: SiteProblem, *, rtol: float = 1e-3, max_iters: int = 60) -> dict[str, CGResult]:
    """The first Newton step's system, solved from zero with and without the row-block preconditioner."""
    here = problem.start
    downhill = -problem.objective.loss_and_gradient(here)[1]
    return {
        name: cg(product, downhill, rtol=rtol, max_iters=max_iters, preconditioner=preconditioner)
        for name, (product, preconditioner) in _systems(problem, here).items()
    }


@dataclass(frozen=True)
class RitzResult:
    """What a Lanczos process knows of an operator's eigenvalues.

    `values` ascend and lie within the spectrum; the outermost come first to be exact. `weights` add up to 1: the share of the
    start vector along each. There is an eigenvalue within `bounds[i]` of `values[i]`.
    """

    values: list[float]
    weights: list[float]
    bounds: list[float]

    @property
    def condition(self) -> float:
        """Largest over smallest value: at most the operator's condition number. Infinite where a value is not positive, NaN
        where there is none."""
        if not self.values:
            return float("nan")
        return self.values[-1] / self.values[0] if self.values[0] > 0 else float("inf")


def lanczos(product: Operator, start: Tensor, steps: int, preconditioner: Operator = lambda r: r) -> RitzResult:
    """Ritz values of `M A`, with A symmetric given by `product` and M, symmetric positive definite, by `preconditioner`.

    The process that conjugate gradient runs implicitly (Parlett, 1998, chapter 13), in the inner product u·M w. Each new vector
    is orthogonalized twice against all before it, since rounding would bring found eigenvalues back as copies. Ends early when
    the vectors span an invariant space, and before a product that is not finite.
    """
    dual = preconditioner(start)
    length = float(start @ dual) ** 0.5
    vectors, duals = (start / length)[None], (dual / length)[None]
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(min(steps, len(start))):
        image = product(duals[-1])
        if not bool(torch.isfinite(image).all()):
            break
        alphas.append(float(duals[-1] @ image))
        for _ in range(2):
            image = image - (duals @ image) @ vectors
        dual = preconditioner(image)
        size = max(map(abs, alphas + betas))
        betas.append(max(float(image @ dual), 0.0) ** 0.5)
        if betas[-1] <= 10 * torch.finfo(start.dtype).eps * size:
            break
        vectors, duals = torch.cat([vectors, image[None] / betas[-1]]), torch.cat([duals, dual[None] / betas[-1]])
    if not alphas:
        return RitzResult([], [], [])
    tridiagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    beside = torch.tensor(betas[:-1], dtype=torch.float64)
    values, shapes = torch.linalg.eigh(tridiagonal + torch.diag(beside, 1) + torch.diag(beside, -1))
    return RitzResult(values.tolist(), shapes[0].square().tolist(), (betas[-1] * shapes[-1].abs()).tolist())


def spectrum(problem: SiteProblem, *, steps: int = 40) -> dict[str, RitzResult]:
    """How far the eigenvalues of the damped curvature spread at the start, with and without the row-block preconditioner."""
    here = problem.start
    return {
        name: lanczos(product, _probe(problem, here), steps, preconditioner)
        for name, (product, preconditioner) in _systems(problem, here).items()
    }
