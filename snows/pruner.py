"""`prune`: the layer loop, and the only place where graph, masks and updates meet.

The cascade: sites in the network's own order; each site's window is fed by the network as pruned so far, while the targets come
from the untouched dense network (or, with `targets="propagated"`, from the dense weight on the pruned network's inputs). Two
frontiers walk the calibration set, one through each network, the dense one a window ahead. A finished site is reported and
handed on; a cancelled or killed run loses at most the site it was working on.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.utils.parametrize as parametrize
import torch.nn.utils.prune as pruning
from torch import Tensor, UntypedStorage, nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from snows import events
from snows.config import MASKS, NM, Cancelled, Dense, InputError, PruneConfig, Unstructured, first_line
from snows.graph import Frontier, NetworkGraph, Site, Window, evaluating, move
from snows.linearization import Linearization
from snows.reconstruction import Batch, input_gram
from snows.saliency import SCORERS
from snows.solver import Status, StepResult
from snows.sparsity import check_compliance, from_matrix, keep_mask, keep_masks_global, obstacle, read_mask_file, to_matrix
from snows.updates import UPDATES, SiteProblem


class PruneError(InputError):
    """The request cannot be carried out; the message says why and what to do."""


@dataclass(frozen=True)
class PruneResult:
    """`model` is a pruned copy, its pruned weights exactly zero. `masks` are bool in each parameter's shape, True = kept."""

    model: nn.Module
    masks: dict[str, Tensor]
    patterns: dict[str, NM | Unstructured | Dense]
    sites: list[events.SiteFinished]
    skipped: dict[str, str]
    num_products: int
    seconds: float


