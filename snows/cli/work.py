"""work: a worker, which does the runs that wait in line; and how a comparison is put there."""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

from snows import events
from snows.cli.out import CANCELLED, FAILED, FINISHED, fail, json_line
from snows.cli.runs import execute_run
from snows.config import PruneConfig, RunConfig
from snows.plans.words import as_called, run_name
from snows.runs.executors import Worker, device_of
from snows.runs.store import ACTIVE, Comparison, DeviceLostError, Run, RunStore, default_root


def work_command(given: argparse.Namespace) -> int:
    """Do what waits, a line on stderr a run. The exit code is that of a failed run, if there was one."""
    store = RunStore(given.root or default_root())
    device = device_of(RunConfig(prune=PruneConfig(device=given.device)))
    if device != "cpu":
        from snows.method.coverage import resolve_device

        resolve_device(device)  # before anything is taken that cannot be done here
    worker = Worker(store, device)
    execute, code = partial(execute_run, device=device), FINISHED
    sys.stderr.write(f"Working on {device} for {store.root}. Ctrl-C puts the run in work back in line, and ends.\n")
    with _stopped_by_signals(worker) as stopped:
        while (hold := worker.claim() if given.once else worker.next(until_empty=given.until_empty)) is not None:
            with hold:
                sys.stderr.write(f"{hold.run.id}: {run_name(as_called(hold.run))}\n")
                try:
                    ending = hold.work(execute)
                except DeviceLostError as error:
                    return fail(f"{error} The run is back in line.", FAILED)
            sys.stderr.write(f"{hold.run.id}: {_said(ending)}\n")
            code = FAILED if isinstance(ending, events.RunFailed) else code
            if given.once:
                break
    return CANCELLED if stopped else code


def _said(ending: events.Event) -> str:
    match ending:
        case events.RunFinished():
            return "finished"
        case events.RunFailed(message=message):
            return f"failed. {message}"
        case events.RunCancelled(finished_sites=count):
            return f"cancelled after {count} finished layers"
    return "back in line; its finished layers are kept"


@contextmanager
def _stopped_by_signals(worker: Worker) -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C stop the worker, and are in the list; a second one ends the process."""
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        worker.stop()
        sys.stderr.write("\nStopping after the current step; once more stops at once.\n")
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def put_in_line(store: RunStore, comparison: Comparison, runs: Sequence[Run], *, as_json: bool) -> int:
    """Queue those of these runs of a comparison that neither wait nor work nor have finished, and say who does them."""
    stopped = [run for run in runs if run.state() not in (*ACTIVE, "finished")]
    store.enqueue(stopped, comparison.id)
    if as_json:
        sys.stdout.write(json_line({"comparison": comparison.id, "queued": [run.id for run in stopped]}) + "\n")
    sys.stderr.write(
        f"{len(stopped)} of its runs were put in line. They are done by each `python -m snows work` on a machine that sees "
        f"{store.root}, and by the app while it is open.\n"
    )
    return FINISHED
