"""A class of thirty in a public app: how long a click takes, who sees what is whose, and what the app holds afterwards.

The app is served as the README says for a class, with `SNOWS_PUBLIC=1` and `SNOWS_WORKERS=0`, beside two of
`nice python -m snows work`, so that two visitors' runs are computed all the while. Each visitor is a session of Streamlit's
protocol (`sessions`): opens Start, then a lesson by the link of a class, and moves its controls, with a pause before each one.
A click counts from its message to the one that says that all that follows has been sent; what a browser takes to draw it is not
in it. All that a session is sent is searched for the names of others' pictures and for others' runs. What was found goes to
`assets/bench/visitors.json`.
"""

import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from unittest import mock

from app.lessons.catalogue import LESSONS
from snows.runs.store import ACTIVE, RunStore
from tests.bench.readme import put
from tests.bench.sessions import Session
from tests.bench.speed import circumstances
from tests.e2e.conftest import serve
from tests.e2e.test_visitors import write_archive

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "assets" / "bench" / "visitors.json"
VISITORS, CLICKS, THOUGHT = 30, 20, (2.0, 6.0)  # seconds
AT_WORK = 2
RUN = "num_calibration=512&num_evaluation=5000"
GOAL_SECONDS, GOAL_GROWTH = 1.0, 0.05
# Streamlit keeps a session for so long after its tab is closed, and until another one's is.
FORGOTTEN_SECONDS = 125.0
_NAMES = re.compile(rb"of-visitor-\d\d|\d{8}-\d{6}-[0-9a-f]{8}")
_UPLOADER = "Your own: drop pictures here, or one archive of them"


@dataclass(frozen=True)
class Level:
    """What the app's process holds: memory in MB, threads, file handles."""

    memory: float
    threads: int
    handles: int

    @classmethod
    def of(cls, process: int) -> "Level":
        said = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        handles = len(list(Path(f"/proc/{process}/fd").iterdir()))
        return cls(round(int(said["VmRSS"].split()[0]) / 1024, 1), int(said["Threads"]), handles)


@dataclass
class Found:
    """What a class came to. Seconds; `strange`: what somebody was sent of another's, as `visitor: word`."""

    clicks: dict[str, list[float]] = field(default_factory=dict)  # by lesson
    opened: list[float] = field(default_factory=list)
    levels: dict[str, Level] = field(default_factory=dict)
    runs: int = 0
    own: int = 0  # words of one's own that were seen, so that it is known that they would be
    strange: list[str] = field(default_factory=list)


