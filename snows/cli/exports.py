"""export: a finished run as a file or a folder for elsewhere."""

import argparse
import sys
from pathlib import Path

from snows.cli.flags import command
from snows.cli.out import FINISHED
from snows.cli.runs import get_run
from snows.config import InputError
from snows.plans.exports import FORMS, export, public, push
from snows.runs.store import RunStore, default_root

_OF_DTYPE = ("packed", "hub")


def export_command(given: argparse.Namespace) -> int:
    run = get_run(RunStore(default_root()), given.run)
    if given.push and given.format != "hub":
        raise InputError("--push sends a folder for the hub. Add --format hub.")
    if given.dtype and given.format not in _OF_DTYPE:
        raise InputError(f"--dtype is for packed files (--format {' or '.join(_OF_DTYPE)}). Leave it out.")
    output: Path = given.output or Path(run.id + FORMS[given.format].ending)
    export(run, given.format, output, given.dtype or "float32", command(public(run.config())))
    sys.stdout.write(f"{output}\n")
    if given.push:
        sys.stdout.write(f"{push(output, given.push)}\n")
    return FINISHED
