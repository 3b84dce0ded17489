"""The Streamlit parts that pages share: the view of a run, lists of runs, the device found.

A run is shown by reading its folder. Only *start*, *cancel* and *resume* go the other way, through the job manager.
"""

import os
import re
from datetime import datetime
from typing import Any

import streamlit as st
from plotly.graph_objects import Figure

from app import charts, form, frames, live, state
from snows.config import RunConfig
from snows.events import Event, RunFailed
from snows.store import ACTIVE, Run, StoreError

_BADGES: dict[str, tuple[Any, str]] = {
    "queued": ("gray", ":material/hourglass_empty:"),
    "running": ("blue", ":material/play_arrow:"),
    "finished": ("green", ":material/check:"),
    "failed": ("red", ":material/error:"),
    "cancelled": ("gray", ":material/close:"),
    "interrupted": ("orange", ":material/power_off:"),
}
_METRICS = {
    "accuracy": ("Accuracy", frames.percent, "The share of evaluation images it labels rightly."),
    "agreement": ("Agreement", frames.percent, "The share of images on which it gives the dense network's answer."),
    "density": ("Weights kept", frames.percent, "Of the layers that were pruned."),
    "seconds": ("Time", frames.duration, "Of pruning, from the first layer to the last."),
}
_POLL_SECONDS = 1.0
_QUIET = {"displayModeBar": False}

# --- the view of a run ---


def title(config: RunConfig) -> str:
    """A run in a line: network, pattern, method."""
    method = charts.LABELS[config.prune.update] + (f", K = {config.prune.k_steps}" if config.prune.update == "snows" else "")
    return f"{config.model} · {config.prune.pattern} · {method}"


def badge(run_state: str) -> None:
    """A run's state as a colored word with an icon."""
    color, icon = _BADGES[run_state]
    st.badge(run_state, icon=icon, color=color)


def run_view(run: Run, *, recorded: bool = False) -> None:
    """A run, live while it is active. `recorded`: one that came with the app, which nobody can resume."""
    active = state.watch(run)[1] in ACTIVE
    if active:
        live.prepare()
    st.fragment(run_every=_POLL_SECONDS if active else None)(_run_view)(run, active, recorded)


def _run_view(run: Run, was_active: bool, recorded: bool) -> None:
    events, run_state = state.watch(run)
    if was_active and run_state not in ACTIVE:
        st.rerun()  # once: the page is drawn anew, and polls no more
    config = state.config_of(run)
    if config is None:
        st.error(f"Run {run.id} was written by another version of the app, so it cannot be shown. Its folder is {run.path}.")
        return
    progress = frames.progress(events, state.now_of(events, run_state))
    st.space("xxsmall")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.subheader(title(config), anchor=False, width="content")
        badge(run_state)
    where = f" in {frames.counted(len(progress.sites), 'layer')}" if progress.sites else ""
    st.caption(f"{run.id} · keeps {100 * config.prune.pattern.density:g} % of the weights{where}")
    match run_state:
        case "queued":
            _queued(run)
        case "running":
            _running(run, progress)
        case "finished":
            _finished(run, config)
        case _:
            _stopped(run, run_state, events, progress, recorded)
    for note in progress.notes:
        st.caption(f":material/info: {note}")
    if progress.sites:
        _figures(events, config, progress, was_active)
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


def _queued(run: Run) -> None:
    place = state.jobs().position(run.id)
    where = {None: "It waits for its device", 1: "It is next"}.get(place, f"It is number {place} in line")
    st.info(
        f"{where}, and starts when the run before it has ended. You may leave this page.", icon=":material/hourglass_empty:"
    )
    _cancel_button(run)


def _cancel_button(run: Run) -> None:
    asked = run.cancel_requested()
    if st.button("Cancelling…" if asked else "Cancel", icon=":material/close:", disabled=asked, key=f"cancel-{run.id}"):
        state.jobs().cancel(run.id)
        st.rerun()


def _running(run: Run, progress: frames.Progress) -> None:
    after = ", then measuring" if progress.current else ""
    left = f", about {frames.duration(progress.left)} left{after}" if progress.left and progress.left >= 1 else ""
    where = (
        f"Layer {progress.done + 1} of {len(progress.sites)}: {frames.layer(progress.current.site)}"
        if progress.current
        else progress.phase
    )
    bar, button = st.columns([6, 1], vertical_alignment="bottom")
    bar.progress(progress.fraction, text=f"{where} · {frames.duration(progress.elapsed)} so far{left}")
    with button:
        _cancel_button(run)


def _finished(run: Run, config: RunConfig) -> None:
    found = {name: value for name, value in (run.metrics() or {}).items() if value is not None}
    shown = [name for name in _METRICS if name in found]
    for column, name in zip(st.columns(len(shown) or 1), shown, strict=False):
        label, words, meaning = _METRICS[name]
        delta = None
        if name == "accuracy" and (dense := found.get("accuracy_dense")) is not None:
            delta = f"{frames.points(found[name] - dense)} from {frames.percent(dense)}"
        value = words(found[name])
        column.metric(label, value, delta, delta_color="off", delta_arrow="off", help=meaning, border=True, height="stretch")
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


