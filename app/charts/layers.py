"""Figures of layers: losses, windows, masks, weights, channels, patterns."""

import base64
import io
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from app.charts.axes import (
    BAND,
    KEPT,
    LEAST_ROWS,
    LINE,
    ROW,
    ROWS_MARGIN,
    log_axis,
    mark_rows,
    named_rows,
    new_figure,
    rows_axis,
)
from app.charts.palette import COLORS, LABELS, SYMBOLS, stages
from snows.measures.names import MEASURES


def joint_chart(errors: pd.DataFrame) -> go.Figure:
    """How far the network is from the dense one at each value that a joint fit matches: an open mark before it, a full one
    after it, as far as it has come.

    `errors`: columns name, before, after (relative errors; NaN while it is not known)."""
    names = errors["name"].tolist()
    figure = new_figure(
        height=max(ROW * len(names), LEAST_ROWS) + 100,
        margin=ROWS_MARGIN,
        xaxis=log_axis([*errors["before"], *errors["after"].dropna()], "Error ÷ target"),
        yaxis=named_rows(names),
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
        hovermode="y unified",
    )
    for name, column, symbol in (("Layer by layer", "before", "circle-open"), ("Then together", "after", "circle")):
        figure.add_scatter(
            x=errors[column].tolist(),
            y=list(range(len(names))),
            name=name,
            mode="markers",
            marker={"color": COLORS["snows"], "symbol": symbol, "size": 9, "line": {"width": 2, "color": COLORS["snows"]}},
            hovertemplate="%{x:.3g}",
        )
    return figure


def joint_loss_chart(losses: pd.DataFrame) -> go.Figure:
    """A joint fit's way down. `losses`: columns seconds, loss, one row for each pass over the images."""
    figure = new_figure(
        height=260,
        margin={"l": 8, "r": 12, "t": 24, "b": 8},
        xaxis={"title": "Seconds", "rangemode": "tozero", "showgrid": False, "automargin": True},
        yaxis=log_axis(losses["loss"].tolist(), "Loss ÷ target, summed"),
        showlegend=False,
    )
    figure.add_scatter(
        x=losses["seconds"].tolist(),
        y=losses["loss"].tolist(),
        mode="lines+markers",
        line={"color": COLORS["snows"], "width": 2},
        marker={"size": 6},
        hovertemplate="%{x:.1f} s: %{y:.3g}",
    )
    return figure


