"""`NetworkGraph`: any exportable network as an ordered list of operations, and the windows SNOWS re-fits.

`torch.export` sees functional calls that module hooks miss (residual adds, `F.relu`, fused attention) and names every operation
by the module it came from. On that list stand three things:

* a **Site** is a weight that can be pruned: of a linear layer or an ungrouped convolution, used once;
* a **Window** is the slice of the network from a site's own output to the K-th next counted operation that depends on it. It is
  a pure function of the weight, and the only thing the solver ever differentiates (paper section 3, equation 5);
* a **Frontier** walks the calibration set through the graph once, holding at each moment only the values later nodes still
  need.

Counted operations are convolution, linear, activation, attention and (layer, group) normalization. Batch norms, adds,
reshapes, dropout and pooling are not. A convolution's value is read before its batch norm: read after it, ResNet-20 at 1:16 and
K = 3 lost 1.6 points.
"""

import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves

from snows.config import InputError, first_line
from snows.method.operations import (
    ACTIVATIONS,
    BATCH_NORM,
    CONVOLUTIONS,
    FUSED_ATTENTION,
    NORMS,
    TRANSPOSED,
    VIEWS,
    Values,
    aten,
    execute_in_window,
    execute_node,
    move,
)
from snows.method.places import MapPlaces, SoftmaxUse, map_places, softmax_axis, softmax_uses
from snows.method.tracing import evaluating, exporting
from snows.process import is_out_of_memory


class ExportError(InputError):
    """The network cannot be turned into a graph; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Site:
    """A prunable weight. `node` is the operation that uses it; `shape` is (out, in) or (out, in, *kernel)."""

    name: str
    module: str
    kind: str  # linear, conv1d, conv2d, conv3d
    shape: tuple[int, ...]
    node: fx.Node = field(repr=False)

    @property
    def input(self) -> fx.Node:
        return self.node.args[0]  # type: ignore[return-value]


def _computed_from(way: str) -> str:
    return (
        f"the layer's weight is computed from it ({way}), so weights that are zero here would not be zero there; fold that "
        "into the weight before pruning"
    )


def _alike(first: Tensor, second: Tensor) -> bool:
    finite = second[torch.isfinite(second)]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    precision = torch.finfo(second.dtype).eps if second.is_floating_point() else 0.0
    return torch.allclose(first, second, rtol=0, atol=1e4 * precision * scale, equal_nan=True)


def _for_one_image(size: int | torch.SymInt) -> int:
    """A dimension of a value as it is for a batch of one image: the batch size is the only thing that is left open."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _image_axis(node: fx.Node) -> tuple[int, int]:
    """The axis along which a value is longer for more images; and how many places of one image lie on it outside of the images.

    An attention module of PyTorch's folds (tokens, images, …) to (tokens · images, …), a windowed one (images, windows, …).
    What is folded is read in the order of memory, so what lies before the images there stays before them.
    """
    sizes = node.meta["val"].shape
    axis = next(axis for axis, size in enumerate(sizes) if not isinstance(size, int))
    if (folded := _for_one_image(sizes[axis])) == 1:
        return axis, 1
    parent = next(p for p in node.all_input_nodes if not all(isinstance(size, int) for size in p.meta["val"].shape))
    place, before = _image_axis(parent)
    theirs = parent.meta["val"].shape
    if _for_one_image(theirs[place]) == folded:  # folded earlier
        return axis, before
    return axis, before * math.prod(map(_for_one_image, theirs[:place])) // math.prod(map(_for_one_image, sizes[:axis]))


def _operation(node: fx.Node) -> str:
    """The operation's name for a person: `aten.reshape.default` is `reshape`."""
    return getattr(node.target, "__name__", str(node.target)).removeprefix("aten.").split(".")[0].strip("_")


