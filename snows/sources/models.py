"""The model catalogue: a name to a module, its preprocessing and its class names.

    resnet20-fashion, vit-fashion      bundled: the weights lie in `assets/`, with a card that says how they were made
    resnet20-cifar10, resnet50-cifar100  the CIFAR forms of these networks; weights that others trained and published
    timm:NAME                          any timm model; weights from the Hugging Face hub
    torchvision:NAME                   any torchvision classification model; weights from download.pytorch.org

Each takes a checkpoint file of one's own in place of the published weights. A checkpoint is untrusted: only tensors are read
from it, its size and every shape are compared with the network before a value is loaded, and a NaN is refused. `outline` tells
all about a network but its values, without loading or downloading any.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from snows.bundled import ASSETS
from snows.config import AnyPath, InputError, RunConfig, as_path
from snows.sources import checkpoints, downloads
from snows.sources.downloads import Report
from snows.sources.pictures import check_enlarged

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy", "bridge",
    "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud",
    "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl",
    "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear",
    "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel",
    "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train",
    "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip

Images = Tensor | Sequence[Image.Image]  # (B, C, H, W) uint8, or B pictures
Preprocess = Callable[[Images], Tensor]  # to (B, C, H, W) float32, as the network was trained


class CatalogueError(InputError):
    """No such model, or its weights are not to be had here."""


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
    import timm

    # By timm's own factory, which notes how it is built again and how its images are prepared (`Bundled.preprocess`).
    prepared = {
        "tag": "fashion_mnist",
        "input_size": (1, 28, 28),
        "mean": (0.286,),
        "std": (0.353,),
        "crop_pct": 1.0,
        "license": "mit",
    }
    sizes: dict[str, Any] = {"img_size": 28, "patch_size": 4, "in_chans": 1, "embed_dim": 96, "depth": 6, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, pretrained_cfg_overlay=prepared, **sizes)


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


def _resnet50_cifar() -> nn.Module:
    import timm

    module: Any = timm.create_model("resnet50", num_classes=100)
    module.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)  # at 32x32 there is nothing to give away at the door
    module.maxpool = nn.Identity()
    return module


@dataclass(frozen=True)
class Cifar:
    """A network for 32x32 color pictures whose weights somebody else published, at `repository` on the hub or at `address`."""

    build: Callable[[], nn.Module]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_bytes: int
    file: str
    repository: str = ""
    address: str = ""
    sha256: str = ""  # how the file's hash begins


CIFAR: dict[str, Cifar] = {
    # github.com/chenyaofo/pytorch-cifar-models, with the preprocessing it was trained with (logs/cifar10/resnet20).
    "resnet20-cifar10": Cifar(
        partial(ResNet20, in_channels=3),
        CIFAR10_CLASSES,
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
        1_120_000,
        "cifar10_resnet20-4118986f.pt",
        address="https://github.com/chenyaofo/pytorch-cifar-models/releases/download/resnet/cifar10_resnet20-4118986f.pt",
        sha256="4118986f",
    ),
    # huggingface.co/edadaltocg/resnet50_cifar100; built and preprocessed as in github.com/edadaltocg/detectors.
    "resnet50-cifar100": Cifar(
        _resnet50_cifar,
        CIFAR100_CLASSES,
        (0.5071, 0.4867, 0.4408),
        (0.2675, 0.2565, 0.2761),
        95_000_000,
        "pytorch_model.bin",
        repository="edadaltocg/resnet50_cifar100",
    ),
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
    preprocessing: str = ""  # what `preprocess` does, in words


@dataclass(frozen=True)
class Weights:
    """A network's published weights: the address and about the size of the file, and whether it is on this machine."""

    address: str
    num_bytes: int
    here: bool


def load_configured(config: RunConfig, *, pretrained: bool = True, report: Report | None = None) -> LoadedModel:
    """The network of a run, see `load`."""
    return load(config.model, config.checkpoint, pretrained=pretrained, class_names=config.class_names, report=report)


