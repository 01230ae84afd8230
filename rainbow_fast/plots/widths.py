# SPDX-License-Identifier: BSD-3-Clause
"""A figure of accuracy and held-out error against the width, from one record for each site of each sampled network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rainbow_fast.plots.axes import (
    COLOURS,
    CURVE,
    ERROR_LABEL,
    GREY,
    INK,
    KEY,
    LINES,
    MARKERS,
    Label,
    Record,
    blank_figure,
    checked,
    draw_curve,
    dress,
    label_ends,
    placed,
    shown,
    statistics,
    tidy_decades,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def accuracy_and_error(
    records: Iterable[Record],
    *,
    reference: float | None = None,
    baselines: Mapping[str, float] | None = None,
    sites: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Panels against the width factor n/d: the test accuracy, and the held-out error; then the error at all sites.

    A point is the mean over the sampled networks of one method and one factor, and its bar is one standard deviation
    (divisor: networks - 1; no bar for one network). The error is `E|phih - phi|^2 / E|phi|^2`. The axes of the factor
    and of the error are logarithmic. Without accuracies, the first panel is left out. If there are more than three
    sites and `sites` is None, a third panel shows the error at each site, in order, at the largest factor.

    Args:
        records: one mapping for each sampled network and site, with the keys `method` (str), `factor` (n/d, > 0;
            math.inf for infinite width, which is drawn apart, with a dotted line across the panel),
            `network` (distinguishes the networks of one method and factor), `site` (str), `accuracy` (a fraction that
            is the same in all records of a network, or None in all records) and `error` (held-out error, >= 0, or NaN
            if it is undefined, which leaves a gap). Other keys are ignored.
        reference: accuracy of the trained network, a fraction, drawn as a dashed line.
        baselines: other accuracies by name, fractions, drawn as dotted lines.
        sites: at most three sites for the second panel. By default all sites in the order of the records, or the first,
            middle and last if there are more than three.
        title: title above the panels.

    Returns:
        A `matplotlib.figure.Figure`, 4.2 inches high and 5 inches wide for each panel.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no records, a record lacks a key or has a value out of its range, a fraction is outside
            0 .. 1, a site has two records, a network has two accuracies, `sites` are unknown or too many, or there are
            more than six methods.
    """
    rows, infinite = placed(checked(records))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    if len(methods) > len(COLOURS):
        raise ValueError(f"records: at most {len(COLOURS)} methods can be told apart, got {len(methods)}")
    levels = {} if baselines is None else dict(baselines)
    for name, level in [*levels.items(), *([] if reference is None else [("reference", reference)])]:
        if not 0 <= level <= 1:
            raise ValueError(f"{name}: wanted an accuracy as a fraction, 0 to 1, got {level}")
    all_sites = list(dict.fromkeys(row["site"] for row in rows))
    chosen = shown(all_sites, sites)
    has_accuracy, deep = rows[0]["accuracy"] is not None, sites is None and len(all_sites) > len(chosen)
    ratios = [1.05] * has_accuracy + [1.0] + [1.0] * deep
    figure = blank_figure(5 * len(ratios), 4.2)
    panels = list(figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0])
    if title is not None:
        figure.suptitle(title, fontsize=13, color=INK)
    factors = sorted({row["factor"] for row in rows})
    for axes in panels[: len(ratios) - deep]:
        dress(axes, factors, infinite)
    if has_accuracy:
        _draw_accuracy(panels[0], rows, methods, reference, levels, infinite)
    _draw_error(panels[has_accuracy], rows, methods, chosen, infinite, named=not has_accuracy)
    if deep:
        _draw_depth(panels[-1], rows, methods, all_sites, infinite)
    return figure


