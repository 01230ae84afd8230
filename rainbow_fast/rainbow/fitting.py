# SPDX-License-Identifier: BSD-3-Clause
"""What `fit` measures of the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rainbow_fast.rainbow.network.activation import channels_first
from rainbow_fast.rainbow.plan import Plan
from rainbow_fast.rainbow.sampling.flight import Data
from rainbow_fast.rainbow.sampling.site import active_rows
from rainbow_fast.rainbow.site_statistics import SiteStatistics, every, take
from rainbow_fast.tracing.trace import State, Trace

Progress = Callable[[int, int, str], None]


@torch.no_grad()
def fit_moments(
    cut: Trace, sites: Sequence[SiteStatistics], data: Data, max_samples: int, progress: Progress | None
) -> None:
    """The moments of z at every site, in one pass over the data.

    Raises:
        ValueError: z is not finite; the message names the site.
    """
    watches = [Watch(s, data, max_samples) for s in sites]
    for number, start in enumerate(data.starts, start=1):
        state: State = (data.chunk(start),)
        done: list[nn.Module] = []
        for place, (s, watch) in enumerate(zip(sites, watches, strict=True)):
            z, *rest = cut.advance(place, state, done)
            watch(start, z)
            state = (s.site.reference(z), *rest)
            done.append(s.site.reference)
        if progress is not None:
            progress(number, len(data.starts), "statistics of the reference")
    for s in sites:
        if (channel := s.z.x.not_finite()) is not None:
            raise ValueError(f"site {s.site.name!r}: the reference's z is not finite, first in channel {channel}")


class Watch:
    """Takes the statistics of a site from its z as it comes by: all of them, or those that some plans need, which have
    no use for second moments."""

    def __init__(
        self, known: SiteStatistics, data: Data, max_samples: int, plans: Sequence[Plan] | None = None
    ) -> None:
        self.known, self.all = known, plans is None
        self.channels = any(plan.parts.recalibrate for plan in plans or ())
        self.positions = math.prod(known.z_shape) // known.d
        self.step = every(data.count * self.positions, max_samples, self.positions)

    def __call__(self, start: int, z: Tensor) -> None:
        known = self.known
        rows = channels_first(z, known.site.axis)
        if start == 0:
            known.activity = float((active_rows(rows, known) > 0).double().mean())
        if self.all:
            known.z.update(take(rows, start * self.positions, self.step))
        elif self.channels:
            known.z.x.update(take(rows, start * self.positions, self.step))
