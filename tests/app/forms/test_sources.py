"""Networks and images in the form: looked up before loading, brought along, downloaded with progress."""

import io
import re
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save
from streamlit.testing.v1 import AppTest

from app.forms import sources
from app.work import engine
from app.work.fetching import Downloads
from snows.config import InputError, RunConfig
from snows.plans.presets import PRESETS, wanted
from snows.runs.store import RunStore
from snows.sources import models, named_sets
from tests.app.conftest import OpenPage
from tests.app.test_pages import button, labels, text_of

pytestmark = pytest.mark.slow


@pytest.fixture
def open_form(open_page: OpenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """The Prune page, its engine ready and nothing downloaded; `model` and `data` are chosen before it is drawn."""
    monkeypatch.setattr(named_sets, "ROOT", tmp_path / "data")
    models.every_name()

    def visit(**chosen: object) -> AppTest:
        app = open_page("overview")
        for path, value in chosen.items():
            app.session_state[f"form.{path}"] = value
        return app.switch_page("../pages/prune.py").run()

    return visit


def uploader(app: AppTest, label: str):
    return next(u for u in app.get("file_uploader") if u.label.startswith(label))


def picture(level: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", (28, 28), level).save(file, kind)
    return file.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return packed.getvalue()


class TestNetwork:
    def test_every_network_is_offered_and_looked_up_before_loading(self, open_form: Callable[..., AppTest]) -> None:
        found, more = sources.find("")
        assert [option.label for option in found[:2]] == list(sources.MODELS.values())[:2]
        assert re.fullmatch(r"Type to search all \d,\d{3} networks.", more)
        text = text_of(open_form(model="timm:vit_large_patch16_224"))
        assert "**304,326,632 parameters** · images of 3 x 224 x 224 · 1,000 classes" in text
        assert "The shorter edge to" in text
        assert "tench, Tinca tinca" in text
        assert "Weights of timm:vit_large_patch16_224, 1.22 GB, not on this machine yet" in text

    @pytest.mark.parametrize("typed", ["vit base 224", "224 BASE vit"])
    def test_all_words_in_any_order(self, typed: str) -> None:
        models.every_name()
        names = [option.id for option in sources.find(typed)[0]]
        assert "timm:vit_base_patch16_224" in names[:5]
        assert all({"vit", "base", "224"} <= set(re.split(r"[^a-z0-9]", name)) for name in names[:5])
        assert sources.find(typed)[1].startswith("… and ")

    def test_labels_are_searched_too_and_what_is_named_just_so_comes_first(self) -> None:
        models.every_name()
        assert [option.id for option in sources.find("fashion vision")[0]] == ["vit-fashion"]
        assert sources.find("resnet50")[0][0].id == "timm:resnet50"
        assert sources.find("timm:resnet18")[0][0].id == "timm:resnet18"

    def test_what_is_not_found_can_not_be_chosen(self) -> None:
        models.every_name()
        assert sources.find("no such network") == ([], "No network has all of these words. Try fewer, or a part of one.")

    def test_before_the_engine_is_there_the_form_is(self, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "ready", lambda: False)
        app = open_page("prune")
        assert [option.id for option in sources.find("fashion")[0]] == ["resnet20-fashion", "vit-fashion"]
        assert "once the engine is loaded" in text_of(app)
        assert "The engine is being loaded" in text_of(app)
        assert button(app, "Start").disabled

    def test_a_checkpoint_is_kept_with_the_runs_and_goes_into_the_config(
        self, open_form: Callable[..., AppTest], store: RunStore, tmp_path: Path
    ) -> None:
        weights = save(models.load("vit-fashion", pretrained=False).module.state_dict())
        folder = tmp_path / "photos"
        folder.mkdir()
        for i in range(40):
            (folder / f"{i}.png").write_bytes(picture(i))
        app = open_form(model="vit-fashion", data=str(folder), num_calibration=8)
        uploader(app, "Checkpoint").set_value(("my net.safetensors", weights, "")).run()
        app.text_area("form.class_names").set_value("\n".join("abcdefghij")).run()
        assert "a, b, c, d" in text_of(app)
        button(app, "Start").click().run()
        config = store.list()[0].config()
        assert config.checkpoint is not None
        assert Path(config.checkpoint).read_bytes() == weights
        assert Path(config.checkpoint).is_relative_to(store.root)
        assert config.class_names == tuple("abcdefghij")

    def test_mismatches_are_told_in_a_table(self, open_form: Callable[..., AppTest]) -> None:
        state = models.load("resnet20-fashion", pretrained=False).module.state_dict()
        del state["fc.bias"]
        app = open_form()
        uploader(app, "Checkpoint").set_value(("a.safetensors", save(state), "")).run()
        assert "does not fit in 1 tensor. All the rest fits: it seems to be saved without its last part" in app.warning[0].value
        frame = app.dataframe[0].value
        assert frame.to_dict("list") == {"tensor": ["fc.bias"], "in your file": ["-"], "in the network": ["[10]"]}


class TestPresets:
    def test_each_is_a_config_that_the_engine_knows(self) -> None:
        for name, preset in PRESETS.items():
            models.check_name(preset.config.model)
            assert preset.config.data in named_sets.SETS, name
            assert len(wanted(preset.config)) == 2
        resnet50 = PRESETS["resnet50-cifar100"].config
        assert (str(resnet50.prune.pattern), resnet50.prune.k_steps) == ("1:4", 30)
        assert {str(PRESETS[name].config.prune.pattern) for name in ("vit-b16-imagenet", "vit-l16-imagenet")} == {"2:4"}

    def test_one_fills_the_form_and_says_what_it_needs(self, open_form: Callable[..., AppTest]) -> None:
        app = open_form()
        app.selectbox("preset").set_value("resnet50-cifar100").run()
        assert app.session_state["form.model"] == "resnet50-cifar100"
        assert app.selectbox("form.data").value == "cifar-100"
        assert app.number_input("form.prune.k_steps").value == 30
        text = text_of(app)
        assert PRESETS["resnet50-cifar100"].needs in text
        assert "Weights of resnet50-cifar100, 94.8 MB, not on this machine yet" in text
        assert "CIFAR-100, 169 MB, not on this machine yet" in text


class TestImages:
    def test_thumbnails_are_shown_before_anything_runs(self, open_form: Callable[..., AppTest], store: RunStore) -> None:
        app = open_form()
        assert sum(part.proto.body.count("<img") for part in app.get("html")) == 8
        assert "512 of 3,000 training images calibrate; all 10,000 test images are measured on. Labels give an" in text_of(app)
        assert store.list() == []

    def test_dropped_pictures_become_the_images_of_the_run(self, open_form: Callable[..., AppTest], store: RunStore) -> None:
        app = open_form()
        files = [(f"{i}.png", picture(i), "image/png") for i in range(40)]
        uploader(app, "Your own").set_value(files).run()
        text = text_of(app)
        assert "Took in 40 pictures" in text
        assert "20 of 40 pictures calibrate; the 20 others are measured on. Without labels there is no accuracy" in text
        assert len(re.findall(r"calibrates?\b", text)) == 1
        assert app.number_input("form.num_calibration").value == 20
        button(app, "Start").click().run()
        data = Path(store.list()[0].config().data)
        assert data.is_relative_to(store.root)
        assert len(list(data.iterdir())) == 40

    def test_an_archive_of_classes_gives_labels(self, open_form: Callable[..., AppTest]) -> None:
        files = {f"shop/{name}/{i}.png": picture(i) for name in ("bag", "coat") for i in range(20)} | {"shop/readme.md": b"x"}
        app = open_form()
        uploader(app, "Your own").set_value([("shop.zip", archive(files), "application/zip")]).run()
        text = text_of(app)
        assert "Took in 40 pictures in 2 folders; left out 1 file: shop/readme.md" in text
        assert "Labels give an accuracy" in text

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ([("a.zip", archive({"../a.png": picture(1)}), "")], "would lie outside the folder of the pictures"),
            ([("a.zip", b"PK nonsense", "")], "is not a whole zip or tar archive"),
            ([("a.png", b"no picture", "")], "a.png is not an image that can be read"),
            ([("a.zip", archive({}), ""), ("b.png", picture(1), "")], "Bring one archive, or pictures, not both"),
        ],
    )
    def test_what_cannot_be_taken_in_is_a_sentence_and_changes_nothing(
        self, files: list[tuple[str, bytes, str]], said: str, open_form: Callable[..., AppTest]
    ) -> None:
        app = open_form()
        uploader(app, "Your own").set_value(files).run()
        assert any(said in error.value for error in app.error)
        assert app.session_state["form.data"] == "fashion-mnist"
        assert "Start" in labels(app)

    def test_images_that_do_not_suit_the_network(self, open_form: Callable[..., AppTest], tmp_path: Path) -> None:
        for i in range(40):
            Image.new("RGB", (50, 50)).save(tmp_path / f"{i}.png")
        app = open_form(data=str(tmp_path), num_calibration=8)
        assert any("28x28 grey images, not 50x50" in error.value for error in app.error)
        assert button(app, "Start").disabled
        assert str(tmp_path) not in text_of(app)

    @pytest.mark.parametrize(
        ("chosen", "reason"),
        [
            ({"model": "timm:test_vit"}, "timm:test\\_vit takes images of shape 3x160x160"),
            ({"num_calibration": 10**9}, "1,000,000,000 calibration images were asked for, but Fashion-MNIST has 3,000"),
            ({"num_evaluation": 10**9}, "1,000,000,000 evaluation images were asked for"),
            ({"model": "resnet20-cifar10", "data": "cifar-10", "num_calibration": 10**9}, "CIFAR-10 has 50,000"),
            ({"data": "/nowhere/at/all"}, "There is no data set and no folder 'all'"),
        ],
    )
    def test_what_cannot_work_cannot_be_started_and_says_why(
        self, chosen: dict[str, object], reason: str, open_form: Callable[..., AppTest]
    ) -> None:
        app = open_form(**chosen)
        text = text_of(app)
        assert re.search(rf"\*\*It cannot start.\*\* .*{re.escape(reason)}", text)
        assert button(app, "Start").disabled
        assert "--" not in text

    def test_a_set_that_is_still_to_be_downloaded_can_be_started(self, open_form: Callable[..., AppTest]) -> None:
        app = open_form(data="flowers-102", model="vit-fashion", num_calibration=1020)
        assert not button(app, "Start").disabled

    @pytest.mark.parametrize(
        ("count", "num_calibration", "num_evaluation", "said"),
        [
            (40, 8, 1000, "8 of 40 pictures calibrate; the 32 others are measured on."),
            (40, 8, 20, "8 of 40 pictures calibrate; 20 of the 32 others are measured on."),
            (12, 9, 1000, "That leaves too few to measure on, so all 12 pictures are measured on, those among them."),
        ],
    )
    def test_one_sentence_says_what_calibrates_and_what_is_measured(
        self,
        count: int,
        num_calibration: int,
        num_evaluation: int,
        said: str,
        open_form: Callable[..., AppTest],
        tmp_path: Path,
    ) -> None:
        for i in range(count):
            (tmp_path / f"{i}.png").write_bytes(picture(i))
        text = text_of(open_form(data=str(tmp_path), num_calibration=num_calibration, num_evaluation=num_evaluation))
        assert said in text
        assert len(re.findall(r"calibrates?\b", text)) == 1


