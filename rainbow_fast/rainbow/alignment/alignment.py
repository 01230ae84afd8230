# SPDX-License-Identifier: BSD-3-Clause
"""The base class of all alignments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.site_statistics import SiteStatistics


class Problem(NamedTuple):
    """The alignment problem of one site, in addition to M (d, n).

    The reference's phi is aligned with the normalised features ``f = inverse (phi' - subtracted)``.

    Attributes:
        moments: counts, means and variances of phi and of the raw phi'.
        subtracted, inverse: (n,) float64.
    """

    moments: CrossCovariance
    subtracted: Tensor
    inverse: Tensor


class AlignedSite(Protocol):
    """The interface of a site that alignments use.

    Attributes:
        statistics: the reference's statistics of the site.
        activation: the sampled site, still without A.
        features: length of phi' for one sample, which is the number of columns of A.
        samples: number of samples that M is the mean of.
        device, dtype: of A.
    """

    statistics: SiteStatistics
    activation: RainbowActivation
    features: int
    samples: int

    @property
    def device(self) -> torch.device:
        """Device of A."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of A."""
        ...

    def select(self, before: int) -> Callable[[Tensor], Tensor]:
        """The function that takes the samples to use from a batch; `before` images come before the batch."""
        ...

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]:
        """For every batch of the alignment set: phi, zh, and the function that takes the samples to use."""
        ...


class Alignment:
    """Base class of the alignments, which map features to the reference.

    An object of a subclass can be passed to `sample` as ``alignment=``.

    Attributes:
        rank: "partial" maps null directions of M to zero, "complete" maps them by an isometry.
        scales_itself: whether the map already has the right scale, so that s = 1.
        reads_inputs: whether `add` or `solve` read data other than M and its moments, such as zh. If not, zh is not
            always computed.
    """

    rank = "partial"
    scales_itself = False
    reads_inputs = True

    def begin(self, site: AlignedSite) -> Alignment:
        """The object that aligns one site; called before the moments are summed.

        The default is self, which is enough if the alignment keeps no data of a site.
        """
        return self

    def add(self, start: int, zh: Tensor, samples: int, center: Tensor) -> None:
        """Receive a batch of the alignment set.

        Args:
            start: index of its first sample.
            zh: input of the site.
            samples: number of samples in the batch.
            center: (n,), near the mean of phi'.
        """

    def solve(self, M: Tensor, problem: Problem) -> Tensor:
        """The map of the normalised features f, (d, n) float64, from ``M = E[phi f^T]``. M must not be changed.

        Returning M itself means that the caller replaces it by its polar factor.
        """
        return M
