"""Whole units cut away: the bundled networks at half of their multiply-adds, by every choice of units and every fit after it,
over seeds; Torch-Pruning's one-shot result beside them; and how much faster a ViT-B/16 of half the width is here.

A measurement is one line of `assets/bench/structured.jsonl` and is not repeated. Fitted on 512 images, judged on the first
5,000 test images.
"""

import copy
import statistics
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from snows.config import PruneConfig
from snows.measures import metrics
from snows.method.graph import NetworkGraph
from snows.method.pruner import prune
from snows.plans import recorded
from snows.runs import latency
from snows.runs.runner import logits
from snows.sources import data, models
from tests.bench.quality import cell
from tests.bench.readme import put
from tests.bench.records import add, read

RESULTS, SPEEDS = recorded.FOLDER / "structured.jsonl", recorded.FOLDER / "structured-speed.jsonl"
NUM_CALIBRATION, NUM_EVALUATION = 512, 5_000
# What leaves half of the multiply-adds. A third of the ViT's heads is one of three.
PATTERNS: dict[str, dict[str, Any]] = {
    "resnet20-fashion": {"pattern": "width 50%"},
    "vit-fashion": {"pattern": "channels 61%", "overrides": {f"blocks.{i}.attn.qkv": "heads 33%" for i in range(6)}},
}
CHOICES = ["obc", "magnitude", "taylor", "random"]
FITS: dict[str, dict[str, Any]] = {
    "no fit": {"update": "none"},
    "least squares": {"update": "least-squares"},
    "SNOWS K=3": {},
    "SNOWS K=3, joint fit": {"joint": "network"},
}
TORCH_PRUNING, NO_FIT, JOINT = "Torch-Pruning", *list(FITS)[::3]
CELLS = [
    *((choice, fit) for choice in CHOICES for fit in FITS if fit != JOINT or choice == "obc"),
    (TORCH_PRUNING, NO_FIT),
]


def measure(names: Sequence[str], seeds: Iterable[int], *, fresh: bool = False) -> None:
    """Measure what is missing."""
    if fresh:
        RESULTS.unlink(missing_ok=True)
        SPEEDS.unlink(missing_ok=True)
    _measure_speeds()
    known = {(r["model"], r["seed"], r["choice"], r["fit"]) for r in read(RESULTS)}
    for seed in seeds:
        for name in names:
            missing = [place for place in CELLS if (name, seed, *place) not in known]
            if any((r[0], r[2]) == (name, TORCH_PRUNING) for r in known):  # it looks at no image, so no seed changes it
                missing = [place for place in missing if place[0] != TORCH_PRUNING]
            if missing:
                _measure_model(name, seed, missing)
                known |= {(name, seed, *place) for place in missing}


