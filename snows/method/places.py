"""What each value of a network is about: numbers that travel through its graph in place of the values.

A **place** is a pixel of the image, say, or an index along an axis of a softmax. Every operation hands on the places of what it
is made of. One that moves values moves the places alike; one that works on each value by itself leaves them where they are;
a linear layer, a convolution or a product gives each result the place that its inputs have in common. So the places at a token
say which patch it is, whatever was cut, rolled, put in front or reordered on the way, and the places of a softmax's axes, at
the product that reads it, say which of them is summed over. Nothing is computed but places, and no image is needed.

A tensor of places has size 1 along axes on which they do not vary, so a network's take less memory than its values.
"""

import operator
import string
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx

from snows.method.operations import FUSED_ATTENTION, SOFTMAX, aten

Places = tuple[Tensor, ...]  # of one value, several kinds, each of the value's size or 1 by axis

# Below FIRST are no places: where nothing is known, where several were averaged, and of learned tensors, each a number below 1.
NOTHING, MIXED, FIRST = 0.0, 1.5, 2.0
IMAGES = 2  # how many images a graph's sizes are read for: enough to tell two apart

_PRODUCTS = {aten.matmul.default: 0, aten.bmm.default: 0, aten.mm.default: 0, aten.baddbmm.default: 1, aten.addmm.default: 1}
_CASTS = {"to", "_to_copy", "contiguous", "type_as", "detach", "alias", "clone"}
_MOVES = {
    *(
        "_unsafe_view",
        "cat",
        "stack",
        "roll",
        "flip",
        "repeat",
        "repeat_interleave",
        "tile",
        "pad",
        "constant_pad_nd",
        "im2col",
    ),
    *("index", "index_select", "gather", "slice_scatter", "select_scatter"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
}
_RESAMPLED = ("conv", "_pool", "upsample")


def size(value: int | torch.SymInt) -> int:
    """A size in the graph, for `IMAGES` images."""
    if isinstance(value, int):
        return value
    expression = value.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, IMAGES)))


def sizes(node: fx.Node) -> torch.Size:
    """The shape of a node's value, or of its first value, for `IMAGES` images."""
    value = node.meta["val"]
    return torch.Size(map(size, (value if isinstance(value, Tensor) else value[0]).shape))


def vary(places: Tensor, axes: Sequence[int]) -> bool:
    """Whether `places` differ along any of `axes`."""
    return any(places.shape[axis] > 1 for axis in axes)


def _core(places: Tensor) -> Tensor:
    """`places` with size 1 along the axes on which they repeat one value."""
    for axis, length in enumerate(places.shape):
        first = places.narrow(axis, 0, min(length, 1))
        if length > 1 and (places.stride(axis) == 0 or bool((places == first).all())):
            places = first
    return places


def _join(parts: Sequence[Tensor]) -> Tensor:
    """The places of a value made of `parts`: of the first part that has one."""
    # A learned scale, bias or position says nothing of what it is applied to, not even where that is padding.
    placed = [part for part in parts if bool((part >= FIRST).any())]
    result, *others = placed or parts
    for other in others:
        result = torch.where(result >= FIRST, result, torch.maximum(result, other))
    return result


# --- what operations do to places ---


@dataclass(frozen=True)
class Contraction:
    """A product of tensors as in an `einsum`: the axes of each factor, the same name for the same axis, and of the result."""

    factors: tuple[fx.Node, ...]
    axes: tuple[tuple[Hashable, ...], ...]
    result: tuple[Hashable, ...]

    def own(self, factor: int) -> list[Hashable]:
        """The result's axes that it has from this factor alone."""
        others = {axis for i, axes in enumerate(self.axes) if i != factor for axis in axes}
        return [axis for axis in self.axes[factor] if axis in self.result and axis not in others]

    def places(self, factor: int, places: Tensor) -> Tensor:
        """A factor's places as they stand in the result."""
        names = self.axes[factor]
        summed = [i for i, name in enumerate(names) if name not in self.result]
        if summed:
            places = places.amax(summed)
        left = [name for name in names if name in self.result]
        places = places.permute([left.index(name) for name in self.result if name in left])
        return places[tuple(slice(None) if name in left else None for name in self.result)]


