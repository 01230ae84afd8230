# SPDX-License-Identifier: BSD-3-Clause
"""Figures of gaps and other measures: by site, and panels of curves with bands over runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rainbow_fast.plots.axes import COLOURS, GREY, INK, MARKERS, blank_figure, over_networks, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMES = 24  # most names on the axis of sites; with more, only every second, third, ... site is named
MOST_LETTERS = 20
MOST_MARKERS = 20  # about; a curve of more points has a marker at every second, third, ... point
TEXT, SMALL_TEXT = 11.0, 9.0


class GapCurve(NamedTuple):
    """A curve over x with several runs.

    Attributes:
        name: the name in the legend. Curves of one name have the same colour and marker in all panels.
        x: (points,) places on the axis.
        values: (runs, points). The curve is the mean over the runs, with a band or bars of one standard deviation
            (divisor: runs - 1). NaN counts as no run; a point without runs leaves a gap.
    """

    name: str
    x: Sequence[float]
    values: np.ndarray


class GapPanel(NamedTuple):
    """A panel: its title, the labels of its axes, its curves, and horizontal lines by name (`levels`).

    `names` are the names of the places 0, 1, ... on the x axis, or None for numbers. `theory` are black lines (x, y) by
    name, over the curves. `bars` draws bars of one standard deviation instead of bands, for curves of few points.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[GapCurve]
    levels: Mapping[str, float] = {}
    names: Sequence[str] | None = None
    theory: Mapping[str, tuple[Sequence[float], Sequence[float]]] = {}
    bars: bool = False


def gap_panels(panels: Sequence[GapPanel], *, columns: int | None = None, title: str | None = None) -> Figure:
    """Panels of curves with bands or bars of one standard deviation over runs, and one legend below.

    Args:
        panels: at least one, row by row, with at most six names of curves in all.
        columns: panels in a row; None (default) for one row.
        title: title above the panels.

    Returns:
        A `matplotlib.figure.Figure`; a panel is 4.4 inches wide and 3.4 high.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no panels or no curves, more than six names, or values that are not (runs, points).
    """
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    if not 1 <= len(names) <= len(COLOURS):
        raise ValueError(f"panels: wanted curves of one to {len(COLOURS)} names, got {len(names)}")
    wide = columns or len(panels)
    rows = -(-len(panels) // wide)
    figure = blank_figure(4.4 * wide, 3.4 * rows + 0.6)
    grid = figure.subplots(rows, wide, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, names)
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=TEXT
    )
    if title is not None:
        figure.suptitle(title, fontsize=12.5, color=INK)
    return figure


def gap_by_site(
    curves: Mapping[str, Sequence[tuple[str, Sequence[float]]]],
    *,
    label: str = "orthogonality gap",
    levels: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """One panel: a measure at the sites of a network, in order of execution.

    Args:
        curves: for each curve (z and phi; or networks), the name of each site with its values, one for each batch or
            run. A point is their mean, a band one standard deviation. Sites that a curve lacks are left out of it.
        label: what is measured.
        levels: horizontal dashed lines by name.
        title: title above the panel.

    Returns:
        A `matplotlib.figure.Figure`, 4 inches high.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no curves, more than six, or one without sites.
    """
    if not curves or not all(curves.values()):
        raise ValueError("curves: wanted at least one, each with at least one site")
    sites = list(dict.fromkeys(site for points in curves.values() for site, _ in points))
    lines = [
        GapCurve(name, [sites.index(site) for site, _ in points], np.array([values for _, values in points]).T)
        for name, points in curves.items()
    ]
    figure = blank_figure(min(4.5 + 0.3 * len(sites), 10), 4.0)
    if len(lines) > len(COLOURS):
        raise ValueError(f"curves: wanted one to {len(COLOURS)}, got {len(lines)}")
    axes = figure.subplots()
    _draw(axes, GapPanel(title or "", "site", label, lines, levels or {}, sites), list(curves))
    axes.legend(frameon=False, fontsize=SMALL_TEXT)
    return figure


def _draw(axes: Axes, panel: GapPanel, names: Sequence[str]) -> None:
    """Draw one panel. Colours and markers are those of the names."""
    for curve in panel.curves:
        x, values = np.asarray(curve.x, dtype=float), np.asarray(curve.values, dtype=float)
        if values.ndim != 2 or values.shape[1] != len(x) or not len(values):
            raise ValueError(f"panels: {panel.title!r}: wanted values (runs, {len(x)}), got {values.shape}")
        place = names.index(curve.name)
        look: dict[str, Any] = {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.6}
        mean, spread = over_networks([run[~np.isnan(run)] for run in values.T])
        axes.plot(x, mean, label=curve.name, markevery=max(1, len(x) // MOST_MARKERS), **look)
        if panel.bars:
            axes.errorbar(x, mean, spread, fmt="none", ecolor=COLOURS[place], capsize=3, elinewidth=1.2)
        elif len(values) > 1:
            axes.fill_between(x, mean - spread, mean + spread, color=COLOURS[place], alpha=0.2, linewidth=0)
    for name, (x_line, y_line) in panel.theory.items():
        axes.plot(x_line, y_line, color=INK, linewidth=1.3, zorder=3, label=name)
    for name, level in panel.levels.items():
        axes.axhline(level, color=GREY, linestyle="--", linewidth=1, zorder=1, label=name)
    plain(axes)
    axes.set_title(panel.title, fontsize=TEXT, color=INK)
    axes.set_xlabel(panel.x_label, fontsize=TEXT)
    axes.set_ylabel(panel.y_label, fontsize=TEXT)
    axes.locator_params(axis="x", integer=True)
    if panel.names is not None:
        step = -(-len(panel.names) // MOST_NAMES)
        shown = range(0, len(panel.names), step)
        short = [panel.names[place] for place in shown]
        short = [name if len(name) <= MOST_LETTERS else "…" + name[1 - MOST_LETTERS :] for name in short]
        axes.set_xticks(shown, short, rotation=90 if max(map(len, short)) > 3 else 0)
