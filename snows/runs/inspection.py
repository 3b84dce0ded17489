"""A run, opened again: its network dense, with the mask alone, and pruned; its images; any site's problem as the solver met it.

Nothing here was recorded beyond the run's folder: networks and images come from the config, as they came to the run.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from snows.config import InputError, PruneConfig
from snows.measures import comparison, metrics
from snows.measures.runtimes import Layer
from snows.method.cascade import Cascade
from snows.method.coverage import Coverage, coverage
from snows.method.graph import NetworkGraph, Site
from snows.method.problem import SiteProblem
from snows.method.rows import rows_of_output
from snows.method.sparsity import to_matrix
from snows.method.units import shrink
from snows.runs.log import Log
from snows.runs.store import Run
from snows.sources import data, models

STAGES = ("dense", "mask_only", "pruned")


class InspectionError(InputError):
    """The run does not hold what was asked for; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Inspection:
    """The parts of one run, on the CPU in float32.

    `sites` are the pruned weights in network order, `weights` and `masks` (bool, True = kept) by name for those that are
    finished, in the parameter's shape. `final` is the whole pruned state dict of a finished run, else None.
    """

    run: Run
    model: models.LoadedModel
    graph: NetworkGraph
    covered: Coverage
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    final: dict[str, Tensor] | None

    @classmethod
    def open(cls, run: Run) -> "Inspection":
        """Raises `InputError` for a run whose network can no longer be had, or that has not begun."""
        config = run.config()
        if run.log().started is None:
            raise InspectionError(f"Run {run.id} has not begun to prune, so there is nothing to look into yet.")
        model = models.load_configured(config)
        example = torch.zeros(2, *model.input_size)
        graph = NetworkGraph.export(model.module, example)
        covered = coverage(graph, config.prune, run.log().chosen)
        return cls(run, model, graph, covered, *_results(run, covered))

    def reread(self, log: Log | None = None) -> "Inspection":
        """The same run with the layers that were finished since; its network is not opened again. `log`: what the run's log
        says, for a caller that has read most of it."""
        weights, masks, final = _results(self.run, self.covered, log)
        return replace(self, weights=weights, masks=masks, final=final)

    def beside(self, run: Run) -> "Inspection":
        """Another run of the same network, which is not opened again. Raises `InspectionError` for one of another network."""
        ours, theirs = self.run.config(), run.config()
        if (ours.model, ours.checkpoint) != (theirs.model, theirs.checkpoint):
            raise InspectionError(f"Run {run.id} is of another network than run {self.run.id}. Compare runs of one network.")
        covered = coverage(self.graph, theirs.prune, run.log().chosen)
        return Inspection(run, self.model, self.graph, covered, *_results(run, covered))

    @property
    def sites(self) -> list[Site]:
        return self.covered.sites

    @cached_property
    def images(self) -> data.Data:
        """The run's calibration and evaluation images."""
        config = self.run.config()
        return data.load_configured(config, self.model)

    def parameters(self, stage: str) -> dict[str, Tensor]:
        """Tensors by name for `NetworkGraph.run`. `stage`: `dense`, `mask_only` (dense values where the masks keep), `pruned`.

        Sites that are not finished are dense in every stage. Raises `InspectionError` where the run's files are of another
        network.
        """
        dense = self.graph.parameters
        match stage:
            case "dense":
                return dict(dense)
            case "mask_only":
                self._check_shapes(self.masks)
                return dict(dense) | {n: dense[n] * m for n, m in self.masks.items()}
            case "pruned":
                pruned = self.weights | {n: t for n, t in (self.final or {}).items() if n in dense}
                self._check_shapes(pruned)
                return dict(dense) | pruned
        raise ValueError(f"Unknown stage {stage!r}. Choose one of {', '.join(STAGES)}.")

    def run_network(self, images: Tensor, stage: str, capture: Collection = ()) -> tuple[Tensor, dict]:
        """The network's output on preprocessed `images` (B, C, H, W), and the values at the `capture` nodes."""
        return self.graph.run(images, self.parameters(stage), capture)

    def network(self) -> nn.Module:
        """A finished run's network as it is to be computed, cut to size where whole units were cut away. A copy, in eval mode.

        Raises `InspectionError` for a run that has not finished.
        """
        if self.final is None:
            raise InspectionError(f"Run {self.run.id} has not finished, so its network is not there yet.")
        masked = comparison.with_weights(self.model.module, self.final)
        return shrink(masked, self._example) if self.is_cut else masked

    @property
    def is_cut(self) -> bool:
        """Whether the run's network is smaller by its shapes."""
        return self.final is not None and self.run.config().prune.structured

    @property
    def _example(self) -> Tensor:
        return torch.zeros(2, *self.model.input_size)

    def multiply_adds(self) -> metrics.MultiplyAdds:
        """Of one image, in the dense network and in the pruned one. Where whole units are cut away they are counted in the
        smaller network itself, for masks say nothing of the products inside attention."""
        counted = metrics.multiply_adds(self.graph, self._example[:1], self.masks)
        if not self.is_cut:
            return counted
        smaller = NetworkGraph.export(self.network(), self._example)
        return counted._replace(pruned=metrics.multiply_adds(smaller, self._example[:1]).dense)

    def size(self) -> metrics.Size:
        """Bytes of the network, pruned as far as the run is."""
        state = self.parameters("pruned") if self.final is None else self.final
        return metrics.size_bytes(state, self.covered.patterns, self.network().state_dict() if self.is_cut else None)

    def finished(self, site: str) -> tuple[Tensor, Tensor, Tensor]:
        """A site's dense weight, its pruned weight, and its mask (bool, True = kept), in the parameter's shape.

        Raises `InspectionError` for a site that is not finished, or not of this network.
        """
        if site not in self.masks:
            raise InspectionError(f"{site} is not a finished layer of run {self.run.id}. Wait for it, or choose another.")
        self._check_shapes({site: self.weights[site]})
        self._check_shapes({site: self.masks[site]})
        return self.graph.parameters[site], self.weights[site], self.masks[site]

    def _check_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.shape != (dense := self.graph.parameters[name]).shape:
                raise InspectionError(
                    f"{name} has shape {tuple(tensor.shape)} in run {self.run.id} and {tuple(dense.shape)} in the network its "
                    "config names: the run's files are of another network. Prune again, or import the run anew."
                )

    def problem(
        self, site: str, num_images: int = 64, k_steps: int | None = None, batch_size: int | None = None
    ) -> SiteProblem:
        """The problem that site's update was to solve, on the first `num_images` calibration images: the layers before it
        pruned, its mask as found, its targets by the run's settings. `k_steps`, `batch_size`: others than the run's.

        Raises `InspectionError` for a site that is not finished.
        """
        config = self.run.config()
        names = [s.name for s in self.sites]
        _, _, mask = self.finished(site)
        images = self.images.calibration[:num_images]
        cascade = Cascade(
            self.graph,
            self.covered,
            config.prune,
            list(images.split(batch_size or config.prune.batch_size)),
            torch.device("cpu"),
            lambda event: None,
            lambda: False,
            given_masks={site: to_matrix(mask)},
        )
        index = names.index(site)
        for earlier in self.sites[:index]:
            cascade.skip(earlier, self.weights[earlier.name])
        window = self.graph.window(self.sites[index], config.prune.k_steps if k_steps is None else k_steps)
        return cascade.problem(index, window)


