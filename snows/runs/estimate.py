"""What a config would do, and about how long and how much memory it would take."""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean, median, pstdev

import torch
from torch import Tensor
from torch.fx import Node

from snows.config import NM, Budget, LayerPattern, PruneConfig, RunConfig, Structured
from snows.method import curves, joint
from snows.method.budget import NEEDS, choose
from snows.method.coverage import Coverage, coverage, last_remade, resolve_device, samples, scarcity, share_out, to_fit
from snows.method.graph import SAVED, NetworkGraph, Site, Window
from snows.method.operations import execute_node
from snows.method.pruner import check_mask_file
from snows.method.rows import AT_ONCE, LARGEST_BLOCKS, RANK, blocks_bytes
from snows.sources import models


@dataclass(frozen=True)
class SitePlan:
    """A weight that will be pruned; `operations` are the names in its window. `samples`: how many inputs of a row the images
    give, images times output positions; `to_fit`: about how many weights of a row are fitted on them. `seconds`: of its part of
    the run."""

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float
    operations: list[str]
    samples: int = 0
    to_fit: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a config would do. `seconds` and `bytes` are estimates from a few timed passes of a few images. `warning`: that the
    images are too few for a layer, or nothing. `unsteady`: how many times as long a usual pass took as one that nothing held
    up; `busy`: whether other work takes most of the machine's cores. `together`: seconds of the joint fit after the layers.
    `spreading`: those of measuring what a budget goes by, before them; until that is done, what each layer keeps is not known,
    and an even spread stands in its place."""

    sites: list[SitePlan]
    skipped: dict[str, str]
    seconds: float
    bytes: int
    warning: str = ""
    unsteady: float = 1.0
    busy: bool = False
    together: float = 0.0
    spreading: float = 0.0

    @property
    def range(self) -> tuple[float, float]:
        """The fewest and the most seconds to expect."""
        return _LEAST * self.seconds, _MOST * self.seconds * max(1.0, self.unsteady)

    def left(self, timed: Mapping[str, float]) -> tuple[float, float]:
        """The fewest and the most seconds to expect for one pass over the layers that are not in `timed`, which says what those
        took that are finished. The more there are, and the more alike they missed the plan, the narrower it is."""
        missed = [timed[site.name] / site.seconds for site in self.sites if site.name in timed and site.seconds]
        rest = sum(site.seconds for site in self.sites if site.name not in timed) + self.together
        if not missed:
            return _LEAST * rest, _MOST * rest * max(1.0, self.unsteady)
        done = [site for site in self.sites if site.name in timed]
        pace = sum(timed[site.name] for site in done) / max(sum(site.seconds for site in done), 1e-9)
        # Of few layers the scatter says little, so it is taken together with what is usual.
        usual, count = (_MOST - _LEAST) / 2, len(missed)
        scatter = math.sqrt((usual**2 + count * (pstdev(missed) / fmean(missed)) ** 2) / (count + 1) / count)
        scatter = min(scatter, 0.5)
        return pace * rest * (1 - scatter), pace * rest * (1 + scatter)


# What runs took over what was estimated for them.
_LEAST, _MOST = 0.7, 1.4


def plan(config: RunConfig) -> Plan:
    """The sites and windows of a run, why other weights stay dense, and about what it takes. Raises `InputError` for a bad
    config."""
    device = resolve_device(config.prune.device)
    model = models.load_configured(config, pretrained=False)  # only the structure counts
    module = model.module.to(device=device, dtype=getattr(torch, config.prune.precision))
    example = torch.zeros(8, *model.input_size, device=device, dtype=getattr(torch, config.prune.precision))
    graph = NetworkGraph.export(module, example)
    covered = _spread(graph, coverage(graph, config.prune), config.prune)
    if config.prune.mask_from_file:
        check_mask_file(config.prune.mask, covered.sites)
    busy = _busy()
    seconds, unsteady = _profile(graph, example)
    windows = {s.name: graph.window(s, config.prune.k_steps) for s in covered.sites}
    warning = scarcity(graph, covered, config.prune, config.num_calibration)

    images, site_seconds, most = config.num_calibration, {}, 0.0
    batch = max(map(len, share_out([torch.empty(images, 0)], list(windows.values()), config.prune)))
    remade = last_remade(list(windows.values()), images + config.num_held_back, config.prune)
    for index, site in enumerate(covered.sites):
        window = windows[site.name]
        forward = sum(seconds[n] for n in window.nodes)
        an_image = _gram_cost(site) * seconds[site.node] + forward * _window_passes(config.prune)
        inputs = sum(map(graph.image_bytes, window.outside))
        held = inputs + (inputs if index <= remade else window.target_bytes)
        linearized = _linearized_share(config.prune) * images
        if SAVED * window.image_bytes * linearized > config.prune.memory * 2**30:
            linearized = min(batch, linearized)  # anew for each product, a batch after the other
        # Beside what is kept for the products a batch goes there and back: a product's, or a look at the loss.
        work = window.image_bytes * ((SAVED - 1) * linearized + SAVED * batch)
        factoring, factors = _row_systems(site, covered.patterns[site.name].density, config.prune, example)
        searching = _mask_search(site, covered.patterns[site.name], config.prune.mask, example)
        site_seconds[site.name] = an_image * images + factoring + searching
        most = max(most, _IN_PIECES * held * (images + config.num_held_back) + work + factors)
    together = 0.0
    if config.prune.joint != "none":
        whole = Window(graph, covered.sites, joint.matched(graph, covered.sites, config.prune))
        # A pass of the dense network for its values, one of the pruned one, and the way back, which takes two.
        together = 4 * sum(seconds.values()) * images * config.prune.joint_epochs
        image, allowed = SAVED * whole.image_bytes, config.prune.memory * 2**30
        moving = sum(math.prod(site.shape) for site in covered.sites) * example.element_size()
        # The weights that move, under their masks, their gradients, and Adam's two averages of these.
        most = max(most, max(image, min(image * joint.BATCH, allowed)) + 5 * moving)
    spreading, waiting = _spreading(graph, covered, config, seconds, example)
    most = max(most, waiting)
    # In another order of memory than it was given in, a weight is one more copy.
    weights = sum(t.nbytes * (_NETWORKS + (not t.is_contiguous())) for t in graph.parameters.values())
    process = _PROCESS_BYTES if device.type == "cpu" else 0
    # The frontier's own passes, dense and pruned; a layer's share of them is its share of the work.
    passes = 2 * sum(seconds.values()) * (images + config.num_held_back)
    spread = 1 + passes / max(sum(site_seconds.values()), 1e-9)
    sites = [
        SitePlan(
            s.name,
            s.kind,
            s.shape,
            covered.patterns[s.name].density,
            windows[s.name].operations,
            samples(graph, s, config.num_calibration),
            to_fit(s, covered.patterns[s.name]),
            site_seconds[s.name] * spread,
        )
        for s in covered.sites
    ]
    total = sum(site_seconds.values()) + passes + together + spreading
    memory = int(process + weights + most)
    return Plan(sites, covered.skipped, total, memory, warning, unsteady, busy, together, spreading)


def _spread(graph: NetworkGraph, covered: Coverage, config: PruneConfig) -> Coverage:
    """The coverage with the patterns of a budget that goes by the layers' shapes; of one that has to measure, with those of an
    even spread. Raises `InputError` for one that cannot be met."""
    budget = config.pattern
    if not isinstance(budget, Budget):
        return covered
    if NEEDS[budget.allocate]:
        budget = budget.model_copy(update={"allocate": "uniform"})
    patterns = choose(curves.unmeasured(graph, covered), budget, covered.own).patterns
    return replace(covered, patterns={site.name: patterns[site.name] for site in covered.sites})


def _spreading(
    graph: NetworkGraph, covered: Coverage, config: RunConfig, seconds: Mapping[Node, float], example: Tensor
) -> tuple[float, float]:
    """Seconds and bytes of measuring what a budget goes by."""
    budget, images = config.prune.pattern, min(config.num_calibration, curves.MOST_IMAGES)
    if not isinstance(budget, Budget) or NEEDS[budget.allocate] not in ("curve", "outliers"):
        return 0.0, 0.0
    total, most = sum(seconds.values()) * images, 0.0
    for site in covered.sites:
        window = Window(graph, [site], [graph.output])
        passes, systems, held = 1, 0.0, float(sum(map(graph.image_bytes, window.outside)) * images)
        if NEEDS[budget.allocate] == "curve":
            patterns = curves.measured_at(site, budget)
            passes += len(patterns)
            parts = [_row_systems(site, p.density, _IN_LAYER, example) for p in patterns]
            systems, held = sum(part[0] for part in parts), held + max(part[1] for part in parts)
        forward = sum(seconds[node] for node in window.nodes)
        total += (passes * forward + _gram_cost(site) * seconds[site.node]) * images + systems
        most = max(most, held)
    return total, most


# How a layer is fitted for its curve.
_IN_LAYER = PruneConfig(update="least-squares", refine="layer")


def _busy() -> bool:
    """Whether, over the last minute, most of the machine's cores were at work on something else."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > _BUSY_SHARE * cores


