"""Joint fits: loss and gradient against the whole network's own, where a network has a waist, and what a run does."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from snows.config import Cancelled, PruneConfig
from snows.events import Event, JointEpoch, JointFinished, JointStarted, Note
from snows.method import joint
from snows.method.coverage import coverage
from snows.method.graph import NetworkGraph
from snows.method.operations import execute_node
from snows.method.pruner import prune
from tests.snows.helpers import assert_entries_close, network

CPU = torch.device("cpu")
NETWORKS = ["residual", "fused", "gates"]


def config(**more: object) -> PruneConfig:
    return PruneConfig.model_validate(
        {"pattern": "50%", "precision": "float64", "device": "cpu", "batch_size": 2, "prune_classifier": True} | more
    )


def reconstruction_of(
    name: str, memory: float = 2.0**30
) -> tuple[joint.Reconstruction, dict[str, Tensor], Callable[[dict[str, Tensor]], list[Tensor]], Tensor]:
    """A problem, a point of it, the captured values of the whole network run with autograd, and the images."""
    module, _, images = network(name)
    images = images.double()
    graph = NetworkGraph.export(module.double(), images[:2])
    sites = coverage(graph, config()).sites
    problem = joint.Reconstruction(graph, sites, joint.cuts(graph, sites), CPU, memory)
    generator = torch.Generator().manual_seed(1)
    point = {}
    for site in sites:
        noise = torch.randn(site.shape, generator=generator, dtype=torch.float64)
        point[site.name] = graph.parameters[site.name].detach() + 0.05 * noise

    def naive(weights: dict[str, Tensor]) -> list[Tensor]:
        values = graph.bind({}) | {graph.tensor_node(site): weight for site, weight in weights.items()}
        values[graph.input] = graph.laid_out(images)
        for node in graph.nodes:
            values[node] = execute_node(node, values)
        return [values[node] for node in problem.window.captured]

    return problem, point, naive, images


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradient_are_those_of_the_whole_network(name: str, pieces: bool) -> None:
    problem, point, naive, images = reconstruction_of(name, 1.0 if pieces else 2.0**30)
    assert problem.piece == (1 if pieces else problem.piece)
    assert pieces or problem.piece >= len(images)
    with torch.no_grad():
        targets = naive({site.name: problem.graph.parameters[site.name] for site in problem.sites})
    errors, scale = problem.measure(point, list(images.split(2)), lambda: None)
    assert scale == pytest.approx([float(t.square().mean()) for t in targets], rel=1e-10)
    outputs = naive(point)
    assert errors == pytest.approx([float((y - t).square().mean()) for y, t in zip(outputs, targets, strict=True)], rel=1e-9)

    leaves = {name: weight.clone().requires_grad_() for name, weight in point.items()}
    pairs = zip(naive(leaves), targets, scale, strict=True)
    loss = torch.stack([(y - t).square().mean() / size for y, t, size in pairs]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    assert problem.descend(leaves, images, scale) == pytest.approx(loss.item(), rel=1e-9)
    for leaf, gradient in zip(leaves.values(), gradients, strict=True):
        assert leaf.grad is not None
        assert_entries_close(leaf.grad, gradient, rtol=1e-6, atol=1e-8, what="gradient")


def test_images_are_blended_within_their_batch() -> None:
    images = torch.eye(8).view(8, 1, 2, 4)  # whose shares can be read off
    blends = joint.blended(images, torch.Generator().manual_seed(0)).view(8, 8)
    torch.testing.assert_close(blends.sum(1), torch.ones(8))
    assert (blends >= 0).all()
    assert 1 <= int(((blends > 0).sum(1) == 2).sum()) <= 7  # some are mixed and some are as they were
    again = joint.blended(images, torch.Generator().manual_seed(0)).view(8, 8)
    assert torch.equal(blends, again)
    assert joint.blended(images[:1].flatten(1), torch.Generator().manual_seed(0)).shape == (1, 8)


def test_a_step_rises_and_falls_to_nothing() -> None:
    sizes = [joint.pace(step, 100) for step in range(101)]
    assert sizes[0] == pytest.approx(0.1)
    assert max(sizes) == pytest.approx(1.0, abs=0.03)
    assert sizes[10:] == sorted(sizes[10:], reverse=True)
    assert sizes[100] == pytest.approx(0.0)


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


class Halves(nn.Module):
    """As in ShuffleNet V2: between two blocks the network hangs on two halves that come as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept, further = self.first(x).chunk(2, dim=1)
        return self.classifier(torch.cat([kept, self.second(further)], 1).relu().mean((2, 3)))


