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
from rainbow_fast.cli.training import new_reference, train_reference
from rainbow_fast.cli.words import set_threads
from rainbow_fast.data import digits
from rainbow_fast.io import write_records, write_whole
from rainbow_fast.rainbow.model import fit
from studies.convergence.study import figure, page, records, study, table

HIDDEN = (128, 128)
WIDTHS = "128,256,512,1024,2048,4096,8192,16384,32768"
app = typer.Typer(add_completion=False)


@app.command()
def main(
    widths: Annotated[str, typer.Option(help="Neurons of every site, increasing.")] = WIDTHS,
    networks: Annotated[int, typer.Option(help="Of each width.", min=2)] = 5,
    seed: Seed = 0,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("rainbow-convergence"),
) -> None:
    """How fast kernels converge with the width, on digits: records.jsonl, convergence.md, convergence.png."""
    set_threads({"threads": threads})
    chosen = _widths(widths)
    for package, extra in (("matplotlib", "plots"), ("scipy", "analysis")):
        if find_spec(package) is None:
            raise ImportError(f'convergence needs {package}: pip install "rainbow_fast[{extra}]"')
    images, about = digits(), new_reference("mlp", "digits", widths=HIDDEN, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    with terminal.bar(networks * sum(chosen) + 4 * chosen[-1]) as bar:
        with bar.job(0, "train mlp") as step:
            reference, about = train_reference(about, images, {"seed": seed}, step)
        model = fit(reference, (images.x_train, images.y_train), holdout=(images.x_test, images.y_test))
        with bar.job(networks * sum(chosen) + 4 * chosen[-1], "sample") as step:
            sites = study(model, images.x_test, chosen, networks, seed, step)
    write_records(out / "records.jsonl", [record for site in sites for record in records(site)])
    sizes = "-".join(map(str, about.arguments["sizes"]))
    write_whole(out / "convergence.md", page(sites, sizes, 100 * about.accuracy, len(images.x_test)))
    plots.save(figure(sites, f"mlp {sizes} on digits"), out / "convergence.png")
    for line in table(sites):
        terminal.out().print(line, markup=False, soft_wrap=True)
    terminal.out().print(f"{out}: records.jsonl, convergence.md, convergence.png", markup=False, soft_wrap=True)


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