def load(
    name: str,
    checkpoint: AnyPath | None = None,
    *,
    pretrained: bool = True,
    class_names: Sequence[str] = (),
    report: Report | None = None,
) -> LoadedModel:
    """The network `name`, with its published weights or those of the file `checkpoint` (safetensors, or by `torch.save`).

    A checkpoint that was made with another number of classes, of channels or of pixels gets a network that is built so, as far
    as timm and torchvision build it. Where `pretrained` is false it keeps random weights, the same ones every time.
    `class_names`: what its outputs mean, where the network itself does not say. `report` is told how a download goes and may
    raise to stop it.

    The result's `module` is in eval mode, on the CPU, in float32; `input_size` is the (C, H, W) of one image, `preprocess`
    makes a picture such an image, and `class_names` name the outputs, see `LoadedModel`. The bundled two come with cards beside
    their weights that say how they were trained; ResNets are those of He et al. 2015 (arXiv 1512.03385), vision transformers
    those of Dosovitskiy et al. 2020 (arXiv 2010.11929).

    Raises `CatalogueError` for an unknown name or weights that cannot be fetched, `CheckpointError` for a file that is missing,
    corrupt, made for another network, or holds a NaN; both `InputError`.

    >>> network = snows.load_model("vit-fashion")
    >>> network.input_size, network.class_names[:2]
    ((1, 28, 28), ('T-shirt/top', 'Trouser'))
    """
    check_name(name)
    source, _, architecture = name.rpartition(":")
    build = partial(_SOURCES[source], architecture)
    loaded = _seeded(build, published=pretrained and checkpoint is None, report=report)
    if checkpoint is not None:
        state = checkpoints.read(as_path(checkpoint), loaded.module)
        if source and (settings := _settings(partial(_unfilled, build), loaded, state)):
            loaded = _seeded(build, **settings)
            state = checkpoints.read(as_path(checkpoint), loaded.module)
        checkpoints.load_into(loaded.module, state, as_path(checkpoint))
    return _named(loaded, class_names)


def outline(name: str, checkpoint: AnyPath | None = None, *, class_names: Sequence[str] = ()) -> LoadedModel:
    """`load` without the values: the module is on the meta device. Takes no memory and no download.

    Of a checkpoint only the shapes are read. Raises as `load` does, but for values that are not numbers.
    """
    check_name(name)
    source, _, architecture = name.rpartition(":")
    build = partial(_SOURCES[source], architecture)

    outlined = _unfilled(build)
    if checkpoint is not None:
        state = checkpoints.read(as_path(checkpoint), outlined.module)
        if source and (settings := _settings(partial(_unfilled, build), outlined, state)):
            outlined = _unfilled(build, **settings)
            state = checkpoints.read(as_path(checkpoint), outlined.module)
        checkpoints.compare(outlined.module.state_dict(), state, as_path(checkpoint))
    return _named(outlined, class_names)


def _unfilled(build: Callable[..., LoadedModel], **settings: Any) -> LoadedModel:
    try:
        return build(device="meta", **settings)
    except NotImplementedError:  # torchvision's RegNets look at their own weights
        return _seeded(build, **settings)


def _settings(build: Callable[..., LoadedModel], model: LoadedModel, state: dict[str, Tensor]) -> dict[str, Any]:
    """The settings with which its library builds `model` as the checkpoint `state` has it; none where it fits, or cannot.

    What a setting changes is read off two networks that differ in it alone.
    """
    own, edge = model.module.state_dict(), model.input_size[1]
    settings: dict[str, Any] = {}
    if any(name.startswith(_SIDE_HEADS) for name in own) and not any(name.startswith(_SIDE_HEADS) for name in state):
        settings["aux_logits"] = False
    tries: list[tuple[str, int, int, int]] = [("num_classes", 2, 3, 1), ("in_chans", 3, 4, 1), ("img_size", edge, 2 * edge, 2)]
    for setting, low, high, power in tries:
        try:
            own = build(**settings).module.state_dict() if settings else own
            if not checkpoints.misfits(own, state):
                break
            small, large = (build(**settings, **{setting: value}).module.state_dict() for value in (low, high))
        except CatalogueError:
            raise
        except Exception:  # libraries raise anything at all over a setting that a network does not have
            continue
        size = checkpoints.size_in(state, (low**power, small), (high**power, large))
        if size is not None and size >= 1 and (value := round(size ** (1 / power))) ** power == round(size):
            settings[setting] = value
    return settings


def _named(model: LoadedModel, class_names: Sequence[str]) -> LoadedModel:
    if not class_names:
        return model
    if len(class_names) != len(model.class_names):
        raise CatalogueError(
            f"{len(class_names):,} class names were given, but {model.name} has {len(model.class_names):,} outputs. Give one "
            "name an output, in their order."
        )
    return replace(model, class_names=tuple(class_names), class_ids=())


