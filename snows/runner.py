"""`execute`: do what a run folder's config says; a worker's part, the same in a thread, another process or a shell.

    with run.queue() as hold:
        hold.work(runner.execute)

Everything that happens goes into the run's event file, the last event saying how it ended; the folder then holds the pruned
weights and the metrics. Sites that an earlier worker finished are taken over, so executing an interrupted run resumes it.
`plan` says beforehand what a config would do, and about how long it would take.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from snows import data, events, metrics, models
from snows.config import Cancelled, InputError, PruneConfig, RunConfig
from snows.log import Log
from snows.method.coverage import channels_last_if_faster, coverage, resolve_device
from snows.method.graph import NetworkGraph, Site
from snows.method.operations import execute_node
from snows.method.pruner import prune
from snows.store import Run, RunError

EVALUATION_BATCH = 250


def execute(run: Run) -> events.RunFinished:
    """Do what the config says, append what happens, and return how it finished, for the run's `Hold` to write.

    Raises `Cancelled` where somebody asked to stop, `InputError` for a config that cannot be done, `RunError` for a device or a
    disk that refuses.
    """
    try:
        return _execute(run)
    except torch.OutOfMemoryError as error:
        remedy = "Use a smaller batch size, a smaller K or fewer images"
        raise RunError(f"The device ran out of memory. {remedy}; finished layers are kept.") from error


def _execute(run: Run) -> events.RunFinished:
    config = run.config()

    run.append(events.Phase(name="load"))
    device = resolve_device(config.prune.device)
    fetched = _Fetched(run)
    model = models.load_configured(config, report=fetched)
    images = data.load_configured(config, model, report=fetched)
    run.append(*(events.Note(message=note) for note in images.notes))
    before = run.log()

    run.append(events.Phase(name="prune"))
    result = prune(
        model.module,
        images.calibration,
        config.prune,
        on_event=partial(_begin_or_go_on, run, before),
        cancelled=run.cancel_requested,
        finished=partial(_finished_site, run, before),
        on_site=run.save_site,
    )
    solved = {(record.sweep, record.index) for record in result.sites}
    earlier = [record for key, record in before.records.items() if key not in solved]

    run.append(events.Phase(name="evaluate"))
    measured = _Measured(run, 2 * len(images.evaluation))
    dense_logits = logits(model.module, images.evaluation, config.prune, device, measured)
    pruned_logits = logits(result.model, images.evaluation, config.prune, device, measured)
    pruned = {n: p for n, p in result.model.named_parameters() if n in result.masks}
    size = metrics.size_bytes(result.model.state_dict(), result.patterns)
    for name, given in (("dense", dense_logits), ("pruned", pruned_logits)):
        if unanswered := int((metrics.answers(given) == metrics.NO_ANSWER).sum()):
            message = (
                f"The {name} network gives no answer to {unanswered:,} of {len(given):,} evaluation images: its outputs are "
                "not numbers (NaN). They count as wrong."
            )
            run.append(events.Note(message=message))
    measures: dict[str, float | None] = {
        "accuracy_dense": None if images.labels is None else metrics.accuracy(dense_logits, images.labels),
        "accuracy": None if images.labels is None else metrics.accuracy(pruned_logits, images.labels),
        "agreement": metrics.agreement(pruned_logits, dense_logits),
        "divergence": metrics.divergence(pruned_logits, dense_logits),
        "density": metrics.density(pruned),
        "seconds": result.seconds + sum(e.seconds for e in earlier),
        "num_products": result.num_products + sum(e.num_products for e in earlier),
        "dense_bytes": size.dense,
        "packed_bytes": size.packed,
        "num_evaluation": len(images.evaluation),
    }
    run.append(events.Phase(name="save"))
    run.save_weights(result.model.state_dict())
    measures = run.save_metrics(measures)
    right = metrics.right(pruned_logits, metrics.answers(dense_logits) if images.labels is None else images.labels)
    return events.RunFinished(metrics=measures, right=np.packbits(right.numpy()).tobytes().hex())


def _finished_site(run: Run, before: Log, place: int) -> tuple[Tensor, Tensor] | None:
    """What an earlier worker made of a site, which counts with its file and its record: one that died between the two, or whose
    machine did before the file was on the disk, leaves a layer to be solved again, to the same values."""
    if place not in {before.place(*key) for key in before.records}:
        return None
    with suppress(SafetensorError):
        return run.load_site(place)
    return None


def _begin_or_go_on(run: Run, before: Log, event: events.Event) -> None:
    if isinstance(event, events.RunStarted) and before.done and event.sites != before.sites:
        other = next(iter({*event.sites} ^ {*before.sites}), "their order")
        raise InputError(
            f"The run began with {len(before.sites)} layers, and now {len(event.sites)} can be pruned; they differ in {other}. "
            "So the finished layers do not fit: this is another version or device. Start the same settings as a new run."
        )
    run.append(event)


class _Fetched:
    """Says about once a second how far a download is, and stops it where somebody asked."""

    def __init__(self, run: Run) -> None:
        self._run, self._said = run, 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if self._run.cancel_requested():
            raise Cancelled
        if time.monotonic() - self._said >= 1:
            self._run.append(events.Fetched(what=what, done=done, total=total))
            self._said = time.monotonic()


class _Measured:
    """Says about once a second how far the evaluation is, and stops it where somebody asked."""

    def __init__(self, run: Run, total: int) -> None:
        self._run, self._total = run, total
        self._done, self._said = 0, time.monotonic()

    def __call__(self, images: int) -> None:
        if self._run.cancel_requested():
            raise Cancelled
        self._done += images
        if time.monotonic() - self._said >= 1:
            self._run.append(events.Measured(done=self._done, total=self._total))
            self._said = time.monotonic()


@torch.no_grad()
def logits(
    module: nn.Module,
    images: Tensor,
    config: PruneConfig,
    device: torch.device,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """The network's outputs (N, classes) on the CPU, in batches. `on_batch` is told the size of each and may raise to
    cancel."""
    dtype = getattr(torch, config.precision)
    module = module.to(device=device, dtype=dtype).eval()
    layout = channels_last_if_faster(module, images[:2].to(device, dtype))
    parts = []
    for batch in images.split(EVALUATION_BATCH):
        parts.append(module(batch.to(device, dtype).contiguous(memory_format=layout)).cpu())
        on_batch(len(batch))
    return torch.cat(parts)


# --- beforehand ---


@dataclass(frozen=True)
class SitePlan:
    """A weight that will be pruned; `operations` are the names in its window."""

    name: str
    kind: str
    shape: tuple[int, ...]
    density: float
    operations: list[str]


@dataclass(frozen=True)
class Plan:
    """What a config would do. `seconds` and `bytes` are estimates from one timed pass of a few images."""

    sites: list[SitePlan]
    skipped: dict[str, str]
    seconds: float
    bytes: int


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
        SitePlan(s.name, s.kind, s.shape, covered.patterns[s.name].density, windows[s.name].operations) for s in covered.sites
    ]

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
        most = max(most, 2 * held * images + saved * at_once + factors)
    weights = sum(t.numel() * t.element_size() for t in graph.parameters.values())
    return Plan(sites, covered.skipped, total * images + rows, int(4 * weights + most))


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
