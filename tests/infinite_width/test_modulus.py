# SPDX-License-Identifier: BSD-3-Clause
"""Kernels of moduli of complex projections, compared with integrals over directions and with samples."""

import math

import pytest
import torch
from here import draw
from torch import Tensor

from rainbow_fast.infinite_width import expected_modulus_kernel
from rainbow_fast.infinite_width.modulus import CHANGE


def rows(count: int, r: int, ratio: float, seed: int = 0) -> Tensor:
    """Complex rows whose imaginary parts are `ratio` times as large as the real ones."""
    real, imaginary = draw(2, count, r, dtype=torch.float64, seed=seed)
    return torch.complex(real, ratio * imaginary)


def over_directions(u: Tensor, v: Tensor) -> Tensor:
    """The kernel for r = 2: twice the mean over directions of w. Kinks leave an error of the step squared, 1e-12."""
    t = torch.arange(2**20, dtype=torch.float64) * (math.pi / 2**20)
    w = torch.stack([t.cos(), t.sin()]).to(torch.complex128)
    return 2 * (u @ w).abs() @ (v @ w).abs().T / len(t)


@pytest.mark.parametrize("ratio", [1.0, 0.1, 0.01, 0.0])
def test_real_weights_are_the_mean_over_directions(ratio: float) -> None:
    """Moduli that are nearly, or fully, those of real numbers have kinks in the phase."""
    u, v = rows(3, 2, ratio), rows(4, 2, ratio, seed=1)
    scale = u.norm(dim=1)[:, None] * v.norm(dim=1)
    kernel = expected_modulus_kernel(u, v)
    assert float(((kernel - over_directions(u, v)) / scale).abs().max()) < CHANGE
    same = expected_modulus_kernel(u)
    scale = u.norm(dim=1)[:, None] * u.norm(dim=1)
    assert float(((same - over_directions(u, u)) / scale).abs().max()) < CHANGE
    # The same rows as two sides: the diagonal is an integral now. 1e-15: rounding of a sum of squares.
    torch.testing.assert_close(same.diagonal(), u.abs().square().sum(1), rtol=1e-15, atol=0)
    assert float(((expected_modulus_kernel(u, u) - same) / scale).abs().max()) < CHANGE


@pytest.mark.parametrize("ratio", [1.0, 0.0])
def test_one_column_is_the_product_of_moduli(ratio: float) -> None:
    u = rows(4, 1, ratio)
    size = u.abs()[:, 0]
    torch.testing.assert_close(expected_modulus_kernel(u, u), size[:, None] * size, rtol=CHANGE, atol=0)


def test_samples_with_a_covariance() -> None:
    """Within five standard deviations of a mean over 2^19 samples."""
    u, half = rows(4, 5, 0.5), draw(5, 5, dtype=torch.float64, seed=2)
    kernel = expected_modulus_kernel(u, cov=half.T @ half)
    w = draw(2**19, 5, dtype=torch.float64, seed=3) @ half
    moduli = (w.to(u.dtype) @ u.T).abs()
    products = moduli[:, :, None] * moduli[:, None, :]
    bound = 5 * products.std(0) / len(w) ** 0.5
    assert bool(((products.mean(0) - kernel).abs() < bound).all())


def test_circular_weights_are_real_ones_of_twice_the_columns() -> None:
    pytest.importorskip("scipy")
    u, v = rows(3, 4, 1.0), rows(2, 4, 0.3, seed=1)
    doubled = [torch.cat([side, 1j * side], 1) / 2**0.5 for side in (u, v)]
    kernel = expected_modulus_kernel(u, v, circular=True)
    torch.testing.assert_close(kernel, expected_modulus_kernel(*doubled), rtol=0, atol=100 * CHANGE)  # |u| |v| < 100
    same = expected_modulus_kernel(u, circular=True)
    torch.testing.assert_close(same.diagonal(), u.abs().square().sum(1), rtol=1e-14, atol=0)  # some roundings
    # Orthogonal rows: (E|z|)^2 = pi / 4. A zero row has the kernel 0.
    apart = torch.tensor([[2, 0], [0, 3j], [0, 0]], dtype=torch.complex128)
    kernel = expected_modulus_kernel(apart, circular=True)
    torch.testing.assert_close(kernel[0, 1], torch.tensor(1.5 * math.pi, dtype=torch.float64), rtol=1e-14, atol=0)
    assert not kernel[2].any()


def test_a_zero_row_has_the_kernel_zero() -> None:
    u = torch.tensor([[1 + 1j, 0.5], [0, 0]], dtype=torch.complex128)
    assert not expected_modulus_kernel(u)[1].any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda u: expected_modulus_kernel(u.real),
            ValueError,
            "u is torch.float64 of shape .* complex",
        ),
        (lambda u: expected_modulus_kernel(u, u[:, :1]), ValueError, "v has rank 1: wanted that of u, 2"),
        (lambda u: expected_modulus_kernel(u, u / 0), ValueError, "v is not finite"),
        (lambda u: expected_modulus_kernel(u, cov=torch.eye(3)), ValueError, "cov has shape"),
        (lambda u: expected_modulus_kernel(u, circular=1), TypeError, "circular=1: wanted True or False"),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(rows(3, 2, 1.0))
