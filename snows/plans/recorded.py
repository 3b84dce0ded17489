"""The comparison that comes with the app: what `make bench` measured of every method on the bundled networks.

These are measurements, not runs: there are no weights, no events and no folders behind them. What follows exactly from a
network and a pattern (density, bytes, multiply-adds) is beside them, worked out once from masks (`sizes.jsonl`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snows.bundled import ASSETS
from snows.config import JOINTS, MASKS, REFINEMENTS, TARGETS, UPDATES, InputError, PruneConfig, RunConfig

FOLDER = ASSETS / "bench"
MEASUREMENTS, SIZES = "quality.jsonl", "sizes.jsonl"
COMMAND = "make bench"

_MEASURED = ("accuracy_dense", "accuracy", "agreement", "divergence", "num_products")
# What a line says besides its settings and its measures; its device is the one it was measured on.
_ABOUT = {"model", "seconds", "cpu_seconds", "device"}
_CHANCE = 0.1  # both networks tell ten classes apart


@dataclass(frozen=True)
class Measured:
    """One way to prune a network, and what was measured of it, by the names of `measures.names`."""

    config: RunConfig
    metrics: Mapping[str, float | None]


def config_of(line: Mapping[str, Any]) -> RunConfig:
    """The settings of a measurement, given as `quality.jsonl` has them: `model`, and any of `PruneConfig`.

    All of them choose the mask by magnitude, calibrate on 512 images, and are measured on the first 5,000 test images; without
    a word of it there is no ridge and no mask refinement. Raises `InputError` for a setting or a measure that nobody knows.
    """
    given = line.keys() - {*_MEASURED, *_ABOUT}
    if unknown := given - PruneConfig.model_fields.keys():
        raise InputError(f"A measurement names {', '.join(sorted(unknown))}, which this version does not know. Update the app.")
    settings = {name: line[name] for name in given}
    prune = PruneConfig.model_validate({"mask": "magnitude", "refine": "none", "ridge": 0.0} | settings)
    return RunConfig(
        model=line["model"], data="fashion-mnist", num_calibration=512, num_held_back=0, num_evaluation=5_000, prune=prune
    )


def comparison(folder: Path = FOLDER) -> list[Measured]:
    """All measurements, those of one network together, methods in the order of their means, most weights kept first. Raises
    `InputError` where the file is missing or says what this version does not know.

    `seconds` are those of one processor core, without what else the machine did; the first measurements have none.
    """
    sizes = {(line["model"], line["pattern"]): line for line in _lines(folder / SIZES)}
    measured = [_measured(line, sizes) for line in _lines(folder / MEASUREMENTS)]
    return sorted(measured, key=lambda one: _order(one.config))


def _order(config: RunConfig) -> tuple[Any, ...]:
    prune = config.prune
    of_values = UPDATES.index(prune.update), -TARGETS.index(prune.targets), REFINEMENTS.index(prune.refine), prune.k_steps
    of_method = JOINTS.index(prune.joint), *of_values, MASKS.index(prune.mask), prune.repair, prune.batch_norm_reestimate
    return config.model, of_method, -prune.pattern.density, prune.seed


def _measured(line: Mapping[str, Any], sizes: Mapping[tuple[str, str], Mapping[str, Any]]) -> Measured:
    config = config_of(line)
    follows = sizes.get((line["model"], line["pattern"]), {})
    metrics: dict[str, float | None] = {name: value for name, value in follows.items() if name not in ("model", "pattern")}
    metrics |= {name: line[name] for name in _MEASURED if name in line}
    metrics |= {"seconds": line["cpu_seconds"]} if "cpu_seconds" in line else {}
    return Measured(config, metrics | {"num_evaluation": config.num_evaluation, "chance": _CHANCE})


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        raise InputError(f"There is no {path}. Restore it from the repository, or make it with `{COMMAND}`.") from None
