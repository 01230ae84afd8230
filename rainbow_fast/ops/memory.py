# SPDX-License-Identifier: BSD-3-Clause
"""What a kernel is told of a tensor: its address, dtype, sizes and strides (struct Samples of csrc/kernels.h)."""

from torch import Tensor

from rainbow_fast import backend as _backend

Samples = tuple[int, int, tuple[int, ...], tuple[int, ...]]
NOTHING: Samples = (0, 0, (0, 0, 0, 0), (0, 0, 0, 0))


def flat(x: Tensor) -> Tensor:
    """(N, d, *space) -> (N, d, S)."""
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def samples(x: Tensor) -> tuple[Tensor, Samples]:
    """Of (N, d, *space) as maps of lines of positions, behind the tensor that holds it.

    Channels or the positions of a line must lie side by side, as in NCHW, channels_last and their slices; any other
    layout is copied, and so are more than two axes of space unless one stride spans them.
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
    if not any(view.shape[axis] == 1 or view.stride(axis) == 1 for axis in (1, 3)):
        view = view.contiguous()
    return view, (view.data_ptr(), _backend.CODE[x.dtype], tuple(view.shape), tuple(view.stride()))


def matrix(t: Tensor) -> Samples:
    """Of a matrix: rows are images, columns channels."""
    return t.data_ptr(), _backend.CODE[t.dtype], (*t.shape, 1, 1), (*t.stride(), 0, 0)


def address_of(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()
