"""What a screen shows of a run, from its events: data frames for the charts, progress, and numbers as people read them.

Pure functions of a list of events; which record of a layer counts, and how far a run is, `snows.runs.log` says.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from app.words import cg_ended, counted, layer
from snows.config import NM, LayerPattern, PruneConfig, Structured
from snows.events import (
    BudgetChosen,
    CGIteration,
    Event,
    Fetched,
    JointEpoch,
    JointFinished,
    JointStarted,
    NewtonStep,
    Note,
    Phase,
    Queued,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
    SiteFinished,
    SiteStarted,
    relative_loss,
)
from snows.measures.names import duration, duration_range, number, size
from snows.runs.log import Log, by_layer

if TYPE_CHECKING:
    from snows.runs.estimate import Plan


PHASES = {
    "load": "Reading the network and the images",
    "budget": "Measuring what each layer loses by each pattern",
    "prune": "Pruning",
    "evaluate": "Measuring the dense and the pruned network",
    "save": "Saving the weights",
}
_WIDEST_PICTURE = 48
_PICTURE_ROWS = 6
_FEW = 8
TOGETHER = "all layers"  # stands where a layer would, in the joint fit


def waits_for(holder: str, place: int | None, *, device: str | None, in_line: bool) -> str:
    """Whom a queued run waits for, in a sentence. `holder`: who has it, if anybody. `place`: its place among those that wait
    for the same workers. `device`: the one it wants, where none of this app's workers has that."""
    who = holder[:1].upper() + holder[1:]
    if not in_line:
        return f"{who or 'Another process'} keeps it, and starts it when the runs before it have ended."
    if place is None:
        return f"{who or 'A worker'} has just taken it, and begins."
    if device is not None:
        return (
            f"It waits for a worker with the device {device}, and this app has none. Start one where there is such a device "
            f"and this folder of runs is seen: `python -m snows work --device {device}`."
        )
    where = "It is next" if place == 1 else f"It is number {place} in line"
    return f"{where}, and starts when a worker is free."


@dataclass(frozen=True)
class Progress:
    """How far a run is. Times are seconds of work: waiting in line and the pauses before a resume do not count."""

    device: str | None
    sites: list[str]
    skipped: dict[str, str]
    done: int  # layers, over all sweeps
    total: int  # likewise
    current: SiteStarted | None  # the layer in work
    together: tuple[int, int] | None  # the joint fit's passes over the images, after the layers, and how many there will be
    phase: str
    fraction: float  # of the phase: layers while pruning, images while measuring
    elapsed: float
    left: float | None  # for the rest of the phase; None until a first part of it has been timed
    timed: dict[str, float]  # what the layers took that this stretch of work has finished, in its last sweep
    in_work: float  # how long it has been at the layer in work
    notes: list[str]  # what to read beside the results


def progress(events: list[Event], now: float) -> Progress:
    """`now`: seconds since the epoch for a run in work; for an ended one its last event's time."""
    log = Log.of(events)
    phase = PHASES.get(log.phase, log.phase)
    if isinstance(log.last, Fetched):
        of = f" of {size(log.last.total)}" if log.last.total else ""
        phase = f"Downloading {log.last.what}, {size(log.last.done)}{of}"
    return Progress(
        device=log.started.device if log.started else None,
        sites=log.sites,
        skipped=log.skipped,
        done=log.done,
        total=log.total,
        current=log.current,
        together=log.together,
        phase=phase,
        fraction=log.fraction,
        elapsed=log.elapsed(now),
        left=log.left(now),
        timed={e.site: e.seconds for e in log.layers() if log.started and e.time >= log.started.time},
        in_work=now - log.current.time if log.current else 0.0,
        notes=log.notes,
    )


@dataclass(frozen=True)
class LayerCell:
    """A layer in a strip of them: `state` is `done`, `working` or `waiting`, `width` grows with its weights."""

    layer: str
    state: str
    width: float
    words: str


