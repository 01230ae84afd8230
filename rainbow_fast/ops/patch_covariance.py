# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance of patches, by (2k - 1)^2 products of shifted maps instead of the k^4 blocks of an im2col.

The block of two taps u and u' of the kernel is the sum of x[q] y[q + u' - u] over the positions q that tap u visits
(its window). Away from the border, it depends only on the shift u' - u. For each shift, the windows divide the map into
a few rectangles. Each rectangle is one product of two slices of the maps, and a block is the sum of the rectangles in
its window. No product is subtracted again, so blocks at borders are as exact as the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rainbow_fast import backend as _backend
from rainbow_fast.arguments import integer
from rainbow_fast.ops.memory import check_device, check_written, samples
from rainbow_fast.ops.precision import check_precision
from rainbow_fast.ops.registration import Derivative, functional, writing

UNFOLDED_NUMBERS = 2**22  # numbers of an im2col at a time, for strides with which shifts cannot be shared


class Patch(NamedTuple):
    k: int
    stride: int
    padding: int
    dilation: int

    @classmethod
    def of(cls, patch: int | Sequence[int], x: Tensor) -> Patch:
        """The patch from the argument `patch` of `cross_covariance`, checked against maps x (N, d, H, W)."""
        numbers = tuple(patch) if isinstance(patch, list | tuple) else (patch,)
        if not 1 <= len(numbers) <= 4:
            raise ValueError(f"patch={patch!r}: wanted k, or (k, stride, padding, dilation)")
        numbers = tuple(integer("patch", n, -(2**62)) for n in numbers)
        window = cls(*numbers, *(1, (numbers[0] - 1) // 2, 1)[len(numbers) - 1 :])
        if window.k < 1 or window.stride < 1 or window.padding < 0 or window.dilation < 1:
            raise ValueError(f"patch={patch!r}: wanted k, stride and dilation of at least 1, padding of at least 0")
        if x.dim() != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}: wanted maps (N, d, H, W) for patch={patch!r}")
        if min(window.positions(x.shape[2:])) < 1:
            raise ValueError(f"patch={patch!r}: wanted one that fits into maps of shape {tuple(x.shape[2:])}")
        return window

    def positions(self, space: Sequence[int]) -> list[int]:
        """The number of places of the kernel along each axis of space."""
        reach = self.dilation * (self.k - 1) + 1
        return [(size + 2 * self.padding - reach) // self.stride + 1 for size in space]

    def unfold(self, x: Tensor) -> Tensor:
        """The im2col of x, (N, d k k, positions)."""
        if x.dtype == torch.float64 or x.dtype == torch.float32:
            return F.unfold(x, self.k, self.dilation, self.padding, self.stride)
        return F.unfold(x.float(), self.k, self.dilation, self.padding, self.stride).to(x.dtype)

    def batch(self, x: Tensor) -> int:
        """How many images are unfolded at a time."""
        rows, columns = self.positions(x.shape[2:])
        return max(1, UNFOLDED_NUMBERS // (x.shape[1] * self.k**2 * rows * columns))


class Piece(NamedTuple):
    """Positions [begin, end) of one axis that the taps ``tap, ..., tap + taps - 1`` visit, for one shift.

    A shift of `shift` taps is a shift of `step` positions.
    """

    shift: int
    step: int
    begin: int
    end: int
    tap: int
    taps: int


def patch_covariance(x: Tensor, y: Tensor | None, patch: Patch, precision: str | None, backend: str | None) -> Tensor:
    return torch.ops.rainbow_fast.patch_covariance(x, y, list(patch), precision, backend)


def pieces(size: int, positions: int, patch: Patch) -> list[Piece]:
    """The pieces of an axis of `size` positions, for all shifts. The longest come first, to balance the threads."""
    parts = []
    for shift in range(1 - patch.k, patch.k):
        step, windows = patch.dilation * shift, {}
        for u in range(max(0, -shift), min(patch.k, patch.k - shift)):
            first = u * patch.dilation - patch.padding
            windows[u] = max(0, first, -step), min(size, first + positions, size - step)
        cuts = sorted({bound for begin, end in windows.values() if begin < end for bound in (begin, end)})
        for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
            taps = [u for u, (low, high) in windows.items() if low <= begin and end <= high]
            if taps:
                parts.append(Piece(shift, step, begin, end, taps[0], len(taps)))
    return sorted(parts, key=lambda piece: piece.begin - piece.end)


def _shape(x: Tensor, y: Tensor | None, k: int) -> tuple[int, int]:
    return x.shape[1] * k**2, (x if y is None else y).shape[1] * k**2


def _check_out(
    x: Tensor, y: Tensor | None, patch: list[int], precision: str | None, backend: str | None, out: Tensor
) -> None:
    shape = _check(x, y, patch, precision)
    check_written("out", out, _shape(x, y, shape.k), torch.float64, rows=True, beside=("x", x), x=x, y=y)


def _add(
    x: Tensor, y: Tensor | None, patch: list[int], precision: str | None, backend: str | None, out: Tensor
) -> None:
    shape = Patch(*patch)
    if x.numel() == 0 or out.numel() == 0:
        return
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    chosen = _backend.choose(backend, x.device, x.dtype, dtypes, "cross_covariance", called="x")
    if chosen == "cpu" and shape.stride == 1:
        sides = [samples(side) for side in (x, x if y is None else y)]
        rows, columns = shape.positions(x.shape[2:])
        _backend.kernels().patch_covariance(
            out.data_ptr(), out.stride(0), *(memory for _, memory in sides), pieces(x.shape[2], rows, shape),
            pieces(x.shape[3], columns, shape), shape.k, y is None, torch.get_num_threads(),
        )  # fmt: skip
        return
    for some_x, some_y in _batches(x, y, shape):
        unfolded = [] if some_y is None else [shape.unfold(some_y)]
        how = ("identity", 0.0, False, precision, backend)
        out += torch.ops.rainbow_fast.cross_covariance(shape.unfold(some_x), unfolded, *how)


def _check(x: Tensor, y: Tensor | None, patch: list[int], precision: str | None) -> Patch:
    check_precision(precision)
    shape = Patch.of(patch, x)
    if y is not None and (y.dim() != 4 or (y.shape[0], y.shape[2:]) != (x.shape[0], x.shape[2:])):
        raise ValueError(
            f"y has shape {tuple(y.shape)}: wanted the N and the positions of x, which has shape {tuple(x.shape)}"
        )
    if y is not None and y.dtype != x.dtype:
        raise TypeError(f"y is {y.dtype}: wanted the dtype of x, {x.dtype}")
    check_device("x", x, y=y)
    return shape


def _batches(x: Tensor, y: Tensor | None, patch: Patch) -> list[tuple[Tensor, Tensor | None]]:
    images = patch.batch(x)
    parts = x.split(images)
    return list(zip(parts, [None] * len(parts) if y is None else y.split(images), strict=True))


def _patch_covariance(
    x: Tensor, y: Tensor | None, patch: list[int], precision: str | None, backend: str | None
) -> Tensor:
    shape = _check(x, y, patch, precision)
    out = _backend.empty(_shape(x, y, shape.k), torch.float64, x.device).zero_()
    _add(x, y, list(shape), precision, backend, out)
    return out


def _fake(x: Tensor, y: Tensor | None, patch: list[int], precision: str | None, backend: str | None) -> Tensor:
    return x.new_empty(_shape(x, y, _check(x, y, patch, precision).k), dtype=torch.float64)


def _vjp(inputs: Any, outputs: Any, grads: Any, needs: Any) -> tuple:
    """The patches of one side, multiplied by the gradient and folded back to maps, a few images at a time."""
    x, y, numbers, *_ = inputs
    patch, (grad,) = Patch(*numbers), grads

    def folded(matrix: Tensor, side: Tensor) -> Tensor:
        k, stride, padding, dilation = patch
        size, images = tuple(side.shape[2:]), patch.batch(side)
        compute = torch.promote_types(side.dtype, torch.float32)
        return torch.cat([
            F.fold(matrix.to(compute) @ patch.unfold(part.to(compute)), size, k, dilation, padding, stride)
            for part in side.split(images)
        ]).to(side.dtype)  # fmt: skip

    if y is None:
        return folded(grad + grad.T, x), None, None, None, None
    return folded(grad, y) if needs[0] else None, folded(grad.T, x) if needs[1] else None, None, None, None


def _jvp(inputs: Any, outputs: Any, tangents: Any) -> list[Tensor]:
    """The sum of the covariances with the tangent of x and with the tangent of y."""
    x, y, *options = inputs
    moved_x, moved_y, *_ = tangents
    covariance = torch.ops.rainbow_fast.patch_covariance
    if y is None:
        half = covariance(moved_x, x, *options)
        return [half + half.T]
    parts = [] if moved_x is None else [covariance(moved_x, y, *options)]
    parts += [] if moved_y is None else [covariance(x, moved_y, *options)]
    return [sum(parts[1:], parts[0])]


def patch_covariance_flops(x: Sequence[int], y: Sequence[int] | None, patch: Sequence[int]) -> int:
    """Flops of the product of im2cols (N P, d k k) and (N P, m k k), which defines the op: ``2 N P d m k^4``.

    P is the number of places of the kernel in a map. Without y, one triangle is computed. At stride 1, the CPU kernel
    shares shifts and needs fewer flops.
    """
    shape = Patch(*patch)
    samples, rows = x[0] * math.prod(shape.positions(x[2:])), x[1] * shape.k**2
    return samples * rows * (rows + 1) if y is None else 2 * samples * rows * y[1] * shape.k**2


_SHARED = "Tensor x, Tensor? y, int[] patch, str? precision, str? backend"
functional(
    f"patch_covariance({_SHARED}) -> Tensor",
    _patch_covariance,
    _fake,
    flops=patch_covariance_flops,
    derivative=Derivative(_vjp, _jvp),
)
writing(
    f"patch_covariance_out({_SHARED}, Tensor(a!) out) -> ()",
    _add,
    check=_check_out,
    flops=patch_covariance_flops,
    called="patch_covariance_out",
)
