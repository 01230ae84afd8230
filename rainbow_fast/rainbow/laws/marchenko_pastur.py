# SPDX-License-Identifier: BSD-3-Clause
"""The Marchenko-Pastur edge of the spectrum of noise, and the number of directions of weights above it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE_EDGE = "marchenko_pastur"  # value of the option `rank`: the number of directions above the edge
TRACY_WIDOM = 2.02  # 99 % quantile of the largest eigenvalue of white noise, centred and scaled (real entries)
GRID = 20_000


def marchenko_pastur_rank(W: Tensor) -> int:
    r"""The number of directions of a weight matrix above white noise: eigenvalues above the Marchenko-Pastur edge.

    Let W have p and q rows and columns, or columns and rows, p <= q, singular values s, and eigenvalues
    ``lambda = s^2 / q``. If W is noise with independent entries of variance v, the eigenvalues fill the interval
    ``v (1 -+ sqrt(p / q))^2``. The variance is estimated from the median, which a few large eigenvalues hardly change:
    ``v = median(lambda) / m``, where m is the median of the Marchenko-Pastur law. Eigenvalues above the edge are
    removed and the estimate is repeated, until no more are found. The function counts the eigenvalues above

        v ((sqrt p + sqrt q)^2 + 2.02 (sqrt p + sqrt q) (1 / sqrt p + 1 / sqrt q)^(1/3)) / q

    This is the edge plus the 99 % quantile of its fluctuation: for noise alone the count is 0 in 99 of 100 cases.

    Args:
        W: weights (out, in) or (out, in, *kernel); all axes after the first are merged.

    Returns:
        The count. If more than half of the eigenvalues are zero, there is no noise, and all non-zero ones are counted.

    Raises:
        ValueError: W has fewer than two axes or no entries, or values that are not finite.

    Source: Marchenko and Pastur (1967); the median after Gavish and Donoho, "The optimal hard threshold for singular
    values is 4/sqrt(3)" (2014); fluctuation of the edge: Johnstone (2001).
    """
    if W.dim() < 2 or W.numel() == 0:
        raise ValueError(f"W has shape {tuple(W.shape)}: wanted (out, in, *kernel), none of them 0")
    matrix = W.detach().flatten(1).double()
    if not matrix.isfinite().all():
        raise ValueError("W is not finite")
    p, q = sorted(matrix.shape)
    values = torch.linalg.svdvals(matrix).square() / q
    roots = math.sqrt(p) + math.sqrt(q)
    edge = (roots**2 + TRACY_WIDOM * roots * (1 / math.sqrt(p) + 1 / math.sqrt(q)) ** (1 / 3)) / q
    zero = float(values[0]) * q * torch.finfo(W.dtype).eps ** 2
    rank = 0
    while rank < p:
        noise = values[rank:]  # decreasing
        variance = float(noise.quantile(0.5)) / marchenko_pastur_median(len(noise) / q)
        above = int((values > max(variance * edge, zero)).sum())
        if above <= rank:
            break
        rank = above
    return rank


def marchenko_pastur_median(ratio: float) -> float:
    """The median of the Marchenko-Pastur law of unit variance, to 1e-8.

    It is computed in the variable t with ``lambda = 1 + ratio + 2 sqrt(ratio) cos t``, t from 0 to pi, in which the law
    has the smooth density ``2 sin(t)^2 / (pi lambda)``.

    Args:
        ratio: p / q, ``0 < ratio <= 1``.

    Raises:
        ValueError: the ratio is outside this range.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio}: wanted 0 < ratio <= 1")
    t = (torch.arange(GRID, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / GRID)
    values = 1 + ratio + 2 * math.sqrt(ratio) * t.cos()  # decreasing
    mass = (2 * t.sin().square() / (math.pi * values)).cumsum(0) * (math.pi / GRID)  # up to t = (i + 1) pi / GRID
    place = int((mass >= 0.5 * mass[-1]).nonzero()[0])
    before = float(mass[place - 1])
    at = (place + (0.5 * float(mass[-1]) - before) / (float(mass[place]) - before)) * math.pi / GRID
    return 1 + ratio + 2 * math.sqrt(ratio) * math.cos(at)
