"""Figures of the solver: residuals, curvature, steps, eigenvalues."""

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from app.charts.axes import BAND, LINE, ROW, log_axis, mark_rows, named_rows, new_figure, rows_axis
from app.charts.palette import COLORS, TROUBLE, WAYS


def _iterations_chart(directions: pd.DataFrame, column: str, title: str, span: Sequence[float] = ()) -> go.Figure:
    """A value of every conjugate-gradient iteration in a layer, a line and a band a Newton step. The axis spans also `span`."""
    figure = new_figure(
        height=260,
        margin={"l": 8, "r": 12, "t": 24, "b": 8},
        xaxis={"title": "Conjugate-gradient iteration", "rangemode": "tozero", "showgrid": False, "automargin": True},
        yaxis=log_axis([*span, *directions[column]], title),
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
    _step_bands(figure, directions)
    return figure


def _step_bands(figure: go.Figure, directions: pd.DataFrame) -> None:
    """A band behind the iterations of each Newton step, every second one shaded, with the step's number above it."""
    begin = 0.0
    for place, (step, rows) in enumerate(directions.groupby("step")):
        end = float(rows["iteration"].max())
        if place % 2 == 0:
            shape = {"type": "rect", "x0": begin, "x1": end, "yref": "paper", "y0": 0, "y1": 1}
            figure.add_shape(**shape, fillcolor=BAND, line={"width": 0}, layer="below")
        figure.add_annotation(
            text=f"Newton step {step}" if place == 0 else str(step),
            font={"color": COLORS["dense"]},
            showarrow=False,
            x=begin if place == 0 else (begin + end) / 2,
            xanchor="left" if place == 0 else "center",
            y=1,
            yref="paper",
            yanchor="bottom",
        )
        begin = end


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
    """Conjugate gradient's residual in a layer, a line a Newton step. `residuals`: columns layer, step, iteration, residual.

    Each begins at 1, since before its first iteration all of the gradient is left.
    """
    begins = residuals.groupby("step", as_index=False).first()
    begins = begins.assign(iteration=begins["iteration"] - 1, residual=1.0)
    whole = pd.concat([begins, residuals]).sort_values(["step", "iteration"], kind="stable") if len(residuals) else residuals
    return _tolerance(_iterations_chart(whole, "residual", "Residual ÷ gradient", [rtol, 1.0]), rtol)


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
    span: Sequence[float] = (),
    limit: tuple[float, str] | None = None,
    blocks: Sequence[str] = (),
    chosen: int | None = None,
) -> go.Figure:
    """All Newton steps of a run by one measure, on the rows of `loss_chart`; within a row the first step is on top.

    `marks`: columns index, layer, step, part, value, trouble. Of two parts the first is open and the last filled. What is in
    trouble is a cross. `limit`: a line, and what it is. The axis spans also `span`.
    """
    values = [*span, *marks["value"], *([limit[0]] if limit else [])]
    axis: dict[str, object] = log_axis(values, title) if log else {"title": title, "rangemode": "tozero", "zeroline": False}
    parts, troubled = list(dict.fromkeys(marks["part"])), marks["trouble"] != ""
    figure = new_figure(
        height=ROW * len(layers) + 92,
        xaxis={**axis, "automargin": True},
        yaxis=rows_axis(layers, chosen),
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
    )
    mark_rows(figure, blocks, chosen)
    steps = int(marks["step"].max()) if len(marks) else 1
    places = marks["index"] + (marks["step"] - (steps + 1) / 2) * min(0.34, 0.68 / steps)
    placed = marks.assign(y=places)
    spans = placed.groupby("y")["value"].agg(["min", "max"])
    figure.add_scatter(
        x=[x for low, high in spans.to_numpy() for x in (low, high, None)],
        y=[y for y in spans.index for y in (y, y, None)],
        mode="lines",
        line={"color": LINE, "width": 2},
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
    figure = new_figure(
        height=260,
        xaxis=log_axis(finite["epsilon"].tolist(), "Step ε, relative to the weights"),
        yaxis=log_axis(finite["error"].tolist(), "Relative error"),
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
    figure = new_figure(
        height=260,
        xaxis={"title": "Conjugate-gradient iteration", "rangemode": "tozero", "showgrid": False, "automargin": True},
        yaxis=log_axis([rtol, 1.0, *solves["residual"]], "Residual ÷ gradient"),
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
    figure = new_figure(
        height=170,
        xaxis=log_axis(shares["share"].abs().tolist(), "Eigenvalue ÷ largest"),
        yaxis=named_rows(names, margin=0.5),
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


def descents_chart(points: pd.DataFrame, against: str, title: str) -> go.Figure:
    """Ways down one loss, side by side; rates of Adam's that end higher are faint.

    `points`: columns way, key (of `palette.WAYS`), rate, chosen, loss, and `against`, which goes across under its `title`.
    """
    finite = points[points["loss"].map(math.isfinite)]
    figure = new_figure(
        height=400,
        xaxis={"title": title, "rangemode": "tozero", "showgrid": False, "zeroline": False, "automargin": True},
        yaxis=log_axis(finite["loss"].tolist(), "Loss of the window"),
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
    )
    # Faint lines below, and then in the order of the palette, whose dashed line lies on one that it often equals.
    for chosen in (False, True):
        for key, (color, symbol, dash) in WAYS.items():
            for _, rows in finite[(finite["key"] == key) & (finite["chosen"] == chosen)].groupby("rate", dropna=False):
                figure.add_scatter(
                    x=rows[against].tolist(),
                    y=rows["loss"].tolist(),
                    mode="lines+markers" if chosen else "lines",
                    line={"color": color, "width": (4 if key == "gauss_newton" else 2) if chosen else 1, "dash": dash},
                    marker={"symbol": symbol, "size": 7 if key != "adam" else 5},
                    opacity=1.0 if chosen else 0.35,
                    name=str(rows["way"].iloc[0]),
                    showlegend=chosen,
                    hoverinfo=None if chosen else "skip",
                    hovertemplate="%{x:.3g}: loss %{y:.3g}" if chosen else None,
                )
    return figure
