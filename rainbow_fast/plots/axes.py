# SPDX-License-Identifier: BSD-3-Clause
"""Shared parts of the figures: colours, plain axes, names at the ends of curves, statistics, files."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rainbow_fast.io import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Label = tuple[float, float, str, str]  # y and x of the end of the curve, name, colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe, Ito (2008): colour-blind safe
MARKERS = ("o", "s", "D", "^", "v", "P")
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
INK, GREY, GRID = "#222222", "#6b6b6b", "#e4e4e4"
CURVE: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8, "markersize": 5.5, "capsize": 3, "elinewidth": 1.2}
ERROR_LABEL = r"held-out error  $\mathrm{E}|\hat\varphi-\varphi|^2\,/\,\mathrm{E}|\varphi|^2$"
KEY = ("linestyle", "linewidth", "markersize", "markerfacecolor")
FIELDS = ("method", "factor", "network", "site", "accuracy", "error")


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 160) -> None:
    """Write `figure` to `path`, completely or not at all. The suffix chooses the format: png, pdf or svg.

    Args:
        figure: the figure.
        path: the file.
        dpi: dots per inch; 160 by default.

    Raises:
        ValueError: `path` has another suffix.
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "pdf", "svg"):
        raise ValueError(f"path: wanted a name that ends in .png, .pdf or .svg, got {path.name}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi)
    write_whole(path, buffer.getvalue())


def stacked(figures: Iterable[Figure], *, dpi: int = 110) -> bytes:
    """Figures of the same width, one below the other, as the bytes of a PNG with `dpi` dots per inch.

    Raises:
        ValueError: there is no figure, or the widths differ.
    """
    from matplotlib import image
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    rows = []
    for figure in figures:
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        rows.append(np.asarray(canvas.buffer_rgba())[..., :3])
    if len({row.shape[1] for row in rows}) != 1:
        raise ValueError(f"figures: wanted at least one, all of one width, got widths {[r.shape[1] for r in rows]}")
    buffer = io.BytesIO()
    image.imsave(buffer, np.concatenate(rows), format="png")
    return buffer.getvalue()


def dress(axes: Axes, factors: list[float], infinite: float | None = None) -> None:
    """Give axes a logarithmic x-axis of width factors, with a tick at each factor, and the style of `plain`.

    The factor `infinite` stands for infinite width.
    """
    axes.set_xscale("log", base=2)
    axes.set_xticks(factors, ["\u221e" if factor == infinite else f"{factor:g}" for factor in factors])
    axes.set_xticks([], minor=True)
    axes.set_xlim(factors[0] / 1.35, factors[-1] * 1.35)
    axes.set_xlabel("width factor n/d", fontsize=11.5)
    plain(axes)


def plain(axes: Axes) -> None:
    """Give axes a plain style: a light grid, and no frame at the top and on the right."""
    axes.tick_params(which="both", labelsize=10.5, color=GREY, labelcolor=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def tidy_decades(axes: Axes, *, along: str = "y", most: int = 8) -> None:
    """Let a logarithmic axis begin and end at numbers of the series 1, 2, 5, 10, ..., with ticks at these numbers.

    Args:
        axes: the axes.
        along: "x" or "y".
        most: the largest number of ticks. If the series has more, only powers of ten get ticks; if there are still too
            many, every k-th power of ten.
    """
    low, high = axes.get_xlim() if along == "x" else axes.get_ylim()
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)  # one more: log10 rounds
    series = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    low, high = max(v for v in series if v <= low), min(v for v in series if v >= high and v > low)
    ticks = [value for value in series if low <= value <= high]
    if len(ticks) > most:
        powers = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
        ticks = powers[:: -(-len(powers) // most)]
    set_limits, set_ticks = (axes.set_xlim, axes.set_xticks) if along == "x" else (axes.set_ylim, axes.set_yticks)
    set_limits(low, high)
    set_ticks(ticks, [f"{value:g}" for value in ticks])
    set_ticks([], minor=True)


def label_ends(axes: Axes, labels: list[Label]) -> None:
    """Write the name and last value of each curve into the right margin, in its colour. Texts do not overlap."""
    low, high = axes.get_ylim()
    labels = sorted(labels)
    places = spread([height for height, *_ in labels], 0.068 * (high - low))
    for place, (height, end, name, colour) in zip(places, labels, strict=True):
        axes.annotate(
            f"{name} {height:.1f}", (end, height), (1.05, place), textcoords=("axes fraction", "data"), va="center",
            fontsize=10.5, color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 0,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Increasing `heights`, moved as little as possible (least squares) so that neighbours are `gap` apart."""
    blocks: list[tuple[float, int]] = []  # labels that touch: the mean of height - index * gap, and their number
    for index, height in enumerate(heights):
        mean, count = height - index * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, count = (mean * count + before * many) / (count + many), count + many
        blocks.append((mean, count))
    bases = [mean for mean, count in blocks for _ in range(count)]
    return [base + index * gap for index, base in enumerate(bases)]


def statistics(rows: Iterable[Record], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The factors in increasing order, and the mean and standard deviation (NaN for one network) of `key` for each.

    Values that are NaN are left out, and so are factors that have no other values.
    """
    groups: dict[float, list[float]] = {}
    for row in rows:
        if not math.isnan(row[key]):
            groups.setdefault(float(row["factor"]), []).append(float(row[key]))
    x = np.array(sorted(groups))
    return x, *over_networks([groups[factor] for factor in x])


def over_networks(groups: Iterable[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean (NaN for an empty group) and standard deviation (NaN for one network) of each group."""
    pairs = [
        (np.mean(group) if len(group) else np.nan, np.std(group, ddof=1) if len(group) > 1 else np.nan)
        for group in groups
    ]
    return np.array([m for m, _ in pairs]), np.array([s for _, s in pairs])


def placed(rows: list[Record]) -> tuple[list[Record], float | None]:
    """The rows with a place at the right end of the axis as the factor of infinite width, and this place, if any."""
    factors = {row["factor"] for row in rows}
    if math.inf not in factors:
        return rows, None
    place = 4 * max(factors - {math.inf}, default=0.25)
    return [{**row, "factor": place if row["factor"] == math.inf else row["factor"]} for row in rows], place


def draw_curve(
    axes: Axes, points: tuple[np.ndarray, np.ndarray, np.ndarray], infinite: float | None, **look: Any
) -> None:
    """Draw the result of `statistics`; the value at infinite width is a point apart, and a dotted line across."""
    x, mean, std = points
    apart = np.array([factor == infinite for factor in x], dtype=bool)
    axes.errorbar(x[~apart], mean[~apart], std[~apart], **look)
    for place in np.flatnonzero(apart):
        point = look | {"linestyle": "none", "label": None}
        axes.errorbar(x[place : place + 1], mean[place : place + 1], **point)
        axes.axhline(mean[place], color=look["color"], linestyle=LINES[2], linewidth=0.9, zorder=1)


def shown(sites: list[str], wanted: Sequence[str] | None) -> list[str]:
    """The sites that the panel of errors shows: the wanted ones; else all, or the first, middle and last."""
    if wanted is None:
        return sites if len(sites) <= len(LINES) else [sites[0], sites[len(sites) // 2], sites[-1]]
    unknown = [site for site in wanted if site not in sites]
    if unknown or not 1 <= len(wanted) <= len(LINES):
        raise ValueError(f"sites: wanted one to {len(LINES)} of {sites}, got {list(wanted)}")
    return list(wanted)


def checked(records: Iterable[Record]) -> list[Record]:
    """The records as a list; raises ValueError at the first record that is not valid."""
    rows = list(records)
    if not rows:
        raise ValueError("records: wanted at least one, got none")
    accuracies: dict[tuple[object, ...], float] = {}
    seen: set[tuple[object, ...]] = set()
    for index, row in enumerate(rows):
        missing = [field for field in FIELDS if field not in row]
        if missing:
            raise ValueError(f"records: record {index} lacks {', '.join(missing)}")
        if not 0 < row["factor"]:
            raise ValueError(f"records: record {index} has factor {row['factor']}, wanted a number above 0")
        if (row["accuracy"] is None) != (rows[0]["accuracy"] is None):
            raise ValueError(f"records: some have an accuracy, record {index} differs from the first")
        if row["accuracy"] is not None and not 0 <= row["accuracy"] <= 1:
            raise ValueError(f"records: record {index} has accuracy {row['accuracy']}, wanted a fraction, 0 to 1")
        if row["error"] is None or row["error"] < 0 or row["error"] == math.inf:
            raise ValueError(f"records: record {index} has error {row['error']}, wanted a number from 0, or NaN")
        network = (row["method"], row["factor"], row["network"])
        if (*network, row["site"]) in seen:
            raise ValueError(f"records: record {index} repeats method, factor, network and site of an earlier one")
        seen.add((*network, row["site"]))
        if accuracies.setdefault(network, row["accuracy"]) != row["accuracy"]:
            raise ValueError(f"records: record {index} gives its network another accuracy than an earlier one")
    return rows


def blank_figure(width: float, height: float) -> Figure:
    """An empty figure with sizes in inches; an ImportError says how to install matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401  # raises also if the class below is already loaded
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        from rainbow_fast.plots.notebook_figure import NotebookFigure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "rainbow_fast[plots]"') from error
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06, wspace=0.04)
    return NotebookFigure(figsize=(width, height), layout=layout, facecolor="white")
