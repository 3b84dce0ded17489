"""Where networks look, ready to draw: what can be asked of a network, its maps as arrays, how alike two networks look.

Pure functions of an `Inspection` and of preprocessed images. Torch is imported here: import this where the engine is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from snows.measures import metrics
from snows.measures.attention import (
    MapTokens,
    Similarity,
    TokenGrid,
    attention_maps,
    map_tokens,
    rollout,
    spatial_attention,
    token_grid,
)
from snows.measures.names import MEASURES

if TYPE_CHECKING:
    from snows.runs.inspection import Inspection

ALL_PATCHES, ONE_PATCH, ROLLOUT = "All patches", "One patch", "Rollout"
CLASS_TOKEN = "Class token"
GLOBAL = "Global query"  # a softmax over the image that nothing in it asks for
_TOKEN_WORDS = {
    **{"cls": CLASS_TOKEN, "class": CLASS_TOKEN, "dist": "Distillation token", "reg": "Register", "average": "Average token"},
    **{"latent": "Pooling query", "probe": "Pooling query", "query": "Pooling query"},
}


@dataclass(frozen=True)
class Look:
    """What one network makes of one image.

    `maps`: by block, (H, T, T) each with rows that sum to one; of a convolutional network by stage, (rows, columns) each.
    `missing`: what attends and has no map, by module path, with the reason. `probabilities`: (C,), of the classes.
    """

    maps: dict[str, Tensor]
    missing: dict[str, str]
    probabilities: Tensor


def look(inspection: "Inspection", image: Tensor, stage: str) -> Look:
    """`image`: (C, H, W), preprocessed. `stage`: one of `snows.runs.inspection.STAGES`."""
    parameters = inspection.parameters(stage)
    batch = image[None]
    attended = attention_maps(inspection.graph, batch, parameters)
    maps = attended or spatial_attention(inspection.graph, batch, parameters)
    logits, _ = inspection.run_network(batch, stage)
    return Look({name: values[0] for name, values in maps.items()}, attended.missing, logits[0].softmax(0))


def holding(blocks: Sequence[str], layer: str) -> str | None:
    """The block or stage that a layer belongs to: the one whose name begins as the layer's does for longest; None for none."""

    def common(block: str) -> int:
        pairs = zip(block.split("."), layer.split("."), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    lengths = {block: common(block) for block in blocks}
    longest = max(lengths.values(), default=0)
    best = [block for block, length in lengths.items() if length == longest]
    return best[0] if longest and len(best) == 1 else None


@dataclass(frozen=True)
class Questions:
    """What can be asked of a network.

    `blocks`: whose maps there are, in order; with `stages` they are the stages of a convolutional network. Of those that can be
    laid over an image, by block: `heads`, how many they have, and `tokens`, what they are about. `queries`: from where one can
    look at the whole image, in any block. `note`: what this network lacks, and what is shown in its place; empty for one that
    lacks nothing.
    """

    blocks: list[str]
    stages: bool
    heads: dict[str, int]
    tokens: dict[str, MapTokens]
    queries: list[str]
    note: str

    @property
    def mapped(self) -> bool:
        """Whether there are maps that can be laid over an image."""
        return self.stages or bool(self.queries)

    def blocks_with(self, query: str | None) -> list[str]:
        """The blocks that can be looked at from `query`."""
        if self.stages or query == ROLLOUT:
            return self.blocks
        return [block for block, tokens in self.tokens.items() if query in _queries(tokens)]

    def grid(self, block: str) -> TokenGrid | None:
        """The patches that a click on the block's map can look from; None where patches ask about other ones than they are."""
        tokens = self.tokens.get(block)
        return tokens.keys if tokens is not None and ONE_PATCH in _queries(tokens) else None


def questions(inspection: "Inspection", look: Look) -> Questions:
    """`look`: any with this network."""
    maps, unseen = look.maps, _unseen(look.missing)
    blocks = list(maps)
    if not blocks:
        note = "This network has neither attention nor convolutional stages, so nothing shows where it looks."
        return Questions([], False, {}, {}, [], " ".join([note, *unseen]))
    if maps[blocks[0]].ndim == 2:
        first = "This network, as shown," if unseen else "A convolutional network"
        note = (
            f"{first} has no queries and no heads. Shown is where each stage's channels are most active: the sum of their "
            "squares, at the stage's own resolution (spatial attention: Zagoruyko & Komodakis, 2017)."
        )
        return Questions(blocks, True, {}, {}, [], " ".join([note, *unseen]))
    kinds = map_tokens(inspection.graph)
    tokens = {block: kinds[block] for block in blocks if kinds[block].kind == "image"}
    others = _others([kinds[block].kind for block in blocks if block not in tokens])
    if not tokens:
        note = (
            f"No query of this network sees the whole image: {others}. How alike the networks attend is measured all the same."
        )
        return Questions(blocks, False, {}, {}, [], " ".join([note, *unseen]))
    offered = list(dict.fromkeys(query for block in tokens.values() for query in _queries(block)))
    queries = [query for query in offered if query not in (ALL_PATCHES, ONE_PATCH)]
    notes = []
    if others:
        notes.append(f"{len(tokens)} of {len(blocks)} maps can be laid over the image: {others}. All are compared below.")
    rolled = token_grid(inspection.graph) is not None
    if CLASS_TOKEN not in queries and ALL_PATCHES in offered:
        rollout_too = ", in rollout too" if rolled else ""
        notes.append(f"This network has no class token to look from. The mean over all patches stands in for it{rollout_too}.")
    queries += [query for query in (ALL_PATCHES, ONE_PATCH) if query in offered] + [ROLLOUT] * rolled
    return Questions(blocks, False, {name: len(maps[name]) for name in tokens}, tokens, queries, " ".join([*notes, *unseen]))


def _unseen(missing: dict[str, str]) -> list[str]:
    """What attends and is not shown, as a sentence, if there is any."""
    reasons = {reason: [path for path, why in missing.items() if why == reason] for reason in missing.values()}
    words = [f"{len(paths)} ({paths[0]}{', …' * (len(paths) > 1)}: {reason})" for reason, paths in reasons.items()]
    return [f"Not shown, of what attends: {'; '.join(words)}."] if words else []


def _others(kinds: Sequence[str]) -> str:
    """Why maps of these kinds cannot be laid over an image."""
    why = {
        "windows": "attend within windows",
        "other": "attend between channels, to something learned, or over tokens that are no grid of patches",
    }
    words = [f"{kinds.count(kind)} {words}" for kind, words in why.items() if kind in kinds]
    return " and ".join(words)


def _queries(tokens: MapTokens) -> list[str]:
    """From where a map that lies over the image can be looked at."""
    queries, keys = tokens.queries, tokens.keys
    assert queries is not None
    assert keys is not None
    learned = [word for word in _learned(queries) if word]
    if not queries.patches:
        return learned
    one = [ONE_PATCH] if (queries.rows, queries.columns) == (keys.rows, keys.columns) else []
    return [*learned, *([ALL_PATCHES] if CLASS_TOKEN not in learned else []), *one]


def _learned(grid: TokenGrid) -> list[str]:
    """The tokens that are no patches as a person knows them, numbered where there are several of a kind; "" for padding."""
    if grid.extra == ("",) and not grid.patches:
        return [GLOBAL]
    words = [next((word for key, word in _TOKEN_WORDS.items() if key in name), name) for name in grid.extra]
    return [f"{word} {words[: i + 1].count(word)}" if word and words.count(word) > 1 else word for i, word in enumerate(words)]


def attended(
    maps: dict[str, Tensor], questions: Questions, block: str, head: int | None, query: str, patch: tuple[int, int]
) -> np.ndarray:
    """What every patch of the image gives to the query: (rows, columns) float32.

    `head`: from 1, None for the mean of all. `query`: one of `questions.queries`; ONE_PATCH is `patch` (row, column), from 1.
    ROLLOUT goes through all blocks and heads and ends at the class token, or at all patches where there is none. Of a
    convolutional network the activity of the stage `block`; the rest means nothing there.
    """
    if questions.stages:
        return maps[block].numpy()
    queries, keys = questions.tokens[block].queries, questions.tokens[block].keys
    assert queries is not None
    assert keys is not None
    learned = _learned(queries)
    if query == ROLLOUT:
        weights = rollout(values[None] for values in maps.values())[0]
        query = CLASS_TOKEN if CLASS_TOKEN in learned else ALL_PATCHES
    else:
        weights = maps[block].mean(0) if head is None else maps[block][head - 1]
    if query == ALL_PATCHES:
        row = weights[list(queries.patches)].mean(0)
    elif query == ONE_PATCH:
        row = weights[queries.token(patch[0] - 1, patch[1] - 1)]
    else:
        row = weights[queries.others[learned.index(query)]]
    return keys.on_patches(row).numpy()


def limits(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """The ends of the color scale on which all of `maps` are drawn, whatever of them is a number."""
    numbers = [values[np.isfinite(values)] for values in maps]
    low = min((float(values.min()) for values in numbers if values.size), default=0.0)
    high = max((float(values.max()) for values in numbers if values.size), default=1.0)
    return low, max(high, low + 1e-6)  # a scale has two ends, even where all is alike


def top(probabilities: Tensor, class_names: Sequence[str], count: int = 5) -> pd.DataFrame:
    """The likeliest classes, likeliest first: index, class, probability. None where the probabilities are not numbers."""
    if probabilities.isnan().any():
        return pd.DataFrame({"index": [], "class": [], "probability": []})
    values, indices = probabilities.topk(min(count, len(probabilities)))
    names = [class_names[i] if class_names else f"output {i}" for i in indices.tolist()]
    return pd.DataFrame({"index": indices.tolist(), "class": names, "probability": values.double().tolist()})


def by_head(similarity: Similarity) -> pd.DataFrame:
    """Mean over images: one row a block and head (from 1), with `cosine` and `overlap` (1 - Jensen-Shannon), each 0 … 1."""
    rows = [
        (block, head + 1, float(cosines[head]), 1 - float(similarity.jensen_shannon[block].mean(0)[head]))
        for block, values in similarity.cosine.items()
        for cosines in [values.mean(0)]
        for head in range(len(cosines))
    ]
    return pd.DataFrame(rows, columns=["block", "head", "cosine", "overlap"])


def preservation(similarities: dict[str, Similarity]) -> pd.DataFrame:
    """One row an image and network of `similarities`: network, image (from 0), preserved (1 = unchanged, 0 = as even maps), and
    the plain overlap (0 … 1) of both, the network's and even maps'."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "network": network,
                    "image": range(len(similarity.preservation)),
                    "preserved": similarity.preservation.double(),
                    "overlap": similarity.overlap.double(),
                    "floor": similarity.floor.double(),
                }
            )
            for network, similarity in similarities.items()
        ],
        ignore_index=True,
    )


def overlap_said(preserved: pd.DataFrame) -> str:
    """Of the rows of one network: the plain score beside that of maps which know nothing."""
    overlap, floor = (MEASURES["preserved"].say(float(preserved[column].mean())) for column in ("overlap", "floor"))
    return f"Before rescaling: {overlap}, where looking everywhere alike has {floor}."


def spread(values: pd.Series) -> tuple[float, float, float]:
    """A score over images: its mean, and between which values it lies on the middle 80 % of them."""
    return float(values.mean()), float(values.quantile(0.1)), float(values.quantile(0.9))


@torch.no_grad()
def answers(inspection: "Inspection", images: Tensor, stage: str, batch_size: int = 64) -> list[int]:
    """The class a network answers for each of `images` (N, C, H, W), as `metrics.answers` does."""
    return [int(i) for batch in images.split(batch_size) for i in metrics.answers(inspection.run_network(batch, stage)[0])]