# An app that draws its pages, with a browser beside it, keeps less than this busy.
_BUSY_SHARE = 0.7


# Python, torch, timm and an export, before there is a run.
_PROCESS_BYTES = 832 * 2**20
# The memory over their bytes that values take that wait, batch by batch, and rows' blocks that come and go: others, of other
# sizes, were freed between them.
_IN_PIECES = 1.3
# The network that was given, its copy, and the layers' new weights as they come.
_NETWORKS = 3


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
    # With row systems about five iterations a decimal digit; without, the cap is met more often than not.
    iterations = min(solver.max_iters, round(-5 * math.log10(solver.rtol)) if solver.preconditioner == "row_blocks" else 50)
    product = {"gauss_newton": 2.0, "hessian": 4.0, "finite_difference": 4.0}[solver.curvature]
    steps = solver.newton_steps * (3 + product * (1 + iterations) * solver.curvature_share)
    exchanges = 3 * (solver.newton_steps - 1) if config.refinement == "window" else 0
    return config.sweeps * (evaluations + steps + exchanges)


def _gram_cost(site: Site) -> float:
    """Cost of the input Gram matrix over that of the layer: P inputs a row against R outputs, as one large matrix product."""
    inputs = int(torch.Size(site.shape[1:]).numel())
    return 1 + 0.5 * inputs / site.shape[0]


