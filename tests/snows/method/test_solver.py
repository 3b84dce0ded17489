"""Conjugate gradient against direct solves, Armijo to the letter, Newton on functions whose minimum is known."""

import itertools
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snows.config import SolverConfig
from snows.method.solver import CGResult, NewtonResult, Operator, Status, StepResult, cg, line_search, newton_cg
from tests.snows.helpers import assert_entries_close


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(size: int, condition: float = 100.0, seed: int = 0) -> Tensor:
    """A symmetric positive definite matrix with eigenvalues from 1 to `condition`."""
    q, _ = torch.linalg.qr(random(size, size, seed=seed))
    return q @ torch.diag(torch.logspace(0, math.log10(condition), size, dtype=torch.float64)) @ q.T


# --- conjugate gradient ---


@given(st.integers(1, 30), st.floats(1, 1e4), st.integers(0, 1000))
@settings(max_examples=40)
def test_cg_solves_what_a_direct_solve_solves(size: int, condition: float, seed: int) -> None:
    a, b = spd(size, condition, seed), random(size, seed=seed + 1)
    result = cg(lambda v: a @ v, b, rtol=1e-10, max_iters=10 * size + 20)
    assert result.status is Status.CONVERGED
    assert_entries_close(result.x, torch.linalg.solve(a, b), rtol=1e-5, atol=1e-6)
    assert float((b - a @ result.x).norm()) <= 1.1e-10 * float(b.norm()) + 1e-12


def test_cg_with_a_preconditioner_finds_the_same_solution_in_fewer_iterations() -> None:
    scale = torch.logspace(0, 3, 40, dtype=torch.float64)
    a = scale.sqrt()[:, None] * spd(40, 3) * scale.sqrt()
    b = random(40, seed=1)
    plain = cg(lambda v: a @ v, b, rtol=1e-8, max_iters=1000)
    better = cg(lambda v: a @ v, b, rtol=1e-8, max_iters=1000, preconditioner=lambda r: r / a.diagonal())
    assert plain.status is better.status is Status.CONVERGED
    expected = torch.linalg.solve(a, b)
    for result in (plain, better):
        assert_entries_close(result.x, expected, rtol=1e-4, atol=1e-5)
    assert better.num_products < plain.num_products / 2


def test_cg_with_the_inverse_as_preconditioner_takes_one_iteration() -> None:
    a, b = spd(20, 1e6), random(20)
    result = cg(lambda v: a @ v, b, rtol=1e-6, max_iters=5, preconditioner=torch.linalg.inv(a).__matmul__)
    assert result.status is Status.CONVERGED
    assert result.num_products == 1


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_cg_takes_no_more_iterations_than_there_are_distinct_eigenvalues(distinct: int) -> None:
    q, _ = torch.linalg.qr(random(24, 24))
    eigenvalues = torch.arange(1, distinct + 1, dtype=torch.float64).repeat(24)[:24]
    a = q @ torch.diag(eigenvalues) @ q.T
    result = cg(lambda v: a @ v, random(24, seed=3), rtol=1e-9, max_iters=24)
    assert result.status is Status.CONVERGED
    assert result.num_products <= distinct


def test_cg_residuals_are_the_true_ones_and_are_reported_as_they_come() -> None:
    a, b = spd(15, 50), random(15)
    reported: list[tuple[int, float, float]] = []
    result = cg(lambda v: a @ v, b, rtol=1e-6, max_iters=40, on_iteration=lambda *r: reported.append(r))
    assert [i for i, _, _ in reported] == list(range(1, result.num_products + 1))
    assert result.residuals == [1.0, *(r for _, r, _ in reported)]
    assert result.curvatures == [c for _, _, c in reported]
    eigenvalues = torch.linalg.eigvalsh(a)
    assert all(eigenvalues[0] * 0.999 <= c <= eigenvalues[-1] * 1.001 for c in result.curvatures)
    for iterations in range(1, result.num_products):
        stopped = cg(lambda v: a @ v, b, rtol=1e-6, max_iters=iterations)
        assert stopped.status is Status.MAX_ITERS
        assert float((b - a @ stopped.x).norm() / b.norm()) == pytest.approx(stopped.residuals[-1], rel=1e-9)
        assert stopped.residuals == result.residuals[: iterations + 1]


