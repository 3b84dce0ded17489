"""The layer's own inputs as rows, their statistics, and the small systems of each output row that they make."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from snows.config import InputError
from snows.method.graph import Site
from snows.method.operations import every_stride
from snows.method.sparsity import from_matrix, to_matrix


class ReconstructionError(InputError):
    """The objective cannot be evaluated; the message says why and what to do."""


# --- the layer's own inputs ---


def input_rows(site: Site, x: Tensor) -> Tensor:
    """The inputs that one output value of the layer is a dot product with: (N, P), columns in the order of `to_matrix`.

    For a convolution these are its receptive fields: N = batch x output positions, P = kernel positions x input channels.
    """
    if site.kind == "linear":
        return x.reshape(-1, x.shape[-1])
    kernel = site.shape[2:]
    stride, padding, dilation = _convolution_geometry(site)
    x = F.pad(x.movedim(1, -1), (0, 0, *_to_pad(padding)))
    sizes = [size - far * (k - 1) for size, k, far in zip(x.shape[1:-1], kernel, dilation, strict=True)]
    positions = []
    for place in itertools.product(*map(range, kernel)):
        first = [far * at for far, at in zip(dilation, place, strict=True)]
        along = (slice(start, start + size, step) for start, size, step in zip(first, sizes, stride, strict=True))
        positions.append(x[(slice(None), *along)])
    last = x.ndim - 2
    return torch.cat(positions, -1).flatten(0, last) if len(positions) > 1 else positions[0].flatten(0, last)


def _along(value: Any, axes: int) -> tuple[int, ...]:
    """One number a spatial axis, of which one may stand for all."""
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values if len(values) == axes else values * axes)


def _convolution_geometry(site: Site) -> tuple[tuple[int, ...], list[tuple[int, int]], tuple[int, ...]]:
    """Along each spatial axis: the stride, how much is padded before and after, and the dilation."""
    # conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1), and the others alike
    given: Sequence[Any] = site.node.args[3:]
    args, kernel = [*given, *[1, 0, 1][len(given) :]], site.shape[2:]
    stride, dilation = _along(args[0], len(kernel)), _along(args[2], len(kernel))
    if args[1] == "same":  # one more on the far side where the total is odd, as PyTorch does
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return stride, [(t // 2, t - t // 2) for t in total], dilation
    return stride, [(p, p) for p in _along(0 if args[1] == "valid" else args[1], len(kernel))], dilation


def _to_pad(padding: Sequence[tuple[int, int]]) -> list[int]:
    """As `F.pad` wants it: the last axis first."""
    return [width for before_and_after in reversed(padding) for width in before_and_after]


def rows_of_output(site: Site, y: Tensor) -> Tensor:
    """The layer's output as (N, R), rows in the order of `input_rows`."""
    return y.reshape(-1, y.shape[-1]) if site.kind == "linear" else y.movedim(1, -1).flatten(0, -2)


# By the number of spatial axes.
_WEIGHT_GRADIENTS = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}
# What a core's cache holds: a matrix product of rows that are still there is a quarter faster.
_CHUNK_BYTES = 2**20
# A Gram matrix is symmetric: computed in so many bands, each from its diagonal on, it takes 5/8 of the multiplications.
_BANDS = 4


