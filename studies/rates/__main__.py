# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.rates: rates of convergence for known laws, beside those of theory."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast import plots
from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Threads
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.io import write_records, write_whole
from rainbow_fast.rainbow.report import Record
from studies import kept_records
from studies.rates.rate_experiment import Deep, Layer, Study

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    threads: Threads = None,
    from_records: Annotated[
        bool, typer.Option("--page", metavar="", help="Make the page and the figures from the kept records.")
    ] = False,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-rates"),
) -> None:
    """Measure the rates of convergence of layers and networks with known laws.

    Writes records.jsonl, rates.md, rates.png and deep_rates.png. It takes a few minutes on one core.
    """
    set_threads({"threads": threads})
    need_plots()
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    if from_records:
        records = kept_records(RECORDS)
    else:
        records = measured(list(Study()))
        write_records(out / "records.jsonl", records)
    write_page(records, out)
    terminal.out().print(f"{out}: records.jsonl, rates.md, rates.png, deep_rates.png", markup=False, soft_wrap=True)


def measured(cases: Iterable[Layer | Deep]) -> list[Record]:
    """The records of all layers and networks."""
    cases, records = list(cases), list[Record]()
    with terminal.bar(len(cases)) as bar:
        for case in cases:
            with bar.job(1, type(case).__name__.lower()) as step:
                records += case.records(step)
    return records


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figures from the records."""
    from studies.rates import rate_page

    write_whole(out / "rates.md", rate_page.page(records))
    plots.save(rate_page.figure(records), out / "rates.png")
    plots.save(rate_page.deep_figure(records), out / "deep_rates.png")


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.rates"))
