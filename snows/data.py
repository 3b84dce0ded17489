"""Calibration and evaluation images, for a network and by name.

    fashion-mnist        bundled in `assets/`: 3,000 training images to calibrate with, the 10,000 test images to evaluate on
    fashion-mnist-full   the same test images, all 60,000 training images; read from the disk, not bundled
    cifar-10, cifar-100, imagenette, oxford-pets, flowers-102
                         torchvision's data sets, downloaded when first used: see `datasets`
    FOLDER               pictures of one's own: in the folder itself (no labels), or in one folder a class

A choice is a seeded permutation of a sorted list, so a seed names the same images in the same order on every machine, and a
smaller choice is the beginning of a larger one. Calibration never looks at a label.
"""

import gzip
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from snows import datasets
from snows.config import AnyPath, InputError, RunConfig, as_path
from snows.downloads import Report
from snows.models import ASSETS, FASHION_CLASSES, LoadedModel
from snows.pictures import IMAGE_SUFFIXES, DataError, read_picture

BUNDLE = ASSETS / "fashion-mnist.npz"
BUNDLED_CALIBRATION = 3_000
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_ROOT = Path("~/.snows/data")
MAX_FOLDER_IMAGES = 2_000_000
# Agreement and accuracy on fewer images than this say nothing; then the calibration images are evaluated on too, and a note
# says so.
FEWEST_EVALUATION = 16
_GROUND_NOISE = 12  # grey levels by which a photograph's even background still varies


@dataclass(frozen=True)
class Data:
    """Preprocessed images, (N, C, H, W) float32 on the CPU, in a fixed order.

    `labels` (N,) int64 are indices into the model's `class_names`, or None where the images carry none the model knows. `notes`
    are sentences a person should see beside the results.
    """

    calibration: Tensor
    evaluation: Tensor
    labels: Tensor | None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Preview:
    """What a run would get: the first calibration images, preprocessed as in `Data`, each with `words`, and what there is."""

    images: Tensor
    words: list[str]
    num_calibration: int  # that there are to choose from
    num_evaluation: int  # that the network would be measured on
    classes: tuple[str, ...]  # of the set, whether or not the network knows them
    labelled: bool  # whether there will be an accuracy
    notes: list[str]


@dataclass(frozen=True)
class _Choice:
    """Which images of a set are used, none of them read yet."""

    calibration: list[int]
    evaluation: list[int]
    available: int  # to calibrate with
    read_calibration: Callable[[list[int]], Tensor]
    read_evaluation: Callable[[list[int]], Tensor]
    words: Callable[[int], str]  # of a calibration image
    labels: Tensor | None
    classes: tuple[str, ...]
    notes: list[str]


def load_configured(config: RunConfig, model: LoadedModel, report: Report | None = None) -> Data:
    """The images of a run, see `load`."""
    return load(config.data, model, config.num_calibration, config.num_evaluation, config.prune.seed, report)


def load(
    name: AnyPath, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int, report: Report | None = None
) -> Data:
    """Images of the set `name`, or of the folder of that path, as `model` expects them.

    `num_calibration` images are chosen with `seed`; evaluation takes the first `num_evaluation` test images of Fashion-MNIST,
    up to that many of torchvision's, the same whatever the seed, or up to that many of a folder's images that calibration does
    not use. `report` is told how a download goes and may raise to stop it.

    Raises `DataError` for an unknown set, too few images, files that are not images, and images the model cannot take;
    `DownloadError` for a set that cannot be fetched.
    """
    name = os.fspath(name)
    if name in datasets.SETS:
        datasets.fetch(name, report)
    chosen = _choose(name, model, num_calibration, num_evaluation, seed)
    _fits_memory(len(chosen.calibration) + len(chosen.evaluation), model)
    calibration = chosen.read_calibration(chosen.calibration)
    return Data(calibration, chosen.read_evaluation(chosen.evaluation), chosen.labels, chosen.notes)


