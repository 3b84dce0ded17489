"""Networks at several levels: what is kept of them gives them back, and what the cards say of them is so."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snows.__main__ import main
from snows.config import Dense, InputError, RunConfig, parse_pattern
from snows.method.sparsity import check_compliance
from snows.plans import levels
from snows.plans.levels import DENSE, Levels
from snows.sources import data, models

ROOT = Path(__file__).parents[3]
RECORDED = [path.stem for path in sorted(levels.FOLDER.glob("*.json"))]
# One layer is pruned, so that recording takes seconds.
LEFT = [
    "conv1",
    *(f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)),
    "layer2.0.downsample.0",
]
PRUNED = "layer3.0.downsample.0.weight"


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_what_is_packed_comes_back_in_half_precision(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, 3, 1, generator=generator)
    mask = torch.rand(weight.shape, generator=generator) < 0.3
    packed = levels._Packed.of(weight, mask)
    assert torch.equal(packed.unpacked(weight.shape), (weight * mask).half().float())
    assert packed.mask.numel() == -(-weight.numel() // 8)
    assert packed.values.numel() == mask.sum()


def test_a_network_that_was_not_recorded_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No levels of vit-fashion .* bundle-levels"):
        Levels.read("vit-fashion", tmp_path)
    assert not levels.is_recorded("vit-fashion", tmp_path)


def test_pictures_are_of_different_classes_and_others_every_turn() -> None:
    labels = data._read_bundle(data.BUNDLE)["test_labels"]
    images, numbers = levels.pictures(0)
    assert images.shape == (8, 28, 28)
    assert images.dtype == np.uint8
    assert len(set(labels[numbers])) == 8
    others = levels.pictures(1)[1]
    assert set(numbers).isdisjoint(others)
    assert levels.pictures(1000)[1] == numbers  # a thousand of each class


@pytest.mark.slow
class TestRecorded:
    def test_both_networks_are(self) -> None:
        assert {*RECORDED} == {"resnet20-fashion", "vit-fashion"}

    @pytest.mark.parametrize("model", RECORDED)
    def test_the_card_says_how(self, model: str) -> None:
        found = Levels.read(model)
        assert [level.pattern for level in found.levels] == [DENSE, *levels.PATTERNS]
        assert found.about["command"] == f"python -m snows bundle-levels --model {model}"
        assert (found.about["num_calibration"], found.about["num_evaluation"]) == (512, 10_000)
        assert all(abs(lost) <= levels.MOST_LOST for lost in found.about["accuracy_lost_in_half_precision"].values())
        card = json.loads((ROOT / f"assets/{model}.json").read_text())
        assert found.at(DENSE).cut == found.at(DENSE).refitted == pytest.approx(card["test_accuracy"], abs=2e-4)
        for level in found.levels[1:]:
            assert level.density == pytest.approx(parse_pattern(level.pattern).density, abs=1e-6)
            assert level.cut <= level.refitted

    @pytest.mark.parametrize("model", RECORDED)
    @pytest.mark.parametrize("pattern", levels.PATTERNS)
    def test_the_networks_are_what_they_are_called(self, model: str, pattern: str) -> None:
        dense = models.load(model).module.state_dict()
        cut, refitted = (levels.network(model, pattern, refitted=fit).module.state_dict() for fit in (False, True))
        names = levels._read(levels.FOLDER / f"{model}.safetensors", pattern)
        for name, before in dense.items():
            obeyed = parse_pattern(pattern) if name in names else Dense()
            for after in (cut[name], refitted[name]):
                assert torch.equal(after, before) or check_compliance(after, obeyed).ok, name
                assert torch.equal(after, before) == (name not in names), name
            kept = cut[name] != 0
            assert torch.equal(cut[name][kept], before[kept]), name

    @pytest.mark.parametrize("model", RECORDED)
    def test_accuracy_is_about_what_the_card_says(self, model: str) -> None:
        bundle = data._read_bundle(data.BUNDLE)
        images, labels = bundle["test_images"][:600, 0], bundle["test_labels"][:600]
        level = Levels.read(model).at("1:8")
        for refitted, said in ((False, level.cut), (True, level.refitted)):
            found = levels.probabilities(levels.network(model, "1:8", refitted=refitted), images).argmax(1) == labels
            assert found.mean() == pytest.approx(said, abs=0.05)  # four standard deviations of so many

    def test_they_take_little_room(self) -> None:
        assert sum(path.stat().st_size for path in levels.FOLDER.iterdir()) < 2.4e6


@pytest.mark.slow
def test_recording_writes_networks_and_what_they_reach(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "num_calibration": 16,
            "num_evaluation": 50,
            "prune": {"update": "least-squares", "refine": "none", "overrides": {name: "dense" for name in LEFT}},
        }
    )
    said: list[str] = []
    path = levels.record(config, ("1:4",), tmp_path, said.append)
    assert path == tmp_path / "resnet20-fashion.json"
    found = Levels.read("resnet20-fashion", tmp_path)
    assert [level.pattern for level in found.levels] == [DENSE, "1:4"]
    assert len(said) == 1
    images = data.load("fashion-mnist", models.load("resnet20-fashion"), 1, 50, 0)
    for refitted, accuracy in ((False, found.at("1:4").cut), (True, found.at("1:4").refitted)):
        module = levels.network("resnet20-fashion", "1:4", refitted=refitted, folder=tmp_path).module
        assert check_compliance(module.get_parameter(PRUNED), parse_pattern("1:4")).ok
        with torch.no_grad():
            answers = module(images.evaluation).argmax(1)
        assert float((answers == images.labels).double().mean()) == pytest.approx(accuracy)


def test_the_command_hands_on_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(levels, "record", lambda *given: (asked.append(given), given[2] / "x.json")[1])
    command = [
        "bundle-levels",
        "--model",
        "vit-fashion",
        "--pattern",
        "1:8",
        "--num-calibration",
        "9",
        "--output",
        str(tmp_path),
    ]
    assert main(command) == 0
    ((config, patterns, folder, _),) = asked
    assert (config.model, config.num_calibration, config.num_evaluation) == ("vit-fashion", 9, 10_000)
    assert (patterns, folder) == (["1:8"], tmp_path)
