"""`prune`: a network in, the same network pruned out; itself it is left as it was.

What can be pruned is `coverage`, what passes from layer to layer `cascade`; here are the copy to compute with, the loop over
sweeps and layers, and what is given back.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.utils.parametrize as parametrize
import torch.nn.utils.prune as pruning
from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from snows import events
from snows.config import Budget, Cancelled, LayerPattern, PruneConfig
from snows.method import curves, joint, structured
from snows.method.budget import NEEDS, choose
from snows.method.cascade import Cascade
from snows.method.coverage import Coverage, PruneError, batches_of, check_fit, check_weights, coverage, resolve_device, scarcity
from snows.method.graph import NetworkGraph, Site
from snows.method.repair import repair
from snows.method.sparsity import read_mask_file, to_matrix
from snows.method.tracing import evaluating
from snows.method.units import shrink
from snows.process import give_back_memory


@dataclass(frozen=True)
class PruneResult:
    """`masked` is a pruned copy, its pruned weights exactly zero. `masks` are bool in each parameter's shape, True = kept.

    `model` is what to use: `masked` itself, or, where whole units are cut away (`Structured`), the smaller dense network that
    gives the same answers to rounding (`shrink`).

    By parameter's name: `patterns` are what each pruned weight obeys, a budget's choice too; `skipped` says why a weight stayed
    dense. `sites` are the records of the layers in order, a sweep after the other, with losses by stage (`losses`, relative to
    the targets), `density`, `status` and `seconds`. `num_products` counts curvature products, `seconds` is all of it.

    >>> layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> result = snows.prune(layers, torch.randn(32, 8), snows.PruneConfig(pattern="2:4", update="least-squares"))
    >>> result.masks["0.weight"].shape, result.masks["0.weight"].float().mean().item()
    (torch.Size([8, 8]), 0.5)
    >>> bool((result.model[0].weight[~result.masks["0.weight"]] == 0).all())
    True
    """

    model: nn.Module
    masked: nn.Module
    masks: dict[str, Tensor]
    patterns: dict[str, LayerPattern]
    sites: list[events.SiteFinished]
    skipped: dict[str, str]
    num_products: int
    seconds: float


def working_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` whose weights are plain parameters.

    Weights that are computed from others (pruning masks, weight and spectral norm, parametrizations) are fixed functions once
    the network is trained, so they are worked out and kept. A wrapper for several devices or a compiler is taken off.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while (inner := model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", None)) is not None:
        model = inner
    # A computed weight is no leaf of autograd's graph, and only leaves can be copied.
    computed = {
        id(value): value.detach().clone()
        for part in model.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    copy = deepcopy(model, computed)
    with evaluating(copy):  # spectral norm takes a step of its power iteration whenever it is asked in training
        for part in copy.modules():
            if parametrize.is_parametrized(part):
                _fold_parametrizations(part)
            for hook in list(part._forward_pre_hooks.values()):
                if isinstance(hook, BasePruningMethod):
                    pruning.remove(part, hook._tensor_name)
                elif isinstance(hook, WeightNorm):
                    remove_weight_norm(part, hook.name)
                elif isinstance(hook, SpectralNorm):
                    remove_spectral_norm(part, hook.name)
    return copy


def _fold_parametrizations(part: nn.Module) -> None:
    # PyTorch's own `remove_parametrizations` takes the weight off the class, which a copy shares with its original.
    lists = dict(part.parametrizations.items())  # type: ignore[union-attr, operator]
    values = {name: getattr(part, name).detach().clone() for name in lists}
    part.__class__ = part.__class__.__bases__[0]
    del part._modules["parametrizations"]
    for name, value in values.items():
        originals = list(lists[name].parameters(recurse=False))
        if originals:
            part.register_parameter(name, nn.Parameter(value, any(p.requires_grad for p in originals)))
        else:
            part.register_buffer(name, value)


def _computing(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy to compute with: on `device`, real numbers in `dtype`, complex ones in the precision that goes with it. What is
    there already in that form is held in common with `module`: nothing writes to it before the result is put together."""

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, torch.complex128 if dtype is torch.float64 else torch.complex64)
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    common: dict[int, object] = {
        id(t): nn.Parameter(t.detach(), t.requires_grad) if isinstance(t, nn.Parameter) else t.detach()
        for t in (*module.parameters(), *module.buffers())
        if type(t) in (Tensor, nn.Parameter)
    }
    return deepcopy(module, common)._apply(converted).eval()


