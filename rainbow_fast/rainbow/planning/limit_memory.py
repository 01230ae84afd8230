# SPDX-License-Identifier: BSD-3-Clause
"""The memory of one site of infinitely many neurons: what each step of `sampling.limit_site.LimitSite` holds."""

from __future__ import annotations

from dataclasses import dataclass

from rainbow_fast.infinite_width.expectations import expectations
from rainbow_fast.infinite_width.hermite import NODES, SAMPLES
from rainbow_fast.infinite_width.kernels import PAIRS
from rainbow_fast.rainbow.alignment.classifier import ridge_bytes
from rainbow_fast.rainbow.network.limit_activation import BLOCK
from rainbow_fast.rainbow.planning.kernel_memory import polar_bytes
from rainbow_fast.rainbow.planning.site_memory import VECTORS, SiteMemory

TEMPORARIES = 5  # float64 numbers for each pair of samples while the kernel of relu is computed
SERIES_TERMS = 128  # of a Hermite series: of tanh at norms of 1 (512 at 2), and of silu at 2 (256 at 3)
COEFFICIENTS = 2  # copies of the coefficients of a series: those of a sample in a row, and those of a term in a row
VALUES = 4  # x, sigma(x), its square and its product with the weights, at the nodes
PRODUCTS = 4  # matrices of the size of X in the square root: X about its mean, X^T / S, and two products


@dataclass(frozen=True)
class LimitMemory(SiteMemory):
    """As `SiteMemory`, of a site whose features enter by their kernel with `columns` rows. All is in float64."""

    def _accumulate(self) -> int:
        """The sums of M, a product that is added to them, phi of a chunk, and a block of the kernel, also centred.

        X in addition, if all samples are rows.
        """
        site = self.site
        sums = 2 * 8 * site.rows * site.columns + VECTORS * 8 * site.columns
        phi = 8 * min(self._chunk * site.pixels, site.samples) * site.rows
        block = 8 * min(BLOCK, site.samples * site.columns)
        computed = self._block_bytes(site.samples, site.columns)
        return sums + phi + self._maps + self._X + max(2 * block, computed)

    def _solve(self) -> int:
        """The square root of M M^T; or the kernel of the rows and its factor, and the polar factor beside that."""
        site, M = self.site, 8 * self.site.rows * self.site.columns
        always = M + VECTORS * 8 * site.columns
        if self._X:
            return always + self._X + PRODUCTS * self._X + site.A_bytes
        K, polar = 8 * site.columns**2, polar_bytes(site.rows, site.columns, single=False)
        return always + K + max(K, self._block_bytes(site.columns, site.columns), polar, M + site.A_bytes)

    def _project(self, refit: tuple[int, int] | None) -> int:
        """A block of the kernel, and what is collected for a new classifier: embedded images."""
        site = self.site
        collected = 0 if refit is None else (site.sizes.align + self._chunk) * self._embedded
        return site.A_bytes + self._maps + self._block_bytes(self._chunk * site.pixels, site.columns) + collected

    def _refit(self, F: int) -> int:
        """A new classifier: the kernel of all images with F of them, its factor, and the fit."""
        N = self.site.sizes.align
        rows, images = F * self._embedded, N * self._embedded
        kernel = rows + images + 8 * N * F + self._block_bytes(N, F)
        return self.site.A_bytes + max(2 * images, kernel, rows + 8 * F**2 + ridge_bytes(N, F, 8))

    @property
    def _X(self) -> int:
        """Memory of the reference's phi at all samples, which are stored if all of them are rows."""
        return 8 * self.site.samples * self.site.rows if self.site.columns == self.site.samples else 0

    @property
    def _embedded(self) -> int:
        """Bytes of what the kernel reads of an image."""
        return 8 * self.site.pixels * (self.site.r + self.site.mean_row)

    def _block_bytes(self, samples: int, rows: int) -> int:
        """A block of the kernel of these samples and rows, and what a part of it is computed from."""
        pairs = min(BLOCK, samples * rows) + TEMPORARIES * min(PAIRS, samples * rows)
        return 8 * (pairs + self._series_numbers(min(samples, max(BLOCK // rows, 1)) + rows))

    def _series_numbers(self, samples: int) -> int:
        """Coefficients of these samples, if the kernel is a Hermite series, and the values they are integrals of."""
        how = self.site.kind.expected()
        assert how is not None  # a site without a limit is refused before
        form = expectations(how["activation"], how.get("negative_slope", 0.0))
        if (form.shifted if self.site.mean_row else form.centred) is not None:
            return 0
        return COEFFICIENTS * samples * SERIES_TERMS + VALUES * min(SAMPLES, samples) * len(NODES)
