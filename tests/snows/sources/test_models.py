import argparse
import collections
import copy
import datetime
import enum
import os
import socket
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from snows.config import InputError
from snows.sources import checkpoints, models
from snows.sources.checkpoints import CheckpointError
from snows.sources.downloads import DownloadError
from snows.sources.models import CatalogueError, load

TINY_TIMM = "timm:test_vit"  # 0.4 million weights, 160x160 input
GREY = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)


@pytest.fixture
def state() -> dict[str, Tensor]:
    """A state dict that fits resnet20-fashion and differs from its random weights."""
    return {name: value + 1 for name, value in models.BUNDLED["resnet20-fashion"].build().state_dict().items()}


def _resnet(checkpoint: Path | None = None) -> models.LoadedModel:
    return load("resnet20-fashion", checkpoint, pretrained=False)


# --- catalogue ---


@pytest.mark.parametrize("length", [0x80, 0x4B50], ids=["a pickle", "a zip archive"])
def test_safetensors_whose_header_is_as_long_as_another_kind_begins(length: int, tmp_path: Path) -> None:
    network = nn.Linear(1, 1, bias=False)
    header = b'{"weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "w").write_bytes(length.to_bytes(8, "little") + header + np.float32(3).tobytes())
    assert float(checkpoints.read(tmp_path / "w", network)["weight"]) == 3


@pytest.mark.parametrize("name", sorted(models.BUNDLED))
def test_bundled_networks_take_their_own_input(name: str) -> None:
    loaded = load(name, pretrained=False)
    images = loaded.preprocess(torch.from_numpy(GREY)[None, None])
    assert images.shape[1:] == loaded.input_size
    assert loaded.module(images).shape == (1, len(loaded.class_names))
    assert not loaded.module.training


def test_bundled_weights_are_those_of_the_card() -> None:
    loaded = load("resnet20-fashion")
    card = models.card("resnet20-fashion")
    assert sum(p.numel() for p in loaded.module.parameters()) == card["parameters"]
    assert card["test_accuracy"] >= 0.935


def test_missing_bundled_weights_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "ASSETS", tmp_path)
    with pytest.raises(CatalogueError) as refused:
        load("vit-fashion")
    assert refused.value.in_shell.startswith("python -m snows train --model vit-fashion")


@pytest.mark.slow
def test_random_weights_are_repeatable_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, second = _resnet(), _resnet()
    assert torch.equal(torch.rand(4), expected)
    for mine, other in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet20", "Did you mean resnet20-fashion or resnet20-cifar10?"),
        ("vit-fashoin", "vit-fashion"),
        ("resnet18", "timm:resnet18 or torchvision:resnet18"),
        ("timm:resnet_18", "timm:resnet18"),
        ("torchvision:vit_b16", "torchvision:vit_b_16"),
        ("keras:resnet50", "resnet50"),
        ("", "timm:NAME"),
    ],
)
def test_unknown_name_suggests_near_ones(name: str, hint: str) -> None:
    with pytest.raises(CatalogueError, match=f"There is no model {name!r}") as raised:
        load(name)
    assert hint in str(raised.value)


def test_timm_network_preprocesses_by_its_own_config() -> None:
    loaded = load(TINY_TIMM, pretrained=False)
    assert loaded.input_size == (3, 160, 160)
    assert loaded.class_ids[0] == "n01440764"
    assert loaded.class_names[0].startswith("tench")
    picture = Image.fromarray(np.full((50, 80, 3), 255, np.uint8))
    images = loaded.preprocess([picture, picture.convert("L")])
    assert images.shape == (2, 3, 160, 160)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, torch.ones_like(images))  # white, with mean and deviation 0.5
    assert torch.equal(loaded.preprocess(torch.full((1, 3, 50, 80), 255, dtype=torch.uint8)), images[:1])


