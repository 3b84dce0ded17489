"""The derivative of a window at one weight, built once and applied to many vectors.

Conjugate gradient asks for products with the same Jacobian J dozens of times. PyTorch's forward mode runs the function again
for each (value and derivative together), and the trick of differentiating a backward pass twice does work on values that no one
reads. Here the window runs once. `pull` (Jᵀu) replays the backward pass of that run; `push` (Jv) sends a tangent through the
nodes with the rule each deserves: an operation that is linear in its input is applied to the tangent itself, an elementwise one
multiplies by a slope computed once, and for any other PyTorch's own forward mode differentiates that single operation.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from snows.method.graph import Window
from snows.method.operations import (
    ACTIVATIONS,
    BATCH_NORM,
    CONVOLUTIONS,
    FUSED_ATTENTION,
    IN_WINDOWS,
    arguments,
    aten,
    batch_norm_affine,
    each_group,
    fused_attention_map,
)

Tangents = Mapping[fx.Node, Any]

# Linear in their first argument, which alone may depend on the weight; the rest are shapes and numbers.
_LINEAR_IN_FIRST = {
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.clone.default,
    aten.expand.default,
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.unbind.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.flatten.using_ints,
    aten.roll.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    operator.getitem,
}


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _moves(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


@torch.enable_grad()
def _by_two_pulls(
    function: Callable[..., tuple[Tensor, ...]], primals: tuple[Tensor, ...], vectors: tuple[Tensor, ...]
) -> list[Tensor]:
    """Jv from reverse mode alone: u -> Jᵀu is linear, and its own transpose is J."""
    inputs = [x.detach().requires_grad_() for x in primals]
    outputs = function(*inputs)
    cotangents = [torch.zeros_like(y, requires_grad=True) for y in outputs]
    pulled = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True, materialize_grads=True)
    return list(torch.autograd.grad(pulled, cotangents, vectors, materialize_grads=True))


def gradient_of(outputs: Sequence[Tensor], weight: Tensor, cotangents: Sequence[Tensor], **options: bool) -> Tensor:
    """Jᵀu of a window's `outputs`. The first depends on `weight`; a later one may not, where all it has of it is an index."""
    pairs = [(y, u) for y, u in zip(outputs, cotangents, strict=True) if y.requires_grad]
    return torch.autograd.grad([y for y, _ in pairs], weight, [u for _, u in pairs], **options)[0]


