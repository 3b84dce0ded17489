"""A run as one HTML file that needs nothing else: what it did, its figures, every number behind them, its exact settings.

    python -m app.report RUN [--output FILE]

The file holds Plotly and the figures' data, so that it opens without a network, years from now. It is readable without scripts
too: every figure has its numbers in a table beside it. What is said is made here, how it looks is in `report.html`.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs
from pydantic import ValidationError

from app import words
from app.charts import layers as layer_charts
from app.tables import layers
from app.tables import run as run_tables
from app.tables import solver as solver_tables
from snows.config import InputError, RunConfig, as_path, explain
from snows.events import Event, RunFailed
from snows.measures.names import MEASURES, duration, number, said
from snows.plans.words import name_of
from snows.runs.store import Run, RunStore, default_root

_TILES = ("accuracy_dense", "accuracy_masked", "accuracy", "agreement_masked", "agreement", "density", "seconds")
_STAGES = {"mask_only": "Mask only", "least_squares": "Least squares", "final": "At the end"}
FINISHED, FAILED, BAD_INPUT = 0, 1, 2


def report(run: Run) -> str:
    """The run as HTML. Raises `ValidationError` for one that this version cannot read."""
    config, (events, _), labels = run.config(), run.events(), run.labels()
    state = run.state_after(events[-1] if events else None)
    progress = run_tables.progress(events, events[-1].time if events else 0.0)
    made = datetime.fromtimestamp(run.created()).strftime("%d %B %Y, %H:%M").lstrip("0")
    return template("report.html").render(
        name=name_of(run),
        about=[run.id, made, state, *labels.tags],
        did=_did(config, progress),
        tiles=_tiles(run),
        notes=_notes(events, state, progress),
        layers=_layers(events, config, progress),
        solver=_solver(events, config),
        left_dense=_left_dense(progress),
        settings=config.model_dump_json(indent=2),
        log=[(f"{row.after:.1f} s", row.layer, row.what, row.status) for row in run_tables.log(events)[::-1].itertuples()],
        plotly=plotly_script(),
    )


def plotly_script() -> Markup:
    """Plotly's own script, from the installed package: the one thing in a page that may act."""
    return Markup(get_plotlyjs())


