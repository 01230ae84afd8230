# SPDX-License-Identifier: BSD-3-Clause
"""The results of `python -m studies.random_networks` as a page with tables, and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from rainbow_fast import plots
from rainbow_fast.cli.terminal import mean_and_deviation
from rainbow_fast.plots.axes import over_networks
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.random_networks.training_experiment import (
    ARMS,
    BATCH,
    BATCHES,
    INITIAL,
    LEARNING_RATE,
    SAMPLES,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTRODUCTION = """\
# Deep perceptrons without batch norm

    python -m studies.random_networks cifar-10-batches-bin

![Losses and gaps](random_networks.png)

Samples become parallel in a deep random network, unless batch norm or the initial weights prevent it. Here, perceptrons
3072-{width}-...-{width}-10 with ReLU and without biases are trained on {images:,} images of CIFAR-10, as in the
published experiment, which has width 800, all 50,000 images, batches of 500, 30 epochs and depths of 15 to 75. Depth is
the number of linear layers. Pixels lie between -1 and 1. Stochastic gradient descent has rate {lr:g}, no momentum,
batches of {batch} and {epochs} epochs. Numbers are means over {seeds} seeds, ± one standard deviation.

- *standard*: Xavier's uniform weights with gain sqrt 2.
- *orthogonal*: the hidden layers, all but the first and the last, have the weights of `init_orthogonal_` (exponent 1,
  the factor nearest to the identity) on the first {initial:,} images.
- *orthogonal, Haar*: the same with random orthogonal factors.
- *orthogonal, published*: the same as the published code has it: a slice of the whitened batch in the place of an
  orthogonal factor, {few} images, an eps of only 1e-10, outputs of norm 1 on the batch.
- *batch norm*: standard weights, and a batch norm with parameters before each non-linearity. Its gaps are those of
  train mode.

The *loss* is the mean of the training loss over an epoch. The *gap of the outputs* is the published one of singular
values, at most 1.169, on {batches} batches of {samples} training images. The *gap by layer* is the orthogonality gap of
the activations, at most {most:.3f}. The *ratio of gradients* is the norm of the gradient of the initial loss by the
weights of the second layer, over that of the last hidden layer. In the published weights, the second layer alone
brings activations to their small scale, which raises this ratio. The learning rate is the published one for all
methods; a loss that is not finite says that it is too large for the gradients of these weights.
"""
CLAIM = """\
## Against the depth

The published claim is that the loss does not grow with the depth from orthogonal weights. The last losses are:
"""


def page(records: Sequence[Record]) -> str:
    """The text of the page."""
    first = records[0]
    introduction = INTRODUCTION.format(
        width=first["width"],
        images=first["images"],
        epochs=first["epochs"],
        few=3 * first["width"],
        lr=LEARNING_RATE,
        batch=BATCH,
        seeds=len({record["seed"] for record in records}),
        initial=INITIAL,
        batches=BATCHES,
        samples=SAMPLES,
        most=math.sqrt(1 - 1 / SAMPLES),
    )
    return "\n".join(
        [introduction, *[_section(records, depth) for depth in _depths(records)], *_against_depth(records)]
    )


def _against_depth(records: Sequence[Record]) -> list[str]:
    """The last losses at all depths, and their change from the first depth to the last one."""
    depths = _depths(records)
    if len(depths) < 2:
        return []
    rows = []
    for arm in _arms(records):
        losses = [
            [r["losses"][-1] for r in records if r["arm"] == arm and r["depth"] == depth and r["accuracy"] is not None]
            for depth in depths
        ]
        change = f"{mean(losses[-1]) - mean(losses[0]):+.2f}" if losses[0] and losses[-1] else "-"
        rows.append([arm, *map(_cell, losses), change])
    return [CLAIM, markdown(["", *(f"depth {depth}" for depth in depths), "change"], rows)]


def _section(records: Sequence[Record], depth: int) -> str:
    heading = [
        *("", "first loss", "last loss", "test accuracy (%)", "initial gap of the outputs", "last"),
        *("initial gap of the last layer", "last", "ratio of gradients"),
    ]
    rows = []
    for arm in _arms(records):
        mine = [record for record in records if (record["depth"], record["arm"]) == (depth, arm)]
        whole = [record for record in mine if record["accuracy"] is not None]
        lost = len(mine) - len(whole)
        missing = "not finite" if lost == len(mine) else f" ({lost} not finite)" if lost else ""
        rows.append([
            arm,
            _cell([record["losses"][0] for record in whole]),
            (_cell([record["losses"][-1] for record in whole]) if whole else "") + missing,
            _cell([100 * record["accuracy"] for record in whole], 1),
            _cell([record["output_gaps"][0] for record in mine]),
            _cell([record["output_gaps"][-1] for record in whole]),
            _cell([record["site_gaps"][-1] for record in mine]),
            _cell([record["trained_site_gaps"][-1] for record in whole]),
            f"{mean(record['gradient_ratio'] for record in mine):.2g}",
        ])  # fmt: skip
    return f"## Depth {depth}\n\n{markdown(heading, rows)}"


def figure(records: Sequence[Record]) -> Figure:
    """A row for each depth: the loss and the gap of the outputs by epoch, and the initial gap by layer."""
    panels = []
    for depth in _depths(records):
        mine = [record for record in records if record["depth"] == depth]
        panels += [
            plots.GapPanel(
                f"depth {depth}: training loss", "epoch", "loss (nats)", _curves(mine, "losses", 1),
                {"chance": math.log(10)},
            ),
            plots.GapPanel(
                f"depth {depth}: gap of the outputs", "epoch", "gap of singular values",
                _curves(mine, "output_gaps", 0), {"parallel samples": math.sqrt(2 - 2 / math.sqrt(10))},
            ),
            plots.GapPanel(
                f"depth {depth}: gap before training", "layer", "orthogonality gap", _curves(mine, "site_gaps", 1),
                {"parallel samples": math.sqrt(1 - 1 / SAMPLES)},
            ),
        ]  # fmt: skip
    return plots.gap_panels(panels, columns=3, title=f"perceptrons of width {records[0]['width']} on CIFAR-10")


def _curves(records: Sequence[Record], key: str, start: int) -> list[plots.GapCurve]:
    """A curve for each arm. Runs whose loss was not finite are only in the gaps before training."""
    curves = []
    for arm in _arms(records):
        mine = [record for record in records if record["arm"] == arm]
        runs = [record[key] for record in mine if record["accuracy"] is not None or key == "site_gaps"]
        if runs:
            curves.append(plots.GapCurve(arm, list(range(start, start + len(runs[0]))), np.array(runs)))
    return curves


def _depths(records: Sequence[Record]) -> list[int]:
    return sorted({record["depth"] for record in records})


def _arms(records: Sequence[Record]) -> list[str]:
    present = {record["arm"] for record in records}
    return [arm for arm in ARMS if arm in present]


def _cell(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return "-"
    (average,), (deviation,) = over_networks([values])
    return mean_and_deviation(average, deviation, digits=digits)
