"""Which weights may stay: patterns applied to scores, and the proof that a weight obeys its pattern.

Every prunable weight is seen as a matrix of R output features by P inputs. The columns of a convolution are ordered so that the
input channels at one kernel position are neighbours: there, and nowhere else, the groups of an N:M pattern lie, which is the
layout that sparse tensor cores need (Mishra et al., 2021, "Accelerating Sparse Deep Neural Networks"). A mask is bool, True =
kept, and N:M counts the weights kept. Ties between equal scores go to the lower index, so that a mask depends on nothing but
its scores.
"""

import math
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from snows.config import NM, AnyPath, Dense, InputError, LayerPattern, Structured, Unstructured, as_path
from snows.packed import BITS, PackedError, form_of, is_packed, position_bits, read_packed

_INPUTS = {"conv1d": "input channels", "conv2d": "input channels", "conv3d": "input channels", "linear": "input features"}


class MaskError(InputError):
    """A mask file cannot be used; the message says why and what to do."""


def to_matrix(weight: Tensor) -> Tensor:
    """A parameter to its matrix (R, P): linear (R, P) unchanged, convolution (O, I, *kernel) to (O, kernel positions * I)."""
    if weight.ndim == 2:
        return weight
    if not 3 <= weight.ndim <= 5:
        raise ValueError(f"A prunable weight has 2 to 5 dimensions, but this one has shape {tuple(weight.shape)}.")
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def from_matrix(matrix: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The inverse of `to_matrix` for a parameter of `shape`."""
    if len(shape) == 2:
        return matrix.reshape(shape)
    out_channels, in_channels, *kernel = shape
    return matrix.reshape(out_channels, *kernel, in_channels).movedim(-1, 1).contiguous()


def obstacle(shape: tuple[int, ...] | torch.Size, kind: str, pattern: LayerPattern) -> str | None:
    """Why `pattern` cannot be applied to a weight of `shape`, as a sentence with the remedy; None where it can.

    `kind` is `linear` (O, I), or `conv1d`, `conv2d` or `conv3d` (O, I, *kernel).
    """
    if not isinstance(pattern, NM):
        return None
    inputs = shape[1]
    if inputs % pattern.m == 0:
        return None
    divisors = [str(m) for m in range(2, min(inputs, 1024) + 1) if inputs % m == 0]
    choice = f"Choose M from {', '.join(divisors[:8])}{' …' if len(divisors) > 8 else ''}" if divisors else "Use a percentage"
    alternative = ", use a percentage," if divisors else ""
    return (
        f"Keeping {pattern.n} of {pattern.m} needs a number of {_INPUTS[kind]} that {pattern.m} divides, but this layer has "
        f"{inputs}. {choice}{alternative} or leave the layer dense."
    )


def kept_count(size: int, pattern: LayerPattern) -> int:
    """How many of `size` weights of one layer `pattern` keeps: the nearest whole number, at least one."""
    return max(1, round(pattern.density * size))


def packed_bytes(size: int, kept: int, pattern: LayerPattern, width: int) -> int:
    """Bytes of a weight of `size` values of `width` bytes, of which it keeps `kept`, stored as these and their positions.

    N:M stores N values a group and ceil(log2 M) bits for the position of each, the sparse tensor cores' format (Mishra et al.,
    2021), or, where that is less, one bit a weight. Unstructured weights store what they keep and one bit a weight. A weight
    that would grow is stored as it is. `snows.packed` says how.
    """
    match pattern:
        case NM(n=n, m=m):
            values = size // m * n
            bits = size if form_of(pattern) == BITS else values * position_bits(pattern)
            small = values * width + -(-bits // 8)
        case Unstructured():
            small = kept * width + -(-size // 8)
        case _:
            small = size * width
    return min(small, size * width)


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` highest `scores` along the last axis (any shape); the lower index wins a tie."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order[..., :count], True)


def keep_mask(scores: Tensor, pattern: LayerPattern) -> Tensor:
    """The mask (R, P) that keeps the highest `scores` (R, P) under `pattern`.

    N:M keeps exactly N in every group of M consecutive columns; unstructured keeps exactly `kept_count` weights of the layer.
    A global pattern ranks all layers together and needs `keep_masks_global`. Raises `InputError` for scores that are not
    numbers, `ValueError` for a width that M does not divide and for a global pattern.
    """
    _check_scores(scores)
    match pattern:
        case Dense():
            return torch.ones_like(scores, dtype=torch.bool)
        case NM(n=n, m=m):
            rows, columns = scores.shape
            if columns % m:
                raise ValueError(f"Keeping {n} of {m} needs a width that {m} divides, but the scores have {columns} columns.")
            return keep_highest(scores.reshape(rows, columns // m, m), n).reshape(rows, columns)
        case Unstructured(scope="layer"):
            return keep_highest(scores.flatten(), kept_count(scores.numel(), pattern)).view(scores.shape)
    raise ValueError("A global pattern ranks all layers together: give every layer's scores to keep_masks_global.")


def keep_masks_global(scores: dict[str, Tensor], pattern: Unstructured) -> dict[str, Tensor]:
    """Masks that keep the highest scores of all layers together, by name and in the shape of each layer's scores (R, P).

    Of each layer at most the share `layer_cap` is removed: its best weights within that floor stay whatever other layers score,
    and the places left are ranked globally. This is the selection of highest total score under the caps. Exactly
    `kept_count(total)` weights stay, unless the floors, rounded up layer by layer, already add up to more. Ties go to the
    earlier layer, then to the lower index.
    """
    for layer_scores in scores.values():
        _check_scores(layer_scores)
    floors = {name: keep_highest(s.flatten(), _floor(s.numel(), pattern)) for name, s in scores.items()}
    places = kept_count(sum(s.numel() for s in scores.values()), pattern) - sum(int(f.sum()) for f in floors.values())
    if places <= 0:
        return {name: floors[name].view(s.shape) for name, s in scores.items()}
    open_scores = torch.cat([s.flatten()[~floors[name]] for name, s in scores.items()])
    chosen = keep_highest(open_scores, places).split([int((~floor).sum()) for floor in floors.values()])
    return {
        name: floors[name].masked_scatter(~floors[name], extra).view(s.shape)
        for (name, s), extra in zip(scores.items(), chosen, strict=True)
    }


def _floor(size: int, pattern: Unstructured) -> int:
    # The small addend undoes the rounding of a product such as 0.29 * 100, which floating point puts just below 29.
    return max(1, size - math.floor(pattern.layer_cap * size + 1e-9))


def _check_scores(scores: Tensor) -> None:
    if scores.isnan().any():
        raise InputError(
            f"{int(scores.isnan().sum())} of {scores.numel()} scores are not numbers (NaN), so they cannot be ranked. "
            "Check the layer's weight and the calibration images for NaN."
        )


@dataclass(frozen=True)
class Compliance:
    """Whether a weight obeys its pattern.

    `density` is the share of weights that are not zero. For N:M, `worst_group` is the (row, first column) of the fullest group
    in the matrix of `to_matrix`, and `worst_kept` how many weights it keeps.
    """

    ok: bool
    message: str
    density: float
    worst_group: tuple[int, int] | None = None
    worst_kept: int | None = None


def check_compliance(tensor: Tensor, pattern: LayerPattern) -> Compliance:
    """Prove from the zeros of a weight or mask that it obeys `pattern`.

    `tensor` is a parameter or its matrix (R, P), of numbers or bool. A weight may hold more zeros than its pattern asks for
    (a kept weight can be zero by value), never fewer. A single layer under a global pattern can only break its cap, which a
    mask shows and a weight does not; `check_compliance_global` proves the total.
    """
    kept = to_matrix(tensor) != 0
    count, size = int(kept.sum()), kept.numel()
    density = count / size
    match pattern:
        case Dense():
            return Compliance(True, "The layer is meant to be dense.", density)
        case NM(n=n, m=m):
            # A parameter's own input axis counts here: M may divide kh * kw * I without dividing I.
            inputs = tensor.shape[1]
            if inputs % m:
                return Compliance(False, f"{m} does not divide the {inputs} inputs: {pattern} is undefined here.", density)
            per_group = kept.reshape(kept.shape[0], -1, m).sum(2)
            position = int(per_group.argmax())
            row, group = divmod(position, per_group.shape[1])
            worst = int(per_group.flatten()[position])
            message = (
                f"Every group of {m} keeps at most {n}."
                if worst <= n
                else f"{int((per_group > n).sum())} of {per_group.numel()} groups keep more than {n} of {m}; the group at row "
                f"{row}, columns {group * m} to {group * m + m - 1}, keeps {worst}."
            )
            return Compliance(worst <= n, message, density, (row, group * m), worst)
        case Structured():
            rows, columns = kept.any(1), kept.any(0)
            inside = kept[rows][:, columns]
            whole = bool(inside.all()) or tensor.dtype != torch.bool  # a kept weight can be zero by value
            message = (
                f"{int(rows.sum())} of {len(rows)} outputs and {int(columns.sum())} of {len(columns)} inputs are kept whole."
            )
            return Compliance(whole and inside.numel() < size, message, density)
        case Unstructured(scope="layer"):
            allowed = kept_count(size, pattern)
            return Compliance(count <= allowed, f"{count} of {size} weights are kept, {allowed} are allowed.", density)
    floor = _floor(size, pattern)
    ok = tensor.dtype != torch.bool or count >= floor
    return Compliance(ok, f"{count} of {size} weights are kept, the cap asks for at least {floor}.", density)


def check_compliance_global(tensors: dict[str, Tensor], pattern: Unstructured) -> Compliance:
    """Prove that all layers' weights or masks together keep no more than a global `pattern` allows, and each within its cap."""
    sizes = [t.numel() for t in tensors.values()]
    count = sum(int((t != 0).sum()) for t in tensors.values())
    density = count / sum(sizes)
    for name, tensor in tensors.items():
        layer = check_compliance(tensor, pattern)
        if not layer.ok:
            return Compliance(False, f"{name}: {layer.message}", density)
    allowed = max(kept_count(sum(sizes), pattern), sum(_floor(size, pattern) for size in sizes))
    return Compliance(count <= allowed, f"{count} of {sum(sizes)} weights are kept, {allowed} are allowed.", density)


