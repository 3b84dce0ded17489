"""The app's workers, and what its pages may ask of them: a run goes in by its config, comes out as events in the store.

Each device that is wanted has a thread, which is a worker like any other (`snows.runs.executors`): it takes from the store's
line what is next, whoever put it there. What this app queues may as well be done by a worker elsewhere. So a page, a reload or
a second tab loses nothing. A server that is stopped puts the runs in work back in line; one that is killed leaves them there.
Whichever worker comes next goes on at the first unfinished layer.
"""

import copy
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from app.work import engine
from snows.config import InputError, RunConfig
from snows.events import RunFinished
from snows.runs.executors import Worker, device_of, takes
from snows.runs.store import ACTIVE, DeviceLostError, Execute, Run, RunStore, RunTakenError

_log = logging.getLogger(__name__)
# Below the app's threads, so that a page answers at once, yet it gets every cycle that nobody else wants.
CPU_NICENESS = 10
# Between two looks at a disk that refuses.
_REFUSED_SECONDS = 10.0
# How long a server that is stopped waits for its workers' next step, in which they put back what they do.
_STOP_SECONDS = 5.0


# Raises `InputError` where some runs may not be: it is given the configs of what is to be made, and how many are to be put in
# line.
Admit = Callable[[Sequence[RunConfig], int], None]


def works_here(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this app takes runs itself, or with `SNOWS_WORKERS=0` leaves them all to other workers. Raises `InputError`."""
    said = environment.get("SNOWS_WORKERS", "")
    if said not in ("", "0", "1"):
        raise InputError(
            f"SNOWS_WORKERS is 0 where the app leaves all runs to workers elsewhere, or 1, but is {said!r}. Start more workers "
            "with `python -m snows work`."
        )
    return said != "0"


def _everything(configs: Sequence[RunConfig], count: int) -> None:
    """Whoever has the machine to himself may do what he likes."""


def _execute(run: Run, device: str) -> RunFinished:
    engine.load()
    from snows.runs import runner

    return runner.execute(run, device)


class JobManager:
    """Start, cancel and resume runs of one store. Safe to call from any thread.

    `execute` does what a run's config says, see `snows.runs.store.Hold.work`. The default is `snows.runs.runner.execute`.
    `works`: whether it has workers of its own.
    """

    def __init__(self, store: RunStore, execute: Execute | None = None, *, works: bool = True) -> None:
        self._every_run = self._store = store
        self._execute = execute
        self._works = works
        self._admit: Admit = _everything
        self._admitting = threading.Lock()  # so that what is checked still holds when it is done
        self._workers: dict[str, tuple[Worker, threading.Thread]] = {}
        self._changing = threading.Lock()

    def of(self, store: RunStore, admit: Admit) -> "JobManager":
        """The same workers, for one who sees the runs of `store` alone, and may start what `admit` lets pass."""
        theirs = copy.copy(self)
        theirs._store, theirs._admit = store, admit
        return theirs

    def submit(self, config: RunConfig) -> str:
        """Create a run, queue it, and return its id. Raises `StoreError` if the disk refuses, `InputError` if it may not be."""
        with self._admitting:
            self._admit([config], 1)
            run = self._store.create(config)
            self._store.enqueue([run])
        self.work_on(device_of(config))
        return run.id

    def submit_comparison(self, configs: Sequence[RunConfig]) -> str:
        """Create and queue a run a config, as one comparison, and return its id. Raises as `submit`."""
        with self._admitting:
            self._admit(configs, len(configs))
            # All of them first, so that whatever was not queued can be resumed.
            comparison = self._store.create_comparison(configs)
            with suppress(RunTakenError):  # somebody was quick to resume one of them
                self._store.enqueue(comparison.runs(), comparison.id)
        for device in {device_of(config) for config in configs}:
            self.work_on(device)
        return comparison.id

    def resume_comparison(self, comparison_id: str) -> None:
        """Queue again what is unfinished of it. Raises `KeyError` for an unknown id, else as `resume`, of the last."""
        self._resume(self._store.comparison(comparison_id).runs(), comparison_id)

    def cancel_comparison(self, comparison_id: str) -> None:
        """Ask every run of a comparison that is not finished to stop. Raises `KeyError` for an unknown id."""
        # From the last, so that none of those that wait begins when the one in work ends.
        for run in reversed(self._store.comparison(comparison_id).runs()):
            if run.state() in ACTIVE:
                run.cancel()

    def resume(self, run_id: str) -> None:
        """Queue a failed, cancelled or interrupted run again; any other is left alone.

        Raises `KeyError` for an unknown id, `RunTakenError` for one that is being copied, `StoreError` if the disk refuses,
        `InputError` if it may not be.
        """
        self._resume([self._store.get(run_id)])

    def _resume(self, runs: Sequence[Run], comparison_id: str = "") -> None:
        stopped = [run for run in runs if run.state() not in (*ACTIVE, "finished")]
        try:
            with self._admitting:
                self._admit([], len(stopped))
                self._store.enqueue(stopped, comparison_id)
        except RunTakenError:
            if any(run.state() not in (*ACTIVE, "finished") for run in stopped):  # two tabs may press the button at once
                raise
        finally:
            for device in {device_of(run.config()) for run in stopped}:
                self.work_on(device)

    def cancel(self, run_id: str) -> None:
        """Ask a run to stop. A waiting run ends at once, a running one at its worker's next look. Raises `KeyError`."""
        self._store.get(run_id).cancel()

    def position(self, run: Run) -> int | None:
        """A run's place among those that wait for the workers it waits for: 1 for the next to start, None if it is not in line
        or a worker has it."""
        places = self._every_run.line().places()
        if run.id not in places or run.holder():
            return None
        device = device_of(run.config())
        before = list(places)[: list(places).index(run.id)]
        alike = (self._every_run.root / other for other in before if takes(device, places[other].device))
        return 1 + sum(not Run(path).holder() for path in alike)

    def attends_to(self, run: Run) -> bool:
        """Whether one of this app's workers would do that run."""
        wanted = run.config().prune.device
        return any(takes(device, wanted) for device in self._workers)

    def work_on(self, device: str) -> None:
        """Have a worker for that device look at the line now, where this app has workers."""
        if not self._works:
            return
        with self._changing:
            if device not in self._workers:
                worker = Worker(self._every_run, device)
                thread = threading.Thread(target=self._work, args=(worker,), name=f"worker-{device}", daemon=True)
                self._workers[device] = worker, thread
                thread.start()
        self._workers[device][0].wake()

    def stop(self) -> None:
        """Put the runs in work back in line, for whichever worker comes next."""
        for worker, _ in self._workers.values():
            worker.stop()
        deadline = time.monotonic() + _STOP_SECONDS
        for _, thread in self._workers.values():
            thread.join(max(deadline - time.monotonic(), 0))

    def _work(self, worker: Worker) -> None:
        if worker.device == "cpu" and sys.platform == "linux":  # elsewhere a thread has no priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), CPU_NICENESS)
        execute = self._execute or partial(_execute, device=worker.device)
        while True:
            try:
                hold = worker.next()
            except Exception:  # the disk is full or gone; what waits does so until it is back
                _log.exception("The worker on %s could not take a run", worker.device)
                time.sleep(_REFUSED_SECONDS)
                continue
            if hold is None:
                return
            try:
                with hold:
                    hold.work(execute)
            except DeviceLostError:  # the rest of the line is for a process that has its device
                _log.exception("The worker on %s ends", worker.device)
                return
            except Exception:  # likewise, in the middle of a run: it shows as interrupted, and the line must go on
                _log.exception("Run %s could not record how it ended", hold.run.id)
