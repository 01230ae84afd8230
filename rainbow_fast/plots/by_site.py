# SPDX-License-Identifier: BSD-3-Clause
"""Figures with one row for each site of a network, the first site at the top."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rainbow_fast.plots.axes import COLOURS, GREY, GRID, INK, Record, blank_figure, tidy_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, MOST_HEIGHT = 8.0, 10.5  # in inches; fits on a page of A4 or letter
ROW, LEAST_ROWS, FRAME = 0.24, 1.2, 1.9  # heights in inches: of a row, the least of all rows, of title, legend and axis
MOST_NAMES = 48  # most names on the axis; with more sites, only every second, third, ... site is named
MOST_LETTERS = 28  # longest name on the axis
TEXT, SMALL_TEXT = 10.5, 9.0
BLANK: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # hides the grid behind text
BARS: dict[str, Any] = {"height": 0.72, "linewidth": 0}
SIMILARITY: dict[str, dict[str, Any]] = {"similarity": {"color": COLOURS[0], "marker": "o"}}
RING: dict[str, Any] = {"markerfacecolor": "white", "markersize": 7.5, "linewidth": 0.8}  # a ring around a marker
ERRORS: dict[str, dict[str, Any]] = {  # style of each field of a record, in the order of drawing
    "error": {"label": r"alignment, over $\mathrm{E}|\varphi|^2$", "color": COLOURS[0], "marker": "o", **RING},
    "held_out_error": {"label": r"held-out, over $\mathrm{E}|\varphi|^2$", "color": COLOURS[0], "marker": "o"},
    "error_centred": {"label": "alignment, over the variance", "color": COLOURS[1], "marker": "s", **RING},
    "held_out_error_centred": {"label": "held-out, over the variance", "color": COLOURS[1], "marker": "s"},
}
RANKS: dict[str, dict[str, Any]] = {
    "d": {"label": "channels d", "color": GREY, "marker": "|", "markersize": 9, "linestyle": "none"},
    "M_rank": {"label": "rank of M", "color": COLOURS[2], "marker": "D"},
    "M_effective_rank": {"label": "effective rank of M", "color": COLOURS[3], "marker": "D"},
}


def alignment_by_site(records: Iterable[Record], *, title: str | None = None) -> Figure:
    """Three panels by site: similarity, alignment errors, and the rank of the cross-covariance M.

    Errors are relative squared errors: `E|phih - phi|^2` over `E|phi|^2`, and over the variance `E|phi - E phi|^2`, on
    the held-out data (filled markers) and on the alignment set (white markers). Their axis is logarithmic if all errors
    are above 0. The effective rank is `|M|_*^2 / |M|_F^2`. A value that is None or NaN has no marker.

    Args:
        records: one mapping for each site, in order, with the keys `site` (str), `similarity` (0 to 1), `error`,
            `error_centred`, `held_out_error`, `held_out_error_centred` (>= 0, NaN or None), `d` (channels of the
            reference, > 0), `M_rank` and `M_effective_rank` (> 0). If a record has another name under `other` (str),
            both names are shown. Other keys are ignored.
        title: title above the panels.

    Returns:
        A `matplotlib.figure.Figure` of 8 by at most 10.5 inches.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no records, or a record lacks a key.
    """
    rows = _checked(records, ["site", "similarity", *ERRORS, *RANKS])
    names = [row["site"] if row.get("other", row["site"]) == row["site"] else _pair(row) for row in rows]
    figure, (similarity, errors, ranks) = _panels(names, title, [0.8, 1.2, 1.0])
    _draw(similarity, rows, SIMILARITY)
    similarity.set_xlim(0, 1.03)
    similarity.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    similarity.set_xlabel("similarity (0 to 1)", fontsize=TEXT)
    _draw(errors, rows, ERRORS)
    errors.set_xlabel("relative squared error", fontsize=TEXT)
    _draw(ranks, rows, RANKS)
    ranks.set_xlabel("number of directions", fontsize=TEXT)
    for axes, most in ((errors, 5), (ranks, 6)):
        _logarithmic(axes, most)
        _key(axes)
    return figure


def channels_by_site(records: Iterable[Record], *, title: str | None = None) -> Figure:
    """The channels of each site as bars: blue for a sampled site, grey for a site that is kept.

    A text at the end of each bar gives the number of channels and the reason why the site is kept. With more than 48
    sites, there are no texts.

    Args:
        records: one mapping for each site, in order, with the keys `name` (str), `channels` (int) and `kept` (None for
            a sampled site, else the reason). Other keys are ignored.
        title: title above the panel.

    Returns:
        A `matplotlib.figure.Figure` of 8 by at most 10.5 inches.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no records, or a record lacks a key.
    """
    rows = _checked(records, ["name", "channels", "kept"])
    figure, (axes,) = _panels([row["name"] for row in rows], title, [1])
    widest = max(row["channels"] for row in rows)
    for label, colour, kept in (("sampled", COLOURS[0], False), ("kept", GREY, True)):
        places = [place for place, row in enumerate(rows) if (row["kept"] is not None) == kept]
        if places:
            axes.barh(places, [rows[place]["channels"] for place in places], color=colour, label=label, **BARS)
    for place, row in enumerate(rows if len(rows) <= MOST_NAMES else []):
        text = f"{row['channels']}" + (f", kept: {row['kept']}" if row["kept"] else "")
        inside = row["channels"] > 0.6 * widest and row["kept"]
        side: dict[str, Any] = {"xytext": (4, 0), "ha": "left", "color": INK, "bbox": BLANK}
        if inside:
            side = {"xytext": (-4, 0), "ha": "right", "color": "white"}
        xy = row["channels"], place
        axes.annotate(text, xy, textcoords="offset points", va="center", fontsize=SMALL_TEXT, **side)
    axes.set_xlim(0, 1.1 * widest)
    axes.set_xlabel("channels", fontsize=TEXT)
    _key(axes)
    return figure


def cost_by_site(records: Iterable[Record], *, rest: float = 0.0, title: str | None = None) -> Figure:
    """Two panels by site: the predicted time, divided into passes, and the peak memory.

    Args:
        records: one mapping for each site, in order, with the keys `site` (str), `seconds` (a mapping from the names of
            at most six passes to seconds) and `peak_bytes` (int). Other keys are ignored.
        rest: seconds that belong to no site; if above 0, they are shown as a bar below the sites.
        title: title above the panels.

    Returns:
        A `matplotlib.figure.Figure` of 8 by at most 10.5 inches.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no records, a record lacks a key, or there are more than six passes.
    """
    rows = _checked(records, ["site", "seconds", "peak_bytes"])
    passes = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    if len(passes) > len(COLOURS):
        raise ValueError(f"records: at most {len(COLOURS)} passes can be told apart, got {len(passes)}")
    names = [row["site"] for row in rows] + ["rest of the run"] * (rest > 0)
    figure, (time, memory) = _panels(names, title, [1.5, 1])
    size, unit = _unit(max([rest, *(sum(row["seconds"].values()) for row in rows)]), TIMES)
    left = np.zeros(len(rows))
    for name, colour in zip(passes, COLOURS, strict=False):
        seconds = np.array([row["seconds"].get(name, 0.0) for row in rows]) / size
        if seconds.any():
            time.barh(range(len(rows)), seconds, left=left, color=colour, label=name, **BARS)
        left += seconds
    if rest > 0:
        time.barh([len(rows)], [rest / size], color=GREY, **BARS)
    time.set_xlabel(f"predicted time ({unit})", fontsize=TEXT)
    _key(time, columns=3)
    size, unit = _unit(max(row["peak_bytes"] for row in rows), MEMORY)
    memory.barh(range(len(rows)), [row["peak_bytes"] / size for row in rows], color=COLOURS[0], **BARS)
    memory.set_xlabel(f"peak memory ({unit})", fontsize=TEXT)
    for axes in (time, memory):
        axes.set_xlim(left=0)
    return figure


TIMES = {1.0: "s", 1e-3: "ms", 1e-6: "µs"}
MEMORY = {1e12: "TB", 1e9: "GB", 1e6: "MB", 1e3: "kB", 1.0: "B"}


def _unit(largest: float, units: dict[float, str]) -> tuple[float, str]:
    """The largest unit that is at most `largest`, or the smallest unit if all are larger."""
    return next(((size, name) for size, name in units.items() if largest >= size), list(units.items())[-1])


def _checked(records: Iterable[Record], keys: Sequence[str]) -> list[Record]:
    rows = list(records)
    if not rows:
        raise ValueError("records: wanted at least one site, got none")
    for index, row in enumerate(rows):
        missing = [key for key in keys if key not in row]
        if missing:
            raise ValueError(f"records: record {index} lacks {', '.join(missing)}")
    return rows


def _panels(names: Sequence[str], title: str | None, ratios: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, which share one row for each name, the first at the top."""
    figure = blank_figure(WIDTH, min(FRAME + max(ROW * len(names), LEAST_ROWS), MOST_HEIGHT))
    panels = list(figure.subplots(1, len(ratios), width_ratios=ratios, sharey=True, squeeze=False)[0])
    step = -(-len(names) // MOST_NAMES)
    for axes in panels:
        axes.tick_params(labelsize=SMALL_TEXT, color=GREY, labelcolor=INK)
        axes.tick_params(axis="y", length=0)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GREY)
    panels[0].set_yticks(range(0, len(names), step), [_short(name) for name in names[::step]])
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    panels[0].set_ylabel("site", fontsize=TEXT)
    if title is not None:
        figure.suptitle(title, fontsize=11.5, color=INK)
    return figure, panels


