# SPDX-License-Identifier: BSD-3-Clause
"""Sampling a grid of networks from one reference, and the folder that the results go to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rainbow_fast import plots
from rainbow_fast.io import dumps, write_records, write_whole
from rainbow_fast.rainbow.model import RainbowModel
from rainbow_fast.rainbow.options import Limits, SampleOptions
from rainbow_fast.rainbow.report import Record, Report

Step = Callable[[float, str], None]  # share of a job that is done, and what is going on
Watch = Callable[[float, str], AbstractContextManager[Step]]  # cost and name of a job

FILES = ("results.jsonl", "report.json", "report.txt", "figure.png")
UNFINISHED = "unfinished-"  # begins the name of the folder of a group that is being sampled


@dataclass(frozen=True)
class Job:
    """One network to sample."""

    options: SampleOptions

    @property
    def cost(self) -> float:
        """For the progress bar."""
        return 1 + (self.options.width / 100 if isinstance(self.options.width, int) else self.options.factor or 1)

    @property
    def width(self) -> str:
        """For a person: x4, or the neurons of every site."""
        return f"x{self.options.factor:g}" if self.options.factor is not None else str(self.options.width)

    def __str__(self) -> str:
        width = self.width if self.options.factor is not None else f"width {self.width}"
        return f"{self.options.method}, {width}, network {self.options.network_index}"


@dataclass
class ResultFolder:
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
            for record in report.records(factor=job.options.factor)
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
        write_whole(self.folder / "report.json", dumps({"run": self.run, "networks": networks}, indent=1) + "\n")
        write_records(self.folder / "results.jsonl", self.records)

    def resume(self, jobs: Sequence[Job]) -> None:
        """Take in the first of these networks again, those that an earlier run has finished.

        Raises:
            ValueError: the file of their reports holds something else; the message names it.
        """
        path = self.folder / "report.json"
        try:
            networks = json.loads(path.read_text())["networks"]
            self.reports = [Report.from_dict(each["report"]) for each in networks]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"--resume: {path} holds no reports of `sample`") from error
        if len(networks) > len(jobs):
            raise ValueError(f"--resume: {path} holds {len(networks)} networks, wanted at most {len(jobs)}")
        self.jobs = list(jobs[: len(networks)])

    def finish(self) -> None:
        """Write the certificates and draw the figure."""
        texts = [f"{job}\n\n{report}\n" for job, report in zip(self.jobs, self.reports, strict=True)]
        write_whole(self.folder / "report.txt", "\n\n".join(texts))
        reference = self.records[0]["reference_accuracy"]
        figure = plots.accuracy_and_error(self.records, reference=reference, title=self.title)
        plots.save(figure, self.folder / "figure.png")


def sample_grid(
    model: RainbowModel, groups: Iterable[Sequence[Job]], results: ResultFolder, watch: Watch, limits: Limits
) -> None:
    """Sample the networks of a group together, one group after the other, and write down the results.

    Where the folder says what was run, the state of a group is in it until the group is finished.
    """
    for group in groups:
        first, last = str(group[0]), f" to {group[-1]}" if len(group) > 1 else ""
        with watch(sum(job.cost for job in group), first + last) as step:
            state = results.folder / f"{UNFINISHED}{len(results.jobs)}" if results.run else None
            resumed = limits.changed(resume_dir=None if state is None else str(state))
            pairs = model.sample_many([job.options for job in group], resumed, progress=as_progress(step))
            results.add(group, [report for _, report in pairs])
        for folder in results.unfinished:
            shutil.rmtree(folder)
    results.finish()


def as_progress(step: Step) -> Callable[[int, int, str], None]:
    """A step of the bar as what `fit` and `sample` call."""
    return lambda done, total, what: step(done / total, what)
