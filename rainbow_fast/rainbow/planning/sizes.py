# SPDX-License-Identifier: BSD-3-Clause
"""The sizes of the data of a run."""

from __future__ import annotations

from dataclasses import dataclass

from rainbow_fast.maps import every


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data.

    Attributes:
        align: images in the alignment set.
        held: held-out images.
        chunk: images in a chunk.
        itemsize: bytes of a number.
        waiting: bytes of memory of a number that is stored between two sites.
        max_samples: of `fit`.
    """

    align: int
    held: int
    chunk: int
    itemsize: int
    waiting: int
    max_samples: int

    @property
    def A_itemsize(self) -> int:
        """Bytes of a number of A, which is float32 if the reference has half precision."""
        return max(self.itemsize, 4)

    @property
    def both(self) -> int:
        return self.align + self.held

    def samples(self, positions: int) -> int:
        """Number of samples that are used, if every image of the alignment set has this number of positions."""
        return -(-self.align * positions // self.step(positions))

    def step(self, positions: int) -> int:
        return every(self.align * positions, self.max_samples, positions)
