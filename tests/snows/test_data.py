import gzip
import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snows import data
from snows.data import BUNDLE, DataError, like_fashion_mnist, load, read_fashion_mnist, read_picture
from snows.models import LoadedModel
from snows.models import load as load_model


@pytest.fixture(scope="module")
def grey() -> LoadedModel:
    return load_model("resnet20-fashion", pretrained=False)


@pytest.fixture(scope="module")
def colour() -> LoadedModel:
    return load_model("timm:test_vit", pretrained=False)


def _fill(folder: Path, count: int, *, size: tuple[int, int] = (28, 28), mode: str = "L", first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new(mode, size, (first + i) if mode == "L" else (first + i, 0, 0)).save(folder / f"{i:03d}.png")


def _levels(images: torch.Tensor) -> list[int]:
    """The grey level each constant 28x28 picture was drawn with, from its preprocessed form."""
    return ((images[:, 0, 16, 16] * 0.3530 + 0.2860) * 255).round().int().tolist()


# --- Fashion-MNIST ---


def test_bundle_has_what_the_documentation_says(grey: LoadedModel) -> None:
    loaded = load("fashion-mnist", grey, 3_000, 10_000, seed=0)
    assert loaded.calibration.shape == (3_000, 1, 32, 32)
    assert loaded.evaluation.shape == (10_000, 1, 32, 32)
    assert loaded.labels is not None
    assert loaded.labels.bincount().tolist() == [1_000] * 10
    assert loaded.labels.dtype == torch.int64


def test_bundled_assets_stay_small() -> None:
    assert sum(path.stat().st_size for path in data.ASSETS.rglob("*") if path.is_file()) < 25e6


def test_bundle_is_what_its_command_builds(tmp_path: Path) -> None:
    if not data.SYSTEM_FOLDER.exists():
        pytest.skip("needs the full Fashion-MNIST: apt-get install dataset-fashion-mnist")
    with np.load(data.write_bundle(tmp_path / "bundle.npz")) as rebuilt, np.load(data.BUNDLE) as shipped:
        assert rebuilt.files == shipped.files
        for name in rebuilt.files:
            assert np.array_equal(rebuilt[name], shipped[name]), name


def test_bundle_is_plain_arrays_of_distinct_images() -> None:
    with np.load(data.BUNDLE, allow_pickle=False) as bundle:
        assert all(bundle[name].dtype in (np.uint8, np.int32) for name in bundle.files)
        indices = bundle["calibration_indices"]
        assert len(set(indices.tolist())) == 3_000
        assert indices.min() >= 0
        assert indices.max() < 60_000
        assert np.bincount(bundle["calibration_labels"]).min() > 200


def test_choice_is_seeded_ordered_and_nested(grey: LoadedModel) -> None:
    first, again, larger, other = (
        load("fashion-mnist", grey, count, 10, seed).calibration for count, seed in ((64, 1), (64, 1), (128, 1), (64, 2))
    )
    assert torch.equal(first, again)
    assert torch.equal(first, larger[:64])
    assert not torch.equal(first, other)


def test_evaluation_is_the_first_test_images(grey: LoadedModel) -> None:
    few, many = (load("fashion-mnist", grey, 1, count, seed) for count, seed in ((7, 0), (20, 5)))
    assert torch.equal(few.evaluation, many.evaluation[:7])
    assert torch.equal(few.labels, many.labels[:7])


@pytest.mark.parametrize("zipped", [False, True])
def test_full_set_from_torchvision_layout(zipped: bool, fashion_root: Path) -> None:
    for path in (fashion_root / "FashionMNIST" / "raw").iterdir():
        if zipped:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    images, labels = read_fashion_mnist("train", fashion_root)
    assert images.shape == (50, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert images[:, 0, 5, 5].tolist() == list(range(50))
    assert labels.tolist() == [i % 10 for i in range(50)]
    assert len(read_fashion_mnist("test", fashion_root)[0]) == 20


def test_full_set_by_name(fashion_root: Path, grey: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DOWNLOAD_ROOT", fashion_root)
    loaded = load("fashion-mnist-full", grey, 50, 20, seed=0)
    assert sorted(_levels(loaded.calibration)) == list(range(50))
    assert _levels(loaded.evaluation) == list(range(20))


def test_full_set_nowhere_names_both_places_and_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SYSTEM_FOLDER", tmp_path / "system")
    with pytest.raises(DataError) as raised:
        read_fashion_mnist("train", tmp_path / "mine")
    for part in (
        f"{tmp_path}/mine/FashionMNIST/raw",
        f"{tmp_path}/system",
        "apt-get install dataset-fashion-mnist",
        "download=True",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: b"\0\0\x0d" + raw[3:], lambda raw: raw[:9]]
)
def test_damaged_idx_file(damage: Callable[[bytes], bytes], fashion_root: Path) -> None:
    for path in (fashion_root / "FashionMNIST" / "raw").glob("train-images*"):
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError, match=re.escape(path.name)):
            read_fashion_mnist("train", fashion_root)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "are not at"), (b"no archive", "is damaged"), (b"PK\x03\x04broken", "is damaged")]
)
def test_missing_or_damaged_bundle(
    content: bytes | None, said: str, grey: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "BUNDLE", tmp_path / "bundle.npz")
    if content is not None:
        data.BUNDLE.write_bytes(content)
    with pytest.raises(DataError, match=f"{said}.*python -m snows bundle-data"):
        load("fashion-mnist", grey, 1, 1, 0)


