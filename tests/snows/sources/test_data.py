import gzip
import io
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snows.config import InputError
from snows.sources import data
from snows.sources.data import BUNDLE, DataError, like_fashion_mnist, load, preview, read_fashion_mnist, read_picture
from snows.sources.models import CIFAR10_CLASSES, LoadedModel, outline
from snows.sources.models import load as load_model


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


def test_images_are_held_back_after_the_others_and_change_none(grey: LoadedModel) -> None:
    plain, beside = load("fashion-mnist", grey, 64, 10, 1), load("fashion-mnist", grey, 64, 10, 1, num_held_back=9)
    assert plain.held_back is None
    assert torch.equal(plain.calibration, beside.calibration)
    assert torch.equal(plain.evaluation, beside.evaluation)
    assert torch.equal(beside.held_back, load("fashion-mnist", grey, 73, 10, 1).calibration[64:])
    assert beside.notes == []
    few = load("fashion-mnist", grey, 2_998, 10, 1, num_held_back=9)
    assert len(few.held_back) == 2
    assert few.notes == [
        "9 images were to be held back from the fit, but calibration leaves only 2. Calibrate on fewer, or bring more, to see "
        "how the fit carries over."
    ]
    none = load("fashion-mnist", grey, 3_000, 10, 1, num_held_back=9)
    assert none.held_back is None
    assert "calibration leaves none" in none.notes[0]


def test_what_a_folder_holds_back_was_neither_calibrated_with_nor_unusable(grey: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path, 40)
    for name in ("005.png", "017.png", "030.png"):
        (tmp_path / name).write_bytes(b"damaged")
    plain, beside = load(tmp_path, grey, 20, 1_000, seed=3), load(tmp_path, grey, 20, 1_000, seed=3, num_held_back=8)
    assert torch.equal(plain.calibration, beside.calibration)
    assert torch.equal(plain.evaluation, beside.evaluation)
    assert plain.notes == beside.notes
    held_back = _levels(beside.held_back)
    assert len(set(held_back)) == 8
    assert not {*held_back} & {*_levels(beside.calibration), 5, 17, 30}


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
    ("content", "said"), [(None, "are missing"), (b"no archive", "is damaged"), (b"PK\x03\x04broken", "is damaged")]
)
def test_missing_or_damaged_bundle(
    content: bytes | None, said: str, grey: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "BUNDLE", tmp_path / "bundle.npz")
    if content is not None:
        data.BUNDLE.write_bytes(content)
    with pytest.raises(DataError, match=f"{said}.*build it again") as refused:
        load("fashion-mnist", grey, 1, 1, 0)
    assert refused.value.in_shell == "python -m snows bundle-data"


@pytest.mark.parametrize(("calibration", "evaluation", "said"), [(3_001, 1, "at most 3,000"), (1, 10_001, "at most 10,000")])
def test_more_than_there_are(calibration: int, evaluation: int, said: str, grey: LoadedModel) -> None:
    with pytest.raises(DataError, match=said):
        load("fashion-mnist", grey, calibration, evaluation, 0)


def test_fashion_images_do_not_suit_a_colour_network(colour: LoadedModel) -> None:
    with pytest.raises(DataError, match=r"timm:test_vit takes images of shape 3x160x160 .* bring a folder of them"):
        load("fashion-mnist", colour, 1, 1, 0)


# --- folders ---


def test_flat_folder_has_no_labels_and_evaluates_on_the_rest(grey: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path, 40)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"nor this")
    loaded = load(str(tmp_path), grey, 10, 1_000, seed=4)
    calibration, evaluation = _levels(loaded.calibration), _levels(loaded.evaluation)
    assert loaded.labels is None
    assert loaded.notes == [f"Of the files in {tmp_path}, left out 1 file: notes.txt."]
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
        pytest.param(("Sneaker", "T-SHIRT TOP"), (7, 0), id="case-and-signs"),
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
    assert "(cats, dogs) are not named like the classes of resnet20-fashion (T-shirt/top, Trouser" in loaded.notes[0]


# --- whose class is whose ---


