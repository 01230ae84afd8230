# SPDX-License-Identifier: BSD-3-Clause
"""The sampling loop: the reference and all sampled networks advance together, one site at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from rainbow_fast.progress import Progress
from rainbow_fast.rainbow.alignment.classifier import ridge_classifier
from rainbow_fast.rainbow.alignment.retraining import retrained_tail
from rainbow_fast.rainbow.fitting import Watch
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork, assemble
from rainbow_fast.rainbow.network.same_network import FEW, WRITTEN, check_network, check_run
from rainbow_fast.rainbow.options import Limits
from rainbow_fast.rainbow.prepare import Prepared
from rainbow_fast.rainbow.report import Report
from rainbow_fast.rainbow.sampling.checkpoint import Checkpoint, describe, opened
from rainbow_fast.rainbow.sampling.flight import REFERENCE, Flight, in_flight_bytes
from rainbow_fast.rainbow.sampling.kept_site import KeptSite
from rainbow_fast.rainbow.sampling.limit_site import LimitSite
from rainbow_fast.rainbow.sampling.route import FUSED, KEPT, LIMIT, WIDE, Route, choose_routes
from rainbow_fast.rainbow.sampling.sampled_site import SampledSite
from rainbow_fast.rainbow.sampling.storage import Storage, choose_storage
from rainbow_fast.rainbow.scores import Score
from rainbow_fast.rainbow.site_statistics import SiteStatistics, reason_kept
from rainbow_fast.rainbow.spec import NetworkSpec
from rainbow_fast.scratch import scratch_folder
from rainbow_fast.tracing.tail import Tail


@torch.no_grad()
def sample_networks(
    prepared: Prepared, specs: Sequence[NetworkSpec], limits: Limits, progress: Progress | None
) -> list[tuple[RainbowNetwork, Report]]:
    """Sample one network for each spec. Every site is sampled in all networks before the next site.

    Returns:
        Each network with its report, in the order of `specs`.
    """
    data = prepared.align, prepared.held
    lanes_of_sites = [prepared.sites, *(spec.sites for spec in specs)]
    storage = choose_storage(in_flight_bytes(lanes_of_sites, data, limits.storage_dtype), limits)
    tick = _ticker(progress, sum(len(spec.widths) for spec in specs) * (2 * len(data[0].starts) + len(data[1].starts)))
    run: AbstractContextManager[Checkpoint | None] = nullcontext()
    if limits.resume_dir is not None:
        run = opened(limits.resume_dir, prepared.trace, describe(prepared, specs, limits))
    with run as checkpoint, scratch_folder(limits.scratch_dir) as folder:
        traces = [prepared.trace, *(spec.trace for spec in specs)]
        align, held = (Flight(traces, each, storage, folder) for each in data)
        lanes = [
            Lane(number, spec, (align, held), prepared, storage, tick)
            for number, spec in enumerate(specs, REFERENCE + 1)
        ]
        for statistics in prepared.sites:
            align.reference(statistics.site.reference, Watch.of(statistics, prepared, specs))
            held.reference(statistics.site.reference)
            for lane in lanes:
                lane.skip_zeros(statistics)
                site = lane.reach(statistics, checkpoint)
                if site is not None:
                    site.draw()
                    site.accumulate()
                    site.solve()
                    site.measure()
                    site.project()
                    site.hold_out()
                    lane.pass_site(site, checkpoint)
            sampled = [lane.number for lane in lanes if statistics.site.name in lane.routes]
            for flight in (align, held):
                flight.leave(sampled)
            for lane in lanes:
                lane.profile()
        scores = [measured(prepared.score, flight, REFERENCE) for flight in (align, held)]
        return [lane.assembled(prepared.fingerprint, scores) for lane in lanes]


class Lane:
    """One network that is being sampled together with others: its sites so far and its report."""

    def __init__(
        self,
        number: int,
        spec: NetworkSpec,
        flights: tuple[Flight, Flight],
        prepared: Prepared,
        storage: Storage,
        tick: Callable[[str], None],
    ) -> None:
        self.number, self.spec, self.max_samples, self.tick = number, spec, prepared.max_samples, tick
        self.align, self.held = flights
        self.trace, self.score = spec.trace, prepared.score
        self.report = Report(spec.options, self.align.count, self.held.count)
        self.report.storage, self.report.references = str(storage), self.trace.references
        self.report.holdout_seed = prepared.holdout_seed
        self.report.accuracy_profile = [] if spec.options.accuracy_profile else None
        self.report.kept |= {each.name: each.reason for each in self.trace.left}
        self.activations: dict[str, RainbowActivation] = {}
        data, stored = self.align.data, self.align.storage.dtype
        self.routes = choose_routes(spec, data.count + self.held.count, data.dtype, stored)
        self.refit: RainbowActivation | None = None

    def skip_zeros(self, statistics: SiteStatistics) -> None:
        """Keep the reference's site if its output is zero for all samples, as before the training of a scale.

        The site after it then computes its features from z. With an offset, any constant output can be sampled.
        """
        name, phi, constant = statistics.site.name, self.align.phi, self.spec.options.offset
        if name not in self.routes or constant or self._refits(statistics) or phi.spread > 0 or bool(phi.mean.any()):
            return
        self.report.kept[name] = "its output is zero for all samples"
        following = list(self.routes)[list(self.routes).index(name) + 1 :][:1]
        self.routes.update({each: Route(KEPT) for each in following if self.routes[each].name == WIDE})
        del self.routes[name]
        for flight, passes in ((self.align, 2), (self.held, 1)):
            for _ in range(passes * len(flight.data.starts)):
                self.tick(f"{name}: kept")

    def reach(self, statistics: SiteStatistics, checkpoint: Checkpoint | None) -> SampledSite | None:
        """The lane's present site if it has to be sampled now.

        None if the lane keeps the reference's site, or if the checkpoint already holds the sampled one. The lane has
        then passed the site.
        """
        name = statistics.site.name
        if name not in self.routes:
            for flight in (self.align, self.held):
                flight.follow(self.number, statistics.site.reference)
            if name not in self.report.kept:
                self.report.kept[name] = reason_kept(statistics.site) or "not among the sites asked for"
            return None
        route, flights = self.routes[name], (self.align, self.held)
        kind = {FUSED: SampledSite, LIMIT: LimitSite}.get(route.name, KeptSite)
        site = kind(statistics, self.spec, self.number, flights, self.max_samples, self.tick, route)
        if self._refits(statistics):
            site.collect_for(self.trace.tail())
        if checkpoint is None or not checkpoint.read(self.number, site):
            return site
        site.follow()
        for flight, passes in ((self.align, 2), (self.held, 1)):
            for _ in range(passes * len(flight.data.starts)):
                self.tick(f"{name}: read")
        self._take(site)
        return None

    def pass_site(self, site: SampledSite, checkpoint: Checkpoint | None) -> None:
        """Add a site that has just been sampled, and write it to the checkpoint if there is one."""
        if self._refits(site.statistics):
            site.refit_classifier(self.trace.tail())
        if checkpoint is not None:
            checkpoint.write(self.number, site)
        self._take(site)

    def profile(self) -> None:
        """If the profile is wanted and a site has been sampled: append the held-out accuracy with the sites so far."""
        sampled, profile = len(self.activations), self.report.accuracy_profile
        if profile is not None and len(profile) < sampled:
            profile.append(measured(self.score, self.held, self.number))

    def assembled(self, digest: str, scores: Sequence[float]) -> tuple[RainbowNetwork, Report]:
        """The finished network and its report.

        Args:
            digest: SHA-256 of the weights of the reference.
            scores: of the reference on the alignment set and on the held-out data.

        Raises:
            ValueError: no site was sampled, because all outputs are zero.
            RuntimeError: the network does not compute what the run computed, see `check_network` and `check_run`.
        """
        if not self.activations:
            kept = "; ".join(f"{name!r}: {reason}" for name, reason in self.report.kept.items())
            raise ValueError(f"reference: no site can be sampled; {kept}")
        classifier, sites = self.spec.options.classifier, dict(self.activations)
        if self.refit is not None:
            sites[self.trace.sites[-1].name] = self.refit
        head = self._refit_aligned() if classifier == "refit_aligned" else None
        tail = self._retrained() if classifier == "retrained" else None
        network = assemble(
            self.trace,
            sites,
            classifier=classifier,
            head=head,
            input_shape=tuple(self.align.data.x.shape[1:]),
            fingerprint=digest,
            own_layers=self.spec.own_layers,
            tail=tail,
        )
        x = self.align.data.chunk(0)
        network.keep_probes(x[:WRITTEN].clone())
        check_network(network.body, sites, self.trace, x[:FEW], head=head, refit=self.refit is not None, tail=tail)
        if classifier is None and self.align.storage.dtype is None:
            computed = self.align.outputs(self.number, 0)
            check_run(network, x, computed, network.sampled[-1], self.spec.options.precision or "highest")
        for name, flight, of_reference in zip(("alignment", "held_out"), (self.align, self.held), scores, strict=True):
            if flight.data.labels is not None and flight.count:
                numbers = self._scores(name, network, flight) | {f"reference_{name}": of_reference}
                if self.score.metric is None:
                    self.report.accuracy |= numbers
                else:
                    self.report.metric |= numbers
        return network, self.report

    def _scores(self, name: str, network: RainbowNetwork, flight: Flight) -> dict[str, float]:
        """The network's score on one data set; with a refit classifier also that of the trained classifier."""
        trained, data = measured(self.score, flight, self.number), flight.data
        if self.spec.options.classifier is None:
            return {name: trained}
        refit = [(network.body(data.chunk(start).clone()), data.labels_at(start)) for start in data.starts]
        return {f"trained_classifier_{name}": trained, name: self.score(refit)}

    def _refits(self, statistics: SiteStatistics) -> bool:
        return self.spec.options.classifier == "refit" and statistics.site.name == self.trace.sites[-1].name

    def _take(self, site: SampledSite) -> None:
        self.activations[site.site.name] = site.activation
        self.report.sites.append(site.report)
        self.refit, self.report.ridge = site.refit, site.ridge

    def _retrained(self) -> Tail:
        """The layers after the last site, trained again on phih."""
        data = self.align.data
        assert data.labels is not None
        return retrained_tail(self.trace.tail(), self.align.after(self.number, nn.Identity()), data.labels)

    def _refit_aligned(self) -> nn.Linear:
        """A new last layer, fitted by ridge regression to phih as the last layer receives it."""
        tail, data = self.trace.tail(), self.align.data
        features = self.align.after(self.number, tail.between)
        assert data.labels is not None
        B, b, self.report.ridge = ridge_classifier(features, data.labels, tail.last.out_features)
        head = copy.deepcopy(tail.last)
        head.weight = nn.Parameter(B.to(data.dtype))
        head.bias = nn.Parameter(b.to(data.dtype))
        return head


def measured(score: Score, flight: Flight, lane: int) -> float:
    """The score with the lane's sites so far and the reference's later sites; NaN without labels or data."""
    if flight.data.labels is None or not flight.count:
        return float("nan")
    return score((flight.outputs(lane, start), flight.data.labels_at(start)) for start in flight)


def _ticker(progress: Progress | None, total: int) -> Callable[[str], None]:
    done = 0

    def tick(text: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, text)

    return tick
