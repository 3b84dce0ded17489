"""What happened in a run: small frozen records with a JSON form, one line each in the run's event file.

A reader that meets a kind it does not know gets None and goes on, and leaves out a field that it does not know, so that an old
reader survives a newer writer. Losses are means of squares in the units of the captured values (dimensionless); times are
seconds; memory is bytes.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True, kw_only=True)
class Event:
    # JSON has no NaN or infinity; a reader in another language must not stumble over one diverged layer.
    __pydantic_config__ = ConfigDict(ser_json_inf_nan="strings")

    time: float = field(default_factory=time.time)  # seconds since the epoch


@dataclass(frozen=True, kw_only=True)
class Queued(Event):
    """The run waits for its device, for the first time or to be resumed. `lost`: how many workers in a row were lost on it, and
    finished no layer, since it was queued otherwise."""

    lost: int = 0


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """The worker has the network and the images. `sites` are the names that will be pruned, in order."""

    device: str
    sites: list[str]
    skipped: dict[str, str]  # weight name -> why it is left dense
    resumed: int = 0  # how many sites an earlier worker had finished, over all sweeps
    sweeps: int = 1  # how often the sites are gone through
    operations: int | None = None  # how many the network has of those that K counts; None in runs of older versions


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """Work outside the sites: `load`, `budget`, `prune`, `evaluate`, `save`."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """Something to read beside the results, such as that the evaluation images are the calibration images."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """Within a phase that is not `prune`: `done` of `total` images have gone through a network."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Fetched(Event):
    """Within the phase `load`: `done` of `total` bytes of `what` are downloaded; None where nobody said how many there are."""

    what: str
    done: int
    total: int | None


@dataclass(frozen=True, kw_only=True)
class BudgetLayer:
    """What a budget knows of a layer. `positions`: how often one image multiplies by each of its weights. The others are
    measured where an allocator asks for them, on the dense network: `curve`, a pattern's text -> how far the network's output
    moves, relative to its norm, when the layer alone is pruned so; `outliers` (OWL) and `tail` (AlphaPruning), see
    `method.budget`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    positions: int
    curve: dict[str, float] = field(default_factory=dict)
    outliers: float = 0.0
    tail: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BudgetChosen(Event):
    """What a budget gives each layer: `patterns` by the weight's name, as texts, those of overrides too. They keep `share` of
    what the budget counts. `layers`: by what it was chosen. A resumed run keeps to it."""

    patterns: dict[str, str]
    share: float
    layers: list[BudgetLayer]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SiteStarted(Event):
    site: str
    index: int
    operations: list[str]  # the window's captured operations, n_0 … n_K
    shape: list[int]
    sweep: int = 0


@dataclass(frozen=True, kw_only=True)
class CGIteration(Event):
    """One conjugate-gradient iteration of the current Newton step. `residual` is relative to the right-hand side."""

    site: str
    step: int
    iteration: int
    residual: float
    curvature: float  # p·Hp / p·p along the search direction


@dataclass(frozen=True, kw_only=True)
class NewtonStep(Event):
    """One Newton step, accepted or not (`step_size` 0). `predicted` and `actual` are reductions of the loss."""

    site: str
    step: int
    loss: float  # after the step
    gradient_norm: float
    cg_status: str
    cg_iterations: int
    step_size: float
    tried: list[float]
    predicted: float
    actual: float
    damping: float
    status: str


@dataclass(frozen=True, kw_only=True)
class SiteFinished(Event):
    """`losses` by stage: `mask_only`, `least_squares` (where computed), `final`; `by_k` the same stages' loss at each n_k.

    `scale` is the mean square of the targets, the loss of predicting zeros: divide by it for a relative error. `held_back` and
    `held_back_scale` are `by_k` and `scale` on images that nothing was fitted on; empty where there were none.
    """

    site: str
    index: int
    losses: dict[str, float]
    by_k: dict[str, list[float]]
    scale: list[float]
    density: float
    exchanged: int = 0  # weights that came into the mask for others, after the scores had chosen it
    status: str  # a name of `solver.Status` or of the update
    message: str  # the status in words, with its remedy
    seconds: float
    num_products: int
    peak_memory: int | None = None  # bytes on the device, None on a CPU
    held_memory: int | None = None  # bytes of the images' values that wait in memory; None in runs of older versions
    sweep: int = 0
    row_systems: str = ""  # how the rows' systems were solved: `factors`, `products`, or not at all; see `rows.row_systems`
    held_back: dict[str, list[float]] = field(default_factory=dict)
    held_back_scale: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class JointStarted(Event):
    """All layers are fitted; now their `count` kept weights move together, in `epochs` passes over the images. `captured`: the
    values that are matched. `losses` at each of them, and `scale`, the mean square of the targets. `resumed`: how many of the
    passes are an earlier worker's. Once more, with none, where the fit begins anew with smaller steps."""

    captured: list[str]
    count: int
    epochs: int
    losses: list[float]
    scale: list[float]
    resumed: int = 0


