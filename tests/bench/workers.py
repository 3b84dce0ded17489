"""What sharing a store costs, and whether anything is lost: workers side by side, two after one run, workers killed.

Each measurement starts workers as processes of their own over an empty store in a temporary folder. An overhead is what a
worker spends between two runs and in writing a run's life, so all but the work itself: the pretended work appends events, the
real one prunes four layers of the bundled ResNet.
"""

import math
import multiprocessing
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from snows.config import PruneConfig, RunConfig
from snows.events import Phase, Queued, RunFinished, RunStarted
from snows.runs import runner
from snows.runs.executors import Worker
from snows.runs.store import Run, RunStore

PRETENDED = RunConfig(prune=PruneConfig(device="cpu"))
EVENTS = 20
PRUNED = ("layer1.0.conv1", "layer2.0.downsample.0", "layer3.1.conv2", "fc")


def small() -> RunConfig:
    """A real run of seconds: four layers from all over the network, on a few images."""
    prune = {"pattern": "2:4", "k_steps": 3, "prune_classifier": True, "device": "cpu", "batch_size": 8}
    names = ["conv1", *(f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2))]
    names += ["layer2.0.downsample.0", "layer3.0.downsample.0"]
    overrides = {name: "dense" for name in names if name not in PRUNED}
    return RunConfig.model_validate(
        {"num_calibration": 32, "num_held_back": 0, "num_evaluation": 100, "prune": {**prune, "overrides": overrides}}
    )


def pretend(run: Run) -> RunFinished:
    for number in range(EVENTS):
        run.append(Phase(name=str(number)))
    return RunFinished(metrics={})


def processes() -> Any:
    """Processes that have imported the engine, each by a fork of one that computes nothing, so that a start takes no
    seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__, "tests.bench.faults"])
    return context


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = processes().Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def _work(root: Path, execute: Callable[[Run], RunFinished], say: Any = None, together: Any = None) -> None:
    """A worker until nothing is in line. Says how many runs it did, and how long it took for each beside the work itself.
    Where there are several, they begin once all are there."""
    torch.set_num_threads(1)
    if together is not None:
        together.wait()
    working = 0.0

    def timed(run: Run) -> RunFinished:
        nonlocal working
        before = time.perf_counter()
        try:
            return execute(run)
        finally:
            working += time.perf_counter() - before

    worker, count, began = Worker(RunStore(root), "cpu"), 0, time.perf_counter()
    ended = began
    while (hold := worker.next(until_empty=True)) is not None:
        with hold:
            hold.work(timed)
        count, ended = count + 1, time.perf_counter()
    if say is not None:
        say.put((count, ended - began - working))


@dataclass(frozen=True)
class Overhead:
    """Seconds: of a run to come into the line, and of a worker beside the work on it."""

    queued: float
    worked: float
    by_worker: list[int]


def overhead(root: Path, config: RunConfig, execute: Callable[[Run], RunFinished], runs: int, workers: int = 2) -> Overhead:
    """Let workers do so many runs of a config. Every one of them has then finished, once."""
    store = RunStore(root)
    comparison = store.create_comparison([config] * runs)
    before = time.perf_counter()
    store.enqueue(comparison.runs(), comparison.id)
    queued = time.perf_counter() - before
    say, together = processes().Queue(), processes().Barrier(workers)
    started = [start(_work, root, execute, say, together) for _ in range(workers)]
    did = [say.get() for _ in started]
    for process in started:
        process.join()
    assert [run.state() for run in comparison.runs()] == ["finished"] * runs
    assert sum(count for count, _ in did) == runs
    return Overhead(queued / runs, sum(seconds for _, seconds in did) / runs, [count for count, _ in did])


def claim_seconds(root: Path, others: int, tries: int = 200) -> float:
    """Seconds to claim one of ten runs that wait, in a store with so many others that have ended."""
    store = RunStore(root)
    for _ in range(others):
        store.create(PRETENDED).append(Queued(), RunFinished(metrics={}))
    store.enqueue([store.create(PRETENDED) for _ in range(10)])
    worker, before = Worker(store, "cpu"), time.perf_counter()
    for _ in range(tries):
        hold = worker.claim()
        assert hold is not None
        hold.__exit__()
    return (time.perf_counter() - before) / tries


# --- two after one run ---


def _race(root: Path, together: Any, say: Any) -> None:
    """Claim each run of a store at the same moment as another does, again while the other works."""
    won = []
    for run in RunStore(root).list():
        together.wait()
        moment = (
            math.floor(100 * time.monotonic()) / 100 + 0.02
        )  # which the other has most often as well, and neither sleeps till then
        while time.monotonic() < moment:
            pass
        for _ in range(3):
            if (hold := run.claim()) is not None:
                with hold:
                    hold.work(pretend)
                won.append(run.id)
        together.wait()
    say.put(won)


def one_writer(root: Path, tries: int) -> list[int]:
    """Have two processes claim the same run so many times at once; how many tries each won. Every run was done once, by one."""
    store = RunStore(root)
    runs = [store.create(PRETENDED) for _ in range(tries)]
    store.enqueue(runs)
    context = processes()
    together, say = context.Barrier(2), context.Queue()
    racing = [start(_race, root, together, say) for _ in range(2)]
    won = [say.get() for _ in racing]
    for process in racing:
        process.join()
    assert sorted(won[0] + won[1]) == sorted(run.id for run in runs)
    for run in runs:
        written = [event.name if isinstance(event, Phase) else type(event).__name__ for event in run.events()[0]]
        assert written == ["Queued", *map(str, range(EVENTS)), "RunFinished"], written
    return [len(ids) for ids in won]


# --- killed ---


@dataclass(frozen=True)
class Killed:
    """A run whose worker was killed after so many events with so many layers finished, of which the next one lost some."""

    after: int
    done: int
    lost: int
    same: bool


def killed(root: Path, kills: int, seed: int = 0) -> list[Killed]:
    """Kill the worker of a small real run at random moments, a run each, and let another one finish it.

    Moments are drawn among a run's events, so that they lie in all its parts however busy the machine is. `same`: whether its
    weights are, bit for bit, those of a run that was left alone, and its metrics but for the time.
    """
    chance, store = random.Random(seed), RunStore(root)
    whole = store.create(small())
    store.enqueue([whole])
    start(_work, root, runner.execute).join()
    assert whole.state() == "finished", whole.last()
    events, outcomes = len(whole.events()[0]), list[Killed]()
    while len(outcomes) < kills:
        run, after = store.create(small()), chance.randrange(1, events)
        store.enqueue([run])
        worker = start(_work, root, runner.execute)
        while len(run.events()[0]) < after:
            assert worker.is_alive(), run.last()
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        worker.kill()
        worker.join()
        if run.state() == "finished":  # too late
            continue
        before = run.events()[0]
        done = run.log().done
        start(_work, root, runner.execute).join()
        assert run.state() == "finished", run.last()
        (started,) = (event for event in run.events()[0][len(before) :] if isinstance(event, RunStarted))
        outcomes.append(Killed(len(before), done, done - started.resumed, results_of(run) == results_of(whole)))
    return outcomes


def results_of(run: Run) -> tuple[dict[str, bytes], dict[str, float | None]]:
    weights = {name: weight.numpy().tobytes() for name, weight in load_file(run.weights_path).items()}
    return weights, {name: value for name, value in (run.metrics() or {}).items() if name != "seconds"}
