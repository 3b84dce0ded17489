"""What the Convergence page says of a run's solver: its frames by hand, and the page in every state."""

import math
import time
import types
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from app.charts import palette
from app.charts import solver as solver_charts
from app.lessons import downhill
from app.tables import solver as solver_tables
from app.words import CG_ENDED
from snows.config import InputError, RunConfig, SolverConfig
from snows.events import CGIteration, Event, NewtonStep, RunFailed, RunStarted, SiteFinished, SiteStarted
from snows.measures.descents import Point
from snows.measures.names import number
from snows.method.solver import Status
from snows.runs.store import Run, RunStore
from tests.app import helpers
from tests.app.conftest import OpenPage, figures
from tests.app.test_pages import labelled
from tests.snows.helpers import ALL, case, site_problem

FIRST, SECOND, THIRD = helpers.PRUNED[:3]


def started(site: str, index: int) -> SiteStarted:
    return SiteStarted(site=site, index=index, operations=["conv (convolution)"], shape=[4, 4])


def iteration(site: str, step: int, number: int, residual: float, curvature: float = 1.0) -> CGIteration:
    return CGIteration(site=site, step=step, iteration=number, residual=residual, curvature=curvature)


def newton(site: str, step: int = 0, **changes: Any) -> NewtonStep:
    """A sound step from a loss of 1 to 0.8."""
    settings: dict[str, Any] = {
        "loss": 0.8,
        "gradient_norm": 0.5,
        "cg_status": "CONVERGED",
        "cg_iterations": 2,
        "step_size": 1.0,
        "tried": [1.0],
        "predicted": 0.25,
        "actual": 0.2,
        "damping": 1e-4,
        "status": "accepted",
    }
    return NewtonStep(site=site, step=step, **(settings | changes))


def solved(site: str, index: int, residuals: tuple[float, ...] = (0.5, 0.1), **changes: Any) -> list[Event]:
    """A layer of one Newton step."""
    iterations: list[Event] = [iteration(site, 0, i, r) for i, r in enumerate(residuals, start=1)]
    return [started(site, index), *iterations, newton(site, **changes)]


REJECTED = {"step_size": 0.0, "tried": [1.0, 0.5, 0.25], "loss": 1.0, "predicted": 0.0, "actual": 0.0, "status": "rejected"}


