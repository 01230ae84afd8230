# SPDX-License-Identifier: BSD-3-Clause
"""The kernel of neurons about several centers: closed forms of linear and of positive neurons; special cases."""

import math

import pytest
import torch
from here import draw

from rainbow_fast.infinite_width import NeuronKernel, expected_kernel

pytest.importorskip("scipy")

F64 = torch.float64
U, V, C = (draw(count, 4, dtype=F64, seed=count) for count in (5, 6, 3))
A, B = (draw(count, dtype=F64, seed=10 + count) for count in (5, 6))
ROUNDED = {"rtol": 1e-12, "atol": 1e-12}  # some roundings of numbers below ten


@pytest.mark.parametrize("h", [0.0, 0.5, 1.0])
def test_linear_neurons(h: float) -> None:
    kernel = NeuronKernel("identity", centers=C, smoothing=h)
    means = (U @ C.T + A.unsqueeze(1)), (V @ C.T + B.unsqueeze(1))
    torch.testing.assert_close(kernel(U, V, A, B), means[0] @ means[1].T / 3 + h**2 * U @ V.T, **ROUNDED)
    torch.testing.assert_close(kernel.power(U, A), kernel(U, U, A, A).diagonal(), **ROUNDED)


@pytest.mark.parametrize("h", [0.0, 0.5])
def test_positive_neurons(h: float) -> None:
    """The share of positive pre-activations is the mean of a normal distribution function about each center."""
    kernel, means = NeuronKernel(centers=C, smoothing=h), U @ C.T
    sizes = torch.linalg.vector_norm(h * U, dim=1, keepdim=True)
    wanted = (means > 0).double() if h == 0 else torch.special.ndtr(means / sizes)
    torch.testing.assert_close(kernel.activity(U), wanted.mean(1), **ROUNDED)
    torch.testing.assert_close(kernel.power(U), kernel(U, U).diagonal(), **ROUNDED)


def test_special_cases() -> None:
    """One center at zero is none; without smoothing the kernel is that of the neurons at the centers."""
    one = NeuronKernel("erf", centers=torch.zeros(1, 4, dtype=F64))
    for a, b in ((None, None), (A, B)):
        torch.testing.assert_close(one(U, V, a, b), NeuronKernel("erf")(U, V, a, b), **ROUNDED)
        assert torch.equal(NeuronKernel("erf")(U, V, a, b), expected_kernel(U, V, activation="erf", shift=a, shift_v=b))
    neurons = NeuronKernel("leaky_relu", 0.3, centers=C, smoothing=0.0)
    phi, phi_v = (torch.nn.functional.leaky_relu(x @ C.T, 0.3) for x in (U, V))
    torch.testing.assert_close(neurons(U, V), phi @ phi_v.T / 3, **ROUNDED)
    assert math.isclose(float(NeuronKernel().activity(U)[0]), 0.5, abs_tol=1e-15)
