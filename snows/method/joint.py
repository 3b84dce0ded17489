"""Joint fits: after the layers were fitted one by one, all kept weights of the network move together.

Layer by layer, a fit answers for the next K operations and takes all other layers as they are. Here every pruned weight moves
at once, toward the dense network's values where the network has a waist (`cuts`) and at its output, each error relative to its
target's size. Adam (Kingma & Ba, 2015) takes the steps, one a batch; the images are blended with each other at random (mixup:
Zhang et al., 2018), for the dense network answers for any image, and no label is asked for. A network that bears only small
steps is given its images as they are. Masks stay as they are.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, fx

from snows import events
from snows.config import Cancelled, PruneConfig
from snows.method.graph import SAVED, NetworkGraph, Site, Window
from snows.method.operations import Values

# Measured on both bundled networks. Batches of 128 need four times the images to come as far. A step is a share of the size of
# a layer's weights, in proportion to the relative error that is left (the root of its mean square): at 1:16 a tenth, of which
# half ends level; a network that is near the dense one would be driven away from it by so much. Toward the answers alone it is
# a third of that: from the mask, with 0.3, 0.1 and 0.03, the ResNet ends at 77, 88 and 89 % at 1:4 and at 58, 54 and 33 % at
# 1:16, the ViT at 86, 89 and 89 % at 1:4 and with the first two at 79 and 78 % at 1:16 (seed 0).
BATCH, RATE = 32, {"network": 0.3, "answers": 0.1}
_WARM_UP = 10  # steps until they have their full size: Adam knows the slopes' sizes by then
# How large a step a network bears shows in the first few. On the bundled ones the first pass ends at most 1.4 times as far from
# the dense network as its images are without it, but for the ViT with 70 % removed (2.3); on an EfficientNet-Lite of thirty
# layers, in as many steps, more than twice as far. Then all begins anew with steps of a sixteenth and images that are not
# blended: of steps of a quarter and a sixteenth, with blends and without, on 64 and on 256 crops of photographs, these alone
# bring its answers nearer, also on crops it has not seen (README). So small a share of steps as the last one moves nothing.
_TRIAL, _WORSE, _SMALLER, _SMALLEST = 16, 1.5, 1 / 16, 1e-6
_TOO_LARGE = (
    "The joint fit led away from the dense network: its loss was {loss:.3g}, and {stayed:.3g} without a step. "
    "It begins anew, with steps {share:g} times as large and images that are not blended."
)
# How it ends: a status, and what is said of it.
_FITTED = "FITTED", "All layers' weights moved together."
_NO_GAIN = "NO_GAIN", "Together they came no nearer to the dense network, so the layers' weights stay as they were."
_NOT_FINITE = (
    "NOT_FINITE",
    "The joint fit's loss was NaN or infinite, so the layers' weights stay as they were. Use float64, or check the weights and "
    "images.",
)

# Where a joint fit stands between two passes over the images: how many there were, the share of the steps' size that was found
# to do, the random generator, and of every site, by what it is and the site's name, the weight and Adam's two averages.
State = dict[str, Tensor]
_AVERAGES = ("exp_avg", "exp_avg_sq")


def cuts(graph: NetworkGraph, sites: Sequence[Site]) -> list[fx.Node]:
    """The waists: of each stretch between one of `sites` and the next, the last value that all later ones hang on and that
    hangs on all earlier ones; and the network's output. In a residual network these are the blocks' ends, or what an activation
    makes of them."""
    starts = [graph.index[site.node] for site in sites]
    alive, waists = {graph.input}, dict[int, fx.Node]()
    stretch = -1
    for i, node in enumerate(graph.nodes):
        if stretch + 1 < len(starts) and i >= starts[stretch + 1]:
            stretch += 1
        if node in graph.depends_on_images:
            alive.add(node)
        alive = {value for value in alive if graph.last_use(value) > i}
        made = node.meta["val"]  # several parts at once, as of `chunk`, and whole numbers have no error
        if stretch >= 0 and alive == {node} and isinstance(made, Tensor) and made.is_floating_point():
            waists[stretch] = node
    return list(dict.fromkeys([*waists.values(), graph.output]))


def matched(graph: NetworkGraph, sites: Sequence[Site], config: PruneConfig) -> list[fx.Node]:
    """The values that a joint fit of this config matches."""
    return cuts(graph, sites) if config.joint == "network" else [graph.output]


class Reconstruction:
    """The errors of a network with other weights for `sites`, at the `captured` values, on images of any kind.

    Weights are by site, in their parameters' shapes. `piece` is how many images pass the network at once.
    """

    def __init__(
        self, graph: NetworkGraph, sites: Sequence[Site], captured: Sequence[fx.Node], device: torch.device, memory: float
    ) -> None:
        self.graph, self.sites, self.device = graph, list(sites), device
        self.window = Window(graph, sites, captured)
        self.piece = max(1, int(memory / (SAVED * self.window.image_bytes)))
        self._dense = graph.bind({})

    def pieces(self, images: Tensor) -> Iterator[tuple[float, Values, list[Tensor]]]:
        """Of each few of the images (N, C, H, W): their share, what the window takes, and the dense network's values."""
        for few in images.split(self.piece):
            x = self.graph.laid_out(few.to(self.device))
            wanted = {*self.window.outside, *self.window.captured} - {self.graph.input}
            values: Values = {self.graph.input: x, **self.graph.run(x, capture=wanted)[1]}
            yield len(few) / len(images), self.window.inputs(values, self._dense), [values[n] for n in self.window.captured]

    def outputs(self, weights: Mapping[str, Tensor], inputs: Values) -> list[Tensor]:
        """The values at the captured nodes."""
        flat = torch.cat([weights[site.name].flatten() for site in self.sites])
        return self.window.outputs(flat.view(self.sites[0].shape) if len(self.sites) == 1 else flat, inputs)

    @torch.no_grad()
    def measure(self, weights: Mapping[str, Tensor], images: Sequence[Tensor], check: Callable[[], None]) -> list[list[float]]:
        """Over all batches: the mean squared error at each captured value, and the mean square of its target."""
        found = torch.zeros(2, len(self.window.captured), dtype=torch.float64)
        for batch in images:
            check()
            share = len(batch) / sum(map(len, images))
            for part, inputs, targets in self.pieces(batch):
                outputs = self.outputs(weights, inputs)
                errors = [(y - t).double().square().mean() for y, t in zip(outputs, targets, strict=True)]
                sizes = [t.double().square().mean() for t in targets]
                found += share * part * torch.stack([*errors, *sizes]).view(2, -1).cpu()
        return found.tolist()

    def descend(self, weights: Mapping[str, Tensor], images: Tensor, scale: Sequence[float]) -> float:
        """The loss of one batch, the sum of squared errors over their `scale`; its gradients are added to the weights' own."""
        loss = 0.0
        for part, inputs, targets in self.pieces(images):
            terms = [
                (y - t).square().mean() / size
                for y, t, size in zip(self.outputs(weights, inputs), targets, scale, strict=True)
                if size > 0
            ]
            together = part * torch.stack(terms).sum()
            together.backward()
            loss += float(together.detach())
        return loss