def input_gram(site: Site, inputs: Sequence[Tensor], device: torch.device) -> Tensor:
    """Mean of x xᵀ over the layer's inputs x: (P, P)."""
    inner = math.prod(site.shape[1:])
    gram, count = torch.zeros(inner, inner, dtype=inputs[0].dtype, device=device), 0
    width = -(-inner // _BANDS)
    for rows in _some_rows(site, inputs, device):
        for start in range(0, inner, width):
            gram[start : start + width, start:].addmm_(rows[:, start : start + width].T, rows[:, start:])
        count += len(rows)
    return (gram.triu() + gram.triu(1).T) / count


def input_mean(site: Site, inputs: Sequence[Tensor], device: torch.device) -> Tensor:
    """Mean of the layer's inputs x: (P,), in float64."""
    total, count = torch.zeros(math.prod(site.shape[1:]), dtype=torch.float64, device=device), 0
    for rows in _some_rows(site, inputs, device):
        total += rows.sum(0, dtype=torch.float64)
        count += len(rows)
    return total / count


def _some_rows(site: Site, inputs: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The layer's inputs (n, P), so many at a time as a core's cache holds where copies are made of them."""
    copies = 1 if site.kind == "linear" else math.prod(site.shape[2:])
    for x in inputs:
        few = max(1, _CHUNK_BYTES // (copies * x[0].numel() * x.element_size()))
        for part in x.split(few) if copies > 1 and device.type == "cpu" else (x,):
            yield input_rows(site, part.to(device))


def _weight_gradient(
    x: Tensor, shape: Sequence[int], y: Tensor, stride: Sequence[int] = (1, 1), dilation: Sequence[int] = (1, 1)
) -> Tensor:
    """Sum over output positions of y rᵀ with the receptive field r in `x`, unpadded: `shape` (R, C, *kernel)."""
    kernel = shape[2:]
    if math.prod(kernel) == 1:  # as windows run it, and for the same reason: see `operations._convolution`
        x, stride = every_stride(x, stride), [1] * len(kernel)
    return _WEIGHT_GRADIENTS[len(kernel)](x, list(shape), y, stride=tuple(stride), dilation=tuple(dilation))


def input_output_cross(
    site: Site, inputs: Sequence[Tensor], outputs: Iterable[Tensor], bias: Tensor | None, device: torch.device
) -> Tensor:
    """Mean of (y - bias) xᵀ over inputs x and the outputs y to reproduce: (R, P)."""
    cross, count = None, 0
    for x, y in zip(inputs, outputs, strict=True):
        x, y = x.to(device), y.to(device)
        if bias is not None:
            y = y - (bias if site.kind == "linear" else bias.view(-1, *[1] * (y.ndim - 2)))
        if site.kind == "linear" or device.type != "cpu":
            # On a GPU convolutions too: cuDNN's may round their factors to TF32, and sums that are solved with need all digits.
            part = rows_of_output(site, y).T @ input_rows(site, x)
        else:
            stride, padding, dilation = _convolution_geometry(site)
            part = to_matrix(_weight_gradient(F.pad(x, _to_pad(padding)), site.shape, y, stride, dilation))
        cross = part if cross is None else cross.add_(part)
        count += y.numel() // site.shape[0]
    assert cross is not None
    return cross / count


# --- per-row factors ---

# Bytes of row blocks that are factored at once.
AT_ONCE = 2**26


@dataclass(frozen=True)
class _Group:
    rows: Tensor  # (r,) row numbers
    slots: Tensor  # (r, S) places in the kept vector; n where the row has fewer than S kept weights
    columns: Tensor  # (r, S) input columns of those weights; 0 in empty slots
    empty: Tensor  # (r, S) bool


class KeptWeights:
    """Addresses of the kept weights of one mask: between the flat vector (n,), the matrix (R, P) and padded rows (r, S)."""

    def __init__(self, mask: Tensor, shape: Sequence[int]) -> None:
        self.shape, self.matrix_shape = tuple(shape), tuple(mask.shape)
        self.places = mask.flatten().nonzero().squeeze(1)
        self.count = len(self.places)

    def expand(self, kept: Tensor) -> Tensor:
        """(n,) to a weight of the parameter's shape, exactly zero where the mask prunes."""
        flat = kept.new_zeros(self.matrix_shape[0] * self.matrix_shape[1])
        flat[self.places] = kept
        return from_matrix(flat.view(self.matrix_shape), self.shape)

    def restrict(self, weight: Tensor) -> Tensor:
        """A weight (or gradient) of the parameter's shape to its kept values (n,)."""
        return to_matrix(weight).flatten()[self.places]

    def row_sums(self, kept: Tensor) -> Tensor:
        """(n,) summed row by row, in float64: (R,)."""
        rows = self.places // self.matrix_shape[1]
        return kept.new_zeros(self.matrix_shape[0], dtype=torch.float64).index_add_(0, rows, kept.double())

    @cached_property
    def row_counts(self) -> Tensor:
        """How many weights each row keeps: (R,)."""
        return torch.bincount(self.places // self.matrix_shape[1], minlength=self.matrix_shape[0])

    def groups(self, bytes_per_value: int, limit: int = AT_ONCE) -> list[_Group]:
        """Rows with like numbers of kept weights, so that little of each padded block (r, S, S) is padding."""
        width = self.matrix_shape[1]
        counts = self.row_counts
        starts = counts.cumsum(0) - counts
        order = counts.argsort(descending=True, stable=True)
        order = order[counts[order] > 0]
        groups, begin = [], 0
        sizes = counts[order].tolist()
        while begin < len(order):
            size = sizes[begin]
            most = max(1, limit // (size * size * bytes_per_value))
            end = begin + 1
            while end < len(order) and end - begin < most and sizes[end] >= 0.8 * size:
                end += 1
            chosen = order[begin:end]
            lane = torch.arange(size, device=chosen.device)
            empty = lane >= counts[chosen, None]
            slots = torch.where(empty, self.count, starts[chosen, None] + lane)
            columns = torch.where(empty, 0, self.places[slots.clamp(max=self.count - 1)] % width)
            groups.append(_Group(chosen, slots, columns, empty))
            begin = end
        return groups


def _row_blocks(gram: Tensor, group: _Group, ridge: Tensor) -> Tensor:
    """The rows' own blocks of the Gram matrix plus `ridge` on the diagonal: (r, S, S); identity in empty slots."""
    blocks = gram[group.columns[:, :, None], group.columns[:, None, :]]
    blocks.masked_fill_(group.empty[:, :, None] | group.empty[:, None, :], 0)
    blocks.diagonal(dim1=1, dim2=2).add_(torch.where(group.empty, 1.0, ridge))
    return blocks


def _require_finite(ridge: float) -> None:
    if not math.isfinite(ridge):
        raise ReconstructionError(
            "The layer's calibration inputs hold NaN or infinity. Check the images and the weights of the layers before it."
        )


class RowBlocks:
    """Cholesky factors of every row's block of the input Gram matrix, restricted to the row's kept columns.

    The K = 0 objective separates by output row into exactly these systems; their inverses, scaled per row, precondition K > 0.
    The factors are computed in float64: a Gram matrix has the square of its inputs' condition number. `ridge` is relative to
    the Gram matrix's mean diagonal and only keeps inputs that are always zero from making a block singular.
    """

    def __init__(self, gram: Tensor, kept: KeptWeights, ridge: float = 1e-8, exact: Tensor | None = None) -> None:
        self.kept = kept
        self._gram = gram.double() if exact is None else exact
        self._ridge = ridge * self._gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        _require_finite(float(self._ridge))
        self._dtype = gram.dtype
        self._groups = kept.groups(bytes_per_value=8)

    def _factor(self, group: _Group) -> tuple[Tensor, Tensor]:
        """Cholesky factors of the group's blocks (r, S, S), and the ridge in them.

        A Gram matrix summed in float32 is known up to its rounding, so the blocks of rows with more weights than there are
        samples may come out indefinite. The ridge is then raised to what the rounding hides, ten-fold at a time.
        """
        ridge, limit = self._ridge, self._gram.diagonal().mean()
        while True:
            factor, failed = torch.linalg.cholesky_ex(_row_blocks(self._gram, group, ridge))
            if not bool(failed.any()):
                return factor, ridge
            ridge = 10 * ridge
            if bool(ridge > limit):
                raise ReconstructionError(
                    "The Gram matrix of the layer's calibration inputs is not positive definite. Use float64 or more images."
                )

    def least_squares(self, cross: Tensor, prior: Tensor | None = None, near: Tensor | None = None) -> Tensor:
        """The kept weights that minimize the K = 0 objective plus the ridge times their squared distance to `prior` (n,), by
        default zero: row by row, (block + ridge) w = cross + ridge prior. `cross`: (R, P). Returns (n,). `near` (n,) is where
        one that iterates begins; this one does not."""
        solution = cross.new_zeros(self.kept.count + 1)
        padded = F.pad(torch.zeros_like(solution[:-1]) if prior is None else prior, (0, 1)).double()
        for group in self._groups:
            wanted = cross.double()[group.rows[:, None], group.columns].masked_fill(group.empty, 0)
            factor, ridge = self._factor(group)
            wanted += ridge * padded[group.slots]
            solution[group.slots] = torch.cholesky_solve(wanted[..., None], factor).squeeze(-1).to(cross.dtype)
        return solution[:-1]

    def quadratic(self, kept: Tensor) -> Tensor:
        """v_r · block_r v_r for every row: (R,)."""
        matrix = to_matrix(self.kept.expand(kept)).double()
        return ((matrix @ self._gram) * matrix).sum(1)

    @cached_property
    def _inverses(self) -> list[Tensor]:
        """Of every group's blocks (r, S, S). For wide layers nothing that a site holds is larger: made once a solve asks."""
        return [torch.cholesky_inverse(self._factor(group)[0]).to(self._dtype) for group in self._groups]

    def solve(self, kept: Tensor, scales: Tensor) -> Tensor:
        """(scale_r block_r)^-1 applied row by row. `scales`: (R,)."""
        padded = F.pad(kept, (0, 1))
        result = torch.empty_like(padded)
        for group, inverse in zip(self._groups, self._inverses, strict=True):
            solved = torch.bmm(inverse, padded[group.slots][..., None]).squeeze(-1)
            result[group.slots] = solved / scales[group.rows, None].to(kept.dtype)
        return result[:-1]


# Of what `RowProducts` knows the Gram matrix by.
RANK = 64


class RowProducts:
    """Every row's system at once, by products with the one Gram matrix: the answers of `RowBlocks`, and nothing of the size
    rows x kept weights squared, which is what a wide layer's factors are.

    Conjugate gradients on all rows side by side, a step size a row. The preconditioner takes G for B Bᵀ + diagonal, B (P, rank)
    from a Nyström sketch (Frangella, Tropp & Udell, 2023, "Randomized Nyström Preconditioning"; what is left of the diagonal
    takes the place of their constant), restricted to a row's columns and inverted exactly by Woodbury's formula: one
    (rank, rank) matrix a row. It is constant, symmetric and positive definite, so it serves in a window's solve as well.

    Products are computed in the Gram matrix's own precision, residuals in float64.
    """

    def __init__(
        self, gram: Tensor, kept: KeptWeights, ridge: float = 1e-8, rank: int = RANK, exact: Tensor | None = None
    ) -> None:
        self.kept, self._gram, self._exact = kept, gram, gram.double() if exact is None else exact
        diagonal = self._exact.diagonal()
        mean = float(diagonal.mean())
        _require_finite(mean)
        self._ridge = max(ridge * mean, torch.finfo(gram.dtype).tiny)
        self._mask = to_matrix(kept.expand(gram.new_ones(kept.count)))
        low = _nystroem(self._exact, min(rank, len(gram)))
        # No column may be wholly explained: what rounding leaves of it would be divided by.
        rest = (diagonal - low.square().sum(1)).clamp(min=1e-6 * diagonal) + self._ridge
        self._low, self._rest = low.to(gram.dtype), rest.to(gram.dtype)
        self._inverses = torch.cat([_woodbury(mask, low, rest).to(gram.dtype) for mask in self._mask.split(_ROWS_AT_ONCE)])

    def _precondition(self, residual: Tensor) -> Tensor:
        scaled = residual / self._rest
        inner = torch.bmm(self._inverses, (scaled @ self._low)[..., None]).squeeze(-1)
        return scaled - self._mask * (inner @ self._low.T) / self._rest

    def least_squares(
        self, cross: Tensor, prior: Tensor | None = None, near: Tensor | None = None, rtol: float = 1e-6
    ) -> Tensor:
        """As `RowBlocks.least_squares`, until the objective of all rows falls by less than `rtol` of what it has fallen by from
        the prior. Begins at `near` (n,)."""
        origin = torch.zeros_like(cross) if prior is None else to_matrix(self.kept.expand(prior))
        cross, origin = cross.double(), origin.double()

        def downhill(x: Tensor) -> Tensor:
            return self._mask * (cross - x @ self._exact - self._ridge * (x - origin))

        x, residual, fallen = origin, downhill(origin), 0.0
        if near is not None:
            x, before = to_matrix(self.kept.expand(near)).double(), residual
            residual = downhill(x)
            fallen = float(((x - origin) * (before + residual)).sum())
        for _ in range(_REFINEMENTS):
            change, fall = self._conjugate_gradients(residual.to(self._gram.dtype), rtol, fallen)
            x = x + change
            fallen += fall
            if fall <= rtol * fallen:
                break
            residual = downhill(x)
        return self.kept.restrict(from_matrix(x, self.kept.shape)).to(self._gram.dtype)

    def _conjugate_gradients(self, residual: Tensor, rtol: float, fallen: float) -> tuple[Tensor, float]:
        """What solves the systems for `residual` (R, P), about, and the fall of their objective; so far it has `fallen`."""
        x, z = torch.zeros_like(residual), self._precondition(residual)
        direction, rz, falls = z, (residual * z).sum(1, keepdim=True), [0.0]
        for _ in range(_MOST_ITERATIONS):
            image = self._mask * (direction @ self._gram) + self._ridge * direction
            bend = (direction * image).sum(1, keepdim=True)
            step = torch.where(bend > 0, rz / bend, 0.0)  # a row that is solved, or keeps nothing, rests
            x += step * direction
            residual = residual - step * image
            falls.append(float((step * rz).double().sum()))
            if sum(falls[-3:]) <= rtol * (max(fallen, 0.0) + sum(falls)):
                break
            z = self._precondition(residual)
            rz, previous = (residual * z).sum(1, keepdim=True), rz
            direction = z + torch.where(previous > 0, rz / previous, 0.0) * direction
        return x, sum(falls)

    def quadratic(self, kept: Tensor) -> Tensor:
        """v_r · block_r v_r for every row: (R,)."""
        matrix = to_matrix(self.kept.expand(kept))
        return ((matrix @ self._gram).double() * matrix).sum(1)

    def solve(self, kept: Tensor, scales: Tensor) -> Tensor:
        """About (scale_r block_r)^-1, row by row: the preconditioner above. `scales`: (R,)."""
        solved = self._precondition(to_matrix(self.kept.expand(kept))) / scales[:, None].to(kept.dtype)
        return self.kept.restrict(from_matrix(solved, self.kept.shape))


_ROWS_AT_ONCE = 256
_REFINEMENTS = 4
_MOST_ITERATIONS = 200


def _nystroem(gram: Tensor, rank: int) -> Tensor:
    """B (P, rank) with B Bᵀ never above the Gram matrix, and near it in the directions that hold the most."""
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(len(gram), rank, generator=generator, dtype=torch.float64).to(gram.device)
    for _ in range(2):
        sketch = gram @ torch.linalg.qr(sketch)[0]
    basis = torch.linalg.qr(sketch)[0]
    image = gram @ basis
    values, vectors = torch.linalg.eigh(basis.T @ image)
    least = 1e-12 * values[-1].clamp(min=torch.finfo(torch.float64).tiny)
    return image @ (vectors * torch.where(values > least, values.clamp(min=least).rsqrt(), 0.0))


def _woodbury(mask: Tensor, low: Tensor, rest: Tensor) -> Tensor:
    """(1 + B_rᵀ D_r⁻¹ B_r)⁻¹ for some rows' masks (r, P): (r, rank, rank)."""
    rank, mask = low.shape[1], mask.to(low.dtype)
    inner = torch.eye(rank, dtype=low.dtype, device=low.device).repeat(len(mask), 1, 1)
    for i in range(rank):
        inner[:, i:, i] += mask @ (low[:, i, None] * low[:, i:] / rest[:, None])
    return torch.cholesky_inverse(torch.linalg.cholesky(inner))  # reads the lower half alone


RowSystems = RowBlocks | RowProducts
# Bytes of all rows' factors above which products are taken.
LARGEST_BLOCKS = 2**28


def row_systems(gram: Tensor, kept: KeptWeights, exact: Tensor | None = None) -> RowSystems:
    """The systems of each output row, in the form that suits their size. `exact`: the same Gram matrix in float64, where there
    is one."""
    wide = blocks_bytes(kept.row_counts, gram.element_size()) > LARGEST_BLOCKS
    return (RowProducts if wide else RowBlocks)(gram, kept, exact=exact)


def blocks_bytes(row_counts: Tensor, bytes_per_value: int) -> float:
    """What the factors of rows with so many kept weights (R,) take."""
    return float(row_counts.double().square().sum()) * bytes_per_value
