"""Units: what of a network can be cut away whole, and the smaller network without it.

A **unit** is a set of output channels of layers, and of the inputs that read them, which are left out together or not at all: a
hidden unit of an MLP is one row of the first layer and one column of the second; an attention head is its rows of query, key
and value and its columns of the projection. Which belong together is read off the exported graph: every output channel of a
layer gets a number, the numbers travel through the operations as places do (`places`), and where an operation takes two
numbers at once, they are one unit from there on.

`shrink` needs no mask. A unit of which no layer reads anything, for all weights that would are zero, adds nothing to the
network's answer, whatever its own values are: it is cut from every tensor, and the answers stay what they were, to rounding.
"""

import operator
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from snows.config import InputError, first_line
from snows.method.graph import NetworkGraph, Site
from snows.method.operations import BATCH_NORM, CONVOLUTIONS, FUSED_ATTENTION, NORMS, SOFTMAX, TRANSPOSED, aten, execute_node
from snows.method.places import FIRST, NOTHING, carry, contraction, given_arguments, sizes, vary
from snows.method.sparsity import to_matrix

_VIEWS = {"view", "reshape", "_unsafe_view", "expand", "unflatten"}
_SPLITS = {"split", "split_with_sizes", "chunk"}
# Each value by itself, in place.
_SAME = {"dropout", "feature_dropout", "to", "_to_copy", "contiguous", "type_as", "detach", "alias", "clone", "lift_fresh_copy"}
_SUMS = {"add", "sub", "rsub"}
NO_UNITS = torch.zeros(0, dtype=torch.int64)
# By so many units of rounding, relative to their norm, may the answers of a network differ that sums in another order.
_ROUNDING = 1e4
_RESIZED = ("_pool", "upsample", "interpolate")


class UnitError(InputError):
    """The network cannot be cut; the message says where and why."""


@dataclass(frozen=True, eq=False)
class Group:
    """Units that are alike, U of them. `rows`: of each layer that makes them, its output channels, (U, r). `columns`: of each
    layer that reads them, its input channels, (U, c). `kind`: heads of attention, or channels (hidden units too).
    `numbers` (U,) are the units' own."""

    kind: str
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def sites(self) -> list[str]:
        return list(dict.fromkeys([*self.rows, *self.columns]))

    def matrix_columns(self, site: Site) -> Tensor:
        """The columns of the site's matrix (`sparsity.to_matrix`) that read each unit: (U, c)."""
        channels = self.columns[site.name]
        kernel = torch.Size(site.shape[2:]).numel()
        return torch.cat([channels + site.shape[1] * position for position in range(kernel)], 1)


