"""Calibration and evaluation images, for a network and by name.

    fashion-mnist        bundled in `assets/`: 3,000 training images to calibrate with, the 10,000 test images to evaluate on
    fashion-mnist-full   the same test images, all 60,000 training images; read from the disk, not bundled
    cifar-10, cifar-100, imagenette, oxford-pets, flowers-102
                         torchvision's data sets, downloaded when first used: see `datasets`
    FOLDER               pictures of one's own: in the folder itself (no labels), or in one folder a class; in folders for the
                         parts of the set (train, val, test), or all together

A choice is a seeded permutation of a sorted list, so a seed names the same images in the same order on every machine, and a
smaller choice is the beginning of a larger one. Calibration never looks at a label.
"""

import gzip
import itertools
import os
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from snows.bundled import ASSETS
from snows.config import AnyPath, InputError, RunConfig, as_path
from snows.sources import named_sets
from snows.sources.downloads import Report
from snows.sources.models import FASHION_CLASSES, LoadedModel, has_names
from snows.sources.pictures import (
    Arrangement,
    DataError,
    arrange,
    is_clutter,
    is_picture_name,
    left_out_words,
    read_picture,
    split_role,
)

BUNDLE = ASSETS / "fashion-mnist.npz"
BUNDLED_CALIBRATION = 3_000
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_ROOT = Path("~/.snows/data")
MAX_FOLDER_IMAGES = 2_000_000
# Agreement and accuracy on fewer images than this say nothing; then the calibration images are evaluated on too, and a note
# says so.
FEWEST_EVALUATION = 16
_MOST_UNUSABLE = 50  # images in a row that are tried before a set is given up
_GROUND_NOISE = 12  # grey levels by which a photograph's even background still varies


@dataclass(frozen=True)
class Data:
    """Preprocessed images, (N, C, H, W) float32 on the CPU, in a fixed order.

    `labels` (N,) int64 are indices into the model's `class_names`, or None where the images carry none the model knows. `notes`
    are sentences a person should see beside the results. `held_back` are further images of those that calibration is chosen
    from, None where there are none; in a folder that is not divided they are among those evaluated on. Nothing is fitted on
    either.
    """

    calibration: Tensor
    evaluation: Tensor
    labels: Tensor | None
    notes: list[str] = field(default_factory=list)
    held_back: Tensor | None = None


@dataclass(frozen=True)
class Preview:
    """What a run would get: the first calibration images, preprocessed as in `Data`, each with `words`, and what there is.

    `division` is the one sentence on which images calibrate and which are measured on.
    """

    images: Tensor
    words: list[str]
    division: str
    num_calibration: int  # that there are to choose from
    num_evaluation: int  # that the network would be measured on
    classes: tuple[str, ...]  # of the set, whether or not the network knows them
    labelled: bool  # whether there will be an accuracy
    notes: list[str]


# Read the first so many of the images in an order: the tensor, the numbers of those it holds, and a sentence on each image that
# was tried and cannot be used, by its number.
_Read = Callable[[list[int], int], tuple[Tensor, list[int], dict[int, str]]]


@dataclass(frozen=True)
class _Choice:
    """Which images of a set are used, none of them read yet: by their numbers, in the order in which they are tried."""

    calibration: list[int]
    num_calibration: int
    evaluation: list[int]
    num_evaluation: int
    read_calibration: _Read
    read_evaluation: _Read
    words: Callable[[int], str]  # of a calibration image
    label: Callable[[int], int] | None  # of an evaluation image
    classes: tuple[str, ...]
    notes: list[str]
    division: str  # which of the images calibrate and which are measured on, as a sentence
    division_note: str = ""  # what a run's log should say of it, where a person would not expect it
    shared: bool = False  # whether what calibration takes in place of unusable images is then not evaluated on


def load_configured(config: RunConfig, model: LoadedModel, report: Report | None = None) -> Data:
    """The images of a run, see `load`."""
    sizes = config.num_calibration, config.num_evaluation
    return load(config.data, model, *sizes, config.prune.seed, report, num_held_back=config.num_held_back)


