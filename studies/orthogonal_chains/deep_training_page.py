# SPDX-License-Identifier: BSD-3-Clause
"""Training of deep networks with batch norm as a section of the page, and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rainbow_fast import plots
from rainbow_fast.cli.terminal import mean_and_deviation
from rainbow_fast.plots.axes import over_networks
from rainbow_fast.rainbow.report import Record
from rainbow_fast.tables import markdown
from studies.orthogonal_chains.normed_network import CLASSES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECTION = """
## Training (figure 4)

![Training accuracy by epoch](orthogonal_training.png)

Networks of width {width} with torch's norm are trained on {images:,} images by plain stochastic gradient descent:
{epochs} epochs in batches of {width} images, {steps} steps in all. The published training has rate 0.001, depths 100,
500 and 1000, and all 50,000 images, 500 steps an epoch. Rate 0.03 stands here for a longer training. An accuracy is the
mean over the batches of an epoch, each before its step. Lines are means over {seeds} seeds, bands one standard
deviation.

- *Rate 0.001.* So few steps do not show the published order: linear networks are ahead of those with gain, which learn
  the more slowly the deeper they are, as their gradients are small. But these learn at all depths. Tanh without gain
  learns fastest at depth 10, and hardly at depth 50 and 100, where its gradients have exploded.
- *Rate 0.03.* The published claim holds: with Haar weights and gain, tanh and sin pass linear networks at all depths,
  and still rise at 90 % and more (published: about 100 %). Linear networks end above the published 40 to 50 %, as a few
  images are easier to fit than all.
- *Gaussian weights.* At rate 0.03 they train almost as well as Haar weights at depth 10, and clearly worse in deeper
  networks. At rate 0.001 they are no worse with the gain.

These sentences are about the kept records.

"""


def section(records: Sequence[Record]) -> str:
    """The text of the section, with a row of its table for each arm, depth and rate."""
    first = records[0]
    text = SECTION.format(
        width=first["width"],
        images=first["images"],
        epochs=first["epochs"],
        steps=first["epochs"] * (first["images"] // first["width"]),
        seeds=first["seeds"],
    )
    rows = []
    for record in records:
        accuracies, losses = 100 * _runs(record, "accuracies"), _runs(record, "losses")
        rows.append([
            f"{record['rate']:g}", str(record["depth"]), record["arm"], _cell(accuracies[:, 0], 1),
            _cell(accuracies[:, -1], 1), _cell(losses[:, -1], 2),
        ])  # fmt: skip
    heading = ["rate", "depth", "network", "accuracy in the first epoch (%)", "in the last one", "loss in the last one"]
    return text + markdown(heading, rows)


def figure(records: Sequence[Record]) -> Figure:
    """The accuracy by epoch: a row for each rate, and a panel for each depth."""
    cases = list(dict.fromkeys((record["rate"], record["depth"]) for record in records))
    panels = []
    for rate, depth in cases:
        mine = [record for record in records if (record["rate"], record["depth"]) == (rate, depth)]
        curves = [
            plots.GapCurve(record["arm"], range(1, record["epochs"] + 1), 100 * _runs(record, "accuracies"))
            for record in mine
        ]
        title = f"depth {depth}, rate {rate:g}"
        panels.append(plots.GapPanel(title, "epoch", "training accuracy (%)", curves, {"chance": 100 / CLASSES}))
    columns = len({depth for _, depth in cases})
    return plots.gap_panels(panels, columns=columns, title=f"training, width {records[0]['width']} (figure 4)")


def _runs(record: Record, key: str) -> np.ndarray:
    """(seeds, epochs), NaN where a loss was not finite."""
    return np.array(record[key], dtype=float)


def _cell(values: np.ndarray, digits: int) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "not finite"
    (average,), (deviation,) = over_networks([finite.tolist()])
    missing = len(values) - len(finite)
    return mean_and_deviation(average, deviation, digits=digits) + (f" ({missing} not finite)" if missing else "")
