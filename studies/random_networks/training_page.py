# SPDX-License-Identifier: BSD-3-Clause
"""The results of `python -m studies.random_networks` as a page with tables, and as a figure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
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
    BATCHES,
    INITIAL,
    LEARNING_RATE,
    SAMPLES,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARALLEL_OUTPUTS = math.sqrt(2 - 2 / math.sqrt(10))  # the largest gap of ten singular values
INTRODUCTION = """\
# Deep networks without batch norm

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
- *orthogonal, published*: as in the published code: a slice of the whitened batch in the place of an
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
FIGURES = """\
The first row of the figure is the published figures 3a and 4, against the depth; bars are one standard deviation over
networks. Rows below it show the first, the middle and the last depth by epoch (figure 3b) and by layer.

- *Figure 3a.* Samples of standard networks are the more parallel the deeper the networks are, and these learn the more
  slowly, as published. The gap by layer lies a little above that of infinite width (line), which it follows.
- *Figure 3b.* The published claim that loss and gap fall together holds for standard weights where they learn well. It
  does not hold for weights that start orthogonal: their gap rises in the first epoch, to .4 and more, and they
  learn.
- *Figure 4.* The published claim that orthogonal weights make the loss independent of the depth holds for the published
  weights. It does not hold for exact ones: with the factor nearest to the identity, networks learn fastest as long as
  the loss stays finite at this learning rate, and in deep ones it does not; with Haar factors it hardly ever does.
- *Batch norm* keeps the gap by layer below a half at all depths before training, and still learns slowest at this
  learning rate: a small gap is not enough, as its gradients grow towards the first layers (the ratio of gradients).

These sentences are about the kept records.
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
        batch=first["batch"],
        seeds=seeds(records, "depth"),
        initial=INITIAL,
        batches=BATCHES,
        samples=SAMPLES,
        most=math.sqrt(1 - 1 / SAMPLES),
    )
    return "\n".join(
        [
            introduction,
            FIGURES,
            *[f"## Depth {depth}\n\n{table(_at(records, depth))}" for depth in _depths(records)],
            *_against_depth(records),
        ]
    )


def seeds(records: Sequence[Record], of: str) -> str:
    """How many networks each depth has: "3", or "2 to 3"."""
    counts = Counter((record[of], record["arm"]) for record in records).values()
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(max(counts))


def _against_depth(records: Sequence[Record]) -> list[str]:
    """The last losses at all depths, and their change from the first depth to the last one."""
    depths = _depths(records)
    if len(depths) < 2:
        return []
    rows = []
    for arm in arms(records):
        losses = [
            [r["losses"][-1] for r in records if r["arm"] == arm and r["depth"] == depth and r["accuracy"] is not None]
            for depth in depths
        ]
        change = f"{mean(losses[-1]) - mean(losses[0]):+.2f}" if losses[0] and losses[-1] else "-"
        rows.append([arm, *map(cell, losses), change])
    return [CLAIM, markdown(["", *(f"depth {depth}" for depth in depths), "change"], rows)]


def table(records: Sequence[Record]) -> str:
    """A row for each arm, of networks of one depth."""
    heading = [
        *("", "first loss", "last loss", "test accuracy (%)", "initial gap of the outputs", "last"),
        *("initial gap of the last layer", "last", "ratio of gradients"),
    ]
    rows = []
    for arm in arms(records):
        mine = [record for record in records if record["arm"] == arm]
        whole = [record for record in mine if record["accuracy"] is not None]
        lost = len(mine) - len(whole)
        missing = "not finite" if lost == len(mine) else f" ({lost} not finite)" if lost else ""
        rows.append([
            arm,
            cell([record["losses"][0] for record in whole]),
            (cell([record["losses"][-1] for record in whole]) if whole else "") + missing,
            cell([100 * record["accuracy"] for record in whole], 1),
            cell([record["output_gaps"][0] for record in mine]),
            cell([record["output_gaps"][-1] for record in whole]),
            cell([record["site_gaps"][-1] for record in mine]),
            cell([record["trained_site_gaps"][-1] for record in whole]),
            f"{mean(record['gradient_ratio'] for record in mine):.2g}",
        ])  # fmt: skip
    return markdown(heading, rows)


def panels(records: Sequence[Record], title: str, kernel: Sequence[float] = ()) -> list[plots.GapPanel]:
    """The loss and the gap of the outputs by epoch, and the initial gap by layer, of networks of one depth."""
    line = {"infinite width": (range(1, len(kernel) + 1), kernel)} if kernel else {}
    return [
        plots.GapPanel(
            f"{title}: training loss", "epoch", "loss (nats)", _curves(records, "losses", 1), {"chance": math.log(10)}
        ),
        plots.GapPanel(
            f"{title}: gap of the outputs", "epoch", "gap of singular values", _curves(records, "output_gaps", 0),
            {"parallel samples": PARALLEL_OUTPUTS},
        ),
        plots.GapPanel(
            f"{title}: gap before training", "layer", "orthogonality gap", _curves(records, "site_gaps", 1),
            {"parallel samples": math.sqrt(1 - 1 / SAMPLES)}, theory=line,
        ),
    ]  # fmt: skip


def figure(records: Sequence[Record], kernel: Sequence[float] = ()) -> Figure:
    """What changes with the depth; then, for the first, middle and last depth, losses and gaps by epoch and layer.

    `kernel` has the gaps by hidden layer at infinite width.
    """
    drawn, depths = _of_depths(records), _depths(records)
    for depth in sorted({depths[0], depths[len(depths) // 2], depths[-1]}):
        drawn += panels(_at(records, depth), f"depth {depth}", kernel[: depth - 1])
    return plots.gap_panels(drawn, columns=3, title=f"perceptrons of width {records[0]['width']} on CIFAR-10")


def _of_depths(records: Sequence[Record]) -> list[plots.GapPanel]:
    """Figures 3a and 4, and the accuracy: a panel each, of numbers against the depth, if there are several depths."""
    if len(_depths(records)) < 2:
        return []
    return [
        plots.GapPanel(
            "figure 3a: before training", "depth", "gap of singular values",
            _against(records, lambda record: record["output_gaps"][0], trained=False),
            {"parallel samples": PARALLEL_OUTPUTS}, bars=True,
        ),
        plots.GapPanel(
            "figures 3a and 4: last loss", "depth", "loss (nats)",
            _against(records, lambda record: record["losses"][-1]), {"chance": math.log(10)}, bars=True,
        ),
        plots.GapPanel(
            "test accuracy", "depth", "accuracy (%)",
            _against(records, lambda record: 100 * record["accuracy"]), {"chance": 10}, bars=True,
        ),
    ]  # fmt: skip


def _against(
    records: Sequence[Record], value: Callable[[Record], float], *, trained: bool = True
) -> list[plots.GapCurve]:
    """A curve against the depth for each arm, with a run for each seed; NaN where a loss was not finite."""
    depths, curves = _depths(records), []
    for arm in arms(records):
        runs = np.full((1 + max(record["seed"] for record in records), len(depths)), np.nan)
        for record in records:
            if record["arm"] == arm and (record["accuracy"] is not None or not trained):
                runs[record["seed"], depths.index(record["depth"])] = value(record)
        curves.append(plots.GapCurve(arm, depths, runs))
    return curves


def _curves(records: Sequence[Record], key: str, start: int) -> list[plots.GapCurve]:
    """A curve for each arm. Runs whose loss was not finite are only in the gaps before training."""
    curves = []
    for arm in arms(records):
        mine = [record for record in records if record["arm"] == arm]
        runs = [record[key] for record in mine if record["accuracy"] is not None or key == "site_gaps"]
        if runs:
            curves.append(plots.GapCurve(arm, list(range(start, start + len(runs[0]))), np.array(runs)))
    return curves


def _at(records: Sequence[Record], depth: int) -> list[Record]:
    return [record for record in records if record["depth"] == depth]


def _depths(records: Sequence[Record]) -> list[int]:
    return sorted({record["depth"] for record in records})


def arms(records: Sequence[Record]) -> list[str]:
    """The arms that have records, in the order of `ARMS`."""
    present = {record["arm"] for record in records}
    return [arm for arm in ARMS if arm in present]


def cell(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return "-"
    (average,), (deviation,) = over_networks([values])
    return mean_and_deviation(average, deviation, digits=digits)
