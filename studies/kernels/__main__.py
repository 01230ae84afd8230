# SPDX-License-Identifier: BSD-3-Clause
"""python -m studies.kernels FOLDER: kernel regression on CIFAR-10 with kernels of infinitely wide networks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rainbow_fast import plots
from rainbow_fast.cli import terminal
from rainbow_fast.cli.app import Threads
from rainbow_fast.cli.running import run_app
from rainbow_fast.cli.sampling import OUT, check_folder, need_plots
from rainbow_fast.cli.words import flowing, set_threads
from rainbow_fast.data import Images, cifar10
from rainbow_fast.io import write_records, write_whole
from rainbow_fast.rainbow.report import Record
from studies import kept_records
from studies.data_arguments import CifarFolder
from studies.kernels.kernel_experiment import Study

RECORDS = Path(__file__).parent / "records.jsonl"
IMAGES = {"mlp": 1000}
app = typer.Typer(add_completion=False)


@app.command()
@flowing
def main(
    data: CifarFolder = None,
    threads: Threads = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("rainbow-kernels"),
) -> None:
    """Compare kernel regression with learned covariances, with C = I, and sampled networks, for a perceptron.

    Writes records.jsonl, kernels.md and kernels.png. It takes some minutes on one core.
    """
    set_threads({"threads": threads})
    need_plots()
    check_folder(out)
    study = Study(IMAGES)
    images = None if data is None else cifar10(data, grey=True, images=study.read, test_images=study.tested)
    out.mkdir(parents=True, exist_ok=True)
    records = kept_records(RECORDS) if images is None else measured(study, images)
    write_records(out / "records.jsonl", records)
    write_page(records, out)
    terminal.out().print(f"{out}: records.jsonl, kernels.md, kernels.png", markup=False, soft_wrap=True)


def measured(study: Study, images: Images) -> list[Record]:
    """The records of a study."""
    with terminal.bar(1) as bar, bar.job(1, "kernels") as step:
        return list(study.records(images, step))


def write_page(records: list[Record], out: Path) -> None:
    """Write the page and its figure from the records."""
    from studies.kernels import kernel_page

    write_whole(out / "kernels.md", kernel_page.page(records))
    plots.save(kernel_page.figure(records), out / "kernels.png")


if __name__ == "__main__":
    sys.exit(run_app(app, "python -m studies.kernels"))
