# SPDX-License-Identifier: BSD-3-Clause
"""A figure of Lyapunov exponents: estimates with error bars, and theory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from rainbow_fast.plots.axes import COLOURS, GREY, INK, blank_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lyapunov_spectrum(
    exponents: ArrayLike, theory: ArrayLike, deviation: ArrayLike, *, title: str | None = None
) -> Figure:
    """Two panels, one below the other: exponents against their index, and their deviations from theory.

    A point of the upper panel is the mean over runs, and its bar is one standard deviation of this mean. Theory is a
    line over the points. The lower panel shows mean minus theory in units of that standard deviation. The band from -2
    to 2 holds 95 % of the points of a correct estimate.

    Args:
        exponents: the estimates, (runs, k).
        theory: the exact exponents, (k,).
        deviation: the exact standard deviation of an estimate of one run, (k,), above 0.
        title: title above the panels.

    Returns:
        A `matplotlib.figure.Figure` of 6.4 x 5.6 inches.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: shapes do not match, or a number is not finite, or a deviation is not above 0.
    """
    figure = blank_figure(6.4, 5.6)
    estimates, exact, spread = (np.asarray(each, dtype=float) for each in (exponents, theory, deviation))
    k = exact.size
    if estimates.ndim != 2 or 0 in estimates.shape or not exact.shape == spread.shape == (k,) == estimates.shape[1:]:
        shapes = ", ".join(str(each.shape) for each in (estimates, exact, spread))
        raise ValueError(f"exponents, theory, deviation: wanted shapes (runs, k), (k,), (k,), got {shapes}")
    if not all(np.isfinite(each).all() for each in (estimates, exact, spread)) or not (spread > 0).all():
        raise ValueError("exponents, theory, deviation: wanted finite numbers, and deviations above 0")
    index, mean, bar = np.arange(1, k + 1), estimates.mean(0), spread / math.sqrt(len(estimates))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    size = 4.5 if k <= 60 else 2.5
    runs = f"{len(estimates)} run{'s' * (len(estimates) > 1)}"
    above.errorbar(
        index, mean, bar, label=f"estimate, mean of {runs}", color=COLOURS[0], linestyle="none", marker="o",
        markersize=size, capsize=2.5 if k <= 60 else 0, elinewidth=1.1,
    )  # fmt: skip
    above.plot(
        index, exact, label=r"theory $\frac{1}{2}(\log 2v + \psi(\frac{d-j+1}{2}))$", color=COLOURS[1], linewidth=1.5,
        marker="_" if k == 1 else "", zorder=3,
    )  # fmt: skip
    above.set_ylabel(r"exponent $\lambda_j$ per layer", fontsize=11.5)
    above.legend(frameon=False, fontsize=10.5)
    below.axhspan(-2, 2, color=GREY, alpha=0.15, linewidth=0)
    below.axhline(0, color=COLOURS[1], linewidth=1.5)
    scores = (mean - exact) / bar
    below.plot(index, scores, color=COLOURS[0], linestyle="none", marker="o", markersize=size)
    most = max(3.0, 1.15 * float(np.abs(scores).max()))
    below.set_ylim(-most, most)
    below.set_ylabel("deviation / sd", fontsize=11.5)
    below.set_xlabel("index $j$", fontsize=11.5)
    below.xaxis.get_major_locator().set_params(integer=True)
    for axes in (above, below):
        plain(axes)
    if title is not None:
        figure.suptitle(title, fontsize=13, color=INK)
    return figure
