"""compare, study: many runs, worked through and set side by side; methods: what there is to compare."""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from snows import events
from snows.cli.flags import config_of
from snows.cli.out import BAD_INPUT, CANCELLED, FAILED, FINISHED, fail, heads, json_line, table
from snows.cli.runs import all_cancelled_on_interrupt, cancel_on_interrupt, execute_run, get_run, progress
from snows.cli.work import put_in_line
from snows.config import UPDATES, InputError, RunConfig
from snows.measures.names import missing
from snows.plans import study
from snows.plans.comparisons import METHODS, USUAL, Method, combinations, describe, expand, summarize
from snows.plans.words import BEST, LEVEL, as_called, cells, labels, method_name, run_name
from snows.runs import clusters
from snows.runs.store import Comparison, Run, RunStore, RunTakenError, default_root

T = TypeVar("T")
Show = Callable[..., int]  # runs, and whether `as_json`: the exit code

# --- methods ---


def methods_command(given: argparse.Namespace) -> int:
    """Every method by its name for `--method`, with its card."""
    for name, method in METHODS.items():
        card, flags = describe(method), _flags(method)
        if given.json:
            sys.stdout.write(json_line({"method": slug(name), "name": name, "flags": flags, **asdict(card)}) + "\n")
            continue
        sys.stdout.write(f"{slug(name)}: {name}\n")
        lines = {"Idea": card.idea, "From": "; ".join(card.references), "Touches": card.touches, "Cost": card.cost}
        for title, text in (lines | {"As": f"prune {flags}"}).items():
            sys.stdout.write(textwrap.fill(f"{title}: {text}", 110, initial_indent="  ", subsequent_indent="    ") + "\n")
    if not given.json:
        which = f"or the first {len(USUAL)} without --method"
        sys.stdout.write(f"Compare some with `python -m snows compare --method NAME ...`, {which}.\n")
    return FINISHED


def _flags(method: Method) -> str:
    """What asks `prune` for that method."""
    flags = f"--mask {method.mask} --update {method.update}"
    if method.update != "none":
        flags += f" --targets {method.targets} --refine {method.refine}" + ("" if method.has_ridge else " --ridge 0")
    flags += f" --joint {method.joint}" if method.joint != "none" else ""
    flags += " --repair" if method.repair else ""
    return flags + (" --batch-norm-reestimate" if method.batch_norm_reestimate else "")


# --- compare ---


def compare_command(given: argparse.Namespace) -> int:
    return _comparison(given, _combinations, _side_by_side)


def _comparison(given: argparse.Namespace, combinations: Callable[[argparse.Namespace], list[RunConfig]], show: Show) -> int:
    """Show the runs that were named; else make a comparison, or resume one, work through it or queue it, and show it."""
    store = RunStore(default_root())
    if given.runs:
        return show([run for name in given.runs for run in _named(store, name)], as_json=given.json)
    share = _share(given.shard)
    if given.executor:
        clusters.check(given.executor)
    if given.resume:
        comparison = _get_comparison(store, given.resume)
        runs = share(comparison.runs())
    else:
        comparison = store.create_comparison(share(combinations(given)))
        runs = comparison.runs()
    sys.stderr.write(f"Comparison {comparison.id}: {len(comparison.runs())} runs.\n")
    if given.queue:
        return put_in_line(store, comparison, runs, as_json=given.json)
    code = _by_cluster(store, comparison, runs, given) if given.executor else _work_through(comparison, runs)
    if code == BAD_INPUT and not given.resume and not any(run.has_finished_sites() for run in comparison.runs()):
        for run in comparison.runs():
            store.delete(run.id)
        return code
    show(comparison.runs(), as_json=given.json)
    if code == BAD_INPUT:
        sys.stderr.write("What is finished is kept.\n")
    elif code != FINISHED:
        sys.stderr.write(f"What is finished is kept. Go on with: python -m snows {given.command} --resume {comparison.id}\n")
    return code


