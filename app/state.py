"""Where things are kept: the URL (which run), the session (events read so far), the process (the job manager). Typed.

What a form's fields hold is kept by `app.forms.run`: in the session, and on the Prune page in the address as well.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st

from app import visitor
from app.forms import settings
from app.work import public
from app.work.jobs import JobManager, works_here
from app.work.planning import Planner
from snows.bundled import ASSETS, HOME
from snows.config import RunConfig
from snows.events import Event
from snows.runs.log import Log
from snows.runs.store import ACTIVE, Run, RunStore, default_root

if TYPE_CHECKING:
    from snows.runs.estimate import Plan
    from snows.runs.inspection import Inspection

# The runs that come with the app. Nobody can change or delete them.
RECORDED = RunStore(ASSETS / "runs")

# The pages in the order of work, with their title and icon; the file and the address are the name.
PAGES = {
    "overview": ("Start", ":material/home:"),
    "prune": ("Prune", ":material/ac_unit:"),
    "layers": ("Layers", ":material/layers:"),
    "convergence": ("Convergence", ":material/trending_down:"),
    "attention": ("Attention", ":material/visibility:"),
    "compare": ("Methods", ":material/balance:"),
    "study": ("K", ":material/stacked_line_chart:"),
    "lessons": ("Lessons", ":material/school:"),
    "runs": ("Runs", ":material/folder_open:"),
}
# The menu's parts that are lists of pages; every other page stands in it by itself.
MENU = {"Inspect": ("layers", "convergence", "attention"), "Compare": ("compare", "study")}
WITH_ENGINE = {"compare", "layers", "convergence", "attention", "lessons"}  # what cannot be shown before the engine is imported
# What a page's address goes on saying when one comes back to the page, or opens another run there.
KEPT = {
    "overview": {"kept", "values", "network", "pictures"},
    "attention": {"image", "with", "query", "block", "head", "patch", "measure"},
    "runs": {"find", "state", "tag", "marked", "group", "column"},
    "prune": set(settings.NAMES),
}
# What pages that look into a run have in common: chosen on one, it is chosen on the others.
SHARED = {"layers": {"layer"}, "convergence": {"layer"}}
# What an address can say: a text, a switch, or several texts.
Said = str | bool | list[str]
Choice = TypeVar("Choice", str, bool, list[str])


def page(name: str) -> "st.Page":
    """The app's page of that name."""
    title, icon = PAGES[name]
    return st.Page(HOME / f"pages/{name}.py", title=title, icon=icon, url_path=name, default=name == "overview")


@st.cache_resource
def workers() -> JobManager:
    """The process's one job manager, of all runs."""
    manager = JobManager(RunStore(default_root()), works=works_here())

    def close() -> None:
        threading.main_thread().join()
        manager.stop()

    # The last thread to end: what is registered to happen at exit comes after it, and takes the engine down.
    threading.Thread(target=close, name="closing", daemon=False).start()
    return manager


def jobs() -> JobManager:
    """What this user may ask of the workers."""
    return workers().of(store(), _admit) if public.is_public() else workers()


def _admit(configs: Sequence[RunConfig], count: int) -> None:
    public.check_room(store(), count)
    for config in configs:
        plan(config)


def tidy() -> None:
    """What was deleted long ago, and what was brought long ago and no run names any more, goes for good."""
    from snows.sources import uploads  # which takes its time to import

    RunStore(default_root()).purge()
    uploads.purge(default_root())


def keep() -> None:
    """Look after what visitors do and leave behind, for as long as the app is open."""
    public.Keeper(default_root()).work()


@st.cache_resource
def planner() -> Planner:
    """The process's one planner."""
    return Planner()


@st.cache_data(max_entries=32, show_spinner="Working out time and memory…")
def _planned(config_json: str) -> Any:
    return planner().plan(RunConfig.model_validate_json(config_json))


def plan(config: RunConfig) -> "Plan":
    """What a run would do and take. Raises `InputError` for a bad config, and for one that a visitor may not run; else as
    `Planner.plan`."""
    if not public.is_public():
        return _planned(config.model_dump_json())
    public.check(config, visitor.home())
    public.check_network(config)
    would: Plan = _planned(config.model_dump_json())
    public.check_plan(would)
    return would


def store() -> RunStore:
    """This user's runs."""
    return RunStore(default_root(), visitor.owner())


def recorded_runs() -> RunStore:
    """The runs that come with the app."""
    return RECORDED


