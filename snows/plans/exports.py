"""A finished run as a file or a folder for elsewhere: each form once, for the shell and the app."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snows.config import NM, InputError, RunConfig, first_line
from snows.measures.names import MEASURES, said, size
from snows.plans.words import data_name, method_name
from snows.runs.store import Run

if TYPE_CHECKING:
    from snows.sources.models import LoadedModel

_RESULTS = (
    *("accuracy_dense", "accuracy_masked", "accuracy", "agreement_masked", "agreement", "divergence", "density"),
    *("packed_bytes", "half_bytes", "seconds"),
)
_PACKAGES = ("torch", "torchvision", "timm", "safetensors")
# As `export.packed` has them, which needs torch.
DTYPES = ("float32", "float16", "bfloat16")
_CARD, _CONFIG, _PACKED = "README.md", "config.json", "packed.safetensors"


class ExportError(InputError):
    """What was asked for cannot be made of this run; the message says why and what to do."""


@dataclass(frozen=True)
class Form:
    """`ending`: of the file's name, after the run's; `help`: what it is; `write` makes it at a path."""

    ending: str
    help: str
    write: Callable[[Run, Path, str, str], None]


def export(run: Run, form: str, output: Path, dtype: str = "float32", repeat: str = "") -> None:
    """Write the run's network as one of `FORMS` at `output`: a file, which takes the place of one that is there, or, where
    there is none yet or an empty one, a folder.

    `dtype`: of the weights in a packed file, see `export.packed`. `repeat`: what to type to make the run again, for a card.
    Raises `InputError` for a run without a result, and for what cannot be written.
    """
    if not run.weights_path.exists():
        raise ExportError(f"Run {run.id} has no pruned network yet. Wait until it has finished, or resume it.")
    FORMS[form].write(run, output, dtype, repeat)


def public(config: RunConfig) -> RunConfig:
    """The config without what a person called the run and without the folders of this machine: files and folders by their
    names."""
    mask = Path(config.prune.mask).name
    checkpoint = Path(config.checkpoint).name if config.checkpoint else None
    changes = {"name": "", "data": data_name(config), "checkpoint": checkpoint}
    return config.model_copy(update={**changes, "prune": config.prune.model_copy(update={"mask": mask})})


def push(folder: Path, repository: str) -> str:
    """Send a folder to the Hugging Face hub, with its own client and whatever token that has, and return the address.

    A repository that is not there is made, for its owner's eyes alone. Raises `ExportError`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    from snows.sources.downloads import is_of_connection

    api = HfApi()
    try:
        made = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="A pruned network and its card")
    except HFValidationError as error:
        raise ExportError(f"{repository!r} is no name of a repository ({first_line(error)}). Write OWNER/NAME.") from error
    except LocalTokenNotFoundError as error:
        raise ExportError("The hub wants a token and there is none here. Run `hf auth login`, then push again.") from error
    except HfHubHTTPError as error:
        raise ExportError(
            f"The hub refused {repository} ({first_line(error)}). Log in with `hf auth login` by a token that may write there; "
            f"the folder is kept in {folder}."
        ) from error
    except Exception as error:
        if not is_of_connection(error):
            raise
        raise ExportError(
            f"The hub could not be reached ({first_line(error)}). The folder is kept in {folder}: push it when there is a "
            f"connection, `hf upload {repository} {folder}`."
        ) from error
    return str(made)


# --- files ---


def _state(run: Run) -> tuple[dict[str, Any], list[NM], dict[str, str]]:
    """The run's weights, the N:M patterns that they may have, and what to write beside them."""
    from snows.export.files import load_weights

    config, log = run.config(), run.log()
    patterns = dict.fromkeys(log.pattern_of(site, config.prune) for site in log.sites)
    metadata = {"run": run.id, "pattern": str(config.prune.pattern), "config": public(config).model_dump_json()}
    state, _ = load_weights(run.weights_path)
    return state, [pattern for pattern in patterns if isinstance(pattern, NM)], metadata


def _safetensors(run: Run, output: Path, dtype: str, repeat: str) -> None:
    from snows.export.files import save_weights

    state, _, metadata = _state(run)
    save_weights(output, state, metadata)


def _packed(run: Run, output: Path, dtype: str, repeat: str) -> None:
    from snows.export.packed import save_packed

    state, patterns, metadata = _state(run)
    save_packed(output, state, patterns, dtype, metadata)


def _onnx(run: Run, output: Path, dtype: str, repeat: str) -> None:
    from snows.export.files import save_onnx
    from snows.runs.inspection import pruned_network

    save_onnx(output, *pruned_network(run))


def _coreml(run: Run, output: Path, dtype: str, repeat: str) -> None:
    from snows.export.coreml import save_coreml
    from snows.runs.inspection import pruned_network

    save_coreml(output, *pruned_network(run))


# --- a folder for the hub ---


def _hub(run: Run, output: Path, dtype: str, repeat: str) -> None:
    from snows.export.card import text
    from snows.runs.inspection import pruned_model
    from snows.sources.checkpoints import EXPORTED

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} is not an empty folder. Name another one, or empty it, so that nothing of yours is lost.")
    model = pruned_model(run)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a folder that lacks its card is not to be found under the name that was asked for.
    scratch = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    try:
        _safetensors(run, scratch / EXPORTED, dtype, repeat)
        _packed(run, scratch / _PACKED, dtype, repeat)
        by_timm = _write_config(model, scratch)
        sizes = f"`{EXPORTED}` has {_file_size(scratch / EXPORTED)}, `{_PACKED}` {_file_size(scratch / _PACKED)}."
        (scratch / _CARD).write_text(text(_card(run, model, by_timm, sizes, repeat)), encoding="utf-8")
        scratch.chmod(0o755)
        if output.exists():
            output.rmdir()
        scratch.rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _file_size(path: Path) -> str:
    return size(path.stat().st_size)


