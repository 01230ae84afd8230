# SPDX-License-Identifier: BSD-3-Clause
"""What a law is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.site_statistics import SiteStatistics

EIGENVECTORS = 10  # of a symmetric (n, n) matrix: flops over n^3
PLANNED = torch.zeros(4, dtype=torch.int64, device="cpu")  # an address that is not read


class Law:
    """A law of the rows of G_eff. A subclass has the method `draw`, and can be given as ``law=`` of `sample`.

    Networks keep what is drawn, as tensors: they run, are saved, loaded and written out without the law.

    Attributes:
        keeps_mean: whether it combines deviations from the mean over channels alone, so that ``keep_mean`` follows.
    """

    keeps_mean = False

    def check(self, n: int, site: SiteStatistics) -> None:
        """Raise a ValueError, which names the site, where n neurons cannot be drawn there: before all sampling."""

    def layers(self, sites: Sequence[SiteStatistics]) -> dict[str, Tensor]:
        """Other weights of the layers that write the sampled sites, by the name of the site: none, for most laws.

        A layer keeps its geometry; the rows of its weight may be of another number. They are in the sampled network and
        in its file, and cannot go with ``recalibrate``, as z is another one than the reference's.
        """
        return {}

    def draw(self, n: int, site: SiteStatistics, U: Tensor | None, key: Tensor) -> Rows:
        """Draw n rows.

        Args:
            n: neurons.
            site: what is known of the reference: ``d`` channels, moments ``z``, the layer ``site.writer`` before it.
            U: the directions that are combined, (d, r) float64, orthonormal columns; None for all d.
            key: the address of the site's own Gaussian numbers, a seed of `rainbow_fast.gaussian`.

        Returns:
            `Rows` with n, d, key and U, and what else the law has drawn; ``mean_row`` is set by the caller.
        """
        raise NotImplementedError

    def planned(self, n: int, site: SiteStatistics, U: Tensor | None) -> Rows:
        """What `draw` would store, on the device "meta": tensors without values. By default R itself, in float64."""
        rows = Rows(n, site.d, PLANNED, U)
        return rows._replace(matrix=without_values(n, rows.r))

    def flops(self, n: int, r: int) -> float:
        """Of `draw`, in float64: n rows that combine r directions."""
        return 0.0


def without_values(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor of a shape alone."""
    return torch.empty(shape, dtype=dtype, device="meta")
