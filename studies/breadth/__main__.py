# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.breadth: what is sampled of public architectures, and what is not and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Threads
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.io import read_records, write_records, write_whole
from rainbow_fast.rainbow.report import Record
from studies import kept_records
from studies.breadth import collated
from studies.breadth.identity import identity
from studies.breadth.libraries import Architecture, architectures, record
from studies.breadth.page import page

RECORDS = Path(__file__).parent / "records.jsonl"
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    library: Annotated[str | None, typer.Option(help="Only the architectures of this library.")] = None,
    threads: Threads = None,
    from_records: Annotated[
        bool, typer.Option("--page", metavar="", help="Make the page from the kept records.")
    ] = False,
    of_identity: Annotated[
        bool, typer.Option("--identity", metavar="", help="Add what law='identity' gives to the records.")
    ] = False,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-breadth"),
) -> None:
    """List what is sampled of the architectures of torchvision, timm and transformers.

    Networks of transformers also run on batches as its collators make them. Writes records.jsonl and breadth.md. With
    --page, the page is made from the records kept beside the study. With
    --identity, records in the output folder, or else the kept ones, get the distances of networks with the
    reference's own neurons. They are written after each architecture, and the same command continues a run.
    """
    set_threads({"threads": threads})
    listed = architectures(library)
    libraries = sorted({each.library for each in listed})
    if not libraries:
        raise ValueError(f"--library: {library!r}, wanted torchvision, timm or transformers")
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    if from_records:
        write_page(kept_records(RECORDS), out)
        return
    for package in libraries:
        if find_spec(package) is None:
            raise ImportError(f'breadth needs {package}: pip install "rainbow_fast[breadth]"')
    records: list[Record] = [{"about": {name: version(name) for name in ("torch", *libraries)}}]
    if of_identity:
        records = read_records(out / "records.jsonl") or kept_records(RECORDS)
        add_identity(records, listed, out)
    else:
        with terminal.bar(len(listed)) as bar, bar.job(len(listed), "trace") as step:
            for place, each in enumerate(listed, 1):
                records.append(record(each))
                step(place, each.name)
            if "transformers" in libraries:
                records += [collated.record(name) for name in collated.CASES]
        write_records(out / "records.jsonl", records)
    write_page(records, out)
    terminal.out().print(f"{out}: records.jsonl, breadth.md", markup=False, soft_wrap=True)


def add_identity(records: list[Record], listed: Sequence[Architecture], out: Path) -> None:
    """Add the key "identity" to the records that lack it, and write all of them after each architecture."""
    rows = {(row["library"], row["name"]): row for row in records[1:] if "library" in row}
    with terminal.bar(len(listed)) as bar, bar.job(len(listed), "sample") as step:
        for place, each in enumerate(listed, 1):
            row = rows[each.library, each.name]
            if "identity" not in row:
                row["identity"] = identity(each)
                write_records(out / "records.jsonl", records)
            step(place, each.name)


def write_page(records: list[Record], out: Path) -> None:
    """Write the page from the records."""
    write_whole(out / "breadth.md", page(records))


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.breadth"))
