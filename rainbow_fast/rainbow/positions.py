# SPDX-License-Identifier: BSD-3-Clause
"""The positions of feature maps that are samples, where some do not count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from rainbow_fast.maps import as_rows, every, take


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
