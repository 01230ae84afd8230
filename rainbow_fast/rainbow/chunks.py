# SPDX-License-Identifier: BSD-3-Clause
"""A data set in chunks of samples, as numbers of the network's dtype."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.io import sha256

ALIGNED = 64  # bytes, of what torch allocates


@dataclass(frozen=True)
class Data:
    """A data set in chunks whose sizes follow from shapes alone; x, of any dtype, may lie in a file that is mapped."""

    x: Tensor
    labels: Tensor | None
    size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def count(self) -> int:
        return len(self.x)

    @property
    def starts(self) -> range:
        """The first sample of every chunk."""
        return range(0, len(self.x), self.size)

    def chunk(self, start: int) -> Tensor:
        return freshly_laid(as_numbers(self.x[start : start + self.size], self.device, self.dtype))

    @cached_property
    def digests(self) -> tuple[str, str | None]:
        """Of the samples and of the labels."""
        return sha256([self.x]), None if self.labels is None else sha256([self.labels])

    @property
    def example(self) -> Tensor:
        return as_numbers(self.x[:1], self.device, self.dtype)


def freshly_laid(value: Tensor) -> Tensor:
    """The same numbers as they lie in new memory: contiguous, from an aligned address on; libraries round by both."""
    value = value.contiguous().view(-1).view(value.shape)  # twice, for strides along axes of size 1
    return value if value.data_ptr() % ALIGNED == 0 else value.clone()
