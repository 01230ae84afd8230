# SPDX-License-Identifier: BSD-3-Clause
"""Figures: arrays in, matplotlib Figures out. No pyplot, so no global state and no display."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Label = tuple[float, float, str, str]  # height, x where the curve ends, name, colour

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe, Ito (2008): colour-blind safe
MARKERS = ("o", "s", "D", "^", "v", "P")
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
INK, GREY, GRID = "#222222", "#6b6b6b", "#e4e4e4"
CURVE: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8, "markersize": 5.5, "capsize": 3, "elinewidth": 1.2}
KEY = ("linestyle", "linewidth", "markersize", "markerfacecolor")
FIELDS = ("method", "factor", "network", "site", "accuracy", "error")


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
    rows = _checked(records)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    if len(methods) > len(COLOURS):
        raise ValueError(f"records: at most {len(COLOURS)} methods can be told apart, got {len(methods)}")
    levels = {} if baselines is None else dict(baselines)
    for name, level in [*levels.items(), *([] if reference is None else [("reference", reference)])]:
        if not 0 <= level <= 1:
            raise ValueError(f"{name}: wanted an accuracy as a fraction, 0 to 1, got {level}")
    found = list(dict.fromkeys(row["site"] for row in rows))
    chosen = _shown(found, sites)
    known, deep = rows[0]["accuracy"] is not None, sites is None and len(found) > len(chosen)
    ratios = [1.05] * known + [1.0] + [1.0] * deep
    figure = _blank_figure(5 * len(ratios), 4.2)
    panels = list(figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0])
    if title is not None:
        figure.suptitle(title, fontsize=13, color=INK)
    factors = sorted({row["factor"] for row in rows})
    for axes in panels[: len(ratios) - deep]:
        _dress(axes, factors)
    if known:
        _draw_accuracy(panels[0], rows, methods, reference, levels)
    _draw_error(panels[known], rows, methods, chosen, named=not known)
    if deep:
        _draw_depth(panels[-1], rows, methods, found)
    return figure


class Curve(NamedTuple):
    """Errors at growing widths.

    Attributes:
        group: tells curves apart by colour, in all panels alike, as the sites of a network.
        kind: tells them apart by dashes.
        errors: (networks, widths), > 0; a point is their mean, its bar one standard deviation.
        fit: (e_inf, c, p) of ``e_inf + c n^-p``, a thin line, and a level where e_inf is more than a fifth of the
            last error; or None.
    """

    group: str
    kind: str
    errors: np.ndarray
    fit: tuple[float, float, float] | None = None


class Panel(NamedTuple):
    """A panel: its title, its curves, and slopes of theory, exponents p by name, drawn as grey lines ``n^-p``."""

    title: str
    curves: Sequence[Curve]
    slopes: Mapping[str, float] = {}


def convergence(widths: Sequence[int], panels: Sequence[Panel], *, title: str | None = None) -> Figure:
    """Errors against width, both axes logarithmic, panel beside panel: curves, their fits, and slopes of theory.

    Args:
        widths: of all curves, increasing.
        panels: one or more, together with at most six groups and, in each, three kinds.
        title: above the panels.

    Returns:
        A `matplotlib.figure.Figure` of 4.6 inches a panel by 4.6 inches.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no panels or a panel without curves, errors of another shape or not above 0, too many groups or
            kinds.
    """
    figure = _blank_figure(4.6 * max(len(panels), 1), 4.6)
    groups = list(dict.fromkeys(curve.group for panel in panels for curve in panel.curves))
    if not groups or len(groups) > len(COLOURS):
        raise ValueError(f"panels: wanted curves of one to {len(COLOURS)} groups, got {len(groups)}")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_convergence(axes, np.asarray(widths, dtype=float), panel, groups)
    if title is not None:
        figure.suptitle(title, fontsize=13, color=INK)
    return figure


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160) -> None:
    """Write `figure` to `path`, the whole file or none; the suffix chooses the format (png, pdf, svg).

    Raises:
        ValueError: another suffix.
        FileNotFoundError: the folder of `path` is missing.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise ValueError(f"path: wanted a name that ends in .png, .pdf or .svg, got {path.name}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _draw_accuracy(
    axes: Axes, rows: list[Record], methods: list[str], reference: float | None, baselines: dict[str, float]
) -> None:
    """The left panel: a line per method and a level per baseline, each named at its right end."""
    once = {(row["method"], row["factor"], row["network"]): row for row in rows}.values()
    labels: list[Label] = []
    for method, colour, marker in zip(methods, COLOURS, MARKERS, strict=False):
        x, mean, std = _statistics([row for row in once if row["method"] == method], "accuracy")
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
    _label_ends(axes, labels)


