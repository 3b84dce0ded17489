"""The queue and the background workers: a run goes in by its config, comes out as events in the store.

Each device has one worker thread and one waiting line, first come, first served. A worker is handed a run folder and nothing
else; whoever wants to know how it goes reads the folder. So a page, a reload or a second tab loses nothing, and the workers
could as well live in another process. A server that is killed takes its threads along and leaves their runs `interrupted`;
`resume` goes on at the first unfinished layer.
"""

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from app.work import engine
from snows.config import RunConfig
from snows.events import RunFinished
from snows.runs.store import ACTIVE, Execute, Hold, Run, RunStore, RunTakenError

_log = logging.getLogger(__name__)
# Below the app's threads, so that a page answers at once, yet it gets every cycle that nobody else wants.
CPU_NICENESS = 10


@dataclass
class _Line:
    """One device's waiting runs and its worker."""

    waiting: deque[Hold] = field(default_factory=deque)
    worker: threading.Thread | None = None


def _execute(run: Run) -> RunFinished:
    engine.load()
    from snows.runs import runner

    return runner.execute(run)


def device_of(config: RunConfig) -> str:
    """The device a run will occupy: `cpu` or `cuda:N`. `auto` prefers CUDA, as the engine does."""
    device = config.prune.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda:0" if device == "cuda" else device


class JobManager:
    """Start, cancel and resume runs of one store. Safe to call from any thread.

    `execute` does what a run's config says, see `snows.runs.store.Hold.work`. The default is `snows.runs.runner.execute`.
    """

    def __init__(self, store: RunStore, execute: Execute = _execute) -> None:
        self._store = store
        self._execute = execute
        self._lines: dict[str, _Line] = {}
        self._changed = threading.Condition()

    def submit(self, config: RunConfig) -> str:
        """Create a run, queue it, and return its id. Raises `StoreError` if the disk refuses."""
        device = device_of(config)
        run = self._store.create(config)
        self._enqueue(run.queue(), device)
        return run.id

    def submit_comparison(self, configs: Sequence[RunConfig]) -> str:
        """Create and queue a run a config, as one comparison, and return its id. Raises `StoreError` if the disk refuses."""
        devices = [device_of(config) for config in configs]
        comparison = self._store.create_comparison(configs)  # all of them first, so that whatever was not queued can be resumed
        for run, device in zip(comparison.runs(), devices, strict=True):
            with suppress(RunTakenError):  # somebody was quick to resume it
                self._enqueue(run.queue(), device)
        return comparison.id

    def resume_comparison(self, comparison_id: str) -> None:
        """Queue again what is unfinished of it. Raises `KeyError` for an unknown id, else as `resume`, of the last."""
        refusal = None
        for run in self._store.comparison(comparison_id).runs():
            try:
                self.resume(run.id)
            except RunTakenError as error:
                refusal = error
        if refusal is not None:
            raise refusal

    def cancel_comparison(self, comparison_id: str) -> None:
        """Ask every run of a comparison that is not finished to stop. Raises `KeyError` for an unknown id."""
        # From the last, so that none of those that wait begins when the one in work ends.
        for run in reversed(self._store.comparison(comparison_id).runs()):
            if run.state() in ACTIVE:
                self.cancel(run.id)

    def resume(self, run_id: str) -> None:
        """Queue a failed, cancelled or interrupted run again; any other is left alone.

        Raises `KeyError` for an unknown id, `RunTakenError` for one that is being copied, `StoreError` if the disk refuses.
        """
        run = self._store.get(run_id)
        device = device_of(run.config())
        if run.state() in (*ACTIVE, "finished"):
            return
        try:
            hold = run.queue()
        except RunTakenError:
            if run.state() in (*ACTIVE, "finished"):  # two tabs may press the button at once
                return
            raise
        self._enqueue(hold, device)

    def cancel(self, run_id: str) -> None:
        """Ask a run to stop. A waiting run ends at once, a running one at its worker's next look. Raises `KeyError`."""
        run = self._store.get(run_id)
        run.request_cancel()
        with self._changed:
            for line in self._lines.values():
                for hold in line.waiting:
                    if hold.run == run:
                        line.waiting.remove(hold)
                        with hold:
                            hold.cancel()
                        return

    def position(self, run_id: str) -> int | None:
        """A run's place in its line: 1 for the next to start, None if it is not waiting here."""
        with self._changed:
            for line in self._lines.values():
                for place, hold in enumerate(line.waiting, start=1):
                    if hold.run.id == run_id:
                        return place
        return None

    def _enqueue(self, hold: Hold, device: str) -> None:
        with self._changed:
            line = self._lines.setdefault(device, _Line())
            line.waiting.append(hold)
            if line.worker is None:
                line.worker = threading.Thread(target=self._work, args=(device, line), name=f"worker-{device}", daemon=True)
                line.worker.start()
            self._changed.notify_all()

    def _work(self, device: str, line: _Line) -> None:
        if device == "cpu" and sys.platform == "linux":  # elsewhere a thread has no priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), CPU_NICENESS)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: line.waiting)
                hold = line.waiting.popleft()
            try:
                with hold:
                    hold.work(self._execute)
            except Exception:  # the disk is full or gone: the run shows as interrupted, and the line must go on
                _log.exception("Run %s could not record how it ended", hold.run.id)
