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