def _draw_error(axes: Axes, rows: list[Record], methods: list[str], sites: list[str], *, named: bool) -> None:
    """The second panel: colour tells the method, as in the first, dashes the site. `named`: with a key to methods."""
    from matplotlib.lines import Line2D

    looks = [{**CURVE, "linestyle": line, **({} if line == "-" else {"markerfacecolor": "white"})} for line in LINES]
    for method, colour, marker in zip(methods, COLOURS, MARKERS, strict=False):
        for site, look in zip(sites, looks, strict=False):
            mine = [row for row in rows if row["method"] == method and row["site"] == site]
            if mine:
                x, mean, std = _statistics(mine, "error")
                axes.errorbar(x, mean, std, label=f"{method}, {site}", color=colour, marker=marker, **look)
    axes.set_yscale("log")
    axes.margins(y=0)
    _tidy_decades(axes)
    axes.set_ylabel(r"held-out error  $\mathrm{E}|\hat\varphi-\varphi|^2\,/\,\mathrm{E}|\varphi|^2$", fontsize=11.5)
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
        x, mean, std = _statistics([{**row, "factor": 1 + sites.index(row["site"])} for row in mine], "error")
        axes.errorbar(x, mean, std, label=method, color=colour, marker=marker, **CURVE)
    _dress(axes, [1, len(sites)])
    axes.set_xscale("linear")
    axes.set_xticks([1, *range(5, len(sites) + 1, 5)])
    axes.set_xlim(0, len(sites) + 1)
    axes.set_xlabel("site, in order", fontsize=11.5)
    axes.set_yscale("log")
    axes.margins(y=0)
    _tidy_decades(axes)
    axes.set_title(f"held-out error, n/d = {widest:g}", fontsize=10.5, color=INK)


def _draw_convergence(axes: Axes, widths: np.ndarray, panel: Panel, groups: list[str]) -> None:
    """One panel: curves as markers, fits as thin lines, e_inf as levels, theory in grey through the first curve."""
    from matplotlib.lines import Line2D

    kinds = list(dict.fromkeys(curve.kind for curve in panel.curves))
    if not kinds or len(kinds) > len(LINES):
        raise ValueError(f"panels: {panel.title!r} has {len(kinds)} kinds of curves, wanted one to {len(LINES)}")
    _dress(axes, widths.tolist())
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
        bar = np.stack([np.minimum(std, 0.8 * mean), std])  # a logarithmic axis has no place below 0
        axes.errorbar(
            widths, mean, bar, label=f"{curve.group}, {curve.kind}", color=colour, marker=MARKERS[place],
            **CURVE | {"linestyle": "none", **({"markerfacecolor": "white"} if place else {})},
        )  # fmt: skip
        if curve.fit is not None:
            limit, c, p = curve.fit
            x = np.geomspace(widths[0], widths[-1], 200)
            axes.plot(x, limit + c * x**-p, color=colour, linestyle=LINES[place], linewidth=1.3, zorder=1.5)
            if limit > 0.2 * mean[-1]:  # it bends the curve
                axes.axhline(limit, color=colour, linestyle=":", linewidth=1.1, zorder=1)
    start = max(np.mean(curve.errors, axis=0)[0] for curve in panel.curves)
    for name, slope in panel.slopes.items():
        y = 1.6 * start * (widths / widths[0]) ** -slope
        axes.plot(widths, y, color=GREY, linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            f"$n^{{-{slope:.2g}}}$ {name}", (widths[-1], y[-1]), (8, 0), textcoords="offset points", fontsize=9.5,
            color=GREY, va="center", annotation_clip=False,
        )  # fmt: skip
    _tidy_decades(axes)
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