def _measure_model(name: str, seed: int, missing: list[tuple[str, str]]) -> None:
    model = models.load(name)
    images = data.load("fashion-mnist", model, NUM_CALIBRATION, NUM_EVALUATION, seed)
    assert images.labels is not None
    one = images.evaluation[:2]
    work = _multiply_adds(model.module, one)
    dense = metrics.accuracy(logits(model.module, images.evaluation, PruneConfig(), torch.device("cpu")), images.labels)
    for choice, fit in missing:
        started = time.process_time()
        if choice == TORCH_PRUNING:
            smaller = torch_pruned(model.module, one[:1], work // 2)
        else:
            config = PruneConfig.model_validate(PATTERNS[name] | FITS[fit] | {"mask": choice, "seed": seed})
            smaller = prune(model.module, images.calibration, config).model
        cpu_seconds = time.process_time() - started
        given = logits(smaller, images.evaluation, PruneConfig(), torch.device("cpu"))
        record = {
            "model": name,
            "choice": choice,
            "fit": fit,
            "seed": seed,
            "accuracy_dense": dense,
            "accuracy": metrics.accuracy(given, images.labels),
            "multiply_adds": _multiply_adds(smaller, one) / work,
            "cpu_seconds": round(cpu_seconds, 2),
        }
        add(RESULTS, record)


_HALF = PruneConfig.model_validate({"pattern": "width 50%", "update": "none", "refine": "none"})
# What is timed, at half its width.
_BEFORE, _BUNDLED, _LARGE = "vit-fashion, before it is pruned", "vit-fashion", "timm:vit_base_patch16_224, random weights"


def _measure_speeds() -> None:
    """The bundled ViT, as the form says it beforehand and as it is in the end; and a ViT-B/16, of which one image at a time is
    enough for one core."""
    timed = {r["timed"] for r in read(SPEEDS)}
    if not timed >= {_BEFORE, _BUNDLED}:
        model = models.load(_BUNDLED)
        images = torch.randn(16, *model.input_size, generator=torch.Generator().manual_seed(0))
        _time(_BEFORE, model.module, latency.of_sizes(model.module, images, _HALF), images)
        _time(_BUNDLED, model.module, prune(model.module, images, _HALF).model, images)
    if _LARGE not in timed:
        model = models.load(_LARGE.split(",")[0], pretrained=False)
        images = torch.zeros(2, *model.input_size)
        _time(_LARGE, model.module, latency.of_sizes(model.module, images, _HALF), images, sizes=(1,))


def _time(timed: str, dense: nn.Module, pruned: nn.Module, images: Tensor, sizes: Sequence[int] = latency.BATCHES) -> None:
    for timing in list(latency.timings(dense, pruned, images, sizes=sizes)):  # all are on file, or none
        record = {"timed": timed, "program": timing.program, "batch": timing.batch, "faster": asdict(timing.faster)}
        add(SPEEDS, record | {"dense_ms": 1e3 * statistics.median(timing.dense), "threads": torch.get_num_threads()})


def _multiply_adds(module: nn.Module, images: Tensor) -> int:
    # Counted on the smaller network itself: a mask says nothing of the products inside attention.
    return metrics.multiply_adds(NetworkGraph.export(module, images), images[:1]).dense


def torch_pruned(module: nn.Module, image: Tensor, at_most: int) -> nn.Module:
    """A copy of `module` with the least share of all channels cut away, in whole percents, that leaves `at_most`
    multiply-adds: by Torch-Pruning as it comes, which cuts the residual stream too, by the norm of each group's weights (Fang
    et al., 2023, "DepGraph: Towards Any Structural Pruning")."""
    import torch_pruning

    def cut(share: int) -> nn.Module:
        smaller = copy.deepcopy(module)
        pruner = torch_pruning.pruner.BasePruner(
            smaller,
            image,
            torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share / 100,
            ignored_layers=[list(smaller.modules())[-1]],
            num_heads={m.qkv: m.num_heads for m in smaller.modules() if hasattr(m, "qkv")},
        )
        pruner.step()
        for m in smaller.modules():
            if hasattr(m, "qkv"):  # timm's attention notes its sizes
                m.head_dim, m.attn_dim = m.qkv.out_features // (3 * m.num_heads), m.qkv.out_features // 3
        return smaller

    def small_enough(share: int) -> bool:
        return _multiply_adds(cut(share), image.expand(2, -1, -1, -1)) <= at_most

    return cut(bisect_left(range(100), True, key=small_enough))


def table(records: list[dict]) -> str:
    """The accuracies as Markdown: choices down, networks and fits across."""
    names = list(dict.fromkeys(r["model"] for r in records))
    lines = []
    for name in names:
        mine = [r for r in records if r["model"] == name]
        cells = {place: [r["accuracy"] for r in mine if (r["choice"], r["fit"]) == place] for place in CELLS}
        best = max((statistics.mean(v) for v in cells.values() if v), default=None)
        dense = statistics.mean(r["accuracy_dense"] for r in mine)
        shares = sorted({f"{100 * r['multiply_adds']:.1f}" for r in mine})
        kept = shares[0] if len(shares) == 1 else f"{shares[0]} to {shares[-1]}"
        lines += [f"**{name}**, dense {100 * dense:.1f} %, keeps {kept} % of its multiply-adds:", ""]
        lines += ["| units chosen by | " + " | ".join(FITS) + " |", "|" + "---|" * (1 + len(FITS))]
        for choice in dict.fromkeys(choice for choice, _ in CELLS):
            values = [cell(cells[choice, fit], best) if (choice, fit) in cells else "" for fit in FITS]
            lines.append("| " + " | ".join([choice, *values]) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def speeds(records: list[dict]) -> str:
    """The timings as Markdown: how many times as fast, and between what four of five rounds lie."""
    lines = ["| at half the width | program | images at once | times as fast | four of five rounds |", "|" + "---|" * 5]
    for r in records:
        faster = r["faster"]
        spread = f"{faster['low']:.2f} to {faster['high']:.2f}"
        lines.append(f"| {r['timed']} | {r['program']} | {r['batch']} | {faster['median']:.2f} | {spread} |")
    return "\n".join(lines)


def write_table() -> None:
    """Put both tables into the README."""
    put("structured", table(read(RESULTS)) + "\n\n" + speeds(read(SPEEDS)))
