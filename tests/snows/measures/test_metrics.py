"""Metrics against hand-counted and written-out values."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from snows.config import NM, Dense, Unstructured
from snows.measures.metrics import (
    NO_ANSWER,
    accuracy,
    agreement,
    answers,
    density,
    divergence,
    multiply_adds,
    right,
    size_bytes,
)
from snows.method.graph import NetworkGraph

logit_pairs = st.tuples(st.integers(1, 8), st.integers(2, 5), st.integers(0, 2**31)).map(
    lambda t: tuple(torch.randn(2, t[0], t[1], generator=torch.Generator().manual_seed(t[2])) * 5)
)


def test_accuracy_is_a_share() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert accuracy(logits, torch.tensor([1, 0, 0, 1])) == 0.75


def test_a_network_that_diverged_predicts_nothing() -> None:
    broken = torch.full((4, 3), torch.nan)
    assert accuracy(broken, torch.zeros(4, dtype=torch.long)) == 0
    assert agreement(broken, broken) == 0


NAN, INF = math.nan, math.inf
# One logit that is not a number among others, wherever it stands; an infinite one is a large one.
ODD = torch.tensor([[NAN, 1.0, 0.0], [0.0, NAN, 1.0], [NAN, NAN, NAN], [0.0, INF, 1.0], [2.0, -INF, 1.0], [0.0, 3.0, 1.0]])


def test_what_gives_no_answer_is_never_right() -> None:
    assert answers(ODD).tolist() == [NO_ANSWER] * 3 + [1, 0, 1]
    for label in range(3):
        truth = torch.full((6,), label)
        assert right(ODD, truth).tolist() == [False] * 3 + [answer == label for answer in (1, 0, 1)]
        assert accuracy(ODD, truth) == sum(answer == label for answer in (1, 0, 1)) / 6
    assert right(ODD, answers(ODD)).tolist() == [False] * 3 + [True] * 3
    assert agreement(ODD, ODD) == 0.5


def test_agreement_compares_predictions_not_logits() -> None:
    dense = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert agreement(10 * dense, dense) == 1
    assert agreement(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), dense) == 0.5


def test_no_images_is_named() -> None:
    with pytest.raises(ValueError, match="no images"):
        accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="no images"):
        divergence(torch.zeros(0, 3), torch.zeros(0, 3))


def test_divergence_of_a_coin_in_nats() -> None:
    fair, biased = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert divergence(biased, fair) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-6)


@given(logit_pairs)
def test_divergence_is_kl_from_dense_to_pruned(pair: tuple[Tensor, Tensor]) -> None:
    pruned, dense = pair
    expected = F.kl_div(pruned.double().log_softmax(1), dense.double().softmax(1), reduction="batchmean")
    assert divergence(pruned, dense) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
    assert divergence(pruned, dense) >= -1e-12
    assert divergence(dense + 3, dense) == pytest.approx(0, abs=1e-9)  # logits matter up to a constant


def test_density_counts_over_all_weights() -> None:
    assert density({"a": torch.tensor([[0.0, 1.0]]), "b": torch.tensor([True, True, False, False, False, True])}) == 0.5


# --- work ---


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.conv(x)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


@pytest.mark.slow
def test_multiply_adds_counted_by_hand() -> None:
    image = torch.randn(2, 3, 8, 8)
    graph = NetworkGraph.export(Small(), image)
    tokens = 4 * 4
    conv, depthwise, qkv, head = tokens * 8 * 3 * 9, tokens * 8 * 9, tokens * 8 * 24, 8 * 5
    attention = 2 * tokens * tokens * 8
    dense = conv + depthwise + qkv + attention + head
    assert multiply_adds(graph, image) == (dense, dense)
    conv_mask = torch.ones(8, 3, 3, 3, dtype=torch.bool)
    conv_mask[:, 0] = False
    qkv_mask = torch.zeros(24, 8, dtype=torch.bool)
    counted = multiply_adds(graph, image, {"conv.weight": conv_mask, "qkv.weight": qkv_mask})
    assert counted == (dense, conv * 2 // 3 + depthwise + attention + head)


# --- size ---


def test_size_by_pattern() -> None:
    weight = torch.ones(8, 64)
    weight[:, ::2] = 0
    state = {"w": weight, "bias": torch.zeros(10)}
    assert size_bytes(state) == (512 * 4 + 40, 512 * 4 + 40, 512 * 2 + 40)
    # 256 values of 4 bytes, 256 positions of 2 bits, and the bias.
    assert size_bytes(state, {"w": NM(n=2, m=4)}).packed == 1024 + 64 + 40
    # 64 values, 64 positions of 3 bits.
    assert size_bytes(state, {"w": NM(n=1, m=8)}).packed == 256 + 24 + 40
    # Four positions of 3 bits would be more than a bit for each of 8 weights; half precision stores two bytes a value.
    assert size_bytes(state, {"w": NM(n=4, m=8)})[1:] == (1024 + 64 + 40, 512 + 64 + 40)
    # 256 values and one bit for each of 512 weights.
    assert size_bytes(state, {"w": Unstructured(sparsity=0.5)}).packed == 1024 + 64 + 40
    assert size_bytes(state, {"w": Dense()}).packed == 2048 + 40


def test_packing_never_grows_a_tensor() -> None:
    full = {"w": torch.ones(4, 8)}
    assert size_bytes(full, {"w": Unstructured(sparsity=0.01)}).packed == size_bytes(full).dense


def test_size_counts_the_element_size() -> None:
    half = size_bytes({"w": torch.ones(8, 8, dtype=torch.float16)}, {"w": NM(n=2, m=4)})
    assert half == (128, 64 + 8, 64 + 8)
