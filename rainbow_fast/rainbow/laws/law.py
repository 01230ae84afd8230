# SPDX-License-Identifier: BSD-3-Clause
"""The base class of all laws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.site_statistics import SiteStatistics

EIGENVECTORS = 10  # flops / n^3 for the eigenvectors of a symmetric (n, n) matrix
INFINITE: int = math.inf  # type: ignore[assignment]  # a number of neurons: the limit of networks of finite width
PLANNED = torch.zeros(4, dtype=torch.int64, device="cpu")  # a placeholder for the key, which is not read


class Law:
    """Base class of the laws that the rows of G_eff are drawn from.

    A subclass must have the method `draw`. An object of it can be passed to `sample` as ``law=``. A network stores the
    drawn rows as tensors, so that it runs, and is saved, loaded and materialised without the law.

    Attributes:
        keeps_mean: whether the law only combines deviations from the mean over channels. The option ``keep_mean`` is
            then True.
        gaussian_limit: whether the law of infinitely many rows is that of independent Gaussian ones, so that the kernel
            of the features has a closed form.
    """

    keeps_mean = False
    gaussian_limit = False

    @property
    def has_limit(self) -> bool:
        """Whether infinitely many neurons have a closed form: the Gaussian one, or that of a law's own `limit`."""
        return self.gaussian_limit or type(self).limit is not Law.limit

    def check(self, n: int, site: SiteStatistics) -> None:
        """Check that n neurons can be drawn at a site; called before anything is sampled.

        Raises:
            ValueError: they cannot. The message names the site.
        """

    def layers(self, sites: Sequence[SiteStatistics]) -> dict[str, Tensor]:
        """New weights for the layers that write the sampled sites, by the name of the site. Most laws have none.

        A layer keeps its geometry, but its weight may have another number of rows. The new weights are part of the
        sampled network and of its file. They exclude ``recalibrate``, because z differs from the reference's z.
        """
        return {}

    def draw(self, n: int, site: SiteStatistics, U: Tensor | None, key: Tensor) -> Rows:
        """Draw n rows.

        Args:
            n: number of neurons.
            site: statistics of the reference: the number `columns` of columns of G_eff, which is d, or 2 d with
                complex weights; the moments ``z``; and ``site.writer``, the layer that writes z.
            U: the directions that are combined, (columns, r) float64 with orthonormal columns; None for all channels.
            key: the address of the Gaussian numbers of this site, which is a seed of `rainbow_fast.gaussian`.

        Returns:
            `Rows` with n, d, key, U, and the tensors that the law has drawn. The caller sets ``mean_row``.
        """
        raise NotImplementedError

    def limit(self, site: SiteStatistics, U: Tensor | None, key: Tensor) -> Rows | None:
        """What infinitely many rows are drawn from; arguments as in `draw`.

        Returns:
            `Rows` with n = `INFINITE`. The neurons are Gaussian. With a `matrix` (K, r), its rows are their centers,
            and h is the standard deviation about them; each center has the same share of neurons. Without a matrix they
            have the covariance I about 0. None without a limit: a law that overrides this method has one at every site.
        """
        return Rows(INFINITE, site.d, key, U) if self.gaussian_limit else None

    def planned(self, n: int, site: SiteStatistics, U: Tensor | None) -> Rows:
        """The `Rows` that `draw` would return, but with tensors without values (device "meta").

        The default is a law that stores R itself, in float64.
        """
        rows = Rows(n, site.columns, PLANNED, U)
        return rows._replace(matrix=without_values(n, rows.r))

    def flops(self, n: int, r: int) -> float:
        """Float64 flops of `draw` for n rows that combine r directions."""
        return 0.0


def without_values(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor with a shape and a dtype, but without values."""
    return torch.empty(shape, dtype=dtype, device="meta")