def _row_systems(site: Site, density: float, config: PruneConfig, example: Tensor) -> tuple[float, float]:
    """Seconds and bytes of the rows' own systems (`rows.row_systems`), which no number of images changes."""
    if config.update not in ("least-squares", "snows"):
        return 0.0, 0.0
    outputs, inputs, width = site.shape[0], torch.Size(site.shape[1:]).numel(), example.element_size()
    size = max(1, round(density * inputs))
    preconditioned = config.update == "snows" and config.solver.preconditioner == "row_blocks"
    masks = {"none": 1, "layer": 2, "window": 1 + config.solver.newton_steps}[config.refinement]
    matrices = 40.0 * inputs**2  # the Gram matrix with and without its ridge, in float64, and a copy for the exchanges
    blocks = blocks_bytes(torch.full((outputs,), size), width)
    if blocks <= LARGEST_BLOCKS:
        inverses = 2 * max(1, masks - 1) if preconditioned else 0  # factored again, and inverted for about as much
        seconds = outputs * (masks + inverses) * size**3 * _seconds_of_factors(example.device.type)
        # Blocks in float64, how they are gathered, their factors and inverses.
        pieces = _IN_PIECES * 4 * min(AT_ONCE, 8 / width * blocks)
        lasting = (2 if config.refinement == "window" else 1) * blocks  # a mask's and that of the mask that follows it
        return seconds, matrices + pieces + (lasting if preconditioned else 0.0)
    product = 2.0 * outputs * inputs**2  # all rows times the Gram matrix
    work = masks * (_ITERATIONS * product + 2 * outputs * inputs * RANK**2) + 2 * (masks - 1) * _PASSES * product
    return work * _seconds_of_products(example.device.type), matrices + outputs * (40.0 * inputs + 2 * width * RANK**2)


def _mask_search(site: Site, pattern: LayerPattern, mask: str, example: Tensor) -> float:
    """Seconds of a search for the mask (`method.selection`), which no number of images changes."""
    if isinstance(pattern, Structured):  # one system for all rows: nothing beside the passes
        return 0.0
    outputs, inputs = site.shape[0], torch.Size(site.shape[1:]).numel()
    group = pattern.m if isinstance(pattern, NM) else inputs
    # Measured at 288 to 1,152 inputs, as so many operations of a large product.
    work = {
        "obc": 15.0 * outputs * inputs**3,
        "alps": 700.0 * outputs * inputs**2 + 100.0 * inputs**3,
        "sparseswaps": 4e4 * outputs * inputs * group,
    }
    return work[mask] * _seconds_of_products(example.device.type) if mask in work else 0.0


# Iterations of conjugate gradient until all rows are solved, and passes of mask refinement (in float64, for half of the speed).
_ITERATIONS, _PASSES = 40, 4


@lru_cache
def _seconds_of_products(device: str) -> float:
    """Of a floating-point operation in a float32 matrix product."""
    a = torch.ones(768, 768, device=device)
    return min(_seconds(lambda: (a @ a)[0, 0].cpu()) for _ in range(10)) / (2 * 768**3)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@lru_cache
def _seconds_of_factors(device: str) -> float:
    """Of a float64 Cholesky factor (S, S) over S cubed, measured at a small S: it is about the same at a large one."""
    size, count = 64, 64
    blocks = torch.eye(size, dtype=torch.float64, device=device).expand(count, size, size).contiguous()
    # The first pays for warming up, and a busy machine can hold any of them up. Read, so that a GPU is done.
    return min(_seconds(lambda: torch.linalg.cholesky_ex(blocks)[1].cpu()) for _ in range(10)) / count / size**3


@torch.no_grad()
def _profile(graph: NetworkGraph, example: Tensor) -> tuple[dict, float]:
    """Seconds of each node for one image, and how many times that a usual pass takes."""
    seconds: dict = {}
    passes: list[float] = []
    for turn in range(4):  # the first pass pays for warming up, and a busy machine can hold up any
        whole = 0.0
        values = graph.bind({}) | {graph.input: graph.laid_out(example)}
        for node in graph.nodes:
            if example.is_cuda:
                torch.cuda.synchronize(example.device)
            started = time.perf_counter()
            values[node] = execute_node(node, values)
            if example.is_cuda:
                torch.cuda.synchronize(example.device)
            spent = (time.perf_counter() - started) / len(example)
            seconds[node] = min(seconds.get(node, math.inf), spent)
            whole += spent
        if turn:
            passes.append(whole)
    return seconds, median(passes) / max(sum(seconds.values()), 1e-9)