def test_a_waist_in_several_parts_is_matched_before_it_is_cut() -> None:
    torch.manual_seed(0)
    module = Halves().double()
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    graph = NetworkGraph.export(module, images[:2])
    captured = joint.cuts(graph, coverage(graph, config()).sites)
    assert captured[0] is next(node for node in graph.nodes if graph.kind(node) == "convolution")
    happened: list[Event] = []
    prune(module, images, config(update="none", joint="network", joint_epochs=20), on_event=happened.append)
    assert [event.status for event in happened if isinstance(event, JointFinished)] == ["FITTED"]


@pytest.mark.parametrize("aim", ["network", "answers"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_ends_nearer_to_the_dense_network_and_keeps_its_masks(name: str, aim: str) -> None:
    module, _, images = network(name)
    happened: list[Event] = []
    alone = prune(module, images, config())
    together = prune(module, images, config(joint=aim, joint_epochs=60), on_event=happened.append)
    (start,) = (event for event in happened if isinstance(event, JointStarted))
    (end,) = (event for event in happened if isinstance(event, JointFinished))
    passes = [event for event in happened if isinstance(event, JointEpoch)]
    assert [event.epoch for event in passes] == list(range(start.epochs)) == list(range(60))
    assert len(start.captured) == len(start.losses) == len(end.after) == len(end.scale)
    assert (len(start.captured) == 1) == (aim == "answers")
    before, after = (sum(a / b for a, b in zip(losses, end.scale, strict=True)) for losses in (end.before, end.after))
    assert after < before
    assert end.status == "FITTED"
    for weight, mask in together.masks.items():
        assert torch.equal(mask, alone.masks[weight])
        assert (together.model.get_parameter(weight)[~mask] == 0).all()
    others = dict(together.model.named_parameters()).keys() - together.masks.keys()
    assert all(torch.equal(together.model.get_parameter(n), module.get_parameter(n)) for n in others)


def test_images_that_do_not_fit_at_once_are_taken_in_pieces() -> None:
    module, _, images = network("residual")
    results = [
        prune(module, images, config(update="none", joint="network", joint_epochs=3, memory=memory)) for memory in (1.0, 1e-9)
    ]
    for name, weight in results[0].model.named_parameters():
        torch.testing.assert_close(results[1].model.get_parameter(name), weight, rtol=1e-6, atol=1e-9)
    assert any(not torch.equal(weight, module.get_parameter(name)) for name, weight in results[0].model.named_parameters())


def test_where_nothing_is_gained_the_layers_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(joint.RATE, "network", 1000.0)
    monkeypatch.setattr(joint, "_WORSE", float("inf"))
    module, _, images = network("residual")
    happened: list[Event] = []
    alone = prune(module, images, config())
    together = prune(module, images, config(joint="network", joint_epochs=2), on_event=happened.append)
    (end,) = (event for event in happened if isinstance(event, JointFinished))
    assert end.status == "NO_GAIN"
    assert end.message in [event.message for event in happened if isinstance(event, Note)]
    assert end.after == end.before
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), together.model.parameters(), strict=True))


def test_where_the_loss_is_no_number_the_layers_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(joint.RATE, "network", 1e300)
    monkeypatch.setattr(joint, "_TRIAL", 0)
    module, _, images = network("residual")
    happened: list[Event] = []
    alone = prune(module, images, config())
    together = prune(module, images, config(joint="network", joint_epochs=4), on_event=happened.append)
    (end,) = (event for event in happened if isinstance(event, JointFinished))
    assert (end.status, end.after) == ("NOT_FINITE", end.before)
    assert end.message in [event.message for event in happened if isinstance(event, Note)]  # what the shell shows
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), together.model.parameters(), strict=True))


