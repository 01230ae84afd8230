# SPDX-License-Identifier: BSD-3-Clause
"""The rational functions of polar, as in csrc/cpu/zolotarev.h, for a batch at a time; computed on the host.

Source: Nakatsukasa and Freund, SIAM Review 58 (2016), 461-493.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LANDEN = 8  # steps after which the modulus is below 1e-30, for any lower end >= 1e-4


class Rational(NamedTuple):
    """The functions x -> scale x (1 + sum_j weight_j / (x^2 + pole_j)) of a batch, in float64."""

    pole: Tensor  # (b, count)
    weight: Tensor  # (b, count)
    scale: Tensor  # (b,)

    def of(self, x: Tensor) -> Tensor:
        return self.scale * x * (1 + (self.weight / (x[:, None] ** 2 + self.pole)).sum(1))

    def shifts(self, factor: Tensor) -> Tensor:
        """The coefficients of R and 1 in ``factor R`` and in each ``factor R + pole``: (b, 1 + count, 2)."""
        added = torch.nn.functional.pad(self.pole.to(factor.device), (1, 0))
        return torch.stack([factor[:, None].expand(len(factor), added.shape[1]), added.expand(len(factor), -1)], 2)

    def products(self) -> Tensor:
        """The coefficients of R, each (R + pole)^-1 and 1 in Z(R) and in R Z(R): (b, 2, 2 + count).

        Z is defined by f(x) = x Z(x^2). R Z needs no product, because R (R + pole)^-1 = 1 - pole (R + pole)^-1.
        """
        one = torch.ones_like(self.pole[:, :1])
        z = torch.cat([0 * one, self.weight, one], 1)
        rz = torch.cat([one, -self.weight * self.pole, self.weight.sum(1, keepdim=True)], 1)
        return self.scale[:, None, None] * torch.stack([z, rz], 1)


def zolotarev(low: Tensor, count: int) -> Rational:
    """The functions with `count` poles that are nearest to a constant on [low, 1].

    On this interval, they are smallest at `low`; the largest value is 1, at 1.
    """
    # Jacobi's sn / cn at i K' / (2 count + 1) with complementary modulus low, by descending Landen transformations
    a, b, c = torch.ones_like(low), low, (1 - low * low).sqrt()
    ratios = []
    for _ in range(LANDEN):
        a, b, c = (a + b) / 2, (a * b).sqrt(), (a - b) / 2
        ratios.append((c / a)[:, None])
    share = torch.arange(1, 2 * count + 1, dtype=low.dtype, device=low.device) / (2 * count + 1)
    angle = 2.0**LANDEN * math.pi / 2 * share.expand(len(low), -1)
    for ratio in reversed(ratios):
        angle = (angle + (ratio * angle.sin()).asin()) / 2
    node = (low[:, None] * angle.tan()) ** 2
    pole, between = node[:, 0::2], node[:, 1::2]
    others = pole[:, :, None] - pole[:, None, :] + torch.eye(count, dtype=low.dtype, device=low.device)
    weight = -(pole[:, :, None] - between[:, None, :]).prod(2) / others.prod(2)
    f = Rational(pole, weight, torch.ones_like(low))
    return f._replace(scale=1 / f.of(torch.ones_like(low)))
