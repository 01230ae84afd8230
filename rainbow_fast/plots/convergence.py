# SPDX-License-Identifier: BSD-3-Clause
"""A figure of errors at growing widths, with fitted curves and the slopes that theory predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rainbow_fast.plots.axes import (
    COLOURS,
    CURVE,
    GREY,
    INK,
    LINES,
    MARKERS,
    blank_figure,
    dress,
    tidy_decades,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """Errors at growing widths.

    Attributes:
        group: curves of one group (for example a site) have the same colour in all panels.
        kind: curves of one kind have the same marker and dashes.
        errors: (networks, widths), > 0. A point is the mean over networks, its bar is one standard deviation.
        fit: (e_inf, c, p) of ``e_inf + c n^-p``, which is drawn as a thin line, or None. If e_inf is more than a fifth
            of the last error, it is drawn as a horizontal line.
        limit: the limit for infinite width, which is drawn as a horizontal line in the place of e_inf; None (default)
            if it is not known.
    """

    group: str
    kind: str
    errors: np.ndarray
    fit: tuple[float, float, float] | None = None
    limit: float | None = None


class Panel(NamedTuple):
    """The title and curves of a panel, and slopes: exponents p by name, which are drawn as grey lines ``n^-p``."""

    title: str
    curves: Sequence[Curve]
    slopes: Mapping[str, float] = {}


def convergence(widths: Sequence[int], panels: Sequence[Panel], *, title: str | None = None) -> Figure:
    """Panels side by side of errors against width, with logarithmic axes: points, fitted curves, and slopes of theory.

    Args:
        widths: the widths of all curves, in increasing order.
        panels: one or more panels, with at most six groups in all and at most three kinds in each.
        title: title above the panels.

    Returns:
        A `matplotlib.figure.Figure`, 4.6 inches high and 4.6 inches wide for each panel.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no panels, a panel has no curves, errors have another shape or are not above 0, or there
            are too many groups or kinds.
    """
    figure = blank_figure(4.6 * max(len(panels), 1), 4.6)
    groups = list(dict.fromkeys(curve.group for panel in panels for curve in panel.curves))
    if not groups or len(groups) > len(COLOURS):
        raise ValueError(f"panels: wanted curves of one to {len(COLOURS)} groups, got {len(groups)}")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_convergence(axes, np.asarray(widths, dtype=float), panel, groups)
    if title is not None:
        figure.suptitle(title, fontsize=13, color=INK)
    return figure


def _draw_convergence(axes: Axes, widths: np.ndarray, panel: Panel, groups: list[str]) -> None:
    """Draw one panel: errors as markers, fits as thin lines, e_inf as horizontal lines, slopes of theory in grey."""
    from matplotlib.lines import Line2D

    kinds = list(dict.fromkeys(curve.kind for curve in panel.curves))
    if not kinds or len(kinds) > len(LINES):
        raise ValueError(f"panels: {panel.title!r} has {len(kinds)} kinds of curves, wanted one to {len(LINES)}")
    dress(axes, widths.tolist())
    axes.set_xticks(widths, [f"$2^{{{math.log2(n):.0f}}}$" if math.log2(n).is_integer() else f"{n:g}" for n in widths])
    axes.set_xlabel("width n", fontsize=11.5)
    axes.set_ylabel("relative mean square error", fontsize=11.5)
    axes.set_yscale("log")
    for curve in panel.curves:
        errors = np.asarray(curve.errors, dtype=float)
        if errors.ndim != 2 or errors.shape[1] != len(widths) or not (np.isfinite(errors) & (errors > 0)).all():
            raise ValueError(f"panels: {panel.title!r}: wanted errors (networks, {len(widths)}) above 0")
        colour = COLOURS[groups.index(curve.group)]
        place = kinds.index(curve.kind)
        mean = errors.mean(0)
        std = errors.std(0, ddof=1) if len(errors) > 1 else np.full(len(widths), np.nan)
        bar = np.stack([np.minimum(std, 0.8 * mean), std])  # the lower end stays above 0 for the logarithmic axis
        axes.errorbar(
            widths, mean, bar, label=f"{curve.group}, {curve.kind}", color=colour, marker=MARKERS[place],
            **CURVE | {"linestyle": "none", **({"markerfacecolor": "white"} if place else {})},
        )  # fmt: skip
        if curve.fit is not None:
            limit, c, p = curve.fit
            x = np.geomspace(widths[0], widths[-1], 200)
            axes.plot(x, limit + c * x**-p, color=colour, linestyle=LINES[place], linewidth=1.3, zorder=1.5)
            if limit > 0.2 * mean[-1] and curve.limit is None:  # a smaller limit hardly changes the curve
                axes.axhline(limit, color=colour, linestyle=":", linewidth=1.1, zorder=1)
        if curve.limit is not None:
            axes.axhline(curve.limit, color=colour, linestyle=":", linewidth=1.1, zorder=1)
    start = max(np.mean(curve.errors, axis=0)[0] for curve in panel.curves)
    for name, slope in panel.slopes.items():
        y = 1.6 * start * (widths / widths[0]) ** -slope
        axes.plot(widths, y, color=GREY, linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            f"$n^{{-{slope:.2g}}}$ {name}", (widths[-1], y[-1]), (8, 0), textcoords="offset points", fontsize=9.5,
            color=GREY, va="center", annotation_clip=False,
        )  # fmt: skip
    tidy_decades(axes)
    looks: list[dict[str, Any]] = [{"marker": MARKERS[i]} for i in range(len(kinds))]
    looks = looks[:1] + [look | {"markerfacecolor": "white"} for look in looks[1:]]
    shapes = [
        Line2D([], [], color=INK, linestyle="none", label=kind, **look) for kind, look in zip(kinds, looks, strict=True)
    ]
    colours = [
        Line2D([], [], color=colour, linewidth=4, label=group) for group, colour in zip(groups, COLOURS, strict=False)
    ]
    axes.legend(
        handles=colours + shapes, loc="lower left", facecolor="white", framealpha=1, edgecolor="none", fontsize=9.5
    )
    axes.set_title(panel.title, fontsize=11.5, color=INK)
