# SPDX-License-Identifier: BSD-3-Clause
"""Fits the exponents of errors in the width and of spectra in the rank, with intervals, and those of theory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

EXPONENTS = np.geomspace(0.02, 8, 2400)  # all values of p that a fit tries, 0.25 % apart
RANKS = 32
Interval = tuple[float, float]


class PowerFit(NamedTuple):
    """``e = e_inf + c n^-p``, with an interval for each parameter. An end that data leave open is 0 or infinite."""

    e_inf: float
    c: float
    p: float
    e_inf_interval: Interval
    c_interval: Interval
    p_interval: Interval

    def __call__(self, n: ArrayLike) -> np.ndarray:
        """The values of the curve at widths n."""
        return self.e_inf + self.c * np.asarray(n, dtype=float) ** -self.p


class Slope(NamedTuple):
    """An exponent alpha and its interval."""

    alpha: float
    interval: Interval


class TheorySlopes(NamedTuple):
    """Exponents p of ``error ~ n^-p`` for a kernel whose eigenvalues decay as ``m^-alpha``.

    Attributes:
        kernel: 1; exact for the mean square of khat - k.
        theorem: (alpha - 1) / (2 (2 alpha - 1)); proven for the alignment error.
        kpca: (alpha - 1) / (2 alpha - 1); by comparison with kernel principal components from random features.
        heuristic: min(alpha - 1, 1); by second-order perturbation and truncation at rank n, not proven.
    """

    kernel: float
    theorem: float
    kpca: float
    heuristic: float


def fit_power(
    n: ArrayLike,
    e: ArrayLike,
    sigma: ArrayLike | None = None,
    *,
    e_inf: float | None = None,
    confidence: float = 0.95,
) -> PowerFit:
    r"""Fit ``e = e_inf + c n^-p`` with e_inf >= 0, c > 0 and p > 0 by weighted least squares.

        minimise  sum_i ((e_inf + c n_i^-p - e_i) / w_i)^2

    Without `sigma`, the noise is multiplicative: ``w_i`` is the fitted curve itself (the weights are iterated), times
    an unknown spread, which is estimated from the residuals. With `sigma`, ``w_i = sigma_i`` is the standard error of
    e_i.

    Intervals are profile-likelihood intervals: all values of a parameter for which the best fit of the other parameters
    is worse than the best fit by at most the quantile of F(1, points - parameters), or of chi^2(1) with `sigma`. They
    assume independent errors. If the best e_inf is 0, their coverage is larger than `confidence`.

    Args:
        n: widths, > 0; at least four points at three or more widths. A width may have several points.
        e: errors, > 0 and finite, one for each point.
        sigma: standard errors of e, > 0; None (default) if they are unknown.
        e_inf: the limit, if it is known, for example 0 for kernels compared with their closed form; None fits it.
        confidence: confidence of the intervals; 0.95 by default.

    Returns:
        `PowerFit`; p has a resolution of 0.25 %, between 0.02 and 8.

    Raises:
        ValueError: shapes differ, there are too few points or widths, values are out of their range, errors do not
            decrease with n, or the best p is outside of 0.02 to 8.
    """
    x, y, weight = _checked(n, e, sigma, e_inf, confidence)
    parameters = 3 if e_inf is None else 2
    scale = float(np.exp(np.log(x).mean()))  # c is fitted at the middle of the widths, where it is most accurate
    powers = (x / scale) ** -EXPONENTS[:, None]
    for _ in range(1 if sigma is not None else 6):
        misfit, limits, slopes = _linear(powers, y, weight, e_inf)
        best = int(misfit.argmin())
        if slopes[best] <= 0:
            raise ValueError("e does not fall with n: wanted errors of a decay c n^-p with c > 0")
        curve = limits[best] + slopes[best] * powers[best]
        if sigma is None and np.allclose(weight, curve, rtol=1e-9):
            break
        weight = weight if sigma is not None else curve
    if best in (0, len(EXPONENTS) - 1):
        raise ValueError(f"e decays with p at {EXPONENTS[best]:g} or beyond: wanted 0.02 < p < 8")
    left = len(x) - parameters
    if sigma is None:
        allowed = misfit[best] * (1 + stats.f.ppf(confidence, 1, left) / left)
    else:
        allowed = misfit[best] + stats.chi2.ppf(confidence, 1)
    allowed += 1e-12 * len(x)  # rounding, for a perfect fit

    def with_limit(value: float) -> float:
        return _linear(powers, y, weight, value)[0].min()

    def with_slope(value: float) -> float:
        """The best misfit of a curve limit + value n^-p, with unscaled widths n."""
        rest = y - value * scale ** -EXPONENTS[:, None] * powers
        if e_inf is None:
            inverse = weight**-2.0
            limit = np.clip((rest * inverse).sum(1) / inverse.sum(), 0, None)
        else:
            limit = np.full(len(EXPONENTS), e_inf)
        return (((rest - limit[:, None]) / weight) ** 2).sum(1).min()

    inside = np.flatnonzero(misfit <= allowed)
    low = 0.0 if inside[0] == 0 else float(EXPONENTS[inside[0] - 1])
    high = math.inf if inside[-1] == len(EXPONENTS) - 1 else float(EXPONENTS[inside[-1] + 1])
    p, c, limit = float(EXPONENTS[best]), float(slopes[best]), float(limits[best])
    c *= scale**p
    return PowerFit(
        limit,
        c,
        p,
        (limit, limit) if e_inf is not None else _interval(with_limit, limit, allowed, step=float(y.min()) / 8),
        _interval(with_slope, c, allowed, step=c / 8),
        (low, high),
    )


def power_law_decay(
    eigenvalues: ArrayLike, *, first: int = 4, last: int | None = None, confidence: float = 0.95
) -> Slope:
    """Fit alpha to eigenvalues that decay as ``m^-alpha`` over the ranks m = first, ..., last, counted from 1.

    It is the least-squares slope of log lambda against log m at up to 32 ranks, equally spaced in log m, so that the
    many large ranks do not outweigh the few small ones. The interval is Student's interval from the scatter about the
    line. It shows how straight the spectrum is over this range, not how much alpha varies with other data.

    Args:
        eigenvalues: in any order; they must be positive in the range of ranks.
        first: first rank; 4 by default, because the leading eigenvalues follow no power law.
        last: last rank; half of the number of eigenvalues by default.
        confidence: confidence of the interval; 0.95 by default.

    Raises:
        ValueError: the range has fewer than four ranks or exceeds the number of eigenvalues, or an eigenvalue in it is
            not positive.
    """
    values = np.sort(np.asarray(eigenvalues, dtype=float).ravel())[::-1]
    last = len(values) // 2 if last is None else last
    if not 1 <= first <= last - 3 or last > len(values):
        raise ValueError(f"first={first}, last={last}: wanted four ranks or more of 1 to {len(values)}")
    ranks = np.unique(np.geomspace(first, last, RANKS).round().astype(int))
    if not (np.isfinite(values).all() and values[last - 1] > 0):
        raise ValueError(f"eigenvalues: wanted finite values above 0 up to rank {last}, got {values[last - 1]:g} there")
    fit = stats.linregress(np.log(ranks), np.log(values[ranks - 1]))
    half = stats.t.ppf((1 + confidence) / 2, len(ranks) - 2) * fit.stderr
    return Slope(-fit.slope, (-fit.slope - half, -fit.slope + half))


def theory_slopes(alpha: float) -> TheorySlopes:
    """The exponents that theory predicts for eigenvalues ``m^-alpha``.

    Raises:
        ValueError: alpha is not above 1, so that the sum of the eigenvalues is not finite.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), theorem 1; `heuristic` is our own.
    """
    if not 1 < alpha < math.inf:
        raise ValueError(f"alpha={alpha}: wanted a finite number above 1, as eigenvalues have a finite sum")
    kpca = (alpha - 1) / (2 * alpha - 1)
    return TheorySlopes(1.0, kpca / 2, kpca, min(alpha - 1, 1.0))


def _linear(
    powers: np.ndarray, y: np.ndarray, weight: np.ndarray, e_inf: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row of `powers`: the misfit of the best curve limit + slope * row, its limit >= 0 and its slope."""
    basis, target = powers / weight, np.broadcast_to(y / weight, powers.shape)
    ones = np.broadcast_to(1 / weight, powers.shape)
    squares = (basis**2).sum(1)
    fixed_limit = 0.0 if e_inf is None else e_inf
    slope = (basis * (target - fixed_limit * ones)).sum(1) / squares
    limit = np.full(len(powers), fixed_limit)
    if e_inf is None:
        overlap = (basis * ones).sum(1)
        aside = ones - (overlap / squares)[:, None] * basis  # the part of a constant orthogonal to the powers
        free = (aside * target).sum(1) / np.maximum((aside**2).sum(1), 1e-300)
        limit = np.clip(free, 0, None)
        slope = (basis * target).sum(1) / squares - limit * overlap / squares
    misfit = ((slope[:, None] * basis + limit[:, None] * ones - target) ** 2).sum(1)
    return misfit, limit, slope


