# SPDX-License-Identifier: BSD-3-Clause
"""What `fit` measures of the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rainbow_fast.progress import Progress
from rainbow_fast.rainbow.alignment.procrustes import rotations
from rainbow_fast.rainbow.chunks import Data
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.positions import channels_first, every, take
from rainbow_fast.rainbow.prepare import Prepared
from rainbow_fast.rainbow.site_statistics import SiteStatistics, active_samples
from rainbow_fast.rainbow.spec import NetworkSpec
from rainbow_fast.tracing.joined import Joined
from rainbow_fast.tracing.trace import State


@torch.no_grad()
def fit_moments(prepared: Prepared, progress: Progress | None) -> None:
    """The moments of z at every site, in one pass over the data.

    Raises:
        ValueError: z is not finite; the message names the site.
    """
    sites, data, trace = prepared.sites, prepared.align, prepared.trace
    watches = [Watch(s, data, prepared.max_samples) for s in sites]
    for number, start in enumerate(data.starts, start=1):
        state: State = (data.chunk(start),)
        done: list[nn.Module] = []
        for place, (s, watch) in enumerate(zip(sites, watches, strict=True)):
            z, *rest = trace.advance(place, state, done)
            watch(start, z)
            state = (s.site.reference(z), *rest)
            done.append(s.site.reference)
        if progress is not None:
            progress(number, len(data.starts), "statistics of the reference")
    for s in sites:
        if (channel := s.z.x.not_finite()) is not None:
            raise ValueError(f"site {s.site.name!r}: the reference's z is not finite, first in channel {channel}")


@torch.no_grad()
def fit_rotations(prepared: Prepared, iterations: int, progress: Progress | None) -> None:
    """Align the references at every site, positions of a map being samples: one pass over the data.

    An output activation keeps the identities: outputs are in common coordinates.

    Raises:
        ValueError: activations that are not finite, or a reference's that are not correlated with the mean; the message
            names the site.
    """
    joined, sites, data = prepared.trace, prepared.sites, prepared.align
    assert isinstance(joined, Joined)
    moments = [CrossCovariance(s.site.name) for s in sites]
    for number, start in enumerate(data.starts, start=1):
        state: State = (data.chunk(start),)
        done: list[nn.Module] = []
        for place, (s, moment) in enumerate(zip(sites, moments, strict=True)):
            state = joined.advance(place, state, done)
            done.append(s.site.reference)
            own = channels_first(s.site.reference[0](state[0]), s.site.axis)
            step = every(data.count * s.positions, prepared.max_samples, s.positions)
            moment.update(take(own, start * s.positions, step))
        if progress is not None:
            progress(number, len(data.starts), "alignment of the references")
    for place, (s, moment) in enumerate(zip(sites, moments, strict=True)):
        if not s.site.output:
            joined.rotate(place, rotations(moment.compute(), joined.references, iterations, s.site.name))


class Watch:
    """Takes the statistics of a site from its z as it comes by.

    Attributes:
        takes: "all" moments; those of "channels" alone, without second moments; or "none" but the activity.
    """

    def __init__(self, statistics: SiteStatistics, data: Data, max_samples: int, takes: str = "all") -> None:
        self.statistics, self.takes = statistics, takes
        self.positions = math.prod(statistics.z_shape) // statistics.d
        self.step = every(data.count * self.positions, max_samples, self.positions)

    @classmethod
    def of(cls, statistics: SiteStatistics, prepared: Prepared, specs: Sequence[NetworkSpec]) -> Watch | None:
        """What these networks need of a reference that was not fitted; None where it was."""
        if statistics.fitted:
            return None
        takes = "channels" if any(spec.options.recalibrate for spec in specs) else "none"
        return cls(statistics, prepared.align, prepared.max_samples, takes)

    def __call__(self, start: int, z: Tensor) -> None:
        statistics = self.statistics
        rows = channels_first(z, statistics.site.axis)
        if start == 0:
            statistics.activity = float((active_samples(rows, statistics) > 0).double().mean())
        if self.takes == "all":
            statistics.z.update(take(rows, start * self.positions, self.step))
        elif self.takes == "channels":
            statistics.z.x.update(take(rows, start * self.positions, self.step))
