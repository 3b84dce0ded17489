"""The Streamlit parts that pages share: the view of a run, lists of runs, the device found.

A run is shown by reading its folder. Only *start*, *cancel* and *resume* go the other way, through the job manager.
"""

import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from app import state, words
from app.charts import budget as budget_charts
from app.charts import layers as layer_charts
from app.charts import palette
from app.charts import play as play_charts
from app.charts import solver as solver_charts
from app.forms import run as form
from app.parts import live, so_far, speed
from app.parts.layer_strip import layer_strip
from app.tables import budget as budget_tables
from app.tables import play as play_tables
from app.tables import run as run_tables
from app.work import engine, public
from snows.config import InputError, RunConfig
from snows.events import Event, RunFailed
from snows.measures import names as measure_names
from snows.measures.names import MEASURES, duration, size
from snows.plans.words import name_of
from snows.runs.log import Log
from snows.runs.store import ACTIVE, Run, StoreError

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

_BADGES: dict[str, tuple[Any, str]] = {
    "queued": ("gray", ":material/hourglass_empty:"),
    "running": ("blue", ":material/play_arrow:"),
    "finished": ("green", ":material/check:"),
    "failed": ("red", ":material/error:"),
    "cancelled": ("gray", ":material/close:"),
    "interrupted": ("orange", ":material/power_off:"),
}
_TILES = ("accuracy", "agreement", "density", "seconds")
_POLL_SECONDS = 1.0
_PICKER_WIDTH = 500  # shows a run's name to its end, which sets it apart

# --- the view of a run ---


def badge(run_state: str) -> None:
    """A run's state as a colored word with an icon."""
    color, icon = _BADGES[run_state]
    st.badge(run_state, icon=icon, color=color)


def run_view(run: Run, *, recorded: bool = False) -> None:
    """A run, live while it is active. `recorded`: one that came with the app, which nobody can resume.

    One's own is from here on the one that the pages show which look into a run.
    """
    if not recorded:
        state.inspect(run.id)
    if state.watch(run)[1] in ACTIVE:
        st.fragment(run_every=_POLL_SECONDS)(_run_view)(run, True, recorded)
    else:
        # No fragment: a click that comes before the page was built anew, as after a restart, is one of a part nobody knows.
        _run_view(run, False, recorded)


def _run_view(run: Run, was_active: bool, recorded: bool) -> None:
    events, run_state = state.watch(run)
    if was_active and run_state not in ACTIVE:
        st.rerun()  # once: the page is drawn anew, and polls no more
    config = state.config_of(run)
    if config is None:
        st.error(words.plain(run.unreadable()), icon=":material/error:")
        return
    progress = run_tables.progress(events, state.now_of(events, run_state))
    st.space("xxsmall")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.header(words.plain(name_of(run)), anchor=False, width="content")
        badge(run_state)
    where = f" in {words.counted(len(progress.sites), 'layer')}" if progress.sites else ""
    st.caption(f"{run.id} · keeps {words.kept_share(config.prune.pattern)}{where}")
    match run_state:
        case "queued":
            _queued(run, config, progress)
        case "running":
            _running(run, config, progress)
        case "finished":
            _finished(run, config)
        case _:
            _stopped(run, run_state, events, progress, recorded)
    for note in progress.notes:
        st.caption(f":material/info: {words.plain(words.without_paths(note))}")
    if progress.sites:
        _strip(run, events, config, run_state in ACTIVE)
        if run_state == "running":
            so_far.answers_so_far(run, config, progress.done, all_pruned=progress.done >= len(progress.sites))
        _look_inside(run)
        _figures(events, config, progress, folded=run_state == "running")
    with st.expander("Settings of this run", icon=":material/settings:"):
        if st.button(
            "Use these settings for a new run",
            icon=":material/content_copy:",
            on_click=form.fill,
            args=(config,),
            key=f"reuse-{run.id}",
        ):
            state.open_run(None)
        st.code(config.model_dump_json(indent=2), language="json")


