# SPDX-License-Identifier: BSD-3-Clause
"""Moments of complex feature maps, given as pairs of real numbers on a last axis."""

from __future__ import annotations

import torch
from torch import Tensor

from rainbow_fast.rainbow.channel_moments import ChannelMoments, narrower, sums


class PairMoments(ChannelMoments):
    """Count, complex mean and real variance ``E|x - E x|^2`` of every channel of pairs x, (N, d, *space, 2).

    As `ChannelMoments`, with `count` the number of complex numbers of a channel, `total` (d, 2), and the mean (d, 2).
    One real center of a channel is subtracted from both parts.
    """

    def add_shifted(self, x: Tensor, center: Tensor) -> None:
        self.add(*sums_of_pairs(x), x.numel() // max(2 * x.shape[1], 1), center)
        self.dtype = narrower(self.dtype, x.dtype)

    def add(self, total: Tensor, square: Tensor, count: int, center: Tensor | None = None) -> None:
        center = torch.zeros_like(square) if center is None else center
        if self.total is None or self.square is None or self.center is None or not self.count:
            self.center, self.total, self.square = center, total.clone(), square.clone()
        else:
            shift = center - self.center
            self.square += square + 2 * shift * (total.sum(1) + count * shift)
            self.total += total + count * shift.unsqueeze(1)
        self.count += count

    def off_from(self, center: Tensor | None) -> Tensor:
        assert self.center is not None and self.total is not None and center is not None
        return self.total / self.count + (self.center - center).unsqueeze(1)

    @property
    def mean(self) -> Tensor:
        assert self.center is not None
        return self.center.unsqueeze(1) + self.off

    @property
    def power(self) -> float:
        return self.spread + float(self.mean.square().sum())

    @property
    def flat(self) -> Tensor:
        return self.variance() <= (2 * torch.finfo(self.dtype).eps) ** 2 * self.mean.square().sum(1)

    def second_moment_about(self, center: Tensor, factor: Tensor) -> float:
        each = self.variance() + (self.mean - center).square().sum(1)
        return float((each * factor.square()).sum())

    def variance(self, *, unbiased: bool = False) -> Tensor:
        assert self.square is not None
        variance = (self.square / self.count - self.off.square().sum(1)).clamp(min=0)
        return variance * (self.count / max(self.count - 1, 1)) if unbiased else variance


def sums_of_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the parts of x (N, d, *space, 2) over samples and positions, (d, 2), and of |x|^2, (d,); float64."""
    return total_of_pairs(x), sums(x)[1]


def total_of_pairs(x: Tensor) -> Tensor:
    """Sums of the parts of x (N, d, *space, 2) over samples and positions, (d, 2) float64.

    Positions of one image are summed in the dtype of x. Sums of complex numbers are faster than those along an axis
    that is not the last one.
    """
    images = torch.view_as_complex(x).flatten(2).sum(2) if x.dim() > 3 else torch.view_as_complex(x)
    return torch.view_as_real(images.sum(0, dtype=torch.complex128))
