# SPDX-License-Identifier: BSD-3-Clause
"""Figures: arrays in, matplotlib Figures out. No pyplot, so no global state and no display."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
ERROR_LABEL = r"held-out error  $\mathrm{E}|\hat\varphi-\varphi|^2\,/\,\mathrm{E}|\varphi|^2$"
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
    """Two panels against the width factor n/d: test accuracy, and held-out alignment error of each site.

    A point is the mean over the sampled networks of one method and one factor, its bar one standard deviation
    (divisor: networks - 1; no bar for one network). Error: `E|phih - phi|^2 / E|phi|^2`. The factor has a logarithmic
    axis in both panels, the error too.

    Args:
        records: one mapping per sampled network and site, with the keys `method` (str), `factor` (n/d, > 0),
            `network` (what tells the networks of a method and a factor apart), `site` (str), `accuracy` (fraction, the
            same in all records of a network) and `error` (held-out, >= 0). Other keys are ignored.
        reference: accuracy of the trained network, a fraction: a dashed line.
        baselines: name to accuracy, fractions: dotted lines.
        sites: those of the second panel, at most three. Default: all, or the first, middle and last if there are
            more, in the order in which they come.
        title: above the panels.

    Returns:
        A `matplotlib.figure.Figure` of 10 x 4.2 inches.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no records, a record that lacks a key or has a value out of its range, a fraction outside 0 .. 1,
            two records of one site, a network with two accuracies, unknown or too many `sites`, more than six methods.
    """
    figure = _blank_figure(10, 4.2)
    rows = _checked(records)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    if len(methods) > len(COLOURS):
        raise ValueError(f"records: at most {len(COLOURS)} methods can be told apart, got {len(methods)}")
    levels = {} if baselines is None else dict(baselines)
    for name, level in [*levels.items(), *([] if reference is None else [("reference", reference)])]:
        if not 0 <= level <= 1:
            raise ValueError(f"{name}: wanted an accuracy as a fraction, 0 to 1, got {level}")
    shown = _shown(list(dict.fromkeys(row["site"] for row in rows)), sites)

    left, right = figure.subplots(1, 2, width_ratios=(1.05, 1))
    if title is not None:
        figure.suptitle(title, fontsize=13, color=INK)
    factors = sorted({row["factor"] for row in rows})
    for axes in (left, right):
        _dress(axes, factors)
    _draw_accuracy(left, rows, methods, reference, levels)
    _draw_error(right, rows, methods, shown)
    return figure


def against_novelty(
    groups: Sequence[Sequence[Record]], *, reference: float | None = None, title: str | None = None
) -> Figure:
    """Two panels against the novelty of the sampled neurons: test accuracy, and alignment error.

    A point is the mean over the networks of a group, its bars one standard deviation (divisor: networks - 1).

    Args:
        groups: of networks sampled alike, each a mapping with the keys `novelty`, `accuracy` and `refit_accuracy`
            (fractions), `error` (mean over sites) and `last_error` (at the last site).
        reference: accuracy of the trained network, a fraction: a dashed line.
        title: above the panels.

    Returns:
        A `matplotlib.figure.Figure` of 10 x 4.2 inches.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no groups, or an empty one.
    """
    figure = _blank_figure(10, 4.2)
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
                _over_networks([[row[k] for row in group] for group in groups]) for k in ("novelty", key)
            )
            axes.errorbar(x, unit * y, unit * sy, sx, label=name, color=colour, marker=marker, **CURVE)
        _plain(axes)
        axes.set_xlabel("novelty of the neurons", fontsize=11.5)
    left.set_ylabel("test accuracy (%)", fontsize=11.5)
    right.set_ylabel(ERROR_LABEL, fontsize=11.5)
    if reference is not None:
        left.axhline(100 * reference, label="trained network", color=INK, linestyle="--", linewidth=1.4, zorder=1)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=10.5)
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


def _draw_error(axes: Axes, rows: list[Record], methods: list[str], sites: list[str]) -> None:
    """The right panel: a line per method and site; colour tells the method, as on the left, dashes the site."""
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
    axes.set_ylabel(ERROR_LABEL, fontsize=11.5)
    keys = [
        Line2D([], [], color=INK, marker="o", label=f"site {site}", **{k: look[k] for k in look if k in KEY})
        for site, look in zip(sites, looks, strict=False)
    ]
    axes.legend(
        handles=keys, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(keys), frameon=False, fontsize=10.5,
        handlelength=2.6, columnspacing=1.5, borderpad=0.1,
    )  # fmt: skip


def _dress(axes: Axes, factors: list[float]) -> None:
    """Axes with a width-factor axis whose ticks are the factors themselves, and nothing that carries no data."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(factors, [f"{factor:g}" for factor in factors])
    axes.set_xticks([], minor=True)
    axes.set_xlim(factors[0] / 1.35, factors[-1] * 1.35)
    axes.set_xlabel("width factor n/d", fontsize=11.5)
    _plain(axes)


def _plain(axes: Axes) -> None:
    """Nothing that carries no data."""
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
    return x, *_over_networks([groups[factor] for factor in x])


def _over_networks(groups: Iterable[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (NaN for one network) of each group."""
    pairs = [(np.mean(group), np.std(group, ddof=1) if len(group) > 1 else np.nan) for group in groups]
    return np.array([m for m, _ in pairs]), np.array([s for _, s in pairs])


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
        if not 0 <= row["accuracy"] <= 1:
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
