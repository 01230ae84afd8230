# SPDX-License-Identifier: BSD-3-Clause
"""uniform on a GPU.

A float32 value takes about half the instructions of a normal number, so that the bytes written bound it: 1.2 ms for
10^9 values on an H100 (3.35 TB/s), 2.0 ms on an A100 (2.0 TB/s). A float64 value takes twice the calls of Philox, and
an addition and a multiplication in float64.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.philox import EXACT, interleaved, words4
from rainbow_fast.triton_kernels.tiles import WIDE, corner, launch, numbers, target
from rainbow_fast.triton_kernels.variant import Variant

UNIFORM_KIND, UNIFORM_LOW_KIND = tl.constexpr(2), tl.constexpr(3)


@triton.jit
def uniform_tile(i, q, seed_lo, seed_hi, stream, dtype: tl.constexpr):
    """The tile of rows i (R,) and groups q (Q,): (R, 4 Q), float64 for float64 and else float32, exact in `dtype`."""
    a0, a1, a2, a3 = words4(i[:, None], q[None, :], seed_lo, seed_hi, stream, UNIFORM_KIND)
    a = interleaved(a0, a1, a2, a3)
    if dtype == tl.float64:
        b0, b1, b2, b3 = words4(i[:, None], q[None, :], seed_lo, seed_hi, stream, UNIFORM_LOW_KIND)
        k = (a.to(tl.int64) << 20) | (interleaved(b0, b1, b2, b3) >> 12).to(tl.int64)
        return (k.to(tl.float64) + 0.5) * 2.0**-52
    else:
        bits: tl.constexpr = dtype.fp_mantissa_width
        width: tl.constexpr = 2.0**-bits
        return ((a >> (32 - bits)).to(tl.float32) + 0.5) * width


@triton.jit(do_not_specialize=["rows", "seed_lo", "seed_hi", "stream", "row_offset", "first_group"])
def uniform_kernel(
    out,
    rows: tl.int64,
    cols: tl.int64,
    stride: tl.int64,
    seed_lo: tl.int32,
    seed_hi: tl.int32,
    stream: tl.int32,
    row_offset: tl.int64,
    first_group: tl.int64,
    SKIP: tl.constexpr,  # columns of the first group that lie before the tile
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    top, left = corner(cols, SKIP, ROWS, GROUPS)
    i, q = numbers(top, left, row_offset, first_group, SKIP, ROWS, GROUPS)
    u = uniform_tile(i, q, seed_lo, seed_hi, stream, out.dtype.element_ty)
    out, inside = target(out, top, left, rows, cols, stride, SKIP, ROWS, GROUPS)
    tl.store(out, u.to(out.dtype.element_ty), mask=inside)


def uniform(out: Tensor, where: list[int]) -> None:
    """Write the tile at `where` = [seed, stream, row_offset, col_offset] into `out`, whose rows are contiguous."""
    launch(uniform_kernel, out, where)


def variants() -> Iterator[Variant]:
    constants = {name: value for name, value in WIDE.items() if name.isupper()}
    for type, skip in (("fp32", 0), ("bf16", 0), ("fp64", 0), ("fp32", 1)):
        yield Variant(
            f"uniform {type} skip {skip}",
            uniform_kernel,
            {"out": f"*{type}"},
            {"SKIP": skip, **constants},
            {"num_warps": WIDE["num_warps"], **EXACT},
            aligned=() if skip else ("out", "stride", "cols"),
            blocks=5,
        )