def load(
    name: AnyPath,
    model: LoadedModel,
    num_calibration: int,
    num_evaluation: int,
    seed: int,
    report: Report | None = None,
    *,
    num_held_back: int = 0,
) -> Data:
    """Images of the set `name`, or of the folder of that path, as `model` expects them.

    `num_calibration` images are chosen with `seed`; evaluation takes the first `num_evaluation` test images of Fashion-MNIST,
    up to that many of torchvision's, the same whatever the seed, or up to that many of a folder's images that calibration does
    not use. The next `num_held_back` after those chosen to calibrate with are held back, fewer where there are no more, and
    change nothing of the others. `report` is told how a download goes and may raise to stop it.

    Images are (N, C, H, W) float32 on the CPU, labels (N,) int64, see `Data`. Fashion-MNIST is bundled, from Xiao et al. 2017
    (arXiv 1708.07747): 3,000 of its training images, and all 10,000 test images.

    Raises `DataError` for an unknown set, too few images, files that are not images, and images the model cannot take;
    `DownloadError` for a set that cannot be fetched; both `InputError`.

    >>> network = snows.load_model("resnet20-fashion")
    >>> images = snows.load_data("fashion-mnist", network, num_calibration=16, num_evaluation=8, seed=0)
    >>> images.calibration.shape, images.labels.shape
    (torch.Size([16, 1, 32, 32]), torch.Size([8]))
    """
    name = os.fspath(name)
    if name in named_sets.SETS:
        named_sets.fetch(name, report)
    chosen = _choose(name, model, num_calibration, num_evaluation, seed)
    _fits_memory(chosen.num_calibration + num_held_back + chosen.num_evaluation, model)
    calibration, used, unusable = chosen.read_calibration(chosen.calibration, chosen.num_calibration)
    if len(used) < num_calibration:
        raise DataError(
            f"{num_calibration:,} calibration images were asked for, but only {len(used):,} of {len(chosen.calibration):,} can "
            f"be used; {left_out_words(list(unusable.values()))}. Replace these, or ask for fewer.",
            in_shell="--num-calibration",
        )
    taken = {*used, *unusable} - set(chosen.calibration[:num_calibration]) if chosen.shared else set()
    rest = [number for number in chosen.evaluation if number not in taken]
    evaluation, measured, more = chosen.read_evaluation(rest, chosen.num_evaluation)
    if not measured:
        raise DataError(f"No image is left to measure on; {left_out_words(list(more.values()))}. Bring more images.")
    labels = None if chosen.label is None else torch.tensor([chosen.label(number) for number in measured])
    touched = {*used, *unusable}
    further = [number for number in chosen.calibration if number not in touched]
    held_back, left_out = _held_back(chosen, further, num_held_back)
    faults = sorted({*unusable.values(), *more.values(), *left_out})
    notes = [*filter(None, [chosen.division_note]), *chosen.notes, *_notes_of_faults(faults)]
    notes += _notes_of_equals(calibration, "calibration images")
    if (count := 0 if held_back is None else len(held_back)) < num_held_back:
        notes.append(
            f"{num_held_back:,} images were to be held back from the fit, but calibration leaves "
            f"{f'only {count:,}' if count else 'none'}. Calibrate on fewer, or bring more, to see how the fit carries over."
        )
    return Data(calibration, evaluation, labels, notes, held_back)


def _held_back(chosen: _Choice, order: list[int], count: int) -> tuple[Tensor | None, list[str]]:
    """The first `count` usable images in `order`, None where there are none, and a sentence on each that is not."""
    if not order or not count:
        return None, []
    try:
        images, _, unusable = chosen.read_calibration(order, count)
    except DataError as error:  # none of them
        return None, [str(error).rstrip(".")]
    return images, list(unusable.values())


def _notes_of_faults(faults: list[str]) -> list[str]:
    return [f"Of the images, {left_out_words(faults)}."] if faults else []


def _notes_of_equals(images: Tensor, what: str) -> list[str]:
    if len(images) < 2 or not all(torch.equal(image, images[0]) for image in images):
        return []
    return [f"All {len(images):,} {what} are the same as the network gets them, so they tell nothing. Check the pictures."]


def preview(name: AnyPath, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int, count: int) -> Preview:
    """What `load` would give, reading no more than `count` images. `model` may be an outline. Raises as `load` does, and
    `DataError` for a set that is still to be downloaded."""
    name = os.fspath(name)
    if name in named_sets.SETS and not named_sets.is_here(name):
        raise DataError(
            f"{named_sets.SETS[name].title} is not on this machine yet. Download it first.",
            in_shell=f"python -m snows fetch {name}",
        )
    chosen = _choose(name, model, num_calibration, num_evaluation, seed)
    _fits_memory(chosen.num_calibration + chosen.num_evaluation, model)
    images, first, unusable = chosen.read_calibration(chosen.calibration, min(count, chosen.num_calibration))
    return Preview(
        images,
        [chosen.words(number) for number in first],
        chosen.division,
        len(chosen.calibration),
        chosen.num_evaluation,
        chosen.classes,
        chosen.label is not None,
        [*chosen.notes, *_notes_of_faults(list(unusable.values())), *_notes_of_equals(images, "first images")],
    )


