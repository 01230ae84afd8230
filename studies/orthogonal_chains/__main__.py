# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.orthogonal_chains FOLDER: gradients and training of deep networks with batch norm."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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
from studies.orthogonal_chains import deep_training, deep_training_page, gradient_experiment, gradient_page
from studies.orthogonal_chains.gradient_theory import Growth

RECORDS = Path(__file__).parent / "records.jsonl"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)  # the published normalisation
Wanted = Growth | gradient_experiment.Run | deep_training.Setting
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    data: CifarFolder = None,
    depths: Annotated[
        str, typer.Option(help="Increasing numbers of layers, separated by commas, of networks that are not trained.")
    ] = "5,10,20,50,100,200,500,1000",
    runs: Annotated[int, typer.Option(help="Draws of their weights; 10 are published.", min=1)] = 10,
    width: Annotated[
        int, typer.Option(help="Width of all networks, and images of a batch; 100 is published.", min=10, max=2000)
    ] = 100,
    train_depths: Annotated[
        str, typer.Option(help="As --depths, of networks that are trained. The published ones are 100,500,1000.")
    ] = "10,50,100",
    rates: Annotated[str, typer.Option(help="Learning rates, separated by commas; 0.001 is published.")] = "0.001,0.03",
    images: Annotated[int, typer.Option(help="Number of training images.", min=2000, max=50_000)] = 2000,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 20,
    seeds: Annotated[int, typer.Option(help="Number of networks trained for each depth and rate.", min=1)] = 2,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-orthogonal-chains"),
) -> None:
    """Measure gradients of deep networks with batch norm, from orthogonal and Gaussian weights, and train them.

    Writes records.jsonl, orthogonal_chains.md and two figures. It takes about thirteen minutes on one core. Call it
    again after an interruption: it continues where it was. Without data, the page and the figures are made from the
    records kept beside the study.
    """
    set_threads({"threads": threads})
    measured = increasing("--depths", depths, 2)
    if len(measured) < 2:
        raise ValueError(f"--depths: wanted at least two numbers; got {depths!r}")
    trained = increasing("--train-depths", train_depths, 2)
    chosen = _rates(rates)
    need_plots()
    check_folder(out)
    if data is None:
        records = kept_records(RECORDS)
        out.mkdir(parents=True, exist_ok=True)
        write_page(records, out)
    else:
        wanted: list[Wanted] = [
            *gradient_experiment.theories(measured),
            *gradient_experiment.settings(runs, width, measured),
            *deep_training.settings(trained, chosen, width, images, epochs, seeds),
        ]
        study(cifar10(data, mean=MEAN, std=STD, images=images, test_images=0), out, wanted)
    terminal.out().print(f"{out}: records.jsonl, orthogonal_chains.md and figures", markup=False, soft_wrap=True)


def study(images: Images, out: Path, wanted: Sequence[Wanted]) -> None:
    """Measure and train what the folder has no records of, and write the page.

    The folder keeps the records of what is wanted, in this order, and no others.
    """
    out.mkdir(parents=True, exist_ok=True)
    before = read_records(out / "records.jsonl")
    records = [next((each for each in before if each.items() >= asdict(one).items()), None) for one in wanted]
    with terminal.bar(sum(_cost(setting) for setting in wanted)) as bar:
        for place, setting in enumerate(wanted):
            with bar.job(_cost(setting), _name(setting)) as step:
                if records[place] is None:
                    records[place] = _record(setting, images, step)
                    write_records(out / "records.jsonl", [each for each in records if each is not None])
    write_page([each for each in records if each is not None], out)


def _record(setting: Wanted, images: Images, step: Step) -> Record:
    if isinstance(setting, Growth):
        return gradient_experiment.theory(setting)
    if isinstance(setting, gradient_experiment.Run):
        return gradient_experiment.run(setting, images, step)
    return deep_training.run(setting, images, step)


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figures from the records."""
    trainings = [record for record in records if "arm" in record]
    gradients = [record for record in records if "arm" not in record]
    write_whole(out / "orthogonal_chains.md", gradient_page.page(gradients) + deep_training_page.section(trainings))
    plots.save(gradient_page.figure(gradients), out / "orthogonal_chains.png", dpi=110)
    plots.save(deep_training_page.figure(trainings), out / "orthogonal_training.png", dpi=110)


def _cost(setting: Wanted) -> float:
    """About the CPU seconds at width 100."""
    if isinstance(setting, Growth):
        return 0.003 * setting.depths[-1]
    if isinstance(setting, gradient_experiment.Run):
        return (2 * setting.depths[-1] + sum(setting.depths)) / 450
    return setting.depth * setting.epochs * setting.images * setting.seeds / 3e5


def _name(setting: Wanted) -> str:
    if isinstance(setting, Growth):
        return f"theory, {setting.theory_of}"
    if isinstance(setting, gradient_experiment.Run):
        return f"{setting.law} weights, run {setting.run}"
    return f"{setting.arm}, {setting.depth} layers, rate {setting.rate:g}"


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise ValueError(f"--rates: wanted numbers above 0, separated by commas; got {text!r}")
    return rates


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.orthogonal_chains"))