@dataclass(frozen=True, kw_only=True)
class JointEpoch(Event):
    """The joint fit has gone through the images once more. `loss`: the mean over its batches, as each was met, of the losses
    summed over their scale."""

    epoch: int
    loss: float
    seconds: float = 0.0  # not on record in runs of older versions


@dataclass(frozen=True, kw_only=True)
class JointFinished(Event):
    """`before` and `after`: the losses at each captured value; the rest as in `SiteFinished`."""

    before: list[float]
    after: list[float]
    scale: list[float]
    status: str
    message: str
    seconds: float


def relative_loss(losses: Sequence[float], scale: Sequence[float]) -> float:
    """A joint fit's loss: the losses at each captured value over the mean square of its target, summed."""
    return sum(loss / size for loss, size in zip(losses, scale, strict=True) if size > 0)


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """`right`: which evaluation images the pruned network answers as their label says, or, where there are none, as the dense
    network does: a bit an image, the first the highest of its byte, in hex. Runs on the same images compare image by image."""

    metrics: dict[str, float | None]
    right: str = ""  # empty in runs of older versions


@dataclass(frozen=True, kw_only=True)
class RunFailed(Event):
    message: str  # what happened, why, and what to do
    detail: str = ""  # the trace, for an expander
    bad_input: bool = False  # the input was at fault (`config.InputError`), so trying again as it is would fail again


@dataclass(frozen=True, kw_only=True)
class RunCancelled(Event):
    finished_sites: int


KINDS: dict[str, type[Event]] = {cls.__name__: cls for cls in Event.__subclasses__()}


class _ByKind:
    """Says to pydantic that a record's `kind` names its class; the events themselves need no such field."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.tagged_union_schema({kind: handler.generate_schema(cls) for kind, cls in KINDS.items()}, "kind")


# Until November 2026 a NaN was written as {"float": "nan"}, an infinity likewise.
_OLD_FLOAT = re.compile(rb'{"float": "(nan|-?inf)"}')
_ANY: TypeAdapter[Event] = TypeAdapter(Annotated[Event, _ByKind()])
_EACH: dict[type[Event], tuple[str, TypeAdapter]] = {
    cls: (f'{{"kind":"{kind}",', TypeAdapter(cls)) for kind, cls in KINDS.items()
}


def to_json(event: Event) -> str:
    """One line of JSON without a line end."""
    opening, adapter = _EACH[type(event)]
    return opening + adapter.dump_json(event, ensure_ascii=True).decode()[1:]  # a line separator in a name is no end of line


def from_json(line: str | bytes) -> Event | None:
    """The event of a line, or None for a kind this version does not know. Raises `ValidationError` (a `ValueError`) for what is
    no JSON, and for a field that is missing or of another type."""
    try:
        if _OLD_FLOAT.search(line if isinstance(line, bytes) else line.encode()):
            return _ANY.validate_python(_restore(json.loads(line)))
        return _ANY.validate_json(line)
    except ValidationError as error:
        if error.errors(include_input=False, include_url=False)[0]["type"].startswith("union_tag"):
            return None
        raise


def _restore(value: object) -> object:
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in ("nan", "inf", "-inf"):
            return float(value["float"])
        return {k: _restore(v) for k, v in value.items()}
    return [_restore(v) for v in value] if isinstance(value, list) else value
