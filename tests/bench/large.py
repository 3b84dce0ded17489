"""Networks at their real size: time in forward passes of the same images, time in the system, and memory at the peak.

Vision transformers, a ResNet-50 and an EfficientNet-Lite at 224 pixels on crops of photographs (`make photographs`), with
random but structured weights where the real ones cannot be had (`unlabelled.structured`): time and memory do not mind. Where a
whole network takes hours, its first blocks are pruned, whose cost is set beside a forward pass of as many blocks. One line of
`assets/bench/large.jsonl` a measurement, each made in a process of its own so that its peak memory is its own; what is on file
is not measured again.
"""

import json
import resource
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from pathlib import Path

from snows.process import prepare

if __name__ == "__main__":
    prepare()  # a measurement computes as app and shell do; before torch reads what is said of threads

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from snows import events
from snows.config import PruneConfig, parse_pattern
from snows.method.pruner import prune, reestimate_batch_norm
from snows.method.rows import KeptWeights, RowBlocks, RowProducts
from snows.method.sparsity import keep_mask
from tests.bench import imagenet
from tests.bench.readme import put
from tests.bench.records import add, read
from tests.bench.speed import machine, peak_bytes, phases, said
from tests.bench.unlabelled import structured

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "assets" / "bench" / "large.jsonl"
SIDE = 224
# (what, timm's name, images, pattern, how many of its blocks or None for all). The first goal that is out of reach of memory
# would end the process, so the small ones come first.
WORK: list[tuple[str, str, int, str, int | None]] = [
    ("ViT-B/16", "vit_base_patch16_224", 128, "2:4", 1),
    ("ResNet-50", "resnet50", 128, "1:4", None),
    ("EfficientNet-Lite1", "tf_efficientnet_lite1", 256, "2:4", None),
    ("ViT-L/16", "vit_large_patch16_224", 128, "2:4", 1),
    ("ViT-H/14", "vit_huge_patch14_224", 32, "2:4", 4),
]
UPDATES = ["sparsegpt", "least-squares", "snows"]
# (what, timm's name, images, pattern, blocks) where SNOWS's time is told apart, on less of what takes long.
PROFILED: list[tuple[str, str, int, str, int | None]] = [
    ("ViT-B/16", "vit_base_patch16_224", 128, "2:4", 1),
    ("ResNet-50", "resnet50", 32, "1:4", None),
]


class _DoneError(Exception):
    """Ends a run whose first blocks are pruned."""


def network(name: str, images: Tensor) -> nn.Module:
    """The network in eval mode; EfficientNet-Lite1 with its ImageNet weights."""
    if name == "tf_efficientnet_lite1":
        return imagenet.network(1)
    torch.manual_seed(0)
    module = structured(timm.create_model(name, pretrained=False)).eval()
    reestimate_batch_norm(module, [images[:32]])
    return module