def opened_run_id() -> str | None:
    """The run that this page's address names."""
    return asked("run")


@dataclass
class Address:
    """What the pages' addresses say, as this session knows it: each page's when it was looked at last.

    A fragment that is run every second may bring the browser's address and widgets from before the last click with it. So what
    is known here counts, and a widget that was given another value than its user's is a new one, whose turn is in its key.
    `shared` is what pages have in common, see `SHARED`. `given` are the values that widgets were given last: one that reports
    just that was not used.
    """

    page: str = ""
    pages: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    shared: dict[str, list[str]] = field(default_factory=dict)
    recalled: set[str] = field(default_factory=set)
    turns: dict[str, int] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, list[str]]:
        return self.pages.setdefault(self.page, {})


def _address() -> Address:
    return st.session_state.setdefault("address", Address())


def read_address(page_name: str) -> None:
    """Take over what the browser's address says. For the app's own script, never for a fragment."""
    address, parameters = _address(), {name: st.query_params.get_all(name) for name in st.query_params}
    before, address.page = (address.page, address.values.get("run")), page_name
    if parameters == address.values and before[0] == page_name:
        return
    address.turns = {name: turn + 1 for name, turn in address.turns.items()}
    address.recalled = set()
    known = {name: address.values[name] for name in address.values.keys() & KEPT.get(page_name, set())}
    for name in SHARED.get(page_name, ()):
        if name in parameters:
            address.shared[name] = parameters[name]
        elif name in address.shared:
            known[name] = address.shared[name]
    if before != (page_name, parameters.get("run")) and parameters.keys() <= {"run"}:
        address.recalled = set(known)
    recalled = {name: known[name] for name in address.recalled}
    address.pages[page_name] = parameters | recalled
    if recalled:
        st.query_params.from_dict(address.values)


def asked_all(name: str) -> list[str]:
    """All that the address says under `name`."""
    return list(_address().values.get(name, ()))


def said(names: Iterable[str]) -> dict[str, list[str]]:
    """All that the address says under `names`, as a link would have to."""
    return {name: texts for name in names if (texts := asked_all(name))}


def asked(name: str) -> str | None:
    """What the address says under `name`."""
    return next(reversed(asked_all(name)), None)


def shared(name: str) -> str | None:
    """What was chosen under `name`, of `SHARED`, on any page that has it."""
    return next(iter(_address().shared.get(name, ())), None)


def is_recalled(name: str) -> bool:
    """Whether it is not the link that says something under `name`, but this session's last look at the page."""
    return name in _address().recalled


def say(name: str, value: Said, default: Said = "") -> None:
    """Let the address say `value` under `name`, or nothing where it is the default. For what is no widget's choice."""
    texts = value if isinstance(value, list) else [str(value).lower() if isinstance(value, bool) else value]
    address = _address()
    address.recalled.discard(name)
    if value == default:
        texts = []
    if name in SHARED.get(address.page, ()):
        address.shared.pop(name, None)
        if texts:
            address.shared[name] = list(texts)
    if texts != asked_all(name):
        address.values.pop(name, None)
        if texts:
            address.values[name] = list(texts)
        st.query_params.from_dict(address.values)


def say_all(said: Mapping[str, str], names: Collection[str]) -> None:
    """Let the address say just this of `names`, in one step of the browser's history."""
    address = _address()
    address.recalled -= set(names)
    if said != {name: asked(name) for name in names if asked(name) is not None}:
        for name in names:
            address.values.pop(name, None)
        address.values.update({name: [text] for name, text in said.items()})
        st.query_params.from_dict(address.values)


def choose(name: str, value: Said, default: Said) -> None:
    """Choose for the user, who clicked elsewhere than on the choice's own widget."""
    _address().turns[name] = turn(name) + 1
    say(name, value, default)


def turn(name: str) -> int:
    """How often what the address says under `name` was changed by another than its widget. For the widget's key.

    A key made of the choice itself would find what was chosen there when one was there before, and go back to it.
    """
    return _address().turns.setdefault(name, 0)


def chosen(name: str, options: Collection[str] | None, default: Choice) -> Choice:
    """What the address chooses under `name`: one of `options`, several where the default is a list, any text, or a switch."""
    texts = asked_all(name)
    if not texts:
        return default
    if isinstance(default, list):
        return [text for text in texts if options is None or text in options]
    if isinstance(default, bool):
        return texts[-1] == "true" if texts[-1] in ("true", "false") else default
    return texts[-1] if options is None or texts[-1] in options else default


