# SPDX-License-Identifier: BSD-3-Clause
"""Lyapunov exponents: values that are known, and estimates whose deviations from them have an exact law.

A score is a deviation over its exact standard deviation. The seeds are fixed, so that the bounds are never crossed by
chance: 4.5 standard deviations for the largest of K scores, 5 for the sum of their squares. Its variance is 2 K and the
excess kurtosis of the scores, which is 4 for log chi_1, less for others, and 1/m of it for means of m numbers.
"""

import math

import pytest
import torch
from torch import Tensor

from rainbow_fast import gaussian
from rainbow_fast import random_networks as rn

LOG_OF_ONE = -(0.5772156649015329 + math.log(2)) / 2  # E log|g| of one normal number: the last exponent of any width
EXACT = {"rtol": 0, "atol": 1e-11}  # the digits of the values below


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def agrees(estimate: rn.LyapunovEstimate) -> bool:
    scores, k = estimate.scores, len(estimate.theory)
    spread = math.sqrt(2 * k + 4 * k / (estimate.layers * len(estimate.exponents)))
    return float(scores.abs().max()) < 4.5 and abs(float(scores.square().sum()) - k) < 5 * spread


def test_values_that_are_known():
    one = (0.057965757829, -0.635181422731)
    for d, values in (
        (1, one[1:]),
        (2, one),
        (3, (0.364818577269, *one)),
        (4, (0.557965757829, 0.364818577269, *one)),
        (8, (0.974632424496, 0.898151910603, 0.807965757829, 0.698151910603)),
        (32, (1.717080254444,)),
        (512, (3.118185114238,)),
        (10_000, (4.605120184321,)),
    ):
        torch.testing.assert_close(rn.lyapunov_exponents(d, len(values)), float64(*values), **EXACT)
    assert rn.collapse_rate(2) == pytest.approx(math.log(2), abs=1e-14)
    for d, gap in ((32, 0.016389042869), (512, 9.79430990e-4), (10_000, 5.0007501e-5)):
        assert rn.collapse_rate(d) == pytest.approx(gap, rel=1e-7), "the digits that are known"


def test_identities():
    """The last exponent is the same for all widths, and so are those of a smaller width; the sum is E log|det W|."""
    for d in (1, 2, 7, 100):
        exponents = rn.lyapunov_exponents(d)
        assert float(exponents[-1]) == pytest.approx(LOG_OF_ONE, abs=1e-13)
        torch.testing.assert_close(exponents[1:], rn.lyapunov_exponents(d - 1) if d > 1 else exponents[1:], **EXACT)
        assert bool((exponents.diff() < 0).all())
        torch.testing.assert_close(rn.lyapunov_exponents(d, variance=4.0), exponents + math.log(2), **EXACT)
    for d, total in ((8, 3.7244706737), (32, 38.5164071391), (512, 1339.3838506)):
        assert float(rn.lyapunov_exponents(d).sum()) == pytest.approx(total, abs=1e-7), "the digits that are known"
    bulk = rn.lyapunov_exponents(4000, 2000, variance=1 / 4000)
    law = (1 - torch.arange(2000).double() / 4000).log() / 2
    torch.testing.assert_close(bulk, law, rtol=0, atol=1e-3)  # the next order is 1 / (2 (d - k)) = 2.5e-4


