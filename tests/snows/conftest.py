"""Fixtures for the engine's tests."""

from pathlib import Path

import numpy as np
import pytest
import torch

from snows.sources import data

# Small operations are faster on one thread, and only there do two runs agree to the last bit.
torch.set_num_threads(1)


@pytest.fixture
def fashion_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Fashion-MNIST in torchvision's layout, the only one there is: image i is filled with i, its label is i % 10."""
    monkeypatch.setattr(data, "SYSTEM_FOLDER", tmp_path / "absent")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 50), ("t10k", 20)):
        index = np.arange(count, dtype=np.uint8)
        _write_idx(raw / f"{stem}-images-idx3-ubyte", np.broadcast_to(index[:, None, None], (count, 28, 28)))
        _write_idx(raw / f"{stem}-labels-idx1-ubyte", index % 10)
    return tmp_path


def _write_idx(path: Path, array: np.ndarray) -> None:
    path.write_bytes(bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes() + array.tobytes())