def layer_cells(log: Log, plan: "Plan | None", is_active: bool = True) -> list[LayerCell]:
    """One a pruned layer, in network order. A layer's size is known from the plan, or once it is begun."""
    sizes = {site: math.prod(begun.shape) for site, begun in log.begun.items()}
    sizes |= {site.name: math.prod(site.shape) for site in plan.sites} if plan else {}
    usual = float(np.mean(list(sizes.values()))) if sizes else 1.0
    sweep = log.current.sweep if log.current else max((sweep for sweep, _ in log.records), default=0)
    done = {record.site for record in log.layers() if record.sweep == sweep}
    cells = []
    for site in log.sites:
        working = is_active and log.current is not None and log.current.site == site
        layer_state = "working" if working else "done" if site in done else "waiting"
        said = {"working": "in work", "done": "done", "waiting": "not yet begun"}[layer_state]
        size = f", {sizes[site]:,} weights" if site in sizes else ""
        # By the square root: the largest layers of a network have a thousand times the weights of its smallest.
        cells.append(LayerCell(layer(site), layer_state, math.sqrt(sizes.get(site, usual)), f"{layer(site)}{size}: {said}"))
    return cells


def time_left(progress: Progress, plan: "Plan | None") -> str:
    """About how long the rest of the phase takes, as a range, and what that is judged by; empty while nothing is known. The
    plan's guess is made again with each layer that is timed."""
    pruning, sweeps = progress.current is not None, progress.total // len(progress.sites) if progress.sites else 1
    if pruning and plan is not None and sweeps == 1 and progress.done == len(progress.timed):
        least, most = (max(seconds - progress.in_work, 0.0) for seconds in plan.left(progress.timed))
        layers = len(progress.timed)
        first = "the first layer" if layers == 1 else f"the first {layers} layers"
        by = f", judged by {first if layers else 'a short trial'}"
    elif progress.left:
        least, most, by = 0.8 * progress.left, 1.25 * progress.left, ""
    else:
        return ""
    return f"about {duration_range(least, most)} left{by}" if most >= 1 else ""


def site_losses(events: list[Event]) -> pd.DataFrame:
    """One row a layer and stage (`mask_only`, `least_squares`, `final`), in network order: index, layer, stage, loss."""
    rows = [(e.index, layer(e.site), stage, loss) for e in Log.of(events).layers() for stage, loss in e.losses.items()]
    return pd.DataFrame(rows, columns=["index", "layer", "stage", "loss"])


def last_solved(events: list[Event]) -> SiteStarted | None:
    """The layer that conjugate gradient worked on last. A layer just begun takes its place with its first iteration."""
    site = next((e.site for e in reversed(events) if isinstance(e, CGIteration)), None)
    return Log.of(events).begun.get(site) if site else None


def cg_residuals(events: list[Event]) -> pd.DataFrame:
    """One row a CG iteration of `last_solved`, counted through its Newton steps: layer, step (from 1), iteration, residual."""
    solved = last_solved(events)
    own = by_layer(events)[solved.site] if solved else []
    iterations = [e for e in own if isinstance(e, CGIteration)]
    rows = [(layer(e.site), e.step + 1, count, e.residual) for count, e in enumerate(iterations, start=1)]
    return pd.DataFrame(rows, columns=["layer", "step", "iteration", "residual"])