def loss_chart(
    losses: pd.DataFrame,
    layers: list[str],
    update: str,
    *,
    title: str = MEASURES["loss"].axis,
    blocks: Sequence[str] = (),
    chosen: int | None = None,
    held_back: pd.DataFrame | None = None,
) -> go.Figure:
    """Each layer's loss by stage, one row a layer in network order.

    `losses`: columns index, layer, stage, loss; `held_back` likewise, of images that nothing was fitted on: a tick each.
    `layers`: all that the run will prune; the axis stands still while rows fill.
    `blocks`: the block each layer belongs to. `chosen`: the row to mark.
    """
    method_of = stages(update)
    unseen = losses.head(0) if held_back is None else held_back
    figure = new_figure(
        height=max(ROW * len(layers), LEAST_ROWS) + 100,
        margin=ROWS_MARGIN,
        xaxis=log_axis([*losses["loss"], *unseen["loss"]], title),
        yaxis=rows_axis(layers, chosen),
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
        hovermode="y unified",
    )
    mark_rows(figure, blocks, chosen)
    every = losses if unseen.empty else pd.concat([losses, unseen])
    spans = every.groupby("index")["loss"].agg(["min", "max"])
    figure.add_scatter(
        x=[x for low, high in spans.to_numpy() for x in (low, high, None)],
        y=[y for index in spans.index for y in (index, index, None)],
        mode="lines",
        line={"color": LINE, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    drawn_methods: set[str] = set()
    for stage, method in method_of.items():
        rows = losses[losses["stage"] == stage]
        if rows.empty or method in drawn_methods:
            continue
        drawn_methods.add(method)
        figure.add_scatter(
            x=rows["loss"].tolist(),
            y=rows["index"].tolist(),
            name=LABELS[method],
            mode="markers",
            marker={
                "color": COLORS[method],
                "symbol": SYMBOLS[method],
                "size": 9,
                "line": {"width": 2, "color": COLORS[method]},
            },
            hovertemplate="%{x:.3g}",
        )
        _add_ticks(figure, unseen[unseen["stage"] == stage], method)
    if not unseen.empty:
        figure.add_scatter(x=[None], y=[None], name="on images held back", mode="markers", marker=_tick(COLORS["dense"]))
    return figure


def _tick(color: str) -> dict[str, object]:
    return {"symbol": "line-ns", "size": 13, "line": {"width": 2, "color": color}}


def _add_ticks(figure: go.Figure, rows: pd.DataFrame, method: str) -> None:
    """The losses of one stage on images that were held back."""
    if rows.empty:
        return
    figure.add_scatter(
        x=rows["loss"].tolist(),
        y=rows["index"].tolist(),
        name=f"{LABELS[method]}, held back",
        mode="markers",
        marker=_tick(COLORS[method]),
        hovertemplate="%{x:.3g}",
        showlegend=False,
    )


def pattern_picture(grid: np.ndarray) -> go.Figure:
    """Kept weights filled, pruned ones faint. `grid`: (rows, columns), 1 kept, 0 pruned, NaN for the gap between two groups."""
    figure = new_figure(
        height=18 * len(grid) + 4,
        margin={"l": 0, "r": 0, "t": 2, "b": 2},
        xaxis={"visible": False, "fixedrange": True},
        yaxis={"visible": False, "fixedrange": True},
    )
    figure.add_heatmap(
        z=[[None if np.isnan(value) else float(value) for value in row] for row in grid],
        colorscale=[[0, "rgba(128, 136, 146, 0.18)"], [1, KEPT]],
        zmin=0,
        zmax=1,
        xgap=3,
        ygap=3,
        showscale=False,
        hoverinfo="skip",
    )
    return figure


# --- inside a run: its layers ---


def window_chart(
    errors: pd.DataFrame, layers: list[str], stage: str, update: str, *, blocks: Sequence[str] = (), chosen: int | None = None
) -> go.Figure:
    """The relative error at each operation of each layer's window, at one stage: layers by k, on the rows of `loss_chart`.

    `errors`: columns index, stage, k, operation, relative, growth. The color scale spans all stages, so that they compare.
    """
    red, green, blue = (int(COLORS[stages(update)[stage]][i : i + 2], 16) for i in (1, 3, 5))
    # One layer that is right by orders of magnitude would leave all others the same color.
    usual = errors["relative"].clip(lower=errors["relative"].quantile(0.05, interpolation="lower"))
    scale = log_axis(usual.tolist(), "")
    low, high = scale["range"]
    ticks = [tick for tick in scale["tickvals"] if low <= math.log10(tick) <= high]
    steps = int(errors["k"].max()) + 1 if len(errors) else 1
    figure = new_figure(
        height=max(ROW * len(layers), LEAST_ROWS) + 100,
        margin=ROWS_MARGIN,
        xaxis={
            "range": [-0.5, steps - 0.5],
            "tickmode": "array",
            "tickvals": list(range(0, steps, every := math.ceil(steps / 12))),
            "ticktext": [f"n<sub>{k}</sub>" for k in range(0, steps, every)],
            "title": "Operation, from the layer itself (n<sub>0</sub>) on",
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
        yaxis=rows_axis(layers, chosen),
    )
    mark_rows(figure, blocks, chosen)
    stage_errors = errors[errors["stage"] == stage]
    grid = np.full((len(layers), steps), np.nan, np.float32)
    words = np.full((len(layers), steps), "", object)
    positive = stage_errors["relative"].where(stage_errors["relative"] > 0)
    columns = stage_errors[["index", "k", "operation", "relative", "growth"]]
    grid[stage_errors["index"], stage_errors["k"]] = np.log10(positive)
    words[stage_errors["index"], stage_errors["k"]] = [
        f"{layers[index]}: n<sub>{k}</sub><br>{operation}<br>error ÷ target {error:.3g}"
        + (f",<br>{growth:.3g} times the layer's own" if k else "")
        for index, k, operation, error, growth in columns.itertuples(index=False)
    ]
    figure.add_heatmap(
        z=grid,
        text=words,
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        colorscale=[[0, f"rgba({red}, {green}, {blue}, 0.06)"], [1, f"rgb({red}, {green}, {blue})"]],
        zmin=low,
        zmax=high,
        xgap=2,
        ygap=2,
        colorbar={
            "title": {"text": MEASURES["relative_loss"].axis, "side": "right"},
            "thickness": 8,
            "len": 1,
            "outlinewidth": 0,
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [f"{tick:.3g}" for tick in ticks],
        },
    )
    return figure


def mask_picture(panels: Sequence[Sequence[np.ndarray]], names: Sequence[Sequence[str]]) -> go.Figure:
    """Masks as pictures to zoom into, kept weights filled: a grid of panels (outputs, inputs), bool, that zoom together.

    A picture, not a heat map: a layer has millions of weights, and a bit each travels and draws at once.
    """
    rows, columns = len(panels), len(panels[0])
    outputs, inputs = panels[0][0].shape
    gap = 0.02
    axes: dict[str, dict[str, object]] = {}
    pictures = []
    # Drawn up by hand: plotly's own subplots take half a second for nine of them.
    for place, (row, column) in enumerate(itertools.product(range(rows), range(columns)), start=1):
        number = "" if place == 1 else str(place)
        left, top = column / columns, 1 - row / rows
        axes[f"xaxis{number}"] = {
            "domain": [left, left + 1 / columns - gap * (column < columns - 1)],
            "range": [-0.5, inputs - 0.5],
            "anchor": f"y{number}",
            "matches": None if place == 1 else "x",
            "title": "Input" if row == rows - 1 else None,
            "showticklabels": row == rows - 1,
        }
        axes[f"yaxis{number}"] = {
            "domain": [top - 1 / rows + gap * (row < rows - 1), top],
            "range": [outputs - 0.5, -0.5],
            "anchor": f"x{number}",
            "matches": None if place == 1 else "y",
            "scaleanchor": False,
            "title": "Output" if column == 0 else None,
            "showticklabels": column == 0,
        }
        pictures.append(
            {
                "type": "image",
                "source": _bitmap(panels[row][column]),
                "hovertemplate": f"output %{{y}}, input %{{x}}{names[row][column]}<extra></extra>",
                "xaxis": f"x{number}",
                "yaxis": f"y{number}",
            }
        )
    plain = {"showgrid": False, "zeroline": False, "automargin": True}
    height = min(max(9 * outputs * rows, 220), 420)
    figure = new_figure(height, dragmode="zoom", **{name: {**plain, **axis} for name, axis in axes.items()})
    figure.add_traces(pictures)
    return figure


def _bitmap(mask: np.ndarray) -> str:
    """A mask as a picture's address: kept filled, pruned faint."""
    picture = Image.fromarray(mask.astype(np.uint8), "P")
    picture.putpalette([128, 136, 146, *(int(KEPT[i : i + 2], 16) for i in (1, 3, 5))])
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=bytes([46, 255]), bits=1, compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


_WEIGHTS = {"dense": "Dense: all weights", "mask_only": "Dense: kept weights", "final": "Kept weights at the end"}


def weights_chart(histogram: pd.DataFrame, update: str) -> go.Figure:
    """How a layer's weights are spread, before and after. `histogram`: columns value, width, stage, count; the stages are
    `dense` (all weights), `mask_only` (the kept ones, before) and `final` (the kept ones, after)."""
    figure = new_figure(
        height=300,
        xaxis={"title": "Value of the weight", "showgrid": False, "automargin": True},
        yaxis={"title": "Weights", "rangemode": "tozero", "automargin": True},
        hovermode="x unified",
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
    )
    colors = {"dense": COLORS["dense"], **{stage: COLORS[method] for stage, method in stages(update).items()}}
    for stage, label in _WEIGHTS.items():
        rows = histogram[histogram["stage"] == stage]
        figure.add_scatter(
            x=rows["value"].tolist(),
            y=rows["count"].tolist(),
            name=label,
            mode="lines",
            line={"shape": "hvh", "width": 2, "color": colors[stage]},
            fill="tozeroy" if stage == "dense" else None,
            fillcolor=BAND,
            hovertemplate="%{y}",
        )
    return figure


def channel_chart(channels: pd.DataFrame, update: str) -> go.Figure:
    """The relative error of each of a layer's output channels. `channels`: columns channel, stage, relative."""
    figure = new_figure(
        height=250,
        xaxis={"title": "Output channel", "showgrid": False, "zeroline": False, "automargin": True},
        yaxis=log_axis(channels["relative"].tolist(), MEASURES["relative_loss"].axis),
        hovermode="x unified",
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
    )
    method_of = stages(update)
    size = 6 if channels["channel"].nunique() <= 128 else 4
    for stage, rows in channels.groupby("stage", sort=False):
        method = method_of[stage]
        figure.add_scatter(
            x=rows["channel"].tolist(),
            y=rows["relative"].tolist(),
            name=LABELS[method],
            mode="markers",
            marker={
                "color": COLORS[method],
                "symbol": SYMBOLS[method],
                "size": size,
                "line": {"width": 1.5, "color": COLORS[method]},
            },
            hovertemplate="%{y:.3g}",
        )
    return figure
