# SPDX-License-Identifier: BSD-3-Clause
"""The non-linearities: within 4 units in the last place of float64, and as in PyTorch at zeros, infinities and NaN."""

import pytest
import torch
from here import BACKENDS, LEVELS, differing_bits, level
from nonlinearities import INF, LIMITS, NAN, exact, inputs, units
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.activations import ACTIVATIONS

needs_kernels = pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled kernels here")


def activate(x: Tensor, activation: str, backend: str = "cpu", **options) -> Tensor:
    """sigma(x): random features of one neuron with weight 1."""
    u, G = x.unsqueeze(1), torch.ones(1, 1, dtype=x.dtype)
    return rf.random_features(u, 1, G=G, activation=activation, backend=backend, **options).squeeze(1)


# --- matches the reference ---


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_four_units_in_the_last_place(activation: str, name: str) -> None:
    x = inputs()
    with level(name):
        got = activate(x, activation)
    error = units(got, exact(x, activation))
    worst = error.argmax()
    assert error[worst] <= 4, f"{float(error[worst])} units at {float(x[worst])!r}: {float(got[worst])!r}"


@needs_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float64(activation: str) -> None:
    x = torch.cat([torch.linspace(-30, 30, 10_007, dtype=torch.float64), torch.tensor([1e-300, -1e5, 1e5]).double()])
    wanted = ACTIVATIONS["leaky_relu"][0](x, 0.01) if activation == "leaky_relu" else exact(x, activation)
    # A few units in the last place for the C library and for PyTorch each. In the left tail of gelu, e^(-x^2 / 2) has
    # the rounding of x / sqrt 2, times x^2 = 900.
    rtol = 4e-13 if activation == "gelu" else 4e-15
    torch.testing.assert_close(activate(x, activation), wanted, rtol=rtol, atol=1e-300)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(("activation", "limits"), LIMITS.items(), ids=LIMITS)
def test_infinities_and_nan(activation: str, limits: list[float], name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        x, wanted = torch.tensor([[INF, -INF, NAN], limits], dtype=dtype).repeat(1, 20)  # whole vectors, and a rest
        with level(name):
            torch.testing.assert_close(activate(x, activation), wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("activation", ["tanh", "gelu", "silu", "erf", "cos"])
def test_place_in_a_vector_does_not_matter(activation: str, name: str) -> None:
    x = torch.linspace(-20, 20, 37)  # two vectors of sixteen, and a rest
    x[::5] = 2.0**21 + torch.arange(8)  # cos treats them one by one
    with level(name):
        whole = activate(x, activation)
        alone = torch.cat([activate(x[i : i + 1], activation) for i in range(37)])
    assert differing_bits(whole, alone) == 0


# --- known answers ---

KNOWN = {  # at -2, 0, 3
    "identity": [-2, 0, 3],
    "relu": [0, 0, 3],
    "abs": [2, 0, 3],
    "leaky_relu": [-0.5, 0, 3],  # with slope 1/4
    "tanh": [-0.9640275800758169, 0, 0.9950547536867305],
    "erf": [-0.9953222650189527, 0, 0.9999779095030014],
    "gelu": [-0.04550026389635842, 0, 2.99595030590511],
    "silu": [-0.23840584404423517, 0, 2.8577223804673],
    "sign": [-1, 0, 1],
    "step": [0, 0, 1],
    "cos": [-0.4161468365471424, 1, -0.9899924966004454],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("activation", "values"), KNOWN.items(), ids=KNOWN)
def test_known_answers(activation: str, values: list[float], backend: str) -> None:
    for dtype, rtol in ((torch.float32, 5e-7), (torch.float64, 1e-14)):  # 4 units each, at most
        x, wanted = torch.tensor([-2, 0, 3], dtype=dtype), torch.tensor(values, dtype=dtype)
        got = activate(x, activation, backend, negative_slope=0.25, scale=2.0)
        torch.testing.assert_close(got, 2 * wanted, rtol=rtol, atol=0)


# --- derivatives ---


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivative(activation: str) -> None:
    function, derivative = ACTIVATIONS[activation]
    s = torch.cat([torch.linspace(-8, 8, 101), torch.tensor([-1e4, -40.0, 40.0, 1e4])]).double()  # no kink but 0
    s = s[s != 0].requires_grad_()
    [wanted] = torch.autograd.grad(function(s, 0.3).sum() + 0 * s.sum(), s)
    got = derivative(s.detach(), 0.3)
    assert got.dtype == torch.float64
    # 1e-12: small values of 1 - tanh^2 and similar forms lose digits
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
