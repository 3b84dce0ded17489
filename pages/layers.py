"""What did each layer lose, and get back? The address names the run and the layer: `?run=ID&layer=NAME`."""

from functools import partial
from pathlib import Path

import pandas as pd
import streamlit as st

from app import state, words
from app.charts import layers as layer_charts
from app.charts import palette
from app.parts import live, panels
from app.tables import layers
from app.tables import run as run_tables
from snows.config import InputError, RunConfig
from snows.events import Event, SiteFinished
from snows.measures.names import MEASURES, number, percent
from snows.runs.store import ACTIVE, Run

_ERRORS = {"Relative": "relative_loss", "Absolute": "loss"}


def draw_run(run: Run, is_live: bool) -> None:
    events, run_state = state.watch(run)
    config = state.config_of(run)
    progress = run_tables.progress(events, state.now_of(events, run_state))
    if config is None or not progress.sites:
        _not_begun(run, run_state)
        return
    names = [words.layer(site) for site in progress.sites]
    few, many = run_tables.left_dense(progress.skipped)
    known = [*names, *few]
    if (linked_layer := state.asked("layer")) is not None and linked_layer not in known and not state.is_recalled("layer"):
        st.warning(
            f"This run has no layer {words.plain(repr(linked_layer))}; here is its first. Choose another below.",
            icon=":material/info:",
        )
    picked = state.chosen("layer", known, names[0])
    errors = layers.window_errors(events)
    relative, stage = _controls(config, run_state, progress, set(errors["stage"]))
    _overview(events, errors, config, names, relative, stage, picked)
    _left_dense(few, many)
    st.space("small")
    st.selectbox(
        "Layer",
        known,
        width=400,
        help="Those that were pruned, in network order, then those left dense. A click on a row above chooses one, too.",
        **state.linked("layer", picked, lambda layer: state.say("layer", layer)),
    )
    if picked in few:
        st.info(f"`{picked}` was left dense: {few[picked].rstrip('.')}.", icon=":material/lock:")
        return
    site = progress.sites[names.index(picked)]
    finished = next((e for e in layers.finished(events) if e.site == site), None)
    if finished is None:
        _unfinished(picked, progress, run_state)
        return
    _facts(finished, run)
    window, channels = st.columns([3, 2], gap="large")
    with window:
        unseen = layers.window_errors(events, held_back=True)
        own, own_unseen = (frame[frame["index"] == finished.index] for frame in (errors, unseen))
        _window(own, own_unseen, config, relative)
    try:
        detail = _detail(run.path, finished.site, finished.time)
    except InputError as error:
        st.warning(
            f"{words.plain(str(error))} Until then the layer's mask and weights cannot be shown.", icon=":material/error:"
        )
        return
    _weights(detail, picked, config)
    with channels:  # last, because it takes the longest
        _channels(run, finished, config)


def _not_begun(run: Run, run_state: str) -> None:
    if run_state in ACTIVE:
        st.info("This run has not begun to prune. Its layers appear here as they are finished.", icon=":material/pending:")
    else:
        st.info("This run ended before it began to prune, so it has no layers. Choose another above.", icon=":material/info:")
    st.page_link(state.page("prune"), label="See the run", icon=":material/ac_unit:", query_params={"run": run.id})


