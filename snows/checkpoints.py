"""State dicts of one's own: read without running anything in them, compared with the network, and refused with the reason.

A checkpoint is untrusted: only tensors are read from it, its size and every shape are compared with the network before a value
is loaded, and a NaN is refused.
"""

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from snows.config import InputError

# Batch norm's count of training steps; evaluation never reads it and exporters drop it.
_COUNTER = "num_batches_tracked"


class CheckpointError(InputError):
    """A checkpoint file that cannot be used, and why.

    `mismatches`: where it does not fit the network, each tensor's name, what the file has and what the network has ("-": none);
    `reason`: why that is likely so, the end of the message.
    """

    def __init__(self, message: str, mismatches: Sequence[tuple[str, str, str]] = (), reason: str = "") -> None:
        super().__init__(f"{message} {reason}".rstrip())
        self.mismatches, self.reason = tuple(mismatches), reason


def read(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict by the network's names, memory-mapped: no value is read yet, so that shapes can be compared
    first."""
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file {path}.")
    # A training checkpoint holds optimizer moments and averages too: several times the network, never a hundred times.
    own = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    size, limit = path.stat().st_size, 8 * own + 2**26
    if size > limit:
        raise CheckpointError(
            f"{path} has {size / 1e6:,.0f} MB, far more than this network's {own / 1e6:,.0f} MB, so it was made for "
            "another network."
        )
    try:
        if path.suffix == ".safetensors":
            return _unwrap(dict(load_file(path)), module, path)
        if path.suffix not in (".pt", ".pth", ".bin"):
            raise CheckpointError(
                f"{path} is neither .safetensors nor a state dict (.pt, .pth, .bin). Save it as one of these."
            )
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                # torch never compresses; a compressed entry could grow without bound.
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise CheckpointError(f"{path} is compressed, which torch.save never does. Save it with torch.save.")
        return _unwrap(torch.load(path, map_location="cpu", weights_only=True, mmap=zipped), module, path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors (code, or a whole pickled network), which is not safe to load. Save "
            "the state dict alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except Exception as error:  # a damaged file makes the readers raise anything at all
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint; it is damaged or not one at all ({type(error).__name__})."
        ) from error


def _unwrap(content: object, module: nn.Module, path: Path) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f"{path} holds no state dict (names with tensors). Save one with torch.save(model.state_dict(), FILE)."
        )
    # DistributedDataParallel puts `module.` before every name, Lightning `model.`, others what they please.
    own = list(module.state_dict())
    for prefix in sorted({name.removesuffix(own[0]) for name in content if name.endswith("." + own[0])}):
        if all(prefix + name in content for name in own if not name.endswith(_COUNTER)) and prefix:
            return {name.removeprefix(prefix): value for name, value in content.items()}
    for prefix in ("module.", "model."):
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def other_num_classes(module: nn.Module, state: dict[str, Tensor]) -> int | None:
    """The rows of the checkpoint's classifier, where they alone differ from the network's."""
    weights = {name: value for name, value in module.state_dict().items() if name.endswith(".weight") and value.ndim >= 2}
    classifier = list(weights)[-1]
    own, given = weights[classifier], state.get(classifier)
    if given is None or given.shape[1:] != own.shape[1:] or given.shape == own.shape:
        return None
    return len(given)


def load_into(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Give `module` the values of `state`, read from `path`. Raises `CheckpointError` where they do not fit."""
    compare(module.state_dict(), state, path)
    module.load_state_dict(state, strict=False)
    refuse_nonfinite(module, str(path))


def compare(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError`, with what differs and the likely reason, unless `state` has every tensor in its shape."""
    missing = [name for name in own if name not in state and not name.endswith(_COUNTER)]
    unexpected = [name for name in state if name not in own]
    wrong = [name for name in own if name in state and _kind(state[name]) != _kind(own[name])]
    shapes = [f"{name} is {_kind(state[name])} instead of {_kind(own[name])}" for name in wrong]
    problems = [
        f"{len(found)} {label} ({_first(found)})"
        for label, found in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", shapes))
        if found
    ]
    if problems:
        rows = [(name, "-", _kind(own[name])) for name in missing]
        rows += [(name, _kind(state[name]), "-") for name in unexpected]
        rows += [(name, _kind(state[name]), _kind(own[name])) for name in wrong]
        raise CheckpointError(
            f"{path} does not fit this network of {len(own)} tensors: {'; '.join(problems)}.",
            rows,
            _likely_reason(own, state, missing, unexpected, wrong),
        )


def _likely_reason(
    own: dict[str, Tensor], state: dict[str, Tensor], missing: list[str], unexpected: list[str], wrong: list[str]
) -> str:
    if not own.keys() & state.keys():
        return (
            "They have no name in common: it is another kind of network, or comes from another library; timm and torchvision "
            "name the same layers differently, so try the other one's."
        )
    if not unexpected and not wrong and len(missing) <= 2:
        return "All the rest fits: it seems to be saved without its last part, such as the classifier. Save the whole network."
    if not missing and not wrong:
        return "All of the network is in it, with more besides: a network with additional parts. Save only this one's."
    if not missing and wrong and all("pos_embed" in name or "position" in name for name in wrong):
        return "Only the positions differ: it was made for another image size. Choose the model of that size."
    if not missing and len(wrong) == 1 and (given := state[wrong[0]]).ndim == 4 and given.shape[1] != own[wrong[0]].shape[1]:
        return f"It takes images of {given.shape[1]} channels. Choose the model that does."
    return "Choose the model that the checkpoint was made for."


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}" + ("" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", ""))


def _first(items: Sequence[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (", …" if len(items) > count else "")


def refuse_nonfinite(module: nn.Module, origin: str) -> None:
    """Raise `CheckpointError` where a weight is not a number. `origin`: where the weights come from, in words."""
    for name, value in module.state_dict().items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            kind = "NaN" if bool(torch.isnan(value).any()) else "an infinite value"
            raise CheckpointError(
                f"{origin}: the weight {name} holds {kind} ({bad:,} of {value.numel():,} values), so every output would be "
                "invalid. Use a checkpoint from before the training diverged."
            )
