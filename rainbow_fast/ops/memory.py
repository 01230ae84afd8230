# SPDX-License-Identifier: BSD-3-Clause
"""Describes a tensor for a kernel: address, dtype, sizes and strides (struct Samples of csrc/kernels.h)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from rainbow_fast import backend as _backend

Samples = tuple[int, int, tuple[int, ...], tuple[int, ...]]
NOTHING: Samples = (0, 0, (0, 0, 0, 0), (0, 0, 0, 0))


def check_device(called: str, first: Tensor, /, **others: Tensor | None) -> None:
    """Raise ValueError unless all tensors lie on the device of `first`, which the message calls `called`."""
    for name, t in others.items():
        if t is not None and t.device != first.device:
            raise ValueError(f"{name} is on {t.device}: wanted the device of {called}, {first.device}")


def check_written(
    name: str,
    out: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype | None = None,
    /,
    *,
    rows: bool = False,
    beside: tuple[str, Tensor] | None = None,
    **inputs: Tensor | Sequence[Tensor] | None,
) -> None:
    """Check a tensor that an op will write into, before anything is computed.

    It must have the wanted shape, dtype and device, a different address for each entry, and share no memory with an
    input.

    Args:
        name: the name of the tensor in messages.
        out: the tensor.
        shape: the wanted shape.
        dtype: the wanted dtype; None allows any.
        rows: whether the rows must be contiguous (a last stride of 1).
        beside: the name and value of a tensor whose device is wanted; None allows any device.
        inputs: the tensors that the op reads, by name.

    Raises:
        TypeError: `out` has another dtype.
        ValueError: `out` does not meet another condition.
    """
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(out.shape)}: wanted {tuple(shape)}")
    if beside is not None:
        check_device(*beside, **{name: out})
    if dtype is not None and out.dtype != dtype:
        raise TypeError(f"{name} is {out.dtype}: wanted {dtype}")
    if rows and out.shape[-1] > 1 and out.stride(-1) != 1 and out.numel():
        raise ValueError(f"{name} has strides {out.stride()}: wanted contiguous rows (a last stride of 1)")
    if not one_address_each(out):
        raise ValueError(f"{name} has strides {out.stride()}: wanted a different address for each entry")
    for other, value in inputs.items():
        for t in [value] if isinstance(value, Tensor) else value or ():
            if share_memory(out, t):
                raise ValueError(f"{name} shares memory with {other}: wanted memory of its own")


def one_address_each(t: Tensor) -> bool:
    """Whether the stride of every axis exceeds the span of all axes with smaller strides.

    If so, no two entries of the tensor share an address.
    """
    if t.is_contiguous():
        return True
    span = 0
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1):
        if stride <= span:
            return t.numel() == 0
        span += stride * (size - 1)
    return True


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have bytes in common. If this is too costly to decide, the answer is yes."""
    if isinstance(a, FakeTensor) or isinstance(b, FakeTensor):
        return False
    begin, end = _span(a)
    first, last = _span(b)
    if end <= first or last <= begin or a.device != b.device or a.device.type == "meta":
        return False
    try:
        return np.shares_memory(_as_bytes(a), _as_bytes(b), max_work=10**6)  # type: ignore[arg-type]  # any number
    except np.exceptions.TooHardError:
        return True


def _span(t: Tensor) -> tuple[int, int]:
    """The addresses of the first byte of a tensor and of the byte after its last one."""
    if t.is_contiguous():
        begin = t.data_ptr()
        return begin, begin + t.nbytes
    last = sum(stride * (size - 1) for stride, size in zip(t.stride(), t.shape, strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


class _Described:
    """The memory of a tensor of any dtype and device in the form that NumPy expects; it is not read."""

    def __init__(self, t: Tensor) -> None:
        size = t.element_size()
        self.__array_interface__ = {
            "version": 3,
            "data": (t.data_ptr(), True),
            "shape": tuple(t.shape),
            "strides": tuple(stride * size for stride in t.stride()),
            "typestr": f"|V{size}",
        }


def _as_bytes(t: Tensor) -> np.ndarray:
    return np.asarray(_Described(t))


def flat(x: Tensor) -> Tensor:
    """(N, d, *space) -> (N, d, S)."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def samples(x: Tensor, *, written: bool = False) -> tuple[Tensor, Samples]:
    """A tensor x (N, d, *space) viewed as maps (N, d, H, W), and the description of this view for a kernel.

    x is copied if it has more than two axes of space that one stride does not span. A tensor that is read (not
    `written`) is also copied if neither its channels nor the positions of a line are contiguous. In NCHW, channels_last
    and slices of these, one of them is.
    """
    view = _as_maps(x.detach(), written)
    return view, (view.data_ptr(), _backend.CODE[x.dtype], tuple(view.shape), tuple(view.stride()))


def pairs(x: Tensor) -> tuple[Tensor, Samples]:
    """Pairs x (N, d, *space, 2) viewed as complex maps (N, d, H, W), and the description of their real parts.

    Each real part is followed by the imaginary part in memory. x is copied as in `samples`, and if its pairs are not
    complex numbers in memory.
    """
    x = x.detach()
    whole = x.stride(-1) == 1 and not any(n % 2 for n in (x.storage_offset(), *x.stride()[:-1]))
    view = _as_maps(torch.view_as_complex(x if whole else x.contiguous()), False)
    strides = tuple(2 * stride for stride in view.stride())
    return view, (view.data_ptr(), _backend.CODE[x.dtype], tuple(view.shape), strides)


def _as_maps(x: Tensor, written: bool) -> Tensor:
    """The view of `samples`, or a copy."""
    if x.dim() > 4 and not x.numel():
        view = x.new_empty(*x.shape[:2], 1, math.prod(x.shape[2:]))
    elif x.dim() > 4:
        try:
            view = x.view(*x.shape[:2], 1, -1)
        except RuntimeError:
            try:
                view = x.movedim(1, -1).view(x.shape[0], 1, -1, x.shape[1]).movedim(-1, 1)
            except RuntimeError:
                view = x.contiguous().view(*x.shape[:2], 1, -1)
    else:
        view = x.reshape(*x.shape[:2], *[1] * (4 - x.dim()), *x.shape[2:])
    if not written and not any(view.shape[axis] == 1 or view.stride(axis) == 1 for axis in (1, 3)):
        view = view.contiguous()
    return view


def channels_last(x: Tensor) -> bool:
    """Whether x (N, d, *space) has the strides of torch.channels_last: channels inside positions inside samples.

    x needs at least one axis of space, and may be a slice. As in torch, the stride of an axis of size 1 counts, and
    channels of stride 0 are not innermost.
    """
    if x.dim() < 3 or x.stride(1) == 0:
        return False
    span = 0
    for axis in (1, *range(x.dim() - 1, 1, -1), 0):
        stride, size = x.stride(axis), x.shape[axis]
        if size == 0 or stride < span or (axis == 0 and span == x.stride(1)):
            return False
        span = stride * size if size > 1 else stride
    return True


def channels_last_strides(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    """The strides of a dense tensor of this shape whose axis `axis`, the channels, is the innermost one in memory."""
    order = [each for each in range(len(shape)) if each != axis] + [axis]
    strides, span = [1] * len(shape), 1
    for each in reversed(order):
        strides[each] = span
        span *= torch.sym_max(shape[each], 1)
    return tuple(strides)


def matrix(t: Tensor) -> Samples:
    """The description of a matrix for a kernel: rows are images, columns are channels."""
    return t.data_ptr(), _backend.CODE[t.dtype], (*t.shape, 1, 1), (*t.stride(), 0, 0)


def address_of(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
