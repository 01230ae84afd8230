# SPDX-License-Identifier: BSD-3-Clause
"""One site of one sampled network: two passes over the alignment set, one over the held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rainbow_fast.maps import channels_first, times_i
from rainbow_fast.ops.gaussian import site_key
from rainbow_fast.ops.random_features import random_features_covariance
from rainbow_fast.rainbow.alignment.alignment import Alignment
from rainbow_fast.rainbow.alignment.classifier import ridge_classifier
from rainbow_fast.rainbow.channel_moments import ChannelMoments
from rainbow_fast.rainbow.filter_covariance import FilterCovariance
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.features import Select, blocks
from rainbow_fast.rainbow.network.rainbow_network import refit_flattened, refit_site
from rainbow_fast.rainbow.options import alignment_of, law_of
from rainbow_fast.rainbow.report import Error, SiteReport
from rainbow_fast.rainbow.sampling.align import AlignedMap, align, offset, product_dtype, scale, size_of
from rainbow_fast.rainbow.sampling.flight import REFERENCE, Flight
from rainbow_fast.rainbow.sampling.route import Route
from rainbow_fast.rainbow.site_statistics import SiteStatistics, active_samples
from rainbow_fast.rainbow.spec import NetworkSpec
from rainbow_fast.tracing.tail import Tail


class SampledSite:
    """Samples one site of one network.

    The reference has already passed the site, and the sampled network has reached its input z. The methods `draw`,
    `accumulate`, `solve`, `measure`, `project` and `hold_out` are called in this order. This class computes features in
    fused passes (the route "fused"); `KeptSite` stores them.

    Attributes:
        statistics: the reference's statistics of the site.
        own: the same for the layers of the sampled network. It differs from `statistics` only if the law has its own
            layers.
        activation: the sampled site, from `draw` on.
        report: errors and properties of the sampled site, after `hold_out`.
        features: length of phi' for one sample, which is the number of columns of A: the number of neurons n times
            the features of a neuron, and times the positions if the site is flattened.
        samples: number of samples that M is the mean of.
        route: how its features are computed.
        refit, ridge: with `classifier="refit"`, the site with the new classifier in the place of A, and its ridge
            parameter. None otherwise.
    """

    activation: RainbowActivation
    report: SiteReport

    def __init__(
        self,
        statistics: SiteStatistics,
        spec: NetworkSpec,
        lane: int,
        flights: tuple[Flight, Flight],
        max_samples: int,
        tick: Callable[[str], None],
        route: Route,
    ) -> None:
        self.statistics, self.own, self.spec = statistics, spec.own(statistics.site.name), spec
        self.site, self.lane, self.tick = self.own.site, lane, tick
        self.align, self.held = flights
        self.route = route
        self.max_samples = max_samples
        self.options = spec.options
        self.n = spec.widths[self.site.name]
        self.flattened = self.options.align_flattened and self.site.feeds_flatten
        full = self.options.alignment_blocks == "full"
        self.filters = 1 if full else self.site.features
        self.rows, self.positions = statistics.shape_of_A(1, flattened=self.flattened, full=full)
        self.features = self.n * self.positions
        space = statistics.phi_space[:-1] if self.site.paired else statistics.phi_space
        self.taken = self.align.data.positions(() if self.flattened else space, max_samples)
        self.step = 1 if self.flattened else self.taken.step
        self.samples = self.align.count if self.flattened else self.taken.count * (2 if self.site.paired else 1)
        self.collected: list[Tensor] | None = None  # features that a new classifier is fitted to
        self.refit: RainbowActivation | None = None
        self.ridge: float | None = None

    @property
    def sum_dtype(self) -> torch.dtype:
        """The dtype of the products that M is summed from."""
        parts = 1 + self.site.complex_weights  # directions of complex M are as many as complex numbers
        shape = self.rows // parts, self.features // self.filters
        return product_dtype(shape, self.samples // parts, self.dtype)

    @property
    def device(self) -> torch.device:
        return self.align.data.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of A: that of the reference, or float32 if the reference has half precision."""
        return torch.promote_types(self.align.data.dtype, torch.float32)

    def draw(self) -> None:
        """Draw the random rows, and compute the recalibration of z if the method has one."""
        address = site_key(self.options.seed, self.options.network_index, self.site.index)
        rows = law_of(self.options).draw(self.n, self.own, self.spec.directions[self.site.name], address)
        if rows.d != self.own.columns:
            raise ValueError(
                f"law: site {self.site.name!r}: got rows with d = {rows.d}, wanted {self.own.columns}, the real and "
                "imaginary parts of complex weights"
            )
        self.activation = RainbowActivation(
            self.site,
            rows._replace(mean_row=self.options.keep_mean and self.own.has_mean_row),
            flattened=self.flattened,
            positions=self.positions,
            recalibration=self._recalibration() if self.options.recalibrate and self.align.apart[self.lane] else None,
            precision=self.options.precision or "highest",
            device=self.device,
        )

    def accumulate(self) -> None:
        """Compute the moments of phi and phi', in one pass over the alignment set."""
        self.moments = self._no_moments()
        if self.step == 1 and not self.flattened and not self.site.complex_weights:
            self.moments.know(self.align.phi)
        self.alignment: Alignment | None = alignment_of(self.options).begin(self)
        strategy, kind = self.activation.strategy, self.activation.kind
        for start in self.align:
            phi, zh, select = self.align.output(REFERENCE, start), self._input(self.align, start), self.select(start)
            x = select(self._target(phi)).to(torch.promote_types(zh.dtype, torch.float32))
            x = torch.cat([x, -times_i(x)], 1) if self.site.complex_weights else x  # M is then (Re M; Im M)
            first = self.moments.cross is None
            sums = self.moments.begin(x, self.features)
            assert self.moments.x.center is not None and self.moments.y.center is not None
            centers = self.moments.x.center, self.moments.y.center
            pair = x.to(self.sum_dtype), zh.to(self.sum_dtype)
            strategy.covariance(self.activation, *pair, select, centers, sums, first=first)
            self.alignment.add(start, zh, len(phi), centers[1])
            if start == 0:
                self.activity = share_active(self.activation, self._active(zh)) if kind.has_activity else math.nan
            del phi, zh, x, pair  # freed before the next chunk is computed
            self.tick(f"{self.site.name}: moments")

    def solve(self) -> None:
        """Compute A from the moments."""
        assert self.alignment is not None
        kind, norm = self.activation.kind, self.statistics.site.norm
        restores = self.options.statistics == "restore" and self.site.features > 1 and norm is not None
        B, self.aligned = align(
            self.moments,
            self.options,
            self.alignment,
            positions=self.statistics.positions if self.flattened else 1,
            eps=kind.normalisation,
            floor=kind.floor(norm) if restores and norm is not None else None,
            complex_weights=kind.complex_weights,
            products=self.sum_dtype,
        )
        self.activation.A, self.alignment = B.to(self.dtype).contiguous(), None  # frees a matrix as large as S

    def measure(self) -> None:
        """With scale="optimal": compute A phi' and its moments, in one pass. A phi' replaces z in the flight.

        Other scales do not need these moments, and nothing is done.
        """
        self.projected = self._no_moments().y if self.options.scale == "optimal" else None
        for start in self.align if self.projected is not None else ():
            z = self.align.z(self.lane, start)
            if self.collected is not None:
                self.collected.append(self._tail.between(self.activation.features(z)))
            y = self.activation.strategy.project(self.activation, self._rows(z), self.activation.whole)
            self.projected.update(self.select(start)(y))  # type: ignore[union-attr]  # the loop is empty without it
            self.align.put(self.lane, start, self.activation.shaped_as(y, z))
            self.tick(f"{self.site.name}: projection")

    def project(self) -> None:
        """Compute the scale and the offset, then phih on the alignment set and its error."""
        activation, align = self.activation, self.align
        self._set_scale(None if self.projected is None else size_of(self.projected, self.aligned, self.options))
        for flight in (align, self.held):
            flight.enter(self.lane, activation)
        self.error = self._error(align)
        for start in align:
            y = None
            if self.projected is None:
                z = align.z(self.lane, start)
                if self.collected is not None:
                    self.collected.append(self._tail.between(activation.features(z)))
                y = activation.strategy.project(activation, self._rows(z), activation.whole)
                y = activation.shaped_as(y, z)
                del z  # frees memory as large as phih, which is computed next
                self.tick(f"{self.site.name}: projection")
            phih = align.settle(self.lane, start, y)
            self._add_error(self.error, align, start, phih)

    def hold_out(self) -> None:
        """Compute phih on the held-out data and its error, and make the report."""
        activation, held, error = self.activation, self.held, self._error(self.held)
        for start in held:
            z = held.z(self.lane, start)
            y = activation.strategy.project(activation, self._rows(z), activation.whole)
            y = activation.shaped_as(y, z)
            del z
            phih = held.settle(self.lane, start, y)
            self._add_error(error, held, start, phih)
            self.tick(f"{self.site.name}: held-out data")
        self.report = self._report(
            self.aligned, self.error.relative(), error.relative() if held.count else (None, None)
        )

    def follow(self) -> None:
        """Apply the site, which was read from a checkpoint, to all data. Nothing is measured."""
        for flight in (self.align, self.held):
            flight.follow(self.lane, self.activation)

    def refit_classifier(self, tail: Tail) -> None:
        """Fit a classifier to the collected features by ridge regression, and put it in the place of A in `refit`."""
        assert self.collected is not None and self.align.data.labels is not None and self.activation.A is not None
        features, self.collected = torch.cat(self.collected), None
        B, b, self.ridge = ridge_classifier(features, self.align.data.labels, tail.last.out_features)
        phi = self.activation.A.new_empty(1, self.n, *self.statistics.phi_shape[1:])
        flattened = refit_flattened(tail, phi)
        self.refit = RainbowActivation(
            refit_site(self.site, tail, flattened=flattened),
            self.activation.drawn,
            flattened=flattened,
            recalibration=self.activation.recalibration,
            precision=self.activation.precision,
            device=self.device,
        )
        self.refit.A, self.refit.offset = B.to(self.dtype), b.to(self.dtype)

    def collect_for(self, tail: Tail) -> None:
        """Let `measure` or `project` collect the features that a new classifier is fitted to."""
        self.collected, self._tail = [], tail

    # What alignments ask for

    def select(self, before: int) -> Select:
        """The function that takes the samples to use from a batch; `before` images come before the batch."""
        if self.flattened:
            return lambda t: t.flatten(1)
        if self.site.paired and self.step > 1:  # a complex number is one sample
            return lambda t: torch.view_as_real(self.taken.of(torch.view_as_complex(t.contiguous()), before))
        return lambda t: self.taken.of(t, before)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Select]]:
        """For every chunk of the alignment set: phi, zh, and the function that takes the samples to use."""
        for start in self.align:
            yield self._target(self.align.output(REFERENCE, start)), self._input(self.align, start), self.select(start)

    # Parts of the phases

    def _no_moments(self) -> CrossCovariance:
        if self.site.features == 1:
            return CrossCovariance(self.site.name)
        return FilterCovariance(self.site.name, paired=self.site.paired, filters=self.filters)

    def _input(self, flight: Flight, start: int) -> Tensor:
        """zh of one chunk as (N, d, *space)."""
        return self._rows(flight.z(self.lane, start))

    def _target(self, phi: Tensor) -> Tensor:
        return self._rows(self._shaped(phi))

    def _rows(self, t: Tensor) -> Tensor:
        return channels_first(t, self.site.axis, self.flattened)

    def _shaped(self, phi: Tensor) -> Tensor:
        return phi.flatten(1) if self.flattened else phi

    def _add_error(self, error: Error, flight: Flight, start: int, phih: Tensor) -> None:
        """Add the error of phih of one chunk, at the positions that count."""
        phi = flight.output(REFERENCE, start)
        if self.flattened:
            error.update(phi.flatten(1), phih)
        else:
            error.update(*(flight.data.counted(start, t, self.site.axis) for t in (phi, phih)))

    def _active(self, rows: Tensor) -> Tensor:
        """The samples of z (N, d, *space) of the first chunk that the activity is measured on."""
        space = self.own.z_space
        return active_samples(rows if self.flattened else self.align.data.positions(space).of(rows, 0), self.own)

    def _error(self, flight: Flight) -> Error:
        return Error(None if self.flattened else flight.phi)

    def _set_scale(self, size: float | None) -> None:
        """Set the scale and the offset of the site; `size` as in `scale`."""
        s = scale(self.aligned, size, self.options, self.site.name)
        c = offset(self.aligned, s, self.moments, self.options)
        self.activation.scale.fill_(s)
        self.activation.offset = None if c is None else c.to(self.dtype)

    def _recalibration(self) -> tuple[Tensor, Tensor]:
        """gain and bias, each (d,), of the recalibration ``zh = gain * zraw + bias``.

        They give every channel of zh the mean and the unbiased variance that it has in the reference. A channel of
        zraw that is constant becomes that mean.
        """
        of_sample, of_reference = ChannelMoments(), self.statistics.z.x
        taken = self.align.data.positions(self.statistics.z_space, self.max_samples)
        for start in self.align:
            of_sample.update(taken.of(channels_first(self.align.z(self.lane, start), self.site.axis), start))
        ratio = of_reference.variance(unbiased=True) / of_sample.variance(unbiased=True)
        gain = torch.where(of_sample.flat, 0.0, ratio.sqrt())
        bias = self.statistics.z.mean_x - gain * of_sample.mean
        return gain.to(self.dtype), bias.to(self.dtype)

    def _report(
        self,
        aligned: AlignedMap,
        error: tuple[float | None, float | None],
        held_out_error: tuple[float | None, float | None],
    ) -> SiteReport:
        return SiteReport(
            index=self.site.index,
            site=self.site.name,
            d=self.statistics.width,
            n=self.n,
            rank=self.activation.drawn.r // (1 + self.site.complex_weights),
            samples=self.moments.count,
            error=error[0],  # type: ignore[arg-type]  # the alignment set is never empty
            error_centred=error[1],  # type: ignore[arg-type]
            held_out_error=held_out_error[0],
            held_out_error_centred=held_out_error[1],
            similarity=aligned.similarity,
            scale=float(self.activation.scale),
            activity=self.statistics.activity,
            sampled_activity=self.activity,
            M_rank=aligned.rank,
            M_effective_rank=aligned.effective_rank,
            M_condition=aligned.condition,
            route=self.route.name,
            random_features=self.site.expansion is not None,
            features=self.site.features,
        )


def share_active(activation: RainbowActivation, z: Tensor) -> float:
    """The fraction of pairs (sample, neuron) with z' > 0, before any pooling, for samples z (N, d)."""
    u, shift = activation.mixed(z)
    ones = u.new_ones(u.shape[0], 1, *u.shape[2:])
    active = 0.0
    for start, stop in blocks(activation.n, activation.strategy.block(activation)):
        rows = activation.source(u, start, stop)
        rows |= {"activation": "step", "precision": activation.precision}
        M = random_features_covariance(ones, u, stop - start, shift=shift, **rows)[0]
        active += float(M.sum())
    return active / (ones.numel() * activation.n)
