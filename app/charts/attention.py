"""Figures of attention: maps on pictures, likely classes, likeness of maps, how much of them is preserved."""

import base64
import io
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from app import words
from app.charts.axes import named_rows, new_figure
from app.charts.palette import COLORS
from snows.measures.names import MEASURES

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
    figure = new_figure(
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
    figure = new_figure(
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
    names = [words.in_figure(name if len(name) <= _LONGEST_CLASS else name[: _LONGEST_CLASS - 1] + "…") for name in names]
    texts = [
        f"{'<b>' if index == label else ''}{name}"
        f"  {'under 0.1' if probability < 1e-3 else f'{100 * probability:.3g}'} %{'</b>' if index == label else ''}"
        for index, name, probability in zip(top["index"], names, top["probability"], strict=True)
    ]
    figure = new_figure(
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
        customdata=[words.in_figure(name) for name in top["class"]],
        hovertemplate="%{customdata}: %{x:.3g}<extra></extra>",
    )
    figure.add_scatter(
        x=[0.01] * len(top), y=list(range(len(top))), text=texts, mode="text", textposition="middle right", hoverinfo="skip"
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
    figure = new_figure(
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
    figure = new_figure(
        height=44 * len(names) + 58,
        xaxis={
            "title": measure.axis,
            "range": [measure.scale * end for end in ends],
            "zeroline": False,
            "fixedrange": True,
            "automargin": True,
        },
        yaxis=named_rows(names, fixedrange=True),
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
