"""The Layers page: its data frames by hand, its figures, and the page in every state a run can be in."""

import base64
import io
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.charts import layers as layer_charts
from app.charts import palette
from app.tables import layers
from snows.config import InputError, RunConfig
from snows.events import Event, RunStarted, SiteFinished, SiteStarted
from snows.runs.store import Run, RunStore
from tests.app import helpers
from tests.app.conftest import OpenPage, figures
from tests.app.test_pages import text_of

ROOT = Path(__file__).parents[3]


def solved(index: int, site: str, mask_only: list[float], final: list[float], scale: list[float]) -> list[Event]:
    """A layer's beginning and end, nothing between."""
    by_k = {"mask_only": mask_only, "final": final}
    losses = {stage: sum(values) for stage, values in by_k.items()}
    operations = [f"{site.removesuffix('.weight')} (linear)", "act (activation)"][: len(scale)]
    return [
        SiteStarted(site=site, index=index, operations=operations, shape=[2, 2]),
        SiteFinished(
            site=site,
            index=index,
            losses=losses,
            by_k=by_k,
            scale=scale,
            density=0.5,
            status="CONVERGED",
            message="Converged.",
            seconds=1.0,
            num_products=3,
        ),
    ]


EVENTS = [
    *solved(1, "b.weight", [9.0], [9.0], [9.0]),  # interrupted, and solved again
    *solved(0, "a.weight", [1.0, 3.0], [0.5, 0.5], [2.0, 8.0]),
    *solved(1, "b.weight", [4.0], [1.0], [0.0]),
]


class TestFrames:
    def test_losses_are_in_network_order_and_of_the_last_solve(self) -> None:
        frame = layers.window_losses(EVENTS, relative=False)
        assert frame.to_numpy().tolist() == [
            [0, "a", "mask_only", 4.0],
            [0, "a", "final", 1.0],
            [1, "b", "mask_only", 4.0],
            [1, "b", "final", 1.0],
        ]

    def test_relative_losses_are_shares_of_the_whole_window_s_targets(self) -> None:
        loss = layers.window_losses(EVENTS, relative=True)["loss"].tolist()
        assert loss[:2] == [0.4, 0.1]
        assert np.isnan(loss[2:]).all()  # nothing to be relative to

    def test_errors_along_the_window(self) -> None:
        frame = layers.window_errors(EVENTS)
        a = frame[(frame["layer"] == "a") & (frame["stage"] == "mask_only")]
        assert a["operation"].tolist() == ["a (linear)", "act (activation)"]
        assert a[["k", "loss", "relative", "growth"]].to_numpy().tolist() == [[0, 1.0, 0.5, 1.0], [1, 3.0, 0.375, 0.75]]
        assert frame[frame["layer"] == "b"]["relative"].isna().all()

    def test_no_layer_yet(self) -> None:
        assert layers.window_losses([], relative=True).empty
        assert layers.window_errors([]).empty

    @pytest.mark.parametrize(
        ("name", "block"),
        [
            ("layer2.0.conv1", "layer2.0"),
            ("layer2.0.downsample.0", "layer2.0"),
            ("blocks.11.attn.qkv", "blocks.11"),
            ("layers.0.blocks.1.mlp.fc1", "layers.0.blocks.1"),
            ("blocks.1.0.se.conv_reduce", "blocks.1.0"),
            ("encoder.layers.encoder_layer_3.mlp.0", "encoder.layers.encoder_layer_3"),
            ("features.3.conv.0.0", "features.3"),
            ("features.denseblock1.denselayer2.conv1", "features.denseblock1.denselayer2"),
            ("patch_embed.proj", "patch_embed"),
            ("conv1", "conv1"),
            ("fc", "fc"),
        ],
    )
    def test_block_of_a_layer(self, name: str, block: str) -> None:
        assert layers.block(name) == block

    def test_histogram_counts_every_weight_once_in_its_bin(self) -> None:
        before = np.array([[-1.0, 0.0], [0.1, 1.0]], np.float32)
        after = np.array([[-3.0, 0.0], [0.0, 1.0]], np.float32)
        mask = np.array([[True, False], [False, True]])
        frame = layers.weight_histogram(before, after, mask)
        counts = frame.groupby("stage", sort=False)["count"].sum()
        assert counts.to_dict() == {"dense": 4, "mask_only": 2, "final": 2}
        width = 4 / 80
        final = frame[(frame["stage"] == "final") & (frame["count"] > 0)]["value"].tolist()
        assert final == pytest.approx([-3 + width / 2, 1 - width / 2])

    def test_mask_of_a_convolution_by_kernel_position(self) -> None:
        mask = np.random.default_rng(0).random((4, 3, 2, 3)) < 0.5
        panels, names = layers.mask_panels(mask)
        assert [len(row) for row in panels] == [3, 3]
        assert (panels[1][2] == mask[:, :, 1, 2]).all()
        assert names[1][2] == ", kernel row 1, column 2"

    @pytest.mark.parametrize(("shape", "columns"), [((4, 6), 6), ((4, 6, 1, 1), 6), ((4, 3, 16, 16), 768)])
    def test_one_picture_where_there_are_no_positions_or_too_many(self, shape: tuple[int, ...], columns: int) -> None:
        panels, _ = layers.mask_panels(np.ones(shape, bool))
        assert (len(panels), len(panels[0]), panels[0][0].shape) == (1, 1, (4, columns))


