"""Files out of an archive from anybody, looked at by name, number and size before a byte of them is written.

Zip and tar (plain, gzip or bzip2). What is listed can be trusted to be plain files; what they hold cannot. Nothing here unpacks
to a disk: the caller checks the names (`check_name`) and the sizes first, and copies through `Entry.open`.
"""

import bz2
import gzip
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from snows.config import InputError

# Deflate reaches a thousand. Logs, pruned weights and pictures stay below twenty.
MAX_RATIO = 200
CHUNK = 1000**2
_MAX_DIRECTORY_BYTES = 4 * 1000**2


class ArchiveError(InputError):
    """An archive or folder that cannot be taken in, or not safely; the message says what is wrong with it and what to do."""


@dataclass(frozen=True)
class Entry:
    """A file that is offered. `name`: its path within the folder or archive."""

    name: str
    size: int
    open: Callable[[], Any]


def check_name(entry: Entry, place: str) -> None:
    """Raise `ArchiveError` where the entry's name leads out of `place`, a folder in words."""
    if re.search(r"[\\\0]|^[A-Za-z]:", entry.name) or {"", ".", ".."} & set(entry.name.split("/")):
        raise ArchiveError(f"{entry.name!r} would lie outside {place}. It looks made to overwrite other files.")


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
        yield _tar_entries(stack.enter_context(tarfile.open(fileobj=cast(Any, metered), mode="r:")), metered, packed)


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
    return zipfile.ZipFile(cast(BinaryIO, _Bounded(file, too_many)))


def zip_entries(archive: zipfile.ZipFile) -> Iterator[Entry]:
    """The files of a zip. Raises `ArchiveError` for links, for what cannot be read, and at the end for a bomb."""
    packed = 0
    for info in archive.infolist():
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ArchiveError(f"{info.filename} is a link, which could point anywhere. Pack the file itself.")
        if info.flag_bits & 1:
            raise ArchiveError(f"{info.filename} is encrypted. Pack it without a password.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArchiveError(f"{info.filename} is packed by a rare method. Pack it as a plain zip.")
        if not info.is_dir():
            packed += info.compress_size
            yield Entry(info.orig_filename, info.file_size, partial(archive.open, info))
    _refuse_bomb(sum(info.file_size for info in archive.infolist()), packed)


def _tar_entries(archive: tarfile.TarFile, metered: _Metered, packed: int) -> Iterator[Entry]:
    # One by one: to get to the next header is to unpack all before it, so each size is judged before that.
    size = 0
    while True:
        metered.left = _MAX_DIRECTORY_BYTES
        if (info := archive.next()) is None:
            return
        if info.isdir():
            continue
        if not info.isreg():
            raise ArchiveError(f"{info.name} is a link or a device, which could point anywhere. Pack the file itself.")
        size += info.size
        _refuse_bomb(size, packed)
        yield Entry(info.name, info.size, partial(_open_member, archive, metered, info))


def _open_member(archive: tarfile.TarFile, metered: _Metered, info: tarfile.TarInfo) -> Any:
    metered.left = info.size + CHUNK
    return archive.extractfile(info)


def _refuse_bomb(size: int, packed: int) -> None:
    if size > MAX_RATIO * max(packed, CHUNK):
        raise ArchiveError(
            f"The archive would grow from {packed:,} to {size:,} bytes, far more than such files can be packed. It looks "
            "made to fill the disk, so nothing was imported."
        )