def search(text: str, limit: int = 20, labels: Mapping[str, str] | None = None) -> list[str]:
    """Names that hold every word of `text`, in any order, in the name itself or in its label: the nearest first.

    Nearest is what is named just so, then what has the words as whole words, then as beginnings of words; among equals the
    networks that come with `labels` or with this package, then the shorter names.
    """
    asked = _plain_words(text)
    labels = labels or {}
    if not asked:
        return [*labels, *(name for name in every_name() if name not in labels)][:limit]
    whole = " ".join(asked)

    def distance(name: str) -> tuple[int, bool, int] | None:
        words = _plain_words(f"{name} {labels.get(name, '')}")
        joined = " ".join(words)
        if not all(word in joined for word in asked):
            return None
        named = {" ".join(_plain_words(part)) for part in (name, name.rpartition(":")[2], labels.get(name, ""))}
        if whole in named:
            nearness = 0
        elif set(asked) <= set(words):
            nearness = 1
        else:
            nearness = 2 if all(any(word.startswith(begun) for word in words) for begun in asked) else 3
        return nearness, name not in labels and ":" in name, len(name)

    distances = {name: distance(name) for name in every_name()}
    matching_names = [(near, name) for name, near in distances.items() if near is not None]
    return [name for _, name in sorted(matching_names, key=lambda match: match[0])[:limit]]


def _plain_words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


@cache
def every_name() -> tuple[str, ...]:
    """All names that `load` knows. The first time, it imports timm and torchvision, which takes seconds."""
    return tuple(f"{source}:{name}".removeprefix(":") for source in _SOURCES for name in names(source))


def published_weights(name: str, num_parameters: int) -> Weights | None:
    """Where the published weights of `name` come from, without asking the network; None if there are none.

    `num_parameters`: of its outline, for the size where it is not stated.
    """
    source, _, architecture = name.rpartition(":")
    if architecture in BUNDLED:
        path = ASSETS / f"{architecture}.safetensors"
        return Weights(str(path), path.stat().st_size, True) if path.exists() else None
    if source == "torchvision":
        import torchvision

        weights = torchvision.models.get_model_weights(architecture).DEFAULT
        return Weights(weights.url, int(weights.meta["_file_size"] * 2**20), downloads.hub_path(weights.url).exists())
    if source == "timm":
        import timm

        config = timm.get_pretrained_cfg(architecture)
        if config is None or not config.has_weights:
            return None
        if not config.hf_hub_id:
            assert isinstance(config.url, str)  # what has weights has one of the two
            return Weights(config.url, 4 * num_parameters, downloads.hub_path(config.url).exists())
        repository, file = config.hf_hub_id, _HUB_FILE
    else:
        spec = CIFAR[architecture]
        if spec.address:
            return Weights(spec.address, spec.num_bytes, downloads.hub_path(spec.address).exists())
        repository, file = spec.repository, spec.file
    return Weights(
        downloads.hub_address(repository, file), 4 * num_parameters, downloads.in_hub_cache(repository, file) is not None
    )


def fetch(name: str, report: Report) -> None:
    """Download the published weights of `name` into the cache of the library they are for, unless they are there.

    Raises `CatalogueError`.
    """
    load(name, report=report)


def check_name(name: str) -> None:
    """Raises `CatalogueError`, with the nearest names, unless `load` knows `name`."""
    source, _, architecture = name.rpartition(":")
    if source in _SOURCES and architecture in names(source):
        return
    known = [f"{source}:{known}".removeprefix(":") for source in _SOURCES for known in names(source)]
    same = [full for full in known if full.endswith(f":{name.lower()}")]
    begun = [full for full in (*BUNDLED, *CIFAR) if name and full.startswith(name.lower())]
    near = same or begun or difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise CatalogueError(
        f"There is no model {name!r}. {hint}Models are {', '.join((*BUNDLED, *CIFAR))}, timm:NAME and torchvision:NAME "
        "(timm:resnet18, torchvision:vit_b_16)."
    )


def names(source: str) -> list[str]:
    """The names that `source` (`timm`, `torchvision`, or empty) offers, sorted, without the prefix."""
    if source == "timm":
        import timm

        return sorted({*timm.list_models(), *timm.list_pretrained()})
    if source == "torchvision":
        import torchvision

        return sorted(torchvision.models.list_models(module=torchvision.models))
    return [*sorted(BUNDLED), *sorted(CIFAR)]


