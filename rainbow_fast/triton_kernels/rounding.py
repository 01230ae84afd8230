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
        return tl.dot(a.to(acc.dtype), b.to(acc.dtype), acc, out_dtype=acc.dtype)
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
def product(a, b, acc, A_TERMS: tl.constexpr, B_TERMS: tl.constexpr):
    """acc + a b for factors that are sums of terms, as `split` gives them; the smallest products come first.

    Products below these are left out: with two terms that of both second ones, with three terms those of a third one
    with more than a first one.
    """
    if B_TERMS == 3:
        acc = dot(a[2], b[0], acc)
        acc = dot(a[1], b[1], acc)
        acc = dot(a[0], b[2], acc)
    if A_TERMS > 1:
        acc = dot(a[1], b[0], acc)
    if B_TERMS > 1:
        acc = dot(a[0], b[1], acc)
    return dot(a[0], b[0], acc)


def full(family: str) -> str:
    """The word of `tl.dot` for float32 products in full on a family of machines; both are as good as float32."""
    return "ieee" if family == "gfx942" else "tf32x3"


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b for operands of one dtype.

    Numbers of float32 are bfloat16 numbers with "medium", and sums of two of them with "high"; otherwise the precision
    is one of `tl.dot`. Other dtypes are multiplied as they are.
    """
    if a.dtype == tl.float32 and PRECISION == "high":
        return product(split(a, tl.bfloat16, 2), split(b, tl.bfloat16, 2), acc, 2, 2)
    elif a.dtype == tl.float32 and PRECISION == "medium":
        return product(split(a, tl.bfloat16, 1), split(b, tl.bfloat16, 1), acc, 1, 1)
    else:
        return dot(a, b, acc, "ieee" if a.dtype != tl.float32 else PRECISION)
