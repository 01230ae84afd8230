# SPDX-License-Identifier: BSD-3-Clause
"""The command `compare`: how similar two trained networks are, up to rotations of their activations."""

from __future__ import annotations

from typing import Annotated

import typer

from rainbow_fast.cli import terminal
from rainbow_fast.cli import words as o
from rainbow_fast.cli.grid import as_progress
from rainbow_fast.cli.references import load_pair, pointwise_kinds
from rainbow_fast.cli.sampling import JSON
from rainbow_fast.cli.sources import choose_data
from rainbow_fast.rainbow import compare as comparison
from rainbow_fast.rainbow.options import FitOptions, Limits

EITHER = "a checkpoint of `rainbow-fast train`, or with --module, --timm or --torchvision a file of weights."


@o.command(o.ModuleWords, o.DataWords, FitOptions, Limits, o.MachineWords)
def compare(
    context: typer.Context,
    words: o.Words,
    a: Annotated[str, typer.Argument(metavar="A", help=f"The first trained network: {EITHER}")],
    b: Annotated[str, typer.Argument(metavar="B", help=f"The second trained network: {EITHER}")],
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Align every site of network B with that of network A, and measure similarity, error and spectrum."""
    o.set_threads(words)
    limits, of_network = o.read(Limits, words), o.read(o.ModuleWords, words)
    first, second = load_pair(a, b, of_network)
    data = choose_data(first, o.read(o.DataWords, words))
    for reference in (first, second):
        data.source.check_takes(reference.module, "--data")
    some, held = data.load()
    kinds = pointwise_kinds(of_network.pointwise_modules)
    options = o.read(FitOptions, words).changed(holdout=held, pointwise_modules=kinds)
    with terminal.bar(1) as bar, bar.job(1, "compare") as step:
        result = comparison.compare(first.module, second.module, some, options, limits, progress=as_progress(step))
    if as_json:
        terminal.out().print(result.to_json(), markup=False, soft_wrap=True)
        return
    counts = f"{result.samples} samples, {result.held_out_samples} held out"
    terminal.out().print(f"A: {first.title}\nB: {second.title}\n{counts}; {result.storage}\n", markup=False)
    terminal.out().print(result.table(), markup=False, soft_wrap=True)