def card(name: str) -> dict[str, Any]:
    """What is known of a bundled checkpoint: test accuracy, recipe, seconds, command. Raises `CatalogueError` if missing."""
    return json.loads(_bundled_weights(name).with_suffix(".json").read_text())


# --- sources ---


def _seeded(build: Callable[..., LoadedModel], **arguments: Any) -> LoadedModel:
    # Random weights must not depend on what ran before, nor change what runs next.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(**arguments)


def _own(name: str, *, published: bool = False, report: Report | None = None, device: str = "cpu") -> LoadedModel:
    return _cifar(name, published, report, device) if name in CIFAR else _bundled(name, published, device)


def _bundled(name: str, published: bool, device: str) -> LoadedModel:
    spec = BUNDLED[name]
    with torch.device(device):
        module = spec.build().eval()
    if published:
        path = _bundled_weights(name)
        checkpoints.load_into(module, checkpoints.read(path, module), path)
    size = 28 + 2 * spec.padding
    frame = f"framed by {spec.padding} pixels of zeros, " if spec.padding else ""
    words = f"Takes 28x28 grey pictures, light on dark; {frame}" + _normalization((0.286,), (0.353,))
    return LoadedModel(name, module, spec.preprocess, (1, size, size), FASHION_CLASSES, preprocessing=words)


def _cifar_weights(spec: Cifar, name: str, report: Report | None) -> Path:
    if spec.repository:
        return downloads.from_hub(spec.repository, spec.file, name, report)
    return downloads.from_address(spec.address, spec.sha256, name, report)


def _cifar(name: str, published: bool, report: Report | None, device: str) -> LoadedModel:
    from torchvision import transforms

    spec = CIFAR[name]
    with torch.device(device):
        module = spec.build().eval()
    if published:
        path = _cifar_weights(spec, name, report)
        checkpoints.load_into(module, checkpoints.read(path, module), path)
    steps = [transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
    words = _preparation(32, 32, "bilinear", spec.mean, spec.std)
    preprocess = partial(_pictures, transforms.Compose(steps), 3, 32)
    return LoadedModel(name, module, preprocess, (3, 32, 32), spec.class_names, preprocessing=words)


def _bundled_weights(name: str) -> Path:
    path = ASSETS / f"{name}.safetensors"
    if not path.exists():
        raise CatalogueError(
            f"The weights of {name} are missing. Restore {path.name} from the repository, or train them again.",
            in_shell=f"python -m snows train --model {name} --output {ASSETS}",
        )
    return path


def _timm(
    architecture: str, *, published: bool = False, report: Report | None = None, device: str = "cpu", **settings: Any
) -> LoadedModel:
    """`settings`: of `timm.create_model`, where the network is built for other classes or images than its published form."""
    import timm
    from timm.data import create_transform, infer_imagenet_subset, resolve_model_data_config

    name = f"timm:{architecture}"
    arguments = dict(settings)
    if published:
        arguments |= _timm_weights(architecture, report)
        with downloads.fetching(name, arguments.pop("address"), report):
            module: Any = timm.create_model(architecture, **arguments).eval()
        checkpoints.refuse_nonfinite(module, f"The published weights of {name}")
    else:
        with torch.device(device):
            module = timm.create_model(architecture, **arguments).eval()
    config = resolve_model_data_config(module)
    subset = None if "num_classes" in settings else infer_imagenet_subset(module)
    class_names, class_ids = _imagenet(subset) if subset else (_numbered(module.num_classes), ())
    size = _input_size(config["input_size"], settings)
    config["input_size"] = size
    config |= {part: _per_channel(config[part], size[0]) for part in ("mean", "std")}
    resize = math.floor(size[1] / config["crop_pct"])
    words = _preparation(resize, size[1], config["interpolation"], config["mean"], config["std"])
    if config["crop_mode"] != "center":
        words += f"; crop mode {config['crop_mode']}"
    preprocess = partial(_pictures, create_transform(**config), size[0], resize)
    return LoadedModel(name, module, preprocess, size, class_names, class_ids, words)


def _input_size(published: tuple[int, int, int], settings: dict[str, Any]) -> tuple[int, int, int]:
    channels, edge = settings.get("in_chans", published[0]), settings.get("img_size")
    if channels not in _MODES:
        raise CatalogueError(
            f"The checkpoint is of a network for images of {channels} channels. Pictures have {', '.join(map(str, _MODES))}."
        )
    return (channels, edge or published[1], edge or published[2])


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """A mean or deviation a channel: the published ones, and for further channels, or grey, their average."""
    average = sum(values) / len(values)
    return tuple(values) if channels == len(values) else (*(values if channels > len(values) else ()), average)[:channels]


def _timm_weights(architecture: str, report: Report | None) -> dict[str, Any]:
    """The arguments that make timm load its published weights, which are here or come now; `address`: where from."""
    import timm
    from huggingface_hub.errors import EntryNotFoundError

    config = timm.get_pretrained_cfg(architecture)
    if config is None or not config.has_weights:
        raise CatalogueError(
            f"timm publishes no weights for {architecture}. Bring your own, or choose another network.",
            in_shell="--checkpoint FILE, or a name that `timm.list_pretrained()` shows",
        )
    if not config.hf_hub_id:
        return {"pretrained": True, "address": config.url}
    address = downloads.hub_address(config.hf_hub_id, _HUB_FILE)
    try:
        file = downloads.from_hub(config.hf_hub_id, _HUB_FILE, f"timm:{architecture}", report)
    except EntryNotFoundError:  # kept under another name, which timm knows to find
        return {"pretrained": True, "address": address}
    # Not by the loader that some networks have for the format they were first published in.
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file), "custom_load": False}, "address": address}


