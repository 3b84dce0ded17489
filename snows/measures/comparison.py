"""Pruned networks beside the dense one and beside each other: answers, representations by depth, size, and speed.

Pure functions of tensors, and of a `NetworkGraph` with tensors by name. N images, C classes; a representation is what a node
gives for N images, flattened to (N, P).
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snows.config import NM, LayerPattern
from snows.measures import metrics
from snows.method.graph import Frontier, NetworkGraph, Site
from snows.method.sparsity import semi_structured_shape_obstacle

# --- answers ---


@dataclass(frozen=True)
class Flip:
    """An image that two networks answer differently: its number, both answers as `metrics.answers` gives them, and its label
    where there is one."""

    image: int
    dense: int
    pruned: int
    label: int | None

    @property
    def kind(self) -> str:
        """`lost`: only the dense network was right. `won`: only the pruned one is. `other`: neither, or nobody knows."""
        if self.label is None:
            return "other"
        return "lost" if self.label == self.dense else "won" if self.label == self.pruned else "other"


def flips(dense: Tensor, pruned: Tensor, labels: Tensor | None = None) -> list[Flip]:
    """The images whose answer changed, in their order. `dense`, `pruned`: (N, C); `labels`: (N,)."""
    before, after = metrics.answers(dense), metrics.answers(pruned)
    places = (before != after).nonzero()[:, 0].tolist()
    return [Flip(i, int(before[i]), int(after[i]), None if labels is None else int(labels[i])) for i in places]


def class_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of each class's images that logits (N, C) get right: (C,), NaN for a class without images."""
    count = logits.shape[1]
    right = torch.bincount(labels[metrics.right(logits, labels)], minlength=count)
    return right.double() / torch.bincount(labels, minlength=count)  # 0 / 0 is NaN


@dataclass(frozen=True)
class SignTest:
    """How often only the first was right, and only the second; `chance`: how likely so uneven a split is between equals."""

    first_only: int
    second_only: int
    chance: float


def sign_test(first: Tensor, second: Tensor) -> SignTest:
    """Two networks on the same images, each right or not (N,), bool: the exact two-sided sign test where they differ.

    McNemar (1947), "Note on the sampling error of the difference between correlated proportions", in its exact binomial form.
    """
    from scipy.stats import binomtest  # a second to import, and only this needs it

    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    return SignTest(one, other, float(binomtest(one, one + other).pvalue) if one + other else 1.0)


# --- representations ---


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centered kernel alignment of two representations (N, P) and (N, Q) of the same images: 0 … 1.

    Kornblith et al. (2019), "Similarity of Neural Network Representations Revisited", section 3: with centered columns,
    |Y'X|² ÷ (|X'X| |Y'Y|), Frobenius norms. 1 for representations equal up to a rotation and a scale. NaN where one is the same
    for all images.
    """
    return _alignment(_gram(first), _gram(second))


def _gram(representation: Tensor) -> Tensor:
    # Products of images, not of features: |Y'X|² = <XX', YY'>, and there are far fewer images.
    centered = representation.flatten(1).double()
    centered = centered - centered.mean(0)
    return centered @ centered.T


def _alignment(first: Tensor, second: Tensor) -> float:
    norms = float(first.norm() * second.norm())
    return float((first * second).sum()) / norms if norms > 0 else math.nan


def mean_cosine(first: Tensor, second: Tensor) -> float:
    """Cosine similarity of two networks' representations (N, P), mean over images: -1 … 1. NaN where one is zero throughout."""
    x, y = first.flatten(1).double(), second.flatten(1).double()
    return float(((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).nanmean())


def relative_error(target: Tensor, value: Tensor) -> float:
    """|value - target|² ÷ |target|² over all images: 0 = equal, 1 = as wrong as answering zero. NaN for a target of zeros."""
    wrong, whole = (value.double() - target.double()).square().sum(), target.double().square().sum()
    return float(wrong / whole) if whole > 0 else math.nan


@dataclass(frozen=True)
class Likeness:
    """How a pruned network's representation at a layer compares with the dense network's."""

    layer: str
    network: str
    cka: float
    cosine: float
    error: float


OUTPUT = "output"


@torch.no_grad()
def by_depth(
    graph: NetworkGraph, images: Tensor, sites: Sequence[Site], networks: Mapping[str, Mapping[str, Tensor]]
) -> list[Likeness]:
    """Each of `networks` against the module's own tensors, at the output of each site and of the network (`OUTPUT`).

    `images` (N, C, H, W). Each network is run once; of each only what later nodes need is held.
    """
    dense, dense_tensors = Frontier(graph, [images]), graph.bind({})
    pruned = {name: (Frontier(graph, [images]), graph.bind(tensors)) for name, tensors in networks.items()}
    places = [(site.name, site.node) for site in sites] + [(OUTPUT, graph.output)]
    likenesses = []
    for layer, node in sorted(places, key=lambda place: graph.index[place[1]]):
        stop = graph.index[node] + 1
        dense.advance(stop, dense_tensors, images.device)
        target = dense.values(0)[node]
        gram = _gram(target)
        for name, (frontier, tensors) in pruned.items():
            frontier.advance(stop, tensors, images.device)
            value = frontier.values(0)[node]
            similar = _alignment(gram, _gram(value)), mean_cosine(target, value), relative_error(target, value)
            likenesses.append(Likeness(layer, name, *similar))
    return likenesses


# --- size and speed ---


def csr_bytes(state: Mapping[str, Tensor], pruned: Sequence[str]) -> int:
    """Bytes of `state` with the weights in `pruned` as compressed sparse rows, where that is smaller: the kept values, a 32-bit
    column each, and a 32-bit offset a row."""
    total = 0
    for name, tensor in state.items():
        whole = tensor.numel() * tensor.element_size()
        num_values = int(tensor.count_nonzero())
        sparse = num_values * (tensor.element_size() + 4) + 4 * (tensor.shape[0] + 1) if name in pruned else whole
        total += min(sparse, whole)
    return total


def two_of_four_obstacle(site: Site, pattern: LayerPattern) -> str | None:
    """Why the layer cannot run on PyTorch's 2:4 kernels, by pattern and shape alone; None where it can, given an NVIDIA GPU of
    compute capability 8.0 or later and half precision."""
    # Two of four are left of every larger group that leaves no more, such as 1:8, and of two groups of 1:2.
    leaves_two = isinstance(pattern, NM) and ((pattern.m % 4 == 0 and pattern.n <= 2) or (pattern.m == 2 and pattern.n == 1))
    if not leaves_two:
        return f"The kernels need at most 2 of 4 weights kept, and this layer's pattern is {pattern}."
    return semi_structured_shape_obstacle(site.shape)


def with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `module`, in eval mode, with the state dict `weights`."""
    copied = copy.deepcopy(module).eval()
    copied.load_state_dict(weights)
    return copied


def alternate(tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each task in each of `rounds` rounds, after one to warm up. All tasks take turns, the first of a round being
    another each time, so that what else the machine does falls on all alike."""
    names = list(tasks)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            tasks[name]()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def latencies(modules: Mapping[str, nn.Module], images: Tensor, rounds: int = 15) -> dict[str, list[float]]:
    """Seconds that each module takes for the batch `images`, in each of `rounds` rounds, on the device of `images`."""

    def task(module: nn.Module) -> Callable[[], object]:
        def run() -> None:
            module(images)
            if images.is_cuda:
                torch.cuda.synchronize(images.device)

        return run

    with torch.inference_mode():
        return alternate({name: task(module) for name, module in modules.items()}, rounds)
