# SPDX-License-Identifier: BSD-3-Clause
"""Panels of measured curves of `python -m studies.random_chains`, with theory over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rainbow_fast.plots.axes import COLOURS, GREY, INK, MARKERS, blank_figure, plain, tidy_decades
from rainbow_fast.rainbow.report import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """The words of a panel.

    `theory` and `limit` are the names of the lines in the legend. Of a curve with many points about `most` are drawn.
    """

    title: str
    x_label: str
    y_label: str
    sentence: str
    theory: str = "theory"
    limit: str = "mean field"
    most: int = 50


def present(records: Sequence[Record], panels: Mapping[str, Panel]) -> dict[str, Panel]:
    """The panels that have records."""
    names = {record["panel"] for record in records}
    return {name: panel for name, panel in panels.items() if name in names}


def figure(records: Sequence[Record], panels: Mapping[str, Panel]) -> Figure:
    """The panels that have records, three in a row; their number is a multiple of three."""
    shown = present(records, panels)
    rows = len(shown) // 3
    drawn = blank_figure(14.4, 3.8 * rows)
    grid = drawn.subplots(rows, 3).flatten()
    for axes, (name, panel) in zip(grid, shown.items(), strict=True):
        curves = [record for record in records if record["panel"] == name and "curve" in record]
        for place, record in enumerate(curves):
            _draw(axes, record, place, panel)
        plain(axes)
        axes.set_title(panel.title.format(**curves[0]["setting"]), fontsize=12, color=INK)
        axes.set_xlabel(panel.x_label, fontsize=11)
        axes.set_ylabel(panel.y_label, fontsize=11)
        _finish(axes, name, curves)
        handles, labels = axes.get_legend_handles_labels()
        lines_last = sorted(range(len(labels)), key=lambda k: labels[k] not in [each["curve"] for each in curves])
        axes.legend([handles[k] for k in lines_last], [labels[k] for k in lines_last], frameon=False, fontsize=9.5)
    return drawn


def _draw(axes: Axes, record: Record, place: int, panel: Panel) -> None:
    """Points and band of a curve, with theory over them; the first curve names the lines in the legend."""
    x, mean = np.array(record["x"]), np.array(record["mean"])
    colour, named = COLOURS[place], axes.get_legend_handles_labels()[1]
    axes.plot(
        x, mean, color=colour, marker=MARKERS[place], markersize=4 if len(x) > 20 else 5.5, linestyle="none",
        label=record["curve"], markevery=max(1, len(x) // panel.most), zorder=2,
    )  # fmt: skip
    if record["deviation"] is not None:
        spread = np.array(record["deviation"])
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.22, linewidth=0)
    if record["theory"] is not None:
        label = None if panel.theory in named else panel.theory
        axes.plot(x, record["theory"], color=INK, linewidth=1.3, zorder=3, label=label)
    if record["limit"] is not None:
        label = None if panel.limit in named else panel.limit
        axes.plot(x, record["limit"], color=GREY, linewidth=1.2, linestyle="--", label=label)
    if "level" in record:
        label = None if "level" in named else "level"
        axes.axhline(record["level"], color=GREY, linewidth=1.1, linestyle="--", label=label)


def _finish(axes: Axes, panel: str, curves: Sequence[Record]) -> None:
    """What only one panel has: a guide, or the kind and the ends of an axis."""
    if panel == "ranks":
        axes.axhline(math.sqrt(1024), color=GREY, linewidth=1.1, linestyle="--", label="$\\sqrt{d}$")
        axes.set_xscale("log", base=2)
        axes.set_xticks(curves[0]["x"], [f"{x:g}" for x in curves[0]["x"]])
    if panel == "5a":
        axes.axhline(0.191, color=INK, linewidth=1.3, linestyle=":", label="ReLU, expected")
    if panel.startswith("5"):
        axes.set_ylim(0, 1)
    if panel == "features":
        axes.set_yscale("log")
        axes.set_ylim(bottom=3e-3)
    if panel == "scores":
        axes.axhspan(-2, 2, color=GREY, alpha=0.15, linewidth=0)
        axes.set_ylim(-4.5, 4.5)
    if panel == "distances":
        axes.set_yscale("log")
        axes.set_ylim(0.012, 1.5)  # with room for the legend
    if panel == "distances and gaps":
        axes.set_xscale("log")
        axes.set_yscale("log")
        tidy_decades(axes, along="x")
        tidy_decades(axes)