def log(events: list[Event]) -> pd.DataFrame:
    """What happened, newest first: `after` (seconds since the run's first event), layer, what, status."""
    rows = []
    for event in events:
        after = event.time - events[0].time
        match event:
            case Queued(lost=lost):
                after_loss = f", since {counted(lost, 'worker')} in a row went away" if lost else ""
                rows.append((after, "", f"Waiting for the device{after_loss}", ""))
            case Phase():
                rows.append((after, "", PHASES.get(event.name, event.name), ""))
            case RunStarted():
                resumed = f", {event.resumed} of them already finished" if event.resumed else ""
                rows.append((after, "", f"Started on {event.device}: {len(event.sites)} layers to prune{resumed}", ""))
            case NewtonStep():
                what = (
                    f"Newton step {event.step + 1}: loss {number(event.loss)}, {event.cg_iterations} CG iterations, step size "
                )
                rows.append(
                    (
                        after,
                        layer(event.site),
                        what + number(event.step_size),
                        f"Conjugate gradient {cg_ended(event.cg_status)}",
                    )
                )
            case BudgetChosen():
                rows.append(
                    (after, "", f"The budget is spread in {duration(event.seconds)}: {100 * event.share:.3g} % kept", "")
                )
            case SiteFinished():
                first = event.losses.get("mask_only")
                change = (
                    f"{number(first)} to {number(event.losses['final'])}"
                    if first is not None
                    else number(event.losses["final"])
                )
                rows.append((after, layer(event.site), f"Finished in {duration(event.seconds)}: loss {change}", event.message))
            case JointStarted():
                rows.append((after, "", f"All layers together: {event.count:,} weights", ""))
            case JointEpoch():
                rows.append((after, TOGETHER, f"Pass {event.epoch + 1}: loss {number(event.loss)}", ""))
            case JointFinished():
                before, after_it = (relative_loss(losses, event.scale) for losses in (event.before, event.after))
                what = f"Finished in {duration(event.seconds)}: loss {number(before)} to {number(after_it)}"
                rows.append((after, TOGETHER, what, event.message))
            case Note():
                rows.append((after, "", event.message, ""))
            case RunFinished():
                rows.append((after, "", "Finished", ""))
            case RunCancelled():
                rows.append((after, "", f"Cancelled after {event.finished_sites} layers", ""))
            case RunFailed():
                rows.append((after, "", "Failed", event.message))
    return pd.DataFrame(rows[::-1], columns=["after", "layer", "what", "status"])


@dataclass(frozen=True)
class Together:
    """The joint fit of a run. `errors`: name, before, after of each value that is matched, relative to its size, root mean
    square; after is NaN until the fit is over. `losses`: seconds and loss of each pass over the images. `said`: a sentence."""

    errors: pd.DataFrame
    losses: pd.DataFrame
    said: str


def joint_fit(events: list[Event]) -> Together | None:
    """The joint fit of the run's last stretch of work, with the passes that it took over; None where it has not begun."""
    started = finished = None
    passes: list[JointEpoch] = []
    for event in events:
        match event:
            case RunStarted():
                started = finished = None
            case JointStarted():
                started, passes = event, [done for done in passes if done.epoch < event.resumed]
            case JointEpoch():
                passes.append(event)
            case JointFinished():
                finished = event
    if started is None:
        return None

    def relative(losses: Sequence[float]) -> list[float]:
        return [math.sqrt(loss / size) if size > 0 else math.nan for loss, size in zip(losses, started.scale, strict=True)]

    after = [math.nan] * len(started.losses) if finished is None else relative(finished.after)
    errors = pd.DataFrame({"name": started.captured, "before": relative(started.losses), "after": after})
    seconds = itertools.accumulate(done.seconds for done in passes)
    losses = pd.DataFrame({"seconds": list(seconds), "loss": [done.loss for done in passes]}, dtype=float)
    if finished is None:
        return Together(errors, losses, f"{started.count:,} weights move together.")
    before, end = (relative_loss(losses, started.scale) for losses in (started.losses, finished.after))
    times = f"{len(passes)} pass" + ("" if len(passes) == 1 else "es")
    said = f"{started.count:,} weights in {times} over the images, {duration(finished.seconds)}"
    return Together(errors, losses, f"{said}: loss {number(before)} to {number(end)}. {finished.message}")


