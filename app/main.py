"""The app's entry: `python -m streamlit run app/main.py`. The frame around every page, and nothing else."""

import sys
import threading
from pathlib import Path

# `streamlit run` puts only this file's folder on the path.
ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import streamlit as st  # noqa: E402

from app import state, texts, visitor  # noqa: E402
from app.parts import delivery, frame  # noqa: E402
from app.work import engine, public  # noqa: E402
from app.work.garbage import Collector  # noqa: E402
from snows.bundled import ASSETS  # noqa: E402
from snows.config import RunConfig  # noqa: E402
from snows.process import prepare  # noqa: E402
from snows.runs.executors import device_of  # noqa: E402

prepare()
texts.locale = lambda: st.context.locale
st.set_page_config(page_title="SNOWS", page_icon=str(ASSETS / "icon.png"), layout="wide")


@st.cache_resource
def warm_up(is_public: bool) -> Collector:
    """Import the engine while the first page is read; every run needs it."""
    delivery.mend()
    planner, jobs, collector = state.planner(), state.workers(), Collector()
    if is_public:
        st.set_option("client.showErrorDetails", "none")  # a trace tells of the machine

    def load() -> None:
        planner.start()
        engine.load()
        jobs.work_on(device_of(RunConfig()))  # what waits in line, from a shell or from before this app was started
        state.tidy()
        collector.start()  # now that torch and timm are there
        if is_public:
            state.keep()

    threading.Thread(target=load, name="warm-up", daemon=True).start()
    return collector


warm_up(public.is_public()).stir()
frame.dress()
visitor.admit()
page = frame.navigation()
state.read_address(page.url_path)
frame.draw()
if page.url_path in state.WITH_ENGINE and not engine.ready():
    with st.spinner("Loading the engine …"):
        engine.load()
page.run()
