"""Which method, which K, for this network?

The address names what is compared: `?batch=ID`, or runs `?runs=ID,ID`; `?batch=new` is the form, `?batch=marked` and
`?batch=recorded` are what they say. `view` is the closer look, `network` the one looked at, `show` the runs
looked into by their places, `likeness` the measure of representations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from pydantic import ValidationError

from app import hand_on, state, words
from app.charts import compare as compare_charts
from app.forms import comparison as comparison_form
from app.parts import comparison_view, live, looks, panels, side_by_side
from app.parts.looks import answer_view, attention_view, depth_view, layer_view, speed_view
from app.tables import compare, study
from app.tables.compare import Entry
from snows.config import InputError
from snows.measures.names import MEASURES
from snows.plans import recorded
from snows.plans.comparisons import Row
from snows.plans.words import BEST, LEVEL, network_name
from snows.runs.store import Comparison, Run

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
        key = next(iter(comparisons), MARKED if marked else RECORDED)
    match key:
        case "new":
            return Choice(NEW, [])
        case "marked":
            return Choice(MARKED, marked)
        case "recorded":
            return Choice(RECORDED, [])
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
    body, settings = st.container(), st.container()
    with body:
        if now.problem:
            st.error(words.plain(now.problem), icon=":material/error:")
        if now.key in (MARKED, CHOSEN):
            pick_runs(now)
        if now.key == RECORDED:
            draw_recorded()
        elif now.key != NEW:
            draw_comparison(now)
    if now.key == NEW:
        with settings:
            comparison_form.draw(go)


def heading(comparisons: Mapping[str, Comparison], marked: list[Run], now: Choice) -> None:
    row = st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute", gap="large")
    row.title(hand_on.TITLE, anchor=False, width="content")
    words = {
        NEW: "A new comparison",
        **comparison_view.titles(comparisons),
        MARKED: f"Marked runs ({len(marked)})",
        RECORDED: "A recorded comparison",
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
    if now.key != NEW:
        st.markdown(
            f"What each method keeps of the network, and what it costs. {BEST} the best, {LEVEL} within the noise of it: of "
            "those of use, which keep half of what the dense network has over chance."
        )


def pick_runs(now: Choice) -> None:
    """Choose the runs one by one. The address follows."""
    own = [run for run in state.store().list(200) if run.state() == "finished"]
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
    choices = side_by_side.choices()
    with choices:
        # Marked anew, so that their labels say only what is not the same in all of these.
        finished = compare.entries(entry.run for entry in network_of(finished))
    rows = side_by_side.draw(compare.rows(finished), choices, lambda: compare.rows(looks.with_work(finished)))
    side_by_side.hand_on(lambda: hand_on.of_runs(finished), hand_on.stem(f"comparison-{network_name(finished[0].config)}"))
    if len({entry.config.num_calibration for entry in finished}) > 1:
        by_images(finished)
    closer(finished, rows)


def network_of(ones: Sequence[compare.One]) -> list[compare.One]:
    """Those of the network that the address names, which is chosen here if there are several."""
    networks = compare.networks(ones)
    network = next(iter(networks))
    if len(networks) > 1:
        network = st.selectbox(
            "Network",
            options := list(networks),
            format_func=compare.network_titles(networks).__getitem__,
            width=320,
            help="Only runs of one network, on the same images, can be set side by side.",
            **state.addressed("network", options, network),
        )
    return networks[network]


@st.cache_data(show_spinner=False)
def recorded_measurements() -> list[recorded.Measured]:
    return recorded.comparison()


def draw_recorded() -> None:
    """What came with the app: measurements without runs, so there is nothing to look into."""
    try:
        measured = recorded_measurements()
    except InputError as error:
        st.error(words.plain(str(error)), icon=":material/error:")
        return
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", gap="medium"):
        st.caption(
            f":material/inventory_2: {len(measured):,} measurements that came with the app, made by `{recorded.COMMAND}`, "
            "each on 512 calibration and the first 5,000 test images.",
            width="content",
        )
        st.page_link(
            state.page("compare"),
            label="A network of your own",
            icon=":material/add:",
            query_params={"batch": NEW},
            width="content",
        )
    choices = side_by_side.choices()
    with choices:
        rows = compare.rows(network_of(measured))
    side_by_side.draw(rows, choices)
    side_by_side.hand_on(lambda: hand_on.of_recorded(measured), "recorded-comparison")
    st.caption(
        "These are figures without runs: there are no weights to look into layer by layer or answer by answer, as in runs of "
        "your own. Weights kept, size and multiply-adds follow from pattern and shapes. Time is that of one processor core, "
        "over the seeds that have it on record, measured on days of unequal speed."
    )


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