def held_back(event: Event, losses: dict[str, list[float]], scale: list[float]) -> Event:
    return replace(event, held_back=losses, held_back_scale=scale)  # type: ignore[call-arg]


SEEN_AND_UNSEEN = [
    EVENTS[2],
    held_back(EVENTS[3], {"mask_only": [2.0, 4.0], "final": [1.0, 2.0]}, [4.0, 6.0]),
    *solved(1, "b.weight", [4.0], [1.0], [2.0]),
]


class TestHeldBack:
    def test_losses_and_gaps(self) -> None:
        absolute = layers.window_losses(SEEN_AND_UNSEEN, relative=False, held_back=True)
        assert absolute.to_numpy().tolist() == [[0, "a", "mask_only", 6.0], [0, "a", "final", 3.0]]
        relative = layers.window_losses(SEEN_AND_UNSEEN, relative=True, held_back=True)
        assert relative["loss"].tolist() == pytest.approx([0.6, 0.3])
        along = layers.window_errors(SEEN_AND_UNSEEN, held_back=True)
        assert along[along["stage"] == "final"]["relative"].tolist() == pytest.approx([0.25, 1 / 3])
        first, second = layers.carried_over(SEEN_AND_UNSEEN, relative=True).to_dict("records")
        # On calibration images 1 of 10, on the others 3 of 10.
        assert (first["final"], first["held_back"], first["gap"]) == (0.1, pytest.approx(0.3), pytest.approx(3))
        assert (second["layer"], second["final"]) == ("b", 0.5)
        assert np.isnan([second["held_back"], second["gap"]]).all()

    def test_what_a_gap_means_is_said(self) -> None:
        said = layers.carries_over(layers.carried_over(SEEN_AND_UNSEEN, relative=False))
        assert "3 times that on the calibration images in the middle layer, and 3 times in `a`" in said
        assert "more calibration images or a larger ridge" in said
        assert layers.carries_over(layers.carried_over(EVENTS, relative=False)) == ""

    def test_a_tick_a_loss_within_the_axis(self) -> None:
        frames = (layers.window_losses(SEEN_AND_UNSEEN, relative=True, held_back=unseen) for unseen in (False, True))
        seen, unseen = frames
        figure = layer_charts.loss_chart(seen, ["a", "b"], "snows", held_back=unseen)
        ticks = {trace.name: trace for trace in figure.data if trace.marker.symbol == "line-ns"}
        assert (ticks["SNOWS, held back"].x, ticks["SNOWS, held back"].y) == (pytest.approx((0.3,)), (0,))
        assert ticks["SNOWS, held back"].marker.line.color == palette.COLORS["snows"]
        assert [t.name for t in figure.data if t.showlegend is not False][-1] == "on images held back"
        high = 10 ** figure.layout.xaxis.range[1]
        assert high > 0.6
        assert "on images held back" not in [t.name for t in layer_charts.loss_chart(seen, ["a", "b"], "snows").data]


