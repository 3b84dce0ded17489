"""app: the app in a browser. It is started as a program of its own; all that is known of it here is where it lies."""

import argparse
import runpy
import sys
from importlib.util import find_spec

from snows.bundled import EXPLORER
from snows.cli.out import FINISHED
from snows.config import InputError

TAKES = ("streamlit", "plotly", "pandas", "jinja2")  # without which there is no page


def app_command(given: argparse.Namespace) -> int:
    """Serve the app until it is ended. Raises `InputError` where only the engine is installed."""
    if missing := [name for name in TAKES if find_spec(name) is None]:
        raise InputError(
            f"The engine is installed without the app, which needs {', '.join(missing)}. "
            "Install it all: pip install 'snows-explorer[app]'"
        )
    sys.argv = ["streamlit", "run", str(EXPLORER), *given.flags]
    runpy.run_module("streamlit", run_name="__main__", alter_sys=True)
    return FINISHED
