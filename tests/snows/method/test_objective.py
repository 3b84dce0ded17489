"""The objective and its operators against dense matrices, a witness and each other; row factors against direct solves."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snows.config import CURVATURES
from snows.method.graph import NetworkGraph
from snows.method.objective import Batch, Objective, Remade
from snows.method.rows import (
    KeptWeights,
    ReconstructionError,
    RowBlocks,
    input_gram,
    input_mean,
    input_output_cross,
    input_rows,
    rows_of_output,
)
from snows.method.sparsity import from_matrix, to_matrix
from tests.snows.helpers import (
    ALL,
    CASE_IDS,
    CASES,
    Case,
    assert_entries_close,
    captured_values,
    case,
    dense,
    dense_weight,
    plain_attention,
    window_inputs,
)

CPU = torch.device("cpu")
TABLE = pytest.mark.parametrize(("name", "site", "k"), CASES, ids=CASE_IDS)


def oracle(problem: Case, kind: str) -> Tensor:
    return problem.gauss_newton() if kind == "gauss_newton" else problem.hessian()


def tolerance(kind: str) -> dict[str, float]:
    # Central differences in float64 are good to about six digits of the largest entry.
    return {"rtol": 1e-6, "atol": 1e-7} if kind == "finite_difference" else {"rtol": 1e-9, "atol": 1e-12}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row blocks in groups of a few kilobytes, so that every problem spans several."""
    monkeypatch.setattr(KeptWeights, "groups", partialmethod(KeptWeights.groups, limit=2**11))


# --- the loss and its derivatives ---


