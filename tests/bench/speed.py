"""The speed benchmark: everything is a ratio of two times measured side by side in one process, on one thread.

Times are CPU seconds of the process, so that what else runs on the machine counts little. Each part is one function that
returns plain records; `measure` writes them, with date and machine, to `assets/bench/speed.json` as soon as a part is done.
"""

import cProfile
import json
import math
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import date
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from snows.config import PruneConfig
from snows.measures import metrics
from snows.method.cascade import Cascade
from snows.method.coverage import channels_last_if_faster, coverage
from snows.method.graph import Frontier, NetworkGraph, Window
from snows.method.linearization import Linearization
from snows.method.objective import Objective
from snows.method.operations import move
from snows.method.problem import SiteProblem
from snows.method.pruner import prune
from snows.method.refinement import refine
from snows.method.rows import RowBlocks, input_gram, input_output_cross
from snows.method.updates import UPDATES, UpdateResult
from snows.process import SWITCH_INTERVAL
from snows.sources import data, models
from tests.bench.plain import plain_snows
from tests.bench.readme import put

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "assets" / "bench" / "speed.json"
MODELS = ["resnet20-fashion", "vit-fashion"]
PATTERN = "1:4"


def machine() -> str:
    """The processor and the number of threads measured on."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} of {len(names) or 1} cores"


def circumstances(busy_before: float) -> dict[str, object]:
    """What a record of times says first. `busy_before`: the load by what else the machine was doing."""
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "load before": round(busy_before, 2),
    }


def seconds(work: Callable[[], object], repeat: int = 3) -> float:
    """The least CPU time of `repeat` calls, after one to warm up."""
    work()
    found = []
    for _ in range(repeat):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def _network(name: str, images: int = 512) -> tuple[nn.Module, Tensor]:
    model = models.load(name)
    calibration = data.load("fashion-mnist", model, images, 1, 0).calibration
    layout = channels_last_if_faster(model.module, calibration)
    return model.module.to(memory_format=layout), calibration.contiguous(memory_format=layout)


@torch.no_grad()
def forward_seconds(module: nn.Module, images: Tensor) -> float:
    """One pass of the network over all images."""

    def work() -> None:
        for batch in images.split(128):
            module(batch)

    return seconds(work)


def _problems(name: str, k_steps: int, every: int) -> Iterable[tuple[str, SiteProblem]]:
    """Every `every`-th site's problem, as the cascade meets it; the sites before it are pruned by least squares."""
    module, images = _network(name)
    config = PruneConfig(pattern=PATTERN, k_steps=k_steps, refine="none")
    graph = NetworkGraph.export(module, images[:2])
    covered = coverage(graph, config)
    cascade = Cascade(graph, covered, config, list(images.split(128)), torch.device("cpu"), lambda e: None, lambda: False)
    for index, site in enumerate(covered.sites):
        problem = cascade.problem(index, graph.window(site, k_steps))
        if index % every == every // 2:
            yield site.name, problem
        cascade.skip(site, problem.kept.expand(problem.least_squares))


# --- the parts ---


def time_to_same_loss(every: int = 6) -> list[dict[str, Any]]:
    """CPU seconds until our loss is at or below plain SNOWS's last one, over plain SNOWS's own, by layer and in all."""
    records = []
    for name in MODELS:
        for k_steps in (3, 10):
            rows = [_race(site, problem) for site, problem in _problems(name, k_steps, every)]
            reached = [r for r in rows if r["seconds"] is not None]
            record = {
                "model": name,
                "k_steps": k_steps,
                "layers": rows,
                "ratio": sum(r["plain_seconds"] for r in reached) / sum(r["seconds"] for r in reached) if reached else None,
                "reached": len(reached),
            }
            records.append(record)
    return records


