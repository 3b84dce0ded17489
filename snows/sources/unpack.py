"""Files out of an archive from anybody, looked at by name, number and size before a byte of them is written.

Zip and tar (plain, gzip or bzip2). Names are put into one form first (`./a`, `C:\\a`, `/a` are all `a`) and judged then. What
is listed with no fault is a plain file, or a link to one in the same archive; what it holds cannot be trusted. Nothing here
unpacks to a disk: the caller checks the names (`check`) and the sizes first, and copies through `Entry.open`.
"""

import bz2
import gzip
import posixpath
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from snows.config import InputError

# Deflate reaches a thousand. Logs, pruned weights and pictures stay below twenty.
MAX_RATIO = 200
CHUNK = 1000**2
_MAX_DIRECTORY_BYTES = 8 * 1000**2
_MAX_LINK_BYTES = 4096
_MAX_HOPS = 8  # from link to link
_NOWHERE = "/.snows-unpacks-nothing-here"  # a folder that links of this machine do not lead into or out of
_LINK_ELSEWHERE = "is a link to what is not in the archive; pack the file itself"
_NO_FILE = "is a device or a pipe, not a file; take it out"


class ArchiveError(InputError):
    """An archive or folder that cannot be taken in, or not safely; the message says what is wrong with it and what to do."""


@dataclass(frozen=True)
class Entry:
    """A file that is offered. `name`: its path within the folder or archive; `position`: where in the archive its content lies.

    `fault`: why it cannot be taken in, the rest of a sentence; `link`: the name of another entry that it stands for.
    """

    name: str
    size: int
    open: Callable[[], Any]
    position: int = 0
    fault: str = ""
    link: str = ""


def normal_name(name: str) -> str:
    """A path as other systems and tools write it, as one within a folder: `./a`, `/a`, `C:\\a` and `b/../a` are `a`."""
    inside = re.sub(r"^[A-Za-z]:", "", name).replace("\\", "/").lstrip("/")
    if re.search(r"[\ud800-\udfff]", inside):  # bytes that are no UTF-8; a letter each, so that the name can be shown and saved
        inside = inside.encode("utf-8", "surrogateescape").decode("latin-1")
    return posixpath.normpath(inside)


def check_name(name: str, place: str) -> None:
    """Raise `ArchiveError` where a normal name leads out of `place`, a folder in words."""
    if "\0" in name or name in (".", "..") or name.startswith("../"):
        raise ArchiveError(f"{name!r} would lie outside {place}. It looks made to overwrite other files.")


def check(entry: Entry, place: str) -> None:
    """Raise `ArchiveError` unless the entry is a plain file whose name stays in `place`, a folder in words."""
    check_name(entry.name, place)
    if entry.link or entry.fault:
        raise ArchiveError(f"{entry.name} {entry.fault or 'is a link to another file; pack the file itself'}.")


def followed(entries: list[Entry]) -> list[Entry]:
    """Links within the archive as the files that they stand for; what is wrong with the other links is their fault."""
    targets = {entry.name: entry for entry in entries}
    result = []
    for entry in entries:
        target = entry
        for _ in range(_MAX_HOPS):
            target = targets.get(target.link, target) if target.link else target
        result.append(replace(entry, link="", fault=_LINK_ELSEWHERE) if target.link else replace(target, name=entry.name))
    return result


@contextmanager
def readable(source: Path | BinaryIO, kind: str = "zip archive") -> Iterator[None]:
    """What a damaged archive or a disk that refuses raises inside the block comes out as `ArchiveError`."""
    what = str(source) if isinstance(source, Path) else "The file"
    try:
        yield
    except FileNotFoundError:
        raise ArchiveError(f"There is no file or folder {what}. Check the path.") from None
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ArchiveError(
            f"{what} is not a whole {kind} ({error}). Download or copy it again; if it is packed in another way, unpack "
            "it and name the folder."
        ) from error
    except OSError as error:
        raise ArchiveError(
            f"{error.filename or what} cannot be used: {error.strerror or error}. Check its permissions, and the free space."
        ) from error


def not_weights(start: bytes) -> str:
    """Why a file that begins so is no checkpoint, the rest of a sentence; nothing where it may be one: a zip archive or pickles
    of `torch.save`, or safetensors, whose header follows its length."""
    if start.startswith((b"PK\3\4", b"\x80")) or start[8:9] == b"{":
        return ""
    others = {
        b"version https://git-lfs": "is the pointer of Git LFS in place of the file. Fetch the file itself: git lfs pull",
        b"\x89HDF": "is an HDF5 file, as Keras writes them. Save the PyTorch network's state dict: torch.save(state, FILE)",
        b"\x93NUMPY": "is an array of NumPy. Save a state dict of tensors: torch.save(state, FILE)",
        b"\x1f\x8b": "is packed by gzip. Unpack it first",
        b"<": "is a web page in place of the file. Download the file itself",
    }
    return next(
        (reason for begins, reason in others.items() if start.lstrip().startswith(begins)),
        "is neither of safetensors nor of torch.save: damaged, or of another kind. Save a state dict: torch.save(state, FILE)",
    )


@contextmanager
def archive_entries(file: BinaryIO, too_many: str) -> Iterator[Iterator[Entry]]:
    """The files of a zip or tar, which is told by its first bytes. `too_many`: what to say of a directory without end."""
    start = file.read(4)
    file.seek(0)
    with ExitStack() as stack:
        if start.startswith(b"PK"):
            yield zip_entries(stack.enter_context(open_zip(file, too_many)))
            return
        if start.startswith((b"7z", b"Rar!", b"\xfd7zX")):
            raise ArchiveError("The file is packed by a rare method. Pack the folder as a zip or tar.gz.")
        packed = file.seek(0, 2)
        file.seek(0)
        unpacked: Any = file
        if start.startswith(b"\x1f\x8b"):
            unpacked = stack.enter_context(gzip.GzipFile(fileobj=file))
        elif start.startswith(b"BZh"):
            unpacked = stack.enter_context(bz2.BZ2File(file))
        metered = _Metered(unpacked, too_many)
        with _parsing():
            archive = stack.enter_context(tarfile.open(fileobj=cast(Any, metered), mode="r:"))
        yield _tar_entries(archive, metered, packed)


