"""The engine from a shell: `python -m snows prune | compare | study | list | show | coverage | models | images | presets |
fetch | train | bundle-data`. What draws a figure is the app's: `python -m app.report`.

Runs go to the same store as the app's, so each sees the other's. Results go to stdout, everything else to stderr.

Exit codes: 0 finished, 1 failed, 2 bad input, 130 cancelled (the run can be resumed).
"""

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from snows import events, study
from snows.batch import METHODS, combinations, expand, summarize
from snows.config import (
    MASKS,
    REFINEMENTS,
    TARGETS,
    UPDATES,
    InputError,
    PruneConfig,
    RunConfig,
    SolverConfig,
    as_path,
    explain,
)
from snows.measure_names import MEASURES, missing, said
from snows.presets import PRESETS, Preset
from snows.process import prepare
from snows.store import Batch, Run, RunStore, RunTakenError, StoreError, default_root
from snows.words import BEST, LEVEL, as_called, cells, labels, method_name, run_name

# torch and timm take seconds to import; only the commands that compute import them, inside.

FINISHED, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130
POLL_SECONDS = 0.2

_RUN_FLAGS = ("model", "checkpoint", "class_names", "data", "num_calibration", "num_evaluation", "name")
_PRUNE_FLAGS = (
    *("pattern", "mask", "refine", "update", "k_steps", "sweeps", "targets", "batch_size", "seed", "device", "precision"),
)
_PRUNE_SWITCHES = ("prune_classifier", "batch_norm_reestimate")
_SOLVER_FLAGS = tuple(SolverConfig.model_fields)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{message[:1].upper()}{message[1:]}. `{self.prog} --help` shows how it is used.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    prepare()
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return BAD_INPUT
    try:
        return given.function(given)
    except ValidationError as error:
        return _fail(explain(error), BAD_INPUT)
    except ValueError as error:
        return _fail(str(error), BAD_INPUT)
    except StoreError as error:
        return _fail(str(error), FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(
            f"{error.filename or 'A file'} cannot be used: {error.strerror}. Check the path and the free space.", FAILED
        )
    except KeyboardInterrupt:
        return _fail("Stopped.", CANCELLED)


def _fail(sentence: str, code: int) -> int:
    sys.stderr.write(sentence + "\n")
    return code


# --- flags ---


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m snows", description="Prune a network in one shot, and see what it does.", allow_abbrev=False
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, function: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(function=function)
        return added

    prune = command("prune", _prune, "Prune a network and measure the result.")
    prune.add_argument("--preset", metavar="NAME", help="Begin with one of the paper's settings; `presets` lists them.")
    _add_flags(prune.add_argument_group("network and images"), RunConfig, _RUN_FLAGS)
    method = prune.add_argument_group("method")
    _add_flags(method, PruneConfig, _PRUNE_FLAGS)
    _add_overrides(method)
    _add_switches(method)
    _add_flags(prune.add_argument_group("Newton-CG solver (--update snows)"), SolverConfig, _SOLVER_FLAGS)
    prune.add_argument(
        "--resume", metavar="RUN", help="Go on with a run that was cancelled or interrupted, as it was configured."
    )
    prune.add_argument("--json", action="store_true", help="Print the result as one line of JSON, last on stdout.")

    compare = command("compare", _compare, "Prune one network in many ways, and set the results side by side.")
    compare.add_argument("runs", nargs="*", metavar="RUN", help="Only show these runs or batches, and prune nothing.")
    _add_flags(compare.add_argument_group("network and images"), RunConfig, _RUN_FLAGS[:-1])
    many = compare.add_argument_group("what to try: every combination of")
    known = ", ".join(map(_slug, METHODS))
    many.add_argument("--method", nargs="+", metavar="NAME", dest="methods", help=f"Of {known}. Default: all of them.")
    many.add_argument("--mask", nargs="+", metavar="MASK", dest="masks", help=f"Instead of methods: of {', '.join(MASKS)}.")
    many.add_argument("--update", nargs="+", metavar="UPDATE", dest="updates", help=f"With masks: of {', '.join(UPDATES)}.")
    many.add_argument("--targets", nargs="+", metavar="TARGETS", dest="many_targets", help=f"With masks: {', '.join(TARGETS)}.")
    refining = f"With masks: of {', '.join(REFINEMENTS)}. Default: none."
    many.add_argument("--refine", nargs="+", metavar="REFINE", dest="many_refine", default=["none"], help=refining)
    many.add_argument("--pattern", nargs="+", metavar="PATTERN", dest="patterns", default=["2:4"], help="Default: 2:4.")
    many.add_argument("--k", nargs="+", metavar="K", dest="many_k", default=["3"], help="For update snows. Default: 3.")
    many.add_argument("--seed", nargs="+", metavar="SEED", dest="seeds", default=["0"], help="Default: 0.")
    _add_overrides(compare)
    _add_switches(compare)
    _add_flags(compare, PruneConfig, ("batch_size", "device", "precision"))
    _add_flags(compare.add_argument_group("Newton-CG solver (update snows)"), SolverConfig, _SOLVER_FLAGS)
    compare.add_argument("--resume", metavar="BATCH", help="Go on with the runs of a batch that are not finished.")
    compare.add_argument("--json", action="store_true", help="Print one line of JSON a run instead of the table.")

    swept = command("study", _study, "Prune with several K, on one or several networks, and say which K is enough.")
    swept.add_argument("runs", nargs="*", metavar="RUN", help="Only show these runs or batches, and prune nothing.")
    many = swept.add_argument_group("what to try: every combination of")
    steps, models, sizes = ["0", "1", "3", "5", "10"], ["resnet20-fashion"], ["512"]
    many.add_argument("--k", nargs="+", metavar="K", dest="many_k", default=steps, help="Default: 0 1 3 5 10.")
    many.add_argument("--model", nargs="+", metavar="MODEL", dest="models", default=models, help="Default: resnet20-fashion.")
    many.add_argument("--num-calibration", nargs="+", metavar="N", dest="sizes", default=sizes, help="Default: 512.")
    _add_flags(swept.add_argument_group("images"), RunConfig, ("checkpoint", "class_names", "data", "num_evaluation"))
    method = swept.add_argument_group("method")
    _add_flags(method, PruneConfig, [name for name in _PRUNE_FLAGS if name not in ("update", "k_steps")])
    _add_overrides(method)
    _add_switches(method)
    _add_flags(swept.add_argument_group("Newton-CG solver"), SolverConfig, _SOLVER_FLAGS)
    swept.add_argument("--resume", metavar="BATCH", help="Go on with the runs of a batch that are not finished.")
    swept.add_argument("--json", action="store_true", help="Print one line of JSON a curve instead of the table.")

    listing = command("list", _list, "List the runs there are, newest first.")
    listing.add_argument("--json", action="store_true", help="Print one line of JSON a run.")

    show = command("show", _show, "Show one run: its settings, layers and results.")
    show.add_argument("run", metavar="RUN", help="A run id, as `list` prints it.")

    coverage = command("coverage", _coverage, "Show which weights of a network would be pruned, and why the others not.")
    _add_flags(coverage, RunConfig, ("model", "checkpoint"))
    _add_flags(coverage, PruneConfig, ("pattern", "k_steps"))
    _add_overrides(coverage)
    _add_switches(coverage)

    search = command("models", _models, "Find networks by a part of their name; nothing is loaded or downloaded.")
    search.add_argument("text", nargs="*", metavar="WORD", help="Words that the name holds: vit base 224.")
    search.add_argument("--limit", type=int, default=20, metavar="N", help="How many to show. Default: 20.")

    images = command("images", _images, "Show what a network would get of some images, and how it prepares them.")
    _add_flags(images, RunConfig, ("model", "checkpoint", "class_names", "data", "num_calibration", "num_evaluation"))
    _add_flags(images, PruneConfig, ("seed",))
    images.add_argument("--output", type=as_path, metavar="FILE", help="Write the first ones, prepared, as a picture.")

    command("presets", _presets, "List the paper's settings, what they download, and what they need.")

    fetch = command("fetch", _fetch, "Download published weights or a data set, with progress, before a run needs them.")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="A network (timm:resnet18) or a data set (cifar-10).")

    train = command("train", _train, "Train a bundled network from scratch.")
    train.add_argument("--model", required=True, help="resnet20-fashion or vit-fashion.")
    train.add_argument(
        "--output", type=as_path, default=Path("checkpoints"), help="Folder for the result. Default: checkpoints."
    )
    train.add_argument("--seed", type=int, default=0, help="Fixes initial weights, order and augmentation. Default: 0.")
    train.add_argument("--epochs", type=int, help="Passes over the training images. Default: the recipe's.")
    train.add_argument("--limit", type=int, help="Train on the first images only, to try things out.")
    _add_root(train)

    bundle = command("bundle-data", _bundle_data, "Build the bundled images from the full Fashion-MNIST.")
    bundle.add_argument("--output", type=as_path, help="The file to write. Default: the one in assets/.")
    _add_root(bundle)
    return parser


