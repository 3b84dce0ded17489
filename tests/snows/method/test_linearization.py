"""Jacobian products against PyTorch's own forward and reverse mode, and against each other."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snows.method.graph import NetworkGraph, Window
from snows.method.linearization import Linearization
from tests.snows.helpers import ALL, CASE_IDS, CASES, assert_entries_close, case, plain_attention, window_inputs


def parts(name: str, site: str, k: int) -> tuple[Window, Tensor, Linearization, Callable[[Tensor], list[Tensor]]]:
    """A window of the table, a weight, its linearization there, and the window as a function of the weight alone."""
    problem = case(name, site, k)
    inputs = problem.batches[2].inputs
    weight = problem.kept.expand(problem.point)
    linear = Linearization(problem.window, weight, inputs)
    return problem.window, weight, linear, lambda w: problem.window.outputs(w, inputs)


def random_like(value: Tensor, seed: int) -> Tensor:
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("name", "site", "k"), CASES, ids=CASE_IDS)
def test_outputs_are_those_of_the_window(name: str, site: str, k: int) -> None:
    _, weight, linear, function = parts(name, site, k)
    for value, expected in zip(linear.outputs, function(weight), strict=True):
        assert_entries_close(value, expected)


@pytest.mark.parametrize(("name", "site", "k"), CASES, ids=CASE_IDS)
def test_push_is_forward_mode(name: str, site: str, k: int) -> None:
    window, weight, linear, function = parts(name, site, k)
    for seed in range(2):
        direction = random_like(weight, seed)
        with plain_attention():
            _, expected = torch.func.jvp(function, (weight,), (direction,))
        pushed = linear.push(direction)
        for operation, value, other in zip(window.operations, pushed, expected, strict=True):
            assert_entries_close(value, other, rtol=1e-9, atol=1e-8 if name == "gates" else 1e-12, what=operation)


@pytest.mark.parametrize(("name", "site", "k"), CASES, ids=CASE_IDS)
def test_pull_is_reverse_mode(name: str, site: str, k: int) -> None:
    _, weight, linear, function = parts(name, site, k)
    cotangents = [random_like(y, i) for i, y in enumerate(linear.outputs)]
    with plain_attention():
        _, vjp = torch.func.vjp(function, weight)
        (expected,) = vjp(cotangents)
    assert_entries_close(linear.pull(cotangents), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "site", "k"), CASES, ids=CASE_IDS)
def test_push_and_pull_are_adjoint_and_linear_and_repeat(name: str, site: str, k: int) -> None:
    _, weight, linear, _ = parts(name, site, k)
    v, w = random_like(weight, 1), random_like(weight, 2)
    u = [random_like(y, 3 + i) for i, y in enumerate(linear.outputs)]
    pushed, pulled = linear.push(v), linear.pull(u)
    assert dot(u, pushed) == pytest.approx(float((pulled * v).sum()), rel=1e-9, abs=1e-9)
    for a, b, c in zip(linear.push(2 * v - 3 * w), pushed, linear.push(w), strict=True):
        assert_entries_close(a, 2 * b - 3 * c, rtol=1e-9, atol=1e-12)
    assert_entries_close(linear.pull([-4 * y for y in u]), -4 * pulled, rtol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(linear.push(v), pushed, strict=True))
    assert torch.equal(linear.pull(u), pulled)


def test_the_weight_and_the_inputs_are_left_alone() -> None:
    problem = case("residual", "conv1.weight", ALL)
    inputs = problem.batches[1].inputs
    copies = {n: v.clone() for n, v in inputs.items() if isinstance(v, Tensor)}
    weight = problem.kept.expand(problem.point)
    before = weight.clone()
    linear = Linearization(problem.window, weight, inputs)
    linear.pull([torch.ones_like(y) for y in linear.outputs])
    linear.push(weight)
    assert torch.equal(weight, before)
    assert not weight.requires_grad
    assert weight.grad is None
    assert all(torch.equal(inputs[n], v) for n, v in copies.items())


ACTIVATIONS = [
    F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh,
    F.elu, F.selu, F.celu, F.leaky_relu, F.mish, F.softplus, F.logsigmoid,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda f: f.__name__)
def test_every_activation_is_counted_and_differentiated_twice(activation: Callable[[Tensor], Tensor]) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return activation(self.linear(x))

    torch.manual_seed(0)
    module, images = One().double(), 2 * torch.randn(5, 3, dtype=torch.float64)
    graph = NetworkGraph.export(module, images)
    window = graph.window(graph.sites[0], 1)
    assert window.operations == ["linear (linear)", "activation"]
    inputs, weight = window_inputs(window, images), module.linear.weight.detach()
    direction = random_like(weight, 0)
    before = activation(module.linear(images)).detach()
    step = 1e-6
    ahead = activation(F.linear(images, weight + step * direction, module.linear.bias)).detach()
    # PyTorch's kernel for the hard sigmoid has the slope 1/6 in single precision.
    pushed = Linearization(window, weight, inputs).push(direction)[1]
    assert_entries_close(pushed, (ahead - before) / step, rtol=1e-4, atol=1e-5)

    def loss(w: Tensor) -> Tensor:
        return window.outputs(w, inputs)[1].square().sum()

    curvature = torch.autograd.functional.hvp(loss, weight, direction)[1]
    ahead, behind = (torch.autograd.functional.jacobian(loss, weight + s * direction) for s in (1e-5, -1e-5))
    assert_entries_close(curvature, (ahead - behind) / 2e-5, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_constant_border_does_not_move() -> None:
    class Border(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)
            self.head = nn.Conv2d(2, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.pad(self.conv(x), (1, 1, 1, 1), value=7.0))

    torch.manual_seed(0)
    module, images = Border().double(), torch.randn(2, 1, 3, 3, dtype=torch.float64)
    graph = NetworkGraph.export(module, images)
    window = graph.window(graph.sites[0], ALL)
    linear = Linearization(window, module.conv.weight, window_inputs(window, images))
    zero = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    assert all(not bool(y.any()) for y in linear.push(zero))
