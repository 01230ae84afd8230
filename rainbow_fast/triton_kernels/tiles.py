# SPDX-License-Identifier: BSD-3-Clause
"""How kernels write a tile of random numbers: each thread computes whole groups of four columns and writes each group
at once.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.philox import EXACT, words

# Rows, groups of four columns and warps of a tile. A thread has eight groups in wide tiles and four in narrow ones.
WIDE = {"ROWS": 8, "GROUPS": 128, "num_warps": 4}
NARROW = {"ROWS": 128, "GROUPS": 4, "num_warps": 4}


@triton.jit
def corner(cols, SKIP: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """The first row and the first column of a program, int64. SKIP columns of the first group lie before the tile."""
    width: tl.constexpr = 4 * GROUPS
    across = tl.cdiv(cols + SKIP, width).to(tl.int32)
    down = tl.program_id(0) // across
    return down.to(tl.int64) * ROWS, (tl.program_id(0) - down * across).to(tl.int64) * width - SKIP


@triton.jit
def numbers(top, left, row_offset, first_group, SKIP: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """The rows (ROWS,) int64 and the groups (GROUPS,) uint32 of a program, as the generator counts them."""
    first = first_group + (left + SKIP) // 4
    return top + row_offset + tl.arange(0, ROWS), first.to(tl.uint32) + tl.arange(0, GROUPS)


@triton.jit
def target(out, top, left, rows, cols, stride, SKIP: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """Where a program writes: pointers and a mask. Computed after the numbers, it costs fewer registers."""
    width: tl.constexpr = 4 * GROUPS
    i, j = tl.arange(0, ROWS), tl.arange(0, width)
    last = tl.minimum(cols - left, width).to(tl.int32)
    inside = (i < tl.minimum(rows - top, ROWS).to(tl.int32))[:, None] & (j < last)[None, :]
    if SKIP:
        inside &= (j >= tl.maximum(-left, 0).to(tl.int32))[None, :]
    return out + (top * stride + left + i[:, None] * stride + j[None, :]), inside


def launch(kernel: Any, out: Tensor, where: list[int], *between: Any, **constants: Any) -> None:
    """Launch a kernel on a tile at `where` = [seed, stream, row_offset, col_offset]; the rows of `out` are contiguous.

    Args:
        kernel: a kernel with the arguments (out, rows, cols, *between, stride, seed_lo, seed_hi, stream, row_offset,
            first_group) and the constants SKIP, ROWS and GROUPS.
        out: (*terms, rows, cols).
        between, constants: other arguments.
    """
    if out.numel() == 0:
        return
    rows, cols = out.shape[-2:]
    *seeds, row_offset, col_offset = words(where)
    skip = col_offset & 3
    tile = WIDE if cols > 4 * NARROW["GROUPS"] else NARROW
    grid = (triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(cols + skip, 4 * tile["GROUPS"]),)
    target = (out, rows, cols, *between, out.stride(-2))
    kernel[grid](*target, *seeds, row_offset, col_offset >> 2, SKIP=skip, **constants, **tile, **EXACT)