def _add_flags(parser: argparse._ActionsContainer, model: type[BaseModel], names: Sequence[str]) -> None:
    """A flag a field. Values stay text: the field's own check converts them, and its sentence explains what is wrong."""
    for name in names:
        field = model.model_fields[name]
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        default = field.get_default()
        text = str(field.description) + ("" if default in (None, "") else f" Default: {default}.")
        if name == "class_names":
            parser.add_argument("--class-names", metavar="FILE", help=f"A text file, one name a line. {text}")
            continue
        parser.add_argument(
            "--" + name.replace("_", "-"),
            metavar="|".join(choices) or ("N" if field.annotation is int else name.rsplit("_", 1)[-1].upper()),
            help=text.replace("%", "%%"),
        )


def _add_overrides(parser: argparse._ActionsContainer) -> None:
    description = PruneConfig.model_fields["overrides"].description
    parser.add_argument(
        "--override", action="append", metavar="SITE=PATTERN", help=f"{description} May be given several times."
    )


def _add_switches(parser: argparse._ActionsContainer) -> None:
    for name in _PRUNE_SWITCHES:
        flag, description = "--" + name.replace("_", "-"), PruneConfig.model_fields[name].description
        parser.add_argument(flag, action="store_true", default=None, help=description)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=as_path, help="Where torchvision downloaded FashionMNIST to. Default: ~/.snows/data.")


