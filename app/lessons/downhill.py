"""Downhill without a matrix: ways to the bottom of a valley, and what each asks of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import streamlit as st
import torch
from torch import Tensor

from app.charts import lessons as charts
from app.charts import solver as solver_charts
from app.lessons import lesson, networks
from app.parts import live
from app.tables import solver as solver_tables
from app.texts import Later, choices, text
from snows.config import NM, PruneConfig, SolverConfig
from snows.measures.names import number
from snows.method.solver import LineSearchResult, Operator, cg, line_search, newton_cg

STRETCHES = (1, 3, 10, 30, 100)
SHAPES = ("even", "bent")
COLUMNS = ("way", "steps", "gradients", "products", "height")
PLACES = tuple(x / 2 for x in range(-4, 5))
EPSILONS = tuple(10.0**-e for e in range(1, 13))
DESCENT_STEPS, NEWTON_STEPS, CG_STEPS = 200, 20, 20
ENOUGH = 1e-6  # of the height at the start
SPAN = (-2.5, 2.5)
MODULE, IMAGES, K_STEPS = "layer3.2.conv1", 16, 3


@dataclass(frozen=True)
class Valley:
    """A loss of two weights (2,), least at (1, 0.5) or, where it is bent, at (1, 1): float64.

    Even: (u² + stretch v²) / 2 with u along the valley and v across, turned by 30 degrees. Bent: ((x - 1)² + stretch
    (y - x²)²) / 2, Rosenbrock's (1960). It is what `solver.newton_cg`
    minimizes.
    """

    stretch: float
    bent: bool
    preconditioned: bool = False

    def height(self, x: Tensor) -> Tensor:
        """The loss at points (..., 2): (...)."""
        a, b = x[..., 0], x[..., 1]
        if self.bent:
            return ((a - 1) ** 2 + self.stretch * (b - a**2) ** 2) / 2
        cos, sin = 3**0.5 / 2, 0.5
        along, across = cos * (a - 1) + sin * (b - 0.5), -sin * (a - 1) + cos * (b - 0.5)
        return (along**2 + self.stretch * across**2) / 2

    def loss(self, x: Tensor) -> float:
        return float(self.height(x))

    def sampled_loss(self, x: Tensor, step: int) -> float:
        return self.loss(x)

    def loss_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        x = x.detach().requires_grad_()
        loss = self.height(x)
        return float(loss.detach()), torch.autograd.grad(loss, x)[0]

    def product(self, x: Tensor, v: Tensor) -> Tensor:
        """The Hessian at x times v, by differentiating twice: the matrix is never formed."""
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.height(x), x, create_graph=True)
        return torch.autograd.grad(gradient, x, v)[0]

    def difference(self, x: Tensor, v: Tensor, epsilon: float) -> Tensor:
        """The same from two gradients, a step `epsilon` to each side."""
        ahead, behind = (self.loss_and_gradient(x + sign * epsilon * v)[1] for sign in (1, -1))
        return (ahead - behind) / (2 * epsilon)

    def hessian(self, x: Tensor) -> Tensor:
        """(2, 2), one product a column."""
        return torch.stack([self.product(x, column) for column in torch.eye(2, dtype=torch.float64)], dim=1)

    def curvature(self, x: Tensor, step: int) -> tuple[Operator, Operator]:
        """The product, and the inverse of the Hessian's diagonal where `preconditioned`: a guess at the inverse, as a layer's
        row blocks are."""
        diagonal = self.hessian(x).diagonal().abs().clamp(min=1e-12)
        return partial(self.product, x), (lambda r: r / diagonal) if self.preconditioned else (lambda r: r)


@dataclass(frozen=True)
class Way:
    """The points of a way down, and what it asked for: gradients and Hessian products."""

    points: list[tuple[float, float]]
    gradients: int
    products: int
    loss: float


def _way(valley: Valley, points: Sequence[Tensor], products: int) -> Way:
    return Way([(float(p[0]), float(p[1])) for p in points], len(points), products, valley.loss(points[-1]))


def _search(valley: Valley, here: Tensor, step: Tensor, loss: float, gradient: Tensor) -> LineSearchResult:
    return line_search(lambda t: valley.loss(here + t * step), loss, float(gradient @ step), max_tries=40)


def gradient_descent(valley: Valley, start: Tensor) -> Way:
    """Along the steepest way down, as far as Armijo's rule allows, until it is low enough or 200 steps are taken."""
    points, lowest = [start], ENOUGH * valley.loss(start)
    for _ in range(DESCENT_STEPS):
        loss, gradient = valley.loss_and_gradient(points[-1])
        if loss <= lowest:
            break
        here = points[-1]
        search = _search(valley, here, -gradient, loss, gradient)
        if search.step_size == 0:
            break
        points.append(here - search.step_size * gradient)
    return _way(valley, points, 0)


