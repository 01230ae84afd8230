# SPDX-License-Identifier: BSD-3-Clause
"""What is known of the reference at a site, from the alignment set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.tracing.sites import Site
from rainbow_fast.tracing.writers import writer_covariance


@dataclass(eq=False)
class SiteStatistics:
    """A site with the moments of its z over the alignment set.

    Attributes:
        site: what is sampled.
        d: channels of z: the neurons, of all references where there are several.
        z_shape, phi_shape: of one sample.
        alive: numbers of one sample that wait at this site to be read after it, z and phi aside.
        z: the moments ``E[z z^T]``, with mean and variance of each channel.
        activity: share of positive z, over channels, on a part of the samples.
    """

    site: Site
    d: int
    z_shape: tuple[int, ...]
    phi_shape: tuple[int, ...]
    alive: int
    z: CrossCovariance
    activity: float = float("nan")

    @property
    def channels(self) -> int:
        """Of phi: the width of the reference, or of one of several."""
        return self.phi_shape[-1 if self.site.axis == -1 else 0]

    @property
    def fitted(self) -> bool:
        """Whether the second moments of z are known."""
        return self.z.cross is not None

    @property
    def positions(self) -> int:
        """Of phi, in one sample."""
        return math.prod(self.phi_shape) // self.channels

    def directions(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """Eigenvalues (d,) and eigenvectors U (d, d), float64, decreasing, the largest entry of each column positive.

        Of ``W W^T`` where one bias-free linear layer writes z (`tracing.writers.writer_covariance`: grouped and
        transposed convolutions too), else of ``E[z z^T]``; `centred` takes out the mean over channels first, as the law
        does that keeps the mean row.
        """
        writer = self.site.writer
        C = self.z.compute() if writer is None else writer_covariance(writer)
        if centred:
            C = C - C.mean(0, keepdim=True)
            C = C - C.mean(1, keepdim=True)
        values, U = torch.linalg.eigh(C)
        values, U = values.flip(0).clamp(min=0), U.flip(1)
        largest = U.gather(0, U.abs().argmax(0, keepdim=True))
        return values, U * torch.where(largest < 0, -1.0, 1.0)


def every(samples: int, at_most: int, positions: int = 1) -> int:
    """The step t that leaves at most `at_most` of the samples, 1 if all of them are: odd, and without a common factor
    with the positions of a map, so that every position is seen."""
    if samples <= at_most:
        return 1
    step = -(-samples // at_most) | 1
    while math.gcd(step, positions) > 1:
        step += 2
    return step


def take(x: Tensor, first: int, step: int) -> Tensor:
    """Every step-th sample of x (N, d, *space), positions being samples, as (samples, d); x itself for step 1.

    `first` is the number of samples in the batches before, so that the choice does not depend on where batches end.
    """
    if step == 1:
        return x
    if x.dim() == 2:
        return x[-first % step :: step]
    maps = x.flatten(2)
    rows = torch.arange(-first % step, len(maps) * maps.shape[2], step, device=x.device)
    return maps[rows // maps.shape[2], :, rows % maps.shape[2]]
