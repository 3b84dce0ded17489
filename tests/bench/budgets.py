"""Budgets: one share of the weights for the whole network, by every way to spread it, over seeds, on the bundled networks.

As in the quality table a measurement is one line (`assets/bench/budgets.jsonl`) and is not repeated. What is left is filled by
SNOWS, K = 3, with a refined mask; accuracy is over the first 5,000 test images.
"""

import statistics
from collections.abc import Iterable, Sequence

from snows.plans import recorded
from tests.bench.quality import Row, cell, measure_model
from tests.bench.readme import put
from tests.bench.records import read

RESULTS = recorded.FOLDER / "budgets.jsonl"
SNOWS = Row("", "snows", 3, "dense", "window")
TOGETHER = SNOWS._replace(joint="network")
# A column: how much of the weights stays, of what a layer gets one, and the pattern that gives all layers the same.
BUDGETS = {"1/16, from N:M": ("budget 6.25%", "1:16"), "1/20, from any": ("budget 5%, from any", "95%")}
SPREAD = {
    "the same for all": None,
    "Erdős-Rényi": "erdos-renyi",
    "OWL": "owl",
    "AlphaPruning": "alphapruning",
    "by loss": "loss",
}
ROWS = [(name, SNOWS) for name in SPREAD] + [(name, TOGETHER) for name in ("the same for all", "by loss")]


def _pattern(budget: str, spread: str) -> str:
    """The pattern of a cell, as `--pattern` takes it."""
    share, alike = BUDGETS[budget]
    by = SPREAD[spread]
    if by is None:
        return alike
    first, *rest = share.split(", ")
    return ", ".join([first, *([] if by == "loss" else [by]), *rest])


def measure(names: Sequence[str], seeds: Iterable[int], *, fresh: bool = False) -> None:
    """Measure what is missing."""
    if fresh:
        RESULTS.unlink(missing_ok=True)
    known = {(r["model"], r["seed"], r["pattern"], r["joint"]) for r in read(RESULTS)}
    for seed in seeds:
        for name in names:
            cells = [(_pattern(budget, spread), row) for spread, row in ROWS for budget in BUDGETS]
            missing = [(pattern, row) for pattern, row in cells if (name, seed, pattern, row.joint) not in known]
            if missing:
                measure_model(name, seed, missing, RESULTS)


def table(records: list[dict]) -> str:
    """The measurements as Markdown, networks and budgets across."""
    names = list(dict.fromkeys(r["model"] for r in records))
    columns = [(name, budget) for name in names for budget in BUDGETS]
    cells = {
        (place, column): [
            r["accuracy"]
            for r in records
            if (r["model"], r["pattern"], r["joint"]) == (column[0], _pattern(column[1], spread), row.joint)
        ]
        for place, (spread, row) in enumerate(ROWS)
        for column in columns
    }
    best = {
        column: max((statistics.mean(v) for (_, other), v in cells.items() if other == column and v), default=None)
        for column in columns
    }
    head = ["spread", "joint fit", *(f"{name}, {budget}" for name, budget in columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for place, (spread, row) in enumerate(ROWS):
        values = [cell(cells[place, column], best[column]) for column in columns]
        lines.append("| " + " | ".join([spread, "yes" if row.joint != "none" else "", *values]) + " |")
    return "\n".join(lines)


def write_table() -> None:
    """Put the table into the README."""
    put("budgets", table(read(RESULTS)))
