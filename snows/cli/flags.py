"""A config from the command line: one flag a field."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from snows.config import Budget, InputError, PruneConfig, RunConfig, SolverConfig, as_path
from snows.plans.presets import PRESETS, Preset
from snows.runs.store import default_root

RUN_FLAGS = ("model", "checkpoint", "class_names", "data", "num_calibration", "num_held_back", "num_evaluation", "name")
PRUNE_FLAGS = (
    *("pattern", "mask", "refine", "update", "k_steps", "sweeps", "joint", "joint_epochs", "targets", "ridge"),
    *("batch_size", "memory", "seed", "device", "precision"),
)
PRUNE_SWITCHES = ("prune_classifier", "repair", "batch_norm_reestimate")
# A field of the budget, and its flag.
BUDGET_FLAGS = {"share": "budget", "by": "budget_by", "allocate": "allocate", "patterns": "choose"}
SOLVER_FLAGS = tuple(SolverConfig.model_fields)


def add_flags(parser: argparse._ActionsContainer, model: type[BaseModel], names: Sequence[str]) -> None:
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


def add_budget(parser: argparse._ActionsContainer) -> None:
    for name, flag in BUDGET_FLAGS.items():
        field = Budget.model_fields[name]
        choices, default = get_args(field.annotation), field.get_default() if not field.is_required() else None
        many = {"nargs": "+", "metavar": "PATTERN"} if name == "patterns" else {"metavar": "SHARE"}
        if get_origin(field.annotation) is Literal:
            many = {"metavar": "|".join(choices)}
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = str(field.description) + (f" Default: {shown}." if shown else "")
        parser.add_argument("--" + flag.replace("_", "-"), help=text.replace("%", "%%"), **many)  # type: ignore[arg-type]


def add_overrides(parser: argparse._ActionsContainer) -> None:
    description = PruneConfig.model_fields["overrides"].description
    parser.add_argument(
        "--override", action="append", metavar="SITE=PATTERN", help=f"{description} May be given several times."
    )


def add_switches(parser: argparse._ActionsContainer) -> None:
    for name in PRUNE_SWITCHES:
        flag, description = "--" + name.replace("_", "-"), PruneConfig.model_fields[name].description
        parser.add_argument(flag, action="store_true", default=None, help=description)


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=as_path, help="Where torchvision downloaded FashionMNIST to. Default: ~/.snows/data.")


def config_of(given: argparse.Namespace) -> RunConfig:
    def values(names: Sequence[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(given, name, None)) is not None}

    base = _preset(given.preset).config if getattr(given, "preset", None) else RunConfig()
    # From the inside out, so that a sentence names the setting and not the path to it.
    solver = SolverConfig.model_validate(base.prune.solver.model_dump() | values(SOLVER_FLAGS))
    overrides = {"overrides": given.override} if getattr(given, "override", None) else {}
    flags = values((*PRUNE_FLAGS, *PRUNE_SWITCHES)) | overrides | _budget(given) | {"solver": solver}
    prune = PruneConfig.model_validate(base.prune.model_dump() | flags)
    named = values(RUN_FLAGS)
    if "class_names" in named:
        named["class_names"] = as_path(named["class_names"]).read_text()
    return _brought(RunConfig.model_validate(base.model_dump() | named | {"prune": prune}))


def command(config: RunConfig, class_names: str = "class-names.txt") -> str:
    """What to type to make a run of that config: `python -m snows prune`, and a flag for each setting that is not its default.

    `class_names`: the file that holds them, where the config has any.
    """
    said: list[str] = []
    prune = config.prune
    for part, names in ((config, RUN_FLAGS), (prune, (*PRUNE_FLAGS, *PRUNE_SWITCHES)), (prune.solver, SOLVER_FLAGS)):
        for name in names:
            value, flag = getattr(part, name), "--" + name.replace("_", "-")
            if value == type(part).model_fields[name].get_default():
                continue
            text = class_names if name == "class_names" else str(value)
            # What begins with a dash would be taken for a flag.
            said += [flag] if name in PRUNE_SWITCHES else [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    for site, pattern in prune.overrides.items():
        said += ["--override", f"{site}={pattern}"]
    return shlex.join(["python", "-m", "snows", "prune", *said])


def _budget(given: argparse.Namespace) -> dict[str, Budget]:
    """The budget of the flags, in the place of a pattern."""
    asked = {name: value for name, flag in BUDGET_FLAGS.items() if (value := getattr(given, flag, None)) is not None}
    if not asked:
        return {}
    if "share" not in asked:
        flag = BUDGET_FLAGS[next(iter(asked))].replace("_", "-")
        raise InputError(f"--{flag} says how a budget is spread, and there is none. Add --budget, such as --budget 6.25%.")
    if given.pattern is not None:
        raise InputError(
            "--budget takes the place of --pattern: it chooses a pattern for each layer. Leave one of the two out."
        )
    if "patterns" in asked:
        asked["patterns"] = " ".join(asked["patterns"])
    return {"pattern": Budget.model_validate(asked)}


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}. Choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _brought(config: RunConfig) -> RunConfig:
    """The config with an archive of images unpacked beside the runs, where a repeated run finds it again."""
    path = as_path(config.data)
    if not path.is_file():
        return config
    from snows.sources import pictures, uploads

    uploads.purge(default_root())
    unpacked = uploads.keep_archive(default_root(), path, path.name)
    if unpacked.left_out:
        sys.stderr.write(f"From {path.name}, {pictures.left_out_words(unpacked.left_out)}.\n")
    return config.model_copy(update={"data": str(unpacked.path)})