def test_torchvision_network_preprocesses_by_its_weights_transforms() -> None:
    loaded = load("torchvision:squeezenet1_1", pretrained=False)
    assert loaded.input_size == (3, 224, 224)
    assert (loaded.class_names[0], loaded.class_ids[0]) == ("tench", "n01440764")
    images = loaded.preprocess([Image.new("RGB", (300, 260))])
    black = -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images, black[None, :, None, None].expand(1, 3, 224, 224))
    assert loaded.module(images).shape == (1, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_torchvision_networks_with_side_classifiers_load_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not load(f"torchvision:{name}", pretrained=False).module.training


@pytest.mark.parametrize("name", [TINY_TIMM, "torchvision:squeezenet1_1"])
def test_no_connection_is_one_sentence_with_the_way_out(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *arguments, **keywords: None)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    started = time.perf_counter()
    with pytest.raises(DownloadError, match=r"could not be fetched from https://.* as your own weights"):
        load(name)
    assert time.perf_counter() - started < 20  # the hub's client alone would try for 45 seconds


def test_timm_network_without_published_weights() -> None:
    name = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    with pytest.raises(CatalogueError, match=f"timm publishes no weights for {name}. Bring your own"):
        load(f"timm:{name}")


# --- pictures ---


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("L", (32, 32)), "32x32 of kind L"),
        (Image.new("RGB", (28, 28)), "28x28 of kind RGB"),
    ],
)
def test_bundled_networks_refuse_other_pictures(image: Image.Image, said: str) -> None:
    with pytest.raises(InputError, match=f"takes 28x28 grey images, not {said}"):
        _resnet().preprocess([image])


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 28, 28, dtype=torch.uint8), torch.zeros(1, 1, 28, 28)])
def test_bundled_networks_refuse_other_tensors(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"takes uint8 images of shape \(B, 1, 28, 28\)"):
        _resnet().preprocess(images)


def test_pictures_and_tensors_give_the_same_input() -> None:
    loaded = _resnet()
    assert torch.equal(loaded.preprocess([Image.fromarray(GREY)]), loaded.preprocess(torch.from_numpy(GREY)[None, None]))


# --- checkpoints that fit ---


def _save_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def _saver(wrap: Callable[[dict[str, Tensor]], object], **keywords: bool) -> Callable[[dict[str, Tensor], Path], Path]:
    def save(state: dict[str, Tensor], folder: Path) -> Path:
        torch.save(wrap(state), folder / "weights.pt", **keywords)
        return folder / "weights.pt"

    return save


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(_save_safetensors, id="safetensors"),
        pytest.param(_saver(lambda state: state), id="plain"),
        pytest.param(_saver(lambda state: state, _use_new_zipfile_serialization=False), id="legacy"),
        pytest.param(_saver(lambda state: {"state_dict": state, "epoch": 3}), id="state_dict"),
        pytest.param(_saver(lambda state: {"model": state}), id="model"),
        pytest.param(_saver(lambda state: {f"module.{k}": v for k, v in state.items()}), id="module-prefix"),
        pytest.param(_saver(lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}}), id="lightning"),
        pytest.param(
            _saver(lambda state: {k: v.double() if v.is_floating_point() else v for k, v in state.items()}), id="float64"
        ),
        pytest.param(
            _saver(lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}), id="no-counters"
        ),
    ],
)
def test_checkpoint_forms(save: Callable[[dict[str, Tensor], Path], Path], state: dict[str, Tensor], tmp_path: Path) -> None:
    loaded = load("resnet20-fashion", save(state, tmp_path)).module.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(loaded[name], value), name
            assert loaded[name].dtype == torch.float32


class _Mode(enum.Enum):
    FAST = 1


class _Settings(dict[str, object]):
    """As configuration libraries have them: a mapping of their own class."""


def _changed(state: dict[str, Tensor], by: float = 5.0) -> dict[str, Tensor]:
    return {name: value + by if value.is_floating_point() else value for name, value in state.items()}


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _masked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    given: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("conv1.weight"):
            # What the mask removes is still there.
            given |= {name + "_orig": torch.where(value == 0, torch.ones(()), value), name + "_mask": (value != 0).float()}
        else:
            given[name] = value
    return given