def _config(given: argparse.Namespace) -> RunConfig:
    def values(names: Sequence[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(given, name, None)) is not None}

    base = _preset(given.preset).config if getattr(given, "preset", None) else RunConfig()
    # From the inside out, so that a sentence names the setting and not the path to it.
    solver = SolverConfig.model_validate(base.prune.solver.model_dump() | values(_SOLVER_FLAGS))
    overrides = {"overrides": given.override} if getattr(given, "override", None) else {}
    flags = values((*_PRUNE_FLAGS, *_PRUNE_SWITCHES)) | overrides | {"solver": solver}
    prune = PruneConfig.model_validate(base.prune.model_dump() | flags)
    named = values(_RUN_FLAGS)
    if "class_names" in named:
        named["class_names"] = as_path(named["class_names"]).read_text()
    return _brought(RunConfig.model_validate(base.model_dump() | named | {"prune": prune}))


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}. Choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _brought(config: RunConfig) -> RunConfig:
    """The config with an archive of images unpacked beside the runs, where a repeated run finds it again."""
    path = as_path(config.data)
    if not path.is_file():
        return config
    from snows import pictures, uploads

    uploads.purge(default_root())
    unpacked = uploads.keep_archive(default_root(), path, path.name)
    if unpacked.left_out:
        sys.stderr.write(f"From {path.name}, {pictures.left_out_words(unpacked.left_out)}.\n")
    return config.model_copy(update={"data": str(unpacked.path)})


# --- prune ---


def _prune(given: argparse.Namespace) -> int:
    store = RunStore(default_root())
    run = store.create(_config(given)) if given.resume is None else _resumed(store, given)
    with run.queue() as hold, _progress(run), _cancel_on_interrupt(run):
        ending = hold.work(_execute)
    code = _report(run, ending, as_json=given.json)
    if code == BAD_INPUT and given.resume is None:
        store.delete(run.id)  # it never began; a slip of the keyboard is not worth a place in the list
    return code