class NetworkGraph:
    """One exported network: ordered operations, tensors by name, and the sites where it can be pruned.

    `parameters` maps names to the module's own tensors (parameters, buffers, constants); nothing here changes them. Every
    method that runs operations takes the tensors to use, so that a pruned network is this graph with other weights.

    `layout` is how images and convolutions' weights lie in memory here, whatever the module's own layout: a private matter, by
    default the faster one.

    `sites` are the prunable weights in order, each with its `name`, `kind` and `shape`, (out, in) or (out, in, *kernel);
    `skipped` says of each other weight, by name, why it is none. Made by `export`, from images (B, ...) of the network's size,
    which raises `ExportError` (an `InputError`) for a network that cannot be followed.

    >>> network = snows.load_model("resnet20-fashion")
    >>> graph = snows.NetworkGraph.export(network.module, torch.zeros(2, *network.input_size))
    >>> len(graph.sites), graph.sites[0].name, graph.sites[0].shape
    (22, 'conv1.weight', (16, 1, 3, 3))
    >>> graph.run(torch.zeros(5, *network.input_size))[0].shape
    torch.Size([5, 10])
    """

    def __init__(self, program: torch.export.ExportedProgram, layout: torch.memory_format | None = None) -> None:
        signature = program.graph_signature
        self.parameters: dict[str, Tensor] = {}
        self._tensor_nodes: dict[str, fx.Node] = {}
        placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        inputs = []
        for spec in signature.input_specs:
            node = placeholders[spec.arg.name]
            if spec.kind is InputKind.USER_INPUT:
                inputs.append(node)
                continue
            source = program.state_dict if spec.target in program.state_dict else program.constants
            self.parameters[spec.target] = source[spec.target].detach()
            self._tensor_nodes[spec.target] = node
        if len(inputs) != 1:
            raise ExportError(f"The network takes {len(inputs)} inputs; only networks with one image input can be explored.")
        self.input = inputs[0]

        results = [spec.arg.name for spec in signature.output_specs if spec.kind.name == "USER_OUTPUT"]
        if len(results) != 1:
            raise ExportError(f"The network returns {len(results)} tensors; wrap it in a module that returns the logits alone.")
        self.output = next(n for n in program.graph.nodes if n.name == results[0])

        needed, stack = {self.output}, [self.output]
        while stack:
            for parent in stack.pop().all_input_nodes:
                if parent not in needed:
                    needed.add(parent)
                    stack.append(parent)
        self.nodes: list[fx.Node] = [n for n in program.graph.nodes if n.op == "call_function" and n in needed]
        for node in self.nodes:
            if node.target in VIEWS:
                # Exported with the strides of one kernel (fused attention), run with those of another (its plain form).
                node.target = aten.reshape.default
        self.index: dict[fx.Node, int] = {n: i for i, n in enumerate(self.nodes)}
        self.users: dict[fx.Node, list[fx.Node]] = {
            n: [u for u in n.users if u in self.index] for n in (*placeholders.values(), *self.nodes)
        }
        self.layout = self._faster_layout() if layout is None else layout
        self.sites, self.skipped = self._find_sites({s.target for s in signature.input_specs if s.kind is InputKind.PARAMETER})
        # After the search for sites, which tells tied weights by their storage.
        self.parameters = {name: t.contiguous(memory_format=self._layout_of(t)) for name, t in self.parameters.items()}

    def image_bytes(self, node: fx.Node) -> int:
        """Bytes of a node's value for one image; a value that is the same for all images has none."""
        parts = node.meta["val"] if isinstance(node.meta["val"], list | tuple) else [node.meta["val"]]
        total = 0
        for part in parts:
            if isinstance(part, Tensor) and any(isinstance(size, torch.SymInt) for size in part.shape):
                total += math.prod(_for_one_image(size) for size in part.shape) * part.element_size()
        return total

    @classmethod
    def export(cls, module: nn.Module, example: Tensor, layout: torch.memory_format | None = None) -> "NetworkGraph":
        """Export `module` in eval mode. `example`: (B, ...) with B >= 2, on the module's device; its batch size becomes free.
        `layout`: as the graph is to be run, by default the faster one in which it runs.

        Raises `ExportError` with the reason in a sentence when the network's Python code cannot be followed.
        """
        # A batch of one would be taken for a constant; and of a view the exporter asks things of what it is a view of.
        example = torch.cat([example, example]) if example.shape[0] < 2 else example.clone()
        try:
            with exporting(), torch.no_grad(), evaluating(module):
                program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
                # An empty table makes in-place operations functional and leaves everything else whole.
                program = program.run_decompositions({})
        except Exception as error:  # the exporter raises dozens of unrelated types, from any layer
            if is_out_of_memory(error):
                raise
            raise ExportError(
                f"This network cannot be exported to a graph ({first_line(error)}). Networks whose Python code branches on the "
                "values or the number of images (`len(x)`; `x.shape[0]` is fine) cannot be followed; rewrite that part, or "
                "choose another network."
            ) from error
        graph = cls(program, layout)
        if layout is None and graph.layout is not torch.contiguous_format:
            try:
                graph.run(example)
            except RuntimeError as error:  # an operation that asks for the module's own strides
                if is_out_of_memory(error):
                    raise
                graph = cls(program, torch.contiguous_format)
        graph._check_answers(module)
        return graph

    @torch.no_grad()
    def _check_answers(self, module: nn.Module) -> None:
        """Raise `ExportError` where the graph does not answer as `module` does, or not the same twice."""
        images = self.noise_images()
        with evaluating(module):
            expected = next(leaf for leaf in tree_leaves(module(images)) if isinstance(leaf, Tensor))
        first, second = self.run(images)[0], self.run(images)[0]
        if not _alike(first, second):
            random = [n for n in self.nodes if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ())]
            places = ", ".join(dict.fromkeys(self.describe(n) for n in random[:3])) or "somewhere in it"
            raise ExportError(
                f"The network answers differently each time, also in eval mode: something is drawn at random in {places}. "
                "Let it draw only while training (`F.dropout(x, p, self.training)`)."
            )
        if not _alike(first, expected):
            raise ExportError(
                "The exported graph gives other answers than the network itself, so it cannot stand in for it. The network's "
                "code probably depends on something that changes between two calls; make that part of its input or a constant."
            )

    # --- what the nodes are ---

    @cached_property
    def num_operations(self) -> int:
        """How many counted operations there are: no window looks further ahead."""
        return sum(self.kind(node) is not None for node in self.nodes)

    def path(self, node: fx.Node) -> str:
        """The dotted path of the module that ran `node`, e.g. `blocks.0.attn`."""
        for path, _ in reversed((node.meta.get("nn_module_stack") or {}).values()):
            return path
        return ""

    def kind(self, node: fx.Node) -> str | None:
        """The counted operation that `node` is, or None."""
        if node.target in CONVOLUTIONS:
            return "convolution"
        if node.target is aten.linear.default:
            return "linear"
        if node.target in ACTIVATIONS:
            return "activation"
        if node.target in NORMS:
            return "layer_norm"
        return "attention" if node.target is FUSED_ATTENTION or node in self._softmax_products else None

    @cached_property
    def depends_on_images(self) -> set[fx.Node]:
        """The values that the images' content goes into."""
        dependent = {self.input}
        for node in self.nodes:
            # The batch size comes from the images, their content does not.
            if not isinstance(node.meta["val"], torch.SymInt) and not dependent.isdisjoint(node.all_input_nodes):
                dependent.add(node)
        return dependent

    @cached_property
    def softmaxes(self) -> dict[fx.Node, tuple[list[SoftmaxUse], set[fx.Node]]]:
        """Every softmax that depends on the images or that a product reads, in order, with the `softmax_uses` of it."""
        data, constants, uses = self.depends_on_images, self.bind({}), {}
        for i, node in enumerate(self.nodes):
            if softmax_axis(node) is not None:
                uses[node] = softmax_uses(node, self.nodes[i + 1 :], data, constants)
        return {node: products_and_nodes for node, products_and_nodes in uses.items() if node in data or products_and_nodes[0]}

    @cached_property
    def _softmax_products(self) -> set[fx.Node]:
        return {use.product for uses, _ in self.softmaxes.values() for use in uses}

    @cached_property
    def map_places(self) -> dict[fx.Node, MapPlaces]:
        """What the rows and columns of every attention map are about."""
        uses = [use for uses, _ in self.softmaxes.values() for use in uses]
        return map_places(self.input, self.nodes, self.bind({}), list(self.tensors_by_use), uses)

    @cached_property
    def tensors_by_use(self) -> dict[fx.Node, str]:
        """The names of the network's tensors by node, the one that is used first before the others."""
        first = {node: self.index[users[0]] for node, users in self.users.items() if users}
        used = [(node, name) for name, node in self._tensor_nodes.items() if node in first]
        return dict(sorted(used, key=lambda tensor: first[tensor[0]]))

    def value_node(self, node: fx.Node) -> fx.Node:
        """Where a counted operation hands on its value: after the batch norm of a convolution, else at the node itself."""
        users = self.users[node]
        if node.target in CONVOLUTIONS and len(users) == 1 and users[0].target is BATCH_NORM:
            return next(u for u in self.users[users[0]] if u.target is operator.getitem and u.args[1] == 0)
        return node

    def describe(self, node: fx.Node) -> str:
        """`path (kind)`, the name of a counted operation for a person."""
        path = self.path(node)
        kind = (self.kind(node) or _operation(node)).replace("_", " ")
        return f"{path} ({kind})" if path else kind

    def _find_sites(self, parameter_names: Collection[str]) -> tuple[list[Site], dict[str, str]]:
        sites, skipped = [], {}
        for name, tensor in self.parameters.items():
            if name not in parameter_names:
                continue
            users = self.users[self._tensor_nodes[name]]
            reason = None
            if tensor.ndim < 2:
                reason = "one value per channel (a bias or a scale), too few to be worth pruning"
            elif not users:
                reason = self._twin(name) or "not used when the network runs in eval mode"
            elif len(users) > 1 and (way := self._way_to_a_layer(users[0])) is not None:
                reason = _computed_from(way)
            elif len(users) > 1:
                reason = f"shared by {len(users)} operations, so no single window belongs to it"
            else:
                reason = self._obstacle(users[0], self._tensor_nodes[name])
            if reason is not None:
                skipped[name] = reason
                continue
            node = users[0]
            kind = "linear" if node.target is aten.linear.default else f"conv{tensor.ndim - 2}d"
            sites.append(Site(name, name.removesuffix(".weight"), kind, tuple(tensor.shape), node))
        return sorted(sites, key=lambda s: self.index[s.node]), skipped

    def _twin(self, name: str) -> str | None:
        # Tied weights are exported as one tensor under one of their names.
        own = self.parameters[name].data_ptr()
        twins = (n for n, t in self.parameters.items() if t.data_ptr() == own and self.users[self._tensor_nodes[n]])
        return next((f"the same tensor as {twin}" for twin in twins), None)

    def _obstacle(self, node: fx.Node, weight: fx.Node) -> str | None:
        if node.target is aten.linear.default:
            return self._moving_bias(node) if node.args[1] is weight else "the input of a linear layer, not its weight"
        if node.target in CONVOLUTIONS:
            if node.args[1] is not weight:
                return "the input of a convolution, not its weight"
            if node.target in TRANSPOSED:
                return "a transposed convolution; only ordinary convolutions and linear layers are pruned"
            groups = node.args[6] if len(node.args) > 6 else 1
            if groups != 1:
                inputs = weight.meta["val"].shape[1]
                return (
                    f"a grouped convolution ({groups} groups): each output sees only {inputs} input channel{'s'[: inputs > 1]}"
                )
            return self._moving_bias(node)
        way = self._way_to_a_layer(node)
        if way is not None:
            return _computed_from(way)
        operation = _operation(node)
        return f"used by {operation}, not as the weight of a linear layer or convolution"

    def _moving_bias(self, node: fx.Node) -> str | None:
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        if not isinstance(bias, fx.Node) or bias not in self.depends_on_images:
            return None
        return "its bias is computed from the image, and only a bias that is the same for all images can be fitted to"

    def _way_to_a_layer(self, node: fx.Node) -> str | None:
        """The operations between a parameter and the layer whose weight they make of it, from `node`, the first of them."""
        names, reached = [_operation(node)], node
        while reached not in self.depends_on_images and self.users[reached]:
            user = self.users[reached][0]
            if (user.target in CONVOLUTIONS or user.target is aten.linear.default) and user.args[1] is reached:
                return " → ".join(dict.fromkeys(name for name in names if name != "getitem"))
            names.append(_operation(user))
            reached = user
        return None

    def positions(self, site: Site) -> int:
        """At how many places the layer is applied in one image: output pixels of a convolution, tokens, 1 after pooling."""
        sizes = [_for_one_image(size) for size in site.node.meta["val"].shape]
        return math.prod(sizes) // site.shape[0]

    @property
    def classifiers(self) -> list[Site]:
        """The sites that no counted operation follows: the last layer, and its twins where the network has several heads."""
        return [site for site in self.sites if len(self.window(site, 1).captured) == 1]

    # --- running it ---

    def _faster_layout(self) -> torch.memory_format:
        # Convolutions that look around are faster channels-last (1.5x for ResNet-20 on an AVX-512 CPU); a patch embedding alone
        # does not make a network convolutional.
        for node in self.nodes:
            if node.target in (aten.conv2d.default, aten.conv2d.padding):
                kernel = node.args[1].meta["val"].shape[2:]  # type: ignore[union-attr]
                stride = (node.args[3:4] or ([1],))[0]
                if kernel[0] > stride[0] and self.input.meta["val"].ndim == 4:  # type: ignore[index]
                    return torch.channels_last
        return torch.contiguous_format

    def _layout_of(self, tensor: Tensor) -> torch.memory_format:
        return self.layout if tensor.ndim == 4 else torch.contiguous_format

    def noise_images(self) -> Tensor:
        """Two images of noise, always the same, to try things on; of tokens, the first two by turns of chance."""
        value, generator = self.input.meta["val"], torch.Generator().manual_seed(0)
        shape = (2, *value.shape[1:])
        noise = value.dtype.is_floating_point
        images = torch.randn(shape, generator=generator) if noise else torch.randint(2, shape, generator=generator)
        device = next((t.device for t in self.parameters.values()), value.device)
        return images.to(device, value.dtype)

    def laid_out(self, images: Tensor) -> Tensor:
        """`images` as they lie in memory here."""
        return images.contiguous(memory_format=self._layout_of(images))

    def bind(self, parameters: Mapping[str, Tensor]) -> Values:
        """Values for the tensor placeholders from tensors by name; names left out keep the module's own."""
        return {node: parameters.get(name, self.parameters[name]) for name, node in self._tensor_nodes.items()}

    def tensor_node(self, name: str) -> fx.Node:
        return self._tensor_nodes[name]

    @torch.no_grad()
    def run(
        self, images: Tensor, parameters: Mapping[str, Tensor] | None = None, capture: Collection[fx.Node] = ()
    ) -> tuple[Tensor, Values]:
        """Run every node in order: the network's output and the values at the `capture` nodes. Equals the module bit for
        bit where their layouts are the same."""
        values: Values = self.bind(parameters or {})
        values[self.input] = self.laid_out(images)
        captured = set(capture)
        for i, node in enumerate(self.nodes):
            values[node] = execute_node(node, values)
            for parent in node.all_input_nodes:
                if parent in self.index and parent not in captured and parent is not self.output and self.last_use(parent) <= i:
                    del values[parent]
        return values[self.output], {node: values[node] for node in captured}

    def last_use(self, node: fx.Node) -> int:
        """Position of the last operation that reads `node`; the network's result counts as read at the very end."""
        if node is self.output:
            return len(self.nodes)
        return max((self.index[u] for u in self.users[node]), default=-1)

    def window(self, site: Site, k_steps: int) -> "Window":
        """The window of `site` over the next `k_steps` counted operations, fewer where the network ends first."""
        if k_steps < 0:
            raise ValueError(f"k_steps must be 0 or more, but is {k_steps}.")
        dependent, captured, count = {site.node}, [site.node], 0
        for node in self.nodes[self.index[site.node] + 1 :]:
            if count == k_steps:
                break
            if any(parent in dependent for parent in node.all_input_nodes):
                dependent.add(node)
                if self.kind(node) is not None:
                    captured.append(node)
                    count += 1
        return Window(self, [site], captured)