def test_a_network_of_one_layer() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    images = torch.randn(16, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = prune(module, images, config(joint="network", update="none", joint_epochs=100))
    plain = prune(module, images, config(update="none"))
    best = prune(module, images, config(update="least-squares", ridge=0.0, refine="none"))

    def error(pruned: nn.Module) -> float:
        with torch.no_grad():
            return float((pruned(images) - module(images)).square().mean())

    assert error(best.model) <= error(result.model) < 1.05 * error(best.model) < error(plain.model)


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


@pytest.mark.parametrize("rate", [1e3, 1e5])
def test_steps_that_are_too_large_are_found_out_and_taken_back(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, few = network("residual")
    images = torch.randn(64, *few.shape[1:], generator=torch.Generator().manual_seed(0))
    settings, happened = config(update="none", joint="network", joint_epochs=40, batch_size=16), list[Event]()
    monkeypatch.setitem(joint.RATE, "network", rate)
    together = prune(module, images, settings, on_event=happened.append)
    (end,) = (event for event in happened if isinstance(event, JointFinished))
    assert end.status == "FITTED"
    notes = [event.message for event in happened if isinstance(event, Note) and "anew" in event.message]
    assert len(notes) >= 2
    assert "0.0625 times" in notes[0]
    assert "0.00390625 times" in notes[1]
    # Each time as after a worker that kept none of its passes.
    assert [event.resumed for event in happened if isinstance(event, JointStarted)] == [0] * (1 + len(notes))
    passes = [event.epoch for event in happened if isinstance(event, JointEpoch)]
    assert passes == list(range(40))  # what was taken back is none

    # It is as if steps had been so small, and images not blended, from the first.
    monkeypatch.setitem(joint.RATE, "network", rate / 16 ** len(notes))
    monkeypatch.setattr(joint, "blended", lambda images, generator: images)
    happened.clear()
    small = prune(module, images, settings, on_event=happened.append)
    assert not any(isinstance(event, Note) and "anew" in event.message for event in happened)
    for own, other in zip(together.model.parameters(), small.model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rate", [joint.RATE["network"], 100.0])  # with the second, steps are found to be too large
@pytest.mark.parametrize("passes", [1, 3])
def test_it_goes_on_between_two_passes_bit_for_bit(passes: int, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the last one, where only the loss remains to be measured."""
    monkeypatch.setitem(joint.RATE, "network", rate)
    module, _, few = network("residual")
    images = torch.randn(64, *few.shape[1:], generator=torch.Generator().manual_seed(0))
    settings, states = config(update="none", joint="network", joint_epochs=3, batch_size=16), list[joint.State]()
    whole = prune(module, images, settings, on_pass=lambda state: states.append({n: t.clone() for n, t in state.items()}))
    assert [int(state["passes"]) for state in states] == [1, 2, 3]
    assert (float(states[0]["share"]) < 1) == (rate == 100.0)
    happened: list[Event] = []
    resumed = prune(module, images, settings, passed=lambda: states[passes - 1], on_event=happened.append)
    assert [event.resumed for event in happened if isinstance(event, JointStarted)] == [passes]
    assert [event.epoch for event in happened if isinstance(event, JointEpoch)] == list(range(passes, 3))
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))
    without = prune(module, images, config(update="none", batch_size=16))
    assert not all(torch.equal(a, b) for a, b in zip(without.model.parameters(), whole.model.parameters(), strict=True))


def test_a_few_huge_weights_do_not_set_the_size_of_steps() -> None:
    mask = torch.tensor([[True, True, True, False]])
    assert joint._size(torch.tensor([[0.5, -0.4, 1e6, 0.0]]), mask) == pytest.approx(0.5)
    assert joint._size(torch.zeros(1, 4), ~mask & mask) == 0.0