class TestNewtonSteps:
    def test_one_row_a_step_with_what_can_be_said_of_it(self) -> None:
        events = [
            started(FIRST, 0),
            iteration(FIRST, 0, 1, 0.6, 4.0),
            iteration(FIRST, 0, 2, 0.3, 0.5),
            iteration(FIRST, 0, 3, 0.1, 2.0),
            newton(FIRST, cg_iterations=3, step_size=0.5, tried=[1.0, 0.5], loss=0.8, actual=0.2, predicted=0.25),
            iteration(FIRST, 1, 1, 0.2, 3.0),
            newton(
                FIRST, 1, cg_iterations=1, loss=0.8, step_size=0.0, tried=[], actual=0.0, predicted=1e-4, status="not needed"
            ),
        ]
        first, second = solver_tables.newton_steps(events).to_dict("records")
        assert (first["layer"], first["step"], first["iterations"]) == (FIRST.removesuffix(".weight"), 1, 3)
        assert (first["before"], first["loss"]) == (pytest.approx(1), 0.8)
        assert (first["residual"], first["flattest"], first["steepest"]) == (0.1, 0.5, 4.0)
        assert first["promised_share"] == pytest.approx(0.25)
        assert first["actual_share"] == pytest.approx(0.2)
        assert first["trust"] == pytest.approx(0.8)
        assert (first["tried"], first["step_size"], first["trouble"]) == ([1.0, 0.5], 0.5, "")
        assert (second["step"], second["residual"], second["before"]) == (2, 0.2, 0.8)
        assert second["promised_share"] == pytest.approx(1e-4 / 0.8)
        assert all(math.isnan(second[name]) for name in ("actual_share", "trust", "step_size"))
        assert not second["stuck"]  # it was not tried, for it promised too little

    def test_layers_come_in_network_order_and_count_from_their_last_beginning(self) -> None:
        events = [*solved(SECOND, 1), *solved(FIRST, 0, cg_iterations=9), newton(FIRST, 1), *solved(FIRST, 0, cg_iterations=7)]
        steps = solver_tables.newton_steps(events)
        assert steps["site"].tolist() == [FIRST, SECOND]
        assert steps["iterations"].tolist() == [7, 2]

    def test_a_run_without_steps_has_the_columns(self) -> None:
        steps = solver_tables.newton_steps([started(FIRST, 0)])
        assert steps.empty
        assert {"site", "residual", "at_limit", "trouble"} <= set(steps.columns)
        assert solver_tables.findings(steps, SolverConfig()) == []
        assert solver_tables.hardest(steps) is None

    @pytest.mark.parametrize(
        ("signature", "words", "residuals", "changes"),
        [
            ("at_limit", "stopped at its limit", (0.9, 0.8), {"cg_status": "MAX_ITERS"}),
            ("unstable", "NaN or infinite", (), {"cg_status": "NOT_FINITE", **REJECTED}),
            ("unstable", "negative along a direction", (), {"cg_status": "NEGATIVE_CURVATURE", "cg_iterations": 1}),
            ("unstable", "the residual grew", (0.9, 3.0), {"cg_status": "CONVERGED"}),
            ("unstable", "the residual grew", (0.9, math.nan), {"cg_status": "CONVERGED"}),
            ("stuck", "no step size lowered the loss", (0.5, 0.1), REJECTED),
        ],
    )
    def test_signatures_of_failure(
        self, signature: str, words: str, residuals: tuple[float, ...], changes: dict[str, Any]
    ) -> None:
        (row,) = solver_tables.newton_steps(solved(FIRST, 0, residuals, **changes)).to_dict("records")
        assert row[signature]
        assert words in row["trouble"]
        others = {"at_limit", "unstable", "stuck"} - {signature} - ({"stuck"} if changes.get("status") == "rejected" else set())
        assert not any(row[name] for name in others)

    def test_a_solve_that_is_cut_at_once_left_everything_unsolved(self) -> None:
        events = solved(FIRST, 0, (), cg_status="NEGATIVE_CURVATURE", cg_iterations=1)
        (row,) = solver_tables.newton_steps(events).to_dict("records")
        assert row["residual"] == 1
        assert math.isnan(row["flattest"])

    def test_every_end_of_conjugate_gradient_has_words(self) -> None:
        assert set(CG_ENDED) == {
            status.name
            for status in (
                Status.CONVERGED,
                Status.NO_FURTHER_DECREASE,
                Status.MODEL_FAILED,
                Status.MAX_ITERS,
                Status.NEGATIVE_CURVATURE,
                Status.NOT_FINITE,
                Status.ALREADY_OPTIMAL,
            )
        }

    def test_recorded_run(self) -> None:
        run = next(run for run in RunStore(Path("assets/runs")).list() if run.id.endswith("resnet20-fashion"))
        events = run.events()[0]
        steps = solver_tables.newton_steps(events)
        assert len(steps) == sum(isinstance(e, NewtonStep) for e in events)
        assert ((steps["residual"] <= run.config().prune.solver.rtol) == (steps["cg"] == Status.CONVERGED.name)).all()
        assert solver_tables.hardest(steps) == "layer3.2.conv2"


