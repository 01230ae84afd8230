# SPDX-License-Identifier: BSD-3-Clause
"""What is known of the reference at a site, from the alignment set."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.positions import as_rows, every, take
from rainbow_fast.tracing.site import Site
from rainbow_fast.tracing.writers import writer_covariance

ACTIVITY_SAMPLES = 2048


@dataclass(eq=False)
class SiteStatistics:
    """A site with the moments of its z over the alignment set.

    Attributes:
        site: what is sampled.
        d: channels of z: the neurons, of all references where there are several.
        z_shape, phi_shape: of one sample.
        alive: numbers of one sample that wait at this site to be read after it, z and phi aside.
        device: of the reference.
        z: the moments ``E[z z^T]``, with mean and variance of each channel.
        activity: share of positive z, over channels, on a part of the samples.
    """

    site: Site
    d: int
    z_shape: tuple[int, ...]
    phi_shape: tuple[int, ...]
    alive: int
    device: torch.device
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


def active_samples(z: Tensor, statistics: SiteStatistics) -> Tensor:
    """A part of the samples of z (N, d, *space), on which the activity is measured, as (samples, d)."""
    positions = math.prod(statistics.z_shape) // statistics.d
    return as_rows(take(z, 0, every(z.numel() // statistics.d, ACTIVITY_SAMPLES, positions)))


def warn_if_few(site: str, samples: int, d: int) -> None:
    """Warn of fewer samples than twice the channels."""
    if samples < 2 * d:
        warnings.warn(
            f"site {site!r}: {samples} samples for {d} channels: an alignment over-fits with fewer than 2 d = {2 * d}",
            UserWarning,
            stacklevel=5,
        )


def reason_kept(site: Site) -> str | None:
    """Why a site stays the reference's unless it is named."""
    if site.output:
        return "an output activation, not named"
    return "a gate, not named" if site.gate else None


def by_site(what: str, value: Any, sites: Iterable[str]) -> dict[str, int]:
    """A number, or a dict of numbers by site, as a dict by site: integers of at least 1.

    Raises:
        ValueError, TypeError: a site that is not among these, another value; the message names the site.
    """
    sites = list(sites)
    numbers = dict(value) if isinstance(value, Mapping) else dict.fromkeys(sites, value)
    for name in numbers:
        if name not in sites:
            raise ValueError(f"{what}: {name!r} is not among the sampled sites {', '.join(sites)}")
    return {name: integer(f"{what} of site {name!r}", n, 1) for name, n in numbers.items()}
