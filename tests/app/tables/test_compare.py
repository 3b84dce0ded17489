"""The Compare page: its frames by hand, a comparison that is killed and resumed, and the page in every state."""

import math
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
from streamlit.testing.v1 import AppTest

from app import state, words
from app.charts import compare as compare_charts
from app.charts import palette
from app.tables import compare
from app.work.jobs import JobManager
from snows.config import RunConfig
from snows.events import Event, RunFailed, RunFinished, RunStarted, SiteFinished
from snows.measures.comparison import OUTPUT, Flip, Likeness, SignTest
from snows.measures.names import MEASURES
from snows.method import cards
from snows.plans import recorded
from snows.plans.comparisons import METHODS, USUAL, expand, summarize
from snows.runs.inspection import Inspection, InspectionError
from snows.runs.store import Comparison, Labels, Run, RunStore
from tests.app import helpers
from tests.app.conftest import OpenPage, figures
from tests.app.test_pages import button, labelled, labels, text_of, until_ended
from tests.app.work.test_jobs import until

ROOT = Path(__file__).parents[3]
ON_CPU = RunConfig.model_validate({"prune": {"device": "cpu"}})


def six(store: RunStore) -> Comparison:
    return store.create_comparison(expand(ON_CPU, list(METHODS.values())[:6], ["1:4"], [3], [0]))


def config(**prune: object) -> RunConfig:
    return RunConfig.model_validate({"prune": prune})


class TestMarks:
    def test_a_color_a_method_a_symbol_a_setting_and_one_for_all_its_seeds(self) -> None:
        given = [config(update="none"), config(update="none", mask="wanda"), config(), config(seed=1), config(k_steps=5)]
        none, snows = palette.COLORS["none"], palette.COLORS["snows"]
        assert [(mark.color, mark.symbol) for mark in compare.marks(given)] == [
            (none, "circle"),
            (none, "diamond"),
            (snows, "circle"),
            (snows, "circle"),
            (snows, "diamond"),
        ]

    def test_after_all_symbols_they_begin_again_open(self) -> None:
        assert palette.Mark.of("snows", 8).symbol == "circle-open"


class TestFrames:
    def test_only_runs_on_the_same_network_and_images_go_together(self, store: RunStore) -> None:
        made = [config(), RunConfig(model="vit-fashion"), config(k_steps=5), RunConfig(data="photos")]
        entries = compare.entries(store.create(c) for c in made)
        assert [len(found) for found in compare.networks(entries).values()] == [2, 1, 1]

    def test_a_run_that_cannot_be_read_is_left_out(self, store: RunStore) -> None:
        fine, broken = store.create(config()), store.create(config())
        (broken.path / "config.json").write_text("{}}")
        assert [entry.run for entry in compare.entries([fine, broken])] == [fine]

    def test_progress_is_that_of_the_layers(self, store: RunStore, hold: ExitStack) -> None:
        runs = [helpers.write_run(store, name, hold) for name in ("finished", "running", "queued", "interrupted")]
        progress = compare.comparison_progress(compare.entries(runs))
        part = 7 / len(helpers.PRUNED)
        assert (progress.done, progress.total, progress.active, progress.resumable) == (1, 4, 2, 1)
        assert progress.fraction == pytest.approx((1 + part + 0 + part) / 4)
        assert progress.left == pytest.approx((1 - part + 1) * helpers.METRICS["seconds"])

    def test_no_time_left_before_a_first_run_has_ended(self, store: RunStore, hold: ExitStack) -> None:
        assert compare.comparison_progress(compare.entries([helpers.write_run(store, "running", hold)])).left is None

    def test_layer_losses_are_of_the_layer_itself_and_of_the_last_solve(self, store: RunStore) -> None:
        run = store.create(config())
        run.append(RunStarted(device="cpu", sites=["a.weight", "b.weight"], skipped={}))
        event = SiteFinished(
            site="b.weight",
            index=1,
            losses={"final": 9.0},
            by_k={"final": [1.0, 8.0]},
            scale=[4.0, 2.0],
            density=0.5,
            status="",
            message="",
            seconds=1.0,
            num_products=0,
        )
        run.append(
            event, replace(event, by_k={"final": [2.0, 7.0]}), replace(event, site="a.weight", index=0, scale=[0.0, 1.0])
        )
        losses, layers = compare.layer_losses(compare.entries([run]))
        assert layers == ["a", "b"]
        assert losses[["index", "value"]].to_numpy().tolist() == [[1, 0.5]]  # of `a` there is nothing to be relative to

    def test_likenesses_go_down_the_network(self) -> None:
        found = [Likeness("a.weight", "one", 0.9, 0.8, 0.1), Likeness(OUTPUT, "one", 0.7, 0.6, 0.3)]
        values, layers = compare.likenesses(found, "cosine")
        assert layers == ["a", "output"]
        assert values.to_numpy().tolist() == [["one", 0, 0.8], ["one", 1, 0.6]]

    def test_of_many_classes_those_that_differ_most_in_their_own_order(self) -> None:
        given = {"Dense": [90.0, math.nan, 80.0, 70.0], "one": [90.0, math.nan, 60.0, 60.0]}
        frame = compare.class_accuracies(given, ["a", "b", "c", "d"], most=2)
        assert frame.to_numpy().tolist() == [
            ["Dense", 0, 80.0, "c"],
            ["one", 0, 60.0, "c"],
            ["Dense", 1, 70.0, "d"],
            ["one", 1, 60.0, "d"],
        ]

    def test_flipped_images_those_of_most_networks_first(self) -> None:
        given = {"one": [Flip(3, 0, 1, 0), Flip(5, 2, 4, 4)], "other": [Flip(5, 2, 1, 4)]}
        frame = compare.flipped(given)
        assert frame.to_numpy().tolist() == [[5, 4, 2, 4, 1], [3, 0, 0, 1, None]]
        assert compare.flipped(given, ["lost"])["image"].tolist() == [3]
        counts = compare.flip_counts(given, 10)
        assert counts.to_numpy().tolist() == [["one", 0.2, 1, 1, 0], ["other", 0.1, 0, 0, 1]]

    def test_sign_tests(self) -> None:
        frame = compare.sign_tests({"a": SignTest(9, 1, 0.02), "b": SignTest(5, 4, 1.0)})
        assert frame["verdict"].tolist() == ["real", "may be chance"]


