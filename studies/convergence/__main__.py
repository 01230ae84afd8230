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
MOST = 8192  # neurons of a convolutional network
KINDS = {"mlp": "perceptron", "cnn": "convolutional network"}
WIDTHS = "128,256,512,1024,2048,4096,8192,16384,32768"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    widths: Annotated[
        str,
        typer.Option(
            help="Increasing numbers of neurons of every site, separated by commas (default: the powers of two from "
            "128 to 32768). The convolutional network has those up to 8192, or the first one.",
            show_default=False,
        ),
    ] = WIDTHS,
    images: Annotated[int, typer.Option(help="Images that the convolutional network is aligned on.", min=1)] = 100,
    networks: Annotated[int, typer.Option(help="Number of networks sampled for each width.", min=2)] = 5,
    seed: Seed = 0,
    threads: Threads = None,
    from_records: Annotated[
        bool, typer.Option("--page", metavar="", help="Make the page and the figure from the kept records.")
    ] = False,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-convergence"),
) -> None:
    """Measure how fast kernels converge with the width, on digits.

    A perceptron and a convolutional network. Writes records.jsonl,
    convergence.md, convergence.png and convolutions.png. With --page, the page and the figures are made from the
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
    from studies.convergence.study import from_records as read
    from studies.convergence.study import table

    few = [width for width in chosen if width <= MOST] or chosen[:1]
    listed = measured("mlp", chosen, None, networks, seed) + measured("cnn", few, images, networks, seed)
    write_records(out / "records.jsonl", listed)
    write_page(listed, out)
    for _, sites in read(listed):
        for line in table(sites):
            terminal.out().print(line, markup=False, soft_wrap=True)
    files = "records.jsonl, convergence.md, convergence.png, convolutions.png"
    terminal.out().print(f"{out}: {files}", markup=False, soft_wrap=True)


def measured(architecture: str, widths: list[int], aligned: int | None, networks: int, seed: int) -> list[Record]:
    """Train a reference and measure networks that are sampled from it; they are aligned on `aligned` images, or all."""
    from studies.convergence.study import records, study

    images = digits()
    about = new_reference(architecture, "digits", widths=HIDDEN if architecture == "mlp" else None, seed=seed)
    with terminal.bar(networks * sum(widths) + 4 * widths[-1]) as bar:
        with bar.job(0, f"train {architecture}") as step:
            reference, about = train_reference(about, images, {"seed": seed}, step)
        x, y = images.x_train[:aligned], images.y_train[:aligned]
        model = fit(reference, (x, y), holdout=(images.x_test, images.y_test))
        with bar.job(networks * sum(widths) + 4 * widths[-1], f"sample {architecture}") as step:
            sites = study(model, images.x_test, widths, networks, seed, step)
    of_reference = {
        "kind": KINDS[architecture],
        "sizes": "-".join(map(str, about.arguments["sizes" if architecture == "mlp" else "channels"])),
        "accuracy": 100 * about.accuracy,
        "images": len(images.x_test),
        "aligned": len(x),
    }
    return records(sites, of_reference)


def write_page(listed: list[Record], out: Path) -> None:
    """Write the page and its figures from the records."""
    from studies.convergence.study import FIGURES, figure, from_records, page

    references = from_records(listed)
    write_whole(out / "convergence.md", page(references))
    for (about, sites), name in zip(references, FIGURES, strict=True):
        plots.save(figure(sites, f"{about['kind']} {about['sizes']} on digits"), out / name)


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
