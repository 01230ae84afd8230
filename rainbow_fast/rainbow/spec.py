# SPDX-License-Identifier: BSD-3-Clause
"""One network to sample, all choices made: its options with the widths and directions that they mean at each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rainbow_fast.rainbow.chunks import Data
from rainbow_fast.rainbow.laws import Law
from rainbow_fast.rainbow.laws.directions import Directions, choose_directions
from rainbow_fast.rainbow.options import SampleOptions, law_of
from rainbow_fast.rainbow.prepare import Prepared
from rainbow_fast.rainbow.site_statistics import SiteStatistics, by_site, warn_if_few
from rainbow_fast.tracing.trace import Trace


@dataclass(frozen=True)
class NetworkSpec:
    """One network to sample.

    Attributes:
        options: resolved.
        widths, directions: an entry for each sampled site; directions are U (d, r) float64, None for z itself.
    """

    options: SampleOptions
    widths: dict[str, int]
    directions: Directions

    @classmethod
    def of(
        cls,
        options: SampleOptions,
        prepared: Prepared,
        *,
        only_shapes: bool = False,
    ) -> NetworkSpec:
        """What these options mean for a network and its data; `only_shapes`: directions of a rank have no values.

        Raises:
            ValueError: an option that contradicts the network or the data.
        """
        options, trace, sites = options.resolved, prepared.trace, prepared.sites
        align, held = prepared.align, prepared.held
        chosen = choose_sites(sites, options.sites)
        widths = choose_widths(chosen, options.width, options.factor, law_of(options))
        directions = choose_directions(
            chosen, options.rank, options.energy, centred=options.mean_row, only_shapes=only_shapes
        )
        spec = cls(options, widths, directions)
        spec._check_align(trace, chosen, align)
        spec._check_classifier(trace, sites[-1], align)
        if options.accuracy_profile and (held.labels is None or not held.count):
            raise ValueError("accuracy_profile=True: wanted held-out data with labels, batches (x, y)")
        return spec

    def _check_align(self, trace: Trace, chosen: Sequence[SiteStatistics], align: Data) -> None:
        if self.options.align == "channels":
            return
        if trace.references > 1:
            raise ValueError(f"align='flattened': wanted one reference, got {trace.references}")
        feeding = [s for s in chosen if s.site.feeds_flatten]
        if not feeding:
            raise ValueError("align='flattened': no sampled site feeds a Flatten")
        for s in feeding:
            warn_if_few(s.site.name, align.count, s.channels * s.positions)

    def _check_classifier(self, trace: Trace, last: SiteStatistics, align: Data) -> None:
        classifier = self.options.classifier
        if classifier is None:
            return
        trace.tail()
        if align.labels is None:
            raise ValueError(f"classifier={classifier!r}: data has no labels, wanted batches (x, y)")
        if classifier == "refit" and last.site.axis == -1 and len(last.z_shape) > 1:
            raise ValueError(
                f"classifier='refit': channels of the last site {last.site.name!r} are its last axis, of shape "
                f"{last.z_shape}: wanted 'refit_aligned'"
            )
        if classifier == "refit" and last.site.name not in self.widths:
            raise ValueError(
                f"classifier='refit': the last site {last.site.name!r} is not sampled; wanted 'refit_aligned'"
            )


def choose_sites(sites: Sequence[SiteStatistics], names: Sequence[str] | None) -> list[SiteStatistics]:
    """The sites named, or all but output activations and gates, in order of execution.

    Raises:
        ValueError: a name that is no site, or no site at all.
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
    chosen: Sequence[SiteStatistics], width: int | Mapping[str, int] | None, factor: float | None, law: Law
) -> dict[str, int]:
    """Neurons by site. A dict may leave sites out, which then keep the reference's width.

    Raises:
        ValueError: a number below 1 neuron, an unknown site, or a width that the law refuses.
    """
    widths = {s.site.name: s.channels for s in chosen}
    if factor is not None:
        widths = {name: max(round(factor * d), 1) for name, d in widths.items()}
    elif width is not None:
        widths |= by_site("width", width, widths)
    for s in chosen:
        law.check(widths[s.site.name], s)
    return widths
