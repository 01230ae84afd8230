# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.convergence: how fast kernels and alignments of sampled networks converge, on digits."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast import plots
from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Seed, Threads
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder
from rainbow_fast.cli.training import new_reference, train_reference
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.data import digits
from rainbow_fast.io import write_records, write_whole
from rainbow_fast.rainbow.model import fit
from rainbow_fast.rainbow.report import Record
from studies import kept_records

RECORDS = Path(__file__).parent / "records.jsonl"
HIDDEN = (128, 128)
WIDTHS = "128,256,512,1024,2048,4096,8192,16384,32768"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    widths: Annotated[
        str,
        typer.Option(
            help="Increasing numbers of neurons of every site, separated by commas (default: the powers of two from "
            "128 to 32768).",
            show_default=False,
        ),
    ] = WIDTHS,
    networks: Annotated[int, typer.Option(help="Number of networks sampled for each width.", min=2)] = 5,
    seed: Seed = 0,
    threads: Threads = None,
    from_records: Annotated[
        bool, typer.Option("--page", metavar="", help="Make the page and the figure from the kept records.")
    ] = False,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-convergence"),
) -> None:
    """Measure how fast kernels converge with the width, on digits.

    Writes records.jsonl, convergence.md and convergence.png. With --page, the page and the figure are made from the
    records kept beside the study.
    """
    set_threads({"threads": threads})
    chosen = _widths(widths)
    for package, extra in (("matplotlib", "plots"), ("scipy", "analysis")):
        if find_spec(package) is None:
            raise ImportError(f'convergence needs {package}: pip install "rainbow_fast[{extra}]"')
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    if from_records:
        write_page(kept_records(RECORDS), out)
        return
    from studies.convergence.study import records, study, table

    images, about = digits(), new_reference("mlp", "digits", widths=HIDDEN, seed=seed)
    with terminal.bar(networks * sum(chosen) + 4 * chosen[-1]) as bar:
        with bar.job(0, "train mlp") as step:
            reference, about = train_reference(about, images, {"seed": seed}, step)
        model = fit(reference, (images.x_train, images.y_train), holdout=(images.x_test, images.y_test))
        with bar.job(networks * sum(chosen) + 4 * chosen[-1], "sample") as step:
            sites = study(model, images.x_test, chosen, networks, seed, step)
    about_reference = {
        "sizes": "-".join(map(str, about.arguments["sizes"])),
        "accuracy": 100 * about.accuracy,
        "images": len(images.x_test),
    }
    listed = records(sites, about_reference)
    write_records(out / "records.jsonl", listed)
    write_page(listed, out)
    for line in table(sites):
        terminal.out().print(line, markup=False, soft_wrap=True)
    terminal.out().print(f"{out}: records.jsonl, convergence.md, convergence.png", markup=False, soft_wrap=True)


def write_page(listed: list[Record], out: Path) -> None:
    """Write the page and its figure from the records."""
    from studies.convergence.study import figure, from_records, page

    about, sites = from_records(listed)
    write_whole(out / "convergence.md", page(about, sites))
    plots.save(figure(sites, f"mlp {about['sizes']} on digits"), out / "convergence.png")


def _widths(text: str) -> list[int]:
    try:
        widths = [int(part) for part in text.split(",")]
    except ValueError:
        widths = []
    if not widths or widths[0] < 1 or any(b <= a for a, b in pairwise(widths)):
        raise ValueError(f"--widths: wanted increasing whole numbers above 0, separated by commas; got {text!r}")
    return widths


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.convergence"))
