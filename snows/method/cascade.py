"""Layer after layer: what passes from one to the next, and how one of them is solved. Graph, masks and updates meet here.

Sites come in the network's own order; each site's window is fed by the network as pruned so far, while the targets come from
the dense network (or, with propagated targets, from the dense weight on the pruned network's input). Two frontiers walk the
calibration set, one through each network, the dense one a window ahead.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, UntypedStorage

from snows import events
from snows.config import Cancelled, LayerPattern, PruneConfig, Structured, Unstructured
from snows.method.coverage import Coverage, PruneError, last_remade, share_out
from snows.method.graph import Frontier, NetworkGraph, Site, Window
from snows.method.objective import Batch, Remade, Spared, mean_squares
from snows.method.operations import Values, move
from snows.method.problem import SiteProblem
from snows.method.rows import input_gram, input_mean
from snows.method.saliency import SCORERS
from snows.method.solver import Status, StepResult
from snows.method.sparsity import check_compliance, from_matrix, keep_mask, keep_masks_global, to_matrix
from snows.method.structured import Choice
from snows.method.updates import UPDATES


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
        held_back: Sequence[Tensor] = (),
        choice: Choice | None = None,
    ) -> None:
        """`given_masks` (R, P) take the place of those that scores would choose, and so do the units of a `choice`. `earlier`:
        each site's weight and mask from the sweep before this one, none in the first. `held_back`: batches of images that
        nothing is fitted on; they only go along, and each site's loss is measured on them."""
        self.sweep, self.earlier = sweep, earlier or {}
        self.graph, self.covered, self.config, self.device = graph, covered, config, device
        self.on_event, self.cancelled = on_event, cancelled
        windows = [graph.window(site, config.k_steps) for site in covered.sites]
        batches, held_back = (share_out(images, windows, config) for images in (batches, held_back))
        self.last_remade = last_remade(windows, sum(map(len, [*batches, *held_back])), config)
        self.images, self.held_back = [len(b) for b in batches], [len(b) for b in held_back]
        self.dense_parameters = graph.bind({})
        self.parameters = dict(self.dense_parameters)
        self.choice = choice
        for name, weight in (choice.start if choice else {}).items():
            self.parameters[graph.tensor_node(name)] = weight
        for name, (weight, _) in self.earlier.items():
            self.parameters[graph.tensor_node(name)] = weight
        self.pruned = Frontier(graph, [*batches, *held_back])
        self.dense = Frontier(graph, [*batches, *held_back]) if config.targets == "dense" else None
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

    def _scores(
        self,
        index: int,
        site: Site,
        pattern: LayerPattern,
        gram: Callable[[], Tensor],
        mean: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        scorer = SCORERS[self.config.mask]
        weight = to_matrix(self.dense_parameters[self.graph.tensor_node(site.name)])
        known = {"gram": gram()} if scorer.needs_gram else {}
        if scorer.needs_mean and mean is not None:
            known["mean"] = mean()
        return scorer.function(weight, pattern=pattern, generator=self._generator(index), **known)

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

    def mask(self, index: int, site: Site, gram: Callable[[], Tensor], mean: Callable[[], Tensor]) -> Tensor:
        """(R, P), True = kept. `gram` and `mean` compute what scorers ask of the layer's inputs."""
        pattern = self.covered.patterns[site.name]
        if self.given_masks is not None:
            return self.given_masks[site.name]
        if site.name in self.global_masks:
            return self.global_masks[site.name]
        if isinstance(pattern, Structured):
            assert self.choice is not None
            return self.choice.masks[site.name]
        return keep_mask(self._scores(index, site, pattern, gram, mean), pattern)

    def _targets(self, index: int, window: Window) -> None:
        """Bring both frontiers to where this window starts and, where targets are held, the dense one to where it ends."""
        graph, start = self.graph, self.graph.index[window.site.node]
        self.pruned.advance(start, self.parameters, self.device, keep=window.outside, check=self.check)
        if self.dense is not None and index <= self.last_remade:
            self.dense.advance(start, self.dense_parameters, self.device, keep=window.outside, check=self.check)
        elif self.dense is not None:
            # The dense network runs a window ahead; what later sites want as targets stays until they have passed.
            keep = {n for n in graph.nodes[start:] if graph.kind(n) is not None}
            self.dense.advance(window.end, self.dense_parameters, self.device, keep=keep, check=self.check)

    def _batches(self, index: int, window: Window, dense_weight: Tensor) -> list[Batch]:
        """The calibration batches as the window sees them, then those held back. They wait where the frontiers keep theirs;
        only the batch in work is on the device, so more images cost host memory alone."""
        batches, remade = [], index <= self.last_remade
        removed = [self.choice.removed(node) if self.choice else None for node in window.captured]
        for i, images in enumerate([*self.images, *self.held_back]):
            self.check()
            inputs = self._inputs(window, self.pruned.values(i), self.parameters)
            targets: Sequence[Tensor]
            if self.dense is None:
                targets = Remade(window, dense_weight, inputs)
                if not remade:
                    targets = [move(y, self.pruned.storage) for y in targets]
            elif remade:
                targets = Remade(window, dense_weight, self._inputs(window, self.dense.values(i), self.dense_parameters))
            else:
                targets = [self.dense.values(i)[n] for n in window.captured]
            if any(part is not None for part in removed):
                before = self.parameters[self.graph.tensor_node(window.site.name)]
                targets = Spared(targets, removed, window, before, inputs)
                targets = targets if remade else [move(y, self.pruned.storage) for y in targets]
            batches.append(Batch(inputs, targets, images))
        return batches

    def _inputs(self, window: Window, held: Values, parameters: Values) -> Values:
        """What a window takes from one batch, in the network with `parameters`; it waits where frontiers keep their values."""
        inputs = window.inputs({n: move(held[n], self.device) for n in window.outside}, parameters)
        return {n: v if n in parameters else move(v, self.pruned.storage) for n, v in inputs.items()}

    def problem(self, index: int, window: Window) -> SiteProblem:
        """What the update of site `index` is to solve: its window on the network as pruned so far."""
        site, config = window.site, self.config
        self._targets(index, window)
        dense_weight = self.dense_parameters[self.graph.tensor_node(site.name)]
        every_batch = self._batches(index, window, dense_weight)
        batches, held_back = every_batch[: len(self.images)], every_batch[len(self.images) :]
        site_inputs = [b.inputs[site.input] for b in batches]
        grams: list[Tensor] = []

        def gram() -> Tensor:
            if not grams:
                grams.append(input_gram(site, site_inputs, self.device))
            return grams[0]

        def mean() -> Tensor:
            return input_mean(site, site_inputs, self.device)

        earlier = self.earlier.get(site.name)
        mask = self.mask(index, site, gram, mean) if earlier is None else to_matrix(earlier[1])
        return SiteProblem(
            window,
            dense_weight,
            mask,
            self.covered.patterns[site.name],
            batches,
            site_inputs,
            propagated=self.dense is None,
            bias=self._bias(site, batches),
            config=config.solver,
            device=self.device,
            seed=config.seed * 1_000_003 + self.sweep * len(self.covered.sites) + index,
            refinement="none" if isinstance(self.covered.patterns[site.name], Structured) else config.refinement,
            ridge=config.ridge / sum(self.images),
            memory=config.memory * 2**30,
            gram=grams[0] if grams else None,
            earlier=None if earlier is None else earlier[0],
            held_back=held_back,
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
        problem = result.problem
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
        at_first, at_the_end = problem.held_back_losses(problem.masked), problem.held_back_losses(result.kept)
        held_back = {"mask_only": at_first, **result.held_back, "final": at_the_end}
        record = events.SiteFinished(
            site=site.name,
            index=index,
            sweep=self.sweep,
            losses={stage: sum(values) for stage, values in by_k.items()},
            by_k=by_k,
            scale=mean_squares(given.batches),
            density=float(mask.float().mean()),
            exchanged=int((mask & ~given.mask).sum()),
            status=result.status,
            message=result.message,
            seconds=time.perf_counter() - started,
            num_products=result.num_products,
            peak_memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            held_memory=self._held_memory([*given.batches, *given.held_back]),
            row_systems=problem.chosen_systems,
            held_back=held_back if given.held_back else {},
            held_back_scale=mean_squares(given.held_back),
        )
        return weight, from_matrix(mask, site.shape), record

    def _held_memory(self, batches: Sequence[Batch]) -> int:
        """Bytes of the images' values that wait for their turn: both networks', and the window's inputs and targets."""
        frontiers = [f for f in (self.pruned, self.dense) if f is not None]
        values = [v for f in frontiers for i in range(len(f)) for v in f.values(i).values()]
        for batch in batches:
            waiting = [batch.inputs]
            of_targets = batch.targets.targets if isinstance(batch.targets, Spared) else batch.targets
            if isinstance(of_targets, Remade):
                waiting.append(of_targets.inputs)
            else:
                values += of_targets
            values += [v for inputs in waiting for n, v in inputs.items() if n not in self.parameters]
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
