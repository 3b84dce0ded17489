"""Repair: after pruning, every output channel of a pruned layer gets back the mean and the spread that it had.

Jordan et al. (2022), "REPAIR: REnormalizing Permuted Activations for Interpolation Repair", arXiv 2211.08403, for a pruned
network in the place of a mean of two. A row's kept weights grow or shrink together, so masks stay; the mean goes into the
layer's bias, or into the batch norm behind it. Nothing is fitted, and no label is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from snows.method.graph import Frontier, NetworkGraph, Site
from snows.method.operations import BATCH_NORM, Values, execute_node, move

# A channel whose spread is a smaller share of what it was says nothing any more, and would say only noise if it were louder.
_SILENT = 1e-6


class Moments(NamedTuple):
    """Of a layer's output over all images and places, for each channel (R,), in float64."""

    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def repair(
    graph: NetworkGraph,
    sites: Sequence[Site],
    batches: Sequence[Tensor],
    device: torch.device,
    weights: Mapping[str, Tensor],
    check: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The sites' weights in their parameters' shapes, and by name the biases and batch-norm means that go with them.

    Layer after layer, each on the network as repaired so far. A layer without a bias of its own and without a batch norm gets
    its spread back, and not its mean. Takes one pass over the images through each network, and each layer once more. `check`
    may raise to cancel.
    """
    names = {graph.tensor_node(name): name for name in graph.parameters}
    dense = graph.bind({})
    pruned = dense | {graph.tensor_node(name): weight for name, weight in weights.items()}
    walks = [(Frontier(graph, batches), parameters) for parameters in (dense, pruned)]
    repaired, others = dict[str, Tensor](), dict[str, Tensor]()
    for site in sites:
        for frontier, parameters in walks:
            frontier.advance(graph.index[site.node], parameters, device, check=check)
        was, now = (_moments(site, frontier, parameters, device) for frontier, parameters in walks)
        scale = torch.where(now.deviation > _SILENT * was.deviation, was.deviation / now.deviation, 1.0)
        weight = pruned[graph.tensor_node(site.name)]
        repaired[site.name] = (weight * scale.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
        pruned[graph.tensor_node(site.name)] = repaired[site.name]
        shift = was.mean - scale * now.mean
        place, sign = _mean_of(graph, site, dense)
        if place is not None:
            value = pruned[place]
            own = scale * value if sign > 0 else value
            pruned[place] = others[names[place]] = (own + sign * shift).to(value.dtype)
    return repaired, others


def _mean_of(graph: NetworkGraph, site: Site, tensors: Values) -> tuple[fx.Node | None, int]:
    """Which tensor the layer's mean can go into, and with which sign: its bias, or what a batch norm subtracts."""

    def is_its_own(node: object) -> bool:
        return isinstance(node, fx.Node) and node in tensors and len(graph.users[node]) == 1

    bias = site.node.args[2] if len(site.node.args) > 2 else None
    if bias is not None:
        return (bias, 1) if is_its_own(bias) else (None, 0)  # type: ignore[return-value]
    users = graph.users[site.node]
    if len(users) == 1 and users[0].target is BATCH_NORM and is_its_own(mean := users[0].args[3]):
        return mean, -1  # type: ignore[return-value]
    return None, 0


def _moments(site: Site, frontier: Frontier, parameters: Values, device: torch.device) -> Moments:
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in range(len(frontier)):
        waiting = frontier.values(batch)
        nodes = site.node.all_input_nodes
        given = {n: parameters[n] if n in parameters else move(waiting[n], device) for n in nodes}
        output = execute_node(site.node, given)
        rows = (output if site.kind == "linear" else output.movedim(1, -1)).flatten(0, -2).double()
        count, total, squares = count + len(rows), total + rows.sum(0).cpu(), squares + rows.square().sum(0).cpu()
    mean = total / count
    return Moments(mean.to(device), (squares / count - mean.square()).clamp(min=0).sqrt().to(device))