def _execute(run: Run) -> events.RunFinished:
    from snows import runner

    return runner.execute(run)


def _get(store: RunStore, run_id: str) -> Run:
    try:
        return store.get(run_id)
    except KeyError as error:
        raise InputError(error.args[0]) from None


def _resumed(store: RunStore, given: argparse.Namespace) -> Run:
    named = ("preset", *_RUN_FLAGS, *_PRUNE_FLAGS, *_SOLVER_FLAGS, "override", *_PRUNE_SWITCHES)
    extra = ["--" + name.replace("_", "-") for name in named if getattr(given, name) is not None]
    if extra:
        raise InputError(f"--resume goes on with the run as it was configured; leave out {', '.join(extra)}.")
    return _get(store, given.resume)


def _report(run: Run, ending: events.Event, *, as_json: bool) -> int:
    match ending:
        case events.RunFinished(metrics=metrics):
            result = _json({"run_id": run.id, **metrics}) if as_json else _summary(run, metrics)
            sys.stdout.write(result + "\n")
            return FINISHED
        case events.RunFailed(message=message, bad_input=bad_input):
            return _fail(message, BAD_INPUT if bad_input else FAILED)
        case events.RunCancelled(finished_sites=count):
            return _fail(
                f"Cancelled after {count} finished layers, which are kept. Go on with: python -m snows prune --resume {run.id}",
                CANCELLED,
            )
        case last:
            return _fail(f"Run {run.id} ended without a result (its last event is {type(last).__name__}).", FAILED)


