# SPDX-License-Identifier: BSD-3-Clause
"""The command `compare`: how far two trained networks are one and the same up to rotations."""

from __future__ import annotations

from typing import Annotated

import typer

from rainbow_fast.cli import options as o
from rainbow_fast.cli import terminal
from rainbow_fast.cli.references import kinds, load_pair
from rainbow_fast.cli.sources import Pixels, check_takes, choose_data
from rainbow_fast.rainbow import compare as comparison

Either = "Written by `rainbow-fast train`; with --module, a file of weights."


def compare(
    a: Annotated[str, typer.Argument(help=Either)],
    b: Annotated[str, typer.Argument(help=Either)],
    module: o.Module = None,
    module_args: o.ModuleArgs = None,
    pointwise: o.Pointwise = None,
    data: o.Data = None,
    holdout: o.Holdout = None,
    images: o.Aligned = 5000,
    size: o.Size = None,
    mean: o.Mean = None,
    std: o.Std = None,
    grey: o.Grey = False,
    memory_budget: o.Budget = o.BUDGET,
    storage: o.Kept = None,
    threads: o.Threads = None,
    as_json: o.AsJson = False,
) -> None:
    """Align the sites of B with those of A, and measure what remains: similarity, error, spectrum of each."""
    o.set_threads(threads)
    budget = o.memory(memory_budget)
    o.check_storage(storage)
    first, second = load_pair(a, b, module, module_args)
    chosen = choose_data(first, data, holdout, images, Pixels(size, mean, std, grey))
    for reference in (first, second):
        check_takes(reference.module, chosen.source.example()[0], "--data")
    some, held = chosen.load()
    with terminal.bar(1) as bar, bar.job(1, "compare") as step:
        found = comparison.compare(
            first.module,
            second.module,
            some,
            holdout=held,
            pointwise=kinds(pointwise),
            memory_budget=budget,
            storage=storage,
            progress=lambda done, total, what: step(done / total, what),
        )
    if as_json:
        terminal.out().print(found.to_json(), markup=False, soft_wrap=True)
        return
    counts = f"{found.samples} samples, {found.held_out_samples} held out"
    terminal.out().print(f"A: {first.title}\nB: {second.title}\n{counts}; {found.storage}\n", markup=False)
    terminal.out().print(found.table(), markup=False, soft_wrap=True)