class Units:
    """All units of a network. `groups` can be cut; `reasons` says of every other prunable weight why its outputs stay.

    `numbers` holds, for every value that has units along some of its axes, the number of the unit at each place, of size 1
    along the other axes; 0 where there is none.
    """

    def __init__(self, graph: NetworkGraph) -> None:
        self.graph = graph
        self.data = graph.depends_on_images
        self._site_of = {site.node: site for site in graph.sites}
        self._parent: list[int] = []
        self._made: list[tuple[str, int]] = []  # of each number, the site and its output channel
        self._read: list[tuple[str, Tensor]] = []
        self._reason: dict[int, str] = {}
        self._in_attention: set[int] = set()
        self._known: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node in self.data:
                self._visit(node)
        if graph.output in self._known:
            self._keep(self._numbers(graph.output), "its outputs are the network's answer")
        root = torch.tensor([0, *(self._root(i) + 1 for i in range(len(self._parent)))])
        self.numbers = {node: _each(places, lambda p: root[_indices(p)]) for node, places in self._known.items()}
        self.groups, self.reasons = self._groups()

    # --- the sets of numbers ---

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def _join(self, one: int, other: int) -> None:
        # The earlier stands for both: its layer comes first.
        low, high = sorted((self._root(one), self._root(other)))
        self._parent[high] = low

    def _together(self, first: Tensor, second: Tensor) -> bool:
        """Make one unit of the numbers at the same places. Returns whether they were others."""
        pairs = torch.stack([p.flatten() for p in torch.broadcast_tensors(first, second)], 1).unique(dim=0)
        joined = False
        for one, other in (pairs - FIRST).long().tolist():
            if one >= 0 and other >= 0:
                joined |= self._root(one) != self._root(other)
                self._join(one, other)
            elif one >= 0 or other >= 0:
                self._keep(torch.tensor([max(one, other) + FIRST]), "only some of the values it is combined with are units")
        return joined

    def _along(self, numbers: Tensor, axes: Iterable[int]) -> Tensor:
        """Make one unit of all numbers along `axes`, and leave one of them there."""
        for axis in axes:
            first = numbers.narrow(axis, 0, 1)
            if numbers.shape[axis] > 1:
                self._together(numbers, first)
            numbers = first
        return numbers

    def _keep(self, numbers: Tensor, reason: str) -> None:
        for i in _ids(numbers):
            self._reason.setdefault(i, reason)

    def _numbers(self, node: Any) -> Tensor:
        places = self._known.get(node)
        if places is None or isinstance(places, list):
            return torch.full((1,), NOTHING, dtype=torch.float64)
        return places[0]

    def _has_units(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and bool((self._numbers(node) >= FIRST).any())

    # --- from node to node ---

    def _visit(self, node: fx.Node) -> None:
        if node.target in CONVOLUTIONS or node.target is aten.linear.default:
            self._layer(node)
            return
        of_input = [n for n in node.all_input_nodes if n in self._known]
        if not of_input:
            return
        if node.target is operator.getitem:
            if (places := carry(node, self._known, {})) is not None:
                self._known[node] = places
            return
        name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
        numbers = self._numbers(of_input[0])
        if node.target is FUSED_ATTENTION:
            self._attention(node)
        elif contraction(node) is not None:
            self._product(node)
        elif node.target is BATCH_NORM or name == "prelu":
            self._only_along(node, numbers, 1)
        elif node.target in NORMS or node.target in SOFTMAX:
            self._normalized(node, numbers)
        elif name in _SAME and sizes(of_input[0]) == sizes(node):
            self._known[node] = self._known[of_input[0]]
        elif any(part in name for part in _RESIZED):
            self._only_along(node, numbers, 1)
        elif torch.Tag.reduction in node.target.tags:  # type: ignore[union-attr]
            self._reduced(node, numbers)
        elif torch.Tag.pointwise in node.target.tags:  # type: ignore[union-attr]
            self._pointwise(node, name)
        elif name == "cat":
            self._cat(node)
        elif (places := carry(node, self._known, {})) is not None and (
            name in _SPLITS | _VIEWS
            or node.target.is_view  # type: ignore[union-attr]
            or (len(of_input) == 1 and self._unmoved(places, numbers))
        ):
            self._known[node] = places
        else:
            for n in of_input:
                self._keep(self._numbers(n), f"its outputs pass through {name.strip('_')}, which cannot be cut")

    @staticmethod
    def _unmoved(places: Any, numbers: Tensor) -> bool:
        return not isinstance(places, list) and places[0].shape == numbers.shape and bool((places[0] == numbers).all())

    def _layer(self, node: fx.Node) -> None:
        x, numbers = node.args[0], self._numbers(node.args[0])
        linear = node.target is aten.linear.default
        axis = len(sizes(x)) - 1 if linear else 1  # type: ignore[arg-type]
        along = _span(numbers, sizes(x), axis)  # type: ignore[arg-type]
        if along is None:
            self._keep(numbers, f"its outputs are read by {self.graph.describe(node)} along another axis")
        site = self._site_of.get(node)
        if site is None:
            weight = node.args[1]
            channels = sizes(x)[1] if not linear else 0  # type: ignore[arg-type]
            groups = node.args[6] if len(node.args) > 6 else 1
            depthwise = not linear and node.target not in TRANSPOSED and groups == channels and weight not in self.data
            if depthwise and along is not None and self._has_units(x):
                times = sizes(node)[1] // channels
                shape = [1, -1, *[1] * (len(sizes(node)) - 2)]
                self._known[node] = (along.repeat_interleave(times).view(shape),)
            elif not depthwise:
                self._keep(numbers, f"its outputs are read by {self.graph.describe(node)}, which is no layer that is pruned")
            return
        if along is not None and self._has_units(x):
            self._read.append((site.name, along))
        start, rows = len(self._parent), site.shape[0]
        self._parent += range(start, start + rows)
        self._made += [(site.name, row) for row in range(rows)]
        shape = [1] * len(sizes(node))
        shape[-1 if linear else 1] = rows
        self._known[node] = (torch.arange(start, start + rows, dtype=torch.float64).view(shape) + FIRST,)

    def _only_along(self, node: fx.Node, numbers: Tensor, axis: int) -> None:
        if vary(numbers, [i for i in range(numbers.ndim) if i != axis]):
            self._keep(numbers, f"its outputs lie along several axes where {self.graph.describe(node)} takes them")
        else:
            self._known[node] = (numbers,)

    def _normalized(self, node: fx.Node, numbers: Tensor) -> None:
        given = given_arguments(node)
        if node.target in SOFTMAX:
            axes = [int(given["dim"])]
        elif node.target is aten.group_norm.default:
            axes = [1]
        else:
            axes = list(range(-len(given["normalized_shape"]), 0))
        if vary(numbers, axes):
            self._keep(numbers, f"{self.graph.describe(node)} reads all of its outputs at once")
        self._known[node] = (numbers,)

    def _reduced(self, node: fx.Node, numbers: Tensor) -> None:
        given = given_arguments(node)
        axes = given.get("dim")
        axes = list(range(numbers.ndim)) if axes is None or axes == [] else axes if isinstance(axes, list | tuple) else [axes]
        if vary(numbers, axes):
            self._keep(numbers, f"{self.graph.describe(node)} sums over its outputs")
            return
        numbers = numbers.amax(axes, keepdim=True)
        self._known[node] = (numbers if given.get("keepdim") else numbers.squeeze([int(a) for a in axes]),)

    def _pointwise(self, node: fx.Node, name: str) -> None:
        shape, merged, stream = sizes(node), None, name.rstrip("_") in _SUMS
        inputs = [n for n in node.all_input_nodes if isinstance(n.meta["val"], Tensor)]
        for n in (n for n in inputs if self._has_units(n)):
            numbers = _aligned(self._numbers(n), len(shape))
            if merged is None:
                merged = numbers
                continue
            names = [self._maker(merged), self._maker(numbers)] if stream else []
            if self._together(merged, numbers) and stream:
                self._keep(merged, f"the outputs of {names[0]} and {names[1]} are added: a stream that many layers share")
            merged, numbers = torch.broadcast_tensors(merged, numbers)
            merged = torch.where(merged >= FIRST, merged, numbers)
        if merged is None:
            return
        for n in inputs:
            own = _aligned_sizes(sizes(n), len(shape))
            if self._has_units(n) or all(own[i] == 1 for i in range(len(shape)) if merged.shape[i] > 1):
                continue
            if n in self.data:
                what = "are added to a stream that many layers share" if stream else "meet values that are no units"
                self._keep(merged, f"the outputs of {self._maker(merged)} {what}")
        self._known[node] = (merged,)

    def _maker(self, numbers: Tensor) -> str:
        return self._made[_ids(numbers)[0]][0].removesuffix(".weight")

    def _cat(self, node: fx.Node) -> None:
        parts: Any = node.args[0]
        given = given_arguments(node)
        axis = int(given["dim"]) % len(sizes(node))
        numbers = [_aligned(self._numbers(part), len(sizes(node))) for part in parts]
        if not any(vary(n, [i for i in range(n.ndim) if i != axis]) for n in numbers):
            spans = []
            for part, own in zip(parts, numbers, strict=True):
                spans.append(own.expand([sizes(part)[axis] if i == axis else 1 for i in range(own.ndim)]))
            self._known[node] = (torch.cat(spans, axis),)
            return
        for n in numbers:
            self._keep(n, "its outputs are put side by side with others")

    def _attention(self, node: fx.Node) -> None:
        given = given_arguments(node)
        three = [self._numbers(given[key]) for key in ("query", "key", "value")]
        if given["enable_gqa"] or any(n.ndim != len(sizes(node)) or vary(n, [-2]) for n in three):
            for n in three:
                self._keep(n, f"the heads of {self.graph.describe(node)} cannot be told apart")
            return
        query, key, _ = (self._along(n, [n.ndim - 1]) for n in three)
        self._together(query, key)
        self._together(query, three[2])
        self._in_attention.update(_ids(three[2]))
        self._known[node] = (three[2],)

    def _product(self, node: fx.Node) -> None:
        product = contraction(node)
        assert product is not None
        placed = []
        for i, factor in enumerate(product.factors):
            if not self._has_units(factor):
                continue
            other = [f for f in product.factors if f is not factor]
            names, numbers = product.axes[i], self._numbers(factor)
            summed = [axis for axis, name in enumerate(names) if name not in product.result]
            shared = [
                axis for axis, name in enumerate(names) if any(name in axes for axes in product.axes if axes is not names)
            ]
            if len(product.factors) != 2 or not other or (not self._has_units(other[0]) and vary(numbers, shared)):
                self._keep(numbers, f"{self.graph.describe(node)} multiplies its outputs with values that are no units")
                continue
            if other[0] in self.data:
                self._in_attention.update(_ids(numbers))
            placed.append(product.places(i, self._along(numbers, summed)))
        if len(placed) == 2:
            self._together(*placed)
        if placed:
            # The last one has the axes that its values bring along.
            widest = max(reversed(placed), key=Tensor.numel)
            self._known[node] = (widest,)

    # --- what there is ---

    def _groups(self) -> tuple[list[Group], dict[str, str]]:
        rows: dict[int, list[tuple[str, int]]] = defaultdict(list)
        columns: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for i, made in enumerate(self._made):
            rows[self._root(i)].append(made)
        for name, along in self._read:
            for column, number in enumerate((along - FIRST).long().tolist()):
                if number >= 0:
                    columns[self._root(number)].append((name, column))
        kept = {self._root(i): reason for i, reason in reversed(self._reason.items())}
        heads = {self._root(i) for i in self._in_attention}
        alike: dict[Any, list[int]] = defaultdict(list)
        for unit in rows:
            if unit not in kept and not columns[unit]:
                kept[unit] = "no layer that is pruned reads its outputs"
            if unit not in kept:
                alike[_counts(rows[unit]), _counts(columns[unit]), unit in heads].append(unit)
        groups = []
        for (made, read, is_head), units in alike.items():
            if len(units) < 2:
                kept[units[0]] = "its outputs are one head, and one is the least" if is_head else "it has one output"
                continue
            groups.append(
                Group(
                    "heads" if is_head else "channels",
                    {name: torch.tensor([[r for n, r in rows[unit] if n == name] for unit in units]) for name, _ in made},
                    {name: torch.tensor([[c for n, c in columns[unit] if n == name] for unit in units]) for name, _ in read},
                    torch.tensor(units) + 1,
                )
            )
        reasons: dict[str, str] = {}
        for unit, reason in kept.items():
            for name, _ in rows[unit]:
                reasons.setdefault(name, reason)
        makers = {name for group in groups for name in group.rows}
        return groups, {name: reason for name, reason in reasons.items() if name not in makers}

    def unread(self) -> Tensor:
        """The numbers of the units that nothing reads, because all weights that would are zero; of each group one stays."""
        gone = []
        sites = {site.name: site for site in self.graph.sites}
        for group in self.groups:
            read = torch.zeros(len(group), dtype=torch.bool)
            for name in group.columns:
                used = (to_matrix(self.graph.parameters[name]) != 0).any(0).cpu()
                read |= used[group.matrix_columns(sites[name])].any(1)
            if not bool(read.any()):
                read[0] = True
            gone.append(group.numbers[~read])
        return torch.cat([NO_UNITS, *gone])


def _counts(places: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = defaultdict(int)
    for name, _ in places:
        counts[name] += 1
    return tuple(counts.items())


def _ids(numbers: Tensor) -> list[int]:
    return [i for i in (numbers.unique() - FIRST).long().tolist() if i >= 0]


def _indices(numbers: Tensor) -> Tensor:
    return (numbers - FIRST + 1).clamp(min=0).long()


def _each(places: Any, function: Any) -> Any:
    return [function(part[0]) for part in places] if isinstance(places, list) else function(places[0])


def _aligned(numbers: Tensor, ndim: int) -> Tensor:
    return numbers[(None,) * (ndim - numbers.ndim)]


def _aligned_sizes(shape: torch.Size, ndim: int) -> torch.Size:
    return torch.Size((*[1] * (ndim - len(shape)), *shape))


def _span(numbers: Tensor, shape: torch.Size, axis: int) -> Tensor | None:
    """Numbers along one axis, (n,); None where they vary along another."""
    numbers = _aligned(numbers, len(shape))
    if vary(numbers, [i for i in range(numbers.ndim) if i != axis]):
        return None
    return numbers.flatten().expand(shape[axis])


# --- the smaller network ---


class _Cut:
    """The graph without some units: nodes are copied in order, sizes and tensors made smaller on the way."""

    def __init__(self, units: Units, gone: Tensor, parameters: Mapping[str, Tensor]) -> None:
        self.units, self.graph = units, units.graph
        self.given = self.graph.bind(parameters)
        most = max((int(n.max()) for v in units.numbers.values() for n in (v if isinstance(v, list) else [v])), default=0)
        self.stays = torch.ones(most + 1, dtype=torch.bool)
        self.stays[gone] = False
        self.new = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.copies: dict[fx.Node, Any] = {}
        self.names = self.graph.tensors_by_use
        self._batch_sized: dict[fx.Node, bool] = {}

    def stay(self, node: Any, part: int | None = None) -> list[Tensor | None]:
        """For each axis of a value which places stay, (n,); None for an axis that stays as it is."""
        numbers = self.units.numbers.get(node)
        if numbers is None:
            return [None] * (len(sizes(node)) if isinstance(node, fx.Node) else 0)
        numbers = numbers[part or 0] if isinstance(numbers, list) else numbers
        stays = self.stays[numbers]
        axes: list[Tensor | None] = []
        for axis in range(stays.ndim):
            rest = [i for i in range(stays.ndim) if i != axis]
            line = stays.amax(rest) if rest else stays
            axes.append(None if bool(line.all()) else line)
        grid = torch.ones(1, dtype=torch.bool)
        for axis, along in enumerate(axes):
            if along is not None:
                grid = grid & along.view([-1 if i == axis else 1 for i in range(stays.ndim)])
        if not bool((grid.expand_as(stays) == stays).all()):
            raise UnitError(f"{self.graph.describe(node)} holds its units in no order that can be cut.")
        return axes

    def module(self) -> fx.GraphModule:
        self.copies[self.graph.input] = self.new.placeholder("images")
        for node in self.graph.nodes:
            if node in self.units.data or self._moves_with_batch(node):
                self.copies[node] = self._copy(node)
        self.new.output(self.copies[self.graph.output])
        root = nn.Module()
        for name, tensor in self.tensors.items():
            path, _, leaf = name.rpartition(".")
            owner = root
            for part in path.split(".") if path else []:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            if tensor.is_floating_point() and name in self._parameter_names:
                owner.register_parameter(leaf, nn.Parameter(tensor))
            else:
                owner.register_buffer(leaf, tensor)
        self.new.eliminate_dead_code()
        return fx.GraphModule(root, self.new, "SmallerNetwork").eval()

    @property
    def _parameter_names(self) -> set[str]:
        return {*(site.name for site in self.graph.sites), *self.graph.skipped}

    def _moves_with_batch(self, node: fx.Node) -> bool:
        """Whether a value that no image goes into still depends on how many there are."""
        if node.op != "call_function" or node in self.units.data:
            return node is self.graph.input
        if node not in self._batch_sized:
            self._batch_sized[node] = isinstance(node.meta["val"], torch.SymInt) or any(
                n in self.units.data or self._moves_with_batch(n) for n in node.all_input_nodes
            )
        return self._batch_sized[node]

    def _tensor(self, node: fx.Node, axes: Mapping[int, Tensor | None] | None = None) -> fx.Node:
        """A tensor that is the same for all images, with the places along `axes` that stay."""
        value = self._constant(node)
        for axis, along in (axes or {}).items():
            if along is not None and value.shape[axis] > 1:
                value = value.index_select(axis, along.nonzero().squeeze(1).to(value.device))
        name = self.names.get(node, f"constants.{node.name}")
        while name in self.tensors and not (self.tensors[name].shape == value.shape and torch.equal(self.tensors[name], value)):
            name += "_cut"
        self.tensors.setdefault(name, value.detach().clone())
        return self.new.get_attr(name)

    def _constant(self, node: fx.Node) -> Tensor:
        if node.op != "call_function":
            return self.given[node]
        return execute_node(node, {n: self._constant(n) for n in node.all_input_nodes})

    def _copy(self, node: fx.Node) -> fx.Node:
        target: Any = node.target
        args: list[Any] = list(node.args)
        kwargs = dict(node.kwargs)
        here = node in self.units.numbers
        out = self.stay(node) if here and not isinstance(self.units.numbers[node], list) else []
        name = target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else ""
        cut: dict[fx.Node, dict[int, Tensor | None]] = {}
        if node.target in CONVOLUTIONS or target is aten.linear.default:
            axis = len(sizes(node)) - 1 if target is aten.linear.default else 1
            rows = out[axis] if out else None
            before = self.stay(args[0])
            columns = before[len(before) - 1 if target is aten.linear.default else 1]
            groups = args[6] if len(args) > 6 else 1
            cut[args[1]] = {0: rows, 1: columns if groups == 1 else None}
            if len(args) > 2 and args[2] is not None:
                cut[args[2]] = {0: rows}
            if groups != 1 and columns is not None:
                args[6] = int(columns.sum())
        elif target is BATCH_NORM or name == "prelu":
            along = out[1] if out else None
            cut = {n: {0: along} for n in args[1:5] if isinstance(n, fx.Node)}
        elif name in _VIEWS and any(along is not None for along in out):
            place = 2 if name == "unflatten" else 1
            first = int(args[1]) % len(sizes(args[0])) if name == "unflatten" else 0
            new_sizes = list(args[place])
            for i, size in enumerate(new_sizes):
                along = out[first + i] if first + i < len(out) else None
                if along is None or size == -1:
                    continue
                if not isinstance(size, int):
                    raise UnitError(f"{self.graph.describe(node)} puts units and images on one axis.")
                new_sizes[i] = int(along.sum())
            args[place] = new_sizes
        elif name in _SPLITS:
            axis = int(given_arguments(node)["dim"]) % len(sizes(args[0]))
            along = self.stay(args[0])[axis]
            if along is not None:
                lengths = [part.shape[axis] for part in node.meta["val"]]
                target, kwargs = aten.split_with_sizes.default, {}
                args = [args[0], [int(part.sum()) for part in along.split(lengths)], axis]
        elif name in ("slice", "select"):
            given = given_arguments(node)
            axis = int(given["dim"]) % len(sizes(args[0]))
            along = self.stay(args[0])[axis]
            if along is not None:
                if name == "select":
                    index = int(given["index"]) % len(along)
                    args, kwargs = [args[0], axis, int(along[:index].sum())], {}
                else:
                    start, stop, _ = slice(given["start"], given["end"]).indices(len(along))
                    if given["step"] != 1:
                        raise UnitError(f"{self.graph.describe(node)} takes every other unit.")
                    args, kwargs = [args[0], axis, int(along[:start].sum()), int(along[:stop].sum())], {}
        elif target is FUSED_ATTENTION or torch.Tag.pointwise in getattr(target, "tags", ()):
            for n in node.all_input_nodes:
                if n not in self.copies and isinstance(n.meta["val"], Tensor):
                    own = len(sizes(n))
                    cut[n] = {i + own - len(out): along for i, along in enumerate(out) if i + own - len(out) >= 0}
                    if target is FUSED_ATTENTION:  # scores have keys where values have channels
                        cut[n] = {axis: along for axis, along in cut[n].items() if axis < own - 2}
        mapped = fx.map_arg(
            (tuple(args), kwargs), lambda n: self.copies[n] if n in self.copies else self._tensor(n, cut.get(n))
        )
        return self.new.call_function(target, *mapped)


@torch.no_grad()
def cut(units: Units, gone: Tensor, parameters: Mapping[str, Tensor] | None = None) -> fx.GraphModule:
    """The network without the units whose numbers are `gone`, once it is seen to answer as the whole one does, in which no
    layer reads them. `parameters`: tensors by name that take the place of the graph's own.

    Raises `UnitError` where it cannot be cut, or answers otherwise.
    """
    parameters = parameters or {}
    try:
        smaller = _Cut(units, gone, parameters).module()
        images = units.graph.noise_images()
        expected, answer = units.graph.run(images, parameters)[0], smaller(images)
    except UnitError:
        raise
    except Exception as error:  # any operation may refuse other sizes, with any error of its own
        raise UnitError(f"The smaller network cannot run: {first_line(error)}.") from error
    error_allowed = _ROUNDING * torch.finfo(expected.dtype).eps * float(expected.norm())
    if answer.shape != expected.shape or not float((answer - expected).norm()) <= error_allowed:
        raise UnitError("The smaller network gives other answers than the pruned one.")
    return smaller


def removable(graph: NetworkGraph) -> Units:
    """The units of a network. Half of every group is cut once on trial: all groups together, and where that fails, one by one.
    What cannot be cut is among the `reasons`."""
    units = Units(graph)
    if _obstacle(units, units.groups) is not None:
        for group in list(units.groups):
            if (reason := _obstacle(units, [group])) is not None:
                units.groups.remove(group)
                units.reasons |= dict.fromkeys(group.rows, reason[0].lower() + reason[1:].rstrip("."))
    return units


def _obstacle(units: Units, groups: Collection[Group]) -> str | None:
    try:
        cut_any(units, [(group, len(group) - len(group) // 2) for group in groups])
    except UnitError as error:
        return str(error)
    return None


def cut_any(units: Units, counts: Iterable[tuple[Group, int]]) -> fx.GraphModule:
    """The network without so many units of each group, whichever they are: of the sizes that any other choice leaves. Raises
    `UnitError`."""
    parameters: dict[str, Tensor] = {}
    generator, gone = torch.Generator().manual_seed(0), [NO_UNITS]
    for group, count in counts:
        # As a choice may turn out: units that lie together can be cut where others cannot.
        chosen = torch.randperm(len(group), generator=generator)[:count]
        gone.append(group.numbers[chosen])
        for name, channels in group.columns.items():
            weight = parameters.setdefault(name, units.graph.parameters[name].clone())
            weight[:, channels[chosen].flatten()] = 0
    return cut(units, torch.cat(gone), parameters)


def shrink(module: nn.Module, example: Tensor) -> nn.Module:
    """`module` without the units that no layer reads: a smaller dense network that gives the same answers to rounding.

    `example` (B, C, H, W) are images of its size. The result is a `torch.fx.GraphModule`: plain PyTorch operations in eval
    mode (a batch norm keeps its statistics, nothing is dropped), its tensors under the names they had. It can be saved,
    exported and moved like any module. Raises `ExportError` for a network that cannot be followed, `UnitError` for one that
    cannot be cut, both `InputError`.

    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> with torch.no_grad():
    ...     network[2].weight[:, :6] = 0  # nothing reads six of the eight hidden units
    >>> smaller = snows.shrink(network, torch.randn(2, 4))
    >>> {name: tuple(tensor.shape) for name, tensor in smaller.state_dict().items() if "weight" in name}
    {'0.weight': (2, 4), '2.weight': (2, 2)}
    """
    graph = NetworkGraph.export(module, example, layout=torch.contiguous_format)
    units = Units(graph)
    return cut(units, units.unread())