def _stopped(run: Run, run_state: str, events: list[Event], progress: frames.Progress, recorded: bool) -> None:
    last = events[-1] if events else None
    kept = (
        f"{progress.done} of {len(progress.sites)} layers are finished and kept."
        if progress.sites
        else "No layer was finished."
    )
    if isinstance(last, RunFailed):
        st.error(f"{last.message} {kept}", icon=":material/error:")
        if last.detail:
            with st.expander("Details for a report"):
                st.code(last.detail, language=None)
    elif run_state == "cancelled":
        st.info(f"You cancelled this run. {kept} Resume goes on from there.", icon=":material/close:")
    else:
        st.warning(
            f"This run was interrupted: its worker is gone, as when the app is stopped. {kept} Resume goes on from there.",
            icon=":material/power_off:",
        )
    if recorded:
        return
    if st.button("Resume", type="primary", icon=":material/play_arrow:", key=f"resume-{run.id}"):
        try:
            state.jobs().resume(run.id)
        except StoreError as error:
            st.error(str(error), icon=":material/error:")
        else:
            st.rerun()


def _draw(figure: Figure, is_live: bool, key: str, alt: str) -> None:
    if is_live:
        live.chart(figure, key=f"live-{key}", alt=alt)
    else:
        st.plotly_chart(figure, key=key, config=_QUIET, alt=alt)


def _loss_chart(events: list[Event], config: RunConfig, sites: list[str], is_live: bool = False) -> None:
    figure = charts.loss_chart(frames.site_losses(events), [frames.layer(site) for site in sites], config.prune.update)
    _draw(figure, is_live, "losses", "Loss of each layer with the mask only, after least squares, and at the end")


def _figures(events: list[Event], config: RunConfig, progress: frames.Progress, is_live: bool) -> None:
    solves = config.prune.update == "snows"
    losses, now = st.columns([3, 2], gap="large") if solves else (st.container(), None)
    with losses:
        st.markdown("**What each layer lost, and got back**")
        _loss_chart(events, config, progress.sites, is_live)
    if now is not None:
        with now:
            _solver(events, config, is_live)
    st.markdown("**What happened**, newest first")
    st.dataframe(
        frames.log(events),
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


def _solver(events: list[Event], config: RunConfig, is_live: bool) -> None:
    solved = frames.last_solved(events)
    if solved is None:
        st.caption("The solver has not begun.")
        return
    st.markdown(f"**The solver in** `{frames.layer(solved.site)}`")
    figure = charts.residual_chart(frames.cg_residuals(events), config.prune.solver.rtol)
    _draw(figure, is_live, "residuals", "Conjugate gradient's relative residual by iteration")
    st.caption("It changes this layer so that all of these compute what they did:")
    st.markdown(frames.operations(solved.operations))


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
    _loss_chart(events, config, frames.progress(events, events[-1].time).sites)
    st.caption(title(config))


# --- lists of runs ---


def run_picker(opened: Run | None) -> None:
    """Choose among this user's runs; the page's address follows."""
    runs = {run.id: run for run in state.store().list()[:50]} | ({opened.id: opened} if opened else {})
    if not runs:
        return
    current = opened.id if opened else None
    picked = st.selectbox(
        "Run",
        options := [None, *runs],
        options.index(current),
        key=f"picker-{current}",
        width=400,
        format_func=lambda run_id: f"{_label(runs[run_id])} · {when(runs[run_id])}" if run_id else "A new run",
    )
    if picked != current:
        state.open_run(picked)


def _label(run: Run) -> str:
    config = state.config_of(run)
    return title(config) if config else run.id


def when(run: Run) -> str:
    """When a run was made: `24 Nov, 14:05`."""
    return datetime.fromtimestamp((run.path / "config.json").stat().st_mtime).strftime("%d %b, %H:%M").lstrip("0")


def recent_runs(limit: int = 8) -> None:
    """The newest runs, each with its state, its result and a link."""
    runs = state.store().list()[:limit]
    if not runs:
        st.caption("None yet. The demonstration would be the first.")
    for run in runs:
        accuracy = (run.metrics() or {}).get("accuracy")
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.page_link(
                state.page("prune"),
                label=_label(run),
                icon=":material/arrow_forward:",
                query_params={"run": run.id},
                width=330,
            )
            with st.container(width=120):
                badge(run.state())
            st.caption(when(run) + (f" · accuracy {frames.percent(accuracy)}" if accuracy is not None else ""), width="content")


def found_device() -> str:
    """A sentence on what runs will work with."""
    import torch

    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return f":material/memory: Runs will use the **{found.name}** here and its {frames.size(found.total_memory)}."
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f":material/memory: Runs will use **{cores} processor cores** and {frames.size(memory)}; no CUDA device was found."
