# SPDX-License-Identifier: BSD-3-Clause
"""The spectrum of random features: against all features at once, in blocks, and with fewer neurons than samples."""

from collections.abc import Callable

import pytest
import torch
from here import draw

import rainbow_fast as rf
from rainbow_fast.infinite_width.expectations import expectations
from rainbow_fast.random_networks import LimitingSpectrum, feature_spectrum

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


OTHERS = ["sin", "squared_relu", "sigmoid", lambda x: x.tanh() + x.square()]


@pytest.mark.parametrize("activation", OTHERS, ids=lambda activation: getattr(activation, "__name__", activation))
@pytest.mark.parametrize("n", [60, 400])
def test_activations_that_are_applied_to_projections(activation: str | Callable, n: int) -> None:
    """Names of `expected_kernel` and functions: sigma(X W^T) at once, in blocks, and near the limit of the kernel."""
    X = draw(T, P, dtype=torch.float64) / P**0.5
    sigma = expectations(activation, 0.01).sigma
    phi = sigma(X @ rf.gaussian(n, P, seed=5, dtype=torch.float64).T)
    wanted = torch.linalg.eigvalsh(phi @ phi.T / T)
    blocks = feature_spectrum(X, n, activation=activation, seed=5, max_features=1)  # 128 neurons or samples
    # of the largest eigenvalue: products and LAPACK in float64, in another order
    torch.testing.assert_close(blocks, wanted, rtol=0, atol=1e-13 * float(wanted[-1]))
    limit = LimitingSpectrum.of_features(X, n, activation=activation).moments()[0]
    each = phi.square().mean(0).double()  # the mean eigenvalue is the sum of these over N / T neurons
    assert abs(float(blocks.mean()) - limit) < 4 * float(each.std()) * n**0.5 / T


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
        ({"activation": 3}, TypeError, "activation is 3: wanted a name or a function of tensors"),
        (
            {"activation": torch.sum, "n_features": 2},
            ValueError,
            r"activation returned a tensor of shape \(\): wanted a tensor of the shape it takes, \(3, 2\)",
        ),
        ({"activation": len}, ValueError, r"activation returned 3: wanted a tensor of the shape it takes, \(3, 4\)"),
        ({"activation": torch.log}, ValueError, "activation log is not finite at some of the projections"),
    ],
)
def test_refusals(arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        feature_spectrum(**{"X": torch.ones(3, 2), "n_features": 4, "seed": 0} | arguments)
