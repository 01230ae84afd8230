# SPDX-License-Identifier: BSD-3-Clause
"""Data sets on their way through the reference and the sample together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Data:
    """A data set in chunks whose sizes follow from shapes alone."""

    chunks: list[Tensor]
    labels: Tensor | None

    @property
    def count(self) -> int:
        return sum(map(len, self.chunks))


class InFlight:
    """A data set on its way through both networks, a chunk at a time: x of the reference, y of the sample.

    They are what the last site gave or, within a site, what goes into it. Up to the first sampled site the two are one.
    """

    def __init__(self, data: Data) -> None:
        self.x, self.y, self.labels = list(data.chunks), list(data.chunks), data.labels

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Number of each chunk, and of the samples before it."""
        before = 0
        for i, chunk in enumerate(self.x):
            yield i, before
            before += len(chunk)

    @property
    def count(self) -> int:
        return sum(map(len, self.x))

    def advance(self, module: nn.Module) -> None:
        """Send both sides through a part of the reference."""
        for i, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            self.x[i] = module(x)
            self.y[i] = self.x[i] if y is x else module(y)

    def accuracy(self, side: str, network: nn.Module) -> float:
        assert self.labels is not None
        outputs = [network(chunk).argmax(1) for chunk in getattr(self, side)]
        return float((torch.cat(outputs) == self.labels).double().mean())
