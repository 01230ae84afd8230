# SPDX-License-Identifier: BSD-3-Clause
"""Sampling, one site at a time: all data advances together, only the activations of the last site are kept."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from rainbow_fast.networks.trace import Trace
from rainbow_fast.rainbow.activation import RainbowActivation
from rainbow_fast.rainbow.classifier import ridge_classifier
from rainbow_fast.rainbow.flight import Data, InFlight
from rainbow_fast.rainbow.network import RainbowNetwork, assemble, tail_layers
from rainbow_fast.rainbow.plan import Plan
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.statistics import SiteStatistics
from rainbow_fast.rainbow.step import SiteStep, Work

Progress = Callable[[int, int, str], None]


@torch.no_grad()
def sample_network(
    reference: nn.Module,
    trace: Trace,
    statistics: tuple[SiteStatistics, ...],
    plan: Plan,
    align: Data,
    held: Data,
    *,
    max_samples: int,
    progress: Progress | None,
) -> tuple[RainbowNetwork, Report]:
    """Sample all sites of a plan in order of execution and put the network together."""
    dtype = align.chunks[0].dtype
    total = len(plan.widths) * (2 * len(align.chunks) + len(held.chunks))
    tick = _ticker(progress, total)
    work = Work(reference, trace, plan, InFlight(align), InFlight(held), max_samples, dtype, tick)
    report = Report(
        plan.method, plan.parts, plan.align, plan.classifier, plan.seed, plan.network, align.count, held.count
    )
    activations: dict[str, RainbowActivation] = {}
    profile = []
    for place, (known, segment) in enumerate(zip(statistics, trace.segments, strict=False)):
        name = known.site.name
        for flight in (work.align, work.held):
            flight.advance(segment)
        if name not in plan.widths:
            for flight in (work.align, work.held):
                flight.advance(known.site.reference)
            reason = "an output activation, not named" if known.site.output else "not among the sites asked for"
            report.kept[name] = reason
            continue
        refit = plan.classifier == "refit" and place == len(statistics) - 1
        step = SiteStep(work, known, first=not activations)
        activations[name], site_report = step.run(collect=refit)
        report.sites.append(site_report)
        if plan.accuracy_profile:
            profile.append(work.held.accuracy("y", _rest(trace, place)))
        if refit:
            activations[name], report.ridge = step.refit()
    head = _refit_aligned(work, report) if plan.classifier == "refit_aligned" else None
    network = assemble(
        reference,
        trace,
        activations,
        classifier=plan.classifier,
        head=head,
        input_shape=tuple(align.chunks[0].shape[1:]),
    )
    report.accuracy_profile = profile if plan.accuracy_profile else None
    for name, flight, data in (("alignment", work.align, align), ("held_out", work.held, held)):
        if flight.labels is not None and flight.count:
            last = trace.segments[-1]
            sampled = InFlight(data).accuracy("x", network) if plan.classifier else flight.accuracy("y", last)
            report.accuracy |= {name: sampled, f"reference_{name}": flight.accuracy("x", last)}
    return network, report


def _rest(trace: Trace, place: int) -> nn.Module:
    """All of the reference after the site at `place`."""
    parts: list[nn.Module] = [trace.segments[place + 1]]
    for site, segment in zip(trace.sites[place + 1 :], trace.segments[place + 2 :], strict=True):
        parts += [site.reference, segment]
    return nn.Sequential(*parts)


def _refit_aligned(work: Work, report: Report) -> nn.Linear:
    """A classifier refit on phih, as the last layer sees it."""
    between, last = tail_layers(work.reference, work.trace)
    features = torch.cat([nn.Sequential(*between)(y).flatten(1) for y in work.align.y])
    assert work.align.labels is not None
    B, b, report.ridge = ridge_classifier(features, work.align.labels, last.out_features)
    head = copy.deepcopy(last)
    head.weight = nn.Parameter(B.to(work.dtype))
    head.bias = nn.Parameter(b.to(work.dtype))
    return head


def _ticker(progress: Progress | None, total: int) -> Callable[[str], None]:
    done = 0

    def tick(text: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, text)

    return tick
