# SPDX-License-Identifier: BSD-3-Clause
"""The kernel of neurons about several centers: closed forms of linear and of positive neurons; special cases."""

import importlib.util
import math

import pytest
import torch
from here import draw

from rainbow_fast.infinite_width import NeuronKernel, expected_kernel

F64 = torch.float64
U, V, C = (draw(count, 4, dtype=F64, seed=count) for count in (5, 6, 3))
A, B = (draw(count, dtype=F64, seed=10 + count) for count in (5, 6))
needs_scipy = pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="closed forms with a shift")
ROUNDED = {"rtol": 1e-12, "atol": 1e-12}  # some roundings of numbers below ten


@pytest.mark.parametrize("h", [0.0, *(pytest.param(h, marks=needs_scipy) for h in (0.5, 1.0))])
def test_linear_neurons(h: float) -> None:
    kernel = NeuronKernel("identity", centers=C, smoothing=h)
    means = (U @ C.T + A.unsqueeze(1)), (V @ C.T + B.unsqueeze(1))
    torch.testing.assert_close(kernel(U, V, A, B), means[0] @ means[1].T / 3 + h**2 * U @ V.T, **ROUNDED)
    torch.testing.assert_close(kernel.power(U, A), kernel(U, U, A, A).diagonal(), **ROUNDED)


@pytest.mark.parametrize("h", [0.0, pytest.param(0.5, marks=needs_scipy)])
def test_positive_neurons(h: float) -> None:
    """The share of positive pre-activations is the mean of a normal distribution function about each center."""
    kernel, means = NeuronKernel(centers=C, smoothing=h), U @ C.T
    sizes = torch.linalg.vector_norm(h * U, dim=1, keepdim=True)
    wanted = (means > 0).double() if h == 0 else torch.special.ndtr(means / sizes)
    torch.testing.assert_close(kernel.activity(U), wanted.mean(1), **ROUNDED)
    torch.testing.assert_close(kernel.power(U), kernel(U, U).diagonal(), **ROUNDED)


@needs_scipy
def test_one_center_at_zero_is_none() -> None:
    one = NeuronKernel("erf", centers=torch.zeros(1, 4, dtype=F64))
    for a, b in ((None, None), (A, B)):
        torch.testing.assert_close(one(U, V, a, b), NeuronKernel("erf")(U, V, a, b), **ROUNDED)
        assert torch.equal(NeuronKernel("erf")(U, V, a, b), expected_kernel(U, V, activation="erf", shift=a, shift_v=b))


def test_without_smoothing_it_is_the_kernel_of_the_neurons() -> None:
    neurons = NeuronKernel("leaky_relu", 0.3, centers=C, smoothing=0.0)
    phi, phi_v = (torch.nn.functional.leaky_relu(x @ C.T, 0.3) for x in (U, V))
    torch.testing.assert_close(neurons(U, V), phi @ phi_v.T / 3, **ROUNDED)
    assert math.isclose(float(NeuronKernel().activity(U)[0]), 0.5, abs_tol=1e-15)


def test_samples_of_single_precision_are_converted() -> None:
    for kernel in (NeuronKernel(), NeuronKernel(centers=C, smoothing=0.0)):
        assert torch.equal(kernel(U.float(), V.float()), kernel(U.float().double(), V.float().double()))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"activation": "rely"}, ValueError, "activation='rely': wanted one of"),
        ({"activation": 3}, TypeError, "activation is 3: wanted a name or a function"),
        ({"smoothing": -0.5}, ValueError, "smoothing=-0.5: wanted a finite number from 0"),
        ({"smoothing": math.inf}, ValueError, "smoothing=inf: wanted a finite number from 0"),
        ({"smoothing": "all"}, TypeError, "smoothing is a str: wanted a number"),
        ({"centers": [[1.0]]}, TypeError, "centers is a list: wanted a torch.Tensor"),
        ({"centers": C.float()}, TypeError, "centers are torch.float32: wanted torch.float64"),
        ({"centers": C[0]}, ValueError, r"centers have shape \(4,\): wanted \(K, r\), K at least 1"),
        ({"centers": C[:0]}, ValueError, r"centers have shape \(0, 4\): wanted \(K, r\), K at least 1"),
        ({"centers": C * math.nan}, ValueError, "centers are not finite"),
    ],
)
def test_wrong_kernels(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NeuronKernel(**options)


@pytest.mark.parametrize("centers", [None, C])
def test_wrong_samples(centers: torch.Tensor | None) -> None:
    kernel = NeuronKernel(centers=centers, smoothing=0.0)
    rank = "r" if centers is None else 4
    for call in (kernel.power, kernel.activity, lambda u, a=None: kernel(u, V, a)):
        with pytest.raises(ValueError, match=rf"^u has shape \(4,\): wanted \(N, {rank}\)"):
            call(U[0])
        with pytest.raises(TypeError, match="^u is None: wanted"):
            call(None)
        with pytest.raises(ValueError, match="^u is not finite"):
            call(U * math.nan)
        with pytest.raises(ValueError, match=r"^a has shape \(6,\): wanted \(5,\)"):
            call(U, B)
        with pytest.raises(ValueError, match="^a is not finite"):
            call(U, A / 0)
    with pytest.raises(ValueError, match=rf"^v has shape \(4,\): wanted \(N, {rank}\)"):
        kernel(U, V[0])
    with pytest.raises(ValueError, match="^v is not finite"):
        kernel(U, V * math.nan)
    with pytest.raises(ValueError, match=r"^b has shape \(5,\): wanted \(6,\)"):
        kernel(U, V, A, A)
    with pytest.raises(ValueError, match="^[uv] (has shape|has rank)"):
        NeuronKernel(centers=centers)(U, V[:, :3])
