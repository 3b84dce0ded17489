"""Where a network looks, before and after pruning.

For transformers: the attention maps of every attention node in the graph, fused or written out; which token is which patch;
rollout. For convolutional networks: the energy of the channels at each position, stage by stage. For both: how much a pruned
network's maps resemble the dense ones. All from `NetworkGraph`: no hooks, no patched modules.

Shapes: N images, H heads, T tokens (queries by keys). Windowed attention (Swin) has maps for each window: they are listed along
the head axis, window by window.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from snows.graph import FUSED_ATTENTION, NetworkGraph, fused_attention_map

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


def _map_shape(graph: NetworkGraph, node: fx.Node) -> list[Any]:
    """The shape of an attention node's weights: sizes, symbols where they depend on the number of images."""
    given = _map_arguments(graph, node)
    if "weights" in given:
        return list(given["weights"].meta["val"].shape)
    return [*given["query"].meta["val"].shape[:-1], given["key"].meta["val"].shape[-2]]


@dataclass(frozen=True)
class TokenGrid:
    """Which token is which: first the learned ones, `extra` (the names of their parameters), then the image's patches,
    `rows` x `columns`, row by row.
    """

    extra: tuple[str, ...]
    rows: int
    columns: int

    def token(self, row: int, column: int) -> int:
        """The token of a patch."""
        return len(self.extra) + row * self.columns + column

    def on_patches(self, weights: Tensor) -> Tensor:
        """The part of `weights` (..., T) that falls on patches, as (..., rows, columns)."""
        return weights[..., len(self.extra) :].unflatten(-1, (self.rows, self.columns))


def token_grid(graph: NetworkGraph) -> TokenGrid | None:
    """The tokens of the maps, where all blocks attend over the same ones and those are one image's patches.

    None for windows (Swin), for tokens that are pooled or added on the way, and without attention.
    """
    nodes = [n for n in graph.nodes if graph.kind(n) == "attention"]
    if not nodes:
        return None
    images = str(graph.input.meta["val"].shape[0])
    shapes = [_map_shape(graph, node) for node in nodes]
    tokens = shapes[0][-1]
    if any(shape[-2:] != [tokens, tokens] or (len(shape) > 3 and str(shape[0]) != images) for shape in shapes):
        return None
    before = graph.nodes[: graph.index[nodes[0]]]
    extra = _learned_tokens(graph, before)
    sizes = [n.meta["val"].shape[2:] for n in before if graph.kind(n) == "convolution"]
    if not sizes or len(sizes[-1]) != 2 or extra is None or len(extra) + sizes[-1].numel() != tokens:
        return None
    return TokenGrid(tuple(extra), *map(int, sizes[-1]))


def _learned_tokens(graph: NetworkGraph, nodes: Iterable[fx.Node]) -> list[str] | None:
    """The parameters that `nodes` put before the image's own tokens, one name a token; None where they put some behind."""
    names = {graph.tensor_node(name): name for name in graph.parameters}
    seen, extra = {graph.input}, list[str]()
    for node in nodes:
        if isinstance(node.meta["val"], torch.SymInt):
            continue  # the batch size comes from the images, their content does not
        if seen.isdisjoint(node.all_input_nodes):
            continue
        seen.add(node)
        if node.target is not aten.cat.default or node.meta["val"].ndim != 3 or node.args[1:] not in ((1,), (-2,)):
            continue
        parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
        learned = [part for part in parts if part not in seen]
        if parts[: len(learned)] != learned:
            return None
        found: list[str] = []
        for part in learned:
            count, source = part.meta["val"].shape[1], part
            while source not in names:
                source = source.args[0]  # type: ignore[assignment]
            found += [names[source]] * count
        extra = found + extra
    return extra


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
    """Cosine similarity (N, H) between rows of two maps (N, H, T, T), mean over queries; 0 … 1, 1 = equal."""
    return F.cosine_similarity(dense, pruned, dim=-1).mean(2)