# Values that a window keeps for one pass and its way back, over those that it makes: about as much again for what activations
# and attention keep, and for the values on the way back.
SAVED = 3


class Window:
    """The slice of a network that the K-step objective of one weight sees, or a joint objective of several.

    `captured` is where values are read: for one site its own output and those of the next K operations. `outside` are the
    values that the window takes from the network before it: they do not depend on the weights. A weight has the parameter's
    shape; those of several sites are one flat vector, one after the other.
    """

    def __init__(self, graph: NetworkGraph, sites: Sequence[Site], captured: Sequence[fx.Node]) -> None:
        self.graph = graph
        self.sites, self.site = list(sites), sites[0]
        self.operations = [graph.describe(n) for n in captured]
        self.captured = list(captured)
        self.weights = [graph.tensor_node(site.name) for site in sites]

        # Everything the captured values need, split by whether it depends on the weights.
        start = graph.index[self.site.node]
        needed, stack = set(self.captured), list(self.captured)
        while stack:
            for parent in stack.pop().all_input_nodes:
                if graph.index.get(parent, -1) >= start and parent not in needed:
                    needed.add(parent)
                    stack.append(parent)
        dependent = set(self.weights)
        self.nodes: list[fx.Node] = []
        self._side: list[fx.Node] = []  # later in order than the first site, but independent (a shortcut branch)
        for node in sorted(needed, key=graph.index.__getitem__):
            if any(parent in dependent for parent in node.all_input_nodes):
                dependent.add(node)
                self.nodes.append(node)
            else:
                self._side.append(node)
        side = set(self._side)
        reads = {p for n in (*self.nodes, *self._side) for p in n.all_input_nodes} - dependent - side
        self.outside = sorted((n for n in reads if n in graph.index or n is graph.input), key=lambda n: graph.index.get(n, -1))
        self._tensors = [n for n in reads if n not in graph.index and n is not graph.input]

    @property
    def end(self) -> int:
        """Position one past the last node that the window runs."""
        return max(self.graph.index[n] for n in self.nodes) + 1

    @property
    def image_bytes(self) -> int:
        """Bytes of all values that the window makes for one image."""
        return sum(map(self.graph.image_bytes, self.nodes))

    @property
    def target_bytes(self) -> int:
        """Bytes of the values that the window should reproduce, for one image."""
        return sum(map(self.graph.image_bytes, self.captured))

    def by_image(self, values: Sequence[Tensor], images: int) -> list[Tensor]:
        """Of the values at the captured nodes, made of so many images, views with the images first: (images, …)."""
        views = []
        for node, value in zip(self.captured, values, strict=True):
            axis, before = _image_axis(node)
            views.append(value.unflatten(axis, (before, images, -1)).movedim(axis + 1, 0))
        return views

    @torch.no_grad()
    def inputs(self, values: Mapping[fx.Node, Any], parameters: Mapping[fx.Node, Any]) -> Values:
        """What `outputs` needs: `values` at the `outside` nodes, plus what follows from them without the weight.

        `parameters` are tensors by node as `NetworkGraph.bind` gives them.
        """
        local: Values = {n: values[n] for n in self.outside} | {n: parameters[n] for n in self._tensors}
        for node in self._side:
            local[node] = execute_node(node, local)
        reads = {p for n in self.nodes for p in n.all_input_nodes}
        return {n: v for n, v in local.items() if n in reads}

    def assign(self, weight: Tensor) -> Values:
        """A weight, or its tangent, at the node that stands for it; of several, each one's part."""
        if len(self.sites) == 1:
            return {self.weights[0]: weight}
        parts = weight.split([math.prod(site.shape) for site in self.sites])
        return {n: part.view(site.shape) for n, part, site in zip(self.weights, parts, self.sites, strict=True)}

    def outputs(self, weight: Tensor, inputs: Mapping[fx.Node, Any]) -> list[Tensor]:
        """The values at the captured nodes: a pure function of `weight`."""
        values = self.values(weight, inputs)
        return [values[n] for n in self.captured]

    def values(self, weight: Tensor, inputs: Mapping[fx.Node, Any]) -> Values:
        """The values at all of the window's nodes and inputs."""
        values: Values = {**inputs, **self.assign(weight)}
        for node in self.nodes:
            values[node] = execute_in_window(node, values)
        return values


