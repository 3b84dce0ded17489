"""A pruned network in formats for elsewhere: safetensors, mask files, ONNX, 2:4 semi-structured weights for NVIDIA GPUs.

Files are written beside their place and renamed, so that a half-written file never carries the name that was asked for. What
cannot be written, read or converted raises `ArtifactError` or comes back by name with its reason; nothing is left out silently.
"""

import copy
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from snows.config import NM, AnyPath, InputError, as_path, first_line
from snows.method.sparsity import check_compliance, semi_structured_shape_obstacle
from snows.method.tracing import evaluating, exporting

_TWO_OF_FOUR = NM(n=2, m=4)


class ArtifactError(InputError):
    """A file cannot be written or read; the message says which, why and what to do."""


# --- safetensors ---


def save_weights(path: AnyPath, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict, on any device, with free text `metadata` (for instance the pattern and the run's config as JSON)."""
    # A copy each: safetensors refuses two names for one storage, which is what tied weights are.
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    _replace(as_path(path), lambda scratch: save_file(tensors, scratch, {"format": "pt", **(metadata or {})}))


def load_weights(path: AnyPath) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata that `save_weights` wrote. Raises `ArtifactError` for a missing or damaged file."""
    path = as_path(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ArtifactError(f"There is no file {path}. Check the path.") from None
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a safetensors file ({error}). It may be cut short or of another format: save it again."
        ) from error


def save_masks(path: AnyPath, masks: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write bool masks (True = kept) by parameter name; `sparsity.read_mask_file` reads them, as does the setting `mask`.

    Raises `ArtifactError` for a tensor that is not bool.
    """
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ArtifactError(f"The mask {name} must be bool, but is {mask.dtype}. For a weight's zeros, give `weight != 0`.")
    save_weights(path, masks, metadata)


# --- ONNX ---


def save_onnx(path: AnyPath, module: nn.Module, example: Tensor) -> None:
    """Write `module` in eval mode as one ONNX file with a free batch size; input `images`, output `logits`.

    `example` (B, C, H, W) gives shape and dtype. Removed weights are stored as zeros: ONNX has no sparse layout that runtimes
    use. Raises `ArtifactError` where packages are missing or the network cannot be translated.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ArtifactError(
            f"ONNX export needs the package {error.name}, which is not installed. Run: pip install onnx onnxscript"
        ) from error
    if example.shape[0] < 2:
        example = torch.cat([example, example])  # a batch of one would be taken for a constant
    try:
        with exporting(), torch.no_grad(), evaluating(module):
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            )
    except Exception as error:  # the exporter raises dozens of unrelated types, from any layer
        raise ArtifactError(
            f"The network cannot be translated to ONNX ({first_line(error)}). Save its weights as safetensors instead."
        ) from error
    assert program is not None  # only the old exporter returns None
    _replace(as_path(path), lambda scratch: program.save(scratch, external_data=False))


# --- semi-structured ---


def semi_structured_obstacle(weight: Tensor) -> str | None:
    """Why PyTorch's 2:4 kernels cannot run a linear `weight` (R, P) where and as it is, as a sentence; None where they can.

    They need at most 2 of 4 weights kept along the input axis, half precision, R a multiple of 32 and P of 64 (the stricter of
    the two backends of `torch.sparse.to_sparse_semi_structured`), and a GPU of compute capability 8.0 or later.
    """
    shape = semi_structured_shape_obstacle(tuple(weight.shape))
    if weight.ndim != 2:
        return shape
    if not (verdict := check_compliance(weight, _TWO_OF_FOUR)).ok:
        return f"The weight is not 2:4: {verdict.message} Prune it with the pattern 2:4."
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return (
            f"The kernels need half precision, and this weight is {weight.dtype}. Convert the network to bfloat16 or float16."
        )
    if shape is not None:
        return shape
    if weight.device.type != "cuda" or torch.version.hip is not None:
        return f"The kernels exist for NVIDIA GPUs only, and this weight is on {weight.device}. Move the network to cuda."
    major, minor = torch.cuda.get_device_capability(weight.device)
    if major < 8:
        return f"The kernels need compute capability 8.0 (Ampere) or later, and this GPU has {major}.{minor}."
    return None


def to_semi_structured(module: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """A copy of `module` whose linear layers run on 2:4 kernels where they can, and by weight name why the others do not."""
    result = copy.deepcopy(module)
    reasons = {}
    for name, weight in list(result.named_parameters(remove_duplicate=False)):
        if weight.ndim < 2:
            continue
        path, _, leaf = name.rpartition(".")
        owner = result.get_submodule(path)
        reason = semi_structured_obstacle(weight)
        if reason is None and not (isinstance(owner, nn.Linear) and leaf == "weight"):
            reason = "The kernels serve linear layers, and this weight belongs to another kind of module."
        if reason is not None:
            reasons[name] = reason
        else:
            owner.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(weight.detach()), requires_grad=False)
    return result, reasons


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        write(scratch)
        scratch.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(
            f"Could not write {path}: {reason}. Choose a folder that exists and can be written, with space left."
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
