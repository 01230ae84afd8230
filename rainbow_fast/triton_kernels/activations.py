# SPDX-License-Identifier: BSD-3-Clause
"""The non-linearities inside Triton kernels. They are chosen by name when a kernel is compiled.

float32 uses the polynomials of csrc/cpu/activation.h. Their error is at most 4 units in the last place, even if
products are not fused and `/` is not correctly rounded; results below 1.2e-38 may become zero. cos has this accuracy
for |x| < 2^20 and loses |x| 2^-52 beyond. float64 has an absolute error of 1e-16 (1 + |x|).
"""

from math import factorial

import triton
import triton.language as tl

_HEX = float.fromhex


def _constants(*hex: str) -> tl.constexpr:
    """Coefficients of a polynomial, lowest degree first."""
    return tl.constexpr(tuple(_HEX(number) for number in hex))


_TANH = _constants("-0x1.555532p-2", "0x1.110726p-3", "-0x1.b83c5ap-5", "0x1.52269cp-6", "-0x1.75e1d4p-8")
_EXP = _constants("0x1.fffffcp-2", "0x1.55549p-3", "0x1.5558f6p-5", "0x1.123a8ep-7", "0x1.6a2316p-10")
_ERF = _constants(
    "0x1.20dd74p+0", "-0x1.81273ep-2", "0x1.ce2cf8p-4", "-0x1.b7f910p-6", "0x1.5405c0p-8", "-0x1.a3f75ap-11",
    "0x1.496b10p-14",
)  # fmt: skip
_ERFC = _constants(
    "-0x1.88cdp-4", "-0x1.1382cep-5", "0x1.777f08p-4", "-0x1.5971d2p-4", "0x1.8b9c7ap-5", "-0x1.13b92cp-6",
    "0x1.db972ep-10", "0x1.73a048p-10", "-0x1.1e7392p-11", "-0x1.8accep-13",
)  # fmt: skip
_ERFC_FIRST, _ERFC_FIRST_LOW = tl.constexpr(_HEX("0x1.c5a32ap-1")), tl.constexpr(_HEX("-0x1.29c2eep-27"))
_SIN = _constants("-0x1.555544p-3", "0x1.1107p-7", "-0x1.992f58p-13")
_COS = _constants("0x1.55554ap-5", "-0x1.6c0bf2p-10", "0x1.99d8d6p-16")
_SIN64 = tl.constexpr(tuple((-1.0) ** (k + 1) / factorial(2 * k + 3) for k in range(8)))
_COS64 = tl.constexpr(tuple((-1.0) ** k / factorial(2 * k + 4) for k in range(7)))
_LOG2E, _ROUND = tl.constexpr(_HEX("0x1.715476p+0")), tl.constexpr(_HEX("0x1.8p23"))
_LN2, _LN2_LOW = tl.constexpr(_HEX("0x1.63p-1")), tl.constexpr(_HEX("-0x1.bd0106p-13"))  # n * _LN2 is exact
_ROOT2, _ROOT_HALF = tl.constexpr(_HEX("0x1.6a09e6p+0")), tl.constexpr(0.70710678118654752440)
_TWO_OVER_PI, _ROUND64 = tl.constexpr(_HEX("0x1.45f306dc9c883p-1")), tl.constexpr(_HEX("0x1.8p52"))
_HALF_PI, _HALF_PI_LOW = tl.constexpr(_HEX("0x1.921fb544p+0")), tl.constexpr(_HEX("0x1.0b4611a626331p-34"))

# Activations whose results need no rounding in any dtype of the samples.
KEEP_PRECISION = ("identity", "relu", "abs", "sign", "step")


@triton.jit
def _polynomial(c: tl.constexpr, DEGREE: tl.constexpr, x):
    value = c[DEGREE]
    for k in tl.static_range(1, DEGREE + 1):
        value = value * x + c[DEGREE - k]
    return value


@triton.jit
def _power(n):
    """2^n for an integer n, -126 <= n <= 127."""
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exponential(x, low):
    """e^(x + low) for -170 <= x <= 0 and a small low, as (1 + rest) * half * power; the powers are multiplied last."""
    shifted = (x + low) * _LOG2E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2) + (low - n * _LN2_LOW)
    exponent = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    half = exponent >> 1
    return r + r * r * _polynomial(_EXP, 4, r), _power(half), _power(exponent - half)


@triton.jit
def _exp_negative(x):
    """e^x for x <= 0; it is 0 below -104. NaN stays NaN."""
    rest, half, power = _exponential(tl.where(x < -104.0, -104.0, x), 0.0)
    return (1.0 + rest) * half * power


@triton.jit
def _scaled_erfc(x):
    """e^(z^2) erfc(z) for 0 <= z <= 10.3 with x = sqrt(2) z, and the relative error of its last rounding."""
    t = (x - 3 * _ROOT2) / (x + 3 * _ROOT2)
    rest = t * _polynomial(_ERFC, 9, t)
    value = _ERFC_FIRST + rest
    lost = (rest - (value - _ERFC_FIRST) + _ERFC_FIRST_LOW) * (2 * _ROOT2 - 2.0 * value)
    return value / (x + _ROOT2 / 2), lost


