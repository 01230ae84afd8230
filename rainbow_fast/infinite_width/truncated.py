# SPDX-License-Identifier: BSD-3-Clause
"""Moments of Gaussian pairs where both numbers are positive: E[x^i y^j; x > 0, y > 0] for i and j up to 2.

Sources: the moments of a truncated bivariate normal distribution, Rosenbaum (1961), here by Stein's lemma; its
distribution function, Owen (1956).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast.infinite_width.gaussian_pairs import Pairs

TINY = 1e-150


class Truncated(NamedTuple):
    """What the moments consist of.

    Attributes:
        both: ``P(x > 0, y > 0)``.
        x_is_zero, y_is_zero: the standard normal densities at a/s and at b/t.
        y_at_zero, x_at_zero: the mean of y over its standard deviation, where x = 0, and the same of x where y = 0.
    """

    both: Tensor
    x_is_zero: Tensor
    y_is_zero: Tensor
    y_at_zero: Tensor
    x_at_zero: Tensor


def truncated(pairs: Pairs) -> Truncated:
    """The parts of the moments.

    Raises:
        ImportError: there is no scipy, which has Owen's T function.
    """
    h, k, sin = ratio(pairs.a, pairs.s), ratio(pairs.b, pairs.t), pairs.angles.sin.clamp(min=TINY)
    cos, (near, far) = pairs.angles.cos, pairs.angles.half_sines

    def conditional(x: Tensor, y: Tensor) -> Tensor:
        """(x - cos y) / sin, without cancellation when cos is near 1 or -1."""
        return torch.where(cos > 0, x - y + 2 * near * y, x + y - 2 * far * y) / sin

    h_given_k, k_given_h = conditional(h, k), conditional(k, h)
    half = (ndtr(h) + ndtr(k)) / 2 - 0.5 * (h * k < 0)
    both = (half - _owen(h, k_given_h / h) - _owen(k, h_given_k / k)).clamp(min=0)
    return Truncated(both, density(h), density(k), k_given_h, h_given_k)


def first_moments(pairs: Pairs, parts: Truncated) -> tuple[Tensor, Tensor]:
    """``E[x; x > 0, y > 0]`` and ``E[y; x > 0, y > 0]``."""
    cos = pairs.angles.cos
    x_edge = parts.x_is_zero * ndtr(parts.y_at_zero)  # where x = 0 and y > 0
    y_edge = parts.y_is_zero * ndtr(parts.x_at_zero)
    x = pairs.a * parts.both + pairs.s * (x_edge + cos * y_edge)
    y = pairs.b * parts.both + pairs.t * (y_edge + cos * x_edge)
    return x, y


def product_moment(pairs: Pairs, parts: Truncated) -> Tensor:
    """``E[x y; x > 0, y > 0]``."""
    a, b, s, t, c = pairs.a, pairs.b, pairs.s, pairs.t, pairs.covariance
    corner = parts.y_is_zero * density(parts.x_at_zero)  # where both are 0, but for a factor
    edges = a * t * parts.y_is_zero * ndtr(parts.x_at_zero) + b * s * parts.x_is_zero * ndtr(parts.y_at_zero)
    return (a * b + c) * parts.both + s * t * pairs.angles.sin * corner + edges


def square_moment(pairs: Pairs, parts: Truncated) -> Tensor:
    """``E[x^2 y^2; x > 0, y > 0]``."""
    a, b, s, t, c = pairs.a, pairs.b, pairs.s, pairs.t, pairs.covariance
    x, y = first_moments(pairs, parts)
    product = product_moment(pairs, parts)
    x_y2 = b * product + t.square() * x + c * y
    at_zero = parts.y_at_zero * ndtr(parts.y_at_zero) + density(parts.y_at_zero)  # E[y+] where x = 0, but for a factor
    edge = pairs.angles.cos * pairs.angles.sin * parts.x_is_zero * at_zero
    y2 = b * y + t.square() * (parts.both + edge)
    return a * x_y2 + s.square() * y2 + 2 * c * product


def relu_mean(s: Tensor, a: Tensor) -> Tensor:
    """``E[x; x > 0]`` for x = a + s X."""
    h = ratio(a, s)
    return a * ndtr(h) + s * density(h)


def ratio(a: Tensor, s: Tensor) -> Tensor:
    """a / s, made finite and nonzero: magnitudes below TINY become +TINY."""
    value = (a / s.clamp(min=TINY)).clamp(-1 / TINY, 1 / TINY)
    return torch.where(value.abs() < TINY, torch.full_like(value, TINY), value)


def density(x: Tensor) -> Tensor:
    """The standard normal density."""
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def ndtr(x: Tensor) -> Tensor:
    """The standard normal distribution function."""
    return torch.special.ndtr(x)


def _owen(h: Tensor, a: Tensor) -> Tensor:
    try:
        from scipy.special import owens_t
    except ImportError as error:
        raise ImportError('kernels with a shift need scipy: pip install "rainbow_fast[analysis]"') from error
    return torch.from_numpy(owens_t(h.numpy(), a.numpy()))
