"""Which method? Rows side by side: a sentence, what each keeps against what it costs, how far each is from the best, and every
figure."""

import html
import itertools
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import hand_on as hand_on_files
from app import state, visitor, words
from app.charts import compare as compare_charts
from app.charts.palette import Mark
from app.hand_on import Comparison
from app.parts import live
from app.tables import compare
from app.work import public
from snows.config import InputError
from snows.measures.names import MEASURES
from snows.plans.comparisons import Row
from snows.plans.words import BEST, COLUMNS, LEVEL

WORK = "multiply_adds"
MEANINGS = {MEASURES[name].title: MEASURES[name].meaning for name in COLUMNS} | {
    "Seeds": "How many runs that differ in their seed alone are one row. ± is the standard deviation over them."
}


def choices() -> DeltaGenerator:
    """Where it is chosen what to show."""
    return st.container(horizontal=True, vertical_alignment="bottom", gap="medium")


def draw(rows: list[Row], choices: DeltaGenerator, count_work: Callable[[], list[Row]] | None = None) -> list[Row]:
    """All of it, of rows of one network; returns those of the patterns that were chosen. `choices`: where to choose them.
    `count_work`: the same rows with their multiply-adds, which takes a while; None where these are there, or cannot be had."""
    across = compare.patterns(rows)
    with choices:
        chosen = across
        if len(across) > 1:
            chosen = st.pills(
                "Patterns",
                across,
                selection_mode="multi",
                width="content",
                help="How many weights stay: `2:4` keeps 2 of every 4, `70%` removes that share. Choose one to see its methods "
                "one by one.",
                **state.addressed("pattern", across, across),
            )
            chosen = [pattern for pattern in across if pattern in chosen] or across
    rows = _of(rows, chosen)
    if verdict := compare.verdict(rows):
        st.markdown(verdict)
    one_pattern = len(compare.patterns(rows)) == 1
    points = compare.differences(rows) if one_pattern else pd.DataFrame()
    left, right = st.columns(2, gap="large") if len(points) > 1 else (st.container(), st.container())
    with left:
        cost, rows = _cost(rows, chosen, count_work)
        if cost is not None:
            _tradeoff(rows, cost)
    with right:
        if len(points) > 1:
            _differences(points, rows)
    if not one_pattern and len(compare.behind_the_best(rows)) > 1:
        _beside(rows)
        with st.expander("Every figure", icon=":material/table:"):
            table(rows)
    else:
        table(rows)
    notes = {words.counted(row.num_evaluation, "image") for row in rows}
    if len(notes) > 1:
        st.warning(
            f"These were not measured on the same images ({', '.join(sorted(notes))}), so small differences mean nothing.",
            icon=":material/warning:",
        )
    return rows


def hand_on(comparison: Callable[[], Comparison], name: str) -> None:
    """A button that makes a folder of a comparison, to be passed on, and downloads it."""
    is_public, refusal = public.is_public(), visitor.refusal()
    st.download_button(
        "Hand on",
        visitor.in_turn(lambda: hand_on_files.packed(hand_on_files.files(comparison(), draw=not is_public), name)),
        f"{name}.zip",
        "application/zip",
        icon=":material/ios_share:",
        on_click="ignore",
        key="hand-on",
        disabled=bool(refusal),
        help=refusal
        or "One folder that needs nothing else, for a thread or a paper: a page whose figures answer to the mouse, each also "
        "as SVG and PDF, the answers that changed, tables as CSV and LaTeX, every configuration, and what to type to do it "
        "again. Networks with weights are asked for their answers first, which takes a while.",
    )