class _Bounded:
    """A file that is read in small parts: `zipfile` reads an archive's whole directory before anybody can count its entries."""

    def __init__(self, file: BinaryIO, too_many: str) -> None:
        self.seek, self.tell, self.seekable, self.close, self._read = file.seek, file.tell, file.seekable, file.close, file.read
        self._too_many = too_many

    def read(self, count: int = -1) -> bytes:
        if count > _MAX_DIRECTORY_BYTES:
            raise ArchiveError(self._too_many)
        return self._read(count)


class _Metered:
    """A file of which no more than `left` bytes can be read: a tar's headers may claim any length, and `tarfile` keeps them."""

    def __init__(self, file: BinaryIO, too_many: str) -> None:
        self.seek, self.tell, self._read, self._too_many = file.seek, file.tell, file.read, too_many
        self.left = _MAX_DIRECTORY_BYTES

    def read(self, count: int) -> bytes:
        self.left -= count
        if self.left < 0:
            raise ArchiveError(self._too_many)
        return self._read(count)


def open_zip(file: BinaryIO, too_many: str) -> zipfile.ZipFile:
    """Raises `ArchiveError(too_many)` for a directory that does not fit into memory."""
    with _parsing():
        return zipfile.ZipFile(cast(BinaryIO, _Bounded(file, too_many)))


@contextmanager
def _parsing() -> Iterator[None]:
    """What the readers of zip and tar let through where a header is damaged comes out as one error."""
    try:
        yield
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, struct.error) as error:
        if isinstance(error, InputError):
            raise
        raise tarfile.ReadError("a header is damaged") from error


def _open_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    with _parsing():
        return archive.open(info)


def zip_entries(archive: zipfile.ZipFile) -> Iterator[Entry]:
    """The files of a zip. Raises `ArchiveError` at the end for a bomb."""
    packed = 0
    for position, info in enumerate(archive.infolist()):
        name = _zip_name(info)
        if name.endswith(("/", "\\")):
            continue
        packed += info.compress_size
        yield _zip_entry(archive, info, normal_name(name), position)
    _refuse_bomb(sum(info.file_size for info in archive.infolist()), packed)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name, which macOS writes as UTF-8 without saying so."""
    if info.flag_bits & 0x800:
        return info.orig_filename
    try:
        return info.orig_filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return info.orig_filename


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, position: int) -> Entry:
    entry = Entry(name, info.file_size, partial(_open_zipped, archive, info), position)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 1:
        return replace(entry, fault="is encrypted; pack it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return replace(entry, fault="is packed by a rare method; pack it as a plain zip")
    if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
        return replace(entry, fault=_NO_FILE)
    if kind != stat.S_IFLNK:
        return entry
    with entry.open() as content:  # where the link points
        target = content.read(_MAX_LINK_BYTES).decode("utf-8", "surrogateescape")
    return _link(entry, posixpath.join(posixpath.dirname(name), target))


def _link(entry: Entry, target: str) -> Entry:
    return replace(entry, fault=_LINK_ELSEWHERE) if target.startswith("/") else replace(entry, link=normal_name(target))


def _tar_entries(archive: tarfile.TarFile, metered: _Metered, packed: int) -> Iterator[Entry]:
    # One by one: to get to the next header is to unpack all before it, so each size is judged before that.
    size, position = 0, -1
    while True:
        metered.left = _MAX_DIRECTORY_BYTES
        with _parsing():
            info = archive.next()
        if info is None:
            return
        if archive.offset <= position or info.size < 0:
            raise tarfile.ReadError("it leads back to where it was")
        position = archive.offset
        if info.isdir():
            continue
        size += info.size
        _refuse_bomb(size, packed)
        yield _tar_entry(archive, metered, info, position)


def _tar_entry(archive: tarfile.TarFile, metered: _Metered, info: tarfile.TarInfo, position: int) -> Entry:
    entry = Entry(normal_name(info.name), info.size, partial(_open_member, archive, metered, info), position)
    if "\0" in info.name + info.linkname:
        return entry
    try:
        safe = tarfile.data_filter(info, _NOWHERE)
    except (tarfile.AbsoluteLinkError, tarfile.LinkOutsideDestinationError):
        return replace(entry, fault=_LINK_ELSEWHERE)
    except tarfile.SpecialFileError:
        return replace(entry, fault=_NO_FILE)
    except tarfile.FilterError:  # the name leads outside, and `check_name` says so
        return entry
    if safe.issym():
        return _link(entry, posixpath.join(posixpath.dirname(entry.name), safe.linkname))
    return _link(entry, safe.linkname) if safe.islnk() else entry


def _open_member(archive: tarfile.TarFile, metered: _Metered, info: tarfile.TarInfo) -> Any:
    metered.left = info.size + CHUNK
    with _parsing():
        return archive.extractfile(info)


def _refuse_bomb(size: int, packed: int) -> None:
    if size > MAX_RATIO * max(packed, CHUNK):
        raise ArchiveError(
            f"The archive would grow from {packed:,} to {size:,} bytes, far more than such files can be packed. It looks "
            "made to fill the disk, so nothing was imported."
        )
