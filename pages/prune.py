"""Choose what to prune and how, start it, and watch. The address names the run: `?run=ID`."""

import streamlit as st

from app import state, words
from app.forms import run as form
from app.parts import panels
from snows.config import RunConfig

opened, run, problem = state.opened_run_id(), None, ""
if opened is not None:
    try:
        run = state.find_run(opened)
    except KeyError as error:
        problem = f"{error.args[0]} Choose another run above, or start a new one below."

heading = st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute", gap="large")
heading.title("How few weights still give the same answers?", anchor=False, width="content")
with heading:
    panels.run_picker(run)
# Each part has a place of its own, so that one that grows or goes does not make Streamlit build the next one anew.
view, settings, recorded = st.container(), st.container(), st.container()
with view:
    if problem:
        st.error(words.plain(problem), icon=":material/error:")
    if run is not None:
        panels.run_view(run, recorded=state.is_recorded(run))
        st.divider()
        st.header("Another run", anchor=False)
    else:
        st.markdown("Choose a network, which of its weights stay, and how those are refitted. Then start, and watch it.")
with settings:
    form.draw((state.config_of(run) if run else None) or RunConfig(), pinned=run is None)
with recorded:
    if run is None:
        panels.recorded_run()