@contextmanager
def _cancel_on_interrupt(run: Run) -> Iterator[threading.Event]:
    """Ctrl-C asks the run to stop, and sets the event."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        run.request_cancel()
        sys.stderr.write("\nStopping after the current step; press Ctrl-C again to stop at once.\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(run: Run) -> Iterator[None]:
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
        case events.SiteStarted(site=site):
            bar.set_description(site)
        case events.CGIteration(step=step, iteration=iteration, residual=residual):
            bar.set_postfix_str(f"Newton step {step + 1}, CG iteration {iteration}, residual {residual:.1e}", refresh=False)
            bar.update(0)
        case events.SiteFinished():
            bar.set_postfix_str("", refresh=False)
            bar.update()
        case events.Fetched(what=what, done=done, total=total):
            bar.set_description(f"downloading {what}, {done / 1e6:,.0f}{f' of {total / 1e6:,.0f}' if total else ''} MB")
        case events.Measured(done=done, total=total):
            bar.set_postfix_str(f"{done:,} of {total:,} images", refresh=False)
            bar.update(0)


# --- compare ---


def _compare(given: argparse.Namespace) -> int:
    return _batch(given, _combinations, _side_by_side)


def _batch(
    given: argparse.Namespace, combinations: Callable[[argparse.Namespace], list[RunConfig]], show: Callable[..., int]
) -> int:
    """Show the runs that were named; else make a batch of the combinations, or resume one, work through it, and show it."""
    store = RunStore(default_root())
    if given.runs:
        return show([run for name in given.runs for run in _named(store, name)], as_json=given.json)
    batch = _get_batch(store, given.resume) if given.resume else store.create_batch(combinations(given))
    sys.stderr.write(f"Batch {batch.id}: {len(batch.runs())} runs.\n")
    code = _work_through(batch)
    if code == BAD_INPUT and not given.resume:
        for run in batch.runs():
            store.delete(run.id)
        return code
    show(batch.runs(), as_json=given.json)
    if code != FINISHED:
        sys.stderr.write(f"What is finished is kept. Go on with: python -m snows {given.command} --resume {batch.id}\n")
    return code


def _combinations(given: argparse.Namespace) -> list[RunConfig]:
    if given.masks or given.updates:
        if given.methods:
            raise InputError("--method names a mask with an update; leave out --mask and --update, or --method.")
        targets = given.many_targets or ["dense"]
        methods = combinations(given.masks or ["magnitude"], given.updates or UPDATES, targets, given.many_refine)
    else:
        known = {_slug(name): method for name, method in METHODS.items()}
        if unknown := [name for name in given.methods or [] if _slug(name) not in known]:
            raise InputError(f"There is no method {unknown[0]!r}. Choose of {', '.join(known)}; or give --mask and --update.")
        methods = [known[_slug(name)] for name in given.methods or METHODS]
    return expand(_config(given), methods, given.patterns, given.many_k, given.seeds)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def _get_batch(store: RunStore, batch_id: str) -> Batch:
    try:
        return store.batch(batch_id)
    except KeyError as error:
        raise InputError(error.args[0]) from None


def _named(store: RunStore, name: str) -> list[Run]:
    """The runs of a batch of that name, else the run."""
    batches = [batch for batch in store.batches() if batch.id == name]
    return batches[0].runs() if batches else [_get(store, name)]


def _work_through(batch: Batch) -> int:
    """Execute what is not finished of a batch. One that fails does not stop the others, Ctrl-C stops all."""
    unfinished = [run for run in batch.runs() if run.state() != "finished"]
    endings: list[events.Event] = []
    stopped = False
    with ExitStack() as stack:
        holds = []
        for run in unfinished:  # all of them at once, so that the app shows them waiting
            with suppress(RunTakenError):
                holds.append(stack.enter_context(run.queue()))
        if unfinished and not holds:
            raise InputError(f"Another process works on the runs of {batch.id}. Wait for it, or cancel them.")
        if elsewhere := len(unfinished) - len(holds):
            sys.stderr.write(f"Another process works on {elsewhere} of them; these are left to it.\n")
        for hold, label in zip(holds, labels([as_called(hold.run) for hold in holds]), strict=True):
            with hold:
                if stopped:
                    endings.append(hold.cancel())
                    continue
                sys.stderr.write(f"{label} ({hold.run.id})\n")
                with _progress(hold.run), _cancel_on_interrupt(hold.run) as interrupted:
                    endings.append(hold.work(_execute))
                stopped = interrupted.is_set()
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
            sys.stdout.write(_json({"run_id": run.id, "method": method_name(config.prune), **metrics}) + "\n")
        return FINISHED
    if not finished:
        return _fail("None of these runs has finished, so there is nothing to set side by side yet.", FAILED)
    columns = cells(summarize([(config, metrics) for _, config, metrics in finished]))
    sys.stdout.write(_table([[title.upper() for title in columns], *zip(*columns.values(), strict=True)]))
    sys.stdout.write(f"\n{BEST} the best of a column, {LEVEL} within the noise of it (two standard errors)\n")
    return FINISHED


# --- study ---


def _study(given: argparse.Namespace) -> int:
    return _batch(given, _of_each_k, _against_k)


def _of_each_k(given: argparse.Namespace) -> list[RunConfig]:
    base = _config(given).model_dump()
    return study.expand([RunConfig.model_validate(base | {"model": m}) for m in given.models], given.many_k, given.sizes)


def _against_k(runs: Sequence[Run], *, as_json: bool) -> int:
    outcomes = [study.Outcome.of(run) for run in runs if run.metrics()]
    curves = study.curves(outcomes)
    if not curves:
        return _fail("None of these runs is a finished run of SNOWS, so there is no K to look at.", FAILED)
    measured = ("accuracy", "agreement", "divergence", "seconds")
    rows: list[tuple[str, ...]] = [("NETWORK", "K", "OF ALL", *_heads(measured), "")]
    reasons = []
    for name, curve in zip(study.names(curves), curves, strict=True):
        advice = study.recommend(curve, outcomes)
        if as_json:
            sys.stdout.write(_json(_curve_record(name, curve, advice)) + "\n")
        for row in curve.rows:
            k = row.config.prune.k_steps
            of_all = f"{100 * k / curve.operations:.0f} %" if curve.operations else "-"
            values = [
                row.values[name].said(name) if name in row.values else missing(name) if name in row.missing else "-"
                for name in measured
            ]
            level = advice is not None and any(row is other for other in advice.level)
            mark = BEST if advice is not None and row is advice.row else LEVEL if level else ""
            rows.append((name, str(k), of_all, *values, mark))
        if advice is not None:
            reasons.append(f"{name}: {advice.reason}")
    if not as_json:
        legend = f"{BEST} the smallest K within the noise of the best (two standard errors), {LEVEL} others within it"
        sys.stdout.write("\n".join([_table(rows), legend, *reasons]) + "\n")
    return FINISHED


def _curve_record(name: str, curve: study.Curve, advice: study.Recommendation | None) -> dict[str, Any]:
    points = [
        {"k_steps": row.config.prune.k_steps, **{measure: value.mean for measure, value in row.values.items()}}
        for row in curve.rows
    ]
    chosen = None if advice is None else advice.row.config.prune.k_steps
    reason = None if advice is None else advice.reason
    record = {"network": name, "operations": curve.operations, "num_calibration": curve.config.num_calibration}
    return record | {"recommended": chosen, "reason": reason, "points": points}


# --- list, show ---


def _list(given: argparse.Namespace) -> int:
    runs = RunStore(default_root()).list()
    if given.json:
        for run in runs:
            record = {"run_id": run.id, "state": run.state(), **(run.metrics() or {})}
            sys.stdout.write(_json(record) + "\n")
    elif not runs:
        sys.stdout.write(f"There are no runs in {default_root()} yet. Start one with `python -m snows prune`.\n")
    else:
        measured = ("accuracy", "agreement")
        rows: list[tuple[str, ...]] = [("RUN", "STATE", *_heads(measured), "NAME")]
        for run in runs:
            try:
                name, metrics = run_name(as_called(run)), run.metrics() or {}
            except ValueError:  # written by another version, or damaged; the other runs are still worth seeing
                rows.append((run.id, "unreadable", *"---"))
                continue
            rows.append((run.id, run.state(), *(said(measure, metrics) for measure in measured), name))
        sys.stdout.write(_table(rows))
    return FINISHED


def _show(given: argparse.Namespace) -> int:
    run = _get(RunStore(default_root()), given.run)
    config, log = as_called(run), run.log()
    what = f"{config.num_calibration:,} calibration images of {config.data}, seed {config.prune.seed}"
    sys.stdout.write(f"{run.id}: {run.state()}\n{run_name(config)}\n{what}\n\n")
    rows: list[tuple[str, ...]] = [
        ("LAYER", *_heads(["density"]), "EXCHANGED", "MASK ONLY", "LEAST SQUARES", "FINAL", *_heads(["seconds"]), "STATUS")
    ]
    for event in log.layers():
        losses = [_said("loss", event.losses.get(stage)) for stage in ("mask_only", "least_squares", "final")]
        density, seconds = _said("density", event.density), _said("seconds", event.seconds)
        rows.append((event.site, density, str(event.exchanged), *losses, seconds, event.status))
    if len(rows) > 1:
        sys.stdout.write(_table(rows) + "\n")
    if log.failure:
        sys.stdout.write(log.failure.message + "\n")
    if metrics := run.metrics():
        sys.stdout.write(_summary(run, metrics) + "\n")
    return FINISHED


def _summary(run: Run, metrics: dict[str, float | None]) -> str:
    names = ("accuracy_dense", "accuracy", "agreement", "divergence", "density", "seconds", "num_products")
    rows = [(MEASURES[name].title, said(name, metrics)) for name in names]
    return _table([*rows, ("Pruned weights", str(run.weights_path))]).rstrip()


def _heads(measures: Sequence[str]) -> list[str]:
    return [MEASURES[name].title.upper() for name in measures]


def _json(record: Mapping[str, Any]) -> str:
    """In JSON, which has no NaN and no infinity: they are null."""
    return to_json(record, inf_nan_mode="null").decode()


def _said(measure: str, value: float | None) -> str:
    return "-" if value is None else MEASURES[measure].say(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


# --- coverage, models, images, presets, fetch, train, bundle-data ---


def _coverage(given: argparse.Namespace) -> int:
    config = _config(given)
    from snows import runner

    plan = runner.plan(config)
    rows = [("WEIGHT", "KIND", "SHAPE", *_heads(["density"]), "WINDOW")]
    for site in plan.sites:
        shape = "x".join(map(str, site.shape))
        rows.append((site.name, site.kind, shape, _said("density", site.density), ", ".join(site.operations)))
    sys.stdout.write(_table(rows))
    if plan.skipped:
        sys.stdout.write("\nLeft dense:\n" + _table(list(plan.skipped.items())))
    return FINISHED


def _models(given: argparse.Namespace) -> int:
    from snows import models

    rows: list[tuple[str, ...]] = [("MODEL", "PARAMETERS", "INPUT", "OUTPUTS", "WEIGHTS")]
    for name in models.search(" ".join(given.text), given.limit):
        outline = models.outline(name)
        parameters = sum(p.numel() for p in outline.module.parameters())
        weights = models.published_weights(name, parameters)
        there = "none published" if weights is None else f"{weights.num_bytes / 1e6:,.0f} MB"
        size, outputs = "x".join(map(str, outline.input_size)), f"{len(outline.class_names):,}"
        here = ", here" if weights is not None and weights.here else ""
        rows.append((name, f"{parameters:,}", size, outputs, there + here))
    if len(rows) == 1:
        raise InputError(f"No model has {' and '.join(given.text)} in its name. Try a shorter part of it.")
    sys.stdout.write(_table(rows))
    return FINISHED


def _images(given: argparse.Namespace) -> int:
    config = _config(given)
    from snows import data, models

    model = models.outline(config.model, config.checkpoint, class_names=config.class_names)
    preview = data.preview(config.data, model, config.num_calibration, config.num_evaluation, config.prune.seed, count=24)
    measured = (
        "accuracy and agreement" if preview.labelled else "agreement with the dense network; there are no labels it knows"
    )
    lines = [
        f"{config.num_calibration:,} of {preview.num_calibration:,} images to calibrate with",
        f"{preview.num_evaluation:,} images to measure on",
        f"Measured: {measured}",
        f"Preparation: {model.preprocessing}",
    ]
    if preview.classes:
        lines.append(f"Classes: {', '.join(preview.classes[:10])}{', …' if len(preview.classes) > 10 else ''}")
    sys.stdout.write("\n".join([*lines, *preview.notes]) + "\n")
    if given.output:
        data.write_sheet(preview.images, given.output)
        sys.stdout.write(f"{given.output}\n")
    return FINISHED


def _presets(given: argparse.Namespace) -> int:
    from snows import presets

    for name, preset in PRESETS.items():
        sys.stdout.write(f"{name}: {preset.title}\n  {preset.needs}\n")
        for item in presets.wanted(preset.config):
            here = ", here already" if item.here else ""
            sys.stdout.write(f"  Download: {item.what}, {item.num_bytes / 1e6:,.0f} MB{here}\n")
    sys.stdout.write("Run one with `python -m snows prune --preset NAME`; any other flag changes it.\n")
    return FINISHED


def _fetch(given: argparse.Namespace) -> int:
    from tqdm import tqdm

    from snows import datasets, models

    for name in given.names:
        with tqdm(unit="B", unit_scale=True, desc=name, file=sys.stderr, dynamic_ncols=True) as bar:

            def report(what: str, done: int, total: int | None, bar: Any = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            if name in datasets.SETS:
                datasets.fetch(name, report)
            else:
                models.fetch(name, report)
        sys.stdout.write(f"{name} is here.\n")
    return FINISHED


def _train(given: argparse.Namespace) -> int:
    from snows import training

    def report(line: str) -> None:
        sys.stderr.write(line + "\n")

    card = training.train(
        given.model,
        given.output,
        seed=given.seed,
        epochs=given.epochs,
        limit=given.limit,
        root=given.root,
        report=report,
    )
    sys.stdout.write(_json(card) + "\n")
    return FINISHED


def _bundle_data(given: argparse.Namespace) -> int:
    from snows import data

    sys.stdout.write(f"{data.write_bundle(given.output or data.BUNDLE, given.root)}\n")
    return FINISHED


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FINISHED
    sys.exit(code)
