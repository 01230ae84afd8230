# SPDX-License-Identifier: BSD-3-Clause
"""Sampling, one site at a time: all data of the reference and of all samples advance together."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rainbow_fast.networks.trace import Trace
from rainbow_fast.rainbow.activation import RainbowActivation
from rainbow_fast.rainbow.classifier import ridge_classifier
from rainbow_fast.rainbow.flight import REFERENCE, Data, Flight
from rainbow_fast.rainbow.network import RainbowNetwork, assemble, fingerprint
from rainbow_fast.rainbow.plan import Plan
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.statistics import SiteStatistics
from rainbow_fast.rainbow.step import SiteStep, Work
from rainbow_fast.rainbow.storage import Storage

Progress = Callable[[int, int, str], None]


@torch.no_grad()
def sample_networks(
    trace: Trace,
    statistics: Sequence[SiteStatistics],
    plans: Sequence[Plan],
    align: Data,
    held: Data,
    *,
    max_samples: int,
    storage: Storage,
    scratch: str | None,
    progress: Progress | None,
) -> list[tuple[RainbowNetwork, Report]]:
    """Sample one network for each plan: all sites in order of execution, at each site one network after the other."""
    total = sum(len(plan.widths) for plan in plans) * (2 * len(align.starts) + len(held.starts))
    tick = _ticker(progress, total)
    with tempfile.TemporaryDirectory(prefix="rainbow_fast-", dir=scratch) as folder:
        flights = tuple(Flight(trace, data, 1 + len(plans), storage, Path(folder)) for data in (align, held))
        lanes = [
            Lane(Work(flights[0], flights[1], lane, plan, max_samples, tick), storage)
            for lane, plan in enumerate(plans, REFERENCE + 1)
        ]
        for known in statistics:
            _reference(flights, known)
            for lane in lanes:
                lane.pass_site(known, last=known is statistics[-1])
            sampled = [lane.work.lane for lane in lanes if known.site.name in lane.work.plan.widths]
            for flight in flights:
                flight.leave(sampled)
            for lane in lanes:
                lane.profile()
        accuracies = [_accuracy(flight, REFERENCE) for flight in flights]
        digest = fingerprint(trace.reference)
        return [lane.assembled(digest, accuracies) for lane in lanes]


def _reference(flights: Sequence[Flight], known: SiteStatistics) -> None:
    """Bring the reference past a site, and whatever still is the reference to its z."""
    for flight in flights:
        flight.activations[REFERENCE].append(known.site.reference)
        for start in flight:
            flight.apply(REFERENCE, start)


class Lane:
    """One network that is being sampled."""

    def __init__(self, work: Work, storage: Storage) -> None:
        plan, align, held = work.plan, work.align, work.held
        self.work, self.trace = work, align.trace
        self.report = Report(
            plan.method, plan.parts, plan.align, plan.classifier, plan.seed, plan.network, align.count, held.count
        )
        self.report.storage = str(storage)
        self.report.accuracy_profile = [] if plan.accuracy_profile else None
        self.activations: dict[str, RainbowActivation] = {}
        self.refit: RainbowActivation | None = None

    def pass_site(self, known: SiteStatistics, *, last: bool) -> None:
        """Sample a site if that is planned, else let it be the reference's."""
        plan, name = self.work.plan, known.site.name
        if name not in plan.widths:
            for flight in (self.work.align, self.work.held):
                flight.activations[self.work.lane].append(known.site.reference)
                for start in flight if flight.apart[self.work.lane] else ():
                    flight.apply(self.work.lane, start)
            self.report.kept[name] = _why(known)
            return
        refits = last and plan.classifier == "refit"
        step = SiteStep(self.work, known, tail=self.trace.tail() if refits else None)
        self.activations[name], site_report = step.run()
        self.report.sites.append(site_report)
        if refits:
            self.refit, self.report.ridge = step.refit()

    def profile(self) -> None:
        """The held-out accuracy with the sites so far, after each sampled one."""
        sampled, profile = len(self.activations), self.report.accuracy_profile
        if profile is not None and len(profile) < sampled:
            profile.append(_accuracy(self.work.held, self.work.lane))

    def assembled(self, digest: str, accuracies: Sequence[float]) -> tuple[RainbowNetwork, Report]:
        """The network and its report; `accuracies` are those of the reference."""
        plan, align, held = self.work.plan, self.work.align, self.work.held
        made = self.activations
        if self.refit is not None:
            made = made | {self.trace.sites[-1].name: self.refit}
        network = assemble(
            self.trace,
            made,
            classifier=plan.classifier,
            head=self._refit_aligned() if plan.classifier == "refit_aligned" else None,
            input_shape=tuple(align.data.x.shape[1:]),
            fingerprint=digest,
        )
        for name, flight, of_reference in zip(("alignment", "held_out"), (align, held), accuracies, strict=True):
            data = flight.data
            if data.labels is not None and data.count:
                found = _accuracy(flight, self.work.lane)
                if plan.classifier is not None:
                    self.report.accuracy[f"trained_classifier_{name}"] = found
                    found = _share(torch.cat([network(data.chunk(start)) for start in data.starts]), data.labels)
                self.report.accuracy |= {name: found, f"reference_{name}": of_reference}
        return network, self.report

    def _refit_aligned(self) -> nn.Linear:
        """A classifier refit on phih, as the last layer sees it."""
        tail, align = self.trace.tail(), self.work.align
        features = align.features(self.work.lane, tail.between)
        assert align.data.labels is not None
        B, b, self.report.ridge = ridge_classifier(features, align.data.labels, tail.last.out_features)
        head = copy.deepcopy(tail.last)
        head.weight = nn.Parameter(B.to(align.data.dtype))
        head.bias = nn.Parameter(b.to(align.data.dtype))
        return head


def _why(known: SiteStatistics) -> str:
    if known.site.output:
        return "an output activation, not named"
    return "a gate, not named" if known.site.gate else "not among the sites asked for"


def _accuracy(flight: Flight, lane: int) -> float:
    """Of the lane's sites so far and the reference's from here on; NaN without labels or data."""
    if flight.data.labels is None or not flight.count:
        return float("nan")
    return _share(flight.finish(lane), flight.data.labels)


def _share(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == labels).double().mean())


def _ticker(progress: Progress | None, total: int) -> Callable[[str], None]:
    done = 0

    def tick(text: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, text)

    return tick
