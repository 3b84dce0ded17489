"""Where a pruned network can be faster: for each program that runs networks, which layers it could gain on, and why not others.

Nothing here is a time. What a program asks of a weight is its own documentation's word, each with its source and the day it was
written or read; whether a layer meets that follows from its shape and pattern. Shorter times are for who measures them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snows.config import NM, LayerPattern, Structured
from snows.method.sparsity import semi_structured_shape_obstacle


@dataclass(frozen=True)
class Layer:
    """A pruned weight: its `shape` (out, in) or (out, in, kh, kw), the share `density` that it keeps."""

    name: str
    shape: tuple[int, ...]
    pattern: LayerPattern
    density: float


@dataclass(frozen=True)
class Runtime:
    """`asks`: what it needs, a sentence; `obstacle`: why it does not gain on a layer, among all that were pruned, None
    where it could; `source`, its `address` and the `day` on which that was written or read."""

    asks: str
    obstacle: Callable[[Layer, Sequence[Layer]], str | None]
    source: str
    address: str
    day: str


@dataclass(frozen=True)
class Answer:
    """What a runtime could gain on: `eligible` of all `layers`, which hold `share` of the pruned weights; `says` in words."""

    runtime: str
    eligible: int
    layers: int
    share: float
    says: str


def two_of_four_obstacle(shape: Sequence[int], pattern: LayerPattern) -> str | None:
    """Why a layer cannot run on PyTorch's 2:4 kernels, by pattern and shape alone; None where it can, given an NVIDIA GPU of
    compute capability 8.0 or later and half precision."""
    # Two of four are left of every larger group that leaves no more, such as 1:8, and of two groups of 1:2.
    leaves_two = isinstance(pattern, NM) and ((pattern.m % 4 == 0 and pattern.n <= 2) or (pattern.m == 2 and pattern.n == 1))
    if not leaves_two:
        return f"The kernels need at most 2 of 4 weights kept, and this layer's pattern is {pattern}."
    return semi_structured_shape_obstacle(tuple(shape))


def answers(layers: Sequence[Layer]) -> list[Answer]:
    """Each of `RUNTIMES` on all `layers` together, in their order."""
    total = sum(math.prod(layer.shape) for layer in layers)
    summed = []
    for name, runtime in RUNTIMES.items():
        eligible = [layer for layer in layers if runtime.obstacle(layer, layers) is None]
        share = sum(math.prod(layer.shape) for layer in eligible) / total if total else 0.0
        says = "eligible, not measured" if eligible else "no"
        summed.append(Answer(name, len(eligible), len(layers), share, says))
    return summed


def _smaller_shapes(layer: Layer, layers: Sequence[Layer]) -> str | None:
    if isinstance(layer.pattern, Structured):
        return None
    return "Its shape is that of the dense network: weights were removed one by one, and every zero is still there."


def _two_of_four(layer: Layer, layers: Sequence[Layer]) -> str | None:
    return two_of_four_obstacle(layer.shape, layer.pattern)


def _coreml_processor(layer: Layer, layers: Sequence[Layer]) -> str | None:
    if len(layer.shape) != 2:
        return "It is a convolution; on the processor linear layers gain."
    if not isinstance(layer.pattern, NM) or 16 % layer.pattern.m:
        return f"It needs N:M with an M that divides 16, and this layer's pattern is {layer.pattern}."
    return None if layer.pattern.density <= 0.5 else "It needs half of the weights or more to be zero."


def _coreml_engine(layer: Layer, layers: Sequence[Layer]) -> str | None:
    return None if layer.density <= 0.25 else f"It needs three quarters zeros, and here {1 - layer.density:.0%} are."


def _xnnpack(layer: Layer, layers: Sequence[Layer]) -> str | None:
    if tuple(layer.shape[2:]) != (1, 1):
        return "It is no 1x1 convolution."
    # The first convolution, on 3 channels, may be another.
    others = [other for other in layers if len(other.shape) == 4 and other.shape[2:] != (1, 1) and other.shape[1] != 3]
    if others:
        return f"The network has other convolutions, such as {others[0].name}, and then nothing of it is run sparse."
    return None if layer.density <= 1 / 3 else f"It needs two thirds zeros, and here {1 - layer.density:.0%} are."


def _onnx_runtime(layer: Layer, layers: Sequence[Layer]) -> str | None:
    return "Its kernels take dense weights: sparse ones are made dense as a file is loaded."


def _pytorch(layer: Layer, layers: Sequence[Layer]) -> str | None:
    return "Its kernels are dense: a zero takes part in the product like any other number."


RUNTIMES: dict[str, Runtime] = {
    "Anywhere, by smaller shapes": Runtime(
        "Whole units, channels or heads removed, so that every program has less to do.",
        _smaller_shapes,
        "the run's own shapes",
        "",
        "",
    ),
    "NVIDIA GPU, 2:4": Runtime(
        "Linear layers that keep at most 2 of 4, of a multiple of 32 outputs and 64 inputs, in float16 or bfloat16, on compute "
        "capability 8.0 or later.",
        _two_of_four,
        "PyTorch, accelerating with semi-structured sparsity",
        "https://docs.pytorch.org/tutorials/advanced/semi_structured_sparse.html",
        "read on 29 November 2026",
    ),
    "Core ML, processor": Runtime(
        "Linear layers of N:M where M divides 16 and at least half is zero, on newer hardware.",
        _coreml_processor,
        "Apple, coremltools guide, pruning: performance",
        "https://apple.github.io/coremltools/docs-guides/source/opt-pruning-perf.html",
        "read on 29 November 2026",
    ),
    "Core ML, Neural Engine": Runtime(
        "Three quarters zeros or more, wherever they lie.",
        _coreml_engine,
        "Apple, coremltools guide, pruning: performance",
        "https://apple.github.io/coremltools/docs-guides/source/opt-pruning-perf.html",
        "read on 29 November 2026",
    ),
    "XNNPACK (TensorFlow Lite)": Runtime(
        "1x1 convolutions with two thirds zeros, in a network that begins with a 3x3 convolution of stride 2 on 3 channels and "
        "has, besides, 3x3 or 5x5 depthwise ones alone; of what was not pruned that is not looked at here.",
        _xnnpack,
        "TensorFlow, XNNPACK delegate, sparse inference",
        "https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/delegates/xnnpack/README.md#sparse-inference",
        "read on 29 November 2026",
    ),
    "ONNX Runtime": Runtime(
        "Nothing that zeros alone can meet.",
        _onnx_runtime,
        "ONNX Runtime, issue 5578",
        "https://github.com/microsoft/onnxruntime/issues/5578",
        "written on 27 October 2020",
    ),
    "Plain PyTorch": Runtime(
        "Nothing that zeros alone can meet.",
        _pytorch,
        "PyTorch, tutorials issue 905",
        "https://github.com/pytorch/tutorials/issues/905",
        "written on 14 July 2020",
    ),
}
