# SPDX-License-Identifier: BSD-3-Clause
"""Orthonormal frames, layers with Gaussian weights, and chi variates: what products of matrices are computed by."""

import math

import pytest
import torch
from torch import Tensor

from rainbow_fast import gaussian
from rainbow_fast import random_networks as rn

GENERATOR = torch.Generator().manual_seed(0)
EPS = torch.finfo(torch.float64).eps


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def apart(Q: Tensor) -> float:
    return float((Q @ Q.mT - torch.eye(Q.shape[-2], dtype=Q.dtype)).abs().max())


@pytest.mark.parametrize("method", ["householder", "cholesky"])
@pytest.mark.parametrize("k, d", [(1, 1), (1, 7), (5, 5), (6, 40)])
def test_factors(method, k, d):
    """The factors are unique, so that both methods agree, to eps times the condition of H."""
    H = random(3, 2, k, d)
    Q, L, fallbacks = rn.orthonormal_frame(H, method=method)
    assert fallbacks == 0 and Q.shape == H.shape and L.shape == (3, 2, k, k)
    assert apart(Q) < 100 * EPS and torch.equal(L, L.tril())
    torch.testing.assert_close(L @ Q, H, rtol=0, atol=1e-13)
    assert bool((L.diagonal(dim1=-2, dim2=-1) > 0).all())
    torch.testing.assert_close(L, torch.linalg.cholesky(H @ H.mT), rtol=0, atol=1e-9)  # the square of the condition


@pytest.mark.parametrize("condition, fallbacks", [(1e3, 0), (1e6, 0), (1e12, 1)])
def test_cholesky_falls_back(condition, fallbacks):
    """Rows are orthonormal to rounding for any condition; one of two matrices is well conditioned."""
    U, _, Vh = torch.linalg.svd(random(6, 50), full_matrices=False)
    hard = U @ torch.diag(torch.logspace(0, -math.log10(condition), 6, dtype=torch.float64)) @ Vh
    frame = rn.orthonormal_frame(torch.stack([hard, random(6, 50)]), method="cholesky")
    assert frame.fallbacks == fallbacks and apart(frame.Q) < 100 * EPS
    torch.testing.assert_close((frame.L @ frame.Q)[0], hard, rtol=0, atol=1e-14)


def test_frames_of_float32_and_of_singular_matrices():
    Q, L, _ = rn.orthonormal_frame(random(4, 9).float(), method="cholesky")
    assert Q.dtype == L.dtype == torch.float32 and apart(Q) < 1e-6
    singular = torch.ones(2, 5, dtype=torch.float64)
    for method in ("householder", "cholesky"):
        Q, L, _ = rn.orthonormal_frame(singular, method=method)
        assert apart(Q) < 100 * EPS and float(L[1, 1]) < 100 * EPS
    with pytest.raises(ValueError, match=r"^H has shape \(3, 2\): wanted \(\*batch, k, d\), none of them 0, with k <="):
        rn.orthonormal_frame(random(3, 2))
    with pytest.raises(TypeError, match=r"^H is torch.float16: wanted torch.float32 or torch.float64"):
        rn.orthonormal_frame(random(2, 3).half())
    with pytest.raises(ValueError, match=r"^method='svd': wanted one of householder, cholesky"):
        rn.orthonormal_frame(random(2, 3), method="svd")


@pytest.mark.parametrize("d, width", [(6, 4), (150, 130)])  # stored weights, and weights that are not stored
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layer(d, width, dtype):
    H = random(3, 2, d).to(dtype)
    out = rn.gaussian_layer(H, width, seed=5, layer=9, scale=0.5)
    assert out.dtype == dtype and out.shape == (3, 2, width)
    for run in range(3):
        W = gaussian(width, d, seed=5, stream=run << 20 | 9, dtype=torch.float64)
        expected = 0.5 * H[run].double() @ W.T
        bound = 4 * torch.finfo(dtype).eps * math.sqrt(d)  # rounding of a sum of d terms
        torch.testing.assert_close(out[run].double(), expected, rtol=0, atol=bound * math.sqrt(d))
    assert torch.equal(rn.gaussian_layer(H[:1], width, seed=5, layer=9, scale=0.5), out[:1])
    lower = rn.gaussian_layer(H, width - 1, seed=5, layer=9, scale=0.5, first_row=1)
    torch.testing.assert_close(lower, out[..., 1:], rtol=0, atol=2 * bound * math.sqrt(d))


def test_layer_refused():
    H = random(2, 3, 4)
    for words, error, message in (
        ({"H": random(3, 4)}, ValueError, r"^H has shape \(3, 4\): wanted \(runs, n, d\), none of them 0, and at most"),
        ({"H": H.bfloat16()}, TypeError, "^H is torch.bfloat16: wanted torch.float32 or torch.float64"),
        ({"width": 0}, ValueError, "^width=0: wanted width >= 1"),
        ({"layer": 2**20}, ValueError, "^layer=1048576: wanted 0 <= layer < 2.20"),
        ({"first_row": -1}, ValueError, "^first_row=-1: wanted 0 <= first_row < 2.56"),
        ({"seed": 2**63}, ValueError, "^seed=9223372036854775808: wanted 0 <= seed < 2.63"),
        ({"scale": "2"}, TypeError, "^scale is a str: wanted a number"),
    ):
        with pytest.raises(error, match=message):
            rn.gaussian_layer(**{"H": H, "width": 4, "seed": 0} | words)


def test_chi():
    """Mean and variance of log chi_m, m columns side by side, which are uncorrelated."""
    degrees = (1, 2, 3, 64, 10**6)
    values = rn.chi(degrees, 20_000, seed=3, stream=4)
    assert values.shape == (20_000, 5) and values.dtype == torch.float64
    halves = torch.tensor(degrees, dtype=torch.float64) / 2
    mean = (math.log(2) + torch.special.digamma(halves)) / 2
    deviation = torch.special.zeta(torch.tensor(2.0, dtype=torch.float64), halves).sqrt() / 2
    scores = (values.log() - mean) / deviation
    assert float(scores.mean(0).abs().max()) < 4.5 / math.sqrt(20_000)
    kurtosis = 7.0  # of log chi_1, and at most that for the others
    assert float((scores.square().mean(0) - 1).abs().max()) < 4.5 * math.sqrt((kurtosis - 1) / 20_000)
    assert float(torch.corrcoef(scores.T).triu(1).abs().max()) < 4.5 / math.sqrt(20_000)


def test_chi_has_addresses():
    values = rn.chi([3, 4], 10, seed=2**63 - 1, stream=2**32 - 1)
    assert torch.equal(rn.chi([3, 4], 6, seed=2**63 - 1, stream=2**32 - 1), values[:6])
    for words in ({"seed": 2**31 - 1, "stream": 2**32 - 1}, {"seed": 2**63 - 1}):  # no bit of a seed is lost
        assert not torch.equal(rn.chi([3, 4], 10, **words), values)
    for words, error, message in (
        ({"degrees": 0}, ValueError, "^degrees=0: wanted degrees >= 1"),
        ({"degrees": [2, 1.5]}, TypeError, "^degrees=1.5: wanted an integer, got float"),
        ({"degrees": 2.0}, TypeError, "^degrees=2.0: wanted an integer, got float"),
        ({"count": -1}, ValueError, "^count=-1: wanted count >= 0"),
        ({"stream": 2**32}, ValueError, "^stream=4294967296: wanted 0 <= stream < 2.32"),
    ):
        with pytest.raises(error, match=message):
            rn.chi(**{"degrees": 2, "count": 3, "seed": 0} | words)
