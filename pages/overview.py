"""How much of a network can be taken away? Something to play with first; then a run to watch, and where to go from here.

What is played with is in the address, see `app.parts.play`.
"""

import streamlit as st

from app import state
from app.forms import run as form
from app.parts import panels, play
from app.texts import text
from app.work import public
from snows.config import NM, PruneConfig, RunConfig

DEMONSTRATION = RunConfig(model="resnet20-fashion", num_evaluation=2_000, prune=PruneConfig(pattern=NM(n=1, m=4)))

st.title(text("start.title"), anchor=False)
play.play()

st.space("small")
words, figure = st.columns([5, 4], gap="large")
with words:
    st.header(text("start.watch"), anchor=False)
    st.markdown(text("start.about"))
    form.start_button(text("start.run"), DEMONSTRATION)
    st.caption(text("start.run_about"))
    device = st.empty()
with figure:
    panels.example_figure()

CARDS = ("layers", "compare", "prune")
for column, name in zip(st.columns(len(CARDS)), CARDS, strict=True):
    with column.container(border=True, height="stretch"):
        title = text(f"start.{name}.title")
        st.page_link(state.page(name), label=f"**{title}**", icon=state.PAGES[name][1])
        st.caption(text("start.prune.about_public" if name == "prune" and public.is_public() else f"start.{name}.about"))

st.header(text("start.recent"), anchor=False)
panels.recent_runs()

# Last, because asking torch may have to wait for its import; the page above is readable meanwhile.
device.markdown(panels.found_device())
