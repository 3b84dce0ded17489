"""Where a network looks, before and after pruning.

For transformers: the attention maps of every softmax that values are summed by, fused or written out; which token is which
patch; rollout. For convolutional networks: the energy of the channels at each position, stage by stage. For both: how much a
pruned network's maps resemble the dense ones. All from `NetworkGraph`: no hooks, no patched modules.

Shapes: N images, H heads, T tokens (queries by keys). Windowed attention (Swin) has maps for each window: they are listed along
the head axis, window by window. A map is the softmax itself, as it is before its heads are mixed or subtracted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from snows.config import InputError
from snows.method.graph import NetworkGraph
from snows.method.operations import fused_attention_map
from snows.method.places import (
    FIRST,
    FUSED_ATTENTION,
    IMAGES,
    MapPlaces,
    contraction,
    given_arguments,
    learned,
    sizes,
    softmax_axis,
)

aten = torch.ops.aten


# --- maps ---


class AttentionMaps(dict[str, Tensor]):
    """Attention maps (N, H, T, T), float32 on the CPU, by module path in graph order; each row sums to one.

    `missing`: what attends and has no map here, by module path, with the reason.
    """

    def __init__(self, maps: Mapping[str, Tensor], missing: Mapping[str, str]) -> None:
        super().__init__(maps)
        self.missing = dict(missing)


def attention_maps(
    graph: NetworkGraph, images: Tensor, parameters: Mapping[str, Tensor] | None = None, *, batch_size: int = 32
) -> AttentionMaps:
    """Where each block attends; empty for a network without attention.

    `images` (N, C, height, width) of the size of `graph`; `parameters` replace the module's own tensors by name, for a pruned
    network. Maps are (N, heads, tokens, tokens), by module path in graph order, each row a softmax as it is (Vaswani et al.
    2017, arXiv 1706.03762, equation 1), so that it sums to one; `missing` says what attends and has no map. `batch_size` bounds
    memory alone. Raises `RuntimeError`, torch's own, for images of another size than `graph` was exported with.

    >>> network = snows.load_model("vit-fashion")
    >>> graph = snows.NetworkGraph.export(network.module, torch.zeros(2, *network.input_size))
    >>> maps = snows.attention_maps(graph, torch.zeros(3, *network.input_size))
    >>> list(maps)[0], next(iter(maps.values())).shape
    ('blocks.0.attn', torch.Size([3, 3, 50, 50]))
    """
    blocks, missing = _blocks(graph)
    batches = [_maps(graph, blocks, batch, parameters) for batch in images.split(batch_size)]
    return AttentionMaps({name: torch.cat([batch[name].cpu() for batch in batches]) for name in batches[0]}, missing)


@dataclass(frozen=True, eq=False)
class _Block:
    """A softmax, or fused attention, and how its value becomes a map.

    Its value has axes `rest` (images, windows, heads), `queries` and `keys`. In the flattened rest two images lie `inner`
    apart, None for a value that all images share. What is left of it comes in `order`: window by window, `heads` each. The
    places of an image's rows and columns are (windows, queries) and (windows, keys).
    """

    name: str
    node: fx.Node
    product: fx.Node
    rest: tuple[int, ...]
    queries: tuple[int, ...]
    keys: int
    inner: int | None
    order: Tensor
    heads: int
    query_places: Tensor
    key_places: Tensor

    def as_map(self, value: Tensor, images: int) -> Tensor:
        """(N, windows * heads, queries, keys) from the node's weights."""
        rest, queries = ([value.shape[axis] for axis in axes] for axes in (self.rest, self.queries))
        weights = value.permute(*self.rest, *self.queries, self.keys)
        weights = weights.reshape(prod(rest), prod(queries), value.shape[self.keys])
        if self.inner is None:
            return weights[self.order].expand(images, -1, -1, -1)
        weights = weights.unflatten(0, (-1, images, self.inner)).movedim(1, 0).flatten(1, 2)
        return weights if torch.equal(self.order, torch.arange(len(self.order))) else weights[:, self.order]


def _blocks(graph: NetworkGraph) -> tuple[list[_Block], dict[str, str]]:
    """What has a map, in graph order; and what attends without one, by module path, with the reason."""
    products = {softmax: next((use for use in uses if use.is_summed), None) for softmax, (uses, _) in graph.softmaxes.items()}
    nodes = [n for n in graph.nodes if n.target is FUSED_ATTENTION or products.get(n) is not None]
    names = _unique_names(graph, [use.product if (use := products.get(n)) is not None else n for n in nodes])
    blocks, untold = [], []
    keys: int
    free: tuple[int, ...]
    for name, node in zip(names, nodes, strict=True):
        if (use := products.get(node)) is None:
            query, key = (sizes(n) for n in node.args[:2])  # type: ignore[arg-type]
            shape, keys, free = torch.Size([*query[:-1], key[-2]]), len(query) - 1, (len(query) - 2,)
        else:
            shape, keys, free = sizes(node), use.keys, use.free
        block = _block(name, node, use.product if use else node, shape, keys, free, graph.map_places.get(node))
        if block is not None:
            blocks.append(block)
        else:
            untold.append(node)
    return blocks, _missing(graph, untold)


