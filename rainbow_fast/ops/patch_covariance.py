# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance of patches: (2k - 1)^2 products of shifted maps in place of the k^4 blocks of an im2col.

Of two taps u and u' of a kernel only the shift u' - u matters, but for the border: x[q] y[q + u' - u] is summed over
those positions q that tap u visits. For each shift these windows cut the map into few rectangles; each rectangle is one
product of two slices of the maps, and a block is the sum of the rectangles in its window. Nothing is ever taken away
again, so that borders are as exact as the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rainbow_fast import backend as _backend
from rainbow_fast.ops.memory import check_device, samples

UNFOLDED_NUMBERS = 2**22  # of an im2col at a time, where the stride leaves no shifts to share


class Patch(NamedTuple):
    k: int
    stride: int
    padding: int
    dilation: int

    @classmethod
    def of(cls, patch: int | Sequence[int], x: Tensor) -> Patch:
        """As `cross_covariance` takes it, checked against maps (N, d, H, W)."""
        numbers = (patch,) if isinstance(patch, int) else tuple(patch)
        if not 1 <= len(numbers) <= 4 or not all(isinstance(n, int) for n in numbers):
            raise ValueError(f"patch={patch!r}: wanted k, or (k, stride, padding, dilation)")
        made = cls(*numbers, *(1, (numbers[0] - 1) // 2, 1)[len(numbers) - 1 :])
        if made.k < 1 or made.stride < 1 or made.padding < 0 or made.dilation < 1:
            raise ValueError(f"patch={patch!r}: wanted k, stride and dilation of at least 1, padding of at least 0")
        if x.dim() != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}: wanted maps (N, d, H, W) for patch={patch!r}")
        if min(made.positions(x)) < 1:
            raise ValueError(f"patch={patch!r}: wanted one that fits into maps of shape {tuple(x.shape[2:])}")
        return made

    def positions(self, x: Tensor) -> list[int]:
        """Where the kernel can stand, along each axis of space."""
        reach = self.dilation * (self.k - 1) + 1
        return [(size + 2 * self.padding - reach) // self.stride + 1 for size in x.shape[2:]]

    def unfold(self, x: Tensor) -> Tensor:
        """im2col: (N, d k k, positions)."""
        if x.dtype == torch.float64 or x.dtype == torch.float32:
            return F.unfold(x, self.k, self.dilation, self.padding, self.stride)
        return F.unfold(x.float(), self.k, self.dilation, self.padding, self.stride).to(x.dtype)

    def batch(self, x: Tensor) -> int:
        """Images that are unfolded at a time."""
        rows, columns = self.positions(x)
        return max(1, UNFOLDED_NUMBERS // (x.shape[1] * self.k**2 * rows * columns))


class Piece(NamedTuple):
    """Positions [begin, end) of one axis, visited by `taps` taps from `tap` on; `shift` taps are `step` positions."""

    shift: int
    step: int
    begin: int
    end: int
    tap: int
    taps: int


def patch_covariance(x: Tensor, y: Tensor | None, patch: Patch, backend: str | None) -> Tensor:
    return torch.ops.rainbow_fast.patch_covariance(x, y, list(patch), backend)


def pieces(size: int, positions: int, patch: Patch) -> list[Piece]:
    """Of an axis of `size` positions, for all shifts; the longest first, which share the work best among threads."""
    found = []
    for shift in range(1 - patch.k, patch.k):
        step, windows = patch.dilation * shift, {}
        for u in range(max(0, -shift), min(patch.k, patch.k - shift)):
            first = u * patch.dilation - patch.padding
            windows[u] = max(0, first, -step), min(size, first + positions, size - step)
        cuts = sorted({cut for begin, end in windows.values() if begin < end for cut in (begin, end)})
        for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
            taps = [u for u, (low, high) in windows.items() if low <= begin and end <= high]
            if taps:
                found.append(Piece(shift, step, begin, end, taps[0], len(taps)))
    return sorted(found, key=lambda piece: piece.begin - piece.end)


def _shape(x: Tensor, y: Tensor | None, k: int) -> tuple[int, int]:
    return x.shape[1] * k**2, (x if y is None else y).shape[1] * k**2


def _patch_covariance_out(x: Tensor, y: Tensor | None, patch: list[int], backend: str | None, out: Tensor) -> None:
    _backend.refuse_grad("patch_covariance_out", x, y, out)
    shape = Patch.of(patch, x)
    _check(x, y, shape, out)
    if x.numel() == 0 or out.numel() == 0:
        return
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    if _backend.choose(backend, x.device, x.dtype, dtypes) == "cpu" and shape.stride == 1:
        sides = [samples(side) for side in (x, x if y is None else y)]
        rows, columns = shape.positions(x)
        _backend.kernels().patch_covariance(
            out.data_ptr(), out.stride(0), *(memory for _, memory in sides), pieces(x.shape[2], rows, shape),
            pieces(x.shape[3], columns, shape), shape.k, y is None, torch.get_num_threads(),
        )  # fmt: skip
        return
    for some_x, some_y in _batches(x.detach(), None if y is None else y.detach(), shape):
        unfolded = [] if some_y is None else [shape.unfold(some_y)]
        out += torch.ops.rainbow_fast.cross_covariance(shape.unfold(some_x), unfolded, "identity", 0.0, False, backend)


def _check(x: Tensor, y: Tensor | None, patch: Patch, out: Tensor) -> None:
    if y is not None and (y.dim() != 4 or (y.shape[0], y.shape[2:]) != (x.shape[0], x.shape[2:]) or y.dtype != x.dtype):
        raise ValueError(
            f"y is {y.dtype} of shape {tuple(y.shape)}: wanted the dtype, the N and the positions of x, which is "
            f"{x.dtype} of shape {tuple(x.shape)}"
        )
    check_device("x", x, y=y, out=out)
    wanted = _shape(x, y, patch.k)
    if out.shape != wanted or out.dtype != torch.float64:
        raise ValueError(f"out is {out.dtype} of shape {tuple(out.shape)}: wanted float64 of shape {wanted}")
    if out.shape[1] > 1 and out.stride(1) != 1:
        raise ValueError(f"out has strides {out.stride()}: wanted contiguous rows (a last stride of 1)")


def _batches(x: Tensor, y: Tensor | None, patch: Patch) -> list[tuple[Tensor, Tensor | None]]:
    images = patch.batch(x)
    parts = x.split(images)
    return list(zip(parts, [None] * len(parts) if y is None else y.split(images), strict=True))


def _patch_covariance(x: Tensor, y: Tensor | None, patch: list[int], backend: str | None) -> Tensor:
    out = _backend.empty(_shape(x, y, patch[0]), torch.float64, x.device).zero_()
    _patch_covariance_out(x.detach(), None if y is None else y.detach(), patch, backend, out)
    return out


def _fake(x: Tensor, y: Tensor | None, patch: list[int], backend: str | None) -> Tensor:
    return x.new_empty(_shape(x, y, patch[0]), dtype=torch.float64)


def _setup_context(ctx, inputs, output) -> None:
    x, y, patch, _ = inputs
    ctx.patch = Patch(*patch)
    ctx.save_for_backward(x, y)


def _backward(ctx, grad: Tensor):
    """Patches of one side, mixed by the gradient and folded back, a few images at a time."""
    x, y = ctx.saved_tensors

    def folded(matrix: Tensor, side: Tensor) -> Tensor:
        k, stride, padding, dilation = ctx.patch
        size, images = tuple(side.shape[2:]), ctx.patch.batch(side)
        return torch.cat([
            F.fold(matrix.to(part.dtype) @ ctx.patch.unfold(part), size, k, dilation, padding, stride)
            for part in side.split(images)
        ])  # fmt: skip

    if y is None:
        return folded(grad + grad.T, x), None, None, None
    grad_x = folded(grad, y) if ctx.needs_input_grad[0] else None
    grad_y = folded(grad.T, x) if ctx.needs_input_grad[1] else None
    return grad_x, grad_y, None, None


_NAME = "rainbow_fast::patch_covariance"
torch.library.define(_NAME, "(Tensor x, Tensor? y, int[] patch, str? backend) -> Tensor")
torch.library.define(f"{_NAME}_out", "(Tensor x, Tensor? y, int[] patch, str? backend, Tensor(a!) out) -> ()")
torch.library.impl(_NAME, "CompositeExplicitAutograd")(_patch_covariance)
torch.library.impl(f"{_NAME}_out", "CompositeExplicitAutograd")(_patch_covariance_out)
torch.library.register_fake(_NAME)(_fake)
torch.library.register_fake(f"{_NAME}_out")(lambda x, y, patch, backend, out: None)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)
