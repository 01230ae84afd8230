# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.normalisers FOLDER: orthogonality and training of deep networks with several norms."""

from __future__ import annotations

import sys
from dataclasses import replace
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
from studies.data_arguments import CifarFolder, increasing
from studies.normalisers import normaliser_page
from studies.normalisers.normaliser_experiment import GROUP, MEAN, STD, Kernel, Setting, Study, best_rate

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    data: CifarFolder = None,
    depths: Annotated[str, typer.Option(help="Increasing numbers of linear layers, separated by commas.")] = "10,20,30",
    rates: Annotated[
        str, typer.Option(help="Learning rates to choose from for each depth and norm, separated by commas.")
    ] = "0.001,0.003,0.01,0.03",
    width: Annotated[int, typer.Option(help=f"Units of each hidden layer, a multiple of {GROUP}.", min=16)] = 128,
    images: Annotated[int, typer.Option(help="Number of training images.", min=1000, max=50_000)] = 5000,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 8,
    seeds: Annotated[int, typer.Option(help="Networks for each depth and norm at the best rate.", min=1)] = 3,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-normalisers"),
) -> None:
    """Measure how orthogonal the layers of deep networks with several norms are, and train them on CIFAR-10.

    Writes records.jsonl, normalisers.md and normalisers.png. It takes about ten minutes on one core. Call it again
    after an interruption, or with more depths, rates or seeds: it continues where it was. Without data, the page and
    the figure are made from the records kept beside the study.
    """
    set_threads({"threads": threads})
    chosen = increasing("--depths", depths, 4)
    choices = numbers("--rates", rates)
    if width % GROUP:
        raise ValueError(f"--width: wanted a multiple of {GROUP}; got {width}")
    need_plots()
    check_folder(out)
    if data is None:
        records = kept_records(RECORDS)
        out.mkdir(parents=True, exist_ok=True)
        write_page(records, out)
    else:
        wanted = Study(chosen, choices, seeds, width, images, epochs)
        study(cifar10(data, mean=MEAN, std=STD, images=images), out, wanted)
    terminal.out().print(f"{out}: records.jsonl, normalisers.md, normalisers.png", markup=False, soft_wrap=True)


def study(images: Images, out: Path, wanted: Study) -> None:
    """Choose the learning rate of each network by its first seed, train the others with it, and write the page."""
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out / "records.jsonl")
    with terminal.bar(wanted.cost) as bar:

        def recorded(setting: Kernel | Setting) -> Record:
            same = [record for record in records if record.items() >= vars(setting).items()]
            with bar.job(setting.layers, setting.name) as step:
                if not same:
                    same = [setting.record(images, step)]
                    records.extend(same)
                    write_records(out / "records.jsonl", records)
            return same[0]

        recorded(wanted.kernel)
        for choices in wanted.choices():
            best = best_rate([recorded(setting) for setting in choices])
            for seed in range(1, wanted.seeds):
                recorded(replace(choices[0], rate=best, seed=seed))
    write_page(records, out)


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figure from the records."""
    networks = [record for record in records if "arm" in record]
    kernels = [record for record in records if "kernel_layers" in record]
    kernel = max(kernels, key=lambda record: record["kernel_layers"])
    write_whole(out / "normalisers.md", normaliser_page.page(networks))
    plots.save(normaliser_page.figure(networks, kernel), out / "normalisers.png", dpi=110)


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.normalisers"))