def blended(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every other image, by chance, mixed with another of the batch (N, C, H, W), in a proportion drawn evenly. Tokens, whose
    numbers cannot be mixed, as they are."""
    if not images.is_floating_point():
        return images
    shares, mixed = torch.rand(2, len(images), generator=generator)
    shares = torch.where(mixed < 0.5, shares, 1.0).view(-1, *[1] * (images.ndim - 1)).to(images.dtype)
    return shares * images + (1 - shares) * images[torch.randperm(len(images), generator=generator)]


def fit(
    graph: NetworkGraph,
    sites: Sequence[Site],
    config: PruneConfig,
    batches: Sequence[Tensor],
    device: torch.device,
    found: Mapping[str, tuple[Tensor, Tensor]],
    on_event: Callable[[events.Event], None] = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
    begun: State | None = None,
    on_pass: Callable[[State], None] = lambda state: None,
) -> tuple[dict[str, Tensor], events.JointFinished]:
    """All sites' weights in their parameters' shapes, fitted together on `batches` of calibration images; and what happened.
    Begins at `found`, each site's weight and mask. Where the loss on all images does not fall, they stay as they were. Where
    the first steps lead away from the dense network, all begins anew with smaller ones, on images as they are; a note says so.
    A later loss that is no number ends it, and the weights stay as they were.

    After every pass over the images `on_pass` is given the state, whose tensors change with the next step; `begun` is such a
    state of an earlier call with the same arguments, which goes on bit for bit as if it had not stopped.

    Raises `Cancelled` once `cancelled` says so.
    """

    def check() -> None:
        if cancelled():
            raise Cancelled

    started = time.perf_counter()
    problem = Reconstruction(graph, sites, matched(graph, sites, config), device, config.memory * 2**30)
    start = {site.name: found[site.name][0] for site in sites}
    before, scale = problem.measure(start, batches, check)
    count = sum(int(mask.sum()) for _, mask in found.values())
    first = 0 if begun is None else int(begun["passes"])
    begin = partial(
        events.JointStarted,
        captured=problem.window.operations,
        count=count,
        epochs=config.joint_epochs,
        losses=before,
        scale=scale,
    )
    on_event(begin(resumed=first))

    leaves = {name: weight.clone().requires_grad_() for name, weight in start.items()}
    rate = RATE[config.joint] * math.sqrt(events.relative_loss(before, scale) / len(scale))
    rates = [rate * _size(*found[name]) for name in leaves]
    optimizer = torch.optim.Adam([{"params": [leaf]} for leaf in leaves.values()])
    images = [image for batch in batches for image in batch]
    generator = torch.Generator().manual_seed(config.seed)
    steps = math.ceil(len(images) / BATCH)
    share = 1.0 if begun is None else float(begun.get("share", 1.0))
    if begun is not None:
        generator.set_state(begun["generator"])
        for name, leaf in leaves.items():
            leaf.data.copy_(begun[f"weight {name}"])
            if f"{_AVERAGES[0]} {name}" in begun:
                averages = {key: begun[f"{key} {name}"].to(leaf) for key in _AVERAGES}
                optimizer.state[leaf] = {"step": torch.tensor(float(first * steps)), **averages}
    epoch, ending = first, _NO_GAIN
    while epoch < config.joint_epochs:
        pass_started = time.perf_counter()
        order, losses = torch.randperm(len(images), generator=generator).tolist(), []
        on_trial, stayed = epoch * steps < _TRIAL, 0.0  # the pass's loss, had no step been taken yet
        for step in range(steps):
            check()
            batch = torch.stack([images[i] for i in order[step::steps]])
            if share == 1:  # it bears full steps
                batch = blended(batch, generator)
            if on_trial:
                stayed += events.relative_loss(problem.measure(start, [batch], check)[0], scale) / steps
            optimizer.zero_grad()
            losses.append(problem.descend(leaves, batch, scale))
            for name, leaf in leaves.items():
                if leaf.grad is not None:
                    leaf.grad *= found[name][1]  # what is pruned never moves from zero
            size = share * pace(epoch * steps + step, config.joint_epochs * steps)
            for group, full in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = full * size
            optimizer.step()
        loss = sum(losses) / steps
        if on_trial and not loss <= _WORSE * stayed and share > _SMALLEST:
            epoch, share = 0, share * _SMALLER
            on_event(events.Note(message=_TOO_LARGE.format(loss=loss, stayed=stayed, share=share)))
            on_event(begin())
            generator.manual_seed(config.seed)
            optimizer.state.clear()
            for name, leaf in leaves.items():
                leaf.data.copy_(start[name])
            continue
        if not math.isfinite(loss):
            ending = _NOT_FINITE
            break
        on_event(events.JointEpoch(epoch=epoch, loss=loss, seconds=time.perf_counter() - pass_started))
        epoch += 1
        on_pass(_state(epoch, share, generator, leaves, optimizer))

    fitted = {name: leaf.detach() for name, leaf in leaves.items()}
    after, _ = problem.measure(fitted, batches, check)
    is_nearer = events.relative_loss(after, scale) < events.relative_loss(before, scale)  # also where it is not a number
    if is_nearer and ending is _NO_GAIN:
        ending = _FITTED
    else:
        fitted, after = start, before
        on_event(events.Note(message=ending[1]))
    finished = events.JointFinished(
        before=before,
        after=after,
        scale=scale,
        status=ending[0],
        message=ending[1],
        seconds=time.perf_counter() - started,
    )
    return fitted, finished


def _state(
    passes: int, share: float, generator: torch.Generator, leaves: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> State:
    state = {"passes": torch.tensor(passes), "share": torch.tensor(share), "generator": generator.get_state()}
    for name, leaf in leaves.items():
        averages = optimizer.state.get(leaf, {})  # none where no gradient ever came
        state |= {f"weight {name}": leaf.detach()} | {f"{key} {name}": averages[key] for key in _AVERAGES if key in averages}
    return state


def _size(weight: Tensor, mask: Tensor) -> float:
    """The median size of the kept weights: least squares without a ridge may leave a few that dwarf the others."""
    return float(weight[mask].abs().median()) if bool(mask.any()) else 0.0


def pace(step: int, steps: int) -> float:
    """The share of its full size that a step has: rising at first, then along half a cosine to nothing."""
    return min(1.0, (step + 1) / _WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2