def _labelled(folders: tuple[str, ...], model: LoadedModel, place: Path) -> tuple[dict[str, int] | None, list[str]]:
    """Which output each folder is taken for, and the notes, measured by `load` itself."""
    for index, name in enumerate(folders):
        _fill(place / name, 17, first=20 * index)
    loaded = load(place, model, 1, 1_000, seed=0)
    if loaded.labels is None:
        return None, loaded.notes
    drawn_in = [folders[level // 20] for level in _levels(loaded.evaluation)]
    return dict(zip(drawn_in, loaded.labels.tolist(), strict=True)), loaded.notes


CIFAR_AS_OTHERS_SAY = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.parametrize(
    ("names", "folders", "said"),
    [
        pytest.param(CIFAR10_CLASSES, CIFAR_AS_OTHERS_SAY, "(car, plane; 2 of 10)", id="short-words"),
        pytest.param(CIFAR10_CLASSES, tuple(map(str, range(10))), "(0, 1, 2, …)", id="numbers"),
        pytest.param(("rose", "lily"), ("Rose", "tulip"), "(tulip; 1 of 2)", id="one-of-two"),
        pytest.param(("a", "b"), ("A", "Á"), "(Á; 1 of 2)", id="an-accent-is-no-sign"),
        pytest.param(("crane", "crane", "bag"), ("crane", "bag"), "(crane; 1 of 2)", id="two-outputs-of-one-name"),
        pytest.param(("A", "B"), ("a", "a-"), "(a, a-)", id="two-folders-for-one-output"),
        pytest.param(("किताब", "कताब"), ("किताब", "कूताब"), "(कूताब; 1 of 2)", id="vowel-signs"),
    ],
)
def test_folders_that_do_not_name_the_classes_give_no_accuracy(
    names: tuple[str, ...], folders: tuple[str, ...], said: str, grey: LoadedModel, tmp_path: Path
) -> None:
    labels, notes = _labelled(folders, replace(grey, class_names=names), tmp_path)
    assert labels is None
    (note,) = notes
    assert said in note
    assert "no accuracy" in note


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        pytest.param(("A", "a", "b-1", "b1"), ("a", "A", "b1", "b-1"), id="case-and-signs-tell-apart"),
        pytest.param(("Cardigan, Welsh corgi", "cardigan"), ("cardigan", "Cardigan"), id="dog-and-cardigan"),
        pytest.param(("Café", "naïf"), ("Cafe\u0301", "nai\u0308f"), id="decomposed"),
        pytest.param(("Straße", "Weg"), ("STRASSE", "weg"), id="sharp-s"),
        pytest.param(("tench, Tinca tinca", "English springer, springer"), ("English_springer", "tench"), id="synonyms"),
        pytest.param(("tench, Tinca tinca", "goldfish"), ("Tinca tinca", "goldfish"), id="second-synonym"),
        pytest.param(("tench", "goldfish"), ("tench, Tinca tinca", "goldfish, Carassius auratus"), id="synonyms-on-disk"),
        pytest.param(("rose", "lily", "tulip"), ("TULIP", "rose"), id="some-of-them"),
    ],
)
def test_folders_that_name_the_classes(
    names: tuple[str, ...], folders: tuple[str, ...], grey: LoadedModel, tmp_path: Path
) -> None:
    def same(name: str) -> str:
        return unicodedata.normalize("NFC", name)

    labels, notes = _labelled(folders, replace(grey, class_names=names), tmp_path)
    assert labels is not None
    assert notes == []
    for folder, index in labels.items():
        if same(folder) in map(same, names):
            assert same(names[index]) == same(folder)
        else:
            stem = folder.partition(",")[0].replace("_", " ").casefold().replace("ss", "ß")
            assert stem in names[index].casefold().replace("ss", "ß")


def test_timm_and_torchvision_know_the_same_names(colour: LoadedModel) -> None:
    torchvision = outline("torchvision:squeezenet1_1")
    folders = [
        "tench",
        "English springer",
        "cassette player",
        "chain saw",
        "church",
        "French horn",
        "garbage truck",
        "golf ball",
    ]
    assert data._matched(folders, colour) == data._matched(folders, torchvision)
    assert len(data._matched(folders, colour)) == len(folders)


