# SPDX-License-Identifier: BSD-3-Clause
"""What one site of a sample takes: the steps of `sampling.site.SampledSite` counted from shapes.

Memory is a sum of three terms: activations in flight, over all data; float64 matrices; temporaries of a pass over a
chunk, with A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from rainbow_fast.ops.cross_covariance import cross_covariance_flops
from rainbow_fast.ops.polar import polar_flops
from rainbow_fast.ops.random_features_flops import random_features_covariance_flops, random_features_flops
from rainbow_fast.rainbow.alignment.regression import FEATURE_NUMBERS, Regression, SolverCost, solver_cost
from rainbow_fast.rainbow.kinds import kind_of
from rainbow_fast.rainbow.network.features import FEATURE_BLOCK, IMPLICIT_BLOCK
from rainbow_fast.rainbow.options import alignment_of, law_of
from rainbow_fast.rainbow.planning.cost import SiteCost, Work
from rainbow_fast.rainbow.positions import every
from rainbow_fast.rainbow.site_statistics import ACTIVITY_SAMPLES, SiteStatistics
from rainbow_fast.rainbow.spec import NetworkSpec

COPIES = 4  # of a matrix, or of a chunk of activations or features: that steps on it hold at a time, or read and write


@dataclass(frozen=True)
class Sizes:
    """Of the data: images to align on, held out, and in a chunk; bytes of a number, and of one that waits between two
    sites; `max_samples` of `fit`."""

    align: int
    held: int
    chunk: int
    itemsize: int
    waiting: int
    max_samples: int

    @property
    def both(self) -> int:
        return self.align + self.held

    def samples(self, positions: int) -> int:
        """Taken of all positions of the alignment set."""
        return -(-self.align * positions // self.step(positions))

    def step(self, positions: int) -> int:
        return every(self.align * positions, self.max_samples, positions)


class SiteCount:
    """One sampled site.

    Attributes:
        z, phi: numbers of one image before and behind the site; `pixels` of z and `positions` of phi in a channel.
        rows, columns: of M and A.
        step: of the samples, positions of images, every `step`-th is taken.
        rows_drawn: what the law of the rows stores, without values.
        window: numbers of a channel of one image that pooling reads.
        solver, regression: how the regression is solved, and what that takes.
    """

    def __init__(self, statistics: SiteStatistics, spec: NetworkSpec, sizes: Sizes, *, first: bool) -> None:
        self.statistics, self.site, self.sizes, self.first = statistics, statistics.site, sizes, first
        self.spec = spec
        options, U = spec.options, spec.directions[self.site.name]
        self.d, self.n = statistics.d, spec.widths[self.site.name]
        self.z, self.phi = math.prod(statistics.z_shape), math.prod(statistics.phi_shape)
        self.pixels, self.positions = self.z // self.d, statistics.positions
        flattened = options.align_flattened and self.site.feeds_flatten
        self.rows, self.columns = (self.phi, self.n * self.positions) if flattened else (statistics.channels, self.n)
        self.step = 1 if flattened else sizes.step(self.positions)
        self.samples = sizes.align if flattened else sizes.samples(self.positions)
        self.kind = kind_of(self.site)
        self.fused = self.kind.fused and not flattened
        self.window = self.positions * _kernel_size(self.site.before or self.site.after)
        self.rows_drawn = law_of(options).planned(self.n, statistics, U)
        self.r = self.rows_drawn.r
        self.recalibrates, self.mean_row = options.recalibrate and not first, options.keep_mean
        self.offset = options.offset or self.kind.normalisation is not None
        self.solver, self.regression = "", SolverCost()
        alignment = alignment_of(options)
        if isinstance(alignment, Regression):
            self.solver = alignment.chosen(self.columns, self.samples, self.rows if self.fused else None)
            size = self.rows, self.columns, self.samples
            self.regression = solver_cost(self.solver, *size, ridge=alignment.ridge > 0)
        self.A_bytes = sizes.itemsize * self.rows * self.columns
        self.law_bytes = sum(t.nbytes for t in self.rows_drawn.stored.values())

    # Work

    def features(self, images: int, rows: int | None = None, *, stored: bool = False) -> Work:
        """phi' of some images, or of so many rows of their positions; and the products U^T z and T G before it."""
        rows = images * self.pixels if rows is None else rows
        calls = -(-images // self.sizes.chunk)
        flops = random_features_flops((rows, self.r), self.n)
        flops += 2 * images * self.z * self.r * ("U" in self.rows_drawn.stored)
        flops += 2 * calls * self.n**2 * self.r * ("T" in self.rows_drawn.stored)
        numbers = rows * self.d + COPIES * rows * self.n * (stored or not self.fused)
        bytes, pooled = self.sizes.itemsize * numbers, images * self.n * self.window
        return Work(flops, features=rows * self.n, pooled=pooled, bytes=bytes)

    def moments(self) -> Work:
        """The features with their covariance; a share of them for the activity; the passes of the regression."""
        sizes, pixels = self.sizes, min(self.sizes.chunk, self.sizes.align) * self.pixels
        seen = -(-pixels // every(pixels, ACTIVITY_SAMPLES, self.pixels))
        flops = cross_covariance_flops((self.samples, self.rows), [(self.samples, self.columns)])
        flops += random_features_covariance_flops((seen, 1), (seen, self.r), self.n)
        features = self.features(sizes.align, self.samples if self.fused else None)
        again = self.features(sizes.align, stored=True) if self.solver == "summed" else features
        bytes = sizes.itemsize * sizes.align * self.phi
        others = Work(flops + self.regression.products, features=seen * self.n, bytes=bytes)
        return features + again * self.regression.passes + others

    def projection(self, images: int) -> Work:
        """The features with A."""
        bytes = self.sizes.itemsize * images * self.phi
        return self.features(images) + Work(2 * images * self.columns * self.phi, bytes=bytes)

    def alignment(self) -> Work:
        """polar, and the steps from the sums to M and from A to B."""
        return Work(polar_flops((self.rows, self.columns)), "polar", bytes=2 * COPIES * 8 * self.rows * self.columns)

    def solve(self) -> Work:
        """The algebra of the regression, the matrix of an orthonormal law."""
        law = law_of(self.spec.options).flops(self.n, self.r)
        return Work(self.regression.algebra + law, "float64")

    def elementwise(self) -> Work:
        """Steps of the reference's site, of the projections u, of statistics, scales and errors."""
        sizes, steps = self.sizes, 1 + self.mean_row + 2 * self.recalibrates
        each = COPIES * (steps * self.z + 2 * self.phi)
        numbers = each * (sizes.align * (1 + 2 * (self.step > 1)) + sizes.held)  # samples that are picked lie apart
        return Work(pooled=sizes.both * self.d * self.window, bytes=sizes.itemsize * numbers)

    # Memory

    def disk_bytes(self, refit: tuple[int, int] | None) -> int:
        """Key, scale, law and its layer, recalibration, A, offset.

        A refit classifier (classes, features) is in the place of A.
        """
        numbers = 2 * self.d if self.recalibrates else 0
        numbers += self.rows * (self.columns + self.offset) if refit is None else refit[0] * (refit[1] + 1)
        layer: Any = self.site.writer if self.site.name in self.spec.own_layers else None
        own = 0 if layer is None else layer.weight.nbytes
        return 40 + self.law_bytes + own + self.sizes.itemsize * numbers

    def in_flight_bytes(self, arriving: int) -> int:
        """z or phi of the reference and of the sample, one network up to the first site, and what waits beside them."""
        sides = 1 if self.first else 2
        each = max(sides * max(arriving, self.z), self.phi + max(self.z, self.phi)) + sides * self.statistics.alive
        return self.sizes.waiting * self.sizes.both * each

    def float64_bytes(self) -> int:
        """M, what a block of it is summed from or all of it is aligned with, and the regression's matrices."""
        block = (COPIES - 1) * min(self.columns, IMPLICIT_BLOCK)
        return 8 * self.rows * (self.columns + block) + self.regression.bytes

    def temporary_bytes(self, refit: tuple[int, int] | None) -> int:
        """A; steps on a chunk of z or phi; features that are stored, before and after a step; those of a classifier."""
        chunk, features = min(self.sizes.chunk, self.sizes.align), 0
        if self.solver == "summed":
            features = min(chunk * self.pixels * self.n, FEATURE_NUMBERS)
        elif not self.fused:
            features = chunk * self.pixels * min(self.n, FEATURE_BLOCK)
        numbers = COPIES * chunk * max(self.z, self.phi) + 2 * features
        numbers += 0 if refit is None else self.sizes.align * refit[1]
        return self.A_bytes + self.sizes.itemsize * numbers

    def cost(self, reference: Work, arriving: int, earlier: int, refit: tuple[int, int] | None) -> SiteCost:
        """All of it, from the work of the layers before, the numbers of one image that come in on either side, bytes
        that stay of the sites before, and classes and features of a classifier that is refit here."""
        sizes = self.sizes
        in_flight, float64 = self.in_flight_bytes(arriving), self.float64_bytes()
        projection = self.projection(sizes.both)
        return SiteCost(
            index=self.site.index,
            site=self.site.name,
            d=self.statistics.channels,
            n=self.n,
            rank=self.r,
            samples=self.samples,
            work={
                "reference": reference,
                "moments": self.moments(),
                "alignment": self.alignment(),
                "solve": self.solve(),
                "projection": projection if refit is None else projection + self.features(sizes.align),
                "elementwise": self.elementwise(),
            },
            in_flight_bytes=in_flight,
            float64_bytes=float64,
            A_bytes=self.A_bytes,
            disk_bytes=self.disk_bytes(refit),
            peak_bytes=earlier + self.law_bytes + in_flight + float64 + self.temporary_bytes(refit),
        )


def _kernel_size(pooling: nn.Module | None) -> int:
    """Numbers that each window of a site's pooling reads; 0 without one."""
    if pooling is None:
        return 0
    assert isinstance(pooling, nn.MaxPool2d)
    size = pooling.kernel_size
    return size**2 if isinstance(size, int) else math.prod(size)
