"""The figure of a budget: what each layer gets, and what it would lose by each pattern."""

import pandas as pd
import plotly.graph_objects as go

from app.charts.axes import LINE, ROW, log_axis, new_figure, rows_axis
from app.charts.palette import COLORS
from snows.measures.names import number


def shares(given: pd.DataFrame, alternatives: pd.DataFrame) -> go.Figure:
    """Left a bar a layer with the share it keeps, on a log axis; right the network's error with this layer alone pruned, a ring
    at each pattern and a dot at the one it gets. `given`, `alternatives`: as in `tables.budget`; without these, bars alone."""
    kept, rows = (100 * given["kept"]).tolist(), list(range(len(given)))
    both = len(alternatives) > 0
    axis = log_axis([*kept, 100.0], "Keeps, %")
    axis["range"][1] += 0.35  # room for the last bar's text
    powers = [tick for tick in (0.1, 1.0, 10.0, 100.0) if tick >= 10 ** axis["range"][0]]  # beside names there is room for few
    axis |= {"tickvals": powers, "ticktext": [f"{tick:g}" for tick in powers]}
    figure = new_figure(
        height=ROW * len(given) + 80,
        margin={"l": 8, "r": 8, "t": 8, "b": 40},
        xaxis={**axis, "domain": [0, 0.55 if both else 1], "fixedrange": True},
        yaxis=rows_axis(given["layer"].tolist(), None) | {"fixedrange": True},
        showlegend=False,
        bargap=0.3,
    )
    texts = given["keeps"] + given["own"].map({True: " (yours)", False: ""})
    figure.add_bar(
        x=kept,
        y=rows,
        name="keeps",
        orientation="h",
        marker={"color": COLORS["snows"]},
        text=texts.tolist(),
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{text}: keeps %{x:.3g} %<extra></extra>",
    )
    if both:
        figure.layout.xaxis2 = {
            **log_axis(alternatives["loss"].tolist(), "Error alone"),
            "domain": [0.6, 1],
            "anchor": "y",
            "fixedrange": True,
        }
        for chosen, marker in (
            (False, {"symbol": "circle-open", "size": 6, "color": LINE}),
            (True, {"symbol": "circle", "size": 9, "color": COLORS["snows"]}),
        ):
            points = alternatives[alternatives["chosen"] == chosen]
            figure.add_scatter(
                x=points["loss"].tolist(),
                y=points["row"].tolist(),
                xaxis="x2",
                name="gets" if chosen else "might get",
                mode="markers",
                marker=marker,
                customdata=[
                    f"{text}: error {number(loss)}" for text, loss in zip(points["keeps"], points["loss"], strict=True)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
    return figure
