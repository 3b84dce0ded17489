"""How fast a network is on this machine beside the dense one: of a finished run, and in the form before there is one.

Timed in the background on a click, and kept for this session.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING

import streamlit as st

from app import state, visitor, words
from app.tables import speed
from app.work.making import Making
from snows.config import RunConfig
from snows.runs.store import Run

if TYPE_CHECKING:
    from snows.runs.latency import Timing

_POLL_SECONDS = 1.0


def of_run(run: Run, config: RunConfig) -> None:
    """A finished run's network beside the dense one, below a heading to unfold."""
    folded = st.expander("How fast is it on this machine?", icon=":material/timer:", key=f"speed-{run.id}", on_change="rerun")
    if not folded.open:
        return
    with folded:
        what = "The network as it is exported, beside the dense one: in PyTorch and in ONNX Runtime, in turns."
        if not config.prune.structured:
            what += " Its zeros are multiplied like any other number, so no more than noise is to be expected."
        st.markdown(what)
        _timed(("run", run.path), lambda check: _of_run(run, check), "Time it", before=False)


def expected(config: RunConfig) -> None:
    """How much faster a run of this config will make the network, in the form, where whole units are cut away."""
    if config.prune.structured:
        pruned = config.prune
        sizes = config.model, config.checkpoint, str(pruned.pattern), str(pruned.overrides), pruned.prune_classifier
        _timed(("config", *sizes), lambda check: _expected(config, check), "How much faster here?", before=True)


def _of_run(run: Run, check: Callable[[], None]) -> "Iterable[Timing]":
    from snows.runs import latency

    return latency.of_run(run, check)


def _expected(config: RunConfig, check: Callable[[], None]) -> "Iterable[Timing]":
    from snows.runs import latency

    return latency.expected(config, check)


def _timed(key: Hashable, make: "Callable[[Callable[[], None]], Iterable[Timing]]", label: str, *, before: bool) -> None:
    known: dict[Hashable, Making[Timing]] = st.session_state.setdefault("timings", {})
    if key in known and known[key].active:
        st.fragment(run_every=_POLL_SECONDS)(_draw)(known, key, make, label, before, True)
    else:
        # No fragment: a click that comes before the page was built anew is one of a part nobody knows.
        _draw(known, key, make, label, before, False)


def _draw(
    known: "dict[Hashable, Making[Timing]]",
    key: Hashable,
    make: "Callable[[Callable[[], None]], Iterable[Timing]]",
    label: str,
    before: bool,
    was_active: bool,
) -> None:
    now = known.get(key)
    if was_active and not (now is not None and now.active):
        st.rerun()  # once: the page is drawn anew, and polls no more
    name = "expected" if before else "timed"
    if now is not None and now.active:
        done = len(now.pieces())
        text = f"Timing, {done} of {speed.STEPS}" if done else "Making both networks ready"
        st.progress(done / speed.STEPS, text=visitor.IN_LINE if visitor.waits() else text)
        st.button("Cancel", icon=":material/close:", key=f"{name}-stop", on_click=now.stop, disabled=now.stopped)
    elif st.button(label if now is None else "Time it again", icon=":material/timer:", key=f"{name}-begin"):
        for other in known.values():
            if other.active:  # two at once would share the processor, and neither's turns would be its own
                other.stop()
        known[key] = Making(visitor.behind(make))
        st.rerun()
    if now is not None:
        _shown(now, before)
    visitor.computing()


def _shown(now: "Making[Timing]", before: bool) -> None:
    from snows.runs.latency import onnx_runtime_obstacle

    measured = now.pieces()
    if not now.active:
        if now.error:
            st.error(words.plain(words.without_paths(now.error)), icon=":material/error:")
        elif now.stopped:
            st.info("You cancelled this. What there was by then is shown.", icon=":material/close:")
    if not measured:
        return
    st.markdown(speed.sentence(measured, before=before))
    st.dataframe(
        speed.timings(measured),
        hide_index=True,
        column_order=["Program", "Images at once", "Times as fast"] if before else None,  # a card has no room for more
        alt="By program and number of images at once: the time of the dense network and of the pruned one, and their ratio",
    )
    notes = ["Medians by the clock; the range is that of the ratio of two turns in a row, in four of five rounds."]
    if before:
        notes.append("Which units go changes no size, so they were chosen by chance.")
    if (missing := onnx_runtime_obstacle()) is not None:
        notes.append(missing)
    if state.store().active():
        notes.append("A run is at work, which makes the range wider.")
    st.caption(" ".join(notes))
