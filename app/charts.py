"""Data frames to Plotly figures, for the app and for notebooks alike.

One color a method, everywhere: Okabe and Ito's palette ("Color Universal Design", 2008; its blue a shade lighter), which people
with the common forms of color blindness tell apart, and one marker shape a method besides. The dense network is neutral gray.
Each color has a contrast of 3 or more on the light and on the dark background, so a figure has no theme: it is transparent.
"""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

COLORS = {
    "dense": "#8A929C",
    "none": "#D55E00",
    "least-squares": "#009E73",
    "sparsegpt": "#CC79A7",
    "snows": "#0077BB",
}
LABELS = {
    "dense": "Dense network",
    "none": "Mask only",
    "least-squares": "Least squares",
    "sparsegpt": "SparseGPT",
    "snows": "SNOWS",
}
_SYMBOLS = {"none": "circle-open", "least-squares": "diamond", "sparsegpt": "square", "snows": "circle"}
_LINE = "rgba(128, 136, 146, 0.45)"
_ROW, _MOST_ROWS_NAMED = 19, 64


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


def _log_axis(values: list[float], title: str) -> dict[str, object]:
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


def loss_chart(losses: pd.DataFrame, layers: list[str], update: str) -> go.Figure:
    """Each layer's loss by stage, one row a layer in network order.

    `losses`: columns index, layer, stage, loss. `layers`: all that the run will prune; the axis stands still while rows fill.
    """
    method_of = stages(update)
    figure = _figure(
        height=_ROW * len(layers) + 92,
        xaxis=_log_axis(losses["loss"].tolist(), "Loss (mean squared error)"),
        yaxis={
            "range": [len(layers) - 0.4, -0.6],
            "tickmode": "array",
            "tickvals": list(range(0, len(layers), step := math.ceil(len(layers) / _MOST_ROWS_NAMED) or 1)),
            "ticktext": layers[::step],
            "showgrid": False,
            "zeroline": False,
            "automargin": True,
        },
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
    )
    spans = losses.groupby("index")["loss"].agg(["min", "max"])
    figure.add_scatter(
        x=[x for low, high in spans.to_numpy() for x in (low, high, None)],
        y=[y for index in spans.index for y in (index, index, None)],
        mode="lines",
        line={"color": _LINE, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    shown: set[str] = set()
    for stage, method in method_of.items():
        rows = losses[losses["stage"] == stage]
        if rows.empty or method in shown:
            continue
        shown.add(method)
        figure.add_scatter(
            x=rows["loss"].tolist(),
            y=rows["index"].tolist(),
            customdata=rows["layer"].tolist(),
            name=LABELS[method],
            mode="markers",
            marker={
                "color": COLORS[method],
                "symbol": _SYMBOLS[method],
                "size": 9,
                "line": {"width": 2, "color": COLORS[method]},
            },
            hovertemplate="%{customdata}<br>%{x:.3g}",
        )
    return figure


def residual_chart(residuals: pd.DataFrame, rtol: float) -> go.Figure:
    """Conjugate gradient's residual in a layer, a line a Newton step. `residuals`: columns layer, step, iteration, residual."""
    figure = _figure(
        height=260,
        xaxis={"title": "Conjugate-gradient iteration", "rangemode": "tozero", "showgrid": False, "automargin": True},
        yaxis=_log_axis([rtol, *residuals["residual"]], "Residual ÷ gradient"),
        showlegend=False,
    )
    for step, rows in residuals.groupby("step"):
        figure.add_scatter(
            x=rows["iteration"].tolist(),
            y=rows["residual"].tolist(),
            mode="lines+markers",
            line={"color": COLORS["snows"], "width": 2},
            marker={"size": 5},
            name=f"Newton step {step}",
            hovertemplate="iteration %{x}: %{y:.3g}",
        )
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
        colorscale=[[0, "rgba(128, 136, 146, 0.18)"], [1, "#5F7F99"]],
        zmin=0,
        zmax=1,
        xgap=3,
        ygap=3,
        showscale=False,
        hoverinfo="skip",
    )
    return figure
