"""Where networks look: the arrays and frames by hand, and the page in every state, over recorded runs of the real engine."""

import io
import json
import math
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from streamlit.testing.v1 import AppTest
from torch import Tensor, nn

from app.charts import attention as attention_charts
from app.charts import palette
from app.tables import attention as attention_tables
from app.tables.attention import ALL_PATCHES, ONE_PATCH, ROLLOUT, Look, Questions
from snows.events import Phase, RunStarted, SiteFinished
from snows.measures.attention import MapTokens, Similarity, TokenGrid, rollout
from snows.method.graph import NetworkGraph
from snows.runs.inspection import Inspection
from snows.runs.store import Labels, Run, RunStore
from snows.sources import models
from snows.sources.data import as_pixels
from tests.app.conftest import OpenPage, figures
from tests.app.test_pages import labelled, text_of

ROOT = Path(__file__).parent.parent.parent
RECORDED = {"vit": "recorded-1-vit-fashion", "resnet": "recorded-2-resnet20-fashion"}


def recorded(name: str) -> Run:
    return Run(ROOT / "assets/runs" / RECORDED[name])


def copy_of(name: str, store: RunStore, run_id: str) -> Run:
    return Run(Path(shutil.copytree(recorded(name).path, store.root / run_id)))


def cut_after(run: Run, layers: int) -> None:
    """Make a finished run one that has come so far: with its layers' files, without a result."""
    events, _ = run.events()
    sites = next(event for event in events if isinstance(event, RunStarted)).sites
    final = load_file(run.weights_path)
    for index, site in enumerate(sites[:layers]):
        run.save_site(index, final[site], final[site] != 0)
    last = next(i for i, event in enumerate(events) if isinstance(event, SiteFinished) and event.index == layers - 1)
    for name in ("events.jsonl", "weights.safetensors", "metrics.json"):
        (run.path / name).unlink()
    run.append(*events[: last + 1])


@pytest.fixture(scope="module")
def networks() -> dict[str, Inspection]:
    return {}


@pytest.fixture(autouse=True)
def opened_once(monkeypatch: pytest.MonkeyPatch, networks: dict[str, Inspection]) -> None:
    """A network takes a second to open, and is the same in all these runs."""
    really_open = Inspection.open

    def open_run(run: Run) -> Inspection:
        if run.log().started is None:
            return really_open(run)
        model = run.config().model
        if model not in networks:
            networks[model] = really_open(run)
        return replace(networks[model], run=run).reread()

    monkeypatch.setattr(Inspection, "open", open_run)


@pytest.fixture
def vit() -> Inspection:
    return Inspection.open(recorded("vit"))


# --- what can be asked, and the arrays ---


def random_maps(blocks: int = 2, heads: int = 2, tokens: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"blocks.{i}": torch.randn(heads, tokens, tokens, generator=generator).softmax(-1) for i in range(blocks)}


def asked(grid: TokenGrid, queries: list[str]) -> Questions:
    blocks = ["blocks.0", "blocks.1"]
    tokens = {block: MapTokens("image", grid, grid) for block in blocks}
    return Questions(blocks, False, {"blocks.0": 2, "blocks.1": 2}, tokens, queries, "")


WITH_CLASS = asked(TokenGrid(("cls_token",), 2, 3, (1, 2, 3, 4, 5, 6)), [attention_tables.CLASS_TOKEN, ONE_PATCH, ROLLOUT])
WITHOUT = asked(TokenGrid((), 2, 3, (0, 1, 2, 3, 4, 5)), [ALL_PATCHES, ONE_PATCH, ROLLOUT])


def test_a_query_s_row_is_laid_out_as_patches() -> None:
    maps = random_maps()
    last = maps["blocks.1"]
    seen = attention_tables.attended(maps, WITH_CLASS, "blocks.1", 2, attention_tables.CLASS_TOKEN, (1, 1))
    assert seen.tolist() == last[1, 0, 1:].reshape(2, 3).tolist()
    seen = attention_tables.attended(maps, WITH_CLASS, "blocks.1", None, ONE_PATCH, (2, 3))
    np.testing.assert_allclose(seen, ((last[0] + last[1]) / 2)[6, 1:].reshape(2, 3), rtol=1e-6)


