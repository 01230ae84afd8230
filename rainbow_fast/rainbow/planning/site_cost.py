# SPDX-License-Identifier: BSD-3-Clause
"""The cost of one sampled site: the steps of `sampling.sampled_site.SampledSite`, counted from shapes."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from rainbow_fast.maps import every
from rainbow_fast.ops.cross_covariance import cross_covariance_flops
from rainbow_fast.ops.polar import polar_flops
from rainbow_fast.ops.random_features_flops import random_features_covariance_flops, random_features_flops
from rainbow_fast.rainbow.alignment.regression import Regression, SolverCost, solver_cost
from rainbow_fast.rainbow.kinds import kind_of
from rainbow_fast.rainbow.laws.law import EIGENVECTORS, PLANNED, without_values
from rainbow_fast.rainbow.network.features import IMPLICIT_BLOCK
from rainbow_fast.rainbow.options import alignment_of, law_of
from rainbow_fast.rainbow.planning.cost import SiteCost, Work
from rainbow_fast.rainbow.planning.limit_memory import LimitMemory
from rainbow_fast.rainbow.planning.site_memory import SiteMemory
from rainbow_fast.rainbow.planning.sizes import Sizes
from rainbow_fast.rainbow.sampling.align import few_directions_flops, has_few_directions
from rainbow_fast.rainbow.sampling.route import KEPT, LIMIT, WIDE, Route, wide_multiplications
from rainbow_fast.rainbow.site_statistics import ACTIVITY_SAMPLES, SiteStatistics
from rainbow_fast.rainbow.spec import NetworkSpec

PAIR = 64  # activations whose time one pair of samples takes in a kernel, about
COPIES = 4  # copies of a matrix, or of a chunk of activations or features, that a step holds, or reads and writes


class SiteCount:
    """Counts the work and the memory of one sampled site.

    Attributes:
        z, phi: size of the input and of the output of the site, for one image.
        pixels, positions: positions in one channel, of what the rows combine and of phi.
        rows, columns: shape of M and A: their numbers of columns, and of rows that one column is aligned with.
        shapes: of the polar problems.
        step: every `step`-th sample is used.
        rows_drawn: the `Rows` that the law stores, without values.
        window: how many numbers pooling reads in one channel of one image.
        route: how features are computed.
        apart: number of images whose phih is computed from stored features because later layers read it, see
            `estimate._apart`; not used with the route "fused".
        stored: whether the passes store features.
        images: with the route "limit", the number of images that the kernel of a new classifier is expanded in.
        kernels: with this route, the number of Gaussian kernels that the kernel is a mean of.
        wide_bytes: size of the wide weights; 0 without them.
        solver: solver of the regression; empty for other alignments.
        regression: cost of the solver.
    """

    def __init__(
        self,
        statistics: SiteStatistics,
        spec: NetworkSpec,
        sizes: Sizes,
        *,
        first: bool,
        route: Route,
        apart: int = 0,
    ) -> None:
        self.statistics, self.site, self.sizes, self.first = statistics, statistics.site, sizes, first
        self.spec, self.route, self.apart = spec, route, apart
        shape = route.shape
        self.wide_bytes = 0 if shape is None else sizes.itemsize * shape.n * shape.n_before * shape.taps
        options, U = spec.options, spec.directions[self.site.name]
        self.d, self.n = statistics.d, spec.widths[self.site.name]
        self.z, self.phi = math.prod(statistics.z_shape), math.prod(statistics.phi_shape)
        self.kind, self.positions = kind_of(self.site), statistics.positions
        self.pixels = self.kind.mapped(self.z // self.d, self.positions)
        flattened, full = options.align_flattened and self.site.feeds_flatten, options.alignment_blocks == "full"
        self.rows, self.columns = statistics.shape_of_A(self.n, flattened=flattened, full=full)
        filters = 1 if full else self.kind.features
        parts = 1 + self.site.complex_weights  # the polar factor is that of a real matrix, see `align`
        one = self.rows, parts * self.columns // filters
        self.shapes = [one] * (1 if options.alignment_blocks == "shared" else filters)
        self.step = 1 if flattened else sizes.step(self.positions)
        self.samples = sizes.align if flattened else sizes.samples(self.positions)
        self.flattened = flattened
        self.fused = self.kind.fused and not flattened
        self.stored = not self.fused and (flattened or self.kind.features == 1)
        self.window = self.positions * _kernel_size(self.site.before or self.site.after)
        self.kernels, self.images = 1, min(options.limit_rows, sizes.align)
        if route.name == LIMIT:  # the kernel with so many rows, which are stored, takes the place of the features
            self.n = self.columns = min(options.limit_rows, self.samples)
            drawn = law_of(options).limit(statistics, U, PLANNED)
            assert drawn is not None
            centers = 0 if drawn.matrix is None else len(drawn.matrix)
            self.kernels = centers if drawn.h > 0 else 1
            self.rows_drawn = drawn._replace(n=self.n, matrix=without_values(self.n + centers, drawn.r))
        else:
            self.rows_drawn = law_of(options).planned(self.n, statistics, U)
        self.r = self.rows_drawn.r
        self.recalibrates, self.mean_row = (
            options.recalibrate and not first,
            options.keep_mean and statistics.has_mean_row,
        )
        self.offset = options.offset or self.kind.normalisation is not None
        self.solver, self.regression = "", SolverCost()
        alignment = alignment_of(options)
        if isinstance(alignment, Regression):
            self.solver = alignment.chosen(
                self.columns, self.samples, self.rows if self.fused else None, paired=self.site.paired
            )
            size = self.rows, self.columns, self.samples
            self.regression = solver_cost(self.solver, *size, ridge=alignment.ridge > 0)
        self.A_bytes = (8 if route.name == LIMIT else sizes.A_itemsize) * self.rows * self.columns
        self.alive = statistics.alive
        self.law_bytes = sum(t.nbytes for t in self.rows_drawn.stored.values())

    # Work

    def kept_features(self) -> Work:
        """The work to compute and store all features once: with the routes "kept" and "wide"."""
        sizes = self.sizes
        if self.route.shape is None:
            return self.features(sizes.both, stored=True)
        flops = 2 * wide_multiplications(self.route.shape)
        numbers = COPIES * sizes.both * self.n * self.pixels
        pooled = sizes.both * self.n * self.window
        return Work(flops, features=sizes.both * self.n * self.pixels, pooled=pooled, bytes=sizes.itemsize * numbers)

    def features(self, images: int, rows: int | None = None, *, stored: bool = False) -> Work:
        """The work to compute phi', with the products U^T z and T G before it.

        Args:
            images: number of images.
            rows: number of positions that phi' is computed at; None for all positions of these images.
            stored: whether features are stored even if they need not be.
        """
        rows = images * self.pixels if rows is None else rows
        calls = -(-images // self.sizes.chunk)
        flops = random_features_flops((rows, self.r), self.n)
        flops += 2 * images * self.z * self.r * ("U" in self.rows_drawn.stored)
        flops += 2 * calls * self.n**2 * self.r * ("T" in self.rows_drawn.stored)
        flops += self.kind.flops((images, self.r, *self.statistics.z_space))
        numbers = rows * self.d + COPIES * rows * self.n * (stored or self.stored)
        bytes, pooled = self.sizes.itemsize * numbers, images * self.n * self.window
        each = PAIR * self.kernels if self.route.name == LIMIT else 1
        return Work(flops, features=each * rows * self.n, pooled=pooled, bytes=bytes)

    def moments(self) -> Work:
        """The features and their covariance, a part of them for the activity, and the passes of the regression."""
        sizes, pixels = self.sizes, min(self.sizes.chunk, self.sizes.align) * self.pixels
        if self.route.name in (KEPT, WIDE):
            products = cross_covariance_flops((self.samples, self.rows), [(self.samples, self.columns)])
            numbers = COPIES * sizes.align * (self.phi + self.n * self.positions)
            return self.kept_features() + Work(products, bytes=sizes.itemsize * numbers)
        seen = -(-pixels // every(pixels, ACTIVITY_SAMPLES, self.pixels)) * self.kind.has_activity
        flops = cross_covariance_flops((self.samples, self.rows), [(self.samples, self.columns)])
        flops += random_features_covariance_flops((seen, 1), (seen, self.r), self.n)
        features = self.features(sizes.align, self.samples if self.fused else None)
        again = self.features(sizes.align, stored=True) if self.solver == "summed" else features
        bytes = sizes.itemsize * sizes.align * self.phi
        others = Work(flops + self.regression.products, features=seen * self.n, bytes=bytes)
        return features + again * self.regression.passes + others

    def projection(self, images: int, *, stored: bool = False) -> Work:
        """The features, multiplied by A. If `stored`, the features exist already."""
        bytes = self.sizes.itemsize * images * self.phi
        features = Work() if stored else self.features(images)
        positions = 1 if self.flattened else self.positions
        return features + Work(2 * images * self.columns * self.rows * positions, bytes=bytes)

    def alignment(self) -> Work:
        """The polar factor, and the steps from the sums to M and from A to B."""
        if self.route.name == LIMIT:
            factor = (self.n**3 / 3 + 2 * self.rows * self.n**2) * (self.n < self.samples)
            return Work(2 * self.rows**2 * self.n + EIGENVECTORS * self.rows**3 + factor, "float64")
        shape, partial = self.shapes[0], alignment_of(self.spec.options).rank == "partial"
        few = partial and has_few_directions(shape, self.samples)
        flops = len(self.shapes) * (few_directions_flops(shape, self.samples) if few else polar_flops(shape))
        return Work(flops, "polar", bytes=2 * COPIES * 8 * self.rows * self.columns)

    def solve(self) -> Work:
        """Float64 algebra of the regression, and of the matrix of an orthonormal law."""
        law = law_of(self.spec.options).flops(self.n, self.r)
        return Work(self.regression.algebra + law, "float64")

    def refitted(self) -> Work:
        """The features of all images that a new classifier is fitted to, or their kernel with some of them."""
        sizes = self.sizes
        if self.route.name != LIMIT:
            return self.features(sizes.align)
        pairs = sizes.align * self.images * self.pixels  # as after a Flatten, of equal positions
        return Work(2 * self.r * pairs, features=PAIR * self.kernels * pairs)

    def elementwise(self) -> Work:
        """Elementwise steps: the site of the reference, the projections u, statistics, scales and errors."""
        sizes, steps = self.sizes, 1 + self.mean_row + 2 * self.recalibrates
        each = COPIES * (steps * self.z + 2 * self.phi)
        numbers = each * (sizes.align * (1 + 2 * (self.step > 1)) + sizes.held)  # picked samples are not contiguous
        return Work(pooled=sizes.both * self.d * self.window, bytes=sizes.itemsize * numbers)

    # Memory

    def disk_bytes(self, refit: tuple[int, int] | None) -> int:
        """Size of the site in a file: key, scale, law with its layer, recalibration, A and offset.

        With a new classifier, `refit` is (classes, features), and the classifier replaces A and the offset.
        """
        numbers = 2 * self.d if self.recalibrates else 0
        numbers += self.rows * (self.columns + self.offset) if refit is None else refit[0] * (refit[1] + 1)
        layer: Any = self.site.writer if self.site.name in self.spec.own_layers else None
        own = 0 if layer is None else layer.weight.nbytes
        if self.route.name != LIMIT:
            return 40 + self.law_bytes + own + self.sizes.A_itemsize * numbers
        rows, pooling = self.n, 0
        if refit is not None:
            rows, pooling = self.images * self.pixels, self.pixels**2 * (len(self.statistics.z_shape) > 1)
        numbers += (rows - self.n) * self.r + rows * self.mean_row + pooling  # the law has n rows already
        return 40 + self.law_bytes + own + 8 * numbers

    def float64_bytes(self) -> int:
        """Memory of M, of one block of its sums, and of the regression's matrices."""
        return 8 * self.rows * (self.columns + min(self.columns, IMPLICIT_BLOCK)) + self.regression.bytes

    def cost(self, reference: Work, arriving: int, earlier: int, refit: tuple[int, int] | None) -> SiteCost:
        """The cost of the site.

        Args:
            reference: work of the layers before the site.
            arriving: numbers of one image after the previous step, for each of the two networks.
            earlier: bytes of the sites that were sampled before.
            refit: (classes, features) of a new classifier that is fitted at this site, or None.
        """
        sizes = self.sizes
        memory = (LimitMemory if self.route.name == LIMIT else SiteMemory)(self, arriving)
        projection = self.projection(sizes.both)
        again = Work() if refit is None else self.refitted()
        if self.route.name in (KEPT, WIDE):
            measured = (self.kind.normalisation is not None) + (self.step > 1)  # the scale, and the error
            projection = self.projection(sizes.held + self.apart + measured * sizes.align, stored=True)
            again = Work()
        return SiteCost(
            index=self.site.index,
            site=self.site.name,
            d=self.statistics.width,
            n=self.spec.widths[self.site.name],
            rank=self.r // (1 + self.site.complex_weights),
            samples=self.samples,
            route=self.route.name,
            work={
                "reference": reference,
                "moments": self.moments(),
                "alignment": self.alignment(),
                "solve": self.solve(),
                "projection": projection + again,
                "elementwise": self.elementwise(),
            },
            in_flight_bytes=memory.in_flight,
            float64_bytes=self.float64_bytes(),
            A_bytes=self.A_bytes,
            disk_bytes=self.disk_bytes(refit),
            peak_bytes=earlier + self.law_bytes + memory.peak(refit),
        )


def _kernel_size(pooling: nn.Module | None) -> int:
    """How many numbers each window of a site's pooling reads; 0 without pooling."""
    if not isinstance(pooling, nn.MaxPool2d):
        return 0
    size = pooling.kernel_size
    return size**2 if isinstance(size, int) else math.prod(size)
