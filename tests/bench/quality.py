"""The quality table: every method on every pattern, over seeds, on the bundled networks. A row is one `Row` of `METHODS`.

A seed chooses the calibration images (512 of the 3,000 bundled ones) and every random draw. Each measurement is one line of
`assets/bench/quality.jsonl`, written as soon as it is there; a measurement on file is not repeated, so a stopped benchmark goes
on where it was. Accuracy is over the first 5,000 test images, the same for all methods.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from snows.config import PruneConfig
from snows.measures import metrics
from snows.method.graph import NetworkGraph
from snows.method.pruner import prune
from snows.plans import recorded
from snows.runs.runner import logits
from snows.sources import data, models
from tests.bench.readme import put
from tests.bench.records import add, read

RESULTS, SIZES = recorded.FOLDER / recorded.MEASUREMENTS, recorded.FOLDER / recorded.SIZES
MODELS = ["resnet20-fashion", "vit-fashion"]
PATTERNS = ["2:4", "1:4", "1:8", "1:16", "70%", "90%"]
SEEDS = [0, 1, 2]


class Row(NamedTuple):
    """A row of the table: what is measured; what all have in common is in `recorded.config_of`."""

    label: str
    update: str
    k_steps: int
    targets: str
    refine: str
    mask: str = "magnitude"
    batch_norm_reestimate: bool = False
    joint: str = "none"
    repair: bool = False


METHODS = [
    Row("mask only", "none", 0, "dense", "none"),
    Row("mask only, batch norms measured again", "none", 0, "dense", "none", batch_norm_reestimate=True),
    Row("mask only, repaired", "none", 0, "dense", "none", repair=True),
    Row("Wanda", "none", 0, "dense", "none", "wanda"),
    Row("RIA", "none", 0, "dense", "none", "ria"),
    Row("DSnoT", "none", 0, "dense", "none", "dsnot"),
    Row("SparseSwaps", "none", 0, "dense", "none", "sparseswaps"),
    Row("random", "none", 0, "dense", "none", "random"),
    Row("least squares", "least-squares", 0, "propagated", "none"),
    Row("least squares", "least-squares", 0, "dense", "none"),
    Row("least squares, refined mask", "least-squares", 0, "dense", "layer"),
    Row("block reconstruction", "none", 0, "dense", "none", joint="network"),
    Row("short distillation", "none", 0, "dense", "none", joint="answers"),
    Row("ALPS", "least-squares", 0, "propagated", "none", "alps"),
    Row("OBC", "least-squares", 0, "propagated", "none", "obc"),
    Row("SparseGPT", "sparsegpt", 0, "propagated", "none"),
    Row("SparseGPT", "sparsegpt", 0, "dense", "none"),
    Row("SNOWS K=1", "snows", 1, "propagated", "none"),
    Row("SNOWS K=1", "snows", 1, "dense", "none"),
    Row("SNOWS K=3", "snows", 3, "propagated", "none"),
    Row("SNOWS K=3", "snows", 3, "dense", "none"),
    Row("SNOWS K=3, refined mask", "snows", 3, "dense", "window"),
    Row("SNOWS K=3, refined mask, joint fit", "snows", 3, "dense", "window", joint="network"),
    Row("SNOWS K=5, refined mask", "snows", 5, "dense", "window"),
    Row("SNOWS K=10", "snows", 10, "propagated", "none"),
    Row("SNOWS K=10", "snows", 10, "dense", "none"),
]
KS = sorted({method.k_steps for method in METHODS})
_SETTINGS = Row._fields[1:]
# Of measurements from before there was a choice.
_EARLIER = {"refine": "none", **Row._field_defaults}


def _key(record: dict) -> tuple:
    named = _EARLIER | record
    return tuple(named[k] for k in ("model", "pattern", "seed", *_SETTINGS))


def measure(names: Sequence[str], patterns: Sequence[str], seeds: Iterable[int], *, fresh: bool = False) -> None:
    """Measure what is missing, seed by seed, so that a first complete table is there early."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        RESULTS.unlink(missing_ok=True)
    known = {_key(r) for r in read(RESULTS)}
    # The largest K takes most of the time, so it comes last, for all seeds.
    order = [(chosen, seed, name) for chosen in (KS[:-1], KS[-1:]) for seed in seeds for name in names]
    for chosen, seed, name in order:
        missing = [
            (pattern, method)
            for pattern in patterns
            for method in METHODS
            if method.k_steps in chosen and (name, pattern, seed, *method[1:]) not in known
        ]
        if missing:
            measure_model(name, seed, missing, RESULTS)


