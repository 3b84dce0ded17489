"""The form of a run's folder, as a number in its `config.json`, and how folders of older forms are read.

    1   until November 2026, without a number. A setting that is not there yet is not at its default: what the run did is below
    2   with the number

A folder is never rewritten: an older one is brought to the current form each time it is read, a form at a time. A new event, or
a new setting whose default is what was done before, needs no new form; what an older version would read wrongly does.
"""

import json
from collections.abc import Callable
from typing import Any

from snows.config import InputError, RunConfig

CURRENT = 2


def written(config: RunConfig) -> bytes:
    """A new run's `config.json`."""
    return json.dumps({"format": CURRENT} | config.model_dump(mode="json"), indent=2, ensure_ascii=False).encode()


def read(content: str | bytes) -> RunConfig:
    """The settings that a `config.json` of any form tells of. Raises `InputError` for a form that is newer than this version,
    and `ValidationError` for what is no config."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    form = record.get("format", 1) if isinstance(record, dict) else None
    if type(form) is not int or form < 1:
        return RunConfig.model_validate_json(content)  # which says what is wrong with it
    if form > CURRENT:
        raise InputError(
            f"It was written by a newer version of this program: its folder has form {form}, and this one reads forms up to "
            f"{CURRENT}. Update this one (pip install -U snows-explorer)."
        )
    record.pop("format", None)
    for older in range(form, CURRENT):
        record = _FROM[older](record)
    return RunConfig.model_validate(record)


def _from_1(record: dict[str, Any]) -> dict[str, Any]:
    """Before there were these settings, no mask was refined, nothing was pulled to the dense values, and no image was held
    back."""
    prune = record.get("prune", {})
    if isinstance(prune, dict):
        prune = {"refine": "none", "ridge": 0.0} | prune
    return {"num_held_back": 0} | record | {"prune": prune}


_FROM: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
