# SPDX-License-Identifier: BSD-3-Clause
"""gaussian on a GPU: each thread makes whole groups of four columns and writes them at once.

A value costs 44 instructions and b bytes written, b = 2, 4 or 8. Floors per 10^9 values: generation 1.4 ms on an H100
(0.70 T/s), 2.3 ms on an A100 (0.44 T/s); memory 0.3 b ms on an H100 (3.35 TB/s), 0.5 b ms on an A100 (2.0 TB/s). So
float32 takes generation and memory about equally, narrower dtypes are bound by generation.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.philox import EXACT, gaussian_tile, words
from rainbow_fast.triton_kernels.rounding import rounded
from rainbow_fast.triton_kernels.variant import Variant

# Rows and groups of four columns of a tile, and its warps: four groups a thread.
WIDE = {"ROWS": 8, "GROUPS": 64, "num_warps": 4}
NARROW = {"ROWS": 128, "GROUPS": 4, "num_warps": 4}


@triton.jit(do_not_specialize=["seed_lo", "seed_hi", "stream", "row_offset", "first_group"])
def gaussian_kernel(
    out,
    rows: tl.int64,
    cols: tl.int64,
    stride: tl.int64,
    seed_lo: tl.int32,
    seed_hi: tl.int32,
    stream: tl.int32,
    row_offset: tl.int64,
    first_group: tl.int64,
    skip: tl.int32,  # columns of the first group that lie before the tile
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    across = tl.cdiv(cols + skip, 4 * GROUPS)
    block = tl.program_id(0).to(tl.int64)
    top, left = block // across * ROWS, block % across * GROUPS
    i = top + tl.arange(0, ROWS)
    q = left + tl.arange(0, GROUPS)
    g = gaussian_tile(i + row_offset, (q + first_group).to(tl.uint32), seed_lo, seed_hi, stream)
    j = left * 4 - skip + tl.arange(0, 4 * GROUPS)
    inside = (i < rows)[:, None] & ((j >= 0) & (j < cols))[None, :]
    tl.store(out + i[:, None] * stride + j[None, :], rounded(g, out.dtype.element_ty), mask=inside)


def gaussian(out: Tensor, where: list[int]) -> None:
    """Write the tile of G at `where` = [seed, stream, row_offset, col_offset] into `out`, whose rows are contiguous."""
    rows, cols = out.shape
    if out.numel() == 0:
        return
    *seeds, row_offset, col_offset = words(where)
    skip = col_offset & 3
    tile = WIDE if cols > 4 * NARROW["GROUPS"] else NARROW
    grid = (triton.cdiv(rows, tile["ROWS"]) * triton.cdiv(cols + skip, 4 * tile["GROUPS"]),)
    gaussian_kernel[grid](out, rows, cols, out.stride(0), *seeds, row_offset, col_offset >> 2, skip, **tile, **EXACT)


def variants() -> Iterator[Variant]:
    for type in ("fp32", "bf16"):
        constants = {k: v for k, v in WIDE.items() if k.isupper()}
        values = 4 * WIDE["ROWS"] * WIDE["GROUPS"] // (32 * WIDE["num_warps"])
        options = {"num_warps": WIDE["num_warps"], **EXACT}
        aligned = ("out", "stride", "skip")
        yield Variant(
            f"gaussian {type}", gaussian_kernel, {"out": f"*{type}"}, constants, options, aligned, values, blocks=8
        )
