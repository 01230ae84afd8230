# SPDX-License-Identifier: BSD-3-Clause
"""The commands `sample` and `plan`, which take the same options."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast.cli import options as o
from rainbow_fast.cli import terminal
from rainbow_fast.cli.experiment import Grid, Job, sample_grid
from rainbow_fast.cli.planning import groups, job_costs, lane_bytes, plan_grid
from rainbow_fast.cli.references import Reference, kinds, load_reference
from rainbow_fast.cli.sources import Pixels, Split, check_takes, choose_data
from rainbow_fast.rainbow.entry import fit
from rainbow_fast.rainbow.network.rainbow_network import fingerprint


def sample(
    context: typer.Context,
    checkpoint: o.Checkpoint = None,
    module: o.Module = None,
    module_args: o.ModuleArgs = None,
    weights: o.Weights = None,
    pointwise: o.Pointwise = None,
    data: o.Data = None,
    holdout: o.Holdout = None,
    images: o.Aligned = 5000,
    size: o.Size = None,
    mean: o.Mean = None,
    std: o.Std = None,
    grey: o.Grey = False,
    factors: o.Factors = None,
    widths: o.Widths = None,
    methods: o.Methods = o.ALL_METHODS,
    networks: o.Networks = 3,
    rank: o.Rank = None,
    align: o.Align = "channels",
    classifier: o.Classifier = None,
    sites: o.SiteNames = None,
    seed: o.Seed = 0,
    memory_budget: o.Budget = o.BUDGET,
    storage: o.Kept = None,
    threads: o.Threads = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("rainbow-sample"),
    resume: Annotated[
        Path | None, typer.Option(help="The folder of a run that was stopped: it goes on there, with its options.")
    ] = None,
) -> None:
    """Sample networks from a trained one: results.jsonl, report.txt, report.json, figure.png; a table here.

    The trained network is a checkpoint of `rainbow-fast train`, or any module: --module, --weights, --data.
    """
    given, before = (o.Given.of(context), None) if resume is None else _resumed(context, resume)
    need_plots()
    jobs, reference, chosen = _understood(given)
    network, declared = reference.module, kinds(given.pointwise)
    digest = fingerprint(network)
    run = {"options": given.to_dict(), "reference": digest}
    about = {"architecture": reference.name, "data": chosen.source.name}
    grid = Grid(out if resume is None else resume, about, reference.title, run)
    if resume is not None:
        if before != digest:
            raise ValueError(f"--resume: the run in {resume} is of a network with other weights")
        grid.resume(jobs)
    todo = jobs[len(grid.jobs) :]
    with terminal.bar(1 + sum(job.cost for job in todo)) as bar:
        costs = job_costs(network, chosen, todo, bar.job, machine=None, pointwise=declared)  # finds what is wrong
        if todo:
            lane = lane_bytes(network, chosen, pointwise=declared)
            together = groups(todo, costs, lane, given.budget)
            with bar.job(1, "read the data") as step:
                some, held = chosen.load()
                grid.folder.mkdir(parents=True, exist_ok=True)
                if resume is None:
                    grid.clear()
                    grid.add([], [])
                model = fit(
                    network,
                    some,
                    holdout=held,
                    pointwise=declared,
                    memory_budget=given.budget,
                    progress=lambda done, total, what: step(done / total, what),
                )
            sample_grid(model, together, grid, bar.job, memory_budget=given.budget, storage=given.storage)
        else:
            grid.finish()
    show(grid)


def plan(
    context: typer.Context,
    checkpoint: o.Checkpoint = None,
    module: o.Module = None,
    module_args: o.ModuleArgs = None,
    weights: o.Weights = None,
    pointwise: o.Pointwise = None,
    data: o.Data = None,
    holdout: o.Holdout = None,
    images: o.Aligned = 5000,
    size: o.Size = None,
    mean: o.Mean = None,
    std: o.Std = None,
    grey: o.Grey = False,
    factors: o.Factors = None,
    widths: o.Widths = None,
    methods: o.Methods = o.ALL_METHODS,
    networks: o.Networks = 3,
    rank: o.Rank = None,
    align: o.Align = "channels",
    classifier: o.Classifier = None,
    sites: o.SiteNames = None,
    seed: o.Seed = 0,
    memory_budget: o.Budget = o.BUDGET,
    storage: o.Kept = None,
    threads: o.Threads = None,
    as_json: o.AsJson = False,
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,  # of `sample`: not needed here
) -> None:
    """What `sample` with the same options takes: flops, memory and predicted time.

    Samples nothing, and reads one image at most; none for a checkpoint.
    """
    given = o.Given.of(context)
    jobs, reference, chosen = _understood(given)
    declared = kinds(given.pointwise)
    with terminal.bar(len(jobs)) as bar:
        grid = plan_grid(
            reference, chosen, jobs, bar.job, budget=given.budget, storage=given.storage, pointwise=declared
        )
    if as_json:
        terminal.out().print(grid.to_json(), markup=False, soft_wrap=True)
    else:
        terminal.print_costs(grid)


def need_plots() -> None:
    if find_spec("matplotlib") is None:  # before the work, not after it
        raise ImportError('plots need matplotlib: pip install "rainbow_fast[plots]"')


def show(grid: Grid) -> None:
    """What was found, for a person."""
    terminal.print_summary(grid.records, grid.title)
    lines = [*dict.fromkeys(report.storage for report in grid.reports)]
    lines.append(f"{grid.folder}: results.jsonl, report.txt, report.json, figure.png\n")
    terminal.out().print("\n".join(lines), markup=False, soft_wrap=True)


def _understood(given: o.Given) -> tuple[list[Job], Reference, Split]:
    """The networks to sample, the one to sample from, and the data, of which one sample is known."""
    o.set_threads(given.threads)
    jobs, _ = given.jobs(), given.budget
    reference = load_reference(given.checkpoint, given.module, given.module_args, given.weights, seed=given.seed)
    pixels = Pixels(given.size, given.mean, given.std, given.grey)
    chosen = choose_data(reference, given.data, given.holdout, given.images, pixels)
    check_takes(reference.module, chosen.source.example()[0], "--data")
    return jobs, reference, chosen


def _resumed(context: typer.Context, folder: Path) -> tuple[o.Given, str]:
    """The options of the run in a folder, those that are given again being the same, and its network's fingerprint."""
    try:
        run = json.loads((folder / "report.json").read_text())["run"]
        there, digest = o.Given(**run["options"]), run["reference"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--resume: no run of `sample` in {folder}") from error
    here = o.Given.of(context).to_dict()
    for name, its in [*there.to_dict().items(), ("out", None)]:
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        if name == "out":
            raise ValueError("--out and --resume: wanted one of the two")
        if here[name] != its:
            option = name if name == "checkpoint" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{option}: the run in {folder} has {its!r}, got {here[name]!r}")
    return there, digest
