"""A figure told in a table, for whoever cannot see or point at it."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from plotly.graph_objects import Figure

MOST_ROWS = 300


@dataclass(frozen=True)
class Told:
    """Texts. `more`: rows that were left out, since nobody would listen to them."""

    head: list[str]
    rows: list[list[str]]
    more: int = 0

    @classmethod
    def of(cls, figure: Figure) -> "Told":
        """A row a point, with the line it is of; a row a cell of a map. Pictures, and marks that only point at another mark,
        are left out."""
        drawn = [trace for trace in figure.data if trace.type in _READERS and not _only_points(trace)]
        if not drawn:
            return cls([], [])
        total = sum(np.size(trace.z if trace.type == "heatmap" else trace.y) for trace in drawn)
        rows = list(islice(chain.from_iterable(_READERS[trace.type](figure, trace) for trace in drawn), MOST_ROWS))
        head = ["Of", _title(figure, drawn[0].xaxis or "x", "Across"), _title(figure, drawn[0].yaxis or "y", "Up")]
        if drawn[0].type == "heatmap":
            head[0] = "Value"
        if not any(row[0] for row in rows):
            head, rows = head[1:], [row[1:] for row in rows]
        return cls(head, rows, total - len(rows))


def _only_points(trace: Any) -> bool:
    return trace.visible is False or (trace.type == "scatter" and trace.hoverinfo == "skip")


def _points(figure: Figure, trace: Any) -> Any:
    x, y = _places(figure, trace.xaxis or "x", trace.x), _places(figure, trace.yaxis or "y", trace.y)
    if (names := _names(trace.customdata, len(x))) is not None:
        x, y = (x, names) if trace.orientation == "h" else (names, y)
    return ([_plain(trace.name or ""), across, up] for across, up in zip(x, y, strict=False))


def _cells(figure: Figure, trace: Any) -> Any:
    rows, columns = np.shape(trace.z)
    x = _places(figure, trace.xaxis or "x", trace.x if trace.x is not None else range(int(trace.x0 or 0), columns + 1))
    y = _places(figure, trace.yaxis or "y", trace.y if trace.y is not None else range(int(trace.y0 or 0), rows + 1))
    return (
        [_said(value), across, up]
        for up, values in zip(y, trace.z, strict=False)
        for across, value in zip(x, values, strict=False)
    )


_READERS = {"scatter": _points, "bar": _points, "heatmap": _cells}


def _axis(figure: Figure, name: str) -> Any:
    return figure.layout[name[0] + "axis" + name[1:]]


def _title(figure: Figure, name: str, otherwise: str) -> str:
    return _plain(_axis(figure, name).title.text or otherwise)


def _places(figure: Figure, name: str, values: Sequence[Any]) -> list[str]:
    """What an axis calls these places."""
    axis = _axis(figure, name)
    names = dict(zip(axis.tickvals or (), axis.ticktext or (), strict=False))
    return [_plain(str(names[value])) if value in names else _said(value) for value in values]


def _names(customdata: Any, count: int) -> list[str] | None:
    """What a chart calls its points, where it does."""
    if customdata is None or len(customdata) != count:
        return None
    first = [value if isinstance(value, str) else value[0] if np.ndim(value) else None for value in customdata]
    texts = [_plain(value) for value in first if isinstance(value, str)]
    return texts if len(texts) == count else None


def _said(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, int | float | np.number) else _plain(str(value))


def _plain(text: str) -> str:
    """Without what Plotly reads as markup."""
    return html.unescape(re.sub(r"</?(?:b|br|sub)\b[^>]*>", " ", text)).strip()
