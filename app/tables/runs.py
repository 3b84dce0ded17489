"""All runs side by side: a data frame of them, what of each can be taken along, and a run's settings with one thing changed.

Reads run folders and nothing else. A run that this version cannot read is still a row, so that it can be seen and deleted.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import pandas as pd

from snows.config import RunConfig
from snows.events import Event
from snows.plans.words import as_called, method_name, network_name
from snows.runs.log import Log
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
    "accuracy_masked": "float64",
    "change": "float64",
    "agreement": "float64",
    "density": "float64",
    "seconds": "float64",
    "divergence": "float64",
    "packed_bytes": "float64",
    "num_products": "float64",
    "k": "Int64",  # absent where nothing looks ahead
    "images": "Int64",
    "seed": "Int64",
    "made": "datetime64[s]",
    "tags": "object",  # a list of words
    "recorded": "bool",
}
UNREADABLE = "unreadable"
MOST = 500  # runs in the table, before somebody asks for all
_MEASURED = ("accuracy_masked", "agreement", "density", "seconds", "divergence", "packed_bytes", "num_products")
GROUPS = ("network", "pattern", "method", "state")  # what runs can be put together by
_WORDS = ("id", "name", "network", "pattern", "method", "state")


def table(runs: Iterable[Run], recorded: Iterable[Run] = ()) -> pd.DataFrame:
    """One row a run, in the order given, those that come with the app last; columns as in `COLUMNS`, NaN where not measured."""
    rows = [_row(run) for run in runs] + [_row(run) | {"recorded": True} for run in recorded]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def _row(run: Run) -> dict[str, object]:
    row, last = _written(run, run.version())
    if row["state"] == UNREADABLE:
        return row
    state = run.state_after(last)
    done = f", {sum(1 for _ in run.finished_sites())} done" if state == "running" else ""
    return row | {"state": state + done}


@lru_cache(maxsize=16_384)
def _written(run: Run, version: tuple[object, ...]) -> tuple[dict[str, object], Event | None]:
    """What a run's files say of it, and its last event, on which its state depends. Each list of runs asks for them again, and
    most have ended long ago."""
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
        "recorded": False,
    }
    try:
        config, labels, metrics = as_called(run), run.labels(), run.metrics() or {}
        last = run.last()
    except (ValueError, TypeError):  # written by another version, or damaged
        return row, None
    accuracy, dense = metrics.get("accuracy"), metrics.get("accuracy_dense")
    row |= {
        "compare": labels.compare,
        "name": config.name,
        "network": network_name(config),
        "pattern": str(config.prune.pattern),
        "method": method_name(config.prune),
        "state": "",
        "accuracy": accuracy,
        "change": None if accuracy is None or dense is None else accuracy - dense,
        **{name: metrics.get(name) for name in _MEASURED},
        "k": config.prune.k_steps if config.prune.update == "snows" else None,
        "images": config.num_calibration,
        "seed": config.prune.seed,
        "tags": list(labels.tags),
    }
    return row, last


def at_work(name: str, state: str, log: Log) -> str:
    """How far an active run is, and which it is: `layer 7 of 20 · 33 % · resnet20-fashion · 1:4`."""
    if state == "queued":
        return f"waiting · {name}"
    if log.together is not None:
        return f"all layers together · {100 * log.together[0] / log.together[1]:.0f} % · {name}"
    if log.phase == "prune" and log.sites:
        place = log.current.index + 1 if log.current else min(log.done % len(log.sites) + 1, len(log.sites))
        return f"layer {place} of {len(log.sites)} · {100 * log.share:.0f} % · {name}"
    doing = {"budget": "spreading the budget", "evaluate": "measuring", "save": "measuring"}
    return f"{doing.get(log.phase, 'loading')} · {name}"


def filtered(
    table: pd.DataFrame, words: str = "", states: Sequence[str] = (), tags: Sequence[str] = (), marked: bool = False
) -> pd.DataFrame:
    """The rows that hold every word of `words` somewhere, are in one of `states`, and have all `tags`; empty: any."""

    def is_wanted(said: Sequence[str], state: str, labelled: Sequence[str], compare: bool) -> bool:
        text = " ".join([*said, *labelled]).lower()
        return (
            all(word in text for word in words.lower().split())
            and (not states or base_state(state) in states)
            and set(tags) <= set(labelled)
            and (compare or not marked)
        )

    said = zip(*(table[name].tolist() for name in _WORDS), strict=True)
    wanted = list(map(is_wanted, said, table["state"].tolist(), table["tags"], table["compare"]))
    return table[pd.Series(wanted, table.index, bool)].reset_index(drop=True)


def grouped(table: pd.DataFrame, by: str = "") -> list[tuple[str, pd.DataFrame]]:
    """The rows that are alike in the column `by`, of `GROUPS`, with what they have in common; the group with the newest run
    first, rows in the order given. All of them under no name where they are not put together."""
    if by not in GROUPS:
        return [("", table)]
    common = table[by].map(base_state if by == "state" else str)
    return [(value or "unreadable", table[common == value].reset_index(drop=True)) for value in dict.fromkeys(common)]


def base_state(state: str) -> str:
    """`running` of `running, 8 done`."""
    return state.partition(",")[0]


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
