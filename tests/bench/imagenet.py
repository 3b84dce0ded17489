"""Fits that carry over: an ImageNet network on photographs it was not fitted on.

EfficientNet-Lite with its ImageNet weights, calibrated on random crops of twelve photographs and judged on other crops of
these and on crops of eight others: how often the pruned network answers as the dense one does, and the divergence of its
answers. `make photographs`
downloads the weights and the photographs, which come in packages of the Python index and stay there: nothing is unpacked. One
line of `assets/bench/imagenet.jsonl` a measurement, each made in a process of its own so that its peak memory is its own; what
is on file is not measured again.
"""

import io
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from snows.process import prepare

if __name__ == "__main__":
    prepare()  # a measurement computes as app and shell do; before torch reads what is said of threads

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from snows.config import PruneConfig
from snows.measures import metrics
from snows.method.pruner import prune
from tests.bench.readme import put
from tests.bench.records import add, read
from tests.bench.speed import peak_bytes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "assets" / "bench" / "imagenet.jsonl"
PACKAGES = ROOT / "photographs"
NUM_EVALUATION = 192
# From the photographs that scikit-image and scikit-learn bring along; the two motorcycles are one scene, so only one is used.
CALIBRATION = [
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "china.jpg", "coins.png", "color.png", "grass.png"),
    *("hubble_deep_field.jpg", "ihc.png", "page.png", "rocket.jpg"),
]
EVALUATION = [
    *("chelsea.png", "clock_motion.png", "coffee.png", "flower.jpg"),
    *("gravel.png", "moon.png", "motorcycle_left.png", "retina.jpg"),
]
# (Lite1 or 2, side of the crops, pattern, calibration images, seeds)
WORK = [(1, 224, "2:4", 64, (0, 1, 2)), (1, 224, "2:4", 256, (0,)), (1, 224, "1:4", 256, (0,))]
# (label, mask, update, refine, joint). K = 3, dense targets, the default ridge.
METHODS = [
    ("mask only", "magnitude", "none", "none", "none"),
    ("SparseGPT", "magnitude", "sparsegpt", "none", "none"),
    ("ALPS, dense targets", "alps", "least-squares", "none", "none"),
    ("least squares", "magnitude", "least-squares", "none", "none"),
    ("least squares, refined mask", "magnitude", "least-squares", "layer", "none"),
    ("SNOWS K=3", "magnitude", "snows", "none", "none"),
    ("SNOWS K=3, refined mask", "magnitude", "snows", "window", "none"),
    ("SNOWS K=3, refined mask, joint fit", "magnitude", "snows", "window", "network"),
]


def _files(ending: str) -> dict[str, bytes]:
    """What the downloaded packages hold with this ending, by file name. Raises `FileNotFoundError` before the download."""
    packages = sorted(PACKAGES.glob("*.whl"))
    if not packages:
        raise FileNotFoundError(f"There are no packages in {PACKAGES}. Run `make photographs` first.")
    files = {}
    for package in packages:
        with zipfile.ZipFile(package) as opened:
            for name in opened.namelist():
                if name.endswith(ending):
                    files[Path(name).name] = opened.read(name)
    return files


def network(size: int) -> nn.Module:
    """timm's `tf_efficientnet_lite1` or 2 with its ImageNet weights, which the package holds in timm's order under other
    names."""
    weights = next(data for name, data in _files(".pth").items() if name.startswith(f"efficientnet-lite{size}-"))
    given = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    module = timm.create_model(f"tf_efficientnet_lite{size}", pretrained=False)
    names = module.state_dict()
    module.load_state_dict(dict(zip(names, given.values(), strict=True)))
    return module.eval()


