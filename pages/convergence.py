"""Did the solver do its work? The address names the run, the layer and the measure: `?run=ID&layer=NAME&by=Curvature`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st
from plotly.graph_objects import Figure

from app import state, visitor, words
from app.charts import lessons as lesson_charts
from app.charts import palette
from app.charts import solver as solver_charts
from app.lessons import downhill
from app.parts import live, panels
from app.tables import run as run_tables
from app.tables import solver as solver_tables
from app.tables.layers import block
from app.work.making import Making
from snows.config import InputError, RunConfig
from snows.events import Event, RunFailed
from snows.measures.names import duration, number
from snows.runs.store import ACTIVE, Run

if TYPE_CHECKING:
    from snows.measures.descents import Point
    from snows.method.problem import SiteProblem
    from snows.runs.inspection import Inspection

_IMAGES = (8, 32, 128)
_NAMED = 6
_COLUMNS = {
    "step": st.column_config.NumberColumn("Step", width=60),
    "trouble": st.column_config.TextColumn("Trouble", width="large"),
    "before": st.column_config.NumberColumn("Loss before", format="%.3g"),
    "loss": st.column_config.NumberColumn("Loss after", format="%.3g"),
    "gradient": st.column_config.NumberColumn("Gradient", format="%.3g", help="Its length: how steep the loss is here."),
    "ended": st.column_config.TextColumn("Conjugate gradient", help="How the solve of the step's linear system ended."),
    "iterations": st.column_config.NumberColumn("Iterations", help="Each costs one curvature product."),
    "residual": st.column_config.NumberColumn(
        "Residual", format="%.3g", help="What is left unsolved, as a share of the gradient."
    ),
    "flattest": st.column_config.NumberColumn(
        "Flattest", format="%.3g", help="The least curvature along a searched direction."
    ),
    "steepest": st.column_config.NumberColumn("Steepest", format="%.3g", help="The most curvature along a searched direction."),
    "predicted": st.column_config.NumberColumn("Promised", format="%.2e", help="The reduction by the quadratic model."),
    "actual": st.column_config.NumberColumn("Came true", format="%.2e", help="The reduction of the loss itself."),
    "trust": st.column_config.NumberColumn("Came true ÷ promised", format="%.2f", help="Near 1: the model can be trusted."),
    "tried": st.column_config.TextColumn("Step sizes tried", help="1 is the whole Newton step; each further try is half."),
    "step_size": st.column_config.NumberColumn("Taken", format="%.3g"),
    "damping": st.column_config.NumberColumn(
        "Damping", format="%.2e", help="What was added to the curvature, to keep steps safe."
    ),
    "status": st.column_config.TextColumn("Step was"),
}


# --- what all of this is ---

_START, _NARROW = (-2.0, 1.5), 30


def draw_idea() -> None:
    """The solver at work in a valley of two weights, with the numbers of lesson 4."""
    with st.expander("What is this?", icon=":material/help:"):
        st.markdown(
            "To fit a layer is to walk to the bottom of a valley: its loss, over as many dimensions as it has weights. Here is "
            "one of two weights, seen from above, with the steps drawn in. A **Newton step** goes to where the bottom would be "
            "if the valley bent the same everywhere. **Conjugate gradient** finds that place in a few iterations, one "
            "**curvature product** each, and what it has left to go is the **residual**: all of it, 1, where it begins."
        )
        within, across = st.columns(2, gap="large")
        for place, bent, names, says in (
            (within, False, ("conjugate", "descent"), _within_said),
            (across, True, ("newton", "descent"), _across_said),
        ):
            ways = downhill.known_ways(_NARROW, bent, _START)
            height, axis = downhill.heights(_NARROW, bent)
            steps = {name: len(ways[name].points) - 1 for name in names}
            with place:
                st.markdown(
                    "**Newton steps** in a valley that bends" if bent else "**Within one Newton step**, in an even valley"
                )
                figure = lesson_charts.descent_chart(height, axis, axis, {name: ways[name].points for name in names})
                live.chart(figure, key=f"idea-{bent}", alt=says(steps))
                st.caption(says(steps))
        st.page_link(
            state.page("lessons"),
            label="Lesson 4: drag the start, and try each way",
            icon=":material/school:",
            query_params={"lesson": "downhill"},
        )


def _within_said(steps: dict[str, int]) -> str:
    return (
        f"Conjugate gradient is at the bottom after {words.counted(steps['conjugate'], 'iteration')}, as many as "
        f"there are weights; always straight down takes {steps['descent']} steps."
    )


def _across_said(steps: dict[str, int]) -> str:
    return (
        f"Each Newton step sees only the bend where it stands, so it takes {steps['newton']} of them; always straight down is "
        f"not there after {steps['descent']} steps."
    )


# --- what the run recorded ---


def draw_run(run: Run, config: RunConfig, layer_in_view: dict[str, str | None], is_live: bool) -> None:
    """All but the live checks. `layer_in_view` tells those which layer this is on; another pick draws the whole page anew."""
    events, run_state = state.watch(run)
    progress = run_tables.progress(events, state.now_of(events, run_state))
    if not _begun(run_state, events, progress):
        return
    sites = {words.layer(site): site for site in progress.sites}
    solves = config.prune.update == "snows"
    steps = solver_tables.newton_steps(events)
    if solves:
        _findings(solver_tables.findings(steps, config.prune.solver), len(steps), is_live)
    else:
        method = palette.LABELS[config.prune.update].lower()
        st.info(
            f"This run filled its weights by {method}, without Newton steps, so it has none to show. The checks below show "
            "what the solver would have met.",
            icon=":material/info:",
        )
    automatic, why = _automatic(sites, steps, events, is_live)
    if (linked_layer := state.asked("layer")) is not None and linked_layer not in sites and not state.is_recalled("layer"):
        problem = f"This run prunes no layer {linked_layer!r}; here is {automatic}. Choose another below."
        st.warning(words.plain(problem), icon=":material/info:")
    picked = state.chosen("layer", sites, "")
    if layer_in_view.get("picked", picked) != picked:
        st.rerun()
    name = picked or automatic
    layer_in_view.update(picked=picked, site=None if is_live and not picked else sites[name])
    compared, detail = st.columns([3, 2], gap="large") if solves else (None, st.container())
    if compared is not None:
        with compared:
            _compared(steps, list(sites), config, name)
    with detail:
        st.selectbox(
            "Layer",
            options := ["", *sites],
            format_func=lambda layer: layer or f"{automatic} ({why})",
            **state.addressed("layer", options, ""),
            help="In network order. The first choice is the layer in work, or once the run has ended the first in trouble, "
            "else the one that took the most iterations.",
        )
        if solves:
            _detail(events, config, sites[name])
        st.page_link(
            state.page("layers"),
            label="Its window, mask and weights",
            icon=":material/layers:",
            query_params={"run": run.id, "layer": name},
        )
    if solves:
        _table(steps, name)


def _automatic(sites: dict[str, str], steps: pd.DataFrame, events: list[Event], is_live: bool) -> tuple[str, str]:
    """The layer to show when none is picked, and why that."""
    solved = run_tables.last_solved(events)
    if is_live and solved is not None:
        return words.layer(solved.site), "in work"
    if (hardest := solver_tables.hardest(steps)) is None:
        return next(iter(sites)), "the first"
    return hardest, "needs attention" if (steps["trouble"] != "").any() else "most iterations"


def _begun(run_state: str, events: list[Event], progress: run_tables.Progress) -> bool:
    """The run's state; whether there is a layer to show."""
    if progress.sites:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            panels.badge(run_state)
            sweeps = progress.total // len(progress.sites)
            again = f" in {sweeps} sweeps; the last of each layer is shown" if sweeps > 1 else ""
            done = f"{progress.done} of {words.counted(progress.total, 'layer')} finished"
            st.caption(done + again, width="content")
    if events and isinstance(events[-1], RunFailed):
        st.error(events[-1].message, icon=":material/error:")
    if not progress.sites:
        waiting = run_state in ACTIVE
        st.info(
            "This run has not begun to prune. Its Newton steps appear here as they are taken."
            if waiting
            else "This run ended before it began to prune, so there are no steps to show. Choose another above.",
            icon=":material/hourglass_empty:" if waiting else ":material/info:",
        )
    return bool(progress.sites)


