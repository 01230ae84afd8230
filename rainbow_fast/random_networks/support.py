# SPDX-License-Identifier: BSD-3-Clause
"""The support of a limiting spectrum, from its complement.

Outside of the support z is a rising function of w = -1 / m, with m the Stieltjes transform of the larger or smaller
companion matrix phi^T phi / T:

    z(w) = w + w mean of lambda / (w - c lambda),      z'(w) = 1 - c mean of lambda^2 / (w - c lambda)^2.

z' is concave between two neighbouring poles c lambda. So each gap of the support belongs to one interval between poles,
and there to the w between the two roots of z'; the w below all poles and above all poles give the outer edges.

Source: Silverstein and Choi, "Analysis of the limiting spectral distribution of large dimensional random matrices"
(1995).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BISECTIONS = 110  # halve an interval until its ends are neighbours in float64
MOST = 2**22  # numbers of (w, lambda) that are computed at a time


def support(values: Tensor, aspect: float) -> Tensor:
    """The intervals of the support without the point 0, (k, 2) float64, from left to right.

    Args:
        values: the lambda (T,), float64, at least 0, some above 0.
        aspect: c.
    """
    squares = aspect * values.square() / len(values)
    poles, order = (aspect * values)[values > 0].sort()
    squares = squares[values > 0][order]

    def excess(w: Tensor) -> Tensor:
        """-z'(w), below 0 outside of the support."""
        return _sums(lambda w: (squares / (w - poles).square()).sum(1), w, len(poles)) - 1

    def slope(w: Tensor) -> Tensor:
        """-z''(w)."""
        return _sums(lambda w: (-2 * squares / (w - poles) ** 3).sum(1), w, len(poles))

    reach = squares.sum().sqrt()  # so far from all poles, z' is positive
    first = _root(excess, poles[:1] - 2 * reach, poles[:1])
    last = _root(excess, poles[-1:] + 2 * reach, poles[-1:])
    # In a gap of width d between poles with squares p and q, p / x^2 + q / (d - x)^2 is at least
    # (p^(1/3) + q^(1/3))^3 / d^2, which must be below 1.
    wide = (squares[1:] ** (1 / 3) + squares[:-1] ** (1 / 3)) ** 3 < (poles[1:] - poles[:-1]).square()
    low, high = poles[:-1][wide], poles[1:][wide]
    top = _root(slope, low, high)
    gap = excess(top) < 0
    low, high, top = low[gap], high[gap], top[gap]
    left, right = _root(excess, top, low), _root(excess, top, high)
    w = torch.cat([first, torch.stack([left, right], 1).flatten(), last])

    def edge(w: Tensor) -> Tensor:
        return w * (1 + _sums(lambda w: (poles / (aspect * len(values)) / (w - poles)).sum(1), w, len(poles)))

    return edge(w).clamp(min=0).abs().view(-1, 2)


def _sums(function: Callable[[Tensor], Tensor], w: Tensor, terms: int) -> Tensor:
    """The function of w as a column, some of them at a time."""
    return torch.cat([function(part.unsqueeze(1)) for part in w.split(max(MOST // terms, 1))])


def _root(function: Callable[[Tensor], Tensor], negative: Tensor, positive: Tensor) -> Tensor:
    """Where a function changes its sign, by bisection; the result is on the negative side."""
    for _ in range(BISECTIONS):
        middle = (negative + positive) / 2
        below = function(middle) < 0
        negative, positive = torch.where(below, middle, negative), torch.where(below, positive, middle)
    return negative