def test_rollout_ends_at_the_class_token_or_at_all_patches() -> None:
    maps = random_maps()
    whole = rollout(found[None] for found in maps.values())[0]
    seen = attention_tables.attended(maps, WITH_CLASS, "blocks.0", 1, ROLLOUT, (1, 1))
    np.testing.assert_allclose(seen, whole[0, 1:].reshape(2, 3), rtol=1e-6)
    maps = random_maps(tokens=6)
    whole = rollout(found[None] for found in maps.values())[0]
    seen = attention_tables.attended(maps, WITHOUT, "blocks.0", 1, ROLLOUT, (1, 1))
    np.testing.assert_allclose(seen, whole.mean(0).reshape(2, 3), rtol=1e-6)


def test_all_patches_leave_out_registers() -> None:
    grid = TokenGrid(("reg_token",), 2, 3, (1, 2, 3, 4, 5, 6))
    maps = random_maps()
    seen = attention_tables.attended(maps, asked(grid, ["Register", ALL_PATCHES]), "blocks.0", 1, ALL_PATCHES, (1, 1))
    np.testing.assert_allclose(seen, maps["blocks.0"][0, 1:, 1:].mean(0).reshape(2, 3), rtol=1e-6)


def inspect(network: nn.Module, *size: int) -> Inspection:
    """An inspection of which only the network and its graph are looked at."""
    network.eval()
    graph = NetworkGraph.export(network, torch.zeros(2, *size))
    loaded = models.LoadedModel("network", network, lambda images: torch.zeros(len(images), *size), size, ())
    return Inspection(Run(Path("none")), loaded, graph, None, {}, {}, None)  # type: ignore[arg-type]


def questions(inspection: Inspection) -> Questions:
    look = attention_tables.look(inspection, torch.zeros(inspection.model.input_size), "dense")
    return attention_tables.questions(inspection, look)


def transformer(**arguments: object) -> Inspection:
    sizes = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    return inspect(timm.models.vision_transformer.VisionTransformer(**sizes, **arguments), 3, 16, 24)


@pytest.mark.slow
def test_questions_of_a_transformer_with_a_class_token(vit: Inspection) -> None:
    found = questions(vit)
    assert found.blocks == [f"blocks.{i}.attn" for i in range(6)]
    assert (found.heads["blocks.0.attn"], found.queries, found.note) == (3, ["Class token", "One patch", "Rollout"], "")
    assert found.mapped


@pytest.mark.slow
def test_questions_of_a_transformer_that_pools_its_patches() -> None:
    found = questions(transformer(class_token=False, global_pool="avg"))
    assert found.queries == [ALL_PATCHES, ONE_PATCH, ROLLOUT]
    assert "no class token" in found.note
    assert found.grid("blocks.0.attn") == TokenGrid((), 2, 3, (0, 1, 2, 3, 4, 5))


@pytest.mark.slow
def test_questions_of_a_transformer_with_registers() -> None:
    found = questions(transformer(reg_tokens=2))
    assert found.queries == ["Class token", "Register 1", "Register 2", ONE_PATCH, ROLLOUT]


def swin(size: int) -> Inspection:
    sizes = {"img_size": size, "patch_size": 4, "window_size": 7, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}
    return inspect(timm.models.swin_transformer.SwinTransformer(**sizes, num_classes=3), 3, size, size)


@pytest.mark.slow
def test_where_one_window_is_the_whole_image_its_block_can_be_looked_at() -> None:
    found = questions(swin(56))
    assert list(found.tokens) == ["layers.1.blocks.0.attn"]
    assert found.queries == [ALL_PATCHES, ONE_PATCH]  # of rollout there is none: it would go through the windows
    assert found.blocks_with(ONE_PATCH) == ["layers.1.blocks.0.attn"]
    assert "1 of 2 maps can be laid over the image: 1 attend within windows." in found.note


