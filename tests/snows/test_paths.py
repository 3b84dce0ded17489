"""Every function that a person calls takes a path as a person gives it."""

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import snows
from snows.config import AnyPath, PruneConfig, RunConfig
from snows.events import Queued
from snows.export import files
from snows.method.sparsity import read_mask_file
from snows.runs import archive
from snows.runs.store import Run, RunStore, default_root
from snows.sources import data, models, training, uploads


@dataclass
class Elsewhere:
    """A path of another library."""

    text: str

    def __fspath__(self) -> str:
        return self.text


FORMS: dict[str, Callable[[Path], AnyPath]] = {
    "path": lambda path: path,
    "text": str,
    "home": lambda path: f"~/{path.relative_to(Path.home())}",
    "home path": lambda path: Path(f"~/{path.relative_to(Path.home())}"),
    "other": lambda path: Elsewhere(str(path)),
}


@pytest.fixture(params=list(FORMS))
def as_given(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    monkeypatch.setenv("HOME", str(tmp_path))
    return FORMS[request.param]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, a network's weights and masks."""
    pictures = tmp_path / "photos"
    pictures.mkdir()
    for number in range(4):
        Image.fromarray(np.full((28, 28), 20 * number, np.uint8)).save(pictures / f"{number}.png")
    return tmp_path


def test_stores_and_runs(as_given: Callable[[Path], Any], folder: Path) -> None:
    store = snows.RunStore(as_given(folder / "runs"))
    assert store == RunStore(folder / "runs")
    assert store.list() == []
    run = store.create(RunConfig())
    run.append(Queued())
    assert Run(as_given(run.path)) == run
    assert Run(as_given(run.path)).state() == "interrupted"
    with Run(as_given(run.path)).queue() as hold:
        hold.cancel()
    back = archive.import_run(RunStore(as_given(folder / "other")), as_given(run.path))
    assert back.path == folder / "other" / run.id
    with (folder / "run.zip").open("wb") as file:
        archive.pack(run, file)
    assert archive.import_run(store, as_given(folder / "run.zip"), as_copy=True).state() == "cancelled"


def test_settings(as_given: Callable[[Path], Any], folder: Path) -> None:
    mask, weights = as_given(folder / "mask.safetensors"), as_given(folder / "mine.safetensors")
    config = RunConfig(data=as_given(folder / "photos"), checkpoint=weights, prune=PruneConfig(mask=mask))
    assert (config.data, config.checkpoint, config.prune.mask) == tuple(
        map(os.fspath, (as_given(folder / "photos"), weights, mask))
    )
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_what_goes_out_and_comes_in_again(as_given: Callable[[Path], Any], folder: Path) -> None:
    network = snows.load_model("resnet20-fashion")
    path = as_given(folder / "mine.safetensors")
    files.save_weights(path, network.module.state_dict())
    assert (folder / "mine.safetensors").exists()
    assert files.load_weights(path)[0].keys() == network.module.state_dict().keys()
    for load in (snows.load_model, models.outline):
        assert len(load("resnet20-fashion", path).class_names) == 10

    mask = torch.tensor([[True, False]])
    files.save_masks(as_given(folder / "mask.safetensors"), {"fc.weight": mask})
    assert torch.equal(read_mask_file(as_given(folder / "mask.safetensors"))["fc.weight"], mask)

    images = snows.load_data(as_given(folder / "photos"), network, 2, 2, 0)
    assert len(images.calibration) == len(data.preview(as_given(folder / "photos"), network, 2, 2, 0, 2).images) == 2
    data.write_sheet(images.calibration, as_given(folder / "sheet.png"))
    assert (folder / "sheet.png").exists()


def test_what_is_brought(as_given: Callable[[Path], Any], folder: Path) -> None:
    root = as_given(folder / "runs")
    picture = (folder / "photos" / "1.png").read_bytes()
    assert uploads.keep_pictures(root, [("a.png", io.BytesIO(picture))]).path.is_relative_to(folder / "runs")
    assert uploads.keep_checkpoint(root, io.BytesIO(b"\x80x"), "my.pt").is_relative_to(folder / "runs")
    with zipfile.ZipFile(folder / "photos.zip", "w") as file:
        file.write(folder / "photos" / "1.png", "1.png")
    assert uploads.keep_archive(root, as_given(folder / "photos.zip"), "photos.zip").path.is_relative_to(folder / "runs")
    uploads.purge(root, seconds=-1)
    assert not list((folder / "runs" / ".uploads").iterdir())


def test_where_the_full_images_lie(as_given: Callable[[Path], Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SYSTEM_FOLDER", folder / "nowhere")
    for read in (
        lambda root: data.read_fashion_mnist("test", root),
        lambda root: data.write_bundle(as_given(folder / "bundle.npz"), root),
        lambda root: training.train("resnet20-fashion", as_given(folder / "out"), root=root),
    ):
        with pytest.raises(data.DataError, match=rf"is neither in {folder}/sets/FashionMNIST/raw nor in"):
            read(as_given(folder / "sets"))


def test_the_environment_may_name_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SNOWS_RUNS", "~/somewhere")
    assert default_root() == tmp_path / "somewhere"
