# SPDX-License-Identifier: BSD-3-Clause
"""Samples a grid of networks from one trained network, and writes the results into a folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rainbow_fast import plots
from rainbow_fast.cli import record
from rainbow_fast.io import PART, write_records, write_whole
from rainbow_fast.locks import locked
from rainbow_fast.plots.axes import checked
from rainbow_fast.rainbow.laws.law import INFINITE
from rainbow_fast.rainbow.model import RainbowModel
from rainbow_fast.rainbow.options import Limits, SampleOptions
from rainbow_fast.rainbow.report import Record, Report
from rainbow_fast.scratch import dead_parts

Step = Callable[[float, str], None]  # takes the fraction of a job that is done, and the name of the current step
Watch = Callable[[float, str], AbstractContextManager[Step]]  # takes the cost and the name of a job

LIMIT_COST = 64.0  # of a network of infinite width, in the units of the progress bar
LAST = ("report.txt", "figure.png")  # written when all networks are sampled
DERIVED = ("results.jsonl", *LAST)  # can be written again from the record
FILES = (*DERIVED, record.NAME)
UNFINISHED = "unfinished-"  # prefix of the folder with the state of a group that is being sampled
STATE = re.compile(rf"run\.safetensors|network-\d+-site-\d+\.safetensors|\..*{re.escape(PART)}", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """One network to sample."""

    options: SampleOptions

    @property
    def infinite(self) -> bool:
        """Whether the width is infinite, so that nothing is random."""
        return INFINITE in (self.options.width, self.options.factor)

    @property
    def cost(self) -> float:
        """The cost of the job in the units of the progress bar."""
        if self.infinite:
            return LIMIT_COST
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
            dict(self.about) | each
            for job, report in zip(self.jobs, self.reports, strict=True)
            for each in report.records(factor=job.options.factor)
        ]

    def check_free(self) -> None:
        """Check, before any work is done, that a new run may replace what is in the folder.

        Raises:
            ValueError: the folder holds a run that is not finished, or a folder or a symbolic link with the name of a
                file of results.
        """
        self._check_files("--out")
        done, wanted = record.counts(self.folder)
        if 0 < done < wanted or any(number >= done for number in states(self.folder)):
            raise ValueError(f"--out: {self.folder} holds a run that was stopped: wanted --resume, or another folder")

    @contextmanager
    def begun(self) -> Iterator[None]:
        """A context in which this process has the folder for itself. The results of an earlier run are replaced.

        Files that are derived from the earlier record are deleted before it is replaced, so that a kill at any time
        leaves no files of two runs.

        Raises:
            ValueError: as `check_free`; or another process uses the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, "--out"):
            self.check_free()
            self._remove_leftovers(states(self.folder).keys())
            for name in DERIVED:
                (self.folder / name).unlink(missing_ok=True)
            self.add([], [])
            yield

    def add(self, jobs: Sequence[Job], reports: Sequence[Report]) -> None:
        """Add sampled networks, and write the files of records and reports again."""
        self.jobs += jobs
        self.reports += reports
        networks = [
            {"job": str(job), "report": report.to_dict()} for job, report in zip(self.jobs, self.reports, strict=True)
        ]
        record.write_record(self.folder, self.run, networks)
        write_records(self.folder / "results.jsonl", self.records)

    def resume(self, there: record.RunRecord, jobs: Sequence[Job]) -> None:
        """Take the reports of an earlier run, which has finished the first of these jobs. Nothing is written.

        Raises:
            ValueError: the record holds no reports, or those of other jobs; or the folder holds a folder or a symbolic
                link with the name of a file. The message names the file.
        """
        self._check_files("--resume")
        if len(there.networks) > len(jobs):
            raise ValueError(f"--resume: {there.path} holds {len(there.networks)} networks, wanted at most {len(jobs)}")
        self.jobs = list(jobs[: len(there.networks)])
        self.reports = record.reports(there, [(str(job), job.options) for job in self.jobs])
        if self.reports:
            with record.named(there):
                checked(self.records)

    def tidy(self) -> None:
        """After `resume`: write derived files again from the reports, and remove what a killed process may have left.

        The caller holds the lock on the folder.
        """
        self._remove_leftovers(states(self.folder).keys() - {len(self.jobs)})
        write_records(self.folder / "results.jsonl", self.records)
        for name in LAST:
            (self.folder / name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Write the text of the reports, and draw the figure.

        The figure does not depend on files of settings of matplotlib, one of which may lie in the current folder and
        may name programs to run.
        """
        import matplotlib

        texts = [f"{job}\n\n{report}\n" for job, report in zip(self.jobs, self.reports, strict=True)]
        write_whole(self.folder / "report.txt", "\n\n".join(texts))
        reference = self.records[0]["reference_accuracy"]
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            figure = plots.accuracy_and_error(self.records, reference=reference, title=self.title)
            plots.save(figure, self.folder / "figure.png")

    def _check_files(self, option: str) -> None:
        """Check that nothing leads out of the folder, which may be somebody else's: a link would be followed."""
        inside = [path for state in self.folder.glob(f"{UNFINISHED}*") for path in (state, *state.glob("*"))]
        for path in (*(self.folder / name for name in FILES), *inside):
            if path.is_symlink():
                raise ValueError(f"{option}: {path} is a symbolic link, wanted a file or nothing")
        for name in FILES:
            if (self.folder / name).is_dir():
                raise ValueError(f"{option}: {self.folder / name}: Is a directory, wanted a file or nothing")

    def _remove_leftovers(self, numbers: Collection[int]) -> None:
        """Remove the states with these numbers, and unfinished files of processes that were killed."""
        for number, state in states(self.folder).items():
            if number in numbers:
                shutil.rmtree(state)
        for part in dead_parts(self.folder):
            part.unlink(missing_ok=True)


def states(folder: Path) -> dict[int, Path]:
    """The folders with states of groups that are not finished, by the number of networks before the group.

    A folder that holds anything but files of a state is not among them.
    """
    every = {
        path: re.fullmatch(rf"{UNFINISHED}(\d{{1,9}})", path.name) for path in sorted(folder.glob(f"{UNFINISHED}*"))
    }
    return {int(match[1]): path for path, match in every.items() if match is not None and _holds_only_state(path)}


def _holds_only_state(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    return all(STATE.fullmatch(entry.name) and not entry.is_dir() for entry in path.iterdir())


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
        if state is not None:
            shutil.rmtree(state)
    results.finish()


def as_progress(step: Step) -> Callable[[int, int, str], None]:
    """A progress callback for `fit` and `sample` that moves a step of the bar."""
    return lambda done, total, what: step(done / total, what)
