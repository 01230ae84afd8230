# SPDX-License-Identifier: BSD-3-Clause
"""Training a reference, sampling a grid of networks from it, and what is written down of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import nn

from rainbow_fast import plots
from rainbow_fast.cli.files import BUILDERS, About, Record, write, write_records
from rainbow_fast.data import Images, cifar10, digits
from rainbow_fast.networks import accuracy, train
from rainbow_fast.rainbow.model import RainbowModel
from rainbow_fast.rainbow.report import Report

Step = Callable[[float, str], None]  # share of a job that is done, and what is going on
Watch = Callable[[float, str], AbstractContextManager[Step]]  # cost and name of a job

DIGITS_TRAINING = {"epochs": 20, "batch_size": 32}
CIFAR10_TRAINING = {"epochs": 5, "batch_size": 128}
FILES = ("results.jsonl", "report.txt", "figure.png")


def new_reference(
    architecture: str, data: str, *, grey: bool = True, widths: Sequence[int] | None = None, seed: int = 0
) -> About:
    """An architecture that fits the images: on CIFAR-10 the published tutorial's, on digits a smaller one.

    Raises:
        ValueError: another architecture than mlp and cnn.
    """
    if architecture not in BUILDERS:
        raise ValueError(f"architecture: wanted mlp or cnn, got {architecture!r}")
    on_digits = data == "digits"
    channels, side = (1, 8) if on_digits else (1 if grey else 3, 32)
    if architecture == "mlp":
        hidden = widths or ((64, 32) if on_digits else (512, 256))
        arguments: dict[str, Any] = {"sizes": [channels * side * side, *hidden, 10]}
    else:
        hidden = widths or ((16, 32) if on_digits else (32, 64))
        kernel = {"kernel_size": 3, "stride": 1} if on_digits else {"kernel_size": 5, "stride": 2}
        arguments = {"channels": [channels, *hidden], "image_size": side, **kernel}
    about = About(architecture, arguments, data, grey or on_digits, {"seed": seed}, math.nan)
    about.build()  # finds widths that are none
    return about


def load_images(about: About, data: str | None) -> Images:
    """The images a reference is for: digits, or CIFAR-10 from the folder `data`."""
    if about.data == "digits":
        if data not in (None, "digits"):
            raise ValueError(f"--data: the checkpoint was trained on digits, got {data!r}")
        return digits()
    if data is None or data == "digits":
        raise ValueError("--data: the checkpoint was trained on CIFAR-10, wanted the folder with its binary version")
    return cifar10(data, grey=about.grey)


def train_reference(
    about: About, images: Images, settings: Mapping[str, Any], step: Step
) -> tuple[nn.Sequential, About]:
    """A network trained with `settings` of `rainbow_fast.networks.train`, and the description with its accuracy."""
    settings = (DIGITS_TRAINING if about.data == "digits" else CIFAR10_TRAINING) | dict(settings)
    module = about.build(settings["seed"])

    def tell(epoch: int, epochs: int, loss: float) -> None:
        step(epoch / epochs, f"epoch {epoch} of {epochs}, loss {loss:.3f}")

    train(module, images.x_train, images.y_train, **settings, progress=tell)
    reached = accuracy(module, images.x_test, images.y_test)
    return module, replace(about, training=dict(settings), accuracy=reached)


@dataclass(frozen=True)
class Job:
    """One network to sample. `size` is the width or the factor, `options` the rest that `RainbowModel.sample` takes."""

    method: str
    size: Mapping[str, Any]
    network: int
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """For the progress bar."""
        (size,) = self.size.values()
        return 1 + size / (1 if "factor" in self.size else 100)

    @property
    def width(self) -> str:
        """For a person: x4, or the neurons of every site."""
        return f"x{self.size['factor']:g}" if "factor" in self.size else str(self.size["width"])

    def __str__(self) -> str:
        width = self.width if "factor" in self.size else f"width {self.width}"
        return f"{self.method}, {width}, network {self.network}"

    def run(self, model: RainbowModel, step: Step) -> Report:
        """Sample the network; only its certificate is kept."""
        return model.sample(
            **({"method": self.method} | dict(self.options)),
            **self.size,
            network=self.network,
            seed=self.seed,
            progress=lambda done, total, what: step(done / total, what),
        )[1]


@dataclass
class Grid:
    """The results of one reference, and the folder that they go to."""

    folder: Path
    about: Mapping[str, Any]  # goes into every record
    title: str
    records: list[Record] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)

    def clear(self) -> None:
        """Remove what an earlier run left, which would no longer belong together."""
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)

    def add(self, job: Job, report: Report) -> None:
        """Take in one network; the file of records is complete after each."""
        self.records += [dict(self.about) | record for record in records(report, factor=job.size.get("factor"))]
        self.reports.append(f"{job}\n\n{report}\n")
        write_records(self.folder / "results.jsonl", self.records)

    def finish(self) -> None:
        """Write the certificates and draw the figure."""
        write(self.folder / "report.txt", "\n\n".join(self.reports))
        made = plots.accuracy_and_error(self.records, reference=self.records[0]["reference_accuracy"], title=self.title)
        plots.save(made, self.folder / "figure.png")


def sample_grid(model: RainbowModel, jobs: Iterable[Job], grid: Grid, watch: Watch) -> None:
    """Sample one network after the other and write down what came."""
    for job in jobs:
        with watch(job.cost, str(job)) as step:
            grid.add(job, job.run(model, step))
    grid.finish()


def records(report: Report, *, factor: float | None = None) -> list[Record]:
    """A record of each site of one sampled network: numbers and names only.

    `error` is E|phih - phi|^2 / E|phi|^2 on held-out data, `alignment_error` the same on the data of the alignment;
    `..._centred` over E|phi - E phi|^2.
    `factor` is n/d; where it is not given, that of all sites together, to three digits.
    """
    if factor is None:
        ratio = sum(site.n for site in report.sites) / sum(site.d for site in report.sites)
        factor = float(f"{ratio:.3g}")
    of_network = {
        "method": report.method,
        "factor": factor,
        "network": report.network,
        "seed": report.seed,
        "align": report.align,
        "classifier": report.classifier,
        "accuracy": report.accuracy["held_out"],
        "reference_accuracy": report.accuracy["reference_held_out"],
        "images": report.samples,
        "held_out_images": report.held_out_samples,
    }
    found = []
    for site in report.to_dict()["sites"]:
        for name in ("error", "error_centred"):
            site |= {f"alignment_{name}": site[name], name: site.pop(f"held_out_{name}")}
        found.append(of_network | site)
    return found


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (NaN for one network) over the networks of one method and factor."""

    method: str
    factor: float
    networks: int
    accuracy: tuple[float, float]
    errors: dict[str, tuple[float, float]]  # by site


def summaries(found: Iterable[Record]) -> list[Summary]:
    """One for each method and factor, in the order in which they come."""
    groups: dict[tuple[str, float], list[Record]] = {}
    for record in found:
        groups.setdefault((record["method"], record["factor"]), []).append(record)
    made = []
    for (method, factor), group in groups.items():
        sites = dict.fromkeys(record["site"] for record in group)
        accuracies = {record["network"]: record["accuracy"] for record in group}
        errors = {site: _mean_std([r["error"] for r in group if r["site"] == site]) for site in sites}
        made.append(Summary(method, factor, len(accuracies), _mean_std(list(accuracies.values())), errors))
    return made


def _mean_std(values: list[float]) -> tuple[float, float]:
    return mean(values), stdev(values) if len(values) > 1 else math.nan