def newton(valley: Valley, start: Tensor) -> Way:
    """Newton's steps with the whole matrix, solved directly; along the gradient where the matrix bends the wrong way."""
    points, products, lowest = [start], 0, ENOUGH * valley.loss(start)
    for _ in range(NEWTON_STEPS):
        here = points[-1]
        loss, gradient = valley.loss_and_gradient(here)
        if loss <= lowest:
            break
        hessian, products = valley.hessian(here), products + 2
        bends = bool((torch.linalg.eigvalsh(hessian) > 0).all())
        step = -torch.linalg.solve(hessian, gradient) if bends else -gradient
        search = _search(valley, here, step, loss, gradient)
        if search.step_size == 0:
            break
        points.append(here + search.step_size * step)
    return _way(valley, points, products)


def newton_with_products(valley: Valley, start: Tensor) -> Way:
    """Newton's steps by conjugate gradient (`solver.newton_cg`), which asks for products alone.

    In an even valley one step is enough, so its way is shown by the points that conjugate gradient passes through.
    """
    if not valley.bent:
        _, gradient = valley.loss_and_gradient(start)
        product, preconditioner = valley.curvature(start, 0)
        points = [start]
        for iterations in range(1, CG_STEPS):
            solve = cg(product, -gradient, rtol=1e-9, max_iters=iterations, preconditioner=preconditioner)
            if solve.num_products < iterations:
                break
            points.append(start + solve.x)
        return _way(valley, points, len(points) - 1)
    lowest, points = ENOUGH * valley.loss(start), [start]
    result = newton_cg(valley, start, max_steps=1, max_iters=CG_STEPS, rtol=1e-6, min_decrease=0.0)
    products = result.num_products
    while len(points) <= NEWTON_STEPS and result.loss < valley.loss(points[-1]):
        points.append(result.x)
        if result.loss <= lowest:
            break
        result = newton_cg(valley, result.x, max_steps=1, max_iters=CG_STEPS, rtol=1e-6, min_decrease=0.0)
        products += result.num_products
    return _way(valley, points, products)


WAYS: dict[str, Callable[[Valley, Tensor], Way]] = {
    "descent": gradient_descent,
    "newton": newton,
    "conjugate": newton_with_products,
    "preconditioned": lambda valley, start: newton_with_products(Valley(valley.stretch, valley.bent, True), start),
}


def ways(stretch: float, bent: bool, start: tuple[float, float]) -> dict[str, Way]:
    """Every way down from `start`."""
    valley, point = Valley(stretch, bent), torch.tensor(start, dtype=torch.float64)
    return {name: walk(valley, point) for name, walk in WAYS.items()}


def difference_error(
    stretch: float, bent: bool, at: tuple[float, float], epsilon: float
) -> tuple[list[float], list[float], float]:
    """The Hessian at a point times (1, -1): exactly, from two gradients, and how far these are apart, relatively."""
    valley, x = Valley(stretch, bent), torch.tensor(at, dtype=torch.float64)
    v = torch.tensor([1.0, -1.0], dtype=torch.float64)
    exact, difference = valley.product(x, v), valley.difference(x, v, epsilon)
    return exact.tolist(), difference.tolist(), float((exact - difference).norm() / exact.norm())


def truth() -> str:
    """Which guess is right: how many steps more gradient descent takes than conjugate gradient where the lesson begins."""
    found = ways(30, False, (-2.0, 1.5))
    ratio = len(found["descent"].points) / len(found["conjugate"].points)
    return "many" if ratio > 5 else "few" if ratio > 1.5 else "same"


