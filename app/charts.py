"""Data frames to Plotly figures, for the app and for notebooks alike.

One color a method, everywhere: Okabe and Ito's palette ("Color Universal Design", 2008; its blue a shade lighter), which people
with the common forms of color blindness tell apart, and one marker shape a method besides. The dense network is neutral gray.
Each color has a contrast of 3 or more on the light and on the dark background, so a figure has no theme: it is transparent.
"""

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from snows.measures.names import MEASURES
from snows.plans.words import UPDATE_NAMES

COLORS = {
    "dense": "#8A929C",
    "none": "#D55E00",
    "least-squares": "#009E73",
    "sparsegpt": "#CC79A7",
    "snows": "#0077BB",
}
LABELS = {"dense": "Dense network", **UPDATE_NAMES}
_SYMBOLS = {"none": "circle-open", "least-squares": "diamond", "sparsegpt": "square", "snows": "circle"}
TROUBLE = "#DB4453"  # what needs attention; no method's color
_LINE = "rgba(128, 136, 146, 0.45)"
_BAND, _CHOSEN = "rgba(128, 136, 146, 0.09)", "rgba(31, 127, 196, 0.20)"
_KEPT = "#5F7F99"
_ROW, _LEAST_ROWS, _MOST_ROWS_NAMED = 19, 150, 64
_ROWS_MARGIN = {"l": 8, "r": 12, "t": 44, "b": 48}  # one for all, so that figures side by side have their rows side by side


def _figure(height: int, **layout: object) -> go.Figure:
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


def _log_axis(values: list[float], title: str) -> dict[str, Any]:
    """A log axis over the positive `values`, labeled at 1, 2, 5 where it spans little, at powers of ten where it spans much."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1e-3, 1.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    pad = 0.06 * (high - low) or 0.3
    digits = (1, 2, 5) if high - low < 2 else (1,)
    every = math.ceil((high - low) / 6) or 1
    decades = range(math.floor(low - pad), math.ceil(high + pad) + 1)
    ticks = [digit * 10.0**decade for decade in decades if decade % every == 0 for digit in digits]
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


def stages(update: str) -> dict[str, str]:
    """Stage of a layer's loss -> the method whose color and label it bears. The final values are the update's own."""
    return {"mask_only": "none", "least_squares": "least-squares", "final": update}


def _named_rows(names: Sequence[str], margin: float = 0.6, **more: object) -> dict[str, object]:
    """An axis of one row a name, downwards; `margin` rows of room above the first and below the last."""
    return {
        "range": [len(names) - 1 + margin, -margin],
        "tickvals": list(range(len(names))),
        "ticktext": list(names),
        "showgrid": False,
        "zeroline": False,
        "automargin": True,
        **more,
    }


def _rows_axis(layers: list[str], chosen: int | None) -> dict[str, object]:
    """An axis of one row a layer, downwards; the chosen one's name is bold."""
    step = math.ceil(len(layers) / _MOST_ROWS_NAMED) or 1
    names = [f"<b>{name}</b>" if row == chosen else name for row, name in enumerate(layers)]
    return _named_rows(layers) | {
        "tickmode": "array",
        "tickvals": list(range(0, len(layers), step)),
        "ticktext": names[::step],
        "ticks": "",
        "showspikes": False,
    }


def _mark_rows(figure: go.Figure, blocks: Sequence[str], chosen: int | None) -> None:
    """A faint band behind every second block of rows, and one behind the chosen row. `blocks`: the block of each row."""
    ends = [row for row in range(1, len(blocks) + 1) if row == len(blocks) or blocks[row] != blocks[row - 1]]
    bands = [(first, end, _BAND) for first, end in zip(ends[::2], ends[1::2], strict=False)]
    bands += [] if chosen is None else [(chosen, chosen + 1, _CHOSEN)]
    place = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "layer": "below", "line": {"width": 0}}
    figure.layout.shapes = [{**place, "y0": first - 0.5, "y1": end - 0.5, "fillcolor": color} for first, end, color in bands]


def loss_chart(
    losses: pd.DataFrame,
    layers: list[str],
    update: str,
    *,
    title: str = MEASURES["loss"].axis,
    blocks: Sequence[str] = (),
    chosen: int | None = None,
) -> go.Figure:
    """Each layer's loss by stage, one row a layer in network order.

    `losses`: columns index, layer, stage, loss. `layers`: all that the run will prune; the axis stands still while rows fill.
    `blocks`: the block each layer belongs to. `chosen`: the row to mark.
    """
    method_of = stages(update)
    figure = _figure(
        height=max(_ROW * len(layers), _LEAST_ROWS) + 100,
        margin=_ROWS_MARGIN,
        xaxis=_log_axis(losses["loss"].tolist(), title),
        yaxis=_rows_axis(layers, chosen),
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
        hovermode="y unified",
    )
    _mark_rows(figure, blocks, chosen)
    spans = losses.groupby("index")["loss"].agg(["min", "max"])
    figure.add_scatter(
        x=[x for low, high in spans.to_numpy() for x in (low, high, None)],
        y=[y for index in spans.index for y in (index, index, None)],
        mode="lines",
        line={"color": _LINE, "width": 2},
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
                "symbol": _SYMBOLS[method],
                "size": 9,
                "line": {"width": 2, "color": COLORS[method]},
            },
            hovertemplate="%{x:.3g}",
        )
    return figure


