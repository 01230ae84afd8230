# SPDX-License-Identifier: BSD-3-Clause
"""The networks of the study of ResNets on CIFAR-10, and their records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.analysis.novelty import novelty
from rainbow_fast.cli.grid import Step, as_progress
from rainbow_fast.io import fingerprint
from rainbow_fast.networks import resnet_cifar
from rainbow_fast.rainbow.model import RainbowModel, fit
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork
from rainbow_fast.rainbow.report import Record, Report
from rainbow_fast.weights import read_state
from studies.resnet20.controls import Naive, Outcome, Sampler, White, sample_layerwise

TRAINED, UNTRAINED = "trained", "untrained"
LANES = 3  # networks that are sampled together in one pass of the reference
LANES_FACTOR = 4  # largest width factor of these networks; for larger ones, the pass is a small part of the cost
H = (0.0, 0.25, 0.5, 0.75, 1.0)

Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: its name in the table.
        factors: the width factors n/d; None for those of the command.
        networks: most networks for each factor.
        options: options of `RainbowModel.sample`.
        reference: the reference: TRAINED, UNTRAINED (initial weights), or COMPARED for each other trained network.
        sampler: makes the sampler that is used instead of `RainbowModel.sample`.
    """

    name: str
    factors: tuple[float, ...] | None = None
    networks: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str = TRAINED
    sampler: Callable[[float, int, int], Sampler] | None = None


def smoothed(h: float) -> str:
    """The name of the smoothed bootstrap with smoothing h."""
    return f"smoothed bootstrap, h = {h:g}"


SMOOTHED = {smoothed(h): {"method": "calibrated", "law": "bootstrap", "smoothing": h} for h in H}
COMPARED = "compared"
CASES = (
    Case("calibrated", options={"method": "calibrated"}),
    Case("regression", options={"method": "regression"}),
    Case("paper"),
    Case("paper, rows bootstrapped", (1, 8), options={"law": "bootstrap"}),
    *(Case(name, (4,), options=options) for name, options in SMOOTHED.items()),
    Case("naive", sampler=Naive),
    Case("calibrated", (1, 4, 8), 2, {"method": "calibrated"}, COMPARED),
    Case("calibrated", (16,), 1, {"method": "calibrated"}, COMPARED),
    *(Case(name, (4,), 2, options, COMPARED) for name, options in SMOOTHED.items()),
    Case("calibrated, white convolutions", (1, 4), sampler=White),
    Case("calibrated", (1, 4), options={"method": "calibrated"}, reference=UNTRAINED),
    Case("itself", (1,), 1, {"law": "identity"}, UNTRAINED),
)


@dataclass(frozen=True)
class Task:
    """One network of one case."""

    case: Case
    reference: str
    factor: float
    network: int

    @property
    def key(self) -> dict[str, Any]:
        """The entries that identify the records of this network."""
        return {
            "reference": self.reference,
            "method": self.case.name,
            "factor": self.factor,
            "network": self.network,
        }

    def done(self, records: Iterable[Record]) -> bool:
        """Whether there are records of this network."""
        return any(record.items() >= self.key.items() for record in records)

    @property
    def cost(self) -> float:
        """The cost in the units of the progress bar."""
        return 4 + self.factor

    @property
    def together(self) -> object:
        """A key that is equal for networks that can be sampled in one pass of the reference."""
        return (self.reference, self.factor) if self.case.sampler is None and self.factor <= LANES_FACTOR else self

    def __str__(self) -> str:
        return f"{self.reference}: {self.case.name}, x{self.factor:g}, network {self.network}"


def tasks(factors: Sequence[float], networks: int, compared: Sequence[str]) -> list[Task]:
    """All networks: the first of each case, then the second, and so on. An interrupted run has some of each case."""
    return [
        Task(case, reference, factor, network)
        for network in range(networks)
        for case in CASES
        if network < case.networks
        for factor in case.factors or factors
        for reference in (compared if case.reference == COMPARED else (case.reference,))
    ]


def passes(todo: Sequence[Task]) -> Iterator[list[Task]]:
    """The tasks in order, in groups that share a pass of the reference."""
    waiting = list(todo)
    while waiting:
        first = waiting[0]
        same = [task for task in waiting if task.network == first.network and task.together == first.together][:LANES]
        yield same
        waiting = [task for task in waiting if task not in same]


def load_resnet(path: Path) -> nn.Sequential:
    """A `resnet_cifar` with the weights in a file (safetensors, or a state dict saved by torch).

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file has the weights of another network.
    """
    state = read_state(path, "weights")
    try:
        network = _of_shape(state)
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: wanted the weights of a ResNet for CIFAR-10, `resnet_cifar` ({error})") from error
    return network.eval()


def untrained_like(net: nn.Sequential, x: Tensor, seed: int = 0) -> nn.Sequential:
    """The same architecture with initial weights; its batch norms have the statistics of the images x."""
    network = _of_shape(net.state_dict(), seed)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # running statistics are then the mean over all batches
    with torch.no_grad():
        for chunk in x.split(500):
            network.train()(chunk)
    return network.eval()