def _of(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    return [row for row in rows if str(row.config.prune.pattern) in patterns]


def _cost(rows: list[Row], patterns: Sequence[str], count_work: Callable[[], list[Row]] | None) -> tuple[str | None, list[Row]]:
    """What accuracy is drawn against, which is chosen here if there are several, and the rows (of `patterns`) that have it."""
    offered = compare.costs(rows)
    if count_work is not None and "density" in offered:
        offered = [cost for cost in compare.COSTS if cost in offered or cost == WORK]
    title = MEASURES[compare.judged_by(rows)].title
    if not offered:
        return None, rows
    if len(offered) == 1:
        st.markdown(f"**{title} against {MEASURES[offered[0]].title.lower()}**")
        return offered[0], rows
    cost = st.segmented_control(
        f"{title} against",
        offered,
        format_func=lambda name: MEASURES[name].title,
        required=True,
        help="\n".join(f"- **{MEASURES[name].title}**: {MEASURES[name].meaning}" for name in offered),
        **state.addressed("against", offered, offered[0]),
    )
    if cost == WORK and count_work is not None:
        try:
            return cost, _of(count_work(), patterns)
        except InputError as error:
            st.error(words.plain(str(error)), icon=":material/error:")
            return None, rows
    return cost, rows


def _tradeoff(rows: list[Row], cost: str) -> None:
    points, value = compare.tradeoff(rows, cost)
    figure = compare_charts.tradeoff_chart(
        points, cost, value, dense=compare.dense_value(rows, value), shown_from=compare.shown_from(points), height=340
    )
    alt = f"{MEASURES[value].title} of each run against {MEASURES[cost].title.lower()}, with the Pareto front"
    live.chart(figure, key="tradeoff", alt=alt)
    if len(rows) > 1:
        _legend(compare.drawn_marks(rows, points))
        says = "The line joins what no other beats in both at once (the Pareto front), from the first that is of use."
        says = f"{says} {compare.not_drawn(points, value)}".rstrip()
        if cost == "seconds":
            says += " Times are as they were measured: whatever else the machine did meanwhile made them longer."
        st.caption(says)


def _legend(marks: Mapping[str, Mark]) -> None:
    parts = [
        f'<span style="white-space: nowrap; margin-right: 1rem"><span style="color: {mark.color}">'
        f"{mark.letter}</span> {html.escape(method)}</span>"
        for method, mark in marks.items()
    ]
    st.html(f'<div style="font-size: 0.875rem; line-height: 1.7">{" ".join(parts)}</div>')


def _differences(points: pd.DataFrame, rows: list[Row]) -> None:
    value = compare.judged_by(rows)
    st.markdown("**How far from the best**")
    figure = compare_charts.differences_chart(points, value, points["said"].iloc[0])
    live.chart(figure, key="differences", alt=f"{MEASURES[value].title} of each run, less that of the best")
    says = "Bars: standard deviation over seeds, seed by seed where both have the same. Filled: the best, and what is level."
    of_no_use = sum(not row.is_of_use for row in rows)
    st.caption(says + (f" {of_no_use} of no use {'is' if of_no_use == 1 else 'are'} left out." if of_no_use else ""))


def _beside(rows: list[Row]) -> None:
    value = compare.judged_by(rows)
    st.markdown(f"**How far from the best of each pattern**, {value} in percentage points")
    _marked(*compare.beside_table(rows), alt="Methods down and patterns across, each beside the best of its pattern")
    st.caption(
        f"{BEST} the best of a pattern, with its {value}; {LEVEL} level: its distance is within two standard errors. "
        "± is the standard deviation of the distance over seeds, taken seed by seed where both have the same."
    )


def table(rows: list[Row]) -> None:
    """Every figure of the rows, the dense network's above them."""
    _marked(*compare.table(rows), alt="The dense network and the runs with their measures, best of each column marked")


def _one_after_another(texts: "pd.Series[str]") -> Callable[[object], str]:
    said = itertools.cycle(map(str, texts))
    return lambda value: next(said)


def _marked(numbers: pd.DataFrame, texts: pd.DataFrame, alt: str) -> None:
    """Texts that sort by their numbers, with the best of each column on green."""
    # A format is asked for a column's cells from the top to the bottom; a format for each cell alone takes seconds to tell.
    styled = numbers.style.format({name: _one_after_another(texts[name]) for name in texts.columns.drop("Method")})
    marked = texts.map(lambda text: "background-color: rgba(0, 158, 115, 0.18)" if str(text).endswith(BEST) else "")
    st.dataframe(
        styled.apply(lambda _: marked, axis=None),
        hide_index=True,
        height="content",
        column_config={
            "Method": st.column_config.TextColumn("Method", width=320),
            **{name: st.column_config.Column(name, help=meaning) for name, meaning in MEANINGS.items() if name in texts},
        },
        placeholder="",
        alt=alt,
    )
