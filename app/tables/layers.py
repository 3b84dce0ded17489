"""What a screen shows of a run's layers: data frames of the errors that events tell of, and of a site that was opened again.

Pure functions of a list of events, or of an `Inspection`.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from app.words import counted, layer, pattern_words
from snows.events import Event, SiteFinished
from snows.measures.names import number
from snows.runs.log import Log

if TYPE_CHECKING:
    from snows.runs.inspection import Inspection

_BINS = 80
_MOST_MOVED = 12
CHANNEL_IMAGES = 64
# Above this many kernel positions (patch embeddings have 256) a picture a position would be a picture of nothing.
_MOST_POSITIONS = 49
_BLOCK = re.compile(r"(.*?\d(?:\.\d+|\.\w*\d|\.(?:blocks|layers)\.\d+)*)\.")


def block(name: str) -> str:
    """The block a layer belongs to: `layer2.0` for `layer2.0.conv1`, `blocks.3` for `blocks.3.mlp.fc1`, itself if in none."""
    match = _BLOCK.match(name)
    return match[1] if match else name.rpartition(".")[0] or name


def finished(events: list[Event]) -> list[SiteFinished]:
    """The finished layers in network order; one that was solved twice as it was solved last."""
    return Log.of(events).layers()


def window_losses(events: list[Event], relative: bool, held_back: bool = False) -> pd.DataFrame:
    """One row a layer and stage (`mask_only`, `least_squares`, `final`), in network order: index, layer, stage, loss. On the
    calibration images, or on those held back.

    The loss is the sum over the window's operations of the mean squared error; `relative`: divided by the same sum for a
    network that answers zero everywhere. NaN where that is zero.
    """
    rows = []
    for e in finished(events):
        losses = {stage: sum(errors) for stage, errors in e.held_back.items()} if held_back else e.losses
        unit = (sum(e.held_back_scale if held_back else e.scale) or np.nan) if relative else 1.0
        rows += [(e.index, layer(e.site), stage, loss / unit) for stage, loss in losses.items()]
    return pd.DataFrame(rows, columns=["index", "layer", "stage", "loss"])


def carried_over(events: list[Event], relative: bool) -> pd.DataFrame:
    """One row a layer, in network order: index, layer, a column a stage with its loss on the calibration images, held_back (the
    final loss on the images held back) and gap (how many times that on the calibration images, each relative to its own
    targets). NaN where a layer has no such number."""
    rows = []
    for e in finished(events):
        losses, seen, unseen = dict(e.losses), sum(e.scale) or np.nan, sum(e.held_back_scale) or np.nan
        held_back = sum(e.held_back["final"]) if "final" in e.held_back else np.nan
        gap = (held_back / unseen) / ((losses["final"] / seen) or np.nan)
        if relative:
            losses, held_back = {stage: loss / seen for stage, loss in losses.items()}, held_back / unseen
        rows.append({"index": e.index, "layer": layer(e.site), **losses, "held_back": held_back, "gap": gap})
    return pd.DataFrame(rows, columns=["index", "layer", "mask_only", "least_squares", "final", "held_back", "gap"])


def carries_over(gaps: pd.DataFrame) -> str:
    """What `carried_over` says of the fit, in a sentence or two of Markdown; empty where nothing was held back."""
    gaps = gaps.dropna(subset=["gap"])
    if gaps.empty:
        return ""
    worst = gaps.loc[gaps["gap"].idxmax()]
    return (
        f"**On images held back** the error at the end is {number(gaps['gap'].median())} times that on the calibration images "
        f"in the middle layer, and {number(worst['gap'])} times in `{worst['layer']}`. Above 1, a part of the fit does not "
        "carry over to other images: more calibration images or a larger ridge lessen it."
    )


def window_errors(events: list[Event], held_back: bool = False) -> pd.DataFrame:
    """One row a layer, stage and operation n_k of its window: index, layer, stage, k, operation, loss, relative, growth. On the
    calibration images, or on those held back.

    `relative` is the loss over the targets' mean square, `growth` how many times that at n_0. NaN for 0 / 0.
    """
    log, rows = Log.of(events), []
    for e in log.layers():
        names = dict(enumerate(log.begun[e.site].operations if e.site in log.begun else []))
        by_k, scales = (e.held_back, e.held_back_scale) if held_back else (e.by_k, e.scale)
        for stage, losses in by_k.items():
            shares = [loss / (scale or np.nan) for loss, scale in zip(losses, scales, strict=True)]
            rows += [
                (e.index, layer(e.site), stage, k, names.get(k, f"operation {k}"), loss, share, share / (shares[0] or np.nan))
                for k, (loss, share) in enumerate(zip(losses, shares, strict=True))
            ]
    return pd.DataFrame(rows, columns=["index", "layer", "stage", "k", "operation", "loss", "relative", "growth"])


@dataclass(frozen=True)
class SiteDetail:
    """A finished site's mask (bool, the parameter's shape) and weights.

    `histogram`: see `weight_histogram`. `moved`: the kept weights whose value changed most: place, before, after, change.
    `pattern` is in words; `obeys` says whether mask and weight obey it, None where a file gave the mask; `compliance` why.
    """

    mask: np.ndarray
    histogram: pd.DataFrame
    moved: pd.DataFrame
    pattern: str
    obeys: bool | None
    compliance: str


def site_detail(inspection: "Inspection", site: str) -> SiteDetail:
    """Raises `InspectionError` for a site that is not finished."""
    from snows.method.sparsity import check_compliance
    from snows.runs.inspection import most_moved

    before, after, mask = inspection.finished(site)
    places = most_moved(before, after, mask, _MOST_MOVED)
    was, became = (weight[tuple(places.T)].numpy() for weight in (before, after))
    kinds = ["output", "input", "kernel row", "kernel column"][: before.ndim]
    pattern = inspection.covered.patterns[site]
    given = inspection.run.config().prune.mask_from_file
    compliance, astray = check_compliance(mask, pattern), int((after[~mask] != 0).sum())
    words = f"{int(mask.sum())} of {mask.numel()} weights are kept." if given else compliance.message
    return SiteDetail(
        mask=mask.numpy(),
        histogram=weight_histogram(before.numpy(), after.numpy(), mask.numpy()),
        moved=pd.DataFrame(places.numpy(), columns=kinds).assign(before=was, after=became, change=became - was),
        pattern="chosen by a file" if given else pattern_words(pattern),
        obeys=None if given and not astray else compliance.ok and not astray,
        compliance=f"Not zero although pruned: {counted(astray, 'weight')}." if astray else words,
    )


def channel_errors(inspection: "Inspection", site: str) -> pd.DataFrame:
    """The layer's own error by output channel, on the first `CHANNEL_IMAGES` calibration images: channel, stage (`mask_only`,
    `final`), relative (see `snows.runs.inspection.channel_errors`)."""
    from snows.runs import inspection as engine

    before, after, mask = inspection.finished(site)
    problem = inspection.problem(site, CHANNEL_IMAGES, k_steps=0)
    weights = {"mask_only": before * mask, "final": after}
    errors = {stage: engine.channel_errors(problem, weight).numpy() for stage, weight in weights.items()}
    return pd.concat(
        [pd.DataFrame({"channel": range(len(e)), "stage": stage, "relative": e}) for stage, e in errors.items()],
        ignore_index=True,
    )


def weight_histogram(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> pd.DataFrame:
    """One row a bin and stage: value (the bin's middle), stage, count. `dense` counts all weights before, `mask_only` the kept
    ones before, `final` the kept ones after."""
    values = {"dense": before.ravel(), "mask_only": before[mask], "final": after[mask]}
    together = np.concatenate(list(values.values()))
    edges = np.histogram_bin_edges(together[np.isfinite(together)], _BINS)
    middles = (edges[:-1] + edges[1:]) / 2
    return pd.concat(
        [
            pd.DataFrame({"value": middles, "stage": stage, "count": np.histogram(which, edges)[0]})
            for stage, which in values.items()
        ],
        ignore_index=True,
    )


def mask_panels(mask: np.ndarray) -> tuple[list[list[np.ndarray]], list[list[str]]]:
    """A mask as a grid of pictures (outputs, inputs), one a kernel position, and what each is of."""
    if mask.ndim == 2:
        return [[mask]], [[""]]
    outputs, _, height, width = mask.shape
    if height * width == 1 or height * width > _MOST_POSITIONS:
        return [[mask.transpose(0, 2, 3, 1).reshape(outputs, -1)]], [[""]]
    panels = [[mask[:, :, row, column] for column in range(width)] for row in range(height)]
    names = [[f", kernel row {row}, column {column}" for column in range(width)] for row in range(height)]
    return panels, names
