# SPDX-License-Identifier: BSD-3-Clause
"""Maps as samples: where channels lie, and which positions are taken."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def channels_first(z: Tensor, axis: int | None, flattened: bool = False) -> Tensor:
    """z as (N, d, *space); as (samples, d) where its channel axis is the last and no Flatten takes its positions."""
    if axis != -1 or z.dim() == 2:
        return z
    return z.movedim(-1, 1) if flattened else z.flatten(0, -2)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """values (d,) in the shape and dtype in which they meet maps (N, d, *space)."""
    return values.view(1, -1, *[1] * (like.dim() - 2)).to(like.dtype)


def as_rows(x: Tensor) -> Tensor:
    """x (N, d, *space) as (samples, d)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def every(samples: int, at_most: int, positions: int = 1) -> int:
    """The step t that leaves at most `at_most` of the samples, 1 if all of them are: odd, and without a common factor
    with the positions of a map, so that every position is seen."""
    if samples <= at_most:
        return 1
    step = -(-samples // at_most) | 1
    while math.gcd(step, positions) > 1:
        step += 2
    return step


def take(x: Tensor, first: int, step: int) -> Tensor:
    """Every step-th sample of x (N, d, *space), positions being samples, as (samples, d); x itself for step 1.

    `first` is the number of samples in the batches before, so that the choice does not depend on where batches end.
    """
    if step == 1:
        return x
    if x.dim() == 2:
        return x[-first % step :: step]
    maps = x.flatten(2)
    rows = torch.arange(-first % step, len(maps) * maps.shape[2], step, device=x.device)
    return maps[rows // maps.shape[2], :, rows % maps.shape[2]]
