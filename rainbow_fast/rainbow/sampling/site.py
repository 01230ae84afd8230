# SPDX-License-Identifier: BSD-3-Clause
"""One site of one sample: two passes over the alignment data, one over what is held out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rainbow_fast.ops.gaussian import key
from rainbow_fast.rainbow.alignment import align as alignment
from rainbow_fast.rainbow.alignment.align import Solve
from rainbow_fast.rainbow.alignment.classifier import ridge_classifier
from rainbow_fast.rainbow.alignment.regression import Kernel, Products, Summed, solver
from rainbow_fast.rainbow.channel_moments import ChannelMoments
from rainbow_fast.rainbow.laws.rows import draw
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.network.activation import RainbowActivation, Select, channels_first
from rainbow_fast.rainbow.network.rainbow_network import refit_flattened, refit_site
from rainbow_fast.rainbow.plan import SITE_BITS, Plan
from rainbow_fast.rainbow.report import Error, SiteReport
from rainbow_fast.rainbow.sampling.flight import REFERENCE, Flight
from rainbow_fast.rainbow.site_statistics import SiteStatistics, every, take
from rainbow_fast.tracing.tail import Tail

ACTIVITY_SAMPLES = 2048


@dataclass
class Work:
    """What the sites of one sample share: both data sets in flight, and the lane of the sample."""

    align: Flight
    held: Flight
    lane: int
    plan: Plan
    max_samples: int
    tick: Callable[[str], None]


class SiteStep:
    """One site: draw the law, accumulate the moments, align, project. The reference is past it, the sample at z."""

    def __init__(self, work: Work, known: SiteStatistics, *, tail: Tail | None = None) -> None:
        self.work, self.known, self.site, self.tail = work, known, known.site, tail
        self.parts = work.plan.parts
        self.flattened = work.plan.align == "flattened" and known.site.feeds_flatten
        self.n = work.plan.widths[known.site.name]
        stream = work.plan.network << SITE_BITS | known.site.index
        self.law = draw(
            self.parts.law,
            n=self.n,
            d=known.d,
            mean_row=self.parts.mean_row,
            h=self.parts.h,
            U=work.plan.directions[known.site.name],
            key=key(work.plan.seed, stream),
            device=self._device,
        )
        recalibrates = self.parts.recalibrate and work.align.apart[work.lane]
        self.recalibration = self._recalibration() if recalibrates else None
        self.activation = RainbowActivation(
            self.site, self.law, flattened=self.flattened, recalibration=self.recalibration, device=self._device
        )
        self.step = (
            1 if self.flattened else every(work.align.count * known.positions, work.max_samples, known.positions)
        )
        self.collected: list[Tensor] = []  # features for the classifier, where there is a tail

    def run(self) -> tuple[RainbowActivation, SiteReport]:
        """The sampled site, and its report."""
        moments, least_squares, activity = self._moments()
        eps = None if self.site.norm is None else float(self.site.norm.eps)  # type: ignore[arg-type]
        positions = self.known.positions if self.flattened else 1
        B, found = alignment.align(moments, self.parts, positions=positions, eps=eps, least_squares=least_squares)
        self.activation.A = B.to(self._dtype).contiguous()
        del B, least_squares  # as large as A and S, in float64
        projected = self._project() if self.parts.scale == "optimal" else None
        s = alignment.scale(found, projected, self.parts, self.site.name)
        c = alignment.offset(found, s, moments, self.parts)
        self.activation.scale.fill_(s)
        self.activation.offset = None if c is None else c.to(self._dtype)
        for flight in (self.work.align, self.work.held):
            flight.activations[self.work.lane].append(self.activation)
        error, error_centred = self._finish(projected is not None)
        held_out_error, held_out_error_centred = self._hold_out()
        return self.activation, SiteReport(
            index=self.site.index,
            site=self.site.name,
            d=self.known.channels,
            n=self.n,
            rank=self.known.d if self.law.U is None else self.law.U.shape[1],
            samples=moments.count,
            error=error,
            error_centred=error_centred,
            held_out_error=held_out_error,
            held_out_error_centred=held_out_error_centred,
            similarity=found.similarity,
            scale=s,
            activity=self.known.activity,
            sampled_activity=activity,
            M_rank=found.rank,
            M_effective_rank=found.effective_rank,
            M_condition=found.condition,
        )

    def refit(self) -> tuple[RainbowActivation, float]:
        """The site with the refit classifier in the place of A; the features are those that `run` collected."""
        assert self.tail is not None and self.work.align.data.labels is not None
        features = torch.cat(self.collected)
        B, b, ridge = ridge_classifier(features, self.work.align.data.labels, self.tail.last.out_features)
        phi = self.activation.A.new_empty(1, self.n, *self.known.phi_shape[1:])  # type: ignore[union-attr]
        flattened = refit_flattened(self.tail, phi)
        site = refit_site(self.site, self.tail, flattened=flattened)
        made = RainbowActivation(
            site, self.law, flattened=flattened, recalibration=self.recalibration, device=self._device
        )
        made.A, made.offset = B.to(self._dtype), b.to(self._dtype)
        return made, ridge

    @property
    def _device(self) -> torch.device:
        return self.work.align.data.device

    @property
    def _dtype(self) -> torch.dtype:
        """Of A: that of the reference, float32 for half precision."""
        return torch.promote_types(self.work.align.data.dtype, torch.float32)

    def _recalibration(self) -> tuple[Tensor, Tensor]:
        """zh = gain zraw + bias has the mean and the unbiased variance of z in every channel; where zraw does not vary,
        it is that mean."""
        align, z = self.work.align, ChannelMoments()
        per_sample = math.prod(self.known.z_shape) // self.known.d
        step = every(align.count * per_sample, self.work.max_samples, per_sample)
        for start in align:
            z.update(take(self._rows(align.z(self.work.lane, start)), start * per_sample, step))
        wanted, found = self.known.z.x.variance(unbiased=True), z.variance(unbiased=True)
        gain = torch.where(z.flat, 0.0, (wanted / found).sqrt())
        bias = self.known.z.mean_x - gain * z.mean
        return gain.to(self._dtype), bias.to(self._dtype)

    def _moments(self) -> tuple[CrossCovariance, Solve | None, float]:
        align, lane, activity = self.work.align, self.work.lane, 0.0
        moments = CrossCovariance(self.site.name)
        if self.step == 1 and not self.flattened:
            moments.know(align.phi)
        features = self.n * (self.known.positions if self.flattened else 1)
        way = self._solver(features)
        S = Summed(self.activation, features, align.data.device) if way == "summed" else None
        for start in align:
            zh = self._rows(align.z(lane, start))
            phi = align.output(REFERENCE, start)
            self.activation.covariance(moments, features, self._rows(self._shaped(phi)), zh, self._select(start))
            if S is not None:
                assert moments.y.center is not None
                S.add(zh, len(phi), functools.partial(self._select_after, start), moments.y.center)
            if start == 0:
                activity = self.activation.activity(active_rows(zh, self.known))
            self.work.tick(f"{self.site.name}: moments")
        solvers: dict[str | None, Summed | Kernel | Products | None] = {"summed": S}
        if way == "kernel":
            solvers[way] = Kernel(self.activation, self._batches)
        if way == "products":
            solvers[way] = Products(self.activation, self._batches, self._dtype)
        found = solvers.get(way)
        return moments, None if found is None else found.solve, activity

    def _solver(self, features: int) -> str | None:
        """Of the regression; None for another alignment."""
        if self.parts.alignment != "regression":
            return None
        samples = -(-self.work.align.count * (1 if self.flattened else self.known.positions) // self.step)
        return solver(self.parts, features, samples, self.known.channels if self.activation.fused else None)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Select]]:
        align = self.work.align
        for start in align:
            phi = self._rows(self._shaped(align.output(REFERENCE, start)))
            yield phi, self._rows(align.z(self.work.lane, start)), self._select(start)

    def _select_after(self, start: int, samples: int) -> Select:
        return self._select(start + samples)

    def _project(self) -> ChannelMoments:
        """Put the projection without scale and offset, and take its moments."""
        align, lane, projected = self.work.align, self.work.lane, ChannelMoments()
        for start in align:
            self._collect(start)
            raw = self.activation.raw(align.z(lane, start))
            projected.update(self._select(start)(self._rows(raw)))
            align.put(lane, start, raw)
            self.work.tick(f"{self.site.name}: projection")
        return projected

    def _finish(self, projected: bool) -> tuple[float, float]:
        """phih, from the projection where that has been put, and its error."""
        align, error = self.work.align, self._error(self.work.align)
        for start in align:
            if projected:
                phih = align.settle(self.work.lane, start)
            else:
                self._collect(start)
                phih = align.apply(self.work.lane, start)
                self.work.tick(f"{self.site.name}: projection")
            error.update(self._shaped(align.output(REFERENCE, start)), phih)
        return error.relative()

    def _collect(self, start: int) -> None:
        if self.tail is not None:
            zh = self.work.align.z(self.work.lane, start)
            self.collected.append(self.tail.between(self.activation.features(zh)))

    def _error(self, flight: Flight) -> Error:
        return Error(None if self.flattened else flight.phi)

    def _hold_out(self) -> tuple[float | None, float | None]:
        held, error = self.work.held, self._error(self.work.held)
        for start in held:
            phih = held.apply(self.work.lane, start)
            error.update(self._shaped(held.output(REFERENCE, start)), phih)
            self.work.tick(f"{self.site.name}: held-out data")
        return error.relative() if held.count else (None, None)

    def _shaped(self, phi: Tensor) -> Tensor:
        return phi.flatten(1) if self.flattened else phi

    def _rows(self, t: Tensor) -> Tensor:
        return channels_first(t, self.site.axis, self.flattened)

    def _select(self, before: int) -> Select:
        if self.flattened:
            return lambda t: t.flatten(1)
        return lambda t: take(t, before * self.known.positions, self.step)


def active_rows(z: Tensor, known: SiteStatistics) -> Tensor:
    """A part of the samples of z (N, d, *space), on which the activity is measured, as (samples, d)."""
    positions = math.prod(known.z_shape) // known.d
    rows = take(z, 0, every(z.numel() // known.d, ACTIVITY_SAMPLES, positions))
    return rows.movedim(1, -1).reshape(-1, known.d)
