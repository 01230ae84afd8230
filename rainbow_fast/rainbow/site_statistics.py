# SPDX-License-Identifier: BSD-3-Clause
"""Statistics of the reference at one site, measured on the alignment set."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.maps import as_rows, every, take
from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.tracing.site import Site
from rainbow_fast.tracing.writers import writer_covariance

ACTIVITY_SAMPLES = 2048


@dataclass(eq=False)
class SiteStatistics:
    """A site of the reference with the moments of its input z over the alignment set.

    Attributes:
        site: the site in the traced network.
        d: channels of z, which is the number of neurons unless the site has an expansion; with several references, of
            all of them together.
        z_shape, phi_shape: shape of the input z and of the output phi for one sample.
        alive: for one sample, how many numbers later layers read besides z and phi, for example for a skip connection.
        device: of the reference.
        z: the moments ``E[z z^T]``, with mean and variance of each channel.
        activity: fraction of positive z over all neurons, on a part of the samples; NaN before it is measured.
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
    def expansion(self) -> RandomFeatures | None:
        """The random features of z that the reference computes at this site; None if each channel of z is a neuron."""
        return self.site.expansion

    @property
    def columns(self) -> int:
        """Columns of G_eff as a real matrix: d, or 2 d for the real and imaginary parts of complex weights."""
        return self.d * (1 + self.site.complex_weights)

    @property
    def neurons(self) -> int:
        """Number of neurons that z' has in the reference: channels of z, or those of the random features."""
        return self.d if self.expansion is None else self.expansion.n

    @property
    def has_mean_row(self) -> bool:
        """Whether the mean over channels of z is that over neurons, which `keep_mean` leaves unchanged."""
        return self.expansion is None

    @property
    def channels(self) -> int:
        """Channels of phi: the width of the reference, or of one of several references."""
        return self.phi_shape[-1 if self.site.axis == -1 else 0]

    @property
    def width(self) -> int:
        """Neurons of the reference, or of one of several references."""
        return self.channels // self.site.features

    def shape_of_A(self, n: int, *, flattened: bool, full: bool) -> tuple[int, int]:
        """Rows and columns of M and A for n neurons: all columns, and the rows that one of them is aligned with.

        Args:
            flattened: whether all positions are aligned together.
            full: whether all features of a neuron are aligned together, or each one with itself.

        With complex weights, the rows of the real parts are followed by those of the imaginary parts.
        """
        positions = self.positions if flattened else 1
        rows = (self.channels if full else self.width) * (1 + self.site.complex_weights)
        return rows * positions, n * self.site.features * positions

    @property
    def fitted(self) -> bool:
        """Whether the second moments of z are known."""
        return self.z.cross is not None

    @property
    def positions(self) -> int:
        """Positions of phi in one sample: its numbers divided by its channels."""
        return math.prod(self.phi_space)

    @property
    def z_space(self) -> tuple[int, ...]:
        """The shape of z without its channels."""
        return self.z_shape[:-1] if self.site.axis == -1 else self.z_shape[1:]

    @property
    def phi_space(self) -> tuple[int, ...]:
        """The shape of phi without its channels."""
        return self.phi_shape[:-1] if self.site.axis == -1 else self.phi_shape[1:]

    def directions(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """The principal directions of z: eigenvalues (d,) and eigenvectors U (d, d), float64.

        They belong to ``W W^T`` if one bias-free linear layer writes z, also a grouped or transposed convolution
        (`tracing.writers.writer_covariance`); otherwise to ``E[z z^T]``. Eigenvalues decrease, and the largest entry
        of each column of U is positive. With complex weights they belong to ``W W^H``, and U is complex128.

        Args:
            centred: if True, the mean over channels is removed first, as for rows with ``keep_mean=True``.
        """
        writer = self.site.writer
        C = self.z.compute() if writer is None else writer_covariance(writer)
        if centred:
            C = C - C.mean(0, keepdim=True)
            C = C - C.mean(1, keepdim=True)
        values, U = torch.linalg.eigh(C)
        values, U = values.flip(0).clamp(min=0), U.flip(1)
        largest = U.gather(0, U.abs().argmax(0, keepdim=True))
        return values, U * (largest.sgn().conj() if U.is_complex() else torch.where(largest < 0, -1.0, 1.0))


def active_samples(z: Tensor, statistics: SiteStatistics) -> Tensor:
    """The samples of z (N, d, *space) that the activity is measured on, as (samples, d)."""
    positions = math.prod(statistics.z_shape) // statistics.d
    return as_rows(take(z, 0, every(z.numel() // statistics.d, ACTIVITY_SAMPLES, positions)))


def warn_if_few(site: str, samples: int, d: int) -> None:
    """Warn if there are fewer samples than twice the channels."""
    if samples < 2 * d:
        warnings.warn(
            f"site {site!r}: {samples} samples for {d} channels: an alignment over-fits with fewer than 2 d = {2 * d}",
            UserWarning,
            stacklevel=5,
        )


def reason_kept(site: Site) -> str | None:
    """Why a site is not sampled by default; None if it is sampled."""
    if site.output:
        return "an output activation, not named"
    return "a gate, not named" if site.gate else None


def by_site(what: str, value: Any, sites: Iterable[str], *, infinite: bool = False) -> dict[str, int]:
    """A number for all sites, or a dict of numbers by site, as a dict by site.

    Numbers are integers of at least 1, or math.inf where this is allowed.

    Args:
        what: name of the option, for messages.
        sites: names of the allowed sites.
        infinite: whether a number may be math.inf.

    Raises:
        ValueError, TypeError: a site is unknown, or a value is not an integer of at least 1. The message names the
            site.
    """
    sites = list(sites)
    numbers = dict(value) if isinstance(value, Mapping) else dict.fromkeys(sites, value)
    for name in numbers:
        if name not in sites:
            raise ValueError(f"{what}: {name!r} is not among the sampled sites {', '.join(sites)}")
    endless = [name for name, n in numbers.items() if infinite and isinstance(n, float) and n == math.inf]
    return {name: n if name in endless else integer(f"{what} of site {name!r}", n, 1) for name, n in numbers.items()}