class Frontier:
    """The calibration set on its way through one network, in batches, kept on `storage` between steps.

    `advance` runs every batch up to a position and drops what no later node reads, so memory is one cut through the network,
    not its depth, and reaching the end costs one forward pass in all.
    """

    def __init__(self, graph: NetworkGraph, batches: Sequence[Tensor], storage: torch.device | str = "cpu") -> None:
        self.graph = graph
        self.position = 0
        self.storage = torch.device(storage)
        self._batches: list[Values] = [{graph.input: graph.laid_out(b.to(self.storage))} for b in batches]

    def __len__(self) -> int:
        return len(self._batches)

    @torch.no_grad()
    def advance(
        self,
        stop: int,
        parameters: Values,
        device: torch.device,
        keep: Collection[fx.Node] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Run nodes up to (not including) position `stop` with tensors from `NetworkGraph.bind`.

        Values at `keep` stay although nothing later reads them. `check` is called between batches and may raise to cancel.
        """
        nodes_to_keep, graph = set(keep), self.graph
        nodes = graph.nodes[self.position : stop]
        for i, batch in enumerate(self._batches):
            check()
            values = {n: move(v, device) for n, v in batch.items()} if nodes else batch
            for position, node in enumerate(nodes, self.position):
                values[node] = execute_node(node, _Layers(values, parameters))
                for parent in node.all_input_nodes:
                    if parent in values and parent not in nodes_to_keep and graph.last_use(parent) <= position:
                        del values[parent]
            self._batches[i] = {
                n: move(v, self.storage)
                for n, v in values.items()
                if n in nodes_to_keep or graph.last_use(n) >= max(stop, self.position)
            }
        self.position = max(stop, self.position)

    def values(self, index: int) -> Values:
        """The live values of one batch, on `storage`."""
        return self._batches[index]


class _Layers(Mapping[fx.Node, Any]):
    # Two mappings looked up in turn; collections.ChainMap would do but for a ten-fold slower __getitem__.
    def __init__(self, first: Mapping[fx.Node, Any], second: Mapping[fx.Node, Any]) -> None:
        self._first, self._second = first, second

    def __getitem__(self, node: fx.Node) -> Any:
        return self._first[node] if node in self._first else self._second[node]

    def __iter__(self) -> Iterator[fx.Node]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError
