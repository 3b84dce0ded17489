"""Joint fits: the objective of many weights against dense matrices, where a network has a waist, and what a run does."""

import pytest
import torch
from torch import Tensor, nn

from snows.config import Cancelled, PruneConfig
from snows.events import Event, JointFinished, JointStarted, JointStep
from snows.method import joint
from snows.method.coverage import coverage
from snows.method.graph import NetworkGraph
from snows.method.operations import execute_node
from snows.method.pruner import prune
from tests.snows.helpers import assert_entries_close, dense, network

CPU = torch.device("cpu")
NETWORKS = ["residual", "fused", "gates"]


def config(**more: object) -> PruneConfig:
    return PruneConfig.model_validate(
        {"pattern": "50%", "precision": "float64", "device": "cpu", "batch_size": 2, "prune_classifier": True} | more
    )


class Naive:
    """The same loss of the flat kept weights, by running the whole network with autograd."""

    def __init__(self, problem: joint.Problem, graph: NetworkGraph, images: Tensor) -> None:
        self.problem, self.graph, self.images = problem, graph, images
        self.dense = {name: value.double() for name, value in graph.parameters.items()}
        with torch.no_grad():
            self.targets = self.values(self.dense)

    def values(self, parameters: dict[str, Tensor]) -> list[Tensor]:
        values = self.graph.bind({}) | {self.graph.tensor_node(name): value for name, value in parameters.items()}
        values[self.graph.input] = self.graph.laid_out(self.images)
        for node in self.graph.nodes:
            values[node] = execute_node(node, values)
        return [values[node] for node in self.problem.window.captured]

    def outputs(self, kept: Tensor) -> list[Tensor]:
        flat = torch.zeros(self.problem.kept.size, dtype=kept.dtype).index_put((self.problem.kept.places,), kept)
        parts = flat.split([self.graph.parameters[site.name].numel() for site in self.problem.sites])
        weights = {site.name: part.view(site.shape) for site, part in zip(self.problem.sites, parts, strict=True)}
        return self.values(self.dense | weights)

    def errors(self, kept: Tensor) -> Tensor:
        """Scaled so that the sum of their squares is the loss without the pull."""
        pairs = zip(self.outputs(kept), self.targets, strict=True)
        return torch.cat([((y - t) / t.square().sum().sqrt()).flatten() for y, t in pairs])

    def pull(self, kept: Tensor) -> Tensor:
        pull = self.problem.objective.pull
        if not isinstance(pull, Tensor):
            return kept.new_zeros(())
        whole = torch.zeros(self.problem.kept.size, dtype=kept.dtype).index_put((self.problem.kept.places,), kept)
        dense = torch.cat([self.dense[site.name].flatten() for site in self.problem.sites])
        return (pull * (whole - dense).square()).sum()

    def loss(self, kept: Tensor) -> Tensor:
        return self.errors(kept).square().sum() + self.pull(kept)


def problem_of(name: str, ridge: float = 0.0, **more: object) -> tuple[joint.Problem, Naive]:
    module, _, images = network(name)
    images = images.double()
    graph = NetworkGraph.export(module.double(), images[:2])
    settings = config(ridge=ridge, **more)
    covered = coverage(graph, settings)
    found, generator = {}, torch.Generator().manual_seed(1)
    for site in covered.sites:
        mask = torch.rand(site.shape, generator=generator) < 0.5
        mask.view(site.shape[0], -1)[:, 0] = True
        found[site.name] = graph.parameters[site.name].detach() * mask, mask
    problem = joint.Problem(graph, covered.sites, settings, list(images.split(2)), CPU, found)
    return problem, Naive(problem, graph, images)


