"""Picture files from anybody: what their folders say of them, and opening them within limits."""

import io
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from snows.config import InputError

# What Pillow may be asked to open: no format that hands the file to another program.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
IMAGE_SUFFIXES = frozenset(suffix for suffix, form in Image.registered_extensions().items() if form in (*_FORMATS, "MPO"))
MAX_PICTURE_BYTES = 50 * 1000**2
MAX_PICTURE_PIXELS = 50 * 1000**2
_WHITE = 2**16 - 1


class DataError(InputError):
    """The images asked for cannot be had: which, why, and what to do."""


# --- what folders say ---

# What operating systems, file managers and storage boxes put into every folder; so do names that begin with a dot.
_CLUTTER = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
)
# How data sets name their parts: a word of the folder's name.
_SPLITS = {
    "train": {"train", "training", "trainset", "trainval"},
    "val": {"val", "valid", "validation", "valset", "dev", "eval", "evaluation"},
    "test": {"test", "testing", "testset", "heldout", "holdout"},
}
_FEW = 0.1  # the share of pictures that may lie elsewhere than all others and are left out then


@dataclass(frozen=True)
class Placed:
    """What folders say of a picture: `split`, its part of the data set as the folder is named, and `label`, its class. Either
    may be empty."""

    split: str
    label: str


@dataclass(frozen=True)
class Arrangement:
    """Pictures by the name they were given with, in the order of their paths; and the files left out, a reason in parentheses
    where the suffix is none."""

    pictures: dict[str, Placed]
    left_out: tuple[str, ...]


def arrange(names: Iterable[str], place: str) -> Arrangement:
    """Tell classes, parts of a data set and clutter among files by their paths within `place`, a folder or archive in words.

    Folders around all pictures say nothing, nor does a level that is the same below every class. A level that names a training
    part and another one divides the set. Raises `DataError` where there are no pictures, and where it is not clear which
    folders name the classes.
    """
    paths: dict[str, tuple[str, ...]] = {}
    left_out = []
    for name in names:
        parts = tuple(name.split("/"))
        if any(map(is_clutter, parts)):
            continue
        if is_picture_name(name):
            paths[name] = parts
        else:
            left_out.append(name)
    if not paths:
        example = f"; it holds {left_out[0]}{' and more' if len(left_out) > 1 else ''}" if left_out else ""
        packed = any(re.search(r"\.(zip|gz|tgz|tar|bz2|xz|rar|7z)$", name.lower()) for name in left_out)
        remedy = " Unpack what is packed in it first." if packed else ""
        raise DataError(
            f"There are no pictures in {place}{example}.{remedy} Pictures end in {', '.join(sorted(IMAGE_SUFFIXES))}; save "
            "others as JPEG or PNG."
        )
    paths = dict(sorted(paths.items(), key=lambda item: item[1]))
    level, splits = _splits(list(paths.values()))
    inside: dict[str, dict[str, tuple[str, ...]]] = {split: {} for split in splits or [""]}
    for name, path in paths.items():
        split = path[level] if splits and len(path) > level + 1 else ""
        if split in inside:
            inside[split][name] = path[level + 1 :] if splits else path
        else:
            left_out.append(f"{name} (in none of {', '.join(splits)})")
    pictures: dict[str, Placed] = {}
    for split, members in inside.items():
        labels, strays = _labels(members, f"{split} of {place}" if split else place)
        pictures |= {name: Placed(split, label) for name, label in labels.items()}
        left_out += [f"{name} (not in a folder like the others)" for name in strays]
    return Arrangement(pictures, tuple(left_out))


def is_clutter(part: str) -> bool:
    """Whether a file or folder of that name is nobody's content."""
    return part.startswith(".") or part.lower() in _CLUTTER


def left_out_words(left_out: Sequence[str]) -> str:
    """How many files were left out and which, as a part of a sentence."""
    more = f"; and {len(left_out) - 3:,} more" if len(left_out) > 3 else ""
    return f"left out {len(left_out):,} file{'s' * (len(left_out) > 1)}: {'; '.join(left_out[:3])}{more}"


