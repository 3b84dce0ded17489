"""The K study: its frames by hand, its figures, and the page in every state."""

import itertools
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Selectbox

from app import state
from app.charts import compare as compare_charts
from app.charts import palette
from app.tables import study
from snows.config import RunConfig
from snows.events import RunFinished, RunStarted, SiteFinished
from snows.plans.study import Outcome, expand
from snows.runs.store import Comparison, Run, RunStore
from tests.app import helpers
from tests.app.conftest import OpenPage, figures
from tests.app.test_pages import button, labels, text_of, until_ended

IMAGES = 1000
# Network and K to the images it gets right, each among those that the next larger K does.
RIGHT = {("resnet20-fashion", 0): 800, ("resnet20-fashion", 3): 947, ("resnet20-fashion", 10): 950} | {
    ("vit-fashion", 0): 700,
    ("vit-fashion", 3): 800,
    ("vit-fashion", 10): 900,
}
OPERATIONS = {"resnet20-fashion": 40, "vit-fashion": 50}
DENSE = {"resnet20-fashion": 0.96, "vit-fashion": 0.92}


def found_out(run: Run) -> RunFinished:
    """What a run of `RIGHT` would have come to."""
    config = run.config()
    model, k = config.model, config.prune.k_steps
    right = RIGHT[model, k]
    metrics = {
        "accuracy": right / IMAGES,
        "accuracy_dense": DENSE[model],
        "agreement": right / IMAGES,
        "divergence": 0.5 / (k + 1),
        "seconds": 10.0 * (k + 1),
        "num_products": 4 * (k + 1),
        "num_evaluation": IMAGES,
    }
    run.append(RunStarted(device="cpu", sites=["fc.weight"], skipped={}, operations=OPERATIONS[model]))
    errors = [0.01 * (k + 1), *[0.04] * k]
    run.append(
        SiteFinished(
            site="fc.weight",
            index=0,
            losses={"final": sum(errors)},
            by_k={"final": errors},
            scale=[1.0] * (k + 1),
            density=0.125,
            status="",
            message="",
            seconds=10.0 * (k + 1),
            num_products=k,
            held_memory=1_000_000 * (k + 2),
        )
    )
    run.save_metrics(metrics)
    bits = int("1" * right + "0" * (IMAGES - right), 2)
    return RunFinished(metrics=metrics, right=bits.to_bytes(IMAGES // 8, "big").hex())


def comparison_of(store: RunStore, models: list[str] | None = None) -> Comparison:
    """A study that is queued nowhere."""
    bases = [RunConfig.model_validate({"model": m, "prune": {"device": "cpu"}}) for m in models or ["resnet20-fashion"]]
    return store.create_comparison(expand(bases, [0, 3, 10]))


def finished_comparison(store: RunStore, models: list[str] | None = None) -> Comparison:
    comparison = comparison_of(store, models)
    for run in comparison.runs():
        helpers.finish(run, found_out)
    return comparison


@pytest.fixture
def found(store: RunStore) -> study.Study:
    """A finished study of two networks."""
    return study.read(finished_comparison(store, ["resnet20-fashion", "vit-fashion"]).runs())


class TestFrames:
    def test_points(self, found: study.Study) -> None:
        points = study.points(found)
        assert points["curve"].tolist() == ["resnet20-fashion"] * 3 + ["vit-fashion"] * 3
        assert points["k"].tolist() == [0, 3, 10] * 2
        assert points["share"].tolist() == [0, 7.5, 25, 0, 6, 20]
        assert points["accuracy"].tolist() == pytest.approx([80, 94.7, 95, 70, 80, 90])
        assert points["divergence"].tolist() == pytest.approx([0.5, 0.125, 0.5 / 11] * 2)
        assert points["own_error"].tolist() == pytest.approx([0.01, 0.04, 0.11] * 2)
        assert points["window_error"].tolist() == pytest.approx([0.01, 0.16 / 4, 0.51 / 11] * 2)
        assert points["memory"].tolist() == pytest.approx([2, 5, 12] * 2)
        assert points["seconds"].tolist() == pytest.approx([10, 40, 110] * 2)
        # 3 images of 1,000 are within the noise, 100 are not.
        assert points["level"].tolist() == [False, True, True, False, False, True]
        assert points["recommended"].tolist() == [False, True, False, False, False, True]

    def test_table(self, found: study.Study) -> None:
        first, second = study.table(found).to_dict("records")
        assert first == {
            "network": "resnet20-fashion",
            "operations": 40,
            "k": 3,
            "share": 7.5,
            "accuracy": pytest.approx(0.947),
            "num_products": 16.0,
            "best_k": 10,
        }
        assert (second["k"], second["share"], second["best_k"]) == (10, 20.0, 10)

    def test_dense_networks(self, found: study.Study, store: RunStore) -> None:
        assert study.dense(found) == {"resnet20-fashion, dense": pytest.approx(96), "vit-fashion, dense": pytest.approx(92)}
        alone = study.read(finished_comparison(store).runs())
        assert study.dense(alone) == {"dense": pytest.approx(96)}

    def test_a_symbol_a_network_and_a_dash_a_curve_in_the_color_of_the_method(self) -> None:
        outcomes = [
            Outcome(
                RunConfig.model_validate({"model": model, "num_calibration": n, "prune": {"k_steps": k}}), {"agreement": 0.5}
            )
            for model in ("a", "b")
            for n in (64, 128)
            for k in (0, 1)
        ]
        lines = list(study.marks(study.of(outcomes)).values())
        assert {line.color for line in lines} == {palette.COLORS["snows"]}
        assert [line.symbol for line in lines] == ["circle", "circle", "diamond", "diamond"]
        assert lines[0].dash != lines[1].dash
        assert lines[0].dash != lines[2].dash

    def test_of_runs_that_say_little(self) -> None:
        """As an older version wrote them, without labels."""
        outcomes = [Outcome(RunConfig.model_validate({"prune": {"k_steps": k}}), {"agreement": 0.5 + 0.1 * k}) for k in (0, 1)]
        bare = study.of(outcomes)
        points = study.points(bare)
        assert bare.measure == "agreement"
        assert points[["share", "memory", "seconds", "own_error"]].isna().to_numpy().all()
        assert study.dense(bare) == {"the dense network": 100.0}
        assert math.isnan(study.table(bare)["share"].astype(float)[0])

    def test_which_comparisons_are_studies(self, store: RunStore) -> None:
        assert study.is_study(comparison_of(store))
        fitted = [RunConfig.model_validate({"num_calibration": n, "prune": {"update": "sparsegpt"}}) for n in (32, 64)]
        assert study.is_study(store.create_comparison(fitted))
        assert not study.is_study(store.create_comparison([RunConfig(), RunConfig(num_evaluation=64)]))
        plain = [RunConfig.model_validate({"num_calibration": k, "prune": {"update": "none", "k_steps": k}}) for k in (1, 2)]
        assert not study.is_study(store.create_comparison(plain))

    def test_a_run_of_another_version_is_left_out(self, store: RunStore) -> None:
        comparison = finished_comparison(store)
        (comparison.runs()[0].path / "config.json").write_text('{"unheard_of": 1}')
        assert study.is_study(comparison)
        assert study.points(study.read(comparison.runs()))["k"].tolist() == [3, 10]


def test_the_study_that_comes_with_the_app() -> None:
    bundled = study.read(RunStore(Path(__file__).parents[3] / "assets" / "study").list()[::-1])
    assert bundled.names == ["resnet20-fashion", "vit-fashion"]
    points = study.points(bundled)
    assert points["k"].tolist() == [0, 1, 3, 5, 10] * 2
    assert points["held_back_error"].isna().all()  # recorded before images were held back
    assert points.drop(columns=["held_back_error", "held_back_error_deviation"]).notna().to_numpy().all()
    assert points["recommended"].sum() == 2


def of_images(store: RunStore, images: tuple[int, ...] = (64, 256, 512)) -> Comparison:
    """A finished study of one K on several numbers of images, of which 256 are right on almost as many as 512."""
    comparison = store.create_comparison(expand([RunConfig.model_validate({"prune": {"device": "cpu"}})], [3], images))
    for run in comparison.runs():
        right = {64: 800, 256: 947, 512: 950}[run.config().num_calibration]

        def execute(run: Run, right: int = right) -> RunFinished:
            metrics = {"accuracy": right / IMAGES, "accuracy_dense": 0.96, "num_products": 9, "num_evaluation": IMAGES}
            (*_, solved) = helpers.site_events(0)
            run.append(
                RunStarted(device="cpu", sites=helpers.PRUNED[:1], skipped={}, operations=40),
                replace(solved, held_back={"final": [10 / right]}, held_back_scale=[2.0]),
            )
            run.save_metrics(metrics)
            bits = int("1" * right + "0" * (IMAGES - right), 2)
            return RunFinished(metrics=metrics, right=bits.to_bytes(IMAGES // 8, "big").hex())

        helpers.finish(run, execute)
    return comparison


def test_a_study_of_the_number_of_images(store: RunStore) -> None:
    found = study.read(of_images(store).runs())
    points = study.points(found)
    assert points["images"].tolist() == [64, 256, 512]
    assert points["held_back_error"].tolist() == pytest.approx([5 / 800, 5 / 947, 5 / 950])
    assert points["recommended"].tolist() == [False, True, False]
    (row,) = study.table(found).to_dict("records")
    assert row == {
        "network": "SNOWS, refined mask, K = 3",
        "images": 256,
        "accuracy": pytest.approx(0.947),
        "num_products": 9.0,
        "best_images": 512,
    }
    figure = compare_charts.study_chart(points, study.marks(found), "accuracy", against="images", title="Calibration images")
    assert figure.data[1].x == pytest.approx((8, 16, 512**0.5))
    assert [words for (words,) in figure.data[1].customdata] == ["64 images", "256 images", "512 images"]
    assert figure.layout.xaxis.title.text == "Calibration images"


class TestFigure:
    def drawn(self, found: study.Study, **more: object) -> dict:
        figure = compare_charts.study_chart(study.points(found), study.marks(found), "accuracy", **more)
        return json.loads(figure.to_json())

    def test_filled_within_the_noise_and_a_ring_around_the_choice(self, found: study.Study) -> None:
        ring, line, *_ = self.drawn(found)["data"]
        assert (ring["x"], ring["y"]) == ([pytest.approx(3**0.5)], [pytest.approx(94.7)])
        assert line["x"] == pytest.approx([0, 3**0.5, 10**0.5])
        assert line["marker"]["symbol"] == ["circle-open", "circle", "circle"]
        assert line["name"] == "resnet20-fashion"

    def test_ticks_stand_where_k_is(self, found: study.Study) -> None:
        axis = self.drawn(found)["layout"]["xaxis"]
        assert axis["ticktext"] == ["0", "3", "10"]
        assert axis["tickvals"] == pytest.approx([0, 3**0.5, 10**0.5])

    def test_as_a_share_of_the_network(self, found: study.Study) -> None:
        figure = self.drawn(found, against="share")
        assert figure["data"][1]["x"] == pytest.approx([0, 7.5**0.5, 5])
        assert figure["layout"]["xaxis"]["ticktext"] == ["0", "1", "2", "5", "10", "20"]

    def test_ticks_leave_each_other_room(self) -> None:
        kept = compare_charts._root_ticks(list(range(101)), list(range(101)))
        gaps = [b**0.5 - a**0.5 for a, b in itertools.pairwise(kept)]
        assert min(gaps) >= 0.05 * 10
        assert kept[:3] == [0, 1, 3]

    def test_without_a_point(self, found: study.Study) -> None:
        figure = compare_charts.study_chart(study.points(found).head(0), {}, "accuracy")
        assert not figure.data


# --- the page ---


@pytest.fixture(autouse=True)
def no_recorded_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr("app.tables.study.RECORDED", RunStore(tmp_path / "recorded-study"))
    return


def open_study(open_page: OpenPage, **address: str) -> AppTest:
    app = open_page("overview")
    for name, value in address.items():
        app.query_params[name] = value
    return app.switch_page("../pages/study.py").run()


def picker(app: AppTest) -> Selectbox:
    return next(box for box in app.selectbox if box.label == "Study")


@pytest.mark.slow
class TestPage:
    def test_before_anything_was_run_it_is_the_form_and_a_recorded_study(self, open_page: OpenPage) -> None:
        finished_comparison(study.RECORDED)
        app = open_study(open_page)
        assert "Start 5 runs" in labels(app)
        assert "A recorded study" in text_of(app)
        assert "K = 3 is the smallest whose accuracy, 94.70 % (95 % interval" in text_of(app)
        picker(app).set_value("recorded").run()
        assert "A recorded study that came with the app" in text_of(app)
        assert not any(label.startswith("Start") for label in labels(app))

    def test_start_makes_a_comparison_of_what_was_chosen_and_goes_there(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_study(open_page)
        app.multiselect("study.models").set_value(["resnet20-fashion", "vit-fashion"])
        app.multiselect("study.k").set_value(["10", "0"])
        app.multiselect("study.images").set_value(["64", "128"])
        app.selectbox("form.prune.pattern").set_value("1:8")
        app.number_input("form.num_evaluation").set_value(2000).run()
        assert "Time, at most about: 3 min 44 s" in text_of(app)  # eight times 28 s
        button(app, "Start 8 runs").click().run()
        (comparison,) = store.comparisons()
        base = RunConfig.model_validate({"num_evaluation": 2000, "prune": {"pattern": "1:8"}})
        models = [base.model_copy(update={"model": m}) for m in ("resnet20-fashion", "vit-fashion")]
        assert [run.config() for run in comparison.runs()] == expand(models, [0, 10], [64, 128])
        assert app.query_params["batch"] in (comparison.id, [comparison.id])
        assert [until_ended(run) for run in comparison.runs()] == ["finished"] * 8

    def test_settings_of_the_prune_page_hold_and_a_checkpoint_stays_with_its_network(
        self, open_page: OpenPage, store: RunStore
    ) -> None:
        app = open_page("overview")
        app.session_state["form.checkpoint"] = "mine.safetensors"
        app.session_state["form.prune.seed"] = 7
        app.switch_page("../pages/study.py").run()
        app.multiselect("study.models").set_value(["resnet20-fashion", "vit-fashion"])
        app.multiselect("study.k").set_value(["1", "2"]).run()
        button(app, "Start 4 runs").click().run()
        configs = [run.config() for run in store.comparisons()[0].runs()]
        assert {(c.model, c.checkpoint) for c in configs} == {("resnet20-fashion", "mine.safetensors"), ("vit-fashion", None)}
        assert {c.prune.seed for c in configs} == {7}
        assert [until_ended(run) for run in store.comparisons()[0].runs()] == ["finished"] * 4

    @pytest.mark.parametrize(
        ("key", "values", "sentence"),
        [
            ("study.k", ["3"], "A study compares several K"),
            ("study.k", ["3", "-1"], "K must be at least 0"),
            ("study.models", [], "There is no network to study"),
            ("study.images", ["0"], "Calibration images must be at least 1"),
        ],
    )
    def test_what_cannot_be_is_said_beside_the_form(
        self, key: str, values: list[str], sentence: str, open_page: OpenPage
    ) -> None:
        app = open_study(open_page)
        app.session_state[key] = values  # AppTest cannot type an option that is not there
        app.run()
        assert sentence in text_of(app)
        assert not any(label.startswith("Start") for label in labels(app))

    def test_a_study_at_work(self, open_page: OpenPage, store: RunStore, engine: ModuleType) -> None:
        release = threading.Event()
        engine.execute = lambda run, device: (release.wait(60), found_out(run))[1]
        open_page("overview")
        base = RunConfig.model_validate({"prune": {"device": "cpu"}})
        comparison = store.comparison(state.jobs().submit_comparison(expand([base], [0, 3, 10])))
        runs = comparison.runs()
        try:
            app = open_study(open_page)
            assert "The figures begin when a first run has finished" in text_of(app)
            app.button(f"cancel-{runs[2].id}").click().run()
            assert runs[2].state() == "cancelled"
        finally:
            release.set()
        assert [until_ended(run) for run in runs] == ["finished", "finished", "cancelled"]
        app.run()
        text = text_of(app)
        assert "K = 3 has the best accuracy, 94.70 % (95 % interval 93.1 to 95.9 %), and no smaller K" in text
        assert "So far" not in text
        assert "All of one seed" in text
        assert "check_circle" not in text  # nothing is settled by one
        assert "Time is not compared" in text
        button(app, "Resume the rest").click().run()
        assert until_ended(runs[2]) == "finished"
        assert "at K = 10" in text_of(app.run())

    def test_while_one_is_at_work_the_verdict_is_so_far(self, open_page: OpenPage, store: RunStore, hold) -> None:  # type: ignore[no-untyped-def]
        comparison = finished_comparison(store)
        waiting = comparison.runs()[2]
        (waiting.path / "metrics.json").unlink()
        (waiting.path / "events.jsonl").unlink()
        hold.enter_context(waiting.queue())
        text = text_of(open_study(open_page))
        assert "So far: K = 3 has the best accuracy" in text

    def test_a_finished_study(self, open_page: OpenPage, store: RunStore) -> None:
        finished_comparison(store, ["resnet20-fashion", "vit-fashion"])
        app = open_study(open_page)
        text = text_of(app)
        assert "**resnet20-fashion.** K = 3 is the smallest whose accuracy, 94.70 % (95 % interval" in text
        assert "**vit-fashion.** K = 10 has the best accuracy, 90.00 % (95" in text
        assert len(figures(app)) == 4
        # The conditions stand in the title, and no figure compares times.
        assert "**Accuracy against K** · keep 2 of 4 weights (2:4) · 512 calibration images · one seed" in text
        assert not any("Time" in json.dumps(figure) for figure in figures(app).values())
        assert app.dataframe[0].value["k"].tolist() == [3, 10]
        assert len(app.dataframe[1].value) == 6
        assert not {"Cancel all", "Resume the rest"} & set(labels(app))
        assert picker(app).options[1].startswith("6 runs · resnet20-fashion and 1 more")

    def test_the_address_says_what_is_drawn(self, open_page: OpenPage, store: RunStore) -> None:
        finished_comparison(store)
        app = open_study(open_page, axis="share", loss="own_error")
        titles = [figure["layout"] for figure in figures(app).values()]
        assert {layout["xaxis"]["title"]["text"] for layout in titles} == {"K ÷ operations of the network (%)"}
        assert titles[1]["yaxis"]["title"]["text"] == "Error ÷ target, layer"

    def test_the_number_of_images_is_swept(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_study(open_page)
        app.segmented_control("study.swept").set_value("images").run()
        assert app.multiselect("study.k").value == ["3"]
        assert "Start 5 runs" in labels(app)
        app.multiselect("study.images").set_value(["64", "256"]).run()
        button(app, "Start 2 runs").click().run()
        (comparison,) = store.comparisons()
        assert [run.config() for run in comparison.runs()] == expand([RunConfig()], [3], [64, 256])
        assert [until_ended(run) for run in comparison.runs()] == ["finished"] * 2

    def test_a_finished_study_of_images(self, open_page: OpenPage, store: RunStore) -> None:
        of_images(store)
        app = open_study(open_page, loss="held_back_error")
        text = text_of(app)
        assert (
            "256 images are the fewest whose accuracy, 94.70 % (95 % interval 93.1 to 95.9 %), is within the noise of the "
            "best, 95.00 % (93.5 to 96.2 %) at 512 images" in text
        )
        assert "The fewest images within the noise of the best" in text
        layouts = [figure["layout"] for figure in figures(app).values()]
        assert {layout["xaxis"]["title"]["text"] for layout in layouts} == {"Calibration images"}
        assert layouts[1]["yaxis"]["title"]["text"] == "Error ÷ target, held back"

    def test_runs_of_an_older_version(self, open_page: OpenPage, store: RunStore) -> None:
        comparison = comparison_of(store)
        for run in comparison.runs():
            old = {"accuracy": 0.9, "accuracy_dense": 0.95, "agreement": 0.9, "divergence": 0.1, "seconds": 3.0}
            run.save_metrics(old)
            run.append(RunFinished(metrics=old))
        text = text_of(open_study(open_page))
        assert "No K that was tried can be told from another" in text
        assert "check_circle" not in text
        assert "no memory on record" in text

    def test_a_study_that_is_not_there(self, open_page: OpenPage) -> None:
        app = open_study(open_page, batch="nonsense")
        assert "There is no study 'nonsense'" in text_of(app)
        assert "Start 5 runs" in labels(app)

    def test_other_comparisons_are_no_studies(self, open_page: OpenPage, store: RunStore) -> None:
        helpers.write_run(store, "finished")
        other = store.create_comparison([RunConfig(), RunConfig(num_evaluation=64)])
        assert "There is no study" in text_of(open_study(open_page, batch=other.id))
