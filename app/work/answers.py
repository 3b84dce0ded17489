"""What networks answer to images, as many of these as one may wait for. No cache: who needs one keeps the results."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from snows.runs.inspection import Inspection

LOOK_SECONDS, LEAST_IMAGES = 15.0, 8


def seconds_an_image(inspection: "Inspection") -> float:
    """How long the run's dense network takes for an image here, measured on four."""
    from snows.measures import comparison

    images = inspection.images.evaluation[:4]
    tries = comparison.alternate({"dense": lambda: inspection.run_network(images, "dense")}, rounds=2)
    return min(tries["dense"]) / len(images)


def affordable(each: float, passes: int, most: int, least: int = LEAST_IMAGES) -> int:
    """At most `most` images, halved until `passes` through a network that takes `each` seconds for one take no longer than one
    may wait."""
    count = most
    while count * passes * each > LOOK_SECONDS and count // 2 >= least:
        count //= 2
    return count


def logits(inspection: "Inspection", stage: str, images: "Tensor") -> "Tensor":
    """What the run's network gives for images (N, C, H, W) in a stage of `Inspection.parameters`: (N, classes)."""
    import torch

    return torch.cat([inspection.run_network(batch, stage)[0] for batch in images.split(250)])