def coverage(plan: "Plan") -> pd.DataFrame:
    """Every weight of the network: layer, shape, keeps, reason (why it stays dense, or empty).

    What many weights share a reason for is one row, last; it would bury the rest.
    """
    few, many = left_dense(plan.skipped)
    # What a budget gives a layer is measured first; in the estimate an even spread stands in its place.
    pruned = [
        (layer(s.name), " x ".join(map(str, s.shape)), "by budget" if plan.spreading else f"{100 * s.density:g} %", "")
        for s in plan.sites
    ]
    rows = [
        *((name, "", "all", reason) for name, reason in few.items()),
        *pruned,
        *((f"{len(names)} others", "", "all", f"{reason}: {', '.join(names)}") for reason, names in many.items()),
    ]
    return pd.DataFrame(rows, columns=["layer", "shape", "keeps", "reason"])


def size_sentence(metrics: Mapping[str, float | None]) -> str:
    """What the pruned network takes by the bit; empty where it was not measured."""
    dense, packed, half = (metrics.get(name) for name in ("dense_bytes", "packed_bytes", "half_bytes"))
    if not dense or not packed:
        return ""
    says = f"The dense network takes {size(dense)}; this one, packed, {size(packed)}"
    if half:
        says += f", with weights in half precision {size(half)}, {dense / half:.3g} times less"
    return says + "."


def faster(log: Log, config: PruneConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Where the pruned network will be faster, see `snows.measures.runtimes`: a row for each program (where, answer, layers,
    share in percent, asks, source, day, address), and one for each layer (layer, shape, pattern, and of each program why not,
    or that it is eligible)."""
    from snows.measures.runtimes import RUNTIMES, answers
    from snows.runs.inspection import pruned_layers

    layers = pruned_layers(log, config)
    sums = []
    for answer in answers(layers):
        runtime = RUNTIMES[answer.runtime]
        counts = f"{answer.eligible} of {answer.layers}"
        source = f"{runtime.source}, {runtime.day}" if runtime.day else runtime.source
        sums.append((answer.runtime, answer.says, counts, 100 * answer.share, runtime.asks, source, runtime.address))
    rows = [
        (
            *(layer(one.name), " x ".join(map(str, one.shape)), str(one.pattern)),
            *(runtime.obstacle(one, layers) or "eligible, not measured" for runtime in RUNTIMES.values()),
        )
        for one in layers
    ]
    columns = ["where", "answer", "layers", "share", "asks", "source", "address"]
    return pd.DataFrame(sums, columns=columns), pd.DataFrame(rows, columns=["layer", "shape", "pattern", *RUNTIMES])


def left_dense(skipped: dict[str, str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Layers left dense: why, by name, and apart from these the names by a reason that many share."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        names_by_reason.setdefault(reason, []).append(layer(name))
    few = {name: reason for reason, names in names_by_reason.items() if len(names) <= _FEW for name in names}
    return few, {reason: names for reason, names in names_by_reason.items() if len(names) > _FEW}


def pattern_grid(pattern: LayerPattern) -> np.ndarray:
    """A small example of the pattern on made-up weights: (rows, columns) float32, 1 kept, 0 pruned, NaN between groups."""
    if isinstance(pattern, Structured):  # what a layer gives, and what it takes from a layer that was cut likewise
        rows, columns = (
            np.random.default_rng(0).permutation(count) < round(count * pattern.density) for count in (_PICTURE_ROWS, 32)
        )
        return np.outer(rows, columns).astype(np.float32)
    if not isinstance(pattern, NM):
        scores = np.random.default_rng(0).random((_PICTURE_ROWS, 32))
        return (scores.argsort(None).argsort().reshape(scores.shape) >= round(scores.size * (1 - pattern.density))).astype(
            np.float32
        )
    groups = max(32 // pattern.m, 1)
    scores = np.random.default_rng(0).random((_PICTURE_ROWS, groups, pattern.m))
    mask = (scores.argsort(-1).argsort(-1) >= pattern.m - pattern.n).astype(np.float32)
    gap = np.full((_PICTURE_ROWS, groups, 1), np.nan, np.float32)
    return np.concatenate([mask, gap], -1).reshape(_PICTURE_ROWS, -1)[:, :-1][:, :_WIDEST_PICTURE]