def _race(site: str, problem: SiteProblem) -> dict[str, Any]:
    """Ours on an untouched problem, all that it needs included and with as many Newton steps as plain SNOWS takes, then plain
    SNOWS on the same one."""
    config, objective = problem.config, problem.objective
    problem.config = config.model_copy(update={"newton_steps": 3 * len(problem.batches)})
    seen: list[tuple[float, float]] = []  # seconds so far, loss there
    started = time.process_time()
    problem.on_step = lambda step, damping: seen.append((time.process_time() - started, step.loss))
    objective.loss_and_gradient(problem.least_squares)
    seen.append((time.process_time() - started, sum(problem.least_squares_losses)))
    result = UPDATES["snows"](problem)
    took = time.process_time() - started

    started = time.process_time()
    plain = plain_snows(
        problem.window, problem.kept, problem.masked, problem.batches, rtol=config.rtol, max_iters=config.max_iters
    )
    plain_seconds = time.process_time() - started
    aim = objective.loss(plain)
    return {
        "site": site,
        "plain_seconds": plain_seconds,
        "plain_loss": aim,
        "seconds": next((t for t, loss in seen if loss <= aim), None),
        "all_seconds": took,
        "loss": objective.loss(result.kept),
    }


def whole_network() -> list[dict[str, Any]]:
    """Plain SNOWS through the whole network at K = 3 against ours, each in a cascade of its own: CPU seconds of both, and how
    far the network ends from the dense one on the calibration images and in accuracy."""

    def plain(problem: SiteProblem) -> UpdateResult:
        config = problem.config
        x = plain_snows(
            problem.window, problem.kept, problem.masked, problem.batches, rtol=config.rtol, max_iters=config.max_iters
        )
        return UpdateResult(problem, x, "MAX_STEPS", "")

    records = []
    for name in MODELS:
        module, images = _network(name)
        test = data.load("fashion-mnist", models.load(name), 1, 5_000, 0)
        record: dict[str, Any] = {"model": name}
        for method, refine_by, updates in (
            ("ours, magnitude mask", "none", {}),
            ("ours, refined mask", "window", {}),
            ("plain", "none", {"snows": plain}),
        ):
            with patch.dict(UPDATES, updates):
                started = time.process_time()
                result = prune(module, images, PruneConfig(pattern=PATTERN, refine=refine_by))
                took = time.process_time() - started
            with torch.no_grad():
                found, dense = (torch.cat([m(b) for b in images.split(128)]) for m in (result.model, module))
                answers = torch.cat([result.model(b) for b in test.evaluation.split(128)])
            error = float((found - dense).square().mean() / dense.square().mean())
            record[method] = {"seconds": took, "output_error": error, "accuracy": metrics.accuracy(answers, test.labels)}
        records.append(record)
    return records


_PHASES: dict[str, list[Any]] = {
    "losses and gradients": [Objective._evaluate],
    "curvature products": [Linearization.push, Linearization.pull],
    "linearizing": [Linearization.__init__],
    "Gram matrices": [input_gram, input_output_cross],
    "row factors": [RowBlocks.least_squares, RowBlocks.solve],
    "mask refinement": [refine],
    "walking the network": [Frontier.advance],
}


def profile() -> list[dict[str, Any]]:
    """Where the time of a run goes: the share of each phase, for the default configuration at K = 3.

    The export is timed by itself: it is Python all through, which a profiler slows several times over.
    """
    records = []
    for name in MODELS:
        module, images = _network(name)
        config = PruneConfig(pattern=PATTERN)
        whole = seconds(partial(prune, module, images, config), repeat=1)
        export = seconds(partial(NetworkGraph.export, module, images[:2])) / whole
        after = phases(partial(prune, module, images, config))
        shares = {phase: (1 - export) * share for phase, share in after.items()} | {"export": export}
        records.append({"model": name, "shares": shares})
    return records


def phases(run: Callable[[], Any]) -> dict[str, float]:
    """The share of each phase of a run's time in the processor, from when the network is exported."""
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(run)
    entries = {entry.code: entry.totaltime for entry in profiler.getstats()}
    rest = entries[prune.__code__] - _time_of(NetworkGraph.export, entries)
    shares = {phase: sum(_time_of(f, entries) for f in functions) / rest for phase, functions in _PHASES.items()}
    return shares | {"all else": 1 - sum(shares.values())}


