# SPDX-License-Identifier: BSD-3-Clause
"""E[sigma(x) sigma(y)] and E[sigma(x)] of any smooth activation, by Hermite series and the trapezoidal rule.

x = a + s X and y = b + t Y, where X and Y are standard normal with correlation cos(angle).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rainbow_fast.infinite_width.gaussian_pairs import Angles
from rainbow_fast.infinite_width.truncated import density

Function = Callable[[Tensor], Tensor]

NODES = torch.arange(-13 * 64, 13 * 64 + 1, dtype=torch.float64, device="cpu") / 64
# The Gaussian weight outside of these nodes is below 1e-18.
TAIL = 1e-12  # largest share of E[sigma^2] in the omitted terms of a series
MOST_TERMS = 4096
STEEPEST = 24.0  # largest s for which the trapezoidal rule at NODES gives the mean of tanh to 1e-11


def mean(name: str, sigma: Function, s: Tensor, a: Tensor) -> Tensor:
    """E[sigma(a + s X)], with the shape (N,) of s and a.

    Raises:
        ValueError: s is above 24, or sigma is no pointwise function, is not finite, or grows too fast.
    """
    if (s > STEEPEST).any():
        raise ValueError(f"u: a row of norm {float(s.max()):.3g} makes {name} too steep: wanted {STEEPEST:g}")
    return _values(name, sigma, s, a) @ _weights()


def coefficients(name: str, sigma: Function, s: Tensor, a: Tensor) -> Tensor:
    r"""c_j = E[sigma(a + s X) He_j(X)] / sqrt(j!), (N, K) for s and a (N,). `series` computes expectations from them.

    K is the smallest power of two from 64 on for which sum_{j >= K} c_j^2 <= 1e-12 E[sigma^2] in every row.

    Raises:
        ValueError: as `mean`; or more than 4096 terms are needed. This happens from s = 7.5 on for tanh, 16 for silu
            and gelu, and for functions with kinks or steps.
    """
    values, weights = _values(name, sigma, s, a), _weights()
    power = values.square() @ weights
    polynomials = [torch.ones_like(NODES), NODES]
    terms = 64
    while True:
        for j in range(len(polynomials), terms):  # the recurrence is stable for normalised polynomials
            polynomials.append((NODES * polynomials[-1] - math.sqrt(j - 1) * polynomials[-2]) / math.sqrt(j))
        c = values @ (torch.stack(polynomials, 1) * weights.unsqueeze(1))
        left = power - c.square().sum(1)
        if (left <= TAIL * power).all():
            return c
        terms *= 2
        if terms > MOST_TERMS:
            steepest = float(s[left > TAIL * power].max())
            raise ValueError(f"u: a row of norm {steepest:.3g} makes {name} too steep for its Hermite series")


def series(left: Tensor, right: Tensor, angles: Angles) -> Tensor:
    """E[sigma(x) sigma(y)] = sum_j c_j c'_j cos(angle)^j, by Mehler's formula.

    The coefficients are (..., K). Without their last axis they broadcast to the shape of the angles.
    """
    cos = angles.cos
    total = torch.zeros_like(cos)
    rows, columns = (terms.movedim(-1, 0).contiguous() for terms in (left, right))
    for j in reversed(range(len(columns))):
        total.mul_(cos).addcmul_(rows[j], columns[j])
    return total


def _values(name: str, sigma: Function, s: Tensor, a: Tensor) -> Tensor:
    """sigma at the nodes, (N, nodes)."""
    x = a.unsqueeze(1) + s.unsqueeze(1) * NODES
    values = pointwise(name, sigma, x)
    rim = values[:, [0, -1]].square() * density(NODES[-1])
    if not bool((rim <= TAIL * (values.square() @ _weights()).unsqueeze(1)).all()):
        raise ValueError(f"activation: {name} grows too fast for rows of norm {float(s.max()):.3g}")
    return values


def pointwise(name: str, sigma: Function, x: Tensor) -> Tensor:
    """sigma(x), float64, after a check that it is a finite number for each of x."""
    values = sigma(x)
    if not isinstance(values, Tensor) or values.shape != x.shape:
        what = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"activation: {name} gives {what} for shape {tuple(x.shape)}: wanted a pointwise function")
    if not bool(values.isfinite().all()):
        raise ValueError(f"activation: {name} is not finite between {float(x.min()):.3g} and {float(x.max()):.3g}")
    return values.double()


def _weights() -> Tensor:
    return density(NODES) / 64
