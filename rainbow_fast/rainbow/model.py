# SPDX-License-Identifier: BSD-3-Clause
"""A trained network with its moments, from which networks of any width are sampled."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rainbow_fast.ops.registration import without_autocast
from rainbow_fast.rainbow.fitting import Progress, fit_moments
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork
from rainbow_fast.rainbow.plan import Ranks, Widths, check, choose
from rainbow_fast.rainbow.planning.cost import Cost
from rainbow_fast.rainbow.planning.estimate import estimate
from rainbow_fast.rainbow.planning.machine import Machine
from rainbow_fast.rainbow.prepare import repeat
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.sampling import storage as storing
from rainbow_fast.rainbow.sampling.flight import Data, in_flight_bytes
from rainbow_fast.rainbow.sampling.run import sample_networks
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.tracing.trace import Trace


class RainbowModel:
    """A trained network with the moments of its sites: what `fit` returns and networks are sampled from.

    Attributes:
        reference: a copy of the trained network, in eval mode; of several, the mean of their outputs.
        sites: a `SiteStatistics` each, in order of execution.
    """

    def __init__(
        self,
        trace: Trace,
        sites: tuple[SiteStatistics, ...],
        align: Data,
        held: Data,
        max_samples: int,
    ) -> None:
        self.reference, self.sites = trace.reference, sites
        self._trace, self._align, self._held, self._max_samples = trace, align, held, max_samples

    @without_autocast()
    def fit_moments(self, progress: Progress | None = None) -> None:
        """What `fit` measures of the reference."""
        fit_moments(self._trace, self.sites, self._align, self._max_samples, progress)

    def sample(
        self,
        *,
        width: Widths | None = None,
        factor: float | None = None,
        rank: Ranks | None = None,
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
        memory_budget: int | None = None,
        storage: str | None = None,
        storage_dtype: torch.dtype | None = None,
        scratch: str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> tuple[RainbowNetwork, Report]:
        r"""Sample one network: at every site, n neurons that are random combinations of the reference's d, aligned.

            phih = s A sigma(G_eff zh) + c,    A = polar(E[phi phi'^T])

        zh is what the reference's own layers make of the phih before, so everything else of the network stays as it is.

        Args:
            width: neurons of each site: an int, or a dict by site, in which others keep the reference's width.
            factor: multiplies the reference's widths; 1 by default. One of `width` and `factor`.
            rank: combine the leading r directions of z only: an int (at most d), ``"marchenko_pastur"`` for as many as
                the writer's weights have above noise (not if it is grouped), or a dict by site. None uses z itself.
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
            memory_budget: bytes that the activations of all data may take between two sites; None for no limit.
                Above it they go to files; where the disk is too small, they are computed again for every site
                (quadratic in depth).
            storage: one of the three by name, ``"memory"``, ``"file"``, ``"recompute"``. The choice changes no bit.
            storage_dtype: torch.bfloat16 rounds what waits, at half the size; None does not.
            scratch: an existing folder for these files; that of the system for temporary ones by default.
            resume: a folder, made if it is not there, that every finished site is written to. Called again with the
                same arguments, a run that was stopped, in whatever way, goes on behind its last finished site, and ends
                with the bits of one that never was. The folder stays; remove it when it is no longer wanted.
            progress: called as ``progress(done, total, what)``, several times a site.

        Returns:
            The network, and the report.

        Raises:
            ValueError: an option that is unknown, out of range or contradicts another, or labels that are missing:
                before anything is computed. Activations that are not finite or vanish: the message names the site. A
                folder to resume from that holds something else, or a run of another reference, data, options, number
                of threads, instruction set or version: the message names what differs.
            RuntimeError: the network, called on a few samples, is no function, or not the one that the run computed (to
                1e-5 of the largest output, 8 units of a half precision): the message names the first site.

        Source: Guth, Menard, Rochette and Mallat (JMLR 2024), definition 2 and equations 12 to 15.
        """
        options = dict(
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
        return self.sample_many(
            [options],
            memory_budget=memory_budget,
            storage=storage,
            storage_dtype=storage_dtype,
            scratch=scratch,
            resume=resume,
            progress=progress,
        )[0]

    @without_autocast()
    def sample_many(
        self,
        networks: Sequence[Mapping[str, Any]],
        *,
        memory_budget: int | None = None,
        storage: str | None = None,
        storage_dtype: torch.dtype | None = None,
        scratch: str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> list[tuple[RainbowNetwork, Report]]:
        """Sample several networks in one pass of the reference: at each site, one after the other. Each is the network
        that `sample` gives, to the bit.

        Args:
            networks: the options of `sample` that each network is sampled with.
            memory_budget, storage, storage_dtype, scratch, resume: as in `sample`, of all networks together.
            progress: called as ``progress(done, total, what)``.

        Returns:
            Each network with its report.

        Raises:
            ValueError: no network; and as `sample`.
        """
        if not networks:
            raise ValueError("networks: wanted the options of at least one network, got none")
        plans = [choose(self.sites, **options) for options in networks]
        for plan in plans:
            check(plan, self._trace, self.sites, self._align, self._held)
        limits = dict(memory_budget=memory_budget, storage=storage, storage_dtype=storage_dtype, scratch=scratch)
        kept = self._storage(len(plans), self._align, limits)
        return sample_networks(
            self._trace,
            self.sites,
            plans,
            self._align,
            self._held,
            max_samples=self._max_samples,
            storage=kept,
            scratch=scratch,
            resume=resume,
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

        Time is that of activations which wait in memory, the peak that of where they do.

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
            data = replace(data, x=repeat(data.x, images))
        return self._estimate(data, machine, fitted=True, **options)

    def _estimate(self, data: Data, machine: Machine | None, *, fitted: bool, **options: Any) -> Cost:
        """`plan` with other data to align on; not `fitted`: with the work of `fit`."""
        if machine is not None and not isinstance(machine, Machine):
            raise TypeError(f"machine: wanted a Machine or None, got {type(machine).__name__}")
        options.pop("resume", None)
        limits = {name: options.pop(name, None) for name in ("memory_budget", "storage", "storage_dtype", "scratch")}
        plan = choose(self.sites, only_shapes=True, **options)
        check(plan, self._trace, self.sites, data, self._held)
        waits = self._storage(1, data, limits)
        if machine is None:
            machine = Machine.measure(data.dtype, self.sites[0].site.activation)
        return estimate(
            self._trace,
            self.sites,
            plan,
            data,
            self._held,
            max_samples=self._max_samples,
            waiting=(waits.dtype or data.dtype).itemsize if waits.kind == "memory" else 0,
            machine=machine,
            fitted=fitted,
        )

    def _storage(self, lanes: int, align: Data, limits: dict[str, Any]) -> storing.Storage:
        needed = in_flight_bytes(self.sites, lanes, [align, self._held], limits["storage_dtype"])
        return storing.choose(needed, **limits)
