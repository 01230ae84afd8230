# SPDX-License-Identifier: BSD-3-Clause
"""The spectrum of random features: against all features at once, in blocks, and with fewer neurons than samples."""

import pytest
import torch
from here import draw

import rainbow_fast as rf
from rainbow_fast.random_networks import feature_spectrum

T, P = 150, 20


@pytest.mark.parametrize("n", [1, 149, 150, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spectrum_is_that_of_the_features(n: int, dtype: torch.dtype) -> None:
    X = draw(T, P, dtype=dtype) / P**0.5
    options = {"activation": "leaky_relu", "negative_slope": 0.3, "seed": 5, "stream": 2, "row_offset": 7}
    phi = rf.random_features(X, n, **options).double()
    wanted = torch.linalg.eigvalsh(phi @ phi.T / T)
    values = feature_spectrum(X, n, **options)
    assert values.dtype == torch.float64 and values.shape == (T,)
    # of the largest eigenvalue: float64 products and LAPACK; float32 products of a few hundred equal signs
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(values, wanted, rtol=0, atol=tolerance * float(wanted[-1]))
    if n < T:
        assert (values[: T - n] == 0).all()
    blocks = feature_spectrum(X, n, **options, max_features=1)  # 128 neurons or samples
    torch.testing.assert_close(blocks, values, rtol=0, atol=tolerance * float(wanted[-1]))


def test_both_sides_have_the_same_spectrum() -> None:
    """With one neuron more the Gram matrix of the samples is taken: the sums differ by one neuron of 150."""
    X = draw(T, P, dtype=torch.float64) / P**0.5
    fewer, more = feature_spectrum(X, T - 1, seed=0), feature_spectrum(X, T, seed=0)
    assert (fewer <= more + 1e-12).all(), "a neuron adds a matrix without negative eigenvalues; 1e-12 is rounding"
    lost = rf.random_features(X, 1, seed=0, row_offset=T - 1).square().sum() / T
    assert float((more - fewer).sum()) == pytest.approx(float(lost), rel=1e-10)  # sums of 150 eigenvalues up to 50


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"X": torch.zeros(3)}, ValueError, r"X has shape \(3,\): wanted \(T, p\) with T >= 1"),
        ({"X": torch.zeros(0, 3)}, ValueError, r"X has shape \(0, 3\): wanted \(T, p\) with T >= 1"),
        ({"X": torch.full((3, 2), torch.nan)}, ValueError, "X is not finite"),
        ({"X": [[1.0]]}, TypeError, "X is a list: wanted a torch.Tensor"),
        ({"n_features": 0}, ValueError, "n_features=0: wanted n_features >= 1"),
        ({"n_features": 2.0}, TypeError, "n_features=2.0: wanted an integer"),
        ({"max_features": 0}, ValueError, "max_features=0: wanted max_features >= 1"),
        ({"seed": [0, 1]}, ValueError, "seed has 2 seeds: wanted one"),
        ({"activation": "softmax"}, ValueError, "activation='softmax': wanted one of identity, relu"),
    ],
)
def test_refusals(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        feature_spectrum(**{"X": torch.ones(3, 2), "n_features": 4, "seed": 0} | arguments)