def _torchvision(
    architecture: str, *, published: bool = False, report: Report | None = None, device: str = "cpu", **settings: Any
) -> LoadedModel:
    import torchvision

    name = f"torchvision:{architecture}"
    weights = torchvision.models.get_model_weights(architecture).DEFAULT
    arguments = dict(settings)
    if architecture in ("googlenet", "inception_v3") and not published:
        # torchvision's default, which warns unless it is spelled out; and what `weights.transforms()` is made for.
        arguments |= {"init_weights": True, "transform_input": True}
    if published:
        with downloads.fetching(name, weights.url, report):
            module = torchvision.models.get_model(architecture, weights=weights, **arguments).eval()
        checkpoints.refuse_nonfinite(module, f"The published weights of {name}")
    else:
        with torch.device(device):
            module = torchvision.models.get_model(architecture, weights=None, **arguments).eval()
    transform = weights.transforms()
    num_classes = settings.get("num_classes")
    class_names = tuple(weights.meta["categories"]) if num_classes is None else _numbered(num_classes)
    class_ids = _imagenet("imagenet-1k")[1] if num_classes is None else ()
    crop = transform.crop_size[0]
    words = _preparation(transform.resize_size[0], crop, transform.interpolation.value, transform.mean, transform.std)
    preprocess = partial(_pictures, transform, 3, transform.resize_size[0])
    return LoadedModel(name, module, preprocess, (3, crop, crop), class_names, class_ids, words)


_HUB_FILE = "model.safetensors"
_SIDE_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # GoogLeNet's and Inception's, for training alone
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's words, by the number of channels
_SOURCES: dict[str, Callable[..., LoadedModel]] = {"": _own, "timm": _timm, "torchvision": _torchvision}


def _imagenet(subset: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    indices = range(info.num_classes())
    return tuple(map(info.index_to_description, indices)), tuple(map(info.index_to_label_name, indices))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(count))


def has_names(model: LoadedModel) -> bool:
    """Whether it is known what the outputs mean."""
    return model.class_names != _numbered(len(model.class_names))


def _preparation(resize: int, crop: int, interpolation: str, mean: Sequence[float], std: Sequence[float]) -> str:
    cut = f", the middle {crop}x{crop}" if crop != resize else f", cut to {crop}x{crop}"
    return f"The shorter edge to {resize} pixels ({interpolation}){cut}, " + _normalization(mean, std)


def _normalization(mean: Sequence[float], std: Sequence[float]) -> str:
    means, deviations = (", ".join(f"{value:.3g}" for value in values) for values in (mean, std))
    return f"values from 0 to 1, less the mean ({means}), over the deviation ({deviations})"


def _pictures(transform: Callable[[Image.Image], Tensor], channels: int, shorter_edge: int, images: Images) -> Tensor:
    """Pictures through the network's own resize, crop and normalization: of any size, as long as the resize, `shorter_edge` to
    so many pixels, leaves them within the limit of pixels."""
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in _MODES:
            raise InputError(
                f"images must be uint8 of shape (B, 1, 3 or 4, H, W), not {images.dtype} of shape {tuple(images.shape)}"
            )
        images = [Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()) for image in images]
    for image in images:
        check_enlarged(image, shorter_edge)
    return torch.stack([transform(image.convert(_MODES[channels])) for image in images])
