# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.random_networks FOLDER: deep networks on CIFAR-10, from several initial weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Protocol

import typer

from rainbow_fast import plots
from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Threads
from rainbow_fast.cli.grid import Step
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.data import Images, cifar10
from rainbow_fast.io import read_records, write_records, write_whole
from rainbow_fast.rainbow.report import Record
from studies import kept_records
from studies.data_arguments import CifarFolder, increasing
from studies.random_networks import (
    convnet_experiment,
    convnet_page,
    traced_experiment,
    traced_page,
    training_experiment,
    training_page,
)
from studies.random_networks.training_experiment import MEAN, STD, Kernel

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


class Wanted(Protocol):
    """The setting of a record, a dataclass of what the record depends on; `str` names it."""

    @property
    def cost(self) -> int: ...
    def run(self, images: Images, step: Step) -> Record: ...


@app.command()
@flowing
def main(
    data: CifarFolder = None,
    depths: Annotated[
        str,
        typer.Option(
            help="Increasing numbers of linear layers, separated by commas. The published ones are 15,30,45,60,75."
        ),
    ] = "15,30,45,60,75",
    width: Annotated[int, typer.Option(help="Neurons of each hidden layer; the published width is 800.", min=10)] = 128,
    images: Annotated[int, typer.Option(help="Number of training images.", min=2000, max=50_000)] = 10_000,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 15,
    batch: Annotated[int, typer.Option(help="Images in a batch; the published batch has 500.", min=1)] = 100,
    seeds: Annotated[int, typer.Option(help="Number of networks trained for each depth and method.", min=1)] = 3,
    convolutions: Annotated[
        str, typer.Option(help="Increasing numbers of convolutions of the convolutional networks, as published.")
    ] = "20,80",
    channels: Annotated[
        int, typer.Option(help="Channels of the convolutions, a multiple of 4; 256 are published.", min=4)
    ] = 32,
    conv_images: Annotated[
        int, typer.Option(help="Training images of the convolutional networks.", min=2000, max=50_000)
    ] = 5000,
    conv_epochs: Annotated[int, typer.Option(help="Passes over these images.", min=1)] = 20,
    conv_seeds: Annotated[int, typer.Option(help="As --seeds, of the convolutional networks.", min=1)] = 2,
    traced_seeds: Annotated[int, typer.Option(help="As --seeds, of ResNet-20 and of the MLP-Mixer.", min=1)] = 2,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-random-networks"),
) -> None:
    """Train deep networks without batch norm on CIFAR-10, from initial weights that orthogonalise activations.

    Writes records.jsonl, random_networks.md and two figures. It takes about half an hour on one core. Call it again
    after an interruption, or with more depths or seeds: it continues where it was. Without data, the page and the
    figures are made from the records kept beside the study.
    """
    set_threads({"threads": threads})
    chosen = increasing("--depths", depths, 4)
    counts = increasing("--convolutions", convolutions, convnet_experiment.FIXED)
    if channels % 4:
        raise ValueError(f"--channels: wanted a multiple of 4; got {channels}")
    need_plots()
    check_folder(out)
    if data is None:
        records = kept_records(RECORDS)
        out.mkdir(parents=True, exist_ok=True)
        write_page(records, out)
    else:
        wanted: list[Wanted] = [
            Kernel(chosen[-1] - 1),
            *training_experiment.settings(chosen, seeds, width, images, epochs, batch),
            *convnet_experiment.settings(counts, conv_seeds, channels, conv_images, conv_epochs),
            *traced_experiment.settings(traced_seeds),
        ]
        study(cifar10(data, mean=MEAN, std=STD, images=max(images, conv_images)), out, wanted)
    terminal.out().print(f"{out}: records.jsonl, random_networks.md and figures", markup=False, soft_wrap=True)


def study(images: Images, out: Path, wanted: Sequence[Wanted]) -> None:
    """Train the networks that have no records yet, and write the page."""
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out / "records.jsonl")
    todo = [setting for setting in wanted if not any(record.items() >= vars(setting).items() for record in records)]
    with terminal.bar(sum(setting.cost for setting in todo)) as bar:
        for setting in todo:
            with bar.job(setting.cost, str(setting)) as step:
                records.append(setting.run(images, step))
            write_records(out / "records.jsonl", records)
    write_page(records, out)


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figures from the records."""
    perceptrons = [record for record in records if "depth" in record]
    convnets = [record for record in records if "convolutions" in record]
    traced = [record for record in records if "traced" in record]
    kernel: list[float] = max(
        (record["site_gaps"] for record in records if "kernel_layers" in record), key=len, default=[]
    )
    text = training_page.page(perceptrons)
    plots.save(training_page.figure(perceptrons, kernel), out / "random_networks.png", dpi=110)
    if convnets:
        text += "\n" + convnet_page.section(convnets)
        plots.save(convnet_page.figure(convnets), out / "random_convnets.png", dpi=110)
    if traced:
        text += "\n" + traced_page.section(traced)
    write_whole(out / "random_networks.md", text)


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.random_networks"))
