"""The first screen's curve and the bars at a run's end."""

import math

import pandas as pd
import pytest

from app.charts import play
from app.charts.palette import COLORS
from app.tables.play import Ending

LEVELS = pd.DataFrame(
    [("dense", 1.0, 0.94, 0.94), ("2:4", 0.5, 0.7, 0.93), ("1:8", 0.125, 0.1, 0.92)],
    columns=["pattern", "kept", "cut", "refitted"],
)


@pytest.mark.parametrize(
    ("pattern", "refitted", "x", "y", "color"),
    [("dense", False, 100, 94, "dense"), ("1:8", False, 12.5, 10, "none"), ("1:8", True, 12.5, 92, "snows")],
)
def test_the_dot_is_where_one_is(pattern: str, refitted: bool, x: float, y: float, color: str) -> None:
    figure = play.accuracy_curve(LEVELS, pattern, refitted, 0.1)
    cut, fitted, dot = figure.data
    assert list(cut.y) == pytest.approx([94, 70, 10])
    assert list(fitted.y) == pytest.approx([94, 93, 92])
    assert cut.line.dash != fitted.line.dash
    assert cut.marker.symbol != fitted.marker.symbol
    assert (dot.x[0], dot.y[0]) == (pytest.approx(x), pytest.approx(y))
    assert dot.marker.line.color == COLORS[color]
    (number,) = [note for note in figure.layout.annotations if "%" in note.text]
    assert number.text == f"<b>{y:.1f} %</b>"
    assert number.x == pytest.approx(math.log10(x))
    first, last = figure.layout.xaxis.range
    assert first > math.log10(100)
    assert last < math.log10(12.5)


def test_a_bar_has_its_methods_color_and_its_number() -> None:
    bars = Ending(0.938, 0.11, 0.933, True).bars("snows")
    (bar,) = play.result_bars(bars, "Accuracy (%)").data
    assert list(bar.x) == pytest.approx([93.8, 11, 93.3])
    assert list(bar.text) == ["<b>93.8 %</b>", "<b>11.0 %</b>", "<b>93.3 %</b>"]
    assert list(bar.marker.color) == [COLORS["dense"], COLORS["none"], COLORS["snows"]]
