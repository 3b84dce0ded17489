"""How far ahead should a layer look?

The address names the study: `?batch=ID`; `?batch=new` is the form, `?batch=recorded` the one that came with the app.
`axis` is what is drawn against, `loss` which one is drawn.
"""

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from app import state, words
from app.charts import compare as compare_charts
from app.charts import palette
from app.forms import study as study_form
from app.parts import comparison_view, live, panels
from app.tables import study
from app.tables.study import AGAINST, DRAWN, LOSSES, Study
from snows.measures.names import MEASURES
from snows.runs.store import ACTIVE, Comparison, Run

NEW, RECORDED = "new", "recorded"


def go(key: str) -> None:
    st.switch_page(state.page("study"), query_params={"batch": key})


def show() -> None:
    comparisons = {comparison.id: comparison for comparison in state.store().comparisons() if study.is_study(comparison)}
    recorded = study.RECORDED.list()[::-1]  # by name
    comparison_key = state.asked("batch") or next(iter(comparisons), NEW)
    known = {NEW, *comparisons, *([RECORDED] if recorded else [])}
    key = comparison_key if comparison_key in known else NEW
    heading(comparisons, recorded, key)
    # A place each, so that what comes and goes does not make Streamlit build the next part anew.
    body, settings, example = st.container(), st.container(), st.container()
    with body:
        if key != comparison_key:
            st.error(
                f"There is no study {words.plain(repr(comparison_key))}. Its runs may have been deleted. Choose another above.",
                icon=":material/error:",
            )
        if key in comparisons:
            runs = comparisons[key].runs()
            comparison_view.follow(key, runs, comparisons[key])
            curves(runs)
        elif key == RECORDED:
            st.caption(":material/inventory_2: A recorded study that came with the app; nothing was computed just now.")
            curves(recorded)
    if key == NEW:
        with settings:
            study_form.draw(go)
        if recorded:
            with example:
                st.divider()
                st.header("A recorded study", anchor=False)
                st.caption("What a study looks like. This one came with the app; nothing was computed just now.")
                curves(recorded)


def heading(comparisons: Mapping[str, Comparison], recorded: list[Run], key: str) -> None:
    row = st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute", gap="large")
    row.title("How far ahead should a layer look?", anchor=False, width="content")
    words = {NEW: "A new study"} | comparison_view.titles(comparisons)
    if recorded:
        words[RECORDED] = "A recorded study"
    with row:
        picked = st.selectbox(
            "Study",
            options := list(words),
            options.index(key),
            key=f"study-{state.turn('batch')}",
            width=400,
            format_func=words.__getitem__,
        )
    if picked != key:
        go(picked)
    st.markdown(
        "**K** is how many operations after a layer its weights must also reproduce. The same network is pruned with several "
        "K, all else equal: what each brings, what it costs, and which cannot be told from the best. Or with several numbers "
        "of calibration images: how many a fit needs until it carries over to others."
    )


# --- what came of it ---


def curves(runs: list[Run]) -> None:
    results = comparison_view.outcomes(runs)
    known = study.against(results)
    against = state.chosen("axis", known, known[0])
    study_of_runs = study.of(results, AGAINST[against][0])
    if not study_of_runs.curves:
        st.caption("The figures begin when a first run has finished.")
        return
    so_far = any(run.state() in ACTIVE for run in runs)
    for name, advice in zip(study_of_runs.names, study_of_runs.advice, strict=True):
        if advice is not None:
            whose = f"**{words.plain(name)}.** " if len(study_of_runs.names) > 1 else ""
            done = ":green[:material/check_circle:]" if advice.settled else ":blue[:material/straighten:]"
            icon = ":gray[:material/hourglass_empty:] So far:" if so_far else done
            st.markdown(f"{icon} {whose}{words.plain(advice.reason)}")
    points, lines = study.points(study_of_runs), study.marks(study_of_runs)
    of_measure, of_axis = MEASURES[study_of_runs.measure].title, "K" if against == "k" else AGAINST[against][2]
    st.markdown(f"**{of_measure} against {of_axis}** · {words.plain(' · '.join(study.conditions(study_of_runs)))}")
    first, second = st.columns([3, 2], gap="large")
    with first:
        if len(known) > 1:
            axis(known)
        figure(points, lines, study_of_runs.measure, against, dense=study.dense(study_of_runs), height=390, legend=True)
        st.caption(
            "Filled: within the noise of the best, two standard errors of the difference on the same images. Ringed: the "
            "smallest such K, or the fewest images. The axis is of square roots, so that small values have room."
        )
    with second:
        losses = [name for name in LOSSES if points[name].notna().any()]
        loss = st.segmented_control(
            "Loss",
            losses,
            format_func=LOSSES.__getitem__,
            required=True,
            wrap=True,
            **state.addressed("loss", losses, losses[0]),
        )
        assert loss is not None  # it is required
        figure(points, lines, loss, against, height=372)
        st.caption(MEASURES[loss].meaning)
    for measure, column in zip(("num_products", "memory"), st.columns(2, gap="large"), strict=True):
        with column:
            if points[measure].notna().any():
                figure(points, lines, measure, against)
                st.caption(MEASURES[measure].meaning)
            else:
                st.caption(f"These runs have no {MEASURES[measure].title.lower()} on record; newer ones do.")
    st.caption(
        "Time is not compared: it depends on what else the machine did while a run worked. It is below, as it was measured. "
        "What K costs on any machine are curvature products."
    )
    table(study_of_runs, AGAINST[against][0])
    numbers(points)


