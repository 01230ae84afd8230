# SPDX-License-Identifier: BSD-3-Clause
"""Accuracy and alignment error against the width, a record for each site of each sampled network."""

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
    dress,
    label_ends,
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
    """Panels against the width factor n/d: test accuracy, and held-out alignment error; then the error at all sites.

    A point is the mean over the sampled networks of one method and one factor, its bar one standard deviation
    (divisor: networks - 1; no bar for one network). Error: `E|phih - phi|^2 / E|phi|^2`. The factor has a logarithmic
    axis in both panels, the error too. Without accuracies there is no first panel. Where there are more than three
    sites, and none are chosen, a third panel has the error at every site, in order, at the largest factor.

    Args:
        records: one mapping per sampled network and site, with the keys `method` (str), `factor` (n/d, > 0),
            `network` (what tells the networks of a method and a factor apart), `site` (str), `accuracy` (fraction, the
            same in all records of a network, or None in all records) and `error` (held-out, >= 0). Other keys are
            ignored.
        reference: accuracy of the trained network, a fraction: a dashed line.
        baselines: name to accuracy, fractions: dotted lines.
        sites: those of the second panel, at most three. Default: all, or the first, middle and last if there are
            more, in the order in which they come.
        title: above the panels.

    Returns:
        A `matplotlib.figure.Figure`, 4.2 inches high, of 5 inches a panel.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no records, a record that lacks a key or has a value out of its range, a fraction outside 0 .. 1,
            two records of one site, a network with two accuracies, unknown or too many `sites`, more than six methods.
    """
    rows = checked(records)
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
        dress(axes, factors)
    if has_accuracy:
        _draw_accuracy(panels[0], rows, methods, reference, levels)
    _draw_error(panels[has_accuracy], rows, methods, chosen, named=not has_accuracy)
    if deep:
        _draw_depth(panels[-1], rows, methods, all_sites)
    return figure


def _draw_accuracy(
    axes: Axes, rows: list[Record], methods: list[str], reference: float | None, baselines: dict[str, float]
) -> None:
    """The left panel: a line per method and a level per baseline, each named at its right end."""
    once = {(row["method"], row["factor"], row["network"]): row for row in rows}.values()
    labels: list[Label] = []
    for method, colour, marker in zip(methods, COLOURS, MARKERS, strict=False):
        x, mean, std = statistics([row for row in once if row["method"] == method], "accuracy")
        axes.errorbar(x, 100 * mean, 100 * std, label=method, color=colour, marker=marker, **CURVE)
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


def _draw_error(axes: Axes, rows: list[Record], methods: list[str], sites: list[str], *, named: bool) -> None:
    """The second panel: colour tells the method, as in the first, dashes the site. `named`: with a key to methods."""
    from matplotlib.lines import Line2D

    looks = [{**CURVE, "linestyle": line, **({} if line == "-" else {"markerfacecolor": "white"})} for line in LINES]
    for method, colour, marker in zip(methods, COLOURS, MARKERS, strict=False):
        for site, look in zip(sites, looks, strict=False):
            mine = [row for row in rows if row["method"] == method and row["site"] == site]
            if mine:
                x, mean, std = statistics(mine, "error")
                axes.errorbar(x, mean, std, label=f"{method}, {site}", color=colour, marker=marker, **look)
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


def _draw_depth(axes: Axes, rows: list[Record], methods: list[str], sites: list[str]) -> None:
    """The third panel: the error at every site, of the widest networks."""
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
    axes.set_title(f"held-out error, n/d = {widest:g}", fontsize=10.5, color=INK)
