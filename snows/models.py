"""The model catalogue: a name to a module, its preprocessing and its class names.

    resnet20-fashion, vit-fashion   bundled: the weights lie in `assets/`, with a card that says how they were made
    timm:NAME                       any timm model; weights from the Hugging Face hub
    torchvision:NAME                any torchvision classification model; weights from download.pytorch.org

Each takes a checkpoint file of one's own in place of the published weights. A checkpoint is untrusted: only tensors are read
from it, its size and every shape are compared with the network before a value is loaded, and a NaN is refused.
"""

import difflib
import json
import os
import pickle
import socket
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from snows.config import InputError

ASSETS = Path(__file__).parent.parent / "assets"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

Images = Tensor | Sequence[Image.Image]  # (B, C, H, W) uint8, or B pictures
Preprocess = Callable[[Images], Tensor]  # to (B, C, H, W) float32, as the network was trained


class CatalogueError(InputError):
    """No such model, or its weights are not to be had here."""


class CheckpointError(InputError):
    """A checkpoint file that cannot be used, and why."""


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU()
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if stride != 1 or in_channels != channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet20(nn.Module):
    """The CIFAR ResNet-20 of He et al. (2015, section 4.2), with 1x1 projection shortcuts (their option B)."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.act1 = nn.ReLU()
        self.layer1 = nn.Sequential(*(_BasicBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(_BasicBlock(16, 32, 2), *(_BasicBlock(32, 32, 1) for _ in range(2)))
        self.layer3 = nn.Sequential(_BasicBlock(32, 64, 2), *(_BasicBlock(64, 64, 1) for _ in range(2)))
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.act1(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


def _vit_fashion() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=96, depth=6, num_heads=3)


@dataclass(frozen=True)
class Bundled:
    """A network whose weights lie in `assets/`. `padding` pixels of zeros frame each 28x28 image."""

    build: Callable[[], nn.Module]
    padding: int

    def preprocess(self, images: Images) -> Tensor:
        """(B, 1, 28, 28) uint8, or 28x28 grey pictures, to (B, 1, H, W) float32 with the training set's mean 0 and deviation 1.

        Raises `InputError` for any other size or kind: these networks know nothing else, and scaling would hide that.
        """
        if not isinstance(images, Tensor):
            for image in images:
                if image.size != (28, 28) or image.mode not in ("L", "1"):
                    raise InputError(
                        f"this network takes 28x28 grey images, not {image.width}x{image.height} of kind {image.mode}"
                    )
            images = torch.stack([torch.from_numpy(np.array(image.convert("L")))[None] for image in images])
        if images.dtype != torch.uint8 or images.shape[1:] != (1, 28, 28):
            raise InputError(
                f"this network takes uint8 images of shape (B, 1, 28, 28), not {images.dtype} of shape {tuple(images.shape)}"
            )
        return (F.pad(images, [self.padding] * 4).float() / 255 - 0.2860) / 0.3530


BUNDLED: dict[str, Bundled] = {
    "resnet20-fashion": Bundled(ResNet20, padding=2),
    "vit-fashion": Bundled(_vit_fashion, padding=0),
}


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to prune: `module` is in eval mode, on the CPU, in float32."""

    name: str
    module: nn.Module
    preprocess: Preprocess
    input_size: tuple[int, int, int]  # (C, H, W) of a preprocessed image
    class_names: tuple[str, ...]  # one an output; empty for a network without a classifier
    class_ids: tuple[str, ...] = ()  # the names that folders of this data set usually have (ImageNet: n01440764)


def load(name: str, checkpoint: str | Path | None = None, *, pretrained: bool = True) -> LoadedModel:
    """The network `name`, with its published weights or those of the file `checkpoint` (.safetensors, .pt, .pth).

    A checkpoint whose classifier has another number of classes gets a classifier of that size (timm and torchvision).
    `pretrained=False` keeps random weights, the same ones every time.

    Raises `CatalogueError` for an unknown name or weights that cannot be fetched, `CheckpointError` for a file that is missing,
    corrupt, made for another network, or holds a NaN.
    """
    check_name(name)
    source, _, architecture = name.rpartition(":")
    build = partial(_SOURCES[source], architecture)
    loaded = _seeded(build, published=pretrained and checkpoint is None)
    if checkpoint is not None:
        state = _read_checkpoint(Path(checkpoint), loaded.module)
        if source and (num_classes := _other_num_classes(loaded.module, state)):
            loaded = _seeded(build, num_classes=num_classes)
        _load_state(loaded.module, state, Path(checkpoint))
    return loaded


