"""Budgets: the exact choice against brute force, each allocator against its paper's formula, curves against plain runs."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snows import events
from snows.config import ALLOCATORS, COUNTS, NM, Budget, Cancelled, Dense, InputError, PruneConfig, Unstructured, parse_pattern
from snows.method import budget, curves
from snows.method.budget import MEASURED, NEEDS, SHARES, choose, cost, knapsack, loss_of, options
from snows.method.coverage import coverage
from snows.method.graph import NetworkGraph
from snows.method.pruner import prune
from tests.snows.helpers import network

CPU = torch.device("cpu")


def layer(name: str, *shape: int, positions: int = 1, **measured: object) -> events.BudgetLayer:
    kind = "linear" if len(shape) == 2 else "conv2d"
    return events.BudgetLayer(name=name, kind=kind, shape=shape, positions=positions, **measured)  # type: ignore[arg-type]


def spread(share: float = 1 / 16, **more: object) -> Budget:
    return Budget.model_validate({"share": share} | more)


# --- the choice ---

layers_of_options = st.lists(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9) | st.floats(0, 9)), min_size=1, max_size=4), min_size=1, max_size=5
)


def total(of_each: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    return sum(own[i] for own, i in zip(of_each, chosen, strict=True))


@given(layers_of_options, st.integers(0, 70))
def test_no_other_choice_within_the_limit_loses_less(pairs: list[list[tuple[int, float]]], limit: int) -> None:
    costs, losses = [[c for c, _ in own] for own in pairs], [[loss for _, loss in own] for own in pairs]
    every = [c for c in itertools.product(*(range(len(own)) for own in pairs)) if total(costs, c) <= limit]
    if not every:
        with pytest.raises(ValueError, match="more than"):
            knapsack(costs, losses, limit)
        return
    chosen = knapsack(costs, losses, limit)
    assert total(costs, chosen) <= limit
    assert total(losses, chosen) == pytest.approx(min(total(losses, c) for c in every), rel=1e-8, abs=1e-12)


def test_losses_of_very_unlike_sizes_are_told_apart() -> None:
    # What a rounded loss, or a greedy choice by loss over cost, would get wrong.
    costs, losses = [[1, 6], [1, 6], [1, 10]], [[1e-9, 0.0], [2e-9, 0.0], [1e6, 0.0]]
    assert knapsack(costs, losses, 12) == [0, 0, 1]
    assert knapsack(costs, losses, 17) == [0, 1, 1]
    assert knapsack(costs, losses, 13) == [0, 0, 1]


@pytest.mark.parametrize("by", COUNTS)
@pytest.mark.parametrize("patterns", ["1:16 1:8 1:4 2:4 dense", "any"])
def test_the_choice_of_a_network_is_the_best_of_all(by: str, patterns: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16, 3, 3), (32, 16, 1, 1), (64, 32)]
    texts = [*map(str, MEASURED), "1:16", "1:8", "1:4", "2:4"]
    curve = [
        {text: float(torch.rand((), generator=generator)) / parse_pattern(text).density ** i for text in texts}
        for i in range(len(shapes))
    ]
    layers = [layer(str(i), *shape, positions=10 - 3 * i, curve=curve[i]) for i, shape in enumerate(shapes)]
    asked = spread(0.2, by=by, patterns=patterns)
    of_each = [options(one.kind, one.shape, asked) for one in layers]
    limit = 0.2 * sum(cost(one, Dense(), by) for one in layers)
    costs = [[cost(one, pattern, by) for pattern in own] for one, own in zip(layers, of_each, strict=True)]
    losses = [[loss_of(one.curve, pattern) for pattern in own] for one, own in zip(layers, of_each, strict=True)]
    every = zip(itertools.product(*costs), itertools.product(*losses), strict=True)
    best = min(sum(lost) for spent, lost in every if sum(spent) <= limit)
    choice = choose(layers, asked)
    assert choice.share <= 0.2 + 1e-12
    assert sum(loss_of(one.curve, choice.patterns[one.name]) for one in layers) == pytest.approx(best, rel=1e-9)


def test_what_is_counted() -> None:
    one = layer("conv", 8, 16, 3, 3, positions=49)
    assert cost(one, parse_pattern("1:4"), "weights") == 8 * 16 * 9 // 4
    assert cost(one, parse_pattern("1:4"), "operations") == 49 * 8 * 16 * 9 // 4
    assert cost(one, parse_pattern("1:4"), "bytes") == 288 * 4 + 288 * 2 // 8  # two bits of position a value
    assert cost(one, parse_pattern("75%"), "bytes") == 288 * 4 + 1152 // 8  # a bit a weight
    assert [cost(one, Dense(), by) for by in COUNTS] == [1152, 1152 * 49, 1152 * 4]


def test_a_layer_gets_only_what_fits_it() -> None:
    asked = spread(patterns="1:16 1:8 2:4 dense")
    assert list(map(str, options("linear", (4, 24), asked))) == ["1:8", "2:4", "dense"]
    assert list(map(str, options("conv2d", (4, 6, 4, 4), asked))) == ["dense"]  # groups run along input channels


def test_layers_with_a_pattern_of_their_own_keep_it_and_count() -> None:
    curve = {"1:16": 1.0, "1:8": 0.5}
    layers = [layer(name, 16, 16, curve=curve) for name in "abcd"]
    asked = spread(1 / 8, patterns="1:16 1:8")
    assert set(map(str, choose(layers, asked).patterns.values())) == {"1:8"}
    choice = choose(layers, asked, {"b": parse_pattern("1:4")})
    assert choice.share == 1 / 8
    assert str(choice.patterns["b"]) == "1:4"
    assert sorted(map(str, choice.patterns.values())) == ["1:16", "1:16", "1:4", "1:8"]
    with pytest.raises(InputError, match=r"cannot be met: .* they keep 29\.7%\. Raise the budget"):
        choose(layers, asked, {"b": Dense()})


@pytest.mark.parametrize("allocate", ALLOCATORS)
def test_where_every_layer_has_a_pattern_of_its_own_nothing_is_chosen(allocate: str) -> None:
    fixed = {"a": parse_pattern("1:8")}
    assert choose([layer("a", 16, 16)], spread(0.2, allocate=allocate), fixed) == budget.Choice(fixed, 1 / 8)


def test_a_budget_that_is_too_small_says_what_there_is() -> None:
    with pytest.raises(InputError, match=r"A budget of 1% of the weights cannot be met: .* they keep 6\.25%\."):
        choose([layer("a", 16, 16)], spread(0.01, allocate="uniform", patterns="1:16 1:8"))


def test_texts_say_patterns_exactly() -> None:
    for pattern in (*SHARES, *MEASURED):
        assert parse_pattern(str(pattern)) == pattern
    densities = [pattern.density for pattern in SHARES]
    assert densities == sorted(densities)
    assert densities[-1] == 1
    assert max(b / a for a, b in itertools.pairwise(densities)) < 1.11


def test_between_measured_shares_a_curve_is_a_line_on_log_axes() -> None:
    curve = {str(pattern): 3 * pattern.density**-1.5 for pattern in MEASURED}
    for pattern in SHARES[:-1]:
        if pattern.density <= 0.64:
            assert loss_of(curve, pattern) == pytest.approx(3 * pattern.density**-1.5, rel=1e-9)
    assert loss_of(curve, Unstructured(sparsity=0.18)) == pytest.approx(loss_of(curve, Unstructured(sparsity=0.36)) / 2)
    assert loss_of(curve, Dense()) == 0
    with pytest.raises(ValueError, match="says nothing of 1:8; it holds 1:4"):
        loss_of({"1:4": 1.0}, NM(n=1, m=8))


# --- the other allocators ---


def of_sizes(**measured: Sequence[float]) -> list[events.BudgetLayer]:
    shapes = [(16, 16, 3, 3), (32, 16, 1, 1), (64, 64), (32, 64, 3, 3)]
    return [layer(str(i), *shape, **{k: v[i] for k, v in measured.items()}) for i, shape in enumerate(shapes)]


def kept_share(layers: Sequence[events.BudgetLayer], densities: Sequence[float]) -> float:
    sizes = [budget.size(one) for one in layers]
    return sum(size * density for size, density in zip(sizes, densities, strict=True)) / sum(sizes)


def test_evenly() -> None:
    choice = choose(of_sizes(), spread(allocate="uniform"))
    assert set(map(str, choice.patterns.values())) == {"1:16"}
    assert choice.share == 1 / 16
    shares = choose(of_sizes(), spread(0.08, allocate="uniform", patterns="any")).patterns.values()
    assert all(pattern.density == pytest.approx(0.08, rel=0.1) for pattern in shares)


@pytest.mark.parametrize("share", [0.5, 0.0625])
def test_owl(share: float) -> None:
    d = [0.01, 0.03, 0.02, 0.05]
    most = 0.08 if share == 0.5 else 0.03125
    placed = [2 * most * (one - 0.01) / 0.04 for one in d]
    expected = [one - sum(placed) / 4 + share for one in placed]
    assert budget.owl(of_sizes(outliers=d), share) == pytest.approx(expected)
    assert min(expected) > 0
    assert sum(expected) / 4 == pytest.approx(share)


@pytest.mark.parametrize("share", [0.5, 0.0625])
def test_alphapruning(share: float) -> None:
    alpha = [2.0, 3.0, 2.5, 6.0]
    tau = 0.25 if share == 0.5 else 0.0625 / (4 * 0.9375)
    layers = of_sizes(tail=alpha)
    densities = budget.alphapruning(layers, share)
    assert kept_share(layers, densities) == pytest.approx(share)
    mapped = [(one - 2.0) / 4.0 * 2 * tau + 1 - tau for one in alpha]
    ratios = [(1 - density) / one for density, one in zip(densities, mapped, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * 4)
    assert densities[0] == max(densities)  # the heaviest tail keeps most
    assert min(densities) > 0


def test_erdos_renyi() -> None:
    densities = budget.erdos_renyi(of_sizes(), 0.1)
    assert densities == pytest.approx([38 / 2304, 50 / 512, 128 / 4096, 102 / 18432])
    choice = choose(of_sizes(), spread(0.1, allocate="erdos-renyi", patterns="any"))
    got = [pattern.density for pattern in choice.patterns.values()]
    factor = got[3] / densities[3]
    assert got == pytest.approx([min(1.0, factor * one) for one in densities], rel=0.1)
    assert 0.09 < choice.share <= 0.1


@pytest.mark.parametrize("name", sorted(set(ALLOCATORS) - {"loss"}))
@pytest.mark.parametrize("by", COUNTS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_no_allocator_exceeds_the_budget_or_wastes_it(name: str, by: str, share: float) -> None:
    layers = of_sizes(outliers=[0.01, 0.03, 0.02, 0.05], tail=[2.0, 3.0, 2.5, 6.0])
    choice = choose(layers, spread(share, by=by, allocate=name, patterns="any"))
    assert 0.8 * share < choice.share <= share


def test_layers_that_are_alike_get_alike() -> None:
    layers = of_sizes(outliers=[0.02] * 4, tail=[3.0] * 4)
    for allocator in (budget.owl, budget.alphapruning):
        assert allocator(layers, 0.25) == pytest.approx([0.25] * 4)


def test_the_tail_of_a_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 20, generator=generator, dtype=torch.float64)
    values = sorted(torch.linalg.eigvalsh(weight @ weight.T).tolist())
    expected = 1 + 4 / sum(math.log(values[8 - i] / values[8 - 5]) for i in range(1, 5))
    assert curves.tail(weight) == pytest.approx(expected)
    u, _, v = torch.linalg.svd(weight, full_matrices=False)
    heavier = u @ torch.diag(torch.logspace(0, 3, 8, dtype=torch.float64)) @ v
    assert curves.tail(heavier) < curves.tail(weight)
    assert curves.tail(torch.ones(1, 5)) == 0
    assert math.isfinite(curves.tail(torch.zeros(4, 4)))


def test_outliers() -> None:
    inputs = torch.tensor([[1.0, 10.0, 2.0], [3.0, 0.0, 2.0]])
    weight = torch.full((10, 3), 0.01)
    weight[0, 0] = 9.0
    scores = weight * inputs.square().sum(0).sqrt()
    assert int((scores > 5 * scores.mean()).sum()) == 1
    assert curves.outliers(weight, inputs.T @ inputs / 2) == pytest.approx(1 / 30)


# --- what is measured ---


def config(pattern: Budget, **more: object) -> PruneConfig:
    settings = {"pattern": pattern, "precision": "float64", "device": "cpu", "batch_size": 4, "prune_classifier": True}
    return PruneConfig.model_validate(settings | more)


def opened(name: str) -> tuple[torch.nn.Module, Tensor, NetworkGraph]:
    module, _, images = network(name)
    module, images = module.double().eval(), images.double()
    return module, images, NetworkGraph.export(module, images[:2])


@pytest.mark.parametrize("name", ["residual", "fused"])
@pytest.mark.parametrize("patterns", ["1:4 2:4 dense", "any"])
def test_a_curve_is_what_a_run_of_that_layer_alone_does_to_the_output(name: str, patterns: str) -> None:
    module, images, graph = opened(name)
    settings = config(spread(patterns=patterns))
    measured = curves.layers(graph, coverage(graph, settings), settings, [images], CPU, ["curve"])
    with torch.no_grad():
        dense = module(images)
    assert len(measured) > 2
    for one in measured[1::2]:
        assert list(one.curve) == ["1:4", "2:4"] if patterns != "any" else [str(pattern) for pattern in MEASURED]
        text = list(one.curve)[-1]
        others = {site.name: "dense" for site in graph.sites if site.name != one.name}
        alone = {"pattern": text, "overrides": others, "update": "least-squares", "targets": "propagated", "refine": "layer"}
        result = prune(module, images, settings.model_validate(settings.model_dump() | alone))
        with torch.no_grad():
            error = float((result.model(images) - dense).norm() / dense.norm())
        assert one.curve[text] == pytest.approx(error, rel=1e-5, abs=1e-12)


def test_only_what_an_allocator_goes_by_is_measured() -> None:
    _, images, graph = opened("residual")
    settings = config(spread(patterns="any"), overrides={"conv2": "50%"})
    covered = coverage(graph, settings)
    by_need = {need: curves.layers(graph, covered, settings, [images], CPU, [need]) for need in NEEDS.values()}
    assert by_need[""] == curves.unmeasured(graph, covered)
    for need, measured in by_need.items():
        for one in measured:
            assert {name for name in ("curve", "outliers", "tail") if getattr(one, name)} <= {need}
            assert one.name != "conv2.weight" or one == by_need[""][[x.name for x in measured].index(one.name)]
    assert all(one.curve for one in by_need["curve"] if one.name != "conv2.weight")
    assert all(one.tail > 1 for one in by_need["tail"] if one.name != "conv2.weight")


# --- a run ---


def pruned(name: str, settings: PruneConfig, **more: object) -> tuple[object, list[events.Event]]:
    module, images, _ = opened(name)
    happened: list[events.Event] = []
    return prune(module, images, settings, on_event=happened.append, **more), happened  # type: ignore[arg-type]


def chosen_in(happened: Sequence[events.Event]) -> events.BudgetChosen:
    (event,) = (event for event in happened if isinstance(event, events.BudgetChosen))
    return event


@pytest.mark.parametrize("allocate", ALLOCATORS)
@pytest.mark.parametrize("patterns", ["1:4 2:4 dense", "any"])
def test_a_run_keeps_within_its_budget(allocate: str, patterns: str) -> None:
    settings = config(spread(0.4, allocate=allocate, patterns=patterns))
    result, happened = pruned("residual", settings)
    event = chosen_in(happened)
    kept = sum(int(mask.sum()) for mask in result.masks.values())  # type: ignore[attr-defined]
    of = sum(mask.numel() for mask in result.masks.values())  # type: ignore[attr-defined]
    assert kept / of == pytest.approx(event.share)
    assert event.share <= 0.4
    assert {name: str(pattern) for name, pattern in result.patterns.items()} == event.patterns  # type: ignore[attr-defined]
    assert [e.name for e in happened if isinstance(e, events.Phase)] == ["budget", "prune"]
    for name, mask in result.masks.items():  # type: ignore[attr-defined]
        weight = result.model.get_parameter(name)  # type: ignore[attr-defined]
        assert not bool(weight[~mask].any())


def test_a_layer_that_keeps_all_its_weights_is_fitted_too() -> None:
    settings = config(spread(0.6, patterns="1:4 dense"), k_steps=1)
    result, happened = pruned("residual", settings)
    names = [name for name, text in chosen_in(happened).patterns.items() if text == "dense"]
    assert names
    graph = opened("residual")[2]
    last = result.model.get_parameter(names[-1])  # type: ignore[attr-defined]
    assert bool(result.masks[names[-1]].all())  # type: ignore[attr-defined]
    assert not torch.allclose(last, graph.parameters[names[-1]])


def test_a_resumed_run_keeps_to_what_was_chosen_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(spread(0.4, patterns="any"))
    whole, happened = pruned("residual", settings)
    chosen = {name: parse_pattern(text) for name, text in chosen_in(happened).patterns.items()}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a resumed run measures nothing")

    monkeypatch.setattr(curves, "layers", refuse)
    first = next(iter(whole.masks))  # type: ignore[attr-defined]
    done = [(whole.model.get_parameter(first).detach(), whole.masks[first])]  # type: ignore[attr-defined]
    again, later = pruned("residual", settings, chosen=chosen, finished=lambda i: done[i] if i < 1 else None)
    assert not any(isinstance(event, events.BudgetChosen) for event in later)
    for name, mask in whole.masks.items():  # type: ignore[attr-defined]
        assert torch.equal(mask, again.masks[name])  # type: ignore[attr-defined]
        assert torch.equal(whole.model.get_parameter(name), again.model.get_parameter(name))  # type: ignore[attr-defined]


def test_measuring_can_be_cancelled() -> None:
    with pytest.raises(Cancelled):
        pruned("residual", config(spread(0.4, patterns="any")), cancelled=lambda: True)


def test_overrides_are_kept_and_counted() -> None:
    settings = config(spread(0.8, patterns="1:4 2:4"), overrides={"conv2": "dense", "conv3": "2:4"})
    result, happened = pruned("residual", settings)
    event = chosen_in(happened)
    assert event.patterns["conv2.weight"] == "dense"
    assert event.patterns["conv3.weight"] == "2:4"
    assert "conv2.weight" not in result.masks  # type: ignore[attr-defined]
    kept = sum(int(mask.sum()) for mask in result.masks.values()) + 4 * 4 * 9  # type: ignore[attr-defined]
    of = sum(mask.numel() for mask in result.masks.values()) + 4 * 4 * 9  # type: ignore[attr-defined]
    assert kept / of == pytest.approx(event.share)
    assert event.share <= 0.8


def test_a_layer_that_no_pattern_fits_says_why() -> None:
    _, _, graph = opened("residual")
    covered = coverage(graph, config(spread(0.4, patterns="1:4 dense")))
    assert "needs a number of input channels that 4 divides, but this layer has 2" in covered.skipped["conv1.weight"]
    assert "conv1.weight" in coverage(graph, config(spread(0.4, patterns="any"))).patterns


def test_a_mask_of_a_file_has_no_budget(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"masks of mine\.safetensors say which weights stay, so there is no budget"):
        PruneConfig(pattern=spread(), mask=str(tmp_path / "mine.safetensors"))