def prune(
    model: nn.Module,
    images: Tensor | Iterable[object],
    config: PruneConfig | None = None,
    *,
    held_back: Tensor | Iterable[object] | None = None,
    on_event: Callable[[events.Event], None] = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
    chosen: Mapping[str, LayerPattern] | None = None,
    finished: Callable[[int], tuple[Tensor, Tensor] | None] = lambda index: None,
    on_site: Callable[[int, Tensor, Tensor], None] = lambda index, weight, mask: None,
    passed: Callable[[], joint.State | None] = lambda: None,
    on_pass: Callable[[joint.State], None] = lambda state: None,
    progress: bool = False,
) -> PruneResult:
    """Prune `model` in one shot on unlabelled `images`, and return a pruned copy; `model` itself is not changed.

    The copy is as `model` was given: device, number format, memory layout, training flags. Only weights that were computed from
    others (weight norm, pruning masks, parametrizations) are plain parameters in it, and wrappers for several devices are gone.

    `images`: preprocessed float images (N, C, H, W), or a loader. `held_back`: further ones that nothing is fitted on, as
    `images` or None; each layer's loss on them is in its record (`SiteFinished.held_back`), to be set beside that on `images`,
    and the result is to the last bit what it is without them. `on_event` receives what happens; `cancelled` is asked
    between CG iterations. `finished(index)` gives the weight and mask of a site that an earlier call already completed,
    `on_site` is handed each new one: together they make a run resumable, with `chosen`, what a budget gave each weight in the
    earlier call (`events.BudgetChosen`). Indices count on through the sweeps. `passed()` and `on_pass` are the same for the
    joint fit, see `joint.fit`. `progress` shows a progress bar.

    Layer by layer, as `config` says (None: its defaults), the kept weights minimize how far the outputs of the next operations
    move (Lucas & Mazumder 2025, arXiv 2411.18376, equation 5). Raises `PruneError` for input that cannot be used, `ExportError`
    for a network that cannot be followed, both `InputError`; and whatever `cancelled` and `on_event` raise.

    >>> network = snows.load_model("resnet20-fashion")
    >>> images = snows.load_data("fashion-mnist", network, num_calibration=16, num_evaluation=100, seed=0)
    >>> config = snows.PruneConfig(pattern="2:4", update="least-squares", device="cpu")
    >>> result = snows.prune(network.module, images.calibration, config)
    >>> len(result.masks), result.skipped["fc.weight"]
    (20, 'the classifier, left dense unless asked for')
    >>> bool((result.model(images.evaluation).argmax(1) == images.labels).float().mean() > 0.8)
    True
    """
    # Whatever the caller's block says: curvature needs autograd.
    with torch.inference_mode(False), torch.enable_grad():
        return _prune(
            model,
            images,
            held_back,
            config or PruneConfig(),
            on_event,
            cancelled,
            chosen,
            finished,
            on_site,
            passed,
            on_pass,
            progress,
        )


def _prune(
    model: nn.Module,
    images: Tensor | Iterable[object],
    held_back: Tensor | Iterable[object] | None,
    config: PruneConfig,
    on_event: Callable[[events.Event], None],
    cancelled: Callable[[], bool],
    chosen: Mapping[str, LayerPattern] | None,
    finished: Callable[[int], tuple[Tensor, Tensor] | None],
    on_site: Callable[[int, Tensor, Tensor], None],
    passed: Callable[[], joint.State | None],
    on_pass: Callable[[joint.State], None],
    progress: bool,
) -> PruneResult:
    started = time.perf_counter()
    device = resolve_device(config.device)
    dtype = getattr(torch, config.precision)
    batches = batches_of(images, config.batch_size)
    held_batches = [] if held_back is None else batches_of(held_back, config.batch_size, batches[0].shape[1:])
    given = working_copy(model)
    pruned = _computing(given, device, dtype)
    # What was made in inference mode cannot take part in autograd; a copy can.
    batches, held_batches = (
        [(b.clone() if b.is_inference() else b).to(dtype if b.is_floating_point() else b.dtype) for b in given_batches]
        for given_batches in (batches, held_batches)
    )
    check_weights(pruned)
    check_fit(pruned, batches[0][:2].to(device))
    graph = NetworkGraph.export(pruned, batches[0][:2].to(device))
    covered = coverage(graph, config, chosen)
    if not covered.sites:
        raise PruneError(
            "No weight of this network can be pruned to this pattern: "
            + "; ".join(f"{s.name}: {covered.skipped[s.name]}" for s in graph.sites[:3])
        )

    if isinstance(config.pattern, Budget) and chosen is None:
        covered = _spread(config.pattern, graph, covered, config, batches, device, on_event, cancelled)
    given_masks = None if not config.mask_from_file else _given_masks(config.mask, covered.sites, device)
    count = len(covered.sites)
    taken: list[tuple[Tensor, Tensor]] = []  # what an earlier call completed, over all sweeps
    while len(taken) < config.sweeps * count and (earlier := finished(len(taken))) is not None:
        taken.append((earlier[0].to(device, dtype), earlier[1].to(device)))
    on_event(
        events.RunStarted(
            device=_device_name(device),
            sites=[s.name for s in covered.sites],
            skipped=covered.skipped,
            resumed=len(taken),
            sweeps=config.sweeps,
            operations=graph.num_operations,
        )
    )
    if warning := scarcity(graph, covered, config, sum(map(len, batches))):
        on_event(events.Note(message=warning))
    choice = None
    if covered.groups and len(taken) < config.sweeps * count:
        choice = structured.choose(graph, covered, config, batches, device, partial(_check, cancelled))
    bar = _progress_bar(config.sweeps * count - len(taken)) if progress else None
    done: list[events.SiteFinished] = []
    weights_and_masks: dict[str, tuple[Tensor, Tensor]] = {}  # by site, from the latest sweep
    for sweep in range(config.sweeps):
        before, here = dict(weights_and_masks), taken[sweep * count : (sweep + 1) * count]
        weights_and_masks |= {site.name: pair for site, pair in zip(covered.sites, here, strict=False)}
        if len(here) == count:
            continue
        loop = Cascade(
            graph, covered, config, batches, device, on_event, cancelled, given_masks, sweep, before, held_batches, choice
        )
        for site in covered.sites[: len(here)]:
            loop.skip(site, weights_and_masks[site.name][0])
        for index in range(len(here), count):
            weight, mask, record = loop.solve(index, covered.sites[index])
            weights_and_masks[record.site] = weight, mask
            on_site(sweep * count + index, weight, mask)
            on_event(record)
            done.append(record)
            give_back_memory()  # in pieces between what stays, a layer's freed blocks would add up
            if bar is not None:
                bar.update()
    if bar is not None:
        bar.close()
    if config.joint != "none":
        weights, ended = joint.fit(
            graph, covered.sites, config, batches, device, weights_and_masks, on_event, cancelled, passed(), on_pass
        )
        weights_and_masks = {name: (weights[name], mask) for name, (_, mask) in weights_and_masks.items()}
        on_event(ended)
    tensors = {name: weight for name, (weight, _) in weights_and_masks.items()}
    if config.repair:
        repaired, others = repair(graph, covered.sites, batches, device, tensors, partial(_check, cancelled))
        tensors = repaired | others
    result = _result(given, pruned, tensors, config, batches)
    model = result
    if covered.groups:
        first = next(result.parameters())
        example = batches[0][:2].to(first.device)  # tokens are whole numbers
        model = shrink(result, example.to(first.dtype) if example.is_floating_point() else example)
    return PruneResult(
        model,
        result,
        {name: mask.to(result.get_parameter(name).device) for name, (_, mask) in weights_and_masks.items()},
        covered.patterns,
        done,
        covered.skipped,
        sum(record.num_products for record in done),
        time.perf_counter() - started,
    )


