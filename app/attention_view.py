"""Where networks look, ready to draw: what can be asked of a network, its maps as arrays, how alike two networks look.

Pure functions of an `Inspection` and of preprocessed images. Torch is imported here: import this where the engine is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from snows.attention import Similarity, TokenGrid, attention_maps, rollout, spatial_attention, token_grid

if TYPE_CHECKING:
    from snows.inspection import Inspection

ALL_PATCHES, ONE_PATCH, ROLLOUT = "All patches", "One patch", "Rollout"
CLASS_TOKEN = "Class token"
_TOKEN_WORDS = {"cls": CLASS_TOKEN, "class": CLASS_TOKEN, "dist": "Distillation token", "reg": "Register"}


@dataclass(frozen=True)
class Look:
    """What one network makes of one image.

    `maps`: by block, (H, T, T) each with rows that sum to one; of a convolutional network by stage, (rows, columns) each.
    `probabilities`: (C,), of the classes.
    """

    maps: dict[str, Tensor]
    probabilities: Tensor


def look(inspection: "Inspection", image: Tensor, stage: str) -> Look:
    """`image`: (C, H, W), preprocessed. `stage`: one of `snows.inspection.STAGES`."""
    parameters = inspection.parameters(stage)
    batch = image[None]
    maps = attention_maps(inspection.graph, batch, parameters) or spatial_attention(inspection.graph, batch, parameters)
    logits, _ = inspection.run_network(batch, stage)
    return Look({name: found[0] for name, found in maps.items()}, logits[0].softmax(0))


@dataclass(frozen=True)
class Questions:
    """What can be asked of a network.

    `blocks`: whose maps there are, in order; with `stages` they are the stages of a convolutional network. `heads`: how many
    each block has, `grid` and `queries`: from where one can look at the whole image; empty and None where that is undefined.
    `note`: what this network lacks, and what is shown in its place; empty for one that lacks nothing.
    """

    blocks: list[str]
    stages: bool
    heads: dict[str, int]
    grid: TokenGrid | None
    queries: list[str]
    note: str

    @property
    def mapped(self) -> bool:
        """Whether there are maps that can be laid over an image."""
        return self.stages or bool(self.queries)


def questions(inspection: "Inspection", maps: dict[str, Tensor]) -> Questions:
    """`maps`: those of any `Look` with this network."""
    grid, blocks = token_grid(inspection.graph), list(maps)
    if not blocks:
        note = "This network has neither attention nor convolutional stages, so nothing shows where it looks."
        return Questions([], False, {}, None, [], note)
    if maps[blocks[0]].ndim == 2:
        note = (
            "A convolutional network has no queries and no heads. Shown is where each stage's channels are most active: the "
            "sum of their squares, at the stage's own resolution (spatial attention: Zagoruyko & Komodakis, 2017)."
        )
        return Questions(blocks, True, {}, None, [], note)
    if grid is None:
        note = (
            "No query of this network sees the whole image: its blocks attend within windows, or over tokens that change on "
            "the way. So there is no class token, no patch and no rollout to lay over an image; how alike the networks attend "
            "is measured all the same."
        )
        return Questions(blocks, False, {}, None, [], note)
    learned, heads = _learned(grid), {name: len(found) for name, found in maps.items()}
    if CLASS_TOKEN in learned:
        return Questions(blocks, False, heads, grid, [*learned, ONE_PATCH, ROLLOUT], "")
    note = "This network has no class token to look from. The mean over all patches stands in for it, in rollout too."
    return Questions(blocks, False, heads, grid, [*learned, ALL_PATCHES, ONE_PATCH, ROLLOUT], note)


def _learned(grid: TokenGrid) -> list[str]:
    """The learned tokens as a person knows them, numbered where there are several of a kind."""
    words = [next((word for key, word in _TOKEN_WORDS.items() if key in name), name) for name in grid.extra]
    return [f"{word} {words[: i + 1].count(word)}" if words.count(word) > 1 else word for i, word in enumerate(words)]


def attended(
    maps: dict[str, Tensor], asked: Questions, block: str, head: int | None, query: str, patch: tuple[int, int]
) -> np.ndarray:
    """What every patch of the image gives to the query: (rows, columns) float32.

    `head`: from 1, None for the mean of all. `query`: one of `asked.queries`; ONE_PATCH is `patch` (row, column), from 1.
    ROLLOUT goes through all blocks and heads and ends at the class token, or at all patches where there is none. Of a
    convolutional network the activity of the stage `block`; the rest means nothing there.
    """
    if asked.grid is None:
        return maps[block].numpy()
    learned = _learned(asked.grid)
    if query == ROLLOUT:
        weights = rollout(found[None] for found in maps.values())[0]
        query = CLASS_TOKEN if CLASS_TOKEN in learned else ALL_PATCHES
    else:
        weights = maps[block].mean(0) if head is None else maps[block][head - 1]
    if query == ALL_PATCHES:
        row = weights[len(learned) :].mean(0)
    elif query == ONE_PATCH:
        row = weights[asked.grid.token(patch[0] - 1, patch[1] - 1)]
    else:
        row = weights[learned.index(query)]
    return asked.grid.on_patches(row).numpy()


def limits(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """The ends of the color scale on which all of `maps` are drawn."""
    low = min((float(values.min()) for values in maps), default=0.0)
    high = max((float(values.max()) for values in maps), default=1.0)
    return low, max(high, low + 1e-6)  # a scale has two ends, even where all is alike


def top(probabilities: Tensor, class_names: Sequence[str], count: int = 5) -> pd.DataFrame:
    """The likeliest classes, likeliest first: index, class, probability."""
    values, indices = probabilities.topk(min(count, len(probabilities)))
    names = [class_names[i] if class_names else f"output {i}" for i in indices.tolist()]
    return pd.DataFrame({"index": indices.tolist(), "class": names, "probability": values.double().tolist()})


def by_head(found: Similarity) -> pd.DataFrame:
    """Mean over images: one row a block and head (from 1), with `cosine` and `preserved` (1 - Jensen-Shannon), each 0 … 1."""
    rows = [
        (block, head + 1, float(cosines[head]), 1 - float(found.jensen_shannon[block].mean(0)[head]))
        for block, values in found.cosine.items()
        for cosines in [values.mean(0)]
        for head in range(len(cosines))
    ]
    return pd.DataFrame(rows, columns=["block", "head", "cosine", "preserved"])


def preservation(found: dict[str, Similarity]) -> pd.DataFrame:
    """One row an image and network of `found`: network, image (from 0), preserved (0 … 1)."""
    rows = [
        (network, image, value)
        for network, similarity in found.items()
        for image, value in enumerate(similarity.preservation.tolist())
    ]
    return pd.DataFrame(rows, columns=["network", "image", "preserved"])


def spread(values: pd.Series) -> tuple[float, float, float]:
    """A score over images: its mean, and between which values it lies on the middle 80 % of them."""
    return float(values.mean()), float(values.quantile(0.1)), float(values.quantile(0.9))


@torch.no_grad()
def answers(inspection: "Inspection", images: Tensor, stage: str, batch_size: int = 64) -> list[int]:
    """The class a network answers for each of `images` (N, C, H, W)."""
    return [int(i) for batch in images.split(batch_size) for i in inspection.run_network(batch, stage)[0].argmax(1)]
