# SPDX-License-Identifier: BSD-3-Clause
"""What a grid of networks takes to sample, before it is: one `Cost` for each method and width."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rainbow_fast.cli.experiment import Job, Watch
from rainbow_fast.cli.files import About
from rainbow_fast.networks.trace import trace
from rainbow_fast.rainbow.cost import Cost
from rainbow_fast.rainbow.entry import plan
from rainbow_fast.rainbow.machine import Machine

IMAGES = {"digits": (1_437, 360), "cifar10": (50_000, 10_000)}  # to train and to test on


@dataclass(frozen=True)
class CostGrid:
    """The costs of one network of each job, `networks` of which are sampled after one fit."""

    title: str
    costs: list[tuple[Job, Cost]]
    networks: int

    @property
    def seconds(self) -> float:
        each = sum(cost.seconds - cost.fit_seconds for _, cost in self.costs)
        return self.costs[0][1].fit_seconds + self.networks * each

    @property
    def peak_bytes(self) -> int:
        return max(cost.peak_bytes for _, cost in self.costs)

    def to_json(self) -> str:
        costs = [dict(job.size) | cost.to_dict() for job, cost in self.costs]
        totals = {"networks": self.networks, "seconds": self.seconds, "peak_bytes": self.peak_bytes}
        return json.dumps(totals | {"threads": torch.get_num_threads(), "costs": costs})


def plan_grid(
    reference: nn.Sequential, about: About, jobs: Iterable[Job], networks: int, images: int, watch: Watch
) -> CostGrid:
    """As `sample_grid` on the first so many training images, with the test images held out: from their number alone."""
    train, test = IMAGES[about.data]
    arguments = about.arguments
    side = arguments.get("image_size")
    shape = (arguments["sizes"][0],) if side is None else (arguments["channels"][0], side, side)
    example, label = torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64)
    held = (example.expand(test, *shape), label.expand(test))
    machine = Machine.measure(torch.float32, trace(reference).sites[0].activation)
    costs = []
    for job in jobs:
        with watch(1, str(job)):
            options: dict[str, Any] = {"method": job.method, "seed": job.seed, **job.size, **job.options}
            data = example, label
            cost = plan(reference, data, images=min(images, train), holdout=held, machine=machine, **options)
            costs.append((job, cost))
    return CostGrid(str(about), costs, networks)