def _of_shape(state: Mapping[str, Tensor], seed: int | None = None) -> nn.Sequential:
    """A `resnet_cifar` with the depth and width of these weights."""
    blocks = sum(name.endswith("conv2.weight") for name in state)
    return resnet_cifar(2 + 2 * blocks, width=len(state["conv1.weight"]), seed=seed)


class Study:
    """The reference networks, the alignment set `align` and the held-out data `test` (images with labels)."""

    def __init__(self, references: Mapping[str, nn.Sequential], align: Labelled, test: Labelled) -> None:
        self.references, self.align, self.test = dict(references), align, test
        self._model: tuple[str, RainbowModel] | None = None

    def reference(self, name: str) -> nn.Sequential:
        """The reference of a name. The untrained one is made when it is first needed."""
        if name == UNTRAINED and name not in self.references:
            self.references[name] = untrained_like(self.references[TRAINED], self.align[0])
        return self.references[name]

    def check(self, records: Iterable[Record]) -> None:
        """Check that records are results for these networks and images.

        Raises:
            ValueError: a record is for other images or other weights.
        """
        names = ("images", "held_out_images", "reference", "fingerprint")
        for images, held, name, digest in dict.fromkeys(tuple(record[key] for key in names) for record in records):
            if (images, held) != (len(self.align[0]), len(self.test[0])):
                raise ValueError(f"--out: it holds results of {images} and {held} images")
            available = name == UNTRAINED or name in self.references
            if available and digest != fingerprint(self.reference(name).state_dict())[:12]:
                raise ValueError(f"--out: it holds results of other weights of the network {name!r}")

    def run(self, group: Sequence[Task], step: Step) -> list[Record]:
        """Sample the networks of one pass, and return their records."""
        first = group[0]
        if first.case.sampler is None:
            results = self._sample(group, step)
        else:
            net = self.reference(first.reference)
            sampler = first.case.sampler(first.factor, 0, first.network)
            results = [_of_outcome(sample_layerwise(net, sampler, self.align, self.test))]
        shared: Record = {"images": len(self.align[0]), "held_out_images": len(self.test[0])}
        shared["fingerprint"] = fingerprint(self.reference(first.reference).state_dict())[:12]
        return [r | task.key | shared for task, records in zip(group, results, strict=True) for r in records]

    def _sample(self, group: Sequence[Task], step: Step) -> list[list[Record]]:
        name = group[0].reference
        if self._model is None or self._model[0] != name:
            self._model = None  # free the old model before the new one is made
            self._model = name, fit(self.reference(name), self.align, holdout=self.test)
        model = self._model[1]
        networks = [
            {**task.case.options, "factor": task.factor, "network_index": task.network, "classifier": "refit"}
            for task in group
        ]
        sampled = model.sample_many(networks, progress=as_progress(step))
        return [_of_report(model, task, *pair) for task, pair in zip(group, sampled, strict=True)]


def _of_outcome(outcome: Outcome) -> list[Record]:
    shared = {"accuracy": outcome.accuracy, "refit_accuracy": outcome.refit_accuracy}
    return [shared | site for site in outcome.sites]


def _of_report(model: RainbowModel, task: Task, network: RainbowNetwork, report: Report) -> list[Record]:
    """The records of a network: accuracies with both classifiers, and the error and novelty of each site."""
    shared = {
        "accuracy": report.accuracy["trained_classifier_held_out"],
        "refit_accuracy": report.accuracy["held_out"],
    }
    records = [record | shared for record in report.records(factor=task.factor)]
    for record, statistics in zip(records, model.sites, strict=True):
        del record["classifier"]
        record["novelty"] = novelty(network.site(statistics.site.name).effective_rows(), statistics.z.compute())
    return records


@dataclass(frozen=True)
class Point:
    """The accuracies of one network, its error at the last site, and means of error and novelty over its sites."""

    accuracy: float
    refit_accuracy: float
    error: float
    last_error: float
    novelty: float


def points(records: Iterable[Record], reference: str = TRAINED) -> dict[tuple[str, float], list[Point]]:
    """The networks of each method and factor, in the order of the records."""
    networks: dict[tuple[str, float, int], list[Record]] = {}
    for r in records:
        if r["reference"] == reference:
            networks.setdefault((r["method"], r["factor"], r["network"]), []).append(r)
    groups: dict[tuple[str, float], list[Point]] = {}
    for (method, factor, _), sites in networks.items():
        errors = [site["error"] for site in sites]
        new = mean(site.get("novelty", math.nan) for site in sites)
        accuracies = sites[0]["accuracy"], sites[0]["refit_accuracy"]
        groups.setdefault((method, factor), []).append(Point(*accuracies, mean(errors), errors[-1], new))
    return groups
