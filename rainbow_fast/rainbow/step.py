# SPDX-License-Identifier: BSD-3-Clause
"""One site of one sample: two passes over the alignment data, one over what is held out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rainbow_fast.networks.trace import Trace
from rainbow_fast.ops.cross_covariance import cross_covariance_
from rainbow_fast.ops.gaussian import key
from rainbow_fast.rainbow import alignment
from rainbow_fast.rainbow.activation import RainbowActivation, channels_first
from rainbow_fast.rainbow.classifier import ridge_classifier
from rainbow_fast.rainbow.flight import InFlight
from rainbow_fast.rainbow.laws import draw
from rainbow_fast.rainbow.moments import ChannelMoments, CrossCovariance
from rainbow_fast.rainbow.network import refit_layout, tail_layers
from rainbow_fast.rainbow.plan import SITE_BITS, Plan
from rainbow_fast.rainbow.report import Error, SiteReport
from rainbow_fast.rainbow.statistics import SiteStatistics, every, take

FEATURE_NUMBERS = 2**24  # numbers of phi' at a time, where all n neurons of a sample are needed together
ACTIVITY_SAMPLES = 2048


@dataclass
class Work:
    """What stays the same from site to site."""

    reference: nn.Module
    trace: Trace
    plan: Plan
    align: InFlight
    held: InFlight
    max_samples: int
    dtype: torch.dtype
    tick: Callable[[str], None]


class SiteStep:
    """One site: draw the law, accumulate the moments, align, project. In flight are z and zraw, then phi and phih."""

    def __init__(self, work: Work, known: SiteStatistics, *, first: bool) -> None:
        self.work, self.known, self.site = work, known, known.site
        self.parts = work.plan.parts
        self.flattened = work.plan.align == "flattened" and known.site.feeds_flatten
        self.n = work.plan.widths[known.site.name]
        stream = work.plan.network << SITE_BITS | known.site.index
        where = key(work.plan.seed, stream).to(work.align.x[0].device)
        self.law = draw(
            self.parts.law,
            n=self.n,
            d=known.d,
            mean_row=self.parts.mean_row,
            h=self.parts.h,
            U=work.plan.directions[known.site.name],
            key=where,
        )
        self.recalibration = None if first or not self.parts.recalibrate else self._recalibration()
        self.activation = RainbowActivation(
            self.site, self.law, flattened=self.flattened, recalibration=self.recalibration
        )
        self.step = (
            1 if self.flattened else every(work.align.count * known.positions, work.max_samples, known.positions)
        )
        self.collected: list[Tensor] = []

    def run(self, *, collect: bool) -> tuple[RainbowActivation, SiteReport]:
        """The sampled site, and its report; `collect` keeps the features that `refit` needs."""
        moments, S, activity, sampled_activity = self._moments()
        eps = None if self.site.norm is None else float(self.site.norm.eps)  # type: ignore[arg-type]
        positions = self.known.positions if self.flattened else 1
        found = alignment.align(moments, self.parts, positions=positions, eps=eps, S=S)
        projected = self._project(found, collect)
        s = alignment.scale(found, projected, self.parts, self.site.name)
        c = alignment.offset(found, s, moments, self.parts)
        assert self.activation.A is not None
        self.activation.A.copy_(found.B.mul_(s))
        self.activation.offset = None if c is None else c.to(self.work.dtype)
        error = self._finish(s, found.b, c)
        held_out_error = self._hold_out()
        return self.activation, SiteReport(
            index=self.site.index,
            site=self.site.name,
            d=self.known.d,
            n=self.n,
            rank=self.known.d if self.law.U is None else self.law.U.shape[1],
            samples=moments.count,
            error=error[0],
            error_centred=error[1],
            held_out_error=held_out_error[0],
            held_out_error_centred=held_out_error[1],
            similarity=found.similarity,
            scale=s,
            activity=activity,
            sampled_activity=sampled_activity,
            M_rank=found.rank,
            M_effective_rank=found.effective_rank,
            M_condition=found.condition,
        )

    def refit(self) -> tuple[RainbowActivation, float]:
        """The site with the refit classifier in the place of A; the features are those that `run` collected."""
        features = torch.cat(self.collected)
        between, last = tail_layers(self.work.reference, self.work.trace)
        assert self.work.align.labels is not None
        B, b, ridge = ridge_classifier(features, self.work.align.labels, last.out_features)
        flattened, after = refit_layout(self.site, between, features.shape[1] // self.n)
        site = replace(self.site, after=after)
        made = RainbowActivation(site, self.law, flattened=flattened, recalibration=self.recalibration)
        made.A, made.offset = B.to(self.work.dtype), b.to(self.work.dtype)
        return made, ridge

    def _recalibration(self) -> tuple[Tensor, Tensor]:
        """zh = gain zraw + bias has the mean and the unbiased variance of z in every channel."""
        align, z = self.work.align, ChannelMoments()
        per_sample = math.prod(self.known.z_shape) // self.known.d
        step = every(align.count * per_sample, self.work.max_samples, per_sample)
        for i, before in align:
            z.update(take(self._rows(align.y[i]), before * per_sample, step))
        wanted = self.known.z.x.variance(unbiased=True)
        gain = (wanted / z.variance(unbiased=True).clamp(min=1e-12)).sqrt()
        bias = self.known.z.mean_x - gain * z.mean
        return gain.to(self.work.dtype), bias.to(self.work.dtype)

    def _moments(self) -> tuple[CrossCovariance, Tensor | None, float, float]:
        align, activity = self.work.align, (0.0, 0.0)
        moments = CrossCovariance(self.site.name)
        features = self.n * (self.known.positions if self.flattened else 1)
        S: Tensor | None = None
        if self.parts.alignment == "regression":
            S = torch.zeros(features, features, dtype=torch.float64, device=align.x[0].device)
        for i, before in align:
            z, zh = self._rows(align.x[i]), self._rows(align.y[i])
            align.x[i] = self.site.reference(align.x[i])
            self.activation.covariance(moments, features, self._rows(align.x[i]), zh, self._select(before))
            if S is not None:
                self._add_second_moment(S, zh, before, len(align.x[i]))
            if i == 0:
                activity = self._activity(z, zh)
            self.work.tick(f"{self.site.name}: moments")
        return moments, None if S is None else S / moments.count, *activity

    def _add_second_moment(self, S: Tensor, zh: Tensor, before: int, samples: int) -> None:
        per_sample = len(zh) // samples  # rows of zh: more than one where the channel axis is the last
        numbers = self.n * math.prod(zh.shape[2:])
        rows = max(FEATURE_NUMBERS // (numbers * per_sample), 1) * per_sample
        for start in range(0, len(zh), rows):
            select = self._select(before + start // per_sample)
            cross_covariance_(S, select(self.activation.features(zh[start : start + rows])))

    def _activity(self, z: Tensor, zh: Tensor) -> tuple[float, float]:
        rows = z.movedim(1, -1).reshape(-1, self.known.d), zh.movedim(1, -1).reshape(-1, self.known.d)
        step = every(len(rows[0]), ACTIVITY_SAMPLES, math.prod(self.known.z_shape) // self.known.d)
        return float((rows[0][::step] > 0).double().mean()), self.activation.activity(rows[1][::step])

    def _project(self, found: alignment.Alignment, collect: bool) -> ChannelMoments:
        """The unscaled projection in the place of the sample's activations, and its moments."""
        align, projected = self.work.align, ChannelMoments()
        self.activation.A, self.activation.offset = found.B.to(self.work.dtype), found.b.to(self.work.dtype)
        for i, before in align:
            if collect:
                self.collected.append(self._seen_by_classifier(align.y[i]))
            align.y[i] = self.activation(align.y[i])
            projected.update(self._select(before)(self._rows(align.y[i])))
            self.work.tick(f"{self.site.name}: projection")
        return projected

    def _finish(self, s: float, b: Tensor, c: Tensor | None) -> tuple[float, float]:
        """phih from the unscaled projection, and its error."""
        align, error = self.work.align, Error()
        constant = (-s * b if c is None else c - s * b).to(self.work.dtype)
        for i, _ in align:
            y = align.y[i].mul_(s)
            rows = self._rows(y)
            rows.add_(constant.view(1, -1, *[1] * (rows.dim() - 2)))
            error.update(self._rows(self._shaped(align.x[i])), rows)
        return error.relative()

    def _hold_out(self) -> tuple[float | None, float | None]:
        held, error = self.work.held, Error()
        for i, _ in held:
            held.y[i] = self.activation(held.y[i])
            held.x[i] = self.site.reference(held.x[i])
            error.update(self._rows(self._shaped(held.x[i])), self._rows(held.y[i]))
            self.work.tick(f"{self.site.name}: held-out data")
        return error.relative() if held.count else (None, None)

    def _seen_by_classifier(self, z: Tensor) -> Tensor:
        """phi' as the classifier gets it, all positions in one row."""
        phi = self.activation.features(z)
        for module in tail_layers(self.work.reference, self.work.trace)[0]:
            phi = module(phi)
        return phi.flatten(1)

    def _shaped(self, phi: Tensor) -> Tensor:
        return phi.flatten(1) if self.flattened else phi

    def _rows(self, t: Tensor) -> Tensor:
        return channels_first(t, self.site.axis)

    def _select(self, before: int) -> Callable[[Tensor], Tensor]:
        if self.flattened:
            return lambda t: t.flatten(1)
        return lambda t: take(t, before * self.known.positions, self.step)
