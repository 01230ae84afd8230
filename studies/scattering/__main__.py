# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.scattering FOLDER: learned scattering networks on CIFAR-10, at several widths."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast import plots
from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Threads
from rainbow_fast.cli.readers import numbers
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.data import Images, cifar10
from rainbow_fast.io import read_records, write_records, write_whole
from rainbow_fast.rainbow.report import Record
from studies import kept_records
from studies.data_arguments import CifarFolder
from studies.scattering import scattering_page
from studies.scattering.scattering_experiment import Setting, files, run, settings

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    data: CifarFolder = None,
    plain_widths: Annotated[
        str, typer.Option(help="Widths of the networks without skip-connections, separated by commas.")
    ] = "0.125,0.25,0.5",
    skip_widths: Annotated[
        str, typer.Option(help="Widths of the networks with skip-connections, separated by commas.")
    ] = "0.125,0.25",
    images: Annotated[int, typer.Option(help="Number of training images.", min=100, max=50_000)] = 20_000,
    epochs: Annotated[int, typer.Option(help="Passes over them without skip-connections.", min=1)] = 14,
    skip_epochs: Annotated[int, typer.Option(help="Passes over them with skip-connections.", min=1)] = 12,
    seeds: Annotated[int, typer.Option(help="Number of networks of each width.", min=1)] = 3,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-scattering"),
) -> None:
    """Train learned scattering networks with three hidden layers on CIFAR-10, with and without skip-connections.

    Writes records.jsonl, scattering.md and scattering.png. It takes about an hour on one idle core. Call it again after
    an interruption: it continues where it was, also within a training. Without data, the page and the figure are made
    from the records kept beside the study.
    """
    set_threads({"threads": threads})
    without, with_skip = numbers("--plain-widths", plain_widths), numbers("--skip-widths", skip_widths)
    need_plots()
    check_folder(out)
    if data is None:
        records = kept_records(RECORDS)
        out.mkdir(parents=True, exist_ok=True)
        write_page(records, out)
    else:
        wanted = settings(without, with_skip, seeds, images, epochs, skip_epochs)
        study(cifar10(data, images=images), out, wanted)
    terminal.out().print(f"{out}: records.jsonl, scattering.md, scattering.png", markup=False, soft_wrap=True)


def study(images: Images, out: Path, wanted: Sequence[Setting]) -> None:
    """Train the networks that have no records yet, and write the page."""
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out / "records.jsonl")
    todo = [setting for setting in wanted if not any(record.items() >= vars(setting).items() for record in records)]
    with terminal.bar(sum(setting.cost for setting in todo)) as bar:
        for setting in todo:
            with bar.job(setting.cost, str(setting)) as step:
                records.append(run(setting, images, step, out))
            write_records(out / "records.jsonl", records)
            for part in files(setting, out):
                part.unlink()
    write_page(records, out)


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figure from the records."""
    write_whole(out / "scattering.md", scattering_page.page(records))
    plots.save(scattering_page.figure(records), out / "scattering.png", dpi=110)


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.scattering"))