@pytest.mark.parametrize("ridge", [0.0, 4.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_gradient_and_curvature_are_those_of_the_whole_network(name: str, ridge: float) -> None:
    problem, naive = problem_of(name, ridge)
    objective, x = problem.objective, problem.start
    generator = torch.Generator().manual_seed(2)
    x = x + 0.05 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    assert objective.loss(x) == pytest.approx(float(naive.loss(x)), rel=1e-10)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(naive.loss(point), point)
    # Of operations without a rule of their own, derivatives are good to eight digits.
    assert_entries_close(objective.loss_and_gradient(x)[1], gradient, rtol=1e-6, atol=1e-8, what="gradient")

    jacobian = torch.autograd.functional.jacobian(naive.errors, x)
    product = dense(objective.product(x), x.numel())
    assert_entries_close(product, 2 * jacobian.T @ jacobian, rtol=1e-6, atol=1e-8, what="curvature")
    if ridge:
        assert isinstance(objective.pull, Tensor)
        assert (objective.pull > 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_preconditioner_is_the_sites_own_blocks(name: str) -> None:
    problem, _ = problem_of(name, 4.0)
    _, solve = problem.objective.curvature(problem.start, 0)
    matrix = dense(solve, problem.kept.count)
    assert_entries_close(matrix, matrix.T, what="symmetry")
    assert (torch.linalg.eigvalsh(matrix) > 0).all()
    assert problem.objective.row_systems is not None
    scales, systems = problem.objective.row_scales, problem.objective.row_systems()
    assert scales is not None
    ends = torch.tensor(problem.kept.counts).cumsum(0).tolist()
    for start, end in zip([0, *ends], ends, strict=False):  # no site's block reaches into another's
        assert matrix[start:end, :start].abs().max() == 0 if start else True
    assert scales.shape == systems.quadratic(torch.ones(problem.kept.count, dtype=torch.float64)).shape


def test_targets_that_are_made_again_are_the_same() -> None:
    (held, _), (remade, _) = problem_of("residual"), problem_of("residual", memory=1e-9)
    assert type(held.objective.batches[0].targets) is not type(remade.objective.batches[0].targets)
    x = held.start
    assert held.objective.loss(x) == pytest.approx(remade.objective.loss(x), rel=1e-12)


def test_waists_are_the_values_that_everything_hangs_on() -> None:
    _, graph, images = network("residual")
    sites = coverage(graph, config()).sites
    captured = joint.cuts(graph, sites)
    assert captured[-1] is graph.output
    assert len(captured) < len(sites)  # within a block, the shortcut goes around
    values = graph.run(images, capture=captured)[1]
    for node in captured:  # from there on, nothing before it is asked for again
        later = [n for n in graph.nodes[graph.index[node] + 1 :] if n in graph.depends_on_images]
        before = {n for n in graph.nodes[: graph.index[node]] if n in graph.depends_on_images} | {graph.input}
        assert not any(parent in before for n in later for parent in n.all_input_nodes)
        assert values[node].shape[0] == len(images)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_ends_nearer_to_the_dense_network_and_keeps_its_masks(name: str) -> None:
    module, _, images = network(name)
    happened: list[Event] = []
    alone = prune(module, images, config(ridge=0.0))
    together = prune(module, images, config(ridge=0.0, joint="network"), on_event=happened.append)
    (start,) = (event for event in happened if isinstance(event, JointStarted))
    (end,) = (event for event in happened if isinstance(event, JointFinished))
    steps = [event for event in happened if isinstance(event, JointStep)]
    assert steps
    assert len(start.captured) == len(start.losses) == len(end.after) == len(end.scale)
    before, after = (sum(a / b for a, b in zip(losses, end.scale, strict=True)) for losses in (end.before, end.after))
    assert after < before
    assert after == pytest.approx(steps[-1].loss, rel=1e-9)
    assert together.num_products > alone.num_products
    for weight, mask in together.masks.items():
        assert torch.equal(mask, alone.masks[weight])
        assert (together.model.get_parameter(weight)[~mask] == 0).all()
    others = dict(together.model.named_parameters()).keys() - together.masks.keys()
    assert all(torch.equal(together.model.get_parameter(n), module.get_parameter(n)) for n in others)


def test_it_can_be_cancelled_and_goes_on_after_the_layers() -> None:
    module, _, images = network("residual")
    settings, saved = config(joint="network"), dict[int, tuple[Tensor, Tensor]]()
    begun: list[bool] = []

    def note(event: Event) -> None:
        begun.extend([True] if isinstance(event, JointStarted) else [])

    with pytest.raises(Cancelled):
        prune(
            module,
            images,
            settings,
            on_event=note,
            cancelled=lambda: bool(begun),
            on_site=lambda index, weight, mask: saved.update({index: (weight, mask)}),
        )
    resumed = prune(module, images, settings, finished=saved.get)
    whole = prune(module, images, settings)
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))
    assert isinstance(resumed.model, nn.Module)
