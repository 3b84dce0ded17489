"""Which layers a program could gain on follows from shape and pattern, and whoever says so is named."""

import re

import pytest

from snows.config import NM, Dense, Structured, Unstructured
from snows.measures.runtimes import RUNTIMES, Layer, answers, two_of_four_obstacle

LINEAR, POINTWISE, CONVOLUTION = (64, 128), (64, 128, 1, 1), (64, 128, 3, 3)
NVIDIA, PROCESSOR, ENGINE, XNNPACK = list(RUNTIMES)[1:5]


def layer(shape: tuple[int, ...], pattern: NM | Unstructured | Dense) -> Layer:
    return Layer("a.weight", shape, pattern, pattern.density)


def able(runtime: str, shape: tuple[int, ...], pattern: NM | Unstructured | Dense) -> bool:
    return RUNTIMES[runtime].obstacle(one := layer(shape, pattern), [one]) is None


@pytest.mark.parametrize(
    ("pattern", "eligible"),
    [
        *((NM(n=n, m=m), True) for n, m in [(2, 4), (1, 4), (1, 8), (2, 8), (1, 16), (1, 2)]),
        *((NM(n=n, m=m), False) for n, m in [(3, 4), (4, 8), (1, 6)]),
        (Unstructured(sparsity=0.9), False),
        (Dense(), False),
    ],
)
def test_two_of_four_kernels_by_pattern(pattern: NM | Unstructured | Dense, eligible: bool) -> None:
    assert (two_of_four_obstacle((32, 64), pattern) is None) == eligible == able(NVIDIA, LINEAR, pattern)


def test_two_of_four_kernels_by_shape() -> None:
    pattern = NM(n=2, m=4)
    assert "convolutions stay dense" in str(two_of_four_obstacle(CONVOLUTION, pattern))
    assert "has 3 and 64" in str(two_of_four_obstacle((3, 64), pattern))
    assert "50%" in str(two_of_four_obstacle((32, 64), Unstructured(sparsity=0.5)))


def test_core_ml_asks_for_groups_that_divide_sixteen_in_linear_layers_or_for_three_quarters_zeros() -> None:
    on_the_processor = [p for p in (NM(n=2, m=4), NM(n=1, m=16), NM(n=8, m=16), NM(n=3, m=4), NM(n=1, m=3), NM(n=1, m=32))]
    assert [able(PROCESSOR, LINEAR, p) for p in on_the_processor] == [True, True, True, False, False, False]
    assert not able(PROCESSOR, POINTWISE, NM(n=2, m=4))
    assert not able(PROCESSOR, LINEAR, Unstructured(sparsity=0.9))
    assert [able(ENGINE, CONVOLUTION, p) for p in (NM(n=1, m=4), Unstructured(sparsity=0.7), Dense())] == [True, False, False]


def test_xnnpack_asks_for_pointwise_convolutions_with_two_thirds_zeros() -> None:
    assert able(XNNPACK, POINTWISE, NM(n=1, m=3))
    assert able(XNNPACK, POINTWISE, Unstructured(sparsity=0.7))
    assert not able(XNNPACK, POINTWISE, NM(n=2, m=4))
    assert not able(XNNPACK, CONVOLUTION, NM(n=1, m=4))
    assert not able(XNNPACK, LINEAR, NM(n=1, m=4))
    # One other convolution but the first, and the whole network is run dense.
    pointwise, other, first = (layer(shape, NM(n=1, m=4)) for shape in (POINTWISE, CONVOLUTION, (32, 3, 3, 3)))
    assert "other convolutions, such as a.weight" in str(RUNTIMES[XNNPACK].obstacle(pointwise, [first, pointwise, other]))
    assert RUNTIMES[XNNPACK].obstacle(pointwise, [first, pointwise]) is None


def test_in_sum_layers_count_by_their_weights() -> None:
    summed = {a.runtime: a for a in answers([layer(LINEAR, NM(n=1, m=4)), layer(CONVOLUTION, NM(n=1, m=4))])}
    assert summed.keys() == RUNTIMES.keys()
    assert (summed[NVIDIA].eligible, summed[NVIDIA].layers, summed[NVIDIA].share) == (1, 2, pytest.approx(1 / 10))
    assert summed[NVIDIA].says == "eligible, not measured"
    for name in ("ONNX Runtime", "Plain PyTorch", "Anywhere, by smaller shapes"):
        assert (summed[name].eligible, summed[name].says) == (0, "no")
    assert [a.share for a in answers([])] == [0.0] * len(RUNTIMES)


def test_what_is_cut_away_whole_is_smaller_anywhere() -> None:
    obstacle = RUNTIMES["Anywhere, by smaller shapes"].obstacle
    cut, zeros = (Layer("a.weight", LINEAR, pattern, 0.25) for pattern in (Structured(removed=0.5), NM(n=1, m=4)))
    assert obstacle(cut, [cut]) is None
    assert "every zero is still there" in str(obstacle(zeros, [zeros]))


def test_every_answer_has_a_source_and_a_day_and_no_number_of_times_faster() -> None:
    for name, runtime in RUNTIMES.items():
        assert runtime.source
        if runtime.address:
            assert runtime.address.startswith("https://")
            assert re.search(r"(read|written) on \d+ \w+ 20\d\d", runtime.day), name
        reasons = {runtime.obstacle(layer(shape, p), []) for shape in (LINEAR, CONVOLUTION) for p in (NM(n=3, m=4), Dense())}
        assert None not in reasons, name
        assert not re.search(r"\d x\b|times (as|faster)|speed-?up", f"{runtime.asks} {reasons}")
