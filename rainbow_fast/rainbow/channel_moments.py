# SPDX-License-Identifier: BSD-3-Clause
"""Mean and variance of every channel, accumulated over batches as sums about a center."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import vector_norm

from rainbow_fast.maps import as_rows, per_channel
from rainbow_fast.ops.center import first_center

BLOCK = 512  # samples
PIECE = 2**20  # numbers that the center is subtracted from at a time, so that the result is still in the cache
NEAR = 2.0  # a mean of at most this many standard deviations is not subtracted: errors grow by less than five
SMALL = 1e-30  # smaller squares are summed in float64, as float32 keeps few digits of them


class ChannelMoments:
    r"""Count, mean and variance of every channel of x, (N, d) or (N, d, *space). Every position is a sample.

        total = sum (x - center),    square = sum (x - center)^2,    var x = square / count - (total / count)^2

    The center is near the mean of some samples of the first batch, or 0 where the mean is at most `NEAR` standard
    deviations. It is exact in the dtype of x (float32 for half precision). So x - center is about as large as the
    standard deviation, and neither the mean nor the variance is a difference of large numbers: for float32 data with
    any mean, the variance is accurate to a relative 1e-6, and the mean to 1e-6 of the standard deviation. If the first
    batch (n of all N samples) differs from the others, these errors are at most N / n times larger. A channel of equal
    numbers has the variance 0.

    Attributes:
        count: number of samples seen.
        center, total, square: (d,) float64; None before the first batch.
        dtype: the narrowest dtype that batches were computed in; float64 for sums that were computed elsewhere.
    """

    def __init__(self) -> None:
        self.count = 0
        self.center: Tensor | None = None
        self.total: Tensor | None = None
        self.square: Tensor | None = None
        self.dtype = torch.float64

    def update(self, x: Tensor) -> None:
        """Add a batch x, (N, d) or (N, d, *space)."""
        x, center = self.centered_on(x)
        for piece in x.split(piece_size(x)):
            self.add_shifted(about(piece, center), center)

    def centered_on(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x in a dtype of at least float32 that represents the center exactly, and the center, (d,) float64.

        The center is that of these moments. If they are still empty, it is chosen from x.
        """
        x = x.detach()
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        center = self.center if self.center is not None and self.count else first_center(x, zero=NEAR)
        held = torch.equal(center.to(x.dtype).double(), center)
        return x if held else x.double(), center  # not exact if x is narrower than earlier batches, or for NaN

    def add_shifted(self, x: Tensor, center: Tensor) -> None:
        """Add a batch from which this center has been subtracted."""
        self.add(*sums(x), x.numel() // max(x.shape[1], 1), center)
        self.dtype = narrower(self.dtype, x.dtype)

    def add(self, total: Tensor, square: Tensor, count: int, center: Tensor | None = None) -> None:
        """Add sums about a center (None: about 0). They are converted to the center of these moments, if there is one.

        Args:
            total, square: sums of x - center and of its square, (d,) float64.
            count: number of samples.
        """
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
        """Add the samples of other moments with the same channels."""
        if other.total is not None and other.square is not None:
            self.add(other.total, other.square, other.count, other.center)
            self.dtype = narrower(self.dtype, other.dtype)

    def not_finite(self) -> int | None:
        """Index of the first channel with a value that is not finite; None if all values are finite."""
        assert self.square is not None
        bad = (~torch.isfinite(self.square)).nonzero()
        return int(bad[0]) if len(bad) else None

    @property
    def off(self) -> Tensor:
        """E[x] - center, (d,)."""
        return self.off_from(self.center)

    def off_from(self, center: Tensor | None) -> Tensor:
        """E[x] - center for another center, (d,)."""
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
        """Square root of the mean over channels of E (x - center)^2."""
        assert self.square is not None
        return math.sqrt(float(self.square.mean()) / self.count)

    @property
    def flat(self) -> Tensor:
        """Which channels are constant up to rounding, (d,) bool."""
        return self.variance() <= (2 * torch.finfo(self.dtype).eps * self.mean).square()

    @property
    def constant(self) -> bool:
        """Whether all channels are constant up to rounding."""
        return bool(self.flat.all())

    def second_moment_about(self, center: Tensor, factor: Tensor) -> float:
        """E|factor (x - center)|^2, summed over channels; factor and center are (d,)."""
        each = self.variance() + (self.mean - center).square()
        return float((each * factor.square()).sum())

    def pooled(self, positions: int) -> ChannelMoments:
        """The moments of the same data if each group of `positions` adjacent channels is one channel."""
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
        """The variance of every channel, (d,). If unbiased, divided by count - 1, and 0 for a single sample."""
        assert self.square is not None
        variance = (self.square / self.count - self.off.square()).clamp(min=0)
        return variance * (self.count / max(self.count - 1, 1)) if unbiased else variance


def narrower(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype with the largest rounding."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def about(x: Tensor, center: Tensor) -> Tensor:
    """x (N, d, *space) less its center (d,); x itself if the center is 0."""
    return x - per_channel(center, x) if center.any() else x


def piece_size(*tensors: Tensor) -> int:
    """Number of samples of each tensor that the center is subtracted from at a time."""
    return max(PIECE // max(1, *(t[:1].numel() for t in tensors)), 1)


def sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of x and of x^2 over samples and positions, each (d,) float64.

    `BLOCK` samples or positions at a time are summed in the dtype of x, as in the kernels, because a float64 copy would
    take longer than everything else. If squares are outside the range of this dtype, all is summed in float64.
    """
    total, square = _sums(x)
    if x.dtype == torch.float64 or not x.numel() or SMALL * x.numel() <= square.max() < math.inf or not total.any():
        return total, square
    return _sums(x.double())


def _sums(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dim() > 2 and x.stride(1) != 1:
        maps = x.flatten(2).split(BLOCK, 2)
        parts = [(part.sum(2), vector_norm(part, dim=2).double().square_()) for part in maps]
    else:
        rows = as_rows(x)
        whole = len(rows) // BLOCK * BLOCK
        blocks = (rows[:whole].view(-1, BLOCK, x.shape[1]), rows[whole:].unsqueeze(0))
        parts = [(block.sum(1), (block * block).sum(1)) for block in blocks]
    total, square = (torch.cat(each).sum(0, dtype=torch.float64) for each in zip(*parts, strict=True))
    return total, square
