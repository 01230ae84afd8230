# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.random_networks FOLDER: deep perceptrons on CIFAR-10, from several initial weights."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast import plots
from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Threads
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.data import Images, cifar10
from rainbow_fast.io import read_records, write_records, write_whole
from rainbow_fast.rainbow.report import Record
from studies import kept_records
from studies.random_networks import training_page
from studies.random_networks.training_experiment import MEAN, STD, Setting, run, settings

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of CIFAR-10's binary version (default: none, and the page is made from the kept records)."
        ),
    ] = None,
    depths: Annotated[
        str,
        typer.Option(
            help="Increasing numbers of linear layers, separated by commas. The published ones are 15,30,45,60,75."
        ),
    ] = "15,30",
    width: Annotated[int, typer.Option(help="Neurons of each hidden layer; the published width is 800.", min=10)] = 128,
    images: Annotated[int, typer.Option(help="Number of training images.", min=2000, max=50_000)] = 10_000,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 15,
    seeds: Annotated[int, typer.Option(help="Number of networks trained for each depth and method.", min=1)] = 3,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-random-networks"),
) -> None:
    """Train deep perceptrons without batch norm on CIFAR-10, from initial weights that orthogonalise activations.

    Writes records.jsonl, random_networks.md and random_networks.png. It takes about six minutes on one core. Call it
    again after an interruption: it continues where it was. Without data, the page and the figure are made from the
    records kept beside the study.
    """
    set_threads({"threads": threads})
    chosen = _depths(depths)
    need_plots()
    check_folder(out)
    if data is None:
        records = kept_records(RECORDS)
        out.mkdir(parents=True, exist_ok=True)
        write_page(records, out)
    else:
        study(cifar10(data, mean=MEAN, std=STD, images=images), out, settings(chosen, seeds, width, images, epochs))
    terminal.out().print(f"{out}: records.jsonl, random_networks.md, random_networks.png", markup=False, soft_wrap=True)


def study(images: Images, out: Path, wanted: list[Setting]) -> None:
    """Train the networks that have no records yet, and write the page."""
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out / "records.jsonl")
    todo = [setting for setting in wanted if not any(_is_of(record, setting) for record in records)]
    with terminal.bar(sum(setting.depth for setting in todo)) as bar:
        for setting in todo:
            with bar.job(setting.depth, f"{setting.arm}, depth {setting.depth}, seed {setting.seed}") as step:
                records.append(run(setting, images, step))
            write_records(out / "records.jsonl", records)
    write_page(records, out)


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figure from the records."""
    write_whole(out / "random_networks.md", training_page.page(records))
    plots.save(training_page.figure(records), out / "random_networks.png", dpi=110)


def _is_of(record: Record, setting: Setting) -> bool:
    return all(record[name] == value for name, value in vars(setting).items())


def _depths(text: str) -> list[int]:
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError:
        depths = []
    if not depths or depths[0] < 4 or any(b <= a for a, b in pairwise(depths)):
        raise ValueError(f"--depths: wanted increasing whole numbers above 3, separated by commas; got {text!r}")
    return depths


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.random_networks"))
