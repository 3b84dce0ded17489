"""What a person can take away from a run: weights, masks, the archive, the report."""

import io
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app import report
from snows.cli.flags import command
from snows.plans.exports import FORMS, export, public
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
    masks = "" if not weights or run.has_finished_sites() else "No layer is finished yet."
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
        *(
            Download(label, f"{stem}{ending}", mime, partial(exported, run, form, dtype), help_, weights)
            for label, form, dtype, ending, mime, help_ in _EXPORTS
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


# What is made of a finished run when it is asked for: label, form, dtype, ending of the name, kind, and what it is.
_EXPORTS = (
    ("Packed", "packed", "float32", "-packed.safetensors", "application/octet-stream", FORMS["packed"].help),
    (
        "Packed, float16",
        "packed",
        "float16",
        "-float16.safetensors",
        "application/octet-stream",
        "Packed, with weights in half precision; biases and norms stay as they are.",
    ),
    ("ONNX", "onnx", "float32", ".onnx", "application/octet-stream", FORMS["onnx"].help),
    (
        "For the hub",
        "hub",
        "float32",
        "-hub.zip",
        "application/zip",
        "A folder for the Hugging Face hub: a card filled from this run, config.json, weights and packed weights. timm opens "
        "it where the network is one of timm's.",
    ),
)


def exported(run: Run, form: str, dtype: str) -> bytes:
    """The run's network as one of `plans.exports.FORMS`; a folder as a zip of it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, run.id)
        export(run, form, output, dtype, command(public(run.config())))
        if output.is_file():
            return output.read_bytes()
        return Path(shutil.make_archive(str(output), "zip", folder, run.id)).read_bytes()


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
