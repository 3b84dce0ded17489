"""A comparison as one folder that needs nothing else, for a thread or a paper: a page whose figures answer to the mouse, each
figure as SVG and PDF, the answers that changed, tables as CSV and LaTeX, every configuration, and what to type to do it again.

    python -m app.hand_on BATCH [RUN …] --output FOLDER
    python -m app.hand_on recorded --output FOLDER

The page holds Plotly and the figures' data, as a run's report does (`app.report`), and opens without this app and without a
network. What is said is made here, how it looks is in `comparison.html`.
"""

import argparse
import csv
import io
import platform
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kaleido
import pandas as pd
from kaleido.errors import BrowserFailedError, ChromeNotFoundError
from plotly.graph_objects import Figure
from pydantic_core import to_json

from app import report, words
from app.charts import attention as attention_charts
from app.charts import compare as charts
from app.tables import compare
from app.tables.compare import Entry, Measured
from app.work import answers
from snows.bundled import ASSETS
from snows.cli.flags import command
from snows.config import InputError, RunConfig, as_path
from snows.measures.names import MEASURES
from snows.plans import recorded
from snows.plans.comparisons import Row
from snows.plans.words import BEST, LEVEL, by_method
from snows.runs.store import RunStore, default_root

if TYPE_CHECKING:
    from snows.measures.comparison import Flip

TITLE = "Which method, which K, for this network?"
RECORDED = "recorded"
# The licence of a set of images that is on record here; of others nobody said.
_LICENCES = {"fashion-mnist": ASSETS / "LICENSE-fashion-mnist.txt"}
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas", "plotly")
# As `document.html` draws a figure that is saved.
_INK, _GRID = "#16222E", {"gridcolor": "rgba(128, 136, 146, 0.22)", "zerolinecolor": "rgba(128, 136, 146, 0.22)"}
_MOST_ASKED, _ANSWERED, _MOST_PICTURES = 10, 1_000, 24
_PAGE = "index.html"


@dataclass(frozen=True)
class Comparison:
    """What is handed on. `source`: where its figures come from, in a sentence. `repeat`: what makes all of it again, where one
    command does; else there is a command a run."""

    source: str
    measured: Sequence[Measured]
    repeat: str = ""


def of_runs(entries: Sequence[Entry]) -> Comparison:
    """The finished ones of these runs. Raises `InputError` where none is."""
    finished = compare.finished(entries)
    if not finished:
        raise InputError("None of these runs has finished, so there is nothing to hand on yet. Wait for one, or choose others.")
    source = f"{words.counted(len(finished), 'run')}, as measured when each ended."
    return Comparison(source, finished)


def of_recorded(measured: Sequence[Measured]) -> Comparison:
    """The comparison that comes with the app."""
    return Comparison(
        f"{len(measured):,} measurements, recorded by {recorded.COMMAND} of SNOWS Explorer: each on 512 calibration "
        "images and the first 5,000 test images. Weights kept, size and multiply-adds follow from pattern and shapes; time is "
        "that of one processor core, over the seeds that have it on record.",
        measured,
        recorded.COMMAND,
    )


