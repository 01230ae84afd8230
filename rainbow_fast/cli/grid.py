# SPDX-License-Identifier: BSD-3-Clause
"""Samples a grid of networks from one trained network, and writes the results into a folder."""

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

Step = Callable[[float, str], None]  # takes the fraction of a job that is done, and the name of the current step
Watch = Callable[[float, str], AbstractContextManager[Step]]  # takes the cost and the name of a job

FILES = ("results.jsonl", "report.json", "report.txt", "figure.png")
UNFINISHED = "unfinished-"  # prefix of the folder with the state of a group that is being sampled


@dataclass(frozen=True)
class Job:
    """One network to sample."""

    options: SampleOptions

    @property
    def cost(self) -> float:
        """The cost of the job in the units of the progress bar."""
        return 1 + (self.options.width / 100 if isinstance(self.options.width, int) else self.options.factor or 1)

    @property
    def width(self) -> str:
        """The width as text: x4 for a factor, or the number of neurons of each site."""
        return f"x{self.options.factor:g}" if self.options.factor is not None else str(self.options.width)

    def __str__(self) -> str:
        width = self.width if self.options.factor is not None else f"width {self.width}"
        return f"{self.options.method}, {width}, network {self.options.network_index}"


@dataclass
class ResultFolder:
    """The results for one trained network, and the folder into which they are written.

    Attributes:
        folder: the folder.
        about: entries that are added to every record.
        title: title above the table and the figure.
        run: the options and the network of the run, with which an interrupted run can be resumed.
        jobs: the networks sampled so far.
        reports: their reports.
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
        """Folders with the state of groups of networks that are not finished."""
        return [path.parent for path in sorted(self.folder.glob(f"{UNFINISHED}*/run.safetensors"))]

    def clear(self) -> None:
        """Delete the files of an earlier run, so that files of two runs are never mixed.

        Raises:
            ValueError: the earlier run is not finished.
        """
        if self.unfinished:
            raise ValueError(f"--out: {self.folder} holds a run that was stopped: wanted --resume, or another folder")
        for name in FILES:
            (self.folder / name).unlink(missing_ok=True)

    def add(self, jobs: Sequence[Job], reports: Sequence[Report]) -> None:
        """Add sampled networks, and write the files of records and reports again."""
        self.jobs += jobs
        self.reports += reports
        networks = [
            {"job": str(job), "report": report.to_dict()} for job, report in zip(self.jobs, self.reports, strict=True)
        ]
        write_whole(self.folder / "report.json", dumps({"run": self.run, "networks": networks}, indent=1) + "\n")
        write_records(self.folder / "results.jsonl", self.records)

    def resume(self, jobs: Sequence[Job]) -> None:
        """Read the reports of an earlier run, which has finished the first of these jobs.

        Raises:
            ValueError: the file holds no reports, or reports of more networks than jobs; the message names the file.
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
        """Write the text of the reports, and draw the figure."""
        texts = [f"{job}\n\n{report}\n" for job, report in zip(self.jobs, self.reports, strict=True)]
        write_whole(self.folder / "report.txt", "\n\n".join(texts))
        reference = self.records[0]["reference_accuracy"]
        figure = plots.accuracy_and_error(self.records, reference=reference, title=self.title)
        plots.save(figure, self.folder / "figure.png")


def sample_grid(
    model: RainbowModel, groups: Iterable[Sequence[Job]], results: ResultFolder, watch: Watch, limits: Limits
) -> None:
    """Sample the groups one after the other, the networks of a group together, and write the results.

    If `results.run` is set, the folder holds the state of a group until the group is finished, so that the run can be
    resumed.
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
    """A progress callback for `fit` and `sample` that moves a step of the bar."""
    return lambda done, total, what: step(done / total, what)
