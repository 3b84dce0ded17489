"""`RunStore`: one folder a run, the only channel between a worker and a screen.

    RUN/config.json           the RunConfig, written once
    RUN/events.jsonl          one event a line, append-only
    RUN/sites/NNNN.safetensors  a finished site's weight and mask; present means finished
    RUN/metrics.json          written when the run has finished
    RUN/weights.safetensors   the pruned network's state dict
    RUN/cancel                present when somebody asked the worker to stop
    RUN/reserve               room for the last event on a disk that is full
    RUN/worker.json           process id and heartbeat of the worker that holds the run

The contract is *append* and *read from an offset*. A last line without its line end is not there yet: a reader leaves it for
the next call, and the next writer cuts it off. Files other than the event log are written beside their place and renamed, so a
reader sees all of one or none of it. One worker writes a run; any number of readers, in any process, need no lock. Do not
put the folder on a file system without atomic rename.
"""

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from snows.config import RunConfig
from snows.events import Event, Queued, RunCancelled, RunFailed, RunFinished, from_json, to_json

if TYPE_CHECKING:
    from torch import Tensor

ACTIVE = ("queued", "running")
_ENDED: dict[type[Event], str] = {RunFinished: "finished", RunFailed: "failed", RunCancelled: "cancelled"}
RESERVE_BYTES = 16_384
HEARTBEAT_SECONDS = 2.0
# A worker that has not been seen for this long and whose process is gone, or lives on another host, is taken for dead.
STALE_SECONDS = 30.0
_TAIL_BYTES = 65536


class StoreError(RuntimeError):
    """The disk refused: the message says which file, why, and what to do."""


def default_root() -> Path:
    """`$SNOWS_RUNS`, else `~/.snows/runs`."""
    return Path(os.environ.get("SNOWS_RUNS", "~/.snows/runs")).expanduser()


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"Could not write {path}: {error.strerror}. Free some space there and resume the run, whose finished layers "
            "are kept; or set SNOWS_RUNS to a folder that can be written, for new runs."
        ) from error


