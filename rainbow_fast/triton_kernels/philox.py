# SPDX-License-Identifier: BSD-3-Clause
"""G inside Triton kernels, with the bits of csrc/philox.h: Philox4x32-10, then separately rounded + - * sqrt.

The words of other random numbers come from `words4`.

Every launch sets ``enable_fp_fusion=False`` (`EXACT`), because fused multiply-adds would change the bits.

A group q of four columns takes one Philox call, which gives four tensors, for columns 4q, 4q + 1, 4q + 2 and 4q + 3.
`gaussian_tile` interleaves them inside each thread. A matrix product does not need that: it may sum over columns in any
order in which it also reads the rows of the other operand.
"""

import triton
import triton.language as tl

EXACT = {"enable_fp_fusion": False}

VERSION = tl.constexpr(1)
GAUSSIAN_KIND = tl.constexpr(0)

_HEX = float.fromhex
_L0, _L1 = tl.constexpr(_HEX("-0x1.fffffep-1")), tl.constexpr(_HEX("0x1.00007ap-1"))
_L2, _L3 = tl.constexpr(_HEX("-0x1.5559dcp-2")), tl.constexpr(_HEX("0x1.ff623cp-3"))
_L4, _L5 = tl.constexpr(_HEX("-0x1.978e2ep-3")), tl.constexpr(_HEX("0x1.614c0cp-3"))
_L6, _L7 = tl.constexpr(_HEX("-0x1.4c3d10p-3")), tl.constexpr(_HEX("0x1.9dfa6ap-4"))
_S0, _S1 = tl.constexpr(_HEX("0x1.921fb6p+0")), tl.constexpr(_HEX("-0x1.4abbbap-1"))
_S2, _S3 = tl.constexpr(_HEX("0x1.465e92p-4")), tl.constexpr(_HEX("-0x1.2d9302p-8"))
_C0, _C1 = tl.constexpr(_HEX("0x1.fffffep-1")), tl.constexpr(_HEX("-0x1.3bd38cp+0"))
_C2, _C3 = tl.constexpr(_HEX("0x1.03ae64p-2")), tl.constexpr(_HEX("-0x1.4e35dap-6"))
_MINUS_LN2 = tl.constexpr(_HEX("-0x1.62e430p-1"))
_ULP, _HALF_ULP = tl.constexpr(2.0**-32), tl.constexpr(2.0**-33)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds on four uint32 tensors, which broadcast. A uint64 product is one mul.wide.u32 instruction."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def box_muller(a, b):
    """Two normal numbers from two words: the radius from a, the angle (shifted by an octant) and the signs from b."""
    v = a.to(tl.float32) * _ULP + _HALF_ULP
    bits = v.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23
    f = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    p = (((_L7 * f + _L6) * f + _L5) * f + _L4) * f + _L3
    p = ((p * f + _L2) * f + _L1) * f + _L0
    radius = tl.sqrt_rn(f * p + e.to(tl.float32) * _MINUS_LN2)
    z = (b << 2).to(tl.int32, bitcast=True).to(tl.float32) * _ULP
    y = z * z
    s = (((_S3 * y + _S2) * y + _S1) * y + _S0) * z
    c = ((_C3 * y + _C2) * y + _C1) * y + _C0
    return _flip(radius * (c - s), b), _flip(radius * (c + s), b << 1)


@triton.jit
def _flip(x, sign):
    """x, negated if the top bit of the word `sign` is set."""
    return (x.to(tl.uint32, bitcast=True) ^ (sign & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def words4(i, q, seed_lo, seed_hi, stream, KIND: tl.constexpr):
    """The four words of Philox for row i and group q of four columns; arguments as in `gaussian4`."""
    low = i.to(tl.uint32)
    tag = (i >> 32).to(tl.uint32) | (VERSION << 28 | KIND << 24)
    k0, k1 = seed_lo.to(tl.uint32, bitcast=True), seed_hi.to(tl.uint32, bitcast=True)
    return philox(q, low, stream.to(tl.uint32, bitcast=True), tag, k0, k1)


@triton.jit
def gaussian4(i, q, seed_lo, seed_hi, stream):
    """G[i, 4q], G[i, 4q + 1], G[i, 4q + 2], G[i, 4q + 3].

    Args:
        i: int64 rows, 0 <= i < 2^56.
        q: uint32 groups of four columns; i and q broadcast, usually from (rows, 1) and (1, groups).
        seed_lo, seed_hi, stream: 32-bit words, signed or unsigned; see `words`.
    """
    x0, x1, x2, x3 = words4(i, q, seed_lo, seed_hi, stream, GAUSSIAN_KIND)
    g0, g1 = box_muller(x0, x1)
    g2, g3 = box_muller(x2, x3)
    return g0, g1, g2, g3


@triton.jit
def gaussian_tile(i, q, seed_lo, seed_hi, stream):
    """Rows i (R,) and consecutive groups q (Q,) of four columns of G, as a float32 tile (R, 4 Q) in column order."""
    g0, g1, g2, g3 = gaussian4(i[:, None], q[None, :], seed_lo, seed_hi, stream)
    return interleaved(g0, g1, g2, g3)


@triton.jit
def interleaved(x0, x1, x2, x3):
    """The columns 4q, 4q + 1, 4q + 2 and 4q + 3 of a tile, each (R, Q), in column order: (R, 4 Q)."""
    x = tl.join(tl.join(x0, x2), tl.join(x1, x3))  # each thread holds whole groups, so this needs no shuffle
    return x.reshape(x0.shape[0], 4 * x0.shape[1])


def words(where: list[int]) -> tuple[int, int, int, int, int]:
    """[seed, stream, row_offset, col_offset] as arguments of a kernel: three signed 32-bit words, two int64 offsets."""
    seed, stream, row_offset, col_offset = where

    def signed(word: int) -> int:
        return word - 2**32 if word >= 2**31 else word

    return signed(seed & 0xFFFFFFFF), seed >> 32, signed(stream), row_offset, col_offset
