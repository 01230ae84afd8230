# SPDX-License-Identifier: BSD-3-Clause
"""Pairs of Gaussian numbers x = a + s X and y = b + t Y, with X and Y standard normal of correlation cos(angle)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NEAR = 0.05  # sines of half an angle below this are computed from the difference of the directions


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

    @property
    def half_sines(self) -> tuple[Tensor, Tensor]:
        """``sin^2(angle / 2)`` and ``sin^2(complement / 2)``: (1 - cos) / 2 and (1 + cos) / 2, without cancellation."""
        return (self.angle / 2).sin().square(), (self.complement / 2).sin().square()


class Pairs(NamedTuple):
    """All pairs of some x with some y. `s` and `t` are standard deviations, `a` and `b` means."""

    s: Tensor  # (N, 1)
    t: Tensor  # (1, N')
    angles: Angles
    a: Tensor  # (N, 1)
    b: Tensor  # (1, N')

    @property
    def covariance(self) -> Tensor:
        return self.s * self.t * self.angles.cos

    @property
    def determinant(self) -> Tensor:
        """``s^2 t^2 - covariance^2``."""
        return (self.s * self.t * self.angles.sin).square()

    @property
    def variances(self) -> tuple[Tensor, Tensor]:
        """The variances of x - y and of x + y."""
        near, far = (4 * self.s * self.t * half for half in self.angles.half_sines)
        apart = (self.s - self.t).square()
        return apart + near, apart + far

    def blurred(self, variance: float) -> Pairs:
        """x and y with independent noise of this variance in each."""
        p, q, c = self.s.square(), self.t.square(), self.covariance
        root = (variance**2 + variance * (p + q) + self.determinant).sqrt()
        angles = Angles(torch.atan2(root, c), torch.atan2(root, -c))
        return Pairs((p + variance).sqrt(), (q + variance).sqrt(), angles, self.a, self.b)


def angles_between(x: Tensor, y: Tensor, max_pairs: int) -> Angles:
    """The angles between unit vectors, ``2 atan2(|x - y|, |x + y|)`` (Kahan 2006); a right angle if a vector is zero.

    |x - y| and |x + y| are computed from the product of x and y, or from x and y themselves where that would cancel.
    """
    cos = x @ y.T
    halves = []
    for sign in (1, -1):
        half = ((1 - sign * cos) / 2).clamp(min=0).sqrt()
        near = (half < NEAR).nonzero()
        for pairs in near.split(max(max_pairs // max(x.shape[1], 1), 1)):
            i, j = pairs.unbind(1)
            half[i, j] = torch.linalg.vector_norm(x[i] - sign * y[j], dim=1) / 2
        halves.append(half)
    return Angles(2 * torch.atan2(*halves), 2 * torch.atan2(*halves[::-1]))


def angles_of(cos: Tensor) -> Angles:
    """The angles with these cosines, which are from -1 to 1 up to rounding."""
    near, far = ((1 - cos) / 2).clamp(min=0).sqrt(), ((1 + cos) / 2).clamp(min=0).sqrt()
    return Angles(2 * torch.atan2(near, far), 2 * torch.atan2(far, near))
