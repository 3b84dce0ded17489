"""The engine from a shell: `python -m snows prune | compare | study | work | app | methods | list | show | descend | export |
coverage | models | images | presets | fetch | train | bundle-data | bundle-levels | bundle-budgets`. What draws a figure is
the app's, as `app.report` is.

Runs go to the same store as the app's, so each sees the other's. Results go to stdout, everything else to stderr.

Exit codes: 0 finished, 1 failed, 2 bad input, 130 cancelled (the run can be resumed).
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from snows import __version__
from snows.cli.comparisons import compare_command, methods_command, slug, study_command
from snows.cli.explorer import app_command
from snows.cli.exports import export_command
from snows.cli.flags import (
    PRUNE_FLAGS,
    RUN_FLAGS,
    SOLVER_FLAGS,
    add_budget,
    add_flags,
    add_overrides,
    add_root,
    add_switches,
)
from snows.cli.out import BAD_INPUT, CANCELLED, FAILED, FINISHED, fail, with_flags
from snows.cli.runs import descend_command, list_command, prune_command, show_command
from snows.cli.sources import (
    bundle_budgets_command,
    bundle_data_command,
    bundle_levels_command,
    coverage_command,
    fetch_command,
    images_command,
    models_command,
    presets_command,
    train_command,
)
from snows.cli.work import work_command
from snows.config import MASKS, REFINEMENTS, TARGETS, UPDATES, PruneConfig, RunConfig, SolverConfig, as_path, explain
from snows.plans import exports, study
from snows.plans.comparisons import METHODS, USUAL
from snows.plans.levels import PATTERNS
from snows.process import prepare
from snows.runs.clusters import EXECUTORS
from snows.runs.store import StoreError


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
        return fail(explain(error), BAD_INPUT)
    except ValueError as error:
        return fail(with_flags(error), BAD_INPUT)
    except StoreError as error:
        return fail(str(error), FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:
        return fail(
            f"{error.filename or 'A file'} cannot be used: {error.strerror}. Check the path and the free space.", FAILED
        )
    except KeyboardInterrupt:
        return fail("Stopped.", CANCELLED)


# --- flags ---


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m snows", description="Prune a network in one shot, and see what it does.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"snows {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, function: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(function=function)
        return added

    prune = command("prune", prune_command, "Prune a network and measure the result.")
    prune.add_argument("--preset", metavar="NAME", help="Begin with one of the paper's settings; `presets` lists them.")
    add_flags(prune.add_argument_group("network and images"), RunConfig, RUN_FLAGS)
    method = prune.add_argument_group("method")
    add_flags(method, PruneConfig, PRUNE_FLAGS)
    add_budget(method)
    add_overrides(method)
    add_switches(method)
    add_flags(prune.add_argument_group("Newton-CG solver (--update snows)"), SolverConfig, SOLVER_FLAGS)
    prune.add_argument(
        "--resume", metavar="RUN", help="Go on with a run that was cancelled or interrupted, as it was configured."
    )
    prune.add_argument("--json", action="store_true", help="Print the result as one line of JSON, last on stdout.")

    compare = command("compare", compare_command, "Prune one network in many ways, and set the results side by side.")
    compare.add_argument("runs", nargs="*", metavar="RUN", help="Only show these runs or batches, and prune nothing.")
    alike = [name for name in RUN_FLAGS if name not in ("num_calibration", "name")]
    add_flags(compare.add_argument_group("network and images"), RunConfig, alike)
    many = compare.add_argument_group("what to try: every combination of")
    known = ", ".join(map(slug, METHODS))
    many.add_argument(
        "--method", nargs="+", metavar="NAME", dest="methods", help=f"Of {known}. Default: the first {len(USUAL)}."
    )
    many.add_argument("--mask", nargs="+", metavar="MASK", dest="masks", help=f"Instead of methods: of {', '.join(MASKS)}.")
    many.add_argument("--update", nargs="+", metavar="UPDATE", dest="updates", help=f"With masks: of {', '.join(UPDATES)}.")
    many.add_argument("--targets", nargs="+", metavar="TARGETS", dest="many_targets", help=f"With masks: {', '.join(TARGETS)}.")
    refining = f"With masks: of {', '.join(REFINEMENTS)}. Default: none."
    many.add_argument("--refine", nargs="+", metavar="REFINE", dest="many_refine", default=["none"], help=refining)
    many.add_argument("--pattern", nargs="+", metavar="PATTERN", dest="patterns", default=["2:4"], help="Default: 2:4.")
    many.add_argument("--k", nargs="+", metavar="K", dest="many_k", default=["3"], help="For update snows. Default: 3.")
    many.add_argument("--num-calibration", nargs="+", metavar="N", dest="sizes", default=["512"], help="Default: 512.")
    many.add_argument("--seed", nargs="+", metavar="SEED", dest="seeds", default=["0"], help="Default: 0.")
    add_overrides(compare)
    add_switches(compare)
    add_flags(compare, PruneConfig, ("batch_size", "memory", "device", "precision"))
    add_flags(compare.add_argument_group("Newton-CG solver (update snows)"), SolverConfig, SOLVER_FLAGS)
    compare.add_argument("--resume", metavar="BATCH", help="Go on with the runs of a batch that are not finished.")
    compare.add_argument("--json", action="store_true", help="Print one line of JSON a run instead of the table.")

    summary = "Prune with several K, or several numbers of images, on one or several networks, and say how much is enough."
    swept = command("study", study_command, summary)
    swept.add_argument("runs", nargs="*", metavar="RUN", help="Only show these runs or batches, and prune nothing.")
    many = swept.add_argument_group("what to try: every combination of")
    steps, models, sizes = ["0", "1", "3", "5", "10"], ["resnet20-fashion"], ["512"]
    many.add_argument("--k", nargs="+", metavar="K", dest="many_k", default=steps, help="Default: 0 1 3 5 10.")
    many.add_argument("--model", nargs="+", metavar="MODEL", dest="models", default=models, help="Default: resnet20-fashion.")
    many.add_argument("--num-calibration", nargs="+", metavar="N", dest="sizes", default=sizes, help="Default: 512.")
    against = "What to look at: K, or the number of images. Default: K, unless only the images differ."
    swept.add_argument("--against", choices=study.AXES, metavar="|".join(study.AXES), help=against)
    alike = ["checkpoint", "class_names", "data", "num_held_back", "num_evaluation"]
    add_flags(swept.add_argument_group("images"), RunConfig, alike)
    method = swept.add_argument_group("method")
    add_flags(method, PruneConfig, [name for name in PRUNE_FLAGS if name not in ("update", "k_steps")])
    add_overrides(method)
    add_switches(method)
    add_flags(swept.add_argument_group("Newton-CG solver"), SolverConfig, SOLVER_FLAGS)
    swept.add_argument("--resume", metavar="BATCH", help="Go on with the runs of a batch that are not finished.")
    swept.add_argument("--json", action="store_true", help="Print one line of JSON a curve instead of the table.")

    for queued in (compare, swept):
        queued.add_argument("--queue", action="store_true", help="Put the runs in line for whoever works, see `work`, and end.")
        queued.add_argument(
            "--executor", choices=EXECUTORS, metavar="ray|slurm", help="Have a cluster do the runs, a task each."
        )
        queued.add_argument("--address", metavar="ADDRESS", help="Of the Ray cluster. Default: $RAY_ADDRESS, or one made here.")
        queued.add_argument("--cores", type=int, default=1, metavar="N", help="Of a cluster, for each run. Default: 1.")
        minutes = "A job's time limit in SLURM, at which it is queued again and goes on. Default: 60."
        queued.add_argument("--minutes", type=float, default=60, metavar="N", help=minutes)
        queued.add_argument("--partition", metavar="NAME", help="Of SLURM. Default: the cluster's.")
        queued.add_argument("--shard", metavar="I/N", help="Only the I-th of N parts of the runs; the others elsewhere.")

    summary = (
        "Do the runs that wait in line, one after the other; as many workers as you like, on any machine that sees the folder."
    )
    working = command("work", work_command, summary)
    working.add_argument("--device", default="auto", metavar="DEVICE", help=str(PruneConfig.model_fields["device"].description))
    working.add_argument(
        "--root", type=as_path, metavar="FOLDER", help="The runs' folder. Default: $SNOWS_RUNS, ~/.snows/runs."
    )
    ends = working.add_mutually_exclusive_group()
    ends.add_argument("--once", action="store_true", help="End after one run, or at once where none waits.")
    until_empty = "End when nothing is in line any more; while other workers are at work, one of them may yet be lost."
    ends.add_argument("--until-empty", action="store_true", help=until_empty)

    explorer = command("app", app_command, "Open the app in a browser.")
    explorer.add_argument("flags", nargs="*", metavar="FLAG", help="Of Streamlit, after --: app -- --server.port 8502")

    methods = command("methods", methods_command, "List the methods there are to compare: idea, reference, cost.")
    methods.add_argument("--json", action="store_true", help="Print one line of JSON a method.")

    listing = command("list", list_command, "List the runs there are, newest first.")
    listing.add_argument("--json", action="store_true", help="Print one line of JSON a run.")

    show = command("show", show_command, "Show one run: its settings, layers and results.")
    show.add_argument("run", metavar="RUN", help="A run id, as `list` prints it.")
    faster = "Say, too, which programs could run it faster, layer by layer, and by whose word."
    show.add_argument("--faster", action="store_true", help=faster)
    timed = (
        "Say, too, how fast its network is here beside the dense one, in PyTorch and ONNX Runtime; takes about half a minute."
    )
    show.add_argument("--latency", action="store_true", help=timed)

    out = command("export", export_command, "Write a run's network as a file or a folder for elsewhere.")
    out.add_argument("run", metavar="RUN", help="A run id, as `list` prints it.")
    forms = " ".join(f"{name}: {form.help}" for name, form in exports.FORMS.items())
    out.add_argument("--format", choices=exports.FORMS, default="safetensors", help=f"{forms} Default: safetensors.")
    out.add_argument("--output", type=as_path, metavar="PATH", help="What to write. Default: the run's id and an ending.")
    in_packed = "What a packed file stores weights in; biases and norms stay as they are. Default: float32."
    out.add_argument("--dtype", choices=exports.DTYPES, help=in_packed)
    sends = "With --format hub: send the folder to the Hugging Face hub, with the token of `hf auth login`. "
    out.add_argument("--push", metavar="OWNER/NAME", help=sends + "What is new there is private.")

    summary = "Bring one layer's loss down by curvature and by gradients alone, from the same start, and say how far each came."
    descend = command("descend", descend_command, summary)
    descend.add_argument("run", metavar="RUN", help="A run id, as `list` prints it.")
    descend.add_argument("layer", metavar="LAYER", help="A finished layer, as `show` prints it.")
    starts = "Where all begin: at the dense values under the mask, or at the solution for K = 0. Default: masked."
    descend.add_argument("--start", choices=("masked", "least_squares"), default="masked", help=starts)
    descend.add_argument(
        "--images", type=int, default=128, metavar="N", help="The run's first calibration images. Default: 128."
    )
    passes = "How often each way may go through the images. Default: 30."
    descend.add_argument("--passes", type=int, default=30, metavar="N", help=passes)
    descend.add_argument("--json", action="store_true", help="Print one line of JSON a point of each way.")

    coverage = command("coverage", coverage_command, "Show which weights of a network would be pruned, and why the others not.")
    add_flags(coverage, RunConfig, ("model", "checkpoint", "num_calibration"))
    add_flags(coverage, PruneConfig, ("pattern", "update", "k_steps", "ridge"))
    add_budget(coverage)
    add_overrides(coverage)
    add_switches(coverage)
    before = "Say, too, how much faster the smaller network will be here, timed on units that go by chance; of a width alone."
    coverage.add_argument("--latency", action="store_true", help=before)

    search = command("models", models_command, "Find networks by a part of their name; nothing is loaded or downloaded.")
    search.add_argument("text", nargs="*", metavar="WORD", help="Words that the name holds: vit base 224.")
    search.add_argument("--limit", type=int, default=20, metavar="N", help="How many to show. Default: 20.")

    images = command("images", images_command, "Show what a network would get of some images, and how it prepares them.")
    add_flags(images, RunConfig, ("model", "checkpoint", "class_names", "data", "num_calibration", "num_evaluation"))
    add_flags(images, PruneConfig, ("seed",))
    images.add_argument("--output", type=as_path, metavar="FILE", help="Write the first ones, prepared, as a picture.")

    command("presets", presets_command, "List the paper's settings, what they download, and what they need.")

    fetch = command("fetch", fetch_command, "Download published weights or a data set, with progress, before a run needs them.")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="A network (timm:resnet18) or a data set (cifar-10).")

    train = command("train", train_command, "Train a bundled network from scratch.")
    train.add_argument("--model", required=True, help="resnet20-fashion or vit-fashion.")
    train.add_argument(
        "--output", type=as_path, default=Path("checkpoints"), help="Folder for the result. Default: checkpoints."
    )
    train.add_argument("--seed", type=int, default=0, help="Fixes initial weights, order and augmentation. Default: 0.")
    train.add_argument("--epochs", type=int, help="Passes over the training images. Default: the recipe's.")
    train.add_argument("--limit", type=int, help="Train on the first images only, to try things out.")
    add_root(train)

    bundle = command("bundle-data", bundle_data_command, "Build the bundled images from the full Fashion-MNIST.")
    bundle.add_argument("--output", type=as_path, help="The file to write. Default: the one in assets/.")
    add_root(bundle)

    recorded = command("bundle-levels", bundle_levels_command, "Prune the bundled networks at the levels of the first page.")
    names = ["resnet20-fashion", "vit-fashion"]
    recorded.add_argument("--model", nargs="+", metavar="MODEL", dest="models", default=names, help="Default: both of them.")
    recorded.add_argument(
        "--pattern", nargs="+", metavar="PATTERN", dest="patterns", default=PATTERNS, help="Default: the page's."
    )
    recorded.add_argument("--num-calibration", type=int, default=512, metavar="N", help="Default: 512.")
    recorded.add_argument("--num-evaluation", type=int, default=10_000, metavar="N", help="Default: 10000, all there are.")
    recorded.add_argument("--output", type=as_path, help="Folder for weights and cards. Default: assets/levels.")

    summary = "Measure what each layer of the bundled networks loses by each pattern."
    curves = command("bundle-budgets", bundle_budgets_command, summary)
    curves.add_argument("--model", nargs="+", metavar="MODEL", dest="models", default=names, help="Default: both of them.")
    curves.add_argument("--output", type=as_path, help="Folder for the figures. Default: assets/budgets.")
    return parser


def run() -> int:
    """`main` for whoever typed it: `python -m snows`, or `snows` where it is installed."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINISHED
    return code


if __name__ == "__main__":
    sys.exit(run())
