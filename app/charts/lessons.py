"""Figures of the lessons."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.charts.axes import LINE, log_axis, named_rows, new_figure
from app.charts.palette import COLORS
from app.texts import choices, text

_LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"}


def _fixed(**axis: object) -> dict[str, object]:
    """An axis that stays where it is: a lesson is looked at, and scrolled past on a phone."""
    return {"automargin": True, **axis, "fixedrange": True}


def _named(names: Sequence[str], **axis: object) -> dict[str, object]:
    """An axis with a name at each place."""
    return _fixed(tickvals=list(range(len(names))), ticktext=list(names), **axis)


def removal_chart(tried: pd.DataFrame, total: int, now: tuple[float, int]) -> go.Figure:
    """Right answers against the share removed, as far as it was tried. `tried`: columns rule, removed (%), right.

    `now`: the place one is at. A line a rule, told apart by its dash and symbol.
    """
    figure = new_figure(
        height=300,
        xaxis=_fixed(title=text("worth.chart_x"), range=[-3, 103], zeroline=False),
        yaxis=_fixed(title=text("worth.chart_y", total=total), range=[0, 1.05 * total], zeroline=False),
        legend=_LEGEND,
        showlegend=True,
    )
    looks = zip(
        tried.groupby("rule", sort=False), ("circle", "square", "diamond", "x"), ("solid", "dash", "dot", "dot"), strict=False
    )
    for (rule, rows), symbol, dash in looks:
        rows = rows.drop_duplicates("removed").sort_values("removed")
        figure.add_scatter(
            x=rows["removed"].tolist(),
            y=rows["right"].tolist(),
            mode="lines+markers",
            line={"color": COLORS["none"], "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 8},
            name=str(rule),
            hovertemplate=text("worth.chart_point"),
        )
    figure.add_scatter(
        x=[now[0]],
        y=[now[1]],
        mode="markers",
        marker={"size": 18, "symbol": "circle-open", "color": COLORS["none"], "line": {"width": 3}},
        name="here",
        showlegend=False,
        hoverinfo="skip",
    )
    return figure


def values_chart(before: Sequence[float], after: Sequence[float], names: Sequence[str], groups: int = 0) -> go.Figure:
    """A row of weights before and after: what was cut is an open bar, what stayed has its new value beside the old one.

    `groups`: how many neighbours belong together; 0: no groups.
    """
    figure = new_figure(
        height=280,
        barmode="group",
        bargap=0.25,
        bargroupgap=0.05,
        xaxis=_named(names, showgrid=False),
        yaxis=_fixed(title=text("figures.weight"), zeroline=True, zerolinecolor=LINE),
        legend=_LEGEND,
    )
    places = list(range(len(before)))
    kept = [value != 0 for value in after]
    figure.add_bar(
        x=places,
        y=list(before),
        name=text("figures.before"),
        marker={
            "color": [COLORS["dense"] if stays else "rgba(0,0,0,0)" for stays in kept],
            "line": {"color": COLORS["dense"], "width": 1.5},
        },
        hovertemplate="%{y:.3g}",
    )
    figure.add_bar(
        x=places,
        y=list(after),
        name=text("figures.refitted"),
        marker={"color": COLORS["least-squares"]},
        hovertemplate="%{y:.3g}",
    )
    if groups:
        for place in range(groups, len(before), groups):
            figure.add_vline(x=place - 0.5, line={"color": LINE, "width": 1, "dash": "dot"})
    return figure


def bars_chart(values: Mapping[str, float], title: str, methods: Mapping[str, str]) -> go.Figure:
    """A bar a thing, with its value beside it. `methods`: whose color each bears."""
    names = list(values)
    most, least = max(values.values()) or 1.0, min(0.0, *values.values())
    figure = new_figure(
        height=40 * len(names) + 60,
        xaxis=_fixed(title=title, range=[1.25 * least, 1.25 * most], zeroline=False),
        yaxis=named_rows(names, fixedrange=True),
        bargap=0.35,
        showlegend=False,
    )
    figure.add_bar(
        x=[values[name] for name in names],
        y=list(range(len(names))),
        orientation="h",
        marker={"color": [COLORS[methods[name]] for name in names]},
        text=[f"{values[name]:.3g}" for name in names],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
    )
    return figure


def window_chart(operations: Sequence[str], site: int, last: int, others: Sequence[int] = ()) -> go.Figure:
    """The network as a strip of its operations, left to right: the layer filled, those its window looks at lit.

    `site`: the layer's place, `last`: the last operation of the window. `others`: places between that do not depend on it.
    """
    inside = [site < place <= last and place not in others for place in range(len(operations))]
    colors = [COLORS["snows"] if place == site or lit else COLORS["dense"] for place, lit in enumerate(inside)]
    opacity = [1.0 if place == site else 0.55 if lit else 0.25 for place, lit in enumerate(inside)]
    figure = new_figure(
        height=96,
        margin={"l": 8, "r": 8, "t": 24, "b": 24},
        xaxis=_fixed(visible=False, range=[-0.6, len(operations) - 0.4]),
        yaxis=_fixed(visible=False, range=[0, 1]),
        bargap=0.15,
        showlegend=False,
    )
    figure.add_bar(
        x=list(range(len(operations))),
        y=[1.0 if place == site else 0.75 if lit else 0.5 for place, lit in enumerate(inside)],
        marker={"color": colors, "opacity": opacity},
        customdata=list(operations),
        hovertemplate="%{customdata}<extra></extra>",
    )
    figure.add_annotation(x=0, y=0, yshift=-12, xanchor="left", text=text("ahead.picture"), showarrow=False)
    figure.add_annotation(
        x=len(operations) - 1, y=0, yshift=-12, xanchor="right", text=text("ahead.answer_end"), showarrow=False
    )
    return figure


def ahead_chart(errors: pd.DataFrame, places: Sequence[str], chosen: str) -> go.Figure:
    """Each fit's error at every place ahead of the layer. `errors`: columns fit, place, error; the chosen fit is strong."""
    figure = new_figure(
        height=320,
        xaxis=_named(places, range=[-0.3, len(places) - 0.7], showgrid=False),
        yaxis=_fixed(**log_axis(errors["error"].tolist(), text("ahead.chart_y"))),
        legend=_LEGEND,
    )
    symbols, dashes = ("diamond", "circle", "square", "triangle-up", "star"), ("solid", "dot", "dash", "dashdot", "longdash")
    for place, (fit, rows) in enumerate(errors.groupby("fit", sort=False)):
        figure.add_scatter(
            x=rows["place"].tolist(),
            y=rows["error"].tolist(),
            mode="lines+markers",
            line={
                "color": COLORS["least-squares" if place == 0 else "snows"],
                "dash": dashes[place],
                "width": 4 if fit == chosen else 2,
            },
            marker={"symbol": symbols[place], "size": 10 if fit == chosen else 7},
            name=str(fit),
            hovertemplate="%{y:.3g}",
        )
    return figure