def _write(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with _disk(path):
        try:
            scratch.write_bytes(content)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


@dataclass(frozen=True)
class Run:
    """A handle on one run folder. Holds no state: every call reads the disk."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    def config(self) -> RunConfig:
        return RunConfig.model_validate_json((self.path / "config.json").read_text())

    # --- events ---

    def append(self, *new: Event) -> None:
        lines = "".join(to_json(e) + "\n" for e in new).encode()
        path = self.path / "events.jsonl"
        with _disk(path), path.open("ab+") as file:
            _cut_torn_line(file)
            file.write(lines)

    def append_last(self, event: Event) -> None:
        """Append how the run ended, in the room that was kept for it: a full disk must not hide that it was full."""
        (self.path / "reserve").unlink(missing_ok=True)
        self.append(event)

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """The whole events from byte `offset` on, and the offset to ask for next."""
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:
            return [], 0
        end = content.rfind(b"\n") + 1
        parsed = (from_json(line) for line in content[:end].decode().splitlines())
        return [e for e in parsed if e is not None], offset + end

    # --- state ---

    def state(self) -> str:
        """`queued`, `running`, `finished`, `failed`, `cancelled`, or `interrupted` (its worker is gone; it can be resumed)."""
        return self.state_after(self._last_event())

    def _last_event(self) -> Event | None:
        # A list of runs asks each for its state; the log of a long run has thousands of lines, and the last one says it all.
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                *before, _torn = file.read().split(b"\n")
        except FileNotFoundError:
            return None
        last = from_json(before[-1].decode()) if len(before) > 1 else None
        if last is None:  # a long line, a short log, or an event of another version
            happened, _ = self.events()
            last = happened[-1] if happened else None
        return last

    def state_after(self, last: Event | None) -> str:
        """`state` for a reader that already holds the last event."""
        if self._worker_alive():
            return "queued" if last is None or isinstance(last, Queued) else "running"
        return "interrupted" if last is None else _ENDED.get(type(last), "interrupted")

    def _worker_alive(self) -> bool:
        try:
            worker = json.loads((self.path / "worker.json").read_text())
        except (FileNotFoundError, ValueError):
            return False
        if worker["host"] == os.uname().nodename:
            try:
                os.kill(worker["pid"], 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                pass
        return time.time() - worker["seen"] < STALE_SECONDS

    @contextmanager
    def held(self) -> Iterator[None]:
        """Mark this run as held by the calling process until the block ends, from queueing to the last event."""
        stop = threading.Event()

        def beat() -> None:
            record = {"pid": os.getpid(), "host": os.uname().nodename, "seen": time.time()}
            _write(self.path / "worker.json", json.dumps(record).encode())

        def keep_beating() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                # A full disk may be emptied before the run is taken for dead; the run's own writes report it meanwhile.
                with suppress(StoreError):
                    beat()

        _write(self.path / "reserve", bytes(RESERVE_BYTES))
        beat()  # at once and here: a reader must never see a fresh run as interrupted
        thread = threading.Thread(target=keep_beating, name=f"heartbeat-{self.id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            (self.path / "reserve").unlink(missing_ok=True)
            (self.path / "worker.json").unlink(missing_ok=True)

    def request_cancel(self) -> None:
        with _disk(self.path / "cancel"):
            (self.path / "cancel").touch()

    def cancel_requested(self) -> bool:
        return (self.path / "cancel").exists()

    def clear_cancel(self) -> None:
        (self.path / "cancel").unlink(missing_ok=True)

    # --- results ---

    def save_site(self, index: int, weight: "Tensor", mask: "Tensor") -> None:
        """A finished site. `weight` and `mask` (bool, True = kept) share the parameter's shape."""
        from safetensors.torch import save

        with _disk(self.path / "sites"):
            (self.path / "sites").mkdir(exist_ok=True)
        tensors = {"weight": weight.detach().cpu().contiguous(), "mask": mask.cpu().contiguous()}
        _write(self.path / "sites" / f"{index:04d}.safetensors", save(tensors))

    def load_site(self, index: int) -> tuple["Tensor", "Tensor"] | None:
        from safetensors.torch import load_file

        path = self.path / "sites" / f"{index:04d}.safetensors"
        if not path.exists():
            return None
        tensors = load_file(path)
        return tensors["weight"], tensors["mask"]

    def finished_sites(self) -> Iterator[int]:
        """The indices of the sites that are finished."""
        return (int(p.stem) for p in sorted(self.path.glob("sites/[0-9]*.safetensors")))

    def save_weights(self, state_dict: dict[str, "Tensor"]) -> None:
        from safetensors.torch import save

        # A copy each: safetensors refuses two names for one storage, which is what tied weights are.
        _write(self.weights_path, save({k: v.detach().to("cpu", copy=True).contiguous() for k, v in state_dict.items()}))

    @property
    def weights_path(self) -> Path:
        return self.path / "weights.safetensors"

    def save_metrics(self, metrics: dict[str, float | None]) -> None:
        _write(self.path / "metrics.json", json.dumps(metrics, indent=2).encode())

    def metrics(self) -> dict[str, float | None] | None:
        try:
            return json.loads((self.path / "metrics.json").read_text())
        except FileNotFoundError:
            return None


def _cut_torn_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    # A worker died in the middle of a line. Nobody has read it, and nobody can; the log goes on from the last whole one.
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


@dataclass(frozen=True)
class RunStore:
    """All runs under one folder."""

    root: Path

    def create(self, config: RunConfig) -> Run:
        """A new, empty run. Its id sorts by time of creation."""
        run = Run(self.root / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
        with _disk(run.path):
            run.path.mkdir(parents=True)
        _write(run.path / "config.json", config.model_dump_json(indent=2).encode())
        return run

    def get(self, run_id: str) -> Run:
        """Raises `KeyError` with the way to list what exists."""
        run = Run(self.root / run_id)
        if not run_id or "/" in run_id or run_id.startswith(".") or not (run.path / "config.json").exists():
            raise KeyError(f"There is no run {run_id!r} in {self.root}. `python -m snows list` shows the runs there are.")
        return run

    def list(self) -> list[Run]:
        """Newest first."""
        if not self.root.exists():
            return []
        return [Run(p) for p in sorted(self.root.iterdir(), reverse=True) if (p / "config.json").exists()]

    def delete(self, run_id: str) -> None:
        shutil.rmtree(self.get(run_id).path)