class TestFindings:
    def test_failures_come_first_and_in_order(self) -> None:
        events = [
            *solved(THIRD, 2, actual=0.01, predicted=0.5),
            *solved(FIRST, 0, **REJECTED),
            *solved(SECOND, 1, (0.9, 0.7), cg_status="MAX_ITERS"),
            *solved(helpers.PRUNED[3], 3, (), cg_status="NEGATIVE_CURVATURE"),
        ]
        found = solver_tables.findings(solver_tables.newton_steps(events), SolverConfig(curvature="hessian"))
        assert [finding.failure for finding in found] == [True, True, True, False]
        assert [finding.layers for finding in found] == [
            [site.removesuffix(".weight")] for site in (SECOND, helpers.PRUNED[3], FIRST, THIRD)
        ]
        limit, unstable, stuck, promised = found
        assert limit.what == "Conjugate gradient stopped at its limit of 50 iterations in 1 Newton step of 1 layer"
        assert "still 0.7 of the gradient where 0.1 was asked" in limit.why
        assert "Use Gauss-Newton" in unstable.why or "use Gauss-Newton" in unstable.why
        assert "down to 0.25" in stuck.why
        assert "more than 25 %" in stuck.why
        assert "over four times" in promised.what

    def test_remedies_are_those_that_are_left(self) -> None:
        limit = solver_tables.newton_steps(solved(FIRST, 0, (0.9,), cg_status="MAX_ITERS"))
        assert "preconditioner" not in solver_tables.findings(limit, SolverConfig())[0].why
        assert "preconditioner" in solver_tables.findings(limit, SolverConfig(preconditioner="none"))[0].why
        stuck = solver_tables.newton_steps(solved(FIRST, 0, **REJECTED))
        assert "batches" not in solver_tables.findings(stuck, SolverConfig(curvature_share=1))[0].why
        bent = solver_tables.newton_steps(solved(FIRST, 0, (), cg_status="NEGATIVE_CURVATURE"))
        assert "Gauss-Newton" not in solver_tables.findings(bent, SolverConfig())[0].why

    def test_every_kind_of_instability_is_named(self) -> None:
        events = [
            *solved(FIRST, 0, (), cg_status="NOT_FINITE", **REJECTED),
            *solved(SECOND, 1, (), cg_status="NEGATIVE_CURVATURE"),
            *solved(THIRD, 2, (0.5, 7.0)),
        ]
        unstable = solver_tables.findings(solver_tables.newton_steps(events), SolverConfig())[0]
        assert unstable.what.endswith("in 3 Newton steps of 3 layers")
        for words in ("NaN or infinite (1 step)", "negative along a direction (1 step)", "above where it began (1 step)"):
            assert words in unstable.why

    def test_a_sound_run_has_none(self) -> None:
        steps = solver_tables.newton_steps([*solved(FIRST, 0), *solved(SECOND, 1, cg_iterations=5)])
        assert solver_tables.findings(steps, SolverConfig()) == []
        assert solver_tables.hardest(steps) == SECOND.removesuffix(".weight")

    def test_the_layer_to_look_at_first_is_one_in_trouble(self) -> None:
        steps = solver_tables.newton_steps([*solved(FIRST, 0, cg_iterations=50), *solved(SECOND, 1, **REJECTED)])
        assert solver_tables.hardest(steps) == SECOND.removesuffix(".weight")


class TestMarksAndDirections:
    def test_every_step_size_tried_is_a_mark_and_the_taken_one_again(self) -> None:
        steps = solver_tables.newton_steps([*solved(FIRST, 0, step_size=0.5, tried=[1.0, 0.5]), *solved(SECOND, 1, **REJECTED)])
        marks = solver_tables.marks(steps, solver_tables.MEASURES["Step size"])
        by_part = {part: rows[["index", "value"]].to_numpy().tolist() for part, rows in marks.groupby("part")}
        assert by_part == {"tried": [[0, 1], [0, 0.5], [1, 1], [1, 0.5], [1, 0.25]], "taken": [[0, 0.5]]}

    def test_what_is_not_a_number_has_no_mark(self) -> None:
        steps = solver_tables.newton_steps(solved(FIRST, 0, **REJECTED))
        assert solver_tables.marks(steps, solver_tables.MEASURES["Reduction"]).empty

    def test_directions_count_through_the_steps_of_the_last_beginning(self) -> None:
        events = [
            *solved(FIRST, 0, (0.9,)),
            *solved(SECOND, 1),
            started(FIRST, 0),
            iteration(FIRST, 0, 1, 0.5, 2.0),
            newton(FIRST),
            iteration(FIRST, 1, 1, 0.4, 3.0),
            iteration(FIRST, 1, 2, 0.05, 1.0),
        ]
        found = solver_tables.directions(events, FIRST)
        assert found["step"].tolist() == [1, 2, 2]
        assert found["iteration"].tolist() == [1, 2, 3]
        assert found["residual"].tolist() == [0.5, 0.4, 0.05]
        assert found["curvature"].tolist() == [2, 3, 1]
        assert solver_tables.directions(events, THIRD).empty

    def test_outcome_is_that_of_the_last_beginning(self) -> None:
        events = helpers.site_events(0)
        ended = solver_tables.outcome(events, FIRST)
        assert isinstance(ended, SiteFinished)
        assert solver_tables.outcome([*events, started(FIRST, 0)], FIRST) is None


