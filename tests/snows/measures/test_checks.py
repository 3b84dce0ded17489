"""Each live check against dense float64 matrices that autograd forms, and against eigenvalues that are known."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from snows.config import SolverConfig
from snows.measures import checks
from snows.measures.checks import compare_preconditioners, compare_products, finite_difference_sweep, lanczos, spectrum
from snows.method import solver
from snows.method.problem import SiteProblem
from snows.method.solver import Status
from snows.method.updates import UPDATES
from tests.snows.helpers import ALL, CASE_IDS, CASES, Case, assert_entries_close, case, site_problem

TABLE = pytest.mark.parametrize(("name", "site", "k"), CASES, ids=CASE_IDS)


def at_start(problem: Case, made: SiteProblem) -> Case:
    """The case whose dense matrices are what the checks look at."""
    return dataclasses.replace(problem, point=made.start, coefficients=[1.0] * len(problem.coefficients))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- where they look ---


@pytest.mark.parametrize("begin", ["least_squares", "masked"])
@TABLE
def test_start_is_where_the_update_starts(name: str, site: str, k: int, begin: str) -> None:
    steps: list[solver.StepResult] = []
    settings = SolverConfig(start=begin)  # type: ignore[arg-type]
    made = site_problem(case(name, site, k), settings, on_step=lambda step, damping: steps.append(step))
    UPDATES["snows"](made)
    assert steps[0].loss + steps[0].actual == pytest.approx(made.objective.loss(made.start), rel=1e-12)


@pytest.mark.parametrize("check", [compare_products, finite_difference_sweep, compare_preconditioners, spectrum])
def test_a_check_answers_the_same_again_and_leaves_the_problem_as_it_was(check: Callable[[SiteProblem], object]) -> None:
    made = site_problem(case("mlp", "0.weight", ALL))

    def settings() -> dict[str, object]:
        # How often it was asked is no setting.
        return {name: value for name, value in vars(made.objective).items() if not name.startswith(("_", "num_"))}

    before = settings()
    assert repr(check(made)) == repr(check(made))
    assert settings() == before


# --- the three products ---


@pytest.mark.slow
@TABLE
def test_products_differ_by_what_the_dense_matrices_differ_by(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    made = site_problem(problem)
    result = compare_products(made)
    dense = at_start(problem, made)
    v = random(made.kept.count)
    images = {"gauss_newton": dense.gauss_newton() @ v, "hessian": dense.hessian() @ v}
    for kind, image in images.items():
        assert result.curvatures[kind] == pytest.approx(float(v @ image / (v @ v)), rel=1e-8)
    longer = max(float(image.norm()) for image in images.values())
    expected = float((images["gauss_newton"] - images["hessian"]).norm()) / longer
    assert result.differences["gauss_newton", "hessian"] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert result.without_errors["gauss_newton", "hessian"] < 1e-9
    assert result.agree


@pytest.mark.parametrize(("name", "site", "k"), [("mlp", "0.weight", ALL), ("fused", "qkv.weight", ALL)])
def test_all_three_products_agree_where_the_loss_is_smooth(name: str, site: str, k: int) -> None:
    result = compare_products(site_problem(case(name, site, k)))
    assert result.differences["hessian", "finite_difference"] < 1e-5
    assert result.differences["gauss_newton", "hessian"] > 1e-3  # what Gauss-Newton leaves out
    assert max(result.without_errors.values()) < 1e-5


def test_a_wrong_product_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = checks.Objective.product

    def wrong(self: checks.Objective, kept: Tensor, *args: object, **kwargs: object) -> solver.Operator:
        product = right(self, kept, *args, **kwargs)  # type: ignore[arg-type]
        return product if self.curvature_kind != "gauss_newton" else lambda v: 1.1 * product(v)

    monkeypatch.setattr(checks.Objective, "product", wrong)
    result = compare_products(site_problem(case("mlp", "0.weight", ALL)))
    assert not result.agree
    assert result.without_errors["gauss_newton", "hessian"] == pytest.approx(0.1 / 1.1, rel=1e-6)
    assert result.without_errors["hessian", "finite_difference"] < 1e-5


# --- finite differences ---


def test_sweep_is_a_valley_with_the_slopes_of_theory() -> None:
    problem = case("mlp", "0.weight", ALL)
    result = finite_difference_sweep(site_problem(problem))
    errors = dict(zip(result.epsilons, result.errors, strict=True))
    best = min(errors, key=errors.__getitem__)
    assert errors[best] < 1e-7
    assert result.default / 100 < best < result.default * 100
    assert errors[result.epsilons[0]] > 1e-3  # nothing but rounding
    # Truncation is of second order: twice the step, four times the error.
    coarse = finite_difference_sweep(site_problem(problem), epsilons=[0.002, 0.004])
    assert coarse.errors[1] / coarse.errors[0] == pytest.approx(4, rel=0.05)
    fine = finite_difference_sweep(site_problem(problem), epsilons=[1e-13, 1e-10])
    assert fine.errors[0] / fine.errors[1] == pytest.approx(1000, rel=0.9)


@pytest.mark.slow
def test_sweep_measures_against_the_dense_hessian() -> None:
    problem = case("fused", "qkv.weight", ALL)
    made = site_problem(problem)
    result = finite_difference_sweep(made, epsilons=[0.1])
    dense, v = at_start(problem, made), random(made.kept.count)
    step = 0.1 * (1 + dense.point.norm()) / v.norm()

    def gradient(kept: Tensor) -> Tensor:
        kept = kept.detach().requires_grad_()
        return torch.autograd.grad(dense.loss(kept), kept)[0]

    exact = dense.hessian() @ v
    differences = (gradient(dense.point + step * v) - gradient(dense.point - step * v)) / (2 * step)
    assert result.errors == pytest.approx([float((differences - exact).norm() / exact.norm())], rel=1e-7)


# --- conjugate gradient ---


@pytest.mark.slow
@pytest.mark.parametrize(("name", "site", "k"), [("residual", "conv1.weight", 3), ("written", "qkv.weight", ALL)])
def test_both_solves_reach_the_solution_of_the_dense_system(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    made = site_problem(problem, SolverConfig(damping=1e-3))
    solves = compare_preconditioners(made, rtol=1e-10, max_iters=2000)
    dense = at_start(problem, made)
    assert list(solves) == ["row_blocks", "none"]
    for solve in solves.values():
        assert solve.status is Status.CONVERGED
        damping = made.config.damping * float(probe_diagonal(dense))
        matrix = dense.gauss_newton() + damping * torch.eye(made.kept.count, dtype=torch.float64)
        kept = dense.point.detach().requires_grad_()
        downhill = -torch.autograd.grad(dense.loss(kept), kept)[0]
        assert_entries_close(solve.x, torch.linalg.solve(matrix, downhill), rtol=1e-5, atol=1e-6)


def probe_diagonal(dense: Case) -> Tensor:
    """What the random signs of Newton step 0 say of the curvature's mean diagonal."""
    signs = torch.randint(0, 2, dense.point.shape, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    return (signs @ dense.gauss_newton() @ signs).abs() / len(signs)


def test_row_blocks_are_exact_at_the_layer_itself() -> None:
    # At K = 0 the blocks are the curvature itself, up to the damping.
    settings = SolverConfig(damping=0, start="masked")
    solves = compare_preconditioners(site_problem(case("residual", "conv1.weight", 0), settings))
    assert solves["row_blocks"].num_products < solves["none"].num_products


def test_cg_keeps_its_cap() -> None:
    solves = compare_preconditioners(site_problem(case("mlp", "0.weight", ALL)), rtol=1e-14, max_iters=3)
    assert {solve.status for solve in solves.values()} == {Status.MAX_ITERS}
    assert {solve.num_products for solve in solves.values()} == {3}


# --- the spectrum ---


def matrix(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    q, _ = torch.linalg.qr(random(len(eigenvalues), len(eigenvalues), seed=seed))
    return q @ torch.diag(eigenvalues) @ q.T


def test_lanczos_finds_all_eigenvalues_of_a_small_matrix() -> None:
    eigenvalues = torch.logspace(-3, 2, 12, dtype=torch.float64)
    result = lanczos(matrix(eigenvalues).__matmul__, random(12, seed=1), 12)
    assert result.values == pytest.approx(eigenvalues.tolist(), rel=1e-6)
    assert sum(result.weights) == pytest.approx(1)
    assert max(result.bounds) < 1e-6
    assert result.condition == pytest.approx(1e5, rel=1e-6)


def test_lanczos_of_a_large_matrix_finds_the_ends_once_and_bounds_the_rest() -> None:
    # Well separated ends converge early; without reorthogonalization they would come back as copies.
    eigenvalues = torch.cat([torch.tensor([1e-3]), torch.linspace(1, 2, 296), torch.tensor([5.0, 10.0, 100.0])]).double()
    result = lanczos(matrix(eigenvalues).__matmul__, random(300, seed=1), 60)
    assert result.values[0] == pytest.approx(1e-3, rel=1e-6)
    assert result.values[-3:] == pytest.approx([5, 10, 100], rel=1e-9)
    assert sum(value > 2.5 for value in result.values) == 3
    for value, bound in zip(result.values, result.bounds, strict=True):
        assert float((eigenvalues - value).abs().min()) <= bound + 1e-9


def test_lanczos_weights_are_the_start_s_share_along_each_eigenvector() -> None:
    eigenvalues = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    result = lanczos(lambda v: eigenvalues * v, torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64), 3)
    assert result.weights == pytest.approx([1 / 9, 4 / 9, 4 / 9])


def test_lanczos_stops_where_nothing_new_is_found() -> None:
    eigenvalues = torch.tensor([1.0] * 10 + [3.0] * 10, dtype=torch.float64)
    result = lanczos(matrix(eigenvalues).__matmul__, random(20, seed=1), 15)
    assert result.values == pytest.approx([1, 3])


def test_lanczos_shows_negative_eigenvalues() -> None:
    result = lanczos(matrix(torch.tensor([-2.0, 1.0, 3.0], dtype=torch.float64)).__matmul__, random(3, seed=1), 3)
    assert result.values == pytest.approx([-2, 1, 3])
    assert result.condition == float("inf")


def test_lanczos_with_a_preconditioner_finds_the_eigenvalues_of_the_product_of_both() -> None:
    a, inverse = matrix(torch.logspace(0, 2, 15, dtype=torch.float64)), matrix(torch.linspace(0.5, 3, 15).double(), seed=2)
    result = lanczos(a.__matmul__, random(15, seed=1), 15, inverse.__matmul__)
    expected = torch.linalg.eigvals(inverse @ a).real.sort().values
    assert result.values == pytest.approx(expected.tolist(), rel=1e-7)


def test_lanczos_leaves_out_what_is_not_finite() -> None:
    a, calls = matrix(torch.logspace(0, 2, 10, dtype=torch.float64)), iter(range(100))
    result = lanczos(lambda v: a @ v if next(calls) < 4 else v * torch.nan, random(10, seed=1), 10)
    expected = lanczos(a.__matmul__, random(10, seed=1), 4)
    assert result == expected
    nothing = lanczos(lambda v: v * torch.nan, random(10), 10)
    assert nothing.values == []
    assert nothing.condition != nothing.condition


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
@pytest.mark.parametrize(("name", "site", "k"), [("mlp", "0.weight", ALL), ("residual", "conv1.weight", 3)])
def test_spectrum_is_that_of_the_dense_curvature(name: str, site: str, k: int, curvature: str) -> None:
    problem = case(name, site, k)
    settings = SolverConfig(damping=0, curvature=curvature)  # type: ignore[arg-type]
    made = site_problem(problem, settings)
    dense = at_start(problem, made)
    exact = torch.linalg.eigvalsh(dense.gauss_newton() if curvature == "gauss_newton" else dense.hessian())
    found = spectrum(made, steps=made.kept.count)
    assert found["none"].values[-1] == pytest.approx(float(exact[-1]), rel=1e-8)
    assert found["none"].values[0] == pytest.approx(float(exact[0]), abs=1e-6 * float(exact[-1]))


def test_row_blocks_narrow_the_spectrum() -> None:
    found = spectrum(site_problem(case("mlp", "0.weight", ALL), SolverConfig(damping=1e-6)), steps=40)
    assert found["row_blocks"].condition < found["none"].condition
