# SPDX-License-Identifier: BSD-3-Clause
"""Kernel regression, compared with a dense solve; both solvers; the choice of the ridge; singular kernels."""

import pytest
import torch
from here import draw
from torch import Tensor

from rainbow_fast.analysis import expected_kernel, kernel_regression

F64 = torch.float64


def data(count: int = 60) -> tuple[Tensor, Tensor]:
    x = draw(count, 4, dtype=F64)
    return x, torch.stack([x[:, 0].abs(), x[:, 1] + 2], 1)


def test_it_solves_the_regularised_system() -> None:
    x, y = data()
    fitted = kernel_regression(expected_kernel, x, y, ridges=[0.01])
    K = expected_kernel(x)
    alpha = torch.linalg.solve(K + 0.01 * K.diagonal().mean() * torch.eye(60, dtype=F64), y - y.mean(0))
    # A solve of 60 equations with a condition below 1e4.
    torch.testing.assert_close(fitted.coefficients, alpha, rtol=1e-10, atol=1e-10)
    z = draw(2000, 4, dtype=F64, seed=1)
    torch.testing.assert_close(fitted(z), expected_kernel(z, x) @ alpha + y.mean(0), rtol=1e-10, atol=1e-10)
    assert (fitted.ridge, fitted.scores) == (0.01, {})


def test_products_solve_it_too() -> None:
    """To the tolerance, relative to the size of the predictions."""
    x, y = data(200)
    ridges = [1e-3, 1e-1]
    exact, streamed = (
        kernel_regression(expected_kernel, x, y, ridges=ridges, solver=solver, tolerance=1e-6)
        for solver in ("cholesky", "products")
    )
    z = draw(50, 4, dtype=F64, seed=1)
    assert exact.ridge == streamed.ridge
    # The size of the diagonal is a mean over all of the 200 inputs in both.
    assert (streamed(z) - exact(z)).norm() < 1e-4 * exact(z).norm()
    for ridge in ridges:
        assert streamed.scores[ridge] == pytest.approx(exact.scores[ridge], rel=1e-3)


def test_the_validation_split_chooses_the_ridge() -> None:
    """Labels of pure noise want the largest ridge, those of a linear function a small one."""
    x, _ = data(300)
    ridges = [1e-6, 1e-2, 1e2]
    noise = draw(300, 1, dtype=F64, seed=2)
    assert kernel_regression(expected_kernel, x, noise, ridges=ridges).ridge == 1e2
    fitted = kernel_regression(expected_kernel, x, x[:, :1], ridges=ridges)
    assert fitted.ridge < 1e2
    labels = (x[:, 0] > 0).long()
    fitted = kernel_regression(expected_kernel, x, labels, ridges=ridges)
    assert fitted.coefficients.shape == (300, 2)
    assert fitted.scores[fitted.ridge] == max(fitted.scores.values()) > 0.8
    z = draw(300, 4, dtype=F64, seed=3)
    assert ((fitted(z).argmax(1) == (z[:, 0] > 0)).double().mean()) > 0.8


def test_a_singular_kernel_needs_a_ridge() -> None:
    x, y = data()
    twice, targets = torch.cat([x, x]), torch.cat([y, y])

    def linear(a: Tensor, b: Tensor) -> Tensor:
        return a @ b.T

    with pytest.raises(ValueError, match=r"ridges: with 0, the kernel of 120 inputs is singular: wanted a larger one"):
        kernel_regression(linear, twice, targets, ridges=[0])
    assert kernel_regression(linear, twice, targets, ridges=[1e-6]).coefficients.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ridges": []}, "ridges is empty: wanted at least one number"),
        ({"ridges": [-1.0]}, "ridges=-1.0: wanted"),
        ({"validation": 1.0}, "validation=1.0: wanted a number between 0 and 1"),
        ({"solver": "qr"}, "solver='qr': wanted one of cholesky, products"),
        ({"targets": torch.zeros(59, dtype=torch.int64)}, r"targets are torch.int64 of shape \(59,\) for 60 inputs"),
        ({"targets": torch.full((60,), -1)}, "targets: the label -1, wanted labels of at least 0"),
        ({"targets": torch.full((60, 1), torch.nan)}, "targets are not finite"),
        ({"kernel": lambda a, b: (a @ b.T).float()}, r"kernel gave torch.float32 of shape \(48, 48\): wanted finite"),
        ({"kernel": lambda a, b: a @ b.T / 0}, "kernel gave torch.float64 .* wanted finite"),
        ({"x": torch.zeros(1, 4, dtype=F64), "targets": torch.zeros(1, 1)}, "x has 1 inputs: wanted more"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    x, y = data()
    arguments = {"kernel": expected_kernel, "x": x, "targets": y} | change
    with pytest.raises(ValueError, match=message):
        kernel_regression(**arguments)
