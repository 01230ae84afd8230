# SPDX-License-Identifier: BSD-3-Clause
"""The law `identity`: the neurons of the reference itself, as a control experiment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rainbow_fast.rainbow.laws.law import PLANNED, Law, without_values
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.site_statistics import SiteStatistics


@dataclass(frozen=True)
class Identity(Law):
    """``R = sqrt(d) U``: the neurons of the reference itself, in their order. The width must be n = d.

    At a site of random features R is their own matrix G, and n their number.

    Raises:
        ValueError: when networks are sampled: a sampled site has another width. The message names the site.
    """

    def check(self, n: int, site: SiteStatistics) -> None:
        if n != site.neurons:
            name = site.site.name
            raise ValueError(f"law='identity': site {name!r} has {n} neurons, wanted the reference's {site.neurons}")

    def draw(self, n: int, site: SiteStatistics, U: Tensor | None, key: Tensor) -> Rows:
        if site.expansion is not None:
            return Rows(n, site.d, site.expansion.key)
        return Rows(n, site.columns, key, U, k=torch.arange(n, device=site.device))

    def planned(self, n: int, site: SiteStatistics, U: Tensor | None) -> Rows:
        if site.expansion is not None:
            return Rows(n, site.d, PLANNED)
        return Rows(n, site.columns, PLANNED, U, k=without_values(n, dtype=torch.int64))