def _choose(name: str, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> _Choice:
    if name in ("fashion-mnist", "fashion-mnist-full"):
        return _fashion_mnist(name, model, num_calibration, num_evaluation, seed)
    if name in named_sets.SETS:
        return _named_set(name, model, num_calibration, num_evaluation, seed)
    folder = as_path(name)
    if not folder.exists():
        raise DataError(
            f"There is no data set and no folder {name!r}. Use fashion-mnist, {', '.join(named_sets.SETS)}, or the path of a "
            "folder of images."
        )
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, not a folder of images. Name the folder that holds the images.")
    return _image_folder(folder, model, num_calibration, num_evaluation, seed)


# --- Fashion-MNIST ---


def _fashion_mnist(name: str, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> _Choice:
    title = "Fashion-MNIST" + ("" if name == "fashion-mnist" else ", all of it,")
    if model.input_size[0] != 1 or model.class_names != FASHION_CLASSES:
        raise DataError(
            f"{title} holds 28x28 grey pictures of ten kinds of clothes, but {model.name} takes images of shape "
            f"{'x'.join(map(str, model.input_size))} and knows {len(model.class_names):,} classes. Choose images that suit it, "
            "or bring a folder of them.",
            in_shell="--data FOLDER",
        )
    if name == "fashion-mnist":
        arrays = _read_bundle(BUNDLE)
        train, train_labels, test, labels = (
            torch.from_numpy(arrays[key]) for key in ("calibration_images", "calibration_labels", "test_images", "test_labels")
        )
    else:
        (train, train_labels), (test, labels) = read_fashion_mnist("train"), read_fashion_mnist("test")
    _enough("calibration", num_calibration, len(train), f"{title} has {len(train):,} training images")
    _enough("evaluation", num_evaluation, len(test), f"{title} has {len(test):,} test images")
    return _Choice(
        calibration=_shuffled(len(train), seed).tolist(),
        num_calibration=num_calibration,
        evaluation=list(range(num_evaluation)),
        num_evaluation=num_evaluation,
        read_calibration=lambda order, count: (model.preprocess(train[order[:count]]), order[:count], {}),
        read_evaluation=lambda order, count: (model.preprocess(test[order[:count]]), order[:count], {}),
        words=lambda number: FASHION_CLASSES[int(train_labels[number])],
        label=lambda number: int(labels[number]),
        classes=FASHION_CLASSES,
        notes=[],
        division=_divided_sets(num_calibration, len(train), num_evaluation, len(test)),
    )


def read_fashion_mnist(split: str, root: AnyPath | None = None) -> tuple[Tensor, Tensor]:
    """Every image of the split `train` or `test`: (N, 1, 28, 28) uint8 and (N,) int64 labels.

    Looks for torchvision's layout, `root/FashionMNIST/raw` (`root` is `~/.snows/data` unless given), then for Debian's package
    in `/usr/share/datasets/fashion-mnist`. Raises `DataError` naming both and the remedy.
    """
    stem = {"train": "train", "test": "t10k"}[split]
    root = as_path(root or DOWNLOAD_ROOT)
    folders = (root / "FashionMNIST" / "raw", SYSTEM_FOLDER)

    def find(kind: str) -> Path:
        for folder in folders:
            for suffix in ("", ".gz"):
                if (path := folder / f"{stem}-{kind}-ubyte{suffix}").exists():
                    return path
        raise DataError(
            f"The full Fashion-MNIST is neither in {folders[0]} nor in {folders[1]}. Install it with `sudo apt-get install "
            f'dataset-fashion-mnist`, or download it with `python -c "from torchvision.datasets import FashionMNIST; '
            f"FashionMNIST('{root}', download=True)\"`."
        )

    return _read_idx(find("images-idx3"), 3)[:, None], _read_idx(find("labels-idx1"), 1).long()


def _read_idx(path: Path, dims: int) -> Tensor:
    """The IDX format: two zero bytes, 8 for uint8, the number of dimensions, each size as big-endian int32, the values."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}). Delete it and fetch it again.") from error
    start = 4 + 4 * dims
    shape = np.frombuffer(raw, ">i4", dims, offset=4).tolist() if len(raw) >= start else []
    if raw[:4] != bytes((0, 0, 8, dims)) or not shape or len(raw) != start + int(np.prod(shape)):
        raise DataError(f"{path} is not a whole IDX file of {dims} dimensions. Delete it and fetch it again.")
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy())


def write_bundle(path: AnyPath = BUNDLE, root: AnyPath | None = None) -> Path:
    """Build the bundled set from the full one: all test images and labels, and 3,000 training images (seed 0) with theirs.

    The file is a compressed npz of plain integer arrays, read without pickle.
    """
    path = as_path(path)
    images, labels = read_fashion_mnist("train", root)
    picks = torch.from_numpy(np.sort(np.random.default_rng(0).choice(len(images), BUNDLED_CALIBRATION, replace=False)))
    test_images, test_labels = read_fashion_mnist("test", root)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        calibration_images=images[picks].numpy(),
        calibration_labels=labels[picks].byte().numpy(),
        calibration_indices=picks.int().numpy(),
        test_images=test_images.numpy(),
        test_labels=test_labels.byte().numpy(),
    )
    return path


def _read_bundle(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as bundle:
            return dict(bundle)
    except FileNotFoundError:
        raise DataError(
            f"The bundled images are missing. Restore {path.name} from the repository, or build it again.",
            in_shell="python -m snows bundle-data",
        ) from None
    except Exception as error:  # a damaged archive makes zipfile, zlib or numpy raise anything at all
        raise DataError(
            f"{path.name} is damaged ({type(error).__name__}). Restore it from the repository, or build it again.",
            in_shell="python -m snows bundle-data",
        ) from error


# --- torchvision's sets ---


def _named_set(name: str, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> _Choice:
    spec = named_sets.SETS[name]
    train, test = named_sets.open_sets(name)
    _enough("calibration", num_calibration, len(train), f"{spec.title} has {len(train):,} training images")
    classes = spec.names(train)
    indices, notes = _class_indices(classes, model, f"The classes of {spec.title}")

    def read(dataset: Any, role: str, number: int) -> Tensor:
        name = f"{role} image {number + 1} of {spec.title}"
        try:
            picture = dataset[number][0]
        except OSError as error:  # what Pillow raises over a damaged picture, and a file that is gone
            raise DataError(f"{name} cannot be read ({error})") from error
        return _prepared(picture, model.preprocess, name)

    return _Choice(
        calibration=_shuffled(len(train), seed).tolist(),
        num_calibration=num_calibration,
        # These sets lie in the order of their classes; the first images would be of one class.
        evaluation=_shuffled(len(test), 0).tolist(),
        num_evaluation=min(num_evaluation, len(test)),
        read_calibration=partial(_read_usable, partial(read, train, "training")),
        read_evaluation=partial(_read_usable, partial(read, test, "test")),
        words=lambda number: _class_words(classes[_label_of(train, number)], indices, model),
        label=None if indices is None else lambda number: indices[classes[_label_of(test, number)]],
        classes=tuple(classes),
        notes=notes,
        division=_divided_sets(num_calibration, len(train), min(num_evaluation, len(test)), len(test)),
    )


def _read_usable(read: Callable[[int], Tensor], order: list[int], count: int) -> tuple[Tensor, list[int], dict[int, str]]:
    """The first `count` usable images (N, C, H, W), see `_Read`. Raises `DataError` where none is; stops where most are not."""
    images: dict[int, Tensor] = {}
    unusable: dict[int, str] = {}
    for number in order:
        if len(images) == count or len(unusable) > max(_MOST_UNUSABLE, len(images)):
            break
        try:
            images[number] = read(number)
        except DataError as error:
            unusable[number] = str(error).rstrip(".")
    if not images and unusable:
        raise DataError(f"{next(iter(unusable.values()))}.")
    return torch.cat(list(images.values())), list(images), unusable


def _label_of(dataset: Any, pick: int) -> int:
    """A label without opening its picture, from where torchvision's sets keep them."""
    if hasattr(dataset, "targets"):
        return int(dataset.targets[pick])
    return int(dataset._labels[pick] if hasattr(dataset, "_labels") else dataset._samples[pick][1])


# --- a folder of pictures ---


def _image_folder(folder: Path, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> _Choice:
    names, left_out = _names_in(folder)
    arrangement = arrange(names, str(folder))
    left_out += arrangement.left_out
    files = list(arrangement.pictures)
    placed = list(arrangement.pictures.values())
    notes = [f"Of the files in {folder}, {left_out_words(left_out)}."] if left_out else []
    training, measured = _parts(arrangement)
    to_calibrate = [number for number, at in enumerate(placed) if at.split == training]
    _enough("calibration", num_calibration, len(to_calibrate), f"{folder} holds {len(to_calibrate):,} images")
    calibration = [to_calibrate[i] for i in _shuffled(len(to_calibrate), seed).tolist()]
    note = ""
    if measured:
        note = f"In {folder}, {training} calibrates and {measured} is measured on, as the folders are named."
        to_measure = [number for number, at in enumerate(placed) if at.split == measured]
        # In the order of their classes the first would be of one class; the same ones whatever the seed.
        evaluation = [to_measure[i] for i in _shuffled(len(to_measure), 0).tolist()]
    else:
        evaluation = calibration[num_calibration:]
    again = not measured and len(evaluation) < min(num_evaluation, FEWEST_EVALUATION)
    if again:
        note = (
            f"Calibration leaves only {len(evaluation)} of the {len(files)} images in {folder}, so the results are measured on "
            "all of them, calibration images included."
        )
        evaluation = sorted(calibration)
    num_measured = min(num_evaluation, len(evaluation))
    if measured:
        division = (
            f"{_some(num_calibration, len(to_calibrate), 'picture')} in “{training}” {_verb(num_calibration, 'calibrate')}; "
            f"{_some(num_measured, len(evaluation), 'picture')} in “{measured}” {_verb(num_measured, 'measure')}."
        )
    elif again:
        division = (
            f"{_some(num_calibration, len(files), 'picture')} {_verb(num_calibration, 'calibrate')}. That leaves too few to "
            f"measure on, so {_some(num_measured, len(files), 'picture')} {_verb(num_measured, 'measure')}, those among them."
        )
    else:
        division = (
            f"{_some(num_calibration, len(files), 'picture')} {_verb(num_calibration, 'calibrate')}; "
            f"{_some(num_measured, len(evaluation), 'other')} {_verb(num_measured, 'measure')}."
        )

    classes = sorted({at.label for at in placed if at.label})
    indices = None
    if len(classes) > 1 or _matched(classes, model):  # a single folder is only where somebody keeps them
        indices, said = _class_indices(classes, model, f"The folders in {folder}")
        notes += said
    if indices and not all(placed[number].label for number in evaluation):
        indices = None
        notes.append(f"The pictures in {measured} lie in no class folders, so there is no accuracy, only agreement.")

    def read(number: int) -> Tensor:
        path = folder / files[number]
        return _prepared(read_picture(path, str(path)), model.preprocess, str(path))

    def words(number: int) -> str:
        label = placed[number].label
        return _class_words(label, indices, model) if label and len(classes) > 1 else Path(files[number]).name

    return _Choice(
        calibration=calibration,
        num_calibration=num_calibration,
        evaluation=evaluation,
        num_evaluation=num_measured,
        read_calibration=partial(_read_usable, read),
        read_evaluation=partial(_read_usable, read),
        words=words,
        label=None if indices is None else lambda number: indices[placed[number].label],
        classes=tuple(classes),
        notes=notes,
        division=division[:1].upper() + division[1:],
        division_note=note,
        shared=not measured and not again,
    )


def _some(count: int, of: int, noun: str) -> str:
    """`all 12 pictures`, `9 of 12 pictures`, `the 3 others`."""
    plural = noun if of == 1 else f"{noun}s"
    if noun == "other":
        return f"the {of:,} {plural}" if count == of else f"{count:,} of the {of:,} {plural}"
    return f"{count:,} of {of:,} {plural}" if count < of else f"all {of:,} {plural}" if of > 1 else f"the one {noun}"


def _verb(count: int, verb: str) -> str:
    return {"calibrate": "calibrate" + "s" * (count == 1), "measure": ("is" if count == 1 else "are") + " measured on"}[verb]


def _divided_sets(num_calibration: int, num_training: int, num_evaluation: int, num_test: int) -> str:
    sentence = (
        f"{_some(num_calibration, num_training, 'training image')} {_verb(num_calibration, 'calibrate')}; "
        f"{_some(num_evaluation, num_test, 'test image')} {_verb(num_evaluation, 'measure')}."
    )
    return sentence[:1].upper() + sentence[1:]


def check_count(name: str, model: LoadedModel, num_calibration: int) -> None:
    """Whether a set that is still to be downloaded has so many images to calibrate with, and this machine room for them.
    Raises `DataError`."""
    spec = named_sets.SETS[name]
    _enough("calibration", num_calibration, spec.num_training, f"{spec.title} has {spec.num_training:,} training images")
    _fits_memory(num_calibration, model)


def _parts(arrangement: Arrangement) -> tuple[str, str]:
    """The folder to calibrate from and the one to measure on: with classes rather than without, validation rather than test.
    Empty where the set is not divided."""
    labelled = {at.split: bool(at.label) for at in arrangement.pictures.values()}
    training = next((split for split in labelled if split_role(split) == "train"), "")
    order = sorted(labelled.keys() - {training}, key=lambda split: (not labelled[split], split_role(split) != "val", split))
    return training, order[0] if order else ""


def _names_in(folder: Path) -> tuple[list[str], list[str]]:
    """The paths of the files in `folder` and below, relative to it; and what is wrong with what looks like a picture and is no
    file. Links are followed, but not in circles."""
    names: list[str] = []
    faults: list[str] = []

    def walk(here: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[None]:
        status = here.stat()
        if (place := (status.st_dev, status.st_ino)) in above:
            return
        with os.scandir(here) as entries:
            for entry in entries:
                yield
                if is_clutter(entry.name):
                    continue
                name = prefix + entry.name
                if _is(entry, "file"):
                    names.append(name)
                elif _is(entry, "dir"):
                    yield from walk(Path(entry), name + "/", (*above, place))
                elif is_picture_name(name):
                    faults.append(f"{name} is {'a link to nothing' if entry.is_symlink() else 'no file'}")

    try:
        for count, _ in enumerate(walk(folder, "", ()), start=1):
            if count > MAX_FOLDER_IMAGES:
                raise DataError(f"{folder} holds more than {MAX_FOLDER_IMAGES:,} files. Name a folder of those to be used.")
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}. Check its permissions.") from error
    return names, faults


def _is(entry: "os.DirEntry[str]", kind: str) -> bool:
    try:
        return entry.is_file() if kind == "file" else entry.is_dir()
    except OSError:  # a link to itself
        return False


def _class_words(name: str, indices: dict[str, int] | None, model: LoadedModel) -> str:
    return model.class_names[indices[name]] if indices and name in indices else name


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _class_indices(classes: Sequence[str], model: LoadedModel, whose: str) -> tuple[dict[str, int] | None, list[str]]:
    """The output of each class, and what a person should know of it. None where there is one whose output is not known.

    By the model's class ids and names; by position only where its outputs have no names. `whose`: what the classes are, in
    words: "The folders in …".
    """
    by_name = _matched(classes, model)
    if len(by_name) == len(classes):
        return by_name, []
    agreement = "so there is no accuracy, only agreement with the dense network"
    if has_names(model):
        strange = [name for name in classes if name not in by_name]
        return None, [
            f"{whose} ({_first(strange)}{f'; {len(strange)} of {len(classes)}' if by_name else ''}) are not named like the "
            f"classes of {model.name} ({_first([_synonyms(name)[0] for name in model.class_names])}), {agreement}. Name them "
            "so, or give the network's own class names."
        ]
    if len(classes) == len(model.class_names):
        # The convention of torchvision's ImageFolder and of its data sets.
        return {name: index for index, name in enumerate(classes)}, [
            f"The outputs of {model.name} have no names, so {whose[0].lower()}{whose[1:]} are taken for them in their order: "
            f"{classes[0]} for the first, {classes[-1]} for the last. If that is not so, give the network's class names."
        ]
    return None, [
        f"The outputs of {model.name} have no names, and {whose[0].lower()}{whose[1:]} are {len(classes):,} where it has "
        f"{len(model.class_names):,} outputs, {agreement}."
    ]


def _matched(classes: Sequence[str], model: LoadedModel) -> dict[str, int]:
    """The output of each class that the model's ids and names tell: the nearest form that any of them shares, and only where
    it is that of one output and of one class."""
    whole = list(itertools.zip_longest(model.class_ids, model.class_names, fillvalue=""))
    first = [(class_id, _synonyms(name)[0]) for class_id, name in whole]
    every = [(class_id, *_synonyms(name)) for class_id, name in whole]
    tables: list[tuple[Callable[[str], str], dict[str, set[int]]]] = []
    for form in (_composed, _plain):
        for known in (whole, first, every):
            table: dict[str, set[int]] = {}
            for index, words in enumerate(known):
                for word in filter(None, map(form, words)):
                    table.setdefault(word, set()).add(index)
            tables.append((form, table))

    indices: dict[str, int] = {}
    for name in classes:
        for said in dict.fromkeys((name, _synonyms(name)[0])):
            candidates = next((table[form(said)] for form, table in tables if form(said) in table), set())
            if len(candidates) == 1 and name not in indices:
                (indices[name],) = candidates
    taken, exact = Counter(indices.values()), tables[0][1]
    return {name: index for name, index in indices.items() if taken[index] == 1 or index in exact.get(_composed(name), ())}


def _synonyms(name: str) -> list[str]:
    """ImageNet's classes are lists: "tench, Tinca tinca"."""
    return [word for word in map(str.strip, name.split(",")) if word] or [name]


def _composed(name: str) -> str:
    # File systems and keyboards write an accent as a letter of its own or with the letter below it.
    return unicodedata.normalize("NFC", name)


def _plain(name: str) -> str:
    """Without case and signs; marks belong to their letters."""
    letters = unicodedata.normalize("NFKC", name).casefold()
    return "".join(letter for letter in letters if letter.isalnum() or unicodedata.category(letter).startswith("M"))


def _prepared(picture: Image.Image, preprocess: Callable[[list[Image.Image]], Tensor], name: str) -> Tensor:
    try:
        return preprocess([picture])
    except InputError as error:
        raise DataError(f"{name} does not suit the model: {error}. Convert the images, or choose another model.") from error


def as_pixels(image: Tensor) -> np.ndarray:
    """A preprocessed image (C, H, W) to look at: (H, W) or (H, W, 3) uint8, from its darkest value to its lightest."""
    low, high = image.min(), image.max()
    pixels = ((image - low) / (high - low).clamp(min=1e-12) * 255).round().byte().permute(1, 2, 0).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3]


def write_sheet(images: Tensor, path: AnyPath, columns: int = 6) -> None:
    """Preprocessed images (N, C, H, W) side by side as one picture file, each framed by two pixels."""
    rows, side = -(-len(images) // columns), images.shape[-1] + 4
    sheet = Image.new("RGB", (columns * side, rows * (images.shape[-2] + 4)), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(as_pixels(image)).convert("RGB"), (column * side + 2, row * (images.shape[-2] + 4) + 2))
    sheet.save(as_path(path))


def like_fashion_mnist(picture: Image.Image) -> Image.Image:
    """Any picture as 28x28 grey, light on black, by the steps that made Fashion-MNIST.

    Xiao, Rasul & Vollgraf (2017), "Fashion-MNIST", figure 1: trim, the longest edge to 28 pixels, extend to 28x28 with the
    thing in the middle, negate, grey. Negated is only what stands on a light ground, as their photographs did: a picture that
    is light on dark already stays so.
    """
    grey = ImageOps.grayscale(picture.convert("RGB"))
    pixels = np.asarray(grey)
    ground = int(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))
    if ground > 127:
        grey, ground = ImageOps.invert(grey), 255 - ground
    thing = grey.point(lambda value: 255 * (value > ground + _GROUND_NOISE)).getbbox()
    return ImageOps.pad(grey.crop(thing) if thing else grey, (28, 28), Image.Resampling.LANCZOS, color=0)


# --- shared checks ---


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _enough(role: str, wanted: int, available: int, available_words: str) -> None:
    if wanted > available:
        raise DataError(
            f"{wanted:,} {role} images were asked for, but {available_words}. Ask for at most {available:,}.",
            in_shell=f"--num-{role}",
        )


def _fits_memory(count: int, model: LoadedModel) -> None:
    needed = count * 4 * int(np.prod(model.input_size))
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if needed > free:
        raise DataError(
            f"{count:,} images of shape {'x'.join(map(str, model.input_size))} need {needed / 1e9:,.1f} GB, more than half of "
            "this machine's memory. Calibrate or measure on fewer.",
            in_shell="--num-calibration, --num-evaluation",
        )
