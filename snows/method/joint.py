"""Joint fits: all kept weights of a region move together, toward the dense network's values at its cuts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from snows.method.graph import NetworkGraph, Site, Window
from snows.method.objective import Batch, Objective, mean_squares
from snows.method.rows import KeptWeights, RowSystems
from snows.method.sparsity import to_matrix


class KeptOfSeveral:
    """`rows.KeptWeights` of several sites, one after the other: between the flat vector of all kept weights (n,) and that of
    all weights (N,)."""

    def __init__(self, parts: Sequence[KeptWeights]) -> None:
        self.parts = parts
        places, start = [], 0
        for part in parts:
            size = part.matrix_shape[0] * part.matrix_shape[1]
            order = to_matrix(torch.arange(start, start + size, device=part.places.device).view(part.shape)).flatten()
            places.append(order[part.places])
            start += size
        self.places, self.size = torch.cat(places), start
        self.counts = [part.count for part in parts]
        self.count = sum(self.counts)

    def expand(self, kept: Tensor) -> Tensor:
        flat = kept.new_zeros(self.size)
        flat[self.places] = kept
        return flat

    def restrict(self, weights: Tensor) -> Tensor:
        return weights.flatten()[self.places]

    def row_sums(self, kept: Tensor) -> Tensor:
        return torch.cat([part.row_sums(own) for part, own in zip(self.parts, kept.split(self.counts), strict=True)])


class SystemsOfSeveral:
    """`rows.RowSystems` of several sites: what preconditions their joint solve."""

    def __init__(self, parts: Sequence[RowSystems]) -> None:
        self.parts = parts
        self.counts = [part.kept.count for part in parts]
        self.rows = [part.kept.matrix_shape[0] for part in parts]

    def quadratic(self, kept: Tensor) -> Tensor:
        return torch.cat([part.quadratic(own) for part, own in zip(self.parts, kept.split(self.counts), strict=True)])

    def solve(self, kept: Tensor, scales: Tensor) -> Tensor:
        parts = zip(self.parts, kept.split(self.counts), scales.split(self.rows), strict=True)
        return torch.cat([part.solve(own, scale) for part, own, scale in parts])


def cuts(graph: NetworkGraph, sites: Sequence[Site]) -> list[fx.Node]:
    """The values that the network hangs on, the last one between each of `sites` and the next: there is no way around them.
    And the network's own output."""
    found: list[fx.Node] = []
    starts = [graph.index[site.node] for site in sites] + [len(graph.nodes)]
    data = graph.depends_on_images
    alive: set[fx.Node] = {graph.input}
    last: dict[int, fx.Node] = {}
    part = -1
    for i, node in enumerate(graph.nodes):
        if part + 1 < len(sites) and i >= starts[part + 1]:
            part += 1
        if node in data:
            alive.add(node)
        alive = {n for n in alive if graph.last_use(n) > i}
        if part >= 0 and alive == {node} and node is not graph.output:
            last[part] = node
    found = list(dict.fromkeys(last[k] for k in sorted(last)))
    return [*found, graph.output] if graph.output not in found else found


def problem(
    graph: NetworkGraph,
    sites: Sequence[Site],
    captured: Sequence[fx.Node],
    parameters: Mapping[fx.Node, Tensor],
    dense_parameters: Mapping[fx.Node, Tensor],
    masks: Mapping[str, Tensor],
    batches: Sequence[Tensor],
    *,
    device: torch.device,
    ridge: float,
    seed: int = 0,
    curvature_share: float = 0.25,
    damping: float = 1e-4,
    weights_of: Sequence[float] | None = None,
    relative: bool = True,
) -> tuple[Objective, Tensor]:
    """The joint objective of `sites`, and the point to begin at."""
    from snows.method.rows import input_gram, row_systems

    window = Window(graph, sites, captured)
    kept = [KeptWeights(to_matrix(masks[s.name]), s.shape) for s in sites]
    several = KeptOfSeveral(kept)
    flat = torch.cat([parameters[graph.tensor_node(s.name)].flatten() for s in sites])
    dense = torch.cat([dense_parameters[graph.tensor_node(s.name)].flatten() for s in sites])
    given, grams = [], {}
    names = {s.name: parameters[graph.tensor_node(s.name)] for s in sites}
    total = sum(map(len, batches))
    for batch in batches:
        x = graph.laid_out(batch)
        named = {graph.tensors_by_use[n]: v for n, v in parameters.items() if n in graph.tensors_by_use}
        _, values = graph.run(x, named, capture=[*(s.input for s in sites), *(n for n in window.outside if n is not graph.input)])
        inputs = window.inputs(values | {graph.input: x}, parameters)
        for s in sites:
            g = input_gram(s, [values[s.input]], device) * (len(batch) / total)
            grams[s.name] = grams[s.name] + g if s.name in grams else g
        with torch.no_grad():
            targets = [t.clone() for t in window.outputs(dense, inputs)]
        given.append(Batch(inputs, targets, len(batch)))
    parts, pulls = [], []
    for s, k in zip(sites, kept, strict=True):
        g = grams[s.name]
        lam = ridge / total * float(g.diagonal().mean())
        g.diagonal().add_(lam)
        parts.append(row_systems(g, k))
        pulls.append(lam)
    systems = SystemsOfSeveral(parts)
    sizes = mean_squares(given)
    coefficients = [(w / size if relative else w) for w, size in zip(weights_of or [1.0] * len(sizes), sizes, strict=True)]
    objective = Objective(
        window, several, given, coefficients=coefficients, device=device, curvature_share=curvature_share, damping=damping,
        dense=dense, pull=0.0, row_systems=lambda: systems, seed=seed,
    )
    x = several.restrict(flat)
    if ridge:
        _, probe, image = objective._probe(x, 0)
        own = systems.quadratic(probe)
        seen = several.row_sums(probe * image)
        pull = torch.empty(several.size)
        at = start = 0
        for s, k, lam in zip(sites, kept, pulls, strict=True):
            rows, size = k.matrix_shape[0], k.matrix_shape[0] * k.matrix_shape[1]
            o = float(own[at : at + rows].sum()) - lam * k.count
            pull[start : start + size] = lam / 2 * abs(float(seen[at : at + rows].sum())) / o if o > 0 else 0.0
            at, start = at + rows, start + size
        objective.pull = pull
    return objective, x
