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
FEWEST_TERMS, MOST_TERMS = 64, 4096
STEEPEST = 24.0  # largest s for which the trapezoidal rule at NODES gives the mean of tanh to 1e-11
SAMPLES = 256  # samples whose values at the nodes are in memory at a time: 3.4 MB each for x, sigma(x) and its square


def mean(name: str, sigma: Function, s: Tensor, a: Tensor) -> Tensor:
    """E[sigma(a + s X)], with the shape (N,) of s and a.

    Raises:
        ValueError: s is above 24, or sigma is no pointwise function, is not finite, or grows too fast.
    """
    if (s > STEEPEST).any():
        raise ValueError(f"u: a row of norm {float(s.max()):.3g} makes {name} too steep: wanted {STEEPEST:g}")
    weights = _weights()
    parts = zip(s.split(SAMPLES), a.split(SAMPLES), strict=True)
    return torch.cat([_values(name, sigma, *part) @ weights for part in parts])


def coefficients(name: str, sigma: Function, s: Tensor, a: Tensor) -> Tensor:
    r"""c_j = E[sigma(a + s X) He_j(X)] / sqrt(j!), (N, K) for s and a (N,). `series` computes expectations from them.

    K is the smallest power of two from 64 on for which sum_{j >= K} c_j^2 <= 1e-12 E[sigma^2] in every row. The last
    coefficients of a row may be zero instead, where it needs fewer. Beside them, the memory is that of the values of
    256 samples at the nodes.

    Raises:
        ValueError: as `mean`; or more than 4096 terms are needed. This happens from s = 7.5 on for tanh, 16 for silu
            and gelu, and for functions with kinks or steps.
    """
    basis, weights = _polynomials(FEWEST_TERMS), _weights()
    c = torch.zeros(len(s), FEWEST_TERMS, dtype=torch.float64, device=s.device)
    for rows in torch.arange(len(s), device=s.device).split(SAMPLES):
        values = _values(name, sigma, s[rows], a[rows])
        power = values.square() @ weights
        while True:
            terms = (values * weights) @ basis.T
            short = power - terms.square().sum(1) > TAIL * power
            if not short.any():
                break
            if 2 * len(basis) > MOST_TERMS:
                steepest = float(s[rows][short].max())
                raise ValueError(f"u: a row of norm {steepest:.3g} makes {name} too steep for its Hermite series")
            basis = _polynomials(2 * len(basis))
        if len(basis) > c.shape[1]:
            c = torch.nn.functional.pad(c, (0, len(basis) - c.shape[1]))
        c[rows] = terms
    return c


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


def _polynomials(count: int) -> Tensor:
    """He_j / sqrt(j!) at the nodes for j < count, (count, nodes), by their recurrence, which is stable."""
    rows = torch.empty(count, len(NODES), dtype=torch.float64, device=NODES.device)
    rows[0], rows[1] = 1.0, NODES
    for j in range(2, count):
        rows[j] = (NODES * rows[j - 1] - math.sqrt(j - 1) * rows[j - 2]) / math.sqrt(j)
    return rows


def _weights() -> Tensor:
    return density(NODES) / 64