def _iterations_chart(directions: pd.DataFrame, column: str, title: str, span: Sequence[float] = ()) -> go.Figure:
    """A value of every conjugate-gradient iteration in a layer, a line a Newton step. The axis spans also `span`."""
    figure = _figure(
        height=260,
        xaxis={"title": "Conjugate-gradient iteration", "rangemode": "tozero", "showgrid": False, "automargin": True},
        yaxis=_log_axis([*span, *directions[column]], title),
        showlegend=False,
    )
    for step, rows in directions.groupby("step"):
        figure.add_scatter(
            x=rows["iteration"].tolist(),
            y=rows[column].tolist(),
            mode="lines+markers",
            line={"color": COLORS["snows"], "width": 2},
            marker={"size": 5},
            name=f"Newton step {step}",
            hovertemplate="iteration %{x}: %{y:.3g}",
        )
    return figure


def _tolerance(figure: go.Figure, rtol: float) -> go.Figure:
    """`figure` with the relative residual at which conjugate gradient stops."""
    figure.add_hline(y=rtol, line={"color": COLORS["dense"], "dash": "dash", "width": 1})
    figure.add_annotation(
        text=f"tolerance {rtol:g}",
        font={"color": COLORS["dense"]},
        showarrow=False,
        x=0,
        xref="paper",
        xanchor="left",
        y=math.log10(rtol),
        yanchor="bottom",
    )
    return figure


def residual_chart(residuals: pd.DataFrame, rtol: float) -> go.Figure:
    """Conjugate gradient's residual in a layer, a line a Newton step. `residuals`: columns layer, step, iteration, residual."""
    return _tolerance(_iterations_chart(residuals, "residual", "Residual ÷ gradient", [rtol]), rtol)


def pattern_picture(grid: np.ndarray) -> go.Figure:
    """Kept weights filled, pruned ones faint. `grid`: (rows, columns), 1 kept, 0 pruned, NaN for the gap between two groups."""
    figure = _figure(
        height=18 * len(grid) + 4,
        margin={"l": 0, "r": 0, "t": 2, "b": 2},
        xaxis={"visible": False, "fixedrange": True},
        yaxis={"visible": False, "fixedrange": True},
    )
    figure.add_heatmap(
        z=[[None if np.isnan(value) else float(value) for value in row] for row in grid],
        colorscale=[[0, "rgba(128, 136, 146, 0.18)"], [1, _KEPT]],
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
    scale = _log_axis(usual.tolist(), "")
    low, high = scale["range"]
    ticks = [tick for tick in scale["tickvals"] if low <= math.log10(tick) <= high]
    steps = int(errors["k"].max()) + 1 if len(errors) else 1
    figure = _figure(
        height=max(_ROW * len(layers), _LEAST_ROWS) + 100,
        margin=_ROWS_MARGIN,
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
        yaxis=_rows_axis(layers, chosen),
    )
    _mark_rows(figure, blocks, chosen)
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
    figure = _figure(height, dragmode="zoom", **{name: {**plain, **axis} for name, axis in axes.items()})
    figure.add_traces(pictures)
    return figure


def _bitmap(mask: np.ndarray) -> str:
    """A mask as a picture's address: kept filled, pruned faint."""
    picture = Image.fromarray(mask.astype(np.uint8), "P")
    picture.putpalette([128, 136, 146, *(int(_KEPT[i : i + 2], 16) for i in (1, 3, 5))])
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=bytes([46, 255]), bits=1, compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


_WEIGHTS = {"dense": "Dense: all weights", "mask_only": "Dense: kept weights", "final": "Kept weights at the end"}


def weights_chart(histogram: pd.DataFrame, update: str) -> go.Figure:
    """How a layer's weights are spread, before and after. `histogram`: columns value, width, stage, count; the stages are
    `dense` (all weights), `mask_only` (the kept ones, before) and `final` (the kept ones, after)."""
    figure = _figure(
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
            fillcolor=_BAND,
            hovertemplate="%{y}",
        )
    return figure


def channel_chart(channels: pd.DataFrame, update: str) -> go.Figure:
    """The relative error of each of a layer's output channels. `channels`: columns channel, stage, relative."""
    figure = _figure(
        height=250,
        xaxis={"title": "Output channel", "showgrid": False, "zeroline": False, "automargin": True},
        yaxis=_log_axis(channels["relative"].tolist(), MEASURES["relative_loss"].axis),
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
                "symbol": _SYMBOLS[method],
                "size": size,
                "line": {"width": 1.5, "color": COLORS[method]},
            },
            hovertemplate="%{y:.3g}",
        )
    return figure


