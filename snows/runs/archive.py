"""A run as one zip, to go elsewhere, and a run from elsewhere, taken in if it is one.

`pack` writes a run's folder. `import_run` takes such a zip, or a run's folder, from anybody: names, number and sizes of the
files are looked at before a byte is copied, the copy is read through by the rules of the formats, and only then does it get its
place in the store, all of it at once. Whatever is wrong raises `ArchiveError`, and nothing stays behind.
"""

import os
import re
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from pydantic import ValidationError

from snows.config import AnyPath, InputError, as_path, explain
from snows.events import CGIteration, NewtonStep, SiteFinished, SiteStarted, from_json
from snows.runs.log import Log
from snows.runs.store import Run, RunStore, RunTakenError, new_id
from snows.sources.unpack import CHUNK, ArchiveError, Entry, check, open_zip, readable, zip_entries

_PARTS = re.compile(r"(config|metrics|label)\.json|events\.jsonl|weights\.safetensors|sites/\d{4,6}\.safetensors")
# What belongs to the worker that made the run, not to the run; and what file managers put into every folder.
_LEFT_OUT = re.compile(r"joint\.safetensors|cancel|reserve|lock|owner|worker\.json|Thumbs\.db|desktop\.ini|(.*/)?\..*")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
MAX_ENTRIES = 20_000
MAX_BYTES = 20 * 1000**3
MAX_JSON_BYTES = 1000**2
MAX_EVENTS_BYTES = 500 * 1000**2


def pack(run: Run, file: BinaryIO) -> None:
    """Write a run's files as a zip of one folder, named by the run's id. A run in work is packed as far as it is."""
    with ExitStack() as stack:
        with suppress(RunTakenError):  # a worker has it; in either case nobody deletes it meanwhile
            stack.enter_context(run.at_rest())
        archive = stack.enter_context(
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False)
        )
        for path in sorted(run.path.rglob("*")):
            name = path.relative_to(run.path).as_posix()
            if _PARTS.fullmatch(name):
                archive.write(path, f"{run.id}/{name}")


def import_run(store: RunStore, source: AnyPath | BinaryIO, *, taken: Collection[str] = (), as_copy: bool = False) -> Run:
    """Take a run into the store. `source`: a zip, by path or as an open file, or the path of a run's folder.

    It keeps its id, unless its folder's name cannot be one or `as_copy` asks for a new one. `taken`: ids that it must not have
    besides those in the store. Raises `ArchiveError`.
    """
    if isinstance(source, str | os.PathLike):
        source = as_path(source)
    with readable(source), ExitStack() as stack:
        if isinstance(source, Path) and source.is_dir():
            entries, name = _folder_entries(source, stack), source.resolve().name
        else:
            file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            entries, name = zip_entries(stack.enter_context(open_zip(file, _too_many()))), ""
        return _import(store, list(islice(entries, MAX_ENTRIES + 1)), name, taken, as_copy)


_CHOOSE = "Choose the folder of one run, or a zip of it."
_DAMAGED = "The file is damaged, or was not written by a run: export the run again."


def _too_many() -> str:
    return f"The archive holds more than {MAX_ENTRIES:,} files, which no run does. Nothing was imported."


# --- what is offered ---


def _folder_entries(folder: Path, stack: ExitStack) -> Iterator[Entry]:
    """The files of a run's folder, in which nobody works until `stack` is closed."""
    if not (folder / "config.json").exists():
        raise ArchiveError(f"{folder} is no run: it has no config.json. {_CHOOSE}")
    try:
        stack.enter_context(Run(folder).at_rest())
    except RunTakenError as error:
        raise ArchiveError(f"{error} Import it when it has ended, or cancel it first.") from None
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise ArchiveError(f"{path} is a link or a device, not a file. Put the file itself into the folder.")
            if name in files:
                yield Entry(path.relative_to(folder).as_posix(), status.st_size, partial(path.open, "rb"))


def _checked(entries: list[Entry]) -> tuple[str, dict[str, Entry]]:
    """The name of the one folder around the run's files, if there is one, and the files by their place in a run's folder."""
    if len(entries) > MAX_ENTRIES:
        raise ArchiveError(_too_many())
    for entry in entries:
        check(entry, "the run's folder")
    entries = [e for e in entries if not e.name.startswith("__MACOSX/")]
    configs = [e.name for e in entries if PurePosixPath(e.name).name == "config.json"]
    if len(configs) != 1 or configs[0].count("/") > 1:
        fault = f"holds {len(configs)} runs" if len(configs) > 1 else "is no run: it has no config.json"
        raise ArchiveError(f"This {fault}. {_CHOOSE}")
    folder = configs[0].rpartition("/")[0]
    files: dict[str, Entry] = {}
    for entry in entries:
        inside = not folder or entry.name.startswith(folder + "/")
        name = entry.name[len(folder) + 1 :] if folder and inside else entry.name
        if _LEFT_OUT.fullmatch(name):
            continue
        if not inside or not _PARTS.fullmatch(name):
            raise ArchiveError(f"{entry.name!r} is no part of a run. Take it out, and import what is left.")
        if name in files:
            raise ArchiveError(f"The archive holds {name} twice, so it is unclear which one counts. Pack it again.")
        limit = MAX_JSON_BYTES if name.endswith(".json") else MAX_EVENTS_BYTES if name.endswith(".jsonl") else MAX_BYTES
        if entry.size > limit:
            raise ArchiveError(f"{name} has {entry.size:,} bytes; a run's may have {limit:,}. Nothing was imported.")
        files[name] = entry
    return folder, files