def jensen_shannon(dense: Tensor, pruned: Tensor) -> Tensor:
    """Jensen-Shannon divergence (N, H) in bits between rows of two maps (N, H, T, T), mean over queries; 0 … 1.

    Lin (1991), "Divergence Measures Based on the Shannon Entropy": the mean KL divergence of both from their midpoint. 0 means
    equal, 1 means that no query attends to a token it attended to before.
    """
    middle = (dense + pruned) / 2
    nats = (_times_log_ratio(dense, middle) + _times_log_ratio(pruned, middle)).sum(-1) / 2
    return (nats / torch.log(torch.tensor(2.0, dtype=nats.dtype))).clamp(0, 1).mean(2)


def _times_log_ratio(p: Tensor, q: Tensor) -> Tensor:
    return torch.xlogy(p, p) - torch.xlogy(p, q)


@dataclass(frozen=True)
class Similarity:
    """Dense against pruned maps by block: `cosine` and `jensen_shannon` (bits), each (N, H), windows averaged.

    A convolutional network's stages stand in for blocks, with one head each.
    """

    cosine: dict[str, Tensor]
    jensen_shannon: dict[str, Tensor]

    @property
    def preservation(self) -> Tensor:
        """1 - Jensen-Shannon, mean over heads, then over blocks, for each image (N,): 1 = unchanged, 0 = nothing in common."""
        return 1 - torch.stack([heads.mean(1) for heads in self.jensen_shannon.values()]).mean(0)

    @classmethod
    def join(cls, parts: Sequence["Similarity"]) -> "Similarity":
        """The similarity over all images of `parts`, at least one."""
        return cls(
            {name: torch.cat([part.cosine[name] for part in parts]) for name in parts[0].cosine},
            {name: torch.cat([part.jensen_shannon[name] for part in parts]) for name in parts[0].jensen_shannon},
        )


def similarity(
    graph: NetworkGraph,
    images: Tensor,
    pruned: Mapping[str, Tensor],
    dense: Mapping[str, Tensor] | None = None,
    *,
    batch_size: int = 32,
) -> Similarity:
    """Compare where the network looks with tensors `pruned` and `dense` (default: the module's own) on `images`.

    A transformer's attention; of a convolutional network the spatial attention, each map as shares of its sum. Holds the maps
    of one batch only. Raises `ValueError` for a network with neither.
    """
    nodes = [n for n in graph.nodes if graph.kind(n) == "attention"]
    shapes = zip(_unique_names(graph, nodes), (_map_shape(graph, node) for node in nodes), strict=True)
    heads = {name: int(shape[-3]) for name, shape in shapes if len(shape) > 3}  # of three sizes the first holds images too
    look = _maps if nodes else _spatial_shares

    def by_head(measure: Callable[[Tensor, Tensor], Tensor], before: Tensor, after: Tensor, name: str) -> Tensor:
        score = measure(before, after)
        return score.unflatten(1, (-1, heads.get(name, score.shape[1]))).mean(1).cpu()

    parts = []
    for batch in images.split(batch_size):
        before, after = look(graph, batch, dense), look(graph, batch, pruned)
        if not before:
            raise ValueError("This network has neither attention nor convolutional stages, so it has no maps to compare.")
        cosines = {name: by_head(cosine, before[name], after[name], name) for name in before}
        divergences = {name: by_head(jensen_shannon, before[name], after[name], name) for name in before}
        parts.append(Similarity(cosines, divergences))
    return Similarity.join(parts)


def _spatial_shares(graph: NetworkGraph, images: Tensor, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Each stage's energy (N, 1, 1, height * width) as a distribution over positions; that of a silent stage is even."""
    shares = {}
    for name, energy in spatial_attention(graph, images, parameters, batch_size=len(images)).items():
        total = energy.flatten(1).sum(1, keepdim=True)
        even = torch.full_like(total, 1 / energy[0].numel())
        shares[name] = torch.where(total > 0, energy.flatten(1) / total, even)[:, None, None]
    return shares


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