def is_picture_name(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def split_role(folder: str) -> str:
    """`train`, `val` or `test`, or nothing: the part of a data set that a folder of that name holds."""
    words = set(re.split(r"[^a-z]+", folder.lower()))
    return next((role for role, known in _SPLITS.items() if known & words), "")


def _splits(paths: Sequence[tuple[str, ...]]) -> tuple[int, list[str]]:
    """The level whose folders are parts of a data set, and these; no parts if there is no such level."""
    level, below = 0, paths
    while True:
        below = [path for path in below if len(path) > level + 1]
        folders = sorted({path[level] for path in below})
        if len(folders) != 1:
            break
        level += 1
    roles = Counter(filter(None, map(split_role, folders)))
    known = [folder for folder in folders if split_role(folder)]
    nested = any(len(path) > level + 2 for path in below if split_role(path[level]) == "train")
    if roles["train"] == 1 and len(known) > 1 and (nested or known == folders):
        return level, known
    return 0, []


def _labels(paths: dict[str, tuple[str, ...]], place: str) -> tuple[dict[str, str], list[str]]:
    """The class folder of each picture, or nothing; and the few pictures that lie at another depth than all others."""
    parents = {name: path[:-1] for name, path in paths.items()}
    ((depth, _),) = Counter(len(folders) for folders in parents.values()).most_common(1)
    strays = [name for name, folders in parents.items() if len(folders) != depth]
    if len(strays) > _FEW * len(parents):
        raise DataError(
            f"Some pictures in {place} lie in folders and some beside them ({_first(strays)}), so it is not clear which have a "
            "class. Move the loose ones into a folder, take them out, or choose one of the folders."
        )
    levels = [{folders[i] for folders in parents.values() if len(folders) == depth} for i in range(depth)]
    telling = [i for i, folders in enumerate(levels) if len(folders) > 1]
    if len(telling) > 1:
        raise DataError(
            f"The pictures in {place} lie in folders within folders ({_first(sorted(levels[telling[0]]))}), so it is not clear "
            "which name the classes. Choose the one that holds one folder a class."
        )
    # Where all lie in one folder, that may be a class.
    at = telling[0] if telling else depth - 1
    return {name: folders[at] if depth else "" for name, folders in parents.items() if len(folders) == depth}, strays


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


# --- opening them ---


def read_picture(source: Path | bytes, name: str) -> Image.Image:
    """A picture from a file or its content, upright, of 8 bits a channel (1, L, LA, P, PA, RGB or RGBA, as Pillow calls them).

    Grey of 16 bits keeps its black and its white. Raises `DataError` naming `name` where it cannot be read.
    """
    with _opened_picture(source, name) as opened:
        return _eight_bits(ImageOps.exif_transpose(opened), name)


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        return picture
    if picture.mode not in ("F", "I") and not picture.mode.startswith("I;"):
        return picture.convert("RGB")
    # Pillow's own conversion cuts off what is above 255.
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > _WHITE:
        raise DataError(
            f"{name} holds values from {values.min():g} to {values.max():g}, of which nothing says what is black and what is "
            "white. Save it with 8 or 16 bits a pixel."
        )
    return Image.fromarray((values.astype(np.uint32) * 255 // _WHITE).astype(np.uint8))


def check_enlarged(picture: Image.Image, shorter_edge: int) -> None:
    """Raise `InputError` where the picture is beyond the limit of pixels once its shorter edge has `shorter_edge` pixels."""
    short, long = sorted(picture.size)
    enlarged = shorter_edge**2 * long // short
    if enlarged > MAX_PICTURE_PIXELS:
        raise InputError(
            f"with its shorter edge at {shorter_edge} pixels, as this network takes it, an image of {picture.width:,} x "
            f"{picture.height:,} pixels would have {enlarged:,}, where {MAX_PICTURE_PIXELS:,} are the limit"
        )


def check_picture(source: Path | bytes, name: str) -> None:
    """Raise `DataError` unless it is a picture within the limits, by its size and its head alone."""
    with _opened_picture(source, name):
        pass


@contextmanager
def _opened_picture(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    content = source if isinstance(source, bytes) else _content(source, name)
    _check_size(len(content), name)
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            if opened.width * opened.height > MAX_PICTURE_PIXELS:
                raise DataError(
                    f"{name} is too large an image: {opened.width:,} x {opened.height:,} pixels, where "
                    f"{MAX_PICTURE_PIXELS / 1e6:,.0f} million are the limit. Make it smaller."
                )
            yield opened
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} is too large an image to be opened safely ({error}). Make it smaller.") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        raise DataError(
            f"{name} is not an image that can be read; it is damaged or of another kind. Remove or replace it."
        ) from error


def _check_size(size: int, name: str) -> None:
    if size > MAX_PICTURE_BYTES:
        raise DataError(
            f"{name} has {size / 1e6:,.0f} MB; a picture may have {MAX_PICTURE_BYTES / 1e6:,.0f} MB. Make it smaller."
        )


def _content(path: Path, name: str) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise DataError(f"{name} is no file but a folder, a pipe or a device. Remove or replace it.")
        _check_size(status.st_size, name)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}. Remove or replace it.") from error
