"""prune, list, show, descend: one run, worked on and looked at."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from snows import events
from snows.cli.flags import BUDGET_FLAGS, PRUNE_FLAGS, PRUNE_SWITCHES, RUN_FLAGS, SOLVER_FLAGS, config_of
from snows.cli.out import (
    BAD_INPUT,
    CANCELLED,
    FAILED,
    FINISHED,
    POLL_SECONDS,
    fail,
    heads,
    json_line,
    say,
    table,
    timed,
    with_flags,
)
from snows.config import InputError, PruneConfig
from snows.measures.names import MEASURES, percent, said
from snows.plans.words import as_called, run_name
from snows.runs.log import Log
from snows.runs.store import ACTIVE, Run, RunStore, default_root

# --- prune ---


def prune_command(given: argparse.Namespace) -> int:
    store = RunStore(default_root())
    run = store.create(config_of(given)) if given.resume is None else _resumed(store, given)
    refusals: list[InputError] = []

    def execute(run: Run) -> events.RunFinished:
        try:
            return execute_run(run)
        except InputError as error:
            refusals.append(error)  # the log is read in browsers too, and does not keep what to type here
            raise

    with run.queue() as hold, progress(run), cancel_on_interrupt(run):
        ending = hold.work(execute)
    code = fail(with_flags(refusals[0]), BAD_INPUT) if refusals else _report(run, ending, as_json=given.json)
    if code == BAD_INPUT and given.resume is None:
        if run.has_finished_sites():
            sys.stderr.write(f"The layers that are finished are kept: python -m snows show {run.id}\n")
        else:
            store.delete(run.id)  # a slip of the keyboard is not worth a place in the list
    return code


def execute_run(run: Run, device: str | None = None) -> events.RunFinished:
    from snows.runs import runner

    return runner.execute(run, device)


def get_run(store: RunStore, run_id: str) -> Run:
    try:
        return store.get(run_id)
    except KeyError as error:
        raise InputError(
            error.args[0], in_shell=f"`python -m snows list` shows the runs there are in {default_root()}"
        ) from None


def _resumed(store: RunStore, given: argparse.Namespace) -> Run:
    named = ("preset", *RUN_FLAGS, *PRUNE_FLAGS, *BUDGET_FLAGS.values(), *SOLVER_FLAGS, "override", *PRUNE_SWITCHES)
    extra = ["--" + name.replace("_", "-") for name in named if getattr(given, name) is not None]
    if extra:
        raise InputError(f"--resume goes on with the run as it was configured; leave out {', '.join(extra)}.")
    return get_run(store, given.resume)


def _report(run: Run, ending: events.Event, *, as_json: bool) -> int:
    match ending:
        case events.RunFinished(metrics=metrics):
            result = json_line({"run_id": run.id, **metrics}) if as_json else _summary(run, metrics)
            sys.stdout.write(result + "\n")
            return FINISHED
        case events.RunFailed(message=message, bad_input=bad_input):
            return fail(message, BAD_INPUT if bad_input else FAILED)
        case events.RunCancelled(finished_sites=count):
            return fail(
                f"Cancelled after {count} finished layers, which are kept. Go on with: python -m snows prune --resume {run.id}",
                CANCELLED,
            )
        case last:
            return fail(f"Run {run.id} ended without a result (its last event is {type(last).__name__}).", FAILED)


@contextmanager
def _on_interrupt(steps: str, ask: Callable[[], None] = lambda: None) -> Iterator[threading.Event]:
    """Ctrl-C sets the event, calls `ask`, and says that the current `steps` are still done; once more, it stops at once."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        ask()
        sys.stderr.write(f"\nStopping after the current {steps}; press Ctrl-C again to stop at once.\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def cancel_on_interrupt(run: Run) -> Iterator[threading.Event]:
    """Ctrl-C asks the run to stop, and sets the event."""
    with _on_interrupt("step", run.request_cancel) as interrupted:
        yield interrupted


@contextmanager
def all_cancelled_on_interrupt(runs: Sequence[Run]) -> Iterator[tuple[Callable[[], None], threading.Event]]:
    """Ctrl-C sets the event; what is given with it, called from time to time, then asks each of the runs to stop, once."""
    is_asked = False

    def look() -> None:
        nonlocal is_asked
        if interrupted.is_set() and not is_asked:
            is_asked = True
            for run in reversed(runs):
                if run.state() in ACTIVE:
                    run.cancel()

    with _on_interrupt("steps") as interrupted:
        yield look, interrupted


@contextmanager
def progress(run: Run) -> Iterator[None]:
    """A bar on stderr, driven by the run's own events, until the block ends."""
    from tqdm import tqdm

    bar = tqdm(file=sys.stderr, unit=" layers", dynamic_ncols=True, desc="starting", bar_format="{desc} {elapsed}")
    done = threading.Event()
    _, offset = run.events()

    def follow() -> None:
        nonlocal offset
        while True:
            last_look = done.wait(POLL_SECONDS)
            happened, offset = run.events(offset)
            for event in happened:
                _advance(bar, event)
            if last_look:
                return

    thread = threading.Thread(target=follow, name=f"progress-{run.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        bar.close()


def _advance(bar: Any, event: events.Event) -> None:
    match event:
        case events.RunStarted(sites=sites, resumed=resumed, sweeps=sweeps):
            bar.bar_format = None  # until now there was nothing to count
            bar.reset(total=sweeps * len(sites))
            bar.initial = bar.n = resumed  # so that the time left counts only this session's layers
            bar.refresh()
        case events.Phase(name=name):
            bar.set_description(name.replace("_", " "))
        case events.BudgetChosen(share=share):
            bar.set_postfix_str("", refresh=False)
            bar.write(f"The budget is spread: {100 * share:.3g}% is kept; `show` says which layer has what.", file=sys.stderr)
        case events.SiteStarted(site=site):
            bar.set_description(site)
        case events.CGIteration(step=step, iteration=iteration, residual=residual):
            bar.set_postfix_str(f"Newton step {step + 1}, CG iteration {iteration}, residual {residual:.1e}", refresh=False)
            bar.update(0)
        case events.SiteFinished():
            bar.set_postfix_str("", refresh=False)
            bar.update()
        case events.JointStarted():
            bar.set_description("all layers together")
        case events.JointEpoch(epoch=epoch, loss=loss):
            bar.set_postfix_str(f"pass {epoch + 1}, loss {loss:.3g}", refresh=False)
            bar.update(0)
        case events.Note(message=message):
            bar.write(message, file=sys.stderr)
        case events.Fetched(what=what, done=done, total=total):
            bar.set_description(f"downloading {what}, {done / 1e6:,.0f}{f' of {total / 1e6:,.0f}' if total else ''} MB")
        case events.Measured(done=done, total=total):
            bar.set_postfix_str(f"{done:,} of {total:,} images", refresh=False)
            bar.update(0)


# --- list, show ---


def list_command(given: argparse.Namespace) -> int:
    runs = RunStore(default_root()).list()
    if given.json:
        for run in runs:
            record = {"run_id": run.id, "state": run.state(), **(run.metrics() or {})}
            sys.stdout.write(json_line(record) + "\n")
    elif not runs:
        sys.stdout.write(f"There are no runs in {default_root()} yet. Start one with `python -m snows prune`.\n")
    else:
        measured = ("accuracy", "agreement")
        rows: list[tuple[str, ...]] = [("RUN", "STATE", *heads(measured), "NAME")]
        for run in runs:
            try:
                name, metrics = run_name(as_called(run)), run.metrics() or {}
            except ValueError as error:  # written by another version, or damaged; the other runs are still worth seeing
                rows.append((run.id, "unreadable", "-", "-", str(error) if isinstance(error, InputError) else "-"))
                continue
            rows.append((run.id, run.state(), *(said(measure, metrics) for measure in measured), name))
        sys.stdout.write(table(rows))
    return FINISHED


def show_command(given: argparse.Namespace) -> int:
    run = get_run(RunStore(default_root()), given.run)
    config, log = as_called(run), run.log()
    what = f"{config.num_calibration:,} calibration images of {config.data}, seed {config.prune.seed}"
    sys.stdout.write(f"{run.id}: {run.state()}\n{run_name(config)}\n{what}\n\n")
    rows: list[tuple[str, ...]] = [
        (
            "LAYER",
            *(["PATTERN"] if log.budget else []),
            *heads(["density"]),
            "EXCHANGED",
            "MASK ONLY",
            "LEAST SQUARES",
            "FINAL",
            "HELD BACK",
            *heads(["seconds"]),
            "STATUS",
        )
    ]
    for event in log.layers():
        losses = [say("loss", event.losses.get(stage)) for stage in ("mask_only", "least_squares", "final")]
        held_back = say("loss", sum(event.held_back["final"]) if "final" in event.held_back else None)
        density, seconds = say("density", event.density), say("seconds", event.seconds)
        pattern = [log.budget.patterns[event.site]] if log.budget else []
        rows.append((event.site, *pattern, density, str(event.exchanged), *losses, held_back, seconds, event.status))
    if len(rows) > 1:
        sys.stdout.write(table(rows) + "\n")
    if given.faster:
        sys.stdout.write(_faster(log, config.prune) + "\n")
    if given.latency:
        from snows.runs import latency

        sys.stdout.write(timed(latency.of_run(run)) + "\n")
    if log.failure:
        sys.stdout.write(log.failure.message + "\n")
    if metrics := run.metrics():
        sys.stdout.write(_summary(run, metrics) + "\n")
    return FINISHED


def _faster(log: Log, config: PruneConfig) -> str:
    """Where the network will be faster: each program that runs networks, in sum and layer by layer, and its source."""
    from snows.measures.runtimes import RUNTIMES, answers
    from snows.runs.inspection import pruned_layers

    layers = pruned_layers(log, config)
    sums = [("WHERE", "ANSWER", "LAYERS", "OF THEIR WEIGHTS")]
    sums += [(a.runtime, a.says, f"{a.eligible} of {a.layers}", percent(a.share)) for a in answers(layers)]
    parts = [table(sums)]
    for name, runtime in RUNTIMES.items():
        source = f"\n{runtime.source}, {runtime.day}: {runtime.address}" if runtime.address else ""
        why = {layer.name: runtime.obstacle(layer, layers) or "eligible, not measured" for layer in layers}
        alike = set(why.values())  # what is said alike of all layers is said once
        rows = [(f"all {len(why)} layers", *alike)] if len(alike) == 1 else list(why.items())
        parts.append(f"{name}: {runtime.asks}{source}\n{table(rows) if rows else ''}")
    return "\n".join(parts)


def _summary(run: Run, metrics: dict[str, float | None]) -> str:
    names = (
        "accuracy_dense",
        "accuracy_masked",
        "accuracy",
        "agreement_masked",
        "agreement",
        "divergence",
        "density",
        "packed_bytes",
        "half_bytes",
        "seconds",
        "num_products",
    )
    rows = [(MEASURES[name].title, said(name, metrics)) for name in names]
    return table([*rows, ("Pruned weights", str(run.weights_path))]).rstrip()


# --- descend ---


def descend_command(given: argparse.Namespace) -> int:
    run = get_run(RunStore(default_root()), given.run)
    from dataclasses import asdict

    from tqdm import tqdm

    from snows.measures import descents
    from snows.runs.inspection import Inspection

    inspection = Inspection.open(run)
    site = next((s.name for s in inspection.sites if given.layer in (s.name, s.module)), given.layer)
    problem = inspection.problem(site, given.images, batch_size=descents.BATCH)
    points, had = [], dict.fromkeys(descents.WAYS, 0.0)
    with tqdm(
        file=sys.stderr, total=given.passes, unit=" passes", bar_format="{desc}: {n:.0f} of {total} passes {elapsed}"
    ) as bar:
        for point in descents.descents(problem, start=given.start, passes=given.passes):
            points.append(point)
            had[point.way] = point.passes
            bar.set_description(f"{descents.WAYS[point.way]}, loss {point.loss:.4g}", refresh=False)
            bar.update(max(had.values()) - bar.n)
    if given.json:
        sys.stdout.write("".join(json_line(asdict(point)) + "\n" for point in points))
        return FINISHED
    lowest, begun = descents.lowest(points), points[0].loss
    least = min(point.loss for point in lowest.values())
    there = descents.as_far(points, least)
    rows: list[tuple[str, ...]] = [
        ("WAY", "LOSS", "OF THE START", "ITERATIONS", "PASSES", "SECONDS", "AS FAR AS THE BEST AFTER")
    ]
    for way, point in lowest.items():
        name = descents.WAYS[way] + (f", rate {point.rate:g}" if point.rate is not None else "")
        first = f"{there[way].passes:.1f} passes, {there[way].seconds:.2g} s" if way in there else "-"
        counts = (str(point.iteration), f"{point.passes:.1f}", f"{point.seconds:.2g}")
        rows.append((name, say("loss", point.loss), f"{100 * point.loss / begun:.1f} %", *counts, first))
    where = f"{given.images} images, from {descents.STARTS[given.start]}"
    sys.stdout.write(f"{site} of {run.id}, {where}: loss {say('loss', begun)} at the start\n\n{table(rows)}")
    return FINISHED
