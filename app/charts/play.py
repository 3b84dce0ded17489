"""Figures of the first screen, and of a run's end: accuracy against weights kept, and three bars."""

import math

import pandas as pd
import plotly.graph_objects as go

from app.charts.axes import LINE, named_rows, new_figure
from app.charts.palette import COLORS, SYMBOLS
from app.texts import choices, text

_LINES = {"cut": ("none", "dash"), "refitted": ("snows", "solid")}


def accuracy_curve(levels: pd.DataFrame, pattern: str, refitted: bool, guessing: float) -> go.Figure:
    """Accuracy against weights kept, dense at the left, as `tables.play.accuracies` gives it, and a dot where one is.

    `guessing`: the accuracy of an answer by chance, a dotted line.
    """
    kept = (100 * levels["kept"]).tolist()
    ends = [math.log10(max(kept)) + 0.07, math.log10(min(kept)) - 0.1]
    figure = new_figure(
        height=330,
        margin={"l": 8, "r": 16, "t": 12, "b": 8},
        xaxis={
            "type": "log",
            "range": ends,
            "title": text("play.curve_x"),
            "tickvals": kept,
            "ticktext": [f"{value:.3g}" for value in kept],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
            "fixedrange": True,
        },
        yaxis={
            "title": text("play.curve_y"),
            "range": [0, 112],
            "tickvals": [0, 20, 40, 60, 80, 100],
            "zeroline": False,
            "automargin": True,
            "fixedrange": True,
        },
        showlegend=False,
    )
    figure.add_hline(y=100 * guessing, line={"color": LINE, "dash": "dot", "width": 1})
    figure.add_annotation(
        text=text("play.guessing"),
        showarrow=False,
        x=1,
        xref="paper",
        xanchor="right",
        y=100 * guessing,
        yanchor="top",
        yshift=-1,
    )
    labels, points = choices("play.lines", _LINES), choices("play.points", _LINES)
    for column, (method, dash) in _LINES.items():
        accuracies = (100 * levels[column]).tolist()
        figure.add_scatter(
            x=kept,
            y=accuracies,
            name=labels[column],
            mode="lines+markers",
            line={"color": COLORS[method], "width": 3, "dash": dash},
            marker={
                "color": COLORS[method],
                "symbol": SYMBOLS[method],
                "size": 9,
                "line": {"width": 2, "color": COLORS[method]},
            },
            hovertemplate=f"{points[column]}<extra></extra>",
        )
    # Where the curves are farthest from each other and from the dot's own number.
    figure.add_annotation(
        text=labels["refitted"], showarrow=False, x=math.log10(kept[2]), y=100 * levels["refitted"][2], yshift=-16
    )
    steep = math.sqrt(kept[1] * kept[2]), 50 * (levels["cut"][1] + levels["cut"][2])
    figure.add_annotation(text=labels["cut"], showarrow=False, x=math.log10(steep[0]), y=steep[1], xanchor="left", xshift=12)
    here = levels[levels["pattern"] == pattern].iloc[0]
    column = "refitted" if refitted else "cut"
    value = 100 * here[column]
    figure.add_scatter(
        x=[100 * here["kept"]],
        y=[value],
        name="here",
        mode="markers",
        marker={
            "color": "rgba(0,0,0,0)",
            "size": 22,
            "line": {
                "width": 4,
                "color": COLORS["dense"] if pattern == levels["pattern"].iloc[0] else COLORS[_LINES[column][0]],
            },
        },
        hoverinfo="skip",
    )
    side = {levels["pattern"].iloc[0]: "left", levels["pattern"].iloc[-1]: "right"}.get(pattern, "center")
    figure.add_annotation(
        text=f"<b>{value:.1f} %</b>",
        font={"size": 15},
        showarrow=False,
        x=math.log10(100 * here["kept"]),
        y=value,
        xanchor=side,
        xshift={"left": -12, "right": 12}.get(side, 0),
        yanchor="bottom",
        yshift=10,
    )
    return figure


def result_bars(bars: pd.DataFrame, title: str) -> go.Figure:
    """A bar a network with its percentage at the end: `bars` as `tables.play.Ending.bars` gives them. `title`: of the axis."""
    shares = (100 * bars["share"]).tolist()
    figure = new_figure(
        height=44 * len(bars) + 56,
        margin={"l": 8, "r": 16, "t": 4, "b": 8},
        xaxis={
            "title": title,
            "range": [0, 112],
            "tickvals": [0, 20, 40, 60, 80, 100],
            "zeroline": False,
            "automargin": True,
            "fixedrange": True,
        },
        yaxis=named_rows(bars["label"].tolist(), fixedrange=True),
        showlegend=False,
        bargap=0.35,
    )
    figure.add_bar(
        x=shares,
        y=list(range(len(bars))),
        orientation="h",
        marker={"color": [COLORS[method] for method in bars["method"]]},
        text=[f"<b>{share:.1f} %</b>" for share in shares],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    return figure
