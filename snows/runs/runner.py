"""`execute`: do what a run folder's config says; a worker's part, the same in a thread, another process or a shell.

    with run.queue() as hold:
        hold.work(runner.execute)

Everything that happens goes into the run's event file, the last event saying how it ended; the folder then holds the pruned
weights and the metrics. Sites that an earlier worker finished are taken over, so executing an interrupted run resumes it.
`plan` says beforehand what a config would do, and about how long it would take.
"""

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from snows import events
from snows.config import Cancelled, InputError, PruneConfig, first_line
from snows.measures import metrics
from snows.method import joint
from snows.method.coverage import channels_last_if_faster, resolve_device
from snows.method.pruner import prune, working_copy
from snows.process import give_back_memory, is_out_of_memory
from snows.runs.log import Log
from snows.runs.store import DeviceLostError, Run, RunError
from snows.sources import data, models

EVALUATION_BATCH = 250
# After these no operation of the process succeeds on that device: a card that hung, was reset or fell off its bus, or a kernel
# that went astray. With "CUDA error:" before it, which operations refused for their input have not.
_LOST = re.compile(
    r"CUDA error: (.*launch failure|.*launch timed out|.*illegal memory access|.*uncorrectable ECC"
    r"|.*device.* (lost|unavailable)|.*misaligned address|.*hardware stack error|device-side assert|unknown error)"
)


def execute(run: Run, device: str | None = None) -> events.RunFinished:
    """Do what the config says, append what happens, and return how it finished, for the run's `Hold` to write.

    `device`: the worker's, instead of the config's, which may leave it open.
    Raises `Cancelled` where somebody asked to stop, `InputError` for a config that cannot be done, `RunError` for a device or a
    disk that refuses, `DeviceLostError` for a device that only another process can use.
    """
    try:
        return _execute(run, device)
    except (RuntimeError, MemoryError, SafetensorError) as error:
        if _LOST.search(str(error)):
            what = f"The device was lost ({first_line(error)}), and this process cannot use it any more"
            raise DeviceLostError(f"{what}. Start the program again and resume the run; finished layers are kept.") from error
        if is_out_of_memory(error):
            where = "The device" if isinstance(error, torch.OutOfMemoryError) else "The computer"
            remedy = "Use a smaller batch size, a smaller K or fewer images"
            raise RunError(f"{where} ran out of memory. {remedy}; finished layers are kept.") from error
        raise
    finally:
        give_back_memory()


def _execute(run: Run, worker_device: str | None) -> events.RunFinished:
    config = run.config()
    if worker_device is not None:
        config = config.model_copy(update={"prune": config.prune.model_copy(update={"device": worker_device})})

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
        held_back=images.held_back,
        on_event=partial(_begin_or_go_on, run, before),
        cancelled=run.stop_requested,
        chosen=before.chosen,
        finished=partial(_finished_site, run, before),
        on_site=run.save_site,
        passed=partial(_begun_joint, run),
        on_pass=_KeptPasses(run),
    )
    solved = {(record.sweep, record.index) for record in result.sites}
    earlier = [record for key, record in before.records.items() if key not in solved]
    earlier_passes = [record for epoch, record in run.log().passes.items() if record == before.passes.get(epoch)]

    run.append(events.Phase(name="evaluate"))
    measured = _Measured(run, 3 * len(images.evaluation))
    dense_logits = logits(model.module, images.evaluation, config.prune, device, measured)
    pruned_logits = logits(result.model, images.evaluation, config.prune, device, measured)
    masked_logits = logits(only_masked(model.module, result.masks), images.evaluation, config.prune, device, measured)
    pruned = {n: p for n, p in result.masked.named_parameters() if n in result.masks}
    smaller = None if result.model is result.masked else result.model.state_dict()  # its units are cut away
    size = metrics.size_bytes(result.masked.state_dict(), result.patterns, smaller)
    for name, given in (("dense", dense_logits), ("pruned", pruned_logits)):
        if unanswered := int((metrics.answers(given) == metrics.NO_ANSWER).sum()):
            message = (
                f"The {name} network gives no answer to {unanswered:,} of {len(given):,} evaluation images: its outputs are "
                "not numbers (NaN). They count as wrong."
            )
            run.append(events.Note(message=message))
    measures: dict[str, float | None] = {
        "accuracy_dense": None if images.labels is None else metrics.accuracy(dense_logits, images.labels),
        "accuracy_masked": None if images.labels is None else metrics.accuracy(masked_logits, images.labels),
        "accuracy": None if images.labels is None else metrics.accuracy(pruned_logits, images.labels),
        "agreement_masked": metrics.agreement(masked_logits, dense_logits),
        "agreement": metrics.agreement(pruned_logits, dense_logits),
        "divergence": metrics.divergence(pruned_logits, dense_logits),
        "density": metrics.density(pruned),
        "seconds": result.seconds + sum(e.seconds for e in earlier) + sum(e.seconds for e in earlier_passes),
        "num_products": result.num_products + sum(e.num_products for e in earlier),
        "dense_bytes": size.dense,
        "packed_bytes": size.packed,
        "half_bytes": size.half,
        "num_evaluation": len(images.evaluation),
        "chance": 1 / dense_logits.shape[1],
    }
    run.append(events.Phase(name="save"))
    run.save_weights(result.masked.state_dict())
    run.forget_joint()
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


def _begun_joint(run: Run) -> joint.State | None:
    with suppress(SafetensorError):
        return run.load_joint()
    return None


def _begin_or_go_on(run: Run, before: Log, event: events.Event) -> None:
    if isinstance(event, events.RunStarted) and before.done and event.sites != before.sites:
        other = next(iter({*event.sites} ^ {*before.sites}), "their order")
        raise InputError(
            f"The run began with {len(before.sites)} layers, and now {len(event.sites)} can be pruned; they differ in {other}. "
            "So the finished layers do not fit: this is another version or device. Start the same settings as a new run."
        )
    run.append(event)


class _KeptPasses:
    """Keeps where the joint fit stands, as often as takes it a twentieth of its time."""

    def __init__(self, run: Run) -> None:
        self._run, self._next = run, 0.0

    def __call__(self, state: joint.State) -> None:
        if (started := time.monotonic()) >= self._next:
            self._run.save_joint(state)
            self._next = started + 20 * (time.monotonic() - started)


class _Fetched:
    """Says about once a second how far a download is, and stops it where somebody asked."""

    def __init__(self, run: Run) -> None:
        self._run, self._said = run, 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if self._run.stop_requested():
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
        if self._run.stop_requested():
            raise Cancelled
        self._done += images
        if time.monotonic() - self._said >= 1:
            self._run.append(events.Measured(done=self._done, total=self._total))
            self._said = time.monotonic()


@torch.no_grad()
def only_masked(module: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the dense network whose weights are zero where `masks` (by name, True = kept) say so: just cut."""
    copy = working_copy(module)
    for name, mask in masks.items():
        weight = copy.get_parameter(name)
        weight.masked_fill_(~mask.to(weight.device), 0)
    return copy


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