@pytest.mark.parametrize(("calibration", "evaluation", "said"), [(3_001, 1, "at most 3,000"), (1, 10_001, "at most 10,000")])
def test_more_than_there_are(calibration: int, evaluation: int, said: str, grey: LoadedModel) -> None:
    with pytest.raises(DataError, match=said):
        load("fashion-mnist", grey, calibration, evaluation, 0)


def test_fashion_images_do_not_suit_a_colour_network(colour: LoadedModel) -> None:
    with pytest.raises(DataError, match=r"timm:test_vit takes images of shape 3x160x160 .* --data FOLDER"):
        load("fashion-mnist", colour, 1, 1, 0)


# --- folders ---


def test_flat_folder_has_no_labels_and_evaluates_on_the_rest(grey: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path, 40)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"nor this")
    loaded = load(str(tmp_path), grey, 10, 1_000, seed=4)
    calibration, evaluation = _levels(loaded.calibration), _levels(loaded.evaluation)
    assert loaded.labels is None
    assert loaded.notes == []
    assert len(calibration) == 10
    assert sorted(calibration + evaluation) == list(range(40))
    again = load(str(tmp_path), grey, 10, 5, seed=4)
    assert torch.equal(again.calibration, loaded.calibration)
    assert torch.equal(again.evaluation, loaded.evaluation[:5])


def test_too_few_left_evaluates_on_all_and_says_so(grey: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path, 20)
    loaded = load(str(tmp_path), grey, 15, 1_000, seed=0)
    assert _levels(loaded.evaluation) == list(range(20))
    assert "leaves only 5 of the 20 images" in loaded.notes[0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(("bag", "ankle_boot"), (8, 9), id="class-names"),
        pytest.param(tuple(f"{i:02d}" for i in range(10)), tuple(range(10)), id="one-a-class"),
    ],
)
def test_one_folder_a_class(names: tuple[str, ...], expected: tuple[int, ...], grey: LoadedModel, tmp_path: Path) -> None:
    for index, name in enumerate(names):
        _fill(tmp_path / name, 20, first=20 * index)
    loaded = load(str(tmp_path), grey, 8, 1_000, seed=0)
    assert loaded.labels is not None
    wanted = dict(zip(names, expected, strict=True))
    drawn_in = {20 * index + i: name for index, name in enumerate(names) for i in range(20)}
    assert loaded.labels.tolist() == [wanted[drawn_in[level]] for level in _levels(loaded.evaluation)]


def test_imagenet_ids_name_classes(colour: LoadedModel, tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):  # tench, goldfish
        _fill(tmp_path / name, 12, mode="RGB")
    loaded = load(str(tmp_path), colour, 4, 20, seed=0)
    assert loaded.labels is not None
    assert set(loaded.labels.tolist()) == {0, 1}
    assert loaded.evaluation.shape == (20, 3, 160, 160)