# --- taking it in ---


def _import(store: RunStore, entries: list[Entry], folder: str, taken: Collection[str], as_copy: bool) -> Run:
    packed_folder, files = _checked(entries)
    wanted = packed_folder or folder
    run_id = wanted if _ID.fullmatch(wanted) and not as_copy else new_id()
    place = store.root / run_id
    exists = f"There is a run {run_id} already, so nothing was imported. Delete that one first, or import this one as a copy."
    if run_id in taken or place.exists():
        raise ArchiveError(exists)
    store.root.mkdir(parents=True, exist_ok=True)
    size, free = sum(entry.size for entry in files.values()), shutil.disk_usage(store.root).free
    if size > min(MAX_BYTES, free):
        what = f"{free:,} are free in {store.root}" if size > free else f"a run may have {MAX_BYTES:,}"
        raise ArchiveError(f"The run has {size:,} bytes, and {what}. Nothing was imported.")
    scratch = store.root / ".import" / str(time.time_ns())
    try:
        for name, entry in files.items():
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as source, target.open("xb") as copy:
                shutil.copyfileobj(source, copy, CHUNK)
        _read_through(Run(scratch))
        os.sync()
        try:
            scratch.rename(place)
        except OSError:  # another import was faster
            raise ArchiveError(exists) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Run(place)


def _read_through(run: Run) -> None:
    """Raise `ArchiveError` unless every file says what its format promises, so that no reader stumbles over it later."""
    _valid("config.json", run.config)
    _valid("label.json", run.labels)
    _valid("metrics.json", run.metrics)
    log = _log(run.path / "events.jsonl")
    for path in sorted(run.path.glob("sites/*")):
        shapes = _shapes(path)
        if shapes.keys() != {"weight", "mask"} or shapes["weight"][0] != shapes["mask"][0] or shapes["mask"][1] != "BOOL":
            raise ArchiveError(f"sites/{path.name} does not hold one weight and its mask. {_DAMAGED}")
        if int(path.stem) >= log.total:
            sweeps = f" in {log.sweeps} sweeps" if log.sweeps > 1 else ""
            raise ArchiveError(
                f"sites/{path.name} belongs to no layer of the run, which has {len(log.sites)}{sweeps}. {_DAMAGED}"
            )
    if run.weights_path.exists() and (missing := [name for name in log.sites if name not in _shapes(run.weights_path)]):
        raise ArchiveError(f"weights.safetensors lacks the pruned layer {missing[0]}. {_DAMAGED}")


def _log(path: Path) -> Log:
    """What the log says, every line of which is checked."""
    if not path.exists():
        raise ArchiveError("The run has no events.jsonl, so nothing is known of what it did. Export it again.")
    log = Log()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):  # torn off, so it is not there yet
                break
            what = f"events.jsonl, line {number},"
            event = _valid(what, partial(from_json, line))
            match event:
                case SiteStarted() | SiteFinished() if not _is_of(log, event):
                    raise ArchiveError(f"{what} tells of a layer that is not the run's: {event.site[:80]!r}. {_DAMAGED}")
                case CGIteration() | NewtonStep() | SiteFinished() if event.site not in log.begun:
                    raise ArchiveError(f"{what} tells of a layer that has not begun: {event.site[:80]!r}. {_DAMAGED}")
                case SiteFinished() if "final" not in event.losses or any(
                    len(losses) != len(event.scale) for losses in event.by_k.values()
                ):
                    raise ArchiveError(f"{what} leaves out losses. {_DAMAGED}")
            if event is not None:
                log.add(event)
    return log


def _is_of(log: Log, event: SiteStarted | SiteFinished) -> bool:
    return event.sweep in range(log.sweeps) and log.sites[event.index : event.index + 1] == [event.site]


def _valid(what: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except InputError as error:  # nothing is wrong with it, but that it is too new
        raise ArchiveError(f"{what} cannot be read. {error}") from None
    except ValidationError as error:
        raise ArchiveError(f"{what} does not fit this version: {explain(error)}"[:500] + f" {_DAMAGED}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArchiveError(f"{what} cannot be read ({str(error)[:200]}). {_DAMAGED}") from None


def _shapes(path: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and number format by name. The library checks that the header and the file's length agree."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
    except SafetensorError as error:
        raise ArchiveError(f"{path.name} is not a safetensors file ({error}). {_DAMAGED}") from None