def _write_config(model: "LoadedModel", folder: Path) -> bool:
    """Write `config.json`, and return whether timm opens the folder with it and computes the same, which is tried."""
    from timm.models._hub import save_config_for_hf  # the public one writes the weights too, and refuses tied ones

    if hasattr(model.module, "pretrained_cfg"):
        save_config_for_hf(model.module, str(folder / _CONFIG), model_config={"label_names": list(model.class_names)})
        if _opens_in_timm(model, folder):
            return True
    described = {
        "architecture": model.name,
        "num_classes": len(model.class_names),
        "input_size": model.input_size,
        "preprocessing": model.preprocessing,
        "label_names": model.class_names,
    }
    (folder / _CONFIG).write_text(json.dumps(described, indent=2), encoding="utf-8")
    return False


def _opens_in_timm(model: "LoadedModel", folder: Path) -> bool:
    import timm
    import torch

    images = torch.randn(2, *model.input_size, generator=torch.Generator().manual_seed(0))
    try:
        module: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            return torch.equal(module(images), model.module(images))
    except Exception:  # of a network that was changed after timm had built it, anything at all
        return False


def _card(run: Run, model: "LoadedModel", by_timm: bool, sizes: str, repeat: str) -> Any:
    from snows.export.card import Card
    from snows.sources import data

    config, metrics, log = run.config(), run.metrics() or {}, run.log()
    shown = public(config)
    try:
        images = data.load_configured(config, model)
        digest = hashlib.sha256(images.calibration.contiguous().numpy().tobytes()).hexdigest()
        fingerprint = f"SHA-256 of the {len(images.calibration):,} calibration images, prepared and in order: `{digest}`"
    except InputError:
        fingerprint = "The images were no longer there when this card was written, so they have no fingerprint here."
    labels = "no labels were used to prune" if metrics.get("accuracy") is not None else "there were no labels"
    licence, licence_note = _licence(config, model.module)
    kept = MEASURES["density"].say
    return Card(
        network=config.model + (", weights of one's own" if config.checkpoint else ""),
        method=method_name(shown.prune),
        pattern=str(config.prune.pattern),
        results=[(MEASURES[name].title, said(name, metrics)) for name in _RESULTS if name in metrics],
        layers=[
            (
                event.site,
                "x".join(map(str, log.begun[event.site].shape)) if event.site in log.begun else "",
                kept(event.density),
            )
            for event in log.layers()
        ],
        data=f"{config.num_calibration:,} calibration images of {data_name(config)}, seed {config.prune.seed}; {labels}.",
        fingerprint=fingerprint,
        repeat=" ".join(repeat.splitlines()),
        opens=_opens(config, by_timm),
        limits=_limits(config, metrics),
        licence=licence,
        licence_note=licence_note,
        sizes=sizes,
        versions={name: version(name) for name in _PACKAGES},
        timm=by_timm,
    )


def _opens(config: RunConfig, by_timm: bool) -> str:
    """The lines of Python that open the folder, with the least that has to be installed."""
    if by_timm:
        return 'import timm\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"'
    source, _, name = config.model.rpartition(":")
    read = 'from safetensors.torch import load_file\nmodel.load_state_dict(load_file("FOLDER/model.safetensors"))'
    if source == "torchvision":
        return f'import torchvision\nmodel = torchvision.models.get_model("{name}", weights=None).eval()\n{read}'
    return (
        "from snows.sources import models  # of SNOWS Explorer: neither timm nor torchvision has this network\n"
        f'model = models.load("{config.model}", "FOLDER").module'
    )


def _limits(config: RunConfig, metrics: Mapping[str, float | None]) -> list[str]:
    count = int(metrics.get("num_evaluation") or 0)
    return [
        f"It was measured on {count:,} images like those it was fitted on. Of other images, other conditions and single "
        "classes nothing is known; agreement is with the dense network, mistakes and all.",
        "It is not faster by itself: `model.safetensors` holds every zero, and PyTorch and ONNX Runtime multiply by them. What "
        "is smaller is `packed.safetensors`; it is unpacked as it is read, and takes as much memory then as the dense network.",
        "What the dense network must not be used for, this one must not either.",
    ]


def _licence(config: RunConfig, module: Any) -> tuple[str, str]:
    known = "" if config.checkpoint else getattr(module, "pretrained_cfg", {}).get("license") or ""
    if not known and not config.checkpoint and config.model == "resnet20-fashion":
        known = "mit"
    if known:
        return known, f"The dense network's weights are under `{known}`, as those who published them say, and so are these."
    return "", "That of the dense network's weights; nothing here says which that is. Look it up before you pass this on."


FORMS: dict[str, Form] = {
    "safetensors": Form(".safetensors", "The network's state dict. Removed weights are exactly zero.", _safetensors),
    "packed": Form(
        "-packed.safetensors",
        "The same weights as kept values and the bits that say where they lie; this app reads it as a checkpoint, and the hub "
        "folder's card has a loader of twenty lines for elsewhere.",
        _packed,
    ),
    "onnx": Form(
        ".onnx",
        "The network for ONNX runtimes, with any number of images at once, and smaller where whole units were cut away.",
        _onnx,
    ),
    "coreml": Form(".mlpackage", "The network for Core ML, its weights stored sparse; needs coremltools.", _coreml),
    "hub": Form("-hub", "A folder for the Hugging Face hub: card, config.json, weights, packed weights.", _hub),
}