def metrics(accuracy: float | None, seconds: float, density: float = 0.25) -> dict[str, float | None]:
    dense = None if accuracy is None else 0.94
    found = {"accuracy": accuracy, "accuracy_dense": dense, "agreement": accuracy or 0.8, "density": density}
    return {**found, "seconds": seconds, "num_evaluation": 10_000}


def plain_minus(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-")


class TestTable:
    def test_numbers_sort_and_texts_show_the_same(self) -> None:
        rows = summarize([(config(), metrics(0.9, 20)), (config(update="none"), metrics(0.5, 3))])
        numbers, texts = compare.table(rows)
        assert numbers.columns.tolist() == texts.columns.tolist()
        assert texts["Method"].tolist() == ["Dense network", "SNOWS, refined mask, K = 3", "Magnitude only"]
        assert numbers["Accuracy"].tolist() == [0.94, 0.9, 0.5]
        assert texts["Accuracy"].tolist() == ["94.00 %", "90.00 % ★", "50.00 %"]
        assert texts["Time"].tolist() == ["", "20 s", "3 s ★"]

    def test_verdict_names_the_best_and_whose_lead_may_be_chance(self) -> None:
        rows = summarize([(config(), metrics(0.9, 20)), (config(update="none"), metrics(0.899, 3))])
        words = compare.verdict(rows)
        assert words.startswith("**SNOWS, refined mask, K = 3** has the best accuracy, 90.00 %.")
        assert "The lead on Magnitude only may be chance" in words
        assert "add seeds" in words
        assert compare.verdict(summarize([(config(), metrics(0.9, 20))])) == ""  # nothing to choose from

    def test_what_is_of_no_use_has_no_star_no_place_on_the_front_and_is_named(self) -> None:
        rows = summarize([(config(), metrics(0.9, 20)), (config(update="none"), metrics(0.11, 3))])
        _, texts = compare.table(rows)
        assert "★" not in "".join(texts.iloc[2])
        assert "Magnitude only loses too much to be of use, and is not ranked." in compare.verdict(rows)
        two = [*rows, *summarize([(config(update="none", mask="random"), metrics(0.1, 3))])]
        assert "Magnitude only and Random lose too much to be of use, and are not ranked." in compare.verdict(two)
        points, _ = compare.tradeoff(rows, "seconds")
        assert points[["x", "best"]].to_numpy().tolist() == [[20, True], [3, False]]
        none = summarize([(config(), metrics(0.12, 20)), (config(update="none"), metrics(0.11, 3))])
        assert compare.verdict(none).startswith("None of these is of use")
        assert "**SNOWS, refined mask, K = 3** comes nearest, with an accuracy of 12.00 %" in compare.verdict(none)

    def test_tradeoff_and_its_front(self) -> None:
        given = [(config(), metrics(0.9, 20)), (config(update="none"), metrics(0.5, 3)), (config(k_steps=5), metrics(0.8, 40))]
        points, value = compare.tradeoff(summarize(given), "seconds")
        assert value == "accuracy"
        assert points[["x", "y", "best"]].to_numpy().tolist() == [[20, 0.9, True], [3, 0.5, True], [40, 0.8, False]]
        assert compare.dense_value(summarize(given), value) == 0.94

    def test_over_patterns_each_is_beside_the_best_of_its_own(self) -> None:
        accuracies = {("2:4", 3): (0.93, 0.92), ("2:4", 5): (0.90, 0.91), ("1:8", 3): (0.80, 0.82), ("1:8", 5): (0.81, 0.83)}
        given = [
            (config(pattern=pattern, k_steps=k, seed=seed), metrics(value, 10, 0.5 if pattern == "2:4" else 0.125))
            for (pattern, k), values in accuracies.items()
            for seed, value in enumerate(values)
        ]
        rows = summarize([*given, (config(pattern="1:8", update="none"), metrics(0.11, 3, 0.125))])
        numbers, texts = compare.beside_table(rows)
        # Distances seed by seed: 3 and 1 points at 2:4, always the same point at 1:8.
        assert texts.map(plain_minus).to_numpy().tolist() == [
            ["SNOWS, refined mask, K = 3", "92.50 ± 0.71 % ★", "-1.00 ☆"],
            ["SNOWS, refined mask, K = 5", "-2.00 ± 1.41", "82.00 ± 1.41 % ★"],
            ["Magnitude only", "", "-71.00"],
        ]
        assert texts.columns.tolist() == ["Method", "2:4", "1:8"]
        assert numbers["1:8"].tolist() == pytest.approx([0.81, 0.82, 0.11])
        says = compare.verdict(rows)
        assert says.startswith(
            "Of 3 methods **SNOWS, refined mask, K = 3** is best in accuracy, or level with the best, at all 2"
        )
        assert "-1.50 ± 0.71 points at 2:4 and -13.00 ± 1.41 points at 1:8" in plain_minus(says)

    def test_how_far_from_the_best_of_one_pattern(self) -> None:
        given = [(config(k_steps=k), metrics(value, 10)) for k, value in ((1, 0.80), (3, 0.90))]
        points = compare.differences(summarize([*given, (config(update="none"), metrics(0.11, 3))]))
        assert points["label"].tolist() == [
            "SNOWS, refined mask, K = 3",
            "SNOWS, refined mask, K = 1",
        ]  # what is of no use is not
        assert points["x"].tolist() == pytest.approx([0, -0.1])
        assert points["level"].tolist() == [True, False]
        assert points["said"].map(plain_minus).tolist() == ["90.00 % ★", "-10.00"]

    def test_only_what_differs_is_a_choice_of_costs(self) -> None:
        sized = metrics(0.9, 20) | {"packed_bytes": 100.0, "dense_bytes": 800.0}
        alone = summarize([(config(), sized)])
        assert compare.costs(alone) == ["density", "packed_bytes", "seconds"]  # nobody counted multiply-adds
        assert compare.costs(summarize([(config(), sized), (config(update="none"), sized | {"seconds": 3.0})])) == ["seconds"]

    def test_a_figure_begins_not_far_below_the_front(self) -> None:
        given = [(config(k_steps=k), metrics(value, 10 * k)) for k, value in ((1, 0.90), (3, 0.92))]
        points, value = compare.tradeoff(summarize(given), "seconds")
        assert compare.shown_from(points) is None
        assert compare.not_drawn(points, value) == ""
        rows = summarize([*given, (config(update="none"), metrics(0.11, 90))])
        points, value = compare.tradeoff(rows, "seconds")
        # What has no point is in no legend.
        assert list(compare.drawn_marks(rows, points)) == list(compare.method_marks(rows))[:2] == points["method"].tolist()[:2]
        assert compare.shown_from(points) == pytest.approx(0.90 - 1.5 * 0.02)
        assert compare.not_drawn(points, value) == "1 of 3 is below 87.00 %, and not drawn."
        figure = compare_charts.tradeoff_chart(points, "seconds", value, shown_from=compare.shown_from(points))
        assert [trace["y"] for trace in figure.data if trace["mode"] == "markers"] == [(90,), (92,)]

    def test_without_labels_agreement_stands_in(self) -> None:
        rows = summarize([(config(), metrics(None, 20)), (config(update="none"), metrics(None, 3))])
        assert compare.tradeoff(rows, "density")[1] == "agreement"
        assert compare.dense_value(rows, "agreement") == 1.0


class TestWhy:
    def test_no_faster_where_the_difference_is_noise(self) -> None:
        words = compare.why_faster([0.10, 0.11, 0.12], [0.10, 0.105, 0.12], 0.26, 0, 20, "cpu")
        assert words.startswith("**Not faster here**: 105 ms a batch, the dense network 110 ms; the difference is within")
        assert "26 % of the multiplications" in words
        assert "No pruned layer has the pattern and the shape" in words

    @pytest.mark.parametrize(("seconds", "word"), [(0.05, "Faster"), (0.2, "Slower")])
    def test_a_difference_is_said(self, seconds: float, word: str) -> None:
        words = compare.why_faster([0.1] * 3, [seconds] * 3, 0.5, 6, 24, "NVIDIA A100")
        assert words.startswith(f"**{word} here**")
        assert "6 of the 24 pruned layers" in words
        assert "on NVIDIA A100" in words

    def test_smaller_only_when_packed(self) -> None:
        words = compare.why_smaller(2_000_000, 1_100_000, 560_000, 2_010_000, "2:4", 0.5)
        assert "own file holds 2.01 MB" in words
        assert "takes 1.1 MB (55 % of 2 MB)" in words
        assert "half precision 560 kB, 3.57 times less" in words

    def test_whole_units_are_gone_from_the_file_and_from_the_work(self) -> None:
        words = compare.why_smaller(2_000_000, 1_040_000, 525_000, 2_010_000, "width 50%", 0.5, is_cut=True)
        assert "zeros where units were" in words
        assert "Cut to size (width 50%), as the ONNX file is, the network takes 1.04 MB (52 % of 2 MB)" in words
        words = compare.why_faster([0.1] * 3, [0.06] * 3, 0.49, 0, 12, "cpu", is_cut=True)
        assert words.startswith("**Faster here**: 60 ms a batch, the dense network 100 ms. ")
        assert "49 % of the multiplications are left" in words
        assert "A zero" not in words


class TestBesideEachOther:
    @pytest.mark.slow
    def test_a_second_run_of_the_network_is_read_into_the_same_graph(self, store: RunStore) -> None:
        first = Run(ROOT / "assets/runs/recorded-2-resnet20-fashion")
        opened = Inspection.open(first)
        copied = Run(Path(shutil.copytree(first.path, store.root / "copy")))
        beside = opened.beside(copied)
        assert beside.graph is opened.graph
        assert beside.run == copied
        assert beside.masks.keys() == opened.masks.keys()
        with pytest.raises(InspectionError, match="another network"):
            opened.beside(Run(ROOT / "assets/runs/recorded-1-vit-fashion"))


# --- a comparison ---


@pytest.mark.slow
def test_a_comparison_of_six_killed_halfway_goes_on_in_the_next_app_and_keeps_what_is_finished(store: RunStore) -> None:
    script = (
        "import time\n"
        "from app.work.jobs import JobManager\n"
        "from snows.runs.store import RunStore, default_root\n"
        "from tests.app.helpers import slow_execute\n"
        "from tests.app.tables.test_compare import ON_CPU, METHODS, expand\n"
        "manager = JobManager(RunStore(default_root()), lambda run: slow_execute(run, 0.0005))\n"
        "manager.submit_comparison(expand(ON_CPU, list(METHODS.values())[:6], ['1:4'], [3], [0]))\n"
        "time.sleep(60)\n"
    )
    server = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        until(lambda: bool(store.comparisons()), seconds=300)
        (comparison,) = store.comparisons()
        runs = comparison.runs()
        until(lambda: runs[2].state() == "finished" and len(runs[3].events()[0]) > 60)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert [run.state() for run in runs] == ["finished"] * 3 + ["queued"] * 3
    entries = compare.entries(runs)
    far = compare.comparison_progress(entries)
    assert (far.active, far.resumable) == (3, 0)
    assert 0 < entries[3].run.log().share < 1

    before = [run.events()[0] for run in runs]
    executed: list[str] = []

    def execute(run: Run) -> RunFinished:
        executed.append(run.id)
        return helpers.slow_execute(run, pause=0)

    JobManager(store, execute).work_on("cpu")
    until(lambda: all(run.state() == "finished" for run in runs))
    assert executed == [run.id for run in runs[3:]]
    assert [run.events()[0] for run in runs[:3]] == before[:3]
    taken_up = next(e for e in reversed(runs[3].events()[0]) if isinstance(e, RunStarted))
    assert taken_up.resumed == sum(isinstance(e, SiteFinished) for e in before[3]) > 0


def test_cancel_all_lets_none_of_those_that_wait_begin(store: RunStore) -> None:
    begun: list[str] = []
    release = threading.Event()

    def execute(run: Run) -> RunFinished:
        begun.append(run.id)
        assert release.wait(20)
        return helpers.slow_execute(run, pause=0)

    manager = JobManager(store, execute)
    comparison = store.comparison(manager.submit_comparison([ON_CPU] * 6))
    until(lambda: len(begun) == 1)
    manager.cancel(comparison.runs()[2].id)
    assert [run.state() for run in comparison.runs()][2:4] == ["cancelled", "queued"]
    manager.cancel_comparison(comparison.id)
    release.set()
    until(lambda: all(run.state() == "cancelled" for run in comparison.runs()))
    assert begun == [comparison.runs()[0].id]


# --- the page ---


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every reading of a log, and from which byte on."""
    found: list[tuple[str, int]] = []
    events = Run.events

    def watched(run: Run, offset: int = 0) -> tuple[list[Event], int]:
        found.append((run.id, offset))
        return events(run, offset)

    monkeypatch.setattr(Run, "events", watched)
    return found


@pytest.mark.slow
def test_a_comparison_that_is_watched_is_read_once_and_then_only_what_is_new(
    open_page: OpenPage, store: RunStore, hold: ExitStack, reads: list[tuple[str, int]]
) -> None:
    names = ["finished", "failed", "cancelled", "interrupted", "running"]
    runs = [helpers.write_run(store, name, hold, config=config(k_steps=k)) for k, name in enumerate(names)]
    app = open_compare(open_page, runs=",".join(run.id for run in runs))
    assert "33 % of its layers" in text_of(app)
    first = len(reads)
    for index in (8, 9):
        runs[4].append(*helpers.site_events(index))
        app.run()
    assert "43 % of its layers" in text_of(app)
    assert reads.count((runs[4].id, 0)) == 1
    assert runs[4].id in {run_id for run_id, _ in reads[first:]}
    assert all(offset > 0 for _, offset in reads[first:])


def finished_comparison(store: RunStore) -> Comparison:
    comparison = six(store)
    for place, run in enumerate(comparison.runs()):
        helpers.finish(run)
        run.save_metrics(helpers.METRICS | {"accuracy": 0.5 + 0.08 * place, "seconds": 3.0 + place})
    return comparison


def open_compare(open_page: OpenPage, **address: str) -> AppTest:
    app = open_page("overview")
    for name, value in address.items():
        app.query_params[name] = value
    return app.switch_page("../pages/compare.py").run()


class TestPage:
    def test_before_anything_was_run_it_is_the_recorded_comparison(self, open_page: OpenPage) -> None:
        app = open_compare(open_page)
        text = text_of(app)
        assert f"{helpers.RECORDED_COUNT} measurements that came with the app, made by `make bench`" in text
        best = "**SNOWS, joint fit, K = 3** is best in accuracy, or level with the best, at all 6 patterns"
        assert f"Of {helpers.RECORDED_METHODS} methods {best}" in text
        assert labelled(app.selectbox, "Network").options == [
            "resnet20-fashion on fashion-mnist",
            "vit-fashion on fashion-mnist",
        ]
        table = app.dataframe[0].value
        assert table.columns.tolist() == ["Method", "2:4", "70%", "1:4", "1:8", "90%", "1:16"]
        assert len(table) == helpers.RECORDED_METHODS
        _, texts = compare.beside_table(compare.rows([one for one in recorded.comparison() if "resnet" in one.config.model]))
        said = pa.ipc.open_stream(app.dataframe[0].proto.arrow_data.styler.display_values).read_pandas()
        assert said.drop(columns="Method").to_numpy().tolist() == texts.drop(columns="Method").astype(str).to_numpy().tolist()
        (figure,) = figures(app).values()
        assert figure["layout"]["xaxis"]["title"]["text"] == "Weights kept (%)"
        # No runs are behind it: nothing to look into, to cancel, or to open.
        assert "A closer look" not in [group.label for group in app.get("button_group")]
        assert "Runs to look into" not in [field.label for field in app.multiselect]
        assert not {"Start 7 runs", "Cancel all", "Resume the rest"} & set(labels(app))

    def test_one_network_and_one_pattern_of_it(self, open_page: OpenPage) -> None:
        network = "vit-fashion on fashion-mnist"
        app = open_compare(open_page, network=network, pattern="1:16", against="seconds")
        text = text_of(app)
        assert "**SNOWS, joint fit, K = 3** has the best accuracy, 88.20 %" in text
        assert "may be chance" not in text
        table = app.dataframe[0].value
        assert len(table) == helpers.RECORDED_METHODS + 1  # with the dense network
        assert set(table["Weights kept"]) == {1, 0.0625}
        drawn = figures(app)
        assert [alt.partition(" of ")[0] for alt in drawn] == ["Accuracy", "Accuracy"]
        time, behind = drawn.values()
        assert time["layout"]["xaxis"]["title"]["text"] == "Time (s)"  # what keeps as many weights is no choice
        first, second = behind["data"][:2]
        assert (first["x"], first["y"]) == ([0], [0])
        assert second["x"] == pytest.approx([-3.50], abs=0.006)
        assert second["error_x"]["array"] == pytest.approx([0.41], abs=0.006)

    @pytest.mark.parametrize("cost", ["density", "packed_bytes", "multiply_adds", "seconds"])
    def test_what_it_costs_is_a_choice(self, cost: str, open_page: OpenPage) -> None:
        app = open_compare(open_page, against=cost)
        (figure,) = figures(app).values()
        assert figure["layout"]["xaxis"]["title"]["text"] == MEASURES[cost].axis
        front = next(trace for trace in figure["data"] if trace["mode"] == "lines")
        assert front["y"] == sorted(front["y"])

    def test_the_form_is_one_click_away(self, open_page: OpenPage) -> None:
        app = open_compare(open_page, batch="new")
        assert f"Start {len(USUAL)} runs" in labels(app)

    @pytest.mark.slow
    def test_start_makes_a_comparison_of_what_was_chosen_and_goes_there(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_compare(open_page, batch="new")
        app.multiselect("batch.methods").set_value(["Wanda", "SNOWS, dense targets"])
        app.multiselect("batch.patterns").set_value(["2:4", "1:8"])
        app.multiselect("batch.k").set_value(["1", "5"])
        app.multiselect("batch.seeds").set_value(["0", "1"])
        app.multiselect("batch.images").set_value(["64", "128"]).run()
        button(app, "Start 24 runs").click().run()
        (comparison,) = store.comparisons()
        configs = [run.config() for run in comparison.runs()]
        wanted = [METHODS["Wanda"], METHODS["SNOWS, dense targets"]]
        assert configs == expand(RunConfig(), wanted, ["2:4", "1:8"], [1, 5], [0, 1], [64, 128])
        assert app.query_params["batch"] in (comparison.id, [comparison.id])
        assert [until_ended(run) for run in comparison.runs()] == ["finished"] * 24

    def test_what_more_images_bring_is_drawn_where_they_differ(self, open_page: OpenPage, store: RunStore) -> None:
        methods = [METHODS["SNOWS, refined mask"], METHODS["Least squares (OBS)"], METHODS["Wanda"]]
        comparison = store.create_comparison(expand(RunConfig(), methods, ["2:4"], [3], [0], [64, 256]))
        for run in comparison.runs():
            helpers.finish(run)
            run.save_metrics(helpers.METRICS | {"accuracy": 0.5 + run.config().num_calibration / 1000})
        app = open_compare(open_page)
        text = text_of(app)
        assert "What more images bring" in text
        figure = next(figure for alt, figure in figures(app).items() if "calibration images" in alt)
        lines = [trace for trace in figure["data"] if trace["mode"] == "lines+markers"]
        assert [line["name"] for line in lines] == ["SNOWS, refined mask, K = 3", "Least squares (OBS)"]
        assert [line["x"] for line in lines] == [pytest.approx([8, 16])] * 2
        assert [line["y"] for line in lines] == [pytest.approx([56.4, 75.6])] * 2
        assert {line["line"]["color"] for line in lines} == {palette.COLORS["snows"], palette.COLORS["least-squares"]}
        methods_shown = app.dataframe[0].value["Method"].tolist()
        assert [name for name in methods_shown if "256 images" in name] == methods_shown[4:]

    @pytest.mark.slow
    def test_what_cannot_be_is_said_beside_the_form(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_compare(open_page, batch="new")
        app.multiselect("batch.seeds").set_value([]).run()
        assert "There is no seed to compare" in text_of(app)
        app.multiselect("batch.seeds").set_value(["-1"]).run()
        assert "Seed must be at least 0" in text_of(app)

    def test_a_network_that_is_not_there_cannot_be_started(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_page("overview")
        app.session_state["form.model"] = "nonsense"  # as typed on the Prune page
        app.query_params["batch"] = "new"
        app.switch_page("../pages/compare.py").run()
        assert "There is no model 'nonsense'" in text_of(app)
        assert not any(label.startswith("Start") for label in labels(app))

    def test_other_combinations(self, open_page: OpenPage) -> None:
        app = open_compare(open_page, batch="new")
        app.multiselect("batch.methods").set_value(["ALPS"]).run()
        text = text_of(app)
        assert f"**ALPS**. {words.plain(cards.MASKS['alps'].idea)}" in text
        assert "Touches mask and values." in text
        assert words.plain(cards.MASKS["alps"].reference) in text
        assert words.plain(cards.MASKS["obc"].idea) not in text
        app.multiselect("batch.methods").set_value([])
        app.multiselect("batch.masks").set_value(["magnitude", "wanda"])
        app.multiselect("batch.updates").set_value(["none", "snows"])
        app.multiselect("batch.targets").set_value(["dense", "propagated"]).run()
        assert "Start 6 runs" in labels(app)  # 2 masks, each without an update and with SNOWS to two targets

    @pytest.mark.slow
    def test_a_comparison_at_work_can_be_cancelled_in_part_and_as_a_whole(
        self, open_page: OpenPage, store: RunStore, engine: ModuleType
    ) -> None:
        release = threading.Event()
        engine.execute = lambda run, device: (release.wait(60), helpers.slow_execute(run, pause=0))[1]
        open_page("overview")
        comparison = store.comparison(state.jobs().submit_comparison([ON_CPU] * 3))
        runs = comparison.runs()
        try:
            app = open_compare(open_page, batch=comparison.id)
            assert "The table begins when a first run has finished" in text_of(app)
            assert labels(app).count("Cancel") == 3
            app.button(f"cancel-{runs[2].id}").click().run()
            assert runs[2].state() == "cancelled"
            assert labels(app).count("Cancel") == 2
            button(app, "Cancel all").click().run()
            assert runs[1].state() == "cancelled"
            assert "Cancelling…" in labels(app)
        finally:
            release.set()
        assert until_ended(runs[0]) == "cancelled"
        engine.execute = lambda run, device: helpers.slow_execute(run, pause=0)
        app.run()
        button(app, "Resume the rest").click().run()
        assert [until_ended(run) for run in runs] == ["finished"] * 3

    @pytest.mark.slow
    def test_runs_at_work_are_drawn_over_each_other(self, open_page: OpenPage, store: RunStore, hold: ExitStack) -> None:
        runs = [helpers.write_run(store, "running", hold, config(k_steps=k)) for k in (1, 3)]
        app = open_compare(open_page, runs=",".join(run.id for run in runs))
        (figure,) = figures(app).values()
        assert [(trace["name"], len(trace["x"])) for trace in figure["data"]] == [
            ("SNOWS, refined mask, K = 1", 7),
            ("SNOWS, refined mask, K = 3", 7),
        ]
        assert figure["layout"]["dragmode"] == "zoom"
        assert len(figure["layout"]["yaxis"]["tickvals"]) == len(helpers.PRUNED)  # those to come have their places
        runs[0].append(*helpers.site_events(7), *helpers.site_events(8))
        (figure,) = figures(app.run()).values()
        assert [len(trace["x"]) for trace in figure["data"]] == [9, 7]

    @pytest.mark.slow
    def test_a_finished_comparison(self, open_page: OpenPage, store: RunStore) -> None:
        finished_comparison(store)
        app = open_compare(open_page)
        text = text_of(app)
        assert "**SNOWS, dense targets, K = 3** has the best accuracy, 90.00 %" in text
        assert "How near each network stays to the dense one" in text  # what is looked at first
        assert not {"Cancel all", "Resume the rest"} & set(labels(app))
        table = app.dataframe[0].value
        assert table["Method"][0] == "Dense network"
        assert table["Accuracy"].tolist() == pytest.approx([0.9395, 0.5, 0.58, 0.66, 0.74, 0.82, 0.9])
        assert "the run's files are of another network" in text  # these hold no weights of it
        app = open_compare(open_page, view="layers")
        assert "How wrong each layer's own output is" in text_of(app)
        assert len(figures(app)) == 3

    @pytest.mark.slow
    def test_the_runs_looked_into_are_those_of_the_address(self, open_page: OpenPage, store: RunStore) -> None:
        comparison = finished_comparison(store)
        app = open_compare(open_page, batch=comparison.id, show="1,4")
        assert labelled(app.multiselect, "Runs to look into").value == [1, 4]
        labelled(app.multiselect, "Runs to look into").set_value([]).run()
        assert "Choose at least one run" in text_of(app)

    @pytest.mark.slow
    def test_a_member_that_failed_says_why_and_the_others_are_compared(self, open_page: OpenPage, store: RunStore) -> None:
        comparison = finished_comparison(store)
        (comparison.runs()[0].path / "metrics.json").unlink()
        comparison.runs()[0].append(RunFailed(message="The device ran out of memory."))
        app = open_compare(open_page, batch=comparison.id)
        assert "The device ran out of memory." in text_of(app)
        assert len(app.dataframe[0].value) == 6
        assert "Resume the rest" in labels(app)

    @pytest.mark.slow
    def test_marked_runs(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_compare(open_page, batch="marked")
        assert "No run is marked" in text_of(app)
        runs = [helpers.write_run(store, "finished", config=config(k_steps=k)) for k in (1, 3, 5)]
        for run in runs[:2]:
            run.save_labels(Labels(compare=True))
        app = open_compare(open_page)  # without a comparison they come first
        methods = ["Dense network", *(f"SNOWS, refined mask, K = {k}" for k in (1, 3))]
        assert sorted(app.dataframe[0].value["Method"]) == methods
        app.multiselect[0].set_value([run.id for run in runs]).run()
        assert len(app.dataframe[0].value) == 4
        assert app.query_params["runs"] in (",".join(r.id for r in runs), [",".join(r.id for r in runs)])

    @pytest.mark.slow
    def test_runs_of_two_networks_are_two_comparisons(self, open_page: OpenPage, store: RunStore) -> None:
        runs = [helpers.write_run(store, "finished", config=RunConfig(model=m)) for m in ("resnet20-fashion", "vit-fashion")]
        app = open_compare(open_page, runs=",".join(run.id for run in runs))
        assert len(app.dataframe[0].value) == 2
        network = next(s for s in app.selectbox if s.label == "Network")
        assert network.options == ["resnet20-fashion on fashion-mnist", "vit-fashion on fashion-mnist"]
        network.set_value(network.options[1]).run()
        assert len(app.dataframe[0].value) == 2

    @pytest.mark.parametrize("address", [{"batch": "nonsense"}, {"runs": "nonsense"}])
    def test_what_is_not_there_is_named(self, open_page: OpenPage, address: dict[str, str]) -> None:
        assert "'nonsense'" in text_of(open_compare(open_page, **address))

    def test_a_comparison_whose_runs_this_version_cannot_read(self, open_page: OpenPage, store: RunStore) -> None:
        comparison = six(store)
        for run in comparison.runs():
            (run.path / "config.json").write_text("{}}")
        assert "6 runs of another version" in text_of(open_compare(open_page))


@pytest.mark.slow
@pytest.mark.parametrize("view", ["answers", "depth", "attention", "speed"])
def test_closer_looks_over_the_real_engine(
    view: str, open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = ROOT / "assets/runs/recorded-1-vit-fashion"
    runs = [Run(Path(shutil.copytree(recorded, store.root / name))) for name in ("first", "second")]
    again = RunConfig.model_validate_json((recorded / "config.json").read_text())
    smaller = again.model_copy(update={"num_evaluation": 200})
    for run, seed in zip(runs, (0, 1), strict=True):
        seeded = smaller.model_copy(update={"prune": again.prune.model_copy(update={"seed": seed})})
        (run.path / "config.json").write_text(seeded.model_dump_json())
    app = open_compare(open_page, runs="first,second", view=view, show="0,1")
    text = text_of(app)
    match view:
        case "answers":
            assert "of the first 200 evaluation images" in text
            assert "Is SNOWS, refined mask, K = 3 · seed 0 really better?" in text
            counts, tests = app.dataframe[1].value, app.dataframe[2].value
            assert counts["changed"].nunique() == 1  # the same network twice
            assert tests[["best_only", "other_only", "chance"]].to_numpy().tolist() == [[0, 0, 1]]
        case "depth":
            assert "On 64 evaluation images" in text
        case "attention":
            assert "How much of where it looked each network kept" in text
        case "speed":
            assert "Why it is, or is not, smaller and faster here" in text
            assert "aster here**" in text or "Slower here**" in text
            assert app.dataframe[-1].value["eligible"].any()
