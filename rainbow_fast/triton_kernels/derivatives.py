# SPDX-License-Identifier: BSD-3-Clause
"""The derivatives of the non-linearities inside Triton kernels, as in csrc/cpu/derivative.h.

At a corner, the derivative is that of rainbow_fast/ops/activations.py.
"""

import triton
import triton.language as tl

from rainbow_fast.triton_kernels.activations import (
    _ROOT_HALF,
    _exp_negative,
    _exponential,
    _scaled_erfc,
    cosine,
)

_TWO_OVER_ROOT_PI = tl.constexpr(1.12837916709551257390)
_DENSITY = tl.constexpr(0.39894228040143267794)  # density of the normal distribution at 0


@triton.jit
def _gaussian(z, FACTOR: tl.constexpr):
    """e^(-FACTOR z^2) for z >= 0 and FACTOR 1 or 0.5, as `_exponential` returns it; z is split to square it exactly."""
    high = (z.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)  # its square is exact
    return _exponential(-FACTOR * high * high, -FACTOR * (z - high) * (z + high))


@triton.jit
def _tanh_derivative(x):
    e = _exp_negative(-2.0 * tl.abs(x))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def _erf_derivative(x):
    a = tl.abs(x)
    rest, half, power = _gaussian(tl.where(a > 13.0, 13.0, a), 1.0)
    return tl.where(a > 13.0, 0.0, (1.0 + rest) * _TWO_OVER_ROOT_PI * half * power)


@triton.jit
def _gelu_derivative(x):
    """Phi(x) + x Phi'(x). Its value at x is 1 minus its value at -x."""
    a = tl.abs(x)
    z = tl.where(a > 14.5, 14.5, a)
    tail, lost = _scaled_erfc(z)
    rest, half, power = _gaussian(z, 0.5)
    negative = (0.5 * tail * (1.0 + (rest + lost)) - z * _DENSITY * (1.0 + rest)) * half * power
    negative = tl.where(a > 14.5, x * 0.0, negative)
    return tl.where(x < 0.0, negative, 1.0 - negative)


@triton.jit
def _silu_derivative(x, e):
    """t (1 + x (1 - t)) with t = 1 / (1 + e^-x), computed from e = e^-|x|."""
    large = 1.0 / (1.0 + e)
    small = e * large
    t, rest = tl.where(x < 0.0, small, large), tl.where(x < 0.0, large, small)
    return t * (1.0 + tl.where(small == 0.0, 0.0, x) * rest)


@triton.jit
def _differentiate64(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        e = tl.exp(-2.0 * tl.abs(x))
        return 4.0 * e / ((1.0 + e) * (1.0 + e))
    elif ACTIVATION == "erf":
        return tl.exp(-x * x) * _TWO_OVER_ROOT_PI
    elif ACTIVATION == "gelu":
        return 0.5 * (1.0 + tl.erf(x * _ROOT_HALF)) + x * _DENSITY * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "silu":
        return _silu_derivative(x, tl.exp(-tl.abs(x)))
    else:
        return cosine(x, 1)


@triton.jit
def differentiate(x, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """sigma'(x) in the dtype of x, float32 or float64. `SLOPE` is the slope of leaky_relu."""
    if ACTIVATION == "identity":
        return tl.full(x.shape, 1.0, x.dtype)
    elif ACTIVATION == "relu" or ACTIVATION == "leaky_relu":
        below: tl.constexpr = SLOPE if ACTIVATION == "leaky_relu" else 0.0
        return tl.where(x > 0.0, tl.full(x.shape, 1.0, x.dtype), below)  # with two numbers, the result would be float32
    elif ACTIVATION == "abs":
        return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, x))
    elif ACTIVATION == "sign" or ACTIVATION == "step":
        return tl.zeros(x.shape, x.dtype)
    elif x.dtype == tl.float64:
        return _differentiate64(x, ACTIVATION)
    elif ACTIVATION == "tanh":
        return _tanh_derivative(x)
    elif ACTIVATION == "erf":
        return _erf_derivative(x)
    elif ACTIVATION == "gelu":
        return _gelu_derivative(x)
    elif ACTIVATION == "silu":
        return _silu_derivative(x, _exp_negative(-tl.abs(x)))
    else:
        tl.static_assert(ACTIVATION == "cos", "no such activation")
        return cosine(x, 1)


@triton.jit
def through_modulus(grad, re, im):
    """The gradients of re and im for the gradient of the modulus: 0 at 0."""
    large = tl.maximum(tl.abs(re), tl.abs(im))
    divisor = tl.where(large == 0, 1.0, large)
    re, im = re / divisor, im / divisor
    size = tl.sqrt(re * re + im * im)
    grad /= tl.where(large == 0, 1.0, size)
    return grad * re, grad * im
