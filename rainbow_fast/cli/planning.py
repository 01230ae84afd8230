# SPDX-License-Identifier: BSD-3-Clause
"""Predicts the cost of sampling a grid of networks: one `Cost` for each method and width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rainbow_fast.cli.grid import Job, Watch
from rainbow_fast.io import dumps
from rainbow_fast.rainbow.model import needs_fit
from rainbow_fast.rainbow.options import Limits
from rainbow_fast.rainbow.planning.cost import Cost
from rainbow_fast.rainbow.planning.estimate import estimate
from rainbow_fast.rainbow.planning.machine import Machine
from rainbow_fast.rainbow.prepare import Prepared
from rainbow_fast.rainbow.sampling.flight import in_flight_bytes
from rainbow_fast.rainbow.sampling.storage import Storage, choose_storage
from rainbow_fast.rainbow.spec import NetworkSpec

UNIT = Machine(*[1.0] * 7)  # used if the time does not matter


@dataclass(frozen=True)
class CostGrid:
    """The costs of a grid of networks.

    Attributes:
        title: name of the trained network.
        costs: the cost of one network for each method and width.
        groups: the networks that are sampled together. All are sampled after one fit.
        storage: where the activations of the largest group are stored.
        lane: bytes of memory of the stored activations of one network.
        data: bytes of memory of the samples and labels that are read.
    """

    title: str
    costs: list[tuple[Job, Cost]]
    groups: list[list[Job]]
    storage: Storage
    lane: int
    data: int

    @property
    def together(self) -> int:
        """The number of networks in the largest group."""
        return max(map(len, self.groups), default=0)

    @property
    def seconds(self) -> float:
        each = sum(self.count(job) * (cost.seconds - cost.fit_seconds) for job, cost in self.costs)
        return self.costs[0][1].fit_seconds + each

    def count(self, job: Job) -> int:
        """The number of networks of the method and width of a job."""
        kind = job.options.method, job.width
        return sum((each.options.method, each.width) == kind for group in self.groups for each in group)

    @property
    def peak_bytes(self) -> int:
        """Peak memory of the run with its data: that of the largest group.

        Each network beside the first one holds its activations, and its sites once they are sampled.
        """
        lane = self.lane if self.storage.kind == "memory" else 0
        return self.data + max(c.peak_bytes + (self.together - 1) * (c.disk_bytes + lane) for _, c in self.costs)

    def to_json(self) -> str:
        costs = [_size(job) | {"networks": self.count(job)} | cost.to_dict() for job, cost in self.costs]
        totals: dict[str, Any] = {"seconds": self.seconds, "peak_bytes": self.peak_bytes}
        totals |= {"together": self.together, "storage": str(self.storage), "data_bytes": self.data}
        return dumps(totals | {"threads": torch.get_num_threads(), "costs": costs})


def plan_grid(
    title: str, prepared: Prepared, jobs: Sequence[Job], limits: Limits, watch: Watch, *, timed: bool, data: int
) -> CostGrid:
    """The cost of each network, computed from shapes; all options are checked. Seconds are valid only if `timed`.

    `data` is the memory of the samples and labels that are read, in bytes.
    """
    site = prepared.sites[0].site
    machine = Machine.measure(prepared.align.dtype, site.activation) if timed else UNIT
    costs = _costs(prepared, jobs, limits, machine, watch)
    lane = in_flight_bytes([prepared.sites], [prepared.align, prepared.held], None)
    together = groups(jobs, costs, lane, limits.memory_budget)
    storage = choose_storage((1 + max(map(len, together), default=0)) * lane, limits)
    if storage.kind != "memory":  # one network alone might be in memory
        costs = _costs(prepared, jobs, limits.changed(storage=storage.kind), machine, watch)
    first = [(job, cost) for job, cost in zip(jobs, costs, strict=True) if job.options.network_index == 0]
    return CostGrid(title, first, together, storage, lane, data)


def _costs(prepared: Prepared, jobs: Sequence[Job], limits: Limits, machine: Machine, watch: Watch) -> list[Cost]:
    """The cost of each network; networks of the same method and width have the same."""
    by_kind: dict[tuple[str, str], Cost] = {}
    for job in jobs:
        kind = job.options.method, job.width
        if kind in by_kind:
            continue
        with watch(0, str(job)):
            spec = NetworkSpec.of(job.options, prepared, only_shapes=True)
            fitted = not needs_fit(job.options, limits)
            by_kind[kind] = estimate(prepared, spec, limits, machine=machine, fitted=fitted)
    return [by_kind[job.options.method, job.width] for job in jobs]


def groups(jobs: Sequence[Job], costs: Sequence[Cost], lane: int, budget: int | None) -> list[list[Job]]:
    """Groups of networks that are sampled together: one method each, and as many as fit into the budget, at least one.

    Args:
        jobs: the networks, in order.
        costs: the cost of each job.
        lane: bytes of the stored activations of one network; those of the trained network take as many.
        budget: bytes that a group may take; None for no limit.
    """
    together: list[list[Job]] = []
    used = 0
    for job, cost in zip(jobs, costs, strict=True):
        size = lane + cost.disk_bytes
        full = budget is not None and used + size > budget
        if not together or together[-1][-1].options.method != job.options.method or full:
            together.append([])
            used = lane
        together[-1].append(job)
        used += size
    return together


def _size(job: Job) -> dict[str, Any]:
    return {"factor": job.options.factor} if job.options.factor is not None else {"width": job.options.width}