def check_name(name: str) -> None:
    """Raises `CatalogueError`, with the nearest names, unless `load` knows `name`."""
    source, _, architecture = name.rpartition(":")
    if source in _SOURCES and architecture in names(source):
        return
    known = [f"{source}:{known}".removeprefix(":") for source in _SOURCES for known in names(source)]
    same = [full for full in known if full.endswith(f":{name.lower()}")]
    begun = [full for full in BUNDLED if name and full.startswith(name.lower())]
    near = same or begun or difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise CatalogueError(
        f"There is no model {name!r}. {hint}Models are {', '.join(BUNDLED)}, timm:NAME and torchvision:NAME "
        "(timm:resnet18, torchvision:vit_b_16)."
    )


def names(source: str) -> list[str]:
    """The names that `source` (`timm`, `torchvision`, or nothing for the bundled ones) offers, sorted, without the prefix."""
    if source == "timm":
        import timm

        return sorted({*timm.list_models(), *timm.list_pretrained()})
    if source == "torchvision":
        import torchvision

        return sorted(torchvision.models.list_models(module=torchvision.models))
    return sorted(BUNDLED)


def card(name: str) -> dict[str, Any]:
    """What is known of a bundled checkpoint: test accuracy, recipe, seconds, command. Raises `CatalogueError` if missing."""
    return json.loads(_bundled_weights(name).with_suffix(".json").read_text())


# --- sources ---


def _seeded(build: Callable[..., LoadedModel], **arguments: Any) -> LoadedModel:
    # Random weights must not depend on what ran before, nor change what runs next.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(**arguments)


def _bundled(name: str, *, published: bool = False) -> LoadedModel:
    spec = BUNDLED[name]
    module = spec.build().eval()
    if published:
        path = _bundled_weights(name)
        _load_state(module, _read_checkpoint(path, module), path)
    size = 28 + 2 * spec.padding
    return LoadedModel(name, module, spec.preprocess, (1, size, size), FASHION_CLASSES)


def _bundled_weights(name: str) -> Path:
    path = ASSETS / f"{name}.safetensors"
    if not path.exists():
        raise CatalogueError(
            f"The weights of {name} are not at {path}. Restore the file from the repository, or train them again with "
            f"`python -m snows train --model {name} --output {ASSETS}`."
        )
    return path


def _timm(architecture: str, *, published: bool = False, num_classes: int | None = None) -> LoadedModel:
    import timm
    from timm.data import create_transform, infer_imagenet_subset, resolve_model_data_config

    arguments: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if published:
        arguments |= _timm_weights(architecture)
    try:
        module: Any = timm.create_model(architecture, **arguments).eval()
    except OSError as error:
        raise CatalogueError(_unreachable(f"timm:{architecture}", "huggingface.co", str(error))) from error
    if published:
        _refuse_nonfinite(module, f"The published weights of timm:{architecture}")
    config = resolve_model_data_config(module)
    subset = infer_imagenet_subset(module)
    class_names, class_ids = _imagenet(subset) if subset else (_numbered(module.num_classes), ())
    preprocess = partial(_pictures, create_transform(**config), config["input_size"][0])
    return LoadedModel(f"timm:{architecture}", module, preprocess, tuple(config["input_size"]), class_names, class_ids)