def template(name: str) -> Template:
    """A page of this folder, in which every value is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    # `tojson` escapes what could end the script that a figure's data stand in; Plotly knows how to write arrays and NaN.
    environment.policies["json.dumps_function"] = _figure_json
    environment.policies["json.dumps_kwargs"] = {}
    return environment.get_template(name)


def _figure_json(figure: Figure) -> str:
    return figure.to_json()


# --- the parts ---


def _did(config: RunConfig, progress: run_tables.Progress) -> str:
    return (
        f"{words.pattern_words(config.prune.pattern)}, in {words.counted(len(progress.sites), 'layer')} of {config.model}; "
        f"{words.counted(progress.done, 'layer')} finished, on {config.num_calibration:,} calibration images."
    )


def _tiles(run: Run) -> list[tuple[str, str]]:
    metrics = run.metrics() or {}
    return [(MEASURES[name].title, said(name, metrics)) for name in _TILES if name in metrics]


def _notes(events: list[Event], state: str, progress: run_tables.Progress) -> list[tuple[str, bool]]:
    """What to know beside the result, and whether it is bad news."""
    last = events[-1] if events else None
    notes = [(last.message, True)] if isinstance(last, RunFailed) else []
    if state not in ("finished", "failed"):
        notes.append((f"The run is {state}: what follows is how far it has come.", False))
    return notes + [(note, False) for note in progress.notes]


def _layers(events: list[Event], config: RunConfig, progress: run_tables.Progress) -> dict[str, Any] | None:
    finished = layers.finished(events)
    if not finished:
        return None
    names = [words.layer(site) for site in progress.sites]
    blocks = [layers.block(name) for name in names]
    losses, held_back = (layers.window_losses(events, True, held_back=unseen) for unseen in (False, True))
    figures = [
        (
            layer_charts.loss_chart(
                losses, names, config.prune.update, title=MEASURES["relative_loss"].axis, blocks=blocks, held_back=held_back
            ),
            "Error of each layer's window, relative to the values that the dense network has there: with the mask only, after "
            "an exact fit of the layer's own output, and at the end. 1 would be as wrong as answering zero."
            + ("" if held_back.empty else " Ticks: the same on images that nothing was fitted on."),
        )
    ]
    errors = layers.window_errors(events)
    if errors["k"].max() > 0:
        figures.append(
            (
                layer_charts.window_chart(errors, names, "final", config.prune.update, blocks=blocks),
                "The error at the end along each layer's window: at the layer itself (n₀) and at each of the operations after "
                "it. The stronger the color, the worse.",
            )
        )
    rows = []
    for site in finished:
        by_stage = losses[losses["index"] == site.index].set_index("stage")["loss"]
        rows.append(
            (
                words.layer(site.site),
                MEASURES["density"].say(site.density),
                *(number(by_stage[stage]) if stage in by_stage else "" for stage in _STAGES),
                duration(site.seconds),
                str(site.num_products),
                words.words(site.status),
            )
        )
    return {
        "figures": figures,
        "head": ("Layer", MEASURES["density"].title, *_STAGES.values(), MEASURES["seconds"].title, "Products", "Status"),
        "rows": rows,
        "statuses": list({words.words(site.status): site.message for site in finished}.items()),
    }


def _solver(events: list[Event], config: RunConfig) -> dict[str, Any] | None:
    steps = solver_tables.newton_steps(events)
    if not layers.finished(events) or steps.empty:
        return None
    rows = [
        (
            step["layer"],
            str(step["step"]),
            number(step["before"]),
            number(step["loss"]),
            str(step["iterations"]),
            number(step["residual"]),
            number(step["step_size"]) if step["step_size"] > 0 else "none",
            words.words(step["cg"]),
        )
        for step in steps.to_dict("records")
    ]
    return {
        "findings": solver_tables.findings(steps, config.prune.solver),
        "head": ("Layer", "Step", "Loss before", "Loss after", "CG iterations", "Residual", "Step size", "CG status"),
        "rows": rows,
    }


def _left_dense(progress: run_tables.Progress) -> list[tuple[str, str]]:
    few, many = run_tables.left_dense(progress.skipped)
    return [*few.items(), *((", ".join(names), reason) for reason, names in many.items())]


# --- from a shell ---


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one run's report, and return the exit code: 0 written, 1 the disk refused, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m app.report",
        description="Write a run as one HTML file with its figures, which needs nothing else.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", metavar="RUN", help="A run id, as `python -m snows list` prints it, or the path of a run's folder."
    )
    parser.add_argument("--output", type=as_path, metavar="FILE", help="The file to write. Default: RUN.html.")
    given = parser.parse_args(arguments)
    folder = as_path(given.run)
    try:
        run = Run(folder.resolve()) if (folder / "config.json").exists() else RunStore(default_root()).get(given.run)
        output = given.output or Path(f"{run.id}.html")
        output.write_bytes(report(run).encode())
    except KeyError as error:
        return fail(error.args[0], BAD_INPUT)
    except ValidationError as error:
        cause = "a file in its folder was written by another version, or is damaged"
        return fail(f"Run {given.run} cannot be read: {cause}. {explain(error)}", BAD_INPUT)
    except InputError as error:
        return fail(f"Run {given.run} cannot be read. {error}", BAD_INPUT)
    except ValueError as error:
        return fail(f"Run {given.run} cannot be read: {error}. A file in its folder is damaged.", BAD_INPUT)
    except OSError as error:
        sentence = f"{error.filename or given.run} cannot be used: {error.strerror}. Check the path and the free space."
        return fail(sentence, FAILED)
    sys.stdout.write(f"{output}\n")
    return FINISHED


def fail(sentence: str, code: int) -> int:
    """Say a sentence on stderr, and return the exit code."""
    sys.stderr.write(sentence + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
