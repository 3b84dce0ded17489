"""Files of every kind that may come from anybody, changed at random: what reads them gives a value or a sentence.

Each kind has a process of its own, which may take so much memory beyond what it has and is watched where it writes. A mutation
changes bytes, numbers or whole pieces of a file that is right; those of JSON also change values to what nobody would write.
"""

import io
import os
import random
import re
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from app.tables import runs as runs_table
from snows.config import InputError, RunConfig
from snows.method.sparsity import read_mask_file
from snows.runs.archive import import_run, pack
from snows.runs.executors import Worker
from snows.runs.store import RunStore
from snows.sources import checkpoints, pictures, uploads
from tests.bench.faults import PRETENDED, pretend_layers, work_through
from tests.bench.workers import processes, start

MEMORY_BYTES = 1 << 30
SECONDS = 5.0
_ODD = (0, 1, 0x7F, 0x80, 0xFF)
_STRANGE = (
    *("null", "true", "-1", "0", "1e999", "NaN", "99999999999999999999", '""', "[]", "{}", '"\\ud800"', '"\\u0000"'),
    *('"../../x"', '"<b>b</b>"', "0.5", "[[[[]]]]", '"' + "x" * 10_000 + '"'),
)
_JSON_VALUE = re.compile(rb'(?<=[:,\[])\s*("[^"\\]*"|-?\d[\d.e+-]*|true|false|null|\[\]|\{\})')


