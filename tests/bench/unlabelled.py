"""Agreement with the dense network where there are no labels: timm networks that nobody trained.

A trained weight is no white noise: few directions carry most of it, and channels differ in size. The random weights here are
given both: singular values that fall by a power law, and log-normal sizes of the output channels. Batch norms are measured on
the calibration images. Images are Fashion-MNIST's, in the network's own preprocessing, 96 pixels wide. One line of
`assets/bench/unlabelled.jsonl` a measurement; what is on file is not measured again.
"""

import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snows.config import PruneConfig
from snows.measures import metrics
from snows.method.pruner import prune, reestimate_batch_norm
from snows.method.sparsity import from_matrix, to_matrix
from snows.sources import data, models
from tests.bench.quality import METHODS
from tests.bench.readme import put
from tests.bench.records import add, read

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "assets" / "bench" / "unlabelled.jsonl"
SIDE, NUM_CALIBRATION, NUM_EVALUATION, PATTERN = 96, 128, 512, "1:4"
NETWORKS: dict[str, dict[str, int]] = {"resnet18": {}, "mobilenetv2_050": {}, "vit_tiny_patch16_224": {"img_size": SIDE}}
# Of the quality table's methods, those that differ in kind; all have the magnitude mask, so the first five parts tell.
CHOSEN = [m for m in METHODS if m[0] in ("mask only", "SNOWS K=3, refined mask", "least squares", "SNOWS K=3")]
POWER, SPREAD = 0.7, 0.5  # how fast singular values fall; the standard deviation of the channels' log sizes


@torch.no_grad()
def structured(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every convolution and linear layer, in place, random weights with the structure above and the norm they had."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        matrix = to_matrix(layer.weight)
        u, _, v = torch.linalg.svd(torch.randn(matrix.shape, generator=generator), full_matrices=False)
        values = (1 + torch.arange(len(v))) ** -POWER
        sizes = torch.exp(SPREAD * torch.randn(len(matrix), 1, generator=generator))
        made = sizes * ((u * values) @ v)
        layer.weight.copy_(from_matrix(made * matrix.norm() / made.norm(), layer.weight.shape))
    return module


def _images() -> tuple[Tensor, Tensor]:
    """Calibration and evaluation images (N, 3, SIDE, SIDE)."""
    found = data.load("fashion-mnist", models.load("vit-fashion"), NUM_CALIBRATION, NUM_EVALUATION, 0)
    return tuple(  # type: ignore[return-value]
        F.interpolate(x, (SIDE, SIDE), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
        for x in (found.calibration, found.evaluation)
    )


def measure(*, fresh: bool = False) -> None:
    """Measure what is missing."""
    if fresh:
        RESULTS.unlink(missing_ok=True)
    known = {(r["model"], tuple(r["method"])) for r in read(RESULTS)}
    calibration, evaluation = _images()
    for name, settings in NETWORKS.items():
        torch.manual_seed(0)
        module = structured(timm.create_model(name, pretrained=False, num_classes=10, **settings)).eval()
        reestimate_batch_norm(module, [calibration])
        dense = _answers(module, evaluation)
        for method in CHOSEN:
            if (name, method[:5]) in known:
                continue
            _, update, k_steps, targets, refine = method[:5]
            settings = {"update": update, "k_steps": k_steps, "targets": targets, "refine": refine, "ridge": 0.0}
            config = PruneConfig(pattern=PATTERN, **settings)
            started = time.process_time()
            pruned = prune(module, calibration, config).model
            took = time.process_time() - started
            found = _answers(pruned, evaluation)
            record = {
                "model": name,
                "method": method[:5],
                "agreement": metrics.agreement(found, dense),
                "divergence": metrics.divergence(found, dense),
                "cpu_seconds": round(took, 1),
            }
            add(RESULTS, record)


@torch.no_grad()
def _answers(module: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([module(batch) for batch in images.split(64)])


def table(records: list[dict]) -> str:
    """Agreement in percent and divergence, methods down and networks across, as Markdown."""
    lines = ["| method | targets | " + " | ".join(NETWORKS) + " |", "|---|---|" + "---|" * len(NETWORKS)]
    for method in CHOSEN:
        cells = []
        for name in NETWORKS:
            found = next((r for r in records if r["model"] == name and tuple(r["method"]) == method[:5]), None)
            cells.append(f"{100 * found['agreement']:.1f} ({found['divergence']:.3f})" if found else "not measured")
        lines.append("| " + " | ".join([method[0], "" if method[1] == "none" else method[3], *cells]) + " |")
    return "\n".join(lines)


def write_table() -> None:
    """Put the table into the README."""
    put("unlabelled", table(read(RESULTS)))
