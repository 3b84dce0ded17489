"""What each update promises, on every problem of the table."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from snows import config
from snows.config import CURVATURES, SolverConfig
from snows.method import solver, updates
from snows.method.problem import SiteProblem
from snows.method.rows import input_rows, rows_of_output
from snows.method.saliency import sparsegpt_sweep
from snows.method.sparsity import to_matrix
from snows.method.updates import UPDATES, exchange_in_layer, exchange_in_window
from tests.snows.helpers import ALL, CASE_IDS, CASES, TIGHT, Case, assert_entries_close, bias_of, case, site_problem

TABLE = pytest.mark.parametrize(("name", "site", "k"), CASES, ids=CASE_IDS)


def rows(problem: Case, made: SiteProblem) -> tuple[Tensor, Tensor]:
    """All inputs (N, P) of the layer, and the outputs (N, R) it should reproduce, without the bias."""
    inputs = torch.cat([input_rows(problem.site, b.inputs[problem.site.input]) for b in made.batches])
    outputs = torch.cat([rows_of_output(problem.site, b.targets[0]) for b in made.batches])
    bias = bias_of(problem)
    return inputs, outputs if bias is None else outputs - bias


def total(losses: Sequence[float]) -> float:
    return sum(losses)


def test_there_is_an_update_for_every_name_of_the_config() -> None:
    assert tuple(UPDATES) == config.UPDATES


@pytest.mark.slow
@TABLE
def test_none_keeps_the_dense_values(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    result = UPDATES["none"](site_problem(problem))
    assert torch.equal(problem.kept.expand(result.kept), problem.weight * (problem.kept.expand(result.kept) != 0))
    assert torch.equal(result.kept, problem.kept.restrict(problem.weight))
    assert result.status == "MASKED"


@pytest.mark.parametrize("propagated", [False, True])
@TABLE
def test_least_squares_is_the_best_there_is_at_the_layer_itself(name: str, site: str, k: int, propagated: bool) -> None:
    problem = case(name, site, k)
    made = site_problem(problem, propagated=propagated)
    result = UPDATES["least-squares"](made)
    assert result.status == "EXACT"
    x, y = rows(problem, made)
    weight = to_matrix(problem.kept.expand(result.kept))
    errors = (x @ weight.T - y).square().sum(0)
    for r, row in enumerate(problem.mask):
        best = y[:, r].square().sum()
        if row.any():
            solution = torch.linalg.lstsq(x[:, row], y[:, r : r + 1], driver="gelsd").solution
            best = (x[:, row] @ solution - y[:, r : r + 1]).square().sum()
        assert float(errors[r]) == pytest.approx(float(best), rel=1e-6, abs=1e-9 * float(y[:, r].square().sum()))


@TABLE
def test_least_squares_without_a_mask_returns_what_made_the_targets(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    full = dataclasses.replace(problem, mask=torch.ones_like(problem.mask))
    made = site_problem(full, propagated=True)
    assert made.least_squares_losses[0] <= 1e-10 * max(1.0, made.masked_losses[0])
    assert total(made.masked_losses) < 1e-25


@pytest.mark.parametrize("propagated", [False, True])
def test_sparsegpt_is_the_sweep(propagated: bool) -> None:
    problem = case("residual", "conv1.weight", 0)
    made = site_problem(problem, propagated=propagated)
    result = UPDATES["sparsegpt"](made)
    assert result.status == "SWEPT"
    x, y = rows(problem, made)
    start = to_matrix(problem.weight) if propagated else torch.linalg.lstsq(x, y).solution.T
    expected = sparsegpt_sweep(start, x.T @ x / len(x), mask=problem.mask).weight
    assert_entries_close(to_matrix(problem.kept.expand(result.kept)), expected, rtol=1e-4, atol=1e-5)


def test_sparsegpt_lies_between_the_mask_alone_and_least_squares() -> None:
    problem = case("residual", "conv1.weight", 0)
    made = site_problem(problem)
    losses = {name: made.objective.loss(UPDATES[name](made).kept) for name in ("none", "sparsegpt", "least-squares")}
    assert losses["least-squares"] < losses["sparsegpt"] < losses["none"]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SolverConfig(), SolverConfig(start="masked"), TIGHT], ids=["default", "masked", "tight"])
@pytest.mark.parametrize("propagated", [False, True])
@TABLE
def test_snows_ends_no_higher_than_it_starts(name: str, site: str, k: int, propagated: bool, settings: SolverConfig) -> None:
    problem = case(name, site, k)
    made = site_problem(problem, settings, propagated)
    result = UPDATES["snows"](made)
    final = total(made.objective.losses(result.kept))
    assert result.status in solver.Status.__members__
    assert result.message == solver.Status[result.status].value
    assert final <= total(made.masked_losses) * (1 + 1e-12)
    if settings.start == "least_squares":
        assert final <= total(made.least_squares_losses) * (1 + 1e-12)


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize(("name", "site", "k"), [CASES[2], CASES[6], CASES[8], CASES[-1]], ids=lambda v: str(v))
def test_snows_lowers_the_loss_with_every_curvature(name: str, site: str, k: int, curvature: str) -> None:
    problem = case(name, site, k)
    steps: list[tuple[solver.StepResult, float]] = []
    iterations: list[tuple[int, int]] = []
    made = site_problem(
        problem,
        SolverConfig(curvature=curvature, curvature_share=1, newton_steps=2, max_iters=20, min_decrease=0),
        on_step=lambda step, damping: steps.append((step, damping)),
        on_iteration=lambda step, iteration, residual, bend: iterations.append((step, iteration)),
    )
    result = UPDATES["snows"](made)
    start = min(total(made.masked_losses), total(made.least_squares_losses))
    assert made.objective.loss(result.kept) < start
    assert len(steps) in (1, 2)
    assert steps[-1][0].loss == pytest.approx(made.objective.loss(result.kept), rel=1e-9)
    assert all(damping > 0 for _, damping in steps)
    assert {step for step, _ in iterations} <= {s.step for s, _ in steps}
    # One probe a step for the scales, and one product an iteration.
    assert made.objective.num_products == sum(1 + s.cg.num_products for s, _ in steps)


@pytest.mark.parametrize("preconditioner", ["row_blocks", "none"])
@pytest.mark.parametrize(("name", "site"), [("residual", "conv1.weight"), ("mlp", "0.weight")])
def test_snows_at_the_layer_itself_is_least_squares(name: str, site: str, preconditioner: str) -> None:
    problem = case(name, site, 0)
    settings = TIGHT.model_copy(update={"start": "masked", "preconditioner": preconditioner, "newton_steps": 4})
    made = site_problem(problem, settings)
    result = UPDATES["snows"](made)
    assert_entries_close(result.kept, made.least_squares, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("propagated", [False, True])
@TABLE
def test_a_ridge_is_as_many_samples_more_with_dense_outputs(
    name: str, site: str, k: int, propagated: bool, ridge: float
) -> None:
    problem = case(name, site, k)
    made = site_problem(problem, propagated=propagated, ridge=ridge)
    inputs, outputs = rows(problem, made)
    weight = to_matrix(problem.weight)
    if propagated:
        outputs = inputs @ weight.T
    # One more sample an input: alone, and as large as makes its square the ridge's share of the mean energy of an input.
    size = (ridge * inputs.square().sum(0).mean()).sqrt()
    more = size * torch.eye(inputs.shape[1], dtype=torch.float64)
    inputs, outputs = torch.cat([inputs, more]), torch.cat([outputs, more @ weight.T])
    fitted = to_matrix(made.kept.expand(made.least_squares))
    expected = torch.zeros_like(fitted)
    for row, mask in enumerate(problem.mask):
        expected[row, mask] = torch.linalg.lstsq(inputs[:, mask], outputs[:, row, None]).solution[:, 0]
    assert_entries_close(fitted, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("refinement", ["none", "layer", "window"])
@pytest.mark.parametrize("preconditioner", ["row_blocks", "none"])
@pytest.mark.parametrize(("name", "site"), [("residual", "conv1.weight"), ("mlp", "0.weight")])
def test_under_a_ridge_too_snows_at_the_layer_itself_is_least_squares(
    name: str, site: str, preconditioner: str, refinement: str
) -> None:
    settings = TIGHT.model_copy(update={"start": "masked", "preconditioner": preconditioner, "newton_steps": 4})
    made = site_problem(case(name, site, 0), settings, ridge=0.1, refinement=refinement)
    result = UPDATES["snows"](made)
    assert_entries_close(result.kept, result.problem.least_squares, rtol=1e-5, atol=1e-6)


def test_a_strong_ridge_gives_the_dense_values() -> None:
    problem = case("residual", "conv1.weight", 3)
    for update in FITTED:
        distances = []
        for ridge in (0.0, 0.1, 1.0, 1e3):
            result = UPDATES[update](site_problem(problem, ridge=ridge))
            distances.append(float((result.kept - result.problem.masked).norm()))
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 1e-2 * distances[0]


@pytest.mark.slow
def test_snows_finds_the_same_minimum_with_and_without_a_preconditioner() -> None:
    problem = case("mlp", "0.weight", ALL)
    found, products = [], []
    for preconditioner in ("row_blocks", "none"):
        settings = TIGHT.model_copy(update={"preconditioner": preconditioner, "newton_steps": 60})
        made = site_problem(problem, settings)
        found.append(made.objective.loss(UPDATES["snows"](made).kept))
        products.append(made.objective.num_products)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_given_gram_matrix_is_used() -> None:
    problem = case("mlp", "0.weight", 0)
    plain = site_problem(problem)
    given = site_problem(problem, gram=plain.gram.clone())
    assert_entries_close(given.least_squares, plain.least_squares, rtol=1e-12)


@pytest.mark.parametrize("update", config.UPDATES)
def test_a_mask_that_keeps_nothing_breaks_nothing(update: str) -> None:
    problem = case("mlp", "2.weight", 1)
    nothing = torch.zeros_like(problem.mask)
    made = site_problem(dataclasses.replace(problem, mask=nothing))
    result = UPDATES[update](made)
    assert result.kept.shape == (0,)
    assert not bool(made.kept.expand(result.kept).any())


# --- mask refinement ---

FITTED = ["least-squares", "snows"]


def exchanged(before: SiteProblem, after: SiteProblem) -> int:
    assert torch.equal(before.mask.sum(1), after.mask.sum(1))
    return int((before.mask & ~after.mask).sum())


@pytest.mark.parametrize("refinement", ["layer", "window"])
@pytest.mark.parametrize("update", FITTED)
@TABLE
def test_a_refined_mask_fits_no_worse(name: str, site: str, k: int, update: str, refinement: str) -> None:
    problem = case(name, site, k)
    plain = site_problem(problem, SolverConfig())
    made = site_problem(problem, SolverConfig(), refinement=refinement)
    result = UPDATES[update](made)
    refined = exchange_in_layer(made)
    assert refined.least_squares_losses[0] <= plain.least_squares_losses[0] * (1 + 1e-9)
    assert made.mask is problem.mask
    exchanged(made, result.problem)
    assert result.kept.shape == (result.problem.kept.count,)
    if update == "snows":
        assert result.problem.objective.loss(result.kept) <= total(refined.least_squares_losses) * (1 + 1e-9)
        assert result.by_k["least_squares"] == pytest.approx(refined.least_squares_losses, rel=1e-9)
    else:
        assert torch.equal(result.problem.mask, refined.mask)


def test_what_no_mask_has_a_part_in_is_shared() -> None:
    made = site_problem(case("residual", "conv1.weight", 0))
    _ = made.objective, made.row_systems, made.least_squares
    other = made.with_mask(~made.mask, to_matrix(made.weight))
    assert other.gram is made.gram
    assert other.cross is made.cross
    for name in ("objective", "row_systems", "masked", "least_squares"):
        assert getattr(other, name) is not getattr(made, name)
    assert other.kept.count == int((~made.mask).sum())


@pytest.mark.parametrize(("name", "site"), [("residual", "conv1.weight"), ("mlp", "0.weight")])
def test_at_the_layer_itself_window_and_layer_are_one_model(name: str, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site_problem(case(name, site, 0))
    made.objective.curvature(made.masked, 0)
    seen: list[Tensor] = []
    monkeypatch.setattr(updates, "refine", lambda mask, weight, gram, cross, pattern: seen.append(cross) or (mask, weight))
    exchange_in_window(made, made.masked, made.objective.loss(made.masked))
    assert_entries_close(seen[0][made.mask.any(1)], made.cross[made.mask.any(1)], rtol=1e-8, atol=1e-10)


def test_exchanges_that_do_not_lower_the_loss_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = site_problem(case("residual", "conv1.weight", ALL))
    made.objective.curvature(made.least_squares, 0)
    monkeypatch.setattr(updates, "refine", lambda mask, weight, *model: (torch.zeros_like(mask), weight))
    problem, x = exchange_in_window(made, made.least_squares, made.objective.loss(made.least_squares))
    assert problem is made
    assert x is made.least_squares


@pytest.mark.slow
def test_a_window_refines_what_its_layer_cannot_see() -> None:
    found = 0
    for name, site, k in CASES:
        made = site_problem(case(name, site, k), SolverConfig(), refinement="window")
        result = UPDATES["snows"](made)
        found += exchanged(exchange_in_layer(made), result.problem) > 0
    assert found >= 3


@pytest.mark.slow
def test_a_window_refines_without_a_preconditioner_too() -> None:
    exchanges = 0
    for name, site, k in CASES:
        made = site_problem(case(name, site, k), SolverConfig(preconditioner="none"), refinement="window")
        result = UPDATES["snows"](made)
        exchanges += exchanged(exchange_in_layer(made), result.problem)
    assert exchanges > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_start_whose_loss_is_no_number_gives_way_to_one_whose_loss_is(bad: float) -> None:
    problem = case("residual", "conv1.weight", ALL)
    for broken, chosen in (("masked_losses", "least_squares"), ("earlier", "masked")):
        made = site_problem(problem, earlier=problem.weight * bad if broken == "earlier" else None)
        if broken == "masked_losses":
            vars(made)["masked_losses"] = [bad]
        assert made.start is getattr(made, chosen)


def test_every_product_counts_whatever_the_mask() -> None:
    steps: list[solver.StepResult] = []
    settings = SolverConfig(min_decrease=0, newton_steps=3)
    made = site_problem(
        case("residual", "conv1.weight", ALL), settings, refinement="window", on_step=lambda step, damping: steps.append(step)
    )
    result = UPDATES["snows"](made)
    assert result.problem is not made
    assert [s.step for s in steps] == list(range(len(steps)))
    assert len(steps) > 1
    assert result.num_products == sum(1 + s.cg.num_products for s in steps)


def test_a_second_sweep_keeps_to_the_masks_it_was_given_at_first() -> None:
    problem = case("residual", "conv1.weight", ALL)
    made = site_problem(problem, earlier=problem.weight, refinement="layer")
    assert exchange_in_layer(made) is made


@pytest.mark.parametrize("update", ["none", "sparsegpt"])
def test_what_fits_no_values_refines_no_mask(update: str) -> None:
    made = site_problem(case("residual", "conv1.weight", 0), refinement="none")
    assert UPDATES[update](made).problem is made
