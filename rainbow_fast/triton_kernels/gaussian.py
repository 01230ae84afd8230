# SPDX-License-Identifier: BSD-3-Clause
"""gaussian on a GPU.

A value takes 44 instructions (everything counted; 46 in bfloat16) and b written bytes, b = 2, 4 or 8. The least times
for 10^9 values are, for generation, 1.4 ms on an H100 (0.70 T/s) and 2.3 ms on an A100 (0.44 T/s); for memory, 0.3 b ms
on an H100 (3.35 TB/s) and 0.5 b ms on an A100 (2.0 TB/s). float32 is about balanced; narrower dtypes are bound by
generation.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from rainbow_fast.triton_kernels.philox import EXACT, gaussian_tile
from rainbow_fast.triton_kernels.rounding import split
from rainbow_fast.triton_kernels.tiles import WIDE, corner, launch, numbers, target
from rainbow_fast.triton_kernels.variant import Variant


@triton.jit(do_not_specialize=["rows", "seed_lo", "seed_hi", "stream", "row_offset", "first_group"])
def gaussian_kernel(
    out,
    rows: tl.int64,
    cols: tl.int64,
    plane: tl.int64,
    stride: tl.int64,
    seed_lo: tl.int32,
    seed_hi: tl.int32,
    stream: tl.int32,
    row_offset: tl.int64,
    first_group: tl.int64,
    SKIP: tl.constexpr,  # columns of the first group that lie before the tile
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    top, left = corner(cols, SKIP, ROWS, GROUPS)
    i, q = numbers(top, left, row_offset, first_group, SKIP, ROWS, GROUPS)
    g = gaussian_tile(i, q, seed_lo, seed_hi, stream)
    out, inside = target(out, top, left, rows, cols, stride, SKIP, ROWS, GROUPS)
    terms = split(g, out.dtype.element_ty, TERMS)
    for t in tl.static_range(TERMS):
        tl.store(out + t * plane, terms[t], mask=inside)


def gaussian(out: Tensor, where: list[int]) -> None:
    """Write the tile of G at `where` = [seed, stream, row_offset, col_offset] into `out`, whose rows are contiguous.

    If `out` is (terms, rows, cols), with two or three terms, it gets G as the sum of so many numbers of its dtype, with
    which a float32 product is computed by bfloat16 products.
    """
    terms, plane = (1, 0) if out.dim() == 2 else (out.shape[0], out.stride(0))
    launch(gaussian_kernel, out, where, plane, TERMS=terms)


def variants() -> Iterator[Variant]:
    constants = {name: value for name, value in WIDE.items() if name.isupper()}
    options = {"num_warps": WIDE["num_warps"], **EXACT}
    values = 4 * WIDE["ROWS"] * WIDE["GROUPS"] // (32 * WIDE["num_warps"])
    for type, skip, terms in (("fp32", 0, 1), ("bf16", 0, 1), ("bf16", 0, 3), ("fp32", 1, 1)):
        yield Variant(
            f"gaussian {type} skip {skip} terms {terms}",
            gaussian_kernel,
            {"out": f"*{type}"},
            {"SKIP": skip, "TERMS": terms, **constants},
            options,
            aligned=() if skip else ("out", "plane", "stride", "cols"),
            gaussians=values,
            most=47 if skip == 0 and terms == 1 else 60,
            blocks=5,
        )