@pytest.mark.parametrize("rtol", [0.5, 1e-2, 1e-6])
@pytest.mark.parametrize("scale", [2.0**-40, 1.0, 2.0**40])  # powers of two: every rounding is the same
def test_cg_tolerance_is_relative(rtol: float, scale: float) -> None:
    a, b = spd(25, 200), scale * random(25)
    result = cg(lambda v: a @ v, b, rtol=rtol, max_iters=200)
    assert result.status is Status.CONVERGED
    assert result.residuals[-1] <= rtol < result.residuals[-2]
    unit = cg(lambda v: a @ v, b / scale, rtol=rtol, max_iters=200)
    assert unit.residuals == result.residuals


def test_cg_ends_where_two_iterations_bring_too_little() -> None:
    a, b = spd(40, 1e4), random(40)

    def fallen(iterations: int) -> float:
        x = cg(lambda v: a @ v, b, rtol=0, max_iters=iterations).x
        return float(b @ x - x @ a @ x / 2)

    least = 0.02 * fallen(40)
    result = cg(lambda v: a @ v, b, rtol=0, max_iters=40, least_decrease=least)
    assert result.status is Status.NO_FURTHER_DECREASE
    brought = [fallen(i) - fallen(i - 1) for i in range(1, result.num_products + 1)]
    assert max(brought[-2:]) < least
    assert all(max(pair) >= least for pair in itertools.pairwise(brought[:-1]))