def addressed(name: str, options: Collection[str] | None, default: Choice) -> dict[str, Any]:
    """What ties a widget to what the address says under `name`, and writes there what its user chooses; see `linked`.

    The kinds are those of `chosen`; the default is not written. Streamlit's own binding to the address keeps one run's choice
    on the screen when another run is opened.
    """
    return linked(name, chosen(name, options, default), lambda value: say(name, value, default))


def linked(name: str, value: Any, write: Callable[[Any], None], part: str = "") -> dict[str, Any]:
    """What ties a widget to `value`, made of what the address says under `name`: its `key`, `on_change` and `persist_state`.

    `write` puts what its user chose into the address. `part` tells the widgets of one name from each other.
    """
    address = _address()
    key = f"{name}{part}-{turn(name)}"
    address.given[key] = value
    # A value that is given wipes out what is half typed, and a press during the run. That nothing is chosen must be given, too.
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value

    def changed() -> None:
        if st.session_state[key] != address.given[key]:
            write(st.session_state[key])

    # A run that another one overtakes may never reach the browser. A value that persists is said again until it has.
    return {"key": key, "on_change": changed, "persist_state": "page"}


def inspect(run_id: str) -> None:
    """Let the pages that look into a run show this one, until another is opened."""
    st.session_state["inspected"] = run_id


def inspected() -> str | None:
    """The run that was started, opened or looked into last in this session."""
    return st.session_state.get("inspected")


def open_run(run_id: str | None, page_name: str = "prune") -> None:
    """Go to the page that shows a run; None: to the same page without one."""
    st.switch_page(page(page_name), query_params={"run": run_id} if run_id else None)


def find_run(run_id: str) -> Run:
    """One of this user's runs, or one that came with the app. Raises `KeyError` with a sentence."""
    with suppress(KeyError):
        return recorded_runs().get(run_id)
    return store().get(run_id)


def is_recorded(run: Run) -> bool:
    """Whether the run came with the app: nobody can resume, rename or delete it."""
    return run.path.parent == recorded_runs().root


@st.cache_resource(max_entries=4, show_spinner="Opening the run's network …")
def _opened(path: Path, folder: int) -> "Inspection":
    from snows.runs.inspection import Inspection

    return Inspection.open(Run(path))


@st.cache_resource(max_entries=4, show_spinner=False)
def _inspection(path: Path, folder: int, finished_sites: int, ended: bool, _log: Log) -> "Inspection":
    return _opened(path, folder).reread(_log)


def inspection(run: Run) -> "Inspection":
    """The run's networks and images, opened once and again when more of its layers are finished. Nobody may change it.

    Takes seconds the first time. Raises `InputError` with a sentence.
    """
    return _inspection(run.path, _folder(run), sum(1 for _ in run.finished_sites()), run.weights_path.exists(), log(run))


def _folder(run: Run) -> int:
    # A run that is imported under the id of a deleted one is another run, and must not be shown from memory.
    try:
        return run.path.stat().st_ino
    except FileNotFoundError:
        return 0


def config_of(run: Run) -> RunConfig | None:
    """What the run was told to do; None if this version cannot read it."""
    try:
        return run.config()
    except ValueError:
        return None


@dataclass
class Watched:
    """A run as this session has read it so far."""

    events: list[Event] = field(default_factory=list)
    offset: int = 0

    def read(self, run: Run) -> None:
        new, self.offset = run.events(self.offset)
        self.events.extend(new)


def watch(run: Run) -> tuple[list[Event], str]:
    """All the run's events, reading only what is new since the last call, and its state."""
    watched: dict[tuple[Path, int], Watched] = st.session_state.setdefault("watched", {})
    seen = watched.setdefault((run.path, _folder(run)), Watched())
    seen.read(run)
    run_state = run.state_after(seen.events[-1] if seen.events else None)
    if run_state not in ACTIVE:
        seen.read(run)  # it may have ended between the look at its events and the one at its worker
    return seen.events, run_state


def log(run: Run) -> Log:
    """What the run's log says, reading only what is new since this session's last call. It keeps no solver steps."""
    logs: dict[tuple[Path, int], Log] = st.session_state.setdefault("logs", {})
    key = run.path, _folder(run)
    logs[key] = run.log(logs.get(key))
    return logs[key]


def now_of(events: list[Event], state: str) -> float:
    """The clock to measure a run's time by: it stands still once the run does."""
    return time.time() if state == "running" or not events else events[-1].time
