"""What every network of the zoo is held to, whoever wrote it."""

import copy

import torch
from torch import Tensor, nn

from snows.config import CURVATURES, PruneConfig
from snows.method.graph import NetworkGraph, Window
from snows.method.linearization import Linearization
from snows.method.objective import Batch, Objective
from snows.method.pruner import PruneResult, prune
from snows.method.rows import KeptWeights
from snows.method.sparsity import to_matrix
from snows.method.units import removable, shrink
from tests.snows.helpers import window_inputs


def noise(shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_window(window: Window, images: Tensor) -> None:
    """Forwards and backwards are each other's transposes, and what the values do when the weight moves a little (float64)."""
    graph = window.graph
    inputs, weight = window_inputs(window, graph.laid_out(images)), graph.parameters[window.site.name]
    linear, vector = Linearization(window, weight, inputs), noise(weight.shape, 1)
    moved, cotangents = linear.push(vector), [noise(y.shape, 2 + k) for k, y in enumerate(linear.outputs)]
    pulled = linear.pull(cotangents)
    forwards = sum(float((u * v).sum()) for u, v in zip(cotangents, moved, strict=True))
    size = float(vector.norm() * pulled.norm()) + 1e-9
    assert abs(forwards - float((pulled * vector).sum())) <= 1e-9 * size, window.site.name
    step = 1e-8 * float(weight.norm() / vector.norm())  # so short that hardly a value meets a kink on its way
    ahead, behind = (window.outputs(weight + sign * step * vector, inputs) for sign in (1, -1))
    for k, (move, after, before) in enumerate(zip(moved, ahead, behind, strict=True)):
        difference = (after - before) / (2 * step)
        error, rounding = float((move - difference).norm()), 1e-15 * float(after.norm()) / step
        assert error <= 1e-4 * float(move.norm()) + rounding, f"{window.site.name}: {window.operations[k]} moves otherwise"


def check_curvatures(window: Window, images: Tensor) -> None:
    """The three kinds of curvature are one where the errors are zero."""
    graph = window.graph
    inputs, weight = window_inputs(window, graph.laid_out(images)), graph.parameters[window.site.name]
    kept = KeptWeights(torch.ones_like(to_matrix(weight), dtype=torch.bool), weight.shape)
    point = kept.restrict(weight)
    with torch.no_grad():
        batch = Batch(inputs, window.outputs(weight, inputs), len(images))
    vector = noise(point.shape, 1)
    products = {}
    for kind in CURVATURES:
        objective = Objective(
            window,
            kept,
            [batch],
            coefficients=[1.0] * len(window.captured),
            device=torch.device("cpu"),
            curvature_kind=kind,
        )
        products[kind] = objective.product(point)(vector)
    expected = products.pop("gauss_newton")
    for kind, product in products.items():
        error = float((product - expected).norm() / expected.norm().clamp(min=1e-300))
        assert error <= (1e-8 if kind == "hessian" else 1e-3), f"{window.site.name}: {kind} is off by {error:.1e}"


def check_run(module: nn.Module, images: Tensor, config: PruneConfig) -> PruneResult:
    """A run comes to its end, no layer worse than by its mask alone; `module` is untouched and its copy as it was given."""

    def forms(of: nn.Module) -> dict[str, object]:
        return {key: (t.dtype, t.device, t.stride()) for key, t in of.state_dict().items()}

    before = copy.deepcopy(module.state_dict())
    training = {name: part.training for name, part in module.named_modules()}
    learned = {name: p.requires_grad for name, p in module.named_parameters()}
    result = prune(module, images, config)
    assert {name: part.training for name, part in module.named_modules()} == training
    assert all(torch.equal(before[key], t) for key, t in module.state_dict().items())
    assert {name: part.training for name, part in result.model.named_modules()} == training
    assert {name: p.requires_grad for name, p in result.model.named_parameters()} == learned
    assert forms(result.model) == forms(module)
    tied = {module.get_parameter(name).data_ptr() for name in result.masks}
    for key, tensor in result.model.state_dict().items():
        assert key in result.masks or torch.equal(before[key], tensor) or module.state_dict()[key].data_ptr() in tied, key
        assert bool(torch.isfinite(tensor).all()), key
    for name, mask in result.masks.items():
        assert not bool(result.model.get_parameter(name)[~mask].any()), name
    assert all(record.losses["final"] <= record.losses["mask_only"] for record in result.sites)
    assert len(result.sites) == len(result.masks)
    return result


def check_answers(graph: NetworkGraph, module: nn.Module, images: Tensor) -> None:
    """The graph answers as the module does (float64)."""
    with torch.no_grad():
        expected = module(images)
    answer = graph.run(images)[0]
    assert float((answer - expected).norm()) <= 1e-9 * float(expected.norm()) + 1e-9


@torch.no_grad()
def check_cut(module: nn.Module, images: Tensor) -> int:
    """Half of the units of every group, drawn at random and read by nobody, can be cut away, and the smaller network answers as
    the masked one does (float64). Returns how many groups there are."""
    groups = removable(NetworkGraph.export(module, images[:2])).groups
    generator, gone = torch.Generator().manual_seed(0), 0
    for group in groups:
        order = torch.randperm(len(group), generator=generator)[: len(group) // 2]
        gone += len(order)
        for name, channels in group.columns.items():
            module.get_parameter(name)[:, channels[order].flatten()] = 0
    smaller = shrink(module, images[:2])
    expected, before = module(images), sum(p.numel() for p in module.parameters())
    assert float((smaller(images) - expected).norm()) <= 1e-9 * float(expected.norm())
    assert not gone or sum(p.numel() for p in smaller.parameters()) < before
    return len(groups)
