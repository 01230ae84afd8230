# SPDX-License-Identifier: BSD-3-Clause
"""What an alignment is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.site_statistics import SiteStatistics

RTOL = 1e-10  # singular values of M below this share of the largest are null: M is a mean of float64 sums


class Problem(NamedTuple):
    """What is aligned, beside M (d, n): phi with the normalised features ``f = inverse (phi' - subtracted)``.

    Attributes:
        moments: counts, means and variances of phi and of the raw phi'.
        subtracted, inverse: (n,) float64.
    """

    moments: CrossCovariance
    subtracted: Tensor
    inverse: Tensor


class AlignedSite(Protocol):
    """A site as alignments see it.

    Attributes:
        statistics: what is known of the reference there.
        activation: the site as it is sampled, without A.
        features: of phi' that A takes, of each sample.
        samples: that M is the mean of.
        device, dtype: of A.
    """

    statistics: SiteStatistics
    activation: RainbowActivation
    features: int
    samples: int

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def select(self, before: int) -> Callable[[Tensor], Tensor]:
        """Which samples of a batch count, so many images coming before it."""
        ...

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]:
        """phi and zh of every chunk of the alignment data, and which of their samples count."""
        ...


class Alignment:
    """How features are mapped onto the reference. A subclass can be given as ``alignment=`` of `sample`.

    Attributes:
        rank: "partial": null directions of M go to zero; "complete": an isometry maps them.
        scales_itself: whether the map has the right size already, so that the scale is one.
    """

    rank = "partial"
    scales_itself = False

    def begin(self, site: AlignedSite) -> Alignment:
        """What aligns one site, before its moments are summed: self where nothing is kept of a site."""
        return self

    def add(self, start: int, zh: Tensor, samples: int, center: Tensor) -> None:
        """See a chunk of the alignment data: its first sample, the input of the site, and how many samples it holds.

        `center` (n,) is near the mean of phi'.
        """

    def solve(self, M: Tensor, problem: Problem) -> Tensor:
        """The map of the normalised features, (d, n) float64, from ``M = E[phi f^T]``, which stays as it is.

        M itself stands for its polar factor, which is taken afterwards.
        """
        return M
