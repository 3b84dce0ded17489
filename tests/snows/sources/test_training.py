import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from snows.config import InputError
from snows.sources import models, training
from snows.sources.data import DataError, read_fashion_mnist


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(training.RECIPES))
def test_result_is_a_loadable_checkpoint_with_its_card(name: str, fashion_root: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    card = training.train(name, tmp_path / "out", seed=3, epochs=2, limit=40, root=fashion_root, report=lines.append)
    assert json.loads((tmp_path / "out" / f"{name}.json").read_text()) == card
    assert card["command"] == f"python -m snows train --model {name} --seed 3 --epochs 2 --limit 40"
    assert card["dataset"] == "Fashion-MNIST, 40 training images"
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    loaded = models.load(name, tmp_path / "out" / f"{name}.safetensors")
    assert sum(p.numel() for p in loaded.module.parameters()) == card["parameters"]


@pytest.mark.slow
def test_accuracy_of_the_card_is_measured_on_the_test_images(fashion_root: Path, tmp_path: Path) -> None:
    card = training.train("resnet20-fashion", tmp_path, epochs=1, limit=40, root=fashion_root)
    loaded = models.load("resnet20-fashion", tmp_path / "resnet20-fashion.safetensors")
    images, labels = read_fashion_mnist("test", fashion_root)
    with torch.no_grad():
        predicted = loaded.module(loaded.preprocess(images)).argmax(1)
    assert card["test_accuracy"] == pytest.approx((predicted == labels).float().mean().item())


@pytest.mark.slow
def test_training_lowers_the_loss(fashion_root: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    training.train("resnet20-fashion", tmp_path, epochs=6, limit=40, root=fashion_root, report=lines.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_seed_decides_the_weights(fashion_root: Path, tmp_path: Path) -> None:
    def weights(seed: int, folder: str) -> dict[str, torch.Tensor]:
        training.train("resnet20-fashion", tmp_path / folder, seed=seed, epochs=1, limit=20, root=fashion_root)
        return load_file(tmp_path / folder / "resnet20-fashion.safetensors")

    first, again, other = weights(0, "first"), weights(0, "again"), weights(1, "other")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_augmentation_shifts_and_mirrors_only() -> None:
    images = torch.zeros(400, 1, 9, 9)
    images[:, 0, 4, 2] = 1
    moved = training.augment(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(400))
    _, _, rows, columns = moved.nonzero().unbind(1)
    # A mirrored column 2 is column 6; either moves by up to two pixels.
    assert set(rows.tolist()) == set(range(2, 7))
    assert set(columns.tolist()) == set(range(9))


@pytest.mark.parametrize(("keywords", "said"), [({"epochs": -1}, "at least one epoch"), ({"limit": -5}, "at least one epoch")])
def test_nothing_to_train_on(keywords: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        training.train("vit-fashion", tmp_path, **keywords)


def test_unknown_recipe_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no training recipe for 'resnet50'\. Recipes exist for resnet20-fashion, vit-fashion"
    ):
        training.train("resnet50", tmp_path)


def test_missing_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snows.sources.data.SYSTEM_FOLDER", tmp_path / "absent")
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        training.train("vit-fashion", tmp_path, root=tmp_path)