STEPS = solver_tables.newton_steps(
    [*solved(FIRST, 0), *solved(SECOND, 1, (0.9, 0.5), cg_status="MAX_ITERS"), newton(SECOND, 1)]
)
LAYERS = [site.removesuffix(".weight") for site in (FIRST, SECOND, THIRD)]
EIGENVALUES = ["preconditioner", "value", "bound", "weight"]


class TestFigures:
    def test_steps_of_a_layer_stay_within_its_row_and_trouble_is_crossed_out(self) -> None:
        marks = solver_tables.marks(STEPS, solver_tables.MEASURES["Residual"])
        figure = solver_charts.steps_chart(marks, LAYERS, "Residual", limit=(0.1, "tolerance 0.1"), chosen=1)
        sound, crossed, limit = (trace for trace in figure.data if trace.name)
        assert [round(y) for y in (*sound.y, *crossed.y)] == [0, 1, 1]
        assert crossed.y[0] < sound.y[1]  # the axis points down: the first step is on top
        assert (sound.marker.color, sound.marker.symbol) == (palette.COLORS["snows"], "circle")
        assert (crossed.marker.color, crossed.marker.symbol, list(crossed.x)) == (palette.TROUBLE, "x", [0.5])
        assert "limit" in crossed.text[0]
        assert (limit.name, list(limit.x)) == ("tolerance 0.1", [0.1, 0.1])
        assert figure.layout.xaxis.type == "log"
        assert figure.layout.xaxis.range[0] < math.log10(0.1)

    def test_of_two_parts_the_first_is_open(self) -> None:
        marks = solver_tables.marks(STEPS, solver_tables.MEASURES["Reduction"])
        figure = solver_charts.steps_chart(marks, LAYERS, "Reduction")
        symbols = {trace.name: trace.marker.symbol for trace in figure.data if trace.name}
        assert symbols["promised by the model"] == "circle-open"
        assert symbols["came true"] == "circle"

    @pytest.mark.parametrize("name", solver_tables.MEASURES)
    def test_a_run_without_steps_can_be_drawn(self, name: str) -> None:
        measure = solver_tables.MEASURES[name]
        empty = solver_tables.marks(solver_tables.newton_steps([]), measure)
        figure = solver_charts.steps_chart(empty, LAYERS, measure.axis, log=measure.log)
        assert list(figure.layout.yaxis.ticktext) == LAYERS

    def test_trouble_has_a_color_that_no_method_has(self) -> None:
        assert palette.TROUBLE not in palette.COLORS.values()

    def test_negative_eigenvalues_are_crossed_out_at_their_size(self) -> None:
        found = pd.DataFrame([("Without", -0.5, 0.0, 0.5), ("Without", 2.0, 0.0, 0.5)], columns=EIGENVALUES)
        positive, negative = solver_charts.eigenvalues_chart(found).data
        assert list(positive.x) == [1]
        assert (list(negative.x), negative.marker.color) == ([0.25], palette.TROUBLE)


class TestChecks:
    """On a tiny problem of the engine's; its numbers are tested there."""

    PROBLEM = site_problem(case("mlp", "0.weight", ALL), SolverConfig(damping=1e-6))

    def test_products(self) -> None:
        found = solver_tables.products(self.PROBLEM)
        assert found["pair"].tolist() == [
            "Gauss-Newton and exact Hessian",
            "Gauss-Newton and finite differences",
            "exact Hessian and finite differences",
        ]
        assert found["agree"].all()
        said = solver_tables.products_said(found)
        assert "The three agree where they must" in said
        assert f"up to {number(found['here'].max())} apart" in said
        wrong = found.assign(without_errors=[0.3, 0.3, 1e-9], agree=False)
        assert "Gauss-Newton and exact Hessian should differ by" in solver_tables.products_said(wrong)
        assert "NaN or infinite" in solver_tables.products_said(found.assign(without_errors=math.nan, agree=False))

    def test_valley(self) -> None:
        found = solver_tables.valley(self.PROBLEM)
        assert found["default"].sum() == 1
        assert "The solver's own step errs by" in solver_tables.valley_said(found)
        assert "NaN" in solver_tables.valley_said(found.assign(error=math.nan))
        assert solver_charts.valley_chart(found).layout.shapes[0].x0 == found["epsilon"][found["default"]].iloc[0]

    def test_solves(self) -> None:
        found = solver_tables.solves(self.PROBLEM)
        assert found["preconditioner"].unique().tolist() == ["With row blocks", "Without"]
        said = solver_tables.solves_said(found)
        assert said.startswith("With row blocks, the residual is")
        assert "without, the residual is" in said
        capped = found.assign(status="MAX_ITERS")
        assert "(stopped at the limit)" in solver_tables.solves_said(capped)
        assert [trace.line.dash for trace in solver_charts.solves_chart(found, 0.1).data] == ["solid", "dot"]

    def test_eigenvalues(self) -> None:
        found = solver_tables.eigenvalues(self.PROBLEM)
        assert (found["value"] > 0).all()
        assert "with row blocks" in solver_tables.eigenvalues_said(found)
        two = pd.DataFrame([("Without", 0.5, 0.0, 0.5), ("Without", 6172.5, 0.0, 0.5)], columns=EIGENVALUES)
        assert solver_tables.eigenvalues_said(two) == "Largest ÷ smallest eigenvalue: 12,300 without."
        assert "lowest found is -1" in solver_tables.eigenvalues_said(two.assign(value=[-1.0, 2.0]))
        assert "no eigenvalue" in solver_tables.eigenvalues_said(two.head(0))


