"""What is written comes back equal; what cannot be written or converted says why."""

import builtins
import errno
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snows.config import NM
from snows.export.files import (
    ArtifactError,
    load_weights,
    save_masks,
    save_onnx,
    save_weights,
    semi_structured_obstacle,
    to_semi_structured,
)
from snows.method.sparsity import keep_mask, read_mask_file
from snows.sources.models import BUNDLED, ResNet20


def two_of_four(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return (weight * keep_mask(weight.abs(), NM(n=2, m=4))).to(dtype)


# --- safetensors ---


def test_weights_come_back_with_their_metadata(tmp_path: Path) -> None:
    state = ResNet20().state_dict()
    save_weights(tmp_path / "pruned.safetensors", state, {"pattern": "2:4"})
    read, metadata = load_weights(tmp_path / "pruned.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    assert metadata["pattern"] == "2:4"
    ResNet20().load_state_dict(read)
    assert list(tmp_path.iterdir()) == [tmp_path / "pruned.safetensors"]


def test_tied_and_transposed_weights_come_back(tmp_path: Path) -> None:
    weight = torch.randn(3, 5)
    save_weights(tmp_path / "w.safetensors", {"a": weight, "b": weight, "c": weight.T})
    read, _ = load_weights(tmp_path / "w.safetensors")
    assert torch.equal(read["a"], weight)
    assert torch.equal(read["b"], weight)
    assert torch.equal(read["c"], weight.T)


def test_masks_come_back_as_a_mask_file(tmp_path: Path) -> None:
    masks = {"conv1.weight": torch.rand(4, 3, 3, 3) > 0.5}
    save_masks(tmp_path / "mask.safetensors", masks)
    assert torch.equal(read_mask_file(tmp_path / "mask.safetensors")["conv1.weight"], masks["conv1.weight"])
    with pytest.raises(ArtifactError, match=r"fc.weight must be bool, but is torch.float32"):
        save_masks(tmp_path / "mask.safetensors", {"fc.weight": torch.ones(2, 2)})


def test_a_file_that_is_missing_or_cut_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no file .*absent"):
        load_weights(tmp_path / "absent.safetensors")
    path = tmp_path / "torn.safetensors"
    save_weights(path, {"w": torch.randn(4, 4)})
    content = path.read_bytes()
    for length in (0, 7, 20, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError, match="cannot be read as a safetensors file"):
            load_weights(path)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Could not write .*absent.*folder that exists"):
        save_weights(tmp_path / "absent" / "w.safetensors", {"w": torch.ones(1)})


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.zeros(2)})

    def full(tensors: dict[str, Tensor], scratch: Path, metadata: dict[str, str]) -> None:
        scratch.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("snows.export.files.save_file", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        save_weights(path, {"w": torch.ones(2)})
    assert torch.equal(load_weights(path)[0]["w"], torch.zeros(2))
    assert list(tmp_path.iterdir()) == [path]


# --- ONNX ---


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_onnx_file_is_valid_and_computes_the_same(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    torch.manual_seed(0)
    network = BUNDLED[name].build()
    network.train()
    images = BUNDLED[name].preprocess(torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8))
    path = tmp_path / "network.onnx"
    save_onnx(path, network, images[:1])
    assert network.training
    assert list(tmp_path.iterdir()) == [path]  # weights inside
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["images"]

    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})  # five images, though one was the example
    with torch.no_grad():
        expected = network.eval()(images)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def test_onnx_without_its_package_gives_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxscript":
            raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ArtifactError, match=r"onnxscript, which is not installed\. Run: pip install onnx onnxscript"):
        save_onnx(tmp_path / "network.onnx", nn.Linear(2, 2), torch.zeros(2, 2))


@pytest.mark.slow
def test_onnx_of_a_network_that_branches_on_values_says_why(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ArtifactError, match="cannot be translated to ONNX"):
        save_onnx(tmp_path / "network.onnx", Branching(), torch.zeros(2, 2))
    assert list(tmp_path.iterdir()) == []


# --- semi-structured ---


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.zeros(8, 4, 1, 1), r"shape \(8, 4, 1, 1\)"),
        (torch.ones(32, 64, dtype=torch.bfloat16), "not 2:4: 512 of 512 groups keep more than 2 of 4"),
        (two_of_four(32, 64, torch.float32), "half precision, and this weight is torch.float32"),
        (two_of_four(30, 64), "multiple of 32 outputs and of 64 inputs, and this weight has 30 and 64"),
        (two_of_four(32, 96), "this weight has 32 and 96"),
        (two_of_four(32, 64), "NVIDIA GPUs only, and this weight is on cpu"),
    ],
)
def test_every_obstacle_to_semi_structured_kernels_is_named(weight: Tensor, reason: str) -> None:
    sentence = semi_structured_obstacle(weight)
    assert sentence is not None
    assert re.search(reason, sentence)


def test_an_old_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(Tensor):
        device = torch.device("cuda")

    weight = two_of_four(32, 64).as_subclass(OnGpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "this GPU has 7.5" in (semi_structured_obstacle(weight) or "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert semi_structured_obstacle(weight) is None


def test_layers_that_cannot_convert_stay_and_are_named() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(8, 4))
    converted, reasons = to_semi_structured(network)
    assert reasons.keys() == {"0.weight", "2.weight"}
    assert converted is not network
    assert torch.equal(converted[2].weight, network[2].weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and there is none")
def test_semi_structured_layers_compute_the_same() -> None:
    layer = nn.Linear(256, 128).to("cuda", torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(two_of_four(128, 256))
    converted, reasons = to_semi_structured(nn.Sequential(layer))
    assert reasons == {}
    assert type(converted[0].weight.data) is not Tensor
    x = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), F.linear(x, layer.weight, layer.bias), rtol=2e-2, atol=2e-2)
