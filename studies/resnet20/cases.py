# SPDX-License-Identifier: BSD-3-Clause
"""Residual networks on CIFAR-10: which networks are sampled, and what is written down of each."""

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
from rainbow_fast.io import fingerprint, read_state
from rainbow_fast.networks import resnet_cifar
from rainbow_fast.rainbow.model import RainbowModel, fit
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork
from rainbow_fast.rainbow.report import Record, Report
from studies.resnet20.controls import Naive, Outcome, Sampler, White, sample_layerwise

TRAINED, UNTRAINED = "trained", "untrained"
LANES = 3  # networks in one pass of the reference,
LANES_FACTOR = 4  # up to this width; above it the pass costs little of the whole
H = (0.0, 0.25, 0.5, 0.75, 1.0)

Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        factors: n/d; None for those of the command.
        networks: at most.
        options: of `RainbowModel.sample`.
        reference: whether from the trained network, from one as initialised, or from each that it is compared with.
        sampler: in place of `RainbowModel.sample`.
    """

    name: str
    factors: tuple[float, ...] | None = None
    networks: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str = TRAINED
    sampler: Callable[[float, int, int], Sampler] | None = None


def smoothed(h: float) -> str:
    """The name of a smoothed bootstrap."""
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
        """What the records of this network, and no other, have in common."""
        return {
            "reference": self.reference,
            "method": self.case.name,
            "factor": self.factor,
            "network": self.network,
        }

    def done(self, records: Iterable[Record]) -> bool:
        """Whether there are records of it."""
        return any(record.items() >= self.key.items() for record in records)

    @property
    def cost(self) -> float:
        """For the progress bar."""
        return 4 + self.factor

    @property
    def together(self) -> object:
        """What the networks have in common that are sampled in one pass of the reference."""
        return (self.reference, self.factor) if self.case.sampler is None and self.factor <= LANES_FACTOR else self

    def __str__(self) -> str:
        return f"{self.reference}: {self.case.name}, x{self.factor:g}, network {self.network}"


def tasks(factors: Sequence[float], networks: int, compared: Sequence[str]) -> list[Task]:
    """All networks: the first of every case, then the second, so that an interrupted run has some of each."""
    return [
        Task(case, reference, factor, network)
        for network in range(networks)
        for case in CASES
        if network < case.networks
        for factor in case.factors or factors
        for reference in (compared if case.reference == COMPARED else (case.reference,))
    ]


def passes(todo: Sequence[Task]) -> Iterator[list[Task]]:
    """The tasks in their order, but together those that share a pass of the reference."""
    waiting = list(todo)
    while waiting:
        first = waiting[0]
        same = [task for task in waiting if task.network == first.network and task.together == first.together][:LANES]
        yield same
        waiting = [task for task in waiting if task not in same]


def load_resnet(path: Path) -> nn.Sequential:
    """A `resnet_cifar` of the depth and width of the weights in a file: safetensors, or a state dict saved by torch.

    Raises:
        FileNotFoundError: no such file.
        ValueError: weights of another network.
    """
    state = read_state(path, "weights")
    try:
        network = _of_shape(state)
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: wanted the weights of a ResNet for CIFAR-10, `resnet_cifar` ({error})") from error
    return network.eval()


def untrained_like(net: nn.Sequential, x: Tensor, seed: int = 0) -> nn.Sequential:
    """The same architecture at its initialisation, its batch norms with the statistics of the images x."""
    network = _of_shape(net.state_dict(), seed)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        for chunk in x.split(500):
            network.train()(chunk)
    return network.eval()


def _of_shape(state: Mapping[str, Tensor], seed: int | None = None) -> nn.Sequential:
    """A `resnet_cifar` with as many blocks and channels as these weights have."""
    blocks = sum(name.endswith("conv2.weight") for name in state)
    return resnet_cifar(2 + 2 * blocks, width=len(state["conv1.weight"]), seed=seed)


class Study:
    """The references, and what they are sampled and measured on: `align` and `test`, images with labels."""

    def __init__(self, references: Mapping[str, nn.Sequential], align: Labelled, test: Labelled) -> None:
        self.references, self.align, self.test = dict(references), align, test
        self._model: tuple[str, RainbowModel] | None = None

    def reference(self, name: str) -> nn.Sequential:
        """By its name; the untrained one is made when it is first asked for."""
        if name == UNTRAINED and name not in self.references:
            self.references[name] = untrained_like(self.references[TRAINED], self.align[0])
        return self.references[name]

    def check(self, records: Iterable[Record]) -> None:
        """Refuse results of other networks or images.

        Raises:
            ValueError: the first record that does not belong here.
        """
        names = ("images", "held_out_images", "reference", "fingerprint")
        for images, held, name, digest in dict.fromkeys(tuple(record[key] for key in names) for record in records):
            if (images, held) != (len(self.align[0]), len(self.test[0])):
                raise ValueError(f"--out: it holds results of {images} and {held} images")
            available = name == UNTRAINED or name in self.references
            if available and digest != fingerprint(self.reference(name).state_dict())[:12]:
                raise ValueError(f"--out: it holds results of other weights of the network {name!r}")

    def run(self, group: Sequence[Task], step: Step) -> list[Record]:
        """Sample the networks of one pass and write down what came."""
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
            self._model = None  # frees the old one first
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
    """Accuracies with both classifiers, and how new the neurons of each site are."""
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
    """One network: its accuracies, and means over its sites."""

    accuracy: float
    refit_accuracy: float
    error: float
    last_error: float
    novelty: float


def points(records: Iterable[Record], reference: str = TRAINED) -> dict[tuple[str, float], list[Point]]:
    """The networks of each method and factor, in the order in which they come."""
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
