# SPDX-License-Identifier: BSD-3-Clause
"""A number near the mean of each channel, from a few samples. Sums of differences from it stay small for any mean."""

import torch
from torch import Tensor

from rainbow_fast.ops.memory import flat

SPREAD = 32  # samples whose mean is the center
GOLDEN = (5**0.5 - 1) / 2  # any number of its multiples modulo 1 is spread evenly over [0, 1)


def spread_samples(x: Tensor) -> Tensor:
    """A few samples of x (N, d, *space), spread over images and positions: (`SPREAD`, d), or all if there are fewer."""
    maps = flat(x)
    N, d, positions = maps.shape
    count = N * positions
    if count <= SPREAD:
        return maps.movedim(1, 2).reshape(count, d)
    rows = (torch.arange(SPREAD, device=x.device).double() * GOLDEN % 1 * count).long()
    return maps[:, :, 0].index_select(0, rows) if positions == 1 else maps[rows // positions, :, rows % positions]


def first_center(x: Tensor, *, zero: float = 0.0) -> Tensor:
    """A number near the mean of each channel of x (N, d, *space), (d,): rounded to the dtype of x, returned in float64.

    It is the mean of `spread_samples`, rounded to a multiple of a power of two between an eighth and a quarter of their
    standard deviation. A value that occurs often, for example the zeros of a ReLU, then differs from the center by a
    number of few bits, whose squares are summed without rounding. If all samples are equal, the center is exactly their
    value. Without samples it is 0.

    Args:
        zero: a mean of at most this many standard deviations counts as 0. Sums about 0 have errors of at most
            1 + zero^2 times those about the mean, and nothing needs to be subtracted.
    """
    some = spread_samples(x).double()
    if not some.numel():
        return torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    first = some[0]
    some = some - first
    off = some.mean(0)
    variance = (some - off).square().mean(0)  # six times as fast as torch.var along the first axis
    deviation, mean = variance.sqrt(), first + off
    grain = deviation / torch.frexp(deviation).mantissa / 8
    center = torch.where(variance > 0, (mean / grain).round() * grain, mean).to(x.dtype).double()
    return center.masked_fill_(mean.abs() <= zero * deviation, 0.0)
