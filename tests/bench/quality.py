"""The quality table: every method on every pattern, over seeds, on the bundled networks.

A seed chooses the calibration images (512 of the 3,000 bundled ones) and every random draw. Each measurement is one line of
`assets/bench/quality.jsonl`, written as soon as it is there; a measurement on file is not repeated, so a stopped benchmark goes
on where it was. Accuracy is over the first 5,000 test images, the same for all methods.
"""

import json
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from snows import data, metrics, models
from snows.config import PruneConfig
from snows.pruner import prune
from snows.runner import logits

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "assets" / "bench" / "quality.jsonl"
MODELS = ["resnet20-fashion", "vit-fashion"]
PATTERNS = ["2:4", "1:4", "1:8", "1:16", "70%", "90%"]
SEEDS = [0, 1, 2]
NUM_CALIBRATION, NUM_EVALUATION = 512, 5_000

# (label, update, K, targets); the mask is chosen by magnitude throughout.
METHODS: list[tuple[str, str, int, str]] = [
    ("mask only", "none", 0, "dense"),
    ("least squares", "least-squares", 0, "propagated"),
    ("least squares", "least-squares", 0, "dense"),
    ("SparseGPT", "sparsegpt", 0, "propagated"),
    ("SparseGPT", "sparsegpt", 0, "dense"),
    ("SNOWS K=1", "snows", 1, "propagated"),
    ("SNOWS K=1", "snows", 1, "dense"),
    ("SNOWS K=3", "snows", 3, "propagated"),
    ("SNOWS K=3", "snows", 3, "dense"),
    ("SNOWS K=10", "snows", 10, "propagated"),
    ("SNOWS K=10", "snows", 10, "dense"),
]
BEGIN = "<!-- quality table: begin (written by `make bench`) -->"
END = "<!-- quality table: end -->"


def read() -> list[dict]:
    """Every measurement on file."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def _key(record: dict) -> tuple:
    return tuple(record[k] for k in ("model", "pattern", "update", "k_steps", "targets", "seed"))


def measure(names: Sequence[str], patterns: Sequence[str], seeds: Iterable[int], *, fresh: bool = False) -> None:
    """Measure what is missing, seed by seed, so that a first complete table is there early."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        RESULTS.unlink(missing_ok=True)
    known = {_key(r) for r in read()}
    for seed in seeds:
        for name in names:
            missing = [
                key
                for pattern in patterns
                for _, update, k_steps, targets in METHODS
                if (key := (name, pattern, update, k_steps, targets, seed)) not in known
            ]
            if missing:
                _measure_model(name, seed, missing)


def _measure_model(name: str, seed: int, missing: list[tuple]) -> None:
    model = models.load(name)
    images = data.load("fashion-mnist", model, NUM_CALIBRATION, NUM_EVALUATION, seed)
    assert images.labels is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dense = logits(model.module, images.evaluation, PruneConfig(), device)
    for _, pattern, update, k_steps, targets, _ in missing:
        config = PruneConfig(pattern=pattern, update=update, k_steps=k_steps, targets=targets, seed=seed)
        started = time.perf_counter()
        result = prune(model.module, images.calibration, config)
        seconds = time.perf_counter() - started
        found = logits(result.model, images.evaluation, config, device)
        record = {
            "model": name,
            "pattern": pattern,
            "update": update,
            "k_steps": k_steps,
            "targets": targets,
            "seed": seed,
            "accuracy_dense": metrics.accuracy(dense, images.labels),
            "accuracy": metrics.accuracy(found, images.labels),
            "agreement": metrics.agreement(found, dense),
            "divergence": metrics.divergence(found, dense),
            "seconds": round(seconds, 2),
            "num_products": result.num_products,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


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
        head = ["method", "targets", *(f"keep {p}" if ":" in p else f"remove {p}" for p in PATTERNS)]
        lines = [
            f"**{name}**: dense {100 * dense:.2f} %. Test accuracy in percent, {_over(seeds)}; the best in bold.",
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
        ]
        cells = {
            (update, k, targets, pattern): [r["accuracy"] for r in mine if _key(r)[1:5] == (pattern, update, k, targets)]
            for _, update, k, targets in METHODS
            for pattern in PATTERNS
        }
        best = {
            p: max((statistics.mean(v) for (_, _, _, pattern), v in cells.items() if pattern == p and v), default=None)
            for p in PATTERNS
        }
        for label, update, k, targets in METHODS:
            row = [label, "" if update == "none" else targets]
            row += [_cell(cells[update, k, targets, p], best[p]) for p in PATTERNS]
            lines.append("| " + " | ".join(row) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _over(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]} alone"
    return f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}"


def _cell(values: list[float], best: float | None) -> str:
    if not values:
        return "not measured"
    mean = statistics.mean(values)
    text = f"{100 * mean:.1f}" + (f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else "")
    return f"**{text}**" if mean == best else text


def write_table() -> None:
    """Put the table between its marks in the README."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text(f"{before}{BEGIN}\n\n{table(read())}\n\n{END}{after}")
