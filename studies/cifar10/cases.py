# SPDX-License-Identifier: BSD-3-Clause
"""The networks of the study of CIFAR-10: the published experiments, and control experiments.

The tutorial of Guth, Menard, Rochette and Mallat (JMLR 2024) has a perceptron and a convolutional network on grey
images. Networks sampled from them at the trained width have accuracies of 30.6 % and 40.3 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from rainbow_fast.analysis.limits import fit_limit
from rainbow_fast.cli.checkpoints import load_checkpoint, save_checkpoint
from rainbow_fast.cli.grid import Step, as_progress
from rainbow_fast.cli.training import new_reference, train_reference
from rainbow_fast.data import Images
from rainbow_fast.io import fingerprint
from rainbow_fast.rainbow.model import RainbowModel, fit
from rainbow_fast.rainbow.report import Record
from studies.cifar10.controls import another_network

TITLES = {"mlp": "MLP 1024-512-256-10", "cnn": "CNN 5x5/2 1-32-64"}
FACTORS = (1, 4, 16)
FIGURE_METHODS = ("paper", "calibrated", "regression", "white, C = I")


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: its name in the table.
        architectures: the architectures for which it is run.
        factors: the width factors n/d.
        networks: most networks for each training; the three methods have more than the control experiments.
        images: size of the alignment set, which is the first training images.
        options: options of `RainbowModel.sample`.
        untrained: whether the reference has its initial weights.
        another: whether the next trained network takes the place of a sampled network, see `another_network`.
    """

    name: str
    architectures: tuple[str, ...] = ("mlp", "cnn")
    factors: tuple[float, ...] = FACTORS
    networks: int = 5
    images: int = 5_000
    options: Mapping[str, Any] = field(default_factory=dict)
    untrained: bool = False
    another: bool = False


REFIT = {"classifier": "refit"}
CASES = (
    Case("paper"),
    Case("calibrated", options={"method": "calibrated"}),
    Case("regression", ("cnn",), options={"method": "regression"}),
    Case("regression", ("mlp",), images=20_000, options={"method": "regression", "ridge": 1e-2}),
    Case("white, C = I", networks=2, options={"law": "white"}),
    Case("paper", factors=(64,), networks=2),
    Case("paper, flattened alignment", ("cnn",), (1,), 5, 20_000, {"align_flattened": True}),
    Case("paper, flattened alignment", ("cnn",), (4,), 1, 20_000, {"align_flattened": True}),
    Case("paper, mean row kept", networks=2, options={"keep_mean": True}),
    Case("paper, rows bootstrapped", networks=2, options={"law": "bootstrap"}),
    Case("paper, 50,000 images", factors=(4,), networks=2, images=50_000),
    Case("paper, classifier refit", networks=1, options=REFIT),
    Case("second trained network", factors=(1,), networks=1, another=True),
    Case("untrained, paper", networks=1, untrained=True),
    Case("untrained, paper, classifier refit", networks=1, options=REFIT, untrained=True),
    Case(
        "untrained itself, classifier refit", (*TITLES,), (1,), 1, options=REFIT | {"law": "identity"}, untrained=True
    ),
)


@dataclass(frozen=True)
class Task:
    """One network of one case."""

    architecture: str
    case: Case
    factor: float
    training: int
    network: int

    @property
    def key(self) -> dict[str, Any]:
        """The entries that identify the records of this network."""
        names = {"architecture": self.architecture, "method": self.case.name}
        return names | {"factor": self.factor, "network": f"{self.training}.{self.network}"}

    def done(self, records: list[Record]) -> bool:
        """Whether there are records of this network."""
        return any(record.items() >= self.key.items() for record in records)

    @property
    def cost(self) -> float:
        """The cost in the units of the progress bar."""
        return (2 + self.factor) * self.case.images / 5_000

    def __str__(self) -> str:
        return f"{self.architecture} {self.case.name}, x{self.factor:g}, network {self.training}.{self.network}"


def tasks(architectures: tuple[str, ...], trainings: int, networks: int, cases: tuple[Case, ...] = CASES) -> list[Task]:
    """All networks in the order of the cases, so that an interrupted run has the most important ones."""
    return [
        Task(architecture, case, factor, training, network)
        for case in cases
        for architecture in architectures
        if architecture in case.architectures
        for factor in case.factors
        for training in range(trainings)
        for network in range(min(networks, case.networks))
        if not case.another or trainings > 1
    ]


class Trainings:
    """The reference networks of a run. Each is trained once and stored as a checkpoint in `folder`."""

    def __init__(self, images: Images, folder: Path, trainings: int) -> None:
        self.images, self.folder, self.count = images, folder, trainings
        self.test = (images.x_test, images.y_test)
        self._references: dict[tuple[str, int], tuple[nn.Sequential, float]] = {}
        self._model: tuple[object, RainbowModel] | None = None

    def reference(self, architecture: str, training: int, step: Step) -> tuple[nn.Sequential, float]:
        """A trained network and its accuracy."""
        wanted = (architecture, training)
        if wanted not in self._references:
            path = self.folder / f"{architecture}-cifar10-{training}.safetensors"
            if not path.is_file():
                about = new_reference(architecture, "cifar10", seed=training)
                save_checkpoint(*train_reference(about, self.images, {"seed": training}, step), path)
            module, about = load_checkpoint(path)
            self._references[wanted] = module, about.accuracy
        return self._references[wanted]

    def run(self, task: Task, step: Step) -> list[Record]:
        """Train or load the reference, sample one network, and return its records."""
        case = task.case
        reference, reached = self.reference(task.architecture, task.training, step)
        if case.untrained:
            reference = new_reference(task.architecture, "cifar10").build(seed=task.training)
        align = self.images.x_train[: case.images]
        if case.another:
            other, _ = self.reference(task.architecture, (task.training + 1) % self.count, step)
            outcome, sites = another_network(reference, other, align, self.test)
            of_network = {"accuracy": outcome, "reference_accuracy": reached, "images": case.images}
            records = [of_network | site for site in sites]
        else:
            records = self._sample(task, reference, step)
        return [record | task.key | {"reference": fingerprint(reference.state_dict())[:12]} for record in records]

    def _sample(self, task: Task, reference: nn.Sequential, step: Step) -> list[Record]:
        case = task.case
        wanted = (task.architecture, task.training, case.images, case.untrained)
        if self._model is None or self._model[0] != wanted:
            self._model = None  # free the old model before the new one is made
            some = (self.images.x_train[: case.images], self.images.y_train[: case.images])
            self._model = wanted, fit(reference, some, holdout=self.test)
        address = {"network_index": task.network, "seed": task.training}
        _, report = self._model[1].sample(factor=task.factor, **address, **case.options, progress=as_progress(step))
        return report.records(factor=task.factor)


@dataclass(frozen=True)
class Limit:
    """``error = limit + c n^-p``, fitted to the mean errors of a site."""

    site: str
    limit: float
    c: float
    p: float


def limits(records: list[Record], architecture: str) -> Iterator[Limit]:
    """The limit of each site for the method "paper", if at least four widths were measured."""
    groups: dict[str, dict[float, list[float]]] = {}
    for record in records:
        if record["architecture"] == architecture and record["method"] == "paper":
            groups.setdefault(record["site"], {}).setdefault(record["factor"], []).append(record["error"])
    for site, by_factor in groups.items():
        if len(by_factor) >= 4:
            yield Limit(site, *fit_limit({factor: sum(e) / len(e) for factor, e in by_factor.items()}))