def measure(*, fresh: bool = False) -> None:
    """Measure a class of thirty, and write what was found."""
    if RESULTS.exists() and not fresh:
        return
    busy_before = os.getloadavg()[0]
    found = visit(VISITORS, CLICKS, THOUGHT, RUN, FORGOTTEN_SECONDS)
    every = [seconds for times in found.clicks.values() for seconds in times]
    record = {
        **circumstances(busy_before),
        "visitors": VISITORS,
        "pause": THOUGHT,
        "clicks": _summary(every) | {"count": len(every)},
        "by lesson": {name: _summary(times) for name, times in found.clicks.items()},
        "pages opened": _summary(found.opened) | {"count": len(found.opened)},
        "runs": found.runs,
        "levels": {when: vars(level) for when, level in found.levels.items()},
        "own words": found.own,
        "strange words": found.strange,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


def _summary(times: Sequence[float]) -> dict[str, float]:
    """Seconds."""
    parts = statistics.quantiles(times, n=100, method="inclusive")
    return {name: round(parts[place - 1], 3) for name, place in (("median", 50), ("p95", 95), ("p99", 99))} | {
        "worst": round(max(times), 3)
    }


def write_table() -> None:
    """The README's table, of what is on file."""
    record = json.loads(RESULTS.read_text())
    clicks, opened, levels = record["clicks"], record["pages opened"], record["levels"]
    before, peak, after, again = (levels[when] for when in ("before", "peak", "after", "again"))
    met = clicks["p95"] < GOAL_SECONDS
    pause = " to ".join(f"{seconds:g}" for seconds in record["pause"])
    lines = [
        "| what | goal | measured |",
        "|---|---|---|",
        f"| A click, {clicks['count']} by {record['visitors']} visitors, {pause} s apart each | p95 under {GOAL_SECONDS:g} s | "
        f"median {1000 * clicks['median']:.0f} ms, p95 {1000 * clicks['p95']:.0f} ms{'' if met else ' (missed)'}, "
        f"p99 {1000 * clicks['p99']:.0f} ms, worst {clicks['worst']:.1f} s |",
        f"| To open Start, or a lesson | | median {opened['median']:.1f} s, p95 {opened['p95']:.1f} s |",
        f"| Seen of another's upload or run | nothing | {len(record['strange words'])} of {record['own words']} names |",
        f"| Memory of the app: before, at the peak, after all have gone, after a second class | back within "
        f"{100 * GOAL_GROWTH:.0f} % | {before['memory']:,.0f}, {peak['memory']:,.0f}, {after['memory']:,.0f} "
        f"({_grown(before, after)}), {again['memory']:,.0f} MB ({_grown(after, again)}) |",
        f"| Threads, file handles, likewise | none more | {before['threads']}, {peak['threads']}, {after['threads']}, "
        f"{again['threads']}; {before['handles']}, {peak['handles']}, {after['handles']}, {again['handles']} |",
        "",
        f"Measured on {record['machine']}, {record['date']}, with a load of {record['load before']:g} before.",
    ]
    put("visitors", "\n".join(lines))


def _grown(before: dict[str, float], after: dict[str, float]) -> str:
    grown = after["memory"] / before["memory"] - 1
    return f"{100 * grown:+.1f} %{'' if grown < GOAL_GROWTH else ', missed'}"


# --- a class ---


def visit(count: int, clicks: int, thought: tuple[float, float], run: str, forgotten: float) -> Found:
    """A class of `count` in an app of its own, each with so many `clicks`.

    `thought`: seconds between two of them, from and to. `run`: the address of the runs that are kept at work. `forgotten`:
    seconds to wait, when all have gone, before the app is looked at for the last time.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(mock.patch.dict(os.environ, {"SNOWS_PUBLIC": "1", "SNOWS_WORKERS": "0"}))
        store = RunStore(folder / "runs")
        address = stack.enter_context(serve(store.root, folder / "server.log"))
        return asyncio.run(_Class(address, store, folder, count, run).meet(clicks, thought, forgotten))


@contextmanager
def _workers(root: Path) -> Iterator[None]:
    """So many workers as there are runs at work, beside the app."""
    command = ["nice", sys.executable, "-m", "snows", "work", "--root", str(root)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(AT_WORK)
    ]
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(60)


class _Class:
    def __init__(self, address: str, store: RunStore, folder: Path, count: int, run: str) -> None:
        self._address, self._store, self._count, self._run = address, store, count, run
        self._archives = [folder / f"{_mark(number)}.zip" for number in range(count)]
        self._tabs: list[tuple[int, Session]] = []
        self._whose: dict[bytes, int] = {_mark(number).encode(): number for number in range(count)}
        self._addresses: dict[int, str] = {}  # what a visitor's address says of the pictures that were brought
        self._process = _listening(address)
        self._found = Found()

    async def meet(self, clicks: int, thought: tuple[float, float], forgotten: float) -> Found:
        with _workers(self._store.root):
            await self._warm_up()
            self._found.levels["before"] = Level.of(self._process)
            watch = asyncio.create_task(self._watch())
            # What the first class leaves behind is in caches, which are full then: the second one shows whether there is more.
            for after in ("after", "again"):
                await self._learn(clicks, thought)
                self._compare_notes()
                if after == "again":
                    await self._peep()
                await self._leave()
                await asyncio.sleep(forgotten)
                passer_by = self._tab(0)
                await passer_by.open()
                await passer_by.close()
                await asyncio.sleep(2)
                self._found.levels[after] = Level.of(self._process)
            watch.cancel()
        return self._found

    async def _learn(self, clicks: int, thought: tuple[float, float]) -> None:
        """All of them at once, while runs are computed."""
        self._is_over = False
        runs = asyncio.create_task(self._keep_at_work())
        while sum(run.state() == "running" for run in self._store.list()) < AT_WORK and not runs.done():
            await asyncio.sleep(0.2)
        await asyncio.gather(*(self._follow(number, clicks, thought) for number in range(self._count)))
        self._is_over = True
        await runs

    def _tab(self, number: int) -> Session:
        tab = Session(self._address, f"key-of-{_mark(number)}".ljust(43, "-"), _NAMES)
        self._tabs.append((number, tab))
        return tab

    async def _warm_up(self) -> None:
        """What the first visitor of all waits for, and the app then keeps: the engine, each lesson's numbers, a run's."""
        tab = self._tab(0)
        await tab.open()
        self._found.levels["started"] = Level.of(self._process)
        for name in LESSONS:
            await tab.open("lessons", _lesson(name))
        await self._start_run(0)
        while any(run.state() in ACTIVE for run in self._store.list()):
            await asyncio.sleep(0.5)
        for _, one in self._tabs:
            await one.close()

    async def _start_run(self, number: int) -> None:
        """A visitor brings pictures, and starts a run in a tab that then shows it."""
        tab = self._tab(number)
        if number not in self._addresses:
            write_archive(self._archives[number])
            await tab.open("prune")
            await tab.bring(_UPLOADER, self._archives[number].name, self._archives[number].read_bytes())
            self._addresses[number] = tab.query
        await tab.open("prune", self._run)
        before = {run.id for run in self._store.list()}
        await tab.click("button", "Start")
        (run_id,) = {run.id for run in self._store.list()} - before
        self._whose[run_id.encode()] = number
        self._found.runs += 1

    async def _keep_at_work(self) -> None:
        """So many runs in work or waiting, always, each of another visitor."""
        for number in cycle(range(self._count)):
            while sum(run.state() in ACTIVE for run in self._store.list()) >= AT_WORK and not self._is_over:
                await asyncio.sleep(0.5)
            if self._is_over:
                return
            await self._start_run(number)

    async def _watch(self) -> None:
        """The most that the process holds meanwhile."""
        while True:
            now, most = Level.of(self._process), self._found.levels.get("peak", Level(0, 0, 0))
            self._found.levels["peak"] = Level(*map(max, zip(vars(now).values(), vars(most).values(), strict=True)))
            await asyncio.sleep(0.25)

    async def _follow(self, number: int, clicks: int, thought: tuple[float, float]) -> None:
        chance = random.Random(number)
        await asyncio.sleep(chance.uniform(0, thought[1]))
        tab, name = self._tab(number), list(LESSONS)[number % len(LESSONS)]
        self._found.opened.append(await tab.open())
        await asyncio.sleep(chance.uniform(*thought))
        self._found.opened.append(await tab.open("lessons", _lesson(name)))
        last: dict[str, str] = {}
        for _ in range(clicks):
            await asyncio.sleep(chance.uniform(*thought))
            sliders = [("slider", one, list(one.options)) for one in tab.widgets("slider")]
            groups = [("button_group", one, [option.content for option in one.options]) for one in tab.widgets("button_group")]
            kind, widget, options = chance.choice([*sliders * 3, *groups])
            last[widget.label] = chance.choice([option for option in options if option != last.get(widget.label)])
            self._found.clicks.setdefault(name, []).append(await tab.click(kind, widget.id, last[widget.label]))

    def _compare_notes(self) -> None:
        """Whose names everybody has been sent."""
        for number, tab in self._tabs:
            self._found.own += sum(self._whose.get(word) == number for word in tab.seen)
            strange = sorted(word for word in tab.seen if self._whose.get(word) != number)
            self._found.strange += [f"{number}: {word.decode()}" for word in strange]

    async def _peep(self) -> None:
        """A visitor tries the addresses of another's run and pictures. What is shown then names them, so it comes last."""
        other = 1 - next(iter(self._addresses))
        tab = self._tab(other)
        for run_id in islice((word.decode() for word, number in self._whose.items() if _is_run(word) and number != other), 3):
            for page in ("runs", "prune", "layers"):
                await tab.open(page, f"run={run_id}")
                if "There is no run" not in tab.text():
                    self._found.strange.append(f"{other}: {page}?run={run_id}")
        for number, address in self._addresses.items():
            if number != other:
                await tab.open("prune", address)
                if "pictures that you bring" not in tab.text():
                    self._found.strange.append(f"{other}: prune?{address}")

    async def _leave(self) -> None:
        for _, tab in self._tabs:
            await tab.close()
        self._tabs.clear()
        for run in self._store.list():
            if run.state() in ACTIVE:
                run.cancel()
        while any(run.state() in ACTIVE for run in self._store.list()):
            await asyncio.sleep(0.2)


def _mark(number: int) -> str:
    return f"of-visitor-{number:02d}"


def _is_run(word: bytes) -> bool:
    return not word.startswith(b"of-")


def _lesson(name: str) -> str:
    return f"lesson={name}&guess={next(iter(LESSONS[name].guesses))}&class=c1a55e"


def _listening(address: str) -> int:
    """The process that serves an address, of those that this one has started."""
    port = address.rpartition(":")[2].encode()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if b"streamlit" in words and port in words:
            return int(place.name)
    raise RuntimeError(f"No process serves {address}.")
