"""All runs side by side: a data frame of them, what of each can be taken along, and a run's settings with one thing changed.

Reads run folders and nothing else. A run that this version cannot read is still a row, so that it can be seen and deleted.
"""

import io
import re
import tempfile
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from app import report
from snows.config import RunConfig
from snows.plans.words import as_called, method_name, network_name
from snows.runs import archive
from snows.runs.store import Run

COLUMNS = {
    "id": "str",
    "compare": "bool",
    "name": "str",
    "network": "str",
    "pattern": "str",
    "method": "str",
    "state": "str",
    "accuracy": "float64",  # from here on as `snows.measures.names` has them
    "change": "float64",
    "agreement": "float64",
    "density": "float64",
    "seconds": "float64",
    "made": "datetime64[s]",
    "tags": "object",  # a list of words
    "recorded": "bool",
}
UNREADABLE = "unreadable"
_WORDS = ("id", "name", "network", "pattern", "method", "state")


def table(runs: Iterable[Run], recorded: Iterable[Run] = ()) -> pd.DataFrame:
    """One row a run, in the order given, those that come with the app last; columns as in `COLUMNS`, NaN where not measured."""
    rows = [*(_row(run, False) for run in runs), *(_row(run, True) for run in recorded)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _row(run: Run, recorded: bool) -> dict[str, object]:
    row: dict[str, object] = {
        "id": run.id,
        "compare": False,
        "name": "",
        "network": "",
        "pattern": "",
        "method": "",
        "state": UNREADABLE,
        "made": pd.Timestamp.fromtimestamp(run.created()).floor("s"),
        "tags": [],
        "recorded": recorded,
    }
    try:
        config, labels, metrics = as_called(run), run.labels(), run.metrics() or {}
        state = run.state()
    except (ValueError, TypeError):  # written by another version, or damaged
        return row
    done = f", {sum(1 for _ in run.finished_sites())} done" if state == "running" else ""
    accuracy, dense = metrics.get("accuracy"), metrics.get("accuracy_dense")
    return row | {
        "compare": labels.compare,
        "name": config.name,
        "network": network_name(config),
        "pattern": str(config.prune.pattern),
        "method": method_name(config.prune),
        "state": state + done,
        "accuracy": accuracy,
        "change": None if accuracy is None or dense is None else accuracy - dense,
        **{name: metrics.get(name) for name in ("agreement", "density", "seconds")},
        "tags": list(labels.tags),
    }


def filtered(
    table: pd.DataFrame, words: str = "", states: Sequence[str] = (), tags: Sequence[str] = (), marked: bool = False
) -> pd.DataFrame:
    """The rows that hold every word of `words` somewhere, are in one of `states`, and have all `tags`; empty: any."""

    def is_wanted(row: dict[Hashable, Any]) -> bool:
        text = " ".join([*(row[name] for name in _WORDS), *row["tags"]]).lower()
        return (
            all(word in text for word in words.lower().split())
            and (not states or base_state(row["state"]) in states)
            and set(tags) <= set(row["tags"])
            and (row["compare"] or not marked)
        )

    wanted = pd.Series([is_wanted(row) for row in table.to_dict("records")], table.index, bool)
    return table[wanted].reset_index(drop=True)


def base_state(state: str) -> str:
    """`running` of `running, 8 done`."""
    return state.partition(",")[0]


# --- what can be taken along ---


@dataclass(frozen=True)
class Download:
    """A file made of a run when somebody asks for it."""

    label: str
    file_name: str
    mime: str
    content: Callable[[], bytes]
    help: str
    obstacle: str = ""  # why there is nothing to download, or empty


def downloads(run: Run) -> list[Download]:
    """Every file that can be had of a run."""
    stem = re.sub(r"[^\w.-]+", "-", run.id)
    weights = "" if run.weights_path.exists() else "The whole network's weights are there once the run has finished."
    masks = "" if not weights or any(True for _ in run.finished_sites()) else "No layer is finished yet."
    tensors = "application/octet-stream"
    return [
        Download(
            "Weights",
            f"{stem}.safetensors",
            tensors,
            run.weights_path.read_bytes,
            "The pruned network's state dict, as safetensors. Removed weights are exactly zero.",
            weights,
        ),
        Download(
            "Masks",
            f"{stem}-masks.safetensors",
            tensors,
            lambda: masks_file(run),
            "Which weights were kept (True) in each layer, as safetensors. A new run can use this file as its mask.",
            masks,
        ),
        Download(
            "Config",
            f"{stem}-config.json",
            "application/json",
            (run.path / "config.json").read_bytes,
            "The exact settings, as JSON.",
        ),
        Download(
            "Events",
            f"{stem}-events.jsonl",
            "application/x-ndjson",
            (run.path / "events.jsonl").read_bytes,
            "All that happened, one line of JSON an event: every solver step of every layer.",
            "" if (run.path / "events.jsonl").exists() else "Nothing has happened yet.",
        ),
        Download(
            "Report",
            f"{stem}.html",
            "text/html",
            lambda: report.report(run).encode(),
            "One web page with the result, the figures and the numbers behind them. It needs nothing else to be read.",
        ),
        Download(
            "Whole run",
            f"{stem}.zip",
            "application/zip",
            lambda: packed(run),
            "All files of the run in one archive, which can be imported here or on another machine.",
        ),
    ]


def masks_file(run: Run) -> bytes:
    """A safetensors file of the run's masks, which the setting `mask` accepts."""
    from snows.export.files import save_masks

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "masks.safetensors")
        config = run.config()
        save_masks(path, run.masks(), {"run": run.id, "pattern": str(config.prune.pattern), "config": config.model_dump_json()})
        return path.read_bytes()


def packed(run: Run) -> bytes:
    """The run's folder as a zip."""
    file = io.BytesIO()
    archive.pack(run, file)
    return file.getvalue()


# --- the same again, with one change ---


def setting(config: RunConfig, path: str) -> object:
    """The value of a setting such as `prune.solver.rtol`."""
    value: object = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def with_change(config: RunConfig, path: str, value: object) -> RunConfig:
    """The config with the setting at `path` changed, checked as a whole; a text is read as a person writes it.

    Raises `ValidationError`.
    """
    content = config.model_dump()
    *parents, last = path.split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return RunConfig.model_validate(content | {"name": ""})