def _queued(run: Run, config: RunConfig, progress: run_tables.Progress) -> None:
    waits = run_tables.waits_for(
        run.holder(),
        state.jobs().position(run),
        device=config.prune.device if engine.ready() and not state.jobs().attends_to(run) else None,
        in_line=run.in_line(),
    )
    kept = f" {progress.done} of {progress.total} layers are finished and kept." if progress.done else ""
    st.info(f"{waits}{kept} You may leave this page.", icon=":material/hourglass_empty:")
    _cancel_button(run)


def _cancel_button(run: Run) -> None:
    cancelling = run.cancel_requested()
    if st.button(
        "Cancelling…" if cancelling else "Cancel", icon=":material/close:", disabled=cancelling, key=f"cancel-{run.id}"
    ):
        state.jobs().cancel(run.id)
        st.rerun()


def _running(run: Run, config: RunConfig, progress: run_tables.Progress) -> None:
    after = ", then measuring" if progress.current else ""
    sweeps = progress.total // len(progress.sites) if progress.sites else 1
    sweep = f" in sweep {progress.current.sweep + 1} of {sweeps}" if progress.current and sweeps > 1 else ""
    left = run_tables.time_left(progress, form.planned(config))
    left = f" · {left}{after}" if left else ""
    where = (
        f"All layers together, pass {min(progress.together[0] + 1, progress.together[1])} of {progress.together[1]}"
        if progress.together is not None
        else f"Layer {progress.current.index + 1} of {len(progress.sites)}{sweep}: {words.layer(progress.current.site)}"
        if progress.current
        else progress.phase
    )
    bar, button = st.columns([6, 1], vertical_alignment="bottom")
    bar.progress(progress.fraction, text=f"{where} · {duration(progress.elapsed)} so far{left}")
    with button:
        _cancel_button(run)


def _finished(run: Run, config: RunConfig) -> None:
    metrics = run.metrics() or {}
    if (ending := play_tables.Ending.of(metrics, config.prune.update)) is not None:
        st.markdown(f"**{ending.sentence()}**")
        figure = play_charts.result_bars(
            ending.bars(config.prune.update), MEASURES["accuracy" if ending.labelled else "agreement"].axis
        )
        live.chart(figure, key="ending", alt=ending.sentence())
    measured = [name for name in _TILES if name in metrics]
    for column, name in zip(st.columns(len(measured) or 1), measured, strict=False):
        measure, value, delta = MEASURES[name], metrics[name], None
        if name == "accuracy" and value is not None and (dense := metrics.get("accuracy_dense")) is not None:
            delta = f"{MEASURES['change'].say(value - dense)} from {measure.say(dense)}"
        column.metric(
            measure.title,
            measure_names.said(name, metrics),
            delta,
            delta_color="off",
            delta_arrow="off",
            help=measure.meaning,
            border=True,
            height="stretch",
        )
    if sizes := run_tables.size_sentence(metrics):
        st.caption(sizes)
    if run.weights_path.exists():
        name = re.sub(r"[^\w.-]+", "-", f"{config.model}-{config.prune.pattern}-{run.id}")
        st.download_button(
            "Download the pruned weights",
            run.weights_path.read_bytes,
            f"{name}.safetensors",
            "application/octet-stream",
            icon=":material/download:",
            on_click="ignore",
            key=f"download-{run.id}",
            help="The network's state dict, as safetensors. Removed weights are exactly zero.",
        )
    _faster(run, config)
    speed.of_run(run, config)


def _faster(run: Run, config: RunConfig) -> None:
    folded = st.expander("Where will it be faster?", icon=":material/speed:", key=f"faster-{run.id}", on_change="rerun")
    if not folded.open:
        return
    sums, by_layer = run_tables.faster(run.log(), config.prune)
    with folded:
        st.markdown(
            "Which programs could leave out the work of the zeros, by what their makers say that a layer must be. Nothing of "
            "this was measured here; below, the network is timed on this machine."
        )
        st.dataframe(
            sums[["where", "answer", "layers", "share"]],
            hide_index=True,
            alt="Each program: whether it could be faster, and on how many layers",
            column_config={
                "where": st.column_config.TextColumn("Where", width=190),
                "answer": st.column_config.TextColumn("Faster?", width=150),
                "layers": st.column_config.TextColumn("Layers", width=80),
                "share": st.column_config.NumberColumn("Of their weights", format="%.1f %%", width=110),
            },
        )
        for row in sums.itertuples():
            who = f"[{row.source}]({row.address})" if row.address else row.source
            st.caption(f"**{row.where}** asks: {row.asks} ({who})")
        st.markdown("**Layer by layer**")
        st.dataframe(
            by_layer,
            hide_index=True,
            height=280,
            alt="Each pruned layer: of each program whether it is eligible, or why not",
            column_config={"layer": "Layer", "shape": "Shape", "pattern": "Pattern"}
            | {name: st.column_config.TextColumn(name, width=300) for name in sums["where"]},
        )


