"""Where a network looks, before and after pruning.

For transformers: the attention maps of every attention node in the graph, fused or written out; their rollout; how much a
pruned network's maps resemble the dense ones. For convolutional networks: the energy of the channels at each position, stage by
stage. All from `NetworkGraph`: no hooks, no patched modules.

Shapes: N images, H heads, T tokens (queries by keys). Windowed attention (Swin) has maps for each window: they are listed along
the head axis, window by window.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from snows.graph import FUSED_ATTENTION, NetworkGraph

aten = torch.ops.aten


# --- maps ---


def attention_maps(
    graph: NetworkGraph, images: Tensor, parameters: Mapping[str, Tensor] | None = None, *, batch_size: int = 32
) -> dict[str, Tensor]:
    """Attention maps (N, H, T, T), float32 on the CPU, by module path in graph order; each row sums to one.

    `images` (N, C, height, width); `parameters` replace the module's own tensors by name, for a pruned network. A network
    without attention gives an empty dict.
    """
    batches = [_maps(graph, batch, parameters) for batch in images.split(batch_size)]
    return {name: torch.cat([batch[name].cpu() for batch in batches]) for name in batches[0]}


def _maps(graph: NetworkGraph, images: Tensor, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    nodes = [n for n in graph.nodes if graph.kind(n) == "attention"]
    arguments = {n: _map_arguments(graph, n) for n in nodes}
    needed = {v for values in arguments.values() for v in values.values() if isinstance(v, fx.Node)}
    _, values = graph.run(images, parameters, capture=needed)
    maps = {}
    for name, node in zip(_unique_names(graph, nodes), nodes, strict=True):
        given = {k: values[v] if isinstance(v, fx.Node) else v for k, v in arguments[node].items()}
        weights = given["weights"] if "weights" in given else fused_attention_map(**given)
        # Batches are outermost in every layout met: (N, H, T, T), (N * H, T, T) and (N * windows, H, T, T).
        maps[name] = weights.reshape(len(images), -1, *weights.shape[-2:]).float()
    return maps


def _map_arguments(graph: NetworkGraph, node: fx.Node) -> dict[str, Any]:
    if node.target is not FUSED_ATTENTION:
        return {"weights": graph.attention_softmax(node)}
    schema = node.target._schema.arguments
    given = (
        {a.name: a.default_value for a in schema} | dict(zip((a.name for a in schema), node.args, strict=False)) | node.kwargs
    )
    return {k: given[k] for k in ("query", "key", "attn_mask", "is_causal", "scale", "enable_gqa")}


def fused_attention_map(
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights (..., T_query, T_key) by which `scaled_dot_product_attention` sums its values, in the dtype of `query`.

    The definition in PyTorch's documentation of that function; a query that may attend to nothing has weights zero.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return aten._safe_softmax(scores, -1)


def _unique_names(graph: NetworkGraph, nodes: Sequence[fx.Node]) -> list[str]:
    names: list[str] = []
    for node in nodes:
        path = graph.path(node) or "network"
        earlier = sum(name == path or name.startswith(f"{path}#") for name in names)
        names.append(f"{path}#{earlier + 1}" if earlier else path)
    return names


def rollout(maps: Iterable[Tensor]) -> Tensor:
    """How much each token of the last block (rows) draws on each input token (columns): (N, T, T), rows sum to one.

    Abnar & Zuidema (2020), "Quantifying Attention Flow in Transformers", section 3: the maps' mean over heads, plus the
    identity for the residual connection, normalized by row, multiplied from the first block to the last. `maps`: (N, H, T, T)
    each, in order. Raises `ValueError` where the number of tokens changes between blocks (windowed or pooled attention).
    """
    result: Tensor | None = None
    for block in maps:
        step = block.mean(1) + torch.eye(block.shape[-1], dtype=block.dtype, device=block.device).expand(block.shape[-2:])
        step = step / step.sum(-1, keepdim=True)
        if result is not None and step.shape != result.shape:
            raise ValueError(
                f"Rollout follows the same tokens through all blocks, but their maps change from {tuple(result.shape[1:])} to "
                f"{tuple(step.shape[1:])}. It is undefined for windowed or pooled attention; compare the maps block by block."
            )
        result = step if result is None else step @ result
    if result is None:
        raise ValueError("Rollout needs at least one attention map; this network has none.")
    return result


# --- similarity ---


def cosine(dense: Tensor, pruned: Tensor) -> Tensor:
    """Cosine similarity (H,) between rows of two maps (N, H, T, T), mean over images and queries; 0 … 1, 1 = equal."""
    return F.cosine_similarity(dense, pruned, dim=-1).mean((0, 2))


def jensen_shannon(dense: Tensor, pruned: Tensor) -> Tensor:
    """Jensen-Shannon divergence (H,) in bits between rows of two maps (N, H, T, T), mean over images and queries; 0 … 1.

    Lin (1991), "Divergence Measures Based on the Shannon Entropy": the mean KL divergence of both from their midpoint. 0 means
    equal, 1 means that no query attends to a token it attended to before.
    """
    middle = (dense + pruned) / 2
    nats = (_times_log_ratio(dense, middle) + _times_log_ratio(pruned, middle)).sum(-1) / 2
    return (nats / torch.log(torch.tensor(2.0, dtype=nats.dtype))).clamp(0, 1).mean((0, 2))


def _times_log_ratio(p: Tensor, q: Tensor) -> Tensor:
    return torch.xlogy(p, p) - torch.xlogy(p, q)


@dataclass(frozen=True)
class Similarity:
    """Dense against pruned attention by block: `cosine` and `jensen_shannon` (bits), each (H,).

    `preservation` is 1 - Jensen-Shannon, mean over heads, then over blocks: 1 = attention unchanged, 0 = nothing in common.
    """

    cosine: dict[str, Tensor]
    jensen_shannon: dict[str, Tensor]

    @property
    def preservation(self) -> float:
        return 1 - float(torch.stack([heads.mean() for heads in self.jensen_shannon.values()]).mean())


def similarity(
    graph: NetworkGraph,
    images: Tensor,
    pruned: Mapping[str, Tensor],
    dense: Mapping[str, Tensor] | None = None,
    *,
    batch_size: int = 32,
) -> Similarity:
    """Compare the attention of the network with tensors `pruned` and `dense` (default: the module's own) on `images`.

    Holds the maps of one batch only. Raises `ValueError` for a network without attention.
    """
    if not any(graph.kind(n) == "attention" for n in graph.nodes):
        raise ValueError("This network has no attention to compare; for a convolutional network see spatial_attention.")
    cosines: dict[str, Tensor] = {}
    divergences: dict[str, Tensor] = {}
    for batch in images.split(batch_size):
        before, after = _maps(graph, batch, dense), _maps(graph, batch, pruned)
        share = len(batch) / len(images)
        for name in before:
            cosines[name] = cosines.get(name, 0) + share * cosine(before[name], after[name]).cpu()
            divergences[name] = divergences.get(name, 0) + share * jensen_shannon(before[name], after[name]).cpu()
    return Similarity(cosines, divergences)


# --- convolutional networks ---


def spatial_attention(
    graph: NetworkGraph, images: Tensor, parameters: Mapping[str, Tensor] | None = None, *, batch_size: int = 128
) -> dict[str, Tensor]:
    """Where each stage of a convolutional network has its energy: (N, height, width), float32 on the CPU, by module path.

    Zagoruyko & Komodakis (2017), "Paying More Attention to Attention", section 3.1: the sum over channels of squares, divided
    by its norm over positions. A stage is all that is computed at one resolution; of it the last
    value is read that everything later depends on alone, such as the end of a residual block.
    """
    nodes = _stage_ends(graph)
    names = _unique_names(graph, nodes)
    batches = [graph.run(batch, parameters, capture=nodes)[1] for batch in images.split(batch_size)]
    return {name: torch.cat([_energy(values[node]) for values in batches]) for name, node in zip(names, nodes, strict=True)}


def _stage_ends(graph: NetworkGraph) -> list[fx.Node]:
    # A value is a cut when no tensor computed before it is read after it: none inside a residual block is, its end is.
    reach, cuts = -1, set()
    for position, node in enumerate(graph.nodes):
        if reach <= position:
            cuts.add(node)
        if not isinstance(node.meta["val"], torch.SymInt):  # the batch size is read anywhere
            reach = max(reach, graph.last_use(node))
    # The layout (N, C, height, width) is told from tokens and channels-last values by having a convolution's size.
    ends: dict[tuple[int, int], fx.Node] = {}
    for node in graph.nodes:
        kind, value = graph.kind(node), graph.value_node(node)
        if kind not in ("convolution", "activation") and node.target is not aten.add.Tensor:
            continue
        shape = value.meta["val"].shape
        if len(shape) != 4 or (size := (shape[2], shape[3])) == (1, 1):
            continue
        if (kind == "convolution" and size not in ends) or (size in ends and value in cuts):
            ends[size] = value
    return list(ends.values())


def _energy(value: Tensor) -> Tensor:
    energy = value.float().square().sum(1)
    return (energy / energy.flatten(1).norm(dim=1).clamp(min=torch.finfo(energy.dtype).tiny)[:, None, None]).cpu()
