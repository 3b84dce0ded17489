"""What a configuration prunes, what stays dense and why, and whether network, device and images fit: all before any work."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from snows.config import Budget, Dense, InputError, LayerPattern, PruneConfig, Structured, first_line
from snows.method.budget import options
from snows.method.graph import SAVED, NetworkGraph, Site, Window
from snows.method.linearization import Linearization
from snows.method.sparsity import obstacle
from snows.method.units import Group, Units, removable
from snows.process import is_out_of_memory


class PruneError(InputError):
    """The request cannot be carried out; the message says why and what to do."""


@dataclass(frozen=True)
class Coverage:
    """Which weights a configuration prunes, in order, and why it leaves the others. `patterns` by site name. `own`: the
    patterns of overrides, `dense` too: a budget counts them and leaves them as they are. `groups`: the units that are cut away
    whole, and to which pattern, of `units`."""

    sites: list[Site]
    patterns: dict[str, LayerPattern]
    skipped: dict[str, str] = field(default_factory=dict)
    own: dict[str, LayerPattern] = field(default_factory=dict)
    groups: list[tuple[Group, Structured]] = field(default_factory=list)
    units: Units | None = None


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


def coverage(graph: NetworkGraph, config: PruneConfig, chosen: Mapping[str, LayerPattern] | None = None) -> Coverage:
    """Every weight of the network: pruned to which pattern, or left dense and why. `chosen`: what a budget has given each
    weight; before it has, each has the first pattern that fits it in its place."""
    known = {s.name: s for s in graph.sites}
    if unknown := set(config.overrides) - {n for s in graph.sites for n in (s.name, s.module)}:
        raise PruneError(f"No prunable weight is called {sorted(unknown)[0]!r}. There are: {', '.join(list(known)[:8])} …")
    skipped, sites, patterns, overridden = dict(graph.skipped), [], {}, {}
    classifiers = [] if config.prune_classifier else graph.classifiers
    tried: dict[Any, str | None] = {}

    def window_obstacle(site: Site) -> str | None:
        # Windows of the same operations on the same sizes are tried once.
        window = graph.window(site, config.k_steps)
        signature = site.kind, *((n.target, str(n.meta.get("val"))) for n in window.nodes)
        if signature not in tried:
            tried[signature] = try_window(window, curved=config.update == "snows")
        return tried[signature]

    units, groups, stay = _groups(graph, config, [site.name for site in classifiers], window_obstacle)
    cut: dict[str, LayerPattern] = {name: p for group, p in groups for name in group.columns}
    cut |= {name: pattern for group, pattern in groups for name in group.rows}
    for site in graph.sites:
        own = _own(site, config)
        if site.name in cut:
            sites.append(site)
            patterns[site.name] = cut[site.name]
            continue
        pattern = own or _one_pattern(site, config, chosen or {})
        if isinstance(own or config.pattern, Dense):
            reason: str | None = "left dense as asked"
        elif isinstance(pattern, Structured):
            reason = stay.get(site.name, "nothing is cut of its inputs, and its outputs stay")
        elif site in classifiers and own is None:
            reason = "the classifier, left dense unless asked for"
        else:
            reason = obstacle(site.shape, site.kind, pattern) or window_obstacle(site)
        if own is not None and (reason is None or isinstance(own, Dense)):
            overridden[site.name] = own
        if reason is not None:
            skipped[site.name] = reason
            continue
        sites.append(site)
        patterns[site.name] = pattern
    return Coverage(sites, patterns, skipped, overridden, groups, units)


def _own(site: Site, config: PruneConfig) -> LayerPattern | None:
    return config.overrides.get(site.name, config.overrides.get(site.module))


def _groups(
    graph: NetworkGraph, config: PruneConfig, classifiers: Sequence[str], window_obstacle: Callable[[Site], str | None]
) -> tuple[Units | None, list[tuple[Group, Structured]], dict[str, str]]:
    """The groups of units that are cut away, and to which pattern; and of each layer whose outputs stay, why.

    A layer's own pattern is about its outputs. A layer that reads units keeps to a pattern of its own, so these stay.
    """
    if not config.structured:
        return None, [], {}
    units, chosen = removable(graph), []
    stay, sites = dict(units.reasons), {site.name: site for site in graph.sites}
    for group in units.groups:
        given = [_own(sites[name], config) or config.pattern for name in group.rows]
        pattern = next((p for p in given if not isinstance(p, Structured)), given[0])
        others = [_own(sites[name], config) for name in group.columns if name not in group.rows]
        if not isinstance(pattern, Structured):
            reason: str | None = f"one of the layers that make them is left to {pattern}"
        elif pattern.what not in ("width", group.kind):
            reason = f"its outputs are {'attention heads' if group.kind == 'heads' else 'no heads'}, and {pattern} leaves those"
        elif own := next((p for p in others if p is not None and not isinstance(p, Structured)), None):
            reason = f"a layer that reads its outputs has a pattern of its own, {own}"
        elif last := next((name for name in group.columns if name in classifiers), None):
            reason = f"{last}, the classifier, reads its outputs and is left dense unless asked for"
        else:
            reason = next((why for name in group.sites if (why := window_obstacle(sites[name]))), None)
        if reason is None:
            assert isinstance(pattern, Structured)
            chosen.append((group, pattern))
        else:
            stay |= dict.fromkeys(group.rows, reason)
    return units, chosen, stay


def _one_pattern(site: Site, config: PruneConfig, chosen: Mapping[str, LayerPattern]) -> LayerPattern:
    """The pattern of a site without one of its own: with a budget what was chosen, or any that removes weights."""
    if not isinstance(config.pattern, Budget):
        return config.pattern
    fitting = [pattern for pattern in options(site.kind, site.shape, config.pattern) if not isinstance(pattern, Dense)]
    # Where none fits, the first one says why.
    return chosen.get(site.name, (fitting or [p for p in config.pattern.patterns if not isinstance(p, Dense)])[0])


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
    except Exception as error:  # any operation may refuse, with any error of its own
        if is_out_of_memory(error):
            raise
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


def samples(graph: NetworkGraph, site: Site, num_images: int) -> int:
    """How many inputs of a row of the layer so many images give: one an output position. They are not independent."""
    moved = site.node in graph.depends_on_images  # a layer may be applied to a parameter, the same for all images
    return graph.positions(site) * (num_images if moved else 1)


def to_fit(site: Site, pattern: LayerPattern) -> int:
    """About how many weights a row of the layer has to fit: those that it keeps."""
    return round(pattern.density * torch.Size(site.shape[1:]).numel())


def scarcity(graph: NetworkGraph, covered: Coverage, config: PruneConfig, num_images: int) -> str:
    """A sentence on the layer that the images say least of, where its rows have more weights to fit than samples; else empty.

    Such a row can be met exactly in many ways, and which one is right for other images nobody has said.
    """
    given = {site.name: samples(graph, site, num_images) for site in covered.sites}
    wanted = {site.name: to_fit(site, covered.patterns[site.name]) for site in covered.sites}
    moved = [site for site in covered.sites if site.node in graph.depends_on_images]
    scarce = [site for site in moved if wanted[site.name] > given[site.name]]
    if not scarce or config.update == "none":
        return ""
    worst = max(scarce, key=lambda site: wanted[site.name] / given[site.name])
    enough = -(-wanted[worst.name] // graph.positions(worst))
    others = "" if len(scarce) == 1 else f", and {len(scarce) - 1} more {'layers are' if len(scarce) > 2 else 'layer is'} short"
    images = f"{num_images:,} calibration images give" if num_images > 1 else "one calibration image gives"
    pull = "the ridge, which pulls what they leave open" if config.ridge else "a ridge, which would pull what they leave open"
    return (
        f"A row of {worst.module} has {wanted[worst.name]:,} weights to fit, but {images} only "
        f"{given[worst.name]:,} samples of its input{others}: the fit may not hold on other images. Use at least {enough:,} "
        f"images, or rely on {pull} toward the dense values."
    )


def batches_of(images: Tensor | Iterable[object], batch_size: int, shape: torch.Size | None = None) -> list[Tensor]:
    """A tensor (N, C, H, W), or a loader of tensors, of tuples that begin with one, or of mappings, as a list of batches. What
    is no image is taken as well: sounds (N, C, T), or tokens by their numbers (N, T), whole numbers of 32 or 64 bits. `shape`:
    that of an image, where others have been given."""
    if isinstance(images, Tensor):
        # Of like sizes: a last batch of a single image would count like the others where some are drawn.
        parts: list[Any] = list(images.tensor_split(-(-len(images) // batch_size))) if images.ndim and len(images) else []
    else:
        parts = [_images_of(batch) for batch in images]
    if not parts or not all(isinstance(p, Tensor) and p.ndim and len(p) for p in parts):
        raise PruneError("There are no calibration images. Give a tensor (N, C, H, W) or a loader that yields such batches.")
    shape = shape or parts[0].shape[1:]
    for part in parts:
        if not part.is_floating_point() and not (part.ndim == 2 and part.dtype in (torch.int32, torch.int64)):
            raise PruneError(f"Calibration images must be preprocessed to floating point, but these are {part.dtype}.")
        if not bool(torch.isfinite(part).all()):
            raise PruneError("A calibration image holds NaN or infinity. Check the preprocessing.")
        if part.shape[1:] != shape:
            raise PruneError(
                f"Calibration images must have one shape, but there are {tuple(shape)} and "
                f"{tuple(part.shape[1:])}. Resize them alike."
            )
    return parts


_FEWEST = 8  # a matrix product of fewer images is a slow one


def share_out(batches: Sequence[Tensor], windows: Sequence[Window], config: PruneConfig) -> list[Tensor]:
    """The calibration batches, cut into even parts: small enough for the memory that the widest of `windows` may take, and so
    many that curvature can be measured on its share of the images."""
    images = sum(len(batch) for batch in batches)
    largest = max((SAVED * window.image_bytes for window in windows), default=0)
    most = min(config.batch_size, max(1, round(config.solver.curvature_share * images)))
    if largest:
        most = min(most, max(_FEWEST, int(config.memory * 2**30 / 4 / largest)))
    return [part for batch in batches for part in batch.tensor_split(-(-len(batch) // most))]


def last_remade(windows: Sequence[Window], images: int, config: PruneConfig) -> int:
    """The index of the last of `windows` whose targets for all `images` would take more than twice the memory for values in
    work: up to there they are made again for each look instead of held. -1 where none does."""
    # Once the frontier of the dense network has gone to a window's end it does not come back to the next one's start.
    most = 2 * config.memory * 2**30
    return max((i for i, window in enumerate(windows) if window.target_bytes * images > most), default=-1)


@torch.no_grad()
def check_fit(model: nn.Module, images: Tensor) -> None:
    """Run a few images (B, C, H, W): what does not fit is named here, where an exporter would bury it."""
    shape = tuple(images.shape[1:])
    try:
        output = model(images)
    except Exception as error:  # any layer may refuse, with any error of its own
        if is_out_of_memory(error):
            raise
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


def check_weights(module: nn.Module) -> None:
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
    except RuntimeError as error:  # it asks for strides, as `view` after a convolution does
        if is_out_of_memory(error):
            raise
        return torch.contiguous_format
    return torch.channels_last
