# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.random_chains: the published figures of networks that are not trained, with their theory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast import plots
from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Seed, Threads
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.data import cifar10
from rainbow_fast.io import read_records, write_records, write_whole
from rainbow_fast.rainbow.report import Record
from studies import kept_records
from studies.random_chains import chain_page, talk_page
from studies.random_chains.chain_figure import figure
from studies.random_chains.chain_measurements import BURN_IN, MEASUREMENTS, Effort
from studies.random_chains.distance_measurements import DISTANCE_MEASUREMENTS
from studies.random_chains.exponent_measurements import EXPONENT_MEASUREMENTS
from studies.random_chains.image_chains import IMAGE_MEASUREMENTS, MEAN, SAMPLES, STD, ImageEffort

RECORDS = Path(__file__).parent / "records.jsonl"
WITHOUT_DATA = MEASUREMENTS | EXPONENT_MEASUREMENTS | DISTANCE_MEASUREMENTS
Measurement = tuple[str, dict[str, int], Callable[[], list[Record]]]  # name, setting, what measures
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    data: Annotated[
        Path | None,
        typer.Argument(help="Folder of CIFAR-10's binary version (default: none, and no panels on images)."),
    ] = None,
    width: Annotated[
        int, typer.Option(help="Width of the chain with explicit weights; time grows with its square.", min=16)
    ] = 100_000,
    layers: Annotated[int, typer.Option(help="Number of layers of long averages.", min=2 * BURN_IN)] = 500,
    batches: Annotated[int, typer.Option(help="Batches of 8 images; 50 are published.", min=1)] = 50,
    channels: Annotated[
        int,
        typer.Option(help="Channels of convolutions, and width of perceptrons on images; 100 are published.", min=2),
    ] = 100,
    conv_nets: Annotated[int, typer.Option(help="Networks of convolutions of each kind; one is published.", min=1)] = 2,
    seed: Seed = 0,
    threads: Threads = None,
    from_records: Annotated[
        bool, typer.Option("--page", metavar="", help="Make the page and the figures from the kept records.")
    ] = False,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-random-chains"),
) -> None:
    """Measure random chains, with batch norm and without, and compare them with theory.

    Writes records.jsonl, random_chains.md and two figures, in about two minutes and a half on one core; with data, in
    seven. Call it again after an interruption: it continues where it was. With --page, the page and the figures are
    made from the records kept beside the study.
    """
    set_threads({"threads": threads})
    need_plots()
    check_folder(out)
    records: list[Record] = kept_records(RECORDS) if from_records else []
    if not from_records:
        plain = Effort(width, layers, seed)
        todo: list[Measurement] = [(name, asdict(plain), partial(f, plain)) for name, f in WITHOUT_DATA.items()]
        if data is not None:
            images = cifar10(data, mean=MEAN, std=STD, images=SAMPLES * batches, test_images=0).x_train
            effort = ImageEffort(batches=batches, width=channels, conv_nets=conv_nets, seed=seed)
            todo += [(name, asdict(effort), partial(f, effort, images)) for name, f in IMAGE_MEASUREMENTS.items()]
        out.mkdir(parents=True, exist_ok=True)
        records = study(todo, out)
    out.mkdir(parents=True, exist_ok=True)
    write_page(records, out)
    terminal.out().print(f"{out}: records.jsonl, random_chains.md and figures", markup=False, soft_wrap=True)


def study(todo: list[Measurement], out: Path) -> list[Record]:
    """The records of all measurements; those that the folder has with the same setting are not measured again."""
    kept = read_records(out / "records.jsonl")
    records: list[Record] = []
    with terminal.bar(len(todo)) as bar:
        for name, setting, measured in todo:
            label = {"measurement": name, "setting": setting}
            mine = [record for record in kept if record.items() >= label.items()]
            with bar.job(1, name):
                if not mine:
                    mine = [record | label for record in measured()]
                    kept += mine
                    write_records(out / "records.jsonl", kept)
            records += mine
    return records


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figures from the records."""
    write_whole(out / "random_chains.md", chain_page.page(records) + "\n" + talk_page.section(records))
    plots.save(figure(records, chain_page.PANELS), out / "random_chains.png", dpi=110)
    plots.save(figure(records, talk_page.TALK), out / "random_talk.png", dpi=110)


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.random_chains"))
