# SPDX-License-Identifier: BSD-3-Clause
"""What a kernel is told of a tensor: its address, dtype, sizes and strides (struct Samples of csrc/kernels.h)."""

from torch import Tensor

from rainbow_fast import backend as _backend

Samples = tuple[int, int, tuple[int, ...], tuple[int, ...]]
NOTHING: Samples = (0, 0, (0, 0, 0, 0), (0, 0, 0, 0))


def check_device(called: str, given: Tensor, /, **others: Tensor | None) -> None:
    """Tensors of one call lie on one device, that of `given`; or a ValueError, in which that one is `called` so."""
    for name, t in others.items():
        if t is not None and t.device != given.device:
            raise ValueError(f"{name} is on {t.device}: wanted the device of {called}, {given.device}")


def flat(x: Tensor) -> Tensor:
    """(N, d, *space) -> (N, d, S)."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def samples(x: Tensor, *, written: bool = False) -> tuple[Tensor, Samples]:
    """Of (N, d, *space) as maps of lines of positions, behind the tensor that holds it.

    More than two axes of space are copied unless one stride spans them. What is read is copied as well where neither
    channels nor the positions of a line lie side by side, as they do in NCHW, channels_last and slices of these.
    """
    x = x.detach()
    if x.dim() > 4:
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