# --- what is drawn ---


@st.cache_data(max_entries=512, show_spinner=False)
def known_ways(stretch: float, bent: bool, start: tuple[float, float]) -> dict[str, Way]:
    """As `ways`, computed once."""
    return ways(stretch, bent, start)


@st.cache_data(max_entries=16, show_spinner=False)
def heights(stretch: float, bent: bool) -> tuple[np.ndarray, list[float]]:
    """The valley on a grid, and the places of the grid's lines on both axes."""
    axis = torch.linspace(*SPAN, 61, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    return Valley(stretch, bent).height(grid).numpy(), axis.tolist()


def _draw(guess: str) -> None:
    found = known_ways(30, False, (-2.0, 1.5))
    steps = {name: len(way.points) - 1 for name, way in found.items()}
    lesson.draw_outcome(
        LESSON,
        guess,
        truth(),
        text("downhill.outcome", descent=steps["descent"], conjugate=steps["conjugate"]),
    )
    left, right = st.columns([2, 3], gap="large")
    with left:
        x = lesson.draw_number(text("downhill.x"), "x", PLACES, -2)
        y = lesson.draw_number(text("downhill.y"), "y", PLACES, 1.5)
        stretch = lesson.draw_number(text("downhill.stretch"), "stretch", STRETCHES, 30, help=text("downhill.stretch_help"))
        bent = lesson.draw_choice(text("downhill.shape"), "shape", choices("downhill.shapes", SHAPES), "even") == "bent"
        names = choices("downhill.ways", WAYS)
        seen = st.pills(
            text("downhill.way"),
            list(names),
            selection_mode="multi",
            format_func=names.__getitem__,
            wrap=True,
            default=list(names),
            key="lesson-ways",
        )
    found = known_ways(stretch, bent, (x, y))
    height, axis = heights(stretch, bent)
    with right:
        paths = {name: way.points for name, way in found.items() if name in seen}
        live.chart(charts.descent_chart(height, axis, axis, paths), key="descent", alt=text("downhill.chart"))
    rows = [(names[name], len(way.points) - 1, way.gradients, way.products, number(way.loss)) for name, way in found.items()]
    st.dataframe(
        pd.DataFrame(rows, columns=list(choices("downhill.columns", COLUMNS).values())),
        hide_index=True,
        alt=text("downhill.table"),
    )
    st.caption(text("downhill.note"))
    _draw_product(stretch, bent, (x, y))
    st.header(text("lessons.real"), anchor=False)
    _draw_layer()


def _draw_product(stretch: float, bent: bool, at: tuple[float, float]) -> None:
    st.header(text("downhill.product"), anchor=False)
    left, right = st.columns([2, 3], gap="large")
    with left:
        epsilon = lesson.draw_number(text("downhill.epsilon"), "epsilon", EPSILONS, 1e-4, lambda value: f"{value:.0e}")
    exact, difference, error = difference_error(stretch, bent, at, epsilon)
    with right:
        st.metric(text("downhill.difference"), number(error), border=True)
        found, near = (f"({pair[0]:.6g}, {pair[1]:.6g})" for pair in (exact, difference))
        st.caption(text("downhill.difference_note", exact=found, difference=near))


@st.cache_data(show_spinner=Later("downhill.solving"))
def _layer_solves() -> pd.DataFrame:
    network = networks.opened("resnet20-fashion")
    config = PruneConfig(
        pattern=NM(n=1, m=8), refine="none", k_steps=K_STEPS, batch_size=IMAGES, solver=SolverConfig(start="masked")
    )
    problem = networks.problem(network, network.site(MODULE), config, network.images.calibration[:IMAGES])
    return solver_tables.solves(problem)


def _draw_layer() -> None:
    solves = _layer_solves()
    st.markdown(solver_tables.solves_said(solves))
    live.chart(
        solver_charts.solves_chart(solves, 1e-3),
        key="layer-solves",
        alt=text("downhill.layer_chart"),
    )
    st.caption(text("downhill.layer_note", module=MODULE, k=K_STEPS, images=IMAGES))


LESSON = lesson.Lesson(name="downhill", guesses=("same", "few", "many"), draw=_draw, page="convergence")