def test_unknown_class_folders_give_no_labels_and_say_so(grey: LoadedModel, tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        _fill(tmp_path / name, 20)
    loaded = load(str(tmp_path), grey, 4, 20, seed=0)
    assert loaded.labels is None
    assert "(cats, dogs) are not named like the classes of resnet20-fashion" in loaded.notes[0]


def test_grey_and_palette_pictures_suit_a_colour_network(colour: LoadedModel, tmp_path: Path) -> None:
    Image.new("L", (40, 30), 7).save(tmp_path / "a.png")
    Image.new("P", (10, 90)).save(tmp_path / "b.gif")
    Image.new("RGBA", (50, 50)).save(tmp_path / "c.webp")
    assert load(str(tmp_path), colour, 3, 3, 0).calibration.shape == (3, 3, 160, 160)


def test_photographs_are_turned_upright(colour: LoadedModel, tmp_path: Path) -> None:
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[:30] = 255
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned by a quarter
    upright.rotate(90).save(tmp_path / "turned.png", exif=exif)
    loaded = load(str(tmp_path), colour, 1, 1, 0)
    assert torch.equal(loaded.calibration, colour.preprocess([upright]))


def _text(folder: Path) -> None:
    (folder / "fake.png").write_text("I am no picture")


def _cut(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:400])


def _mixed(folder: Path) -> None:
    _fill(folder, 2)
    _fill(folder / "bag", 2)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        pytest.param(lambda folder: None, "There are no images in", id="empty"),
        pytest.param(lambda folder: (folder / "a.csv").write_text("x"), r"\(it holds a.csv\)", id="no-images"),
        pytest.param(_text, "fake.png is not an image that can be read", id="text"),
        pytest.param(_cut, "cut.png is not an image that can be read", id="cut"),
        pytest.param(_mixed, "both beside its folders and in them", id="mixed"),
        pytest.param(partial(_fill, count=2, size=(32, 28)), r"000.png|001.png.*28x28 grey images, not 32x28", id="size"),
        pytest.param(partial(_fill, count=2, mode="RGB"), "28x28 grey images, not 28x28 of kind RGB", id="channels"),
    ],
)
def test_folders_that_cannot_be_used(prepare: Callable[[Path], object], said: str, grey: LoadedModel, tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(DataError, match=said):
        load(str(tmp_path), grey, 1, 1, 0)


def test_more_calibration_images_than_the_folder_holds(grey: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path, 5)
    with pytest.raises(DataError, match=r"6 calibration images were asked for, but .* holds 5 images. Ask for at most 5"):
        load(str(tmp_path), grey, 6, 1, 0)


def test_a_picture_from_its_content() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    assert np.array_equal(np.asarray(read_picture(content.getvalue(), "x.png")), pixels)
    with pytest.raises(DataError, match=r"notes.txt is not an image that can be read"):
        read_picture(b"I am no picture", "notes.txt")


@pytest.mark.parametrize("light_ground", [True, False])
def test_a_photograph_made_like_fashion_mnist(light_ground: bool) -> None:
    photograph = np.full((200, 300, 3), 250 if light_ground else 5, np.uint8)
    photograph[40:180, 120:190] = 60 if light_ground else 195  # a thing of 140 x 70 pixels off the middle
    found = like_fashion_mnist(Image.fromarray(photograph))
    assert (found.size, found.mode) == ((28, 28), "L")
    pixels = np.asarray(found)
    assert (pixels[:, 7:21] == 195).all()  # 28 x 14, in the middle, light
    assert (pixels[:, :7] == 0).all()
    assert (pixels[:, 21:] == 0).all()


def test_a_picture_of_nothing_stays_one() -> None:
    assert (np.asarray(like_fashion_mnist(Image.new("RGBA", (40, 40), "white"))) == 0).all()


def test_fashion_mnist_made_like_itself_keeps_its_light_and_dark() -> None:
    image = Image.fromarray(np.load(BUNDLE)["test_images"][0, 0])
    again = np.asarray(like_fashion_mnist(image), dtype=float)
    assert np.corrcoef(again.ravel(), np.asarray(image, dtype=float).ravel())[0, 1] > 0.75


def test_oversized_picture(colour: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    _fill(tmp_path, 1, size=(100, 100))
    with pytest.raises(DataError, match="too large an image"):
        load(str(tmp_path), colour, 1, 1, 0)


def test_more_images_than_memory(colour: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(tmp_path, 30)
    monkeypatch.setattr("os.sysconf", lambda name: 1_000)
    with pytest.raises(DataError, match=r"30 images of shape 3x160x160 need 0.0 GB, more than half"):
        load(str(tmp_path), colour, 10, 20, 0)


def test_neither_a_name_nor_a_folder(grey: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no data set and no folder 'cifar-1000'"):
        load("cifar-1000", grey, 1, 1, 0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file, not a folder"):
        load(str(tmp_path / "file"), grey, 1, 1, 0)
