# SPDX-License-Identifier: BSD-3-Clause
"""Description of one network to sample: its options, and the width and the directions of every site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch

from rainbow_fast.data.dtypes import described
from rainbow_fast.ops.precision import in_force
from rainbow_fast.rainbow.alignment import PolarFactor
from rainbow_fast.rainbow.chunks import Data
from rainbow_fast.rainbow.kinds import kind_of
from rainbow_fast.rainbow.laws import Law
from rainbow_fast.rainbow.laws.directions import Directions, choose_directions
from rainbow_fast.rainbow.laws.law import INFINITE
from rainbow_fast.rainbow.options import SampleOptions, alignment_of, law_of
from rainbow_fast.rainbow.prepare import Prepared, own_shapes
from rainbow_fast.rainbow.site_statistics import SiteStatistics, by_site, warn_if_few
from rainbow_fast.tracing.site import Site
from rainbow_fast.tracing.trace import Trace

MOST_NEURONS = 2**56  # rows of the random matrix G, see `rainbow_fast.gaussian`


@dataclass(frozen=True)
class NetworkSpec:
    """Description of one network to sample.

    Attributes:
        options: resolved, with the precision that is in force.
        widths: number of neurons of each sampled site, by its name.
        directions: by the name of each sampled site, U (d, r) float64, the directions of z that are combined; None
            combines all channels of z as they are.
        trace: the layers of the sampled network. They are the reference's, unless the law has its own layers.
        sites: every site, with the shape of z that these layers give.
        own_layers: by the name of a site, the name of the module that writes z, if the law replaces it.
    """

    options: SampleOptions
    widths: dict[str, int]
    directions: Directions
    trace: Trace
    sites: tuple[SiteStatistics, ...]
    own_layers: dict[str, str]

    def own(self, name: str) -> SiteStatistics:
        """The site of this name."""
        return next(s for s in self.sites if s.site.name == name)

    @classmethod
    def of(
        cls,
        options: SampleOptions,
        prepared: Prepared,
        *,
        only_shapes: bool = False,
    ) -> NetworkSpec:
        """Choose sites, widths and directions from the options, for a prepared reference and its data.

        Args:
            only_shapes: if True, only shapes are needed; directions that depend on a rank have no values.

        Raises:
            ValueError: an option contradicts the network or the data.
        """
        asked, options, law = options, in_precision(options.resolved, prepared.align), law_of(options.resolved)
        chosen = choose_sites(prepared.sites, options.sites)
        weights = law.layers(chosen)
        if weights and options.recalibrate:
            raise ValueError(f"recalibrate=True with law={options.law!r}: z is another one than the reference's")
        trace, sites = prepared.trace, prepared.sites
        if weights:
            trace = prepared.trace.with_weights(weights, prepared.options.pointwise_modules)
            sites = own_shapes(trace, prepared.trace, prepared.align.example)
        own = [s for s in sites if s.site.name in {each.site.name for each in chosen}]
        widths = choose_widths(chosen, options.width, options.factor, law)
        directions = choose_directions(
            own, options.rank, options.explained_variance, centred=options.keep_mean, only_shapes=only_shapes
        )
        layers = {s.site.name: trace.writer_name(s.site) for s in sites if s.site.name in weights}
        spec = cls(options, widths, directions, trace, sites, layers)
        spec._check_wavelets(asked, chosen, prepared.align)
        spec._check_align(prepared.trace, chosen, prepared.align)
        spec._check_classifier(trace, prepared.sites[-1], prepared.align)
        spec._check_limit(chosen)
        held = prepared.held
        if options.accuracy_profile and (held.labels is None or not held.count):
            raise ValueError("accuracy_profile=True: wanted held-out data with labels, batches (x, y)")
        return spec

    def _check_wavelets(self, asked: SampleOptions, chosen: Sequence[SiteStatistics], align: Data) -> None:
        wavelets = [s for s in chosen if s.site.features > 1]
        for name in ("alignment_blocks", "statistics"):
            if getattr(asked, name) is not None and not wavelets:
                raise ValueError(f"{name}={getattr(asked, name)!r}: no sampled site has wavelets, wanted None")
        for s in wavelets:
            if asked.statistics is not None and s.site.norm is None:
                raise ValueError(
                    f"statistics={asked.statistics!r}: site {s.site.name!r} has no standardisation, wanted None"
                )
            if s.site.complex_weights and not isinstance(alignment_of(self.options), PolarFactor):
                raise ValueError(
                    f"alignment={self.options.alignment!r}: site {s.site.name!r} has complex weights, whose alignment "
                    "is unitary: wanted 'polar'"
                )
            if self.options.alignment_blocks == "full":
                warn_if_few(s.site.name, align.count * s.positions, s.channels)

    def _check_align(self, trace: Trace, chosen: Sequence[SiteStatistics], align: Data) -> None:
        if not self.options.align_flattened:
            return
        if trace.references > 1:
            raise ValueError(f"align_flattened=True: wanted one reference, got {trace.references}")
        feeding = [s for s in chosen if s.site.feeds_flatten]
        if not feeding:
            raise ValueError("align_flattened=True: no sampled site feeds a Flatten")
        for s in feeding:
            warn_if_few(s.site.name, align.count, s.channels * s.positions)

    def _check_limit(self, chosen: Sequence[SiteStatistics]) -> None:
        """Refuse what has no closed form at sites of infinitely many neurons."""
        options = self.options
        for s in (s for s in chosen if self.widths[s.site.name] == INFINITE):
            where = f"width=inf: site {s.site.name!r}"
            if not law_of(options).has_limit:
                wanted = "wanted 'gaussian', 'orthonormal', 'white', 'bootstrap', or a law with `limit`"
                raise ValueError(f"{where}: law={options.law!r} has no closed form: {wanted}")
            if kind_of(s.site).expected() is None:
                what = "has no closed form with pooling, a normalisation, or an activation without a fused kernel"
                raise ValueError(f"{where} {what}: wanted a finite width there, or sites= without it")
            if options.alignment != "polar":
                raise ValueError(f"{where}: alignment={options.alignment!r} has no limit: wanted 'polar'")
            if options.scale == "one":
                raise ValueError(f"{where}: scale='one' grows without limit: wanted 'sqrt', 'optimal' or 'nuclear'")
            if options.align_flattened and s.site.feeds_flatten:
                raise ValueError(f"{where}: align_flattened=True has no limit here: wanted False")

    def _check_classifier(self, trace: Trace, last: SiteStatistics, align: Data) -> None:
        classifier = self.options.classifier
        if classifier is None:
            return
        if classifier == "refit" and last.site.complex_weights:
            raise ValueError(
                f"classifier='refit': the last site {last.site.name!r} has complex weights, and a classifier is real: "
                "wanted 'refit_aligned'"
            )
        others = trace.tail().others
        if others and classifier == "refit":
            raise ValueError(
                "classifier='refit': only a Linear at the very end can be refit, if only average pooling and Flatten "
                f"precede it; after the last site come {', '.join(others)}: wanted 'refit_aligned'"
            )
        if classifier == "retrained" and not trace.tail().has_weights:
            raise ValueError(
                "classifier='retrained': no layer with weights stands between the last site "
                f"{last.site.name!r} and the classifier {trace.tail().name!r}: wanted 'refit_aligned'"
            )
        if align.labels is None:
            raise ValueError(f"classifier={classifier!r}: data has no labels, wanted batches (x, y)")
        if align.labels.dim() > 1 or align.labels.dtype != torch.int64:
            raise ValueError(f"classifier={classifier!r}: labels y are {described(align.labels)}, wanted integers (N,)")
        if classifier == "refit" and last.site.axis == -1 and len(last.z_shape) > 1:
            raise ValueError(
                f"classifier='refit': channels of the last site {last.site.name!r} are its last axis, of shape "
                f"{last.z_shape}: wanted 'refit_aligned'"
            )
        if classifier == "refit" and last.site.name not in self.widths:
            raise ValueError(
                f"classifier='refit': the last site {last.site.name!r} is not sampled; wanted 'refit_aligned'"
            )
        if classifier == "refit":
            trace.tail().features(torch.zeros(1, *last.phi_shape, dtype=align.dtype, device=align.device))


def in_precision(options: SampleOptions, data: Data) -> SampleOptions:
    """The same options with a precision: the one in force if none is given, "highest" for a float64 network."""
    precision = "highest" if data.dtype == torch.float64 else options.precision or in_force(data.device)
    return replace(options, precision=precision).resolved


class _HasSite(Protocol):
    @property
    def site(self) -> Site: ...


T = TypeVar("T", bound=_HasSite)


def choose_sites(sites: Sequence[T], names: Sequence[str] | None) -> list[T]:
    """The named sites in order of execution; without names, all sites except output activations and gates.

    Raises:
        ValueError: a name is not a site, or no site is left.
    """
    all_names = [s.site.name for s in sites]
    if isinstance(names, str):
        raise ValueError(f"sites={names!r}: wanted a list of names, of {', '.join(all_names)}")
    for name in names or ():
        if name not in all_names:
            raise ValueError(
                f"sites: {name!r} is not a site that can be sampled: wanted some of {', '.join(all_names)}"
            )
    chosen = [s for s in sites if (not (s.site.output or s.site.gate) if names is None else s.site.name in names)]
    if not chosen:
        wanted = ", ".join(all_names) or "no sites"
        raise ValueError(f"sites={names!r}: nothing to sample, wanted at least one of {wanted}")
    return chosen


def choose_widths(
    chosen: Sequence[SiteStatistics], width: float | Mapping[str, float] | None, factor: float | None, law: Law
) -> dict[str, int]:
    """The number of neurons of each site, which may be `INFINITE`.

    Sites that a dict `width` does not name keep the reference's width.

    Raises:
        ValueError: a width is below 1 or above `MOST_NEURONS`, a site is unknown, or the law does not allow the width.
    """
    widths = {s.site.name: s.width for s in chosen}
    if factor is not None:
        finite = {name: max(round(min(factor * d, 2.0 * MOST_NEURONS)), 1) for name, d in widths.items()}
        widths = finite if factor < INFINITE else dict.fromkeys(widths, INFINITE)
    elif width is not None:
        widths |= by_site("width", width, widths, infinite=True)
    for name, n in widths.items():
        if MOST_NEURONS < n < INFINITE:
            option = f"width={width}" if factor is None else f"factor={factor}"
            raise ValueError(f"{option}: wanted at most 2^56 neurons at site {name!r}")
    for s in chosen:
        if widths[s.site.name] < INFINITE:
            law.check(widths[s.site.name], s)
    return widths
