"""`Worker`: takes the runs that wait in a store's line, one after the other; a thread of the app, or a process on any machine.

    worker = Worker(store, "cpu")
    while (hold := worker.next()) is not None:
        with hold:
            hold.work(partial(runner.execute, device=worker.device))

Any number of workers, on any machine that sees the folder, do the runs of one store: what keeps them apart is the lock of each
run (`lock`), and who comes next is written beside the runs (`line`). None of them knows of another, and none is missed: a run
of a worker that was lost is still in line, and free, so whoever looks next goes on with it.
"""

import threading

from snows.config import RunConfig
from snows.runs.store import Hold, Run, RunStore, StoreError

# How long a run that nobody tells of waits for an idle worker, which looks by listing one folder.
LOOK_SECONDS = 1.0


def device_of(config: RunConfig) -> str:
    """The device a run will occupy on this machine: `cpu` or `cuda:N`. `auto` prefers CUDA, as the engine does."""
    device = config.prune.device
    if device == "auto":
        device = "cuda" if _has_cuda() else "cpu"
    return "cuda:0" if device == "cuda" else device


def takes(device: str, wanted: str) -> bool:
    """Whether a worker of `device`, `cpu` or `cuda:N`, does a run whose config names the device `wanted`.

    `cuda` is any card. So is `auto`, and where a machine has none its processor: one that has leaves it to the card.
    """
    if device == "cpu":
        return wanted == "cpu" or (wanted == "auto" and not _has_cuda())
    return wanted in (device, "cuda", "auto")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


class Worker:
    """Who takes runs from a store's line for one device, `cpu` or `cuda:N`. `stop` and `wake` may be called from any thread,
    and from a signal's handler."""

    def __init__(self, store: RunStore, device: str) -> None:
        self.device = device
        self._store = store
        self._line = store.line()
        self._woken = threading.Event()
        self._is_stopping = False

    def next(self, *, until_empty: bool = False) -> Hold | None:
        """The next run, waited for if need be; None when the worker was told to stop.

        `until_empty`: None also once nothing is in line that it could do, not even in another's hands, who may be lost and
        leave it. Raises `StoreError` where the disk refuses each run that waits.
        """
        while not self._is_stopping:
            if (hold := self.claim()) is not None:
                return hold
            if until_empty and not any(takes(self.device, place.device) for place in self._line.places().values()):
                return None
            self._woken.wait(LOOK_SECONDS)
            self._woken.clear()
        return None

    def claim(self) -> Hold | None:
        """The next run that waits now and that this worker can do, or None."""
        refusal = None
        for run_id, place in self._line.places().items():
            if takes(self.device, place.device):
                try:
                    if (hold := Run(self._store.root / run_id).claim(lambda: self._is_stopping)) is not None:
                        return hold
                except StoreError as error:  # of this run, perhaps of all
                    refusal = error
        if refusal is not None:
            raise refusal
        return None

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    def stop(self) -> None:
        """Put the run in work back in line at its next step, and take no other."""
        self._is_stopping = True
        self._woken.set()