def said(shares: dict[str, float]) -> str:
    """The phases as text, the longest first."""
    return ", ".join(f"{phase} {100 * v:.0f} %" for phase, v in sorted(shares.items(), key=lambda item: -item[1]))


def _time_of(function: Any, entries: dict[Any, float]) -> float:
    while not isinstance(function, FunctionType) or hasattr(function, "__wrapped__"):
        function = getattr(function, "__wrapped__", None) or function.__func__
    return entries.get(function.__code__, 0.0)


def cost_of_a_product(every: int = 4) -> list[dict[str, Any]]:
    """One curvature product, in forward-plus-backwards of the same window on the same batch (K = 3)."""
    records = []
    for name in MODELS:
        ratios: dict[str, list[float]] = {"gauss_newton": [], "hessian": [], "finite_difference": []}
        for _, problem in _problems(name, 3, every):
            once = seconds(lambda problem=problem: _forward_backward(problem.window, problem))  # type: ignore[misc]
            point, vector = problem.masked, torch.randn_like(problem.masked)
            for kind, found in ratios.items():
                objective = Objective(
                    problem.window,
                    problem.kept,
                    problem.batches,
                    coefficients=problem.objective.coefficients,
                    device=problem.device,
                    curvature_kind=kind,
                )
                product = objective.product(point, [0])
                found.append(seconds(lambda product=product, vector=vector: product(vector)) / once)  # type: ignore[misc]
        records.append({"model": name} | {kind: sum(found) / len(found) for kind, found in ratios.items()})
    return records


def _forward_backward(window: Window, problem: SiteProblem) -> None:
    batch = problem.batches[0]
    weight = problem.weight.clone().requires_grad_()
    outputs = window.outputs(weight, {n: move(v, problem.device) for n, v in batch.inputs.items()})
    torch.autograd.grad(outputs, weight, [torch.ones_like(y) for y in outputs])


def cost_of_a_run() -> list[dict[str, Any]]:
    """A whole run over 512 images, in forward passes of the network over the same images. The export is in it."""
    records = []
    for name in MODELS:
        module, images = _network(name)
        once = forward_seconds(module, images)
        for update, k_steps, refine_by in (
            ("least-squares", 0, "none"),
            *(("snows", k_steps, refine_by) for k_steps in (3, 5, 10) for refine_by in ("none", "window")),
        ):
            started = time.process_time()
            result = prune(module, images, PruneConfig(pattern=PATTERN, update=update, k_steps=k_steps, refine=refine_by))
            took = time.process_time() - started
            records.append(
                {
                    "model": name,
                    "update": update,
                    "k_steps": k_steps,
                    "refine": refine_by,
                    "passes": took / once,
                    "seconds": took,
                    "products": result.num_products,
                }
            )
    return records


def share_of_matrix_rate() -> list[dict[str, Any]]:
    """Operations of a ViT run over its time, against one large matrix product in the same process."""
    from torch.utils.flop_counter import FlopCounterMode

    module, images = _network("vit-fashion")
    config = PruneConfig(pattern=PATTERN)
    started = time.process_time()
    prune(module, images, config)
    took = time.process_time() - started
    with FlopCounterMode(display=False) as counter:
        prune(module, images, config)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    rate = 2 * 2048**3 / seconds(lambda: a @ b)
    return [{"model": "vit-fashion", "share": float(counter.get_total_flops()) / took / rate, "gigaflops": rate / 1e9}]


_CHILD = """
import json, sys, time
import torch
from snows.config import PruneConfig
from snows.method.pruner import prune
from tests.bench import speed
torch.set_num_threads(1)
case = json.loads(sys.argv[1])
module, images = speed.growth_case(case)
prune(module, images[:2], PruneConfig(pattern="1:4", update="none", k_steps=0))  # what is paid once: imports, the exporter
with torch.no_grad():
    module(images)
    started = time.process_time()
    module(images)
    forward = time.process_time() - started
started = time.process_time()
prune(module, images, PruneConfig(pattern="1:4", k_steps=case.get("k_steps", 3), batch_size=case.get("batch_size", 128)))
seconds = time.process_time() - started
print(json.dumps({"seconds": seconds, "forward_seconds": forward, "bytes": speed.peak_bytes()}))
"""