class TestFigures:
    def test_window_chart_has_a_cell_a_layer_and_operation(self) -> None:
        figure = layer_charts.window_chart(
            layers.window_errors(EVENTS), ["a", "b"], "final", "snows", blocks=["a", "b"], chosen=0
        )
        (cells,) = figure.data
        z = np.asarray(cells.z, float)
        assert 10 ** z[0] == pytest.approx([0.25, 0.0625])
        assert np.isnan(z[1]).all()
        assert "act (activation)" in cells.text[0][1]
        assert "0.25 times the layer's own" in cells.text[0][1]
        assert figure.layout.yaxis.ticktext[0] == "<b>a</b>"

    def test_window_chart_has_one_scale_for_all_stages(self) -> None:
        errors = layers.window_errors(EVENTS)
        first, last = (
            layer_charts.window_chart(errors, ["a", "b"], stage, "snows").data[0] for stage in ("mask_only", "final")
        )
        assert (first.zmin, first.zmax) == (last.zmin, last.zmax)
        assert first.zmin < np.log10(0.0625)
        assert first.zmax > np.log10(0.5)

    def test_rows_of_the_two_figures_are_side_by_side(self) -> None:
        losses, errors = layers.window_losses(EVENTS, relative=True), layers.window_errors(EVENTS)
        left, right = (
            layer_charts.loss_chart(losses, ["a", "b"], "snows"),
            layer_charts.window_chart(errors, ["a", "b"], "final", "snows"),
        )
        assert left.layout.height == right.layout.height
        assert left.layout.margin == right.layout.margin
        assert left.layout.yaxis == right.layout.yaxis

    def test_blocks_are_banded_and_the_chosen_row_marked(self) -> None:
        names = ["a.0.x", "a.0.y", "a.1.x", "a.1.y", "a.2.x"]
        figure = layer_charts.loss_chart(
            layers.window_losses([], relative=True), names, "snows", blocks=[layers.block(n) for n in names], chosen=4
        )
        assert [(band.y0, band.y1) for band in figure.layout.shapes] == [(1.5, 3.5), (3.5, 4.5)]

    def test_figures_of_no_layer_yet(self) -> None:
        figure = layer_charts.window_chart(layers.window_errors([]), ["a"], "final", "snows")
        assert np.isnan(np.asarray(figure.data[0].z, float)).all()

    def test_mask_picture_is_the_mask(self) -> None:
        mask = np.random.default_rng(0).random((5, 7, 2, 2)) < 0.4
        figure = layer_charts.mask_picture(*layers.mask_panels(mask))
        for picture, (row, column) in zip(figure.data, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
            content = base64.b64decode(picture.source.removeprefix("data:image/png;base64,"))
            opacity = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[:, :, 3]
            assert (opacity == np.where(mask[:, :, row, column], 255, 46)).all()
        assert figure.layout.xaxis4.matches == "x"
        assert figure.layout.yaxis4.matches == "y"

    def test_weights_and_channels_bear_their_methods_colors(self) -> None:
        values = np.arange(8.0).reshape(2, 4)
        histogram = layers.weight_histogram(values, values, values > 3)
        figure = layer_charts.weights_chart(histogram, "sparsegpt")
        assert [t.line.color for t in figure.data] == [palette.COLORS[m] for m in ("dense", "none", "sparsegpt")]


@pytest.mark.slow
class TestPage:
    @pytest.fixture(autouse=True)
    def _no_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(run: Run) -> None:
            raise InputError("The checkpoint is gone. Put it back.")

        monkeypatch.setattr("app.state.inspection", refuse)

    def test_finished_run_shows_its_first_layer(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished")
        app = open_page("layers", run=run.id)
        text = text_of(app)
        assert "What each layer lost, and got back" in text
        assert "Error at the end: 0.250 % (from 2.00 % with the mask only)" in text
        assert "No further decrease." in text
        assert "`conv1`: its 1 input channel cannot be divided into groups of 4" in text
        assert app.selectbox[1].value == "layer1.0.conv1"
        assert app.selectbox[1].options == [*(s.removesuffix(".weight") for s in helpers.PRUNED), "conv1"]
        assert "The checkpoint is gone. Put it back." in text  # the part that needs the network; the rest stands

    def test_losses_on_images_held_back_stand_beside_the_others(
        self, open_page: OpenPage, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = helpers.site_events

        def with_held_back(index: int, finish: bool = True) -> list[Event]:
            *before, last = plain(index, finish)
            if not isinstance(last, SiteFinished):
                return [*before, last]
            losses = {stage: [2 * value] for stage, (value,) in last.by_k.items()}
            return [*before, replace(last, held_back=losses, held_back_scale=[1.0])]

        monkeypatch.setattr(helpers, "site_events", with_held_back)
        app = open_page("layers", run=helpers.write_run(store, "finished").id)
        text = text_of(app)
        assert "2 times that on the calibration images in the middle layer" in text
        assert "On images held back: 0.500 % (2 times that on the calibration images)" in text
        assert app.dataframe[0].value["gap"].tolist() == pytest.approx([2.0] * len(helpers.PRUNED))
        drawn = figures(app)["Error of each layer's window, by stage"]
        assert "SNOWS, held back" in [trace.get("name") for trace in drawn["data"]]

    @pytest.mark.parametrize("name", ["running", "failed", "cancelled", "interrupted"])
    def test_unfinished_runs(self, name: str, open_page: OpenPage, store: RunStore, hold: ExitStack) -> None:
        run = helpers.write_run(store, name, hold)
        app = open_page("layers", run=run.id)
        text = text_of(app)
        assert name in text
        assert "7 of 21 layers finished" in text
        assert "Error at the end" in text
        app.selectbox[1].set_value("layer3.2.conv2").run()
        assert ("has not come to" if name == "running" else "ended before it came to") in text_of(app)
        assert app.query_params["layer"] == "layer3.2.conv2"

    def test_layer_in_work_names_its_operations(self, open_page: OpenPage, store: RunStore, hold: ExitStack) -> None:
        run = helpers.write_run(store, "running", hold)
        app = open_page("layers", run=run.id)
        app.selectbox[1].set_value("layer2.0.conv2").run()
        text = text_of(app)
        assert "`layer2.0.conv2` is in work" in text
        assert "1. `act1` activation" in text

    @pytest.mark.parametrize(("name", "words"), [("queued", "has not begun to prune"), ("failed", "before it began to prune")])
    def test_run_without_layers(
        self, name: str, words: str, open_page: OpenPage, store: RunStore, hold: ExitStack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(helpers, "opening", lambda resumed=0: [])
        monkeypatch.setattr(helpers, "site_events", lambda index, finish=True: [])
        run = helpers.write_run(store, name, hold)
        assert words in text_of(open_page("layers", run=run.id))

    def test_layer_left_dense_says_why(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished")
        app = open_page("layers", run=run.id)
        app.selectbox[1].set_value("conv1").run()
        assert "`conv1` was left dense: its 1 input channel cannot be divided into groups of 4." in text_of(app)

    def test_choices_are_in_the_address(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished")
        app = open_page("layers", run=run.id)
        assert set(app.query_params) == {"run"}
        app.segmented_control[0].set_value("Absolute").run()
        app.segmented_control[1].set_value("Mask only").run()
        app.selectbox[1].set_value("layer1.0.conv2").run()
        assert dict(app.query_params) == {"run": run.id, "error": "Absolute", "stage": "Mask only", "layer": "layer1.0.conv2"}

        app.query_params["layer"] = "layer1.1.conv1"
        app.query_params["stage"] = "Least squares"
        app.run()
        assert app.selectbox[1].value == "layer1.1.conv1"
        assert app.segmented_control[1].value == "Least squares"
        assert app.segmented_control[0].value == "Absolute"

    def test_unknown_layer_is_said(self, open_page: OpenPage, store: RunStore) -> None:
        app = open_page("layers", run=helpers.write_run(store, "finished").id)
        app.query_params["layer"] = "nonsense"
        app.run()
        assert "This run has no layer 'nonsense'" in text_of(app)
        assert app.selectbox[1].value == "layer1.0.conv1"

    def test_only_stages_that_the_run_has_are_offered(self, open_page: OpenPage, store: RunStore) -> None:
        config = RunConfig.model_validate({"prune": {"update": "none"}})
        run = store.create(config)
        run.append(
            RunStarted(device="cpu", sites=["a.weight"], skipped={}), *solved(0, "a.weight", [1.0, 3.0], [1.0, 3.0], [2.0, 8.0])
        )
        app = open_page("layers", run=run.id)
        assert app.segmented_control[1].options == ["Mask only"]
        assert "Left dense" not in text_of(app)

    def test_the_view_of_a_run_leads_here(self, open_page: OpenPage, store: RunStore) -> None:
        run = helpers.write_run(store, "finished")
        links = {link.proto.label: link.proto.query_string for link in open_page("prune", run=run.id).get("page_link")}
        assert {name: links[name] for name in ("Layers", "Convergence", "Attention")} == dict.fromkeys(
            ("Layers", "Convergence", "Attention"), f"run={run.id}"
        )


@pytest.mark.slow
class TestRecordedRun:
    """Over the bundled networks themselves."""

    @pytest.fixture
    def recorded(self, open_page: OpenPage, tmp_path: Path) -> str:
        name = "recorded-2-resnet20-fashion"
        shutil.copytree(ROOT / "assets/runs" / name, tmp_path / "recorded" / name)
        return name

    def test_page_and_frames(self, recorded: str, open_page: OpenPage, tmp_path: Path) -> None:
        app = open_page("layers")
        assert app.query_params["run"] == recorded
        text = text_of(app)
        assert "A recorded run" in text
        assert "It obeys its pattern. Every group of 4 keeps at most 1." in text
        assert "measured just now on 64 of the calibration images" in text
        assert list(figures(app)) == [
            "Error of each layer's window, by stage",
            "Relative error at each operation of each layer's window",
            "Error at each operation of the layer's window",
            "Relative error of each output channel of the layer",
            "Which weights are kept",
            "Histograms of the layer's weights",
        ]
        assert "times that on the calibration images)" in text
        assert app.dataframe[0].value.columns.tolist() == ["layer", "mask_only", "least_squares", "final", "held_back", "gap"]
        moved = app.dataframe[1].value
        assert moved["change"].abs().is_monotonic_decreasing
        assert (moved["after"] != 0).all()

        from app import state

        run = Run(tmp_path / "recorded" / recorded)
        inspection = state.inspection(run)
        site = "layer3.2.conv2.weight"
        errors = layers.channel_errors(inspection, site)
        assert errors.groupby("stage")["channel"].nunique().to_dict() == {"mask_only": 64, "final": 64}
        middle = errors.groupby("stage")["relative"].median()
        assert middle["final"] < middle["mask_only"] / 2
        detail = layers.site_detail(inspection, site)
        assert (detail.obeys, detail.mask.shape, detail.pattern) == (True, (64, 64, 3, 3), "Keep 1 of 4 weights (1:4)")
        assert detail.mask.mean() == 0.25

    def test_a_weight_off_its_mask_is_found(self, recorded: str, tmp_path: Path) -> None:
        from snows.runs.inspection import Inspection, InspectionError

        inspection = Inspection.open(Run(tmp_path / "recorded" / recorded))
        site = "layer1.0.conv1.weight"
        weight, mask = inspection.weights[site].clone(), inspection.masks[site]
        place = tuple(torch.nonzero(~mask)[0])
        weight[place] = 1.0
        inspection.weights[site] = weight
        detail = layers.site_detail(inspection, site)
        assert (detail.obeys, detail.compliance) == (False, "Not zero although pruned: 1 weight.")
        with pytest.raises(InspectionError, match="is not a finished layer"):
            layers.site_detail(inspection, "fc.weight")
        inspection.weights[site] = weight[:2]
        with pytest.raises(InspectionError, match=r"shape \(2, 16, 3, 3\) .* and \(16, 16, 3, 3\)"):
            layers.site_detail(inspection, site)
