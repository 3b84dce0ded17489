"""Networks and images in the form: looked up before loading, brought along, downloaded with progress."""

import io
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
        app = open_form(model="timm:vit_large_patch16_224")
        options = app.selectbox("form.model").options
        assert len(options) > 3_000
        assert {"timm:resnet18", "torchvision:vit_b_16"} <= set(options)
        text = text_of(app)
        assert "**304,326,632 parameters** · images of 3 x 224 x 224 · 1,000 classes" in text
        assert "The shorter edge to" in text
        assert "tench, Tinca tinca" in text
        assert "Weights of timm:vit_large_patch16_224, 1.22 GB, not on this machine yet" in text

    def test_before_the_engine_is_there_the_form_is(self, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "engine_ready", lambda: False)
        app = open_page("prune")
        assert app.selectbox("form.model").options == list(sources.MODELS.values())
        assert "once the engine is loaded" in text_of(app)
        assert "Start" in labels(app)

    def test_a_checkpoint_is_kept_with_the_runs_and_goes_into_the_config(
        self, open_form: Callable[..., AppTest], store: RunStore
    ) -> None:
        weights = save(models.load("vit-fashion", pretrained=False).module.state_dict())
        app = open_form(model="vit-fashion")
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
        assert app.selectbox("form.model").value == "resnet50-cifar100"
        assert app.selectbox("form.data").value == "cifar-100"
        assert app.number_input("form.prune.k_steps").value == 30
        text = text_of(app)
        assert PRESETS["resnet50-cifar100"].needs in text
        assert "Weights of resnet50-cifar100, 94.8 MB, not on this machine yet" in text
        assert "CIFAR-100, 169 MB, not on this machine yet" in text


class TestImages:
    def test_thumbnails_are_shown_before_anything_runs(self, open_form: Callable[..., AppTest], store: RunStore) -> None:
        app = open_form()
        assert len(app.get("imgs") or app.get("image")) == 8
        assert "3,000 to calibrate with, 10,000 to measure on · labels give an accuracy" in text_of(app)
        assert store.list() == []

    def test_dropped_pictures_become_the_images_of_the_run(self, open_form: Callable[..., AppTest], store: RunStore) -> None:
        app = open_form()
        files = [(f"{i}.png", picture(i), "image/png") for i in range(40)]
        uploader(app, "Your own").set_value(files).run()
        text = text_of(app)
        assert "Took in 40 pictures" in text
        assert "40 to calibrate with, 20 to measure on · no labels: agreement and divergence instead of accuracy" in text
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
        assert "labels give an accuracy" in text

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
        said = next(error.value for error in app.error)
        assert "unpack it in" in said
        assert "cifar-10-batches-py" in said


def test_words_for_what_was_brought() -> None:
    assert sources.data_words("/home/me/.snows/runs/.uploads/0123/holiday") == "holiday, brought by you"
    assert sources.data_words("flowers-102") == "Oxford Flowers-102"
    assert RunConfig.model_validate({"class_names": "a\n\n b "}).class_names == ("a", "b")
