"""How much of a network can be taken away? What the app is for, and a first run in one click."""

import streamlit as st

from app.forms import run as form
from app.parts import panels
from snows.config import NM, PruneConfig, RunConfig

DEMONSTRATION = RunConfig(model="resnet20-fashion", num_evaluation=2_000, prune=PruneConfig(pattern=NM(n=1, m=4)))

words, figure = st.columns([5, 4], gap="large")
with words:
    st.title("How much of a neural network can you take away before it forgets?", anchor=False)
    st.markdown(
        "Most weights of a trained network can be set to zero, if the few that stay make up for the loss. SNOWS does that "
        "after training, one layer at a time. It removes the weights that a rule picks, then works out new values for the "
        "rest, so that not only this layer but the next few as well compute what they did before. It needs no labels and no "
        "retraining: a few hundred images are enough."
    )
    form.start_button("Run the demonstration", DEMONSTRATION)
    st.caption(
        "Prunes a small image classifier while you watch: keeps 1 of 4 weights, fits them on 512 pictures of clothing, then "
        "tests the network on 2,000 others. Two processor cores take about a minute."
    )
    device = st.empty()
with figure:
    panels.example_figure()

st.subheader("Recent runs", anchor=False)
panels.recent_runs()

# Last, because asking torch may have to wait for its import; the page above is readable meanwhile.
device.markdown(panels.found_device())
