# SPDX-License-Identifier: BSD-3-Clause
"""Feature maps as samples: the axis of the channels, and the choice of positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def channels_first(z: Tensor, axis: int | None, flattened: bool = False) -> Tensor:
    """z as (N, d, *space). If the channels are the last axis, z as (samples, d), unless the site is `flattened`."""
    if axis != -1 or z.dim() == 2:
        return z
    return z.movedim(-1, 1) if flattened else z.flatten(0, -2)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """values (d,) in the dtype of `like`, reshaped to broadcast over the channels of maps (N, d, *space).

    Values (d, 2) belong to maps of pairs, (N, d, *space, 2).
    """
    each = values.shape[1:]
    return values.view(1, -1, *[1] * (like.dim() - 2 - len(each)), *each).to(like.dtype)


def add_per_channel_(x: Tensor, values: Tensor) -> Tensor:
    """Add values to maps in place, as `per_channel` broadcasts them."""
    each = per_channel(values, x)
    if values.dim() == 1:
        return x.add_(each)
    torch.view_as_complex(x).add_(torch.view_as_complex(each))  # three times as fast as sums along an axis of length 2
    return x


def as_rows(x: Tensor) -> Tensor:
    """x (N, d, *space) as (samples, d)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def every(samples: int, at_most: int, positions: int = 1) -> int:
    """The step t such that every t-th of the samples gives at most `at_most` of them.

    t is 1 if there are no more samples than that. Otherwise it is odd and has no common divisor with `positions`, the
    number of positions of a feature map, so that all positions are used.
    """
    if samples <= at_most:
        return 1
    step = -(-samples // at_most) | 1
    while math.gcd(step, positions) > 1:
        step += 2
    return step


def take(x: Tensor, first: int, step: int) -> Tensor:
    """Every step-th sample of x (N, d, *space) as (samples, d). Every position is a sample. Step 1 returns x itself.

    `first` is the number of samples in the previous batches. With it, the choice does not depend on the batch size.
    """
    if step == 1:
        return x
    if x.dim() == 2:
        return x[-first % step :: step]
    maps = x.flatten(2)
    rows = torch.arange(-first % step, len(maps) * maps.shape[2], step, device=x.device)
    return maps[rows // maps.shape[2], :, rows % maps.shape[2]]


def as_pairs(x: Tensor) -> Tensor:
    """Real x (...) as pairs (..., 2) with the imaginary part 0."""
    return torch.view_as_real(torch.complex(x, torch.zeros_like(x)))


def times_i(x: Tensor) -> Tensor:
    """``i x`` of pairs x (..., 2)."""
    return torch.stack([-x[..., 1], x[..., 0]], -1)


def real_columns(u: Tensor) -> Tensor:
    """Pairs u (N, r, ..., 2) as ``(u, i u)`` (N, 2 r, ..., 2): of these, real columns are complex ones of u.

    ``G u = Re G u + Im G (i u)`` for complex G (n, r), so that G is the real matrix (Re G, Im G), (n, 2 r).
    """
    return torch.cat([u, times_i(u)], 1)


def complex_rows(y: Tensor) -> Tensor:
    """``y_1 + i y_2`` (N, d, ..., 2) of pairs (y_1, y_2) (N, 2 d, ..., 2).

    ``A v = Re A v + i (Im A v)`` for complex A (d, n), so that A is the real matrix (Re A; Im A), (2 d, n).
    """
    first, second = y.chunk(2, 1)
    return first + times_i(second)
