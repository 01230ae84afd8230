# SPDX-License-Identifier: BSD-3-Clause
"""The commands `sample` and `plan`, which have the same options."""

from __future__ import annotations

import os
import shlex
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from rainbow_fast.cli import terminal
from rainbow_fast.cli import words as o
from rainbow_fast.cli.grid import Job, ResultFolder, as_progress, sample_grid
from rainbow_fast.cli.planning import CostGrid, plan_grid
from rainbow_fast.cli.record import RunRecord, check_record, named, read_record
from rainbow_fast.cli.references import Reference, load_reference, pointwise_kinds
from rainbow_fast.cli.sources import Split, choose_data
from rainbow_fast.locks import locked
from rainbow_fast.rainbow.fitting import fit_moments
from rainbow_fast.rainbow.model import RainbowModel
from rainbow_fast.rainbow.options import FitOptions, Limits, SampleOptions
from rainbow_fast.rainbow.planning.room import check_room
from rainbow_fast.rainbow.prepare import Prepared, prepare

OUT = "Folder of the results, which is made if it is missing."
JSON = "Print one JSON object instead of the table."
SAMPLING = (o.ReferenceWords, o.DataWords, o.GridWords, FitOptions, SampleOptions, Limits, o.MachineWords)


@o.command(*SAMPLING, argument="checkpoint")
def sample(
    context: typer.Context,
    words: o.Words,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-sample"),
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an interrupted run, which is continued there with its own options. Type --module and "
            "--pointwise-modules again if the run has them."
        ),
    ] = None,
) -> None:
    """Sample networks of any width from a trained one, and measure how close they come to it.

    The trained network is a checkpoint of `rainbow-fast train`, your own module, or a network of timm or torchvision:
    see --module, --timm, --torchvision, --weights and --data.

    A table of accuracies and errors is printed. The folder of the results holds all numbers (results.jsonl and
    report.json), a text for each network (report.txt) and a figure (figure.png).
    """
    need_plots()
    if resume is None:
        check_folder(out)
        _sample(words, out, None)
        return
    check_record(resume)
    if _typed(context, "out"):
        raise ValueError("--out and --resume: wanted one of the two")
    with locked(resume, "--resume"):
        record = read_record(resume, words, *SAMPLING)
        _check_same(context, words, record)
        _sample(record.options, resume, record)


def _sample(words: o.Words, folder: Path, record: RunRecord | None) -> None:
    """Begin the run of these options in a folder, or go on with the one of a record."""
    with named(record):
        task = Request.of(words)
    run = {"options": words, "reference": task.prepared.fingerprint, "networks": len(task.jobs)}
    about = {"architecture": task.reference.name, "data": task.data.source.name}
    results = ResultFolder(folder, about, task.reference.title, run)
    if record is None:
        results.check_free()
    elif record.reference != task.prepared.fingerprint:
        raise ValueError(f"--resume: the run in {folder} has a network with other weights")
    else:
        results.resume(record, task.jobs)
    todo = task.jobs[len(results.jobs) :]
    with terminal.bar(1 + sum(job.cost for job in todo)) as bar:
        with named(record):
            together = task.costs(todo, bar.job, timed=False).groups  # this also checks all options
            for group in together:
                check_room(task.prepared, [job.options for job in group])
        if todo:
            with bar.job(1, "read the data") as step:
                prepared = task.loaded()
                fit_moments(prepared, as_progress(step))
        if record is not None:
            results.tidy()
        if todo:
            with results.begun() if record is None else nullcontext():
                sample_grid(RainbowModel(prepared), together, results, bar.job, task.limits)
        else:
            with named(record):
                results.finish()
    show(results)


@o.command(*SAMPLING, argument="checkpoint")
def plan(
    context: typer.Context,
    words: o.Words,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,  # accepted because `sample` has it; not used
) -> None:
    """Predict the operations, the memory and the time that `sample` needs with the same options.

    Nothing is sampled. At most one image is read, and none for a checkpoint.
    """
    task = Request.of(words)
    with terminal.bar(len(task.jobs)) as bar:
        costs = task.costs(task.jobs, bar.job, timed=True)
    if as_json:
        terminal.out().print(costs.to_json(), markup=False, soft_wrap=True)
    else:
        terminal.print_costs(costs)


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        reference: the trained network.
        data: the data; only one sample has been read.
        jobs: the networks to sample.
        limits: memory limits.
        prepared: the traced network, with shapes only.
    """

    reference: Reference
    data: Split
    jobs: list[Job]
    limits: Limits
    prepared: Prepared

    @classmethod
    def of(cls, words: o.Words) -> Request:
        o.set_threads(words)
        jobs, limits = [Job(options) for options in o.grid(words)], o.read(Limits, words)
        of_network = o.read(o.ReferenceWords, words)
        reference = load_reference(of_network, seed=words["seed"])
        data = choose_data(reference, o.read(o.DataWords, words))
        data.source.check_takes(reference.module, "--data")
        example, held = data.shapes()
        kinds = pointwise_kinds(of_network.pointwise_modules)
        fit_options = o.read(FitOptions, words).changed(holdout=held, images=data.aligned, pointwise_modules=kinds)
        prepared = prepare(reference.module, example, fit_options, limits, only_shapes=True)
        return cls(reference, data, jobs, limits, prepared)

    def costs(self, jobs: list[Job], watch: Any, *, timed: bool) -> CostGrid:
        """The costs of these networks. Seconds are valid only if `timed`."""
        data = self.data.memory(self.limits.memory_budget)
        return plan_grid(self.reference.title, self.prepared, jobs, self.limits, watch, timed=timed, data=data)

    def loaded(self) -> Prepared:
        """The traced network with all of its data."""
        some, held = self.data.load()
        return self.prepared.on(some, self.prepared.options.changed(holdout=held, images=None), self.limits)


def need_plots() -> None:
    if find_spec("matplotlib") is None:  # checked before the work, because figures are drawn at its end
        raise ImportError('plots need matplotlib: pip install "rainbow_fast[plots]"')


def check_folder(path: Path, option: str = "--out") -> None:
    """Check that `path` is or can become a folder of results, before any work is done.

    Raises:
        ValueError: there is a file at `path` or above it, or there is no permission to write; the message names it.
    """
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise ValueError(f"{option}: {there} is a file, wanted a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: {there} is a folder without permission to write")


def show(results: ResultFolder) -> None:
    """Print the results."""
    terminal.print_summary(results.records, results.title)
    lines = [*dict.fromkeys(report.storage for report in results.reports)]
    lines.append(f"{results.folder}: results.jsonl, report.txt, report.json, figure.png\n")
    terminal.out().print("\n".join(lines), markup=False, soft_wrap=True)


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    origin = context.get_parameter_source(name)
    return origin is not None and origin.name == "COMMANDLINE"


def _check_same(context: typer.Context, here: o.Words, record: RunRecord) -> None:
    """Check that options which are typed beside --resume are those of the run, and that all code of the run is typed.

    Raises:
        ValueError: an option has another value, or code is not typed; the message names the option.
    """
    for name, value in record.options.items():
        option = name if name == "checkpoint" else o.flag(name)
        if _typed(context, name) and here[name] != value:
            raise ValueError(f"{option}: the run in {record.folder} has {value!r}, got {here[name]!r}")
    for name in o.CODE:
        option, value = o.flag(name), record.options[name]
        if value and not _typed(context, name):
            names = [value] if isinstance(value, str) else value
            again = " ".join(f"{option} {shlex.quote(each)}" for each in names)
            raise ValueError(
                f"{option}: {record.path} names code, and only code that you name yourself is run: type {again} as well"
            )
