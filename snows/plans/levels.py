"""A bundled network at five levels of weights kept, each just cut and refitted: recorded once, kept small, run at once.

*Just cut*: the dense values under the mask that magnitude chooses, worked out when it is asked for. *Refitted*: what SNOWS
makes of the network with its default settings. Of that the pruned weights are kept, a bit a weight for the mask and the kept
values in half precision; all else is the dense network's. `record` measures both as they come back from the file.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snows.bundled import ASSETS
from snows.config import InputError, RunConfig, parse_pattern

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from snows.sources.models import LoadedModel

FOLDER = ASSETS / "levels"
DENSE = "dense"
PATTERNS = ("2:4", "1:4", "1:8", "1:16")
MOST_LOST = 0.0005  # of accuracy, for keeping the values in half precision


@dataclass(frozen=True)
class Level:
    """`density`: the share of weights kept in the pruned layers. `cut` and `refitted`: accuracy on the test images."""

    pattern: str
    density: float
    cut: float
    refitted: float


@dataclass(frozen=True)
class Levels:
    """What was recorded of a network, from the densest level on. `about`: how, as the card says it."""

    model: str
    levels: list[Level]
    about: dict[str, Any]

    @classmethod
    def read(cls, model: str, folder: Path = FOLDER) -> "Levels":
        """From the card alone, without torch. Raises `InputError` where nothing was recorded of `model`."""
        try:
            about = json.loads((folder / f"{model}.json").read_text())
        except FileNotFoundError:
            raise InputError(
                f"No levels of {model} are in {folder}. Restore them from the repository, or make them with `python -m snows "
                "bundle-levels`."
            ) from None
        return cls(model, [Level(**level) for level in about.pop("levels")], about)

    def at(self, pattern: str) -> Level:
        return next(level for level in self.levels if level.pattern == pattern)


def is_recorded(model: str, folder: Path = FOLDER) -> bool:
    return (folder / f"{model}.json").exists()


def pictures(turn: int, count: int = 8) -> "tuple[np.ndarray, list[int]]":
    """Bundled test pictures (N, 28, 28) of uint8, one a class, and their numbers among all: of each class the one that comes
    `turn` places after its first (counted around), and of these the `count` that come first."""
    import numpy as np

    with np.load(ASSETS / "fashion-mnist.npz", allow_pickle=False) as bundle:
        images, labels = bundle["test_images"][:, 0], bundle["test_labels"]
    of_classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    numbers = sorted(int(places[turn % len(places)]) for places in of_classes)[:count]
    return images[numbers], numbers


def labelled_pictures(count: int) -> "tuple[np.ndarray, np.ndarray]":
    """The first `count` bundled test pictures (N, 28, 28) of uint8, and their classes (N,)."""
    import numpy as np

    with np.load(ASSETS / "fashion-mnist.npz", allow_pickle=False) as bundle:
        return bundle["test_images"][:count, 0], bundle["test_labels"][:count]


# --- the networks ---


def network(model: str, pattern: str, *, refitted: bool, folder: Path = FOLDER) -> "LoadedModel":
    """The network with `pattern`, `DENSE` or one that was recorded; see `Levels`. Takes about a tenth of a second."""
    import torch

    from snows.sources import models

    loaded = models.load(model)
    if pattern == DENSE:
        return loaded
    with torch.no_grad():
        for name, stored in _read(folder / f"{model}.safetensors", pattern).items():
            weight = loaded.module.get_parameter(name)
            weight.copy_(stored.unpacked(weight.shape) if refitted else weight * _magnitude_mask(weight, pattern))
    return loaded


def probabilities(loaded: "LoadedModel", images: "np.ndarray") -> "np.ndarray":
    """Of each class: (N, C) float32, for grey images (N, 28, 28) of uint8."""
    import torch

    with torch.no_grad():
        return loaded.module(loaded.preprocess(torch.from_numpy(images)[:, None])).softmax(1).numpy()


def _magnitude_mask(weight: "Tensor", pattern: str) -> "Tensor":
    from snows.method.sparsity import from_matrix, keep_mask, to_matrix

    return from_matrix(keep_mask(to_matrix(weight).abs(), parse_pattern(pattern)), weight.shape)


# --- the file ---


@dataclass(frozen=True)
class _Packed:
    """A pruned weight: a bit a weight, the first the highest of its byte, and the kept values in order, in half precision."""

    mask: "Tensor"  # uint8
    values: "Tensor"  # float16

    @classmethod
    def of(cls, weight: "Tensor", mask: "Tensor") -> "_Packed":
        import numpy as np
        import torch

        return cls(torch.from_numpy(np.packbits(mask.numpy())), weight[mask].half())

    def unpacked(self, shape: Sequence[int]) -> "Tensor":
        import numpy as np
        import torch

        kept = torch.from_numpy(np.unpackbits(self.mask.numpy(), count=math.prod(shape))).bool()
        return torch.zeros(kept.shape).masked_scatter(kept, self.values.float()).view(*shape)


def _read(path: Path, pattern: str) -> dict[str, _Packed]:
    """The packed weights of one level, by name. Tensors are called `PATTERN/NAME/mask` and `PATTERN/NAME/values`."""
    from snows.export.files import load_weights

    tensors, _ = load_weights(path)
    names = [key.split("/")[1] for key in tensors if key.startswith(f"{pattern}/") and key.endswith("/mask")]
    return {name: _Packed(tensors[f"{pattern}/{name}/mask"], tensors[f"{pattern}/{name}/values"]) for name in names}


# --- the recording ---


def record(
    config: RunConfig, patterns: Sequence[str] = PATTERNS, folder: Path = FOLDER, report: Callable[[str], None] = print
) -> Path:
    """Refit `config`'s network at each of `patterns`, measure every level, and write weights and card; returns the card's path.

    `report` is told of each level. Raises `ValueError` where half precision would cost more than `MOST_LOST` of accuracy.
    """
    import torch

    from snows.export.files import save_weights
    from snows.measures import metrics
    from snows.method.pruner import prune
    from snows.runs.runner import logits
    from snows.sources import data, models

    model = models.load_configured(config)
    images = data.load_configured(config, model)
    assert images.labels is not None
    labels = images.labels

    def accuracy(module: "nn.Module") -> float:
        return metrics.accuracy(logits(module, images.evaluation, config.prune, torch.device("cpu")), labels)

    folder.mkdir(parents=True, exist_ok=True)
    weights_path = folder / f"{config.model}.safetensors"
    dense = accuracy(model.module)
    tensors: dict[str, Tensor] = {}
    levels, lost = [Level(DENSE, 1.0, dense, dense)], {}
    for pattern in patterns:
        settings = config.prune.model_copy(update={"pattern": parse_pattern(pattern)})
        result = prune(model.module, images.calibration, settings)
        for name, mask in result.masks.items():
            packed = _Packed.of(result.model.get_parameter(name).detach(), mask)
            tensors |= {f"{pattern}/{name}/mask": packed.mask, f"{pattern}/{name}/values": packed.values}
        save_weights(weights_path, tensors)
        cut, refitted = (
            accuracy(network(config.model, pattern, refitted=refitted, folder=folder).module) for refitted in (False, True)
        )
        lost[pattern] = round(accuracy(result.model) - refitted, 6)
        if abs(lost[pattern]) > MOST_LOST:
            raise ValueError(f"{config.model} at {pattern} loses {lost[pattern]:.4f} of accuracy in half precision.")
        density = metrics.density(result.masks)
        levels.append(Level(pattern, round(density, 6), cut, refitted))
        report(f"{config.model} {pattern}: {cut:.4f} just cut, {refitted:.4f} refitted, dense {dense:.4f}")
    card = {
        "model": config.model,
        "levels": [asdict(level) for level in levels],
        "data": config.data,
        "num_calibration": config.num_calibration,
        "num_evaluation": len(images.evaluation),
        "settings": config.prune.model_dump(mode="json", exclude={"pattern", "overrides"}),
        "accuracy_lost_in_half_precision": lost,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m snows bundle-levels --model {config.model}",
    }
    path = folder / f"{config.model}.json"
    path.write_text(json.dumps(card, indent=2) + "\n")
    return path
