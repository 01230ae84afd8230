# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.rainbow_layers FOLDER: networks of rainbow layers on CIFAR-10, and samples of them."""

from __future__ import annotations

import sys
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
from studies.data_arguments import CifarFolder
from studies.rainbow_layers import layers_page
from studies.rainbow_layers.arms import ARMS, CHOSEN, NETWORKS
from studies.rainbow_layers.layers_experiment import Run, best_rate, check_names, runs, trained, tuning

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    data: CifarFolder = None,
    networks: Annotated[
        str, typer.Option(help="Architectures, separated by commas: cnn, four convolutions, resnet20.")
    ] = "cnn",
    arms: Annotated[
        str,
        typer.Option(
            help="Ways to train, separated by commas. Usual layers are `usual` or `usual x4`. `e4 r1/4` has rainbow "
            "layers with n = 4 d and r = d / 4; ` fine-tuned` and ` resampled` after it train with fresh neurons."
        ),
    ] = ",".join(CHOSEN),
    seeds: Annotated[int, typer.Option(help="Number of networks trained in each way.", min=1)] = 3,
    images: Annotated[int, typer.Option(help="Number of training images.", min=200, max=50_000)] = 50_000,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 5,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-layers"),
) -> None:
    """Train networks of rainbow layers on CIFAR-10, and compare samples of them with samples of usual networks.

    Writes records.jsonl, rainbow_layers.md and rainbow_layers.png. It takes about an hour on one core. Call it
    again after an interruption, or with more networks, arms or seeds: it continues where it was. Without data, the
    page and the figure are made from the records kept beside the study.
    """
    set_threads({"threads": threads})
    wanted = runs(
        check_names("--networks", networks, list(NETWORKS)), check_names("--arms", arms, list(ARMS)), seeds, images,
        epochs,
    )  # fmt: skip
    need_plots()
    check_folder(out)
    if data is None:
        records = kept_records(RECORDS)
        out.mkdir(parents=True, exist_ok=True)
        write_page(records, out)
    else:
        study(cifar10(data, images=images), out, wanted)
    terminal.out().print(f"{out}: records.jsonl, rainbow_layers.md, rainbow_layers.png", markup=False, soft_wrap=True)


def study(images: Images, out: Path, wanted: list[Run]) -> None:
    """Train the networks that have no records yet, with rates chosen before, and write the page."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "records.jsonl"
    records = read_records(path)
    todo = [run for run in wanted if not any(record.items() >= vars(run).items() for record in records)]
    with terminal.bar(len(todo)) as bar:
        for run in todo:
            with bar.job(1, str(run)) as step:
                while (rate := tuning(run, images, records, step)) is not None:
                    records.append(rate)
                    write_records(path, records)
                records.append(trained(run, images, best_rate(run, records), step))
                write_records(path, records)
    write_page(records, out)


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figure from the records."""
    write_whole(out / "rainbow_layers.md", layers_page.page(records))
    plots.save(layers_page.figure(records), out / "rainbow_layers.png", dpi=110)


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.rainbow_layers"))
