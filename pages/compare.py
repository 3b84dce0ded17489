"""Which method, which K, for this network?

The address names what is compared: `?batch=ID`, or runs `?runs=ID,ID`; `?batch=new` is the form, `?batch=marked` and
`?batch=recorded` are what they say. `view` is the closer look, `network` the one looked at, `show` the runs
looked into by their places, `likeness` the measure of representations.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st
from pydantic import ValidationError

from app import state, words
from app.charts import compare as compare_charts
from app.forms import comparison as comparison_form
from app.parts import comparison_view, live, panels
from app.parts.looks import answer_view, attention_view, depth_view, layer_view, speed_view
from app.tables import compare, study
from app.tables.compare import Entry
from snows.config import InputError
from snows.measures.names import MEASURES
from snows.plans.comparisons import Row
from snows.plans.words import BEST, COLUMNS, LEVEL, row_names
from snows.runs.store import Comparison, Run

if TYPE_CHECKING:
    pass


NEW, MARKED, RECORDED, CHOSEN = "new", "marked", "recorded", "runs"
MOST_SHOWN = 10  # networks in the closer look
USUALLY_SHOWN = 6


# --- what is compared ---


@dataclass(frozen=True)
class Choice:
    """What the address says to compare. `problem`: why that cannot be, or nothing."""

    key: str
    runs: list[Run]
    comparison: Comparison | None = None
    problem: str = ""


def marked_runs() -> list[Run]:
    return [run for run in state.store().list() if is_marked(run)]


def is_marked(run: Run) -> bool:
    try:
        return run.labels().compare
    except ValidationError:
        return False


def choice(comparisons: Mapping[str, Comparison], marked: list[Run]) -> Choice:
    key, listed = state.asked("batch"), state.asked("runs")
    if listed:
        listed_runs, missing = [], []
        for run_id in dict.fromkeys(listed.split(",")):
            try:
                listed_runs.append(state.find_run(run_id))
            except KeyError as error:
                missing.append(str(error.args[0]))
        return Choice(CHOSEN, listed_runs, problem=" ".join(missing))
    if key is None:
        key = next(iter(comparisons), MARKED if marked else NEW)
    match key:
        case "new":
            return Choice(NEW, [])
        case "marked":
            return Choice(MARKED, marked)
        case "recorded":
            return Choice(RECORDED, list(state.recorded_runs().list()))
    if key in comparisons:
        return Choice(key, comparisons[key].runs(), comparisons[key])
    return Choice(NEW, [], problem=f"There is no comparison {key!r}. Its runs may have been deleted. Choose another above.")


def go(key: str) -> None:
    st.switch_page(state.page("compare"), query_params={"batch": key})


def show() -> None:
    comparisons = {comparison.id: comparison for comparison in state.store().comparisons()}
    marked = marked_runs()
    now = choice(comparisons, marked)
    heading(comparisons, marked, now)
    # A place each, so that what comes and goes does not make Streamlit build the next part anew.
    body, settings, example = st.container(), st.container(), st.container()
    with body:
        if now.problem:
            st.error(words.plain(now.problem), icon=":material/error:")
        if now.key in (MARKED, CHOSEN):
            pick_runs(now)
        if now.key != NEW:
            draw_comparison(now)
    if now.key == NEW:
        with settings:
            comparison_form.draw(go)
        recorded = list(state.recorded_runs().list())
        if recorded:
            with example:
                st.divider()
                st.header("Recorded runs", anchor=False)
                st.caption("What a comparison looks like. These came with the app; nothing was computed just now.")
                draw_comparison(Choice(RECORDED, recorded))


def heading(comparisons: Mapping[str, Comparison], marked: list[Run], now: Choice) -> None:
    row = st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute", gap="large")
    row.title("Which method, which K, for this network?", anchor=False, width="content")
    words = {
        NEW: "A new comparison",
        **comparison_view.titles(comparisons),
        MARKED: f"Marked runs ({len(marked)})",
        RECORDED: "Recorded runs",
    }
    if now.key == CHOSEN:
        words[CHOSEN] = f"Runs of your choice ({len(now.runs)})"
    with row:
        picked = st.selectbox(
            "Compare",
            options := list(words),
            options.index(now.key),
            key=f"compare-{state.turn('batch')}",
            width=400,
            format_func=words.__getitem__,
        )
    if picked != now.key:
        go(picked)
    st.markdown(
        "Runs on the same images side by side: what each keeps of the network, and what it costs. The best of a column bears "
        f"{BEST}, and what is within the noise of it {LEVEL}: of those that are of use, which keep half of what the dense "
        "network has over chance."
    )


def pick_runs(now: Choice) -> None:
    """Choose the runs one by one. The address follows."""
    own = [run for run in state.store().list()[:200] if run.state() == "finished"]
    known = {run.id: run for run in (*own, *state.recorded_runs().list(), *now.runs)}
    chosen = [run.id for run in now.runs]
    picked = st.multiselect(
        "Runs",
        list(known),
        chosen,
        format_func=panels.run_labels(known).__getitem__,
        key=f"compare-runs-{state.turn('runs')}",
        placeholder="Choose runs to set side by side",
        wrap=True,
        help="Also: mark runs on the Runs page, and find them here as “Marked runs”.",
    )
    if picked != chosen:
        st.switch_page(state.page("compare"), query_params={"runs": ",".join(picked)} if picked else {"batch": MARKED})


# --- a comparison ---


def draw_comparison(now: Choice) -> None:
    entries = compare.entries(now.runs)
    unread = len(now.runs) - len(entries)
    if unread:
        st.warning(f"{words.counted(unread, 'run')} of another version of the app cannot be shown.", icon=":material/warning:")
    if not entries:
        if now.key == MARKED:
            st.info(
                "No run is marked. Choose some above, or mark them on the Runs page; or start some.", icon=":material/info:"
            )
            st.page_link(state.page("compare"), label="A new comparison", icon=":material/add:", query_params={"batch": NEW})
        return
    comparison_view.follow(now.key, now.runs, now.comparison)
    finished = compare.finished(entries)
    if not finished:
        st.caption("The table begins when a first run has finished.")
        return
    networks = compare.networks(finished)
    network = next(iter(networks))
    if len(networks) > 1:
        network = st.selectbox(
            "Network",
            options := list(networks),
            format_func=compare.network_titles(networks).__getitem__,
            width=400,
            help="Only runs of one network, on the same images, can be set side by side.",
            **state.addressed("network", options, network),
        )
    # Marked anew, so that their labels say only what is not the same in all of these.
    finished = compare.entries(entry.run for entry in networks[network])
    rows = compare.rows(finished)
    table(rows)
    tradeoffs(rows)
    if len({entry.config.num_calibration for entry in finished}) > 1:
        by_images(finished)
    closer(finished, rows)


MEANINGS = {MEASURES[name].title: MEASURES[name].meaning for name in COLUMNS} | {
    "Seeds": "How many runs that differ in their seed alone are one row. ± is the standard deviation over them."
}


def table(rows: list[Row]) -> None:
    numbers, texts = compare.table(rows)
    styled = numbers.style
    for column in texts.columns.drop("Method"):
        for place, text in enumerate(texts[column]):
            styled = styled.format(lambda value, text=text: str(text), subset=pd.IndexSlice[[place], [column]])
    marked = texts.map(lambda text: "background-color: rgba(0, 158, 115, 0.18)" if str(text).endswith(BEST) else "")
    st.dataframe(
        styled.apply(lambda _: marked, axis=None),
        hide_index=True,
        column_config={
            "Method": st.column_config.TextColumn("Method", width=230),
            **{name: st.column_config.Column(name, help=meaning) for name, meaning in MEANINGS.items() if name in texts},
        },
        placeholder="",
        alt="The dense network and the runs with their measures, best of each column marked",
    )
    if verdict := compare.verdict(rows):
        st.markdown(verdict)
    notes = {words.counted(row.num_evaluation, "image") for row in rows}
    if len(notes) > 1:
        st.warning(
            f"These were not measured on the same images ({', '.join(sorted(notes))}), so small differences mean nothing.",
            icon=":material/warning:",
        )


def tradeoffs(rows: list[Row]) -> None:
    places = st.columns(2, gap="large")
    costs = {"density": "What few weights keep", "seconds": "What time buys"}
    for place, (cost, heading) in zip(places, costs.items(), strict=True):
        points, value = compare.tradeoff(rows, cost)
        log = MEASURES[cost].log and points["x"].max() > 5 * points["x"].min()
        alt = f"{MEASURES[value].title} of each run against {MEASURES[cost].title.lower()}, with the Pareto front"
        with place:
            st.markdown(f"**{heading}**")
            figure = compare_charts.tradeoff_chart(points, cost, value, dense=compare.dense_value(rows, value), log=log)
            live.chart(figure, key=f"tradeoff-{cost}", alt=alt)
    if len(rows) > 1:
        legend(rows)
    st.caption("Times are as they were measured: whatever else the machine did meanwhile made them longer.")


def legend(rows: list[Row]) -> None:
    drawn = zip(row_names(rows), compare.marks([row.config for row in rows]), strict=True)
    shapes = {
        "circle": "●",
        "diamond": "◆",
        "square": "■",
        "triangle-up": "▲",
        "cross": "✚",
        "star": "★",
        "hexagon": "⬢",
        "triangle-down": "▼",
    }
    parts = [
        f'<span style="white-space: nowrap; margin-right: 1rem"><span style="color: {mark.color}">'
        f"{shapes[mark.symbol.removesuffix('-open')]}</span> {html.escape(name)}</span>"
        for name, mark in drawn
    ]
    st.html(f'<div style="font-size: 0.875rem; line-height: 1.7">{" ".join(parts)}</div>')
    st.caption("The line joins what no other run beats in both at once (the Pareto front), from the first that is of use.")


def by_images(entries: list[Entry]) -> None:
    """What each method makes of more calibration images."""
    study_of_runs = study.of(comparison_view.outcomes([entry.run for entry in entries]), "images")
    if not any(len(curve.rows) > 1 for curve in study_of_runs.curves):
        return
    measure = study_of_runs.measure
    figure = compare_charts.study_chart(
        study.points(study_of_runs),
        study.marks(study_of_runs),
        measure,
        against="images",
        title=study.AGAINST["images"][1],
        dense=study.dense(study_of_runs),
        height=320,
    )
    st.markdown("**What more images bring**")
    live.chart(figure, key="by-images", alt=f"{MEASURES[measure].axis} against calibration images")
    st.caption("Filled: within the noise of the best of its line. Ringed: the fewest images that are.")


# --- a closer look ---

VIEWS = {
    "depth": "Representations",
    "answers": "Answers",
    "layers": "Layers",
    "attention": "Attention",
    "speed": "Size and speed",
}


def closer(entries: list[Entry], rows: list[Row]) -> None:
    st.divider()
    view = st.segmented_control(
        "A closer look",
        list(VIEWS),
        format_func=VIEWS.__getitem__,
        required=True,
        **state.addressed("view", list(VIEWS), "depth"),
    )
    assert view is not None  # it is required
    looked_at = entries
    if len(entries) > 1:
        usual = ",".join(str(row.runs[0]) for row in rows[:USUALLY_SHOWN])  # of several seeds the first
        address_places = (state.asked("show") or usual).split(",")
        shown = [place for place in range(len(entries)) if str(place) in address_places]
        places = st.multiselect(
            "Runs to look into",
            range(len(entries)),
            format_func=lambda place: entries[place].label,
            max_selections=MOST_SHOWN,
            wrap=True,
            **state.linked("show", shown, lambda places: state.say("show", ",".join(map(str, places)) or "none", usual)),
        )
        looked_at = [entries[place] for place in places]
    if not looked_at:
        st.info("Choose at least one run to look into.", icon=":material/info:")
        return
    folder = Path(entries[0].config.data).expanduser().is_dir()  # of a named set the evaluation images are always the same
    if folder and view != "layers" and len({(e.config.prune.seed, e.config.num_calibration) for e in looked_at}) > 1:
        st.caption(
            ":material/info: These runs calibrated on different images of the folder; some may be among the images looked at."
        )
    try:
        {"layers": layer_view, "answers": answer_view, "depth": depth_view, "attention": attention_view, "speed": speed_view}[
            view
        ](looked_at)
    except InputError as error:
        st.error(words.plain(str(error)), icon=":material/error:")


show()
