# SPDX-License-Identifier: BSD-3-Clause
"""What a grid of networks takes to sample, before it is: one `Cost` for each method and width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rainbow_fast.cli.experiment import Job, Watch
from rainbow_fast.cli.references import Reference
from rainbow_fast.cli.sources import Split
from rainbow_fast.rainbow.entry import plan
from rainbow_fast.rainbow.planning.cost import Cost
from rainbow_fast.rainbow.planning.machine import Machine
from rainbow_fast.rainbow.prepare import prepare
from rainbow_fast.rainbow.sampling.flight import in_flight_bytes
from rainbow_fast.rainbow.sampling.storage import choose
from rainbow_fast.rainbow.strict_json import dumps
from rainbow_fast.tracing.trace import trace

Kinds = tuple[type[nn.Module], ...]

UNIT = Machine(*[1.0] * 7)  # where the time does not matter


@dataclass(frozen=True)
class CostGrid:
    """The costs of one network of each job, `networks` of which are sampled after one fit.

    Attributes:
        together: networks of the largest group.
        storage: where its activations wait.
    """

    title: str
    costs: list[tuple[Job, Cost]]
    networks: int
    together: int
    storage: str

    @property
    def seconds(self) -> float:
        each = sum(cost.seconds - cost.fit_seconds for _, cost in self.costs)
        return self.costs[0][1].fit_seconds + self.networks * each

    @property
    def peak_bytes(self) -> int:
        return max(cost.peak_bytes for _, cost in self.costs)

    def to_json(self) -> str:
        costs = [dict(job.size) | cost.to_dict() for job, cost in self.costs]
        totals: dict[str, Any] = {"networks": self.networks, "seconds": self.seconds, "peak_bytes": self.peak_bytes}
        totals |= {"together": self.together, "storage": self.storage}
        return dumps(totals | {"threads": torch.get_num_threads(), "costs": costs})


def job_costs(
    reference: nn.Module, data: Split, jobs: Iterable[Job], watch: Watch, *, machine: Machine | None, pointwise: Kinds
) -> list[Cost]:
    """What each network takes, from shapes alone: all options are checked. Seconds count only with a `machine`."""
    example, held = data.shapes()
    found: dict[tuple[str, str], Cost] = {}
    for job in jobs:
        if (job.method, job.width) not in found:
            with watch(0, str(job)):
                some: dict[str, Any] = {"images": data.aligned, "holdout": held, "pointwise": pointwise}
                cost = plan(reference, example, machine=machine or UNIT, **some, **job.given)
                found[job.method, job.width] = cost
    return [found[job.method, job.width] for job in jobs]


def groups(jobs: Sequence[Job], costs: Sequence[Cost], lane: int, budget: int) -> list[list[Job]]:
    """The networks that are sampled together: of one method, and as many as fit into the budget, at least one.

    Args:
        costs: of each job.
        lane: bytes of what waits of one network, or of the reference.
    """
    made: list[list[Job]] = []
    used = 0
    for job, cost in zip(jobs, costs, strict=True):
        size = lane + cost.disk_bytes
        if not made or made[-1][-1].method != job.method or used + size > budget:
            made.append([])
            used = lane
        made[-1].append(job)
        used += size
    return made


def lane_bytes(reference: nn.Module, data: Split, *, pointwise: Kinds) -> int:
    """Of all data of one network, between two sites."""
    example, held = data.shapes()
    _, sites, align, held_out = prepare(reference, example, held, 1, pointwise, data.aligned, only_shapes=True)
    return in_flight_bytes(sites, 0, [align, held_out], None)


def plan_grid(
    reference: Reference,
    data: Split,
    jobs: Sequence[Job],
    watch: Watch,
    *,
    budget: int,
    storage: str | None,
    pointwise: Kinds,
) -> CostGrid:
    """As `sample_grid`, from shapes alone."""
    network = reference.module
    dtype = next(network.parameters()).dtype
    machine = Machine.measure(dtype, trace(network, data.source.example()[0].to(dtype), pointwise).sites[0].activation)
    costs = job_costs(network, data, jobs, watch, machine=machine, pointwise=pointwise)
    lane = lane_bytes(network, data, pointwise=pointwise)
    together = max(map(len, groups(jobs, costs, lane, budget)))
    kept = choose((1 + together) * lane, memory_budget=budget, storage=storage, storage_dtype=None, scratch=None)
    first = [(job, cost) for job, cost in zip(jobs, costs, strict=True) if job.network == 0]
    return CostGrid(reference.title, first, len(jobs) // len(first), together, str(kept))
