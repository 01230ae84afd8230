# SPDX-License-Identifier: BSD-3-Clause
"""A site whose features are computed once and stored: the routes "kept" and "wide"."""

from __future__ import annotations

from torch import Tensor

from rainbow_fast.ops.center import first_center
from rainbow_fast.ops.cross_covariance import cross_covariance_
from rainbow_fast.rainbow.channel_moments import NEAR, ChannelMoments, about, piece_size, sums
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.wide_layer import wide_layer
from rainbow_fast.rainbow.options import alignment_of
from rainbow_fast.rainbow.report import Error
from rainbow_fast.rainbow.sampling.align import size_of
from rainbow_fast.rainbow.sampling.flight import REFERENCE, Features, Flight
from rainbow_fast.rainbow.sampling.route import KEPT
from rainbow_fast.rainbow.sampling.sampled_site import SampledSite

# An error below this part of the variances is measured on phih. Traces have rounding errors of 1e-6 of them at most:
# 1 % of such an error.
LEAST_BY_TRACES = 1e-4


class KeptSite(SampledSite):
    """Samples one site, as `SampledSite`, but each feature is computed once.

    The flight stores phi' in the place of phih. The scale and the error of the alignment set are traces of moments

        E|phih - phi|^2 = E|phi - mu|^2 - 2 s tr(A C^T) + s^2 E|A (phi' - mu')|^2 + |E phih - mu|^2,

    where C is the covariance of phi and phi', mu and mu' are the means, and E|A (phi' - mu')|^2 = E|phi' - mu'|^2 if A
    is an isometry. A phi' is computed only where these do not suffice, and on the held-out data.
    """

    def draw(self) -> None:
        super().draw()
        self.how = self._features()

    def accumulate(self) -> None:
        self.moments = CrossCovariance(self.site.name)
        if self.step == 1:
            self.moments.know(self.align.phi)
        self.alignment = alignment_of(self.options).begin(self)
        for start in self.align:
            s = self.align.preactivations(self.lane, start, self.how)
            if start == 0:
                self.activity = float((self._active(self._rows(s)) > 0).double().mean())
            features = self.align.keep_features(self.lane, start, s, self.how)
            del s
            if self.collected is not None:
                self.collected.append(self._tail.between(features))
            select = self.select(start)
            x = select(self._target(self.align.output(REFERENCE, start)))
            self._add(x, select(self._rows(features)))
            self.tick(f"{self.site.name}: moments")

    def measure(self) -> None:
        """Compute the moments of A phi' for the scale and the error, unless A is an isometry: they are then known."""
        self.projected = None if self._is_isometry else ChannelMoments()
        for start in self.align:
            if self.projected is not None:
                self.projected.update(self.select(start)(self._rows(self._projected(self.align, start))))
            self.tick(f"{self.site.name}: projection")

    def project(self) -> None:
        """Compute the scale, the offset, and the error on the alignment set."""
        y, size = self.moments.y, None
        if self.options.scale == "optimal":
            if self.projected is not None:
                size = size_of(self.projected, self.aligned, self.options)
            else:
                size = y.spread if self.options.offset else y.spread + float(y.mean.square().sum())
        self._set_scale(size)
        self.error = self._error_by_traces() or self._measured(self.align)

    def hold_out(self) -> None:
        held, error = self.held, self._error(self.held)
        for start in held:
            s = held.preactivations(self.lane, start, self.how)
            held.keep_features(self.lane, start, s, self.how)
            del s
            self._add_error(error, held, start, self.activation.finish(self._projected(held, start)))
            self.tick(f"{self.site.name}: held-out data")
        for flight in (self.align, held):
            flight.enter(self.lane, self.activation, self.how)
        self.report = self._report(
            self.aligned, self.error.relative(), error.relative() if held.count else (None, None)
        )

    def follow(self) -> None:
        self.how = self._features()
        for flight in (self.align, self.held):
            for start in flight if flight.keep is not None else ():
                s = flight.preactivations(self.lane, start, self.how)
                flight.keep_features(self.lane, start, s, self.how)
            flight.enter(self.lane, self.activation, self.how)

    # Parts of the phases

    def _features(self) -> Features:
        if self.route.name == KEPT:
            return Features(self.activation, None)
        before = self.align.activations[self.lane][-1]
        assert isinstance(before, RainbowActivation)
        return Features(self.activation, wide_layer(before, self.route.between, self.activation.drawn))

    def _add(self, x: Tensor, phi: Tensor) -> None:
        """Add a batch of phi (N, d, *space) and phi' (N, n, *space) to the moments."""
        moments = self.moments
        first = moments.cross is None
        cross, total, square = moments.begin(x, self.features)
        a, b = moments.x.center, moments.y.center
        assert a is not None and b is not None
        if first:
            b.copy_(first_center(phi, zero=NEAR))
        size = piece_size(x, phi) if a.any() or b.any() else len(x)
        for x_piece, piece in zip(x.split(size), phi.split(size), strict=True):
            piece = about(piece, b)
            sides = about(x_piece, a).to(self.sum_dtype), piece.to(self.sum_dtype)
            cross_covariance_(cross, *sides, precision=self.activation.precision)
            of_total, of_square = sums(piece)
            total += of_total
            square += of_square

    @property
    def _is_isometry(self) -> bool:
        """Whether ``|A (phi' - mu')| = |phi' - mu'|`` for all samples: A has no null direction but dead neurons."""
        y = self.moments.y
        active = int(((y.variance() > 0) | (y.mean != 0)).sum())
        return self.activation.kind.normalisation is None and self.aligned.rank >= active

    def _error_by_traces(self) -> Error | None:
        """The error on the alignment set; None if it is too small, or if M is the mean of a part of the samples."""
        x, y, aligned, s = self.moments.x, self.moments.y, self.aligned, float(self.activation.scale)
        if self.step > 1:
            return None
        size = y.spread if self.projected is None else self.projected.spread
        mean = s * aligned.mean - x.mean
        if self.activation.offset is not None:
            mean = mean + self.activation.offset.double()
        parts = x.spread + s**2 * size, -2 * s * aligned.covariance, float(mean.square().sum())
        if not sum(parts) > LEAST_BY_TRACES * (parts[0] + parts[2]):
            return None
        error = self._error(self.align)
        error.difference = sum(parts) * error.phi.count
        return error

    def _measured(self, flight: Flight) -> Error:
        error = self._error(flight)
        for start in flight:
            self._add_error(error, flight, start, self.activation.finish(self._projected(flight, start)))
        return error

    def _projected(self, flight: Flight, start: int) -> Tensor:
        """A phi' of one chunk."""
        return self.activation.aligned_features(flight.kept(self.lane, start, self.how))