def _dress(axes: Axes, factors: list[float]) -> None:
    """Axes with a width-factor axis whose ticks are the factors themselves, and nothing that carries no data."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(factors, [f"{factor:g}" for factor in factors])
    axes.set_xticks([], minor=True)
    axes.set_xlim(factors[0] / 1.35, factors[-1] * 1.35)
    axes.set_xlabel("width factor n/d", fontsize=11.5)
    axes.tick_params(which="both", labelsize=10.5, color=GREY, labelcolor=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def _tidy_decades(axes: Axes) -> None:
    """A logarithmic y axis from one number of the series 1, 2, 5, 10, ... to another, those numbers as its ticks;
    powers of ten alone where there would be more than eight."""
    low, high = axes.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    series = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    low, high = max(v for v in series if v <= low), min(v for v in series if v >= high)
    ticks = [value for value in series if low <= value <= high]
    if len(ticks) > 8:
        ticks = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
    axes.set_ylim(low, high)
    axes.set_yticks(ticks, [f"{value:g}" for value in ticks])
    axes.set_yticks([], minor=True)


def _label_ends(axes: Axes, labels: list[Label]) -> None:
    """Name and height of each curve in the right margin, in its colour, moved apart where texts would overlap."""
    low, high = axes.get_ylim()
    labels = sorted(labels)
    places = _spread([height for height, *_ in labels], 0.068 * (high - low))
    for place, (height, end, name, colour) in zip(places, labels, strict=True):
        axes.annotate(
            f"{name} {height:.1f}", (end, height), (1.05, place), textcoords=("axes fraction", "data"), va="center",
            fontsize=10.5, color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 0,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Increasing `heights` moved as little as need be (least squares) for neighbours to be `gap` apart."""
    blocks: list[tuple[float, int]] = []  # each a mean of height - index * gap, and how many labels share it
    for index, height in enumerate(heights):
        mean, count = height - index * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, count = (mean * count + before * many) / (count + many), count + many
        blocks.append((mean, count))
    bases = [mean for mean, count in blocks for _ in range(count)]
    return [base + index * gap for index, base in enumerate(bases)]


def _statistics(rows: Iterable[Record], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors in increasing order, mean and standard deviation (NaN for one network) of `key` over the networks."""
    groups: dict[float, list[float]] = {}
    for row in rows:
        groups.setdefault(float(row["factor"]), []).append(float(row[key]))
    x = np.array(sorted(groups))
    mean = np.array([np.mean(groups[factor]) for factor in x])
    std = np.array([np.std(groups[factor], ddof=1) if len(groups[factor]) > 1 else np.nan for factor in x])
    return x, mean, std


def _shown(found: list[str], wanted: Sequence[str] | None) -> list[str]:
    """The sites of the second panel."""
    if wanted is None:
        return found if len(found) <= len(LINES) else [found[0], found[len(found) // 2], found[-1]]
    unknown = [site for site in wanted if site not in found]
    if unknown or not 1 <= len(wanted) <= len(LINES):
        raise ValueError(f"sites: wanted one to {len(LINES)} of {found}, got {list(wanted)}")
    return list(wanted)


def _checked(records: Iterable[Record]) -> list[Record]:
    """The records, or a ValueError that names the first that does not belong."""
    rows = list(records)
    if not rows:
        raise ValueError("records: wanted at least one, got none")
    accuracies: dict[tuple[object, ...], float] = {}
    seen: set[tuple[object, ...]] = set()
    for index, row in enumerate(rows):
        missing = [field for field in FIELDS if field not in row]
        if missing:
            raise ValueError(f"records: record {index} lacks {', '.join(missing)}")
        if not 0 < row["factor"] < math.inf:
            raise ValueError(f"records: record {index} has factor {row['factor']}, wanted a number above 0")
        if (row["accuracy"] is None) != (rows[0]["accuracy"] is None):
            raise ValueError(f"records: some have an accuracy, record {index} differs from the first")
        if row["accuracy"] is not None and not 0 <= row["accuracy"] <= 1:
            raise ValueError(f"records: record {index} has accuracy {row['accuracy']}, wanted a fraction, 0 to 1")
        if not 0 <= row["error"] < math.inf:
            raise ValueError(f"records: record {index} has error {row['error']}, wanted a finite number, 0 or more")
        network = (row["method"], row["factor"], row["network"])
        if (*network, row["site"]) in seen:
            raise ValueError(f"records: record {index} repeats method, factor, network and site of an earlier one")
        seen.add((*network, row["site"]))
        if accuracies.setdefault(network, row["accuracy"]) != row["accuracy"]:
            raise ValueError(f"records: record {index} gives its network another accuracy than an earlier one")
    return rows


def _blank_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, or an error that names the extra."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "rainbow_fast[plots]"') from error
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06, wspace=0.04)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")
