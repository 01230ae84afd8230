# SPDX-License-Identifier: BSD-3-Clause
"""The rank of the random rows: the choice of the directions of z that they combine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rainbow_fast.rainbow.laws.marchenko_pastur import NOISE_EDGE, marchenko_pastur_rank
from rainbow_fast.rainbow.laws.real_form import real_form
from rainbow_fast.rainbow.site_statistics import SiteStatistics, by_site
from rainbow_fast.tracing.writers import writer_rows

# By site: U (d, r) float64 with orthonormal columns, or with complex weights its real form (2 d, 2 r); None: all
# channels of z
Directions = dict[str, Tensor | None]


def choose_directions(
    sites: Sequence[SiteStatistics],
    rank: int | str | Mapping[str, int | str] | None,
    explained_variance: float | None,
    *,
    centred: bool,
    only_shapes: bool = False,
) -> Directions:
    """The r leading principal directions of each site.

    Args:
        rank: r, at most d; or `NOISE_EDGE`, the number of singular values of the site's weights above those of noise;
            or a dict of these by site. Sites that the dict does not name, and all sites if `rank` and
            `explained_variance` are None, combine all channels. So do random features of the reference, whose law is
            exact.
        explained_variance: r is the smallest rank with this fraction of the trace.
        centred: whether the mean over channels is removed first.
        only_shapes: if True, the directions of a rank are tensors without values.

    Raises:
        ValueError: a rank is below 1, or a site is unknown; a dict names a site of random features; `NOISE_EDGE` for a
            site that is not written by one bias-free, not grouped layer with real weights; an explained variance for a
            site whose moments are not known.
    """
    directions: Directions = {s.site.name: None for s in sites}
    for s in sites:
        if s.expansion is not None and isinstance(rank, Mapping) and s.site.name in rank:
            raise ValueError(
                f"rank: site {s.site.name!r} has random features of {s.d} channels, whose law is exact: wanted no rank"
            )
    sites = [s for s in sites if s.expansion is None]
    if rank is None and explained_variance is None:
        return directions
    ranks = {} if rank is None else by_site("rank", _above_noise(sites, rank), directions)
    for s in sites:
        name = s.site.name
        if explained_variance is not None:
            directions[name] = _holding(s, explained_variance, centred)
        elif name in ranks and only_shapes:
            r = min(ranks[name], s.d)
            directions[name] = torch.empty(s.columns, r * s.columns // s.d, dtype=torch.float64, device="meta")
        elif name in ranks:
            directions[name] = real_form(s.directions(centred=centred)[1][:, : min(ranks[name], s.d)])
    return directions


def _holding(s: SiteStatistics, fraction: float, centred: bool) -> Tensor:
    """The smallest number of leading directions with this fraction of the trace."""
    if s.site.writer is None and s.z.count == 0:
        raise ValueError(
            f"explained_variance={fraction}: site {s.site.name!r} has no moments before fit: wanted a rank"
        )
    values, U = s.directions(centred=centred)
    share = torch.cumsum(values, 0) / values.sum()
    r = int((share < fraction * (1 - 1e-12)).sum()) + 1
    return real_form(U[:, : min(r, s.d)])


def _above_noise(
    sites: Sequence[SiteStatistics], rank: int | str | Mapping[str, int | str]
) -> int | str | Mapping[str, int | str]:
    """The ranks, with every `NOISE_EDGE` replaced by the number that it stands for."""
    if isinstance(rank, Mapping):
        above = {s.site.name: _rank_above_noise(s) for s in sites if _is_edge(rank.get(s.site.name))}
        return {**rank, **above}
    return {s.site.name: _rank_above_noise(s) for s in sites} if _is_edge(rank) else rank


def _is_edge(rank: object) -> bool:
    return isinstance(rank, str) and rank == NOISE_EDGE


def _rank_above_noise(s: SiteStatistics) -> int:
    writer = s.site.writer
    if writer is None:
        raise ValueError(
            f"rank={NOISE_EDGE!r}: site {s.site.name!r} is not written by one bias-free linear layer, whose noise "
            "could be told: wanted a number"
        )
    if s.site.complex_weights:
        raise ValueError(
            f"rank={NOISE_EDGE!r}: site {s.site.name!r} has complex weights, and the edge is that of real noise: "
            "wanted a number"
        )
    rows = writer_rows(writer)
    if len(rows) > 1:
        raise ValueError(
            f"rank={NOISE_EDGE!r}: site {s.site.name!r} is written by a convolution of groups={len(rows)}; the "
            "law is that of a full matrix, each neuron reading all channels: wanted a number"
        )
    return max(marchenko_pastur_rank(rows[0].to(writer.weight.dtype)), 1)
