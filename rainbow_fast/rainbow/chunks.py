# SPDX-License-Identifier: BSD-3-Clause
"""A data set in chunks of samples, as numbers of the network's dtype."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.io import sha256

ALIGNED = 64  # bytes, of what torch allocates


@dataclass(frozen=True)
class Data:
    """A data set in chunks whose sizes follow from shapes alone.

    Attributes:
        x: samples (N, ...) of any dtype; it may be mapped from a file.
        labels: (count,) int64, None without labels.
        size: samples of a chunk.
        device, dtype: of the chunks.
        index: the rows of x that are the data set, (count,) int64; None for all of them. Nothing is copied but chunks.
    """

    x: Tensor
    labels: Tensor | None
    size: int
    device: torch.device
    dtype: torch.dtype
    index: Tensor | None = None

    @property
    def count(self) -> int:
        return len(self.x if self.index is None else self.index)

    @property
    def starts(self) -> range:
        """The first sample of every chunk."""
        return range(0, self.count, self.size)

    def samples(self, start: int, stop: int | None) -> Tensor:
        """Samples start..stop, in the dtype of x."""
        return self.x[start:stop] if self.index is None else self.x[self.index[start:stop].to(self.x.device)]

    def chunk(self, start: int) -> Tensor:
        return freshly_laid(as_numbers(self.samples(start, start + self.size), self.device, self.dtype))

    @cached_property
    def digests(self) -> tuple[str, str | None]:
        """Of the samples and of the labels."""
        if self.index is None:
            parts: Iterable[Tensor] = [self.x]
        else:
            parts = (self.samples(start, start + self.size) for start in self.starts)
        return sha256(parts), None if self.labels is None else sha256([self.labels])

    @property
    def example(self) -> Tensor:
        return as_numbers(self.samples(0, 1), self.device, self.dtype)


def freshly_laid(value: Tensor) -> Tensor:
    """The same numbers as they lie in new memory: contiguous, from an aligned address on; libraries round by both."""
    value = value.contiguous().view(-1).view(value.shape)  # twice, for strides along axes of size 1
    return value if value.data_ptr() % ALIGNED == 0 else value.clone()
