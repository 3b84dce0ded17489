"""Joint fits: after the layers were fitted one by one, all kept weights of the network move together.

Layer by layer, a fit answers for the next K operations and takes all other layers as they are. Here every pruned weight moves
at once, toward the dense network's values where the network has a waist (`cuts`) and at its output: the same objective and the
same Newton-CG (`objective`, `solver`), over one flat vector. A curvature product is one run through the whole network, whatever
the number of weights; each layer's own rows' systems precondition it. Label-free, as all else here. Masks stay as they are.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from snows import events
from snows.config import Cancelled, PruneConfig
from snows.method.coverage import PruneError, share_out
from snows.method.graph import NetworkGraph, Site, Window
from snows.method.objective import Batch, Objective, Remade, mean_squares
from snows.method.operations import Values, move
from snows.method.rows import KeptWeights, RowSystems, input_gram, row_systems
from snows.method.solver import StepResult, newton_cg
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
        self.rows = [part.matrix_shape[0] for part in parts]
        self.count = sum(self.counts)

    def expand(self, kept: Tensor) -> Tensor:
        """(n,) to (N,), the pruned ones at zero."""
        flat = kept.new_zeros(self.size)
        flat[self.places] = kept
        return flat

    def restrict(self, weights: Tensor) -> Tensor:
        """(N,) to (n,)."""
        return weights.flatten()[self.places]

    def row_sums(self, kept: Tensor) -> Tensor:
        """(n,) summed row by row, in float64, all sites' rows one after the other."""
        return torch.cat([part.row_sums(own) for part, own in zip(self.parts, kept.split(self.counts), strict=True)])


class SystemsOfSeveral:
    """`rows.RowSystems` of several sites: what preconditions their joint solve."""

    def __init__(self, parts: Sequence[RowSystems]) -> None:
        self.parts = parts
        self._counts = [part.kept.count for part in parts]
        self._rows = [part.kept.matrix_shape[0] for part in parts]

    def quadratic(self, kept: Tensor) -> Tensor:
        """w_r · block_r w_r of every row."""
        return torch.cat([part.quadratic(own) for part, own in zip(self.parts, kept.split(self._counts), strict=True)])

    def solve(self, kept: Tensor, scales: Tensor) -> Tensor:
        """Each row's right-hand side (n,), its block times its scale undone."""
        parts = zip(self.parts, kept.split(self._counts), scales.split(self._rows), strict=True)
        return torch.cat([part.solve(own, scale) for part, own, scale in parts])


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
        if stretch >= 0 and alive == {node}:
            waists[stretch] = node
    return list(dict.fromkeys([*waists.values(), graph.output]))


def fit(
    given: "Problem", on_event: Callable[[events.Event], None] = lambda event: None
) -> tuple[dict[str, Tensor], events.JointFinished]:
    """All sites' weights in their parameters' shapes, fitted together from where `given` begins; and what happened. The loss
    never ends above where it began.

    Raises `Cancelled`, and `PruneError` where a weight is not a number.
    """
    config, objective, x = given.config, given.objective, given.start
    before, scale = objective.losses(x), mean_squares(objective.batches)
    on_event(events.JointStarted(captured=given.window.operations, count=given.kept.count, losses=before, scale=scale))

    def on_iteration(step: int, iteration: int, residual: float, curvature: float) -> None:
        given.check()

    def on_step(result: StepResult) -> None:
        on_event(
            events.JointStep(
                step=result.step,
                loss=result.loss,
                cg_status=result.cg.status.name,
                cg_iterations=result.cg.num_products,
                step_size=result.step_size,
                predicted=result.predicted,
                actual=result.actual,
            )
        )

    result = newton_cg(
        objective,
        x,
        max_steps=NEWTON_STEPS,
        max_iters=min(ITERATIONS, config.solver.max_iters),
        rtol=config.solver.rtol,
        min_decrease=config.solver.min_decrease,
        on_iteration=on_iteration,
        on_step=on_step,
    )
    flat = given.kept.expand(result.x)
    if not bool(torch.isfinite(flat).all()):
        raise PruneError("The joint fit found weights that are NaN or infinite. Use float64, or leave the joint fit out.")
    weights = {given.window.graph.tensors_by_use[node]: part.clone() for node, part in given.window.assign(flat).items()}
    finished = events.JointFinished(
        before=before,
        after=objective.losses(result.x),
        scale=scale,
        status=result.status.name,
        message=result.status.value,
        seconds=time.perf_counter() - given.started,
        num_products=objective.num_products,
    )
    return weights, finished