class Linearization:
    """`outputs` are the window's values at `weight`, k = 0 … K; `push` and `pull` apply their Jacobian J and its transpose."""

    def __init__(self, window: Window, weight: Tensor, inputs: Mapping[fx.Node, Any]) -> None:
        self._window = window
        self._weight = weight.detach().requires_grad_()
        self._values = window.values(self._weight, inputs)
        self.outputs: list[Tensor] = [self._values[n] for n in window.captured]
        self._slopes = {n: self._slope(n) for n in window.nodes if n.target in ACTIVATIONS}
        self._statistics = {n: self._layer_statistics(n) for n in window.nodes if n.target is aten.layer_norm.default}
        self._maps = {n: self._attention_map(n) for n in window.nodes if n.target is FUSED_ATTENTION}
        self._values = {n: v.detach() if isinstance(v, Tensor) else v for n, v in self._values.items()}

    def _slope(self, node: fx.Node) -> Tensor:
        args, kwargs = arguments(node, self._values)
        x = args[0].detach().requires_grad_()
        with torch.enable_grad():
            y = IN_WINDOWS.get(node.target, node.target)(x, *args[1:], **kwargs)  # type: ignore[operator]
        return torch.autograd.grad(y, x, torch.ones_like(y))[0]

    def pull(self, cotangents: Sequence[Tensor]) -> Tensor:
        """Jᵀu: one tensor for each output to one of the weight's shape."""
        return gradient_of(self.outputs, self._weight, cotangents, retain_graph=True)

    @torch.no_grad()
    def push(self, vector: Tensor) -> list[Tensor]:
        """Jv: a tensor of the weight's shape to one for each output."""
        tangents: dict[fx.Node, Any] = self._window.assign(vector)
        for node in self._window.nodes:
            # A comparison, an index or a detached value does not move, and what follows from it alone does not either.
            if not tangents.keys().isdisjoint(node.all_input_nodes) and (tangent := self._tangent(node, tangents)) is not None:
                tangents[node] = tangent
        return [tangents[n] if n in tangents else torch.zeros_like(self._values[n]) for n in self._window.captured]

    def _tangent(self, node: fx.Node, tangents: Tangents) -> Any:
        moving = [a for a in node.all_input_nodes if a in tangents]
        if not any(map(_moves, _parts(self._values[node]))):
            return None
        if node.target in self._RULES:
            return self._RULES[node.target](self, node, tangents)
        if node in self._slopes:
            return self._slopes[node] * tangents[moving[0]]
        if node.target in _LINEAR_IN_FIRST and moving == [node.args[0]]:
            args, kwargs = arguments(node, self._values)
            return node.target(tangents[moving[0]], *args[1:], **kwargs)  # type: ignore[operator]
        return self._forward_mode(node, moving, tangents)

    def _forward_mode(self, node: fx.Node, moving: list[fx.Node], tangents: Tangents) -> Any:
        target: Callable[..., Any] = IN_WINDOWS.get(node.target, node.target)  # type: ignore[arg-type]
        parts = [i for i, part in enumerate(_parts(self._values[node])) if _moves(part)]

        def function(*primals: Tensor) -> tuple[Tensor, ...]:
            args, kwargs = arguments(node, self._values | dict(zip(moving, primals, strict=True)))
            values = _parts(target(*args, **kwargs))
            return tuple(values[i] for i in parts)

        primals, vectors = tuple(self._values[n] for n in moving), tuple(tangents[n] for n in moving)
        try:
            moved = torch.func.jvp(function, primals, vectors)[1]
        except NotImplementedError:  # an operation without forward mode
            moved = _by_two_pulls(function, primals, vectors)
        if isinstance(self._values[node], Tensor):
            return moved[0]
        return [moved[parts.index(i)] if i in parts else None for i in range(len(self._values[node]))]

    def _weighted(self, node: fx.Node, tangents: Tangents) -> Tensor:
        """Convolution or linear, x * w + b: dx * w + x * dw."""
        x, w, _, *rest = [*arguments(node, self._values)[0], None][: max(3, len(node.args))]
        multiply: Callable[..., Tensor] = IN_WINDOWS.get(node.target, node.target)  # type: ignore[arg-type]
        moving_x, moving_w = (tangents.get(a) for a in node.args[:2])  # type: ignore[arg-type]
        parts = []
        if moving_x is not None:
            parts.append(multiply(moving_x, w, None, *rest))
        if moving_w is not None:
            parts.append(multiply(x, moving_w, None, *rest))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def _batch_norm(self, node: fx.Node, tangents: Tangents) -> tuple[Tensor]:
        x = tangents[node.args[0]]  # type: ignore[index]
        scale, _ = batch_norm_affine(arguments(node, self._values)[0])
        return (x * scale.view(1, -1, *[1] * (x.ndim - 2)),)

    def _add(self, node: fx.Node, tangents: Tangents) -> Tensor:
        alpha = node.kwargs.get("alpha", 1)
        terms = [
            tangents[a] if factor == 1 else factor * tangents[a]  # type: ignore[index]
            for a, factor in zip(node.args, (1, alpha), strict=True)
            if a in tangents
        ]
        total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        shape = self._values[node].shape
        return total if total.shape == shape else total.expand(shape)

    def _pad(self, node: fx.Node, tangents: Tangents) -> Tensor:
        # A constant border does not move, whatever its value; a reflected one does.
        _, padding, *mode = arguments(node, self._values)[0][:3]
        return aten.pad.default(tangents[node.args[0]], padding, *mode)  # type: ignore[index]

    @torch.no_grad()
    def _layer_statistics(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        (x, shape, *rest), _ = arguments(node, self._values)
        epsilon = rest[2] if len(rest) > 2 else 1e-5
        return torch.native_layer_norm(x, shape, None, None, epsilon)[1:]

    def _layer_norm(self, node: fx.Node, tangents: Tangents) -> Tensor:
        # Without its weight a layer norm has a symmetric Jacobian, so the kernel of its backward pass computes Jv as well.
        (x, shape, *rest), _ = arguments(node, self._values)
        dx, (mean, inverse) = tangents[node.args[0]], self._statistics[node]  # type: ignore[index]
        dy = aten.native_layer_norm_backward(dx, x, shape, mean, inverse, None, None, [True, False, False])[0]
        return dy if not rest or rest[0] is None else dy * rest[0]

    def _attention_arguments(self, node: fx.Node) -> dict[str, Any]:
        args, options = arguments(node, self._values)
        named = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | options
        named.pop("dropout_p", None)  # no dropout in eval mode
        return named

    @torch.no_grad()
    def _attention_map(self, node: fx.Node) -> Tensor:
        named = self._attention_arguments(node)
        named.pop("value")
        return fused_attention_map(**named)

    def _attention(self, node: fx.Node, tangents: Tangents) -> Tensor:
        """O = A V with A = softmax(S): dO = dA V + A dV, dA = A * (dS - sum(A * dS)), dS = scale (dQ Kᵀ + Q dKᵀ) + dM."""
        named = self._attention_arguments(node)
        moving = dict(zip(("query", "key", "value", "attn_mask"), node.args, strict=False)) | node.kwargs
        dq, dk, dv, dm = (tangents.get(moving.get(name)) for name in ("query", "key", "value", "attn_mask"))  # type: ignore[arg-type]
        query, key, value = named["query"], named["key"], named["value"]
        if named.get("enable_gqa"):
            key, value, dk, dv = (None if x is None else each_group(x, query) for x in (key, value, dk, dv))
        weights, scale = self._maps[node], query.shape[-1] ** -0.5 if named.get("scale") is None else named["scale"]
        moves = [scale * (dq @ key.mT)] if dq is not None else []
        moves += [scale * (query @ dk.mT)] if dk is not None else []
        moves += [dm] if dm is not None else []
        out = weights @ dv if dv is not None else None
        if moves:
            scores = sum(moves[1:], moves[0])
            change = (weights * (scores - (weights * scores).sum(-1, keepdim=True))) @ value
            out = change if out is None else out + change
        assert out is not None  # a node in a window moves
        return out

    _RULES: ClassVar[dict[Any, Callable[["Linearization", fx.Node, Tangents], Any]]] = {
        **dict.fromkeys((*CONVOLUTIONS, aten.linear.default), _weighted),
        BATCH_NORM: _batch_norm,
        aten.add.Tensor: _add,
        aten.pad.default: _pad,
        aten.layer_norm.default: _layer_norm,
        FUSED_ATTENTION: _attention,
    }