def _share(shard: str | None) -> Callable[[list[T]], list[T]]:
    """What picks the shard `i/n` of a list: every n-th from the i-th on, so that each has some of every kind."""
    if shard is None:
        return list
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    place, of = map(int, match.groups()) if match else (0, 0)
    if not 1 <= place <= of:
        raise InputError(f"A shard is written i/n, the i-th of n parts, but is {shard!r}. Write 1/2 here and 2/2 elsewhere.")

    def pick(whole: list[T]) -> list[T]:
        if not (part := whole[place - 1 :: of]):
            raise InputError(f"Shard {shard} of {len(whole)} runs is empty. Divide them into at most {len(whole)} parts.")
        return part

    return pick


def _combinations(given: argparse.Namespace) -> list[RunConfig]:
    if given.masks or given.updates:
        if given.methods:
            raise InputError("--method names a mask with an update; leave out --mask and --update, or --method.")
        targets = given.many_targets or ["dense"]
        methods = combinations(given.masks or ["magnitude"], given.updates or UPDATES, targets, given.many_refine)
    else:
        known = {slug(name): method for name, method in METHODS.items()}
        if unknown := [name for name in given.methods or [] if slug(name) not in known]:
            raise InputError(f"There is no method {unknown[0]!r}. Choose from {', '.join(known)}; or give --mask and --update.")
        methods = [known[slug(name)] for name in given.methods or USUAL]
    return expand(config_of(given), methods, given.patterns, given.many_k, given.seeds, given.sizes)


def slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def _get_comparison(store: RunStore, comparison_id: str) -> Comparison:
    try:
        return store.comparison(comparison_id)
    except KeyError as error:
        raise InputError(error.args[0]) from None


def _named(store: RunStore, name: str) -> list[Run]:
    """The runs of a comparison of that name, else the run."""
    comparisons = [comparison for comparison in store.comparisons() if comparison.id == name]
    return comparisons[0].runs() if comparisons else [get_run(store, name)]


def _work_through(comparison: Comparison, runs: Sequence[Run]) -> int:
    """Execute what is not finished of these runs of a comparison. One that fails does not stop the others, Ctrl-C stops all."""
    unfinished = [run for run in runs if run.state() != "finished"]
    endings: list[events.Event] = []
    stopped = False
    with ExitStack() as stack:
        holds = []
        for run in unfinished:  # all of them at once, so that the app shows them waiting
            with suppress(RunTakenError):
                holds.append(stack.enter_context(run.queue()))
        if unfinished and not holds:
            raise InputError(f"Another process works on the runs of {comparison.id}. Wait for it, or cancel them.")
        if elsewhere := len(unfinished) - len(holds):
            sys.stderr.write(f"Another process works on {elsewhere} of them; these are left to it.\n")
        for hold, label in zip(holds, labels([as_called(hold.run) for hold in holds]), strict=True):
            with hold:
                if stopped:
                    endings.append(hold.cancel())
                    continue
                sys.stderr.write(f"{label} ({hold.run.id})\n")
                with progress(hold.run), cancel_on_interrupt(hold.run) as interrupted:
                    endings.append(hold.work(execute_run))
                stopped = interrupted.is_set()
    return _code(endings, stopped=stopped)


def _by_cluster(store: RunStore, comparison: Comparison, runs: Sequence[Run], given: argparse.Namespace) -> int:
    """Have a cluster execute what is not finished of these runs. Ctrl-C stops all; what is then unfinished is in no line."""
    unfinished = [run for run in runs if run.state() != "finished"]
    store.enqueue([run for run in unfinished if not run.in_line()], comparison.id)
    with all_cancelled_on_interrupt(unfinished) as (look, interrupted):
        if given.executor == "ray":
            ended = clusters.by_ray(unfinished, given.cores, given.address, look)
        else:
            ended = clusters.by_slurm(unfinished, given.cores, given.minutes, given.partition, look)
        for number, run in enumerate(ended, start=1):
            sys.stderr.write(f"{number} of {len(unfinished)}: {run_name(as_called(run))} ({run.id}), {run.state()}\n")
    endings = [last for run in unfinished if (last := run.last()) is not None]
    return _code(endings, stopped=interrupted.is_set())


def _code(endings: Sequence[events.Event], *, stopped: bool) -> int:
    """The exit code of runs by their last events, whose failures are said."""
    failures = [ending for ending in endings if isinstance(ending, events.RunFailed)]
    for message in dict.fromkeys(failure.message for failure in failures):
        sys.stderr.write(message + "\n")
    if stopped:
        return CANCELLED
    if failures and len(failures) == len(endings) and all(failure.bad_input for failure in failures):
        return BAD_INPUT
    return FAILED if any(not isinstance(ending, events.RunFinished) for ending in endings) else FINISHED


