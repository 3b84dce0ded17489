"""What pruning did to a network, in numbers: pure functions of logits, weights and graphs.

Shares lie between 0 and 1, divergence is in nats, work in multiply-adds per image, size in bytes. N images, C classes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from snows.config import NM, Dense, Unstructured
from snows.graph import NetworkGraph


def _cpu_attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


# PyTorch's counter knows the attention kernels of GPUs only.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose highest logit (N, C) is their label (N,). Logits with a NaN predict nothing and count as wrong."""
    return _share(_predictions(logits) == labels.to(logits.device))


def agreement(logits: Tensor, dense_logits: Tensor) -> float:
    """Share of images on which both networks (N, C) predict the same class. Needs no labels; a NaN agrees with nothing."""
    predictions = _predictions(logits)
    return _share((predictions == _predictions(dense_logits.to(logits.device))) & (predictions >= 0))


def divergence(logits: Tensor, dense_logits: Tensor) -> float:
    """Mean over images of KL(dense || pruned) between the class probabilities of logits (N, C), in nats; 0 means equal.

    Summed in float64: the divergence of two close networks is far below float32's resolution of the logits' softmax.
    """
    _share(logits)
    dense = dense_logits.to(logits.device).double().log_softmax(1)
    pruned = logits.double().log_softmax(1)
    return float((dense.exp() * (dense - pruned)).sum(1).mean())


def density(weights: Mapping[str, Tensor]) -> float:
    """Share of all weights or mask entries that are not zero."""
    return sum(int(w.count_nonzero()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def _predictions(logits: Tensor) -> Tensor:
    return logits.argmax(1).masked_fill(logits.isnan().any(1), -1)


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
    """Bytes of a network's tensors: as they are, and with pruned weights stored as kept values and their positions."""

    dense: int
    packed: int


def size_bytes(state: Mapping[str, Tensor], patterns: Mapping[str, NM | Unstructured | Dense] | None = None) -> Size:
    """Sizes of `state`, whose tensors named in `patterns` are pruned.

    N:M stores N values a group and ceil(log2 M) bits for the position of each, the sparse tensor cores' format (Mishra et al.,
    2021). Unstructured weights store what is not zero and one bit a weight. A tensor that would grow is stored as it is.
    """
    dense = packed = 0
    for name, tensor in state.items():
        whole = tensor.numel() * tensor.element_size()
        match (patterns or {}).get(name, Dense()):
            case NM(n=n, m=m):
                values = tensor.numel() // m * n
                small = values * tensor.element_size() + _bytes(values * (m - 1).bit_length())
            case Unstructured():
                small = int(tensor.count_nonzero()) * tensor.element_size() + _bytes(tensor.numel())
            case _:
                small = whole
        dense += whole
        packed += min(small, whole)
    return Size(dense, packed)


def _bytes(bits: int) -> int:
    return -(-bits // 8)