@pytest.mark.slow
@TABLE
def test_the_loss_is_the_naive_one(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    objective = problem.objective()
    expected = float(problem.loss(problem.point))
    assert objective.loss(problem.point) == pytest.approx(expected, rel=1e-12)
    assert objective.loss_and_gradient(problem.point)[0] == pytest.approx(expected, rel=1e-12)
    by_k = objective.losses(problem.point)
    assert len(by_k) == len(problem.window.operations)
    assert sum(c * e for c, e in zip(problem.coefficients, by_k, strict=True)) == pytest.approx(expected, rel=1e-12)


@TABLE
def test_the_gradient_is_the_naive_one(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    _, gradient = problem.objective().loss_and_gradient(problem.point)
    with plain_attention():
        expected = torch.autograd.functional.jacobian(problem.loss, problem.point)
    assert_entries_close(gradient, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("name", "site", "k"), [CASES[2], CASES[8], CASES[-1]], ids=["residual", "fused", "gates"])
def test_the_gradient_is_the_slope_of_the_loss(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    objective = problem.objective()
    _, gradient = objective.loss_and_gradient(problem.point)
    step = 1e-5
    for i in range(0, problem.kept.count, 5):
        unit = torch.zeros_like(problem.point)
        unit[i] = step
        slope = (objective.loss(problem.point + unit) - objective.loss(problem.point - unit)) / (2 * step)
        assert float(gradient[i]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CURVATURES)
@TABLE
def test_a_product_is_the_dense_matrix(name: str, site: str, k: int, kind: str) -> None:
    problem = case(name, site, k)
    objective = problem.objective(curvature_kind=kind)
    matrix = dense(objective.product(problem.point), problem.kept.count)
    assert_entries_close(matrix, oracle(problem, kind), what=f"{kind} of {name} {site}", **tolerance(kind))
    assert objective.num_products == problem.kept.count


@pytest.mark.parametrize("kind", CURVATURES)
@TABLE
def test_a_product_is_symmetric_linear_and_repeats(name: str, site: str, k: int, kind: str) -> None:
    problem = case(name, site, k)
    product = problem.objective(curvature_kind=kind).product(problem.point)
    v, w = random(problem.kept.count, seed=1), random(problem.kept.count, seed=2)
    image, other = product(v), product(w)
    scale = float(image.norm() * w.norm())
    slack = 1e-6 if kind == "finite_difference" else 1e-10
    assert float(w @ image) == pytest.approx(float(v @ other), abs=slack * scale)
    assert_entries_close(product(2 * v - w), 2 * image - other, **tolerance(kind))
    assert torch.equal(product(v), image)
    assert not bool(product(torch.zeros_like(v)).any())


@TABLE
def test_the_empirical_fisher_is_the_images_outer_products(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    teacher = problem.weight + 0.3 * random(problem.weight.numel(), seed=3).view(problem.weight.shape)

    def image_loss(kept: Tensor, image: Tensor) -> Tensor:
        pairs = [captured_values(problem.window, w, image) for w in (dense_weight(problem.kept, kept), teacher)]
        return sum(c * F.mse_loss(y, t) for c, y, t in zip(problem.coefficients, *pairs, strict=True))  # type: ignore[return-value]

    gradients = []
    for image in torch.cat(problem.parts).split(1):
        point = problem.point.clone().requires_grad_()
        gradients.append(torch.autograd.grad(image_loss(point, image), point)[0])
    each, mean = torch.stack(gradients), torch.stack(gradients).mean(0)
    fisher = each.T @ each / len(each)

    targets = [[t.detach() for t in captured_values(problem.window, teacher, part)] for part in problem.parts]
    batches = [replace(batch, targets=own) for batch, own in zip(problem.batches, targets, strict=True)]
    objective = problem.objective(batches=batches, curvature_kind="empirical_fisher")
    matrix = dense(objective.product(problem.point), problem.kept.count)
    bend = mean @ problem.gauss_newton() @ mean
    assert_entries_close(matrix, fisher * (bend / (mean @ fisher @ mean)), rtol=1e-8, atol=1e-10, what=f"{name} {site}")


def test_passes_are_counted_by_the_images_looked_at() -> None:
    problem = case("mlp", "0.weight", ALL)  # batches of one, two and three images
    objective = problem.objective()
    objective.loss(problem.point)
    objective.loss_and_gradient(problem.point)
    assert objective.num_passes == pytest.approx(2)
    objective.loss_and_gradient(problem.point)  # known
    objective.gradient(problem.point, [1])
    assert objective.num_passes == pytest.approx(2 + 2 / 6)
    product = objective.product(problem.point, [0, 1])
    for _ in range(3):
        product(problem.point)
    assert objective.num_passes == pytest.approx(2 + 2 / 6 + 4 * 3 / 6)


@pytest.mark.slow
@TABLE
def test_gauss_newton_is_positive_semi_definite(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    matrix = dense(problem.objective().product(problem.point), problem.kept.count)
    eigenvalues = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert float(eigenvalues[0]) >= -1e-12 * float(eigenvalues[-1])
    assert float(eigenvalues[-1]) > 0


def test_the_hessian_bends_downwards_where_gauss_newton_does_not() -> None:
    problem = case("mlp", "0.weight", ALL)
    assert float(torch.linalg.eigvalsh(problem.hessian())[0]) < -1e-6
    assert float(torch.linalg.eigvalsh(problem.gauss_newton())[0]) > -1e-12


def test_all_products_agree_where_the_window_is_linear() -> None:
    problem = case("residual", "conv1.weight", 0)
    matrices = [dense(problem.objective(curvature_kind=kind).product(problem.point), problem.kept.count) for kind in CURVATURES]
    for other in matrices[1:]:
        assert_entries_close(other, matrices[0], **tolerance("finite_difference"))


@pytest.mark.parametrize("kind", CURVATURES)
@pytest.mark.parametrize(("name", "site", "k"), [CASES[2], CASES[8], CASES[11]], ids=["residual", "fused", "module"])
def test_several_unequal_batches_are_one_batch(name: str, site: str, k: int, kind: str) -> None:
    problem = case(name, site, k)
    images = torch.cat(problem.parts)
    # A batch's targets are a function of its images; the axis that holds the images differs from node to node.
    teacher = dense_weight(problem.kept, 0.5 * random(problem.kept.count))

    def batch(part: Tensor) -> Batch:
        inputs = window_inputs(problem.window, part)
        return Batch(inputs, [t.detach() for t in problem.window.outputs(teacher, inputs)], len(part))

    several = problem.objective(curvature_kind=kind, batches=[batch(p) for p in problem.parts])
    one = problem.objective(curvature_kind=kind, batches=[batch(images)])
    assert several.losses(problem.point) == pytest.approx(one.losses(problem.point), rel=1e-10)
    assert_entries_close(several.loss_and_gradient(problem.point)[1], one.loss_and_gradient(problem.point)[1], rtol=1e-9)
    v = random(problem.kept.count)
    assert_entries_close(several.product(problem.point)(v), one.product(problem.point)(v), **tolerance(kind))


@pytest.mark.parametrize("kind", CURVATURES)
def test_a_product_on_some_batches_is_the_curvature_of_their_images(kind: str) -> None:
    problem = case("residual", "conv1.weight", 3)
    chosen = [0, 2]
    product = problem.objective(curvature_kind=kind).product(problem.point, chosen)
    whole = problem.objective(curvature_kind=kind, batches=[problem.batches[i] for i in chosen]).product(problem.point)
    v = random(problem.kept.count)
    assert_entries_close(product(v), whole(v), rtol=1e-9)
    if kind == "gauss_newton":
        assert_entries_close(product(v), problem.gauss_newton(chosen) @ v, rtol=1e-9)


def test_a_coefficient_of_zero_leaves_a_value_out() -> None:
    problem = case("mlp", "0.weight", ALL)
    coefficients = [0.0, 0.0, 2.0, 0.0, 0.0]
    objective = problem.objective(coefficients=coefficients)
    assert objective.loss(problem.point) == pytest.approx(2 * objective.losses(problem.point)[2], rel=1e-12)
    assert objective.loss_and_gradient(problem.point)[0] == pytest.approx(objective.loss(problem.point), rel=1e-12)
    shorter = case("mlp", "0.weight", 2)
    alone = shorter.objective(coefficients=[0.0, 0.0, 2.0])
    v = random(problem.kept.count)
    assert_entries_close(objective.product(problem.point)(v), alone.product(problem.point)(v))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "site"), [("mlp", "0.weight"), ("mlp", "2.weight"), ("residual", "conv1.weight")])
def test_curvlinops_agrees(name: str, site: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import GGNLinearOperator, HessianLinearOperator
    problem = case(name, site, ALL)

    class Model(nn.Module):
        """The last value of the window as a function of the kept weights."""

        def __init__(self) -> None:
            super().__init__()
            self.kept = nn.Parameter(problem.point.clone())

        def forward(self, images: Tensor) -> Tensor:
            weight = dense_weight(problem.kept, self.kept)
            values = problem.window.values(weight, window_inputs(problem.window, images))
            return values[problem.window.captured[-1]]

    model = Model()
    data = [(part, targets[-1]) for part, targets in zip(problem.parts, problem.targets, strict=True)]
    coefficients = [0.0] * (len(problem.coefficients) - 1) + [1.0]
    v = random(problem.kept.count)
    for kind, operator in (("gauss_newton", GGNLinearOperator), ("hessian", HessianLinearOperator)):
        witness = operator(model, nn.MSELoss(), [model.kept], data)
        product = problem.objective(curvature_kind=kind, coefficients=coefficients).product(problem.point)
        assert_entries_close(product(v), (witness @ v).detach(), rtol=1e-8, atol=1e-10, what=kind)


# --- the pull toward the dense values ---


@pytest.mark.parametrize("kind", CURVATURES)
@TABLE
def test_a_pull_is_a_quadratic_in_loss_gradient_and_curvature(name: str, site: str, k: int, kind: str) -> None:
    problem, pull = case(name, site, k), 0.3
    objective = problem.objective(curvature_kind=kind, dense=problem.weight, pull=pull)
    everything = KeptWeights(torch.ones_like(problem.mask), problem.weight.shape)
    point = to_matrix(problem.kept.expand(problem.point)).flatten().requires_grad_()
    loss = replace(problem, kept=everything).loss(point) + pull * (point - to_matrix(problem.weight).flatten()).square().sum()
    (gradient,) = torch.autograd.grad(loss, point)
    assert objective.loss(problem.point) == pytest.approx(float(loss), rel=1e-12)
    value, slope = objective.loss_and_gradient(problem.point)
    assert value == pytest.approx(float(loss), rel=1e-12)
    assert_entries_close(slope, gradient[problem.kept.places], rtol=1e-9, atol=1e-12)
    assert_entries_close(objective.full_gradient(problem.point).flatten(), gradient, rtol=1e-9, atol=1e-12)
    product, _ = objective.curvature(problem.point, 0)
    expected = oracle(problem, kind) + 2 * pull * torch.eye(problem.kept.count, dtype=torch.float64)
    assert_entries_close(dense(product, problem.kept.count), expected, what=kind, **tolerance(kind))
    # What is reported is the window's own.
    assert objective.losses(problem.point) == pytest.approx(problem.objective().losses(problem.point), rel=1e-12)


def test_a_pull_is_in_proportion_to_the_window_and_measured_by_the_probe_of_the_first_step() -> None:
    problem, pulls = case("residual", "conv1.weight", 3), []
    inputs = [b.inputs[problem.site.input] for b in problem.batches]
    gram = input_gram(problem.site, inputs, CPU)
    ridge = 0.1 * float(gram.diagonal().mean())
    blocks = RowBlocks(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), problem.kept)
    for seed in range(300):
        objective = problem.objective(row_systems=lambda: blocks, dense=problem.weight, seed=seed)
        objective.pull_like(ridge, problem.point)
        objective.curvature(problem.point, 0)
        assert objective.num_products == 1
        pulls.append(objective.pull)
    # Over many probes: half the ridge times the trace of the curvature over that of the Gram matrix, kept by kept.
    own = float((problem.mask * gram.diagonal()).sum())
    expected = ridge / 2 * float(problem.gauss_newton().diagonal().sum()) / own
    assert sum(pulls) / len(pulls) == pytest.approx(expected, rel=0.1)


# --- what Newton asks for ---


@pytest.mark.slow
def test_curvature_is_damped_relative_to_its_mean_diagonal() -> None:
    problem = case("residual", "conv1.weight", 3)
    matrix = problem.gauss_newton()
    objective = problem.objective(damping=0.1)
    product, preconditioner = objective.curvature(problem.point, 0)
    damped = dense(product, problem.kept.count)
    identity = torch.eye(problem.kept.count, dtype=torch.float64)
    assert objective.last_damping > 0
    assert_entries_close(damped, matrix + objective.last_damping * identity, rtol=1e-9)
    v = random(problem.kept.count)
    assert torch.equal(preconditioner(v), v)
    # One probe estimates the mean diagonal to a few tens of percent; many probes settle it.
    dampings = []
    for seed in range(300):
        objective = problem.objective(damping=0.1, seed=seed)
        objective.curvature(problem.point, 0)
        dampings.append(objective.last_damping)
    assert sum(dampings) / len(dampings) == pytest.approx(0.1 * float(matrix.diagonal().mean()), rel=0.1)


def test_the_preconditioner_is_symmetric_positive_definite_and_worth_having(small_groups: None) -> None:
    problem = case("strided", "4.weight", 1)
    inputs = [b.inputs[problem.site.input] for b in problem.batches]
    blocks = RowBlocks(input_gram(problem.site, inputs, CPU), problem.kept)
    product, preconditioner = problem.objective(row_systems=lambda: blocks, damping=1e-6).curvature(problem.point, 0)
    inverse, matrix = dense(preconditioner, problem.kept.count), dense(product, problem.kept.count)
    assert_entries_close(inverse, inverse.T, rtol=1e-7, atol=1e-9)
    assert float(torch.linalg.eigvalsh(inverse)[0]) > 0
    root = torch.linalg.cholesky(matrix)
    whitened = torch.linalg.eigvalsh(root.T @ inverse @ root)
    plain = torch.linalg.eigvalsh(matrix)
    assert whitened[-1] / whitened[0] < 0.2 * plain[-1] / plain[0]


def test_curvature_batches_are_a_seeded_share_drawn_anew_each_step() -> None:
    problem = case("mlp", "0.weight", 0)
    batches = [replace(batch, images=5) for batch in problem.batches * 4]
    objective = problem.objective(batches=batches, curvature_share=0.25, seed=3)
    draws = [objective.curvature_batches(step) for step in range(8)]
    assert all(len(d) == 3 and d == sorted(set(d)) and set(d) <= set(range(12)) for d in draws)
    assert draws == [objective.curvature_batches(step) for step in range(8)]
    assert len({tuple(d) for d in draws}) > 1
    other = problem.objective(batches=batches, curvature_share=0.25, seed=4)
    assert draws != [other.curvature_batches(step) for step in range(8)]
    assert problem.objective(batches=batches, curvature_share=1.0).curvature_batches(0) == list(range(12))
    assert len(problem.objective(batches=batches, curvature_share=1e-9).curvature_batches(0)) == 1


@pytest.mark.parametrize("kind", ["gauss_newton", "hessian"])
def test_linearizations_made_again_for_want_of_memory_give_the_same_bits(kind: str) -> None:
    problem = case("residual", "conv1.weight", 2)
    kept, enough = problem.objective(curvature_kind=kind), problem.objective(curvature_kind=kind, memory=0)
    vector = torch.randn(problem.point.shape, dtype=torch.float64)
    first, again = kept.product(problem.point), enough.product(problem.point)
    for v in (vector, 2 * vector):
        assert torch.equal(first(v), again(v))


def test_targets_made_again_are_the_dense_windows_outputs() -> None:
    problem = case("residual", "conv1.weight", 2)
    held = [replace(b, targets=[t.detach() for t in problem.window.outputs(problem.weight, b.inputs)]) for b in problem.batches]
    remade = [replace(b, targets=Remade(problem.window, problem.weight, b.inputs)) for b in problem.batches]
    assert all(
        torch.equal(one[-1], other[-1])
        for one, other in zip((b.targets for b in held), (b.targets for b in remade), strict=True)
    )
    one, other = problem.objective(batches=held), problem.objective(batches=remade)
    assert one.losses(problem.point) == other.losses(problem.point)
    assert torch.equal(one.loss_and_gradient(problem.point)[1], other.loss_and_gradient(problem.point)[1])


def test_the_sampled_loss_is_of_other_images_than_curvature() -> None:
    problem = case("mlp", "0.weight", 0)
    batches = [replace(batch, images=5) for batch in problem.batches * 4]
    objective = problem.objective(batches=batches, curvature_share=0.25, seed=3)
    for step in range(4):
        curved = objective.curvature_batches(step)
        others = [i for i in range(12) if i not in curved][:3]
        alone = problem.objective(batches=[batches[i] for i in others])
        assert objective.sampled_loss(problem.point, step) == pytest.approx(alone.loss(problem.point), rel=1e-12)
    all_of_them = problem.objective(batches=batches, curvature_share=1.0)
    assert all_of_them.sampled_loss(problem.point, 0) == pytest.approx(all_of_them.loss(problem.point), rel=1e-12)


@pytest.mark.parametrize("sizes", [[1, 40, 40, 40, 40], [40, 1, 1, 1, 40, 40], [100, 7, 7, 7, 7], [3] * 50 + [50]])
def test_curvature_is_measured_on_a_share_of_the_images_whatever_the_batches(sizes: list[int]) -> None:
    problem = case("mlp", "0.weight", 0)
    batches = [replace(problem.batches[0], images=images) for images in sizes]
    objective = problem.objective(batches=batches, curvature_share=0.25)
    for step in range(40):
        images = sum(sizes[i] for i in objective.curvature_batches(step))
        assert abs(images - 0.25 * sum(sizes)) <= max(sizes) / 2 or images == max(sizes)


# --- the layer's own inputs ---


def site_and_module(layer: nn.Module, image: tuple[int, ...]) -> tuple[Any, nn.Module]:
    module = nn.Sequential(layer).double().eval()
    graph = NetworkGraph.export(module, torch.zeros(2, *image, dtype=torch.float64))
    return graph.sites[0], module


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)},
    {"kernel_size": (2, 4), "padding": (0, 3), "dilation": (2, 1)},
    {"kernel_size": 3, "stride": (1, 2), "padding": 2, "dilation": 2, "bias": False},
    {"kernel_size": (2, 3), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": (3, 2), "stride": 2, "padding": "valid"},
    {"kernel_size": (7, 8)},  # the whole image
    {"kernel_size": 3, "stride": 3, "padding": 1, "padding_mode": "circular"},
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("settings_", CONVOLUTIONS, ids=str)
def test_input_rows_of_a_convolution(settings_: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, **settings_)
    site, module = site_and_module(layer, (3, 7, 8))
    images = random(2, 3, 7, 8)
    layer_input = images
    if settings_.get("padding_mode") == "circular":
        layer_input = F.pad(images, (1, 1, 1, 1), mode="circular")
    rows = input_rows(site, layer_input)
    with torch.no_grad():
        output = module(images)
    bias = 0 if layer.bias is None else layer.bias.detach()
    # One output value is one row times the weight's row.
    assert_entries_close(rows @ to_matrix(layer.weight.detach()).T + bias, rows_of_output(site, output), rtol=1e-10)
    if settings_.get("padding", 0) == "same" or "padding_mode" in settings_:
        return
    padding = 0 if settings_.get("padding") == "valid" else settings_.get("padding", 0)
    unfolded = F.unfold(
        images, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride
    )  # (N, I * kh * kw, L)
    kh, kw = layer.kernel_size
    expected = unfolded.view(2, 3, kh, kw, -1).permute(0, 4, 2, 3, 1).reshape(-1, 3 * kh * kw)
    assert torch.equal(rows, expected)


def test_input_rows_of_a_linear_layer_are_its_tokens() -> None:
    site, module = site_and_module(nn.Linear(4, 6), (5, 4))
    x = random(2, 5, 4)
    assert torch.equal(input_rows(site, x), x.flatten(0, 1))
    with torch.no_grad():
        assert torch.equal(rows_of_output(site, module(x)), module(x).flatten(0, 1))


@pytest.mark.parametrize(("name", "site", "k"), [CASES[0], CASES[8], CASES[13]], ids=["residual", "fused", "strided"])
def test_gram_and_cross_are_means_over_all_rows(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    inputs = [b.inputs[problem.site.input] for b in problem.batches]
    rows = torch.cat([input_rows(problem.site, x) for x in inputs])
    assert_entries_close(input_gram(problem.site, inputs, CPU), rows.T @ rows / len(rows), rtol=1e-10)
    assert_entries_close(input_mean(problem.site, inputs, CPU), rows.mean(0), rtol=1e-10)
    bias = random(problem.site.shape[0])
    outputs = [t[0] for t in problem.targets]
    wanted = torch.cat([rows_of_output(problem.site, y) for y in outputs])
    for b in (None, bias):
        expected = (wanted if b is None else wanted - b).T @ rows / len(rows)
        assert_entries_close(input_output_cross(problem.site, inputs, outputs, b, CPU), expected, rtol=1e-10)


# --- addresses of the kept weights ---


@st.composite
def masks(draw: st.DrawFn) -> tuple[Tensor, tuple[int, ...]]:
    if draw(st.booleans()):
        shape: tuple[int, ...] = (draw(st.integers(1, 8)), draw(st.integers(1, 9)))
    else:
        shape = (draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    rows, columns = shape[0], int(torch.Size(shape[1:]).numel())
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    return torch.rand((rows, columns), generator=generator) < density, shape


@given(masks(), st.integers(1, 4000))
@settings(max_examples=60)
def test_expand_and_restrict_are_inverse_and_groups_cover_every_weight_once(
    drawn: tuple[Tensor, tuple[int, ...]], limit: int
) -> None:
    mask, shape = drawn
    kept = KeptWeights(mask, shape)
    assert kept.count == int(mask.sum())
    values = torch.arange(1, kept.count + 1, dtype=torch.float64)
    weight = kept.expand(values)
    assert weight.shape == shape
    assert torch.equal(kept.restrict(weight), values)
    assert torch.equal(to_matrix(weight) != 0, mask)
    full = random(*shape)
    assert torch.equal(kept.expand(kept.restrict(full)), full * from_matrix(mask, shape))

    groups = kept.groups(bytes_per_value=8, limit=limit)
    seen: list[int] = []
    for group in groups:
        lanes = ~group.empty
        assert group.rows.shape[0] == 1 or group.slots.numel() * group.slots.shape[1] * 8 <= limit
        seen += group.slots[lanes].tolist()
        assert set(group.slots[group.empty].tolist()) <= {kept.count}
        places = kept.places[group.slots[lanes]]
        rows = group.rows[:, None].expand_as(group.slots)[lanes]
        assert torch.equal(places, rows * mask.shape[1] + group.columns[lanes])
    assert sorted(seen) == list(range(kept.count))


# --- per-row factors ---


def problem_rows(rows: int, inputs: int, samples: int, mask: Tensor, seed: int = 0) -> SimpleNamespace:
    x, y = random(samples, inputs, seed=seed), random(samples, rows, seed=seed + 1)
    kept = KeptWeights(mask, (rows, inputs))
    return SimpleNamespace(x=x, y=y, kept=kept, gram=x.T @ x / samples, cross=y.T @ x / samples)


def ragged(rows: int, inputs: int, seed: int = 0) -> Tensor:
    """A mask whose rows keep from none to all of their weights."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.linspace(0, 1, rows)[torch.randperm(rows, generator=generator)]
    return torch.rand((rows, inputs), generator=generator) < shares[:, None]


@pytest.mark.parametrize("mask", [ragged(17, 12), ragged(17, 12, 1), torch.eye(12).bool(), torch.ones(3, 12).bool()])
@pytest.mark.parametrize("limit", [64, 2**11, 2**28])
def test_least_squares_is_lstsq_row_by_row(mask: Tensor, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptWeights, "groups", partialmethod(KeptWeights.groups, limit=limit))
    p = problem_rows(*mask.shape, samples=60, mask=mask)
    solution = p.kept.expand(RowBlocks(p.gram, p.kept, ridge=1e-14).least_squares(p.cross))
    expected = torch.zeros_like(solution)
    for r, row in enumerate(mask):
        if row.any():
            expected[r, row] = torch.linalg.lstsq(p.x[:, row], p.y[:, r : r + 1]).solution[:, 0]
    assert_entries_close(solution, expected, rtol=1e-8, atol=1e-9)


def test_least_squares_has_no_better_neighbour() -> None:
    mask = ragged(9, 8)
    p = problem_rows(9, 8, samples=40, mask=mask)
    solution = RowBlocks(p.gram, p.kept).least_squares(p.cross)

    def loss(kept: Tensor) -> float:
        return float((p.x @ p.kept.expand(kept).T - p.y).square().mean())

    for seed in range(5):
        for step in (1e-2, 1e-4):
            assert loss(solution + step * random(p.kept.count, seed=seed)) > loss(solution)


def test_dead_inputs_get_weight_zero_and_break_nothing() -> None:
    mask = ragged(7, 10)
    mask[3] = True
    p = problem_rows(7, 10, samples=30, mask=mask)
    dead = torch.tensor([0, 4])
    p.x[:, dead] = 0
    gram, cross = p.x.T @ p.x / 30, p.y.T @ p.x / 30
    solution = p.kept.expand(RowBlocks(gram, p.kept).least_squares(cross))
    assert not bool(solution[:, dead].any())
    row, alive = 3, torch.ones(10, dtype=torch.bool).index_fill(0, dead, False)
    expected = torch.linalg.lstsq(p.x[:, alive], p.y[:, row : row + 1]).solution[:, 0]
    assert_entries_close(solution[row, alive], expected, rtol=1e-5, atol=1e-6)


def test_what_the_images_leave_open_stays_at_the_prior() -> None:
    # 4 samples for 10 inputs: the exact minimizer nearest the prior is the prior plus the pseudo-inverse's correction.
    p = problem_rows(3, 10, samples=4, mask=torch.ones(3, 10, dtype=torch.bool))
    prior = random(30, seed=5)
    solution = p.kept.expand(RowBlocks(p.x.T @ p.x / 4, p.kept).least_squares(p.y.T @ p.x / 4, prior))
    start = prior.view(3, 10)
    expected = start + (torch.linalg.pinv(p.x) @ (p.y - p.x @ start.T)).T
    assert_entries_close(solution, expected, rtol=1e-4, atol=1e-5)


def test_inputs_that_are_all_zero_break_nothing() -> None:
    kept = KeptWeights(torch.ones(2, 3, dtype=torch.bool), (2, 3))
    blocks = RowBlocks(torch.zeros(3, 3), kept)
    assert torch.equal(blocks.least_squares(torch.zeros(2, 3)), torch.zeros(6))


def test_duplicate_inputs_break_nothing() -> None:
    mask = torch.ones(3, 6, dtype=torch.bool)
    p = problem_rows(3, 6, samples=30, mask=mask)
    p.x[:, 5] = p.x[:, 2]
    gram, cross = p.x.T @ p.x / 30, p.y.T @ p.x / 30
    solution = p.kept.expand(RowBlocks(gram, p.kept).least_squares(cross))
    best = torch.linalg.lstsq(p.x, p.y, driver="gelsd").solution
    assert float((p.x @ solution.T - p.y).square().sum()) == pytest.approx(float((p.x @ best - p.y).square().sum()), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_fewer_single_precision_samples_than_weights_break_nothing(seed: int) -> None:
    # Eight images give the head of a network 64 inputs: the Gram matrix has rank 8, and rounding makes it indefinite.
    mask = ragged(10, 64, seed)
    x, y = random(8, 64, seed=seed).relu().float() + 1, random(8, 10, seed=seed + 1).float()
    gram, kept = x.T @ x / 8, KeptWeights(mask, (10, 64))
    assert float(torch.linalg.eigvalsh(gram.double())[0]) < 0
    blocks = RowBlocks(gram, kept)
    weight = kept.expand(blocks.least_squares(y.T @ x / 8))
    assert bool(torch.isfinite(weight).all())
    enough = mask.sum(1) >= 8
    assert float((x @ weight[enough].T - y[:, enough]).square().mean()) < 1e-4 * float(y.square().mean())
    assert bool(torch.isfinite(blocks.solve(kept.restrict(weight), torch.ones(10))).all())


def test_a_gram_matrix_that_is_none_gives_a_sentence() -> None:
    gram = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    with pytest.raises(ReconstructionError, match=r"is not positive definite\. Use float64 or more images\."):
        RowBlocks(gram, KeptWeights(torch.ones(1, 2, dtype=torch.bool), (1, 2))).least_squares(torch.ones(1, 2))


@pytest.mark.parametrize("after_least_squares", [True, False])
@pytest.mark.parametrize("limit", [64, 2**11, 2**28])
def test_solve_is_the_inverse_of_the_dense_blocks(
    after_least_squares: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeptWeights, "groups", partialmethod(KeptWeights.groups, limit=limit))
    mask = ragged(13, 9)
    p = problem_rows(13, 9, samples=40, mask=mask)
    blocks = RowBlocks(p.gram, p.kept, ridge=1e-3)
    if after_least_squares:
        blocks.least_squares(p.cross)
    groups = p.kept.groups(bytes_per_value=8)
    assert limit == 2**28 or len(groups) > 2
    per_row = 0.5 + torch.arange(13, dtype=torch.float64)
    v = random(p.kept.count)
    solved = p.kept.expand(blocks.solve(v, per_row))
    expected, matrix = torch.zeros(13, 9, dtype=torch.float64), p.kept.expand(v)
    ridge = 1e-3 * float(p.gram.diagonal().mean())
    for r, row in enumerate(mask):
        block = p.gram[row][:, row] + ridge * torch.eye(int(row.sum()), dtype=torch.float64)
        expected[r, row] = torch.linalg.solve(block, matrix[r, row]) / per_row[r]
    assert_entries_close(solved, expected, rtol=1e-7, atol=1e-9)


def test_quadratic_is_that_of_each_row() -> None:
    p = problem_rows(11, 7, samples=20, mask=ragged(11, 7))
    v = random(p.kept.count)
    expected = (p.kept.expand(v) @ p.x.T).square().sum(1) / 20
    assert_entries_close(RowBlocks(p.gram, p.kept).quadratic(v), expected, rtol=1e-10)


@TABLE
def test_the_full_gradient_is_that_of_the_pruned_weights_too(name: str, site: str, k: int) -> None:
    problem = case(name, site, k)
    full = problem.objective().full_gradient(problem.point)
    everything = KeptWeights(torch.ones_like(problem.mask), problem.weight.shape)
    point = to_matrix(problem.kept.expand(problem.point)).flatten().requires_grad_()
    (expected,) = torch.autograd.grad(replace(problem, kept=everything).loss(point), point)
    assert_entries_close(full.flatten(), expected, rtol=1e-9, atol=1e-12)
    assert bool((full[~problem.mask] != 0).any())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite_give_a_sentence(bad: float) -> None:
    gram = torch.eye(3)
    gram[1, 1] = bad
    with pytest.raises(ReconstructionError, match=r"calibration inputs hold NaN or infinity\. Check the images"):
        RowBlocks(gram, KeptWeights(torch.ones(2, 3, dtype=torch.bool), (2, 3)))


@pytest.fixture(autouse=True)
def _nothing_is_left_switched_over() -> Iterator[None]:
    before = torch.backends.cuda.flash_sdp_enabled()
    yield
    assert torch.backends.cuda.flash_sdp_enabled() == before


def test_an_objective_leaves_the_weights_and_batches_alone() -> None:
    problem = case("fused", "qkv.weight", ALL)
    batches = problem.batches
    copies = [{n: v.clone() for n, v in b.inputs.items() if isinstance(v, Tensor)} for b in batches]
    point = problem.point.clone()
    for kind in CURVATURES:
        objective: Objective = problem.objective(batches=batches, curvature_kind=kind)
        objective.loss_and_gradient(point)
        objective.product(point)(point)
    assert torch.equal(point, problem.point)
    assert not point.requires_grad
    assert all(torch.equal(b.inputs[n], v) for b, c in zip(batches, copies, strict=True) for n, v in c.items())