def _findings(findings: list[solver_tables.Finding], count: int, is_live: bool) -> None:
    if not any(finding.failure for finding in findings) and count:
        so_far = " so far" if is_live else ""
        st.markdown(
            f":green[:material/check_circle:] **No step failed{so_far}.** In all {words.counted(count, 'Newton step')} "
            "conjugate gradient stayed below its limit, the curvature products were sound, and no loss refused to fall."
        )
    with st.container(gap="xsmall"):
        for place, finding in enumerate(findings):
            with st.container(gap=None):
                icon = ":red[:material/error:]" if finding.failure else ":blue[:material/info:]"
                st.markdown(f"{icon} **{finding.what}.** {finding.why}")
                with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                    for name in finding.layers[:_NAMED]:
                        st.button(
                            name,
                            type="tertiary",
                            icon=":material/arrow_forward:",
                            key=f"finding-{place}-{name}",
                            on_click=_pick,
                            args=(name,),
                        )
                    if (more := len(finding.layers) - _NAMED) > 0:
                        st.caption(f"and {words.counted(more, 'other')}", width="content")


def _pick(name: str) -> None:
    state.choose("layer", name, "")


def _compared(steps: pd.DataFrame, names: list[str], config: RunConfig, name: str) -> None:
    by = st.segmented_control(
        "All Newton steps by",
        list(solver_tables.MEASURES),
        required=True,
        **state.addressed("by", solver_tables.MEASURES, "Residual"),
        wrap=True,
    )
    measure = solver_tables.MEASURES[by]
    solver = config.prune.solver
    limits = {
        "Residual": (solver.rtol, f"tolerance {solver.rtol:g}"),
        "Iterations": (solver.max_iters, f"limit {solver.max_iters}"),
    }
    figure = solver_charts.steps_chart(
        solver_tables.marks(steps, measure),
        names,
        measure.axis,
        log=measure.log,
        span=[1.0] if by == "Residual" else (),  # where every solve begins
        limit=limits.get(by),
        blocks=[block(layer) for layer in names],
        chosen=names.index(name),
    )
    live.chart(
        figure,
        key="steps",
        alt=f"{measure.axis}, for each layer and Newton step",
        on_click=lambda _, row: _pick(names[min(max(round(row), 0), len(names) - 1)]),
    )
    st.caption(f"{measure.help} Within a layer the first Newton step is on top. Click a row to look into its layer.")


