# SPDX-License-Identifier: BSD-3-Clause
"""Sampling, one site at a time: all data of the reference and of all samples advance together."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from rainbow_fast.rainbow.alignment.classifier import ridge_classifier
from rainbow_fast.rainbow.fitting import Progress, Watch
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork, assemble, fingerprint
from rainbow_fast.rainbow.network.same_network import FEW, check_network, check_run
from rainbow_fast.rainbow.plan import Plan
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.sampling.checkpoint import Checkpoint, Finished, describe, opened
from rainbow_fast.rainbow.sampling.flight import REFERENCE, Data, Flight
from rainbow_fast.rainbow.sampling.site import SiteStep, Work
from rainbow_fast.rainbow.sampling.storage import Storage
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.rainbow.sites import reason_kept
from rainbow_fast.tracing.trace import Trace


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
    scratch: str | os.PathLike[str] | None,
    resume: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> list[tuple[RainbowNetwork, Report]]:
    """Sample one network for each plan: all sites in order of execution, at each site one network after the other."""
    total = sum(len(plan.widths) for plan in plans) * (2 * len(align.starts) + len(held.starts))
    tick = _ticker(progress, total)
    run: AbstractContextManager[Checkpoint | None] = nullcontext()
    if resume is not None:
        dtype = storage.dtype
        facts = describe(trace, statistics, plans, align, held, max_samples=max_samples, storage_dtype=dtype)
        run = opened(resume, trace, facts)
    with run as checkpoint, tempfile.TemporaryDirectory(prefix="rainbow_fast-", dir=scratch) as folder:
        flights = tuple(Flight(trace, data, 1 + len(plans), storage, Path(folder)) for data in (align, held))
        lanes = [
            Lane(Work(flights[0], flights[1], lane, plan, max_samples, tick), storage, checkpoint)
            for lane, plan in enumerate(plans, REFERENCE + 1)
        ]
        for known in statistics:
            watch = None if known.fitted else Watch(known, align, max_samples, plans)
            for flight, look in zip(flights, (watch, None), strict=True):
                flight.reference(known.site.reference, look)
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


class Lane:
    """One network that is being sampled."""

    def __init__(self, work: Work, storage: Storage, checkpoint: Checkpoint | None) -> None:
        plan, align, held = work.plan, work.align, work.held
        self.work, self.trace, self.checkpoint = work, align.trace, checkpoint
        self.report = Report(
            plan.method, plan.parts, plan.align, plan.classifier, plan.seed, plan.network, align.count, held.count
        )
        self.report.storage, self.report.references = str(storage), self.trace.references
        self.report.accuracy_profile = [] if plan.accuracy_profile else None
        self.activations: dict[str, RainbowActivation] = {}
        self.refit: RainbowActivation | None = None

    def pass_site(self, known: SiteStatistics, *, last: bool) -> None:
        """Sample a site if that is planned, or read it if it has been; else let it be the reference's."""
        work, name, number = self.work, known.site.name, self.work.lane - REFERENCE - 1
        if name not in work.plan.widths:
            for flight in (work.align, work.held):
                flight.follow(work.lane, known.site.reference)
            self.report.kept[name] = reason_kept(known.site) or "not among the sites asked for"
            return
        done = None
        if self.checkpoint is not None:
            done = self.checkpoint.read(number, known.site, work.align.data.device)
        if done is None:
            done = self._sampled(known, last and work.plan.classifier == "refit")
            if self.checkpoint is not None:
                self.checkpoint.write(number, known.site, done)
        else:
            for flight, passes in ((work.align, 2), (work.held, 1)):
                flight.follow(work.lane, done.activation)
                for _ in range(passes * len(flight.data.starts)):
                    work.tick(f"{name}: read")
        self.activations[name] = done.activation
        self.report.sites.append(done.report)
        self.refit, self.report.ridge = done.refit, done.ridge

    def _sampled(self, known: SiteStatistics, refits: bool) -> Finished:
        step = SiteStep(self.work, known, tail=self.trace.tail() if refits else None)
        done = Finished(*step.run())
        if refits:
            done.refit, done.ridge = step.refit()
        return done

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
        head = self._refit_aligned() if plan.classifier == "refit_aligned" else None
        network = assemble(
            self.trace,
            made,
            classifier=plan.classifier,
            head=head,
            input_shape=tuple(align.data.x.shape[1:]),
            fingerprint=digest,
        )
        x = align.data.chunk(0)
        check_network(network.body, made, self.trace, x[:FEW], head=head, refit=self.refit is not None)
        if plan.classifier is None and align.storage.dtype is None:
            check_run(network, x, align.outputs(self.work.lane, 0), network.sampled[-1])
        for name, flight, of_reference in zip(("alignment", "held_out"), (align, held), accuracies, strict=True):
            data = flight.data
            if data.labels is not None and data.count:
                found = _accuracy(flight, self.work.lane)
                if plan.classifier is not None:
                    self.report.accuracy[f"trained_classifier_{name}"] = found
                    found = _share(
                        torch.cat([network(data.chunk(start).clone()) for start in data.starts]), data.labels
                    )
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
