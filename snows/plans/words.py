"""What a run is called, alone and beside others, and runs side by side as a table of texts.

A run's name has the same parts in the same order wherever it stands: what a person called it, the network, the pattern, the
method. Beside others it is told by its method and by whatever else is not the same in all.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from snows.config import Dense, PruneConfig, RunConfig
from snows.measures.names import MEASURES, missing
from snows.method import cards
from snows.plans.comparisons import METHODS, Method, Row, dense_row
from snows.runs.store import Run

# What fills the mask, as figures and names call it.
UPDATE_NAMES = {name: card.name for name, card in cards.UPDATES.items()}
_COMMON_WORDS = ("magnitude", "random")  # no names
_REFINED = {"none": "", "layer": "refined by layer", "window": "refined"}
_KNOWN = {replace(method, has_ridge=True): name for name, method in METHODS.items()}
# What may come after the layers, in its order.
_BESIDES: dict[str, dict[object, str]] = {
    "joint": {"network": "joint fit", "answers": "joint fit to answers"},
    "repair": {True: "repaired"},
    "batch_norm_reestimate": {True: "batch norms measured again"},
}
BEST, LEVEL = "★", "☆"
# The columns of a table, in order.
COLUMNS = ("accuracy", "change", "agreement", "divergence", "density", "packed_bytes", "bits", "multiply_adds", "seconds")
DENSE = "Dense network"


# --- one run ---


def mask_name(mask: str) -> str:
    """`Wanda mask`, `mask from mine.safetensors`."""
    card = (cards.MASKS | cards.UNIT_MASKS).get(mask)
    if card is None:
        return f"mask from {Path(mask).name}"
    name = card.name
    return f"{name.lower() if mask in _COMMON_WORDS else name} mask"


def method_name(config: PruneConfig) -> str:
    """A method as a person calls it: the known name, or its parts. With K, and the sweeps, where these count."""
    targets = "dense" if config.update == "none" else config.targets  # what is not fitted has no target
    method = Method(
        *(config.mask, config.update, targets, config.refinement),
        batch_norm_reestimate=config.batch_norm_reestimate,
        joint=config.joint,
        repair=config.repair,
    )
    said = {name: words for name, words in _BESIDES.items() if getattr(method, name) in words}
    # The name of all that it does, else of what it does without some of what comes after the layers, which is said behind it.
    rests = (rest for count in range(len(said) + 1) for rest in itertools.combinations(reversed(said), count))
    unsaid = {name: getattr(Method("", ""), name) for name in said}
    named = ((_KNOWN.get(replace(method, **{name: unsaid[name] for name in rest})), rest) for rest in rests)
    name, rest = next(((name, rest) for name, rest in named if name), ("", tuple(said)))
    parts = [name]
    if not parts[0]:
        propagated = "propagated targets" if targets == "propagated" else ""
        parts = [UPDATE_NAMES[config.update], mask_name(config.mask), _REFINED[config.refinement], propagated]
    if config.update == "snows":
        parts += [f"K = {config.k_steps}", f"{config.sweeps} sweeps" if config.sweeps > 1 else ""]
    parts += [words[getattr(method, name)] for name, words in said.items() if name in rest]
    return ", ".join(filter(None, parts))


def network_name(config: RunConfig) -> str:
    """The network, and where its weights come from if they are one's own."""
    return config.model + (f" from {Path(config.checkpoint).name}" if config.checkpoint else "")


def data_name(config: RunConfig) -> str:
    """The images: a set's name, or the name of the folder that they lie in."""
    return Path(config.data).name or config.data


def run_name(config: RunConfig) -> str:
    """`Best so far · resnet20-fashion · 1:4 · SNOWS, refined mask, K = 3`. `as_called` gives the name that a person gave."""
    return " · ".join(filter(None, (config.name, network_name(config), str(config.prune.pattern), method_name(config.prune))))


def as_called(run: Run) -> RunConfig:
    """The run's config, under the name that a person gave it last. Raises `ValidationError` for one of another version."""
    config = run.config()
    try:
        called = run.labels().name
    except ValidationError:  # somebody else wrote its label
        return config
    return config.model_copy(update={"name": called}) if called else config


def name_of(run: Run) -> str:
    """The run's name; its id if this version cannot read it."""
    try:
        return run_name(as_called(run))
    except ValueError:
        return run.id


# --- several ---


def set_apart(parts: Sequence[Sequence[str]], always: int = 0) -> list[str]:
    """A name from each one's parts: the one at `always` and those that are not the same in all. Numbered where none is."""
    differing = [place for place, values in enumerate(zip(*parts, strict=True)) if place == always or len(set(values)) > 1]
    names = [" · ".join(filter(None, (own[place] for place in differing))) for own in parts]
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def labels(configs: Sequence[RunConfig]) -> list[str]:
    """Each run's name without what is the same in all of them, but for its method, and with what else sets it apart."""
    parts = [
        (
            config.name,
            network_name(config),
            str(config.prune.pattern),
            method_name(config.prune),
            data_name(config),
            f"{config.num_calibration:,} images",
            f"seed {config.prune.seed}",
        )
        for config in configs
    ]
    return set_apart(parts, always=3)


def row_names(rows: Sequence[Row]) -> list[str]:
    """What sets rows apart; a seed does not."""
    return labels([row.config.model_copy(update={"prune": row.config.prune.model_copy(update={"seed": 0})}) for row in rows])


def by_method(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """Rows by what sets them apart but for the pattern, and by pattern: both in the order of their first rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(without_pattern(row.config).model_dump_json(), []).append(row)
    names = labels([without_pattern(group[0].config) for group in groups.values()])
    return {
        name: {str(row.config.prune.pattern): row for row in group} for name, group in zip(names, groups.values(), strict=True)
    }


def without_pattern(config: RunConfig) -> RunConfig:
    """The same for configs that differ in nothing but the pattern and the seed."""
    return config.model_copy(update={"prune": config.prune.model_copy(update={"seed": 0, "pattern": Dense()})})


def cells(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The rows as a table of texts, by title: Method, each of `COLUMNS` that was measured, and Seeds where there are several.
    Above them the dense network, as in `with_dense`.

    The best of a column and pattern has `BEST` behind it, and what is within the noise of it `LEVEL`.
    """
    shown = with_dense(rows)
    table = {"Method": [DENSE] * (len(shown) - len(rows)) + row_names(rows)}
    for name in COLUMNS:
        if any(name in row.values for row in rows):
            table[MEASURES[name].title] = [_cell(row, name) for row in shown]
    if any(len(row.runs) > 1 for row in rows):
        table["Seeds"] = [str(len(row.runs) or "") for row in shown]
    return table


def with_dense(rows: Sequence[Row]) -> list[Row]:
    """The dense network's row before the others, where all are of one network and it was measured."""
    networks = {(row.config.model, row.config.checkpoint, row.config.data) for row in rows}
    dense = dense_row(rows) if len(networks) == 1 else None
    return [*rows] if dense is None else [dense, *rows]


def _cell(row: Row, name: str) -> str:
    if name not in row.values:
        return missing(name) if name in row.missing else ""
    measure = "accuracy" if name == "change" else name
    mark = BEST if measure in row.best else LEVEL if measure in row.level else ""
    return f"{row.values[name].said(name)} {mark}".rstrip()
