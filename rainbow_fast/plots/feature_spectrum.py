# SPDX-License-Identifier: BSD-3-Clause
"""A figure of the eigenvalues of random features: a histogram, and the limiting density over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from rainbow_fast.plots.axes import COLOURS, GREY, INK, blank_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 60


def spectrum_of_features(
    eigenvalues: ArrayLike, x: ArrayLike, density: ArrayLike, *, atom: float = 0.0, title: str | None = None
) -> Figure:
    """A histogram of eigenvalues in the range of x, with the limiting density as a line over it.

    The histogram has unit mass if all eigenvalues are counted. Those that the limit has at 0 are left out: as many as
    `atom` times their number, the smallest ones. A note says so, and how many are beyond the last x.

    Args:
        eigenvalues: of one matrix, (T,).
        x: where the density is known, (n,), increasing, at least 2.
        density: (n,), not below 0.
        atom: mass of the limit at 0, from 0 to 1; 0 by default.
        title: title above the panel.

    Returns:
        A `matplotlib.figure.Figure` of 6.4 x 4.2 inches.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not match, a number is not finite, x does not increase, or a density is below 0.
    """
    figure = blank_figure(6.4, 4.2)
    values, points, curve = (np.asarray(each, dtype=float) for each in (eigenvalues, x, density))
    if values.ndim != 1 or not values.size or points.ndim != 1 or points.size < 2 or curve.shape != points.shape:
        shapes = ", ".join(str(each.shape) for each in (values, points, curve))
        raise ValueError(f"eigenvalues, x, density: wanted shapes (T,), (n,), (n,) with n >= 2, got {shapes}")
    if not all(np.isfinite(each).all() for each in (values, points, curve)) or (curve < 0).any():
        raise ValueError("eigenvalues, x, density: wanted finite numbers, and densities of at least 0")
    if not (np.diff(points) > 0).all() or not 0 <= atom <= 1:
        raise ValueError(f"x, atom: wanted an x that increases and 0 <= atom <= 1, got atom={atom}")
    zeros = round(atom * values.size)
    positive = np.sort(values)[zeros:]
    beyond = int((positive > points[-1]).sum())
    edges = np.linspace(min(points[0], positive.min(initial=points[0])), points[-1], BINS + 1)
    heights = np.histogram(positive, edges)[0] / values.size / np.diff(edges)
    axes = figure.subplots()
    axes.stairs(heights, edges, fill=True, color=COLOURS[0], alpha=0.45, label=f"{values.size} eigenvalues")
    axes.plot(points, curve, color=COLOURS[1], linewidth=1.8, label="limit")
    axes.set_xlabel("eigenvalue", fontsize=11.5)
    axes.set_ylabel("density", fontsize=11.5)
    axes.set_ylim(0, 1.1 * max(heights.max(initial=0), curve.max()))
    notes = [f"{zeros} at 0"] * (zeros > 0) + [f"{beyond} beyond {points[-1]:.3g}"] * (beyond > 0)
    if notes:
        axes.text(0.98, 0.76, "not shown: " + ", ".join(notes), transform=axes.transAxes, ha="right", color=GREY)
    axes.legend(frameon=False, fontsize=10.5, loc="upper right")
    plain(axes)
    if title is not None:
        figure.suptitle(title, fontsize=13, color=INK)
    return figure
