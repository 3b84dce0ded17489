"""The paper's settings as configs, and what a config has to fetch first.

Lucas and Mazumder (ICLR 2025) prune ResNet-50 on CIFAR-100, ResNet-20 on CIFAR-10, and vision transformers and MobileNet on
ImageNet. What a preset does not set is this project's default.
"""

from dataclasses import dataclass

from snows.config import PruneConfig, RunConfig, parse_pattern


@dataclass(frozen=True)
class Preset:
    """`needs`: what a person has to know or bring beforehand, in sentences."""

    title: str
    config: RunConfig
    needs: str


@dataclass(frozen=True)
class Wanted:
    """A download: what it is, about how large, and whether it is on this machine already. `name`: for `fetch`."""

    name: str
    what: str
    num_bytes: int
    here: bool


_IMAGENET = (
    "The paper measures on ImageNet, which only its owners give out: with a copy, name the folder of its validation images, "
    "one folder a class (n01440764, …). Imagenette, ten of its classes, stands in for it here. "
)


def _preset(title: str, model: str, data: str, pattern: str, needs: str, batch_size: int = 128, k_steps: int = 3) -> Preset:
    prune = PruneConfig(pattern=parse_pattern(pattern), k_steps=k_steps, batch_size=batch_size)
    return Preset(title, RunConfig(model=model, data=data, prune=prune), needs)


PRESETS: dict[str, Preset] = {
    "resnet50-cifar100": _preset(
        "ResNet-50 on CIFAR-100, keep 1:4, K = 30",
        "resnet50-cifar100",
        "cifar-100",
        "1:4",
        "A run takes hours on a processor, so use a GPU if you can. The weights are edadaltocg's, on the hub.",
        k_steps=30,
    ),
    "resnet20-cifar10": _preset(
        "ResNet-20 on CIFAR-10, keep 1:4",
        "resnet20-cifar10",
        "cifar-10",
        "1:4",
        "A run takes minutes on a processor. The weights are chenyaofo's, on GitHub.",
    ),
    "vit-b16-imagenet": _preset(
        "ViT-B/16 on ImageNet, keep 2:4",
        "torchvision:vit_b_16",
        "imagenette",
        "2:4",
        _IMAGENET + "A run takes hours on a processor, so use a GPU if you can.",
        batch_size=32,
    ),
    "vit-l16-imagenet": _preset(
        "ViT-L/16 on ImageNet, keep 2:4",
        "torchvision:vit_l_16",
        "imagenette",
        "2:4",
        _IMAGENET + "A run takes hours on a processor, so use a GPU if you can.",
        batch_size=16,
    ),
    "mobilenet-imagenet": _preset(
        "MobileNet on ImageNet, remove 70 %",
        "timm:mobilenetv1_100",
        "imagenette",
        "70%",
        _IMAGENET + "Depthwise convolutions stay dense; the list of layers says which those are.",
        batch_size=64,
    ),
}


def wanted(config: RunConfig) -> list[Wanted]:
    """What a run of `config` has to have from elsewhere: published weights, unless it brings its own, and a named data set.

    Asks nobody. Raises `CatalogueError` for an unknown model.
    """
    from snows.sources import models, named_sets

    requirements = []
    if config.checkpoint is None and config.model not in models.BUNDLED:
        outline = models.outline(config.model)
        weights = models.published_weights(config.model, sum(p.numel() for p in outline.module.parameters()))
        if weights is not None:
            requirements.append(Wanted(config.model, f"Weights of {config.model}", weights.num_bytes, weights.here))
    if config.data in named_sets.SETS:
        spec = named_sets.SETS[config.data]
        requirements.append(Wanted(config.data, spec.title, spec.num_bytes, named_sets.is_here(config.data)))
    return requirements