def axis(known: list[str]) -> None:
    """What all is drawn against: one of `known`."""
    st.segmented_control(
        "Against",
        known,
        format_func=lambda name: AGAINST[name][2],
        required=True,
        wrap=True,
        help="An operation that K counts is a convolution, a linear layer, an activation, an attention or a normalization. As "
        "shares, networks of different depth stand side by side.",
        **state.addressed("axis", known, known[0]),
    )


def figure(
    points: pd.DataFrame,
    lines: Mapping[str, palette.Line],
    name: str,
    against: str,
    *,
    dense: Mapping[str, float] | None = None,
    height: int = 260,
    legend: bool = False,
) -> None:
    _, title, words = AGAINST[against]
    drawn = compare_charts.study_chart(
        points, lines, name, against=against, title=title, dense=dense, height=height, legend=legend
    )
    live.chart(drawn, key=f"study-{name}", alt=f"{MEASURES[name].axis} against {words}")


def table(study_of_runs: Study, axis: str) -> None:
    of_k = axis == "k"
    st.markdown(
        "**The smallest K within the noise of the best**, and how it relates to the depth of the network"
        if of_k
        else "**The fewest images within the noise of the best**"
    )
    of_networks = study.table(study_of_runs)
    st.dataframe(
        panels.said(of_networks),
        hide_index=True,
        alt="What is recommended for each network",
        column_config={
            "network": st.column_config.TextColumn("Network" if of_k else "Method", width="medium"),
            "operations": st.column_config.NumberColumn("Operations", help="How many the network has of those that K counts."),
            "k": st.column_config.NumberColumn("Smallest K", help="Within the noise of the best."),
            "share": st.column_config.NumberColumn("Share of the operations", format="%.3g %%"),
            **panels.measure_columns(of_networks),
            "images": st.column_config.NumberColumn("Fewest images", help="Within the noise of the best."),
            "best_images": st.column_config.NumberColumn("Best number", help="The one with the highest value, noise or not."),
            "best_k": st.column_config.NumberColumn("Best K", help="The one with the highest value, noise or not."),
        },
    )
    if of_k and len({curve.config.model for curve in study_of_runs.curves}) > 1:
        st.caption(
            "How K should grow with the depth of a network is an open question. Curves that fall together when K is a share of "
            "the operations, and not when it is K itself, speak for a K that grows with depth."
        )


def numbers(points: pd.DataFrame) -> None:
    with st.expander("All points in numbers", icon=":material/table:"):
        measures = [name for name in DRAWN if points[name].notna().any()]
        titles = {name: st.column_config.NumberColumn(MEASURES[name].axis, format="%.4g") for name in measures}
        if "seconds" in titles:
            as_measured = "As it was measured, whatever else the machine did meanwhile."
            titles["seconds"] = st.column_config.NumberColumn(MEASURES["seconds"].axis, format="%.4g", help=as_measured)
        st.dataframe(
            points[["curve", "k", "share", "images", *measures]],
            hide_index=True,
            alt="Every point of the figures",
            column_config={
                "curve": "Curve",
                "k": "K",
                "images": "Calibration images",
                "share": st.column_config.NumberColumn("Of all operations", format="%.3g %%"),
                **titles,
            },
        )


show()
