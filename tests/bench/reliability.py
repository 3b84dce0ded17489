"""Figures for trust: what sharing a store costs, and what becomes of runs where something gives way under them.

One line of `assets/bench/reliability.jsonl` a measurement (`workers`, `faults`, `mutations`, `screens`, `dependencies`); what
is on file is not measured again.
"""

import sys
import tempfile
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from snows.config import RunConfig
from snows.events import RunFinished
from snows.runs import runner
from snows.runs.store import Run
from tests.bench import dependencies, faults, mutations, screens
from tests.bench.readme import put
from tests.bench.records import add, read
from tests.bench.speed import machine
from tests.bench.workers import PRETENDED, claim_seconds, killed, one_writer, overhead, pretend, small

RESULTS = Path(__file__).parents[2] / "assets" / "bench" / "reliability.jsonl"
GOAL_MS = 50


def measure(*, fresh: bool) -> None:
    """Measure what is not on file."""
    on_file = {} if fresh else {record["what"]: record for record in read(RESULTS)}
    for what, job in _JOBS.items():
        if what in on_file:
            continue
        with tempfile.TemporaryDirectory() as folder:
            figures = job(Path(folder) / "runs")
        add(RESULTS, {"what": what, **figures, "machine": machine(), "date": date.today().isoformat()})
        sys.stderr.write(f"{what}: {figures}\n")


def _overhead(config: Callable[[], RunConfig], execute: Callable[[Run], RunFinished], runs: int, root: Path) -> dict[str, Any]:
    took = overhead(root, config(), execute, runs)
    return {"runs": runs, "queued_ms": 1e3 * took.queued, "worked_ms": 1e3 * took.worked, "by_worker": took.by_worker}


def _claims(root: Path) -> dict[str, Any]:
    return {f"ms_of_{others}": 1e3 * claim_seconds(root / str(others), others) for others in (50, 5000)}


def _races(root: Path) -> dict[str, Any]:
    return {"tries": 500, "won": one_writer(root, 500)}


def _kills(root: Path, kills: int = 200) -> dict[str, Any]:
    outcomes = killed(root, kills)
    lost, same = sum(outcome.lost for outcome in outcomes), sum(outcome.same for outcome in outcomes)
    return {"kills": len(outcomes), "done": [outcome.done for outcome in outcomes], "lost": lost, "same": same}


def _crowd(root: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for runs, workers in CROWDS:
        took = overhead(root / f"{runs}-{workers}", PRETENDED, pretend, runs, workers)
        figures[f"{runs}-{workers}"] = {"queued_ms": 1e3 * took.queued, "worked_ms": 1e3 * took.worked}
    return {"crowds": figures}


def _power(root: Path, pretended: int = 200, real: int = 5) -> dict[str, Any]:
    cuts = [
        *faults.power_cuts(root / "pretended", pretended),
        *faults.power_cuts(root / "real", real, small(), runner.execute, 1),
    ]
    done, lost = sum(cut.done for cut in cuts), sum(cut.lost for cut in cuts)
    return {"cuts": len(cuts), "real": real, "done": done, "lost": lost, "same": sum(cut.same for cut in cuts)}


def _disk(root: Path) -> dict[str, Any]:
    full = faults.full_disks(root)
    return {"limits": full.limits, "said": dict(full.said), "unharmed": full.unharmed}


def _memory(root: Path) -> dict[str, Any]:
    return vars(faults.no_memory(root, MEGABYTES)) | {"runs": len(MEGABYTES)}


def _clock(root: Path, runs: int = 5) -> dict[str, Any]:
    return {"runs": runs, "same": faults.wrong_clocks(root, runs)}


def _app(root: Path, kills: int = 5) -> dict[str, Any]:
    outcomes = faults.app_kills(root, kills, screens.says_that_it_waits)
    figures = {name: sum(getattr(outcome, name) for outcome in outcomes) for name in ("done", "lost", "same", "left")}
    return {"kills": kills, **figures}


def _mutations(root: Path) -> dict[str, Any]:
    return {"kinds": {kind: {"count": count, **vars(mutations.mutate(kind, count))} for kind, count in MUTATIONS.items()}}


def _reruns(root: Path, count: int = 500) -> dict[str, Any]:
    return {"count": count, "pages": screens.reruns(root, count)}


def _many(root: Path) -> dict[str, Any]:
    return {"seconds": {str(runs): screens.rerun_seconds(root / str(runs), runs, 5) for runs in (50, 5000)}}


def _dependencies(root: Path) -> dict[str, Any]:
    packages = [one for versions in dependencies.locked().values() for one in versions]
    told, faults_known = dependencies.audited()
    hashes = sum(len(one.hashes) for one in packages)
    return {"packages": len(packages), "hashes": hashes, "told": told, "known": faults_known}


def _hostile(root: Path) -> dict[str, Any]:
    tried, wrong = screens.hostile(root)
    return {"tried": tried, "wrong": wrong}


# How many there are of each: what is shown by screens and done by a worker takes longer.
MUTATIONS = {
    **{"checkpoint": 1000, "mask": 1000, "run archive": 500, "picture archive": 500, "picture": 1000},
    **{"config": 100, "event log": 100},
}
MEGABYTES = [*range(0, 200, 20)]
CROWDS = ((1000, 2), (1000, 64), (10_000, 64))
_JOBS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "pretended": partial(_overhead, lambda: PRETENDED, pretend, 1000),
    "real": partial(_overhead, small, runner.execute, 20),
    "claims": _claims,
    "races": _races,
    "kills": _kills,
    "app": _app,
    "power": _power,
    "disk": _disk,
    "memory": _memory,
    "mutations": _mutations,
    "clock": _clock,
    "reruns": _reruns,
    "many": _many,
    "hostile": _hostile,
    "crowd": _crowd,
    "dependencies": _dependencies,
}