def _stopped(run: Run, run_state: str, events: list[Event], progress: run_tables.Progress, recorded: bool) -> None:
    last = events[-1] if events else None
    so_far = (
        f"{progress.done} of {progress.total} layers are finished and kept." if progress.sites else "No layer was finished."
    )
    if isinstance(last, RunFailed):
        st.error(words.plain(words.without_paths(f"{last.message} {so_far}")), icon=":material/error:")
        if last.detail and not public.is_public():  # it tells of the machine
            with st.expander("Details for a report"):
                st.code(last.detail, language=None)
    elif run_state == "cancelled":
        who = "You cancelled this run"
        if public.is_public():
            who = f"This run was cancelled, by you or because it took more than {public.Limits.read().longest} minutes"
        st.info(f"{who}. {so_far} Resume goes on from there.", icon=":material/close:")
    else:
        st.warning(
            f"This run was interrupted: its worker is gone, as when a shell is closed. {so_far} Resume goes on from there.",
            icon=":material/power_off:",
        )
    if recorded:
        return
    if st.button("Resume", type="primary", icon=":material/play_arrow:", key=f"resume-{run.id}"):
        try:
            state.jobs().resume(run.id)
        except (InputError, StoreError) as error:
            st.error(words.plain(str(error)), icon=":material/error:")
        else:
            st.rerun()


