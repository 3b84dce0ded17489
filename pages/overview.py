"""How much of a network can be taken away? Something to play with first; then a run to watch, and where to go from here.

What is played with is in the address, see `app.parts.play`.
"""

import streamlit as st

from app import state
from app.forms import run as form
from app.parts import panels, play
from snows.config import NM, PruneConfig, RunConfig

DEMONSTRATION = RunConfig(model="resnet20-fashion", num_evaluation=2_000, prune=PruneConfig(pattern=NM(n=1, m=4)))

st.title("How much of a neural network can you take away before it forgets?", anchor=False)
play.play()

st.space("small")
words, figure = st.columns([5, 4], gap="large")
with words:
    st.header("Watch it happen", anchor=False)
    st.markdown(
        "SNOWS prunes a network after its training, one layer at a time. It removes the weights that a rule picks, then works "
        "out new values for the rest, so that not only this layer but the next few as well compute what they did before. It "
        "needs no labels and no retraining: a few hundred images are enough."
    )
    form.start_button("Run the demonstration", DEMONSTRATION)
    st.caption(
        "Prunes a small image classifier while you watch: keeps 1 of 4 weights, fits them on 512 pictures of clothing, then "
        "tests the network on 2,000 others. Two processor cores take about a minute."
    )
    device = st.empty()
with figure:
    panels.example_figure()

CARDS = (
    ("layers", "See inside", "What each layer lost and got back, which weights stayed, and where the network looks."),
    ("compare", "Compare methods", "One network cut in many ways: which rule, which fit, and what each costs."),
    (
        "prune",
        "Bring your own network",
        "Your weights and your pictures, or any of a thousand networks with published weights.",
    ),
)
for column, (name, title, about) in zip(st.columns(len(CARDS)), CARDS, strict=True):
    with column.container(border=True, height="stretch"):
        st.page_link(state.page(name), label=f"**{title}**", icon=state.PAGES[name][1])
        st.caption(about)

st.header("Recent runs", anchor=False)
panels.recent_runs()

# Last, because asking torch may have to wait for its import; the page above is readable meanwhile.
device.markdown(panels.found_device())