def write_table() -> None:
    """Put what is on file into the README."""
    on_file = {record["what"]: record for record in read(RESULTS)}
    rows = [("what", "goal", "measured")]
    for what, of in (("pretended", "that only write events"), ("real", "that prune four layers")):
        if (record := on_file.get(what)) is not None:
            measured = f"{record['worked_ms']:.1f} ms, and {record['queued_ms']:.1f} ms to be put in line"
            rows.append((f"Overhead of a run, {record['runs']:,} {of}, through 2 workers", f"below {GOAL_MS} ms", measured))
    if (record := on_file.get("claims")) is not None:
        measured = f"{record['ms_of_50']:.2f} ms with 50 other runs in the store, {record['ms_of_5000']:.2f} ms with 5,000"
        rows.append(("To take a run that waits", "alike", measured))
    if (record := on_file.get("races")) is not None:
        won = f"one each time; they won {record['won'][0]} and {record['won'][1]}"
        rows.append((f"Two processes on one run, {record['tries']} tries", "one writer each time", won))
    if (record := on_file.get("kills")) is not None:
        measured = (
            f"{record['lost']} of {sum(record['done'])} finished layers lost; {record['same']} of {record['kills']} results "
            "the same bit for bit"
        )
        rows.append((f"kill -9 of a worker at {record['kills']} random moments, resumed by another", "none, all", measured))
    for what, row in _ROWS.items():
        if (record := on_file.get(what)) is not None:
            rows.append(row(record))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    machines = "; ".join(dict.fromkeys(f"{record['machine']}, {record['date']}" for record in on_file.values()))
    put("reliability", "\n".join([lines[0], "|---|---|---|", *lines[1:], "", f"Measured on {machines}."]))


Row = tuple[str, str, str]


def _crowd_row(record: dict[str, Any]) -> Row:
    said = []
    for crowd, took in record["crowds"].items():
        runs, workers = map(int, crowd.split("-"))
        said.append(
            f"{runs:,} runs, {workers} workers: {took['worked_ms']:.0f} ms, and {took['queued_ms']:.0f} ms to be put in line"
        )
    return "Many workers on one folder, runs that only write events: a worker's time beside a run", "", "; ".join(said)


def _app_row(record: dict[str, Any]) -> Row:
    kills = record["kills"]
    lost = f"{record['lost']} of {record['done']} finished layers lost, {record['same']} of {3 * kills} results the same"
    upload = f"what was left of the upload went with the next tidying, {record['left']} of {kills}"
    what = f"kill -9 of the app, {kills} times: a run in work, two waiting, an upload half in"
    return what, "none, all", f"{lost}; the pages said what waited; {upload}"


