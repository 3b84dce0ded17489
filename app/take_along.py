"""What a person can take away from a run: weights, masks, the archive, the report."""

import io
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app import report
from snows.runs import archive
from snows.runs.store import Run


@dataclass(frozen=True)
class Download:
    """A file made of a run when somebody asks for it."""

    label: str
    file_name: str
    mime: str
    content: Callable[[], bytes]
    help: str
    obstacle: str = ""  # why there is nothing to download, or empty


def downloads(run: Run) -> list[Download]:
    """Every file that can be had of a run."""
    stem = re.sub(r"[^\w.-]+", "-", run.id)
    weights = "" if run.weights_path.exists() else "The whole network's weights are there once the run has finished."
    masks = "" if not weights or any(True for _ in run.finished_sites()) else "No layer is finished yet."
    tensors = "application/octet-stream"
    return [
        Download(
            "Weights",
            f"{stem}.safetensors",
            tensors,
            run.weights_path.read_bytes,
            "The pruned network's state dict, as safetensors. Removed weights are exactly zero.",
            weights,
        ),
        Download(
            "Masks",
            f"{stem}-masks.safetensors",
            tensors,
            lambda: masks_file(run),
            "Which weights were kept (True) in each layer, as safetensors. A new run can use this file as its mask.",
            masks,
        ),
        Download(
            "Config",
            f"{stem}-config.json",
            "application/json",
            (run.path / "config.json").read_bytes,
            "The exact settings, as JSON.",
        ),
        Download(
            "Events",
            f"{stem}-events.jsonl",
            "application/x-ndjson",
            (run.path / "events.jsonl").read_bytes,
            "All that happened, one line of JSON an event: every solver step of every layer.",
            "" if (run.path / "events.jsonl").exists() else "Nothing has happened yet.",
        ),
        Download(
            "Report",
            f"{stem}.html",
            "text/html",
            lambda: report.report(run).encode(),
            "One web page with the result, the figures and the numbers behind them. It needs nothing else to be read.",
        ),
        Download(
            "Whole run",
            f"{stem}.zip",
            "application/zip",
            lambda: packed(run),
            "All files of the run in one archive, which can be imported here or on another machine.",
        ),
    ]


def masks_file(run: Run) -> bytes:
    """A safetensors file of the run's masks, which the setting `mask` accepts."""
    from snows.export.files import save_masks

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "masks.safetensors")
        config = run.config()
        save_masks(path, run.masks(), {"run": run.id, "pattern": str(config.prune.pattern), "config": config.model_dump_json()})
        return path.read_bytes()


def packed(run: Run) -> bytes:
    """The run's folder as a zip."""
    file = io.BytesIO()
    archive.pack(run, file)
    return file.getvalue()
