# SPDX-License-Identifier: BSD-3-Clause
"""The command `clean`: removes what killed runs have left."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast.cli import terminal
from rainbow_fast.cli.grid import states
from rainbow_fast.cli.words import flowing
from rainbow_fast.locks import locked
from rainbow_fast.scratch import DEAD, dead_parts, in_folder, remove_dead
from rainbow_fast.tables import one_line, quantity

FOLDER = "A folder of results or of temporary files (default: the system's folder for temporary files)."
DRY_RUN = "Print what would be removed, and remove nothing."


@flowing
def clean(
    folder: Annotated[Path | None, typer.Argument(help=FOLDER)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help=DRY_RUN)] = False,
) -> None:
    """Remove what killed runs have left in a folder, and print it.

    That is: the activations of runs that have ended, unfinished files with the suffix .part, and in a folder of results
    the finished sites of a run that was stopped. After that, `sample --resume` samples the stopped networks again.

    Results stay, and so does what a running process uses, or another user or another machine has written.
    """
    where = Path(tempfile.gettempdir()) if folder is None else folder
    if not where.is_dir():
        raise ValueError(f"folder: no folder {where}")
    with locked(where, "folder") if states(where) else nullcontext():
        stopped, parts = list(states(where).values()), dead_parts(where)
        dead = [path for path, state in in_folder(where) if state == DEAD]
        sizes = {path: _bytes_in(path) for path in (*stopped, *dead, *parts)}
        if not dry_run:
            _remove(where, stopped, parts)
    lines = [f"{_fate(path, dry_run)}: {path} ({quantity(size)}B)" for path, size in sizes.items()]
    lines += [f"kept, it is {state}: {path}" for path, state in in_folder(where) if state != DEAD]
    text = "\n".join(map(one_line, lines or [f"{where}: nothing to remove"]))
    terminal.out().print(text, markup=False, soft_wrap=True)


def _remove(folder: Path, stopped: list[Path], parts: list[Path]) -> None:
    for path in stopped:
        shutil.rmtree(path)
    for path in parts:
        path.unlink(missing_ok=True)
    remove_dead(folder)


def _fate(path: Path, dry_run: bool) -> str:
    return "would be removed" if dry_run else "could not be removed" if path.exists() else "removed"


def _bytes_in(path: Path) -> int:
    """The number of bytes of a file, or of the files in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)
