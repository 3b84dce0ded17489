"""Naive float64 oracles, and the tiny problems that every operator is tested on.

Nothing here uses a window or a linearization: a network is run node by node from its parameters, and what the engine computes
without forming it (Jacobians, Hessians) is formed densely by autograd.
"""

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from snows.config import SolverConfig, Unstructured
from snows.method.graph import NetworkGraph, Site, Window
from snows.method.objective import Batch, Objective
from snows.method.problem import SiteProblem
from snows.method.rows import KeptWeights
from snows.method.sparsity import to_matrix

ALL = 10_000  # more steps than any network has


def assert_entries_close(actual: Tensor, expected: Tensor, *, rtol: float = 1e-9, atol: float = 1e-11, what: str = "") -> None:
    """`torch.testing.assert_close` with `atol` relative to the largest expected entry; a failure prints the worst entries."""
    actual, expected = actual.detach(), expected.detach()
    assert actual.shape == expected.shape, f"{what} has shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    error = (actual - expected).abs()
    allowed = atol * max(1.0, float(expected.abs().max())) + rtol * expected.abs()
    wrong = ~(error <= allowed)  # NaN is wrong
    if not bool(wrong.any()):
        return
    worst = torch.where(error.isnan(), torch.inf, error).flatten().argsort(descending=True)[:10]
    lines = [f"{what}: {int(wrong.sum())} of {wrong.numel()} entries differ"]
    for place in worst.tolist():
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), expected.shape))
        lines.append(f"  {index}: {float(actual[index]):.12g} instead of {float(expected[index]):.12g}")
    raise AssertionError("\n".join(lines))


# --- tiny networks ---


class Residual(nn.Module):
    """Convolutions with batch norm, a strided projection shortcut, and operations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, 2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3, self.bn3 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)
        self.shortcut, self.bn4 = nn.Conv2d(4, 4, 1, 2, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(x)))))
        y += self.bn4(self.shortcut(x))
        return self.fc(F.relu_(y).mean((2, 3)))


class Attention(nn.Module):
    """One transformer block on the four patches of a 4x4 image and a class token."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.embed = nn.Conv2d(1, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False)
        if form == "module":
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        else:
            self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def attend(self, x: Tensor) -> Tensor:
        if self.form == "module":
            return self.attention(x, x, x, need_weights=False)[0]
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.form == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.form == "positions":  # relative positions made from the input, as a mask that depends on the weight
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=q @ self.positions[0].view(5, 2, 4).permute(1, 2, 0), scale=0.3
            )
        elif self.form == "grouped":
            y = F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], is_causal=True, enable_gqa=True)
        else:
            y = F.dropout((q @ k.transpose(-2, -1) / 2).softmax(-1), 0.1, self.training) @ v
        return self.proj(y.transpose(1, 2).flatten(2))

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        x = x + self.attend(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])


