# SPDX-License-Identifier: BSD-3-Clause
"""What one site of a sample takes: the steps of `step.SiteStep` counted from shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from rainbow_fast.ops.polar import LONG_IN_PLACE
from rainbow_fast.rainbow.alignment.conjugate_gradient import SKETCH_ROWS, products_expected, sketch_size
from rainbow_fast.rainbow.alignment.regression import FEATURE_NUMBERS, fastest_solver
from rainbow_fast.rainbow.laws.rows import ROW_BLOCK
from rainbow_fast.rainbow.network.activation import homogeneous
from rainbow_fast.rainbow.network.features import FEATURE_BLOCK, IMPLICIT_BLOCK
from rainbow_fast.rainbow.planning.cost import SiteCost, Work
from rainbow_fast.rainbow.planning.machine import polar_flops
from rainbow_fast.rainbow.samples import every
from rainbow_fast.rainbow.site_statistics import ACTIVITY_SAMPLES, SiteStatistics
from rainbow_fast.rainbow.spec import NetworkSpec

# float64 matrices alive at the worst moment: of the size of a block of M while that is summed, of M while it is aligned
# and not long; of the regression's S' = E[phi' phi'^T], or the kernel, where its pseudo-inverse is taken.
SUMMED, ALIGNED, PSEUDO_INVERSE = 4, 8, 3
PROBES = 8  # rows of a long M that its alignment keeps
STRIDED = 4  # a copy that transposes, over one that does not
EIGENVECTORS = 10  # of a symmetric (d, d) matrix: flops over d^3


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
        z, phi: numbers of one image before and behind the site; `pixels` and `positions` are those of one channel.
        rows, columns: of M and A.
        window: numbers of a channel of one image that pooling reads.
    """

    def __init__(self, known: SiteStatistics, plan: NetworkSpec, sizes: Sizes, *, first: bool) -> None:
        self.known, self.sizes, self.first = known, sizes, first
        self.site, self.parts, self.d, self.n = known.site, plan.options, known.d, plan.widths[known.site.name]
        self.z, self.phi = math.prod(known.z_shape), math.prod(known.phi_shape)
        self.pixels, self.positions = self.z // self.d, known.positions
        flattened = plan.options.align == "flattened" and self.site.feeds_flatten
        self.rows, self.columns = (self.phi, self.n * self.positions) if flattened else (known.channels, self.n)
        self.step = 1 if flattened else sizes.step(self.positions)
        self.samples = sizes.align if flattened else sizes.samples(self.positions)
        self.fused = self.site.fused and not flattened
        self.window = _pooled(known)
        U = plan.directions[self.site.name]
        self.r = self.d if U is None else U.shape[1]
        orthonormal = self.parts.law == "orthonormal"
        self.has_T = orthonormal and self.n < self.r
        self.has_U = U is not None or (orthonormal and not self.has_T)
        self.recalibrates = self.parts.recalibrate and not first
        self.regresses = self.parts.alignment == "regression"
        channels = self.rows if self.fused else None
        self.solver = fastest_solver(self.parts.ridge, self.columns, self.samples, channels) if self.regresses else None
        self.sums, self.kernel = self.solver == "summed", self.solver == "kernel"

    # Work

    def features(self, images: int, calls: int, *, rows: int | None = None) -> Work:
        """phi' of some images, or of `rows` of their positions, in so many calls."""
        rows = images * self.pixels if rows is None else rows
        flops = 2.0 * rows * self.n * self.r
        flops += 2.0 * images * self.z * self.r if self.has_U else 0.0
        flops += 2.0 * calls * self.n**2 * self.r if self.has_T else 0.0  # rows T G of the law, made at each call
        stored = 0 if self.fused else rows * self.n * (2 + 2 * (self.site.before is not None))
        return Work(
            flops,
            features=float(rows * self.n),
            pooled=float(images * self.n * self.window),
            bytes=float(self.sizes.itemsize * (stored + rows * self.d)),
        )

    def moments(self) -> Work:
        """The features with the covariance; for the regression once more, with their second moment."""
        sizes, b, calls = self.sizes, self.sizes.itemsize, -(-self.sizes.align // self.sizes.chunk)
        work = self.features(sizes.align, calls, rows=self.samples if self.fused else None)
        stored = 0 if self.fused else sizes.align * self.n * self.positions  # read again: twice for the moments
        work += Work(2.0 * self.samples * self.rows * self.columns, bytes=b * (3.0 * stored + sizes.align * self.phi))
        pixels = min(sizes.chunk, sizes.align) * self.pixels
        seen = -(-pixels // every(pixels, ACTIVITY_SAMPLES, self.pixels))
        work += Work(2.0 * seen * self.n * (self.r + 1), features=float(seen * self.n))
        if self.sums:
            work += self.features(sizes.align, calls)
            work += Work(1.0 * self.samples * self.columns * (self.columns + 1))
        elif self.kernel:
            work += self.features(sizes.align, calls) * 2
            work += Work(1.0 * self.samples * (self.samples + 1) * self.columns)
        elif self.regresses:
            each = self.features(sizes.align, calls, rows=self.samples if self.fused else None) * 2
            sketch = sketch_size(self.columns)
            work += each * -(-sketch // SKETCH_ROWS) + Work(2.0 * self.samples * sketch * (self.columns + sketch))
            each += Work(4.0 * self.samples * self.rows * self.columns)
            work += each * math.ceil(products_expected(self.columns))
        return work

    def projection(self, images: int) -> Work:
        """The features with A."""
        stored = 0 if self.fused else self.n * self.positions
        flops = 2.0 * images * self.columns * self.phi
        work = Work(flops, bytes=float(self.sizes.itemsize * images * (stored + self.phi)))
        return work + self.features(images, -(-images // self.sizes.chunk))

    def alignment(self) -> Work:
        """polar, and the steps from the sums to M and from A to B."""
        flops = polar_flops(self.rows, self.columns)
        return Work(float(flops), "polar", bytes=8.0 * 20 * self.rows * self.columns)

    def solve(self) -> Work:
        """The solve of the regression, the matrix of an orthonormal law."""
        rows, columns, n, r = self.rows, self.columns, self.n, self.r
        flops = moved = 0.0
        if self.sums:
            flops += 2.0 * rows * columns**2
            flops += columns**3 / 3 if self.parts.ridge > 0 else (EIGENVECTORS + 2.0) * columns**3
            moved += 8.0 * 24 * columns**2
        elif self.kernel:
            N = self.samples
            flops += 2.0 * rows * N * (N + columns)
            flops += N**3 / 3 if self.parts.ridge > 0 else (EIGENVECTORS + 2.0) * N**3
            moved += 8.0 * 24 * N**2
        elif self.regresses:
            sketch = sketch_size(columns)
            flops += 4.0 * sketch**2 * columns + 2 * (EIGENVECTORS + 1.0) * sketch**3
            flops += (8.0 * sketch + 12.0 * rows) * rows * columns * products_expected(columns)
        if self.parts.law == "orthonormal":
            flops += 2.0 * n * r * min(n, r) + (EIGENVECTORS + 2.0) * min(n, r) ** 3
        return Work(flops, "float64", bytes=moved)

    def elementwise(self) -> Work:
        """Steps of the reference's site, of the projections u, of statistics, scales and errors."""
        align, held, z, phi = self.sizes.align, self.sizes.held, self.z, self.phi
        recalibrating, centring = 4 * z * self.recalibrates, 3 * z * self.parts.mean_row
        # A factor of u passes through sigma where that is homogeneous.
        through = homogeneous(self.site.activation, self.site.before) and not (self.has_U or self.parts.mean_row)
        u = 2 * z * (not through) + recalibrating + centring
        # What the site gives, its moments in two passes, phih times the scale, plus the offset, two sides of the error.
        outputs = (7 + 2 * self.parts.offset) * phi
        projected = 2 * phi * (self.parts.scale == "optimal")
        stored = self.n * self.positions * self.sums
        transposed = (2 * z + 4 * phi + 2 * stored) * (self.step > 1)
        each = z + 2 * u + recalibrating + outputs + projected + 4 * stored + STRIDED * transposed
        numbers = align * each + 8 * self.samples * self.d
        pooled = self.sizes.both * self.d * self.window
        return Work(pooled=float(pooled), bytes=float(self.sizes.itemsize * (numbers + held * (z + u + outputs))))

    # Memory

    @property
    def A_bytes(self) -> int:
        return self.sizes.itemsize * self.rows * self.columns

    @property
    def law_bytes(self) -> int:
        """U, T and k."""
        law = 8 * self.d * self.r if self.has_U else 0
        law += 8 * self.n**2 if self.has_T else 0
        return law + (8 * self.n if self.parts.law in ("bootstrap", "identity") else 0)

    def disk_bytes(self, refit: tuple[int, int] | None) -> int:
        """Key, scale, law, recalibration, A, offset; a refit classifier (classes, features) stands in for A."""
        numbers = 2 * self.d if self.recalibrates else 0
        if refit is not None:
            numbers += refit[0] * (refit[1] + 1)
        else:
            numbers += self.rows * (self.columns + (self.parts.offset or self.site.norm is not None))
        return 40 + self.law_bytes + self.sizes.itemsize * numbers

    def cost(self, reference: Work, arriving: int, kept: int, refit: tuple[int, int] | None) -> SiteCost:
        """Given the work of the layers before, the numbers of one image that come in on either side, bytes that stay of
        the sites before, and classes and features of a classifier that is refit here."""
        sizes, b, z, phi = self.sizes, self.sizes.itemsize, self.z, self.phi
        sides, larger = 1 if self.first else 2, max(z, phi)
        long = self.columns >= LONG_IN_PLACE * self.rows and not self.regresses
        matrix = 8 * self.rows * self.columns
        square = 8 * self.columns**2 if self.sums else 8 * self.samples**2 if self.kernel else 0
        solved = square if self.parts.ridge else PSEUDO_INVERSE * square
        waiting = sizes.held * (z + self.known.alive) * sides + sizes.align * self.known.alive * sides
        chunk = min(sizes.chunk, sizes.align)
        block = 0 if self.fused else 3 * chunk * self.pixels * min(FEATURE_BLOCK, self.n)
        copies = (2 + self.parts.mean_row + 2 * self.recalibrates) * chunk * larger + block
        stored = min(chunk, max(FEATURE_NUMBERS // (self.n * self.pixels), 1)) * self.n * self.pixels
        explicit = self.has_T or self.parts.law in ("bootstrap", "identity")
        rows = min(self.n, ROW_BLOCK) * self.r * (b + 8) if explicit else 0
        activations = {
            "advance": sides * sizes.both * max(arriving, z),
            "moments": sizes.align * ((phi if self.first else larger) + z) + waiting,
            "alignment": sizes.align * (phi + z) + waiting,
            "projection": sizes.align * (phi + larger) + waiting,
            "held out": sizes.align * 2 * phi + sizes.held * 2 * larger,
        }
        float64 = {
            "moments": matrix + SUMMED * 8 * self.rows * min(self.columns, IMPLICIT_BLOCK) + square * self.sums,
            "alignment": (matrix + 8 * PROBES * self.columns if long else ALIGNED * matrix) + solved,
            "projection": matrix,  # at its start, beside A
        }
        if self.kernel:
            float64["alignment"] += 2 * matrix + (8 + 2 * b) * min(FEATURE_NUMBERS, self.samples * self.columns)
        elif self.regresses and not self.sums:  # more of the size of M, the preconditioner, and rows of it on their way
            sketch = sketch_size(self.columns)
            float64["alignment"] += 8 * matrix + 8 * (sketch + SKETCH_ROWS) * self.columns
        float64["held out"] = float64["projection"]
        temporary = {
            "moments": b * max(copies, 3 * stored if self.sums else 0) + rows,
            "projection": self.A_bytes + b * (copies + 2 * chunk * phi) + rows,
        }
        temporary["held out"] = temporary["projection"]
        projection = self.projection(sizes.both)
        if refit is not None:
            for phase in ("projection", "held out"):
                temporary[phase] += b * sizes.align * refit[1]
            projection += self.features(sizes.align, -(-sizes.align // sizes.chunk))
        in_flight = {phase: sizes.waiting * numbers for phase, numbers in activations.items()}
        peak = max(in_flight[phase] + float64.get(phase, 0) + temporary.get(phase, 0) for phase in activations)
        return SiteCost(
            index=self.site.index,
            site=self.site.name,
            d=self.known.channels,
            n=self.n,
            rank=self.r,
            samples=self.samples,
            work={
                "reference": reference,
                "moments": self.moments(),
                "alignment": self.alignment(),
                "solve": self.solve(),
                "projection": projection,
                "elementwise": self.elementwise(),
            },
            in_flight_bytes=max(in_flight.values()),
            float64_bytes=max(float64.values()),
            A_bytes=self.A_bytes,
            disk_bytes=self.disk_bytes(refit),
            peak_bytes=kept + self.law_bytes + peak,
        )


def _pooled(known: SiteStatistics) -> int:
    """Numbers of one channel of one image that the pooling of a site reads, each once a window."""
    pooling = known.site.before or known.site.after
    if pooling is None:
        return 0
    assert isinstance(pooling, nn.MaxPool2d)
    size = pooling.kernel_size
    window = size**2 if isinstance(size, int) else math.prod(size)
    return known.positions * window