def measure_model(name: str, seed: int, missing: list[tuple[str, Row]], results: Path) -> None:
    """Measure these patterns and methods on one of the bundled networks; each is a line of `results`."""
    model = models.load(name)
    alike = recorded.config_of({"model": name})
    images = data.load(alike.data, model, alike.num_calibration, alike.num_evaluation, seed)
    assert images.labels is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense = logits(model.module, images.evaluation, PruneConfig(), device)
    for pattern, method in missing:
        settings = dict(zip(_SETTINGS, method[1:], strict=True))
        config = recorded.config_of({"model": name, "pattern": pattern, "seed": seed} | settings).prune
        started, worked = time.perf_counter(), time.process_time()
        result = prune(model.module, images.calibration, config)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        found = logits(result.model, images.evaluation, config, device)
        record = {
            "model": name,
            "pattern": pattern,
            **settings,
            "seed": seed,
            "accuracy_dense": metrics.accuracy(dense, images.labels),
            "accuracy": metrics.accuracy(found, images.labels),
            "agreement": metrics.agreement(found, dense),
            "divergence": metrics.divergence(found, dense),
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_seconds, 2),  # of this process: what else ran on the machine does not count
            "num_products": result.num_products,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        }
        add(results, record)


def size_of(name: str, pattern: str) -> dict:
    """What follows from network and pattern alone, whatever the method: the share of weights kept, bytes, multiply-adds for one
    image. Worked out from masks by magnitude, which keep as many weights as any others of the pattern."""
    model = models.load(name)
    image = torch.zeros(2, *model.input_size)  # masks by magnitude look at none
    result = prune(model.module, image, PruneConfig(pattern=pattern, update="none"))  # type: ignore[arg-type]
    size = metrics.size_bytes(result.model.state_dict(), result.patterns)
    work = metrics.multiply_adds(NetworkGraph.export(model.module, image), image[:1], result.masks)
    return {
        "model": name,
        "pattern": pattern,
        "density": metrics.density(result.masks),
        "dense_bytes": size.dense,
        "packed_bytes": size.packed,
        "dense_multiply_adds": work.dense,
        "multiply_adds": work.pruned,
    }


def write_sizes() -> None:
    """Work out the sizes of what was measured, as far as they are not on file."""
    known = {(line["model"], line["pattern"]) for line in read(SIZES)}
    for name, pattern in dict.fromkeys((line["model"], line["pattern"]) for line in read(RESULTS)):
        if (name, pattern) not in known:
            add(SIZES, size_of(name, pattern))


def table(records: list[dict]) -> str:
    """The measurements as Markdown: for each network, methods down and patterns across, mean and spread over seeds in
    percent."""
    parts = []
    for name in MODELS:
        mine = [r for r in records if r["model"] == name]
        if not mine:
            continue
        seeds = sorted({r["seed"] for r in mine})
        dense = statistics.mean(r["accuracy_dense"] for r in mine)
        head = ["method", "targets", *(f"keep {p}" if ":" in p else f"remove {p}" for p in PATTERNS), "CPU s"]
        lines = [
            f"**{name}**: dense {100 * dense:.2f} %. Test accuracy in percent, {_over(seeds)}; the best in bold. Last, "
            "the mean time of a run on one thread; the rows were measured on days of unequal speed, see Speed for ratios.",
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
        ]
        cells = {
            (method, pattern): [r["accuracy"] for r in mine if r["pattern"] == pattern and _key(r)[3:] == method[1:]]
            for method in METHODS
            for pattern in PATTERNS
        }
        best = {
            p: max((statistics.mean(v) for (_, pattern), v in cells.items() if pattern == p and v), default=None)
            for p in PATTERNS
        }
        measured = [method for method in METHODS if any(cells[method, p] for p in PATTERNS)]
        for method in measured:
            row = [method.label, "" if method.update == "none" else method.targets]
            row += [cell(cells[method, p], best[p]) for p in PATTERNS]
            took = [r["cpu_seconds"] for r in mine if _key(r)[3:] == method[1:] and "cpu_seconds" in r]  # the first have none
            row.append(f"{statistics.mean(took):.0f}" if took else "not measured")
            lines.append("| " + " | ".join(row) + " |")
        if missing := [method.label for method in METHODS if method not in measured]:
            lines += ["", f"Not measured yet: {', '.join(missing)}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _over(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]} alone"
    return f"mean ± standard deviation over seeds {', '.join(map(str, seeds))} (without ±: one seed)"


def cell(values: list[float], best: float | None) -> str:
    """Their mean in percent with its spread, in bold where it is the best."""
    if not values:
        return "not measured"
    mean = statistics.mean(values)
    text = f"{100 * mean:.1f}" + (f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else "")
    return f"**{text}**" if mean == best else text


def write_table() -> None:
    """Put the table into the README."""
    put("quality", table(read(RESULTS)))
