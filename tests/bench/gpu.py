"""`make gpu`: what an NVIDIA card does with this code, in at most eight minutes and without a network.

The tests that need a card; CPU against card on the bundled networks; a ResNet-50 and two vision transformers at full size, with
the weights timm begins with, for time and memory do not mind; and two cards at once where there are two. What was measured is
written after every part to `assets/bench/gpu-CARD.json`, so that a machine which is taken away leaves it there. Needs no
virtual environment; the README names the packages.
"""

import argparse
import json
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from snows.process import prepare

prepare()  # before torch reads what it says of TF32

import timm  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from snows.config import PruneConfig  # noqa: E402
from snows.measures import metrics  # noqa: E402
from snows.method.pruner import PruneResult, prune  # noqa: E402
from snows.sources import data, models  # noqa: E402

ROOT = Path(__file__).parents[2]
SECONDS = 460.0  # of the eight minutes; the rest is for start and end
BUNDLED = ("resnet20-fashion", "vit-fashion")
# name, timm's name, pattern
LARGE = [
    ("ResNet-50", "resnet50", "1:4"),
    ("ViT-B/16", "vit_base_patch16_224", "2:4"),
    ("ViT-L/16", "vit_large_patch16_224", "2:4"),
]
TESTS = ["tests/snows/method/test_gpu.py", "tests/snows/export/test_files.py"]


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked to: it computes beside Python."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What `work` returns, and its seconds by the clock."""
    wait(device)
    started = time.perf_counter()
    result = work()
    wait(device)
    return result, time.perf_counter() - started


def matrix_rate(device: torch.device, side: int) -> float:
    """Floating-point operations a second of one large float32 matrix product; the best of five."""
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    a @ b
    return 2 * side**3 / min(timed(lambda: a @ b, device)[1] for _ in range(5))


# --- the parts ---


def card_tests(device: torch.device, left: float) -> dict[str, Any]:
    """The tests that are marked `gpu`, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rfE", "--tb=short", *TESTS]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired as stopped:
        return {"error": f"stopped after {left:.0f} seconds: {(stopped.stdout or b'')[-4000:].decode(errors='replace')}"}
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout[-300:])}
    return counts | ({"error": (done.stdout + done.stderr)[-8000:]} if done.returncode else {})


def bundled(
    device: torch.device,
    left: float,
    patterns: tuple[str, ...] = ("2:4", "1:8"),
    images: int = 512,
    evaluated: int = 2000,
    **settings: Any,
) -> list[dict[str, Any]]:
    """CPU against card: the bundled networks, one seed. `settings`: of the config."""
    records = []
    for name in BUNDLED:
        model = models.load(name)
        given = data.load("fashion-mnist", model, images, evaluated, 0)
        assert given.labels is not None
        for pattern in patterns:
            found: dict[str, tuple[PruneResult, float]] = {}
            for where in ("cpu", str(device)):
                config = PruneConfig.model_validate({"pattern": pattern, "device": where} | settings)
                if where != "cpu":
                    prune(model.module, given.calibration[:32], config)  # kernels are loaded when they are first met
                found[where] = timed(partial(prune, model.module, given.calibration, config), device)
            (here, on_cpu), (there, on_card) = found["cpu"], found[str(device)]
            same = sum(int((here.masks[site] == mask.cpu()).sum()) for site, mask in there.masks.items())
            answers = [_logits(result.model, given.evaluation) for result in (here, there)]
            records.append(
                {
                    "model": name,
                    "pattern": pattern,
                    "masks_alike": same / sum(mask.numel() for mask in here.masks.values()),
                    "accuracy_cpu": metrics.accuracy(answers[0], given.labels),
                    "accuracy_card": metrics.accuracy(answers[1], given.labels),
                    "answers_alike": metrics.agreement(answers[1], answers[0]),
                    "seconds_cpu": round(on_cpu, 2),
                    "seconds_card": round(on_card, 2),
                }
            )
    return records


@torch.no_grad()
def _logits(module: nn.Module, images: Tensor) -> Tensor:
    module = module.cpu()
    return torch.cat([module(batch) for batch in images.split(256)])


def large(
    device: torch.device,
    left: float,
    networks: list[tuple[str, str, str]] = LARGE,
    images: int = 128,
    side: int = 224,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Whole runs, by default K = 3 with refined masks in float32: time, passes, memory, and the share of the card's own matrix
    rate. `settings`: of the config."""
    deadline, records = time.perf_counter() + left, []
    rate = matrix_rate(device, 8192 if device.type == "cuda" else 512)
    for title, name, pattern in networks:
        record: dict[str, Any] = {"network": title, "pattern": pattern, "images": images}
        records.append(record)
        if time.perf_counter() > deadline:
            record["error"] = "no time was left"
            continue
        try:
            asked = {"pattern": pattern, "device": str(device), "batch_size": min(32, images)} | settings
            record |= _run(name, PruneConfig.model_validate(asked), images, side, device, rate, deadline)
        except Exception as error:  # one network that does not fit leaves the others
            record["error"] = f"{type(error).__name__}: {error}"
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return records


