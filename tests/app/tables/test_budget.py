"""A budget as data frames, and its figure."""

import pytest

from app.charts import budget as charts
from app.charts.told import Told
from app.tables import budget as tables
from snows.events import BudgetLayer

CURVE = {"1:16": 0.5, "1:8": 0.125, "1:4": 0.03125}
LAYERS = [
    BudgetLayer(name="stem.weight", kind="conv2d", shape=(16, 16, 3, 3), positions=64, curve=CURVE),
    BudgetLayer(name="a<b.weight", kind="linear", shape=(16, 16), positions=1, curve=dict(CURVE)),
    BudgetLayer(name="head.weight", kind="linear", shape=(4, 16), positions=1),
]
PATTERNS = {"stem.weight": "1:8", "a<b.weight": "dense", "head.weight": "1:16"}


def test_a_row_a_layer() -> None:
    frame = tables.given(LAYERS, PATTERNS, own={"head.weight"})
    assert frame["layer"].tolist() == ["stem", "a<b", "head"]
    assert frame["keeps"].tolist() == ["1:8", "dense", "1:16"]
    assert frame["kept"].tolist() == [0.125, 1.0, 0.0625]
    assert frame["loss"].tolist()[:2] == [0.125, 0.0]
    assert frame["loss"].isna().tolist() == [False, False, True]  # nothing was measured of it
    assert frame["own"].tolist() == [False, False, True]
    assert tables.sentence(frame) == "What each layer keeps: from 6.25 % of head to 100 % of a<b"
    assert tables.sentence(frame[:1]) == "Each layer keeps 12.5 % of its weights"


def test_a_point_a_pattern() -> None:
    frame = tables.alternatives(LAYERS, PATTERNS, {"1:16", "1:4"})
    assert list(frame.itertuples(index=False, name=None)) == [
        (0, "1:16", 0.5, False),
        (0, "1:8", 0.125, True),
        (0, "1:4", 0.03125, False),
        (1, "1:16", 0.5, False),
        (1, "1:4", 0.03125, False),
    ]
    assert len(tables.alternatives(LAYERS, PATTERNS)) == 6


def test_the_figure_says_what_each_layer_keeps_and_why() -> None:
    given, alternatives = tables.given(LAYERS, PATTERNS, {"head.weight"}), tables.alternatives(LAYERS, PATTERNS)
    figure = charts.shares(given, alternatives)
    bars = figure.data[0]
    assert list(bars.x) == pytest.approx([12.5, 100, 6.25])
    assert list(bars.text) == ["1:8", "dense", "1:16 (yours)"]
    assert figure.layout.yaxis.ticktext[1] == "a&lt;b"
    chosen = next(trace for trace in figure.data if trace.name == "gets")
    assert list(chosen.y) == [0]
    assert list(chosen.customdata) == ["1:8: error 0.125"]
    told = Told.of(figure)
    assert ["keeps", "12.5", "stem"] in told.rows
    assert ["gets", "1:8: error 0.125", "stem"] in told.rows
    assert len(charts.shares(given, alternatives[:0]).data) == 1
