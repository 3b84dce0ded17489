"""The engine from a shell: `python -m snows prune | list | show | coverage | train | bundle-data`.

Runs go to the same store as the app's, so each sees the other's. Results go to stdout, everything else to stderr.

Exit codes: 0 finished, 1 failed, 2 bad input, 130 cancelled (the run can be resumed).
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic import BaseModel, ValidationError

from snows import events
from snows.config import InputError, PruneConfig, RunConfig, SolverConfig, explain
from snows.store import ACTIVE, Run, RunStore, StoreError, default_root

# torch and timm take seconds to import; only the commands that compute import them, inside.

FINISHED, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130
POLL_SECONDS = 0.2

_RUN_FLAGS = ("model", "checkpoint", "data", "num_calibration", "num_evaluation", "name")
_PRUNE_FLAGS = ("pattern", "mask", "update", "k_steps", "targets", "batch_size", "seed", "device", "precision")
_PRUNE_SWITCHES = ("prune_classifier", "batch_norm_reestimate")
_SOLVER_FLAGS = tuple(SolverConfig.model_fields)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{message[:1].upper()}{message[1:]}. `{self.prog} --help` shows how it is used.\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
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

    listing = command("list", _list, "List the runs there are, newest first.")
    listing.add_argument("--json", action="store_true", help="Print one line of JSON a run.")

    show = command("show", _show, "Show one run: its settings, layers and results.")
    show.add_argument("run", metavar="RUN", help="A run id, as `list` prints it.")

    coverage = command("coverage", _coverage, "Show which weights of a network would be pruned, and why the others not.")
    _add_flags(coverage, RunConfig, ("model", "checkpoint"))
    _add_flags(coverage, PruneConfig, ("pattern", "k_steps"))
    _add_overrides(coverage)
    _add_switches(coverage)

    train = command("train", _train, "Train a bundled network from scratch.")
    train.add_argument("--model", required=True, help="resnet20-fashion or vit-fashion.")
    train.add_argument("--output", type=Path, default=Path("checkpoints"), help="Folder for the result. Default: checkpoints.")
    train.add_argument("--seed", type=int, default=0, help="Fixes initial weights, order and augmentation. Default: 0.")
    train.add_argument("--epochs", type=int, help="Passes over the training images. Default: the recipe's.")
    train.add_argument("--limit", type=int, help="Train on the first images only, to try things out.")
    _add_root(train)

    bundle = command("bundle-data", _bundle_data, "Build the bundled images from the full Fashion-MNIST.")
    bundle.add_argument("--output", type=Path, help="The file to write. Default: the one in assets/.")
    _add_root(bundle)
    return parser


def _add_flags(parser: argparse._ActionsContainer, model: type[BaseModel], names: Sequence[str]) -> None:
    """A flag a field. Values stay text: the field's own check converts them, and its sentence explains what is wrong."""
    for name in names:
        field = model.model_fields[name]
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        default = field.get_default()
        text = str(field.description) + ("" if default in (None, "") else f" Default: {default}.")
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
    parser.add_argument("--root", type=Path, help="Where torchvision downloaded FashionMNIST to. Default: ~/.snows/data.")


def _config(given: argparse.Namespace) -> RunConfig:
    def values(names: Sequence[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(given, name, None)) is not None}

    # From the inside out, so that a sentence names the setting and not the path to it.
    solver = SolverConfig.model_validate(values(_SOLVER_FLAGS))
    overrides = {"overrides": given.override} if given.override else {}
    prune = PruneConfig.model_validate(values((*_PRUNE_FLAGS, *_PRUNE_SWITCHES)) | overrides | {"solver": solver})
    return RunConfig.model_validate(values(_RUN_FLAGS) | {"prune": prune})


# --- prune ---


def _prune(given: argparse.Namespace) -> int:
    store = RunStore(default_root())
    run = store.create(_config(given)) if given.resume is None else _resumed(store, given)
    with run.held():
        run.append(events.Queued())
        with _progress(run), _cancel_on_interrupt(run):
            from snows import runner

            try:
                runner.execute(run)
            except StoreError:
                raise
            except Exception as error:
                return _fail(f"Run {run.id} stopped on an unexpected error: {type(error).__name__}: {error}", FAILED)
    code = _report(run, as_json=given.json)
    if code == BAD_INPUT and given.resume is None:
        store.delete(run.id)  # it never began; a slip of the keyboard is not worth a place in the list
    return code


def _get(store: RunStore, run_id: str) -> Run:
    try:
        return store.get(run_id)
    except KeyError as error:
        raise InputError(error.args[0]) from None


def _resumed(store: RunStore, given: argparse.Namespace) -> Run:
    named = (*_RUN_FLAGS, *_PRUNE_FLAGS, *_SOLVER_FLAGS, "override", *_PRUNE_SWITCHES)
    extra = ["--" + name.replace("_", "-") for name in named if getattr(given, name) is not None]
    if extra:
        raise InputError(f"--resume goes on with the run as it was configured; leave out {', '.join(extra)}.")
    run = _get(store, given.resume)
    state = run.state()
    if state in ACTIVE:
        raise InputError(f"Run {run.id} is {state}: another process works on it. Wait for it, or cancel it in the app.")
    if state == "finished":
        raise InputError(f"Run {run.id} is finished; there is nothing to resume. See it with `python -m snows show {run.id}`.")
    run.clear_cancel()
    return run