def stem(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "network"


def files(comparison: Comparison, *, draw: bool = True) -> dict[str, bytes]:
    """The folder's files by their names: the page, `index.html`; each network's tables; its figures, where `draw` lets a
    browser be started for them and there is one; every measurement with its configuration, a line each; the commands; the
    images' licence where it is known.

    Opens the networks of runs that have weights, and asks them, which takes a while.
    """
    made: dict[str, bytes] = {}
    networks = compare.networks(comparison.measured)
    titles, sections = compare.network_titles(networks), []
    figures: dict[str, Figure] = {}
    names = {key: stem(name) for key, name in words.distinct(titles).items()}
    for key, ones in networks.items():
        rows = compare.rows(ones)
        tables = _tables(names[key], rows)
        made |= {f"tables/{name}": text.encode() for name, text in tables.items()}
        section = _section(titles[key], ones, rows)
        sections.append(section | {"tables": sorted(tables)})
        figures |= {f"{names[key]}-{number}": figure for number, (figure, _) in enumerate(section["figures"], 1)}
    drawn, undrawn = drawings(figures) if draw else ({}, "an app that is open to visitors starts no browser to draw them")
    made |= {f"figures/{name}": content for name, content in drawn.items()}
    configs = [_without_places(one.config) for one in comparison.measured]
    pairs = zip(configs, comparison.measured, strict=True)
    lines = ({"config": config.model_dump(mode="json"), "metrics": dict(one.metrics)} for config, one in pairs)
    made["measurements.jsonl"] = b"\n".join(to_json(line, inf_nan_mode="null") for line in lines) + b"\n"
    commands = list(dict.fromkeys(map(command, configs)))
    made["commands.sh"] = ("\n".join(commands) + "\n").encode()
    class_names = next((one.config.class_names for one in comparison.measured if one.config.class_names), ())
    if class_names:
        made["class-names.txt"] = ("\n".join(class_names) + "\n").encode()
    licences = []
    for data in dict.fromkeys(one.config.data for one in comparison.measured):
        known = _LICENCES.get(data)
        if known is not None:
            made[known.name] = known.read_bytes()
        licences.append((Path(data).name or data, known.name if known else "", known.read_text() if known else ""))
    page = report.template("comparison.html").render(
        name=TITLE,
        about=[f"handed on {datetime.now():%d %B %Y}".replace(" 0", " "), words.counted(len(titles), "network")],
        source=comparison.source,
        sections=sections,
        repeat=comparison.repeat,
        commands=commands,
        settings=_in_common(configs),
        placeless=configs != [one.config for one in comparison.measured],
        versions=_versions(),
        licences=licences,
        legend=(BEST, LEVEL),
        undrawn=undrawn,
        plotly=report.plotly_script(),
    )
    return {_PAGE: page.encode()} | made


# --- the page ---


def _section(title: str, ones: Sequence[Measured], rows: list[Row]) -> dict[str, Any]:
    several = len(compare.patterns(rows)) > 1
    beside = compare.beside_table(rows)[1] if several else pd.DataFrame()
    texts = compare.table(rows)[1]
    return {
        "title": title,
        "verdict": compare.verdict(rows, write=str, bold=""),
        "figures": _figures(rows),
        "beside": (list(beside.columns), beside.to_numpy().tolist()) if len(beside) > 1 else None,
        "judged": compare.judged_by(rows),
        "head": list(texts.columns),
        "rows": texts.to_numpy().tolist(),
        "answers": _answers(ones, rows),
    }


def _figures(rows: list[Row]) -> list[tuple[Any, str]]:
    drawn = []
    for cost in compare.costs(rows):
        points, value = compare.tradeoff(rows, cost)
        marks = compare.drawn_marks(rows, points)
        says = f"{MEASURES[value].title} against {MEASURES[cost].title.lower()}. The line joins what no other beats in both. "
        figure = charts.tradeoff_chart(
            *(points, cost, value),
            dense=compare.dense_value(rows, value),
            shown_from=compare.shown_from(points),
            legend=marks,
            height=340 + 22 * len(marks),
        )
        drawn.append((figure, says + compare.not_drawn(points, value)))
    points = compare.differences(rows) if len(compare.patterns(rows)) == 1 else pd.DataFrame()
    if len(points) > 1:
        figure = charts.differences_chart(points, compare.judged_by(rows), points["said"].iloc[0])
        says = (
            "How far from the best. Bars: standard deviation over seeds, seed by seed where both have the same. Filled: level."
        )
        drawn.append((figure, says))
    return drawn


def _without_places(config: RunConfig) -> RunConfig:
    """The configuration with each file or folder of this machine named by its last part: where it lies is nobody's business."""
    changed = {name: _last(path) for name in ("data", "checkpoint") if (path := getattr(config, name)) is not None}
    prune = config.prune.model_copy(update={"mask": _last(config.prune.mask)})
    return config.model_copy(update={**changed, "prune": prune})


def _last(path: str) -> str:
    """The last part of a path; what is none stays."""
    return as_path(path).name or "images" if "/" in path else path


def _in_common(configs: Sequence[RunConfig]) -> str:
    """What all configurations have in common, as JSON."""
    whole = [config.model_dump(mode="json") for config in configs]

    def alike(parts: list[Any]) -> Any:
        if all(isinstance(part, dict) for part in parts):
            shared = {key: alike([part.get(key) for part in parts]) for key in parts[0]}
            return {key: value for key, value in shared.items() if value is not None}
        return parts[0] if all(part == parts[0] for part in parts) else None

    return to_json(alike(whole), indent=2).decode()


def _versions() -> list[tuple[str, str]]:
    return [("Python", platform.python_version()), *((name, version(name)) for name in _PACKAGES)]


def drawings(figures: Mapping[str, Figure]) -> tuple[dict[str, bytes], str]:
    """Each figure as SVG and as PDF, dark on white, by file names; or none of them, and the reason in a sentence.

    Kaleido draws as the page does, with Plotly in a Chrome or Chromium that is installed, which not every machine has.
    """
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for name, figure in figures.items():
            paper = Figure(figure).update_layout(
                font={"family": "sans-serif", "size": 12, "color": _INK}, paper_bgcolor="white"
            )
            paper.update_xaxes(**_GRID).update_yaxes(**_GRID)
            size = {"width": 900, "height": paper.layout.height}
            for kind in ("svg", "pdf"):
                jobs.append({"fig": paper.to_dict(), "path": Path(folder, f"{name}.{kind}"), "opts": {"format": kind, **size}})
        try:
            # Without MathJax, which would be fetched from elsewhere.
            kaleido.write_fig_from_object_sync(jobs, kopts={"mathjax": False})
        except ChromeNotFoundError:
            return {}, "no Chrome or Chromium, which draws them, is installed on the machine that wrote this page"
        except BrowserFailedError:
            return {}, "the browser that draws them did not start on the machine that wrote this page"
        return {job["path"].name: job["path"].read_bytes() for job in jobs}, ""


# --- the answers that changed ---


def _answers(ones: Sequence[Measured], rows: Sequence[Row]) -> dict[str, Any]:
    """What the networks answer differently from the dense one, of the first run of each row; or why that is not here."""
    with_weights = [one for row in rows[:_MOST_ASKED] if isinstance(one := ones[row.runs[0]], Entry)]
    if not with_weights:
        return {"missing": "These are measurements without runs, so there are no networks to ask for their answers."}
    try:
        return _asked(with_weights)
    except InputError as error:
        configs = [one.config for one in with_weights]
        places = [path for c in configs for path in (c.data, c.checkpoint or "", c.prune.mask)]
        return {"missing": words.without_paths(f"The answers that changed are not here: {error}", places)}


def _asked(entries: Sequence[Entry]) -> dict[str, Any]:
    from snows.measures import comparison, metrics
    from snows.runs.inspection import Inspection
    from snows.sources.data import as_pixels

    first = Inspection.open(entries[0].run)
    networks = {entry.label: first.beside(entry.run) if place else first for place, entry in enumerate(entries)}
    count = answers.affordable(answers.seconds_an_image(first), 1 + len(entries), _ANSWERED)
    images = first.images.evaluation[:count]
    labels = None if first.images.labels is None else first.images.labels[: len(images)]
    dense = answers.logits(first, "dense", images)
    flips: dict[str, Sequence[Flip]] = {}
    right = {}
    for label, network in networks.items():
        given = answers.logits(network, "pruned", images)
        flips[label] = comparison.flips(dense, given, labels)
        if labels is not None:
            right[label] = metrics.right(given, labels)
    counts = compare.flip_counts(flips, len(images))
    tests, best = [], ""
    if len(right) > 1:
        best = max(right, key=lambda label: int(right[label].sum()))
        against = {label: comparison.sign_test(right[best], of) for label, of in right.items() if label != best}
        tests = [
            (row.against, str(row.best_only), str(row.other_only), f"{100 * row.chance:.2g} %", row.verdict)
            for row in compare.sign_tests(against).itertuples()
        ]
    changed = compare.flipped(flips, ["lost"] if labels is not None else ()).head(_MOST_PICTURES)
    classes = first.model.class_names

    def named(answer: object) -> str:
        if answer is None or pd.isna(answer):
            return ""
        place = int(str(answer))
        return "no answer" if place == metrics.NO_ANSWER else classes[place] if classes else f"output {place}"

    pictures = [
        (
            attention_charts.picture_address(as_pixels(images[row["image"]]), longest_edge=112),
            f"image {row['image']}",
            named(row["label"]),
            [(label, named(row[label])) for label in flips if named(row[label])],
        )
        for row in changed.to_dict("records")
    ]
    return {
        "missing": "",
        "count": words.counted(len(images), "evaluation image"),
        "counts": [
            (row.network, f"{100 * row.changed:.1f} %", str(row.lost), str(row.won), str(row.other))
            for row in counts.itertuples()
        ],
        "best": best,
        "tests": tests,
        "pictures": pictures,
    }


# --- the tables ---


def _tables(name: str, rows: list[Row]) -> dict[str, str]:
    """A network's tables: every number of every row as CSV, what the page shows as LaTeX."""
    made = {f"{name}.csv": _csv(rows), f"{name}.tex": _latex(compare.table(rows)[1])}
    beside = compare.beside_table(rows)[1]
    if len(compare.patterns(rows)) > 1 and len(beside) > 1:
        made[f"{name}-from-the-best.tex"] = _latex(beside)
    return made


def _csv(rows: list[Row]) -> str:
    """A line a row: method, pattern, seeds, then the mean and the standard deviation over seeds of each measure in its own unit
    (shares of 1, bytes, seconds), and the distance from the best of the pattern. What was not measured is empty."""
    measures = [name for name in MEASURES if any(name in row.values for row in rows)]
    behind = {id(one.row): one.difference for of_method in compare.behind_the_best(rows).values() for one in of_method.values()}
    value = compare.judged_by(rows)
    method_of = {id(row): method for method, of_method in by_method(rows).items() for row in of_method.values()}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    spread_heads = [head for name in (*measures, "from_best") for head in (name, f"{name}_deviation")]
    writer.writerow(["method", "pattern", "runs", *spread_heads, "mark"])
    for row in rows:
        spreads = [row.values.get(name) for name in measures] + [behind.get(id(row))]
        numbers = [number for spread in spreads for number in ((spread.mean, spread.deviation) if spread else (None, None))]
        mark = "best" if value in row.best else "level" if value in row.level else ""
        line = [method_of[id(row)], str(row.config.prune.pattern), len(row.runs), *numbers, mark]
        writer.writerow(["" if cell is None else _safe(cell) if isinstance(cell, str) else cell for cell in line])
    return file.getvalue()


def _safe(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


# What LaTeX has signs of its own for; the marks of a column are mathematics.
_SIGNS = {BEST: r"$\star$", LEVEL: r"$\circ$", "±": r"$\pm$", "\N{MINUS SIGN}": "$-$", "·": r"$\cdot$"}


def _latex(texts: pd.DataFrame) -> str:
    """The table for LaTeX, with every text escaped; it needs the package booktabs."""
    made = texts.astype(str).style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    text = made.to_latex(hrules=True, column_format="l" + "r" * (texts.shape[1] - 1))
    for sign, macro in _SIGNS.items():
        text = text.replace(sign, macro)
    return "% \\usepackage{booktabs}\n" + text


# --- out ---


def packed(made: Mapping[str, bytes], folder: str) -> bytes:
    """The files as a zip of one folder."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in made.items():
            archive.writestr(f"{folder}/{name}", content)
    return file.getvalue()


def write(made: Mapping[str, bytes], folder: Path) -> None:
    """The files into `folder`, which is made. Raises `InputError` where it holds anything already, `OSError` for a disk that
    refuses."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder. Name another one, or empty it, so that nothing of yours is lost.")
    for name, content in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _named(names: Iterable[str]) -> Comparison:
    """What was named in a shell: the recorded comparison, a batch, runs, or several of these."""
    names = list(names)
    if names == [RECORDED]:
        return of_recorded(recorded.comparison())
    store = RunStore(default_root())
    batches = {comparison.id: comparison for comparison in store.comparisons()}
    runs = [run for name in names for run in (batches[name].runs() if name in batches else [store.get(name)])]
    entries = compare.entries(dict.fromkeys(runs))
    return of_runs(entries)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a comparison's folder, and return the exit code: 0 written, 1 the disk refused, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m app.hand_on",
        description="Write a comparison as one folder that needs nothing else: a page with figures, tables, configurations.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="A batch, runs, or `recorded`: the comparison that comes with the app."
    )
    parser.add_argument(
        "--output", type=as_path, required=True, metavar="FOLDER", help="The folder to write; it must be empty."
    )
    given = parser.parse_args(arguments)
    try:
        write(files(_named(given.names)), given.output)
    except KeyError as error:
        return report.fail(error.args[0], report.BAD_INPUT)
    except InputError as error:
        return report.fail(str(error), report.BAD_INPUT)
    except OSError as error:
        sentence = f"{error.filename or given.output} cannot be used: {error.strerror}. Check the path and the free space."
        return report.fail(sentence, report.FAILED)
    sys.stdout.write(f"{given.output / _PAGE}\n")
    return report.FINISHED


if __name__ == "__main__":
    sys.exit(main())
