# SPDX-License-Identifier: BSD-3-Clause
"""chi and uniform_weights: known answers, accuracy in both tails, addresses, moments of the law, bad input."""

import math

import numpy as np
import pytest
import torch
from here import differing_bits
from scipy.special import erfcinv, erfinv, polygamma, psi
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast import random_networks as rn
from rainbow_fast.random_networks import variates

SEED = 0x0123456789ABCDEF
NEAR = {"rtol": 3e-14, "atol": 0.0}  # errors of SciPy's inverse functions: up to 1.2e-14 at one degree, less elsewhere


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def chi_of(degrees: list[int], u: list[float], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The chi variates of one row of uniform numbers."""
    monkeypatch.setattr(variates, "uniform", lambda rows, cols, **_: float64(*u)[None])
    return rn.chi(degrees, 1, seed=0)[0]


def test_known_answers() -> None:
    """Quantiles in 50 digits (mpmath) of U[0, 0:4], whose bits are in the tests of `uniform`."""
    got = rn.chi([1, 2, 3, 100], 1, seed=SEED, stream=7)[0]
    exact = float64(0.076073235801870805, 1.3217479725403592, 0.93894938438855815, 11.09127059549604)
    torch.testing.assert_close(got, exact, **NEAR)


def test_the_ends_of_both_tails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least and the largest uniform number, 2^-53 and 1 - 2^-53; quantiles in 50 digits (mpmath)."""
    low, high = 2.0**-53, 1 - 2.0**-53
    exact = {
        (1, low): 1.3914582123358835e-16,
        (1, high): 8.2923610758135955,
        (3, low): 7.4736107451716276e-6,
        (64, low): 3.0573792132762545,
        (64, high): 14.320276360864822,
        (4096, low): 58.280322674120084,
        (4096, high): 69.884895999878020,
    }
    degrees, u = zip(*exact, strict=True)
    torch.testing.assert_close(chi_of(list(degrees), list(u), monkeypatch), float64(*exact.values()), **NEAR)


def test_one_and_two_degrees_in_closed_form() -> None:
    u = rf.uniform(5000, 2, seed=3, dtype=torch.float64).numpy()
    half_normal = np.sqrt(2) * np.where(u[:, 0] < 0.5, erfinv(u[:, 0]), erfcinv(1 - u[:, 0]))
    rayleigh = np.sqrt(-2 * np.log1p(-u[:, 1]))
    wanted = torch.from_numpy(np.stack([half_normal, rayleigh], -1))
    torch.testing.assert_close(rn.chi([1, 2], 5000, seed=3), wanted, **NEAR)


def test_addresses() -> None:
    """An entry depends on its own address and degrees only."""
    degrees = range(1, 12)
    whole = rn.chi(degrees, 30, seed=5, stream=2)
    part = rn.chi(degrees[3:9], 7, seed=5, stream=2, row_offset=20, col_offset=3)
    assert differing_bits(part, whole[20:27, 3:9]) == 0
    assert differing_bits(rn.chi(degrees, 30, seed=rf.key(5, 2)), whole) == 0
    several = rn.chi(degrees, 30, seed=[5, 6], stream=2)
    assert several.shape == (2, 30, 11) and differing_bits(several[0], whole) == 0
    assert rn.chi([], 0, seed=1).shape == (0, 0)
    assert differing_bits(rn.chi(4, 30, seed=5, stream=2, col_offset=3), whole[:, 3:4]) == 0
    weights = rn.uniform_weights(30, 11, seed=5, stream=2)
    part = rn.uniform_weights(7, 6, seed=5, stream=2, row_offset=20, col_offset=3)
    assert differing_bits(part, weights[20:27, 3:9]) == 0


def test_moments_of_chi() -> None:
    """Bounds are five standard deviations of the mean of n values, each known: of X^2, of its square, and of log X."""
    n, degrees = 20_000, [1, 2, 5, 32, 257, 4096]
    X, k = rn.chi(degrees, n, seed=8), float64(*degrees)
    assert X.dtype == torch.float64 and (X > 0).all()
    square = X.square()
    assert ((square.mean(0) - k).abs() < 5 * (2 * k / n).sqrt()).all()
    fourth = ((square - k).square() / (2 * k)).mean(0)  # E = 1; its variance is 2 + 12 / k
    assert ((fourth - 1).abs() < 5 * ((2 + 12 / k) / n).sqrt()).all()
    half = k.numpy() / 2
    mean, variance = torch.from_numpy((math.log(2) + psi(half)) / 2), torch.from_numpy(polygamma(1, half) / 4)
    assert ((X.log().mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    centred = (square - k) / (2 * k).sqrt()
    correlations = centred.T @ centred / n - torch.diag(fourth)
    assert correlations.abs().max() < 5 / math.sqrt(n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_uniform_weights(dtype: torch.dtype) -> None:
    W = rn.uniform_weights(1000, 400, seed=2, dtype=dtype)
    x = (2 * rf.uniform(1000, 400, seed=2, dtype=dtype).double() - 1).to(dtype)
    assert W.dtype == dtype
    if dtype == torch.bfloat16:
        torch.testing.assert_close(W.double(), x.double() * math.sqrt(3), rtol=2.0**-8, atol=0.0)  # one rounding
    else:
        assert differing_bits(W, x * torch.tensor(3.0, dtype=dtype).sqrt()) == 0
    W, n = W.double(), W.numel()
    assert W.abs().max() <= math.sqrt(3) * (1 + torch.finfo(dtype).eps)
    # Standard deviations of a weight and of its square are 1 and sqrt(4 / 5). bfloat16 has 128 values, rounded.
    assert abs(W.mean()) < 5 / n**0.5
    assert abs(W.square().mean() - 1) < 5 * (0.8 / n) ** 0.5 + (1e-3 if dtype == torch.bfloat16 else 0)


BAD = {
    "zero": (0, ValueError, r"degrees=0: wanted degrees >= 1"),
    "fraction": ([2, 1.5], TypeError, r"degrees=1\.5: wanted an integer, got float"),
    "words": (["a"], TypeError, r"degrees='a': wanted an integer, got str"),
}


@pytest.mark.parametrize(("degrees", "error", "message"), BAD.values(), ids=BAD)
def test_bad_degrees(degrees, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rn.chi(degrees, 2, seed=1)


def test_bad_addresses() -> None:
    with pytest.raises(ValueError, match=r"count=-1: wanted count >= 0"):
        rn.chi([2], -1, seed=1)
    with pytest.raises(ValueError, match=r"packed key, which holds stream and offsets already"):
        rn.chi([2], 1, seed=rf.key(1), stream=2)
    with pytest.raises(TypeError, match=r"dtype=torch.int64: wanted one of"):
        rn.uniform_weights(2, 2, seed=1, dtype=torch.int64)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variates, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'chi needs scipy: pip install "rainbow_fast\[analysis\]"'):
        rn.chi([2], 1, seed=1)
    H = torch.eye(2, 3)
    wanted = r'coupled_chain needs scipy: pip install "rainbow_fast\[analysis\]"; with weights=True it does not$'
    with pytest.raises(ImportError, match=wanted):
        rn.coupled_chain(H, 1)
    rn.coupled_chain(H, 1, weights=True)
