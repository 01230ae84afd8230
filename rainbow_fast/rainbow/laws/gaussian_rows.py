# SPDX-License-Identifier: BSD-3-Clause
"""The law `gaussian`, which is the law of the paper."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rainbow_fast.rainbow.laws.law import PLANNED, Law
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.site_statistics import SiteStatistics


@dataclass(frozen=True)
class Gaussian(Law):
    """R = G: rows ``N(0, W^T W / d)``. With ``keep_mean``, the rows combine deviations from the mean over channels.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), equation 15.
    """

    gaussian_limit = True

    def draw(self, n: int, site: SiteStatistics, U: Tensor | None, key: Tensor) -> Rows:
        return Rows(n, site.columns, key, U)

    def planned(self, n: int, site: SiteStatistics, U: Tensor | None) -> Rows:
        return Rows(n, site.columns, PLANNED, U)