def test_by_position_only_where_outputs_have_no_names_and_then_it_is_said(grey: LoadedModel, tmp_path: Path) -> None:
    unnamed = replace(grey, class_names=("class 0", "class 1", "class 2"))
    labels, notes = _labelled(("wolf", "ant", "Bee"), unnamed, tmp_path)
    assert labels == {"Bee": 0, "ant": 1, "wolf": 2}
    assert "have no names" in notes[0]
    assert "Bee for the first, wolf for the last" in notes[0]
    labels, notes = _labelled(("yak",), unnamed, tmp_path)
    assert labels is None
    assert "are 4 where it has 3 outputs" in notes[0]


# --- parts of a set, hidden folders, and what cannot be used ---


@pytest.mark.parametrize(
    "layout",
    [
        "train/{c}/{i}.png val/{c}/{i}.png",
        "data/Training/{c}/{i}.png data/Test/{c}/{i}.png",
        "train_set/{c}/{i}.png valid/{c}/{i}.png",
    ],
)
def test_a_folder_with_parts_calibrates_on_one_and_measures_on_the_other(
    layout: str, grey: LoadedModel, tmp_path: Path
) -> None:
    for start, part in zip((0, 100), layout.split(), strict=True):
        for index, name in enumerate(("bag", "coat", ".ipynb_checkpoints")):
            for i in range(8):
                path = tmp_path / part.format(c=name, i=i)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (28, 28), start + 10 * index + i).save(path)
    loaded = load(tmp_path, grey, 16, 1_000, seed=1)
    assert sorted(_levels(loaded.calibration)) == [*range(8), *range(10, 18)]
    assert sorted(_levels(loaded.evaluation)) == [*range(100, 108), *range(110, 118)]
    assert loaded.labels is not None
    assert [8 if level < 110 else 4 for level in _levels(loaded.evaluation)] == loaded.labels.tolist()
    assert "calibrates and" in loaded.notes[0]


def test_a_test_part_without_classes_gives_no_accuracy_and_says_so(grey: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path / "train" / "bag", 4)
    _fill(tmp_path / "train" / "coat", 4, first=10)
    _fill(tmp_path / "test", 20, first=100)
    loaded = load(tmp_path, grey, 4, 20, seed=0)
    assert loaded.labels is None
    assert "test lie in no class folders" in loaded.notes[-1]
    assert {word.partition(" ")[0] for word in preview(str(tmp_path), grey, 4, 20, 0, 4).words} <= {
        "bag",
        "coat",
        "Bag",
        "Coat",
    }


@pytest.mark.parametrize("clutter", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"])
def test_hidden_folders_are_no_classes(clutter: str, grey: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path / clutter, 3)
    labels, notes = _labelled(("Bag", "Coat"), grey, tmp_path)
    assert labels == {"Bag": 8, "Coat": 4}
    assert notes == []


def test_what_cannot_be_used_is_left_out_by_name(grey: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path, 50)
    (tmp_path / "007.png").write_bytes((tmp_path / "007.png").read_bytes()[:45])
    (tmp_path / "008.png").write_bytes(b"")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "phone.heic").write_bytes(b"x")
    Image.new("L", (9, 9)).save(tmp_path / "small.png")
    loaded = load(tmp_path, grey, 30, 1_000, seed=0)
    assert len(loaded.calibration) == 30
    levels = [*_levels(loaded.calibration), *_levels(loaded.evaluation)]
    assert sorted(levels) == [level for level in range(50) if level not in (7, 8)]
    files, images = loaded.notes
    assert "left out 4 files" in files
    for name in ("gone.jpg is a link to nothing", "pipe.png is no file", "round.jpg"):
        assert name in files
    assert "left out 3 files" in images
    for name in ("007.png is not an image", "008.png is not an image", "small.png does not suit the model"):
        assert name in images


