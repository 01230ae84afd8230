# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.batch_norms FOLDER WEIGHTS: a residual network of which only the batch norms are trained."""

from __future__ import annotations

import sys
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
from rainbow_fast.data import cifar10
from rainbow_fast.io import read_records, write_records, write_whole
from rainbow_fast.networks import load_weights, resnet_cifar
from rainbow_fast.rainbow.report import Record
from studies import kept_records
from studies.batch_norms import norm_page
from studies.batch_norms.norm_experiment import ARMS, VALIDATION, Setting, Study, best_rate, run
from studies.data_arguments import CifarFolder, ResNetWeights, check_both

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    data: CifarFolder = None,
    weights: ResNetWeights = None,
    depth: Annotated[int, typer.Option(help="Depth of all networks, that of the weights.", min=8)] = 20,
    images: Annotated[
        int, typer.Option(help=f"Number of training images; {VALIDATION:,} more are held out.", min=100, max=48_000)
    ] = 5000,
    test: Annotated[int, typer.Option(help="Number of test images.", min=1, max=10_000)] = 2500,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.", min=1)] = 4,
    seeds: Annotated[int, typer.Option(help="Number of networks of each arm.", min=1)] = 3,
    rates: Annotated[
        str, typer.Option(help="Learning rates to choose from for each arm, separated by commas.")
    ] = "0.004,0.02,0.1,0.5,2.5,12.5",
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-batch-norms"),
) -> None:
    """Train only the batch norms of a residual network: of a random one, and of one sampled from a trained network.

    Writes records.jsonl, batch_norms.md and batch_norms.png. It takes about twenty minutes on one core. Call it again
    after an interruption: it continues where it was. Without data, the page and the figure are made from the records
    kept beside the study.
    """
    set_threads({"threads": threads})
    need_plots()
    check_folder(out)
    check_both(data, weights)
    choices = numbers("--rates", rates)
    if data is None or weights is None:
        records = kept_records(RECORDS)
        out.mkdir(parents=True, exist_ok=True)
        write_page(records, out)
    else:
        reference = load_weights(resnet_cifar(depth), weights)
        source = cifar10(data, images=images + VALIDATION, test_images=test)
        run_all(Study(source, images, reference, depth), out, choices, seeds, epochs)
    terminal.out().print(f"{out}: records.jsonl, batch_norms.md, batch_norms.png", markup=False, soft_wrap=True)


def run_all(study: Study, out: Path, rates: list[float], seeds: int, epochs: int) -> None:
    """Choose the learning rates, train the networks that have no records yet, and write the page."""
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out / "records.jsonl")
    trained = [name for name, arm in ARMS.items() if arm.layers]
    tuning = {arm: [study.setting(arm, 0, epochs, rate, tuning=True) for rate in rates] for arm in trained}
    total = len(trained) * len(rates) + sum(1 if arm.once else seeds for arm in ARMS.values())
    with terminal.bar(total) as bar:

        def recorded(setting: Setting) -> Record:
            same = [record for record in records if record.items() >= vars(setting).items()]
            with bar.job(1, f"{setting.arm}, seed {setting.seed}, rate {setting.rate}") as step:
                if not same:
                    same = [run(setting, study, step)]
                    records.extend(same)
                    write_records(out / "records.jsonl", records)
            return same[0]

        best = {arm: best_rate([recorded(setting) for setting in settings]) for arm, settings in tuning.items()}
        for seed in range(seeds):
            for name, arm in ARMS.items():
                if seed == 0 or not arm.once:
                    recorded(study.setting(name, seed, epochs, best.get(name)))
    write_page(records, out)


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figure from the records."""
    write_whole(out / "batch_norms.md", norm_page.page(records))
    plots.save(norm_page.figure(records), out / "batch_norms.png", dpi=110)


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.batch_norms"))
