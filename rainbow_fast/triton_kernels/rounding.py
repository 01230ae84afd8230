# SPDX-License-Identifier: BSD-3-Clause
"""Narrow dtypes in kernels that give the same results compiled and in Triton's interpreter.

The interpreter truncates float32 to bfloat16, and does arithmetic on the bit patterns of bfloat16. Kernels therefore
widen values when they load them, round with `rounded`, and multiply with `dot`.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x rounded to another dtype, to nearest even; the interpreter uses integer operations."""
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
    """acc + a b. Narrow operands are multiplied exactly; products are summed in the dtype of acc."""
    if INTERPRETED:
        return tl.dot(a.to(acc.dtype), b.to(acc.dtype), acc)
    else:
        return tl.dot(a, b, acc, input_precision=precision, out_dtype=acc.dtype)


@triton.jit
def split(x, dtype: tl.constexpr, TERMS: tl.constexpr):
    """x as a sum of TERMS (1 to 3) numbers of another dtype; each is the rounded remainder of the ones before it."""
    first = rounded(x, dtype)
    if TERMS == 1:
        return (first,)
    else:
        x -= first.to(tl.float32)
        second = rounded(x, dtype)
        if TERMS == 2:
            return first, second
        else:
            return first, second, rounded(x - second.to(tl.float32), dtype)


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b for operands of the dtype of acc.

    With "high", each factor is the sum of two bfloat16 numbers, and the product of both second ones is left out; with
    "medium", it is one. Other precisions are those of `tl.dot`.
    """
    if PRECISION == "high":
        a_terms, b_terms = split(a, tl.bfloat16, 2), split(b, tl.bfloat16, 2)
        acc = dot(a_terms[1], b_terms[0], acc)
        acc = dot(a_terms[0], b_terms[1], acc)
        return dot(a_terms[0], b_terms[0], acc)
    elif PRECISION == "medium":
        return dot(rounded(a, tl.bfloat16), rounded(b, tl.bfloat16), acc)
    else:
        return dot(a, b, acc, PRECISION)