@torch.no_grad()
def forward_seconds(module: nn.Module, images: Tensor) -> float:
    """One pass over all images, by the clock, from a quarter of them."""
    module(images[:8])
    some = images[: len(images) // 4]
    started = time.perf_counter()
    for batch in some.split(32):
        module(batch)
    return (time.perf_counter() - started) * len(images) / len(some)


def run(name: str, images: int, pattern: str, blocks: int | None, update: str, profile: bool = False) -> dict:
    """One measurement, in this process. Seconds by the clock; `passes` are forward passes of the same images through as much of
    the network as was pruned. With `profile`, the share of each phase instead."""
    x = imagenet.crops(imagenet.CALIBRATION, images, SIDE, 0)
    module = network(name, x)
    forward = forward_seconds(module, x)
    if blocks is not None:
        forward *= blocks / len(module.blocks)
    pruned: list[events.SiteFinished] = []
    last = None if blocks is None else f"blocks.{blocks - 1}."
    names = [n for n, p in module.named_parameters() if last and n.startswith(last) and p.ndim == 2]

    def on_event(event: events.Event) -> None:
        if isinstance(event, events.SiteFinished):
            pruned.append(event)
            if names and event.site == names[-1]:
                raise _DoneError

    config = PruneConfig(pattern=parse_pattern(pattern), update=update)  # type: ignore[arg-type]

    def pruned_so_far() -> None:
        with suppress(_DoneError):
            prune(module, x, config, on_event=on_event)

    if profile:
        return {"shares": phases(pruned_so_far)}
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    pruned_so_far()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    shapes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    return {
        "seconds": round(seconds, 1),
        "forward": round(forward, 2),
        "passes": round(seconds / forward, 1),
        "user_seconds": round(user, 1),
        "system_seconds": round(system, 1),
        "peak_mb": peak_bytes() // 2**20,
        "held_mb": max(e.held_memory or 0 for e in pruned) // 2**20,
        "layers": len(pruned),
        "weights": sum(shapes[e.site] for e in pruned),
        "num_products": sum(e.num_products for e in pruned),
        "lower_by": round(sum(1 - e.losses["final"] / e.losses["mask_only"] for e in pruned) / len(pruned), 4),
    }


def wide_layer(rows: int = 1024, columns: int = 4096, factored: int = 32, ridge: float = 4 / 128) -> dict:
    """Least squares of a ViT-L's `mlp.fc2` at 2:4 by products with one Gram matrix, and by the factors of each row's own
    system, `factored` rows of which are measured: they are independent of each other, and all of them would not fit."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(8192, columns, generator=generator) @ torch.diag((1 + torch.arange(columns)) ** -0.5)
    mix = torch.linalg.qr(torch.randn(columns, columns, generator=generator))[0]
    x = torch.nn.functional.gelu(samples @ mix * 4)
    gram = x.T @ x / len(x)
    gram += ridge * gram.diagonal().mean() * torch.eye(columns)
    dense = torch.randn(rows, columns, generator=generator) * columns**-0.5
    mask, cross = keep_mask(dense.abs(), parse_pattern("2:4")), dense @ gram

    def loss(weight: Tensor) -> float:
        change = (weight - dense[: len(weight)]).double()
        return float(((change @ gram.double()) * change).sum())

    record: dict = {}
    weights = {}
    for name, kind, count in (("products", RowProducts, rows), ("factors", RowBlocks, factored)):
        kept = KeptWeights(mask[:count], (count, columns))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        started, before = time.process_time(), peak_bytes()
        systems = kind(gram, kept)
        solution = systems.least_squares(cross[:count], kept.restrict(dense[:count]))
        if isinstance(systems, RowBlocks):
            systems.solve(solution, torch.ones(count))  # what preconditions: the inverses of all rows
        took = time.process_time() - started
        record |= {f"{name}_seconds": took * rows / count, f"{name}_mb": (peak_bytes() - before) * rows / count / 2**20}
        weights[name] = kept.expand(solution)
    one, other = (loss(weights[name][:factored]) for name in ("products", "factors"))
    return record | {"relative_difference": one / other - 1}


def measure(*, fresh: bool = False) -> None:
    """Measure what is missing."""
    if fresh:
        RESULTS.unlink(missing_ok=True)
    known = read(RESULTS)
    settings: list[dict] = [{"name": "wide layer"}]
    for _, name, images, pattern, blocks in WORK:
        settings += [
            {"name": name, "images": images, "pattern": pattern, "blocks": blocks, "update": update} for update in UPDATES
        ]
    settings += [
        {"name": name, "images": images, "pattern": pattern, "blocks": blocks, "update": "snows", "profile": True}
        for _, name, images, pattern, blocks in PROFILED
    ]
    for setting in settings:
        if any(setting.items() <= record.items() for record in known):
            continue
        command = [sys.executable, "-m", "tests.bench.large", json.dumps(setting)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode < 0:  # the system ends what wants more memory than there is
            record = {"error": f"ended by signal {-done.returncode}"}
        else:
            done.check_returncode()
            record = json.loads(done.stdout)
        add(RESULTS, setting | record | {"machine": machine(), "date": date.today().isoformat()})


def _part(blocks: int | None) -> str:
    return "all layers" if blocks is None else f"first {blocks} blocks" if blocks > 1 else "first block"


def table(records: list[dict]) -> str:
    """Markdown: one line a measurement."""
    head = "| network | pruned | update | forward passes | times SparseGPT's | in the system | peak GB | held GB |"
    lines = [head, "|" + "---|" * 8]
    for title, name, images, pattern, blocks in WORK:
        mine = {
            r["update"]: r
            for r in records
            if (r["name"], r.get("images"), r.get("pattern"), r.get("blocks")) == (name, images, pattern, blocks)
            and not r.get("profile")
        }
        for update in UPDATES:
            first = f"| {title}, {images} images | {pattern}, {_part(blocks)} | {update} | "
            r = mine.get(update)
            if r is None or "error" in r:
                lines.append(first + ("not measured" if r is None else r["error"]) + " | | | | |")
                continue
            gpt = mine.get("sparsegpt")
            # Each in forward passes of its own process: what was measured on days of unequal speed can be compared so.
            times = f"{r['passes'] / gpt['passes']:.1f}" if gpt and "error" not in gpt else ""
            share = r["system_seconds"] / (r["user_seconds"] + r["system_seconds"])
            sizes = f"{r['peak_mb'] / 1024:.1f} | {r['held_mb'] / 1024:.1f} |"
            lines.append(first + f"{r['passes']:.0f} | {times} | {100 * share:.0f} % | {sizes}")
    lines += ["", "| where SNOWS's time goes | |", "|---|---|"]
    for title, name, images, pattern, blocks in PROFILED:
        shares = next((r["shares"] for r in records if r.get("profile") and (r["name"], r["images"]) == (name, images)), None)
        what = f"{title}, {images} images, {pattern}, {_part(blocks)}"
        lines.append(f"| {what} | {'not measured' if shares is None else said(shares)} |")
    return "\n".join(lines)


def stage(name: str, folder: Path, images: int = 64) -> None:
    """Write what `python -m snows prune` reads: the network's weights and crops of photographs, divided as it wants them."""
    for part, photographs in (("train", imagenet.CALIBRATION), ("val", imagenet.EVALUATION)):
        (folder / "crops" / part / "all").mkdir(parents=True, exist_ok=True)
        for i, crop in enumerate(imagenet.crops(photographs, images, SIDE, 0)):
            pixels = ((crop + 1) * 127.5).round().to(torch.uint8)
            to_pil_image(pixels).save(folder / "crops" / part / "all" / f"{i}.png")
    module = network(name, imagenet.crops(imagenet.CALIBRATION, 32, SIDE, 0))
    save_file(module.state_dict(), folder / f"{name}.safetensors")


def write_table() -> None:
    """Put the table into the README."""
    put("large", table(read(RESULTS)))


if __name__ == "__main__":
    if sys.argv[1] == "stage":
        stage(sys.argv[2], Path(sys.argv[3]))
        sys.exit()
    given = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(wide_layer() if given["name"] == "wide layer" else run(**given)))
