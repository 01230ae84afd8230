# SPDX-License-Identifier: BSD-3-Clause
"""Training a reference, sampling a grid of networks from it, and what is written down of each."""

from __future__ import annotations

import json
import math
import shutil
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
from rainbow_fast.rainbow.parts import Parts
from rainbow_fast.rainbow.report import Report, SiteReport
from rainbow_fast.rainbow.strict_json import dumps

Step = Callable[[float, str], None]  # share of a job that is done, and what is going on
Watch = Callable[[float, str], AbstractContextManager[Step]]  # cost and name of a job

DIGITS_TRAINING = {"epochs": 20, "batch_size": 32}
CIFAR10_TRAINING = {"epochs": 5, "batch_size": 128}
FILES = ("results.jsonl", "report.json", "report.txt", "figure.png")
UNFINISHED = "unfinished-"  # begins the name of the folder of a group that is being sampled


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

    @property
    def given(self) -> dict[str, Any]:
        """What `RainbowModel.sample` takes."""
        return {"method": self.method, "network": self.network, "seed": self.seed, **self.size, **self.options}

    def run(self, model: RainbowModel, step: Step) -> Report:
        """Sample the network; only its certificate is kept."""
        return model.sample(**self.given, progress=lambda done, total, what: step(done / total, what))[1]


@dataclass
class Grid:
    """The results of one reference, and the folder that they go to.

    Attributes:
        about: goes into every record; title: above table and figure.
        run: what the networks were sampled with, so that a run which was stopped can go on.
    """

    folder: Path
    about: Mapping[str, Any]
    title: str
    run: Mapping[str, Any] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        return [
            dict(self.about) | record
            for job, report in zip(self.jobs, self.reports, strict=True)
            for record in records(report, factor=job.size.get("factor"))
        ]

    @property
    def unfinished(self) -> list[Path]:
        """Folders with the sites of networks that were being sampled."""
        return [path.parent for path in sorted(self.folder.glob(f"{UNFINISHED}*/run.safetensors"))]

    def clear(self) -> None:
        """Remove what an earlier run left, which would no longer belong together.

        Raises:
            ValueError: it is not finished.
        """
        if self.unfinished:
            raise ValueError(f"--out: {self.folder} holds a run that was stopped: wanted --resume, or another folder")
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)

    def add(self, jobs: Sequence[Job], reports: Sequence[Report]) -> None:
        """Take in networks; the files of records and reports are complete after each."""
        self.jobs += jobs
        self.reports += reports
        networks = [
            {"job": str(job), "report": report.to_dict()} for job, report in zip(self.jobs, self.reports, strict=True)
        ]
        write(self.folder / "report.json", dumps({"run": self.run, "networks": networks}, indent=1) + "\n")
        write_records(self.folder / "results.jsonl", self.records)

    def resume(self, jobs: Sequence[Job]) -> None:
        """Take in the first of these networks again, those that an earlier run has finished."""
        path = self.folder / "report.json"
        found = json.loads(path.read_text())["networks"] if path.is_file() else []
        self.jobs = list(jobs[: len(found)])
        self.reports = [_report(each["report"]) for each in found]

    def finish(self) -> None:
        """Write the certificates and draw the figure."""
        texts = [f"{job}\n\n{report}\n" for job, report in zip(self.jobs, self.reports, strict=True)]
        write(self.folder / "report.txt", "\n\n".join(texts))
        reference = self.records[0]["reference_accuracy"]
        made = plots.accuracy_and_error(self.records, reference=reference, title=self.title)
        plots.save(made, self.folder / "figure.png")


def sample_grid(model: RainbowModel, groups: Iterable[Sequence[Job]], grid: Grid, watch: Watch, **options: Any) -> None:
    """Sample the networks of a group together, one group after the other, and write down what came.

    `options` are those of `RainbowModel.sample_many`. Where the grid says what was run, the state of a group is in its
    folder until the group is finished.
    """
    for group in groups:
        first, last = str(group[0]), f" to {group[-1]}" if len(group) > 1 else ""
        with watch(sum(job.cost for job in group), first + last) as step:
            state = grid.folder / f"{UNFINISHED}{len(grid.jobs)}" if grid.run else None

            def tell(done: int, total: int, what: str, step: Step = step) -> None:
                step(done / total, what)

            made = model.sample_many([job.given for job in group], resume=state, progress=tell, **options)
            grid.add(group, [report for _, report in made])
        for folder in grid.unfinished:
            shutil.rmtree(folder)
    grid.finish()


def _report(found: Record) -> Report:
    """What `Report.to_dict` made a dict of; null was NaN where there is a number otherwise."""
    held = bool(found["held_out_samples"])

    def number(name: str, value: Any) -> Any:
        return math.nan if value is None and (held or not name.startswith("held_out")) else value

    parts = Parts(**found["parts"])
    sites = [SiteReport(**{name: number(name, value) for name, value in site.items()}) for site in found["sites"]]
    return Report(**found | {"parts": parts, "sites": sites})


def records(report: Report, *, factor: float | None = None) -> list[Record]:
    """A record of each site of one sampled network: numbers and names only.

    `error` is E|phih - phi|^2 / E|phi|^2 on held-out data, `alignment_error` the same on the data of the alignment;
    `..._centred` over E|phi - E phi|^2.
    Accuracies are None without labels. `factor` is n/d; where it is not given, that of all sites together, to three
    digits.
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
        "accuracy": report.accuracy.get("held_out"),
        "reference_accuracy": report.accuracy.get("reference_held_out"),
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
    accuracy: tuple[float, float]  # NaN without labels
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
    if None in values:
        return math.nan, math.nan
    return mean(values), stdev(values) if len(values) > 1 else math.nan
