# SPDX-License-Identifier: BSD-3-Clause
"""fit, sample and plan: a trained network and its data in, networks of any width out, and what that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rainbow_fast.networks.trace import Trace
from rainbow_fast.rainbow.activation import channels_first
from rainbow_fast.rainbow.cost import Cost
from rainbow_fast.rainbow.estimate import estimate
from rainbow_fast.rainbow.flight import Data
from rainbow_fast.rainbow.machine import Machine
from rainbow_fast.rainbow.network import CLASSIFIERS, RainbowNetwork, tail_layers
from rainbow_fast.rainbow.plan import Plan, Widths, choose
from rainbow_fast.rainbow.prepare import prepare, repeat, split, warn_if_few
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.sampling import Progress, sample_network
from rainbow_fast.rainbow.statistics import SiteStatistics, every, take


def fit(
    reference: nn.Module,
    data: object,
    *,
    holdout: object = None,
    max_samples: int = 400_000,
    progress: Progress | None = None,
) -> RainbowModel:
    """Fit a rainbow model to a trained network: find its sites, and their moments on the alignment data.

    Args:
        reference: an nn.Sequential, nested as you like, of the modules that `rainbow_fast.networks.trace` understands,
            with float32 or float64 parameters. It is copied; the copy is in eval mode.
        data: a tensor, ``(x, y)``, a DataLoader, or any re-iterable of batches, on which networks are aligned. It is
            held in memory, on the device of the reference; a tensor is not copied. Labels y (N,) int64 serve accuracies
            and refit classifiers.
        holdout: what errors and accuracies are also measured on: data of its own, or the share of `data`, from its end,
            that is left out of the alignment; a tenth by default, 0 for none.
        max_samples: of the moments of a site: where images times positions are more, every t-th is taken, t odd and
            coprime with the positions of a map.
        progress: called as ``progress(done, total, what)``.

    Returns:
        `RainbowModel`, from which networks are sampled.

    Raises:
        TypeError, ValueError: a reference or data that cannot be used, activations that are not finite: the message
            names the argument, the module or the site.

    Warns:
        UserWarning: fewer samples at a site than twice its channels: the alignment over-fits.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), section 2.
    """
    kept_reference, cut, sites, align, held = prepare(reference, data, holdout, max_samples)
    with torch.no_grad():
        _statistics(cut, sites, align, max_samples, progress)
    return RainbowModel(kept_reference, cut, sites, align, held, max_samples)


def sample(
    reference: nn.Module,
    data: object,
    *,
    holdout: object = None,
    max_samples: int = 400_000,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[RainbowNetwork, Report]:
    """`fit` and `RainbowModel.sample` in one: ``network, report = rainbow_fast.sample(reference, data, factor=4)``.

    `options` are those of `RainbowModel.sample`.
    """
    model = fit(reference, data, holdout=holdout, max_samples=max_samples)
    return model.sample(progress=progress, **options)


def plan(
    reference: nn.Module,
    data: object,
    *,
    images: int | None = None,
    holdout: object = None,
    max_samples: int = 400_000,
    machine: Machine | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Cost:
    r"""What `rainbow_fast.sample` with the same arguments takes: flops, bytes, peak memory, and a predicted time.

    Every step of `fit` and `RainbowModel.sample` is counted from shapes; of the data nothing else is read. The flops of
    a site of d channels, n neurons and rank r, over N images of p positions, S of all N p positions being taken::

        moments      2 S n (r + d)      alignment    12 s^2 l + 24 s^3, s and l the short and the long side of M (d, n)
        projection   2 N p n (r + d)    regression   S n^2 and 2 N p n r more in moments; n^3 / 3 + 2 d n^2 in solve

    and ``seconds = sum of max(flops / rate + features / rate + pooled / rate, bytes / rate)`` over all `Work`.

    Args:
        reference, data, holdout, max_samples: as in `fit`.
        images: as if `data` had so many, its first image being the example: no data are needed then.
        machine: rates; None measures those of this machine, in about half a second.
        progress: not called.
        options: those of `RainbowModel.sample`. `energy` needs the moments of sites that have not one bias-free writer:
            `fit` first, then `RainbowModel.plan`.

    Returns:
        `Cost`; `print` gives a table.

    Raises:
        TypeError, ValueError: as `fit` and `RainbowModel.sample`; `images` that is no int of at least 1.

    Warns:
        UserWarning: as `fit`.
    """
    kept_reference, cut, sites, align, held = prepare(reference, data, holdout, max_samples, images)
    model = RainbowModel(kept_reference, cut, sites, align, held, max_samples)
    return model._estimate(align, machine, fitted=False, **options)


class RainbowModel:
    """A trained network with the moments of its sites: what `fit` returns and networks are sampled from.

    Attributes:
        reference: a copy of the trained network, in eval mode.
        sites: a `SiteStatistics` each, in order of execution.
    """

    def __init__(
        self,
        reference: nn.Module,
        trace: Trace,
        sites: tuple[SiteStatistics, ...],
        align: Data,
        held: Data,
        max_samples: int,
    ) -> None:
        self.reference, self.sites = reference, sites
        self._trace, self._align, self._held, self._max_samples = trace, align, held, max_samples

    def sample(
        self,
        *,
        width: Widths | None = None,
        factor: float | None = None,
        rank: Widths | None = None,
        energy: float | None = None,
        sites: Sequence[str] | None = None,
        seed: int = 0,
        network: int = 0,
        method: str = "paper",
        law: str | None = None,
        h: float | None = None,
        mean_row: bool | None = None,
        recalibrate: bool | None = None,
        center: bool | None = None,
        offset: bool | None = None,
        scale: str | None = None,
        alignment: str | None = None,
        ridge: float | None = None,
        classifier: str | None = None,
        align: str = "channels",
        accuracy_profile: bool = False,
        progress: Progress | None = None,
    ) -> tuple[RainbowNetwork, Report]:
        r"""Sample one network: at every site, n neurons that are random combinations of the reference's d, aligned.

            phih = s A sigma(G_eff zh) + c,    A = polar(E[phi phi'^T])

        zh is what the reference's own layers make of the phih before, so everything else of the network stays as it is.

        Args:
            width: neurons of each site: an int, or a dict by site, in which others keep the reference's width.
            factor: multiplies the reference's widths; 1 by default. One of `width` and `factor`.
            rank: combine the leading r directions of z only; an int (at most d) or a dict by site. None uses z itself.
            energy: the least rank that holds this share of the variance. One of `rank` and `energy`.
            sites: names of those to sample; all but output activations by default.
            seed, network: address of the random numbers; networks of one seed are independent. ``0 <= seed < 2^63``,
                ``0 <= network < 2^20``; the stream of a site is ``network << 12 | site``.
            method: preset of the parts below: ``"paper"`` (Gaussian rows, uncentred orthogonal alignment, sqrt(d/n)),
                ``"calibrated"`` (orthogonal alignment with means, variances and scales set right), or ``"regression"``
                (layerwise regression on random features, the upper reference, not a rainbow network).
            law, h, mean_row, recalibrate, center, offset, scale, alignment, ridge: see `rainbow.parts.Parts`; None
                leaves the preset's.
            classifier: None keeps the trained one, which sees phih. ``"refit"`` fits one to the wide features phi' of
                the last site by ridge regression (it holds all of them, N x n, meanwhile), ``"refit_aligned"`` to phih.
            align: ``"channels"``, positions being samples; ``"flattened"``: a site that feeds a Flatten is aligned on
                all its features (d p, n p) at once.
            accuracy_profile: also measure the held-out accuracy with sites 1..j sampled (quadratic in depth).
            progress: called as ``progress(done, total, what)``, several times a site.

        Returns:
            The network, and the report.

        Raises:
            ValueError: an option that is unknown, out of range or contradicts another, or labels that are missing:
                before anything is computed. Activations that are not finite or vanish: the message names the site.

        Source: Guth, Menard, Rochette and Mallat (JMLR 2024), definition 2 and equations 12 to 15.
        """
        plan = choose(
            self.sites,
            width=width,
            factor=factor,
            rank=rank,
            energy=energy,
            sites=sites,
            seed=seed,
            network=network,
            method=method,
            law=law,
            h=h,
            mean_row=mean_row,
            recalibrate=recalibrate,
            center=center,
            offset=offset,
            scale=scale,
            alignment=alignment,
            ridge=ridge,
            classifier=classifier,
            align=align,
            accuracy_profile=accuracy_profile,
        )
        self._check(plan, self._align)
        return sample_network(
            self.reference,
            self._trace,
            self.sites,
            plan,
            self._align,
            self._held,
            max_samples=self._max_samples,
            progress=progress,
        )

    def plan(
        self,
        *,
        images: int | None = None,
        machine: Machine | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Cost:
        """What `sample` with the same options takes: flops, bytes, peak memory, and a predicted time. Samples nothing.

        Args:
            images: to align on, in place of those that the model was fitted on.
            machine: rates; None measures those of this machine, in about half a second.
            progress: not called.
            options: those of `sample`.

        Raises:
            ValueError: as `sample`, before anything is computed; `images` that is no int of at least 1.
            TypeError: a `machine` that is none.
        """
        data = self._align
        if images is not None:
            data = Data(split(repeat(data.chunks[0], images), self.sites), data.labels)
        return self._estimate(data, machine, fitted=True, **options)

    def _estimate(self, data: Data, machine: Machine | None, *, fitted: bool, **options: Any) -> Cost:
        """`plan` with other data to align on; not `fitted`: with the work of `fit`."""
        if machine is not None and not isinstance(machine, Machine):
            raise TypeError(f"machine: wanted a Machine or None, got {type(machine).__name__}")
        plan = choose(self.sites, only_shapes=True, **options)
        self._check(plan, data)
        if machine is None:
            machine = Machine.measure(data.chunks[0].dtype, self.sites[0].site.activation)
        return estimate(
            self.reference,
            self._trace,
            self.sites,
            plan,
            data,
            self._held,
            max_samples=self._max_samples,
            machine=machine,
            fitted=fitted,
        )

    def _check(self, plan: Plan, data: Data) -> None:
        if plan.align not in ("channels", "flattened"):
            raise ValueError(f"align={plan.align!r}: wanted 'channels' or 'flattened'")
        feeding = [s for s in self.sites if s.site.name in plan.widths and s.site.feeds_flatten]
        if plan.align == "flattened" and not feeding:
            raise ValueError("align='flattened': no sampled site feeds a Flatten")
        for s in feeding if plan.align == "flattened" else []:
            warn_if_few(s.site.name, data.count, s.d * s.positions)
        if plan.classifier not in CLASSIFIERS:
            raise ValueError(f"classifier={plan.classifier!r}: wanted None, 'refit' or 'refit_aligned'")
        if plan.classifier is not None:
            tail_layers(self.reference, self._trace)
            if data.labels is None:
                raise ValueError(f"classifier={plan.classifier!r}: data has no labels, wanted batches (x, y)")
        if plan.classifier == "refit" and self.sites[-1].site.name not in plan.widths:
            raise ValueError(
                f"classifier='refit': the last site {self.sites[-1].site.name!r} is not sampled; wanted 'refit_aligned'"
            )
        if plan.accuracy_profile and (self._held.labels is None or not self._held.count):
            raise ValueError("accuracy_profile=True: wanted held-out data with labels, batches (x, y)")


def _statistics(
    cut: Trace, sites: tuple[SiteStatistics, ...], data: Data, max_samples: int, progress: Progress | None
) -> None:
    """The moments of z at every site."""
    before = 0
    for number, x in enumerate(data.chunks, start=1):
        samples = len(x)
        for s, segment in zip(sites, cut.segments, strict=False):
            z = segment(x)
            per_sample = math.prod(s.z_shape) // s.d
            step = every(data.count * per_sample, max_samples, per_sample)
            s.z.update(take(channels_first(z, s.site.axis), before * per_sample, step))
            x = s.site.reference(z)
        before += samples
        if progress is not None:
            progress(number, len(data.chunks), "statistics of the reference")
    for s in sites:
        if (channel := s.z.x.not_finite()) is not None:
            raise ValueError(f"site {s.site.name!r}: the reference's z is not finite, first in channel {channel}")