def _timm_weights(architecture: str) -> dict[str, Any]:
    """The arguments that make timm load its published weights: from the hub's cache where they are there, else from the hub."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(architecture)
    if config is None or not config.has_weights:
        raise CatalogueError(
            f"timm publishes no weights for {architecture}. Bring your own with --checkpoint FILE, or choose a name that "
            "`timm.list_pretrained()` shows."
        )
    if config.hf_hub_id:
        cached = try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
        if isinstance(cached, str):
            return {"pretrained": True, "pretrained_cfg_overlay": {"file": cached}}
        # The hub's client tries for 45 seconds before it says that there is no network.
        if reason := _no_route("huggingface.co"):
            raise CatalogueError(_unreachable(f"timm:{architecture}", "huggingface.co", reason))
    return {"pretrained": True}


def _torchvision(architecture: str, *, published: bool = False, num_classes: int | None = None) -> LoadedModel:
    import torchvision

    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    arguments: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if architecture in ("googlenet", "inception_v3") and not published:
        arguments["init_weights"] = True  # torchvision's default, which warns unless it is spelled out
    try:
        module = torchvision.models.get_model(architecture, weights=weights if published else None, **arguments).eval()
    except OSError as error:
        raise CatalogueError(_unreachable(f"torchvision:{architecture}", "download.pytorch.org", str(error))) from error
    if published:
        _refuse_nonfinite(module, f"The published weights of torchvision:{architecture}")
    transform = weights.transforms()
    class_names = tuple(weights.meta["categories"]) if num_classes is None else _numbered(num_classes)
    class_ids = _imagenet("imagenet-1k")[1] if num_classes is None else ()
    size = (3, transform.crop_size[0], transform.crop_size[0])
    return LoadedModel(f"torchvision:{architecture}", module, partial(_pictures, transform, 3), size, class_names, class_ids)


_SOURCES: dict[str, Callable[..., LoadedModel]] = {"": _bundled, "timm": _timm, "torchvision": _torchvision}


def _imagenet(subset: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    indices = range(info.num_classes())
    return tuple(map(info.index_to_description, indices)), tuple(map(info.index_to_label_name, indices))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def _no_route(host: str) -> str | None:
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return None
    try:
        socket.create_connection((host, 443), timeout=5).close()
    except OSError as error:
        return str(error)
    return None


def _unreachable(name: str, host: str, reason: str) -> str:
    return (
        f"The published weights of {name} could not be fetched from {host}: {reason}. Download them on a machine with a "
        f"connection and name the file: --model {name} --checkpoint FILE (.safetensors, .pt or .pth)."
    )


def _pictures(transform: Callable[[Image.Image], Tensor], channels: int, images: Images) -> Tensor:
    """Any pictures, of any size, through the network's own resize, crop and normalization."""
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InputError(
                f"images must be uint8 of shape (B, 1 or 3, H, W), not {images.dtype} of shape {tuple(images.shape)}"
            )
        images = [Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()) for image in images]
    return torch.stack([transform(image.convert("L" if channels == 1 else "RGB")) for image in images])


# --- checkpoints ---


def _read_checkpoint(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict, memory-mapped: no value is read yet, so that shapes can be compared first."""
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file {path}.")
    # A training checkpoint holds optimizer moments and averages too: several times the network, never a hundred times.
    own = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    size, limit = path.stat().st_size, 8 * own + 2**26
    if size > limit:
        raise CheckpointError(
            f"{path} has {size / 1e6:,.0f} MB, far more than this network's {own / 1e6:,.0f} MB, so it was made for "
            "another network."
        )
    try:
        if path.suffix == ".safetensors":
            return _unwrap(dict(load_file(path)), path)
        if path.suffix not in (".pt", ".pth"):
            raise CheckpointError(f"{path} is neither .safetensors nor a state dict (.pt, .pth). Save it as one of these.")
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                # torch never compresses; a compressed entry could grow without bound.
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise CheckpointError(f"{path} is compressed, which torch.save never does. Save it with torch.save.")
        return _unwrap(torch.load(path, map_location="cpu", weights_only=True, mmap=zipped), path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors (code, or a whole pickled network), which is not safe to load. Save "
            "the state dict alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except Exception as error:  # a damaged file makes the readers raise anything at all
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint; it is damaged or not one at all ({type(error).__name__})."
        ) from error


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{path} holds no state dict (names with tensors). Save one with torch.save(model.state_dict(), FILE)."
        )
    for prefix in ("module.", "model."):  # DistributedDataParallel, Lightning
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def _other_num_classes(module: nn.Module, state: dict[str, Tensor]) -> int | None:
    """The rows of the checkpoint's classifier, where they alone differ from the network's."""
    weights = {name: value for name, value in module.state_dict().items() if name.endswith(".weight") and value.ndim >= 2}
    classifier = list(weights)[-1]
    own, given = weights[classifier], state.get(classifier)
    if given is None or given.shape[1:] != own.shape[1:] or given.shape == own.shape:
        return None
    return len(given)


def _load_state(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    # Counters of batch norm's training; evaluation never reads them and exporters drop them.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    wrong = [
        f"{name} is {_kind(state[name])} instead of {_kind(own[name])}"
        for name in own
        if name in state and _kind(state[name]) != _kind(own[name])
    ]
    problems = [
        f"{len(found)} {label} ({_first(found)})"
        for label, found in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", wrong))
        if found
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit this network of {len(own)} tensors: {'; '.join(problems)}. Choose the model that the "
            "checkpoint was made for."
        )
    module.load_state_dict(state, strict=False)
    _refuse_nonfinite(module, str(path))


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}" + ("" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", ""))


def _first(items: Sequence[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (", …" if len(items) > count else "")


def _refuse_nonfinite(module: nn.Module, origin: str) -> None:
    for name, value in module.state_dict().items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            kind = "NaN" if bool(torch.isnan(value).any()) else "an infinite value"
            raise CheckpointError(
                f"{origin}: the weight {name} holds {kind} ({bad:,} of {value.numel():,} values), so every output would be "
                "invalid. Use a checkpoint from before the training diverged."
            )
