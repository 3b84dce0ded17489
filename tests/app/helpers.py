"""A worker that computes nothing: it writes the events of a ResNet-20, at once or slowly, up to any state a run can be in."""

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from snows.config import Budget, Cancelled, InputError, RunConfig
from snows.events import (
    CGIteration,
    Event,
    NewtonStep,
    Phase,
    Queued,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
    SiteFinished,
    SiteStarted,
)
from snows.plans import recorded
from snows.runs.estimate import Plan, SitePlan
from snows.runs.store import Execute, Run, RunStore

SITES = (
    ["conv1.weight"]
    + [
        f"layer{stage}.{block}.{part}.weight"
        for stage in (1, 2, 3)
        for block in range(3)
        for part in (["conv1", "conv2", "downsample.0"] if stage > 1 and block == 0 else ["conv1", "conv2"])
    ]
    + ["fc.weight"]
)
SKIPPED = {"conv1.weight": "its 1 input channel cannot be divided into groups of 4"}
PRUNED = SITES[1:]
METRICS = {
    "accuracy_dense": 0.9395,
    "accuracy_masked": 0.1124,
    "accuracy": 0.9331,
    "agreement_masked": 0.1131,
    "agreement": 0.9702,
    "density": 0.2521,
    "seconds": 28.1,
    "num_products": 1140,
}
# The recorded comparison: how many measurements it has, and of how many methods on each of its networks.
_LINES = [json.loads(line) for line in (recorded.FOLDER / recorded.MEASUREMENTS).read_text().splitlines()]
RECORDED_COUNT = len(_LINES)
_ALIKE = {"pattern": "2:4", "seed": 0, "model": ""}
RECORDED_METHODS = len({recorded.config_of(line | _ALIKE).model_dump_json() for line in _LINES})
TERMINAL: dict[str, Event] = {
    "finished": RunFinished(metrics=METRICS),
    "failed": RunFailed(
        message="Layer layer2.0.conv1 was given a NaN, because its weights hold one. Check the checkpoint file.",
        detail="Traceback: …",
    ),
    "cancelled": RunCancelled(finished_sites=7),
}


def opening(resumed: int = 0) -> list[Event]:
    return [
        Phase(name="load"),
        Phase(name="prune"),
        RunStarted(device="cpu", sites=PRUNED, skipped=SKIPPED, resumed=resumed),
    ]


def site_events(index: int, finish: bool = True) -> list[Event]:
    """One layer: two Newton steps of a few CG iterations, and its end."""
    site = PRUNED[index]
    mask_only = 0.02 * math.exp(0.2 * index)
    final = mask_only / (8 + index % 5)
    events: list[Event] = [
        SiteStarted(site=site, index=index, operations=["conv1 (convolution)", "act1 (activation)"], shape=[16, 16, 3, 3])
    ]
    for step in (0, 1):
        events += [
            CGIteration(
                site=site, step=step, iteration=i, residual=math.exp(-0.45 * i + 0.3 * math.sin(i + index)), curvature=1.0
            )
            for i in range(1, 11)
        ]
        events.append(
            NewtonStep(
                site=site,
                step=step,
                loss=final * (2 - step),
                gradient_norm=0.1,
                cg_status="CONVERGED",
                cg_iterations=10,
                step_size=1.0,
                tried=[1.0],
                predicted=0.01,
                actual=0.009,
                damping=1e-4,
                status="ACCEPTED",
            )
        )
    if not finish:
        return events[:-1]
    losses = {"mask_only": mask_only, "least_squares": mask_only / 5, "final": final}
    events.append(
        SiteFinished(
            site=site,
            index=index,
            losses=losses,
            by_k={k: [v] for k, v in losses.items()},
            scale=[1.0],
            density=0.25,
            status="NO_FURTHER_DECREASE",
            message="Converged: going on would lower the loss by less than the requested share.",
            seconds=1.3,
            num_products=40,
        )
    )
    return events


def write_run(store: RunStore, state: str, hold: ExitStack | None = None, config: RunConfig | None = None) -> Run:
    """A run in `state`. An active one is taken by this process until `hold` is closed."""
    run = store.create(config or RunConfig())
    if state in ("queued", "running"):
        assert hold is not None
        hold.enter_context(run.queue())
    else:
        run.append(Queued())
    if state == "queued":
        return run
    run.append(*opening())
    finished = len(PRUNED) if state == "finished" else 7
    for index in range(finished):
        run.append(*site_events(index))
    if finished < len(PRUNED):
        run.append(*site_events(finished, finish=False))
    if state == "finished":
        run.save_weights({site: torch.zeros(2, 2) for site in SITES})
        run.save_metrics(METRICS)
    if state in TERMINAL:
        run.append(replace(TERMINAL[state], time=time.time()))
    assert run.state() == state
    return run


def slow_execute(run: Run, pause: float = 0.05) -> RunFinished:
    """Act as the engine does, `pause` seconds an event, obeying cancel and going on where an earlier worker stopped."""
    done = sum(isinstance(e, SiteFinished) for e in run.events()[0])
    run.append(*opening(resumed=done))
    for index in range(done, len(PRUNED)):
        for event in site_events(index):
            if run.stop_requested():
                raise Cancelled
            run.append(replace(event, time=time.time()))
            time.sleep(pause)
    run.save_weights({site: torch.zeros(2, 2) for site in SITES})
    run.save_metrics(METRICS)
    return RunFinished(metrics=METRICS)


def finish(run: Run, execute: Execute = lambda run: slow_execute(run, pause=0)) -> None:
    """Queue a run and work on it to its end."""
    with run.queue() as hold:
        hold.work(execute)


@contextmanager
def waiting_after_two_layers(run: Run) -> Iterator[threading.Event]:
    """A worker on `run` that has finished two layers, and does the rest once the event it yields is set."""
    go_on = threading.Event()

    def execute(run: Run) -> RunFinished:
        run.append(*opening(), *site_events(0), *site_events(1))
        go_on.wait(60)
        return slow_execute(run, pause=0.003)

    worker = threading.Thread(target=finish, args=(run, execute))
    worker.start()
    try:
        yield go_on
    finally:
        go_on.set()
        worker.join()


def plan(config: RunConfig) -> Plan:
    """What `snows.runs.estimate.plan` answers for a ResNet-20."""
    if config.model not in ("resnet20-fashion", "vit-fashion"):
        raise InputError(f"There is no model {config.model!r}. Choose a bundled one, or write timm:NAME.")
    operations = [f"operation{k} (activation)" for k in range(config.prune.k_steps + 1)]
    pattern = config.prune.pattern
    density = pattern.share if isinstance(pattern, Budget) else pattern.density
    sites = [SitePlan(name, "conv2d", (16, 16, 3, 3), density, operations) for name in PRUNED]
    few = config.num_calibration < 10
    warning = "A row of layer_1* has 72 weights to fit, but so few images give only 9 samples of its input." if few else ""
    return Plan(sites, SKIPPED, seconds=28.0, bytes=410_000_000, warning=warning)
