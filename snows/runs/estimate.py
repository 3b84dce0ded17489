"""What a config would do, and about how long and how much memory it would take."""

import math
import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from snows.config import PruneConfig, RunConfig
from snows.method.coverage import coverage, resolve_device, samples, scarcity, to_fit
from snows.method.graph import NetworkGraph, Site
from snows.method.operations import execute_node
from snows.sources import models


@dataclass(frozen=True)
class SitePlan:
    """A weight that will be pruned; `operations` are the names in its window. `samples`: how many inputs of a row the images
    give, images times output positions; `to_fit`: about how many weights of a row are fitted on them."""

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float
    operations: list[str]
    samples: int = 0
    to_fit: int = 0


@dataclass(frozen=True)
class Plan:
    """What a config would do. `seconds` and `bytes` are estimates from one timed pass of a few images. `warning`: that the
    images are too few for a layer, or nothing."""

    sites: list[SitePlan]
    skipped: dict[str, str]
    seconds: float
    bytes: int
    warning: str = ""


def plan(config: RunConfig) -> Plan:
    """The sites and windows of a run, why other weights stay dense, and about what it takes. Raises `InputError` for a bad
    config."""
    device = resolve_device(config.prune.device)
    model = models.load_configured(config, pretrained=False)  # only the structure counts
    module = model.module.to(device=device, dtype=getattr(torch, config.prune.precision))
    example = torch.zeros(8, *model.input_size, device=device, dtype=getattr(torch, config.prune.precision))
    graph = NetworkGraph.export(module, example)
    covered = coverage(graph, config.prune)
    seconds, sizes = _profile(graph, example)
    windows = {s.name: graph.window(s, config.prune.k_steps) for s in covered.sites}
    sites = [
        SitePlan(
            s.name,
            s.kind,
            s.shape,
            covered.patterns[s.name].density,
            windows[s.name].operations,
            samples(graph, s, config.num_calibration),
            to_fit(s, covered.patterns[s.name]),
        )
        for s in covered.sites
    ]
    warning = scarcity(graph, covered, config.prune, config.num_calibration)

    images, total, rows, most = config.num_calibration, 2 * sum(seconds.values()), 0.0, 0.0
    at_once = min(images, max(config.prune.batch_size, _linearized_share(config.prune) * images))
    for site in covered.sites:
        window = windows[site.name]
        forward = sum(seconds[n] for n in window.nodes)
        total += _gram_cost(site) * seconds[site.node] + forward * _window_passes(config.prune)
        held = sum(sizes.get(n, 0.0) for n in {*window.outside, *window.captured})
        saved = 3 * sum(sizes[n] for n in window.nodes)
        factoring, factors = _row_factors(site, covered.patterns[site.name].density, config.prune, example)
        rows += factoring
        most = max(most, 2 * held * (images + config.num_held_back) + saved * at_once + factors)
    weights = sum(t.numel() * t.element_size() for t in graph.parameters.values())
    total = total * images + 2 * sum(seconds.values()) * config.num_held_back
    return Plan(sites, covered.skipped, total + rows, int(4 * weights + most), warning)


def _linearized_share(config: PruneConfig) -> float:
    """The share of the images whose passes through the window are kept for one product after the other."""
    linearized = config.update == "snows" and config.solver.curvature != "finite_difference"
    return config.solver.curvature_share if linearized else 0.0


def _window_passes(config: PruneConfig) -> float:
    """Forward passes through a window that an update takes, counting a backward pass as one more."""
    evaluations = {"none": 2, "least-squares": 3, "sparsegpt": 3, "snows": 3}[config.update]
    if config.update != "snows":
        return evaluations
    solver = config.solver
    # With row blocks about five iterations a decimal digit; without, the cap is met more often than not.
    iterations = min(solver.max_iters, round(-5 * math.log10(solver.rtol)) if solver.preconditioner == "row_blocks" else 50)
    product = {"gauss_newton": 2.0, "hessian": 4.0, "finite_difference": 4.0}[solver.curvature]
    steps = solver.newton_steps * (3 + product * (1 + iterations) * solver.curvature_share)
    exchanges = 3 * (solver.newton_steps - 1) if config.refinement == "window" else 0
    return config.sweeps * (evaluations + steps + exchanges)


def _gram_cost(site: Site) -> float:
    """Cost of the input Gram matrix over that of the layer: P inputs a row against R outputs, as one large matrix product."""
    inputs = int(torch.Size(site.shape[1:]).numel())
    return 1 + 0.5 * inputs / site.shape[0]


def _row_factors(site: Site, density: float, config: PruneConfig, example: Tensor) -> tuple[float, float]:
    """Seconds and bytes of the rows' own systems (`rows.RowBlocks`), which no number of images changes."""
    if config.update not in ("least-squares", "snows"):
        return 0.0, 0.0
    outputs, inputs = site.shape[0], torch.Size(site.shape[1:]).numel()
    size = max(1, round(density * inputs))
    preconditioned = config.update == "snows" and config.solver.preconditioner == "row_blocks"
    masks = {"none": 1, "layer": 2, "window": 1 + config.solver.newton_steps}[config.refinement]
    inverses = 2 * max(1, masks - 1) if preconditioned else 0  # factored again, and inverted for about as much
    seconds = outputs * (masks + inverses) * size**3 * _seconds_of_factors(example.device.type)
    return seconds, 16.0 * inputs**2 + (outputs * size**2 * example.element_size() if preconditioned else 0.0)


@lru_cache
def _seconds_of_factors(device: str) -> float:
    """Of a float64 Cholesky factor (S, S) over S cubed, measured at a small S: it is about the same at a large one."""
    size, count = 64, 64
    blocks = torch.eye(size, dtype=torch.float64, device=device).expand(count, size, size).contiguous()
    seconds = math.inf
    for _ in range(10):  # the first pays for warming up, and a busy machine can hold any of them up
        started = time.perf_counter()
        torch.linalg.cholesky_ex(blocks)[1].cpu()  # read, so that a GPU is done
        seconds = min(seconds, time.perf_counter() - started)
    return seconds / count / size**3


@torch.no_grad()
def _profile(graph: NetworkGraph, example: Tensor) -> tuple[dict, dict]:
    """Seconds and bytes of each node for one image."""
    seconds: dict = {}
    sizes: dict = {graph.input: float(example[0].numel() * example.element_size())}
    for _ in range(2):  # the first pass pays for warming up, and a busy machine can hold up either
        values = graph.bind({}) | {graph.input: graph.laid_out(example)}
        for node in graph.nodes:
            if example.is_cuda:
                torch.cuda.synchronize(example.device)
            started = time.perf_counter()
            value = values[node] = execute_node(node, values)
            if example.is_cuda:
                torch.cuda.synchronize(example.device)
            seconds[node] = min(seconds.get(node, math.inf), (time.perf_counter() - started) / len(example))
            sizes[node] = value.numel() * value.element_size() / len(example) if isinstance(value, Tensor) else 0.0
    return seconds, sizes
