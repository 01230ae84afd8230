# SPDX-License-Identifier: BSD-3-Clause
"""Feature maps as samples: the axis of the channels, and the choice of positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Which positions of feature maps are samples: every step-th of those that count.

    Attributes:
        each: positions in the map of one image.
        images: number of images.
        step: see `every`.
        attended: (images, each) bool, the positions that count; None if all do.
    """

    each: int
    images: int
    step: int = 1
    attended: Tensor | None = None

    @classmethod
    def at_most(cls, samples: int, each: int, images: int, attended: Tensor | None = None) -> Positions:
        """Every position that counts, or as many as give at most this number of samples."""
        counted = images * each if attended is None else int(attended.sum())
        return cls(each, images, every(counted, samples, each), attended)

    @property
    def count(self) -> int:
        """Number of samples."""
        return -(-(self.images * self.each if self.attended is None else self._before[-1]) // self.step)

    def of(self, x: Tensor, before: int) -> Tensor:
        """The samples in x (N, d, *space) or (N each, d), as `take`; `before` images are in the previous batches."""
        if self.attended is None:
            return take(x, before * self.each, self.step)
        rows = as_rows(x)
        places = self.attended[before : before + len(rows) // self.each].flatten().nonzero().squeeze(1).to(x.device)
        return rows[places[-self._before[before] % self.step :: self.step]]

    @cached_property
    def _before(self) -> list[int]:
        """How many positions count in the images before each image, and in all of them."""
        assert self.attended is not None
        return [0, *self.attended.sum(1).cumsum(0).tolist()]


def channels_first(z: Tensor, axis: int | None, flattened: bool = False) -> Tensor:
    """z as (N, d, *space). If the channels are the last axis, z as (samples, d), unless the site is `flattened`."""
    if axis != -1 or z.dim() == 2:
        return z
    return z.movedim(-1, 1) if flattened else z.flatten(0, -2)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """values (d,) in the dtype of `like`, reshaped to broadcast over the channels of maps (N, d, *space)."""
    return values.view(1, -1, *[1] * (like.dim() - 2)).to(like.dtype)


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