def peak_bytes() -> int:
    """The most memory that this process has held. Its `ru_maxrss` begins with that of the process that started it."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def growth_case(case: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """The network and images that one point of `growth` is measured on."""
    if "timm" not in case:
        return _network(case["model"], case["images"])
    import timm

    torch.manual_seed(0)
    module = timm.create_model(case["timm"], pretrained=False, depth=case["depth"]).eval()
    return module, torch.randn(case["images"], 3, 224, 224)


def growth() -> list[dict[str, Any]]:
    """Time and peak memory, each case in a process of its own, and the exponent that fits them."""
    vit = {"tiny": 192, "small": 384, "base": 768}
    series: dict[str, list[tuple[float, dict[str, Any]]]] = {
        "images": [(n, {"model": "resnet20-fashion", "images": n}) for n in (128, 256, 512, 1024, 2048)],
        "K": [(k, {"model": "resnet20-fashion", "images": 256, "k_steps": k}) for k in (1, 2, 5, 10, 20)],
        "depth": [(d, {"timm": "vit_tiny_patch16_224", "images": 32, "depth": d}) for d in (2, 4, 8)],
        "width": [(w, {"timm": f"vit_{n}_patch16_224", "images": 32, "depth": 2}) for n, w in vit.items()],
    }
    return [_grown(axis, cases) for axis, cases in series.items()]


def _grown(axis: str, cases: list[tuple[float, dict[str, Any]]]) -> dict[str, Any]:
    points = []
    for value, case in cases:
        out = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(case)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        points.append({axis: value} | json.loads(out.stdout.splitlines()[-1]))

    def exponent(of: str) -> float:
        return _exponent([(p[axis], p[of]) for p in points])

    return {
        "axis": axis,
        "points": points,
        "time_exponent": exponent("seconds"),
        "forward_exponent": exponent("forward_seconds"),
        "memory_exponent": exponent("bytes"),
    }


def _exponent(points: list[tuple[float, float]]) -> float:
    """The slope of the least-squares line through the logarithms."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


def import_seconds() -> list[dict[str, Any]]:
    """`import snows`, the median of nine fresh processes, beside an empty one; and whether it brought torch along."""

    def run(code: str) -> float:
        found = []
        for _ in range(9):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return sorted(found)[4]

    code = "import sys, snows; print('torch' in sys.modules)"
    torch_too = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    return [{"seconds": run("import snows") - run("pass"), "imports_torch": torch_too == "True"}]


def beside_python() -> list[dict[str, Any]]:
    """A run's time by the clock beside a thread of plain Python, over that alone: as Python is, and as our processes are."""
    module, images = _network("vit-fashion", 32)
    sites = [site.name for site in NetworkGraph.export(module, images[:2]).sites]
    config = PruneConfig(pattern=PATTERN, k_steps=3, overrides=dict.fromkeys(sites[3:], "dense"))
    usual = sys.getswitchinterval()

    def took() -> float:
        started = time.perf_counter()
        prune(module, images, config)
        return time.perf_counter() - started

    def beside() -> float:
        ended = threading.Event()

        def compute() -> None:
            while not ended.is_set():
                sum(range(1000))

        thread = threading.Thread(target=compute)
        thread.start()
        try:
            return took()
        finally:
            ended.set()
            thread.join()

    took()
    try:
        sys.setswitchinterval(0.005)
        alone, plain = took(), beside()
        sys.setswitchinterval(SWITCH_INTERVAL)
        ours = beside()
    finally:
        sys.setswitchinterval(usual)
    return [{"model": "vit-fashion", "python": plain / alone, "ours": ours / alone}]


