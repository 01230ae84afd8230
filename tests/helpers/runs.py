# SPDX-License-Identifier: BSD-3-Clause
"""A finished run of `rainbow-fast sample`, for tests of what happens to its folder later."""

from contextlib import chdir
from pathlib import Path

from here import threads
from typer.main import get_command

from rainbow_fast.cli.app import app
from rainbow_fast.cli.checkpoints import save_checkpoint
from rainbow_fast.cli.training import new_reference

RESULTS = ["figure.png", "report.json", "report.txt", "results.jsonl"]
FEW = ["--images", "40", "--factors", "1", "--networks", "1", "--methods", "paper", "--threads", "1"]


def finished_run(folder: Path) -> Path:
    """Make "it.safetensors", a perceptron that is not trained, and "run", the results of a network sampled from it."""
    about = new_reference("mlp", "digits", widths=(16,))
    save_checkpoint(about.build(), about, folder / "it.safetensors")
    with chdir(folder), threads(1):
        get_command(app).main(["sample", "it.safetensors", *FEW, "--out", "run"], standalone_mode=False)
    return folder


def contents(folder: Path) -> list[str]:
    """The names in a folder; none if there is no such folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