def test_a_choice_does_not_depend_on_what_lies_beside_it_unusable(grey: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path, 40)
    (tmp_path / "005.png").write_bytes(b"damaged")
    few, many = (load(tmp_path, grey, count, 20, seed=3) for count in (10, 20))
    assert torch.equal(few.calibration, many.calibration[:10])
    assert not set(_levels(many.calibration)) & set(_levels(many.evaluation))


def test_too_many_unusable_images_name_the_way_out(grey: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path, 5)
    (tmp_path / "000.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"only 4 of 5 can be used; left out 1 file: .*000.png is not .* or ask for fewer"):
        load(tmp_path, grey, 5, 5, 0)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".webp", ".TIF", ".ppm", ".JPEG", ".bmp", ".apng"])
def test_every_kind_that_can_be_read(suffix: str, colour: LoadedModel, tmp_path: Path) -> None:
    Image.new("RGB", (30, 30), (200, 30, 30)).save(tmp_path / f"a{suffix}")
    assert load(tmp_path, colour, 1, 1, 0).calibration.shape == (1, 3, 160, 160)


def test_images_that_are_all_the_same_are_said(grey: LoadedModel, tmp_path: Path) -> None:
    for i in range(20):
        Image.new("L", (28, 28), 50).save(tmp_path / f"{i}.png")
    assert "All 4 calibration images are the same" in load(tmp_path, grey, 4, 16, 0).notes[-1]
    Image.new("L", (28, 28), 51).save(tmp_path / "other.png")
    assert load(tmp_path, grey, 21, 21, 0).notes == [load(tmp_path, grey, 21, 21, 0).notes[0]]


# --- depths and sizes ---


def _sixteen_bits(form: str) -> bytes:
    values = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    if form == "pgm":
        return b"P5 4 1 65535\n" + values.astype(">u2").tobytes()
    file = io.BytesIO()
    if form == "big-endian":
        Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes()).save(file, "TIFF")
    else:
        Image.fromarray(values.astype(np.int32) if form == "int32" else values).save(file, "PNG" if form == "png" else "TIFF")
    return file.getvalue()


@pytest.mark.parametrize("form", ["png", "tiff", "pgm", "big-endian", "int32"])
def test_grey_of_sixteen_bits_keeps_black_and_white(form: str) -> None:
    picture = read_picture(_sixteen_bits(form), "x")
    assert picture.mode == "L"
    assert np.asarray(picture).tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize(
    "values", [np.array([[0.0, 1.0]], np.float32), np.array([[-1, 5]], np.int32), np.array([[0, 70_000]], np.int32)]
)
def test_values_without_a_black_and_a_white(values: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    with pytest.raises(DataError, match=r"x.tif holds values from .* Save it with 8 or 16 bits"):
        read_picture(file.getvalue(), "x.tif")


def test_print_colours_become_screen_colours() -> None:
    file = io.BytesIO()
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(file, "JPEG", quality=100)
    red = np.asarray(read_picture(file.getvalue(), "x.jpg"))
    assert red.shape == (4, 4, 3)
    assert red[0, 0, 0] > 240 > 20 > red[0, 0, 1]


@pytest.mark.parametrize("size", [(1, 400_000), (60_000, 3)])
def test_a_strip_that_would_grow_beyond_all_limits(size: tuple[int, int], colour: LoadedModel, tmp_path: Path) -> None:
    _fill(tmp_path, 3, size=(40, 30))
    Image.new("L", size).save(tmp_path / "strip.png")
    loaded = load(tmp_path, colour, 3, 3, 0)
    assert "left out 1 file" in loaded.notes[-1]
    assert "strip.png does not suit the model: with its shorter edge at" in loaded.notes[-1]
    with pytest.raises(InputError, match="are the limit"):
        colour.preprocess(torch.zeros(1, 3, *size, dtype=torch.uint8))


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
        pytest.param(lambda folder: None, "There are no pictures in", id="empty"),
        pytest.param(lambda folder: (folder / "a.csv").write_text("x"), "it holds a.csv. Pictures end in", id="no-images"),
        pytest.param(_text, "fake.png is not an image that can be read", id="text"),
        pytest.param(_cut, "cut.png is not an image that can be read", id="cut"),
        pytest.param(_mixed, "lie in folders and some beside them", id="mixed"),
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
