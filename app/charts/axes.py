"""What all figures have in common: axes, rows, bands. The app and notebooks draw the same ones."""

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from app import words

LINE = "rgba(128, 136, 146, 0.45)"
BAND, _CHOSEN = "rgba(128, 136, 146, 0.09)", "rgba(31, 127, 196, 0.20)"
KEPT = "#5F7F99"
ROW, LEAST_ROWS, _MOST_ROWS_NAMED = 19, 150, 64
ROWS_MARGIN = {"l": 8, "r": 12, "t": 44, "b": 48}  # one for all, so that figures side by side have their rows side by side


def new_figure(height: int, **layout: object) -> go.Figure:
    return go.Figure(
        layout={
            "height": height,
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hoverlabel": {"namelength": -1},
            "dragmode": False,
            **layout,
        }
    )


def log_axis(values: list[float], title: str) -> dict[str, Any]:
    """A log axis over the positive `values`, labeled at powers of ten where it spans much, finer where it spans little."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1e-3, 1.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    pad = 0.06 * (high - low) or 0.3
    every = math.ceil((high - low) / 6) or 1
    decades = range(math.floor(low - pad), math.ceil(high + pad) + 1)
    ticks: list[float] = []
    coarse = (1, 2, 5) if high - low < 2 else (1,)
    for digits in (coarse, range(1, 10), [1 + tenth / 10 for tenth in range(90)]):
        ticks = [digit * 10.0**decade for decade in decades if decade % every == 0 for digit in digits]
        if sum(low - pad <= math.log10(tick) <= high + pad for tick in ticks) >= 2:
            break
    return {
        "type": "log",
        "title": title,
        "range": [low - pad, high + pad],
        "tickvals": ticks,
        "ticktext": [f"{tick:.3g}" for tick in ticks],
        "showgrid": True,
        "zeroline": False,
        "automargin": True,
    }


def named_rows(names: Sequence[str], margin: float = 0.6, **more: object) -> dict[str, object]:
    """An axis of one row a name, downwards; `margin` rows of room above the first and below the last."""
    return {
        "range": [len(names) - 1 + margin, -margin],
        "tickvals": list(range(len(names))),
        "ticktext": [words.in_figure(name) for name in names],
        "showgrid": False,
        "zeroline": False,
        "automargin": True,
        **more,
    }


def rows_axis(layers: list[str], chosen: int | None) -> dict[str, object]:
    """An axis of one row a layer, downwards; the chosen one's name is bold."""
    step = math.ceil(len(layers) / _MOST_ROWS_NAMED) or 1
    names = [f"<b>{name}</b>" if row == chosen else name for row, name in enumerate(map(words.in_figure, layers))]
    return named_rows(layers) | {
        "tickmode": "array",
        "tickvals": list(range(0, len(layers), step)),
        "ticktext": names[::step],
        "ticks": "",
        "showspikes": False,
    }


def mark_rows(figure: go.Figure, blocks: Sequence[str], chosen: int | None) -> None:
    """A faint band behind every second block of rows, and one behind the chosen row. `blocks`: the block of each row."""
    ends = [row for row in range(1, len(blocks) + 1) if row == len(blocks) or blocks[row] != blocks[row - 1]]
    bands = [(first, end, BAND) for first, end in zip(ends[::2], ends[1::2], strict=False)]
    bands += [] if chosen is None else [(chosen, chosen + 1, _CHOSEN)]
    place = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "layer": "below", "line": {"width": 0}}
    figure.layout.shapes = [{**place, "y0": first - 0.5, "y1": end - 0.5, "fillcolor": color} for first, end, color in bands]