def _power_row(record: dict[str, Any]) -> Row:
    lost = f"{record['lost']} of {record['done']} finished layers lost, no folder that could not be opened"
    what = f"Power cut (files cut back to what was synced) at {record['cuts']} random moments, {record['real']} of a real run"
    return what, "at most the layer in work lost", f"{lost}; {record['same']} of {record['cuts']} went on to the same result"


def _disk_row(record: dict[str, Any]) -> Row:
    measured = f"{sum(record['said'].values())} sentences, the same result each time after there was room"
    return f"Disk full (tmpfs) after each page and each file, {record['limits']} limits", "a sentence; resumable", measured


def _memory_row(record: dict[str, Any]) -> Row:
    measured = (
        f"{record['said']} failed in a sentence, {record['ended']} were ended by the system, {record['finished']} had enough; "
        f"{record['same']} of {record['runs']} came to the same result, those that failed once there was memory"
    )
    return f"Out of memory: {record['runs']} runs with less address space than they take", "a sentence; resumable", measured


def _mutations_row(record: dict[str, Any]) -> Row:
    kinds = record["kinds"]
    crashes, outside = (sum(len(of[what]) for of in kinds.values()) for what in ("crashes", "outside"))
    over = sum(of["over_memory"] + of["over_time"] for of in kinds.values())
    longest, grown = max(of["longest"] for of in kinds.values()), max(of["grown_mb"] for of in kinds.values())
    counts = ", ".join(f"{kind} {of['count']:,}" for kind, of in kinds.items())
    limits = f"{over} over a limit; the longest {longest:.1f} s, at most {grown:.0f} MB more"
    measured = f"{crashes} crashes, {outside} writes outside, {limits}"
    return f"Mutated files: {counts}", "no crash, nothing outside the folder, each within 5 s and 1 GiB", measured


def _clock_row(record: dict[str, Any]) -> Row:
    measured = f"none was taken for interrupted; {record['same']} of {record['runs']} results the same"
    return (
        "Clock set by up to a month, back and forward, and a worker suspended while an hour goes by",
        "nothing interrupted",
        measured,
    )


def _reruns_row(record: dict[str, Any]) -> Row:
    pages = record["pages"]
    page = max(pages, key=lambda name: pages[name]["memory"])
    threads, files = (max(of[what] for of in pages.values()) for what in ("threads", "files"))
    measured = f"at most {100 * pages[page]['memory']:.1f} % more memory ({page}); {threads} threads and {files} files more"
    return f"{record['count']} reruns of each page, after half as many", "memory within 5 %, no thread or file more", measured


def _many_row(record: dict[str, Any]) -> Row:
    few, many = record["seconds"]["50"], record["seconds"]["5000"]
    page = max((name for name in many if name != "all"), key=lambda name: many[name])
    slowest = f"the slowest, {page}: {1e3 * few[page]:.0f} and {1e3 * many[page]:.0f} ms"
    measured = f"{1e3 * few['all']:.0f} ms with 50, {1e3 * many['all']:.0f} ms with 5,000; {slowest}"
    return "A page run again with 5,000 runs in the store, 95th percentile, without a browser", "below 500 ms", measured


def _dependencies_row(record: dict[str, Any]) -> Row:
    measured = f"{record['packages']} packages, {record['hashes']:,} hashes"
    if record["told"]:
        measured += f"; {record['known']} faults known of the {record['told']} that the advisories tell of"
    else:
        measured += "; the advisories could not be asked from this machine, so it was not audited"
    return "Dependencies (`requirements.lock`, `pip-audit`)", "pinned with hashes; no fault known", measured


def _hostile_row(record: dict[str, Any]) -> Row:
    measured = f"{len(record['wrong'])} of {record['tried']:,} were obeyed, or raised"
    return (
        "Hostile input into each page's fields and address (html, emoji, 10,000 characters, paths, NUL)",
        "text, or a sentence",
        measured,
    )


_ROWS: dict[str, Callable[[dict[str, Any]], Row]] = {
    "crowd": _crowd_row,
    "app": _app_row,
    "power": _power_row,
    "disk": _disk_row,
    "memory": _memory_row,
    "mutations": _mutations_row,
    "clock": _clock_row,
    "reruns": _reruns_row,
    "many": _many_row,
    "hostile": _hostile_row,
    "dependencies": _dependencies_row,
}
