# SPDX-License-Identifier: BSD-3-Clause
"""The measurements of `fit` on the reference: moments of z, and rotations of several references."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rainbow_fast.maps import channels_first, every, take
from rainbow_fast.progress import Progress
from rainbow_fast.rainbow.alignment.procrustes import rotations
from rainbow_fast.rainbow.chunks import Data
from rainbow_fast.rainbow.kinds import kind_of
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.prepare import Prepared
from rainbow_fast.rainbow.site_statistics import SiteStatistics, active_samples
from rainbow_fast.rainbow.spec import NetworkSpec
from rainbow_fast.tracing.joined import Joined
from rainbow_fast.tracing.trace import State


@torch.no_grad()
def fit_moments(prepared: Prepared, progress: Progress | None) -> None:
    """Measure the moments of z at every site, in one pass over the alignment set.

    Raises:
        ValueError: z is not finite. The message names the site.
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
    """Align several references at every site, in one pass over the alignment set. Every position is a sample.

    An output activation is not rotated, because the outputs of all references have the same coordinates.

    Raises:
        ValueError: activations are not finite, or those of one reference are not correlated with the mean. The message
            names the site.
    """
    joined, sites, data = prepared.trace, prepared.sites, prepared.align
    assert isinstance(joined, Joined)
    moments = [CrossCovariance(s.site.name, precision="highest") for s in sites]
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
    """Measures the statistics of a site from its z, chunk by chunk.

    Attributes:
        takes: "all" for all moments; "channels" for mean and variance of the channels only; "none" for no moments. The
            activity is always measured.
    """

    def __init__(self, statistics: SiteStatistics, data: Data, max_samples: int, takes: str = "all") -> None:
        self.statistics, self.takes = statistics, takes
        self.data, self.positions = data, data.positions(statistics.z_space, max_samples)

    @classmethod
    def of(cls, statistics: SiteStatistics, prepared: Prepared, specs: Sequence[NetworkSpec]) -> Watch | None:
        """Measures the statistics that these networks need; None if the reference was fitted and has them already."""
        if statistics.fitted:
            return None
        takes = "channels" if any(spec.options.recalibrate for spec in specs) else "none"
        return cls(statistics, prepared.align, prepared.max_samples, takes)

    def __call__(self, start: int, z: Tensor) -> None:
        statistics = self.statistics
        if start == 0 and kind_of(statistics.site).has_activity:
            counted = self.data.counted(start, z, statistics.site.axis)
            s = active_samples(counted, statistics)
            s = s if statistics.expansion is None else statistics.expansion.preactivations(s)
            statistics.activity = float((s > 0).double().mean())
        rows = channels_first(z, statistics.site.axis)
        if self.takes == "all":
            statistics.z.update(self.positions.of(rows, start))
        elif self.takes == "channels":
            statistics.z.x.update(self.positions.of(rows, start))
