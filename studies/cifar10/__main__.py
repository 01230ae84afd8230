# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.cifar10 FOLDER: the published experiments on CIFAR-10 with their controls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Threads
from rainbow_fast.cli.checkpoints import TUTORIAL
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.data import Images, cifar10
from rainbow_fast.io import read_records, write_records, write_whole
from studies import kept_records
from studies.cifar10 import page
from studies.cifar10.cases import CASES, Case, Trainings, tasks
from studies.data_arguments import CifarFolder

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    data: CifarFolder = None,
    architectures: Annotated[
        str, typer.Option(help="Architectures to study, separated by commas: mlp, cnn or both.")
    ] = ",".join(TUTORIAL),
    trainings: Annotated[int, typer.Option(help="Number of networks trained for each architecture.", min=1)] = 3,
    networks: Annotated[
        int, typer.Option(help="Largest number of networks sampled from each trained network.", min=1)
    ] = 5,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-cifar10"),
) -> None:
    """Repeat the published experiments on CIFAR-10, with their controls.

    Writes records.jsonl, cifar10.md and cifar10.png. It takes about an hour. Call it again after an interruption: it
    continues where it was. Without data, the page and the figure are made from the records kept beside the study.
    """
    set_threads({"threads": threads})
    need_plots()
    check_folder(out)
    if data is None:
        records = kept_records(RECORDS)
        out.mkdir(parents=True, exist_ok=True)
        write_page(records, out)
    else:
        chosen = tuple(name.strip() for name in architectures.split(","))
        for name in chosen:
            if name not in TUTORIAL:
                raise ValueError(f"--architectures: wanted mlp, cnn or mlp,cnn; got {architectures!r}")
        study(cifar10(data, grey=True), out, chosen, trainings, networks)
    terminal.out().print(f"{out}: records.jsonl, cifar10.md, cifar10.png", markup=False, soft_wrap=True)


def study(
    images: Images,
    out: Path,
    architectures: tuple[str, ...],
    trainings: int,
    networks: int,
    cases: tuple[Case, ...] = CASES,
) -> None:
    """Sample the networks that have no records yet, and write the page."""
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out / "records.jsonl")
    here = Trainings(images, out, trainings)
    todo = [task for task in tasks(architectures, trainings, networks, cases) if not task.done(records)]
    with terminal.bar(sum(task.cost for task in todo)) as bar:
        for task in todo:
            with bar.job(task.cost, str(task)) as step:
                records += here.run(task, step)
            write_records(out / "records.jsonl", records)
    write_page(records, out)


def write_page(records: list[dict], out: Path) -> None:
    """Write the page and its figure from the records."""
    write_whole(out / "cifar10.md", page.table(records))
    write_whole(out / "cifar10.png", page.figure(records))


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.cifar10"))
