# SPDX-License-Identifier: BSD-3-Clause
"""Fits of power laws find the planted parameters, as often as their intervals say."""

import math

import numpy as np
import pytest

pytest.importorskip("scipy")

from rainbow_fast.analysis.rates import fit_power, power_law_decay, theory_slopes

WIDTHS = np.repeat(2.0 ** np.arange(7, 16), 2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("truth", [(0.1, 20.0, 0.8), pytest.param((0.0, 3.0, 0.5), marks=pytest.mark.slow)])
def test_intervals_hold_the_truth_as_often_as_they_say(truth: tuple[float, float, float], weighted: bool) -> None:
    """95 % of 100 seeds, within three binomial standard deviations; more are allowed only at the bound e_inf = 0."""
    rng, hits, widths = np.random.default_rng(0), np.zeros(3), []
    curve = truth[0] + truth[1] * WIDTHS ** -truth[2]
    for _ in range(100):
        e = curve * (1 + 0.05 * rng.standard_normal(len(curve)))
        fit = fit_power(WIDTHS, e, 0.05 * curve if weighted else None)
        intervals = fit.e_inf_interval, fit.c_interval, fit.p_interval
        hits += [low <= value <= high for (low, high), value in zip(intervals, truth, strict=True)]
        for value, (low, high) in zip(fit[:3], intervals, strict=True):
            assert low <= value <= high
        widths.append(fit.p_interval[1] - fit.p_interval[0])
    assert (hits >= 88).all() and (hits[1:] <= 99).all()
    assert np.median(widths) < 0.3 * truth[2]


def test_exact_data_are_found_exactly() -> None:
    fit = fit_power(WIDTHS, 0.02 + 50 * WIDTHS**-1.0)
    # The exponent is taken from a grid, to 0.25 %, as documented; c = e n^p at n = 1 absorbs some of its error.
    assert fit[:3] == pytest.approx((0.02, 50, 1), rel=0.01)
    assert fit.p_interval[0] < 1 < fit.p_interval[1] < 1.02
    np.testing.assert_allclose(fit([100, 1000]), [0.52, 0.07], rtol=0.01)
    fixed = fit_power(WIDTHS, 50 * WIDTHS**-1.0, e_inf=0)
    assert fixed.e_inf_interval == (0, 0) and fixed.p == pytest.approx(1, rel=0.0025)


def test_what_data_leave_open_is_said_to_be_open() -> None:
    """A decay that is hidden by noise of its size fits any p: a steep decay, or a slow one to a limit of 0."""
    noise = np.random.default_rng(4).standard_normal(len(WIDTHS))
    fit = fit_power(WIDTHS, (1 + 40 * WIDTHS**-1.0) * (1 + 0.1 * noise))
    assert fit.p_interval == (0, math.inf) and fit.c_interval[1] == math.inf
    assert fit.e_inf_interval[0] == 0 and 1 < fit.e_inf_interval[1] < 1.2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"e": [1, 2]}, "e has 2 values: wanted one for each of the 4 widths n"),
        ({"n": [1, 1, 2, 2]}, "n: wanted four points or more at three widths or more, got 4 at 2"),
        ({"n": [1, 2, 4], "e": [3, 2, 1]}, "n: wanted four points or more at three widths or more, got 3 at 3"),
        ({"n": [0, 1, 2, 3]}, "n: wanted finite values above 0"),
        ({"e": [4, 3, 2, math.nan]}, "e: wanted finite values above 0"),
        ({"sigma": [1, 1, 1, 0]}, "sigma: wanted finite values above 0"),
        ({"sigma": [1]}, "sigma has 1 values: wanted one for each of the 4 errors e"),
        ({"e_inf": 1.0}, "e_inf=1.0: wanted None, or 0 <= e_inf below all e"),
        ({"confidence": 95}, "confidence=95: wanted a share, 0 < confidence < 1"),
        ({"e": [1, 2, 3, 4]}, "e does not fall with n: wanted errors of a decay"),
        ({"e": [1e9, 1, 1e-9, 1e-18]}, "e decays with p at 8 or beyond: wanted 0.02 < p < 8"),
    ],
)
def test_fit_power_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_power(**{"n": [1, 2, 4, 8], "e": [4, 3, 2, 1]} | arguments)


def test_decay_of_a_spectrum() -> None:
    ranks = np.arange(1, 201)
    values = 3 * ranks**-1.7
    values[:3] = 100  # the leading ones follow no law
    decay = power_law_decay(values[::-1])
    # A line through exact logarithms, in float64; the width of an interval is the root of the residuals.
    assert decay.alpha == pytest.approx(1.7, abs=1e-9) and decay.interval == pytest.approx((1.7, 1.7), abs=1e-6)
    noisy = values * np.exp(0.1 * np.random.default_rng(0).standard_normal(200))
    low, high = power_law_decay(noisy, first=4, last=100).interval
    assert low < 1.7 < high < low + 0.2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"first": 0}, "first=0, last=8: wanted four ranks or more of 1 to 16"),
        ({"last": 17}, "first=4, last=17: wanted four ranks"),
        ({"first": 6, "last": 8}, "first=6, last=8: wanted four ranks"),
        ({"eigenvalues": np.zeros(16)}, "eigenvalues: wanted finite values above 0 up to rank 8, got 0 there"),
    ],
)
def test_power_law_decay_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        power_law_decay(**{"eigenvalues": np.arange(16) + 1.0} | arguments)


def test_slopes_of_theory() -> None:
    assert theory_slopes(2) == (1, pytest.approx(1 / 6), pytest.approx(1 / 3), 1)
    assert theory_slopes(1.5) == (1, pytest.approx(1 / 8), pytest.approx(1 / 4), 0.5)
    assert theory_slopes(1e9).theorem == pytest.approx(1 / 4)
    with pytest.raises(ValueError, match="alpha=1: wanted a finite number above 1"):
        theory_slopes(1)