_ALLOCATION_CHILD = """
import hashlib, json, resource, sys
from snows.process import give_back_memory, keep_freed_memory
if sys.argv[1] == "ours":
    keep_freed_memory()
import timm, torch
from pathlib import Path
from snows.config import PruneConfig
from snows.method.coverage import coverage
from snows.method.graph import NetworkGraph
from snows.method.pruner import prune
torch.set_num_threads(1)
torch.manual_seed(0)
module = timm.create_model("mobilenetv3_small_100", pretrained=False).eval()
images = torch.randn(64, 3, 224, 224)
sites = [site.name for site in coverage(NetworkGraph.export(module, images[:2]), PruneConfig(pattern="2:4")).sites]
config = PruneConfig(
    pattern="2:4", update=sys.argv[2], k_steps=int(sys.argv[3]), overrides=dict.fromkeys(sites[6:], "dense")
)
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before = resource.getrusage(resource.RUSAGE_SELF)
model = prune(module, images, config).model
after = resource.getrusage(resource.RUSAGE_SELF)
bits = hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()
held = resident()
give_back_memory()
print(json.dumps({
    "user": after.ru_utime - before.ru_utime, "system": after.ru_stime - before.ru_stime, "peak": 1024 * after.ru_maxrss,
    "held": held, "given_back": resident(), "bits": bits,
}))
"""


def allocation() -> list[dict[str, Any]]:
    """User and system seconds and resident bytes of a run on a 224-pixel network (64 random images, its first six layers,
    2:4): as glibc is, and as our processes are. The answers are the same bits."""
    records = []
    for update, k_steps in (("least-squares", 0), ("snows", 3)):
        record: dict[str, Any] = {"update": update, "k_steps": k_steps}
        for kind in ("glibc", "ours"):
            command = [sys.executable, "-c", _ALLOCATION_CHILD, kind, update, str(k_steps)]
            out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            record[kind] = json.loads(out.stdout.splitlines()[-1])
        if record["glibc"].pop("bits") != record["ours"].pop("bits"):
            raise RuntimeError("The allocator's thresholds changed a result.")
        records.append(record)
    return records


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "import": import_seconds,
    "product": cost_of_a_product,
    "run": cost_of_a_run,
    "profile": profile,
    "rate": share_of_matrix_rate,
    "growth": growth,
    "beside": beside_python,
    "allocation": allocation,
    "same_loss": time_to_same_loss,
    "whole": whole_network,
}