class Gates(nn.Module):
    """Operations without a rule of their own: gates, pooling, concatenation, padding with a constant, plain arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, padding_mode="reflect")
        self.norm = nn.GroupNorm(2, 6)
        self.squeeze = nn.Linear(6, 6)
        self.mix = nn.Conv2d(12, 4, 3)
        self.slopes = nn.PReLU(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        gate = F.hardsigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1).flatten(1)))[:, :, None, None]
        x = torch.cat([x * gate, 1 - 2 * F.hardswish(x) / 3], 1)
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 2)
        x = F.avg_pool2d(F.pad(self.slopes(self.mix(x)), (1, 0, 1, 0), value=1.5), 2)
        first, second = x.flatten(2).softmax(-1).chunk(2, 1)
        x = torch.cat([first - second, first.sqrt() + 0.5 * second], 1)
        return self.head(x.amax(-1) + x.roll(1, -1).sum(-1))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def _strided() -> nn.Module:
    """Stride, uneven padding and kernels, dilation, and "same" and "valid" padding."""
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2)),
        nn.SiLU(),
        nn.Conv2d(4, 4, (2, 3), padding="same", dilation=(1, 2), bias=False),
        nn.Sigmoid(),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Softplus(),
        nn.Conv2d(4, 4, (1, 2), stride=2, padding="valid"),
        nn.Flatten(),
        nn.Linear(4 * 2 * 4, 3),
    )


def _sound() -> nn.Module:
    """The same along one axis, and a pointwise one of a stride."""
    return nn.Sequential(
        nn.Conv1d(2, 4, 4, stride=2, padding=1),
        nn.BatchNorm1d(4),
        nn.SiLU(),
        nn.Conv1d(4, 4, 2, padding="same", dilation=3, bias=False),
        nn.Sigmoid(),
        nn.Conv1d(4, 4, 1, stride=2),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(4 * 3, 3),
    )


def _video() -> nn.Module:
    """Along three, of which each has its own stride, padding and dilation."""
    return nn.Sequential(
        nn.Conv3d(2, 4, (2, 3, 2), stride=(1, 2, 1), padding=(1, 0, 2), dilation=(2, 1, 1)),
        nn.Softplus(),
        nn.Conv3d(4, 4, 2, padding="same", bias=False),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 6, 6)),
    "mlp": (_mlp, (6,)),
    "fused": (lambda: Attention("fused"), (1, 4, 4)),
    "written": (lambda: Attention("written"), (1, 4, 4)),
    "module": (lambda: Attention("module"), (1, 4, 4)),
    "positions": (lambda: Attention("positions"), (1, 4, 4)),
    "grouped": (lambda: Attention("grouped"), (1, 4, 4)),
    "strided": (_strided, (2, 6, 6)),
    "sound": (_sound, (2, 12)),
    "video": (_video, (2, 3, 4, 5)),
    "gates": (Gates, (2, 9, 9)),
}

CASES: list[tuple[str, str, int]] = [
    ("residual", "conv1.weight", 0),
    ("residual", "conv1.weight", 3),
    ("residual", "conv1.weight", ALL),
    ("residual", "shortcut.weight", 2),
    ("residual", "fc.weight", 5),
    ("mlp", "0.weight", 0),
    ("mlp", "0.weight", ALL),
    ("fused", "embed.weight", ALL),
    ("fused", "qkv.weight", ALL),
    ("written", "qkv.weight", ALL),
    ("written", "embed.weight", 4),
    ("module", "attention.in_proj_weight", ALL),
    ("module", "attention.out_proj.weight", 3),
    ("positions", "qkv.weight", ALL),
    ("positions", "embed.weight", 4),
    ("grouped", "qkv.weight", ALL),
    ("strided", "0.weight", ALL),
    ("strided", "2.weight", 2),
    ("strided", "4.weight", 1),
    ("sound", "0.weight", ALL),
    ("sound", "3.weight", 1),
    ("sound", "5.weight", 0),
    ("video", "0.weight", ALL),
    ("video", "2.weight", 0),
    ("gates", "stem.weight", ALL),
]
CASE_IDS = [f"{network}-{site.removesuffix('.weight')}-{'all' if k == ALL else k}" for network, site, k in CASES]


@lru_cache
def network(name: str) -> tuple[nn.Module, NetworkGraph, Tensor]:
    """A network of the table in eval mode and float64 with seeded weights, its graph, and six images. Do not change them."""
    build, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build().double().eval()
        with torch.no_grad():
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    layer.running_mean.normal_()
                    layer.running_var.uniform_(0.5, 2)
                    if layer.affine:
                        layer.weight.uniform_(0.5, 1.5)
                        layer.bias.normal_()
        images = torch.randn(6, *shape, dtype=torch.float64)
    return module, NetworkGraph.export(module, images[:2], torch.contiguous_format), images


def _hardsigmoid(x: Tensor) -> Tensor:
    return F.relu6(x + 3) / 6


@contextmanager
def plain_attention() -> Iterator[None]:
    """PyTorch's own attention on its plain path: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def captured_values(window: Window, weight: Tensor, images: Tensor) -> list[Tensor]:
    """The values at the window's captured nodes from a run of the whole network, differentiable in `weight`."""
    graph = window.graph
    values: dict[Any, Any] = graph.bind({window.site.name: weight})
    values[graph.input] = images
    with plain_attention():
        for node in graph.nodes:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            # The kernel of the hard sigmoid has no second derivative.
            target = _hardsigmoid if node.target is torch.ops.aten.hardsigmoid.default else node.target
            values[node] = target(*args, **kwargs)
    return [values[n] for n in window.captured]


# --- tiny problems ---


