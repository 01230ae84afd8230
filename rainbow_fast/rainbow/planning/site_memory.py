# SPDX-License-Identifier: BSD-3-Clause
"""The memory of one sampled site: what each step of `sampling.sampled_site.SampledSite` holds, counted from shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rainbow_fast.rainbow.alignment.classifier import ridge_bytes
from rainbow_fast.rainbow.alignment.regression import FEATURE_NUMBERS, SolverCost
from rainbow_fast.rainbow.kinds import Kind
from rainbow_fast.rainbow.laws.rows import ROW_BLOCK, Rows
from rainbow_fast.rainbow.network.features import FEATURE_BLOCK, IMPLICIT_BLOCK
from rainbow_fast.rainbow.planning.kernel_memory import features_covariance_bytes, polar_bytes, second_moment_bytes
from rainbow_fast.rainbow.planning.sizes import Sizes

VECTORS = 5  # float64 vectors of the width: sums, squares, centers of the features, and copies of them


class SizesOfSite(Protocol):
    """The numbers of a site that its memory follows from; see `site_cost.SiteCount`."""

    sizes: Sizes
    kind: Kind
    z: int
    phi: int
    pixels: int
    positions: int
    rows: int
    columns: int
    n: int
    r: int
    samples: int
    step: int
    flattened: bool
    alive: int
    first: bool
    stored: bool
    recalibrates: bool
    mean_row: bool
    solver: str
    regression: SolverCost
    rows_drawn: Rows
    A_bytes: int
    wide_bytes: int


@dataclass(frozen=True)
class SiteMemory:
    """The memory of one sampled site, without the sites that were sampled before.

    Attributes:
        site: its sizes.
        arriving: numbers of one image after the previous step, for each of the two networks.
    """

    site: SizesOfSite
    arriving: int

    @property
    def in_flight(self) -> int:
        """The largest memory of z and phi of both networks, and of tensors that later layers read, over all data.

        Chunk by chunk, the reference advances from the previous phi to its phi, then the sampled network from its
        previous phi to z and to phi. At the first sampled site both still share their activations.
        """
        site, arriving = self.site, self.arriving
        if site.first:
            each = max(arriving, site.phi + max(site.z, site.phi)) + site.alive
        else:
            reference = arriving + max(arriving, site.phi)
            each = max(reference, site.phi + max(arriving, site.z, site.phi)) + 2 * site.alive
        return site.sizes.waiting * site.sizes.both * each

    def peak(self, refit: tuple[int, int] | None) -> int:
        """The largest memory of a step; `refit` is (classes, features) of a new classifier, or None."""
        steps = [self._accumulate(), self._solve(), self._project(refit)]
        if refit is not None:
            steps.append(self._refit(refit[1]))
        return self.in_flight + self.site.wide_bytes + max(steps)

    @property
    def _chunk(self) -> int:
        """The number of images in a chunk."""
        return min(self.site.sizes.chunk, self.site.sizes.align)

    @property
    def _maps(self) -> int:
        """Memory of the activations of one chunk while they are computed on.

        They are what a layer or a site writes; z after recalibration; u, and z with channels last before it; the
        activations that are loaded or recomputed, unless they are in memory as they are; and those of the site before
        if they are recomputed.
        """
        site = self.site
        copies = 1.0 + (site.recalibrates or site.mean_row) + site.kind.complex_weights
        if "U" in site.rows_drawn.stored:
            copies += site.rows_drawn.r / site.rows_drawn.d + (site.pixels > 1)
        copies += 0 if site.sizes.waiting == site.sizes.itemsize else 2
        numbers = copies * max(site.z, site.phi, self.arriving)
        numbers += 0 if site.sizes.waiting else self.arriving
        return round(site.sizes.itemsize * self._chunk * numbers)

    @property
    def _features(self) -> int:
        """Memory of the features of a block of neurons for a chunk; 0 if no features are stored.

        They are stored before the pooling, after it, and once more about their center.
        """
        site = self.site
        block = min(site.n, FEATURE_BLOCK) if site.stored else 0
        return site.sizes.itemsize * self._chunk * block * (site.pixels + 2 * site.positions)

    def _accumulate(self) -> int:
        """The sums of M, and of the second moment of the regression."""
        site, M = self.site, 8 * self.site.rows * self.site.columns
        samples = min(self._chunk * site.pixels, site.samples)
        block = min(site.n, IMPLICIT_BLOCK if site.rows_drawn.implicit else ROW_BLOCK)
        sums = 0 if site.stored else features_covariance_bytes(site.rows, block, samples)
        S, second = 0, 0
        if site.solver == "summed":
            S = 8 * site.columns**2
            numbers = min(self._chunk * site.pixels * site.n, FEATURE_NUMBERS)
            rows = max(numbers // site.n, 1)
            second = site.sizes.itemsize * numbers + second_moment_bytes(site.columns, rows)
        return M + S + VECTORS * 8 * site.columns + self._maps + max(sums + self._features, second)

    def _solve(self) -> int:
        """The polar factor or the regression, and A in its dtype beside it."""
        site, M, vectors = self.site, 8 * self.site.rows * self.site.columns, VECTORS * 8 * self.site.columns
        wide = site.sizes.itemsize == 8 or site.samples < min(site.rows, site.columns)  # `align.product_dtype`
        factor = polar_bytes(site.rows, (1 + site.kind.complex_weights) * site.columns, single=not wide)
        if not site.solver:
            return M + vectors + max(factor, site.A_bytes)
        if site.solver == "summed":  # S stays until the end
            return 2 * M + site.regression.bytes + vectors + max(M, factor, 2 * site.A_bytes)
        return 2 * M + vectors + max(site.regression.bytes, factor, 2 * site.A_bytes)

    def _project(self, refit: tuple[int, int] | None) -> int:
        """A phi' of a chunk at a time, and the features that are collected for a new classifier."""
        site, collected = self.site, 0 if refit is None else refit[1]
        features = site.sizes.itemsize * collected * (site.sizes.align + 2 * self._chunk)
        return site.A_bytes + self._maps + self._features + features

    def _refit(self, F: int) -> int:
        """A new classifier: its F features, twice while they are put together, and its fit."""
        N, itemsize = self.site.sizes.align, self.site.sizes.itemsize
        return self.site.A_bytes + max(ridge_bytes(N, F, itemsize), 2 * itemsize * N * F)