def _draw_accuracy(
    axes: Axes,
    rows: list[Record],
    methods: list[str],
    reference: float | None,
    baselines: dict[str, float],
    infinite: float | None,
) -> None:
    """Draw the left panel: a curve for each method and a horizontal line for each baseline, with names on the right."""
    once = {(row["method"], row["factor"], row["network"]): row for row in rows}.values()
    labels: list[Label] = []
    for method, colour, marker in zip(methods, COLOURS, MARKERS, strict=False):
        x, mean, std = statistics([row for row in once if row["method"] == method], "accuracy")
        points = (x, 100 * mean, 100 * std)
        draw_curve(axes, points, infinite, label=method, color=colour, marker=marker, **CURVE)
        labels.append((100 * mean[-1], x[-1], method, colour))
    edge = axes.get_xlim()[1]
    levels = [(name, level, ":", GREY) for name, level in baselines.items()]
    levels += [] if reference is None else [("trained", reference, "--", INK)]
    for name, level, line, colour in levels:
        axes.axhline(100 * level, label=name, color=colour, linestyle=line, linewidth=1.4, zorder=1)
        labels.append((100 * level, edge, name, colour))
    axes.set_ylabel("test accuracy (%)", fontsize=11.5)
    axes.margins(y=0.08)
    label_ends(axes, labels)


def _draw_error(
    axes: Axes, rows: list[Record], methods: list[str], sites: list[str], infinite: float | None, *, named: bool
) -> None:
    """Draw the second panel: a colour for each method, dashes for each site. `named` adds the methods to the legend."""
    from matplotlib.lines import Line2D

    looks = [{**CURVE, "linestyle": line, **({} if line == "-" else {"markerfacecolor": "white"})} for line in LINES]
    for method, colour, marker in zip(methods, COLOURS, MARKERS, strict=False):
        for site, look in zip(sites, looks, strict=False):
            mine = [row for row in rows if row["method"] == method and row["site"] == site]
            points = statistics(mine, "error")
            if len(points[0]):
                draw_curve(axes, points, infinite, label=f"{method}, {site}", color=colour, marker=marker, **look)
    axes.set_yscale("log")
    axes.margins(y=0)
    tidy_decades(axes)
    axes.set_ylabel(ERROR_LABEL, fontsize=11.5)
    keys = [
        Line2D([], [], color=INK, marker="o", label=f"site {site}", **{k: look[k] for k in look if k in KEY})
        for site, look in zip(sites, looks, strict=False)
    ]
    ncols = 3 if sum(map(len, sites)) < 30 else 1
    if named:
        ncols = 2
        keys += [Line2D([], [], color=c, linewidth=4, label=m) for m, c in zip(methods, COLOURS, strict=False)]
    axes.legend(
        handles=keys, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=ncols, frameon=False, fontsize=10.5,
        handlelength=2.6, columnspacing=1.5, borderpad=0.1,
    )  # fmt: skip


def _draw_depth(axes: Axes, rows: list[Record], methods: list[str], sites: list[str], infinite: float | None) -> None:
    """Draw the third panel: the error of the widest networks at each site."""
    widest = max(row["factor"] for row in rows)
    for method, colour, marker in zip(methods, COLOURS, MARKERS, strict=False):
        mine = [row for row in rows if (row["method"], row["factor"]) == (method, widest)]
        x, mean, std = statistics([{**row, "factor": 1 + sites.index(row["site"])} for row in mine], "error")
        axes.errorbar(x, mean, std, label=method, color=colour, marker=marker, **CURVE)
    dress(axes, [1, len(sites)])
    axes.set_xscale("linear")
    axes.set_xticks([1, *range(5, len(sites) + 1, 5)])
    axes.set_xlim(0, len(sites) + 1)
    axes.set_xlabel("site, in order", fontsize=11.5)
    axes.set_yscale("log")
    axes.margins(y=0)
    tidy_decades(axes)
    ratio = "\u221e" if widest == infinite else f"{widest:g}"
    axes.set_title(f"held-out error, n/d = {ratio}", fontsize=10.5, color=INK)