@dataclass(frozen=True)
class Case:
    """One reconstruction problem. `parts` are one, two and three images; `point` (n,) is where the loss is looked at."""

    graph: NetworkGraph
    window: Window
    mask: Tensor
    kept: KeptWeights
    parts: list[Tensor]
    targets: list[list[Tensor]]
    coefficients: list[float]
    point: Tensor

    @property
    def site(self) -> Site:
        return self.window.site

    @property
    def weight(self) -> Tensor:
        return self.graph.parameters[self.site.name]

    @property
    def batches(self) -> list[Batch]:
        return [
            Batch(window_inputs(self.window, part), targets, len(part))
            for part, targets in zip(self.parts, self.targets, strict=True)
        ]

    def objective(self, **settings: Any) -> Objective:
        settings = {"coefficients": self.coefficients, "device": torch.device("cpu"), "batches": self.batches} | settings
        return Objective(self.window, self.kept, **settings)

    def residuals(self, kept: Tensor, chosen: Sequence[int] = (0, 1, 2)) -> Tensor:
        """The errors of all captured values on the `chosen` batches, scaled so that their squares add up to the loss."""
        images = sum(len(self.parts[i]) for i in chosen)
        weight, errors = dense_weight(self.kept, kept), []
        for i in chosen:
            values = captured_values(self.window, weight, self.parts[i])
            for c, y, t in zip(self.coefficients, values, self.targets[i], strict=True):
                errors.append((c / y.numel() * len(self.parts[i]) / images) ** 0.5 * (y - t).flatten())
        return torch.cat(errors)

    def loss(self, kept: Tensor) -> Tensor:
        return self.residuals(kept).square().sum()

    def gauss_newton(self, chosen: Sequence[int] = (0, 1, 2)) -> Tensor:
        """2 JᵀJ, (n, n): the Hessian where the errors are zero, so of the loss whose targets are the values at `point`."""
        here = self.residuals(self.point, chosen).detach()
        return torch.autograd.functional.hessian(lambda kept: (self.residuals(kept, chosen) - here).square().sum(), self.point)

    def hessian(self) -> Tensor:
        """(n, n)."""
        return torch.autograd.functional.hessian(self.loss, self.point)


def dense_weight(kept: KeptWeights, values: Tensor) -> Tensor:
    """A weight of the parameter's shape with `values` at the kept places."""
    rows, columns = kept.matrix_shape
    flat = torch.zeros(rows * columns, dtype=values.dtype).index_put((kept.places,), values)
    if len(kept.shape) == 2:
        return flat.view(rows, columns)
    out_channels, in_channels, *kernel = kept.shape
    return flat.view(out_channels, *kernel, in_channels).movedim(-1, 1)


def window_inputs(window: Window, images: Tensor) -> dict[Any, Any]:
    """What the window reads from outside, from a run of the whole network."""
    graph = window.graph
    _, values = graph.run(images, capture=[n for n in window.outside if n is not graph.input])
    return window.inputs(values | {graph.input: images}, graph.bind({}))


@lru_cache
def case(name: str, site_name: str, k_steps: int) -> Case:
    """A problem of the table: a ragged random mask, targets from a network with another weight, coefficients that differ."""
    _, graph, images = network(name)
    site = next(s for s in graph.sites if s.name == site_name)
    window = graph.window(site, k_steps)
    generator = torch.Generator().manual_seed(1)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    weight = graph.parameters[site.name]
    matrix = to_matrix(weight)
    mask = torch.rand(matrix.shape, generator=generator) < 0.4
    mask[0] = False  # a row without any weight
    mask[1] = True  # and one that is full
    kept = KeptWeights(mask, weight.shape)
    parts = list(images.split([1, 2, 3]))
    teacher = weight + 0.5 * noise(weight)
    targets = [[v.detach() for v in captured_values(window, teacher, part)] for part in parts]
    coefficients = [1 / (1 + k) for k in range(len(window.captured))]
    point = kept.restrict(weight) + 0.2 * noise(kept.places)
    return Case(graph, window, mask, kept, parts, targets, coefficients, point)


# Tight, so that what is claimed of the minimum holds to many digits.
TIGHT = SolverConfig(rtol=1e-10, damping=0, min_decrease=0, curvature_share=1, max_iters=500)


def bias_of(problem: Case) -> Tensor | None:
    bias = problem.site.node.args[2] if len(problem.site.node.args) > 2 else None
    return None if bias is None else problem.graph.bind({})[bias]


def site_problem(problem: Case, settings: SolverConfig = TIGHT, propagated: bool = False, **more: Any) -> SiteProblem:
    """The table's problem with its targets, or with the dense weight's own outputs as targets."""
    batches = problem.batches
    if propagated:
        batches = [replace(b, targets=[t.detach() for t in problem.window.outputs(problem.weight, b.inputs)]) for b in batches]
    return SiteProblem(
        problem.window,
        problem.weight,
        problem.mask,
        Unstructured(sparsity=0.6),
        batches,
        [b.inputs[problem.site.input] for b in batches],
        propagated=propagated,
        bias=bias_of(problem),
        config=settings,
        device=torch.device("cpu"),
        seed=0,
        **more,
    )


def dense(product: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """The matrix of a linear operator, column by column."""
    return torch.stack([product(column) for column in torch.eye(size, dtype=torch.float64)], 1)


def zipped(files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> io.BytesIO:
    """A zip file of `files`; `change` may spoil what it says of each."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            target.writestr(info, content)
    return file