# --- inside a run: its solver ---


def curvature_chart(directions: pd.DataFrame) -> go.Figure:
    """The curvature along each direction that conjugate gradient searched, a line a Newton step.

    `directions`: columns step, iteration, curvature.
    """
    return _iterations_chart(directions, "curvature", "Curvature, p·Cp ÷ p·p")


def steps_chart(
    marks: pd.DataFrame,
    layers: list[str],
    title: str,
    *,
    log: bool = True,
    limit: tuple[float, str] | None = None,
    blocks: Sequence[str] = (),
    chosen: int | None = None,
) -> go.Figure:
    """All Newton steps of a run by one measure, on the rows of `loss_chart`; within a row the first step is on top.

    `marks`: columns index, layer, step, part, value, trouble. Of two parts the first is open and the last filled. What is in
    trouble is a cross. `limit`: a line, and what it is.
    """
    values = [*marks["value"], *([limit[0]] if limit else [])]
    axis: dict[str, object] = _log_axis(values, title) if log else {"title": title, "rangemode": "tozero", "zeroline": False}
    parts, troubled = list(dict.fromkeys(marks["part"])), marks["trouble"] != ""
    figure = _figure(
        height=_ROW * len(layers) + 92,
        xaxis={**axis, "automargin": True},
        yaxis=_rows_axis(layers, chosen),
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
    )
    _mark_rows(figure, blocks, chosen)
    steps = int(marks["step"].max()) if len(marks) else 1
    places = marks["index"] + (marks["step"] - (steps + 1) / 2) * min(0.34, 0.68 / steps)
    placed = marks.assign(y=places)
    spans = placed.groupby("y")["value"].agg(["min", "max"])
    figure.add_scatter(
        x=[x for low, high in spans.to_numpy() for x in (low, high, None)],
        y=[y for y in spans.index for y in (y, y, None)],
        mode="lines",
        line={"color": _LINE, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    for part in parts:
        shape, mine = "" if part == parts[-1] else "-open", placed["part"] == part
        for rows, name, symbol, color in (
            (placed[mine & ~troubled], part, f"circle{shape}", COLORS["snows"]),
            (placed[mine & troubled], f"{part}, needs attention", f"x{shape}", TROUBLE),
        ):
            if len(rows):
                _step_marks(figure, rows, name, symbol, color)
    if limit:
        figure.add_scatter(
            x=[limit[0], limit[0]],
            y=[-0.6, len(layers) - 0.4],
            name=limit[1],
            mode="lines",
            line={"color": COLORS["dense"], "dash": "dash", "width": 1},
            hoverinfo="skip",
        )
    return figure


def _step_marks(figure: go.Figure, rows: pd.DataFrame, name: str, symbol: str, color: str) -> None:
    figure.add_scatter(
        x=rows["value"].tolist(),
        y=rows["y"].tolist(),
        customdata=rows["layer"].tolist(),
        text=[f"Newton step {row.step}" + (f"<br>{row.trouble}" if row.trouble else "") for row in rows.itertuples()],
        name=name,
        mode="markers",
        marker={"color": color, "symbol": symbol, "size": 8, "line": {"width": 2, "color": color}},
        hovertemplate="%{customdata}<br>%{text}<br>%{x:.3g}",
    )


def valley_chart(sweep: pd.DataFrame) -> go.Figure:
    """Finite differences' error as their step grows. `sweep`: columns epsilon, error, default (the solver's own step)."""
    finite = sweep.dropna()
    figure = _figure(
        height=260,
        xaxis=_log_axis(finite["epsilon"].tolist(), "Step ε, relative to the weights"),
        yaxis=_log_axis(finite["error"].tolist(), "Relative error"),
        showlegend=False,
    )
    figure.add_scatter(
        x=finite["epsilon"].tolist(),
        y=finite["error"].tolist(),
        mode="lines+markers",
        line={"color": COLORS["snows"], "width": 2},
        marker={"size": 5},
        name="",
        hovertemplate="ε = %{x:.3g}: error %{y:.3g}",
    )
    for row in finite[finite["default"]].itertuples():
        figure.add_vline(x=row.epsilon, line={"color": COLORS["dense"], "dash": "dash", "width": 1})
        figure.add_annotation(
            text="the solver's step",
            font={"color": COLORS["dense"]},
            showarrow=False,
            x=math.log10(row.epsilon),
            xanchor="left",
            y=1,
            yref="paper",
            yanchor="top",
        )
    return figure


def solves_chart(solves: pd.DataFrame, rtol: float) -> go.Figure:
    """One system solved with and without a preconditioner. `solves`: columns preconditioner, iteration, residual."""
    figure = _figure(
        height=260,
        xaxis={"title": "Conjugate-gradient iteration", "rangemode": "tozero", "showgrid": False, "automargin": True},
        yaxis=_log_axis([rtol, *solves["residual"]], "Residual ÷ gradient"),
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
    )
    for (name, rows), dash in zip(solves.groupby("preconditioner", sort=False), ("solid", "dot"), strict=False):
        figure.add_scatter(
            x=rows["iteration"].tolist(),
            y=rows["residual"].tolist(),
            mode="lines",
            line={"color": COLORS["snows"], "width": 2, "dash": dash},
            name=name,
            hovertemplate="iteration %{x}: %{y:.3g}",
        )
    return _tolerance(figure, rtol)


def eigenvalues_chart(eigenvalues: pd.DataFrame) -> go.Figure:
    """Where an operator's eigenvalues lie, a row a preconditioner, each relative to its largest.

    `eigenvalues`: columns preconditioner, value, bound. What is negative is crossed out at its size.
    """
    names = list(dict.fromkeys(eigenvalues["preconditioner"]))
    largest = eigenvalues.groupby("preconditioner")["value"].transform(lambda values: values.abs().max())
    shares = eigenvalues.assign(share=eigenvalues["value"] / largest, row=eigenvalues["preconditioner"].map(names.index))
    figure = _figure(
        height=170,
        xaxis=_log_axis(shares["share"].abs().tolist(), "Eigenvalue ÷ largest"),
        yaxis=_named_rows(names, margin=0.5),
        showlegend=False,
    )
    for rows, symbol, color in (
        (shares[shares["value"] > 0], "line-ns", COLORS["snows"]),
        (shares[shares["value"] <= 0], "x-thin", TROUBLE),
    ):
        figure.add_scatter(
            x=rows["share"].abs().tolist(),
            y=rows["row"].tolist(),
            customdata=rows[["value", "bound"]].to_numpy().tolist(),
            mode="markers",
            marker={"symbol": symbol, "color": color, "size": 18, "line": {"width": 2, "color": color}},
            name="",
            hovertemplate="%{customdata[0]:.3g} ± %{customdata[1]:.2g}",
        )
    return figure


# --- where networks look ---

_ATTENTION, _ALIKE = "Inferno", "Cividis"
_HALO = "rgba(0, 0, 0, 0.65)"


def picture_address(pixels: np.ndarray, longest_edge: int | None = None) -> str:
    """A picture's pixels, (H, W) or (H, W, 3) uint8, as an address that a browser can show; larger ones shrunk."""
    file, picture = io.BytesIO(), Image.fromarray(pixels)
    if longest_edge is not None:
        picture.thumbnail((longest_edge, longest_edge))
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def attention_picture(
    pixels: np.ndarray,
    attended: np.ndarray | None,
    limits: tuple[float, float],
    opacity: float,
    query: tuple[int, int] | None = None,
    height: int = 300,
) -> go.Figure:
    """What a network attends to, laid over the image. A click on it is at (x, y) = (column, row) of a patch, from 1.

    `pixels`: (H, W) or (H, W, 3) uint8. `attended`: (rows, columns), None for the image alone. `limits`: the values at the ends
    of the color scale; give pictures to be compared the same. `opacity`: 0 = the image alone, 1 = the map alone. `query`: a
    patch (row, column), from 1, to mark.
    """
    rows, columns = pixels.shape[:2] if attended is None else attended.shape
    tall, wide = rows / pixels.shape[0], columns / pixels.shape[1]  # a pixel's edges, in patches
    plain = {"visible": False, "fixedrange": True, "constrain": "domain"}
    figure = _figure(
        height=height,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        xaxis={"range": [0.5, columns + 0.5], **plain},
        yaxis={"range": [rows + 0.5, 0.5], "scaleanchor": "x", "scaleratio": wide / tall, **plain},
    )
    figure.add_image(source=picture_address(pixels), x0=wide / 2 + 0.5, dx=wide, y0=tall / 2 + 0.5, dy=tall, hoverinfo="skip")
    if attended is not None:
        figure.add_heatmap(
            z=np.round(attended.astype(float), 6).tolist(),
            x0=1,
            y0=1,
            colorscale=_ATTENTION,
            zmin=limits[0],
            zmax=limits[1],
            opacity=opacity,
            showscale=False,
            hovertemplate="row %{y}, column %{x}: %{z:.3g}<extra></extra>",
        )
    if query is not None:
        row, column = query
        box = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
        figure.add_shape(type="rect", line={"color": _HALO, "width": 5}, **box)
        figure.add_shape(type="rect", line={"color": "#FFFFFF", "width": 2}, **box)
    return figure


def map_scale(limits: tuple[float, float], title: str, of_similarity: bool = False) -> go.Figure:
    """The color scale that attention pictures share, or similarity maps."""
    low, high = limits
    steps = np.linspace(low, high, 65)
    ticks = np.linspace(low, high, 5).tolist()
    figure = _figure(
        height=56,
        margin={"l": 28, "r": 28, "t": 0, "b": 44},
        xaxis={
            "title": {"text": title, "standoff": 2},
            "range": [low - 1e-6 * (high - low), high + 1e-6 * (high - low)],  # its ends are ticks too
            "tickvals": ticks,
            "ticktext": [f"{tick:.3g}" for tick in ticks],
            "showgrid": False,
            "fixedrange": True,
        },
        yaxis={"visible": False, "fixedrange": True},
    )
    figure.add_heatmap(
        z=[((steps[:-1] + steps[1:]) / 2).tolist()],
        x=steps.tolist(),
        colorscale=_ALIKE if of_similarity else _ATTENTION,
        zmin=low,
        zmax=high,
        showscale=False,
        hoverinfo="skip",
    )
    return figure


_LONGEST_CLASS = 24


def top_chart(top: pd.DataFrame, method: str, label: int | None = None) -> go.Figure:
    """A network's likeliest classes. `top`: columns index, class, probability. `label`: the index of the right one."""
    names = [name.partition(",")[0] for name in top["class"]]
    words = [
        f"{'<b>' if index == label else ''}{name if len(name) <= _LONGEST_CLASS else name[: _LONGEST_CLASS - 1] + '…'}"
        f"  {'under 0.1' if probability < 1e-3 else f'{100 * probability:.3g}'} %{'</b>' if index == label else ''}"
        for index, name, probability in zip(top["index"], names, top["probability"], strict=True)
    ]
    figure = _figure(
        height=23 * len(top) + 4,
        margin={"l": 0, "r": 0, "t": 2, "b": 2},
        xaxis={"range": [0, 1], "visible": False, "fixedrange": True},
        yaxis={"range": [len(top) - 0.5, -0.5], "visible": False, "fixedrange": True},
        bargap=0.25,
        showlegend=False,
    )
    figure.add_bar(
        x=top["probability"].tolist(),
        y=list(range(len(top))),
        orientation="h",
        marker={"color": COLORS[method], "opacity": 0.35},
        customdata=top["class"].tolist(),
        hovertemplate="%{customdata}: %{x:.3g}<extra></extra>",
    )
    figure.add_scatter(
        x=[0.01] * len(top), y=list(range(len(top))), text=words, mode="text", textposition="middle right", hoverinfo="skip"
    )
    return figure


_MOST_CELLS_NAMED = 8


def similarity_map(alike: pd.DataFrame, limits: tuple[float, float], chosen: tuple[str, int | None] | None = None) -> go.Figure:
    """How alike two networks attend, a row a block, a column a head. A click on it is at (x, y) = (head, block), from 1.

    `alike`: columns block, head (from 1), value. `limits` of the color scale; give maps to be compared the same. `chosen`: the
    block and head (from 1; None: all of them) to mark.
    """
    table = alike.pivot(index="block", columns="head", values="value").reindex(alike["block"].drop_duplicates())
    blocks, heads = list(table.index), list(table.columns)
    figure = _figure(
        height=24 * len(blocks) + 56,
        xaxis={
            "title": "Head",
            "visible": len(heads) > 1,
            "tickvals": heads,
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
            "automargin": True,
        },
        yaxis={
            "range": [len(blocks) + 0.5, 0.5],
            "tickvals": list(range(1, len(blocks) + 1)),
            "ticktext": blocks,
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
            "automargin": True,
        },
    )
    figure.add_heatmap(
        z=[[None if math.isnan(value) else round(value, 5) for value in row] for row in table.to_numpy()],
        x=heads,
        y0=1,
        customdata=[[block] * len(heads) for block in blocks],
        colorscale=_ALIKE,
        zmin=limits[0],
        zmax=limits[1],
        xgap=2,
        ygap=2,
        showscale=False,
        texttemplate="%{z:.3f}" if len(heads) <= _MOST_CELLS_NAMED else None,
        hovertemplate="%{customdata}, head %{x}: %{z:.3g}<extra></extra>",
    )
    if chosen is not None and chosen[0] in blocks:
        block, head = chosen
        row = blocks.index(block) + 1
        first, last = (1, len(heads)) if head is None else (head, head)
        figure.add_shape(
            type="rect", x0=first - 0.5, x1=last + 0.5, y0=row - 0.5, y1=row + 0.5, line={"color": "#D55E00", "width": 3}
        )
    return figure


def preservation_chart(
    preserved: pd.DataFrame, methods: Mapping[str, str], spreads: dict[str, tuple[float, float, float]]
) -> go.Figure:
    """How much of its attention each network kept: a point an image, and the mean with the middle 80 % of them.

    `preserved`: columns network, image, preserved. `methods`: each network's method, in the order of the rows. `spreads`: each
    network's mean and the values its middle 80 % lie between.
    """
    names = list(methods)
    measure = MEASURES["preserved"]
    lowest = float(preserved["preserved"].min())
    ends = (lowest - 0.03 * (1 - lowest) - 1e-4, 1 + 0.03 * (1 - lowest) + 1e-4)
    figure = _figure(
        height=44 * len(names) + 58,
        xaxis={
            "title": measure.axis,
            "range": [measure.scale * end for end in ends],
            "zeroline": False,
            "fixedrange": True,
            "automargin": True,
        },
        yaxis=_named_rows(names, fixedrange=True),
        showlegend=False,
    )
    for row, (name, method) in enumerate(methods.items()):
        values = preserved[preserved["network"] == name]
        # A fixed offset an image, so that points of like value lie beside each other and stay put when others come.
        offsets = 0.22 * (np.mod(values["image"].to_numpy() * 0.618034, 1) * 2 - 1)
        figure.add_scatter(
            x=(measure.scale * values["preserved"]).tolist(),
            y=(row + offsets).tolist(),
            customdata=values["image"].tolist(),
            mode="markers",
            marker={"color": COLORS[method], "size": 5, "opacity": 0.45},
            hovertemplate=f"image %{{customdata}}: %{{x:.3g}} {measure.unit}<extra></extra>",
        )
        mean, low, high = spreads[name]
        figure.add_scatter(
            x=[measure.scale * low, measure.scale * high],
            y=[row, row],
            mode="lines",
            line={"color": COLORS[method], "width": 4},
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[measure.scale * mean],
            y=[row],
            mode="markers",
            marker={"color": COLORS[method], "size": 13, "symbol": "diamond", "line": {"color": "#FFFFFF", "width": 1.5}},
            hovertemplate=f"mean {measure.say(mean)}, the middle 80 % between {measure.say(low)} and {measure.say(high)}"
            "<extra></extra>",
        )
    return figure


# --- runs side by side ---

_MANY_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon", "triangle-down")
_MOST_LEGEND = 3  # entries beside the plot; more go above it, a row each, and the figure grows


@dataclass(frozen=True)
class Mark:
    """How a run is drawn beside others: its method's color, and a symbol of its own among those of that color."""

    color: str
    symbol: str

    @classmethod
    def of(cls, update: str, place: int) -> "Mark":
        """`place`: how many others of that update come before it."""
        open_or_full = "" if place // len(_MANY_SYMBOLS) % 2 == 0 else "-open"
        return cls(COLORS[update], _MANY_SYMBOLS[place % len(_MANY_SYMBOLS)] + open_or_full)


def tradeoff_chart(points: pd.DataFrame, cost: str, value: str, *, dense: float | None = None, log: bool = False) -> go.Figure:
    """What each network keeps against what it costs, and the Pareto front: those that no other beats in both.

    `points`: columns label, color, symbol, x, y, x_deviation, y_deviation, best. `cost`, `value`: the measures that `x` and `y`
    are values of. `dense`: the value of the dense network.
    """
    costs, values = MEASURES[cost], MEASURES[value]
    x = (costs.scale * points["x"]).tolist()
    figure = _figure(
        height=320,
        xaxis=_log_axis(x, costs.axis)
        if log
        else {"title": costs.axis, "rangemode": "tozero", "showgrid": False, "zeroline": False, "automargin": True},
        yaxis={"title": values.axis, "zeroline": False, "automargin": True},
        showlegend=False,
    )
    front = points[points["best"]].sort_values("x")
    if len(front) > 1:
        figure.add_scatter(
            x=(costs.scale * front["x"]).tolist(),
            y=(values.scale * front["y"]).tolist(),
            mode="lines",
            line={"color": _LINE, "width": 2, "shape": "hv"},
            hoverinfo="skip",
        )
    if dense is not None:
        figure.add_hline(y=values.scale * dense, line={"color": COLORS["dense"], "dash": "dash", "width": 1})
        figure.add_annotation(
            text="dense network",
            font={"color": COLORS["dense"]},
            showarrow=False,
            x=1,
            xref="paper",
            xanchor="right",
            y=values.scale * dense,
            yanchor="bottom",
        )
    for row in points.itertuples():
        x_deviation, y_deviation = costs.scale * row.x_deviation, values.scale * row.y_deviation
        figure.add_scatter(
            x=[costs.scale * row.x],
            y=[values.scale * row.y],
            error_x={"array": [x_deviation], "visible": x_deviation > 0, "width": 3, "thickness": 1.5},
            error_y={"array": [y_deviation], "visible": y_deviation > 0, "width": 3, "thickness": 1.5},
            name=row.label,
            mode="markers",
            marker={"color": row.color, "symbol": row.symbol, "size": 12, "line": {"width": 2, "color": row.color}},
            hovertemplate=f"<b>{row.label}</b><br>{values.title}: {values.say(row.y, row.y_deviation)}<br>"
            f"{costs.title}: {costs.say(row.x, row.x_deviation)}<extra></extra>",
        )
    return figure


def side_by_side_chart(
    values: pd.DataFrame,
    names: list[str],
    marks: Mapping[str, Mark],
    title: str,
    *,
    log: bool = False,
    blocks: Sequence[str] = (),
) -> go.Figure:
    """One value a network and row, all networks overlaid; rows downwards, layers in network order.

    `values`: columns label, index (the row), value. `names`: of the rows. `marks` by label, in the order of the legend.
    `blocks`: the block each row belongs to.
    """
    axis: dict[str, object] = (
        _log_axis(values["value"].tolist(), title) if log else {"title": title, "zeroline": False, "automargin": True}
    )
    above = 26 + 20 * max(len(marks) - _MOST_LEGEND, 0)
    figure = _figure(
        height=max(_ROW * len(names), _LEAST_ROWS) + 60 + above,
        margin={"l": 8, "r": 12, "t": above, "b": 48},
        xaxis=axis,
        yaxis=_rows_axis(names, None),
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
        hovermode="y unified",
    )
    _mark_rows(figure, blocks, None)
    for label, mark in marks.items():
        rows = values[values["label"] == label]
        figure.add_scatter(
            x=rows["value"].tolist(),
            y=rows["index"].tolist(),
            name=label,
            mode="lines+markers",
            line={"color": mark.color, "width": 1},
            opacity=0.85,
            marker={"color": mark.color, "symbol": mark.symbol, "size": 8, "line": {"width": 1.5, "color": mark.color}},
            hovertemplate="%{x:.3g}",
        )
    return figure


_FORMS = ("rgba(128, 136, 146, 0.45)", "#8A929C", "#5F7F99")


def sizes_chart(sizes: pd.DataFrame) -> go.Figure:
    """What each network takes on a disk, by form. `sizes`: columns label, form, bytes."""
    names, forms = list(dict.fromkeys(sizes["label"])), list(dict.fromkeys(sizes["form"]))
    figure = _figure(
        height=54 * len(names) + 90,
        xaxis={"title": "Size (MB)", "rangemode": "tozero", "zeroline": False, "automargin": True},
        yaxis={"range": [len(names) - 0.5, -0.5], "tickvals": list(range(len(names))), "ticktext": names, "automargin": True},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
        bargap=0.25,
    )
    for form, color in zip(forms, _FORMS, strict=False):
        rows = sizes[sizes["form"] == form]
        figure.add_bar(
            x=(rows["bytes"] / 1e6).tolist(),
            y=[names.index(label) for label in rows["label"]],
            orientation="h",
            name=form,
            marker={"color": color},
            hovertemplate="%{x:.3g} MB",
        )
    return figure


def times_chart(times: pd.DataFrame, marks: Mapping[str, Mark]) -> go.Figure:
    """How long each network takes: a point a round, and their median. `times`: columns label, milliseconds."""
    names = list(dict.fromkeys(times["label"]))
    figure = _figure(
        height=44 * len(names) + 70,
        xaxis={"title": "A batch (ms)", "rangemode": "tozero", "zeroline": False, "automargin": True},
        yaxis=_named_rows(names),
        showlegend=False,
    )
    for row, name in enumerate(names):
        values = times.loc[times["label"] == name, "milliseconds"]
        offsets = 0.2 * (np.mod(np.arange(len(values)) * 0.618034, 1) * 2 - 1)
        color = marks[name].color if name in marks else COLORS["dense"]
        figure.add_scatter(
            x=values.tolist(),
            y=(row + offsets).tolist(),
            mode="markers",
            marker={"color": color, "size": 5, "opacity": 0.5},
            hovertemplate="%{x:.3g} ms<extra></extra>",
        )
        figure.add_scatter(
            x=[float(values.median())],
            y=[row],
            mode="markers",
            marker={"color": color, "size": 13, "symbol": "diamond"},
            hovertemplate="median %{x:.3g} ms<extra></extra>",
        )
    return figure


# --- one setting at several K ---

_DASHES = ("solid", "dash", "dot", "dashdot")
_SHARES = (0, 1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Line:
    """How a curve is drawn beside others: its method's color, a symbol and a dash of its own."""

    color: str
    symbol: str
    dash: str

    @classmethod
    def of(cls, update: str, symbol: int, dash: int) -> "Line":
        """`symbol`, `dash`: how many other curves of that method come before it in each."""
        return cls(COLORS[update], _MANY_SYMBOLS[symbol % len(_MANY_SYMBOLS)], _DASHES[(symbol + dash) % len(_DASHES)])


def study_chart(
    points: pd.DataFrame,
    lines: Mapping[str, Line],
    measure: str,
    *,
    share: bool = False,
    dense: Mapping[str, float] | None = None,
    height: int = 260,
    legend: bool = True,
) -> go.Figure:
    """A measure against K, a line a curve. What is within the noise of the best is filled, the recommended K has a ring.

    `points`: columns curve, k, share (percent), level, recommended, `measure` and its deviation over seeds. `lines` by curve,
    in the order of the legend. `share`: against K as a share of the network's operations. `dense`: levels of dense networks by
    name. The axis is of square roots: small K, which differ most, have room, and 0 has a place.
    """
    title, log = MEASURES[measure].axis, MEASURES[measure].log
    measured_points = points.dropna(subset=["share" if share else "k", measure])
    x = measured_points["share" if share else "k"]
    ticks = _root_ticks(x.tolist(), _SHARES if share else sorted(set(x)))
    end = 1.05 * math.sqrt(max(x, default=0) or 1)
    figure = _figure(
        height=height,
        margin={"l": 8, "r": 12, "t": 26 if legend else 8, "b": 8},
        xaxis={
            "title": "K ÷ operations of the network (%)" if share else "K (operations ahead)",
            "tickvals": [math.sqrt(tick) for tick in ticks],
            "ticktext": [f"{tick:g}" for tick in ticks],
            "range": [-0.05 * end, end],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
        yaxis=_log_axis(measured_points[measure].tolist(), title)
        if log
        else {"title": title, "zeroline": False, "automargin": True},
        showlegend=legend and len(lines) > 1,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
    )
    for place, (name, value) in enumerate((dense or {}).items()):
        figure.add_hline(y=value, line={"color": COLORS["dense"], "dash": "dash", "width": 1})
        figure.add_annotation(
            text=name,
            font={"color": COLORS["dense"]},
            showarrow=False,
            x=place % 2,
            xref="paper",
            xanchor="right" if place % 2 else "left",
            y=value,
            yanchor="bottom",
        )
    for name, line in lines.items():
        rows = measured_points[measured_points["curve"] == name]
        places = [math.sqrt(value) for value in x[rows.index]]
        chosen = [place for place, ring in zip(places, rows["recommended"], strict=True) if ring]
        figure.add_scatter(
            x=chosen,
            y=rows.loc[rows["recommended"], measure].tolist(),
            mode="markers",
            marker={"color": line.color, "symbol": "circle-open", "size": 22, "line": {"width": 2}},
            cliponaxis=False,
            hoverinfo="skip",
            showlegend=False,
        )
        deviation = rows[f"{measure}_deviation"].fillna(0)
        figure.add_scatter(
            x=places,
            y=rows[measure].tolist(),
            error_y={"array": deviation.tolist(), "visible": bool((deviation > 0).any()), "width": 3, "thickness": 1.5},
            customdata=rows[["k", "share"]].to_numpy().tolist(),
            name=name,
            mode="lines+markers",
            line={"color": line.color, "width": 2, "dash": line.dash},
            marker={
                "color": line.color,
                "symbol": [line.symbol + ("" if level else "-open") for level in rows["level"]],
                "size": 10,
                "line": {"width": 2, "color": line.color},
            },
            cliponaxis=False,
            hovertemplate=f"<b>{name}</b><br>K = %{{customdata[0]}}<br>{title} %{{y:.3g}}<extra></extra>",
        )
    return figure


def _root_ticks(values: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """Those of `wanted` on an axis of square roots over `values`, but for what would stand too near the one before."""
    high = math.sqrt(max(values, default=0)) or 1.0
    ticks: list[float] = []
    for tick in wanted:
        if math.sqrt(tick) <= 1.05 * high and (not ticks or math.sqrt(tick) - math.sqrt(ticks[-1]) >= 0.05 * high):
            ticks.append(tick)
    return ticks