# --- the page ---


def text_of(app: AppTest) -> str:
    """All that can be read on the page."""
    assert not app.exception, app.exception
    elements = [*app.title, *app.header, *app.markdown, *app.caption, *app.error, *app.warning, *app.info]
    return "\n".join(str(e.value) for e in elements)


def troubled_run(store: RunStore) -> Run:
    """Every signature of failure, and a step that promised too much."""
    run = store.create(RunConfig())
    run.append(
        RunStarted(device="cpu", sites=helpers.PRUNED, skipped={}),
        *solved(FIRST, 0, actual=0.01, predicted=0.5),
        *solved(SECOND, 1, (0.9, 0.7), cg_status="MAX_ITERS"),
        *solved(THIRD, 2, (), cg_status="NEGATIVE_CURVATURE"),
        *solved(helpers.PRUNED[3], 3, **REJECTED),
        RunFailed(message="The sky fell. Catch it."),
    )
    return run


@pytest.mark.slow
class TestPage:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("queued", ["has not begun to prune"]),
            ("running", ["7 of 21 layers finished", "No step failed so far", "Choose a finished layer above"]),
            ("failed", ["Layer layer2.0.conv1 was given a NaN", "No step failed.", "Live checks on"]),
            ("cancelled", ["7 of 21 layers finished", "No step failed.", "Live checks on"]),
            ("interrupted", ["7 of 21 layers finished", "No step failed.", "Live checks on"]),
            ("finished", ["21 of 21 layers finished", "In all 42 Newton steps", "What is left unsolved", "Live checks on"]),
        ],
    )
    def test_every_state(self, name: str, words: list[str], open_page: OpenPage, store: RunStore, hold: ExitStack) -> None:
        run = helpers.write_run(store, name, hold)
        app = open_page("convergence", run=run.id)
        text = text_of(app)
        assert app.title[0].value == "Did the solver do its work?"
        assert [w for w in words if w not in text] == []

    def test_a_live_run_shows_the_layer_in_work(self, open_page: OpenPage, store: RunStore, hold: ExitStack) -> None:
        app = open_page("convergence", run=helpers.write_run(store, "running", hold).id)
        box = labelled(app.selectbox, "Layer")
        assert box.value == ""
        assert box.options[0] == f"{helpers.PRUNED[7].removesuffix('.weight')} (in work)"

    def test_without_any_run(self, open_page: OpenPage) -> None:
        assert "There is no run yet" in text_of(open_page("convergence"))

    def test_what_this_is_with_the_steps_in_a_valley_of_two_weights(self, open_page: OpenPage) -> None:
        app = open_page("convergence")
        assert labelled(app.expander, "What is this?")
        text = text_of(app)
        assert "Conjugate gradient is at the bottom after 2 iterations" in text
        ways = downhill.ways(30, True, (-2.0, 1.5))
        assert f"it takes {len(ways['newton'].points) - 1} of them" in text
        assert "not there after 200 steps" in text
        drawn = next(figure for alt, figure in figures(app).items() if "of them" in alt)
        newton = next(trace for trace in drawn["data"] if trace.get("name") == "Newton")
        assert newton["x"] == pytest.approx([x for x, _ in ways["newton"].points])
        assert newton["y"] == pytest.approx([y for _, y in ways["newton"].points])

    def test_a_recorded_run_before_anything_was_run(self, open_page: OpenPage, tmp_path: Path) -> None:
        helpers.write_run(RunStore(tmp_path / "recorded"), "finished")
        text = text_of(open_page("convergence"))
        assert "A recorded run" in text
        assert "No step failed." in text

    def test_an_unknown_run(self, open_page: OpenPage) -> None:
        assert "There is no run 'nonsense'" in text_of(open_page("convergence", run="nonsense"))

    def test_failures_are_named_first_with_their_remedies_and_open_their_layer(
        self, open_page: OpenPage, store: RunStore
    ) -> None:
        app = open_page("convergence", run=troubled_run(store).id)
        text = text_of(app)
        order = ["stopped at its limit of 50", "products were unstable", "The loss did not fall", "promised over four times"]
        assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
        assert "No step failed" not in text
        assert "The sky fell" in text
        assert labelled(app.selectbox, "Layer").options[0] == f"{SECOND.removesuffix('.weight')} (needs attention)"
        labelled(app.button, THIRD.removesuffix(".weight")).click().run()
        assert f"Live checks on {THIRD.removesuffix('.weight')}" in text_of(app)
        assert app.query_params["layer"] == THIRD.removesuffix(".weight")

    def test_a_run_of_another_update_says_that_it_has_no_steps(self, open_page: OpenPage, store: RunStore) -> None:
        config = RunConfig.model_validate({"prune": {"update": "least-squares"}})
        run = store.create(config)
        run.append(RunStarted(device="cpu", sites=helpers.PRUNED, skipped={}), started(FIRST, 0))
        text = text_of(open_page("convergence", run=run.id))
        assert "filled its weights by least squares, without Newton steps" in text
        assert "No step failed" not in text
        assert "Live checks on" in text

    def test_the_address_says_layer_and_measure(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished")
        app = open_page("convergence", run=run.id)
        labelled(app.selectbox, "Layer").set_value("layer3.1.conv2").run()
        labelled(app.button_group, "All Newton steps by").set_value("Curvature").run()
        assert app.query_params == {"run": run.id, "layer": "layer3.1.conv2", "by": "Curvature"}
        assert "Live checks on layer3.1.conv2" in text_of(app)
        assert solver_tables.MEASURES["Curvature"].help in text_of(app)

    def test_a_layer_that_the_run_does_not_have(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_page("convergence", run=helpers.write_run(store, "finished").id)
        app.query_params["layer"] = "nonsense"
        assert "prunes no layer 'nonsense'" in text_of(app.run())

    def test_all_steps_as_a_table(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_page("convergence", run=helpers.write_run(store, "finished").id)
        assert len(app.dataframe[0].value) == 2
        app.button_group("steps-of").set_value("All layers").run()
        table = app.dataframe[0].value
        assert len(table) == 42
        assert {"layer", "ended", "trust", "damping"} <= set(table.columns)
        assert set(table["ended"]) == {"reached the tolerance"}


@pytest.mark.slow
class TestLiveChecks:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
        """The sites and images that problems were asked for; each problem is a tiny one."""
        calls: list[tuple[str, int]] = []

        def problem(site: str, num_images: int) -> object:
            calls.append((site, num_images))
            return TestChecks.PROBLEM

        monkeypatch.setattr("app.state.inspection", lambda run: types.SimpleNamespace(problem=problem))
        return calls

    def test_nothing_is_computed_unasked_and_results_stay(
        self, open_page: OpenPage, store: RunStore, asked: list[tuple[str, int]]
    ) -> None:
        app = open_page("convergence", run=helpers.write_run(store, "finished").id)
        assert asked == []
        app.button("check-valley").click().run()
        assert asked == [(FIRST, 32)]
        assert "The solver's own step errs by" in text_of(app)
        assert "The three agree" not in text_of(app)
        labelled(app.button_group, "All Newton steps by").set_value("Iterations").run()
        assert "The solver's own step errs by" in text_of(app)
        app.button("check-all").click().run()
        assert len(asked) == 4  # what is known is not computed again
        for words in ("The three agree", "With row blocks, the residual is", "Largest ÷ smallest eigenvalue"):
            assert words in text_of(app)

    def test_another_layer_or_other_images_have_results_of_their_own(
        self, open_page: OpenPage, store: RunStore, asked: list[tuple[str, int]]
    ) -> None:
        app = open_page("convergence", run=helpers.write_run(store, "finished").id)
        app.button("check-products").click().run()
        app.button_group("check-images").set_value(8).run()
        assert "The three agree" not in text_of(app)
        app.button("check-products").click().run()
        labelled(app.selectbox, "Layer").set_value(SECOND.removesuffix(".weight")).run()
        assert "The three agree" not in text_of(app)
        app.button("check-products").click().run()
        assert asked == [(FIRST, 32), (FIRST, 8), (SECOND, 8)]

    def test_what_cannot_be_opened_is_said_in_a_sentence(
        self, open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(run: Run) -> None:
            raise InputError("The checkpoint is gone. Put it back.")

        monkeypatch.setattr("app.state.inspection", refuse)
        app = open_page("convergence", run=helpers.write_run(store, "finished").id)
        app.button("check-solves").click().run()
        assert "The checkpoint is gone" in app.error[0].value


class TestDescents:
    POINTS = (
        *(Point("gauss_newton", i, 3.0 * i, 0.5 * i, loss) for i, loss in enumerate([1.0, 0.5, 0.4])),
        *(Point("adam", i, 1.0 * i, 0.1 * i, loss, 0.1) for i, loss in enumerate([1.0, 0.7, 0.5])),
        *(Point("adam", i, 1.0 * i, 0.1 * i, loss, 0.3) for i, loss in enumerate([1.0, 0.9, 0.8])),
    )

    def test_every_point_and_which_of_adams_count(self) -> None:
        frame = solver_tables.descents(list(self.POINTS))
        assert len(frame) == len(self.POINTS)
        assert frame[~frame["chosen"]]["rate"].unique().tolist() == [0.3]
        assert frame[frame["way"] == "Gauss-Newton"]["loss"].tolist() == [1.0, 0.5, 0.4]

    def test_said(self) -> None:
        said = solver_tables.descents_said(list(self.POINTS))
        assert said.startswith(
            "The lowest loss is 0.4, by Gauss-Newton. To come within 1 % of it, Gauss-Newton took 6.0 passes"
        )
        assert said.endswith("Not as far down: Adam 25 % above it.")
        assert "0.1 times the median weight" in solver_tables.descents_note(list(self.POINTS))

    def test_how_far_all_are_is_how_far_the_last_is(self) -> None:
        assert solver_tables.had_passes([]) == 0
        assert solver_tables.had_passes(list(self.POINTS)) == 2
        ended = Point("gauss_newton", 3, 1.5, 2.0, 0.4, ended="NO_FURTHER_DECREASE")
        assert solver_tables.had_passes([ended, *self.POINTS[3:6]]) == 2

    def test_the_chart_has_a_line_a_way_and_faint_ones_for_the_other_rates(self) -> None:
        figure = solver_charts.descents_chart(solver_tables.descents(list(self.POINTS)), "passes", "Passes")
        assert [(line.name, line.showlegend, list(line.x)) for line in figure.data] == [
            ("Adam", False, [0, 1, 2]),
            ("Gauss-Newton", True, [0, 3, 6]),
            ("Adam", True, [0, 1, 2]),
        ]

    @pytest.mark.slow
    def test_on_the_page_it_is_computed_on_a_click_and_kept(
        self, open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[str, int, int]] = []

        def problem(site: str, num_images: int, batch_size: int) -> object:
            asked.append((site, num_images, batch_size))
            return TestChecks.PROBLEM

        monkeypatch.setattr("app.state.inspection", lambda run: types.SimpleNamespace(problem=problem))
        app = open_page("convergence", run=helpers.write_run(store, "finished").id)
        assert asked == []
        app.button("descent-begin").click().run()
        deadline = time.monotonic() + 60
        while "Cancel" in [button.label for button in app.button]:
            assert time.monotonic() < deadline
            app.run()
        assert asked == [(FIRST, 32, 32)]
        assert "The lowest loss is" in text_of(app)
        assert app.button("descent-begin").label == "Run again"
        app.button_group("descent-start").set_value("least_squares").run()
        assert "The lowest loss is" not in text_of(app)
        app.button_group("descent-start").set_value("masked").run()
        assert "The lowest loss is" in text_of(app)
        assert len(asked) == 1