def _look_inside(run: Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.caption("Look inside", width="content")
        for name in ("layers", "convergence", "attention"):
            label, icon = state.PAGES[name]
            st.page_link(state.page(name), label=label, icon=icon, query_params={"run": run.id}, width="content")


def _strip(run: Run, events: list[Event], config: RunConfig, is_active: bool) -> None:
    """The network's layers, which turn as they are done; a click opens one."""
    cells = run_tables.layer_cells(Log.of(events), form.planned(config), is_active)
    done = sum(cell.state == "done" for cell in cells)
    to_open = f"layer to open in {run.id}"
    layer_strip(
        cells,
        palette.COLORS[config.prune.update],
        key=f"strip-{run.id}",
        alt=f"The network's layers: {done} of {len(cells)} are done",
        on_pick=lambda layer: st.session_state.update({to_open: layer}),
    )
    if (layer := st.session_state.pop(to_open, None)) is not None:
        st.switch_page(state.page("layers"), query_params={"run": run.id, "layer": layer})


def _loss_chart(events: list[Event], config: RunConfig, sites: list[str]) -> None:
    figure = layer_charts.loss_chart(run_tables.site_losses(events), [words.layer(site) for site in sites], config.prune.update)
    live.chart(figure, key="losses", alt="Loss of each layer with the mask only, after least squares, and at the end")


def _figures(events: list[Event], config: RunConfig, progress: run_tables.Progress, *, folded: bool) -> None:
    solves = config.prune.update == "snows"
    losses, now = st.columns([3, 2], gap="large") if solves else (st.container(), None)
    with losses:
        st.markdown("**What each layer lost, and got back**")
        _loss_chart(events, config, progress.sites)
    if now is not None:
        with now, st.expander("The solver, step by step", expanded=not folded, icon=":material/trending_down:"):
            _solver(events, config)
    if (chosen := Log.of(events).budget) is not None:
        st.markdown("**What the budget gives each layer**")
        given = budget_tables.given(chosen.layers, chosen.patterns)
        figure = budget_charts.shares(given, budget_tables.alternatives(chosen.layers, chosen.patterns))
        live.chart(figure, key="budget", alt=budget_tables.sentence(given))
    if (together := run_tables.joint_fit(events)) is not None:
        st.markdown("**All layers together**")
        before_after, by_pass = st.columns([3, 2], gap="large")
        with before_after:
            figure = layer_charts.joint_chart(together.errors)
            live.chart(figure, key="joint", alt="Error of the network before and after the joint fit")
            st.caption(
                f"{together.said} How far the network is from the dense one, where everything passes, and at its answers."
            )
        with by_pass:
            figure = layer_charts.joint_loss_chart(together.losses)
            live.chart(figure, key="joint-losses", alt="Loss of the joint fit by seconds of work")
            st.caption("The loss of each pass over the images, which are blended unless the fit began anew.")
    st.markdown("**What happened**, newest first")
    st.dataframe(
        run_tables.log(events),
        hide_index=True,
        height=280,
        alt="The run's log",
        column_config={
            "after": st.column_config.NumberColumn("After", format="%.1f s", width=80),
            "layer": st.column_config.TextColumn("Layer", width=160),
            "what": st.column_config.TextColumn("What", width=380),
            "status": st.column_config.TextColumn("Status", width="large"),
        },
    )


def _solver(events: list[Event], config: RunConfig) -> None:
    solved = run_tables.last_solved(events)
    if solved is None:
        st.caption("The solver has not begun.")
        return
    st.markdown(f"**Conjugate gradient in** `{words.layer(solved.site)}`")
    figure = solver_charts.residual_chart(run_tables.cg_residuals(events), config.prune.solver.rtol)
    live.chart(figure, key="residuals", alt="Conjugate gradient's relative residual by iteration")
    st.caption("It changes this layer so that all of these compute what they did:")
    st.markdown(words.operations(solved.operations))


def recorded_run() -> None:
    """The run that came with the app, for whoever has not started one."""
    runs = state.recorded_runs().list()
    if runs:
        st.divider()
        st.header("A recorded run", anchor=False)
        st.caption("What a finished run looks like. This one came with the app; nothing was computed just now.")
        run_view(runs[0], recorded=True)


def example_figure() -> None:
    """The newest finished run's layers, or those of the run that came with the app."""
    finished = next((run for run in state.store().list() if run.metrics()), None)
    run = finished or next(iter(state.recorded_runs().list()), None)
    if run is None:
        return
    config, (events, _) = state.config_of(run), state.watch(run)
    if config is None:
        return
    whose = "your newest finished run" if finished else "a recorded run"
    st.markdown(f"**Each layer's error, before and after re-fitting**, in {whose}")
    _loss_chart(events, config, run_tables.progress(events, events[-1].time).sites)
    st.caption(words.plain(name_of(run)))


# --- pages that look into a run ---


def inspected_run(page_name: str, question: str, sentence: str, first: str | None = None) -> Run | None:
    """The head of a page that looks into one run: its question, what it shows, and which run. The address names the run.

    Without one in the address it is the one started or looked at last, else the newest with a finished layer, else a recorded
    one: `first` where that is there.
    None, with the reason shown, when the address names a run that is not there.
    """
    own = [run for run in state.store().list(50) if run.has_finished_sites()]
    runs = {run.id: run for run in (*own, *state.recorded_runs().list())}
    problem, wanted = "", state.opened_run_id() or state.inspected()
    if wanted is not None and wanted not in runs:
        try:
            runs[wanted] = state.find_run(wanted)
        except KeyError as error:
            problem, wanted = (error.args[0], None) if state.opened_run_id() else ("", None)
    current = wanted or (first if first in runs and not own else next(iter(runs), None))
    heading = st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute", gap="large")
    heading.title(question, anchor=False, width="content")
    if runs:
        with heading:
            picked = st.selectbox(
                "Run",
                options := list(runs),
                options.index(current) if current and not problem else None,
                key=f"inspected-{page_name}-{state.turn('run')}",
                width=_PICKER_WIDTH,
                format_func=run_labels(runs).__getitem__,
            )
        if picked is not None and (picked != current or problem):
            state.open_run(picked, page_name)
    st.markdown(sentence)
    if problem:
        st.error(words.plain(problem) + " Or choose one above.", icon=":material/error:")
        return None
    if current is None:
        st.info("There is no run yet. Start one, and look at it here while it works.", icon=":material/info:")
        st.page_link(state.page("prune"), label="Set up a run", icon=":material/ac_unit:")
        return None
    state.inspect(current)
    if state.opened_run_id() != current:
        state.say("run", current)
    if state.config_of(runs[current]) is None:
        st.error(words.plain(runs[current].unreadable()), icon=":material/error:")
        return None
    if state.is_recorded(runs[current]):
        st.caption(":material/inventory_2: A recorded run that came with the app; nothing was computed just now.")
    return runs[current]


def run_labels(runs: Mapping[str, Run]) -> dict[str, str]:
    """What to call each of some runs, newest first, where one is chosen."""
    return words.distinct(
        {
            run_id: f"{name_of(run)} · {'recorded' if state.is_recorded(run) else when(run)}"
            for run_id, run in reversed(list(runs.items()))
        }
    )


def follow(run: Run, draw: Callable[[bool], None]) -> None:
    """Call `draw(is_live)`, and again every second while the run is active; when it ends, draw the whole page anew."""
    active = state.watch(run)[1] in ACTIVE

    def draw_now() -> None:
        if active and state.watch(run)[1] not in ACTIVE:
            st.rerun()
        draw(active)

    st.fragment(run_every=_POLL_SECONDS if active else None)(draw_now)()


# --- tables of measures ---


pd.set_option("styler.render.max_elements", 10_000_000)  # whoever wants to see all runs is shown all


def said(table: pd.DataFrame) -> "Styler":
    """The table with each measure's values said as everywhere else, and why a finished run has none; they sort as numbers."""
    measures = [name for name in table.columns if name in MEASURES]
    styled = table.style.format({name: MEASURES[name].say for name in measures}, na_rep="")
    if "state" in table:
        finished = table.index[table["state"] == "finished"]
        for name in measures:
            styled.format(MEASURES[name].say, na_rep=measure_names.missing(name), subset=(finished, [name]))
    return styled


def measure_columns(table: pd.DataFrame, widths: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The title and meaning of each column of `table` that is a measure."""
    names = [name for name in table.columns if name in MEASURES]
    return {
        name: st.column_config.Column(MEASURES[name].title, help=MEASURES[name].meaning, width=(widths or {}).get(name))
        for name in names
    }


# --- lists of runs ---


def run_picker(opened: Run | None) -> None:
    """Choose among this user's runs; the page's address follows."""
    runs = {run.id: run for run in state.store().list(50)} | ({opened.id: opened} if opened else {})
    if not runs:
        return
    current = opened.id if opened else ""
    picked = st.selectbox(
        "Run",
        options := ["", *runs],  # None would be no choice, and be called so
        options.index(current),
        key=f"picker-{state.turn('run')}",
        width=_PICKER_WIDTH,
        format_func=({"": "A new run"} | run_labels(runs)).__getitem__,
    )
    if picked != current:
        state.open_run(picked or None)


def when(run: Run) -> str:
    """When a run was made: `24 Nov, 14:05`."""
    return datetime.fromtimestamp(run.created()).strftime("%d %b, %H:%M").lstrip("0")


def recent_runs(limit: int = 8) -> None:
    """The newest runs, each with its state, its result and a link."""
    runs = state.store().list(limit)
    if not runs:
        st.caption("None yet. The demonstration would be the first.")
    for run in runs:
        accuracy = (run.metrics() or {}).get("accuracy")
        reached = "" if accuracy is None else f" · accuracy {MEASURES['accuracy'].say(accuracy)}"
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.page_link(
                state.page("prune"),
                label=words.plain(name_of(run)),
                icon=":material/arrow_forward:",
                query_params={"run": run.id},
                width=330,
            )
            with st.container(width=120):
                badge(run.state())
            st.caption(when(run) + reached, width="content")


def found_device() -> str:
    """A sentence on what runs will work with."""
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return f":material/memory: Runs will use the **{device.name}** here and its {size(device.total_memory)}."
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f":material/memory: Runs will use **{cores} processor cores** and {size(memory)}; no CUDA device was found."
