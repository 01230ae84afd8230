# SPDX-License-Identifier: BSD-3-Clause
"""The law `bootstrap`: neurons of the reference, drawn with replacement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.arguments import between
from rainbow_fast.ops.gaussian import choices, gaussian
from rainbow_fast.rainbow.laws.law import INFINITE, PLANNED, Law, without_values
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.site_statistics import SiteStatistics

SMOOTHING = between(0, 1, "0 <= smoothing <= 1")  # the check of the smoothing


@dataclass(frozen=True)
class Bootstrap(Law):
    """``R_i = sqrt((1 - h^2) d) U[k(i)] + h g_i``: neurons k(i) of the reference, drawn uniformly with replacement.

    At a site of random features, k(i) are their own neurons: ``R_i = sqrt(1 - h^2) G[k(i)] + h g_i``. Gaussian
    noise g_i with the share h = `smoothing` is added. The neurons are shrunk, so that the covariance is kept.

    Attributes:
        smoothing: h, between 0 (default: the reference's neurons) and 1 (Gaussian noise only).

    Raises:
        TypeError: the smoothing is not a number.
        ValueError: the smoothing is outside 0 .. 1.

    Source: Efron and Tibshirani, "An introduction to the bootstrap" (1993), section 16.5, with the shrinkage.
    """

    smoothing: float = 0.0
    keeps_mean = True

    def __post_init__(self) -> None:
        SMOOTHING("smoothing", self.smoothing)

    def draw(self, n: int, site: SiteStatistics, U: Tensor | None, key: Tensor) -> Rows:
        k = choices(n, site.neurons, seed=key).to(site.device)
        if site.expansion is None:
            return Rows(n, site.columns, key, U, k=k, h=self.smoothing)
        own, noise = (
            gaussian(*size, seed=one, dtype=torch.float64, device=site.device)
            for size, one in (((site.neurons, site.d), site.expansion.key), ((n, site.d), key))
        )
        return Rows(n, site.d, key, matrix=math.sqrt(1 - self.smoothing**2) * own[k] + self.smoothing * noise)

    def limit(self, site: SiteStatistics, U: Tensor | None, key: Tensor) -> Rows:
        """Gaussian neurons with the standard deviation h about ``c_k = sqrt((1 - h^2) d) U[k]``, for each k.

        At a site of random features, about ``c_k = sqrt(1 - h^2) G[k]``.

        Source: Efron and Tibshirani (1993), section 16.5: the smoothed bootstrap, of infinitely many draws.
        """
        exact: dict[str, Any] = {"dtype": torch.float64, "device": site.device}
        if site.expansion is not None:
            own = gaussian(site.neurons, site.d, seed=site.expansion.key, **exact)
        else:
            own = math.sqrt(site.d) * (torch.eye(site.d, **exact) if U is None else U)
        matrix = math.sqrt(1 - self.smoothing**2) * own
        return Rows(INFINITE, site.d, key, U, h=self.smoothing, matrix=matrix)

    def planned(self, n: int, site: SiteStatistics, U: Tensor | None) -> Rows:
        if site.expansion is not None:
            return Rows(n, site.d, PLANNED, matrix=without_values(n, site.d))
        return Rows(n, site.columns, PLANNED, U, k=without_values(n, dtype=torch.int64))
