"""The folder to hand on: what it holds, that it needs nothing else, and that no text of a run can act in it."""

import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from kaleido.errors import BrowserFailedError, ChromeNotFoundError
from plotly.graph_objects import Figure

from app import hand_on
from app.tables import compare
from snows.config import InputError, RunConfig
from snows.plans import recorded
from snows.runs.store import Labels, Run, RunStore
from tests.app import helpers
from tests.app.test_report import EVIL, _Reader

ROOT = Path(__file__).parents[2]


def config(**prune: object) -> RunConfig:
    return RunConfig.model_validate({"prune": prune})


def two(store: RunStore, name: str = "") -> list[Run]:
    """Two finished runs, with weights of no network."""
    runs = [helpers.write_run(store, "finished", config=config(update=update)) for update in ("snows", "none")]
    for run, accuracy in zip(runs, (0.9, 0.8), strict=True):
        run.save_metrics(helpers.METRICS | {"accuracy": accuracy, "seconds": 20 * accuracy})
        run.save_labels(Labels(name=name and f"{name[:70]} {accuracy}"))  # what all are called alike sets none apart
    return runs


def read(made: dict[str, bytes]) -> tuple[str, list[dict], _Reader]:
    """The page's readable text, its figures, and its structure."""
    page = made["index.html"].decode()
    reader = _Reader(page)
    assert reader.open == []
    figures = [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    return "\n".join(reader.text), figures, reader


@pytest.fixture(autouse=True, scope="module")
def undrawn() -> Iterator[None]:
    """Nothing draws figures as SVG and PDF, which takes a browser, and seconds; see `TestDrawings`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hand_on, "drawings", lambda figures: ({}, "there is no browser here"))
        yield


@pytest.fixture(scope="module")
def made(undrawn: None) -> dict[str, bytes]:
    """The recorded comparison, handed on."""
    return hand_on.files(hand_on.of_recorded(recorded.comparison()))


class TestRecorded:
    def test_the_page_says_what_was_found_and_where_it_is_from(self, made: dict[str, bytes]) -> None:
        text, figures, _ = read(made)
        for words in (
            f"{helpers.RECORDED_COUNT} measurements, recorded by make bench",
            "resnet20-fashion on fashion-mnist",
            f"Of {helpers.RECORDED_METHODS} methods SNOWS, joint fit, K = 3 is best in accuracy, or level with the best",
            "there are no networks to ask for their answers",
            "90.87 ± 0.23 % ★",
            f"{helpers.RECORDED_COUNT} commands",
            "Copyright (c) 2017 Zalando SE",
            "torch",
            '"num_calibration": 512',
        ):
            assert words in text, words
        titles = [figure["layout"]["xaxis"]["title"]["text"] for figure in figures]
        assert titles == 2 * ["Weights kept (%)", "Size (MB)", "Multiply-adds (millions)", "Time (s)"]
        legend = {trace["name"] for trace in figures[0]["data"] if trace.get("showlegend", True) and trace["x"] == [None]}
        assert "SNOWS, refined mask, K = 5" in legend
        assert "Magnitude only" not in legend  # far below the figure's lower end

    def test_it_needs_nothing_but_its_own_files(self, made: dict[str, bytes]) -> None:
        elsewhere = read(made)[2].elsewhere
        assert elsewhere
        assert {place for place in elsewhere if place not in made} == set()
        assert not re.search(r"<(script|link)[^>]+(src|href)=", made["index.html"].decode())

    def test_tables_hold_every_number(self, made: dict[str, bytes]) -> None:
        table = pd.read_csv(io.BytesIO(made["tables/vit-fashion-on-fashion-mnist.csv"]))
        of_vit = [one for one in recorded.comparison() if one.config.model == "vit-fashion"]
        assert len(table) == len(of_vit) / 3  # over three seeds
        row = table[(table["method"] == "SNOWS, refined mask, K = 3") & (table["pattern"] == "1:16")].iloc[0]
        lines = map(json.loads, (recorded.FOLDER / recorded.MEASUREMENTS).read_text().splitlines())
        measured = {
            (line.get("joint", "none"), line["seed"]): line["accuracy"]
            for line in lines
            if (line["model"], line["pattern"], line.get("refine"), line["k_steps"]) == ("vit-fashion", "1:16", "window", 3)
        }
        own, best = ([measured[joint, seed] for seed in range(3)] for joint in ("none", "network"))
        assert row["accuracy"] == pytest.approx(sum(own) / 3)
        assert row["from_best"] == pytest.approx((sum(own) - sum(best)) / 3)
        assert row["from_best_deviation"] == pytest.approx(pd.Series([a - b for a, b in zip(own, best, strict=True)]).std())
        assert pd.isna(row["mark"])
        assert (row["runs"], row["density"]) == (3, 0.0625)

    def test_latex_has_its_signs_and_no_others(self, made: dict[str, bytes]) -> None:
        for name in ("", "-from-the-best"):
            text = made[f"tables/vit-fashion-on-fashion-mnist{name}.tex"].decode()
            assert text.startswith("% \\usepackage{booktabs}\n\\begin{tabular}{lr")
            assert text.isascii()
            assert r"88.20 $\pm$ 0.61 \% $\star$" in text
            assert not re.search(r"(?<!\\)%", text.partition("\n")[2])

    def test_undrawn_figures_and_why(self, made: dict[str, bytes]) -> None:
        assert "The folder holds neither: there is no browser here." in " ".join(read(made)[0].split())
        assert not [name for name in made if name.startswith("figures/")]

    def test_every_measurement_with_its_configuration(self, made: dict[str, bytes]) -> None:
        lines = [json.loads(line) for line in made["measurements.jsonl"].splitlines()]
        assert len(lines) == helpers.RECORDED_COUNT
        assert {RunConfig.model_validate(line["config"]).num_evaluation for line in lines} == {5_000}


class TestRuns:
    def test_finished_runs_with_what_to_type_for_them(self, store: RunStore) -> None:
        made = hand_on.files(hand_on.of_runs(compare.entries(two(store))))
        text, figures, _ = read(made)
        assert "SNOWS, refined mask, K = 3 has the best accuracy, 90.00 %." in text
        assert "The answers that changed are not here: " in text  # these weights are of no network
        assert "another network" in text
        assert len(figures) == 2  # against time, and how far from the best: all keep as many weights
        assert made["commands.sh"].decode().splitlines() == ["python -m snows prune", "python -m snows prune --update none"]

    def test_who_may_start_no_browser_gets_no_drawings(self, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hand_on, "drawings", lambda figures: pytest.fail("a browser was started"))
        made = hand_on.files(hand_on.of_runs(compare.entries(two(store))), draw=False)
        assert "starts no browser to draw them" in read(made)[0]

    def test_nothing_finished_is_said(self, store: RunStore) -> None:
        with pytest.raises(InputError, match="nothing to hand on yet"):
            hand_on.of_runs(compare.entries([store.create(RunConfig())]))

    def test_no_text_of_a_run_can_act(self, store: RunStore) -> None:
        plain = hand_on.files(hand_on.of_runs(compare.entries(two(store))))
        made = hand_on.files(hand_on.of_runs(compare.entries(two(store, EVIL))))
        page = made["index.html"].decode()
        assert page.count("<script") == plain["index.html"].decode().count("<script")
        assert "img" not in read(made)[2].tags
        assert EVIL[:40] in read(made)[0]

    @pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "@x"])
    def test_no_name_is_a_formula(self, store: RunStore, name: str) -> None:
        made = hand_on.files(hand_on.of_runs(compare.entries(two(store, name))))
        table = pd.read_csv(io.BytesIO(made["tables/resnet20-fashion-on-fashion-mnist.csv"]))
        assert [method.partition(" ")[0] for method in table["method"]] == [f"'{name}"] * 2

    def test_names_are_escaped_for_latex(self, store: RunStore) -> None:
        runs = two(store)
        runs[0].save_labels(Labels(name=r"50% \input{x} & $_^~#"))
        text = hand_on.files(hand_on.of_runs(compare.entries(runs)))["tables/resnet20-fashion-on-fashion-mnist.tex"].decode()
        assert r"50\% \textbackslash input\{x\} \& \$\_\textasciicircum \textasciitilde \#" in text

    def test_a_folder_of_images_has_no_known_licence(self, store: RunStore, tmp_path: Path) -> None:
        run = helpers.write_run(store, "finished", config=RunConfig(data=str(tmp_path / "photos"), class_names=("a", "b")))
        made = hand_on.files(hand_on.of_runs(compare.entries([run])))
        assert "photos: their licence is not on record here" in read(made)[0]
        assert made["class-names.txt"] == b"a\nb\n"
        assert "--class-names class-names.txt" in made["commands.sh"].decode()

    @pytest.mark.parametrize("name", ["", "mine"])
    def test_no_place_of_the_machine_is_handed_on(self, store: RunStore, tmp_path: Path, name: str) -> None:
        hidden = tmp_path / "somebody's own"
        prune = {"mask": str(hidden / "mask.safetensors"), "refine": "none"}
        told = RunConfig.model_validate(
            {"data": str(hidden / "photos"), "checkpoint": str(hidden / "w.pth"), "prune": prune, "class_names": ["a"]}
        )
        run = helpers.write_run(store, "finished", config=told)
        run.save_labels(Labels(name=name))
        made = hand_on.files(hand_on.of_runs(compare.entries([run])))
        for file, content in made.items():
            assert "somebody" not in content.decode(), file
            assert str(tmp_path) not in content.decode(), file
            assert "somebody" not in file
        assert "named by its last part alone" in read(made)[0]
        (line,) = map(json.loads, made["measurements.jsonl"].splitlines())
        assert RunConfig.model_validate(line["config"]).data == "photos"
        for words in ("--data photos", "--checkpoint w.pth", "--mask mask.safetensors"):
            assert words in made["commands.sh"].decode()

    def test_where_nothing_was_left_out_nothing_is_said(self, store: RunStore) -> None:
        made = hand_on.files(hand_on.of_runs(compare.entries(two(store))))
        assert "named by its last part alone" not in read(made)[0]

    @pytest.mark.slow
    def test_the_answers_that_changed(self, store: RunStore) -> None:
        folder = ROOT / "assets/runs/recorded-1-vit-fashion"
        runs = [Run(Path(shutil.copytree(folder, store.root / name))) for name in ("first", "second")]
        again = Run(folder).config()
        for k, run in enumerate(runs):
            other = again.model_copy(update={"num_evaluation": 200, "prune": again.prune.model_copy(update={"k_steps": k})})
            (run.path / "config.json").write_text(other.model_dump_json())
        made = hand_on.files(hand_on.of_runs(compare.entries(runs)))
        text, _, reader = read(made)
        (count,) = re.findall(r"Of the first ([\d,]+) evaluation images", text)
        assert int(count) <= 200
        pictures = [place for place in reader.elsewhere if place.startswith("data:image/png;base64,")]
        assert 0 < len(pictures) <= 24
        assert "Image by image, with the exact sign test" in text
        assert "1 %" in text or "may be chance" in text


DRAWINGS = hand_on.drawings


class TestDrawings:
    """Each figure as SVG and as PDF."""

    @pytest.mark.e2e
    def test_a_browser_draws_each_figure(self, store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hand_on, "drawings", DRAWINGS)
        made = hand_on.files(hand_on.of_runs(compare.entries(two(store))))
        names = [f"figures/resnet20-fashion-on-fashion-mnist-{number}" for number in (1, 2)]
        assert [name for name in made if name.startswith("figures/")] == [f"{n}.{k}" for n in names for k in ("svg", "pdf")]
        first = ElementTree.fromstring(made[f"{names[0]}.svg"])
        assert {"Accuracy (%)", "Time (s)"} <= {text.text for text in first.iter("{http://www.w3.org/2000/svg}text")}
        assert all(made[f"{name}.pdf"].startswith(b"%PDF-") for name in names)
        assert "holds each figure as SVG and as PDF" in read(made)[0]

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [(ChromeNotFoundError("?"), "no Chrome or Chromium"), (BrowserFailedError("?"), "did not start")],
    )
    def test_without_a_browser_there_are_none(self, error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def draw(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(hand_on.kaleido, "write_fig_from_object_sync", draw)
        drawn, why = DRAWINGS({"one": Figure()})
        assert drawn == {}
        assert sentence in why


class TestShell:
    """`python -m app.hand_on`."""

    def test_writes_a_folder_once(self, store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        runs, folder = two(store), tmp_path / "handed"
        line = [*(run.id for run in runs), "--output", str(folder)]
        assert hand_on.main(line) == 0
        assert capsys.readouterr().out == f"{folder / 'index.html'}\n"
        assert (folder / "tables" / "resnet20-fashion-on-fashion-mnist.csv").exists()
        assert hand_on.main(line) == 2  # what is there is somebody's
        assert "is not an empty folder" in capsys.readouterr().err

    def test_says_what_is_wrong(self, store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("")
        waiting = store.create(RunConfig())
        for names, output, code, sentence in (
            (["nope"], tmp_path / "x", 2, "There is no run 'nope'"),
            ([waiting.id], tmp_path / "x", 2, "nothing to hand on yet"),
            ([two(store)[0].id], tmp_path / "file" / "x", 1, "cannot be used"),
        ):
            assert hand_on.main([*names, "--output", str(output)]) == code
            assert sentence in capsys.readouterr().err

    def test_packed_it_is_one_folder(self) -> None:
        with zipfile.ZipFile(io.BytesIO(hand_on.packed({"index.html": b"x", "tables/a.csv": b"y"}, "mine"))) as archive:
            assert archive.namelist() == ["mine/index.html", "mine/tables/a.csv"]
