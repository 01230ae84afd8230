# SPDX-License-Identifier: BSD-3-Clause
"""The command `random measure`: how orthogonal the activations of a network are, site by site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.cli import terminal
from rainbow_fast.cli import words as o
from rainbow_fast.cli.grid import as_progress
from rainbow_fast.cli.readers import names
from rainbow_fast.cli.references import load_reference, pointwise_kinds
from rainbow_fast.cli.sampling import JSON, OUT, check_folder, need_plots
from rainbow_fast.cli.sources import Pixels, Source, source_of
from rainbow_fast.data.files import Batches
from rainbow_fast.io import write_whole
from rainbow_fast.plots.axes import save
from rainbow_fast.random_networks.measure import DEFAULT, MEASURES
from rainbow_fast.random_networks.measure import measure as measured


@o.command(o.ReferenceWords, o.SampleWords, o.MachineWords, argument="checkpoint")
def measure(
    context: typer.Context,
    words: o.Words,
    samples: Annotated[int, typer.Option(help="Number of samples in a batch.")] = 64,
    batches: Annotated[int, typer.Option(help="Number of batches.")] = 4,
    measures: Annotated[str, typer.Option(help=f"Measures separated by commas, of {', '.join(MEASURES)}.")] = ",".join(
        DEFAULT
    ),
    train: Annotated[
        bool, typer.Option("--train", help="Let batch norms use the statistics of each batch, as in training.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    out: Annotated[Path | None, typer.Option(help=f"{OUT} No files are written by default.")] = None,
) -> None:
    """Measure how far from orthogonal the activations of a batch are at every site of a network.

    A network without a file of weights has those that it is made with: it is measured before training. A table of means
    over batches is printed. The folder of the results holds all numbers (measure.json) and a figure of the first
    measure by site (measure.png).
    """
    o.set_threads(words)
    of_network, of_data = o.read(o.ReferenceWords, words), o.read(o.SampleWords, words)
    samples, batches = integer("samples", samples, 1), integer("batches", batches, 1)
    chosen = names("--measures", measures)
    if out is not None:
        need_plots()
        check_folder(out)
    reference = load_reference(of_network)
    source = source_of(reference.about, of_data.data, Pixels.in_words(of_data, reference.preprocessing))
    source.check_takes(reference.module, "--data")
    some = _read(source, samples, batches)
    kinds = pointwise_kinds(of_network.pointwise_modules)
    with terminal.bar(1) as bar, bar.job(1, "measure") as step:
        result = measured(
            reference.module.train(train), some, measures=chosen, pointwise_modules=kinds, progress=as_progress(step)
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "measure.json", result.to_json() + "\n")
        save(result.plot(chosen[0]), out / "measure.png")
    if as_json:
        terminal.out().print(result.to_json(), markup=False, soft_wrap=True)
        return
    terminal.out().print(f"{reference.title}\n{result}", markup=False, soft_wrap=True)
    if out is not None:
        terminal.out().print(f"{out}: measure.json, measure.png", markup=False, soft_wrap=True)


def _read(source: Source, samples: int, batches: int) -> list[Tensor]:
    """The first samples of the data in batches.

    Raises:
        ValueError: there are fewer.
    """
    if samples * batches > source.samples:
        wanted = f"{batches} batches of {samples} samples"
        raise ValueError(f"--data: {source.name} has {source.samples} samples, wanted {wanted}")
    data, _ = source.read(samples * batches, False)
    starts = range(0, samples * batches, samples)
    if isinstance(data, Batches):
        return [data.read(start, start + samples)[0] for start in starts]
    return [data[0][start : start + samples] for start in starts]