def test_cg_goes_back_to_the_last_iterate_whose_loss_was_lower() -> None:
    a, b = spd(30, 1e3), random(30)
    iterates = [cg(lambda v: a @ v, b, rtol=0, max_iters=i).x for i in (3, 6, 12)]
    values = dict(zip(map(float, (x.sum() for x in iterates)), (5.0, 4.0, 4.5), strict=True))
    result = cg(lambda v: a @ v, b, rtol=0, max_iters=30, loss_at=lambda x: values[float(x.sum())])
    assert result.status is Status.MODEL_FAILED
    assert result.num_products == 12
    assert torch.equal(result.x, iterates[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_cg_leaves_a_first_look_that_is_not_finite_to_the_line_search(bad: float) -> None:
    a, b = spd(30, 1e3), random(30)
    result = cg(lambda v: a @ v, b, rtol=0, max_iters=30, loss_at=lambda x: bad)
    assert torch.equal(result.x, cg(lambda v: a @ v, b, rtol=0, max_iters=3).x)


def test_cg_of_nothing_asks_for_no_product() -> None:
    def never(v: Tensor) -> Tensor:
        raise AssertionError("no product is needed")

    result = cg(never, torch.zeros(4), rtol=1e-2, max_iters=5)
    assert result.status is Status.ALREADY_OPTIMAL
    assert torch.equal(result.x, torch.zeros(4))
    assert result.num_products == 0


def test_negative_curvature_at_once_gives_the_preconditioned_right_hand_side() -> None:
    b = random(6)
    result = cg(lambda v: -v, b, rtol=1e-6, max_iters=10, preconditioner=lambda r: 3 * r)
    assert result.status is Status.NEGATIVE_CURVATURE
    assert torch.equal(result.x, 3 * b)
    assert result.curvatures == pytest.approx([-1.0])


def test_negative_curvature_later_keeps_the_iterate_so_far() -> None:
    q, _ = torch.linalg.qr(random(12, 12))
    a = q @ torch.diag(torch.tensor([-1.0, *range(1, 12)], dtype=torch.float64)) @ q.T
    b = q @ torch.tensor([0.05, *[1.0] * 11], dtype=torch.float64)
    result = cg(lambda v: a @ v, b, rtol=1e-12, max_iters=50)
    assert result.status is Status.NEGATIVE_CURVATURE
    assert all(c > 0 for c in result.curvatures[:-1])
    assert result.curvatures[-1] < 0
    assert result.num_products > 2
    before = cg(lambda v: a @ v, b, rtol=1e-12, max_iters=result.num_products - 1)
    assert before.status is Status.MAX_ITERS
    assert torch.equal(result.x, before.x)
    # What is returned goes downhill, and the quadratic model falls along it.
    assert float(b @ result.x) > 0
    assert float(0.5 * result.x @ a @ result.x - b @ result.x) < 0


def test_zero_curvature_is_truncated_too() -> None:
    a = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    result = cg(lambda v: a @ v, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=1e-6, max_iters=10)
    assert result.status is Status.NEGATIVE_CURVATURE
    assert bool(torch.isfinite(result.x).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("after", [0, 2])
def test_a_product_that_is_not_finite_keeps_the_iterate_so_far(bad: float, after: int) -> None:
    a, b = spd(10, 100), random(10)
    calls = [0]

    def product(v: Tensor) -> Tensor:
        calls[0] += 1
        return a @ v if calls[0] <= after else torch.full_like(v, bad)

    result = cg(product, b, rtol=1e-10, max_iters=20)
    assert result.status is Status.NOT_FINITE
    assert bool(torch.isfinite(result.x).all())
    expected = cg(lambda v: a @ v, b, rtol=1e-10, max_iters=after).x if after else torch.zeros_like(b)
    assert torch.equal(result.x, expected)


def test_cg_leaves_the_right_hand_side_alone() -> None:
    a, b = spd(8), random(8)
    copy = b.clone()
    cg(lambda v: a @ v, b, rtol=1e-8, max_iters=20)
    assert torch.equal(b, copy)


# --- line search ---


def test_the_first_step_is_taken_when_it_decreases_enough() -> None:
    result = line_search(lambda t: 1 - t, 1.0, -1.0)
    assert (result.step_size, result.loss, result.tried) == (1.0, 0.0, [1.0])


def test_armijo_decides_to_the_last_bit() -> None:
    limit = 1.0 + 0.1 * 1.0 * -2.0
    accepted = line_search(lambda t: limit, 1.0, -2.0, sufficient_decrease=0.1)
    assert accepted.step_size == 1.0
    rejected = line_search(lambda t: math.nextafter(limit, 2) if t == 1 else -1.0, 1.0, -2.0, sufficient_decrease=0.1)
    assert (rejected.step_size, rejected.tried) == (0.5, [1.0, 0.5])


@given(st.floats(0.01, 1e4), st.floats(0.1, 0.9), st.floats(1e-6, 0.5))
@settings(max_examples=60)
def test_backtracking_takes_the_first_step_that_obeys_armijo(bend: float, shrink: float, decrease: float) -> None:
    def loss_at(t: float) -> float:
        return 1 - t + bend * t * t

    result = line_search(loss_at, 1.0, -1.0, sufficient_decrease=decrease, shrink=shrink, max_tries=60)
    obeys = [loss_at(t) <= 1.0 + decrease * t * -1.0 for t in result.tried]
    if result.step_size == 0:
        assert not any(obeys)
        assert len(result.tried) == 60
        assert result.loss == 1.0
    else:
        assert obeys == [False] * (len(obeys) - 1) + [True]
        assert result.step_size == result.tried[-1]
        assert result.loss == loss_at(result.step_size)
    assert result.tried == pytest.approx([shrink**i for i in range(len(result.tried))])


def test_a_search_that_never_decreases_is_rejected() -> None:
    result = line_search(lambda t: 1.0 + t, 1.0, -1.0, max_tries=5)
    assert (result.step_size, result.loss) == (0.0, 1.0)
    assert result.tried == [1.0, 0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_rejected(bad: float) -> None:
    result = line_search(lambda t: bad if t > 0.3 else 0.5, 1.0, -1.0)
    assert (result.step_size, result.loss, result.tried) == (0.25, 0.5, [1.0, 0.5, 0.25])
    assert line_search(lambda t: bad, 1.0, -1.0).step_size == 0.0


@pytest.mark.parametrize("slope", [0.0, 1.0, math.nan])
def test_a_direction_that_does_not_go_downhill_is_not_tried(slope: float) -> None:
    result = line_search(lambda t: -1e9, 1.0, slope)
    assert (result.step_size, result.loss, result.tried) == (0.0, 1.0, [])


# --- Newton ---


class Smooth:
    """A problem from a function, its curvature by autograd."""

    def __init__(self, function: Callable[[Tensor], Tensor], preconditioner: Operator = lambda r: r) -> None:
        self.function, self.preconditioner = function, preconditioner
        self.asked: list[int] = []

    def loss(self, x: Tensor) -> float:
        return float(self.function(x))

    def loss_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        return self.loss(x), torch.autograd.functional.jacobian(self.function, x)

    def sampled_loss(self, x: Tensor, step: int) -> float:
        return float(self.function(x))

    def curvature(self, x: Tensor, step: int) -> tuple[Operator, Operator]:
        self.asked.append(step)
        hessian = torch.autograd.functional.hessian(self.function, x)
        return hessian.__matmul__, self.preconditioner


def minimize(problem: Smooth, x: Tensor, **overrides: object) -> NewtonResult:
    arguments: dict = {"max_steps": 50, "max_iters": 100, "rtol": 1e-10, "min_decrease": 0.0}
    return newton_cg(problem, x, **(arguments | overrides))


def minimize_as_configured(problem: Smooth, x: Tensor) -> NewtonResult:
    c = SolverConfig()
    return newton_cg(problem, x, max_steps=c.newton_steps, max_iters=c.max_iters, rtol=c.rtol, min_decrease=c.min_decrease)


def test_one_step_minimizes_a_quadratic() -> None:
    a, b = spd(12, 1e3), random(12)
    quadratic = Smooth(lambda x: 0.5 * x @ a @ x - b @ x + 100)
    result = minimize(quadratic, random(12, seed=5), max_steps=1)
    assert_entries_close(result.x, torch.linalg.solve(a, b), rtol=1e-6, atol=1e-6)
    assert result.status is Status.MAX_STEPS
    (step,) = result.steps
    assert step.step_size == 1.0
    assert step.predicted == pytest.approx(step.actual, rel=1e-6)
    assert result.loss == step.loss == pytest.approx(100 - 0.5 * float(b @ torch.linalg.solve(a, b)), rel=1e-9)
    assert result.num_products == step.cg.num_products


def test_the_second_step_on_a_quadratic_says_it_is_done() -> None:
    a, b = spd(6, 10), random(6)
    result = minimize(Smooth(lambda x: 0.5 * x @ a @ x - b @ x + 100), random(6, seed=5), min_decrease=1e-9)
    assert result.status in (Status.NO_FURTHER_DECREASE, Status.ALREADY_OPTIMAL)
    assert len(result.steps) <= 2


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


@pytest.mark.parametrize("start", [[-1.2, 1.0], [3.0, -2.0, 0.5, 1.5], [0.0, 0.0, 0.0]])
def test_newton_finds_the_minimum_of_a_curved_valley_and_never_climbs(start: list[float]) -> None:
    problem = Smooth(rosenbrock)
    x = torch.tensor(start, dtype=torch.float64)
    seen: list[StepResult] = []
    result = minimize(problem, x, max_steps=200, min_decrease=1e-12, on_step=seen.append)
    assert_entries_close(result.x, torch.ones(len(start), dtype=torch.float64), rtol=1e-4)
    losses = [problem.loss(x), *(s.loss for s in result.steps)]
    assert all(after <= before for before, after in pairwise(losses))
    assert result.loss == losses[-1] == problem.loss(result.x)
    assert seen == result.steps
    assert problem.asked == [s.step for s in seen] == list(range(len(seen)))
    for s, before in zip(seen, losses, strict=False):
        assert s.actual == pytest.approx(before - s.loss)
        assert s.step_size == (s.tried[-1] if s.actual > 0 else 0.0)


def test_newton_passes_a_saddle_by_its_negative_curvature() -> None:
    # f falls without a bend upwards at the start; Gauss-Newton is not used here, so CG must say so and go on.
    saddle = Smooth(lambda x: (x[0] ** 4) / 4 - x[0] ** 2 / 2 + x[1] ** 2 + 1)
    result = minimize(saddle, torch.tensor([0.1, 0.5], dtype=torch.float64), max_steps=50, min_decrease=1e-12)
    points = [torch.tensor([0.1, 0.5], dtype=torch.float64)]
    for s in result.steps:
        points.append(points[-1] + s.step_size * s.cg.x)
    assert Status.NEGATIVE_CURVATURE in [s.cg.status for s in result.steps]
    for s, start in zip(result.steps, points, strict=False):
        hessian = torch.autograd.functional.hessian(saddle.function, start)
        _, gradient = saddle.loss_and_gradient(start)
        move = s.step_size * s.cg.x
        assert s.predicted == pytest.approx(float(-gradient @ move - 0.5 * move @ hessian @ move), rel=1e-6, abs=1e-12)
    assert_entries_close(result.x.abs(), torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=1e-4, atol=1e-5)
    assert all(s.actual >= 0 for s in result.steps)


def test_a_stationary_start_is_left_as_it_is() -> None:
    problem = Smooth(lambda x: x.square().sum())
    result = minimize(problem, torch.zeros(3, dtype=torch.float64))
    assert result.status is Status.ALREADY_OPTIMAL
    assert result.steps == []
    assert problem.asked == []


def test_a_share_of_decrease_below_the_minimum_ends_it() -> None:
    problem = Smooth(lambda x: x.pow(4).sum() + 1000)
    x = torch.full((3,), 2.0, dtype=torch.float64)
    result = minimize(problem, x, min_decrease=0.01)
    assert result.status is Status.NO_FURTHER_DECREASE
    *taken, last = result.steps
    assert taken
    assert all(s.actual >= 0.01 * (s.loss + s.actual) for s in taken)
    # The model already says that the next step is not worth it: no loss is evaluated for it.
    assert 0 < last.predicted < 0.01 * result.loss
    assert (last.step_size, last.tried, last.actual) == (0.0, [], 0.0)


def test_a_step_that_promises_too_little_is_not_tried() -> None:
    class Counting(Smooth):
        losses = 0

        def loss(self, x: Tensor) -> float:
            self.losses += 1
            return super().loss(x)

    problem = Counting(lambda x: x.square().sum() + 1000)
    x = torch.full((3,), 0.1, dtype=torch.float64)  # at best, 1000.03 becomes 1000
    result = minimize(problem, x, min_decrease=1e-3)
    assert result.status is Status.NO_FURTHER_DECREASE
    assert torch.equal(result.x, x)
    assert result.loss == pytest.approx(1000.03)
    (step,) = result.steps
    assert (step.step_size, step.tried, step.actual) == (0.0, [], 0.0)
    assert step.predicted == pytest.approx(0.03)
    assert problem.losses == 1
    assert minimize(problem, x, min_decrease=1e-6).loss == pytest.approx(1000)


def test_a_wrong_curvature_sign_keeps_the_start() -> None:
    class Lying(Smooth):
        def loss_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
            loss, gradient = super().loss_and_gradient(x)
            return loss, -gradient

    x = random(3)
    problem = Lying(lambda x: x.square().sum())
    result = minimize(problem, x)
    assert result.status is Status.LINE_SEARCH_FAILED
    assert torch.equal(result.x, x)
    assert result.loss == problem.loss(x)
    assert result.steps[-1].step_size == 0.0
    assert len(result.steps) == 1


class Broken(Smooth):
    """A bowl of which one part is `bad`, from a number of calls on."""

    def __init__(self, part: str, bad: float, good_calls: int) -> None:
        a = spd(12, 1e3)
        super().__init__(lambda x: 0.5 * x @ a @ x + 1)
        self.part, self.bad, self.left = part, bad, good_calls

    def _value(self, part: str, value: Tensor) -> Tensor:
        if part == self.part:
            self.left -= 1
        return value * self.bad if part == self.part and self.left < 0 else value

    def loss(self, x: Tensor) -> float:
        return float(self._value("loss", self.function(x)))

    def loss_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        loss, gradient = super().loss_and_gradient(x)
        return loss, self._value("gradient", gradient)

    def curvature(self, x: Tensor, step: int) -> tuple[Operator, Operator]:
        product, _ = super().curvature(x, step)
        return lambda v: self._value("curvature", product(v)), lambda r: self._value("preconditioner", r)


@pytest.mark.parametrize("solve", [minimize, minimize_as_configured])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("good_calls", [0, 1, 2])
@pytest.mark.parametrize("part", ["loss", "gradient", "curvature", "preconditioner"])
def test_what_is_not_finite_is_never_a_success_and_never_an_answer(
    part: str, good_calls: int, bad: float, solve: Callable[..., NewtonResult]
) -> None:
    problem, x = Broken(part, bad, good_calls), random(12, seed=5)
    start = float(problem.function(x))
    result = solve(problem, x)
    if problem.left >= 0:
        return  # it ended before
    assert bool(torch.isfinite(result.x).all())
    assert float(problem.function(result.x)) <= start
    if part == "loss" and good_calls:
        assert result.status in (Status.LINE_SEARCH_FAILED, Status.NOT_FINITE)  # a step length whose loss is NaN is not taken
    else:
        assert result.status is Status.NOT_FINITE
        assert torch.equal(result.x, x) or good_calls


def test_numbers_that_overflow_in_the_last_iteration_are_not_taken() -> None:
    b = torch.full((3,), 1e30)
    result = cg(lambda v: 1e-30 * v + 1e38, b, rtol=1e-6, max_iters=1, preconditioner=lambda r: r * 1e8)
    assert result.status is Status.NOT_FINITE
    assert torch.equal(result.x, torch.zeros(3))


def test_every_way_to_end_is_reached_as_configured() -> None:
    class Lying(Smooth):
        def loss_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
            loss, gradient = super().loss_and_gradient(x)
            return loss, -gradient

    def bowl(x: Tensor) -> Tensor:
        return x.square().sum()

    x = torch.tensor([-1.2, 1.0, 0.3], dtype=torch.float64)
    problems = {
        Status.MAX_STEPS: Smooth(rosenbrock),
        Status.NO_FURTHER_DECREASE: Smooth(lambda x: bowl(x) + 1e5),
        Status.LINE_SEARCH_FAILED: Lying(bowl),
        Status.ALREADY_OPTIMAL: Smooth(lambda x: bowl(0 * x)),
        Status.NOT_FINITE: Broken("curvature", math.nan, 0),
    }
    for status, problem in problems.items():
        start = random(12) if status is Status.NOT_FINITE else x
        assert minimize_as_configured(problem, start).status is status


def test_a_preconditioner_changes_the_path_and_not_the_end() -> None:
    a = spd(10, 1e4)
    inverse = torch.linalg.inv(a)
    function: Callable[[Tensor], Tensor] = lambda x: 0.5 * x @ a @ x + 0.01 * x.pow(4).sum() - x.sum()  # noqa: E731
    plain = minimize(Smooth(function), torch.zeros(10, dtype=torch.float64), min_decrease=1e-14)
    better = minimize(Smooth(function, inverse.__matmul__), torch.zeros(10, dtype=torch.float64), min_decrease=1e-14)
    assert_entries_close(better.x, plain.x, rtol=1e-4, atol=1e-6)
    assert better.num_products < plain.num_products


def test_a_callback_may_stop_it_between_two_iterations() -> None:
    class StopError(Exception):
        pass

    seen: list[tuple[int, int]] = []

    def on_iteration(step: int, iteration: int, residual: float, curvature: float) -> None:
        seen.append((step, iteration))
        if step == 1 and iteration == 2:
            raise StopError

    x = torch.tensor([-1.2, 1.0, 0.3], dtype=torch.float64)
    with pytest.raises(StopError):
        minimize(Smooth(rosenbrock), x, on_iteration=on_iteration)
    assert seen[-1] == (1, 2)
    assert torch.equal(x, torch.tensor([-1.2, 1.0, 0.3], dtype=torch.float64))


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (Status.MAX_ITERS, "allow more iterations"),
        (Status.MAX_STEPS, "more steps would lower the loss"),
        (Status.NEGATIVE_CURVATURE, "use Gauss-Newton, or raise the damping"),
        (Status.LINE_SEARCH_FAILED, "raise the damping"),
        (Status.NOT_FINITE, "use float64"),
    ],
)
def test_a_status_names_the_remedy(status: Status, remedy: str) -> None:
    assert remedy in status.value


def test_every_status_is_a_sentence() -> None:
    assert all(s.value[0].isupper() and s.value.endswith(".") and "\n" not in s.value for s in Status)


def test_a_result_counts_its_products() -> None:
    assert CGResult(torch.zeros(1), Status.CONVERGED, [1.0, 0.1], [2.0]).num_products == 1
