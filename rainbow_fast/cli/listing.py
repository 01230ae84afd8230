# SPDX-License-Identifier: BSD-3-Clause
"""The command `sites`: lists the sites of a network."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from rainbow_fast.cli import terminal
from rainbow_fast.cli import words as o
from rainbow_fast.cli.readers import READERS
from rainbow_fast.cli.references import load_reference, pointwise_kinds
from rainbow_fast.cli.sampling import JSON
from rainbow_fast.cli.sources import Pixels, source_of
from rainbow_fast.rainbow.sites import sites as find_sites


@o.command(o.ReferenceWords, o.SampleWords, argument="checkpoint")
def sites(
    context: typer.Context,
    words: o.Words,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    channel_axes: Annotated[str | None, typer.Option(help=o.HELP["channel_axes"])] = None,
) -> None:
    """List the sites of a network: its non-linearities, their channels and shapes, and which ones are sampled.

    The shapes need --data, of which one sample is read. A checkpoint needs none.
    """
    of_network, of_data = o.read(o.ReferenceWords, words), o.read(o.SampleWords, words)
    reference = load_reference(of_network)
    example = None
    if reference.about is not None or of_data.data is not None:
        source = source_of(reference.about, of_data.data, Pixels.in_words(of_data, reference.preprocessing))
        source.check_takes(reference.module, "--data")
        example = source.example()[0]
    axes = None if channel_axes is None else READERS["channel_axes"](channel_axes)
    kinds = pointwise_kinds(of_network.pointwise_modules)
    table = find_sites(reference.module, example, pointwise_modules=kinds, channel_axes=axes)
    text = json.dumps([asdict(site) for site in table]) if as_json else str(table)
    terminal.out().print(text, markup=False, soft_wrap=True)