def _side_by_side(runs: Sequence[Run], *, as_json: bool) -> int:
    finished = [(run, as_called(run), metrics) for run in runs if (metrics := run.metrics())]
    if as_json:
        for run, config, metrics in finished:
            sys.stdout.write(json_line({"run_id": run.id, "method": method_name(config.prune), **metrics}) + "\n")
        return FINISHED
    if not finished:
        return fail("None of these runs has finished, so there is nothing to set side by side yet.", FAILED)
    columns = cells(summarize([(config, metrics) for _, config, metrics in finished]))
    sys.stdout.write(table([[title.upper() for title in columns], *zip(*columns.values(), strict=True)]))
    legend = f"{BEST} the best of a column and pattern, of those that are of use"
    sys.stdout.write(f"\n{legend}; {LEVEL} within the noise of it (two standard errors)\n")
    return FINISHED


# --- study ---


def study_command(given: argparse.Namespace) -> int:
    return _comparison(given, _swept, partial(_against, axis=given.against))


def _swept(given: argparse.Namespace) -> list[RunConfig]:
    base = config_of(given).model_dump()
    return study.expand([RunConfig.model_validate(base | {"model": m}) for m in given.models], given.many_k, given.sizes)


def _against(runs: Sequence[Run], *, as_json: bool, axis: str | None) -> int:
    outcomes = [study.Outcome.of(run) for run in runs if run.metrics()]
    axis = axis or study.usual_axis([outcome.config for outcome in outcomes])
    curves = study.curves(outcomes, axis)
    if not curves:
        of = (
            "a finished run of SNOWS, so there is no K" if axis == "k" else "finished and fitted on images, so there is nothing"
        )
        return fail(f"None of these runs is {of} to look at.", FAILED)
    held_back = ["held_back_error"] if any("held_back_error" in row.values for curve in curves for row in curve.rows) else []
    # No time: it depends on what else the machine did. Products are what K costs on any.
    measured = ("accuracy", "agreement", "divergence", *held_back, "num_products")
    swept_heads = ("NETWORK", "K", "OF ALL") if axis == "k" else ("METHOD", "IMAGES")
    rows: list[tuple[str, ...]] = [(*swept_heads, *heads(measured), "")]
    reasons = []
    for name, curve in zip(study.names(curves), curves, strict=True):
        advice = study.recommend(curve, outcomes)
        if as_json:
            sys.stdout.write(json_line(_curve_record(name, curve, advice)) + "\n")
        for row in curve.rows:
            swept = curve.value(row)
            of_all = f"{100 * swept / curve.operations:.0f} %" if curve.operations else "-"
            values = [
                row.values[name].said(name) if name in row.values else missing(name) if name in row.missing else "-"
                for name in measured
            ]
            level = advice is not None and any(row is other for other in advice.level)
            mark = BEST if advice is not None and row is advice.row else LEVEL if level else ""
            rows.append((name, *([str(swept), of_all] if axis == "k" else [f"{swept:,}"]), *values, mark))
        if advice is not None:
            reasons.append(f"{name}: {advice.reason}")
    if not as_json:
        smallest = f"the {study.AXES[axis].least} {study.AXES[axis].things}"
        legend = f"{BEST} {smallest} within the noise of the best (two standard errors), {LEVEL} others within it"
        sys.stdout.write("\n".join([table(rows), legend, *reasons]) + "\n")
    return FINISHED


def _curve_record(name: str, curve: study.Curve, advice: study.Recommendation | None) -> dict[str, Any]:
    settings = {"k": "k_steps", "images": "num_calibration"}
    points = [
        {settings[curve.axis]: curve.value(row), **{measure: value.mean for measure, value in row.values.items()}}
        for row in curve.rows
    ]
    chosen = None if advice is None else curve.value(advice.row)
    reason = None if advice is None else advice.reason
    fixed = {settings[axis]: of.value(curve.config) for axis, of in study.AXES.items() if axis != curve.axis}
    record = {"network": name, "operations": curve.operations, **fixed}
    return record | {"recommended": chosen, "reason": reason, "points": points}
