# SPDX-License-Identifier: BSD-3-Clause
"""A figure of accuracy and error against the novelty of the neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rainbow_fast.plots.axes import (
    COLOURS,
    CURVE,
    ERROR_LABEL,
    INK,
    MARKERS,
    Record,
    blank_figure,
    over_networks,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def against_novelty(
    groups: Sequence[Sequence[Record]], *, reference: float | None = None, title: str | None = None
) -> Figure:
    """Two panels against the novelty of the sampled neurons: test accuracy, and held-out error.

    A point is the mean over the networks of a group, and its bars are one standard deviation (divisor: networks - 1).

    Args:
        groups: groups of networks that were sampled with the same options. Each network is a mapping with the keys
            `novelty`, `accuracy` and `refit_accuracy` (fractions), `error` (mean over sites) and `last_error` (error at
            the last site).
        reference: accuracy of the trained network, a fraction, drawn as a dashed line.
        title: title above the panels.

    Returns:
        A `matplotlib.figure.Figure` of 10 x 4.2 inches.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no groups, or a group is empty.
    """
    figure = blank_figure(10, 4.2)
    if not groups or not all(groups):
        raise ValueError(f"groups: wanted at least one, none of them empty; got {[len(group) for group in groups]}")
    left, right = figure.subplots(1, 2, width_ratios=(1.05, 1))
    if title is not None:
        figure.suptitle(title, fontsize=13, color=INK)
    panels: tuple[tuple[Axes, float, dict[str, str]], ...] = (
        (left, 100, {"accuracy": "trained classifier", "refit_accuracy": "refit"}),
        (right, 1, {"error": "mean over sites", "last_error": "last site"}),
    )
    for axes, unit, keys in panels:
        for (key, name), colour, marker in zip(keys.items(), COLOURS[4:], MARKERS[4:], strict=False):
            (x, sx), (y, sy) = (
                over_networks([[row[k] for row in group] for group in groups]) for k in ("novelty", key)
            )
            axes.errorbar(x, unit * y, unit * sy, sx, label=name, color=colour, marker=marker, **CURVE)
        plain(axes)
        axes.set_xlabel("novelty of the neurons", fontsize=11.5)
    left.set_ylabel("test accuracy (%)", fontsize=11.5)
    right.set_ylabel(ERROR_LABEL, fontsize=11.5)
    if reference is not None:
        left.axhline(100 * reference, label="trained network", color=INK, linestyle="--", linewidth=1.4, zorder=1)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=10.5)
    return figure
