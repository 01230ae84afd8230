# SPDX-License-Identifier: BSD-3-Clause
"""A data set in chunks of samples, converted to the network's dtype."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.io import sha256
from rainbow_fast.joint_inputs import Input, JointInputs, by_positions
from rainbow_fast.maps import channels_first
from rainbow_fast.rainbow.positions import Positions
from rainbow_fast.tracing.random_state import untouched
from rainbow_fast.tracing.trace import State, Trace

ALIGNED = 64  # bytes: alignment of memory that torch allocates


@dataclass(frozen=True)
class Data:
    """A data set in chunks. A chunk is the samples that are computed on at a time; its size depends on shapes only.

    Attributes:
        x: samples (N, ...) of any dtype; may be memory-mapped from a file.
        labels: (count, ...), see `data.dtypes.as_labels`; None without labels.
        size: number of samples in a chunk; the last chunk may be smaller.
        device, dtype: of the network, and of the chunks.
        index: the rows of x that belong to the data set, (count,) int64; None for all rows. Only chunks are copied.
        channels_last: whether the memory of chunks of images (N, C, H, W) is laid out as (N, H, W, C); see
            `runs_channels_last`.
        inputs: the dtype of the chunks, if it is another one; see `dtype_of_inputs`.
        joint: the layout of several inputs in the rows x; None for one input.
    """

    x: Tensor
    labels: Tensor | None
    size: int
    device: torch.device
    dtype: torch.dtype
    index: Tensor | None = None
    channels_last: bool = False
    inputs: torch.dtype | None = None
    joint: JointInputs | None = None

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
        x = as_numbers(self.samples(start, start + self.size), self.device, self.inputs or self.dtype)
        return freshly_laid(channels_last(x) if self.channels_last else x)

    def labels_at(self, start: int) -> Tensor:
        """The labels of a chunk."""
        assert self.labels is not None
        return self.labels[start : start + self.size]

    def positions(self, space: tuple[int, ...], at_most: int | None = None) -> Positions:
        """Which positions of maps with these sizes are samples, at most so many. Padded ones never are.

        A position is padded if an input of the network is a mask of as many positions, and says so.
        """
        key = space, at_most
        if key not in self._positions:
            each = math.prod(space)
            attended = self.attended.get(each) if len(space) == 1 else None
            self._positions[key] = Positions.at_most(at_most or max(self.count * each, 1), each, self.count, attended)
        return self._positions[key]

    @cached_property
    def _positions(self) -> dict[tuple[tuple[int, ...], int | None], Positions]:
        return {}

    def counted(self, start: int, t: Tensor, axis: int | None) -> Tensor:
        """The positions of feature maps t of a chunk that count, as (samples, d); all of them as (N, d, *space)."""
        space = tuple(t.shape[1:-1] if axis == -1 else t.shape[2:])
        return self.positions(space).of(channels_first(t, axis), start)

    @cached_property
    def attended(self) -> dict[int, Tensor]:
        """By number of positions, which of them count, (count, positions) bool; without masks of which all count.

        Raises:
            ValueError: two masks have the same number of positions, and differ.
        """
        if self.joint is None or not self.count:
            return {}
        return by_positions({each.name: self._mask(each, self.joint) for each in self.joint.masks})

    def _mask(self, mask: Input, joint: JointInputs) -> Tensor:
        """The positions that count by this input."""
        parts = [joint.attended(self.samples(start, start + self.size), mask) for start in self.starts]
        return torch.cat(parts).to(self.device)

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
        return as_numbers(self.samples(0, 1), self.device, self.inputs or self.dtype)


@torch.no_grad()
def runs_channels_last(traces: Iterable[Trace], example: Tensor) -> bool:
    """Whether networks run on images whose channels are adjacent in memory, as are those of all feature maps.

    On a CPU, convolutions are then 1.3 to 4 times as fast. Networks that use `Tensor.view` on a feature map do not run
    on it, and run on contiguous images. So do those with wavelets, which write contiguous maps.

    Args:
        example: one input, (1, C, H, W) for images.
    """
    if example.dim() != 4 or example.device.type != "cpu" or not example.is_floating_point():
        return False
    traces = list(traces)
    if any(site.features > 1 for trace in traces for site in trace.sites):
        return False
    x = channels_last(example.repeat(2, 1, 1, 1))  # the layout of one image is ambiguous
    with untouched(example.device):
        try:
            for trace in traces:
                _run(trace, x)
        except Exception:  # an error that contiguous images raise too is reported where they are used
            return False
    return True


def _run(trace: Trace, x: Tensor) -> None:
    state: State = (x.clone(memory_format=torch.preserve_format),)
    modules = [site.reference for site in trace.sites]
    for place, site in enumerate(trace.sites):
        z, *rest = trace.advance(place, state, modules[:place])
        phi = site.reference(z)
        state = (channels_last(phi) if site.axis == 1 else phi, *rest)
    trace.advance(len(trace.sites), state, modules)


def channels_last(maps: Tensor) -> Tensor:
    """Feature maps (N, C, H, W) with memory laid out as (N, H, W, C); other tensors unchanged."""
    return maps.contiguous(memory_format=torch.channels_last) if maps.dim() == 4 else maps


def is_channels_last(value: Tensor) -> bool:
    """Whether the memory of feature maps (N, C, H, W) is laid out as (N, H, W, C) and is not contiguous as well."""
    return value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)


def freshly_laid(value: Tensor) -> Tensor:
    """The same numbers in dense memory at an aligned address; copied only if necessary.

    Feature maps whose channels are adjacent in memory stay so; all other tensors become contiguous. How libraries round
    depends on strides and alignment, so this makes results the same to the bit.
    """
    if is_channels_last(value):
        return freshly_laid(value.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    value = value.contiguous().view(-1).view(value.shape)  # twice, for strides along axes of size 1
    return value if value.data_ptr() % ALIGNED == 0 else value.clone()
