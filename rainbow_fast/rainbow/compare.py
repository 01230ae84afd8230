# SPDX-License-Identifier: BSD-3-Clause
"""Comparison of two networks up to a rotation, site by site."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rainbow_fast.fields import Options, accepts, collect
from rainbow_fast.maps import channels_first
from rainbow_fast.ops.registration import without_autocast
from rainbow_fast.plots.by_site import alignment_by_site
from rainbow_fast.progress import Progress, reported
from rainbow_fast.rainbow.alignment.polar_factor import PolarFactor
from rainbow_fast.rainbow.holdout import split
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.options import PAPER, FitOptions, Limits
from rainbow_fast.rainbow.prepare import Prepared, prepare
from rainbow_fast.rainbow.report import Error
from rainbow_fast.rainbow.results import Results
from rainbow_fast.rainbow.sampling.align import align
from rainbow_fast.rainbow.sampling.flight import REFERENCE, Flight, in_flight_bytes
from rainbow_fast.rainbow.sampling.storage import Storage, choose_storage
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.scratch import scratch_folder
from rainbow_fast.tables import aligned, cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SiteComparison:
    """The comparison of one site.

    All errors are squared and relative. Held-out errors are None if no data was held out. An error is NaN (null in
    JSON) if phi_a has power or variance 0, or if data is not finite.

    Attributes:
        site, other: names of the site in `a` and in `b`.
        d, n: channels of the site in `a` and in `b`.
        samples: number of samples that M = E[phi_a phi_b^T] is the mean of: images times positions.
        similarity: |M|_* / sqrt(E|phi_a|^2 E|phi_b|^2), between 0 and 1; the r^2 of the published tutorial.
        error: E|s A phi_b - phi_a|^2 / E|phi_a|^2 on the alignment set, with A = polar(M) and s = sqrt(d / n).
        error_centred: the same, relative to E|phi_a - E phi_a|^2.
        held_out_error, held_out_error_centred: the same on the held-out data.
        M_rank: number of singular values of M that are kept.
        M_effective_rank: |M|_*^2 / |M|_F^2.
        M_condition: largest over smallest kept singular value of M.
    """

    site: str
    other: str
    d: int
    n: int
    samples: int
    similarity: float
    error: float
    error_centred: float
    held_out_error: float | None
    held_out_error_centred: float | None
    M_rank: int
    M_effective_rank: float
    M_condition: float


_COLUMNS = {
    "site": "site", "other": "other", "d": "d", "n": "n", "samples": "samples", "similarity": "similarity",
    "error": "error", "error_centred": "centred", "held_out_error": "held out", "held_out_error_centred": "centred",
    "M_rank": "rank M", "M_effective_rank": "eff.", "M_condition": "condition",
}  # fmt: skip


@dataclass(frozen=True)
class Comparison(Results):
    """The result of `compare`. `print` gives a table.

    Attributes:
        samples, held_out_samples: size of the alignment set and of the held-out data (images, not positions).
        sites: a `SiteComparison` for each site, in order of execution.
        alignments: for each site A, (d, n) float64, without the scale s.
        storage: where activations were stored between two sites.
    """

    samples: int
    held_out_samples: int
    sites: tuple[SiteComparison, ...]
    alignments: tuple[Tensor, ...]
    storage: str

    def to_dict(self) -> dict[str, Any]:
        """Numbers of samples and all sites, without the alignments, as numbers, strings, lists and dicts."""
        sites = [asdict(site) for site in self.sites]
        return {"samples": self.samples, "held_out_samples": self.held_out_samples, "sites": sites}

    def table(self) -> str:
        """The table as text, with a row for each site."""
        return "\n".join(aligned(self._cells()))

    def plot(self) -> Figure:
        """One figure: similarity, errors and the rank of M by site (`plots.alignment_by_site`).

        Returns:
            A `matplotlib.figure.Figure` of 8 by at most 10.5 inches.

        Raises:
            ImportError: matplotlib is missing.
        """
        return alignment_by_site(self._records(), title=self._above()[0])

    def _records(self) -> list[dict[str, Any]]:
        return [asdict(site) for site in self.sites]

    def _cells(self) -> list[list[str]]:
        return [list(_COLUMNS.values()), *([cell(getattr(site, name)) for name in _COLUMNS] for site in self.sites)]

    def _above(self) -> list[str]:
        return [f"{self.samples} samples, {self.held_out_samples} held out"]


@accepts(FitOptions, Limits)
@torch.no_grad()
@without_autocast()
def compare(
    a: nn.Module,
    b: nn.Module,
    data: object,
    *options: Options,
    progress: Progress | bool | None = None,
    **words: Any,
) -> Comparison:
    r"""Align each site of one network with the corresponding site of another, and measure the remaining error.

        M = E[phi_a phi_b^T],    A = polar(M),    error = E|s A phi_b - phi_a|^2 / E|phi_a|^2,    s = sqrt(d / n)

    Each network computes its own activations. Every position of a feature map is a sample. The similarity is between 0
    and 1; it is 1 if the activations of one network are a rotation of those of the other.

    Args:
        a, b: two networks that take the same data. They must have the same number of sites, with the same number of
            positions; the widths d and n may differ.
        data: as in `fit`; used for both networks.
        options: `FitOptions` and `Limits`, whole; or each of their fields by its name, as listed below. The memory
            budget is for both networks together. `procrustes_iterations` has no effect, and `resume_dir` must be None.
        progress: called as ``progress(done, total, what)``; or True, which shows a bar.

    Returns:
        `Comparison`.

    Raises:
        TypeError, ValueError: as in `fit`; the message names the argument. Also if `resume_dir` is not None, if the
            sites do not correspond, or if activations are not finite or all zero; the message names the site of `a`.

    Warns:
        UserWarning: as `fit`.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), equations 5 to 7.
    """
    fit_options, limits = collect(options, words, FitOptions, Limits)
    if limits.resume_dir is not None:
        raise ValueError(f"resume_dir={limits.resume_dir!r}: compare cannot be resumed, wanted None")
    for name, network in (("a", a), ("b", b)):
        if not isinstance(network, nn.Module):
            raise TypeError(f"{name}: wanted an nn.Module, got {type(network).__name__}")
    parts = split(data, fit_options, limits, labelled=False)
    first = prepare(a, parts, fit_options, limits, names=("a", "data"), labelled=False)
    second = prepare(b, parts, fit_options, limits, names=("b", "data"), labelled=False)
    _check(first.sites, second.sites)
    data_a = first.align, first.held
    kept = choose_storage(in_flight_bytes([first.sites, second.sites], data_a, limits.storage_dtype), limits)
    with reported(progress) as report, scratch_folder(limits.scratch_dir) as folder:
        run = _Run(first, second, kept, folder, report)
        sites, alignments = zip(*(run.site(*pair) for pair in zip(first.sites, second.sites, strict=True)), strict=True)
    return Comparison(first.align.count, first.held.count, sites, alignments, str(kept))


class _Run:
    """Runs both networks on the alignment set and on the held-out data, site by site."""

    def __init__(self, a: Prepared, b: Prepared, storage: Storage, folder: Path, progress: Progress | None) -> None:
        size = min(a.align.size, b.align.size)
        self.max_samples, self.progress = a.max_samples, progress
        self.align, self.held = (
            tuple(
                Flight([prepared.trace], replace(data, size=size), storage, folder)
                for prepared, data in ((a, of_a), (b, of_b))
            )
            for of_a, of_b in ((a.align, b.align), (a.held, b.held))
        )
        self.done, self.total = 0, len(a.sites) * (2 * len(self.align[0].data.starts) + len(self.held[0].data.starts))

    def site(self, a: SiteStatistics, b: SiteStatistics) -> tuple[SiteComparison, Tensor]:
        """Compare one site of each network; returns the comparison and the alignment A."""
        for pair in (self.align, self.held):
            for flight, each in zip(pair, (a, b), strict=True):
                flight.follow(REFERENCE, each.site.reference)
        moments = self._moments(a, b)
        A, aligned = align(moments, PAPER, PolarFactor())
        errors = [self._error(pair, a, b, math.sqrt(a.channels / b.channels) * A) for pair in (self.align, self.held)]
        comparison = SiteComparison(
            site=a.site.name,
            other=b.site.name,
            d=a.channels,
            n=b.channels,
            samples=moments.count,
            similarity=aligned.similarity,
            error=errors[0][0],  # type: ignore[arg-type]  # the alignment set is never empty
            error_centred=errors[0][1],  # type: ignore[arg-type]
            held_out_error=errors[1][0],
            held_out_error_centred=errors[1][1],
            M_rank=aligned.rank,
            M_effective_rank=aligned.effective_rank,
            M_condition=aligned.condition,
        )
        return comparison, A

    def _moments(self, a: SiteStatistics, b: SiteStatistics) -> CrossCovariance:
        """The moments of M = E[phi_a phi_b^T] on the alignment set."""
        moments = CrossCovariance(a.site.name, precision="highest")
        taken = self.align[0].data.positions(a.phi_space, self.max_samples)
        for start in self.align[0]:
            x, y = _activations(self.align, (a, b), start)
            moments.update(taken.of(x, start), taken.of(y, start))
            self._tick(f"{a.site.name}: moments")
        return moments

    def _error(
        self, pair: tuple[Flight, ...], a: SiteStatistics, b: SiteStatistics, map_: Tensor
    ) -> tuple[float | None, float | None]:
        """The errors of the map on one data set, None without data. Both networks then go on to the next site."""
        error = Error()
        for start in pair[0]:
            x, y = _activations(pair, (a, b), start)
            x, y = (pair[0].data.positions(a.phi_space).of(t, start) for t in (x, y))
            error.update(x, torch.einsum("nm...,dm->nd...", y, map_.to(y.dtype)))
            self._tick(f"{a.site.name}: errors")
        for flight in pair:
            flight.leave()
        return error.relative() if pair[0].count else (None, None)

    def _tick(self, text: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, text)


def _check(sites_a: tuple[SiteStatistics, ...], sites_b: tuple[SiteStatistics, ...]) -> None:
    if len(sites_a) != len(sites_b):
        raise ValueError(f"b: it has {len(sites_b)} sites, wanted {len(sites_a)} as a has")
    for name, sites in (("a", sites_a), ("b", sites_b)):
        for s in sites:
            if s.site.complex_weights:
                raise ValueError(f"{name}: site {s.site.name!r} has complex weights, wanted real ones")
    for site_a, site_b in zip(sites_a, sites_b, strict=True):
        if site_a.positions != site_b.positions:
            raise ValueError(
                f"b: site {site_b.site.name!r} has {site_b.positions} positions, wanted {site_a.positions} as site "
                f"{site_a.site.name!r} of a has"
            )


def _activations(
    flights: tuple[Flight, ...], sites: tuple[SiteStatistics, SiteStatistics], start: int
) -> tuple[Tensor, Tensor]:
    """phi_a (N, d, *space) and phi_b (N, n, *space) of one chunk, in the same dtype, which is at least float32."""
    x, y = (
        channels_first(flight.output(REFERENCE, start), s.site.axis) for flight, s in zip(flights, sites, strict=True)
    )
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x, y.to(x.device, x.dtype)