def _interval(misfit: Callable[[float], float], best: float, allowed: float, *, step: float) -> Interval:
    """The interval around its minimum `best` in which `misfit` is at most `allowed`, cut off at 0."""
    ends = []
    for sign in (-1, 1):
        inside, width = best, step
        outside = max(best + sign * width, 0.0)
        while misfit(outside) <= allowed:
            if outside in (0.0, math.inf):
                break
            inside, width = outside, 2 * width
            outside = max(best + sign * width, 0.0) if width < 1e12 * step else math.inf
        if outside == math.inf or misfit(outside) <= allowed:
            ends.append(outside)
            continue
        while abs(outside - inside) > 1e-3 * abs(outside - best):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if misfit(middle) <= allowed else (inside, middle)
        ends.append(outside)
    return ends[0], ends[1]


def _checked(
    n: ArrayLike, e: ArrayLike, sigma: ArrayLike | None, e_inf: float | None, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Widths, errors and weights as vectors; raises ValueError if they are not valid."""
    x, y = np.asarray(n, dtype=float).ravel(), np.asarray(e, dtype=float).ravel()
    if x.shape != y.shape:
        raise ValueError(f"e has {len(y)} values: wanted one for each of the {len(x)} widths n")
    if len(x) < 4 or len(np.unique(x)) < 3:
        raise ValueError(f"n: wanted four points or more at three widths or more, got {len(x)} at {len(np.unique(x))}")
    weight = y if sigma is None else np.asarray(sigma, dtype=float).ravel()
    if weight.shape != x.shape:
        raise ValueError(f"sigma has {len(weight)} values: wanted one for each of the {len(x)} errors e")
    for name, values in (("n", x), ("e", y), ("sigma", weight)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name}: wanted finite values above 0, got {values[~(values > 0)][:1] or values.max()}")
    if e_inf is not None and not 0 <= e_inf < y.min():
        raise ValueError(f"e_inf={e_inf}: wanted None, or 0 <= e_inf below all e")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: wanted a share, 0 < confidence < 1")
    return x, y, weight
