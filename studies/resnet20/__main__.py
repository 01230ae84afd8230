# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.resnet20 FOLDER WEIGHTS: a residual network, all methods with their controls."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Threads
from rainbow_fast.cli.readers import numbers
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.data import Images, cifar10
from rainbow_fast.io import read_records, write_records, write_whole
from studies import kept_records
from studies.data_arguments import CifarFolder, ResNetWeights, check_both
from studies.resnet20 import page
from studies.resnet20.cases import TRAINED, UNTRAINED, Study, load_resnet, passes, tasks

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    data: CifarFolder = None,
    weights: ResNetWeights = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="<path>", help="Weights of another trained network of any width to compare with. May be repeated."
        ),
    ] = None,
    factors: Annotated[
        str, typer.Option(help="Widths as multiples of the trained network's, separated by commas.")
    ] = "1,4,8,16",
    networks: Annotated[int, typer.Option(help="Number of networks sampled for each width and method.", min=1)] = 3,
    images: Annotated[int, typer.Option(help="Largest number of training images to align on.", min=1)] = 5000,
    test: Annotated[int, typer.Option(help="Largest number of test images to measure on.", min=1)] = 2500,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-resnet20"),
) -> None:
    """Sample a residual network by all methods with their controls, and measure how new its neurons are.

    Writes records.jsonl, resnet20.md and resnet20.png. It takes hours on one core, and 12 GB of memory at 16 times the
    width, where the naive method keeps all features of a block. Call it again after an interruption: it continues where
    it was. Without data, the page and the figure are made from the records kept beside the study.
    """
    set_threads({"threads": threads})
    need_plots()
    check_folder(out)
    check_both(data, weights)
    widths = numbers("--factors", factors)
    if data is None or weights is None:
        records = kept_records(RECORDS)
        out.mkdir(parents=True, exist_ok=True)
        write_page(records, out)
    else:
        study(cifar10(data), weights, compare or [], widths, networks, images, test, out)
    terminal.out().print(f"{out}: records.jsonl, resnet20.md, resnet20.png", markup=False, soft_wrap=True)


def study(
    source: Images,
    weights: Path,
    compare: Sequence[Path],
    factors: Sequence[float],
    networks: int,
    images: int,
    test: int,
    out: Path,
) -> None:
    """Sample the networks that have no records yet, and write the page."""
    others = [path.stem for path in compare]
    if len({*others, TRAINED, UNTRAINED}) < len(others) + 2:
        raise ValueError(f"--compare: wanted files of different names, not trained or untrained; got {others}")
    references = {name: load_resnet(path) for name, path in zip([*others, TRAINED], [*compare, weights], strict=True)}
    align, held = (source.x_train[:images], source.y_train[:images]), (source.x_test[:test], source.y_test[:test])
    here = Study(references, align, held)
    out.mkdir(parents=True, exist_ok=True)
    records = read_records(out / "records.jsonl")
    here.check(records)
    todo = [task for task in tasks(factors, networks, others) if not task.done(records)]
    with terminal.bar(sum(task.cost for task in todo)) as bar:
        for group in passes(todo):
            with bar.job(sum(task.cost for task in group), str(group[0])) as step:
                records += here.run(group, step)
            write_records(out / "records.jsonl", records)
    write_page(records, out)


def write_page(records: list[dict], out: Path) -> None:
    """Write the page and its figure from the records."""
    write_whole(out / "resnet20.md", page.table(records))
    write_whole(out / "resnet20.png", page.figure(records))


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.resnet20"))
