# SPDX-License-Identifier: BSD-3-Clause
"""The part of the page of `python -m studies.random_networks` on convolutional networks, and its figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

from rainbow_fast import plots
from rainbow_fast.rainbow.report import Record
from studies.random_networks.convnet_experiment import BATCH, INITIAL, LEARNING_RATE
from studies.random_networks.training_page import arms, panels, seeds, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANCE = math.log(10)
LEARNED = 0.02  # nats below chance from which on a network counts as one that learns
INTRODUCTION = """\
## Convolutional networks

![Losses and gaps of convolutional networks](random_convnets.png)

Figure 7 of the paper trains networks like AlexNet. These have the shape of the published code, whose 20 or 80
convolutions are 5 different and 15 or 75 equal ones, with {channels} channels where 256 are published, {images:,}
images instead of 50,000, and a learning rate of {lr:g} instead of 0.001, to make up for the fewer steps. Pixels lie
between 0 and 1, batches have {batch} images, and training lasts {epochs} epochs, with dropout before the linear layers.
Seeds of each network: {seeds}, where 4 are published. Gaps are measured without dropout.

- *standard* and *orthogonal* are as above, on {initial} images, for convolutions with as many outputs as inputs.
- *orthogonal, published* is the published code: exponent 1/2, a slice in the place of an orthogonal factor, and outputs
  of norm 1 on the batch.
"""
CLAIM = """\
### Against the published figure

The published claim is a crossover: the new weights learn more slowly than the standard ones with 20 convolutions (last
losses of 1.17 and 0.93, read off the figure), and faster with 80 (1.30 and 1.91). In the kept records this holds for
the published weights, as far as the short training goes: with 20 convolutions they do not learn at all, and with 80
only standard weights do not. Exact weights learn at both depths. Orthogonality can explain only these:
the published weights leave samples almost as parallel as standard ones do, and exact ones lower the gap, to .5 to .9
(right panels).
"""


def section(records: Sequence[Record]) -> str:
    """The text of the part of the page."""
    first, depths = records[0], _depths(records)
    introduction = INTRODUCTION.format(
        channels=first["channels"],
        images=first["images"],
        epochs=first["epochs"],
        lr=LEARNING_RATE,
        batch=BATCH,
        seeds=seeds(records, "convolutions"),
        initial=INITIAL,
    )
    tables = [f"### {depth} convolutions\n\n{table(_at(records, depth))}" for depth in depths]
    return "\n".join([introduction, *tables, CLAIM, *(_verdict(_at(records, depth), depth) for depth in depths), ""])


def figure(records: Sequence[Record]) -> Figure:
    """A row for each depth: the loss and the gap of the outputs by epoch, and the initial gap by layer."""
    drawn = [panel for depth in _depths(records) for panel in panels(_at(records, depth), f"{depth} convolutions")]
    title = f"figure 7: convolutional networks of {records[0]['channels']} channels on CIFAR-10"
    return plots.gap_panels(drawn, columns=3, title=title)


def _verdict(records: Sequence[Record], depth: int) -> str:
    """Which weights learn, and in which order of the last loss."""
    losses = {
        arm: mean(
            record["losses"][-1] if record["accuracy"] is not None else math.inf
            for record in records
            if record["arm"] == arm
        )
        for arm in arms(records)
    }
    learn = sorted((arm for arm in losses if losses[arm] < CHANCE - LEARNED), key=losses.__getitem__)
    order = ", ".join(f"*{arm}* {losses[arm]:.2f}" for arm in learn) or "none"
    rest = ", ".join(f"*{arm}*" for arm in losses if arm not in learn) or "none"
    text = f"- {depth} convolutions. Last losses, the lowest first: {order}. No better than chance: {rest}."
    return textwrap.fill(text, 120, subsequent_indent="  ")


def _at(records: Sequence[Record], depth: int) -> list[Record]:
    return [record for record in records if record["convolutions"] == depth]


def _depths(records: Sequence[Record]) -> list[int]:
    return sorted({record["convolutions"] for record in records})