def contraction(node: fx.Node) -> Contraction | None:
    """The product that a node computes, or None. A linear layer has one factor, its input: its weight is about no place."""
    args: Any = node.args
    if node.target is aten.linear.default:
        batch = range(1 - args[0].meta["val"].ndim, 0)
        return Contraction((args[0],), ((*batch, "k"),), (*batch, "n"))
    if node.target in _PRODUCTS:
        start = _PRODUCTS[node.target]
        left, right = args[start : start + 2]
        (before, m, _), (behind, _, n) = _matrix_axes(left), _matrix_axes(right)
        axes = ((*before, *m, "k"), (*behind, "k", *n))
        return Contraction((left, right), axes, (*max(before, behind, key=len), *m, *n))
    return _einsum(*args[:2]) if node.target is aten.einsum.default else None


def _matrix_axes(node: Any) -> tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
    """The axes before a matrix's, counted from the end, and its rows and columns, which a vector lacks."""
    ndim = node.meta["val"].ndim
    return tuple(range(2 - ndim, 0)), ("m",) * (ndim > 1), ("n",) * (ndim > 1)


def _einsum(equation: str, factors: Sequence[fx.Node]) -> Contraction | None:
    terms, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        letters = sorted(letter for letter in string.ascii_letters if terms.count(letter) == 1)
        result = "..." * ("..." in terms) + "".join(letters)
    axes, longest = [], 0
    for term, factor in zip(terms.split(","), factors, strict=True):
        rest = factor.meta["val"].ndim - len(term.replace("...", ""))
        longest = max(longest, rest)
        axes.append(_named(term, rest))
    if any(len(set(names)) < len(names) for names in axes):
        return None  # a diagonal
    return Contraction(tuple(factors), tuple(axes), _named(result, longest))


def _named(term: str, rest: int) -> tuple[Hashable, ...]:
    before, dots, behind = term.partition("...")
    return (*before, *(range(-rest, 0) if dots else ()), *behind)


def carry(node: fx.Node, known: Mapping[fx.Node, Any], constants: Mapping[fx.Node, Tensor]) -> Any:
    """The places of a node's value from those `known` of its inputs: `Places`, or a list of them where it gives several values.

    `constants` are the network's own tensors: an index among them says what goes where. None where nothing is known.
    """
    inputs, args = [n for n in node.all_input_nodes if n in known], cast(Any, node.args)
    if not inputs or not isinstance(node.meta["val"], Tensor | list | tuple):
        return None
    if node.target is operator.getitem:
        parts, index = known[inputs[0]], args[1]
        return parts[index] if isinstance(parts, list) else parts if index == 0 else None
    if not isinstance(node.target, torch._ops.OpOverload) or any(isinstance(known[n], list) for n in inputs):
        return None
    name, first, kinds = node.target._schema.name.removeprefix("aten::"), args[0], range(len(known[inputs[0]]))
    if name == "copy":  # of the second over the first, which a write in place is exported as
        first, inputs = args[1], [n for n in args[1:2] if n in known]
    if (product := contraction(node)) is not None:
        factors = [(i, known[n]) for i, n in enumerate(product.factors) if n in known]
        return tuple(_join([product.places(i, places[kind]) for i, places in factors]) for kind in kinds) if factors else None
    if name in _MOVES or (node.target.is_view and name not in _CASTS):
        return _moved(node, name, known, constants)
    if first in known and any(part in name for part in _RESAMPLED):
        return tuple(_resampled(places, node, name) for places in known[first])
    if first in known and torch.Tag.reduction in node.target.tags:
        return tuple(_averaged(places, node) for places in known[first])
    if inputs and (torch.Tag.pointwise in node.target.tags or name == "copy"):
        ndim = len(sizes(node))
        return tuple(_join([known[n][kind][(None,) * (ndim - known[n][kind].ndim)] for n in inputs]) for kind in kinds)
    return known[first] if first in known and sizes(first) == sizes(node) else None


