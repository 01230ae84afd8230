# SPDX-License-Identifier: BSD-3-Clause
"""uniform: any tile of a matrix of uniform numbers, whose entries are a pure function of (seed, stream, i, j)."""

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.ops.gaussian import VERSION, Seed, as_key, check_shape, register, words_reference

UNIFORM_KIND, UNIFORM_LOW_KIND = 2, 3  # of the upper and of the lower word of a number


def uniform(
    rows: int,
    cols: int,
    *,
    seed: Seed,
    stream: int = 0,
    row_offset: int = 0,
    col_offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""The tile ``U[row_offset : row_offset + rows, col_offset : col_offset + cols]`` of a matrix of uniform numbers.

    The entries of U are independent and uniform on the open interval (0, 1). ``U[i, j]`` is a pure function of (seed,
    stream, i, j), addressed as `gaussian`, and independent of G. Let ``x = 2^32 a + b``, where a and b are word ``j mod
    4`` of Philox4x32-10 at the counter of ``G[i, j]``, with kind 2 for a and kind 3 for b. With ``eps =
    torch.finfo(dtype).eps``,

        U[i, j] = eps (floor(2^-64 x / eps) + 1/2).

    So [0, 1) is divided into 1 / eps equal cells, and U is the midpoint of the one that ``2^-64 x`` lies in:

    | dtype    | eps   | values          | k                       |
    | -------- | ----- | --------------- | ----------------------- |
    | float64  | 2^-52 | (2 k + 1) 2^-53 | the upper 52 bits of x  |
    | float32  | 2^-23 | (2 k + 1) 2^-24 | the upper 23 bits of a  |
    | float16  | 2^-10 | (2 k + 1) 2^-11 | the upper 10 bits of a  |
    | bfloat16 | 2^-7  | (2 k + 1) 2^-8  | the upper 7 bits of a   |

    All of these values are exact in their dtype, none is 0 or 1, and U and 1 - U have the same law. The mean is 1/2 and
    the variance (1 - eps^2) / 12. Numbers of two dtypes at the same address differ by less than half of the larger eps.
    (Narrower dtypes are not roundings of wider ones, because 1 - 2^-24 rounds to 1.) All operations are exact. The bits
    are therefore the same for every tiling, thread count, instruction set and backend, and a smaller tile is a part of
    every larger one. The global random state is neither read nor written.

    Args:
        rows, cols: shape of the tile, each at least 0.
        seed, stream, row_offset, col_offset: the address, as in `key`; or a key as ``seed``. S seeds give S tiles.
        dtype: float32 (default), float64, bfloat16 or float16.
        device: device of the result; the CPU by default.
        out: a tensor to write into, of the shape of the result. It determines dtype and device. Its rows must be
            contiguous, and no two entries may share memory.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` or ``"reference"``; None (default) takes the best one available.

    Returns:
        (rows, cols) tensor, or (S, rows, cols) for S seeds.

    Raises:
        ValueError: an address is outside its range, a size is negative, `out` has another shape or layout, or the
            backend is not available.
        TypeError: the dtype is not one of the four, or a number is not an integer of Python or NumPy.
        RuntimeError: `out` requires grad while grad mode is on.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), for Philox4x32-10.
    """
    key = as_key(seed, stream, row_offset, col_offset)
    rows, cols = integer("rows", rows), integer("cols", cols)
    if out is None:
        return torch.ops.rainbow_fast.uniform(rows, cols, key, dtype, torch.device(device or "cpu"), backend)
    check_shape(out, key, rows, cols)
    torch.ops.rainbow_fast.uniform_out(key, backend, out)
    return out


def uniform_reference(address: list[int], rows: int, cols: int, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """The (rows, cols) tile of `dtype` at `address` = [seed, stream, row_offset, col_offset], in float64, in NumPy."""
    first, eps = address[3] & 3, torch.finfo(dtype).eps
    groups = (first + cols + 3) >> 2
    high, low = (
        np.stack(words_reference(address, rows, groups, kind, VERSION), axis=-1).astype(np.uint64)
        for kind in (UNIFORM_KIND, UNIFORM_LOW_KIND)
    )
    x = high << np.uint64(32) | low
    cell = (x >> np.uint64(64 + round(np.log2(eps)))).astype(np.float64)  # of fewer than 53 bits: exact
    u = (cell + 0.5) * eps
    return np.ascontiguousarray(u.reshape(rows, 4 * groups)[:, first : first + cols])


register("uniform", uniform_reference)
