"""The app's entry: `python -m streamlit run app/main.py`. The frame around every page, and nothing else."""

import gc
import sys
import threading
from pathlib import Path

# `streamlit run` puts only this file's folder on the path.
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import streamlit as st  # noqa: E402

from app import state  # noqa: E402
from app.parts import frame  # noqa: E402
from snows.process import prepare  # noqa: E402

prepare()
st.set_page_config(page_title="SNOWS", page_icon=str(ROOT / "assets/icon.png"), layout="wide")


@st.cache_resource
def warm_up() -> threading.Event:
    """Import torch and the engine while the first page is read; it takes seconds and every run needs them. Set when done."""
    planner, imported = state.planner(), threading.Event()

    def load() -> None:
        planner.start()
        try:
            import snows.runs.runner  # noqa: F401
            from snows.sources import models
        finally:
            imported.set()
        state.tidy()
        models.every_name()
        # Streamlit collects all garbage after every script run; what torch and timm brought along need not be walked each time.
        gc.collect()
        gc.freeze()

    threading.Thread(target=load, name="warm-up", daemon=True).start()
    return imported


imported = warm_up()
st.logo(str(ROOT / "assets/logo.svg"), size="large")
page = frame.navigation()
state.read_address(page.url_path)
frame.draw()
# Two threads that import torch's libraries from different ends at once can each be given a module that is half imported.
if page.url_path in state.WITH_ENGINE and not imported.is_set():
    with st.spinner("Loading the engine …"):
        imported.wait()
page.run()