def descent_chart(
    heights: np.ndarray, x: Sequence[float], y: Sequence[float], paths: Mapping[str, Sequence[tuple[float, float]]]
) -> go.Figure:
    """A valley from above, and the ways down it, by their keys in the texts. `heights` (len(y), len(x))."""
    figure = new_figure(
        height=380,
        xaxis=_fixed(title=text("downhill.chart_x"), range=[min(x), max(x)], showgrid=False, zeroline=False),
        yaxis=_fixed(title=text("downhill.chart_y"), range=[min(y), max(y)], showgrid=False, zeroline=False),
        legend=_LEGEND,
    )
    figure.add_contour(
        z=np.log10(heights + 1e-3).round(4).tolist(),
        x=list(x),
        y=list(y),
        contours={"coloring": "lines"},
        ncontours=18,
        colorscale=[[0, "rgba(128,136,146,0.75)"], [1, "rgba(128,136,146,0.25)"]],
        line={"width": 1},
        showscale=False,
        hoverinfo="skip",
    )
    looks = {
        "descent": (COLORS["none"], "circle-open", "dot"),
        "newton": (COLORS["sparsegpt"], "square", "dash"),
        "conjugate": (COLORS["snows"], "circle", "solid"),
        "preconditioned": (COLORS["least-squares"], "diamond", "dashdot"),
    }
    names = choices("downhill.ways", looks)
    for name, path in paths.items():
        color, symbol, dash = looks[name]
        figure.add_scatter(
            x=[point[0] for point in path],
            y=[point[1] for point in path],
            mode="lines+markers",
            line={"color": color, "dash": dash, "width": 2},
            marker={"symbol": symbol, "size": 8},
            name=names[name],
            hovertemplate="(%{x:.3g}, %{y:.3g})",
        )
    return figure


def likeness_chart(alike: np.ndarray, names: Sequence[str], groups: int) -> go.Figure:
    """How alike the inputs of a row are, as correlations -1 … 1 (P, P), with the groups marked."""
    figure = new_figure(
        height=330,
        xaxis=_named(names, constrain="domain"),
        yaxis=_named(names, constrain="domain", autorange="reversed", scaleanchor="x"),
    )
    figure.add_heatmap(
        z=alike.round(3).tolist(),
        colorscale=[[0, COLORS["none"]], [0.5, "rgba(128,136,146,0.08)"], [1, COLORS["snows"]]],
        zmin=-1,
        zmax=1,
        xgap=1,
        ygap=1,
        colorbar={"title": text("which.alike_scale"), "thickness": 10, "tickvals": [-1, 0, 1]},
        hovertemplate=f"{text('which.alike_point')}<extra></extra>",
    )
    for edge in range(groups, len(names), groups):
        figure.add_vline(x=edge - 0.5, line={"color": LINE, "width": 1.5})
        figure.add_hline(y=edge - 0.5, line={"color": LINE, "width": 1.5})
    return figure
