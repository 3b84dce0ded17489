"""A run's settings as the values of a form's fields, and as what an address says. One field a setting, its name the setting's
path in the config, so that form, address and config cannot drift apart."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app import words
from snows.config import RunConfig, SolverConfig

PREFIX = "form."
# What the fields are called. The solver's are read off its own config, but for words that only its code knows.
LABELS = {
    "model": "Network",
    "checkpoint": "Your own weights",
    "class_names": "Class names",
    "data": "Images",
    "num_calibration": "Calibration images",
    "num_evaluation": "Evaluation images",
    "num_held_back": "Images held back",
    "prune.pattern": "Pattern",
    "prune.overrides": "Layers with a pattern of their own",
    "prune.mask": "Mask",
    "prune.refine": "Mask refinement",
    "prune.update": "Update",
    "prune.k_steps": "K",
    "prune.sweeps": "Sweeps",
    "prune.joint": "Joint fit",
    "prune.joint_epochs": "Passes of the joint fit",
    "prune.targets": "Target",
    "prune.ridge": "Ridge",
    "prune.batch_size": "Batch size",
    "prune.memory": "Memory for a layer, GB",
    "prune.seed": "Seed",
    "prune.device": "Device",
    "prune.precision": "Precision",
    "prune.prune_classifier": "Prune the classifier too",
    "prune.repair": "Repair each channel's mean and spread at the end",
    "prune.batch_norm_reestimate": "Re-estimate batch-norm statistics at the end",
} | {f"prune.solver.{name}": words.words(name).capitalize() for name in SolverConfig.model_fields}
LABELS |= {
    "prune.solver.max_iters": "Conjugate-gradient iterations",
    "prune.solver.rtol": "Residual to stop at",
    "prune.solver.min_decrease": "Smallest decrease",
    "prune.solver.start": "Where Newton begins",
}
_FILES = ("checkpoint", "data", "prune.mask")
_BROUGHT = "brought:"
_LARGEST = 2**53 - 1  # what a browser's numbers hold


def values(config: RunConfig) -> dict[str, Any]:
    """What the fields hold for a config, by their keys."""
    content = config.model_dump(exclude={"name": True, "prune": {"pattern", "overrides"}})
    content["class_names"] = "\n".join(config.class_names)
    content["prune"]["pattern"] = str(config.prune.pattern)
    content["prune"]["overrides"] = "\n".join(f"{site} = {pattern}" for site, pattern in config.prune.overrides.items())
    return _flatten(content, PREFIX.rstrip("."))


def _flatten(content: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flatten(value, f"{prefix}.{name}") if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return flat


def config(fields: Mapping[str, Any]) -> RunConfig:
    """The config that the fields come to. Raises `ValidationError`; `snows.config.explain` says it with `LABELS`."""
    nested: dict[str, Any] = {}
    for key in DEFAULTS:
        *parents, name = key.removeprefix(PREFIX).split(".")
        inner = nested
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = None if fields[key] == "" else fields[key]
    if nested["prune"]["update"] != "snows":
        nested["prune"]["sweeps"] = 1  # the field is out of use, as K is
    nested["prune"]["overrides"] = (nested["prune"]["overrides"] or "").splitlines()
    return RunConfig.model_validate(nested)


DEFAULTS = values(RunConfig())
# What the address calls a field.
NAMES = {key.removeprefix(PREFIX).removeprefix("prune."): key for key in DEFAULTS}


def to_address(fields: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, str]:
    """What an address has to say for these fields, where it goes without saying that they hold `default`."""
    return {name: _text(key, fields[key]) for name, key in NAMES.items() if _differ(fields[key], default[key])}


def _differ(value: Any, default: Any) -> bool:
    return ("" if value is None else value) != ("" if default is None else default)


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = "" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)
    if key.removeprefix(PREFIX) in _FILES:
        # Where this machine keeps what was brought is nobody's business.
        text = re.sub(r"^.*/\.uploads/", _BROUGHT, text)
    return text


def from_address(said: Mapping[str, str], default: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """The fields that an address asks for. What it says that is no value of its field is as if it were not said. `home`: where
    the uploads are kept that it may name."""
    fields = dict(default)
    for name, text in said.items():
        if name in NAMES and (value := _value(NAMES[name], text, home)) is not _NO_VALUE:
            fields[NAMES[name]] = value
    return fields


_NO_VALUE = object()


def _value(key: str, text: str, home: Path) -> Any:
    kind = type(DEFAULTS[key])
    if kind is bool:
        return {"true": True, "false": False}.get(text, _NO_VALUE)
    if kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            return _NO_VALUE
        return value if math.isfinite(value) and abs(value) <= _LARGEST else _NO_VALUE
    if key.removeprefix(PREFIX) in _FILES and text.startswith(_BROUGHT):
        place = Path(text.removeprefix(_BROUGHT))
        if place.is_absolute() or ".." in place.parts:
            return _NO_VALUE
        return str(home / ".uploads" / place)
    return text
