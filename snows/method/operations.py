"""What is known of aten, the operations of an exported graph: which are counted, and the form in which windows run them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
SOFTMAX = {aten.softmax.int, aten._softmax.default, aten._safe_softmax.default, aten.special_softmax.default}
FUSED_ATTENTION = aten.scaled_dot_product_attention.default

Values = dict[fx.Node, Any]

_STRIDED = {
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
CONVOLUTIONS = _STRIDED | TRANSPOSED
ACTIVATIONS = {
    aten.relu.default,
    aten.relu6.default,
    aten.gelu.default,
    aten.silu.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.elu.default,
    aten.selu.default,
    aten.celu.default,
    aten.leaky_relu.default,
    aten.mish.default,
    aten.softplus.default,
    aten.log_sigmoid.default,
    aten.prelu.default,
}
NORMS = {aten.layer_norm.default, aten.group_norm.default, aten.rms_norm.default}
BATCH_NORM = aten._native_batch_norm_legit_no_training.default
VIEWS = {aten.view.default, aten._unsafe_view.default}


def batch_norm_affine(args: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Scale and shift, each (C,), of an eval-mode batch norm called with `args`."""
    _, weight, bias, mean, variance, _, epsilon = args
    scale = (variance + epsilon).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def _batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor]:
    # The kernel's second derivative is a dozen elementwise passes; that of a multiply-add is two, and it is the same function.
    scale, shift = batch_norm_affine((x, *rest))
    shape = [1, -1] + [1] * (x.ndim - 2)
    return (torch.addcmul(shift.view(shape), x, scale.view(shape)),)


def arguments(node: fx.Node, values: Mapping[fx.Node, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The node's arguments with the values of its inputs in their places."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    return list(args), dict(kwargs)


def execute_node(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Evaluate one node from the values of its inputs."""
    args, kwargs = arguments(node, values)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _hardsigmoid(x: Tensor) -> Tensor:
    # The kernel has no second derivative.
    return torch.nn.functional.hardtanh(x / 6 + 0.5, 0, 1)


def every_stride(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Every `stride`-th position of `x` (B, C, *spatial), which is all that a pointwise convolution of that stride looks at."""
    for axis, step in enumerate(stride, start=2):
        x = x[(slice(None),) * axis + (slice(None, None, step),)]
    return x


def _convolution(target: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
    # A strided pointwise convolution is a pointwise one of every other pixel: exactly, and faster. It must not be run as it
    # stands, since its weight gradient is wrong in memory: oneDNN 3.12 (torch 2.14) without AVX-512 writes past the end of it
    # for channels-last images of fewer than 8 channels on one thread, and the process dies of it sooner or later. When torch is
    # raised, run `tests/snows/method/test_kernels.py`: it looks for such kernels under an allocator that checks.
    options: list[Any] = [*rest, *([1], [0], [1], 1)[len(rest) :]]
    stride, padding, dilation, groups = options
    if math.prod(weight.shape[2:]) > 1 or max(stride) == 1:
        return target(x, weight, bias, *rest)
    axes, nothing = x.ndim - 2, padding
    if not isinstance(padding, str):
        nothing, widths = [0] * axes, [*padding] * (axes // len(padding))  # one number may stand for all axes
        x = torch.nn.functional.pad(x, [width for width in reversed(widths) for _ in range(2)]) if any(widths) else x
    x = every_stride(x, [*stride] * (axes // len(stride)))
    return target(x, weight, bias, [1] * axes, nothing, dilation, groups)


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
        key = each_group(key, query)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return aten._safe_softmax(scores, -1)


def each_group(x: Tensor, query: Tensor) -> Tensor:
    """Keys or values (..., groups, T, C) of grouped attention, once for each head of `query` (..., heads, T, C)."""
    return x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    # By formula: the fused kernels have no second derivative, and PyTorch's own plain path is a switch of the whole process.
    # No dropout: the network runs in eval mode.
    weights = fused_attention_map(query, key, attn_mask, is_causal, scale, enable_gqa)
    return weights @ (each_group(value, query) if enable_gqa else value)


# The form in which windows run an operation, where it differs from the network's.
IN_WINDOWS: dict[Any, Callable[..., Any]] = {
    BATCH_NORM: _batch_norm,
    aten.hardsigmoid.default: _hardsigmoid,
    FUSED_ATTENTION: _attention,
    # A word to training: what the network computes does follow a value that was detached.
    aten.detach.default: lambda x: x,
    # What is left of a slice that was written in place.
    aten.copy.default: lambda x, source, non_blocking=False: source.to(x.dtype).expand(x.shape),
    **{target: partial(_convolution, target) for target in _STRIDED},
}


def execute_in_window(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = arguments(node, values)
    target: Callable[..., Any] = IN_WINDOWS.get(node.target, node.target)  # type: ignore[arg-type]
    return target(*args, **kwargs)


def move(value: Any, device: torch.device) -> Any:
    """`value` with its tensors on `device`; sizes and other plain values as they are."""
    if isinstance(value, Tensor):
        # Towards the host a copy that does not block may be read before it has arrived.
        return value.to(device, non_blocking=device.type == "cuda")
    return type(value)(move(v, device) for v in value) if isinstance(value, list | tuple) else value


def moved(values: Values, device: torch.device) -> Values:
    """The same values on `device`."""
    return {node: move(value, device) for node, value in values.items()}