@pytest.mark.slow
def test_a_block_offers_what_its_own_tokens_can_be_asked() -> None:
    sizes = {"img_size": (32, 48), "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    inspection = inspect(timm.create_model("cait_xxs24_224", **sizes), 3, 32, 48)
    found = questions(inspection)
    patches, alone = [f"blocks.{i}.attn" for i in range(2)], [f"blocks_token_only.{i}.attn" for i in range(2)]
    assert found.blocks == [*patches, *alone]
    assert found.queries == [attention_tables.CLASS_TOKEN, ALL_PATCHES, ONE_PATCH]
    assert (found.blocks_with(ALL_PATCHES), found.blocks_with(attention_tables.CLASS_TOKEN)) == (patches, alone)
    assert (found.grid(patches[0]), found.grid(alone[0])) == (TokenGrid((), 2, 3, tuple(range(6))), None)
    assert found.note == ""
    maps = attention_tables.look(inspection, torch.randn(3, 32, 48), "dense").maps
    seen = attention_tables.attended(maps, found, alone[1], 2, attention_tables.CLASS_TOKEN, (1, 1))
    assert seen.tolist() == maps[alone[1]][1, 0, 1:].reshape(2, 3).tolist()
    seen = attention_tables.attended(maps, found, patches[0], 1, ONE_PATCH, (2, 1))
    assert seen.tolist() == maps[patches[0]][0, 3].reshape(2, 3).tolist()


@pytest.mark.slow
def test_a_pyramid_s_patches_look_at_fewer_than_they_are() -> None:
    network = timm.create_model("pvt_v2_b0", depths=(1, 1, 1, 1), embed_dims=(8, 16, 40, 64), num_classes=3)
    inspection = inspect(network, 3, 64, 96)
    found = questions(inspection)
    assert found.queries == [ALL_PATCHES, ONE_PATCH]
    assert found.blocks_with(ONE_PATCH) == ["stages.3.blocks.0.attn"]
    assert len(found.blocks_with(ALL_PATCHES)) == 4
    maps = attention_tables.look(inspection, torch.randn(3, 64, 96), "dense").maps
    seen = attention_tables.attended(maps, found, "stages.0.blocks.0.attn", None, ALL_PATCHES, (1, 1))
    np.testing.assert_allclose(seen, maps["stages.0.blocks.0.attn"][0].mean(0).reshape(2, 3), rtol=1e-5)


class Attends(nn.Module):
    """A convolution, then attention of one of four kinds on its 2 x 2 positions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.score, self.fc = kind, nn.Conv2d(1, 4, 4, 4), nn.Linear(4, 1), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images).relu()
        tokens = x.flatten(2).mT
        match self.kind:
            case "sigmoid":
                tokens = tokens + (tokens @ tokens.mT).sigmoid() @ tokens
            case "gate":
                tokens = tokens * self.score(tokens).softmax(1)
            case "global":
                tokens = tokens + self.score(tokens).softmax(1).mT @ tokens
            case "channels":
                tokens = tokens + tokens @ (tokens.mT @ tokens).softmax(-1).mT
        return self.fc(tokens.mean(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "queries", "note"),
    [
        ("sigmoid", [], "Not shown, of what attends: 1 (network: it multiplies values of the image with each other without a"),
        ("gate", [], "Not shown, of what attends: 1 (network: its softmax scales values one by one"),
        ("global", [attention_tables.GLOBAL], ""),
        ("channels", [], "No query of this network sees the whole image: 1 attend between channels"),
    ],
)
def test_attention_that_is_no_map_of_the_image_is_said_not_hidden(kind: str, queries: list[str], note: str) -> None:
    inspection = inspect(Attends(kind), 1, 8, 8)
    found = questions(inspection)
    assert found.queries == queries
    assert note in found.note
    assert found.stages == (kind in ("sigmoid", "gate"))
    assert "A convolutional network" not in found.note
    if kind == "global":
        maps = attention_tables.look(inspection, torch.rand(1, 8, 8), "dense").maps
        seen = attention_tables.attended(maps, found, "network", None, attention_tables.GLOBAL, (1, 1))
        assert seen.shape == (2, 2)
        assert seen.sum() == pytest.approx(1)


@pytest.mark.slow
def test_questions_of_windows_are_none_and_the_note_says_so() -> None:
    found = questions(swin(112))
    assert (found.queries, found.heads, found.tokens, found.mapped) == ([], {}, {}, False)
    assert len(found.blocks) == 2
    assert "attend within windows" in found.note


@pytest.mark.slow
def test_questions_of_a_network_without_maps() -> None:
    found = questions(inspect(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), 1, 8, 8))
    assert (found.blocks, found.mapped) == ([], False)
    assert "neither attention nor convolutional stages" in found.note


def test_a_picture_spans_black_to_white() -> None:
    image = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]]])
    assert as_pixels(image).tolist() == [[0, 64], [128, 255]]
    assert as_pixels(image.expand(3, 2, 2)).shape == (2, 2, 3)
    assert as_pixels(torch.zeros(1, 2, 2)).tolist() == [[0, 0], [0, 0]]


def test_limits_hold_all_maps() -> None:
    assert attention_tables.limits([np.array([[0.1, 0.3]]), np.array([[0.2, 0.7]])]) == (0.1, 0.7)
    low, high = attention_tables.limits([np.array([[0.5, 0.5]])])
    assert low < high


def test_top_classes() -> None:
    found = attention_tables.top(torch.tensor([0.1, 0.6, 0.3]), ("a", "b", "c"), count=2)
    assert found[["index", "class"]].to_numpy().tolist() == [[1, "b"], [2, "c"]]
    assert found["probability"].tolist() == pytest.approx([0.6, 0.3])
    assert attention_tables.top(torch.tensor([0.1, 0.9]), ())["class"].tolist() == ["output 1", "output 0"]


def similarity() -> Similarity:
    cosines = {"a": torch.tensor([[1.0, 0.5], [0.8, 0.7]]), "b": torch.tensor([[0.2, 0.4], [0.6, 0.8]])}
    divergences = {"a": torch.tensor([[0.0, 0.2], [0.4, 0.6]]), "b": torch.tensor([[0.1, 0.3], [0.5, 0.7]])}
    even = {name: torch.full((2, 2), 0.5) for name in divergences}
    return Similarity(cosines, divergences, even)


def test_similarity_by_head_and_preservation_by_image() -> None:
    table = attention_tables.by_head(similarity())
    assert table[["block", "head"]].to_numpy().tolist() == [["a", 1], ["a", 2], ["b", 1], ["b", 2]]
    assert table["cosine"].tolist() == pytest.approx([0.9, 0.6, 0.4, 0.6])
    assert table["overlap"].tolist() == pytest.approx([0.8, 0.6, 0.7, 0.5])
    frame = attention_tables.preservation({"x": similarity(), "y": similarity()})
    assert frame[["network", "image"]].to_numpy().tolist() == [["x", 0], ["x", 1], ["y", 0], ["y", 1]]
    assert frame["overlap"].tolist() == pytest.approx([0.85, 0.45, 0.85, 0.45])
    assert frame["preserved"].tolist() == pytest.approx([0.7, -0.1, 0.7, -0.1])  # the second is further off than even maps
    said = attention_tables.overlap_said(frame)
    assert said == "Before rescaling: 65.0 %, where looking everywhere alike has 50.0 %."


def test_spread_is_the_mean_and_the_middle_of_the_images() -> None:
    assert attention_tables.spread(pd.Series(range(11), dtype=float)) == (5.0, 1.0, 9.0)


@pytest.mark.slow
def test_looks_of_the_dense_and_the_pruned_network(vit: Inspection) -> None:
    image = vit.images.evaluation[0]
    dense, pruned = (attention_tables.look(vit, image, stage) for stage in ("dense", "pruned"))
    assert isinstance(dense, Look)
    assert float(dense.probabilities.sum()) == pytest.approx(1)
    assert dense.probabilities.argmax() == vit.images.labels[0]
    assert 0 < (dense.maps["blocks.5.attn"] - pruned.maps["blocks.5.attn"]).abs().max() < 0.4
    answers = attention_tables.answers(vit, vit.images.evaluation[:100], "dense", batch_size=32)
    assert answers[0] == vit.images.labels[0]
    assert np.mean(np.array(answers) == vit.images.labels[:100].numpy()) > 0.85


# --- figures ---


def test_pictures_to_compare_share_a_scale_and_their_cells_lie_on_their_patches() -> None:
    pixels, seen = np.zeros((28, 56), np.uint8), np.arange(8.0).reshape(2, 4) / 10
    drawn = json.loads(attention_charts.attention_picture(pixels, seen, (0.0, 0.9), 0.4, (2, 3)).to_json())
    picture, heat = drawn["data"]
    assert (heat["zmin"], heat["zmax"], heat["opacity"]) == (0.0, 0.9, 0.4)
    assert heat["z"] == seen.tolist()
    # The first pixel begins, and the last one ends, where the first and the last cell do.
    assert picture["x0"] - picture["dx"] / 2 == pytest.approx(0.5)
    assert picture["x0"] + (55 + 0.5) * picture["dx"] == pytest.approx(4.5)
    assert picture["y0"] + (27 + 0.5) * picture["dy"] == pytest.approx(2.5)
    box = drawn["layout"]["shapes"][-1]
    assert (box["x0"], box["x1"], box["y0"], box["y1"]) == (2.5, 3.5, 1.5, 2.5)
    assert drawn["layout"]["yaxis"]["scaleratio"] == pytest.approx(1)
    assert len(attention_charts.attention_picture(pixels, None, (0, 1), 0.4).data) == 1


def test_a_picture_s_address_holds_its_pixels() -> None:
    import base64

    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    content = base64.b64decode(attention_charts.picture_address(pixels).partition(",")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels)
    content = base64.b64decode(attention_charts.picture_address(pixels, longest_edge=3).partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (2, 3)


def test_top_chart_marks_the_label() -> None:
    top = attention_tables.top(torch.tensor([0.25, 0.7, 0.0005]), ("shoe", "bag, purse", "hat"))
    words = attention_charts.top_chart(top, "snows", label=0).data[1].text
    assert words == ("bag  70 %", "<b>shoe  25 %</b>", "hat  under 0.1 %")
    assert attention_charts.top_chart(top, "snows").data[0].marker.color == palette.COLORS["snows"]


def test_similarity_map_has_a_row_a_block_and_a_column_a_head() -> None:
    table = attention_tables.by_head(similarity()).rename(columns={"cosine": "value"})
    figure = attention_charts.similarity_map(table, (0.4, 1.0), ("b", 2))
    np.testing.assert_allclose(np.array(figure.data[0].z, float), [[0.9, 0.6], [0.4, 0.6]], rtol=1e-5)
    assert list(figure.data[0].x) == [1, 2]
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].y0) == (1.5, 1.5)
    assert attention_charts.similarity_map(table, (0, 1), ("b", None)).layout.shapes[0].x0 == 0.5
    # Windows and narrower blocks: a head that a block lacks stays empty.
    uneven = attention_charts.similarity_map(table[:3], (0, 1))
    assert uneven.data[0].z[1][1] is None


def test_scales_are_those_of_what_they_explain() -> None:
    seen = attention_charts.attention_picture(np.zeros((4, 4), np.uint8), np.zeros((2, 2)), (0.1, 0.3), 1).data[1]
    scale = attention_charts.map_scale((0.1, 0.3), "Share")
    assert (scale.data[0].zmin, scale.data[0].zmax, scale.data[0].colorscale) == (0.1, 0.3, seen.colorscale)
    assert list(scale.layout.xaxis.ticktext) == ["0.1", "0.15", "0.2", "0.25", "0.3"]
    table = attention_tables.by_head(similarity()).rename(columns={"cosine": "value"})
    alike = attention_charts.map_scale((0.4, 1.0), "Cosine", of_similarity=True).data[0]
    assert alike.colorscale == attention_charts.similarity_map(table, (0.4, 1.0)).data[0].colorscale != seen.colorscale


def test_preservation_chart_has_a_row_a_network_in_its_color() -> None:
    frame = attention_tables.preservation({"x": similarity(), "y": similarity()})
    spreads = {name: attention_tables.spread(rows["preserved"]) for name, rows in frame.groupby("network")}
    figure = attention_charts.preservation_chart(frame, {"x": "none", "y": "snows"}, spreads)
    dots = [trace for trace in figure.data if trace.marker.size == 5]
    assert [trace.marker.color for trace in dots] == [palette.COLORS["none"], palette.COLORS["snows"]]
    assert [round(np.mean(trace.y)) for trace in dots] == [0, 1]
    assert all(math.isfinite(end) for end in figure.layout.xaxis.range)


# --- the page ---


def map_of(app: AppTest, network: str) -> dict:
    return next(figure for alt, figure in figures(app).items() if alt.endswith(f"where this network looks: {network}"))


def upload(app: AppTest, name: str, content: bytes) -> AppTest:
    return app.file_uploader[0].set_value((name, content, "image/png")).run()


def as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_finished_run_beside_its_mask_and_a_second_run(open_page: OpenPage, store: RunStore) -> None:
    run, other = copy_of("vit", store, "run-a"), copy_of("vit", store, "run-b")
    other_config = json.loads((other.path / "config.json").read_text())
    other_config["prune"] |= {"update": "none"}
    other_config["num_evaluation"] = 20  # both are compared on the first run's images
    (other.path / "config.json").write_text(json.dumps(other_config))
    app = open_page("attention", run=run.id)
    text = text_of(app)
    assert "Evaluation image 0, labeled Ankle boot" in text
    assert "Before rescaling: 90.6 %, where looking everywhere alike has " in text
    assert "Attention preserved: 16.6 % (11.9 % to 20.6 % on 8 of 10 images)" in text
    assert "Attention preserved: 88.1 %" in text
    names = ("Dense network", "Mask only", "SNOWS, refined mask, K = 3")
    assert len({json.dumps([map_of(app, name)["data"][1][key] for key in ("zmin", "zmax")]) for name in names}) == 1
    z = np.array([map_of(app, name)["data"][1]["z"] for name in names])
    lost, kept = np.abs(z[0] - z[1]).mean(), np.abs(z[0] - z[2]).mean()
    assert lost > 1.5 * kept > 0

    labelled(app.selectbox, "Second run").set_value(other.id).run()
    assert app.query_params["with"] == other.id
    second = "Magnitude only"
    assert map_of(app, second)["data"][1]["z"] == map_of(app, names[2])["data"][1]["z"]  # the same weights
    assert text_of(app).count("Attention preserved: 88.1 %") == 2


@pytest.mark.slow
def test_block_head_and_query_change_the_maps(open_page: OpenPage, store: RunStore) -> None:
    app = open_page("attention", run=copy_of("vit", store, "run-a").id)
    seen = [map_of(app, "Dense network")]
    assert app.select_slider[0].value == "blocks.5.attn"
    for change in (
        lambda: app.select_slider[0].set_value("blocks.2.attn"),
        lambda: labelled(app.button_group, "Head").set_value("2"),
        lambda: labelled(app.button_group, "Seen from").set_value(ONE_PATCH),
        lambda: labelled(app.number_input, "Row").set_value(6),
        lambda: labelled(app.button_group, "Seen from").set_value(ROLLOUT),
    ):
        change().run()
        seen.append(map_of(app, "Dense network"))
    assert len({json.dumps(figure) for figure in seen}) == len(seen)
    assert seen[4]["layout"]["shapes"][0]["y0"] == 5.5
    assert labelled(app.button_group, "Head").disabled
    before = figures(app)["Similarity to the dense network, by block and head: Mask only"]["data"][0]["z"]
    labelled(app.button_group, "Similarity").set_value("Jensen-Shannon").run()
    assert figures(app)["Similarity to the dense network, by block and head: Mask only"]["data"][0]["z"] != before


@pytest.mark.slow
def test_a_link_opens_what_it_names(open_page: OpenPage, store: RunStore) -> None:
    run, other = copy_of("vit", store, "run-a"), copy_of("vit", store, "run-b")
    app = open_page("overview")
    app.query_params.update(
        {"run": run.id, "with": other.id, "image": ["3", "17"], "block": "blocks.1.attn", "head": "3"}
        | {"query": ONE_PATCH, "patch": ["2", "7"]}
    )
    app.switch_page("../pages/attention.py").run()
    text = text_of(app)
    assert "Evaluation image 3, labeled Trouser" in text
    assert "Evaluation image 17, labeled Coat" in text
    assert (app.select_slider[0].value, labelled(app.button_group, "Head").value) == ("blocks.1.attn", "3")
    assert labelled(app.button_group, "Seen from").value == ONE_PATCH
    assert (labelled(app.number_input, "Row").value, labelled(app.number_input, "Column").value) == (2, 7)
    assert labelled(app.selectbox, "Second run").value == other.id
    assert len([alt for alt in figures(app) if "where this network looks" in alt]) == 2 * 4


@pytest.mark.slow
def test_choices_are_in_the_address_and_stay_with_another_image_or_run(open_page: OpenPage, store: RunStore) -> None:
    run, other, third = (copy_of("vit", store, f"run-{letter}") for letter in "abc")
    convolutional = copy_of("resnet", store, "run-d")
    other.save_labels(Labels(name="The other"))  # in a list of choices, what is named alike is one to Streamlit
    app = open_page("attention", run=run.id)
    assert app.query_params == {"run": run.id}
    labelled(app.selectbox, "Second run").set_value(other.id).run()
    labelled(app.button_group, "Head").set_value("2").run()
    labelled(app.button_group, "Seen from").set_value(ONE_PATCH).run()
    labelled(app.number_input, "Column").set_value(6).run()
    choices = {"with": other.id, "head": "2", "query": ONE_PATCH, "patch": ["4", "6"]}
    assert app.query_params == {"run": run.id, **choices}
    app.query_params["image"] = "5"
    app.run()
    assert "Evaluation image 5" in text_of(app)
    assert labelled(app.button_group, "Head").value == "2"

    def open_run(run: Run) -> None:  # as the page's choice of a run does
        for name in list(app.query_params):
            del app.query_params[name]
        app.query_params["run"] = run.id
        app.run()

    open_run(third)
    assert app.query_params == {"run": third.id, **choices, "image": "5"}
    assert labelled(app.number_input, "Column").value == 6
    open_run(convolutional)
    assert "to compare with" not in text_of(app)
    assert "with" not in app.query_params
    open_run(run)
    labelled(app.button_group, "Head").set_value("Mean").run()
    assert app.query_params == {"run": run.id, "query": ONE_PATCH, "patch": ["4", "6"], "image": "5"}


@pytest.mark.slow
def test_a_link_to_what_is_not_there_says_so(open_page: OpenPage, store: RunStore) -> None:
    run = copy_of("vit", store, "run-a")
    app = open_page("overview")
    app.query_params.update(
        {"run": run.id, "with": "nobody", "image": ["99999", "own:shoe.png", "4", "4"], "block": "blocks.99"}
    )
    app.switch_page("../pages/attention.py").run()
    text = text_of(app)
    assert "There is no run 'nobody' of vit-fashion" in text
    assert "There is no image 99999 among this run's 10,000 evaluation images" in text
    assert "shoe.png, which is not in this session" in text
    assert "Evaluation image 4" in text
    assert app.select_slider[0].value == "blocks.5.attn"


@pytest.mark.slow
def test_convolutional_network_shows_its_stages_in_the_same_frame(open_page: OpenPage, store: RunStore) -> None:
    app = open_page("attention", run=copy_of("resnet", store, "run-a").id)
    text = text_of(app)
    assert "A convolutional network has no queries and no heads" in text
    assert "Attention preserved: 96.9 %" in text
    assert app.select_slider[0].options == ["layer1.2.act2", "layer2.2.act2", "layer3.2.act2"]
    assert np.shape(map_of(app, "Dense network")["data"][1]["z"]) == (8, 8)
    app.select_slider[0].set_value("layer1.2.act2").run()
    assert np.shape(map_of(app, "SNOWS, refined mask, K = 3")["data"][1]["z"]) == (32, 32)
    assert not [group for group in app.get("button_group") if group.label in ("Seen from", "Head")]
    assert labelled(app.selectbox, "Second run").options == ["None yet"]


@pytest.mark.slow
def test_running_run_shows_how_far_it_is_and_measures_when_asked(open_page: OpenPage, store: RunStore, hold: ExitStack) -> None:
    run = copy_of("vit", store, "run-a")
    cut_after(run, layers=4)
    hold.enter_context(run.queue())
    run.append(Phase(name="prune"))
    app = open_page("attention", run=run.id)
    text = text_of(app)
    assert "So far 4 of 24 layers pruned" in text
    assert "Measured when the run has ended" in text
    assert not app.metric
    first = map_of(app, "SNOWS, refined mask, K = 3, so far")
    app.toggle("measure now").set_value(True).run()
    assert app.metric[0].label == "Attention preserved"
    # A fifth layer: the maps follow.
    final = load_file(recorded("vit").weights_path)
    site = next(event for event in run.events()[0] if isinstance(event, RunStarted)).sites[4]
    run.save_site(4, final[site], final[site] != 0)
    app.run()
    assert "So far 5 of 24 layers pruned" in text_of(app)
    assert map_of(app, "SNOWS, refined mask, K = 3, so far") != first


@pytest.mark.slow
def test_stopped_run_shows_what_there_is(open_page: OpenPage, store: RunStore) -> None:
    run = copy_of("vit", store, "run-a")
    cut_after(run, layers=4)
    app = open_page("attention", run=run.id)
    assert "Attention preserved" in text_of(app)


@pytest.mark.slow
def test_run_that_has_not_begun(open_page: OpenPage, store: RunStore, hold: ExitStack) -> None:
    run = store.create(recorded("vit").config())
    hold.enter_context(run.queue())
    assert "has not begun to prune" in text_of(open_page("attention", run=run.id))


@pytest.mark.slow
def test_recorded_run_when_there_is_none_and_no_run_at_all(open_page: OpenPage, tmp_path: Path) -> None:
    assert "There is no run yet" in text_of(open_page("attention"))
    shutil.copytree(recorded("vit").path, tmp_path / "recorded" / RECORDED["vit"])
    text = text_of(open_page("attention"))
    assert "A recorded run" in text
    assert "Attention preserved: 88.1 %" in text


@pytest.mark.slow
def test_a_strip_of_a_picture_is_a_sentence_and_can_be_converted(open_page: OpenPage, store: RunStore) -> None:
    app = open_page("attention", run=copy_of("vit", store, "run-a").id)
    upload(app, "strip.png", as_png(np.zeros((400_000, 1), np.uint8)))
    assert "strip.png does not suit the network: this network takes 28x28 grey images, not 1x400000 of kind L" in text_of(app)
    next(b for b in app.button if b.label == "Make it like Fashion-MNIST").click().run()
    assert "Your own image, strip.png" in text_of(app)


@pytest.mark.slow
def test_own_images_go_through_the_network_s_preparation(open_page: OpenPage, store: RunStore) -> None:
    app = open_page("attention", run=copy_of("vit", store, "run-a").id)
    upload(app, "notes.png", b"I am no picture")
    assert "notes.png is not an image that can be read" in text_of(app)
    upload(app, "big.png", bytes(21_000_000))
    assert "big.png has 21 MB; at most 20 MB are taken" in text_of(app)

    photograph = np.full((300, 200, 3), 255, np.uint8)
    photograph[50:250, 60:140] = 40
    upload(app, "photo.png", as_png(photograph))
    assert "photo.png does not suit the network: this network takes 28x28 grey images, not 200x300 of kind RGB" in text_of(app)
    next(b for b in app.button if b.label == "Make it like Fashion-MNIST").click().run()
    assert "Your own image, photo.png" in text_of(app)
    made_over = map_of(app, "Dense network")

    shoe = np.load(models.ASSETS / "fashion-mnist.npz")["test_images"][0, 0]
    upload(app, "shoe.png", as_png(shoe))
    assert app.query_params["image"] == "own:shoe.png"
    own = map_of(app, "Dense network")
    assert own != made_over

    # They outlive a change of page.
    app.switch_page("../pages/overview.py").run()
    app.switch_page("../pages/attention.py").run()
    assert map_of(app, "Dense network") == own
    pictures = next(json.loads(e.proto.json) for e in app.get("bidi_component") if '"pictures"' in e.proto.json)
    assert [picture["id"] for picture in pictures["pictures"][:3]] == ["own:photo.png", "own:shoe.png", "0"]
    assert pictures["chosen"] == ["own:shoe.png"]


@pytest.mark.slow
def test_images_to_choose_from(open_page: OpenPage, store: RunStore) -> None:
    app = open_page("attention", run=copy_of("vit", store, "run-a").id)

    def offered() -> list[str]:
        drawn = next(json.loads(e.proto.json) for e in app.get("bidi_component") if '"pictures"' in e.proto.json)
        return [picture["words"] for picture in drawn["pictures"]]

    assert offered()[:2] == ["Image 0: Ankle boot", "Image 1: Pullover"]
    app.selectbox("show").set_value(models.FASHION_CLASSES.index("Bag")).run()
    assert all(words.endswith(": Bag") for words in offered())
    app.selectbox("show").set_value("Answer changed").run()
    inspection = Inspection.open(recorded("vit"))
    dense, pruned = (attention_tables.answers(inspection, inspection.images.evaluation[:512], s) for s in ("dense", "pruned"))
    changed = [i for i in range(512) if dense[i] != pruned[i]]
    assert [int(words.split()[1].rstrip(":")) for words in offered()] == changed[:48]
    assert changed


@pytest.mark.slow
def test_missing_images_leave_one_s_own(open_page: OpenPage, store: RunStore) -> None:
    run = copy_of("vit", store, "run-a")
    config = json.loads((run.path / "config.json").read_text())
    config["data"] = "/nowhere"
    (run.path / "config.json").write_text(json.dumps(config))
    app = open_page("attention", run=run.id)
    assert "no data set and no folder '/nowhere'" in text_of(app)
    shoe = np.load(models.ASSETS / "fashion-mnist.npz")["test_images"][0, 0]
    upload(app, "shoe.png", as_png(shoe))
    assert "Your own image, shoe.png" in text_of(app)
    assert map_of(app, "Dense network")["data"][1]["z"]