def _moved(node: fx.Node, name: str, known: Mapping[fx.Node, Any], constants: Mapping[fx.Node, Tensor]) -> Any:
    """Places go where the operation moves values; what it adds around them (padding) is about nothing."""
    args = node.args[: {"pad": 3, "constant_pad_nd": 2}.get(name, len(node.args))]  # without the value to pad with

    def argument(n: fx.Node, kind: int) -> Any:
        value = n.meta["val"]
        if not isinstance(value, Tensor):
            return size(value)
        if not value.is_floating_point() and (index := _constant(n, constants)) is not None:
            return index
        return (known[n][kind] if n in known else torch.tensor(NOTHING)).expand(sizes(n))

    kinds = range(len(next(known[n] for n in node.all_input_nodes if n in known)))
    moved = []
    for kind in kinds:
        given, options = fx.map_arg((args, dict(node.kwargs)), partial(argument, kind=kind))
        try:
            result = node.target(*given, **options)  # type: ignore[operator]
        except (RuntimeError, IndexError, TypeError):
            return None  # where it moves them depends on the images
        moved.append(_core(result) if isinstance(result, Tensor) else [_core(part) for part in result])
    return [tuple(parts) for parts in zip(*moved, strict=True)] if isinstance(moved[0], list) else tuple(moved)


