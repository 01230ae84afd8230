# SPDX-License-Identifier: BSD-3-Clause
"""The part of the page of `python -m studies.random_networks` on a residual network and a mixer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.random_networks.traced_experiment import BATCH, BLOCKS, NETWORKS, PATCH, WIDTH
from studies.random_networks.training_experiment import BATCHES, INITIAL, SAMPLES
from studies.random_networks.training_page import cell

ARMS = ("orthogonal", "standard")
INTRODUCTION = """\
## A residual network and a mixer

`init_orthogonal_` traces any network. Here it initialises all layers of ResNet-20, and of an MLP-Mixer with patches of
{patch} x {patch} pixels, {width} channels and {blocks} blocks, on {initial:,} images and with its defaults. The network
with these weights (*orthogonal*) and the one with torch's own (*standard*) are then trained alike, for {steps} steps on
{images:,} images in batches of {batch}, without momentum. Networks of each kind: {seeds}.

The tables have the orthogonality gap after each non-linearity, in the order of execution, and that of the outputs, on
{batches} batches of {samples} training images. Batch norms have the statistics of the batch. Ten outputs cannot have a
gap below sqrt(1/10 - 1/{samples}) = {floor:.3f}. The *loss* is the mean over the last epoch, {chance:.2f} at chance.
"""
CONCLUSION = """\
- *Before training*, these weights lower the gap at every site. The outputs have nearly the least one; the rest is
  `eps`, and that half of the measured images are others. Maps do not, as all positions are whitened together.
- *ResNet-20* keeps this for 100 steps. The gaps rise by at most a few hundredths, and stay below those of standard
  weights at every site; only that of the outputs, which learn classes, rises more. It does not learn faster.
- *The mixer* does not keep it at the rate of ResNet-20: its samples become parallel, and it does not learn. At a tenth
  of the rate, the gaps over patches stay, and those over channels rise by about a tenth or more; the loss stays above
  chance.

These sentences are about the kept records.
"""


def section(records: Sequence[Record]) -> str:
    """The text of the part of the page."""
    first = records[0]
    counts = Counter((record["traced"], record["rate"]) for record in records).values()
    introduction = INTRODUCTION.format(
        patch=PATCH,
        width=WIDTH,
        blocks=BLOCKS,
        initial=INITIAL,
        steps=first["epochs"] * -(-first["images"] // BATCH),
        images=first["images"],
        batch=BATCH,
        seeds=f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else max(counts),
        batches=BATCHES,
        samples=SAMPLES,
        floor=math.sqrt(1 / 10 - 1 / SAMPLES),
        chance=math.log(10),
    )
    present = [name for name in NETWORKS if any(record["traced"] == name for record in records)]
    tables = [f"### {name}\n\n{table([each for each in records if each['traced'] == name])}" for name in present]
    return "\n".join([introduction, *tables, CONCLUSION])


def table(records: Sequence[Record]) -> str:
    """A row for each site of one network, and one for the loss."""
    rates = sorted({record["rate"] for record in records})
    columns = [("standard", "before", rates[0]), ("orthogonal", "after", rates[0])]
    columns += [(f"{arm}, trained at rate {rate:g}", f"{arm}, trained", rate) for rate in rates for arm in ARMS]
    rows = [[site] for site in records[0]["sites"]] + [["loss"]]
    for _, stage, rate in columns:
        mine = [record for record in records if record["rate"] == rate]
        whole = [record for record in mine if record["gaps"][stage] is not None]
        for place, row in enumerate(rows[:-1]):
            row.append(cell([record["gaps"][stage][place] for record in whole]))
        losses = [record["losses"][stage.split(",")[0]][-1] for record in whole] if "," in stage else []
        lost = len(mine) - len(whole)
        rows[-1].append(cell(losses) + f" ({lost} not finite)" * (lost > 0))
    return markdown(["gap", *(name for name, *_ in columns)], rows)
