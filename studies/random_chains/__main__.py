# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.random_chains: the published figures of random chains that need no data, with their theory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast import plots
from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Seed, Threads
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.io import write_records, write_whole
from rainbow_fast.rainbow.report import Record
from studies import kept_records
from studies.random_chains import chain_page
from studies.random_chains.chain_measurements import BURN_IN, MEASUREMENTS, Effort

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    width: Annotated[
        int, typer.Option(help="Width of the chain with explicit weights; time grows with its square.", min=16)
    ] = 100_000,
    layers: Annotated[int, typer.Option(help="Number of layers of long averages.", min=2 * BURN_IN)] = 500,
    seed: Seed = 0,
    threads: Threads = None,
    from_records: Annotated[
        bool, typer.Option("--page", metavar="", help="Make the page and the figure from the kept records.")
    ] = False,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-random-chains"),
) -> None:
    """Measure random chains, with batch norm and without, and compare them with theory.

    Writes records.jsonl, random_chains.md and random_chains.png, in about a minute and a half on one core. No data is
    read. With --page, the page and the figure are made from the records kept beside the study.
    """
    set_threads({"threads": threads})
    need_plots()
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    records: list[Record] = kept_records(RECORDS) if from_records else []
    if not from_records:
        effort = Effort(width, layers, seed)
        with terminal.bar(len(MEASUREMENTS)) as bar:
            for name, measure in MEASUREMENTS.items():
                with bar.job(1, name):
                    records += measure(effort)
        write_records(out / "records.jsonl", records)
    write_page(records, out)
    terminal.out().print(f"{out}: records.jsonl, random_chains.md, random_chains.png", markup=False, soft_wrap=True)


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figure from the records."""
    write_whole(out / "random_chains.md", chain_page.page(records))
    plots.save(chain_page.figure(records), out / "random_chains.png", dpi=110)


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.random_chains"))