def _constant(node: fx.Node, constants: Mapping[fx.Node, Tensor]) -> Tensor | None:
    """The value of a node that neither images nor their number go into."""
    if node in constants or node.op != "call_function":
        return constants.get(node)
    inputs = {n: _constant(n, constants) for n in node.all_input_nodes}
    if any(value is None for value in inputs.values()):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), inputs.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _resampled(places: Tensor, node: fx.Node, name: str) -> Tensor:
    """A convolution's, a pooling's or an enlargement's result is about the middle of what it sees."""
    before, after = sizes(node.args[0]), sizes(node)  # type: ignore[arg-type]
    spatial = next((int(digit) for digit in "123" if f"{digit}d" in name), len(after) - 2)
    places = places.amax(-spatial - 1, keepdim=True)
    if "_pool" in name and after[-spatial:].numel() == 1 < before[-spatial:].numel() and vary(places, range(-spatial, 0)):
        return torch.full_like(places.amax(tuple(range(-spatial, 0)), keepdim=True), MIXED)
    given = given_arguments(node)
    kernel = sizes(given["weight"])[-spatial:] if "weight" in given else given.get("kernel_size")

    def middle(axis: int, half: int) -> Tensor:
        index = torch.arange(after[axis])
        if kernel is None:  # on an even grid, coarser or finer
            start = index * before[axis] // after[axis]
            return start + (max(before[axis] // after[axis], 1) - 1 + half) // 2
        stride, dilation = (_along(given.get(key) or default, axis) for key, default in (("stride", kernel), ("dilation", 1)))
        reach = dilation * (_along(kernel, axis) - 1)
        padding = given.get("padding", 0)
        padding = {"same": reach // 2, "valid": 0}[padding] if isinstance(padding, str) else _along(padding, axis)
        if "transpose" in name or given.get("transposed"):
            return (index + padding - reach // 2).div(stride, rounding_mode="floor")
        return index * stride - padding + (reach + half) // 2

    def seen(half: int) -> Tensor:
        result = places
        for axis in range(-spatial, 0):
            if result.shape[axis] > 1:
                result = result.index_select(axis, middle(axis, half).clamp(0, before[axis] - 1))
        return result

    # An even kernel has two middles, one of which may lie in padding.
    return max(seen(0), seen(1), key=lambda result: int((result >= FIRST).sum()))


def given_arguments(node: fx.Node) -> dict[str, Any]:
    """A node's arguments by their names, with the operation's defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    names = [argument.name for argument in schema]
    return {a.name: a.default_value for a in schema} | dict(zip(names, node.args, strict=False)) | node.kwargs


def _along(value: Any, axis: int) -> int:
    """Of what an operation takes for all spatial axes, or once for all, what holds along `axis`, counted from the end."""
    return int(value[axis if len(value) > 1 else 0]) if isinstance(value, list | tuple) else int(value)


def _averaged(places: Tensor, node: fx.Node) -> Tensor:
    given = given_arguments(node)
    axes = given.get("dim")
    axes = list(range(places.ndim)) if axes is None or axes == [] else axes if isinstance(axes, list | tuple) else [axes]
    highest, lowest = places.amax(axes, keepdim=True), places.amin(axes, keepdim=True)
    if bool(((highest >= FIRST) & (highest != lowest)).any()) and not vary(_core(highest), range(highest.ndim)):
        highest = torch.full_like(highest, MIXED)  # of everything, not of the neighbors that are pooled into one
    return highest if given.get("keepdim") else highest.squeeze(axes)


# --- softmaxes and the products that read them ---


@dataclass(frozen=True, eq=False)
class SoftmaxUse:
    """A softmax on its way to `product`, which sums values by it if `is_summed`, along the softmax's axis `keys`.

    `free` are the softmax's axes that the product's result keeps and the values lack: the queries, and heads that share values.
    `factor`: on which side of the product the softmax is.
    """

    softmax: fx.Node
    product: fx.Node
    factor: int
    keys: int
    free: tuple[int, ...]
    is_summed: bool


def softmax_axis(node: fx.Node) -> int | None:
    """The axis on which a node's value sums to one, for a softmax, whole or written out; else None."""
    if node.target in SOFTMAX:
        return int(node.args[1]) % node.meta["val"].ndim  # type: ignore[arg-type]
    if node.target is aten.div.Tensor:
        above, below = node.args
        if (
            isinstance(below, fx.Node)
            and below.target is aten.sum.dim_IntList
            and below.args[0] is above
            and above.target is aten.exp.default  # type: ignore[union-attr]
            and len(below.args) > 2
            and below.args[2]
            and len(below.args[1]) == 1  # type: ignore[arg-type]
        ):
            return int(below.args[1][0]) % node.meta["val"].ndim  # type: ignore[index, arg-type]
    return None


def softmax_uses(
    softmax: fx.Node, nodes: Sequence[fx.Node], data: Collection[fx.Node], constants: Mapping[fx.Node, Tensor]
) -> tuple[list[SoftmaxUse], set[fx.Node]]:
    """The products that read `softmax`, in order, and all nodes that its weights pass through.

    Weights pass through what moves, scales, casts or drops them, and through what mixes other axes than their keys, such as
    linear layers and convolutions over heads. `nodes` are those behind it in order; `data` depend on the images.
    """
    keys = softmax_axis(softmax)
    assert keys is not None
    shape = sizes(softmax)
    axes = [
        torch.arange(n, dtype=torch.float64).view([-1 if i == j else 1 for j in range(len(shape))]) for i, n in enumerate(shape)
    ]
    passed: dict[fx.Node, Any] = {softmax: tuple(FIRST + index for index in axes)}
    uses = []
    for node in nodes:
        inputs = [n for n in node.all_input_nodes if n in passed]
        if not inputs:
            continue
        product = contraction(node)
        if product is not None and len(product.factors) == 2 and not isinstance(passed[inputs[0]], list):
            factor = product.factors.index(inputs[0])
            if (use := _use(product, node, factor, passed[inputs[0]], softmax, keys, data)) is not None:
                uses.append(use)
                continue
        places = carry(node, passed, constants)
        if places is not None and (shape[keys] == 1 or any(vary(p[keys], range(p[keys].ndim)) for p in _each(places))):
            passed[node] = places
    return uses, set(passed)


def _each(places: Any) -> list[Places]:
    return places if isinstance(places, list) else [places]


def _use(
    product: Contraction, node: fx.Node, factor: int, places: Places, softmax: fx.Node, keys: int, data: Collection[fx.Node]
) -> SoftmaxUse | None:
    names = product.axes[factor]
    summed = [axis for axis, name in enumerate(names) if name not in product.result]
    own = [names.index(name) for name in product.own(factor)]
    free = tuple(i for i, index in enumerate(places) if i != keys and vary(index, own))
    length = sizes(softmax)[keys]
    is_summed = vary(places[keys], summed) or (
        length == 1 and any(sizes(product.factors[factor])[axis] == 1 for axis in summed)
    )
    # A product with a learned matrix that leaves the keys as they are mixes heads; one with data sums over something else.
    if not is_summed and (product.factors[1 - factor] not in data or not any(vary(index, summed) for index in places)):
        return None
    return SoftmaxUse(softmax, node, factor, keys, free, is_summed)


# --- the image's pixels ---


@dataclass(frozen=True)
class MapPlaces:
    """What an attention map's rows and columns are about, each broadcastable to the map's shape in the graph.

    `FIRST` + the number of the image, of the query's pixel, of the key's pixel, row by row; below `FIRST` see `learned`."""

    image: Tensor
    query: Tensor
    key: Tensor


def learned(place: float, order: Sequence[str]) -> str:
    """What a token is about that is no place: the name of a tensor, of those in `order`, or "average", or "" for nothing."""
    if place == MIXED:
        return "average"
    return order[round((1 - place) * (len(order) + 2)) - 1] if place != NOTHING else ""


def map_places(
    image: fx.Node,
    nodes: Sequence[fx.Node],
    constants: Mapping[fx.Node, Tensor],
    order: Sequence[fx.Node],
    uses: Sequence[SoftmaxUse],
) -> dict[fx.Node, MapPlaces]:
    """The places at every fused attention and every softmax of `uses`.

    `image` (N, C, height, width) is the input; of another shape only images are told apart. `order`: the tensors by first use.
    """
    factor_of = {use.product: use.factor for use in uses}
    axis_of = {use.softmax: use.keys for use in uses}
    known: dict[fx.Node, Any] = {image: _start(sizes(image))}
    for i, node in enumerate(order):
        name = torch.full((1,) * len(sizes(node)), 1 - (i + 1) / (len(order) + 2), dtype=torch.float64)
        known[node] = (torch.full_like(name, NOTHING), name, torch.full_like(name, NOTHING))
    last = {parent: node for node in nodes for parent in node.all_input_nodes}
    result = {}
    for node in nodes:
        places = carry(node, known, constants) if node.target is not FUSED_ATTENTION else None
        if node.target is FUSED_ATTENTION:
            query, key = (known.get(n) for n in node.args[:2])  # type: ignore[arg-type]
            if query is not None and key is not None:
                rows, columns = ([p.amax(-1, keepdim=True) for p in places[:2]] for places in (query, key))
                columns = [p.transpose(-2, -1) for p in columns]
                result[node] = MapPlaces(_core(_join([rows[0], columns[0]])), _core(rows[1]), _core(columns[1]))
                places = (_join([rows[0], columns[0].amax(-1, keepdim=True)]), rows[1], torch.full_like(rows[1], NOTHING))
        elif node in axis_of and places is not None:
            result[node] = softmax_places = _asked(places, axis_of[node])
            places = (softmax_places.image, softmax_places.query, torch.full_like(softmax_places.query, NOTHING))
        elif (product := contraction(node)) is not None and places is not None and len(product.factors) == 2:
            places = _of_product(product, known, factor_of.get(node), places)
        if places is not None:
            known[node] = places
        for parent in node.all_input_nodes:
            if last[parent] is node:
                known.pop(parent, None)
    return result


def _start(shape: torch.Size) -> Places:
    index = torch.arange(shape[0], dtype=torch.float64).view(-1, *(1,) * (len(shape) - 1)) + FIRST
    nothing = torch.full_like(index[:1], NOTHING)
    if len(shape) != 4:
        return index, nothing, nothing
    return index, torch.arange(shape[2] * shape[3], dtype=torch.float64).view(1, 1, *shape[2:]) + FIRST, nothing


def _of_product(product: Contraction, known: Mapping[fx.Node, Any], weights: int | None, joined: Places) -> Places:
    """Results are about what tells them apart: one of the factors. With scores both do, one side is asked about the other.

    `weights`: the factor that are an attention's weights; the result is about their queries.
    """
    sides = [weights, 1 - weights] if weights is not None else [0, 1]
    sides = [side for side in sides if product.factors[side] in known]
    places = {side: product.places(side, known[product.factors[side]][1]) for side in sides}
    tells = {side: vary(places[side], [product.result.index(axis) for axis in product.own(side)]) for side in sides}
    sides.sort(key=lambda side: not tells[side])
    other = places[sides[1]] if len(sides) == 2 and weights is None else torch.full_like(places[sides[0]], NOTHING)
    return joined[0], places[sides[0]], other


def _asked(places: Places, keys: int) -> MapPlaces:
    image, one, other = map(_core, places)
    return MapPlaces(image, other, one) if vary(one, [keys]) and not vary(other, [keys]) else MapPlaces(image, one, other)
