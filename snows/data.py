"""Calibration and evaluation images, for a network and by name.

    fashion-mnist        bundled in `assets/`: 3,000 training images to calibrate with, the 10,000 test images to evaluate on
    fashion-mnist-full   the same test images, all 60,000 training images; read from the disk, not bundled
    FOLDER               pictures of one's own: in the folder itself (no labels), or in one folder a class

A choice is a seeded permutation of a sorted list, so a seed names the same images in the same order on every machine, and a
smaller choice is the beginning of a larger one. Calibration never looks at a label.
"""

import gzip
import io
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from snows.config import InputError
from snows.models import ASSETS, FASHION_CLASSES, LoadedModel

BUNDLE = ASSETS / "fashion-mnist.npz"
BUNDLED_CALIBRATION = 3_000
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_ROOT = Path("~/.snows/data")
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Agreement and accuracy on fewer images than this say nothing; then the calibration images are evaluated on too, and a note
# says so.
FEWEST_EVALUATION = 16


class DataError(InputError):
    """The images asked for cannot be had: which, why, and what to do."""


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


def load(name: str, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> Data:
    """Images of the set `name` as `model` expects them.

    `num_calibration` images are chosen with `seed`; evaluation takes the first `num_evaluation` test images of Fashion-MNIST,
    or up to that many of a folder's images that calibration does not use.

    Raises `DataError` for an unknown set, too few images, files that are not images, and images the model cannot take.
    """
    if name in ("fashion-mnist", "fashion-mnist-full"):
        return _fashion_mnist(name, model, num_calibration, num_evaluation, seed)
    folder = Path(name).expanduser()
    if not folder.exists():
        raise DataError(
            f"There is no data set and no folder {name!r}. Use fashion-mnist, fashion-mnist-full, or the path of a folder of "
            "images."
        )
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, not a folder of images. Name the folder that holds the images.")
    return _image_folder(folder, model, num_calibration, num_evaluation, seed)


# --- Fashion-MNIST ---


def _fashion_mnist(name: str, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> Data:
    if model.input_size[0] != 1 or model.class_names != FASHION_CLASSES:
        raise DataError(
            f"{name} holds 28x28 grey pictures of ten kinds of clothes, but {model.name} takes images of shape "
            f"{'x'.join(map(str, model.input_size))} and knows {len(model.class_names):,} classes. Name a folder of images "
            "that suit it: --data FOLDER."
        )
    if name == "fashion-mnist":
        arrays = _read_bundle(BUNDLE)
        train, test, labels = (torch.from_numpy(arrays[key]) for key in ("calibration_images", "test_images", "test_labels"))
    else:
        (train, _), (test, labels) = read_fashion_mnist("train"), read_fashion_mnist("test")
    _enough("calibration", num_calibration, len(train), f"{name} has {len(train):,} training images")
    _enough("evaluation", num_evaluation, len(test), f"{name} has {len(test):,} test images")
    _fits_memory(num_calibration + num_evaluation, model)
    picks = _shuffled(len(train), seed)[:num_calibration]
    return Data(model.preprocess(train[picks]), model.preprocess(test[:num_evaluation]), labels[:num_evaluation].long())


def read_fashion_mnist(split: str, root: Path | None = None) -> tuple[Tensor, Tensor]:
    """Every image of the split `train` or `test`: (N, 1, 28, 28) uint8 and (N,) int64 labels.

    Looks for torchvision's layout, `root/FashionMNIST/raw` (`root` is `~/.snows/data` unless given), then for Debian's package
    in `/usr/share/datasets/fashion-mnist`. Raises `DataError` naming both and the remedy.
    """
    stem = {"train": "train", "test": "t10k"}[split]
    root = (root or DOWNLOAD_ROOT).expanduser()
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


def write_bundle(path: Path = BUNDLE, root: Path | None = None) -> Path:
    """Build the bundled set from the full one: all test images and labels, and 3,000 training images (seed 0) with theirs.

    The file is a compressed npz of plain integer arrays, read without pickle.
    """
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


# --- a folder of pictures ---


def _image_folder(folder: Path, model: LoadedModel, num_calibration: int, num_evaluation: int, seed: int) -> Data:
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
    _fits_memory(num_calibration + len(evaluation), model)

    labels = None
    classes = sorted({file.parent.name for file in files if file.parent != folder})
    if classes:
        indices = _class_indices(classes, model)
        if indices is None:
            notes.append(
                f"The folders in {folder} ({', '.join(classes[:3])}{', …' if len(classes) > 3 else ''}) are not named like the "
                f"classes of {model.name}, so there is no accuracy, only agreement with the dense network."
            )
        else:
            labels = torch.tensor([indices[files[i].parent.name] for i in evaluation])
    return Data(_pictures(files, calibration, model), _pictures(files, evaluation, model), labels, notes)


def _image_files(folder: Path) -> list[Path]:
    """The images in `folder`, or in its folders (one a class), sorted by path. Hidden files and other kinds are left out."""
    here, below = ([path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")] for pattern in ("*", "*/*"))
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


def _pictures(files: list[Path], picks: list[int], model: LoadedModel) -> Tensor:
    return torch.cat([_picture(files[pick], model.preprocess) for pick in picks])


def _picture(file: Path, preprocess: Callable[[list[Image.Image]], Tensor]) -> Tensor:
    try:
        with Image.open(io.BytesIO(file.read_bytes())) as opened:
            image = ImageOps.exif_transpose(opened)
    except Image.DecompressionBombError as error:
        raise DataError(f"{file} is too large an image to be opened safely ({error}). Make it smaller.") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise DataError(
            f"{file} is not an image that can be read; it is damaged or of another kind. Remove or replace it."
        ) from error
    try:
        return preprocess([image])
    except InputError as error:
        raise DataError(f"{file} does not suit the model: {error}. Convert the images, or choose another model.") from error


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
