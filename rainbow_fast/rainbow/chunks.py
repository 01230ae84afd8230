# SPDX-License-Identifier: BSD-3-Clause
"""A data set in chunks of samples, converted to the network's dtype."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.io import sha256

ALIGNED = 64  # bytes: alignment of memory that torch allocates


@dataclass(frozen=True)
class Data:
    """A data set in chunks. A chunk is the samples that are computed on at a time; its size depends on shapes only.

    Attributes:
        x: samples (N, ...) of any dtype; may be memory-mapped from a file.
        labels: (count,) int64; None without labels.
        size: number of samples in a chunk; the last chunk may be smaller.
        device, dtype: of the chunks.
        index: the rows of x that belong to the data set, (count,) int64; None for all rows. Only chunks are copied.
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
        """The index of the first sample of every chunk."""
        return range(0, self.count, self.size)

    def samples(self, start: int, stop: int | None) -> Tensor:
        """Samples start..stop, in the dtype of x."""
        return self.x[start:stop] if self.index is None else self.x[self.index[start:stop].to(self.x.device)]

    def chunk(self, start: int) -> Tensor:
        return freshly_laid(as_numbers(self.samples(start, start + self.size), self.device, self.dtype))

    @cached_property
    def digests(self) -> tuple[str, str | None]:
        """SHA-256 of the samples and of the labels (None without labels)."""
        if self.index is None:
            parts: Iterable[Tensor] = [self.x]
        else:
            parts = (self.samples(start, start + self.size) for start in self.starts)
        return sha256(parts), None if self.labels is None else sha256([self.labels])

    @property
    def example(self) -> Tensor:
        return as_numbers(self.samples(0, 1), self.device, self.dtype)


def freshly_laid(value: Tensor) -> Tensor:
    """The same numbers, contiguous and at an aligned address; copied only if necessary.

    How libraries round depends on strides and alignment, so this makes results the same to the bit.
    """
    value = value.contiguous().view(-1).view(value.shape)  # twice, for strides along axes of size 1
    return value if value.data_ptr() % ALIGNED == 0 else value.clone()
