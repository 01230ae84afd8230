# SPDX-License-Identifier: BSD-3-Clause
"""The edge of the spectrum that noise alone would give weights, and how many directions stand above it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE_EDGE = "marchenko_pastur"  # a rank: as many directions as stand above it
TRACY_WIDOM = 2.02  # 99 % quantile of the largest eigenvalue of white noise, centred and scaled (real entries)
GRID = 20_000


def marchenko_pastur_rank(W: Tensor) -> int:
    r"""How many directions of weights stand out of white noise: eigenvalues above the Marchenko-Pastur edge.

    Of W (rows, columns), p the smaller and q the larger of the two, the p eigenvalues ``lambda = s^2 / q`` (s singular
    values) of entries of variance v and no more fill ``v (1 -+ sqrt(p / q))^2``. The variance is found from their
    median, so that few large ones do not matter: ``v = median(lambda) / m``, m the median of the law, again without
    those found above the edge until none is added. Counted is what lies above

        v ((sqrt p + sqrt q)^2 + 2.02 (sqrt p + sqrt q) (1 / sqrt p + 1 / sqrt q)^(1/3)) / q

    the edge with the 99 % quantile of its fluctuation: noise alone gives 0 in 99 of 100 cases.

    Args:
        W: weights; the axes after the first are taken as one, as of convolutions.

    Returns:
        The count. All non-zero eigenvalues where more than half of them vanish, as there is no noise then.

    Raises:
        ValueError: fewer than two axes, no entries, or values that are not finite.

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
    """The median of the Marchenko-Pastur law of unit variance and ``0 < ratio <= 1``, p / q; to 1e-8.

    With ``lambda = 1 + ratio + 2 sqrt(ratio) cos t`` its density in t is the smooth
    ``2 sin(t)^2 / (pi lambda)``, t from 0 to pi.

    Raises:
        ValueError: another ratio.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio}: wanted 0 < ratio <= 1")
    t = (torch.arange(GRID, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / GRID)
    values = 1 + ratio + 2 * math.sqrt(ratio) * t.cos()  # decreasing
    mass = (2 * t.sin().square() / (math.pi * values)).cumsum(0) * (math.pi / GRID)  # from pi / GRID i on
    place = int((mass >= 0.5 * mass[-1]).nonzero()[0])
    before = float(mass[place - 1])
    at = (place + (0.5 * float(mass[-1]) - before) / (float(mass[place]) - before)) * math.pi / GRID
    return 1 + ratio + 2 * math.sqrt(ratio) * math.cos(at)