def _weight_normed(state: dict[str, Tensor], length: str, direction: str) -> dict[str, Tensor]:
    given: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith("weight") and value.ndim > 1:
            stem = name.removesuffix("weight")
            norms = torch.linalg.vector_norm(value, dim=list(range(1, value.ndim)), keepdim=True)
            given |= {stem + length: norms, stem + direction: torch.where(norms == 0, 1.0, 3 * value)}
        else:
            given[name] = value
    return given


def _by_parts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {("head." if name.startswith("fc") else "backbone.") + name: value for name, value in state.items()}


TRAINING = {
    "argparse": lambda s: {"net": s, "args": argparse.Namespace(lr=0.1, out=Path("x"), when=datetime.date(2026, 1, 2))},
    "imagenet-example": lambda s: {
        "epoch": 3,
        "arch": "resnet20",
        "state_dict": _under("module.", s),
        "best_acc1": torch.tensor(0.5),
        "optimizer": {"state": {0: {"momentum_buffer": s["fc.weight"]}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    },
    "timm": lambda s: {
        "epoch": 1,
        "arch": "x",
        "state_dict": s,
        "optimizer": {},
        "version": 2,
        "args": argparse.Namespace(),
        "amp_scaler": {"scale": torch.tensor(2.0)},
        "state_dict_ema": _changed(s),
        "metric": np.float64(0.5),
    },
    "detr": lambda s: {"model": s, "model_ema": _changed(s), "optimizer": {}, "scaler": {"scale": torch.ones(())}},
    "lightning": lambda s: {
        "pytorch-lightning_version": "2.0",
        "state_dict": _under("net.", s) | {"loss_fn.weight": torch.ones(7), "train_acc.tp": torch.zeros(3)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_k_models": {}, "best": np.float32(1)}},
        "hyper_parameters": _Settings(lr=1, mode=_Mode.FAST),
    },
    "compiled-lightning": lambda s: {"state_dict": _under("model._orig_mod.", s)},
    "mmengine": lambda s: {
        "meta": _Settings(classes=("a", "b"), cfg="x"),
        "state_dict": _by_parts(s),
        "message_hub": collections.defaultdict(list, {"a": [1]}),
        "ema_state_dict": _under("module.", _by_parts(_changed(s))),
    },
    "averaged": lambda s: {"model_state": _under("module.", s) | {"n_averaged": torch.tensor(5)}},
    "bare-and-ema": lambda s: s | _under("ema.", _changed(s)),
    "ema-and-bare": lambda s: _under("ema.", _changed(s)) | s,
    "ema-with-more": lambda s: {"ema": {"decay": torch.ones(()), **_changed(s)}} | s,
    "student-and-teacher": lambda s: {
        "teacher": _under("backbone.", _changed(s)),
        "student": _under("module.backbone.", s) | {"module.head.last.weight_g": torch.ones(4, 1)},
    },
    "timm-wrapper": lambda s: _under("timm_model.", s),
    "compiled-in-the-middle": lambda s: {
        name.replace("layer1.", "layer1._orig_mod.").replace("conv2.", "conv2._checkpoint_wrapped_module."): value
        for name, value in s.items()
    },
    "a-part-parallel": lambda s: {name.replace("layer2.", "layer2.module."): value for name, value in s.items()},
    "by-parts": lambda s: (
        {"fc": {"weight": s["fc.weight"], "bias": s["fc.bias"]}}
        | {"backbone": {name: value for name, value in s.items() if not name.startswith("fc")}}
    ),
    "masked": _masked,
    "masked-in-training": lambda s: {"model_state_dict": _under("module.", _masked(s)), "epoch": 4},
    "old-weight-norm": lambda s: _weight_normed(s, "weight_g", "weight_v"),
    "weight-norm": lambda s: _weight_normed(s, "parametrizations.weight.original0", "parametrizations.weight.original1"),
    "counter": lambda s: {"weights": s, "seen": collections.Counter("abc"), "queue": collections.deque([1, 2])},
    "nested": lambda s: {"a": {"b": {"c": s}}},
    "twice-the-same": lambda s: {"model": s, "best": copy.deepcopy(s)},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("form", TRAINING)
def test_files_as_trainings_write_them(form: str, zipped: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = models.BUNDLED["resnet20-fashion"].build().state_dict()
    for name, value in state.items():
        if name.endswith("conv1.weight"):
            value[0] = 0
    path = tmp_path / "last.ckpt"
    torch.save(TRAINING[form](dict(state)), path, _use_new_zipfile_serialization=zipped)
    assert models.outline("resnet20-fashion", path).name == "resnet20-fashion"
    loaded = load("resnet20-fashion", path).module.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(loaded[name], value, msg=name)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda module: {"model": module, "epoch": 1}])
def test_a_whole_network_that_was_pickled_gives_its_tensors(wrap: Callable[[nn.Module], object], tmp_path: Path) -> None:
    module = models.BUNDLED["vit-fashion"].build()
    torch.save(wrap(module), tmp_path / "whole.pth.tar")
    loaded = load("vit-fashion", tmp_path / "whole.pth.tar").module.state_dict()
    for name, value in module.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize("name", ["weights", "weights.tar", "weights.bin", "weights.safetensors.part"])
def test_the_kind_of_file_is_told_by_its_first_bytes(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    for save in (_save_safetensors, _saver(lambda state: state), _saver(dict, _use_new_zipfile_serialization=False)):
        (tmp_path / name).write_bytes(save(state, tmp_path).read_bytes())
        assert torch.equal(_resnet(tmp_path / name).module.get_parameter("fc.weight"), state["fc.weight"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"\x89HDF\r\n", "Keras"),
        (b"\x93NUMPY\1", "NumPy"),
        (b"\x1f\x8b\x08", "gzip"),
    ],
)
def test_other_files_are_called_by_their_names(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        _resnet(tmp_path / "weights.pth")


def test_a_program_of_torchscript_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("net/data.pkl", "net/code/net.py", "net/constants.pkl"):
            archive.writestr(name, b"\x80\2}.")
    with pytest.raises(CheckpointError, match="program of TorchScript"):
        _resnet(tmp_path / "net.pt")


def test_two_copies_that_differ_are_not_guessed_between(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"generator": state, "other": _changed(state)}, tmp_path / "two.pt")
    with pytest.raises(CheckpointError, match="holds this network 2 times, as generator, other"):
        _resnet(tmp_path / "two.pt")


@pytest.mark.parametrize("change", [lambda w: w.to("meta"), lambda w: w.to_sparse()], ids=["meta", "sparse"])
def test_names_without_plain_values_are_missing(
    change: Callable[[Tensor], Tensor], state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({**state, "layer1.0.conv1.weight": change(state["layer1.0.conv1.weight"])}, tmp_path / "bare.pt")
    with pytest.raises(CheckpointError, match=r"1 missing \(layer1.0.conv1.weight\)"):
        _resnet(tmp_path / "bare.pt")


def test_a_tensor_that_claims_more_values_than_it_has_is_not_put_together(state: dict[str, Tensor], tmp_path: Path) -> None:
    vast = torch.zeros(1).expand(10**6, 10**6)
    torch.save({**state, "x.weight_orig": vast, "x.weight_mask": vast}, tmp_path / "vast.pt")
    with pytest.raises(CheckpointError, match="2 unexpected"):
        _resnet(tmp_path / "vast.pt")


def test_references_in_circles_end(state: dict[str, Tensor], tmp_path: Path) -> None:
    content: dict[str, object] = {"state_dict": state}
    content["self"] = content
    for level in range(60):
        content = {"a": content, "b": content} if level % 2 else {"a": content, "c": content}
    torch.save(content, tmp_path / "circle.pt")
    assert torch.equal(_resnet(tmp_path / "circle.pt").module.get_parameter("fc.weight"), state["fc.weight"])


def test_a_network_whose_parts_are_named_alike(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    torch.save(module.state_dict(), tmp_path / "alike.pt")
    read = checkpoints.read(tmp_path / "alike.pt", module)
    assert read.keys() == module.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in module.state_dict().items())


def test_a_head_of_another_form_is_said_to_be_all_that_differs(state: dict[str, Tensor], tmp_path: Path) -> None:
    given = {name: value for name, value in state.items() if not name.startswith("fc")}
    for head in ({"fc.1.weight": torch.zeros(3, 64), "fc.1.bias": torch.zeros(3)}, {"fc.weight": torch.zeros(3, 64)}):
        with pytest.raises(CheckpointError, match=r"Only the head differs: this network's is fc.weight \[10, 64\]"):
            _resnet(_save_safetensors(given | {"fc.bias": torch.zeros(10)} | head, tmp_path))


SMALL = {
    "timm:resnet10t": ({"num_classes": 5}, {"in_chans": 1}, {"in_chans": 4, "num_classes": 3}),
    "timm:vit_tiny_patch16_224": ({"img_size": 96, "num_classes": 4}, {"in_chans": 1}, {"img_size": 320}),
    "timm:cait_xxs24_224": ({"num_classes": 6},),
    "timm:deit_tiny_distilled_patch16_224": ({"num_classes": 4}, {"in_chans": 4, "img_size": 112}),
    "timm:vit_small_patch16_dinov3": ({"num_classes": 9}, {}),
    "timm:mixer_s32_224": ({"in_chans": 1, "num_classes": 2},),
    "torchvision:googlenet": ({"num_classes": 8}, {"aux_logits": False}, {"aux_logits": False, "num_classes": 12}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_network_is_built_as_the_checkpoint_has_it(name: str, tmp_path: Path) -> None:
    source, _, architecture = name.partition(":")
    create = timm.create_model if source == "timm" else torchvision.models.get_model
    for settings in SMALL[name]:
        extra = {"init_weights": False} if architecture == "googlenet" else {}
        module = create(architecture, **settings, **extra)
        torch.save({"state_dict": _under("module.", module.state_dict())}, tmp_path / "own.pth.tar")
        outline = models.outline(name, tmp_path / "own.pth.tar")
        assert outline.input_size[0] == settings.get("in_chans", 3)
        assert outline.input_size[1] == settings.get("img_size", models.outline(name).input_size[1])
        if "num_classes" in settings:
            assert outline.class_names == tuple(f"class {i}" for i in range(settings["num_classes"]))
        loaded = load(name, tmp_path / "own.pth.tar").module.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in module.state_dict().items())
        picture = outline.preprocess([Image.new("RGB", (400, 300), "red")])
        assert picture.shape[1:] == outline.input_size


def test_channels_that_no_picture_has(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t", in_chans=7).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(InputError, match="images of 7 channels"):
        load("timm:resnet10t", tmp_path / "seven.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", [TINY_TIMM, "torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small"])
def test_checkpoint_with_a_classifier_of_another_size(name: str, tmp_path: Path) -> None:
    module = load(name, pretrained=False).module
    classifier = [key for key, value in module.state_dict().items() if 1000 in value.shape]
    state = {key: value[:7].clone() if key in classifier else value for key, value in module.state_dict().items()}
    loaded = load(name, _save_safetensors(state, tmp_path))
    assert loaded.class_names == tuple(f"class {i}" for i in range(7))
    assert loaded.class_ids == ()
    with torch.no_grad():
        assert loaded.module(torch.zeros(1, *loaded.input_size)).shape == (1, 7)


# --- checkpoints that do not ---


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint file"):
        _resnet(tmp_path / "none.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_damaged_checkpoint(damage: str, suffix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = _save_safetensors(state, tmp_path) if suffix == ".safetensors" else _saver(lambda s: s)(state, tmp_path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello, I am no checkpoint", "truncated": whole[: len(whole) // 2]}[damage])
    with pytest.raises(CheckpointError, match="damaged"):
        _resnet(path)


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"neither of safetensors nor of torch.save"):
        _resnet(tmp_path / "weights.h5")


class _Runs:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (str(self.place),)


class _Calls(_Runs):
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [_Runs, _Calls])
def test_nothing_in_a_file_is_run(kind: type[_Runs], zipped: bool, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": state, "more": kind(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with suppress(CheckpointError):
        _resnet(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": {}}])
def test_file_without_a_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        _resnet(tmp_path / "other.pt")


def test_compressed_archive_is_refused_unread(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = _saver(lambda s: s)(state, tmp_path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    with pytest.raises(CheckpointError, match="is compressed"):
        _resnet(tmp_path / "small.pt")


def test_oversized_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge.pt").open("wb") as file:
        file.truncate(10**12)  # sparse: takes no room
    with pytest.raises(CheckpointError, match=r"has 1,000,000 MB, far more than this network's 1 MB"):
        _resnet(tmp_path / "huge.pt")


def test_mismatched_keys_are_explained(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["fc.bias"], state["bn1.weight"]
    state["extra"] = torch.zeros(2)
    state["conv1.weight"] = torch.zeros(16, 3, 3, 3)
    with pytest.raises(CheckpointError) as raised:
        _resnet(_save_safetensors(state, tmp_path))
    said = str(raised.value)
    assert "2 missing (bn1.weight, fc.bias)" in said
    assert "1 unexpected (extra)" in said
    assert "1 of the wrong shape (conv1.weight is [16, 3, 3, 3] instead of [16, 1, 3, 3])" in said


def test_checkpoint_of_another_network_lists_the_first_few(tmp_path: Path) -> None:
    path = _save_safetensors(load(TINY_TIMM, pretrained=False).module.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match=r"missing \(\S+, \S+, \S+, …\); .* unexpected \(\S+, \S+, \S+, …\)"):
        _resnet(path)


def test_quantized_values_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["fc.weight"] = state["fc.weight"].to(torch.int8)
    with pytest.raises(CheckpointError, match=r"fc.weight is \[10, 64\] int8 instead of \[10, 64\]"):
        _resnet(_save_safetensors(state, tmp_path))


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN"), (float("inf"), "an infinite value")])
def test_nonfinite_weight_is_named(value: float, said: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    state["layer2.0.conv1.weight"][3, 2, 1, 0] = value
    with pytest.raises(CheckpointError, match=f"the weight layer2.0.conv1.weight holds {said} \\(1 of 4,608 values\\)"):
        _resnet(_save_safetensors(state, tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {f"encoder.{k}.x": v for k, v in s.items()}, "They have no name in common: .* try the other one's"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("fc")}, "seems to be saved without its last part"),
        (lambda s: s | {"head2.weight": torch.zeros(2, 2)}, "All of the network is in it, with more besides"),
        (lambda s: s | {"conv1.weight": torch.zeros(16, 3, 3, 3)}, "It takes images of 3 channels"),
        (
            lambda s: {k: v for k, v in s.items() if "layer3" not in k} | {"x": torch.zeros(2)},
            "Choose the model that the checkpoint",
        ),
    ],
    ids=["foreign", "headless", "more", "channels", "other"],
)
def test_mismatches_come_with_their_likely_reason_and_as_rows(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = _save_safetensors(change(state), tmp_path)
    for look in (_resnet, lambda path: models.outline("resnet20-fashion", path)):
        with pytest.raises(CheckpointError, match=said) as raised:
            look(path)
        rows = {name: (given, own) for name, given, own in raised.value.mismatches}
        assert rows
        for name, (given, own) in rows.items():
            assert (given == "-") == (name not in change(state))
            assert (own == "-") == (name not in state)


def test_positions_of_another_image_size_are_named(tmp_path: Path) -> None:
    state = dict(load("vit-fashion", pretrained=False).module.state_dict())
    state["pos_embed"] = torch.zeros(1, 37, state["pos_embed"].shape[2])
    with pytest.raises(CheckpointError, match="made for another image size"):
        load("vit-fashion", _save_safetensors(state, tmp_path))


def test_any_common_prefix_is_taken_off_even_beside_other_tensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped = {f"student.backbone.{name}": value for name, value in state.items()}
    loaded = load("resnet20-fashion", _save_safetensors(wrapped, tmp_path))
    assert torch.equal(loaded.module.get_parameter("fc.weight"), state["fc.weight"])


# --- before loading ---


@pytest.mark.parametrize(
    "name", ["vit-fashion", "resnet20-cifar10", TINY_TIMM, "torchvision:squeezenet1_1", "torchvision:regnet_y_400mf"]
)
def test_an_outline_says_what_the_network_will_be(name: str) -> None:
    outline, loaded = models.outline(name), load(name, pretrained=False)
    assert outline.module.state_dict().keys() == loaded.module.state_dict().keys()
    for mine, other in zip(outline.module.parameters(), loaded.module.parameters(), strict=True):
        assert mine.shape == other.shape
    assert (outline.input_size, outline.class_names) == (loaded.input_size, loaded.class_names)
    picture = Image.fromarray(GREY) if name == "vit-fashion" else Image.new("RGB", (50, 40), "red")
    assert torch.equal(outline.preprocess([picture]), loaded.preprocess([picture]))
    assert outline.preprocessing == loaded.preprocessing != ""


def test_an_outline_takes_no_memory_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("the network was asked"))
    outline = models.outline("timm:vit_large_patch16_224")
    assert {p.device.type for p in outline.module.parameters()} == {"meta"}
    parameters = sum(p.numel() for p in outline.module.parameters())
    weights = models.published_weights(outline.name, parameters)
    assert parameters == 304_326_632
    assert weights is not None
    assert weights.address == (
        "https://huggingface.co/timm/vit_large_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors"
    )


def test_an_outline_has_the_classes_of_the_checkpoint(tmp_path: Path) -> None:
    state = load("torchvision:squeezenet1_1", pretrained=False).module.state_dict()
    path = _save_safetensors({k: v[:7].clone() if 1000 in v.shape else v for k, v in state.items()}, tmp_path)
    assert len(models.outline("torchvision:squeezenet1_1", path).class_names) == 7


def test_preprocessing_is_told_in_words() -> None:
    assert models.outline("torchvision:vit_b_16").preprocessing == (
        "The shorter edge to 256 pixels (bilinear), the middle 224x224, values from 0 to 1, "
        "less the mean (0.485, 0.456, 0.406), over the deviation (0.229, 0.224, 0.225)"
    )


def test_class_names_of_ones_own() -> None:
    names = tuple("abcdefghij")
    assert load("resnet20-fashion", pretrained=False, class_names=names).class_names == names
    with pytest.raises(CatalogueError, match="9 class names were given, but resnet20-fashion has 10 outputs"):
        models.outline("resnet20-fashion", class_names=names[:9])


def test_search_finds_every_word_and_begins_with_the_nearest() -> None:
    assert models.search("resnet50", 2) == ["timm:resnet50", "torchvision:resnet50"]
    assert models.search("torchvision vit", 3) == ["torchvision:vit_b_16", "torchvision:vit_b_32", "torchvision:vit_h_14"]
    assert models.search("no such network") == []
    assert models.search("224 vit base")[:4] == models.search("vit BASE 224")[:4]
    assert "timm:vit_base_patch16_224" in models.search("vit base 224")[:4]
    labels = {"vit-fashion": "Vision transformer, trained on Fashion-MNIST"}
    assert models.search("transformer fashion", labels=labels) == ["vit-fashion"]
    assert models.search("vision transformer, trained on fashion-mnist", labels=labels) == ["vit-fashion"]
    assert set(models.every_name()) >= {"vit-fashion", "resnet50-cifar100", "timm:resnet18.a1_in1k"}


@pytest.mark.slow
def test_the_cifar_networks_are_those_published() -> None:
    parameters = {name: sum(p.numel() for p in models.outline(name).module.parameters()) for name in models.CIFAR}
    assert parameters == {"resnet20-cifar10": 272_474, "resnet50-cifar100": 23_705_252}
    assert len(models.CIFAR100_CLASSES) == 100
    assert list(models.CIFAR100_CLASSES) == sorted(models.CIFAR100_CLASSES)
    with torch.no_grad():
        logits = load("resnet50-cifar100", pretrained=False).module(torch.zeros(1, 3, 32, 32))
    assert logits.shape == (1, 100)