def _block(
    name: str, node: fx.Node, product: fx.Node, shape: torch.Size, keys: int, free: Sequence[int], places: MapPlaces | None
) -> _Block | None:
    """None where the images cannot be told apart."""
    if places is None:
        return None
    # Heads that share their values are free axes too, but one is asked the same in all heads.
    queries = tuple(axis for axis in free if places.query.shape[axis] > 1) or tuple(free[-1:])
    rest = tuple(axis for axis in range(len(shape)) if axis != keys and axis not in queries)
    mine = places.image.amax((*queries, keys), keepdim=True)
    if not torch.where(places.image >= FIRST, places.image, mine).eq(mine).all():
        return None  # attention from image to image

    def rows(of: Tensor, *axes: int) -> Tensor:
        """`of` by rest, and by what lies along `axes`, flattened: (rest, axes)."""
        others = [axis for axis in range(len(shape)) if axis not in rest and axis not in axes]
        of = of.amax(others, keepdim=True) if others else of
        of = of.expand([1 if axis in others else length for axis, length in enumerate(shape)])
        of = of.permute(*rest, *axes, *others)
        return of.reshape(prod(shape[axis] for axis in rest), prod(shape[axis] for axis in axes))

    images, query_places, key_places = rows(places.image)[:, 0], rows(places.query, *queries), rows(places.key, keys)
    batched = any(not isinstance(length, int) for length in _lengths(node))
    groups: dict[tuple[float, ...], list[int]] = {}
    about = torch.stack([images, query_places.amax(1), key_places.amax(1)], 1).tolist()
    if batched and not (images >= FIRST).any():  # made of the network's own tensors, once for each image: images are outermost
        half = len(about) // IMAGES
        about = [[FIRST + i // half, *row[1:]] for i, row in enumerate(about)]
    for i, row in enumerate(about):
        groups.setdefault(tuple(row), []).append(i)
    parts = [[group for (image, *_), group in groups.items() if not batched or image == FIRST + i] for i in range(IMAGES)]
    heads = len(parts[0][0]) if parts[0] else 0
    if any(len(group) != heads for part in parts for group in part) or len(parts[0]) != len(parts[1]) or not heads:
        return None
    first, second = (torch.tensor([i for group in part for i in group]) for part in parts)
    inner = int(second[0] - first[0]) if batched else None
    order = first
    if inner is not None:
        if inner <= 0 or not bool((second - first == inner).all()) or len(about) % (IMAGES * inner):
            return None
        order = first // (IMAGES * inner) * inner + first % inner
    starts = torch.tensor([group[0] for group in parts[0]])
    return _Block(name, node, product, rest, queries, keys, inner, order, heads, query_places[starts], key_places[starts])


def _lengths(node: fx.Node) -> list[Any]:
    """The sizes of a value, or of the query of fused attention: symbols where they depend on the number of images."""
    return list((node.args[0] if node.target is FUSED_ATTENTION else node).meta["val"].shape)  # type: ignore[union-attr]


def _maps(
    graph: NetworkGraph, blocks: Sequence[_Block], images: Tensor, parameters: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    fused = {block.node: _fused_arguments(block.node) for block in blocks if block.node.target is FUSED_ATTENTION}
    needed = {v for given in fused.values() for v in given.values() if isinstance(v, fx.Node)}
    needed |= {block.node for block in blocks if block.node not in fused}
    _, values = graph.run(images, parameters, capture=needed)
    maps = {}
    for block in blocks:
        if (given := fused.get(block.node)) is not None:
            weights = fused_attention_map(**{k: values[v] if isinstance(v, fx.Node) else v for k, v in given.items()})
        else:
            weights = values[block.node]
        maps[block.name] = block.as_map(weights, len(images)).float()
    return maps


def _fused_arguments(node: fx.Node) -> dict[str, Any]:
    given = given_arguments(node)
    return {name: given[name] for name in ("query", "key", "attn_mask", "is_causal", "scale", "enable_gqa")}


@dataclass(frozen=True)
class TokenGrid:
    """Which token is which.

    `extra`: those that are no patch, in order, by the tensor they were learned as; "average" for one that is made of others,
    "" for padding. The image's patches are `rows` x `columns`, 0 x 0 where there are none; row by row they are the tokens
    `patches`.
    """

    extra: tuple[str, ...]
    rows: int
    columns: int
    patches: tuple[int, ...]

    def token(self, row: int, column: int) -> int:
        """The token of a patch."""
        return self.patches[row * self.columns + column]

    @property
    def others(self) -> list[int]:
        """The tokens of `extra`."""
        return sorted(set(range(len(self.extra) + len(self.patches))) - set(self.patches))

    def on_patches(self, weights: Tensor) -> Tensor:
        """The part of `weights` (..., T) that falls on patches, as (..., rows, columns)."""
        return weights[..., list(self.patches)].unflatten(-1, (self.rows, self.columns))


@dataclass(frozen=True)
class MapTokens:
    """What the rows and the columns of a map are; `kind` says why it cannot be laid over the image.

    `image`: every query sees the whole image (`keys`). `windows`: only a part of it. `other`: attention between channels, to a
    learned memory, or over tokens that cannot be traced to the image. Without `image` both grids are None.
    """

    kind: str
    queries: TokenGrid | None
    keys: TokenGrid | None


def map_tokens(graph: NetworkGraph) -> dict[str, MapTokens]:
    """What each of the graph's attention maps is about, by the maps' names."""
    blocks, _ = _blocks(graph)
    names = list(graph.tensors_by_use.values())
    shape = graph.input.meta["val"].shape
    width = int(shape[3]) if len(shape) == 4 else 0
    return {block.name: _map_tokens(block, width, names) for block in blocks}


def _map_tokens(block: _Block, width: int, names: Sequence[str]) -> MapTokens:
    if len(block.key_places) > 1:
        return MapTokens("windows", None, None)
    queries, keys = (_token_grid(places[0].tolist(), width, names) for places in (block.query_places, block.key_places))
    if (
        queries is None
        or keys is None
        or not keys.patches
        or not (queries.patches or any(queries.extra) or len(queries.extra) == 1)
    ):
        return MapTokens("other", None, None)
    return MapTokens("image", queries, keys)


def _token_grid(places: Sequence[float], width: int, names: Sequence[str]) -> TokenGrid | None:
    """None where the patches among `places` are not one grid."""
    token = {int(place - FIRST): i for i, place in enumerate(places) if place >= FIRST}
    extra = tuple(learned(place, names) for place in places if place < FIRST)
    if len(token) + len(extra) < len(places) or (token and not width):
        return None  # several tokens of one place
    rows, columns = (sorted({at(pixel, width) for pixel in token}) for at in (int.__floordiv__, int.__mod__))
    if len(rows) * len(columns) != len(token):
        return None
    return TokenGrid(extra, len(rows), len(columns), tuple(token[row * width + column] for row in rows for column in columns))


def token_grid(graph: NetworkGraph) -> TokenGrid | None:
    """The tokens of the maps, where all blocks attend from and to the same ones, among them all of one image's patches.

    That is what `rollout` needs. None for windows (Swin), for tokens that are pooled or added on the way, where attention is
    missing or several maps serve one product, and without attention.
    """
    blocks, missing = _blocks(graph)
    grids = {grid for tokens in map_tokens(graph).values() for grid in (tokens.queries, tokens.keys)}
    if missing or len(grids) != 1 or len({block.product for block in blocks}) < len(blocks):
        return None
    return grids.pop()


def _missing(graph: NetworkGraph, untold: Sequence[fx.Node]) -> dict[str, str]:
    """What attends and gives no map, by module path, with the reason."""
    reasons = dict.fromkeys(untold, "it attends from image to image, or its images cannot be told apart")
    for softmax, (uses, passed) in graph.softmaxes.items():
        if any(use.is_summed for use in uses) or graph.output in passed:
            continue  # the probabilities of classes are no attention
        reasons[softmax] = (
            "its product sums over another axis than the one on which its softmax adds up to one"
            if uses
            else "its softmax scales values one by one, no product sums them by it"
        )
    reasons |= dict.fromkeys(
        _products_of_products(graph), "it multiplies values of the image with each other without a softmax"
    )
    nodes = sorted(reasons, key=graph.index.__getitem__)
    return {name: reasons[node] for name, node in zip(_unique_names(graph, nodes), nodes, strict=True)}


def _products_of_products(graph: NetworkGraph) -> list[fx.Node]:
    """Products of the images' values with an earlier product of them: linear, sigmoid or ReLU attention."""
    products: list[fx.Node] = []
    made: set[fx.Node] = set()  # of products so far, with nothing learned in between
    for node in graph.nodes:
        if graph.kind(node) not in (None, "activation"):
            continue
        product = contraction(node)
        if product is not None and len(product.factors) == 2 and graph.depends_on_images.issuperset(product.factors):
            if not made.isdisjoint(product.factors):
                products.append(node)
            made.add(node)
        elif not made.isdisjoint(node.all_input_nodes) and softmax_axis(node) is None:
            made.add(node)
    return products


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
    each, in order. Raises `InputError`, a `ValueError`, where a block attends from more or fewer tokens than to, where their
    number changes between blocks (windowed or pooled attention), and for no maps.
    """
    result: Tensor | None = None
    for block in maps:
        step = block.mean(1)
        if step.shape[-2] != step.shape[-1] or (result is not None and step.shape != result.shape):
            before = "" if result is None else f" after one of {tuple(result.shape[1:])}"
            raise InputError(
                f"Rollout follows the same tokens through all blocks, but here is a map of {tuple(step.shape[1:])}{before}. "
                "It is undefined for windowed or pooled attention, and where only a class token attends. Compare the maps "
                "block by block."
            )
        step = step + torch.eye(step.shape[-1], dtype=step.dtype, device=step.device)
        step = step / step.sum(-1, keepdim=True)
        result = step if result is None else step @ result
    if result is None:
        raise InputError("Rollout needs at least one attention map; this network has none.")
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
    """Dense against pruned maps by block: `cosine` and `jensen_shannon` (bits), each (N, H), windows averaged. `even`: the
    Jensen-Shannon divergence of the dense maps from even ones, which look everywhere alike.

    A convolutional network's stages stand in for blocks, with one head each.
    """

    cosine: dict[str, Tensor]
    jensen_shannon: dict[str, Tensor]
    even: dict[str, Tensor]

    @property
    def overlap(self) -> Tensor:
        """1 - Jensen-Shannon, mean over heads, then over blocks, for each image (N,): 1 = unchanged, 0 = nothing in common.
        Maps that are spread widely overlap with any others; `preservation` takes that off."""
        return 1 - _of_each_image(self.jensen_shannon)

    @property
    def floor(self) -> Tensor:
        """The overlap of even maps, which know nothing of the image, for each image (N,)."""
        return 1 - _of_each_image(self.even)

    @property
    def preservation(self) -> Tensor:
        """The overlap rescaled for each image (N,): 1 = unchanged, 0 = as even maps have it, below 0 further off than they are.
        The overlap itself where the dense maps are even."""
        room = 1 - self.floor
        return torch.where(room > 1e-6, 1 - (1 - self.overlap) / room.clamp(min=1e-6), self.overlap)

    @classmethod
    def join(cls, parts: Sequence["Similarity"]) -> "Similarity":
        """The similarity over all images of `parts`, at least one."""
        scores = [[getattr(part, field.name) for part in parts] for field in fields(cls)]
        return cls(*({name: torch.cat([of[name] for of in score]) for name in score[0]} for score in scores))


def _of_each_image(divergences: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([heads.mean(1) for heads in divergences.values()]).mean(0)


def even_maps(maps: Tensor) -> Tensor:
    """What looks everywhere alike, in the form of `maps` (..., T)."""
    return torch.full_like(maps, 1 / maps.shape[-1])


def compare_maps(
    dense: Mapping[str, Tensor], pruned: Mapping[str, Tensor], heads: Mapping[str, int] | None = None
) -> Similarity:
    """Compare maps (N, H, T, T) by block. `heads`: how many a block has, where more come one after the other for each image."""

    def by_head(measure: Callable[[Tensor, Tensor], Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = {name: measure(maps, others[name]) for name, maps in dense.items()}
        return {name: s.unflatten(1, (-1, (heads or {}).get(name, s.shape[1]))).mean(1).cpu() for name, s in scores.items()}

    even = {name: even_maps(maps) for name, maps in dense.items()}
    return Similarity(by_head(cosine, pruned), by_head(jensen_shannon, pruned), by_head(jensen_shannon, even))


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
    blocks, _ = _blocks(graph)
    heads = {block.name: block.heads for block in blocks}

    def look(batch: Tensor, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        return _maps(graph, blocks, batch, parameters) if blocks else _spatial_shares(graph, batch, parameters)

    parts = []
    for batch in images.split(batch_size):
        before, after = look(batch, dense), look(batch, pruned)
        if not before:
            raise ValueError("This network has neither attention nor convolutional stages, so it has no maps to compare.")
        parts.append(compare_maps(before, after, heads))
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