def _short(name: str) -> str:
    """A name, shortened to its end if it is long, because the ends of the names of neighbours differ."""
    return name if len(name) <= MOST_LETTERS else "…" + name[1 - MOST_LETTERS :]


def _pair(row: Record) -> str:
    return f"{row['site']} / {row['other']}"


def _draw(axes: Axes, rows: Sequence[Record], looks: dict[str, dict[str, Any]]) -> None:
    """Draw one line for each field, with a marker for each row. A field without numbers is not drawn."""
    for field, look in looks.items():
        values = np.array([np.nan if row[field] is None else row[field] for row in rows], dtype=float)
        if np.isfinite(values).any():
            axes.plot(values, range(len(rows)), **{"linewidth": 1.3, "markersize": 4.5} | look)


def _logarithmic(axes: Axes, most: int) -> None:
    """Make the axis logarithmic, with at most `most` ticks, if all numbers are above 0."""
    values = np.concatenate([np.empty(0), *(line.get_xdata() for line in axes.lines)])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0:
        axes.set_xscale("log")
        axes.set_xlim(values.min() / 1.1, values.max() * 1.1)
        tidy_decades(axes, along="x", most=most)


def _key(axes: Axes, *, columns: int = 1) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=columns, frameon=False, fontsize=SMALL_TEXT,
            handlelength=1.6, columnspacing=1.2, labelspacing=0.3, borderpad=0.2,
        )  # fmt: skip
