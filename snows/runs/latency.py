"""How fast a network is on this machine's processor beside another: in PyTorch and ONNX Runtime, one image at a time and many.

Both take turns, so that what else the machine does falls on both alike, and what is said is the ratio of two turns in a row.
Before a run it can be measured too where whole units are cut away: which ones go changes no shape, so any of them will do.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from snows.config import InputError, PruneConfig, RunConfig
from snows.export.files import save_onnx
from snows.measures.comparison import alternate
from snows.method.coverage import coverage
from snows.method.graph import NetworkGraph
from snows.method.structured import stay
from snows.method.units import cut_any
from snows.runs.inspection import pruned_network
from snows.runs.store import Run
from snows.sources import models

BATCHES = (1, 32)
# A turn is so long at least, of one batch after the other: in less, what else the machine does decides.
_TURN_SECONDS = 0.05
# Of one program on batches of one size: about so long, in at least and at most so many rounds.
_SECONDS, _LEAST, _MOST = 5.0, 9, 50


class LatencyError(InputError):
    """There is nothing to be timed; the message says why and what to do."""


@dataclass(frozen=True)
class Spread:
    """The median, and between what four of five values lie."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Of two values or more."""
        tenths = quantiles(values, n=10, method="inclusive")
        return cls(tenths[0], tenths[4], tenths[8])


@dataclass(frozen=True)
class Timing:
    """One program on `batch` images at once: the seconds that the dense network took for them in each round, and the pruned
    one."""

    program: str
    batch: int
    dense: list[float]
    pruned: list[float]

    @property
    def faster(self) -> Spread:
        """How many times as fast the pruned network is, round by round."""
        return Spread.of([before / after for before, after in zip(self.dense, self.pruned, strict=True)])

    def said(self) -> dict[str, str]:
        """As people read it: by head of a table's column, its cell."""
        faster = self.faster
        return {
            "Program": self.program,
            "Images at once": str(self.batch),
            "Times as fast": f"{faster.median:.2f}",
            "Four of five rounds": f"{faster.low:.2f} to {faster.high:.2f}",
            "Dense": f"{1e3 * median(self.dense):.3g} ms",
            "Pruned": f"{1e3 * median(self.pruned):.3g} ms",
        }


def onnx_runtime_obstacle() -> str | None:
    """Why ONNX Runtime cannot be timed here, as a sentence; None where it can."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return "ONNX Runtime is not installed here, so PyTorch alone is timed. For both: pip install onnxruntime"
    return None


def timings(
    dense: nn.Module,
    pruned: nn.Module,
    image: Tensor,
    check: Callable[[], None] = lambda: None,
    sizes: Sequence[int] = BATCHES,
) -> Iterator[Timing]:
    """Each program on batches of each of `sizes`, one after the other, as they are measured.

    `image` (1 or more, C, H, W) gives the images' size. Both networks are run on the processor as they are, in eval mode and
    with as many threads as PyTorch has. `check` is called between two rounds and may raise to end it. Raises `ArtifactError`
    for a network that ONNX cannot say.
    """
    networks = {"dense": dense.eval(), "pruned": pruned.eval()}
    batches = [image[:1].cpu().repeat(size, 1, 1, 1) for size in sizes]
    with torch.inference_mode():
        for batch in batches:
            yield _timing("PyTorch", batch, {name: partial(module, batch) for name, module in networks.items()}, check)
    if onnx_runtime_obstacle() is None:
        sessions = {}
        for name, module in networks.items():
            check()
            sessions[name] = _session(module, image)
        for batch in batches:
            given = {"images": batch.numpy()}
            tasks = {name: partial(session.run, None, given) for name, session in sessions.items()}
            yield _timing("ONNX Runtime", batch, tasks, check)


def of_run(run: Run, check: Callable[[], None] = lambda: None) -> Iterator[Timing]:
    """A finished run's network, cut to size where whole units were cut away, beside the dense one. Raises `InputError`."""
    if not run.weights_path.exists():
        raise LatencyError(f"Run {run.id} has no pruned network to be timed yet. Wait until it has finished, or resume it.")
    pruned, example = pruned_network(run)
    yield from timings(models.load_configured(run.config()).module, pruned, example, check)


def expected(config: RunConfig, check: Callable[[], None] = lambda: None) -> Iterator[Timing]:
    """What `of_run` will say of a run of this config, measured before there is one, on units that go by chance. Raises
    `InputError`, of a pattern too that cuts no units away: with it all sizes stay."""
    if not config.prune.structured:
        raise LatencyError(
            f"{config.prune.pattern} leaves all sizes as they are, so there is nothing to be timed. Choose a pattern that cuts "
            "units away, such as width 50%."
        )
    model = models.load_configured(config)
    example = torch.zeros(2, *model.input_size)
    yield from timings(model.module, of_sizes(model.module, example, config.prune, check), example, check)


def of_sizes(module: nn.Module, example: Tensor, config: PruneConfig, check: Callable[[], None] = lambda: None) -> nn.Module:
    """A network of the sizes that pruning `module` leaves, its units gone by chance. `example` (2, C, H, W). Raises
    `InputError`."""
    check()
    covered = coverage(NetworkGraph.export(module, example, layout=torch.contiguous_format), config)
    if covered.units is None or not covered.groups:
        raise LatencyError("Of this network no units can be cut away; `python -m snows coverage` says why of each layer.")
    check()
    return cut_any(covered.units, [(group, len(group) - stay(group, pattern)) for group, pattern in covered.groups])


def _timing(program: str, batch: Tensor, tasks: Mapping[str, Callable[[], object]], check: Callable[[], None]) -> Timing:
    def turn(task: Callable[[], object], times: int) -> None:
        check()
        for _ in range(times):
            task()

    once = min(
        min(seconds) for seconds in alternate({name: partial(turn, task, 1) for name, task in tasks.items()}, 3).values()
    )
    times = math.ceil(_TURN_SECONDS / once)
    rounds = max(_LEAST, min(_MOST, round(_SECONDS / (2 * times * once))))
    seconds = alternate({name: partial(turn, task, times) for name, task in tasks.items()}, rounds)
    dense, pruned = ([turn / times for turn in seconds[name]] for name in ("dense", "pruned"))
    return Timing(program, len(batch), dense, pruned)


def _session(module: nn.Module, image: Tensor) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # what it has to say of a graph is not for whoever asked how fast it is
    with tempfile.TemporaryDirectory() as folder:
        save_onnx(path := Path(folder) / "network.onnx", module, image)
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