def crops(names: list[str], count: int, side: int, seed: int) -> Tensor:
    """Random square crops of the photographs in turn, mirrored half of the time, as the network wants them:
    (count, 3, side, side)."""
    files = _files(".png") | _files(".jpg")
    photographs = [Image.open(io.BytesIO(files[name])).convert("RGB") for name in names]
    random = np.random.default_rng(seed)
    images = []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        extent = int(min(photograph.size) * random.uniform(0.5, 1))
        left, top = (int(random.integers(0, whole - extent + 1)) for whole in photograph.size)
        crop = photograph.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + extent, top + extent))
        pixels = np.asarray(crop)[:, :: random.choice([-1, 1])].copy()
        images.append(torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(images)


@torch.no_grad()
def answers(module: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, 1000)."""
    return torch.cat([module(batch) for batch in images.split(32)])


def run(size: int, side: int, pattern: str, images: int, seed: int, **how: object) -> dict:
    """One measurement, in this process: agreement and divergence on each kind of crops, seconds, megabytes at the peak."""
    module, other_seed = network(size), 1_000_003
    x = crops(CALIBRATION, images, side, seed)
    config = PruneConfig.model_validate({"pattern": pattern, "seed": seed} | how)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    pruned = prune(module, x, config)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    record: dict = {
        "seconds": round(seconds, 1),
        "user_seconds": round(after.ru_utime - before.ru_utime, 1),
        "system_seconds": round(after.ru_stime - before.ru_stime, 1),
        "peak_mb": peak_bytes() // 2**20,
        "num_products": pruned.num_products,
        "threads": torch.get_num_threads(),
    }
    for name, judged in (
        ("calibration", x[:NUM_EVALUATION]),
        ("same", crops(CALIBRATION, NUM_EVALUATION, side, other_seed)),
        ("unseen", crops(EVALUATION, NUM_EVALUATION, side, other_seed)),
    ):
        dense, found = answers(module, judged), answers(pruned.model, judged)
        record[f"agreement_{name}"] = metrics.agreement(found, dense)
        record[f"divergence_{name}"] = metrics.divergence(found, dense)
    return record


def _setting(work: tuple, method: tuple, seed: int) -> dict:
    size, side, pattern, images, _ = work
    _, mask, update, refine, joint = method
    how = dict(mask=mask, update=update, refine=refine, joint=joint, ridge=PruneConfig().ridge)
    return dict(size=size, side=side, pattern=pattern, images=images, seed=seed) | how


def _known() -> list[dict]:
    earlier = {"mask": "magnitude", "joint": "none"}  # of measurements from before there was a choice
    return [earlier | record for record in read(RESULTS)]


def measure(*, fresh: bool = False) -> None:
    """Measure what is missing, the first work first."""
    if fresh:
        RESULTS.unlink(missing_ok=True)
    known = _known()
    for work in WORK:
        for seed, method in itertools.product(work[-1], METHODS):
            setting = _setting(work, method, seed)
            if any(setting.items() <= record.items() for record in known):
                continue
            command = [sys.executable, "-m", "tests.bench.imagenet", json.dumps(setting)]
            record = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)
            add(RESULTS, setting | record)


def table(records: list[dict]) -> str:
    """Agreement in percent and divergence in nats on crops of the calibration's photographs and of others; methods down, work
    across; the first work's cost last."""
    heads = [
        f"Lite{size}, {pattern}, {images} crops: {kind}"
        for size, _, pattern, images, _ in WORK
        for kind in ("other crops of the same photographs", "other photographs")
    ]
    lines = ["| method | " + " | ".join(heads) + " | user + system s | peak GB |", "|" + "---|" * (len(heads) + 3)]
    for method in METHODS:
        cells, cost = [], ["", ""]
        for work in WORK:
            mine = [r for r in records if any(_setting(work, method, seed).items() <= r.items() for seed in work[-1])]
            cells += [_cell(mine, kind) for kind in ("same", "unseen")]
            if work == WORK[0] and mine:
                user, system, peak = (
                    statistics.mean(r[k] for r in mine) for k in ("user_seconds", "system_seconds", "peak_mb")
                )
                cost = [f"{user:.0f} + {system:.0f}", f"{peak / 1024:.1f}"]
        lines.append("| " + " | ".join([method[0], *cells, *cost]) + " |")
    return "\n".join(lines)


def _cell(records: list[dict], kind: str) -> str:
    if not records:
        return "not measured"
    agreements = [100 * r[f"agreement_{kind}"] for r in records]
    spread = f" ± {statistics.stdev(agreements):.1f}" if len(records) > 1 else ""
    return f"{statistics.mean(agreements):.1f}{spread} ({statistics.mean(r[f'divergence_{kind}'] for r in records):.2f})"


def write_table() -> None:
    """Put the table into the README."""
    put("imagenet", table(_known()))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(**json.loads(sys.argv[1]))))