def mutated(content: bytes, chance: random.Random, *, text: bool = False) -> bytes:
    """One to four changes."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        size = len(changed)
        at = chance.randrange(size) if size else 0
        match chance.randrange(8 if text else 6):
            case 0 if size:
                changed[at] = chance.choice([chance.randrange(256), *_ODD])
            case 1 if size:
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                del changed[at : at + chance.choice([1, 4, 100, size])]
            case 3:
                changed[at:at] = chance.randbytes(chance.choice([1, 4, 100, 5000]))
            case 4:  # a length, perhaps
                changed[at : at + 4] = chance.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, chance.getrandbits(32)]).to_bytes(
                    4, "little"
                )
            case 5:  # a piece from elsewhere
                other = chance.randrange(size) if size else 0
                changed[at : at + 50] = changed[other : other + chance.choice([0, 50, 200])]
            case _:
                values = list(_JSON_VALUE.finditer(changed))
                if values:
                    value = chance.choice(values)
                    changed[value.start(1) : value.end(1)] = chance.choice(_STRANGE).encode()
    return bytes(changed)


# --- what is right, and who reads it ---


Read = Callable[[bytes], None]


def _checkpoint(folder: Path) -> tuple[list[bytes], Read]:
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4))
    zipped, old = io.BytesIO(), io.BytesIO()
    training = {"epoch": 3, "model": module.state_dict(), "optimizer": torch.optim.Adam(module.parameters()).state_dict()}
    torch.save(training, zipped)
    torch.save(module.state_dict(), old, _use_new_zipfile_serialization=False)
    path = folder / "checkpoint"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        state = checkpoints.read(path, module)
        checkpoints.load_into(module, {name: value.clone() for name, value in state.items()}, path)

    return [save(dict(module.state_dict())), zipped.getvalue(), old.getvalue()], read


def _mask(folder: Path) -> tuple[list[bytes], Read]:
    masks = {f"layer{index}.weight": torch.rand(8, 8) > 0.5 for index in range(3)}
    path = folder / "mask.safetensors"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        for mask in read_mask_file(path).values():
            mask.sum()

    return [save(masks), save({name: mask * torch.rand(8, 8) for name, mask in masks.items()})], read


def _store(folder: Path) -> RunStore:
    store = RunStore(folder / "made")
    store.enqueue([store.create(PRETENDED)])
    work_through(store, pretend_layers)
    return store


def _looked_at(store: RunStore) -> None:
    """As screens and workers do; every run of a store is shown, those that are damaged too."""
    for run in store.list():
        run.state(), run.last(), run.created()
        log = run.log()
        log.layers(), log.elapsed(time.time()), log.left(time.time()), log.share, log.fraction
    runs_table.table(store.list())
    store.comparisons()


def _emptied(store: RunStore) -> None:
    for run in store.list():
        store.delete(run.id)


def _run_archive(folder: Path) -> tuple[list[bytes], Read]:
    packed, plain = io.BytesIO(), io.BytesIO()
    pack(_store(folder).list()[0], packed)
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(plain, "w") as stored:  # whose content a mutation reaches
        for name in source.namelist():
            stored.writestr(name, source.read(name))
    store = RunStore(folder / "runs")

    def read(content: bytes) -> None:
        try:
            import_run(store, io.BytesIO(content))
            _looked_at(store)
        finally:
            _emptied(store)

    return [packed.getvalue(), plain.getvalue()], read


def _png(chance: random.Random, form: str = "png") -> bytes:
    content = io.BytesIO()
    Image.frombytes("RGB", (24, 24), chance.randbytes(24 * 24 * 3)).save(content, form)
    return content.getvalue()


def _picture_archive(folder: Path) -> tuple[list[bytes], Read]:
    chance, whole = random.Random(0), []
    files = {f"{label}/{number}.png": _png(chance) for label in ("cat", "dog") for number in range(2)}
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", compression) as archive:
            for name, picture in files.items():
                archive.writestr(name, picture)
        whole.append(content.getvalue())
    for mode in ("w", "w:gz", "w:bz2"):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode=mode) as tar:  # type: ignore[call-overload]
            for name, picture in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(picture)
                tar.addfile(entry, io.BytesIO(picture))
        whole.append(content.getvalue())

    def read(content: bytes) -> None:
        uploads.keep_archive(folder / "runs", io.BytesIO(content), "pictures.zip")

    return whole, read


def _picture(folder: Path) -> tuple[list[bytes], Read]:
    chance = random.Random(0)

    def read(content: bytes) -> None:
        pictures.read_picture(content, "a picture").load()

    return [_png(chance, form) for form in ("png", "jpeg", "webp", "bmp", "gif", "tiff")], read


def _config(folder: Path) -> tuple[list[bytes], Read]:
    return _of_a_run(folder, "config.json")


def _event_log(folder: Path) -> tuple[list[bytes], Read]:
    return _of_a_run(folder, "events.jsonl")


def _of_a_run(folder: Path, name: str) -> tuple[list[bytes], Read]:
    """A file of a run in the store, which waits in line: a screen shows the run, a worker does it or says why not."""
    whole = (_store(folder).list()[0].path / name).read_bytes()
    if name == "config.json":
        wholes = [
            whole,
            RunConfig.model_validate({"prune": {"pattern": "2:4", "overrides": {"fc": "dense"}}}).model_dump_json().encode(),
        ]
    else:
        wholes = [whole, b"".join(whole.splitlines(keepends=True)[:-3])]
    store = RunStore(folder / "runs")

    def read(content: bytes) -> None:
        run = store.create(PRETENDED)
        try:
            store.enqueue([run])
            (run.path / name).write_bytes(content)
            _looked_at(store)
            if (hold := Worker(store, "cpu").claim()) is not None:
                with hold:
                    hold.work(pretend_layers)
            assert not run.in_line()
            assert run.state() in ("finished", "failed", "cancelled"), run.state()
            _looked_at(store)
        finally:
            _emptied(store)

    return wholes, read


KINDS: dict[str, Callable[[Path], tuple[list[bytes], Read]]] = {
    "checkpoint": _checkpoint,
    "mask": _mask,
    "run archive": _run_archive,
    "picture archive": _picture_archive,
    "picture": _picture,
    "config": _config,
    "event log": _event_log,
}


# --- and what becomes of it ---


@dataclass(frozen=True)
class Outcome:
    """Of so many mutated files of a kind: those read, those refused in a sentence; crashes, by what was raised; writes outside
    the folder; those beyond the limits of memory and of time; the longest in seconds."""

    read: int
    refused: int
    crashes: list[str]
    outside: list[str]
    over_memory: int
    over_time: int
    longest: float
    grown_mb: float  # by how much the process's memory grew at most


def _try(kind: str, count: int, seed: int, folder: str, say: Any) -> None:
    torch.set_num_threads(1)
    place, chance = Path(folder), random.Random(seed)
    os.sync = lambda: None  # of the whole machine, and thousands of times
    os.fsync = lambda descriptor: None
    wholes, read = KINDS[kind](place)
    outside: list[str] = []

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in ("os.rename", "os.remove", "os.mkdir", "os.symlink", "os.link") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        within_a_folder = event == "os.remove" and arguments[1] != -1  # one that is removed whole, and was looked at itself
        if (
            writes
            and not within_a_folder
            and isinstance(arguments[0], str | os.PathLike)
            and not os.path.abspath(arguments[0]).startswith(folder)
        ):
            outside.append(f"{event} {arguments[0]}")

    for whole in wholes:
        read(whole)  # which imports what is needed
    sys.addaudithook(look)
    with Path("/proc/self/statm").open() as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome: dict[str, Any] = {"read": 0, "refused": 0, "crashes": [], "over_memory": 0, "over_time": 0, "longest": 0.0}
    for number in range(count):
        content = mutated(chance.choice(wholes), chance, text=kind in ("config", "event log", "run archive"))
        before = time.perf_counter()
        try:
            read(content)
            outcome["read"] += 1
        except InputError:
            outcome["refused"] += 1
        except MemoryError:
            outcome["over_memory"] += 1
        except Exception as error:
            outcome["crashes"].append(f"{number}: {type(error).__name__}: {error}"[:300])
        seconds = time.perf_counter() - before
        outcome["over_time"] += seconds > SECONDS
        outcome["longest"] = max(outcome["longest"], seconds)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    say.send(Outcome(**outcome, outside=outside, grown_mb=grown))


def mutate(kind: str, count: int, seed: int = 0) -> Outcome:
    """Have so many mutated files of a kind read. A process that dies of one is a crash."""
    with tempfile.TemporaryDirectory() as folder:
        receive, say = processes().Pipe(duplex=False)
        process = start(_try, kind, count, seed, folder, say)
        say.close()
        try:
            return receive.recv()
        except EOFError:
            process.join()
            return Outcome(0, 0, [f"the process ended with {process.exitcode}"], [], 0, 0, 0.0, 0.0)
