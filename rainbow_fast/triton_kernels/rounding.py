# SPDX-License-Identifier: BSD-3-Clause
"""Narrow dtypes in kernels that run compiled and in Triton's interpreter alike.

The interpreter truncates float32 to bfloat16, and does arithmetic on the bit patterns of bfloat16. So kernels widen
what they load at once, round by `rounded`, and multiply by `dot`.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x in another dtype, to nearest even: by one instruction where compiled, by integers in the interpreter."""
    if INTERPRETED and dtype == tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(x == x, bits, 0x7FC0)
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def dot(a, b, acc, precision: tl.constexpr = "ieee"):
    """acc + a b; narrow operands are multiplied exactly, products are summed in the dtype of acc."""
    if INTERPRETED:
        return tl.dot(a.to(acc.dtype), b.to(acc.dtype), acc)
    else:
        return tl.dot(a, b, acc, input_precision=precision, out_dtype=acc.dtype)


@triton.jit
def split(x, dtype: tl.constexpr, TERMS: tl.constexpr):
    """x as a sum of TERMS numbers of another dtype, each what the ones before leave over: one, or three."""
    first = rounded(x, dtype)
    if TERMS == 1:
        return (first,)
    else:
        x -= first.to(tl.float32)
        second = rounded(x, dtype)
        return first, second, rounded(x - second.to(tl.float32), dtype)
