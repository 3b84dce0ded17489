"""How fast a network is beside another: ratios by hand, both programs on networks of known work, and before there is a run."""

import builtins
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snows.config import Cancelled, PruneConfig, RunConfig
from snows.export.files import ArtifactError
from snows.method.pruner import prune
from snows.runs import latency
from snows.runs.latency import LatencyError, Spread, Timing, expected, of_run, onnx_runtime_obstacle, timings
from snows.runs.store import RunStore
from snows.sources import models

pytestmark = pytest.mark.slow
IMAGE = torch.zeros(2, 1, 8, 8)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least that is measured, of turns that last."""
    monkeypatch.setattr(latency, "_TURN_SECONDS", 0.005)
    monkeypatch.setattr(latency, "_SECONDS", 0.0)


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def test_a_ratio_is_that_of_turns_in_a_row() -> None:
    # A machine that was ten times as slow in the second half: medians of each network alone would mix the halves.
    timing = Timing("PyTorch", 32, [0.2] * 5 + [2.0] * 6, [0.1] * 5 + [1.0] * 6)
    assert timing.faster == Spread(2.0, 2.0, 2.0)
    assert timing.said() == {
        "Program": "PyTorch",
        "Images at once": "32",
        "Dense": "2e+03 ms",
        "Pruned": "1e+03 ms",
        "Times as fast": "2.00",
        "Four of five rounds": "2.00 to 2.00",
    }


def test_the_spread_holds_four_of_five_values() -> None:
    spread = Spread.of([float(i) for i in range(11)])
    assert (spread.low, spread.median, spread.high) == (1.0, 5.0, 9.0)


def test_a_small_share_of_the_work_is_faster_in_both_programs(quick: None) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    measured = list(timings(network(1_000).train(), network(50), IMAGE))
    assert [(timing.program, timing.batch) for timing in measured] == [
        *(("PyTorch", 1), ("PyTorch", 32)),
        *(("ONNX Runtime", 1), ("ONNX Runtime", 32)),
    ]
    for timing in measured:
        assert len(timing.dense) == len(timing.pruned) >= 9
        assert timing.faster.median > 2, timing


def test_both_see_batches_of_the_size_that_is_said(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[tuple[int, ...]]] = {"dense": set(), "pruned": set()}

    class Seeing(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            seen[self.name].add(tuple(x.shape))
            return x.flatten(1)

    monkeypatch.setattr(latency, "onnx_runtime_obstacle", lambda: "not here")
    assert [timing.batch for timing in timings(Seeing("dense"), Seeing("pruned"), IMAGE)] == [1, 32]
    assert seen["dense"] == seen["pruned"] == {(1, 1, 8, 8), (32, 1, 8, 8)}


def test_without_onnx_runtime_one_program_is_left_and_a_sentence_says_so(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError(name)
        return really(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert [timing.program for timing in timings(network(8), network(4), IMAGE)] == ["PyTorch", "PyTorch"]
    assert str(onnx_runtime_obstacle()).endswith("pip install onnxruntime")


def test_it_ends_between_two_turns_once_asked(quick: None) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise Cancelled

    had: list[int] = []
    with pytest.raises(Cancelled):
        had.extend(timing.batch for timing in timings(network(8), network(4), IMAGE, check))
    assert had == [1]  # 8 turns that try, and 20 that count; the second has as many


def test_what_onnx_cannot_say_leaves_what_was_timed(quick: None) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if x.sum() > 1e9 else -x.flatten(1)

    had: list[str] = []
    with pytest.raises(ArtifactError, match="cannot be translated to ONNX"):
        had.extend(timing.program for timing in timings(Branching(), Branching(), IMAGE))
    assert had == ["PyTorch", "PyTorch"]


# --- before a run, and after it ---


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, nn.Module]]:
    """The pairs of networks that were to be timed; nothing is."""
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def note(dense: nn.Module, pruned: nn.Module, image: Tensor, check: Callable[[], None]) -> Iterator[Timing]:
        pairs.append((dense, pruned))
        yield from ()

    monkeypatch.setattr(latency, "timings", note)
    return pairs


def sizes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return sorted((name, tuple(tensor.shape)) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("pattern", ["width 50%", "heads 40%"])
def test_what_is_timed_before_a_run_has_the_sizes_of_what_the_run_makes(
    pattern: str, timed: list[tuple[nn.Module, nn.Module]]
) -> None:
    config = RunConfig(model="vit-fashion", prune=PruneConfig.model_validate({"pattern": pattern, "update": "none"}))
    assert list(expected(config)) == []
    (dense, smaller) = timed[0]
    module = models.load("vit-fashion").module
    made = prune(module, torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)), config.prune).model
    assert sizes(smaller) == sizes(made)
    assert sizes(dense) == sizes(module) != sizes(smaller)


def test_a_finished_run_is_timed_cut_to_size(timed: list[tuple[nn.Module, nn.Module]], store: RunStore) -> None:
    prune_config = PruneConfig.model_validate({"pattern": "width 50%", "update": "none"})
    run = store.create(RunConfig(model="resnet20-fashion", prune=prune_config))
    with pytest.raises(LatencyError, match=r"no pruned network to be timed yet\. Wait until it has finished, or resume it\."):
        next(of_run(run))
    module = models.load("resnet20-fashion").module
    result = prune(module, torch.randn(4, 1, 32, 32), prune_config)
    run.save_weights(result.masked.state_dict())
    assert list(of_run(run)) == []
    (dense, smaller) = timed[0]
    assert sizes(dense) == sizes(module)
    assert sizes(smaller) == sizes(result.model)


@pytest.mark.parametrize("pattern", ["2:4", "90%"])
def test_before_a_run_that_changes_no_size_there_is_nothing_to_time(pattern: str) -> None:
    config = RunConfig(prune=PruneConfig.model_validate({"pattern": pattern}))
    with pytest.raises(LatencyError, match=rf"^{pattern} leaves all sizes as they are.*such as width 50%\.$"):
        next(expected(config))


def test_a_network_of_which_nothing_can_be_cut_says_where_the_reasons_are() -> None:
    config = RunConfig(model="resnet20-fashion", prune=PruneConfig.model_validate({"pattern": "heads 50%"}))
    with pytest.raises(LatencyError, match="no units can be cut away"):
        next(expected(config))
