# SPDX-License-Identifier: BSD-3-Clause
"""The command `sites`: what of a network would be sampled."""

from __future__ import annotations

import json
from dataclasses import asdict

from rainbow_fast.cli import options as o
from rainbow_fast.cli import terminal
from rainbow_fast.cli.references import kinds, load_reference
from rainbow_fast.cli.sources import Pixels, check_takes, source_of
from rainbow_fast.rainbow.sites import sites as find_sites


def sites(
    checkpoint: o.Checkpoint = None,
    module: o.Module = None,
    module_args: o.ModuleArgs = None,
    weights: o.Weights = None,
    pointwise: o.Pointwise = None,
    data: o.Data = None,
    size: o.Size = None,
    mean: o.Mean = None,
    std: o.Std = None,
    grey: o.Grey = False,
    as_json: o.AsJson = False,
) -> None:
    """The sites of a network: its non-linearities, their channels and shapes, and whether `sample` takes them.

    The shapes need data, of which one sample is read; a checkpoint needs none.
    """
    reference = load_reference(checkpoint, module, module_args, weights)
    example = None
    if reference.about is not None or data is not None:
        example = source_of(reference.about, data, Pixels(size, mean, std, grey)).example()[0]
        check_takes(reference.module, example, "--data")
    found = find_sites(reference.module, example, pointwise=kinds(pointwise))
    text = json.dumps([asdict(site) for site in found]) if as_json else str(found)
    terminal.out().print(text, markup=False, soft_wrap=True)