def read() -> dict[str, Any]:
    """Every part on file."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def measure(parts: Iterable[str] = PARTS, *, fresh: bool = False) -> None:
    """Measure the parts that are not on file; all of them with `fresh`."""
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if part in read() and not fresh:
            continue
        record = {"date": date.today().isoformat(), "machine": machine(), "records": PARTS[part]()}
        RESULTS.write_text(json.dumps(read() | {part: record}, indent=1) + "\n")


# --- the table ---


def table(found: dict[str, Any]) -> str:
    """What was measured against what was aimed at, as Markdown."""
    rows = [(what, goal, text(found[part]["records"])) for part, what, goal, text in _ROWS if part in found]
    missing = [(what, goal, "not measured") for part, what, goal, _ in _ROWS if part not in found]
    lines = ["| | goal | measured |", "|---|---|---|", *(f"| {a} | {b} | {c} |" for a, b, c in [*rows, *missing])]
    where = sorted({f"{part['machine']}, {part['date']}" for part in found.values()})
    return "\n".join([*lines, "", f"Measured on {'; '.join(where)}. CPU seconds, one thread, pattern {PATTERN}."])


def _same_loss(records: list[dict]) -> str:
    return "; ".join(
        f"{r['model']} K={r['k_steps']}: "
        + (f"{r['ratio']:.0f} times less" if r["ratio"] else "not reached")
        + f" ({r['reached']} of {len(r['layers'])} layers got there)"
        for r in records
    )


def _growth_row(axis: str) -> Callable[[list[dict]], str]:
    def text(records: list[dict]) -> str:
        record = next(r for r in records if r["axis"] == axis)
        forward = record.get("forward_exponent") if axis == "width" else None  # measurements from before have none
        beside = "" if forward is None else f" (a forward pass {forward:.2f})"
        return f"time {record['time_exponent']:.2f}{beside}, peak memory {record['memory_exponent']:.2f}"

    return text


def _run_row(name: str) -> Callable[[list[dict]], str]:
    def text(records: list[dict]) -> str:
        mine = [r for r in records if r["model"] == name]
        return ", ".join(
            f"{r['passes']:.0f} {'for least squares' if r['update'] != 'snows' else 'at K=' + str(r['k_steps'])}"
            + (" with a refined mask" if r["refine"] != "none" else "")
            for r in mine
        )

    return text


def _whole(records: list[dict]) -> str:
    def result(found: dict[str, float]) -> str:
        return f"{found['seconds']:.0f} s to {100 * found['accuracy']:.1f} % (output error {100 * found['output_error']:.2f} %)"

    return "; ".join(
        f"{r['model']}: {r['plain']['seconds'] / r['ours, magnitude mask']['seconds']:.0f} times less ("
        + ", ".join(f"{name} {result(r[name])}" for name in ("plain", "ours, magnitude mask", "ours, refined mask"))
        + ")"
        for r in records
    )


def _profile(records: list[dict]) -> str:
    return "; ".join(f"{r['model']}: {said(r['shares'])}" for r in records)


def _allocation(records: list[dict]) -> str:
    def cost(of: dict[str, float]) -> str:
        return f"{of['user']:.0f} + {of['system']:.1f} s, {of['peak'] / 1e9:.2f} GB"

    return "; ".join(
        f"{'least squares' if r['update'] != 'snows' else 'K=' + str(r['k_steps'])}: {cost(r['ours'])}; "
        f"as glibc is: {cost(r['glibc'])}"
        for r in records
    )


_ROWS: list[tuple[str, str, str, Callable[[list[dict]], str]]] = [
    ("same_loss", "Time to plain SNOWS's final loss", "30 times less", _same_loss),
    ("whole", "Time of plain SNOWS over ours, whole network, K=3", "", _whole),
    (
        "product",
        "One Gauss-Newton product, in forward-plus-backwards of its window",
        "at most 1.2",
        lambda records: ", ".join(
            f"{r['model']} {r['gauss_newton']:.2f} (Hessian {r['hessian']:.2f}, differences {r['finite_difference']:.2f})"
            for r in records
        ),
    ),
    ("run", "A ResNet-20 run, in forward passes over its images", "20 at K=3, 60 at K=10", _run_row(MODELS[0])),
    ("run", "A ViT run, likewise", "", _run_row(MODELS[1])),
    ("profile", "Where a run's time goes, K=3", "", _profile),
    (
        "rate",
        "Share of the matrix-product rate, ViT",
        "50 % or more",
        lambda records: f"{100 * records[0]['share']:.0f} % of {records[0]['gigaflops']:.0f} GFLOP/s",
    ),
    ("growth", "Exponent of growth with images", "1.0 ± 0.1", _growth_row("images")),
    ("growth", "… with K", "", _growth_row("K")),
    ("growth", "… with depth (ViT of 2, 4, 8 blocks)", "memory flat", _growth_row("depth")),
    ("growth", "… with width (ViT tiny, small, base)", "at most a forward pass's + 0.2", _growth_row("width")),
    (
        "beside",
        "A run beside a busy thread of Python, over one alone (by the clock)",
        "",
        lambda records: f"{records[0]['ours']:.1f}; with Python's own interval {records[0]['python']:.1f}",
    ),
    (
        "allocation",
        "User + system time and peak memory, six layers of MobileNetV3 at 224 pixels, 2:4",
        "system time at most 5 %",
        _allocation,
    ),
    (
        "import",
        "`import snows`, seconds",
        "0.25, without torch",
        lambda records: f"{records[0]['seconds']:.2f}, {'with' if records[0]['imports_torch'] else 'without'} torch",
    ),
]


def write_table() -> None:
    """Put the table into the README."""
    put("speed", table(read()))