@dataclass(frozen=True)
class Coverage:
    """Which weights a configuration prunes, in order, and why it leaves the others. `patterns` by site name."""

    sites: list[Site]
    patterns: dict[str, NM | Unstructured | Dense]
    skipped: dict[str, str] = field(default_factory=dict)


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where present, else the CPU. Raises `PruneError` when CUDA is asked for and absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PruneError(f"Device {name!r} was asked for, but PyTorch finds no CUDA device here. Choose cpu or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PruneError(f"Device {name!r} was asked for, but there are only {torch.cuda.device_count()} CUDA devices.")
    return device


def coverage(graph: NetworkGraph, config: PruneConfig) -> Coverage:
    """Every weight of the network: pruned to which pattern, or left dense and why."""
    known = {s.name: s for s in graph.sites}
    if unknown := set(config.overrides) - {n for s in graph.sites for n in (s.name, s.module)}:
        raise PruneError(f"No prunable weight is called {sorted(unknown)[0]!r}. There are: {', '.join(list(known)[:8])} …")
    skipped, sites, patterns = dict(graph.skipped), [], {}
    classifiers = [] if config.prune_classifier else graph.classifiers
    tried: dict[Any, str | None] = {}

    def window_obstacle(site: Site) -> str | None:
        # Windows of the same operations on the same sizes are tried once.
        window = graph.window(site, config.k_steps)
        signature = site.kind, *((n.target, str(n.meta.get("val"))) for n in window.nodes)
        if signature not in tried:
            tried[signature] = try_window(window, curved=config.update == "snows")
        return tried[signature]

    for site in graph.sites:
        own = config.overrides.get(site.name, config.overrides.get(site.module))
        pattern = own or config.pattern
        if isinstance(pattern, Dense):
            reason: str | None = "left dense as asked"
        elif site in classifiers and own is None:
            reason = "the classifier, left dense unless asked for (prune_classifier)"
        else:
            reason = obstacle(site.shape, site.kind, pattern) or window_obstacle(site)
        if reason is not None:
            skipped[site.name] = reason
            continue
        sites.append(site)
        patterns[site.name] = pattern
    return Coverage(sites, patterns, skipped)


def try_window(window: Window, curved: bool) -> str | None:
    """Why `window` cannot be computed with, found by trying it on two images of noise; None where it can.

    `curved`: whether curvature is asked for; then one product forwards and one backwards must be finite and agree,
    <u, Jv> = <Jᵀu, v>.
    """
    graph, generator = window.graph, torch.Generator().manual_seed(0)
    weight, images = graph.parameters[window.site.name], graph.noise_images()

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    def finite(values: Iterable[Tensor]) -> bool:
        return all(bool(torch.isfinite(value).all()) for value in values)

    try:
        _, values = graph.run(images, capture=[n for n in window.outside if n is not graph.input])
        inputs = window.inputs(values | {graph.input: graph.laid_out(images)}, graph.bind({}))
        if not curved:
            return None if finite(window.outputs(weight, inputs)) else "its window gives NaN or infinity"
        linear, vector = Linearization(window, weight, inputs), noise(weight)
        moved, cotangents = linear.push(vector), [noise(y) for y in linear.outputs]
        pulled = linear.pull(cotangents)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # any operation may refuse, with any error of its own
        return f"its window cannot be differentiated ({first_line(error)}); a smaller K, or another update than snows, may do"
    if not finite([*moved, pulled]):
        return "its window has a derivative that is NaN or infinite; a smaller K may do"
    forwards = sum(float((u.double() * v.double()).sum()) for u, v in zip(cotangents, moved, strict=True))
    backwards = float((pulled.double() * vector.double()).sum())
    # The products of random vectors are about as large as the norms, however many values are summed.
    scale = sum(float(v.double().square().sum()) for v in moved) ** 0.5 + float(pulled.double().norm())
    if abs(forwards - backwards) > 1e-3 * scale:
        return "its window's derivatives forwards and backwards disagree, so curvature cannot be trusted; a smaller K may do"
    return None


# What loaders of dicts call the images, the usual names first.
_IMAGE_KEYS = ("pixel_values", "image", "images", "img", "inputs", "input", "x", "data")


def _images_of(batch: object) -> object:
    """The images of what a loader yields: a tensor, a tuple that begins with them, or a mapping that names them."""
    if isinstance(batch, Mapping):
        names = [name for name in _IMAGE_KEYS if isinstance(batch.get(name), Tensor)]
        names = names or [name for name, value in batch.items() if isinstance(value, Tensor) and value.ndim == 4]
        if not names:
            raise PruneError(
                f"The loader yields mappings with {', '.join(map(str, batch))}, and none of them is known to hold the images. "
                f"Call the images {_IMAGE_KEYS[0]!r}, or yield them alone."
            )
        return batch[names[0]]
    return batch[0] if isinstance(batch, list | tuple) and batch else batch


def batches_of(images: Tensor | Iterable[object], batch_size: int) -> list[Tensor]:
    """A tensor (N, C, H, W), or a loader of tensors, of tuples that begin with one, or of mappings, as a list of batches."""
    if isinstance(images, Tensor):
        # Of like sizes: a last batch of a single image would count like the others where some are drawn.
        parts: list[Any] = list(images.tensor_split(-(-len(images) // batch_size))) if images.ndim and len(images) else []
    else:
        parts = [_images_of(batch) for batch in images]
    if not parts or not all(isinstance(p, Tensor) and p.ndim and len(p) for p in parts):
        raise PruneError("There are no calibration images. Give a tensor (N, C, H, W) or a loader that yields such batches.")
    for part in parts:
        if not part.is_floating_point():
            raise PruneError(f"Calibration images must be preprocessed to floating point, but these are {part.dtype}.")
        if not bool(torch.isfinite(part).all()):
            raise PruneError("A calibration image holds NaN or infinity. Check the preprocessing.")
        if part.shape[1:] != parts[0].shape[1:]:
            raise PruneError(
                f"Calibration images must have one shape, but there are {tuple(parts[0].shape[1:])} and "
                f"{tuple(part.shape[1:])}. Resize them alike."
            )
    return parts


@torch.no_grad()
def _check_fit(model: nn.Module, images: Tensor) -> None:
    """Run a few images (B, C, H, W): what does not fit is named here, where an exporter would bury it."""
    shape = tuple(images.shape[1:])
    try:
        output = model(images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # any layer may refuse, with any error of its own
        raise PruneError(
            f"The network cannot run on images of shape {shape}: {first_line(error)}. Give images of the size and "
            "channels that it was made for."
        ) from error
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if len(tensors) != 1:
        kind = type(output).__name__
        raise PruneError(
            f"The network returns {len(tensors)} tensors in a {kind}, and it is not clear which one a pruned network should "
            "reproduce. Wrap it in a module that returns the logits alone."
        )
    output = tensors[0]
    if not output.ndim or len(output) != len(images):
        raise PruneError(
            f"From {len(images)} images of shape {shape} the network made an output of shape {tuple(output.shape)}, which has "
            "no row for each. Give a tensor (N, C, H, W) or a loader that yields such batches."
        )


def _check_weights(module: nn.Module) -> None:
    tensors = {name: torch.isfinite(t) for name, t in module.named_parameters()}
    # A mask among the buffers may hold infinities.
    tensors |= {name: ~torch.isnan(t) for name, t in module.named_buffers()}
    for name, good in tensors.items():
        if not bool(good.all()):
            raise PruneError(
                f"The weight {name} holds NaN or infinity, so nothing can be reconstructed. Repair the checkpoint."
            )


@torch.no_grad()
def channels_last_if_faster(module: nn.Module, images: Tensor) -> torch.memory_format:
    """The layout to run `module` on `images` in: channels-last where it looks around and its code takes that layout."""
    if images.ndim != 4 or not any(isinstance(m, nn.Conv2d) and m.kernel_size[0] > m.stride[0] for m in module.modules()):
        return torch.contiguous_format
    try:
        module(images[:2].contiguous(memory_format=torch.channels_last))
    except RuntimeError:  # it asks for strides, as `view` after a convolution does
        return torch.contiguous_format
    return torch.channels_last


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
    """A copy to compute with: on `device`, real numbers in `dtype`, complex ones in the precision that goes with it."""

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, torch.complex128 if dtype is torch.float64 else torch.complex64)
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    return deepcopy(module)._apply(converted).eval()


def prune(
    model: nn.Module,
    images: Tensor | Iterable[object],
    config: PruneConfig | None = None,
    *,
    on_event: Callable[[events.Event], None] = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
    finished: Callable[[int], tuple[Tensor, Tensor] | None] = lambda index: None,
    on_site: Callable[[int, Tensor, Tensor], None] = lambda index, weight, mask: None,
    progress: bool = False,
) -> PruneResult:
    """Prune `model` in one shot on unlabelled `images`, and return a pruned copy; `model` itself is not changed.

    The copy is as `model` was given: device, number format, memory layout, training flags. Only weights that were computed from
    others (weight norm, pruning masks, parametrizations) are plain parameters in it, and wrappers for several devices are gone.

    `images`: preprocessed float images (N, C, H, W), or a loader. `on_event` receives what happens; `cancelled` is asked
    between CG iterations. `finished(index)` gives the weight and mask of a site that an earlier call already completed,
    `on_site` is handed each new one: together they make a run resumable. Indices count on through the sweeps. `progress` shows
    a progress bar.

    Raises `PruneError` for input that cannot be used, `ExportError` for a network that cannot be followed.
    """
    # Whatever the caller's block says: curvature needs autograd.
    with torch.inference_mode(False), torch.enable_grad():
        return _prune(model, images, config or PruneConfig(), on_event, cancelled, finished, on_site, progress)


def _prune(
    model: nn.Module,
    images: Tensor | Iterable[object],
    config: PruneConfig,
    on_event: Callable[[events.Event], None],
    cancelled: Callable[[], bool],
    finished: Callable[[int], tuple[Tensor, Tensor] | None],
    on_site: Callable[[int, Tensor, Tensor], None],
    progress: bool,
) -> PruneResult:
    started = time.perf_counter()
    device = resolve_device(config.device)
    dtype = getattr(torch, config.precision)
    batches = batches_of(images, config.batch_size)
    given = working_copy(model)
    pruned = _computing(given, device, dtype)
    # What was made in inference mode cannot take part in autograd; a copy can.
    batches = [(b.clone() if b.is_inference() else b).to(dtype) for b in batches]
    _check_weights(pruned)
    _check_fit(pruned, batches[0][:2].to(device))
    graph = NetworkGraph.export(pruned, batches[0][:2].to(device))
    covered = coverage(graph, config)
    if not covered.sites:
        raise PruneError(
            "No weight of this network can be pruned to this pattern: "
            + "; ".join(f"{s.name}: {covered.skipped[s.name]}" for s in graph.sites[:3])
        )

    given_masks = None if config.mask in MASKS else _given_masks(config.mask, covered.sites, device)
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
    bar = _progress_bar(config.sweeps * count - len(taken)) if progress else None
    done: list[events.SiteFinished] = []
    weights_and_masks: dict[str, tuple[Tensor, Tensor]] = {}  # by site, from the latest sweep
    for sweep in range(config.sweeps):
        before, here = dict(weights_and_masks), taken[sweep * count : (sweep + 1) * count]
        weights_and_masks |= {site.name: pair for site, pair in zip(covered.sites, here, strict=False)}
        if len(here) == count:
            continue
        loop = Cascade(graph, covered, config, batches, device, on_event, cancelled, given_masks, sweep, before)
        for site in covered.sites[: len(here)]:
            loop.skip(site, weights_and_masks[site.name][0])
        for index in range(len(here), count):
            weight, mask, record = loop.solve(index, covered.sites[index])
            weights_and_masks[record.site] = weight, mask
            on_site(sweep * count + index, weight, mask)
            on_event(record)
            done.append(record)
            if bar is not None:
                bar.update()
    if bar is not None:
        bar.close()
    result = _result(given, pruned, {name: weight for name, (weight, _) in weights_and_masks.items()}, config, batches)
    return PruneResult(
        result,
        {name: mask.to(result.get_parameter(name).device) for name, (_, mask) in weights_and_masks.items()},
        covered.patterns,
        done,
        covered.skipped,
        sum(r.num_products for r in done),
        time.perf_counter() - started,
    )


@torch.no_grad()
def _result(
    given: nn.Module, computed: nn.Module, weights: Mapping[str, Tensor], config: PruneConfig, batches: Sequence[Tensor]
) -> nn.Module:
    """`given` with the pruned weights and, where asked for, statistics measured again on `computed`, the copy that ran."""
    for name, weight in weights.items():
        given.get_parameter(name).copy_(weight)
    if config.batch_norm_reestimate:
        for name, weight in weights.items():
            computed.get_parameter(name).copy_(weight)
        device = next(iter(weights.values())).device
        reestimate_batch_norm(computed, [b.to(device) for b in batches])
        measured = dict(computed.named_buffers())
        for name, buffer in given.named_buffers():
            buffer.copy_(measured[name])
    return given


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _progress_bar(total: int):  # type: ignore[no-untyped-def]
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="pruning", unit="layer")


def _given_masks(path: str, sites: Sequence[Site], device: torch.device) -> dict[str, Tensor]:
    """The masks (R, P) of a file. Raises `PruneError` for one from another network."""
    masks, file_masks = {}, read_mask_file(path)
    for site in sites:
        mask = file_masks.get(site.name)
        if mask is None or tuple(mask.shape) != site.shape:
            there = "no mask" if mask is None else f"a mask of shape {tuple(mask.shape)}"
            raise PruneError(
                f"The mask file has {there} for {site.name}, which has shape {site.shape}. Use a file from this network."
            )
        masks[site.name] = to_matrix(mask.to(device))
    return masks


class Cascade:
    """The state that passes from site to site: both frontiers, and the pruned network's tensors so far."""

    def __init__(
        self,
        graph: NetworkGraph,
        covered: Coverage,
        config: PruneConfig,
        batches: Sequence[Tensor],
        device: torch.device,
        on_event: Callable[[events.Event], None],
        cancelled: Callable[[], bool],
        given_masks: dict[str, Tensor] | None = None,
        sweep: int = 0,
        earlier: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """`given_masks` (R, P) take the place of those that scores would choose. `earlier`: each site's weight and mask from
        the sweep before this one, none in the first."""
        self.sweep, self.earlier = sweep, earlier or {}
        self.graph, self.covered, self.config, self.device = graph, covered, config, device
        self.on_event, self.cancelled = on_event, cancelled
        self.images = [len(b) for b in batches]
        self.dense_parameters = graph.bind({name: t.clone() for name, t in graph.parameters.items()})
        self.parameters = dict(self.dense_parameters)
        for name, (weight, _) in self.earlier.items():
            self.parameters[graph.tensor_node(name)] = weight
        self.pruned = Frontier(graph, batches)
        self.dense = Frontier(graph, batches) if config.targets == "dense" else None
        self.given_masks = given_masks
        self.global_masks = self._global_masks(batches)

    def check(self) -> None:
        if self.cancelled():
            raise Cancelled

    def skip(self, site: Site, weight: Tensor) -> None:
        """Take over a site that is already finished."""
        self.parameters[self.graph.tensor_node(site.name)] = weight

    def _generator(self, index: int) -> torch.Generator:
        # Seeded by the site, so that a resumed run draws what an uninterrupted one would have.
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + index)

    def _scores(self, index: int, site: Site, pattern: NM | Unstructured | Dense, gram: Callable[[], Tensor]) -> Tensor:
        scorer = SCORERS[self.config.mask]
        weight = to_matrix(self.dense_parameters[self.graph.tensor_node(site.name)])
        return scorer.function(
            weight, gram=gram() if scorer.needs_gram else None, pattern=pattern, generator=self._generator(index)
        )

    def _global_masks(self, batches: Sequence[Tensor]) -> dict[str, Tensor]:
        sites = [
            (i, s, p)
            for i, s in enumerate(self.covered.sites)
            if isinstance(p := self.covered.patterns[s.name], Unstructured) and p.scope == "global"
        ]
        if not sites or self.given_masks is not None:
            return {}
        if self.earlier:
            return {site.name: to_matrix(self.earlier[site.name][1]) for _, site, _ in sites}
        scores, frontier = {}, Frontier(self.graph, batches)
        for i, site, pattern in sites:

            def gram(site: Site = site) -> Tensor:
                frontier.advance(self.graph.index[site.node], self.dense_parameters, self.device, check=self.check)
                learned = self.dense_parameters.get(site.input)  # a layer may be applied to a parameter
                inputs = [frontier.values(b)[site.input] if learned is None else learned for b in range(len(frontier))]
                return input_gram(site, inputs, self.device)

            scores[site.name] = self._scores(i, site, pattern, gram)
        masks: dict[str, Tensor] = {}
        for pattern in dict.fromkeys(p for _, _, p in sites):  # an override may be a global pattern of its own
            masks |= keep_masks_global({s.name: scores[s.name] for _, s, p in sites if p == pattern}, pattern)
        return masks

    def mask(self, index: int, site: Site, gram: Callable[[], Tensor]) -> Tensor:
        """(R, P), True = kept."""
        pattern = self.covered.patterns[site.name]
        if self.given_masks is not None:
            return self.given_masks[site.name]
        if site.name in self.global_masks:
            return self.global_masks[site.name]
        return keep_mask(self._scores(index, site, pattern, gram), pattern)

    def _targets(self, window: Window) -> None:
        """Bring both frontiers to where this window starts and, in the dense network, ends."""
        graph, start = self.graph, self.graph.index[window.site.node]
        self.pruned.advance(start, self.parameters, self.device, keep=window.outside, check=self.check)
        if self.dense is not None:
            # The dense network runs a window ahead; what later sites want as targets stays until they have passed.
            keep = {n for n in graph.nodes[start:] if graph.kind(n) is not None}
            self.dense.advance(window.end, self.dense_parameters, self.device, keep=keep, check=self.check)

    def _batches(self, window: Window, dense_weight: Tensor) -> list[Batch]:
        """The calibration batches as the window sees them. They wait where the frontiers keep theirs; only the batch in work is
        on the device, so more images cost host memory alone."""
        batches, storage = [], self.pruned.storage
        for i in range(len(self.pruned)):
            self.check()
            held = self.pruned.values(i)
            inputs = window.inputs({n: move(held[n], self.device) for n in window.outside}, self.parameters)
            if self.dense is not None:
                targets = [self.dense.values(i)[n] for n in window.captured]
            else:
                with torch.no_grad():
                    targets = [move(y, storage) for y in window.outputs(dense_weight, inputs)]
            waiting = {n: v if n in self.parameters else move(v, storage) for n, v in inputs.items()}
            batches.append(Batch(waiting, targets, self.images[i]))
        return batches

    def problem(self, index: int, window: Window) -> SiteProblem:
        """What the update of site `index` is to solve: its window on the network as pruned so far."""
        site, config = window.site, self.config
        self._targets(window)
        dense_weight = self.dense_parameters[self.graph.tensor_node(site.name)]
        batches = self._batches(window, dense_weight)
        site_inputs = [b.inputs[site.input] for b in batches]
        grams: list[Tensor] = []

        def gram() -> Tensor:
            if not grams:
                grams.append(input_gram(site, site_inputs, self.device))
            return grams[0]

        earlier = self.earlier.get(site.name)
        mask = self.mask(index, site, gram) if earlier is None else to_matrix(earlier[1])
        return SiteProblem(
            window,
            dense_weight,
            mask,
            self.covered.patterns[site.name],
            batches,
            site_inputs,
            None if self.dense is None else [b.targets[0] for b in batches],
            bias=self._bias(site, batches),
            config=config.solver,
            device=self.device,
            seed=config.seed * 1_000_003 + self.sweep * len(self.covered.sites) + index,
            refinement=config.refinement,
            gram=grams[0] if grams else None,
            earlier=None if earlier is None else earlier[0],
            on_iteration=lambda step, i, r, c: self._on_iteration(site, step, i, r, c),
            on_step=lambda result, damping: self._on_step(site, result, damping),
        )

    def solve(self, index: int, site: Site) -> tuple[Tensor, Tensor, events.SiteFinished]:
        """Mask and update one site: its weight and mask in the parameter's shape, and what happened."""
        started, device, config = time.perf_counter(), self.device, self.config
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.check()
        node = self.graph.tensor_node(site.name)
        window = self.graph.window(site, config.k_steps)
        self.on_event(
            events.SiteStarted(
                site=site.name, index=index, operations=window.operations, shape=list(site.shape), sweep=self.sweep
            )
        )
        given = self.problem(index, window)
        result = UPDATES[config.update](given)
        problem, batches = result.problem, given.batches
        mask, losses = problem.mask, problem.objective.losses(result.kept)
        weight = problem.kept.expand(result.kept)
        compliance = check_compliance(weight, self.covered.patterns[site.name]) if self.given_masks is None else None
        if compliance is not None and not compliance.ok and site.name not in self.global_masks:
            raise PruneError(f"{site.name}: {compliance.message}")
        if not (bool(torch.isfinite(weight).all()) and all(map(math.isfinite, losses))):
            raise PruneError(
                f"{site.name}: the values found for it, or its loss with them, are NaN or infinite. Use float64, more images "
                "or a smaller K, or check the weights and images."
            )
        self.parameters[node] = weight

        by_k = {"mask_only": problem.masked_losses, **result.by_k, "final": losses}
        scale = torch.zeros(len(window.captured), dtype=torch.float64)
        for batch in batches:
            scale += torch.stack([t.norm().square() / t.numel() for t in batch.targets]).double().cpu() * (
                batch.images / sum(self.images)
            )
        record = events.SiteFinished(
            site=site.name,
            index=index,
            sweep=self.sweep,
            losses={stage: sum(values) for stage, values in by_k.items()},
            by_k=by_k,
            scale=scale.tolist(),
            density=float(mask.float().mean()),
            exchanged=int((mask & ~given.mask).sum()),
            status=result.status,
            message=result.message,
            seconds=time.perf_counter() - started,
            num_products=result.num_products,
            peak_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            held_memory=self._held_memory(batches),
        )
        return weight, from_matrix(mask, site.shape), record

    def _held_memory(self, batches: Sequence[Batch]) -> int:
        """Bytes of the images' values that wait for their turn: both networks', and the window's inputs and targets."""
        frontiers = [f for f in (self.pruned, self.dense) if f is not None]
        values = [v for f in frontiers for i in range(len(f)) for v in f.values(i).values()]
        for batch in batches:
            values += batch.targets
            values += [v for n, v in batch.inputs.items() if n not in self.parameters]
        storages = {s.data_ptr(): s.nbytes() for v in values for s in _storages(v)}  # many are held in common
        return sum(storages.values())

    def _bias(self, site: Site, batches: Sequence[Batch]) -> Tensor | None:
        bias = site.node.args[2] if len(site.node.args) > 2 else None
        if bias is None:
            return None
        # A bias may be put together from several parameters: then it is a value like others, the same for all images.
        return self.parameters[bias] if bias in self.parameters else move(batches[0].inputs[bias], self.device)  # type: ignore[index]

    def _on_iteration(self, site: Site, step: int, iteration: int, residual: float, curvature: float) -> None:
        self.on_event(
            events.CGIteration(site=site.name, step=step, iteration=iteration, residual=residual, curvature=curvature)
        )
        self.check()

    def _on_step(self, site: Site, result: StepResult, damping: float) -> None:
        promises_little = not result.tried and result.cg.status is not Status.NOT_FINITE
        self.on_event(
            events.NewtonStep(
                site=site.name,
                step=result.step,
                loss=result.loss,
                gradient_norm=result.gradient_norm,
                cg_status=result.cg.status.name,
                cg_iterations=result.cg.num_products,
                step_size=result.step_size,
                tried=result.tried,
                predicted=result.predicted,
                actual=result.actual,
                damping=damping,
                status="accepted" if result.step_size > 0 else "not needed" if promises_little else "rejected",
            )
        )


def _storages(value: object) -> Iterator[UntypedStorage]:
    if isinstance(value, Tensor):
        yield value.untyped_storage()
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _storages(part)


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