def _run(
    name: str, config: PruneConfig, images: int, side: int, device: torch.device, rate: float, deadline: float
) -> dict[str, Any]:
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False).eval().to(device)
    x = torch.randn(images, 3, side, side, device=device)

    def forward() -> None:
        with torch.no_grad():
            for batch in x.split(32):
                module(batch)

    forward()
    _, once = timed(forward, device)
    first: list[float] = []
    started = time.perf_counter()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    result, seconds = timed(
        lambda: prune(
            module,
            x,
            config,
            cancelled=lambda: time.perf_counter() > deadline,
            on_site=lambda *site: first.append(time.perf_counter() - started),
        ),
        device,
    )
    record = {
        "weights": sum(mask.numel() for mask in result.masks.values()),
        "seconds": round(seconds, 2),
        "seconds_to_first_layer": round(first[0], 2),
        "forward_seconds": once,
        "passes": seconds / once,
        "products": result.num_products,
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "matrix_gigaflops": rate / 1e9,
    }
    if time.perf_counter() + 3 * seconds < deadline:  # counted in a run of its own, for counting takes time
        with FlopCounterMode(display=False) as counter:
            prune(module, x, config)
        record["share"] = counter.get_total_flops() / seconds / rate
    return record


def together(device: torch.device, left: float) -> dict[str, Any]:
    """Two cards at once, a thread each, against each alone: the same bits, and the time by the clock."""
    cards = torch.cuda.device_count() if device.type == "cuda" else 0
    if cards < 2:
        return {"skipped": f"needs two cards, and there {'is one' if cards == 1 else 'is none'}"}
    model = models.load("resnet20-fashion")
    images = data.load("fashion-mnist", model, 512, 1, 0).calibration

    def run(card: int) -> dict[str, Tensor]:
        config = PruneConfig.model_validate({"pattern": "2:4", "device": f"cuda:{card}"})
        return {name: value.cpu() for name, value in prune(model.module, images, config).model.state_dict().items()}

    alone, found = [timed(partial(run, card), device) for card in (0, 1)], {}
    threads = [threading.Thread(target=lambda c=card: found.update({c: run(c)})) for card in (0, 1)]

    def both() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    _, seconds = timed(both, device)
    same = all(torch.equal(found[card][name], value) for card in (0, 1) for name, value in alone[card][0].items())
    return {"same_bits": same, "seconds_alone": [round(s, 2) for _, s in alone], "seconds_together": round(seconds, 2)}


PARTS: dict[str, Callable[[torch.device, float], Any]] = {
    "bundled": bundled,
    "tests": card_tests,
    "large": large,
    "together": together,
}


def about(device: torch.device) -> dict[str, Any]:
    """The card, and what runs on it."""
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "card": card.name if card else "none: the CPU",
        "memory_gib": round(card.total_memory / 2**30, 1) if card else None,
        "cards": torch.cuda.device_count(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": sys.version.split()[0],
        "date": date.today().isoformat(),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--output", type=Path, help="where the JSON goes (default: assets/bench/gpu-CARD.json)")
    given = parser.parse_args(argv)
    if unknown := [part for part in given.parts if part not in PARTS]:
        sys.stderr.write(f"There is no part {unknown[0]!r}. There are: {', '.join(PARTS)}.\n")
        return 2
    if not torch.cuda.is_available():
        sys.stderr.write(
            f"PyTorch {torch.__version__} finds no CUDA device, so there is nothing to measure. Run this where "
            "`python -c 'import torch; print(torch.cuda.is_available())'` says True.\n"
        )
        return 1
    return measure(torch.device("cuda:0"), given.parts or list(PARTS), given.output)


def measure(device: torch.device, parts: list[str], output: Path | None) -> int:
    """Measure `parts` in turn, write each down at once, and return the exit status: 0 if nothing failed."""
    started, record = time.perf_counter(), about(device)
    output = output or ROOT / "assets" / "bench" / f"gpu-{re.sub('[^A-Za-z0-9]+', '-', record['card']).strip('-')}.json"
    for part in parts:
        left = SECONDS - (time.perf_counter() - started)
        begun = time.perf_counter()
        try:
            record[part] = PARTS[part](device, left) if left > 0 else {"error": "no time was left"}
        except Exception:  # the other parts are worth having
            record[part] = {"error": traceback.format_exc()[-4000:]}
        record.setdefault("seconds", {})[part] = round(time.perf_counter() - begun, 1)
        output.write_text(json.dumps(record, indent=1) + "\n")
        sys.stdout.write(f"{part}: {json.dumps(record[part])}\n")
        sys.stdout.flush()
    faults = [part for part in parts if '"error"' in json.dumps(record[part])]
    sys.stdout.write(f"Written to {output}." + (f" Failed: {', '.join(faults)}." if faults else "") + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