def _controls(config: RunConfig, run_state: str, progress: run_tables.Progress, known: set[str]) -> tuple[bool, str]:
    """Whether errors are relative, and the stage, of those `known`, that the error along the window is shown of."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        error = st.segmented_control(
            "Error",
            list(_ERRORS),
            required=True,
            help="\n".join(f"- **{name}**: {MEASURES[measure].meaning}" for name, measure in _ERRORS.items()),
            **state.addressed("error", _ERRORS, "Relative"),
        )
        method_of = palette.stages(config.prune.update)
        stages = {palette.LABELS[method]: stage for stage, method in method_of.items() if stage in known or not known}
        label = st.segmented_control(
            "Along the window",
            list(stages),
            required=True,
            help="Which values of the kept weights the right figure is about: the dense network's own (mask only), those that "
            "fit the layer's own output exactly (least squares), or those at the end. Mask only is of the mask at the end.",
            **state.addressed("stage", stages, palette.LABELS[config.prune.update]),
        )
        panels.badge(run_state)
        if progress.done < len(progress.sites):
            st.caption(f"{progress.done} of {words.counted(len(progress.sites), 'layer')} finished", width="content")
    return error == "Relative", stages[label]


def _overview(
    events: list[Event],
    errors: pd.DataFrame,
    config: RunConfig,
    names: list[str],
    relative: bool,
    stage: str,
    picked: str,
) -> None:
    blocks = [layers.block(name) for name in names]
    chosen = names.index(picked) if picked in names else None

    def choose(_: float, row: float) -> None:
        state.choose("layer", names[min(max(round(row), 0), len(names) - 1)], "")

    losses, windows = st.columns([3, 2], gap="medium")
    with losses:
        st.markdown("**What each layer lost, and got back**")
        title = MEASURES["relative_loss" if relative else "loss"].axis
        figure = layer_charts.loss_chart(
            layers.window_losses(events, relative),
            names,
            config.prune.update,
            title=title,
            blocks=blocks,
            chosen=chosen,
            held_back=layers.window_losses(events, relative, held_back=True),
        )
        live.chart(figure, key="window-losses", alt="Error of each layer's window, by stage", on_click=choose)
    with windows:
        st.markdown("**Where along the window the error grows or heals**")
        figure = layer_charts.window_chart(errors, names, stage, config.prune.update, blocks=blocks, chosen=chosen)
        live.chart(figure, key="window-errors", alt="Relative error at each operation of each layer's window", on_click=choose)
    st.caption(
        "A layer's **window** is the layer and the operations right after it, n₀, n₁ and so on: its weights were fitted so "
        "that all of these compute what they did. Shaded bands are the network's blocks. Click a row to look into its layer."
    )
    gaps = layers.carried_over(events, relative)
    if sentence := layers.carries_over(gaps):
        st.markdown(sentence)
    elif not gaps.empty:
        st.caption("No image was held back in this run, so nothing says how its fit carries over to others.")
    with st.expander("All layers in numbers", icon=":material/table:"):
        _numbers(gaps, config, title)


def _numbers(gaps: pd.DataFrame, config: RunConfig, title: str) -> None:
    known = [name for name in gaps.columns if name != "index" and gaps[name].notna().any()]
    method_of = palette.stages(config.prune.update)
    stages = {stage: palette.LABELS[method] for stage, method in method_of.items()}
    titles = stages | {"held_back": f"{stages['final']}, held back", "gap": "Held back ÷ calibration"}
    st.caption(title)
    st.dataframe(
        gaps[known],
        hide_index=True,
        alt="The loss of each layer on the calibration images and on those held back",
        column_config={
            "layer": "Layer",
            **{name: st.column_config.NumberColumn(words, format="%.3g") for name, words in titles.items()},
        },
    )


def _left_dense(few: dict[str, str], many: dict[str, list[str]]) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, reason in few.items():
        by_reason.setdefault(reason, []).append(f"`{name}`")
    lines = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    lines += [f"{len(names)} others: {reason}" for reason, names in many.items()]
    if lines:
        st.caption(":material/lock: **Left dense**  \n" + "  \n".join(lines))


def _unfinished(name: str, progress: run_tables.Progress, run_state: str) -> None:
    if progress.current is not None and words.layer(progress.current.site) == name:
        st.info(f"`{name}` is in work, to be fitted so that all of these compute what they did:", icon=":material/pending:")
        st.markdown(words.operations(progress.current.operations))
    elif run_state in ACTIVE:
        st.info(f"The run has not come to `{name}` yet. It appears here once it is finished.", icon=":material/pending:")
    else:
        st.info(f"The run ended before it came to `{name}`, so that layer is as it was.", icon=":material/info:")


def _facts(finished: SiteFinished, run: Run) -> None:
    whole = sum(finished.scale)
    error, at_first = (finished.losses[stage] / whole if whole else float("nan") for stage in ("final", "mask_only"))
    facts = [
        (
            "Error at the end",
            percent(error),
            f"from {percent(at_first)} with the mask only",
            "Of the window's values, relative: 100 % is as wrong as answering zero.",
        ),
        *_held_back_fact(finished, error),
        (
            MEASURES["density"].title,
            MEASURES["density"].say(finished.density),
            f"{finished.exchanged:,} exchanged" if finished.exchanged else None,
            "The share of this layer's weights that are not zero. Exchanged: these came into the mask for others that the "
            "scores had chosen, because the layer fits better with them.",
        ),
        (
            MEASURES["seconds"].title,
            MEASURES["seconds"].say(finished.seconds),
            None,
            "To choose this layer's mask and fit its weights.",
        ),
        (
            MEASURES["num_products"].title,
            MEASURES["num_products"].say(finished.num_products),
            None,
            MEASURES["num_products"].meaning,
        ),
    ]
    with st.container(horizontal=True, gap="small"):
        for label, value, delta, meaning in facts:
            st.metric(label, value, delta, delta_color="off", delta_arrow="off", help=meaning, border=True, height="stretch")
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{words.words(finished.status).capitalize()}.** {finished.message}", width="content")
        st.page_link(
            state.page("convergence"),
            label="How its solver went",
            icon=":material/trending_down:",
            query_params={"run": run.id, "layer": words.layer(finished.site)},
            width="content",
        )


def _held_back_fact(finished: SiteFinished, error: float) -> list[tuple[str, str, str | None, str]]:
    """The same error on images that were held back, beside `error`; nothing where none were."""
    whole = sum(finished.held_back_scale)
    if "final" not in finished.held_back or not whole:
        return []
    held_back = sum(finished.held_back["final"]) / whole
    meaning = (
        "The same error on images that nothing was fitted on. Far above the other one, the fit does not carry over: use more "
        "calibration images or a larger ridge."
    )
    times = f"{number(held_back / error)} times that on the calibration images" if error else None
    return [("On images held back", percent(held_back), times, meaning)]


def _window(errors: pd.DataFrame, held_back: pd.DataFrame, config: RunConfig, relative: bool) -> None:
    st.markdown("**Its window**, operation by operation")
    operations = errors.drop_duplicates("k").sort_values("k")["operation"]
    by_row, unseen = (
        frame.assign(index=frame["k"], loss=frame["relative" if relative else "loss"]) for frame in (errors, held_back)
    )
    figure = layer_charts.loss_chart(
        by_row,
        [f"{k} · {words}" for k, words in enumerate(operations)],
        config.prune.update,
        title=MEASURES["relative_loss" if relative else "loss"].axis,
        held_back=unseen,
    )
    live.chart(figure, key="operations", alt="Error at each operation of the layer's window")


def _channels(run: Run, finished: SiteFinished, config: RunConfig) -> None:
    st.markdown("**Its output**, channel by channel")
    try:
        errors = _channel_errors(run.path, finished.site, finished.time)
    except InputError as error:
        st.warning(
            f"{words.plain(str(error))} Until then the error of each channel cannot be measured.", icon=":material/error:"
        )
        return
    figure = layer_charts.channel_chart(errors, config.prune.update)
    live.chart(figure, key="channels", alt="Relative error of each output channel of the layer")
    st.caption(f"Of the layer alone (n₀), measured just now on {layers.CHANNEL_IMAGES} of the calibration images.")


def _weights(detail: layers.SiteDetail, name: str, config: RunConfig) -> None:
    mask, values = st.columns([3, 2], gap="large")
    with mask:
        st.markdown(f"**Its mask**: {detail.pattern}")
        obeys = {True: ":material/verified: It obeys its pattern.", False: ":material/error: It breaks its pattern.", None: ""}
        st.caption(f"{obeys[detail.obeys]} {detail.compliance}")
        figure = layer_charts.mask_picture(*layers.mask_panels(detail.mask)).update_layout(uirevision=name)
        live.chart(figure, key="mask", alt="Which weights are kept")
        positions = "One picture a kernel position; they zoom together. " if detail.mask.ndim == 4 else ""
        st.caption(f"Filled: kept. Faint: zero. {positions}Drag to zoom in, double-click to zoom out.")
    with values:
        st.markdown("**Its weights**, before and after")
        figure = layer_charts.weights_chart(detail.histogram, config.prune.update)
        live.chart(figure, key="weights", alt="Histograms of the layer's weights")
        st.markdown("**Weights that moved most**")
        number = st.column_config.NumberColumn(format="%.3g")
        st.dataframe(
            detail.moved,
            hide_index=True,
            height=218,
            column_config={"before": number, "after": number, "change": number},
            alt="The kept weights whose value changed most",
        )


@st.cache_data(max_entries=64, show_spinner="Looking into the layer …")
def _detail(path: Path, site: str, finished: float) -> layers.SiteDetail:
    return layers.site_detail(state.inspection(Run(path)), site)


@st.cache_data(max_entries=64, show_spinner="Measuring the layer's channels …")
def _channel_errors(path: Path, site: str, finished: float) -> pd.DataFrame:
    return layers.channel_errors(state.inspection(Run(path)), site)


run = panels.inspected_run(
    "layers",
    "What did each layer lose, and get back?",
    "How far each layer and the operations after it are from the dense network, and what its mask and weights look like.",
)
if run is not None:
    panels.follow(run, partial(draw_run, run))
