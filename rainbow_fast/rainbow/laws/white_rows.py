# SPDX-License-Identifier: BSD-3-Clause
"""The law `white`: weights as at initialisation instead of trained ones, as a control experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rainbow_fast.rainbow.laws.law import PLANNED, Law
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.site_statistics import SiteStatistics


@dataclass(frozen=True)
class White(Law):
    """Rows ``N(0, c^2 I)``: each layer has the white covariance of an untrained layer, with the trace of the trained.

        z' = c G p(phih),    c^2 = tr(W^H W / rows) / columns

    p takes the patches that one row of the weights W is applied to. Only c and the alignments depend on the reference.
    The layer that writes a sampled site is replaced by ``c sqrt(columns) I``, which computes p.

    Each sampled site must be written by one bias-free linear layer or convolution whose rows read all channels.

    Raises:
        ValueError: when networks are sampled: a sampled site is not written by such a layer. The message names the
            site.
    """

    gaussian_limit = True

    def layers(self, sites: Sequence[SiteStatistics]) -> dict[str, Tensor]:
        return {s.site.name: _patches(_weight(s)) for s in sites}

    def draw(self, n: int, site: SiteStatistics, U: Tensor | None, key: Tensor) -> Rows:
        return Rows(n, site.columns, key, U)

    def planned(self, n: int, site: SiteStatistics, U: Tensor | None) -> Rows:
        return Rows(n, site.columns, PLANNED, U)


def _weight(s: SiteStatistics) -> Tensor:
    """The weight of the layer that writes a site."""
    name, writer = s.site.name, s.site.writer
    if not isinstance(writer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise ValueError(f"law='white': site {name!r} is not written by one bias-free linear layer or convolution")
    if not isinstance(writer, nn.Linear) and writer.groups > 1:
        raise ValueError(f"law='white': site {name!r}: groups={writer.groups}, wanted rows that read all channels")
    return writer.weight


def _patches(weight: Tensor) -> Tensor:
    """The weights (columns, in, *kernel) of a layer whose output is the patches times c sqrt(columns)."""
    columns = weight[0].numel()
    c = weight.detach().abs().double().square().mean().sqrt()
    one = torch.eye(columns, dtype=torch.float64, device=weight.device)
    return (c * columns**0.5 * one).to(weight.dtype).view(columns, *weight.shape[1:])