def semi_structured_shape_obstacle(shape: tuple[int, ...]) -> str | None:
    """Why PyTorch's 2:4 kernels cannot run a weight of that shape on any device, as a sentence; None where they can."""
    if len(shape) != 2:
        return f"The kernels multiply matrices, and this weight has shape {shape}; convolutions stay dense."
    rows, columns = shape
    if rows % 32 or columns % 64:
        return f"The kernels need a multiple of 32 outputs and of 64 inputs, and this weight has {rows} and {columns}."
    return None


def read_mask_file(path: AnyPath) -> dict[str, Tensor]:
    """Masks by parameter name, in the parameters' shapes, from a `.safetensors` file.

    A file with bool tensors is a saved mask and gives those. Any other is a pruned checkpoint, packed or not: the zeros of each
    weight with two or more dimensions are its mask. Raises `MaskError` for a file that is missing, damaged or removes no
    weight.
    """
    path = as_path(path)
    try:
        tensors = read_packed(path) if is_packed(path) else load_file(path)
    except FileNotFoundError:
        raise MaskError(f"There is no mask file {path}. Check the path.") from None
    except PackedError as error:
        raise MaskError(str(error)) from error
    except (SafetensorError, OSError) as error:
        raise MaskError(
            f"{path} cannot be read as a safetensors file ({error}). It may be cut short or of another format: save it again."
        ) from error
    masks = {name: t for name, t in tensors.items() if t.dtype == torch.bool}
    if not masks:
        masks = {name: t != 0 for name, t in tensors.items() if t.ndim >= 2 and t.is_floating_point()}
    if all(bool(mask.all()) for mask in masks.values()):
        raise MaskError(
            f"{path} removes no weight: it holds no mask, or a checkpoint without zeros. "
            "Choose a saved mask or a pruned checkpoint."
        )
    return masks
