"""Figures of runs side by side, and of K."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.charts.axes import LEAST_ROWS, LINE, ROW, log_axis, mark_rows, named_rows, new_figure, rows_axis
from app.charts.palette import COLORS, Line, Mark
from snows.measures.names import MEASURES

_LEAST_SPAN = 2  # points of a share; what chance moves shall not fill a figure
_MOST_LEGEND = 3  # entries beside the plot; more go above it, a row each, and the figure grows


def tradeoff_chart(
    points: pd.DataFrame,
    cost: str,
    value: str,
    *,
    dense: float | None = None,
    shown_from: float | None = None,
    legend: Mapping[str, Mark] | None = None,
    height: int = 320,
) -> go.Figure:
    """What each network keeps against what it costs, and the Pareto front: those that no other beats in both.

    `points`: columns label, color, symbol, x, y, x_deviation, y_deviation, best. `cost`, `value`: the measures that `x` and `y`
    are values of. `dense`: the value of the dense network. `shown_from`: the value at the figure's lower end; lower points are
    not drawn. None: at the lowest. `legend`: how each method is drawn, in the order of a legend below the figure; None: none.
    """
    if shown_from is not None:
        points = points[points["y"] >= shown_from]
    costs, values = MEASURES[cost], MEASURES[value]
    log = costs.log and points["x"].max() > 5 * points["x"].min()
    x = (costs.scale * points["x"]).tolist()
    figure = new_figure(
        height=height,
        xaxis=log_axis(x, costs.axis)
        if log
        else {"title": costs.axis, "rangemode": "tozero", "showgrid": False, "zeroline": False, "automargin": True},
        yaxis={"title": values.axis, "zeroline": False, "automargin": True},
        showlegend=bool(legend),
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top"},
    )
    for method, mark in (legend or {}).items():
        figure.add_scatter(
            x=[None],
            y=[None],
            name=words.in_figure(method),
            mode="markers",
            marker={"color": mark.color, "symbol": mark.symbol, "size": 12, "line": {"width": 2, "color": mark.color}},
        )
    reached = values.scale * points["y"].dropna()
    if dense is not None:
        reached = pd.concat([reached, pd.Series([values.scale * dense])])
    if values.of_images and len(reached) and reached.max() - reached.min() < _LEAST_SPAN:
        middle = (reached.max() + reached.min()) / 2
        figure.update_yaxes(range=[middle - 0.6 * _LEAST_SPAN, middle + 0.6 * _LEAST_SPAN])
    front = points[points["best"]].sort_values("x")
    if len(front) > 1:
        figure.add_scatter(
            x=(costs.scale * front["x"]).tolist(),
            y=(values.scale * front["y"]).tolist(),
            mode="lines",
            line={"color": LINE, "width": 2, "shape": "hv"},
            hoverinfo="skip",
            showlegend=False,
        )
    if dense is not None:
        figure.add_hline(y=values.scale * dense, line={"color": COLORS["dense"], "dash": "dash", "width": 1})
        figure.add_annotation(
            text="dense network",
            showarrow=False,
            x=0,
            xref="paper",
            xanchor="left",  # what costs little is seldom as good, so there is room
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
            name=words.in_figure(row.label),
            showlegend=False,
            mode="markers",
            marker={"color": row.color, "symbol": row.symbol, "size": 12, "line": {"width": 2, "color": row.color}},
            hovertemplate=f"<b>{words.in_figure(row.label)}</b><br>{values.title}: {values.say(row.y, row.y_deviation)}<br>"
            f"{costs.title}: {costs.say(row.x, row.x_deviation)}<extra></extra>",
        )
    return figure


def differences_chart(points: pd.DataFrame, value: str, best: str) -> go.Figure:
    """How far each network is from the best one, with its spread over seeds: rows downwards, the best first. Filled: the best,
    and what is within the noise of it.

    `points`: columns label, color, symbol, x, x_deviation, level, said. `value`: the measure that `x` is a difference of.
    `best`: what the best one reaches, in words.
    """
    change, names = MEASURES["change"], points["label"].tolist()
    figure = new_figure(
        height=max(24 * len(names), LEAST_ROWS) + 60,
        xaxis={
            "title": f"{MEASURES[value].title}, from the best ({best}), in {change.unit}",
            "zeroline": True,
            "automargin": True,
        },
        yaxis=named_rows(names),
        showlegend=False,
    )
    for place, row in enumerate(points.itertuples()):
        deviation = change.scale * row.x_deviation
        figure.add_scatter(
            x=[change.scale * row.x],
            y=[place],
            error_x={"array": [deviation], "visible": deviation > 0, "width": 3, "thickness": 1.5},
            name=words.in_figure(row.label),
            mode="markers",
            marker={
                "color": row.color,
                "symbol": row.symbol.removesuffix("-open") + ("" if row.level else "-open"),
                "size": 11,
                "line": {"width": 2, "color": row.color},
            },
            hovertemplate=f"<b>{words.in_figure(row.label)}</b><br>{words.in_figure(row.said)}<extra></extra>",
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
        log_axis(values["value"].tolist(), title) if log else {"title": title, "zeroline": False, "automargin": True}
    )
    above = 26 + 20 * max(len(marks) - _MOST_LEGEND, 0)
    figure = new_figure(
        height=max(ROW * len(names), LEAST_ROWS) + 60 + above,
        margin={"l": 8, "r": 12, "t": above, "b": 48},
        xaxis=axis,
        yaxis=rows_axis(names, None),
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
        hovermode="y unified",
    )
    mark_rows(figure, blocks, None)
    for label, mark in marks.items():
        rows = values[values["label"] == label]
        figure.add_scatter(
            x=rows["value"].tolist(),
            y=rows["index"].tolist(),
            name=words.in_figure(label),
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
    figure = new_figure(
        height=54 * len(names) + 90,
        xaxis={"title": "Size (MB)", "rangemode": "tozero", "zeroline": False, "automargin": True},
        yaxis=named_rows(names, margin=0.5),
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
    figure = new_figure(
        height=44 * len(names) + 70,
        xaxis={"title": "A batch (ms)", "rangemode": "tozero", "zeroline": False, "automargin": True},
        yaxis=named_rows(names),
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


_SHARES = (0, 1, 2, 5, 10, 20, 50, 100)


def study_chart(
    points: pd.DataFrame,
    lines: Mapping[str, Line],
    measure: str,
    *,
    against: str = "k",
    title: str = "K (operations ahead)",
    dense: Mapping[str, float] | None = None,
    height: int = 260,
    legend: bool = True,
) -> go.Figure:
    """A measure against K or the number of images, a line a curve. What is within the noise of the best is filled, what is
    recommended has a ring.

    `points`: columns curve, k, share (percent), images, level, recommended, `measure` and its deviation over seeds. `lines` by
    curve, in the order of the legend. `against`: the column of `points` on the axis, whose title is `title`. `dense`: levels of
    dense networks by name. The axis is of square roots: small values, which differ most, have room, and 0 has a place.
    """
    of_measure, log = MEASURES[measure].axis, MEASURES[measure].log
    measured_points = points.dropna(subset=[against, measure])
    x = measured_points[against]
    ticks = _root_ticks(x.tolist(), _SHARES if against == "share" else sorted(set(x)))
    end = 1.05 * math.sqrt(max(x, default=0) or 1)
    figure = new_figure(
        height=height,
        margin={"l": 8, "r": 12, "t": 26 if legend else 8, "b": 8},
        xaxis={
            "title": title,
            "tickvals": [math.sqrt(tick) for tick in ticks],
            "ticktext": [f"{tick:g}" for tick in ticks],
            "range": [-0.05 * end, end],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
        yaxis=log_axis(measured_points[measure].tolist(), of_measure)
        if log
        else {"title": of_measure, "zeroline": False, "automargin": True},
        showlegend=legend and len(lines) > 1,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
    )
    for place, (name, value) in enumerate((dense or {}).items()):
        figure.add_hline(y=value, line={"color": COLORS["dense"], "dash": "dash", "width": 1})
        figure.add_annotation(
            text=words.in_figure(name),
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
            customdata=[[said] for said in _words_of(rows, against)],
            name=words.in_figure(name),
            mode="lines+markers",
            line={"color": line.color, "width": 2, "dash": line.dash},
            marker={
                "color": line.color,
                "symbol": [line.symbol + ("" if level else "-open") for level in rows["level"]],
                "size": 10,
                "line": {"width": 2, "color": line.color},
            },
            cliponaxis=False,
            hovertemplate=f"<b>{words.in_figure(name)}</b><br>%{{customdata[0]}}<br>{of_measure} %{{y:.3g}}<extra></extra>",
        )
    return figure


def _words_of(points: pd.DataFrame, against: str) -> list[str]:
    return [f"{n:,} images" for n in points["images"]] if against == "images" else [f"K = {k}" for k in points["k"]]


def _root_ticks(values: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """Those of `wanted` on an axis of square roots over `values`, but for what would stand too near the one before."""
    high = math.sqrt(max(values, default=0)) or 1.0
    ticks: list[float] = []
    for tick in wanted:
        if math.sqrt(tick) <= 1.05 * high and (not ticks or math.sqrt(tick) - math.sqrt(ticks[-1]) >= 0.05 * high):
            ticks.append(tick)
    return ticks
