"""A pruned network in a file that is smaller by its bits, and a loader for it that needs nothing of ours. `snows.packed` has
the format."""

import json
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from snows.config import NM, AnyPath
from snows.export.files import ArtifactError, save_weights
from snows.method.sparsity import keep_highest
from snows.packed import BITS, PLACES, VALUES, VERSION, form_of, in_order, pack_bits, position_bits

# For whoever has torch and safetensors alone. It is printed in a network's card, and a test runs it from there.
LOADER = """\
import json, torch
from safetensors import safe_open

def load_packed(path):
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
        packed = json.loads(file.metadata()["packed"])
    for name, entry in packed.items():
        values, places = state.pop(name + "/values"), state.pop(name + "/places")
        bits = ((places[:, None] >> torch.arange(8)) & 1).flatten()
        outputs, inputs, *kernel = entry["shape"]
        weight = torch.zeros(outputs, *kernel, inputs, dtype=values.dtype)
        if entry["form"] == "bits":  # a bit a weight: is its value stored?
            weight.view(-1)[bits[: weight.numel()].bool()] = values
        else:  # n positions in each group of m
            n, m = map(int, entry["form"].split(":"))
            places = bits[: len(values) * (width := (m - 1).bit_length())].view(-1, n, width)
            weight.view(-1, m).scatter_(1, (places.long() << torch.arange(width)).sum(2), values.view(-1, n))
        state[name] = weight.movedim(-1, 1).contiguous()
    return state
"""


def pack(
    state: Mapping[str, Tensor], patterns: Collection[NM] = (), dtype: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a packed file.

    Every weight (of two or more dimensions, and of floating point) is stored in the smallest form that its zeros allow: as it
    is, with a bit a weight, or as groups of one of the N:M `patterns`. `dtype`: what these are stored in, None as they are.
    Vectors (biases, norms and their statistics) stay as they are: they are few, and their range is what half precision lacks.

    Raises `ArtifactError` for a value that `dtype` cannot hold, and for two tensors that would have one name.
    """
    tensors: dict[str, Tensor] = {}
    packed: dict[str, dict[str, object]] = {}
    for name, tensor in state.items():
        whole = tensor.detach().cpu()
        parts = {name: whole}
        if whole.is_floating_point() and whole.ndim >= 2 and whole.numel():
            whole = _converted(name, whole, dtype)
            parts = {name: whole}
            for form, values, places in _forms(whole, patterns):
                if _bytes(values) + _bytes(places) < sum(map(_bytes, parts.values())):
                    parts = {name + VALUES: values, name + PLACES: places}
                    packed[name] = {"shape": list(whole.shape), "form": form}
        if taken := next((part for part in parts if part in tensors or (part != name and part in state)), None):
            raise ArtifactError(
                f"Two tensors would be called {taken} in a packed file. Save the weights as safetensors instead."
            )
        tensors |= parts
    return tensors, {"packed_version": VERSION, "packed": json.dumps(packed)}


def save_packed(
    path: AnyPath,
    state: Mapping[str, Tensor],
    patterns: Collection[NM] = (),
    dtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a state dict packed, see `pack`, with free text `metadata` (the pattern, and the run's config as JSON)."""
    tensors, layout = pack(state, patterns, dtype)
    save_weights(path, tensors, {**(metadata or {}), **layout})


def _forms(weight: Tensor, patterns: Collection[NM]) -> list[tuple[str, Tensor, Tensor]]:
    """What a weight can be packed as: the form, the values, and their places as bytes."""
    ordered = in_order(weight).flatten()
    stored = ordered != 0  # NaN is no zero, so it is kept
    forms = [(BITS, ordered[stored], pack_bits(stored))]
    for pattern in {p for p in patterns if weight.shape[1] % p.m == 0 and form_of(p) != BITS}:
        groups = stored.view(-1, pattern.m)
        if int(groups.sum(1).max()) > pattern.n:
            continue
        # A group with more zeros than its pattern asks for stores some of them.
        at = keep_highest(groups.byte(), pattern.n).nonzero()[:, 1]
        bits = (at[:, None] >> torch.arange(position_bits(pattern))) & 1
        values = ordered.view(-1, pattern.m).gather(1, at.view(-1, pattern.n)).flatten()
        forms.append((str(pattern), values, pack_bits(bits)))
    return forms


def _converted(name: str, weight: Tensor, dtype: str | None) -> Tensor:
    if dtype is None:
        return weight
    converted = weight.to(getattr(torch, dtype))
    if not torch.equal(torch.isfinite(converted), torch.isfinite(weight)):
        raise ArtifactError(
            f"{name} has values up to {float(weight.abs().max()):.3g}, which {dtype} cannot hold. Choose bfloat16 or float32."
        )
    return converted


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
