"""A comparison at work: how far it is, its runs one by one, and to cancel or resume all or some of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st

from app import state, words
from app.charts import compare as compare_charts
from app.parts import live, panels
from app.tables import compare, layers
from app.tables.compare import Entry
from snows.config import InputError
from snows.measures.names import MEASURES, duration
from snows.plans.study import Outcome
from snows.plans.words import network_name
from snows.runs.store import ACTIVE, Comparison, Run, StoreError

MOST_CURVES = 10  # over each other while they are drawn


def titles(comparisons: Mapping[str, Comparison]) -> dict[str, str]:
    """Comparisons, newest first and in that order, as a list of them names each: `6 runs · resnet20-fashion · 24 Nov, 14:05`.

    Of those that would be named alike the older one keeps its name.
    """

    def title(comparison: Comparison) -> str:
        runs = comparison.runs()
        configs = [config for run in runs if (config := state.config_of(run)) is not None]
        networks = list(dict.fromkeys(network_name(config) for config in configs))
        of = networks[0] + (f" and {len(networks) - 1} more" if len(networks) > 1 else "") if networks else "unreadable"
        return f"{words.counted(len(runs), 'run')} · {of} · {panels.when(runs[0])}"

    named = words.distinct({key: title(comparison) for key, comparison in reversed(list(comparisons.items()))})
    return {key: named[key] for key in comparisons}


def follow(key: str, runs: Sequence[Run], comparison: Comparison | None = None) -> None:
    """The progress of some runs, anew every second while one is active; when one begins or ends, the page is drawn anew.

    Runs that were made as one `comparison` can be cancelled and resumed as one.
    """
    states = [entry.state for entry in compare.entries(runs)]
    is_active = bool(set(states) & set(ACTIVE))
    # No fragment where none is active: the first click after a restart would be one of a part that nobody knows yet.
    (st.fragment(run_every=1)(_progress) if is_active else _progress)(key, runs, comparison, states)


def _progress(key: str, runs: Sequence[Run], comparison: Comparison | None, states: list[str]) -> None:
    entries = compare.entries(runs)
    if [entry.state for entry in entries] != states:
        st.rerun()  # a run has begun or ended: the rest of the page says so too
    far = compare.comparison_progress(entries, state.log)
    if far.active or far.resumable:
        left = f", about {duration(far.left)} left" if far.left and far.active else ""
        bar, button = st.columns([6, 2], vertical_alignment="bottom")
        bar.progress(far.fraction, text=f"{far.done} of {words.counted(far.total, 'run')} finished{left}")
        if comparison is not None:
            with button:
                _buttons(comparison, far, entries)
    if far.active:
        _curves(key, entries)
    with st.expander(
        "Its runs" if comparison else "The runs",
        expanded=far.done == 0,
        icon=":material/list:",
        key=f"m-{key}",
    ):
        for entry in entries:
            _member(entry)


def _curves(key: str, entries: Sequence[Entry]) -> None:
    """The runs of the network in work, over each other, layer by layer as they go on. A zoom stays while they do."""
    of_networks = compare.networks(entries).values()
    together = next(group for group in of_networks if any(entry.state in ACTIVE for entry in group))[:MOST_CURVES]
    losses, names = compare.layer_losses(together, state.log)
    if losses.empty:
        return
    begun = {entry.label: entry.mark for entry in together if entry.label in set(losses["label"])}
    st.markdown("**How wrong each layer's own output is**, so far", help=f"{MEASURES['relative_loss'].meaning} Drag to zoom.")
    figure = compare_charts.side_by_side_chart(
        losses, names, begun, MEASURES["relative_loss"].axis, log=True, blocks=[layers.block(name) for name in names]
    )
    figure.update_layout(dragmode="zoom")
    live.chart(figure, key=f"curves-{key}", alt="Each run's error at every layer so far, overlaid")


def _buttons(comparison: Comparison, far: compare.ComparisonProgress, entries: list[Entry]) -> None:
    with st.container(horizontal=True, gap="small"):
        if far.active:
            cancelling = all(entry.run.cancel_requested() for entry in entries if entry.state in ACTIVE)
            label = "Cancelling…" if cancelling else "Cancel all"
            # A callback, because the view may be drawn anew before it comes to this button: a run has just begun or ended.
            st.button(
                label,
                icon=":material/close:",
                disabled=cancelling,
                key=f"cancel-{comparison.id}",
                on_click=state.jobs().cancel_comparison,
                args=(comparison.id,),
            )
        if far.resumable and st.button(
            "Resume the rest",
            type="primary",
            icon=":material/play_arrow:",
            key=f"resume-{comparison.id}",
            help="Goes on with what was cancelled, failed or interrupted. Finished layers and finished runs are kept.",
        ):
            try:
                state.jobs().resume_comparison(comparison.id)
            except (InputError, StoreError) as error:
                st.error(words.plain(str(error)), icon=":material/error:")
            else:
                st.rerun()


def _member(entry: Entry) -> None:
    """A run of the comparison, in a line."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        with st.container(width=120):
            panels.badge(entry.state)
        st.page_link(state.page("prune"), label=words.plain(entry.label), query_params={"run": entry.run.id}, width=330)
        if entry.state == "running":
            st.caption(f"{100 * state.log(entry.run).share:.0f} % of its layers", width="content")
        if entry.state in ACTIVE:
            cancelling = entry.run.cancel_requested()
            label = "Cancelling…" if cancelling else "Cancel"
            st.button(
                label,
                icon=":material/close:",
                type="tertiary",
                disabled=cancelling,
                key=f"cancel-{entry.run.id}",
                on_click=state.jobs().cancel,
                args=(entry.run.id,),
            )
        elif entry.state == "failed":
            st.caption(words.plain(compare.problem(entry)), width="stretch")


@st.cache_data(max_entries=512, show_spinner=False)
def _outcome(path: Path, ended: float) -> Outcome | None:
    """A finished run; None for one that this version cannot read. `ended`: a run imported under an old name is another one."""
    try:
        return Outcome.of(Run(path))
    except ValueError:
        return None


def outcomes(runs: Sequence[Run]) -> list[Outcome]:
    """The finished ones of these runs, as a study reads them."""
    ended = [(run.path, (run.path / "metrics.json").stat().st_mtime) for run in runs if run.metrics()]
    return [result for path, when in ended if (result := _outcome(path, when)) is not None]
