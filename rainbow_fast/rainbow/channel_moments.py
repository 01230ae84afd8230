# SPDX-License-Identifier: BSD-3-Clause
"""Mean and variance of channels over any number of batches, from sums about a center."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

from rainbow_fast.ops.center import first_center
from rainbow_fast.rainbow.positions import per_channel

BLOCK = 512  # samples
PIECE = 2**20  # numbers whose distance from the center is made at a time, and read again from the cache
SMALL = 1e-30  # squares below it are summed in float64, as float32 keeps few digits of them


class ChannelMoments:
    r"""Count, mean and variance of every channel of x, (N, d) or (N, d, *space); positions are samples.

        total = sum (x - center),    square = sum (x - center)^2,    var x = square / count - (total / count)^2

    The center is near the mean of some samples of the first batch, and the dtype of x (float32 for half precision)
    holds it exactly. So x - center is about as large as x varies, and neither mean nor variance is a difference of
    large numbers: whatever the mean, the variance of float32 data is right to 1e-6 of itself, and the mean to 1e-6 of
    the standard deviation. (Where the first batch, n of all N samples, is unlike the others, to N / n times that at
    worst.) A channel of equal numbers has the variance 0.

    Attributes:
        count: samples seen.
        center, total, square: (d,) float64; None before the first batch.
        dtype: that was computed in, the narrowest of several; float64 for sums made elsewhere.
    """

    def __init__(self) -> None:
        self.count = 0
        self.center: Tensor | None = None
        self.total: Tensor | None = None
        self.square: Tensor | None = None
        self.dtype = torch.float64

    def update(self, x: Tensor) -> None:
        """Add a batch."""
        x, center = self.centered_on(x)
        for piece in x.split(piece_size(x)):
            self.add_shifted(piece - per_channel(center, x), center)

    def centered_on(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x in float32 or better, with a center that its dtype holds: that of these moments, or one of its own if they
        are still empty; (d,) float64."""
        x = x.detach()
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        center = self.center if self.center is not None and self.count else first_center(x)
        held = torch.equal(center.to(x.dtype).double(), center)
        return x if held else x.double(), center  # not held where the dtype is narrower than before, or by NaN

    def add_shifted(self, x: Tensor, center: Tensor) -> None:
        """Add a batch from which a center has been taken off."""
        self.add(*sums(x), x.numel() // max(x.shape[1], 1), center)
        self.dtype = _narrower(self.dtype, x.dtype)

    def add(self, total: Tensor, square: Tensor, count: int, center: Tensor | None = None) -> None:
        """Add sums about a center, or about 0; they are moved to the center of the sums that are there, if any are."""
        center = torch.zeros_like(total) if center is None else center
        if self.total is None or self.square is None or self.center is None or not self.count:
            self.center, self.total, self.square = center, total.clone(), square.clone()
        elif center is self.center:
            self.total += total
            self.square += square
        else:
            shift = center - self.center
            self.total += total + count * shift
            self.square += square + shift * (2 * total + count * shift)
        self.count += count

    def merge(self, other: ChannelMoments) -> None:
        """Add what another has seen, of the same channels."""
        if other.total is not None and other.square is not None:
            self.add(other.total, other.square, other.count, other.center)
            self.dtype = _narrower(self.dtype, other.dtype)

    def not_finite(self) -> int | None:
        """The first channel that has held a value that is not finite, None if there is none."""
        assert self.square is not None
        bad = (~torch.isfinite(self.square)).nonzero()
        return int(bad[0]) if len(bad) else None

    @property
    def off(self) -> Tensor:
        """E[x] - center, (d,)."""
        return self.off_from(self.center)

    def off_from(self, center: Tensor | None) -> Tensor:
        """E[x] less another center, (d,)."""
        assert self.center is not None and self.total is not None and center is not None
        return self.total / self.count + (self.center - center)

    @property
    def mean(self) -> Tensor:
        """E[x], (d,)."""
        assert self.center is not None
        return self.center + self.off

    @property
    def power(self) -> float:
        """E|x|^2, summed over channels."""
        return float((self.variance() + self.mean.square()).sum())

    @property
    def spread(self) -> float:
        """E|x - E[x]|^2, summed over channels."""
        return float(self.variance().sum())

    @property
    def size_about_center(self) -> float:
        """The root of the mean over channels of E (x - center)^2."""
        assert self.square is not None
        return math.sqrt(float(self.square.mean()) / self.count)

    @property
    def flat(self) -> Tensor:
        """Which channels do not vary but by the rounding of numbers of their size, (d,) bool."""
        return self.variance() <= (2 * torch.finfo(self.dtype).eps * self.mean).square()

    @property
    def constant(self) -> bool:
        """Whether no channel varies but by rounding."""
        return bool(self.flat.all())

    def second_moment_about(self, center: Tensor, factor: Tensor) -> float:
        """E|factor (x - center)|^2, both (d,), summed over channels."""
        each = self.variance() + (self.mean - center).square()
        return float((each * factor.square()).sum())

    def pooled(self, positions: int) -> ChannelMoments:
        """The same data with each run of `positions` channels taken as samples of one."""
        assert self.center is not None and self.total is not None and self.square is not None
        moments = ChannelMoments()
        own, total, square = (t.view(-1, positions) for t in (self.center, self.total, self.square))
        center = own[:, :1] + (own - own[:, :1]).mean(1, keepdim=True)
        shift = own - center
        square = square + shift * (2 * total + self.count * shift)
        total = total + self.count * shift
        moments.add(total.sum(1), square.sum(1), self.count * positions, center.squeeze(1))
        moments.dtype = self.dtype
        return moments

    def variance(self, *, unbiased: bool = False) -> Tensor:
        """(d,); divided by count - 1 if unbiased, 0 for a single sample."""
        assert self.square is not None
        variance = (self.square / self.count - self.off.square()).clamp(min=0)
        return variance * (self.count / max(self.count - 1, 1)) if unbiased else variance


def _narrower(*dtypes: torch.dtype) -> torch.dtype:
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def piece_size(*tensors: Tensor) -> int:
    """Samples of each whose distance from the center is made at a time."""
    return max(PIECE // max(1, *(t[:1].numel() for t in tensors)), 1)


def sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of x and x^2 over samples and positions, (d,) float64; those of `BLOCK` samples, or positions, in the dtype of x,
    as the kernels do, where a copy in float64 would take longer than all else; unless squares leave its range."""
    total, square = _sums(x)
    if x.dtype == torch.float64 or not x.numel() or SMALL * x.numel() <= square.max() < math.inf or not total.any():
        return total, square
    return _sums(x.double())


def _sums(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dim() > 2:
        parts = [(p.sum(2), vector_norm(p, dim=2).double().square_()) for p in x.flatten(2).split(BLOCK, 2)]
    else:
        parts = [(p.sum(0, keepdim=True), (p * p).sum(0, keepdim=True)) for p in x.split(BLOCK)]
    total, square = (torch.cat(each).sum(0, dtype=torch.float64) for each in zip(*parts, strict=True))
    return total, square
