# SPDX-License-Identifier: BSD-3-Clause
"""E[sigma(x) sigma(y)] and E[sigma(x)] for Gaussian x and y, with the activations of `rainbow_fast.random_features`.

x = a + s X and y = b + t Y, where X and Y are standard normal with correlation cos(angle).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.special import owens_t
from torch import Tensor

from rainbow_fast.ops.activations import ACTIVATIONS

SLOPES = {"relu": 0.0, "identity": 1.0, "abs": -1.0}  # slopes for x < 0; that of leaky_relu is an argument
STEPS = ("step", "sign")
CENTRED = ("erf", "gelu", "cos")  # these have closed forms for a = b = 0 only
TINY = 1e-150

NODES = (
    torch.arange(-13 * 64, 13 * 64 + 1, dtype=torch.float64, device="cpu") / 64
)  # the Gaussian weight outside of these nodes is below 1e-18
TAIL = 1e-12  # largest share of E[sigma^2] in the omitted terms of a series
MOST_TERMS = 4096
STEEPEST = 24.0  # largest s for which the trapezoidal rule at NODES gives the mean of tanh to 1e-11


class Angles(NamedTuple):
    """Angles between directions. Both `angle` and `complement` = pi - angle are accurate to their last places."""

    angle: Tensor  # (N, N')
    complement: Tensor

    @property
    def cos(self) -> Tensor:
        return torch.where(self.angle < self.complement, self.angle.cos(), -self.complement.cos())

    @property
    def sin(self) -> Tensor:
        return torch.minimum(self.angle, self.complement).sin()


def slope_of(activation: str, negative_slope: float) -> float | None:
    """The slope of sigma for x < 0 if sigma is piecewise linear with slope 1 for x > 0, else None."""
    return negative_slope if activation == "leaky_relu" else SLOPES.get(activation)


def centred(activation: str, negative_slope: float, s: Tensor, t: Tensor, angles: Angles) -> Tensor:
    """E[sigma(x) sigma(y)] in closed form for a = b = 0, for all activations except tanh and silu; s (N, 1), t (1, N').

    Sources: piecewise linear and step: Cho and Saul (2009), orders 1 and 0; erf: Williams (1998); gelu: Tsuchida et al.
    (2021), here by Stein's lemma; cos: the characteristic function.
    """
    angle, complement = angles
    slope = slope_of(activation, negative_slope)
    if slope is not None:
        return s * t * ((1 + slope**2) * _arc(complement) - 2 * slope * _arc(angle)) / (2 * math.pi)
    if activation in STEPS:
        value = complement / (2 * math.pi) if activation == "step" else (complement - angle) / math.pi
        return value * ((s > 0) & (t > 0))  # both are 0 at 0
    if activation == "cos":
        near, far = ((s - t).square() + 4 * s * t * (half / 2).sin().square() for half in angles)
        return (torch.exp(-near / 2) + torch.exp(-far / 2)) / 2
    c, rest = s * t * angles.cos, (s * t * angles.sin).square()
    p, q = s.square(), t.square()
    if activation == "erf":
        return 2 / math.pi * torch.atan2(2 * c, (1 + 2 * p + 2 * q + 4 * rest).sqrt())
    root = (1 + p + q + rest).sqrt()
    density = (rest + c.square() * (1 / (1 + p) + 1 / (1 + q))) / root
    return (c * torch.atan2(root, -c) + density) / (2 * math.pi)


def shifted(
    activation: str, negative_slope: float, s: Tensor, t: Tensor, angles: Angles, a: Tensor, b: Tensor
) -> Tensor:
    """E[sigma(x) sigma(y)] in closed form for any a and b, for step, sign and piecewise linear activations.

    s and a are (N, 1), t and b are (1, N').

    Source: moments of a truncated bivariate normal distribution, Rosenbaum (1961); its distribution function, Owen
    (1956).
    """
    h, k, sin = _ratio(a, s), _ratio(b, t), angles.sin.clamp(min=TINY)
    cos, near, far = angles.cos, *((half / 2).sin().square() for half in angles)

    def conditional(x: Tensor, y: Tensor) -> Tensor:
        """(x - cos y) / sin, without cancellation when cos is near 1 or -1."""
        return torch.where(cos > 0, x - y + 2 * near * y, x + y - 2 * far * y) / sin

    h_given_k, k_given_h = conditional(h, k), conditional(k, h)
    both = _both_positive(h, k, h_given_k, k_given_h)
    if activation in STEPS:
        value = both if activation == "step" else 4 * both - 2 * _ndtr(h) - 2 * _ndtr(k) + 1
        return value * (((s > 0) | (a != 0)) & ((t > 0) | (b != 0)))
    c = s * t * cos
    positive = (a * b + c) * both + s * t * sin * torch.exp(-(k.square() + h_given_k.square()) / 2) / (2 * math.pi)
    positive += a * t * _density(k) * _ndtr(h_given_k) + b * s * _density(h) * _ndtr(k_given_h)
    slope = slope_of(activation, negative_slope)
    assert slope is not None
    if slope == 0:
        return positive
    mixed = b * _relu_mean(s, a) + a * _relu_mean(t, b) + c * (_ndtr(h) + _ndtr(k))  # E[x+ y] + E[x y+]
    return (1 - slope) ** 2 * positive + slope * (1 - slope) * mixed + slope**2 * (a * b + c)


def mean(activation: str, negative_slope: float, s: Tensor, a: Tensor) -> Tensor:
    """E[sigma(a + s X)], with the shape of s and a."""
    slope = slope_of(activation, negative_slope)
    if slope is not None:
        return slope * a + (1 - slope) * _relu_mean(s, a)
    if activation in STEPS:
        value = _ndtr(_ratio(a, s))
        return (value if activation == "step" else 2 * value - 1) * ((s > 0) | (a != 0))
    if (s > STEEPEST).any():
        raise ValueError(f"u: a row of norm {float(s.max()):.3g} makes {activation} too steep: wanted {STEEPEST:g}")
    return _values(activation, negative_slope, s, a) @ _weights()


def hermite_coefficients(activation: str, negative_slope: float, s: Tensor, a: Tensor) -> Tensor:
    r"""c_j = E[sigma(a + s X) He_j(X)] / sqrt(j!), (N, K) for s and a (N,). `series` computes expectations from them.

    K is the smallest power of two from 64 on for which sum_{j >= K} c_j^2 <= 1e-12 E[sigma^2] in every row.

    Raises:
        ValueError: more than 4096 terms are needed. This happens from s = 7.5 on for tanh, 10 for erf, 16 for silu and
            gelu.
    """
    values, weights = _values(activation, negative_slope, s, a), _weights()
    power = values.square() @ weights
    polynomials = [torch.ones_like(NODES), NODES]
    terms = 64
    while True:
        for j in range(len(polynomials), terms):  # the recurrence is stable for normalised polynomials
            polynomials.append((NODES * polynomials[-1] - math.sqrt(j - 1) * polynomials[-2]) / math.sqrt(j))
        coefficients = values @ (torch.stack(polynomials, 1) * weights.unsqueeze(1))
        left = power - coefficients.square().sum(1)
        if (left <= TAIL * power).all():
            return coefficients
        terms *= 2
        if terms > MOST_TERMS:
            steepest = float(s[left > TAIL * power].max())
            raise ValueError(f"u: a row of norm {steepest:.3g} makes {activation} too steep for its Hermite series")


def series(left: Tensor, right: Tensor, angles: Angles) -> Tensor:
    """E[sigma(x) sigma(y)] = sum_j c_j c'_j cos(angle)^j, (N, N') from (N, K) and (N', K): Mehler's formula."""
    cos = angles.cos
    total = torch.zeros_like(cos)
    rows = right.T.contiguous()
    for j in reversed(range(len(rows))):
        total.mul_(cos).addcmul_(left[:, j : j + 1], rows[j : j + 1])
    return total


def _arc(x: Tensor) -> Tensor:
    """sin x - x cos x, with full relative accuracy also near 0."""
    square = x.square()
    small = torch.zeros_like(x)
    for j in reversed(range(1, 7)):
        small = (small * square) + (-1) ** (j + 1) * 2 * j / math.factorial(2 * j + 1)
    return torch.where(x < 0.3, small * square * x, x.sin() - x * x.cos())


def _both_positive(h: Tensor, k: Tensor, h_given_k: Tensor, k_given_h: Tensor) -> Tensor:
    """P(X > -h, Y > -k)."""
    half = (_ndtr(h) + _ndtr(k)) / 2 - 0.5 * (h * k < 0)
    return (half - _owen(h, k_given_h / h) - _owen(k, h_given_k / k)).clamp(min=0)


def _owen(h: Tensor, a: Tensor) -> Tensor:
    return torch.from_numpy(owens_t(h.numpy(), a.numpy()))


def _relu_mean(s: Tensor, a: Tensor) -> Tensor:
    h = _ratio(a, s)
    return a * _ndtr(h) + s * _density(h)


def _ratio(a: Tensor, s: Tensor) -> Tensor:
    """a / s, made finite and nonzero: magnitudes below TINY become +TINY."""
    ratio = (a / s.clamp(min=TINY)).clamp(-1 / TINY, 1 / TINY)
    return torch.where(ratio.abs() < TINY, torch.full_like(ratio, TINY), ratio)


def _values(activation: str, negative_slope: float, s: Tensor, a: Tensor) -> Tensor:
    return ACTIVATIONS[activation][0](a.unsqueeze(1) + s.unsqueeze(1) * NODES, negative_slope)


def _weights() -> Tensor:
    return _density(NODES) / 64


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _ndtr(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)