def _detail(events: list[Event], config: RunConfig, site: str) -> None:
    ended = solver_tables.outcome(events, site)
    if ended is not None:
        first = ended.losses.get("least_squares", ended.losses["mask_only"])
        st.caption(
            f"{ended.message} Loss {number(first)} to {number(ended.losses['final'])} with "
            f"{words.counted(ended.num_products, 'curvature product')} in {duration(ended.seconds)}."
        )
    directions = solver_tables.directions(events, site)
    if directions.empty:
        st.caption("Conjugate gradient took no iteration here.")
        return
    st.markdown(
        "**What is left unsolved**, by iteration",
        help="Conjugate gradient solves each Newton step's linear system iteration by iteration. A line and a band are a "
        "Newton step: before its first iteration all of its gradient is left, 1.",
    )
    figure = solver_charts.residual_chart(directions, config.prune.solver.rtol)
    live.chart(figure, key="residuals", alt="Conjugate gradient's relative residual by iteration")
    st.markdown(
        "**Curvature** along each direction",
        help="How strongly the loss bends along that iteration's direction p, with the damping. C is the curvature matrix, "
        "which is never formed. A value at or below zero cuts the solve, and is not drawn.",
    )
    live.chart(solver_charts.curvature_chart(directions), key="curvatures", alt="Curvature along each direction by iteration")


def _table(steps: pd.DataFrame, name: str) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.markdown("**Newton steps**", width="content")
        options = {"This layer": steps[steps["layer"] == name], "All layers": steps}
        of = st.segmented_control(
            "Of", list(options), default="This layer", required=True, label_visibility="collapsed", key="steps-of"
        )
    rows = options[of]
    readable_steps = rows.assign(
        tried=[", ".join(map(number, tried)) for tried in rows["tried"]],
        ended=[words.cg_ended(cg) for cg in rows["cg"]],
    )
    columns = [*(["layer"] if of == "All layers" else []), *_COLUMNS]
    if not readable_steps["trouble"].any():
        columns.remove("trouble")
    st.dataframe(
        readable_steps[columns],
        hide_index=True,
        column_config={"layer": "Layer", **_COLUMNS},
        alt="Every Newton step in numbers",
    )