@triton.jit
def _with_sign_of(x, sign):
    return (x.to(tl.int32, bitcast=True) | (sign.to(tl.int32, bitcast=True) & -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _tanh(x):
    a, z = tl.abs(x), x * x
    e = _exp_negative(-2.0 * a)
    return tl.where(a < 0.625, x + x * z * _polynomial(_TANH, 4, z), _with_sign_of((1.0 - e) / (1.0 + e), x))


@triton.jit
def _erf(x):
    a = tl.abs(x)
    z = tl.where(a > 10.0, 10.0, a)
    tail, lost = _scaled_erfc(z * _ROOT2)
    return tl.where(a < 1.0, x * _polynomial(_ERF, 6, x * x), _with_sign_of(1.0 - _exp_negative(-z * z) * tail, x))


@triton.jit
def _gelu(x):
    a = tl.abs(x)
    z = tl.where(a > 14.5, 14.5, a)
    tail, lost = _scaled_erfc(z)
    high = (z.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)  # its square is exact
    rest, half, power = _exponential(-0.5 * high * high, -0.5 * (z - high) * (z + high))
    rest = 1.0 + (rest + lost)
    negative = tl.where(a > 14.5, x * 0.0, x * (0.5 * tail) * rest * half * power)
    positive = x * (1.0 - 0.5 * tail * rest * half * power)
    near = x * (0.5 + x * (_ROOT2 / 4) * _polynomial(_ERF, 6, 0.5 * x * x))
    return tl.where(a < 0.5, near, tl.where(x < 0.0, negative, positive))


@triton.jit
def _silu(x):
    a = tl.abs(x)
    rest, half, power = _exponential(-tl.where(a > 120.0, 120.0, a), 0.0)
    e = (1.0 + rest) * half * power
    negative = tl.where(a > 120.0, x * 0.0, x * (1.0 + rest) / (1.0 + e) * half * power)
    return tl.where(x < 0.0, negative, x / (1.0 + e))


@triton.jit
def cosine(x, QUARTERS: tl.constexpr):
    """cos(x + QUARTERS pi / 2)."""
    wide = x.to(tl.float64)
    shifted = wide * _TWO_OVER_PI + _ROUND64
    n = shifted - _ROUND64
    quadrant = shifted.to(tl.int64, bitcast=True).to(tl.int32) + QUARTERS  # the low bits of `shifted` hold n
    r = ((wide - n * _HALF_PI) - n * _HALF_PI_LOW).to(x.dtype)
    r = tl.where(tl.abs(x) < 2.0**40, r, x * 0.0)
    z = r * r
    if x.dtype == tl.float64:
        sine, cosine = _polynomial(_SIN64, 7, z), _polynomial(_COS64, 6, z)
    else:
        sine, cosine = _polynomial(_SIN, 2, z), _polynomial(_COS, 2, z)
    sine, cosine = r + r * z * sine, (1.0 - 0.5 * z) + z * z * cosine
    y = tl.where((quadrant & 1) != 0, sine, cosine)
    return tl.where(((quadrant + 1) & 2) != 0, -y, y)


@triton.jit
def _activate64(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        e = tl.exp(-2.0 * tl.abs(x))
        y = (1.0 - e) / (1.0 + e)
        return tl.where(x < 0.0, -y, y)
    elif ACTIVATION == "erf":
        return tl.erf(x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * _ROOT_HALF))
    else:
        return x / (1.0 + tl.exp(-x))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """sigma(x) in the dtype of x, float32 or float64. `SLOPE` is the slope of leaky_relu."""
    if ACTIVATION == "identity":
        return x
    elif ACTIVATION == "relu":
        return tl.where(x <= 0.0, 0.0, x)  # NaN stays NaN
    elif ACTIVATION == "abs":
        return tl.abs(x)
    elif ACTIVATION == "leaky_relu":
        return tl.where(x > 0.0, x, SLOPE * x)
    elif ACTIVATION == "sign":
        return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))
    elif ACTIVATION == "step":
        return tl.where(x > 0.0, 1.0, 0.0).to(x.dtype)
    elif ACTIVATION == "cos":
        return cosine(x, 0)
    elif x.dtype == tl.float64:
        return _activate64(x, ACTIVATION)
    elif ACTIVATION == "tanh":
        return _tanh(x)
    elif ACTIVATION == "erf":
        return _erf(x)
    elif ACTIVATION == "gelu":
        return _gelu(x)
    else:
        tl.static_assert(ACTIVATION == "silu", "no such activation")
        return _silu(x)


@triton.jit
def modulus(re, im):
    """sqrt(re^2 + im^2), without overflow. NaN stays NaN."""
    re, im = tl.abs(re), tl.abs(im)
    large = tl.maximum(re, im, propagate_nan=tl.PropagateNan.ALL)
    ratio = tl.minimum(re, im) / tl.where(large == 0, 1.0, large)
    return large * tl.sqrt(1 + ratio * ratio)
