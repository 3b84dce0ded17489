"""What a person brought, kept beside the runs, for these to be repeated: pictures, an archive of them, a checkpoint.

    RUNS/.uploads/HASH/NAME       a folder of pictures, or one folder a class; or a checkpoint file

The hash is that of the content: the same files, brought again, are the same place, and a place never changes. Everything is
checked before it gets its place; whatever is wrong raises a sentence, and nothing stays behind. What no run names any more goes
after a while, see `purge`.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from snows.config import AnyPath, as_path
from snows.sources.pictures import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS, DataError, arrange, check_picture, is_picture_name
from snows.sources.unpack import (
    CHUNK,
    ArchiveError,
    Entry,
    archive_entries,
    check_name,
    followed,
    normal_name,
    not_weights,
    readable,
)

MAX_IMAGES = 20_000
MAX_BYTES = 4 * 1000**3
# As long as somebody may come back to what was tried, and longer than a deleted run can be had back.
UNUSED_SECONDS = 30 * 24 * 3600.0
MAX_CHECKPOINT_BYTES = 20 * 1000**3
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
LIMITS = (
    f"Up to {MAX_IMAGES:,} pictures and {MAX_BYTES / 1e9:g} GB, each up to {MAX_PICTURE_BYTES / 1e6:.0f} MB and "
    f"{MAX_PICTURE_PIXELS / 1e6:.0f} million pixels."
)


@dataclass(frozen=True)
class Kept:
    """Pictures that were taken in: where, how many, the folders they lie in if there are any, and the files left out, with
    the reason where they are pictures by their names."""

    path: Path
    count: int
    classes: tuple[str, ...]
    left_out: tuple[str, ...]


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def keep_archive(root: AnyPath, source: AnyPath | BinaryIO, name: str, *, most_bytes: int | None = None) -> Kept:
    """Unpack a zip or tar of pictures, with or without one folder a class. `root`: of the run store; `name`: the file's;
    `most_bytes`: of the pictures together, where that is less than `MAX_BYTES`.

    Raises `ArchiveError` for what is no archive or not a safe one, `DataError` for what are no pictures.
    """
    too_many = f"{name} holds more than {MAX_IMAGES:,} files. Take a part of the pictures; a few hundred are enough."
    if isinstance(source, str | os.PathLike):
        source = as_path(source)
    with readable(source, "zip or tar archive"), ExitStack() as stack:
        file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        file.seek(0)
        entries = stack.enter_context(archive_entries(file, too_many))
        offered = list(islice(entries, MAX_IMAGES + 1))
        if len(offered) > MAX_IMAGES:
            raise ArchiveError(too_many)
        return _keep(
            as_path(root),
            offered,
            re.sub(r"(\.(tar|zip|tgz|gz|tbz2|bz2))+$", "", PurePosixPath(name).name, flags=re.IGNORECASE),
            most_bytes,
        )


def keep_pictures(root: AnyPath, files: Sequence[tuple[str, Any]], *, most_bytes: int | None = None) -> Kept:
    """Take in single files, each with its name, which may be a path within a folder. Raises `DataError`."""
    entries = [
        Entry(normal_name(name), file.seek(0, 2), partial(_rewound, file), position)
        for position, (name, file) in enumerate(files)
    ]
    if len(entries) > MAX_IMAGES:
        raise DataError(f"{len(entries):,} files are more than the {MAX_IMAGES:,} that can be taken in. Take a part of them.")
    with readable(Path("The pictures")):
        return _keep(as_path(root), entries, f"{len(entries)}-pictures", most_bytes)


@contextmanager
def _rewound(file: Any) -> Iterator[Any]:
    file.seek(0)
    yield file


def keep_checkpoint(root: AnyPath, file: BinaryIO, name: str, *, most_bytes: int | None = None) -> Path:
    """Take in a checkpoint as it is; `models.load` looks at what it holds. Raises `DataError`."""
    root, clean = as_path(root), _clean(PurePosixPath(name).name)
    file.seek(0)
    if reason := not_weights(file.read(64)):
        raise DataError(f"{name} {reason}.")
    size = file.seek(0, 2)
    most = MAX_CHECKPOINT_BYTES if most_bytes is None else min(most_bytes, MAX_CHECKPOINT_BYTES)
    if size > most:
        raise DataError(f"{name} has {_size(size)}; a checkpoint may have {_size(most)}.")
    file.seek(0)
    with readable(Path(name)), _scratch(root, size) as scratch:
        digest = hashlib.sha256()
        _copy(file, scratch / clean, size, digest)
        return _settle(root, scratch, digest.hexdigest())


# --- taking it in ---


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def _keep(root: Path, entries: list[Entry], name: str, most_bytes: int | None) -> Kept:
    offered: dict[str, Entry] = {}
    faults = []
    for entry in followed(entries):
        check_name(entry.name, "the folder of the pictures")
        if entry.fault:
            faults.append(f"{entry.name} {entry.fault}")
        elif offered.setdefault(entry.name, entry) is not entry and is_picture_name(entry.name):
            raise ArchiveError(
                f"There are two files {entry.name}, so it is unclear which one counts. Rename one, or pack it again."
            )
    if faults and not any(map(is_picture_name, offered)):
        raise ArchiveError(f"No picture in it can be taken in: {faults[0]}.")
    arrangement = arrange(offered, "it")
    size = sum(offered[picture].size for picture in arrangement.pictures)
    most = MAX_BYTES if most_bytes is None else min(most_bytes, MAX_BYTES)
    if size > most:
        raise DataError(f"The pictures have {_size(size)}; {_size(most)} can be taken in. Take a part of them.")
    with _scratch(root, size) as scratch:
        places = {}
        for picture, placed in arrangement.pictures.items():
            places["/".join(filter(None, (placed.split, placed.label, picture.rpartition("/")[2])))] = offered[picture]
        digests, unreadable = _copy_pictures(places, scratch / _clean(name))
        left_out = [*arrangement.left_out, *unreadable, *faults]
        folders = sorted({placed.label for placed in arrangement.pictures.values() if placed.label})
        place = _settle(root, scratch, _digest_of_all(digests))
        return Kept(place, len(digests), tuple(folders), tuple(left_out))


def _copy_pictures(places: dict[str, Entry], folder: Path) -> tuple[dict[str, str], list[str]]:
    """Each picture's digest by its place in `folder`, and what is wrong with those that cannot be used and are not kept."""
    digests, unreadable = {}, []
    fault: DataError | None = None
    # In the order in which they lie in the archive: a compressed tar can only go back to its beginning.
    for place, entry in sorted(places.items(), key=lambda item: item[1].position):
        target, digest = folder / place, hashlib.sha256()
        try:
            if entry.size > MAX_PICTURE_BYTES:
                raise DataError(
                    f"{entry.name} has {entry.size / 1e6:,.0f} MB; a picture may have {MAX_PICTURE_BYTES / 1e6:.0f} MB."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as source:
                _copy(source, target, entry.size, digest)
            check_picture(target, entry.name)
            digests[place] = digest.hexdigest()
        except DataError as error:
            target.unlink(missing_ok=True)
            fault = fault or error
            unreadable.append(str(error).rstrip("."))
    if not digests:
        assert fault is not None  # `arrange` lets none pass that holds no picture
        raise fault
    return digests, unreadable


def _digest_of_all(digests: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for place in sorted(digests):
        digest.update(f"{place}\0{digests[place]}\0".encode())
    return digest.hexdigest()


@contextmanager
def _scratch(root: Path, size: int) -> Iterator[Path]:
    # Where imports are on their way in, so that what a crash leaves behind is purged as theirs is.
    for folder in (".uploads", ".import"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(root).free):
        raise DataError(f"It has {size / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB are free in {root}. Make room there.")
    scratch = root / ".import" / str(time.time_ns())
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy(source: Any, target: Path, size: int, digest: Any) -> None:
    with target.open("xb") as copy:
        while size > 0 and (part := source.read(min(CHUNK, size))):
            digest.update(part)
            copy.write(part)
            size -= len(part)
        if size or source.read(1):
            raise ArchiveError(f"{target.name} is not of the size that was said. The file is damaged; bring it again.")


def _settle(root: Path, scratch: Path, digest: str) -> Path:
    (content,) = scratch.iterdir()
    place = root / ".uploads" / digest[:16]
    os.sync()  # what has its place is believed to be whole, after a power cut as well; at once, for there may be thousands
    while True:
        with suppress(OSError):
            scratch.rename(place)
            return place / content.name
        with suppress(FileNotFoundError):  # unless it was purged just now
            os.utime(place)  # it was brought before, and is wanted again
            for there in place.iterdir():  # none while it is being purged
                return there


# --- taking it out ---


def purge(root: AnyPath, seconds: float = UNUSED_SECONDS, *, runs: AnyPath | None = None) -> None:
    """Remove for good what was brought more than `seconds` ago and no run names, neither one in the store nor one in the trash.

    `root`: of the run store; `runs`: that one, where what was brought is kept elsewhere. Whoever begins a run meanwhile keeps
    what it names: a place is moved aside first, looked for once more in the runs there are, and moved back if it was found.
    """
    root, runs = as_path(root), as_path(root if runs is None else runs)
    old = [place for place in root.glob(".uploads/*") if _age(place) > seconds]
    named = _named(runs) if old else set()
    for place in old:
        if place.name in named:
            continue
        (root / ".import").mkdir(exist_ok=True)
        with suppress(OSError):  # another process purges as well
            aside = place.rename(root / ".import" / str(time.time_ns()))
            if _age(aside) > seconds and place.name not in _named(runs):
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.rename(place)


def _age(place: Path) -> float:
    """Seconds since it was brought last."""
    try:
        return time.time() - place.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _named(root: Path) -> set[str]:
    """The places that configs name: as their images, their checkpoint or their mask."""
    named: set[str] = set()
    for path in (*root.glob("*/config.json"), *root.glob(".trash/*/*/config.json"), *root.glob(".import/*/config.json")):
        with suppress(FileNotFoundError):
            named |= set(re.findall(r"\.uploads/([^/\"\\]+)", path.read_text(errors="replace")))
    return named


def _clean(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip(".-")[:80] or "upload"