# --- what is computed when asked ---


@dataclass(frozen=True)
class Check:
    title: str
    what: str
    compute: Callable[["SiteProblem"], pd.DataFrame]
    say: Callable[[pd.DataFrame], str]
    figure: Callable[[pd.DataFrame, RunConfig], Figure] | None


CHECKS = {
    "products": Check(
        "Do the three products agree?",
        "**Gauss-Newton** leaves out what the errors contribute to the curvature, the **exact Hessian** differentiates twice, "
        "**finite differences** subtract two gradients. Each is applied to one random direction.",
        solver_tables.products,
        solver_tables.products_said,
        None,
    ),
    "valley": Check(
        "How far should finite differences step?",
        "Too small a step ε drowns in rounding, too large a one leaves the neighbourhood: the error against the exact Hessian "
        "is a valley. A step that crosses the kink of a ReLU sees a jump which the Hessian does not, and raises it.",
        solver_tables.valley,
        solver_tables.valley_said,
        lambda result, config: solver_charts.valley_chart(result),
    ),
    "solves": Check(
        "What does the preconditioner save?",
        "The same system from the same start, with and without **row blocks**: the least-squares factors of each output row, "
        "which nearly undo the curvature before conjugate gradient begins.",
        solver_tables.solves,
        solver_tables.solves_said,
        lambda result, config: solver_charts.solves_chart(result, config.prune.solver.rtol),
    ),
    "eigenvalues": Check(
        "How stretched is the problem?",
        "**Lanczos**' method finds the curvature's outermost eigenvalues. The wider they spread, the longer conjugate gradient "
        "takes: its iterations grow with the square root of largest ÷ smallest.",
        solver_tables.eigenvalues,
        solver_tables.eigenvalues_said,
        lambda found, config: solver_charts.eigenvalues_chart(found),
    ),
}


@st.fragment
def draw_checks(run: Run, config: RunConfig, site: str | None) -> None:
    """Computed on a click, and kept for this session."""
    st.divider()
    st.header("Live checks" + (f" on {words.layer(site)}" if site else ""), anchor=False)
    st.markdown(
        "Computed here and now: this layer as its solver met it, with the layers before it pruned, at the point where it began."
    )
    if site is None:
        st.info("Choose a finished layer above.", icon=":material/info:")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        images = st.segmented_control(
            "Calibration images",
            _IMAGES,
            default=32,
            required=True,
            key="check-images",
            help="The first of the run's own. More take longer and say more.",
        )
        all_asked = st.button("Run all four", type="primary", icon=":material/play_arrow:", key="check-all")
    visitor.computing()
    results: dict[tuple[object, ...], pd.DataFrame] = st.session_state.setdefault("checks", {})
    places = [column.container(border=True) for _ in range(2) for column in st.columns(2)]
    for (name, check), place in zip(CHECKS.items(), places, strict=True):
        key = (run.path, site, images, name)
        with place:
            st.markdown(f"**{check.title}**")
            st.caption(check.what)
            slot = st.empty()
            if key not in results and (slot.button("Run", key=f"check-{name}", icon=":material/play_arrow:") or all_asked):
                try:
                    with slot, st.spinner(f"Computing on {images} images …", show_time=True), visitor.turn():
                        results[key] = check.compute(state.inspection(run).problem(site, images))
                except InputError as error:
                    slot.error(words.plain(str(error)), icon=":material/error:")
            if key in results:
                slot.markdown(check.say(results[key]))
                _show(check, results[key], name, config)


def _show(check: Check, result: pd.DataFrame, name: str, config: RunConfig) -> None:
    if check.figure is not None:
        live.chart(check.figure(result, config), key=f"checked-{name}", alt=check.title)
        return
    st.dataframe(
        result,
        hide_index=True,
        column_order=["pair", "here", "without_errors"],
        column_config={
            "pair": st.column_config.TextColumn("Relative difference between", width="medium"),
            "here": st.column_config.NumberColumn("Here", format="%.2g", help="Where the solver starts."),
            "without_errors": st.column_config.NumberColumn(
                "With all errors zero", format="%.2g", help="The targets replaced by what the layer computes there."
            ),
        },
        alt=check.title,
    )


