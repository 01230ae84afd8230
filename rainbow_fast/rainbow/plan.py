# SPDX-License-Identifier: BSD-3-Clause
"""What was asked of one sample, checked: which sites, how wide, of which rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.arguments import flag, integer
from rainbow_fast.rainbow.laws.marchenko_pastur import marchenko_pastur_rank
from rainbow_fast.rainbow.network.rainbow_network import CLASSIFIERS
from rainbow_fast.rainbow.parts import Parts, resolve
from rainbow_fast.rainbow.prepare import warn_if_few
from rainbow_fast.rainbow.sampling.flight import Data
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.tracing.trace import Trace
from rainbow_fast.tracing.writers import writer_rows

Widths = int | Mapping[str, int]
Ranks = int | str | Mapping[str, int | str]
NOISE_EDGE = "marchenko_pastur"
SITE_BITS, NETWORK_BITS = 12, 20  # of a stream: network << 12 | site


@dataclass(frozen=True)
class Plan:
    """One sample, all choices made. `widths` and `directions` have one entry a sampled site."""

    method: str
    parts: Parts
    widths: dict[str, int]
    directions: dict[str, Tensor | None]  # U (d, r) float64, None for z itself
    seed: int
    network: int
    align: str
    classifier: str | None
    accuracy_profile: bool


def choose(
    known: Sequence[SiteStatistics],
    *,
    width: Widths | None = None,
    factor: float | None = None,
    rank: Ranks | None = None,
    energy: float | None = None,
    sites: Sequence[str] | None = None,
    seed: int = 0,
    network: int = 0,
    method: str = "paper",
    classifier: str | None = None,
    align: str = "channels",
    accuracy_profile: bool = False,
    only_shapes: bool = False,
    **parts: Any,
) -> Plan:
    """The plan that options of `RainbowModel.sample` make; `only_shapes`: with empty directions, where a rank is given.

    Raises:
        ValueError: as `RainbowModel.sample`, of all that needs no data.
    """
    resolved = resolve(method, **parts)
    chosen = choose_sites(known, sites)
    seed, network = integer("seed", seed, 0, 2**63 - 1), integer("network", network, 0, 2**NETWORK_BITS - 1)
    accuracy_profile = flag("accuracy_profile", accuracy_profile)
    widths = choose_widths(chosen, width, factor, resolved.law)
    directions = choose_directions(chosen, rank, energy, centred=resolved.mean_row, only_shapes=only_shapes)
    return Plan(method, resolved, widths, directions, seed, network, align, classifier, accuracy_profile)


def check(plan: Plan, trace: Trace, sites: Sequence[SiteStatistics], data: Data, held: Data) -> None:
    """What of a plan the network and the data must allow.

    Raises:
        ValueError: an unknown alignment or classifier, or one that this network or these data do not have.
    """
    if plan.align not in ("channels", "flattened"):
        raise ValueError(f"align={plan.align!r}: wanted 'channels' or 'flattened'")
    if plan.align == "flattened" and trace.references > 1:
        raise ValueError(f"align='flattened': wanted one reference, got {trace.references}")
    feeding = [s for s in sites if s.site.name in plan.widths and s.site.feeds_flatten]
    if plan.align == "flattened" and not feeding:
        raise ValueError("align='flattened': no sampled site feeds a Flatten")
    for s in feeding if plan.align == "flattened" else []:
        warn_if_few(s.site.name, data.count, s.channels * s.positions)
    if plan.classifier not in CLASSIFIERS:
        raise ValueError(f"classifier={plan.classifier!r}: wanted None, 'refit' or 'refit_aligned'")
    if plan.classifier is not None:
        trace.tail()
        if data.labels is None:
            raise ValueError(f"classifier={plan.classifier!r}: data has no labels, wanted batches (x, y)")
    last = sites[-1]
    if plan.classifier == "refit" and last.site.axis == -1 and len(last.z_shape) > 1:
        raise ValueError(
            f"classifier='refit': channels of the last site {last.site.name!r} are its last axis, of shape "
            f"{last.z_shape}: wanted 'refit_aligned'"
        )
    if plan.classifier == "refit" and last.site.name not in plan.widths:
        raise ValueError(f"classifier='refit': the last site {last.site.name!r} is not sampled; wanted 'refit_aligned'")
    if plan.accuracy_profile and (held.labels is None or not held.count):
        raise ValueError("accuracy_profile=True: wanted held-out data with labels, batches (x, y)")


def choose_sites(known: Sequence[SiteStatistics], sites: Sequence[str] | None) -> list[SiteStatistics]:
    """The sites named, or all but output activations and gates, in order of execution.

    Raises:
        ValueError: a name that is no site, or no site at all.
    """
    names = [statistics.site.name for statistics in known]
    if isinstance(sites, str):
        raise ValueError(f"sites={sites!r}: wanted a list of names, of {', '.join(names)}")
    unknown = [name for name in sites or () if name not in names]
    if unknown:
        raise ValueError(f"sites: {unknown[0]!r} is not a site that can be sampled: wanted some of {', '.join(names)}")
    chosen = [s for s in known if (not (s.site.output or s.site.gate) if sites is None else s.site.name in sites)]
    if not chosen:
        raise ValueError(f"sites={sites!r}: nothing to sample, wanted at least one of {', '.join(names) or 'no sites'}")
    return chosen


def choose_widths(
    chosen: Sequence[SiteStatistics], width: Widths | None, factor: float | None, law: str
) -> dict[str, int]:
    """Neurons by site. A dict may leave sites out, which then keep the reference's width.

    Raises:
        ValueError: both given, a number below 1 neuron, an unknown site, or another width than d for the identity.
    """
    if width is not None and factor is not None:
        raise ValueError(f"width={width} and factor={factor}: wanted one of the two")
    if factor is not None and not 0 < factor < float("inf"):
        raise ValueError(f"factor={factor}: wanted a finite number above 0")
    widths = {s.site.name: s.channels for s in chosen}
    if factor is not None:
        widths = {name: max(round(factor * d), 1) for name, d in widths.items()}
    elif width is not None:
        widths |= _by_site("width", width, widths)
    if law == "identity":
        for s in chosen:
            n = widths[s.site.name]
            if n != s.d:
                raise ValueError(f"law='identity': site {s.site.name!r} has {n} neurons, wanted the reference's {s.d}")
    return widths


def choose_directions(
    chosen: Sequence[SiteStatistics],
    rank: Ranks | None,
    energy: float | None,
    *,
    centred: bool,
    only_shapes: bool = False,
) -> dict[str, Tensor | None]:
    """U by site: the leading r directions, r the rank (at most d), or as many as stand out of noise, or the least that
    holds `energy` of the trace. `only_shapes`: of a rank, without their values.

    Raises:
        ValueError: both given, a rank below 1, an energy outside (0, 1], an unknown site, a site without the one
            writer, not grouped, whose noise could be told.
    """
    if rank is not None and energy is not None:
        raise ValueError(f"rank={rank} and energy={energy}: wanted one of the two")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy={energy}: wanted 0 < energy <= 1")
    none: dict[str, Tensor | None] = {s.site.name: None for s in chosen}
    if rank is None and energy is None:
        return none
    above = {s.site.name: _above_noise(s) for s in chosen if _is_edge(rank) or _is_edge(_of(rank, s.site.name))}
    rank = above if _is_edge(rank) else {**rank, **above} if isinstance(rank, Mapping) else rank
    ranks = {} if rank is None else _by_site("rank", rank, none)
    for s in chosen:
        name = s.site.name
        if energy is None and name not in ranks:
            continue
        if only_shapes and energy is None:
            none[name] = torch.empty(s.d, min(ranks[name], s.d), dtype=torch.float64, device="meta")
            continue
        if s.site.writer is None and s.z.count == 0:
            raise ValueError(f"energy={energy}: site {name!r} has no moments before fit: wanted a rank")
        values, U = s.directions(centred=centred)
        r = ranks.get(name, len(values))
        if energy is not None:
            share = torch.cumsum(values, 0) / values.sum()
            r = int((share < energy * (1 - 1e-12)).sum()) + 1
        none[name] = U[:, : min(r, s.d)].contiguous()
    return none


def _is_edge(rank: object) -> bool:
    return isinstance(rank, str) and rank == NOISE_EDGE


def _of(rank: Ranks | None, name: str) -> int | str | None:
    return rank.get(name) if isinstance(rank, Mapping) else None


def _above_noise(known: SiteStatistics) -> int:
    writer = known.site.writer
    if writer is None:
        raise ValueError(
            f"rank={NOISE_EDGE!r}: site {known.site.name!r} is not written by one bias-free linear layer, whose noise "
            "could be told: wanted a number"
        )
    rows = writer_rows(writer)
    if len(rows) > 1:
        raise ValueError(
            f"rank={NOISE_EDGE!r}: site {known.site.name!r} is written by a convolution of groups={len(rows)}; the "
            "law is that of a full matrix, each neuron reading all channels: wanted a number"
        )
    return max(marchenko_pastur_rank(rows[0].to(writer.weight.dtype)), 1)


def _by_site(what: str, value: Ranks, sites: Mapping[str, object]) -> dict[str, int]:
    given = dict(value) if isinstance(value, Mapping) else {name: value for name in sites}
    for name in given:
        if name not in sites:
            raise ValueError(f"{what}: {name!r} is not among the sampled sites {', '.join(sites)}")
    return {name: integer(f"{what} of site {name!r}", number, 1) for name, number in given.items()}
