# SPDX-License-Identifier: BSD-3-Clause
"""What a kernel is told of a tensor: its address, dtype, sizes and strides (struct Samples of csrc/kernels.h)."""

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
    """Tensors of one call lie on one device, that of `first`; or a ValueError, in which that one is `called` so."""
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
    """A tensor that is about to be written has the shape, dtype and device wanted, an address for each entry, and none
    of an input's. An op that writes checks it before anything else is computed.

    Args:
        rows: whether its rows must be contiguous (a last stride of 1).
        beside: a tensor on whose device it must lie, behind the name of that.
        inputs: what the op reads.

    Raises:
        TypeError: another dtype.
        ValueError: anything else.
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
        raise ValueError(f"{name} has strides {out.stride()}: wanted an address of its own for each entry")
    for other, value in inputs.items():
        for t in [value] if isinstance(value, Tensor) else value or ():
            if share_memory(out, t):
                raise ValueError(f"{name} shares memory with {other}: wanted memory of its own")


def one_address_each(t: Tensor) -> bool:
    """Whether every axis steps over all that the axes of smaller strides span: then no two entries share an address."""
    if t.is_contiguous():
        return True
    span = 0
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1):
        if stride <= span:
            return t.numel() == 0
        span += stride * (size - 1)
    return True


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether an entry of one has bytes of the other; where that is too hard to tell, it counts as yes."""
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
    """The first byte of a tensor, and that behind its last."""
    if t.is_contiguous():
        begin = t.data_ptr()
        return begin, begin + t.nbytes
    last = sum(stride * (size - 1) for stride, size in zip(t.stride(), t.shape, strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


class _Described:
    """A tensor of any dtype and device as NumPy sees memory, which it does not touch."""

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
    """Of (N, d, *space) as maps of lines of positions, behind the tensor that holds it.

    More than two axes of space are copied unless one stride spans them. What is read is copied as well where neither
    channels nor the positions of a line lie side by side, as they do in NCHW, channels_last and slices of these.
    """
    x = x.detach()
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
    return view, (view.data_ptr(), _backend.CODE[x.dtype], tuple(view.shape), tuple(view.stride()))


def matrix(t: Tensor) -> Samples:
    """Of a matrix: rows are images, columns channels."""
    return t.data_ptr(), _backend.CODE[t.dtype], (*t.shape, 1, 1), (*t.stride(), 0, 0)


def address_of(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
