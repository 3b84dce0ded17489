"""Which units belong together, and that the smaller network answers as the masked one does."""

import pytest
import torch
from torch import Tensor, nn

from snows.config import InputError, PruneConfig
from snows.method import structured
from snows.method.coverage import coverage
from snows.method.graph import NetworkGraph
from snows.method.pruner import prune
from snows.method.units import UnitError, Units, cut, removable, shrink


class Block(nn.Module):
    """A residual block with batch norms, a depthwise convolution and a gate of squeeze and excitation inside, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.expand, self.norm = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.project = nn.Conv2d(8, 6, 1)
        self.hidden, self.out, self.head = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.norm(self.expand(x)).relu()).relu()
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        x = (x + self.project(y)).mean((2, 3))
        return self.head(x + self.out(nn.functional.gelu(self.hidden(x))))


def block() -> Block:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Block().eval()
        module.norm.running_mean.normal_()
        module.norm.running_var.uniform_(0.5, 2)
    return module


def images(count: int = 24) -> Tensor:
    return torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def graph_of(module: nn.Module) -> NetworkGraph:
    return NetworkGraph.export(module, images(2))


def test_what_makes_and_what_reads_a_unit_is_read_off_the_graph() -> None:
    units = removable(graph_of(block()))
    found = {(tuple(group.rows), tuple(group.columns), len(group)) for group in units.groups}
    assert found == {
        (("expand.weight", "excite.weight"), ("squeeze.weight", "project.weight"), 8),
        (("squeeze.weight",), ("excite.weight",), 4),
        (("hidden.weight",), ("out.weight",), 10),
    }
    assert units.reasons.keys() == {"stem.weight", "project.weight", "out.weight", "head.weight"}
    assert "added" in units.reasons["stem.weight"]
    assert "answer" in units.reasons["head.weight"]


def test_a_cut_that_leaves_something_read_is_refused() -> None:
    units = Units(graph_of(block()))
    group = next(group for group in units.groups if "hidden.weight" in group.rows)
    with pytest.raises(UnitError, match="other answers"):
        cut(units, group.numbers[:3])


@torch.no_grad()
def test_shrinking_needs_no_mask_only_columns_of_zeros() -> None:
    module = block()
    module.out.weight[:, 2:7] = 0
    smaller = shrink(module, images(2))
    state = smaller.state_dict()
    assert state["hidden.weight"].shape == (5, 6)
    assert state["out.weight"].shape == (6, 5)
    assert state["hidden.bias"].shape == (5,)
    assert state["expand.weight"].shape == (8, 6, 1, 1)
    torch.testing.assert_close(smaller(images()), module(images()))


@pytest.mark.parametrize("update", ["none", "least-squares", "sparsegpt", "snows"])
@pytest.mark.parametrize("mask", ["magnitude", "obc", "taylor", "random"])
def test_the_smaller_network_answers_as_the_masked_one(mask: str, update: str) -> None:
    result = prune(block(), images(), PruneConfig(pattern="width 50%", mask=mask, update=update, k_steps=2))
    smaller, masked = result.model.state_dict(), result.masked.state_dict()
    assert masked.keys() == block().state_dict().keys()
    assert smaller["expand.weight"].shape == (4, 6, 1, 1)
    assert smaller["depthwise.weight"].shape == (4, 1, 3, 3)
    assert smaller["squeeze.weight"].shape == (2, 4, 1, 1)
    assert smaller["norm.running_var"].shape == (4,)
    assert smaller["out.weight"].shape == (6, 5)
    with torch.no_grad():
        torch.testing.assert_close(result.model(images()), result.masked(images()), rtol=1e-4, atol=1e-5)
    for name, mask_of in result.masks.items():
        assert not bool(result.masked.get_parameter(name)[~mask_of].any())


def test_a_masked_checkpoint_is_cut_to_the_same_network_again() -> None:
    result = prune(block(), images(), PruneConfig(pattern="width 50%", update="least-squares"))
    module = block()
    module.load_state_dict(result.masked.state_dict())
    again = shrink(module, images(2)).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in result.model.state_dict().items())


def test_a_resumed_run_ends_at_the_same_bits() -> None:
    config, saved = PruneConfig(pattern="width 50%", k_steps=2), {}
    whole = prune(block(), images(), config, on_site=lambda index, weight, mask: saved.update({index: (weight, mask)}))
    half = prune(block(), images(), config, finished=lambda index: saved.get(index) if index < 3 else None)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(half.model.state_dict()[name], tensor), name


def test_a_layer_keeps_its_own_pattern_and_what_stays_says_why() -> None:
    config = PruneConfig(pattern="width 50%", overrides={"hidden": "width 20%", "excite": "dense"})
    covered = coverage(graph_of(block()), config)
    assert {tuple(group.rows): str(pattern) for group, pattern in covered.groups} == {("hidden.weight",): "width 20%"}
    assert "left to dense" in covered.skipped["expand.weight"]
    assert "pattern of its own, dense" in covered.skipped["squeeze.weight"]
    heads = coverage(graph_of(block()), PruneConfig(pattern="heads 50%"))
    assert not heads.groups
    assert "no heads" in heads.skipped["hidden.weight"]


@pytest.mark.parametrize("mask", ["wanda", "mine.safetensors"])
def test_masks_that_choose_single_weights_are_refused(mask: str) -> None:
    with pytest.raises(ValueError, match="chooses single weights"):
        PruneConfig(pattern="width 50%", mask=mask)
    with pytest.raises(ValueError, match="scores whole units"):
        PruneConfig(pattern="2:4", mask="taylor")
    assert issubclass(UnitError, InputError)


# --- which units ---


def loss_of(weight: Tensor, gram: Tensor, columns: Tensor) -> float:
    """What is lost with these columns alone, the rest of W refitted; as a share."""
    fitted = torch.zeros_like(weight)
    fitted[:, columns] = torch.linalg.solve(gram[columns][:, columns], gram[columns] @ weight.T).T
    gap = weight - fitted
    return float(((gap @ gram) * gap).sum() / ((weight @ gram) * weight).sum())


def reading(width: int, seed: int = 0, units: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    columns = units * width
    mixed = torch.randn(40, columns, generator=generator, dtype=torch.float64) @ torch.randn(
        columns, columns, generator=generator, dtype=torch.float64
    )
    weight = torch.randn(3, columns, generator=generator, dtype=torch.float64)
    return weight, mixed.T @ mixed, torch.randperm(columns, generator=generator).view(units, width)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_units_are_removed_as_by_trying_each(width: int, seed: int) -> None:
    weight, gram, columns = reading(width, seed)
    left = list(range(6))
    while len(left) > 2:
        losses = {unit: loss_of(weight, gram, columns[[u for u in left if u != unit]].flatten()) for unit in left}
        left.remove(min(losses, key=losses.__getitem__))
    kept = structured.remove([structured.Reading(weight, gram, columns)], 2)
    assert kept.nonzero().flatten().tolist() == left


@pytest.mark.parametrize("width", [1, 3])
def test_what_a_removal_costs_is_what_the_loss_rises_by(width: int) -> None:
    weight, gram, columns = reading(width)
    one, kept, before = structured.Reading(weight, gram, columns), torch.ones(6, dtype=torch.bool), 0.0
    for unit in (4, 1, 2):
        cost = float(one.values()[unit])
        one.pivot(torch.tensor(unit))
        kept[unit] = False
        after = loss_of(weight, gram, columns[kept].flatten())
        assert after - before == pytest.approx(cost, rel=1e-8)
        assert float(one.values()[unit]) == pytest.approx(cost, rel=1e-8), "what it would gain to take back in"
        before = after
    inside = columns[kept].flatten()
    fitted = torch.linalg.solve(gram[inside][:, inside], gram[inside] @ weight.T)
    torch.testing.assert_close(one.tableau[inside][:, gram.shape[0] :], fitted)


def kept_hidden(mask: str) -> Tensor:
    config = PruneConfig(pattern="width 50%", mask=mask, refine="none", precision="float64", device="cpu")
    graph = NetworkGraph.export(block().double(), images(2).double())
    covered = coverage(graph, config)
    choice = structured.choose(graph, covered, config, list(images().double().split(10)), torch.device("cpu"))
    return choice.masks["out.weight"].any(0)


def test_magnitude_and_taylor_against_plain_references() -> None:
    module = block().double()
    sizes = (module.hidden.weight.square().sum(1) + module.out.weight.square().sum(0)).sqrt()
    assert kept_hidden("magnitude").nonzero().flatten().tolist() == sorted(sizes.topk(5).indices.tolist())
    logits = module(images().double())
    nn.functional.cross_entropy(logits, logits.argmax(1)).backward()
    scores = (module.out.weight * module.out.weight.grad).sum(0).abs()
    assert kept_hidden("taylor").nonzero().flatten().tolist() == sorted(scores.topk(5).indices.tolist())