def _results(
    run: Run, covered: Coverage, log: Log | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor] | None]:
    final = None
    if run.weights_path.exists():
        from safetensors.torch import load_file

        final = {n: t.float() if t.is_floating_point() else t for n, t in load_file(run.weights_path).items()}
    weights, masks, layers = {}, {}, run.layers(log)
    for site in covered.sites:
        if site.name in layers:
            weight, masks[site.name] = layers[site.name]
            weights[site.name] = weight.float()
        elif final is not None and site.name in final:  # a run that came without its layers' files: what is zero was pruned
            weights[site.name], masks[site.name] = final[site.name], final[site.name] != 0
    return weights, masks, final


def pruned_model(run: Run) -> models.LoadedModel:
    """A finished run's network, built as its weights ask for it: what it was made from is not needed again."""
    config = run.config()
    return models.load(config.model, run.weights_path, class_names=config.class_names)


def pruned_network(run: Run) -> tuple[nn.Module, Tensor]:
    """The same as it is to be computed, cut to size where whole units were cut away; and two images of its size."""
    model = pruned_model(run)
    example = torch.zeros(2, *model.input_size)
    return shrink(model.module, example) if run.config().prune.structured else model.module, example


def pruned_layers(log: Log, config: PruneConfig) -> list[Layer]:
    """The finished layers as `measures.runtimes` takes them, in network order; no network is opened."""
    return [
        Layer(done.site, tuple(log.begun[done.site].shape), log.pattern_of(done.site, config), done.density)
        for done in log.layers()
    ]


@torch.no_grad()
def channel_errors(problem: SiteProblem, weight: Tensor) -> Tensor:
    """How far each output channel of the layer is from its target with `weight` (parameter shape): (R,), the sum of squared
    errors over images and positions, relative to that of predicting zeros. NaN for a channel whose target is zero throughout.
    """
    site = problem.window.site
    wrong, whole = torch.zeros(site.shape[0], dtype=torch.float64), torch.zeros(site.shape[0], dtype=torch.float64)
    for batch in problem.batches:
        output, target = problem.window.outputs(weight, problem.objective.inputs(batch))[0], batch.targets[0]
        wrong += rows_of_output(site, output - target).double().square().sum(0)
        whole += rows_of_output(site, target).double().square().sum(0)
    return torch.where(whole > 0, wrong / whole, torch.nan)


def most_moved(before: Tensor, after: Tensor, mask: Tensor, count: int) -> Tensor:
    """Where the `count` kept weights whose value changed most are, the largest change first: (count, dimensions of a weight).

    `before`, `after` and `mask` (bool, True = kept) share one shape. Fewer where fewer are kept.
    """
    change = torch.where(mask, (after - before).abs(), -1.0).flatten()
    places = change.sort(descending=True, stable=True).indices[: min(count, int(mask.sum()))]
    return torch.stack(torch.unravel_index(places, before.shape), dim=1)