# Measured on both bundled networks at 1:16: half of the layers' share of the images for curvature gets as far in a third of the
# time, and more iterations a step, or more steps, bring no accuracy.
NEWTON_STEPS, ITERATIONS, SHARE = 6, 20, 0.5
_WAITING = torch.device("cpu")  # where images' values are that no product reads just now


class Problem:
    """The joint objective of all `sites` of a network on `batches` of calibration images, and the point where it begins:
    `found`, each site's weight and mask in its parameter's shape. Raises `Cancelled` once `cancelled` says so."""

    def __init__(
        self,
        graph: NetworkGraph,
        sites: Sequence[Site],
        config: PruneConfig,
        batches: Sequence[Tensor],
        device: torch.device,
        found: Mapping[str, tuple[Tensor, Tensor]],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.started = time.perf_counter()
        self.sites, self.config, self._cancelled = sites, config, cancelled
        self.window = window = Window(graph, sites, cuts(graph, sites))
        share = SHARE * config.solver.curvature_share
        solver = config.solver.model_copy(update={"curvature_share": share})
        batches = share_out(batches, [window], config.model_copy(update={"solver": solver}))
        images = sum(map(len, batches))
        dense_parameters = graph.bind({})
        parameters = graph.bind({name: weight for name, (weight, _) in found.items()})
        flat, dense = (
            torch.cat([bound[graph.tensor_node(site.name)].flatten() for site in sites])
            for bound in (parameters, dense_parameters)
        )
        remade = window.target_bytes * images > 2 * config.memory * 2**30
        grams = dict[str, Tensor]()
        given = []
        wanted = {*(site.input for site in sites), *window.outside} - {graph.input}
        by_name = {name: weight for name, (weight, _) in found.items()}
        for batch in batches:
            self.check()
            x = graph.laid_out(batch.to(device))
            values: Values = {graph.input: x, **graph.run(x, by_name, capture=list(wanted))[1]}
            for site in sites:
                read = (values if site.input in values else parameters)[site.input]  # a layer may be applied to a parameter
                gram = input_gram(site, [read], device) * (len(batch) / images)
                grams[site.name] = grams[site.name] + gram if site.name in grams else gram
            inputs = {n: v if n in parameters else move(v, _WAITING) for n, v in window.inputs(values, parameters).items()}
            targets: Sequence[Tensor] = Remade(window, dense, inputs)
            if not remade:
                targets = [move(y, _WAITING) for y in targets]
            given.append(Batch(inputs, targets, len(batch)))
        ridges, systems = [], []
        for site in sites:
            gram = grams.pop(site.name)
            ridges.append(config.ridge / images * float(gram.diagonal().double().mean()))
            gram.diagonal().add_(ridges[-1])
            systems.append(row_systems(gram, KeptWeights(to_matrix(found[site.name][1]), site.shape)))
        self.kept = KeptOfSeveral([system.kept for system in systems])
        self.start = self.kept.restrict(flat)
        together = SystemsOfSeveral(systems)
        self.objective = Objective(
            window,
            self.kept,  # type: ignore[arg-type]
            given,
            # Relative errors: values at the waists differ in size by orders of magnitude, and say the same of the network.
            coefficients=[1 / size if size > 0 else 0.0 for size in mean_squares(given)],
            device=device,
            curvature_share=share,
            damping=config.solver.damping,
            dense=dense,
            row_systems=lambda: together,  # type: ignore[arg-type, return-value]
            seed=config.seed,
            memory=config.memory * 2**30,
        )
        if config.ridge:
            self.objective.pull = self._pull(together, ridges)

    def check(self) -> None:
        if self._cancelled():
            raise Cancelled

    def _pull(self, systems: SystemsOfSeveral, ridges: Sequence[float]) -> Tensor:
        """Each site's pull toward its dense values: what its ridge is at K = 0, in proportion to how much more its weights
        matter to the whole network, as `Objective.pull_like` measures it for one site."""
        _, probe, image = self.objective._probe(self.start, 0)
        own, seen = systems.quadratic(probe), self.kept.row_sums(probe * image)
        pull = torch.empty(self.kept.size, dtype=self.start.dtype, device=self.start.device)
        places = pull.split([part.matrix_shape[0] * part.matrix_shape[1] for part in self.kept.parts])
        for ridge, part, of, here, there in zip(
            ridges, self.kept.parts, places, own.split(self.kept.rows), seen.split(self.kept.rows), strict=True
        ):
            alone = float(here.sum()) - ridge * part.count  # its Gram matrix holds the ridge
            of.fill_(ridge / 2 * abs(float(there.sum())) / alone if alone > 0 else 0.0)
        return pull
