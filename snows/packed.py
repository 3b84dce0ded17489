"""Packed files: a safetensors file in which a weight with zeros is its other values and where they lie.

    NAME            a tensor as it is
    NAME/values     the values of a packed weight that are stored, in order, 1-dimensional
    NAME/places     where they lie, as bits, the lowest of a byte first (uint8), in one of two forms:
                    `bits`: a bit a weight, set where its value is stored
                    `N:M`:  N positions a group of M weights, in ascending order, of ceil(log2 M) bits each, the lowest first

The order is that in which input channels run fastest: of a weight (O, I, kh, kw) that of (O, kh, kw, I), of a matrix its own.
So groups of N:M lie side by side (`method.sparsity`). The metadata hold `packed_version` and `packed`: as JSON, by name, each
packed weight's `shape` and `form`. `export.packed` writes such files, and has a loader of a few lines for elsewhere.

A file may come from anybody: what it claims is compared with what it holds before anything is unpacked.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from snows.config import NM, InputError, parse_pattern

VERSION = "1"
BITS = "bits"
VALUES, PLACES = "/values", "/places"
_FLOATS = ("F64", "F32", "F16", "BF16")
_DAMAGED = "It is damaged, or was not written here: export the run again."
_MOST_LAYERS = 100_000


class PackedError(InputError):
    """A packed file that cannot be read; the message says why and what to do."""


def form_of(pattern: NM) -> str:
    """How a weight of an N:M pattern is packed: by positions, where these take fewer bits than one a weight."""
    return str(pattern) if pattern.n * position_bits(pattern) < pattern.m else BITS


def position_bits(pattern: NM) -> int:
    """The bits of one position in a group."""
    return (pattern.m - 1).bit_length()


def in_order(weight: Tensor) -> Tensor:
    """A weight of two or more dimensions with its input channels last."""
    return weight.movedim(1, -1)


def pack_bits(bits: Tensor) -> Tensor:
    """Bits, of any shape and 0 or 1 each, as bytes (uint8), the last one filled with zeros."""
    return torch.from_numpy(np.packbits(bits.flatten().numpy(), bitorder="little"))


def is_packed(path: Path) -> bool:
    """Whether a file says that it is packed. Raises what the library does for one that is not safetensors."""
    with safe_open(path, "pt") as file:
        return "packed_version" in (file.metadata() or {})


def read_packed(path: Path, most_values: int | None = None) -> dict[str, Tensor]:
    """Every tensor of a packed file by name, unpacked.

    `most_values`: how many values the unpacked weights may have together; without it 256 for each byte of the file, which 1:256
    in half precision stays below. Raises `PackedError`.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            headers = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            weights = _weights(path, metadata, headers, most_values or 256 * path.stat().st_size + 2**20)
            parts = {name + end for name in weights for end in (VALUES, PLACES)}
            state = {name: file.get_tensor(name) for name in headers if name not in parts}
            for name, (shape, pattern) in weights.items():
                values, places = file.get_tensor(name + VALUES), file.get_tensor(name + PLACES)
                state[name] = _unpacked(path, name, shape, pattern, values, places)
            return state
    except (SafetensorError, OSError) as error:
        raise PackedError(f"{path} cannot be read as a safetensors file ({error}). {_DAMAGED}") from error


def _weights(
    path: Path, metadata: Mapping[str, str], headers: Mapping[str, Any], most_values: int
) -> dict[str, tuple[tuple[int, ...], NM | None]]:
    """The shape of each packed weight and its pattern, None for a bit a weight, all of them in accord with what is stored."""
    version = metadata.get("packed_version")
    if version != VERSION:
        raise PackedError(
            f"{path} is packed in form {str(version)[:20]!r}, and this version reads {VERSION}. Unpack it where it was made."
        )
    try:
        said = json.loads(metadata["packed"])
    except (KeyError, ValueError, RecursionError):
        raise PackedError(f"{path} does not say which weights are packed. {_DAMAGED}") from None
    if not isinstance(said, dict) or len(said) > _MOST_LAYERS:
        raise PackedError(f"{path} does not say which weights are packed. {_DAMAGED}")
    weights: dict[str, tuple[tuple[int, ...], NM | None]] = {}
    total = 0
    for name, entry in said.items():
        if name in headers or any(name + end not in headers for end in (VALUES, PLACES)):
            raise PackedError(f"{path} lacks a part of {name[:80]!r}, or holds it twice. {_DAMAGED}")
        shape, pattern = _said(path, name, entry)
        total += math.prod(shape)
        if total > most_values:
            raise PackedError(
                f"{path} claims weights of {total:,} values or more, far more than such a file holds here "
                f"({most_values:,}). It is damaged, or was made for another network."
            )
        stored = math.prod(shape) // pattern.m * pattern.n if pattern else None
        num_bits = stored * position_bits(pattern) if pattern and stored is not None else math.prod(shape)
        values, places = headers[name + VALUES], headers[name + PLACES]
        if (
            values.get_dtype() not in _FLOATS
            or places.get_dtype() != "U8"
            or len(values.get_shape()) != 1
            or places.get_shape() != [-(-num_bits // 8)]
            or (stored is not None and values.get_shape() != [stored])
        ):
            raise PackedError(f"{path}: what is stored of {name[:80]!r} is not of the size that its shape asks for. {_DAMAGED}")
        weights[name] = shape, pattern
    return weights


def _said(path: Path, name: str, entry: object) -> tuple[tuple[int, ...], NM | None]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    form = entry.get("form") if isinstance(entry, dict) else None
    if (
        not isinstance(shape, list)
        or not 2 <= len(shape) <= 8
        or not all(type(edge) is int and 0 < edge < 2**40 for edge in shape)
    ):
        raise PackedError(f"{path} gives {name[:80]!r} no shape that a weight can have. {_DAMAGED}")
    if form == BITS:
        return tuple(shape), None
    try:
        pattern = parse_pattern(str(form)[:20])
    except ValueError:
        pattern = None
    if not isinstance(pattern, NM) or shape[1] % pattern.m:
        raise PackedError(f"{path} packs {name[:80]!r} in a form that does not fit its shape: {str(form)[:20]!r}. {_DAMAGED}")
    return tuple(shape), pattern


def _unpacked(path: Path, name: str, shape: tuple[int, ...], pattern: NM | None, values: Tensor, places: Tensor) -> Tensor:
    size = math.prod(shape)
    bits = np.unpackbits(places.numpy(), bitorder="little")
    flat = values.new_zeros(size)
    if pattern is None:
        kept = torch.from_numpy(bits[:size]).bool()
        if int(kept.sum()) != len(values):
            raise PackedError(
                f"{path} holds {len(values):,} values of {name[:80]!r} for {int(kept.sum()):,} places. {_DAMAGED}"
            )
        flat[kept] = values
    else:
        width = position_bits(pattern)
        at = torch.from_numpy(bits[: len(values) * width].reshape(-1, pattern.n, width) @ (1 << np.arange(width)))
        if bool((at >= pattern.m).any()) or bool((at.diff(dim=1) <= 0).any()):
            raise PackedError(f"{path}: positions of {name[:80]!r} lie outside their groups, or come twice. {_DAMAGED}")
        flat.view(-1, pattern.m).scatter_(1, at, values.view(-1, pattern.n))
    outputs, inputs, *kernel = shape
    return flat.view(outputs, *kernel, inputs).movedim(-1, 1).contiguous()
