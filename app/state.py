"""Where things are kept: the URL (which run), the session (events read so far), the process (the job manager). Typed.

The inputs of a form keep themselves, see `form.kept`.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import streamlit as st
from pydantic import ValidationError

from app.jobs import JobManager
from app.planning import Planner
from snows.config import RunConfig
from snows.events import Event
from snows.store import Run, RunStore, default_root

ROOT = Path(__file__).resolve().parent.parent


def page(name: str) -> "st.Page":
    """The app's page of that name. The pages and their addresses are listed here and nowhere else."""
    return {
        "overview": st.Page(
            ROOT / "pages/overview.py", title="Overview", icon=":material/home:", url_path="overview", default=True
        ),
        "prune": st.Page(ROOT / "pages/prune.py", title="Prune", icon=":material/ac_unit:", url_path="prune"),
    }[name]


@st.cache_resource
def jobs() -> JobManager:
    """The process's one job manager."""
    return JobManager(store())


@st.cache_resource
def planner() -> Planner:
    """The process's one planner."""
    return Planner()


def store() -> RunStore:
    """This user's runs."""
    return RunStore(default_root())


def recorded_runs() -> RunStore:
    """The runs that come with the app."""
    return RunStore(ROOT / "assets" / "runs")


def opened_run_id() -> str | None:
    """The run that this page's address names."""
    return st.query_params.get("run")


def open_run(run_id: str | None) -> None:
    """Go to the page that shows a run; None: to the same page without one."""
    st.switch_page(page("prune"), query_params={"run": run_id} if run_id else None)


def config_of(run: Run) -> RunConfig | None:
    """What the run was told to do; None if this version cannot read it."""
    try:
        return run.config()
    except ValidationError:
        return None


@dataclass
class Watched:
    """A run as this session has read it so far."""

    events: list[Event] = field(default_factory=list)
    offset: int = 0


def watch(run: Run) -> tuple[list[Event], str]:
    """All the run's events, reading only what is new since the last call, and its state."""
    kept: dict[Path, Watched] = st.session_state.setdefault("watched", {})
    seen = kept.setdefault(run.path, Watched())
    new, seen.offset = run.events(seen.offset)
    seen.events.extend(new)
    return seen.events, run.state_after(seen.events[-1] if seen.events else None)


def now_of(events: list[Event], state: str) -> float:
    """The clock to measure a run's time by: it stands still once the run does."""
    return time.time() if state == "running" or not events else events[-1].time
