# SPDX-License-Identifier: BSD-3-Clause
"""What `fit` measures of the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from rainbow_fast.networks.trace import State, Trace
from rainbow_fast.rainbow.activation import channels_first
from rainbow_fast.rainbow.flight import Data
from rainbow_fast.rainbow.statistics import SiteStatistics, every, take
from rainbow_fast.rainbow.step import active_rows

Progress = Callable[[int, int, str], None]


@torch.no_grad()
def fit_moments(
    cut: Trace, sites: Sequence[SiteStatistics], data: Data, max_samples: int, progress: Progress | None
) -> None:
    """The moments of z at every site, in one pass over the data.

    Raises:
        ValueError: z is not finite; the message names the site.
    """
    for number, start in enumerate(data.starts, start=1):
        state: State = (data.chunk(start),)
        done: list[nn.Module] = []
        for place, s in enumerate(sites):
            z, *rest = cut.advance(place, state, done)
            rows = channels_first(z, s.site.axis)
            per_sample = math.prod(s.z_shape) // s.d
            s.z.update(take(rows, start * per_sample, every(data.count * per_sample, max_samples, per_sample)))
            if start == 0:
                s.activity = float((active_rows(rows, s) > 0).double().mean())
            state = (s.site.reference(z), *rest)
            done.append(s.site.reference)
        if progress is not None:
            progress(number, len(data.starts), "statistics of the reference")
    for s in sites:
        if (channel := s.z.x.not_finite()) is not None:
            raise ValueError(f"site {s.site.name!r}: the reference's z is not finite, first in channel {channel}")
