"""Figures: what is drawn, in which color, on which axis."""

import json

import pandas as pd
import pytest

from app import words
from app.charts import layers as layer_charts
from app.charts import palette
from app.charts import solver as solver_charts
from app.tables import run as run_tables
from snows.config import NM, UPDATES
from tests.app import helpers


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def losses(count: int) -> pd.DataFrame:
    return run_tables.site_losses([event for index in range(count) for event in helpers.site_events(index)])


LAYERS = [words.layer(site) for site in helpers.PRUNED]


def test_every_method_has_one_color_of_its_own_that_shows_on_light_and_dark() -> None:
    assert set(palette.COLORS) == set(palette.LABELS) == {"dense", *UPDATES}
    assert len(set(palette.COLORS.values())) == len(palette.COLORS)
    for color in palette.COLORS.values():
        assert contrast(color, "#FCFDFE") >= 3 or color == palette.COLORS["sparsegpt"]
        assert contrast(color, "#10161D") >= 3


@pytest.mark.parametrize("update", UPDATES)
def test_a_stage_bears_its_method_s_color_and_a_method_shows_once(update: str) -> None:
    figure = layer_charts.loss_chart(losses(5), LAYERS, update)
    shown = {trace.name: trace.marker.color for trace in figure.data if trace.name}
    expected = {"none", "least-squares", update}
    assert shown == {palette.LABELS[method]: palette.COLORS[method] for method in expected}


def test_layers_keep_their_places_while_rows_fill() -> None:
    early, late = layer_charts.loss_chart(losses(2), LAYERS, "snows"), layer_charts.loss_chart(losses(21), LAYERS, "snows")
    assert early.layout.yaxis == late.layout.yaxis
    assert early.layout.height == late.layout.height
    assert list(late.layout.yaxis.ticktext) == LAYERS
    assert early.layout.xaxis.type == "log"
    assert "Loss" in early.layout.xaxis.title.text


def test_loss_chart_of_no_layer_yet_and_of_very_many() -> None:
    assert layer_charts.loss_chart(losses(0), LAYERS, "snows").layout.xaxis.type == "log"
    many = layer_charts.loss_chart(losses(3), [f"layer{i}" for i in range(300)], "snows")
    assert len(many.layout.yaxis.ticktext) <= 64


def test_the_same_data_give_the_same_figure() -> None:
    # A live chart is drawn anew only when its JSON differs.
    assert (
        layer_charts.loss_chart(losses(4), LAYERS, "snows").to_json()
        == layer_charts.loss_chart(losses(4), LAYERS, "snows").to_json()
    )


def test_residual_chart_has_a_line_a_newton_step_and_the_tolerance() -> None:
    residuals = run_tables.cg_residuals(helpers.site_events(3))
    figure = solver_charts.residual_chart(residuals, rtol=0.01)
    assert [trace.name for trace in figure.data] == ["Newton step 1", "Newton step 2"]
    # Each step begins at 1, where the one before it ended, and has its band.
    assert [(trace.x[0], trace.y[0]) for trace in figure.data] == [(0, 1.0), (10, 1.0)]
    assert (figure.data[1].x[1], figure.data[1].y[1]) == (11, residuals["residual"][10])
    bands = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert [(band.x0, band.x1) for band in bands] == [(0, 10)]
    assert [note.text for note in figure.layout.annotations] == ["Newton step 1", "2", "tolerance 0.01"]
    assert figure.layout.shapes[-1].y0 == 0.01
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.range[1] >= 0  # 1.0 is in view
    assert not solver_charts.residual_chart(residuals.head(0), rtol=0.01).data


def test_log_axis_survives_zero_and_infinity() -> None:
    frame = pd.DataFrame([(0, "a", "final", 0.0), (1, "b", "final", float("inf"))], columns=["index", "layer", "stage", "loss"])
    axis = layer_charts.loss_chart(frame, ["a", "b"], "snows").layout.xaxis
    assert all(abs(limit) < 400 for limit in axis.range)


def test_pattern_picture_draws_gaps_as_gaps() -> None:
    figure = layer_charts.pattern_picture(run_tables.pattern_grid(NM(n=2, m=4)))
    assert None in json.loads(figure.to_json())["data"][0]["z"][0]