def _report(run: Run, *, as_json: bool) -> int:
    happened, _ = run.events()
    match happened[-1]:
        case events.RunFinished(metrics=metrics):
            result = json.dumps({"run_id": run.id, **metrics}) if as_json else _summary(run, metrics)
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
def _cancel_on_interrupt(run: Run) -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        run.request_cancel()
        sys.stderr.write("\nStopping after the current step; press Ctrl-C again to stop at once.\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
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
        case events.RunStarted(sites=sites, resumed=resumed):
            bar.bar_format = None  # until now there was nothing to count
            bar.reset(total=len(sites))
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
        case events.Measured(done=done, total=total):
            bar.set_postfix_str(f"{done:,} of {total:,} images", refresh=False)
            bar.update(0)


# --- list, show ---


def _list(given: argparse.Namespace) -> int:
    runs = RunStore(default_root()).list()
    if given.json:
        for run in runs:
            record = {"run_id": run.id, "state": run.state(), **(run.metrics() or {})}
            sys.stdout.write(json.dumps(record) + "\n")
    elif not runs:
        sys.stdout.write(f"There are no runs in {default_root()} yet. Start one with `python -m snows prune`.\n")
    else:
        rows: list[tuple[str, ...]] = [("RUN", "STATE", "MODEL", "PATTERN", "METHOD", "ACCURACY", "AGREEMENT")]
        for run in runs:
            try:
                config, metrics = run.config(), run.metrics() or {}
            except ValueError:  # written by another version, or damaged; the other runs are still worth seeing
                rows.append((run.id, "unreadable", *"-----"))
                continue
            shares = (_percent(metrics.get("accuracy")), _percent(metrics.get("agreement")))
            rows.append((run.id, run.state(), config.model, str(config.prune.pattern), _method(config.prune), *shares))
        sys.stdout.write(_table(rows))
    return FINISHED


def _show(given: argparse.Namespace) -> int:
    run = _get(RunStore(default_root()), given.run)
    happened, _ = run.events()
    sys.stdout.write(f"{run.id}: {run.state()}\n{_heading(run.config())}\n\n")
    rows: list[tuple[str, ...]] = [("LAYER", "DENSITY", "MASK ONLY", "LEAST SQUARES", "FINAL", "SECONDS", "STATUS")]
    for event in happened:
        if isinstance(event, events.SiteFinished):
            losses = [f"{event.losses[k]:.3g}" if k in event.losses else "-" for k in ("mask_only", "least_squares", "final")]
            rows.append((event.site, _percent(event.density), *losses, f"{event.seconds:.1f}", event.status))
    if len(rows) > 1:
        sys.stdout.write(_table(rows) + "\n")
    if happened and isinstance(happened[-1], events.RunFailed):
        sys.stdout.write(happened[-1].message + "\n")
    if metrics := run.metrics():
        sys.stdout.write(_summary(run, metrics) + "\n")
    return FINISHED


def _heading(config: RunConfig) -> str:
    source = f" from {config.checkpoint}" if config.checkpoint else ""
    return (
        f"{config.model}{source} on {config.data}, {config.prune.pattern}, {_method(config.prune)}, "
        f"{config.num_calibration:,} calibration images, seed {config.prune.seed}"
    )


def _method(config: PruneConfig) -> str:
    return f"{config.mask} + {config.update}" + (f" K={config.k_steps}" if config.update == "snows" else "")


def _summary(run: Run, metrics: dict[str, float | None]) -> str:
    rows = [
        ("accuracy, dense network", _percent(metrics.get("accuracy_dense"))),
        ("accuracy, pruned network", _percent(metrics.get("accuracy"))),
        ("agreement with the dense network", _percent(metrics.get("agreement"))),
        ("weights kept", _percent(metrics.get("density"))),
    ]
    if (seconds := metrics.get("seconds")) is not None:
        rows.append(("seconds", f"{seconds:,.1f}"))
    if (products := metrics.get("num_products")) is not None:
        rows.append(("curvature products", f"{products:,.0f}"))
    return _table([*rows, ("pruned weights", str(run.weights_path))]).rstrip()


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


# --- coverage, train, bundle-data ---


def _coverage(given: argparse.Namespace) -> int:
    config = _config(given)
    from snows import runner

    plan = runner.plan(config)
    rows = [("WEIGHT", "KIND", "SHAPE", "KEPT", "WINDOW")]
    for site in plan.sites:
        shape = "x".join(map(str, site.shape))
        rows.append((site.name, site.kind, shape, _percent(site.density), ", ".join(site.operations)))
    sys.stdout.write(_table(rows))
    if plan.skipped:
        sys.stdout.write("\nLeft dense:\n" + _table(list(plan.skipped.items())))
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
    sys.stdout.write(json.dumps(card) + "\n")
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