def test_deviation():
    """psi'(1/2) = pi^2 / 2, psi'(1) = pi^2 / 6; a torch that rounds more would be seen."""
    expected = float64(math.pi**2 / 6, math.pi**2 / 2).div(4 * 9).sqrt()
    torch.testing.assert_close(rn.lyapunov_deviation(2, 9), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("d, k, layers, runs", [(8, 8, 200, 20), (32, 32, 60, 10), (300, 5, 12, 3), (1, 1, 50, 4)])
def test_estimate(d, k, layers, runs):
    """At 32 and below W is stored, at 300 it is not."""
    estimate = rn.lyapunov_estimate(d, layers, k, runs=runs, seed=7)
    assert estimate.exponents.shape == (runs, k) and estimate.exponents.dtype == torch.float64
    assert agrees(estimate)


@pytest.mark.parametrize("layers", [1, 3])
def test_estimate_is_unbiased_at_any_depth(layers):
    assert agrees(rn.lyapunov_estimate(6, layers, runs=2000 // layers, seed=layers))


def test_errors_are_independent():
    """The covariance matrix of the scores of exponents and of runs, each entry with deviation 1 / sqrt(samples)."""
    estimate = rn.lyapunov_estimate(6, 40, runs=400, seed=3)
    scores = (estimate.exponents - estimate.theory) / estimate.deviation
    correlations = (scores.T @ scores / 400)[*torch.triu_indices(6, 6, 1)]
    neighbours = (scores[1:] * scores[:-1]).mean()
    assert float(correlations.abs().max()) < 4.5 / math.sqrt(400)
    assert abs(float(neighbours)) < 4.5 / math.sqrt(399 * 6)


def test_estimate_is_that_of_the_weights():
    """Of one run, by the product of the matrices: the last run, in float64, at a depth that it can hold."""
    d, layers, variance = 5, 6, 0.3
    product = torch.eye(d, dtype=torch.float64)
    for layer in range(layers):
        product = gaussian(d, d, seed=11, stream=2 << 20 | layer, dtype=torch.float64) @ product
    estimate = rn.lyapunov_estimate(d, layers, runs=3, seed=11, variance=variance)
    R = torch.linalg.qr(product)[1]
    expected = R.diagonal().abs().log() / layers + math.log(variance) / 2
    torch.testing.assert_close(estimate.exponents[2], expected, rtol=0, atol=1e-11)  # eps times the condition, 1e4
    fewer = rn.lyapunov_estimate(d, layers, runs=1, seed=11, variance=variance)
    assert torch.equal(fewer.exponents, estimate.exponents[:1])


def test_stretches_and_methods_change_rounding_only():
    """The bound is eps times the mean condition of a stretch, exp(2.4 every), and 1000 for the largest of 600."""
    each = rn.lyapunov_estimate(32, 60, runs=10)
    assert each.fallbacks == 0 and rn.longest_stretch(32) == 7
    for every, method in ((1, "cholesky"), (2, "householder"), (4, "cholesky"), (7, "householder"), (7, "cholesky")):
        other = rn.lyapunov_estimate(32, 60, runs=10, every=every, method=method)
        bound = 1000 * torch.finfo(torch.float64).eps * math.exp(2.4 * every)
        assert float((each.exponents - other.exponents).abs().max()) < bound
        if every == 4:  # one frame of 150 lies at the bound of the condition: it depends on how the CPU rounds
            assert other.fallbacks <= 1
        else:
            assert (other.fallbacks > 0) == (every == 7 and method == "cholesky")
    assert each.every == 1 and other.every == 7


def test_float32():
    """The smallest of 10 x 60 x 32 numbers chi_1 is about 1e-3 of its row: its rounding is 6e-5, over 60 layers."""
    wide, narrow = (rn.lyapunov_estimate(32, 60, runs=10, dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert float((wide.exponents - narrow.exponents).abs().max()) < 1e-3
    assert float((wide.exponents[:, 0] - narrow.exponents[:, 0]).abs().max()) < 1e-6
    assert rn.longest_stretch(32, dtype=torch.float32) == 3


def test_progress_and_dict():
    calls: list[tuple] = []
    estimate = rn.lyapunov_estimate(4, 3, 2, runs=2, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3, "layers"), (2, 3, "layers"), (3, 3, "layers")]
    numbers = estimate.to_dict()
    assert numbers["exponents"] == estimate.exponents.tolist() and numbers["d"] == 4 and numbers["every"] == 1


NUMBERS = (math.nan, math.inf, 0.0, -1.0)


@pytest.mark.parametrize(
    "words, error, message",
    [
        ({"d": 0}, ValueError, "^d=0: wanted d >= 1"),
        ({"d": 2.0}, TypeError, "^d=2.0: wanted an integer, got float"),
        ({"layers": 0}, ValueError, r"^layers=0: wanted 1 <= layers <= 1048576"),
        ({"k": 0}, ValueError, "^k=0: wanted 1 <= k <= 4"),
        ({"k": 5}, ValueError, "^k=5: wanted 1 <= k <= 4"),
        ({"runs": 0}, ValueError, "^runs=0: wanted 1 <= runs <= 4096"),
        ({"seed": -1}, ValueError, "^seed=-1: wanted 0 <= seed < 2.63"),
        *(({"variance": v}, ValueError, f"^variance={v}: wanted a number above 0") for v in NUMBERS),
        ({"variance": "1"}, TypeError, "^variance is a str: wanted a number"),
        ({"every": 0}, ValueError, "^every=0: wanted every >= 1"),
        (
            {"every": 14},
            ValueError,
            r"^every=14: wanted at most 13 layers between frames, for d=4, k=4 and torch.float",
        ),
        ({"dtype": torch.float16}, TypeError, "^dtype=torch.float16: wanted torch.float32 or torch.float64"),
        ({"method": "qr"}, ValueError, "^method='qr': wanted one of householder, cholesky"),
        ({"progress": 3}, TypeError, "^progress: wanted a function, True or None, got int"),
    ],
)
def test_refused(words, error, message, monkeypatch):
    monkeypatch.setattr(
        "rainbow_fast.random_networks.lyapunov.gaussian_layer", lambda *_, **__: pytest.fail("computed")
    )
    with pytest.raises(error, match=message):
        rn.lyapunov_estimate(**{"d": 4, "layers": 5} | words)


def test_refused_by_formulae():
    for words, message in (
        ({"d": 0}, "^d=0: wanted d >= 1"),
        ({"d": 4, "k": 5}, "^k=5: wanted 1 <= k <= 4"),
        ({"d": 4, "variance": math.nan}, "^variance=nan: wanted a number above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            rn.lyapunov_exponents(**words)
    with pytest.raises(ValueError, match="^layers=0: wanted layers >= 1"):
        rn.lyapunov_deviation(4, 0)
    with pytest.raises(TypeError, match="^dtype=torch.int64: wanted torch.float32 or"):
        rn.longest_stretch(4, dtype=torch.int64)