def preview(name: AnyPath, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int, count: int) -> Preview:
    """What `load` would give, reading no more than `count` images. `model` may be an outline. Raises as `load` does, and
    `DataError` for a set that is still to be downloaded."""
    name = os.fspath(name)
    if name in datasets.SETS and not datasets.is_here(name):
        raise DataError(
            f"{datasets.SETS[name].title} is not on this machine yet. Download it first: python -m snows fetch {name}."
        )
    chosen = _choose(name, model, num_calibration, num_evaluation, seed)
    first = chosen.calibration[:count]
    return Preview(
        chosen.read_calibration(first),
        [chosen.words(pick) for pick in first],
        chosen.available,
        len(chosen.evaluation),
        chosen.classes,
        chosen.labels is not None,
        chosen.notes,
    )


def _choose(name: str, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> _Choice:
    if name in ("fashion-mnist", "fashion-mnist-full"):
        return _fashion_mnist(name, model, num_calibration, num_evaluation, seed)
    if name in datasets.SETS:
        return _named_set(name, model, num_calibration, num_evaluation, seed)
    folder = as_path(name)
    if not folder.exists():
        raise DataError(
            f"There is no data set and no folder {name!r}. Use fashion-mnist, {', '.join(datasets.SETS)}, or the path of a "
            "folder of images."
        )
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, not a folder of images. Name the folder that holds the images.")
    return _image_folder(folder, model, num_calibration, num_evaluation, seed)


# --- Fashion-MNIST ---


def _fashion_mnist(name: str, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> _Choice:
    if model.input_size[0] != 1 or model.class_names != FASHION_CLASSES:
        raise DataError(
            f"{name} holds 28x28 grey pictures of ten kinds of clothes, but {model.name} takes images of shape "
            f"{'x'.join(map(str, model.input_size))} and knows {len(model.class_names):,} classes. Name a folder of images "
            "that suit it: --data FOLDER."
        )
    if name == "fashion-mnist":
        arrays = _read_bundle(BUNDLE)
        train, train_labels, test, labels = (
            torch.from_numpy(arrays[key]) for key in ("calibration_images", "calibration_labels", "test_images", "test_labels")
        )
    else:
        (train, train_labels), (test, labels) = read_fashion_mnist("train"), read_fashion_mnist("test")
    _enough("calibration", num_calibration, len(train), f"{name} has {len(train):,} training images")
    _enough("evaluation", num_evaluation, len(test), f"{name} has {len(test):,} test images")
    return _Choice(
        calibration=_shuffled(len(train), seed)[:num_calibration].tolist(),
        evaluation=list(range(num_evaluation)),
        available=len(train),
        read_calibration=lambda picks: model.preprocess(train[picks]),
        read_evaluation=lambda picks: model.preprocess(test[picks]),
        words=lambda pick: FASHION_CLASSES[int(train_labels[pick])],
        labels=labels[:num_evaluation].long(),
        classes=FASHION_CLASSES,
        notes=[],
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
            f"The bundled images are not at {path}. Restore the file from the repository, or build it with `python -m snows "
            "bundle-data`."
        ) from None
    except Exception as error:  # a damaged archive makes zipfile, zlib or numpy raise anything at all
        raise DataError(
            f"{path} is damaged ({type(error).__name__}). Restore it from the repository, or build it with `python -m snows "
            "bundle-data`."
        ) from error


# --- torchvision's sets ---


def _named_set(name: str, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> _Choice:
    spec = datasets.SETS[name]
    train, test = datasets.open_sets(name)
    _enough("calibration", num_calibration, len(train), f"{spec.title} has {len(train):,} training images")
    # These sets lie in the order of their classes; the first images would be of one class.
    evaluation = _shuffled(len(test), 0)[:num_evaluation].tolist()
    classes = spec.names(train)
    indices = _class_indices(classes, model)
    labels, notes = None, []
    if indices is None:
        notes.append(
            f"The classes of {spec.title} ({_first(classes)}) are not those of {model.name}, so there is no accuracy, only "
            "agreement with the dense network."
        )
    else:
        labels = torch.tensor([indices[classes[_label_of(test, pick)]] for pick in evaluation])

    def read(dataset: Any, role: str, picks: list[int]) -> Tensor:
        named = ((dataset[pick][0], f"{role} image {pick + 1} of {spec.title}") for pick in picks)
        return torch.cat([_prepared(picture, model.preprocess, name) for picture, name in named])

    return _Choice(
        calibration=_shuffled(len(train), seed)[:num_calibration].tolist(),
        evaluation=evaluation,
        available=len(train),
        read_calibration=partial(read, train, "training"),
        read_evaluation=partial(read, test, "test"),
        words=lambda pick: _class_words(classes[_label_of(train, pick)], indices, model),
        labels=labels,
        classes=tuple(classes),
        notes=notes,
    )


def _label_of(dataset: Any, pick: int) -> int:
    """A label without opening its picture, from where torchvision's sets keep them."""
    if hasattr(dataset, "targets"):
        return int(dataset.targets[pick])
    return int(dataset._labels[pick] if hasattr(dataset, "_labels") else dataset._samples[pick][1])


# --- a folder of pictures ---


def _image_folder(folder: Path, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> _Choice:
    files = _image_files(folder)
    _enough("calibration", num_calibration, len(files), f"{folder} holds {len(files):,} images")
    order = _shuffled(len(files), seed).tolist()
    calibration, evaluation = order[:num_calibration], order[num_calibration:]
    notes = []
    if len(evaluation) < min(num_evaluation, FEWEST_EVALUATION):
        notes.append(
            f"Calibration leaves only {len(evaluation)} of the {len(files)} images in {folder}, so the results are measured on "
            "all of them, calibration images included."
        )
        evaluation = sorted(order)
    evaluation = evaluation[:num_evaluation]

    labels, indices = None, None
    classes = sorted({file.parent.name for file in files if file.parent != folder})
    if classes:
        indices = _class_indices(classes, model)
        if indices is not None:
            labels = torch.tensor([indices[files[i].parent.name] for i in evaluation])
        elif len(classes) > 1:  # a single folder is only where somebody keeps them
            notes.append(
                f"The folders in {folder} ({_first(classes)}) are not named like the classes of {model.name}, so there is no "
                "accuracy, only agreement with the dense network."
            )

    def read(picks: list[int]) -> Tensor:
        return torch.cat([_prepared(read_picture(files[i], str(files[i])), model.preprocess, str(files[i])) for i in picks])

    def words(pick: int) -> str:
        return _class_words(files[pick].parent.name, indices, model) if len(classes) > 1 else files[pick].name

    return _Choice(calibration, evaluation, len(files), read, read, words, labels, tuple(classes), notes)


def _class_words(name: str, indices: dict[str, int] | None, model: LoadedModel) -> str:
    return name if indices is None else model.class_names[indices[name]]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _image_files(folder: Path) -> list[Path]:
    """The images in `folder`, or in its folders (one a class), sorted by path. Hidden files and other kinds are left out."""
    here, below = ([path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")] for pattern in ("*", "*/*"))
    if len(here) + len(below) > MAX_FOLDER_IMAGES:
        raise DataError(f"{folder} holds more than {MAX_FOLDER_IMAGES:,} files. Name a folder of those to be used.")
    flat, nested = ([path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES] for paths in (here, below))
    if flat and nested:
        raise DataError(
            f"{folder} holds images both beside its folders and in them, so it is not clear which have a class. Move the "
            f"{len(flat):,} loose images into a folder, or name one of the folders."
        )
    if not (files := flat or nested):
        found = f" (it holds {here[0].name}{' and more' if len(here) > 1 else ''})" if here else ""
        raise DataError(
            f"There are no images in {folder} or in its folders{found}. Images are files ending in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return files


def _class_indices(classes: list[str], model: LoadedModel) -> dict[str, int] | None:
    """Folder name -> class index: by the model's class names or ids, else by position where there is one folder a class."""
    for known in (model.class_ids, model.class_names):
        positions = {_plain(name): index for index, name in enumerate(known)}
        if all(_plain(name) in positions for name in classes):
            return {name: positions[_plain(name)] for name in classes}
    if len(classes) == len(model.class_names):
        return {name: index for index, name in enumerate(classes)}  # the convention of torchvision's ImageFolder
    return None


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


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


def _enough(role: str, wanted: int, available: int, found: str) -> None:
    if wanted > available:
        raise DataError(f"{wanted:,} {role} images were asked for, but {found}. Ask for at most {available:,}: --num-{role}.")


def _fits_memory(count: int, model: LoadedModel) -> None:
    needed = count * 4 * int(np.prod(model.input_size))
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if needed > free:
        raise DataError(
            f"{count:,} images of shape {'x'.join(map(str, model.input_size))} need {needed / 1e9:,.1f} GB, more than half of "
            "this machine's memory. Ask for fewer with --num-evaluation or --num-calibration."
        )