def _check(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled


def _spread(
    budget: Budget,
    graph: NetworkGraph,
    covered: Coverage,
    config: PruneConfig,
    batches: Sequence[Tensor],
    device: torch.device,
    on_event: Callable[[events.Event], None],
    cancelled: Callable[[], bool],
) -> Coverage:
    """The coverage with the patterns that the budget gives its sites."""
    started = time.perf_counter()
    on_event(events.Phase(name="budget"))

    def on_images(done: int, total: int) -> None:
        _check(cancelled)
        on_event(events.Measured(done=done, total=total))

    layers = curves.layers(graph, covered, config, batches, device, {NEEDS[budget.allocate]}, on_images)
    choice = choose(layers, budget, covered.own)
    on_event(
        events.BudgetChosen(
            patterns={name: str(pattern) for name, pattern in choice.patterns.items()},
            share=choice.share,
            layers=layers,
            seconds=time.perf_counter() - started,
        )
    )
    on_event(events.Phase(name="prune"))
    return replace(covered, patterns={site.name: choice.patterns[site.name] for site in covered.sites})


@torch.no_grad()
def _result(
    given: nn.Module, computed: nn.Module, tensors: Mapping[str, Tensor], config: PruneConfig, batches: Sequence[Tensor]
) -> nn.Module:
    """`given` with its new tensors and, where asked for, statistics measured again on `computed`, the copy that ran."""
    _put(tensors, given)
    if config.batch_norm_reestimate:
        _put(tensors, computed)
        device = next(iter(tensors.values())).device
        reestimate_batch_norm(computed, [b.to(device) for b in batches])
        measured = dict(computed.named_buffers())
        for name, buffer in given.named_buffers():
            buffer.copy_(measured[name])
    return given


def _put(tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    """Give the parameters and buffers of these names their values, in place."""
    own = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _progress_bar(total: int):  # type: ignore[no-untyped-def]
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="pruning", unit="layer")


def _given_masks(path: str, sites: Sequence[Site], device: torch.device) -> dict[str, Tensor]:
    """The masks (R, P) of a file. Raises as `check_mask_file`."""
    return {name: to_matrix(mask.to(device)) for name, mask in check_mask_file(path, sites).items()}


def check_mask_file(path: str, sites: Sequence[Site]) -> dict[str, Tensor]:
    """The masks of a file for `sites`, in their shapes. Raises `PruneError` for another network's, `MaskError` for a file that
    holds none."""
    masks, file_masks = {}, read_mask_file(path)
    for site in sites:
        mask = file_masks.get(site.name)
        if mask is None or tuple(mask.shape) != site.shape:
            there = "no mask" if mask is None else f"a mask of shape {tuple(mask.shape)}"
            raise PruneError(
                f"The mask file has {there} for {site.name}, which has shape {site.shape}. Use a file from this network."
            )
        masks[site.name] = mask
    return masks


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Replace every batch norm's running statistics by those of the pruned network on the calibration batches, in place."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        seen = 0
        for batch in batches:
            seen += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / seen  # the average over images, whatever the sizes of the batches
            model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
