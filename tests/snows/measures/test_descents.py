"""Ways down one layer's loss: each against its own rule written out, on tiny problems whose matrices autograd can form."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from snows.config import SolverConfig
from snows.measures import descents as module
from snows.measures.descents import PASSES, RATES, WAYS, Point, as_far, best_rate, descents, lowest
from snows.method import joint
from snows.method.problem import SiteProblem
from tests.snows.helpers import ALL, Case, assert_entries_close, case, dense, site_problem

SOLVER = SolverConfig(curvature_share=1, max_iters=500, rtol=1e-10, min_decrease=1e-6)


def mlp(settings: SolverConfig = SOLVER) -> SiteProblem:
    return site_problem(case("mlp", "0.weight", ALL), settings)


def plain(problem: Case) -> Case:
    """With the coefficients that a layer's problem has."""
    return replace(problem, coefficients=[1.0] * len(problem.coefficients))


def of(points: list[Point], way: str) -> list[Point]:
    return [point for point in points if point.way == way]


@pytest.fixture(scope="module")
def points() -> list[Point]:
    return list(descents(mlp(), passes=60))


class TestDescents:
    def test_all_begin_at_one_point_which_is_the_naive_loss(self, points: list[Point]) -> None:
        made = mlp()
        start = float(plain(case("mlp", "0.weight", ALL)).loss(made.masked))
        first = [point for point in points if point.iteration == 0]
        assert [(p.way, p.rate) for p in first] == [
            *((way, None) for way in ("gauss_newton", "hessian", "empirical_fisher")),
            *(("adam", rate) for rate in RATES),
            ("gradient", None),
        ]
        assert all(p.loss == pytest.approx(start, rel=1e-12) and p.passes == p.seconds == 0 for p in first)
        squares = next(descents(made, start="least_squares"))
        assert squares.loss == pytest.approx(float(plain(case("mlp", "0.weight", ALL)).loss(made.least_squares)), rel=1e-12)

    @pytest.mark.parametrize("way", ["gauss_newton", "hessian", "empirical_fisher", "gradient"])
    def test_what_searches_its_steps_never_rises(self, points: list[Point], way: str) -> None:
        losses = [point.loss for point in of(points, way)]
        assert len(losses) >= 2
        assert all(after <= before for before, after in itertools.pairwise(losses))
        assert losses[-1] < losses[0]

    def test_clocks_and_counts_only_grow_and_keep_within_the_passes(self, points: list[Point]) -> None:
        for way in WAYS:
            for rate in RATES if way == "adam" else (None,):
                own = [p for p in points if (p.way, p.rate) == (way, rate)]
                assert [p.iteration for p in own] == list(range(len(own)))
                for before, after in itertools.pairwise(own):
                    assert before.passes < after.passes <= 60 + 1e-6
                    assert before.seconds < after.seconds
        assert [p.passes for p in of(points, "adam") if p.rate == RATES[0]] == pytest.approx(list(range(61)))

    @pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
    def test_newtons_curvature_is_the_dense_matrix(self, kind: str) -> None:
        made = mlp()
        problem = replace(plain(case("mlp", "0.weight", ALL)), point=made.masked)
        matrix = dense(module._objective(made, kind).product(made.masked), made.kept.count)
        assert_entries_close(matrix, problem.gauss_newton() if kind == "gauss_newton" else problem.hessian(), rtol=1e-8)

    def test_where_the_loss_is_quadratic_newton_is_at_its_minimum_after_a_step(self) -> None:
        made = site_problem(case("residual", "fc.weight", 5), SOLVER.model_copy(update={"damping": 0}))
        problem = replace(plain(case("residual", "fc.weight", 5)), point=made.masked)
        matrix, gradient = problem.hessian(), torch.autograd.functional.jacobian(problem.loss, made.masked)
        least = float(problem.loss(made.masked - torch.linalg.lstsq(matrix, gradient).solution))
        for way in ("gauss_newton", "hessian"):
            step = list(descents(made, ways=[way], passes=60))[1]
            assert step.loss == pytest.approx(least, rel=1e-5)

    def test_adam_is_its_rule_written_out(self) -> None:
        problem, made, passes, rate = plain(case("mlp", "0.weight", ALL)), mlp(), 4, 0.1
        found = [p.loss for p in descents(made, passes=passes, ways=["adam"], rates=[rate])]
        x = made.masked.clone()
        first, second, steps = torch.zeros_like(x), torch.zeros_like(x), 0
        generator, size = torch.Generator().manual_seed(0), rate * float(x.abs().median())
        losses = [float(problem.loss(x))]
        for _ in range(passes):
            for i in torch.randperm(3, generator=generator).tolist():
                alone = torch.autograd.functional.jacobian(lambda kept, i=i: problem.residuals(kept, [i]).square().sum(), x)
                pace, steps = joint.pace(steps, 3 * passes), steps + 1
                first, second = 0.9 * first + 0.1 * alone, 0.999 * second + 0.001 * alone.square()
                ahead = first / (1 - 0.9**steps) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
                x = x - size * pace * ahead
            losses.append(float(problem.loss(x)))
        assert found == pytest.approx(losses, rel=1e-8)

    def test_the_hessian_is_gauss_newton_where_the_window_is_piecewise_linear(self) -> None:
        # One weight that enters linearly, and only kinks behind it: the outputs do not bend.
        made = site_problem(case("residual", "fc.weight", 5), SOLVER)
        points = list(descents(made, ways=["gauss_newton", "hessian"], passes=20))
        pairs = zip(of(points, "gauss_newton"), of(points, "hessian"), strict=True)
        assert all(a.loss == pytest.approx(b.loss, rel=1e-9) for a, b in pairs)
        smooth = list(descents(mlp(), ways=["gauss_newton", "hessian"], passes=20))
        assert of(smooth, "gauss_newton")[1].loss != pytest.approx(of(smooth, "hessian")[1].loss, rel=1e-6)

    def test_newton_ends_where_it_gains_no_more_and_says_so(self, points: list[Point]) -> None:
        assert of(points, "gauss_newton")[-1].ended in ("NO_FURTHER_DECREASE", "")
        ended = list(descents(mlp(SOLVER.model_copy(update={"min_decrease": 0.9})), ways=["gauss_newton"], passes=PASSES))
        assert ended[-1].ended == "NO_FURTHER_DECREASE"

    def test_a_loss_that_is_not_finite_ends_its_way(self) -> None:
        wild = list(descents(mlp(), ways=["adam"], rates=[float("inf")], passes=5))
        assert wild[-1].ended == "NOT_FINITE"
        assert len(wild) == 2
        assert best_rate(wild) is None

    def test_it_can_be_stopped_within_a_step(self) -> None:
        asked = itertools.count()

        def check() -> None:
            if next(asked) == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(descents(mlp(), check=check))

    def test_rows_are_factored_within_the_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = mlp()
        made.row_systems  # noqa: B018 (what is known already must not make Newton cheaper)
        seen = []
        anew = SiteProblem.row_systems_anew
        monkeypatch.setattr(SiteProblem, "row_systems_anew", lambda self: (seen.append(self), anew(self))[1])
        list(descents(made, ways=["gauss_newton", "hessian"], passes=20))
        assert seen == [made, made]

    @pytest.mark.parametrize(("name", "value"), [("start", "middle"), ("ways", ["sideways"])])
    def test_what_is_unknown_is_refused(self, name: str, value: object) -> None:
        with pytest.raises(ValueError, match=r"Unknown .* Choose"):
            next(descents(mlp(), **{name: value}))  # type: ignore[arg-type]


class TestSummaries:
    POINTS = (
        [Point("gauss_newton", i, 3.0 * i, 1.0 * i, loss) for i, loss in enumerate([1.0, 0.5, 0.4])]
        + [Point("adam", i, 1.0 * i, 0.1 * i, loss, 0.1) for i, loss in enumerate([1.0, 0.6, 0.396, 0.5])]
        + [Point("adam", i, 1.0 * i, 0.1 * i, loss, 0.3) for i, loss in enumerate([1.0, 0.39, math.nan])]
    )

    def test_the_best_rate_is_the_one_that_ends_lowest(self) -> None:
        assert best_rate(self.POINTS) == 0.1
        assert best_rate(self.POINTS[:3]) is None

    def test_lowest_and_as_far(self) -> None:
        found = lowest(self.POINTS)
        assert (found["gauss_newton"].loss, found["adam"].loss) == (0.4, 0.396)
        assert {way: p.passes for way, p in as_far(self.POINTS, 0.396).items()} == {"adam": 2.0}
        assert {way: p.passes for way, p in as_far(self.POINTS, 0.4).items()} == {"gauss_newton": 6.0, "adam": 2.0}
