"""What pruning did to a network, in numbers: pure functions of logits, weights and graphs.

Shares lie between 0 and 1, divergence is in nats, work in multiply-adds per image, size in bytes. N images, C classes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from snows.config import Dense, LayerPattern, Unstructured
from snows.method.graph import NetworkGraph
from snows.method.sparsity import packed_bytes


def _cpu_attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


# PyTorch's counter knows the attention kernels of GPUs only.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}


NO_ANSWER = -1


def answers(logits: Tensor) -> Tensor:
    """The class of each image's highest logit (N, C): (N,). `NO_ANSWER` where one of them is NaN."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), NO_ANSWER)


def right(logits: Tensor, truth: Tensor) -> Tensor:
    """Which images logits (N, C) answer as `truth` (N,) says, their labels or another network's answers: (N,), bool.

    What gives no answer is never right, and where there is no true one nobody is.
    """
    given = answers(logits)
    return (given == truth.to(given.device)) & (given != NO_ANSWER)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose label (N,) logits (N, C) answer, see `right`."""
    return _share(right(logits, labels))


def agreement(logits: Tensor, dense_logits: Tensor) -> float:
    """Share of images to which both networks (N, C) give the same answer, see `right`. Needs no labels."""
    return _share(right(logits, answers(dense_logits)))


def divergence(logits: Tensor, dense_logits: Tensor) -> float:
    """Mean over images of KL(dense || pruned) between the class probabilities of logits (N, C), in nats; 0 means equal. NaN
    where one network has no probabilities, infinite where the pruned one rules out what the dense one does not.

    Summed in float64: the divergence of two close networks is far below float32's resolution of the logits' softmax.
    """
    _share(logits)
    dense = dense_logits.to(logits.device).double().log_softmax(1)
    pruned = logits.double().log_softmax(1)
    return float((dense.exp() * (dense - pruned)).sum(1).mean())


def density(weights: Mapping[str, Tensor]) -> float:
    """Share of all weights or mask entries that are not zero."""
    return sum(int(w.count_nonzero()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def _share(hits: Tensor) -> float:
    if len(hits) == 0:
        raise ValueError("There are no images to evaluate on. Give at least one.")
    return float(hits.double().mean())


class MultiplyAdds(NamedTuple):
    """Multiply-adds for one image: of the dense network, and those left when the products with removed weights are skipped."""

    dense: int
    pruned: int


def multiply_adds(graph: NetworkGraph, image: Tensor, masks: Mapping[str, Tensor] | None = None) -> MultiplyAdds:
    """Count the matrix products of one `image` (1, C, H, W) on the graph's device, attention included.

    `masks` by site name, in any shape, True = kept; sites without one count as dense. Elementwise work is not counted.
    """
    sites = {site.name: site for site in graph.sites}
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        _, outputs = graph.run(image[:1], capture=[site.node for site in graph.sites])
    dense = counter.get_total_flops() // 2
    skipped = 0
    for name, mask in (masks or {}).items():
        uses = outputs[sites[name].node].numel() // sites[name].shape[0]  # how often one image multiplies by each weight
        skipped += uses * (mask.numel() - int(mask.count_nonzero()))
    return MultiplyAdds(dense, dense - skipped)


class Size(NamedTuple):
    """Bytes of a network's tensors: as they are; with pruned weights stored as kept values and their positions; and with all
    weights, of two or more dimensions, in half precision besides. The last two are what `export.packed` writes; of a network
    that is cut to size they are its own tensors', and ONNX's."""

    dense: int
    packed: int
    half: int


def size_bytes(
    state: Mapping[str, Tensor],
    patterns: Mapping[str, LayerPattern] | None = None,
    smaller: Mapping[str, Tensor] | None = None,
) -> Size:
    """Sizes of `state`, whose tensors named in `patterns` are pruned, see `sparsity.packed_bytes`. Unstructured weights keep
    what is not zero. `smaller`: the state of the same network with whole units cut away, which then is what is stored."""
    if smaller is not None:
        return size_bytes(smaller)._replace(dense=size_bytes(state).dense)
    dense = packed = half = 0
    for name, tensor in state.items():
        pattern, width = (patterns or {}).get(name, Dense()), tensor.element_size()
        kept = int(tensor.count_nonzero()) if isinstance(pattern, Unstructured) else tensor.numel()
        dense += tensor.numel() * width
        packed += packed_bytes(tensor.numel(), kept, pattern, width)
        narrow = min(width, 2) if tensor.is_floating_point() and tensor.ndim >= 2 else width
        half += packed_bytes(tensor.numel(), kept, pattern, narrow)
    return Size(dense, packed, half)
