"""What a budget goes by, as recorded: complete, true to a run's own measuring, and refused where there is none."""

from pathlib import Path

import pytest
import torch

from snows.config import ALLOCATORS, NM, Budget, InputError, PruneConfig, RunConfig
from snows.method import curves
from snows.method.budget import MEASURED, choose
from snows.method.coverage import batches_of, coverage
from snows.method.graph import NetworkGraph
from snows.plans import budgets
from snows.sources import data, models

NETWORKS = ["resnet20-fashion", "vit-fashion"]


def asked(model: str, pattern: str = "budget 6.25%", **more: object) -> RunConfig:
    return RunConfig(model=model, prune=PruneConfig.model_validate({"pattern": pattern} | more))


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("allocate", ALLOCATORS)
@pytest.mark.parametrize("patterns", ["", ", from any"])
def test_each_allocator_spreads_a_budget_of_each_network(model: str, allocate: str, patterns: str) -> None:
    config = asked(model, f"budget 6.25%, {allocate}{patterns}")
    assert budgets.is_recorded(config)
    layers = budgets.layers(config)
    assert isinstance(config.prune.pattern, Budget)
    choice = choose(layers, config.prune.pattern)
    assert list(choice.patterns) == [layer.name for layer in layers]
    assert 0.05 < choice.share <= 0.0625
    if patterns:
        assert all({str(pattern) for pattern in MEASURED} <= layer.curve.keys() for layer in layers)
    assert all(layer.tail > 1 for layer in layers)
    assert any(layer.outliers > 0 for layer in layers)


def test_layers_are_those_of_a_run() -> None:
    names = [layer.name for layer in budgets.layers(asked("resnet20-fashion"))]
    assert len(names) == 20
    assert "conv1.weight" not in names  # no pattern has groups of one input channel
    assert "conv1.weight" in [layer.name for layer in budgets.layers(asked("resnet20-fashion", "budget 5%, from any"))]
    assert "fc.weight" in [layer.name for layer in budgets.layers(asked("resnet20-fashion", prune_classifier=True))]
    config = asked("resnet20-fashion", overrides={"fc": "1:8", "conv1": "1:8", "layer1.0.conv1.weight": "dense"})
    assert budgets.fixed(config).keys() == {"fc.weight", "layer1.0.conv1.weight"}
    assert budgets.fixed(config)["fc.weight"] == NM(n=1, m=8)
    assert "fc.weight" in [layer.name for layer in budgets.layers(config)]


def test_nothing_is_recorded_of_other_networks_and_images(tmp_path: Path) -> None:
    assert not budgets.is_recorded(asked("timm:resnet18"))
    assert not budgets.is_recorded(asked("vit-fashion").model_copy(update={"data": "cifar-10"}))
    assert not budgets.is_recorded(asked("vit-fashion").model_copy(update={"checkpoint": "mine.pt"}))
    assert not budgets.is_recorded(asked("../budgets/vit-fashion"))
    with pytest.raises(InputError, match=r"is not recorded of vit-fashion in .* bundle-budgets"):
        budgets.layers(asked("vit-fashion"), tmp_path)


@pytest.mark.slow
def test_a_run_measures_what_was_recorded() -> None:
    config = asked("resnet20-fashion")
    recorded = {layer.name: layer for layer in budgets.layers(config)}
    model = models.load_configured(config)
    batches = batches_of(data.load_configured(config, model).calibration, config.prune.batch_size)
    graph = NetworkGraph.export(model.module.eval(), batches[0][:2])
    few = {name: NM(n=1, m=8) for name in recorded if name not in ("layer2.0.downsample.0.weight", "layer3.2.conv2.weight")}
    prune = config.prune.model_copy(update={"overrides": few})
    measured = curves.layers(graph, coverage(graph, prune), prune, batches, torch.device("cpu"), ["curve"])
    compared = [layer for layer in measured if layer.name not in few]
    assert len(compared) == 2
    for layer in compared:
        for text, loss in layer.curve.items():
            assert loss == pytest.approx(recorded[layer.name].curve[text], rel=0.02)


@pytest.mark.slow
def test_recording_writes_what_is_read(tmp_path: Path) -> None:
    config = RunConfig(num_calibration=8)
    assert budgets.record(config, tmp_path) == tmp_path / "resnet20-fashion.json"
    layers = budgets.layers(asked("resnet20-fashion"), tmp_path)
    assert [layer.name for layer in layers] == [layer.name for layer in budgets.layers(asked("resnet20-fashion"))]
    assert all(layer.curve["1:16"] > 0 for layer in layers)