class TestDownloads:
    def test_progress_end_and_stop(self) -> None:
        go_on, reported = threading.Event(), threading.Event()

        def fetch(name: str, report: Callable[[str, int, int | None], None]) -> None:
            if name == "bad":
                raise InputError("The host is away. Bring the file.")
            report("a set", 5, 10)
            reported.set()
            assert go_on.wait(20)
            report("a set", 10, 10)

        def ended(name: str) -> str:
            deadline = time.monotonic() + 20
            while (seen := downloads.look(name)) is None or seen.active:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            return seen.error

        downloads = Downloads(fetch)
        assert downloads.look("good") is None
        downloads.start("good")
        downloads.start("good")  # a second click
        assert reported.wait(20)
        seen = downloads.look("good")
        assert seen is not None
        assert (seen.what, seen.done, seen.total, seen.active) == ("a set", 5, 10, True)
        downloads.stop("good")
        go_on.set()
        assert ended("good") == ""
        seen = downloads.look("good")
        assert seen is not None
        assert seen.done == 5
        downloads.start("good")
        assert ended("good") == ""
        seen = downloads.look("good")
        assert seen is not None
        assert seen.done == 10
        downloads.start("bad")
        assert ended("bad") == "The host is away. Bring the file."

    def test_a_failed_one_says_so_where_it_was_begun(
        self, open_form: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(named_sets, "no_route", lambda address: "no route to host")
        app = open_form(model="resnet20-cifar10", data="cifar-10")
        app.button("fetch-cifar-10").click().run()
        deadline = time.monotonic() + 20
        while not any("CIFAR-10 could not be fetched" in error.value for error in app.error):
            assert time.monotonic() < deadline, text_of(app)
            app.run()
        said = next(error.value for error in app.error if "could not be fetched" in error.value)
        assert "bring the pictures in it as an archive" in said
        assert str(named_sets.ROOT) not in said


def test_words_for_what_was_brought() -> None:
    assert sources.data_words("/home/me/.snows/runs/.uploads/0123/holiday") == "holiday, brought by you"
    assert sources.data_words("flowers-102") == "Oxford Flowers-102"
    assert RunConfig.model_validate({"class_names": "a\n\n b "}).class_names == ("a", "b")