# --- curvature or plain gradients ---

_POLL_SECONDS = 0.5
_STARTS = {"masked": "The mask alone", "least_squares": "Least squares"}


def draw_descents(run: Run, site: str | None) -> None:
    """Computed in the background on a click, and kept for this session."""
    known: dict[tuple[object, ...], Making[Point]] = st.session_state.setdefault("descents", {})
    active = any(one.active for one in known.values())
    st.fragment(run_every=_POLL_SECONDS if active else None)(_draw_descents)(run, site, known, active)


def _draw_descents(run: Run, site: str | None, known: "dict[tuple[object, ...], Making[Point]]", was_active: bool) -> None:
    if was_active and not any(one.active for one in known.values()):
        st.rerun()  # once: the page is drawn anew, and polls no more
    st.divider()
    st.header("Would plain gradients do?", anchor=False)
    st.markdown(
        "Newton's steps by three kinds of curvature beside Adam and gradient descent: on one layer's loss, from the same "
        "point, on the same images."
    )
    if site is None:
        st.info("Choose a finished layer above.", icon=":material/info:")
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        images = st.segmented_control("Images", _IMAGES, default=32, required=True, key="descent-images")
        start = st.segmented_control(
            "All begin at", list(_STARTS), default="masked", required=True, format_func=_STARTS.__getitem__, key="descent-start"
        )
        key = run.path, site, images, start
        now = known.get(key)
        label = "Run again" if now is not None else "Run all five"
        busy = now is not None and now.active
        begin = st.button(label, type="primary", icon=":material/play_arrow:", key="descent-begin", disabled=busy)
    if begin:
        for other in known.values():
            other.stop()  # two at once would share the processor, and neither's seconds would be its own
        try:
            known[key] = Making(visitor.behind(partial(_descents_of, state.inspection(run), site, images, start)))
        except InputError as error:
            st.error(words.plain(str(error)), icon=":material/error:")
            return
        st.rerun()
    if now is None:
        st.caption("Takes from some seconds to minutes, and can be cancelled.")
        visitor.computing()
    else:
        _descents(now, site)


def _descents_of(inspection: "Inspection", site: str, images: int, start: str, check: Callable[[], None]) -> "Iterator[Point]":
    from snows.measures import descents

    return descents.descents(inspection.problem(site, images, batch_size=descents.BATCH), start=start, check=check)


def _descents(now: "Making[Point]", site: str) -> None:
    from snows.measures.descents import PASSES

    active, points = now.active, now.pieces()
    if active:
        bar, button = st.columns([6, 1], vertical_alignment="bottom")
        had = solver_tables.had_passes(points)
        text = f"{had:.0f} of {PASSES} passes each" if points else "Walking the images to the layer"
        bar.progress(min(had / PASSES, 1.0), text=visitor.IN_LINE if visitor.waits() else text)
        button.button("Cancel", icon=":material/close:", key="descent-stop", on_click=now.stop, disabled=now.stopped)
    elif now.error:
        st.error(words.plain(words.without_paths(now.error)), icon=":material/error:")
    elif now.stopped:
        st.info("You cancelled this. What there was by then is shown.", icon=":material/close:")
    if not points:
        return
    against = st.segmented_control(
        "Against",
        list(solver_tables.AGAINST),
        default="passes",
        required=True,
        format_func=solver_tables.AGAINST.__getitem__,
        key="descent-against",
    )
    said = solver_tables.descents_said(points)
    figure = solver_charts.descents_chart(solver_tables.descents(points), against, solver_tables.AGAINST[against])
    st.markdown(f"**{words.layer(site)}{', so far' if active else ''}.** {said}")
    live.chart(figure, key="descents-chart", alt=f"Loss by way down, against {solver_tables.AGAINST[against].lower()}")
    st.caption(solver_tables.descents_note(points))


run = panels.inspected_run(
    "convergence",
    "Did the solver do its work?",
    "How conjugate gradient and Newton steps went in each layer, and what to change where they did not.",
)
draw_idea()
if run is not None and (config := state.config_of(run)) is not None:
    layer_in_view: dict[str, str | None] = {}
    panels.follow(run, partial(draw_run, run, config, layer_in_view))
    if layer_in_view:
        draw_checks(run, config, layer_in_view["site"])
        draw_descents(run, layer_in_view["site"])
