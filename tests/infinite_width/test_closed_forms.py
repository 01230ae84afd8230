# SPDX-License-Identifier: BSD-3-Clause
"""Kernels against sampling, Gauss-Hermite quadrature and each other; functions, covariances and Gram matrices."""

import builtins
import math

import numpy as np
import pytest
import torch
from here import draw
from torch import Tensor

from rainbow_fast.infinite_width import empirical_kernel, expected_kernel, expected_kernel_of_gram, expected_mean
from rainbow_fast.infinite_width.expectations import NAMES, expectations

pytest.importorskip("scipy")

SMOOTH = ["tanh", "silu", "gelu", "erf", "cos", "sin", "exp", "gaussian", "square", "normal_cdf", "sigmoid", "softplus"]
PAIRS = [(1.0, 1.0, 0.3), (0.9, 0.6, -0.5), (0.7, 1.2, 0.95)]  # |u|, |v|, cosine


def vectors(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def pair(a: float, b: float, cos: float) -> tuple[Tensor, Tensor]:
    return vectors([a, 0.0]), vectors([b * cos, b * math.sqrt(1 - cos**2)])


def kernel(activation, a: float, b: float, cos: float, **options) -> float:
    u, v = pair(a, b, cos)
    return float(expected_kernel(u, v, activation=activation, **options))


def bent(x: Tensor) -> Tensor:
    return x.sin() + 0.3 * x.square() * torch.exp(-x.square() / 3)


def test_kernels_are_means_of_samples() -> None:
    """z-scores of 57 means over 2^18 samples, with standard errors from the samples: all below 4.5.

    They are independent, so their squares sum to 57, with a standard deviation of sqrt(2 * 57): five of these.
    """
    generator = torch.Generator().manual_seed(1)
    scores = []
    for name in NAMES:
        sigma = expectations(name, 0.01).sigma
        for a, b, cos in PAIRS:
            X, Z = torch.randn(2, 2**18, dtype=torch.float64, generator=generator)
            products = sigma(a * X) * sigma(b * (cos * X + math.sqrt(1 - cos**2) * Z))
            error = products.mean() - kernel(name, a, b, cos)
            scores.append(float(error / (products.std() / math.sqrt(len(X)))))
    assert max(map(abs, scores)) < 4.5
    assert abs(sum(z**2 for z in scores) - len(scores)) < 5 * math.sqrt(2 * len(scores))


@pytest.mark.parametrize("activation", [*SMOOTH, bent], ids=lambda name: getattr(name, "__name__", name))
def test_smooth_kernels_are_gauss_hermite(activation) -> None:
    """100 x 100 nodes give tanh, the least smooth of these, to 1e-9 at norms up to 1.2."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    x, w = torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    sigma = expectations(activation, 0.01).sigma
    for a, b, cos in PAIRS:
        y = cos * x.unsqueeze(1) + math.sqrt(1 - cos**2) * x
        wanted = float(w @ (sigma(a * x).unsqueeze(1) * sigma(b * y)) @ w)
        assert kernel(activation, a, b, cos) == pytest.approx(wanted, abs=1e-8)
    mean = expected_mean(vectors([0.6, 0.8]), activation=activation, shift=torch.tensor([0.3]).double())
    shift = torch.tensor([0.3]).double()
    assert float(mean) == pytest.approx(float(w @ sigma(x + shift)), abs=1e-8)


def test_published_values() -> None:
    """At norms of 1, with nine digits printed: 1e-9."""
    relu = [2 * kernel("relu", 1, 1, cos) for cos in (-0.5, 0, 0.3, 0.9)]
    assert relu == pytest.approx([0.108997781, 0.318309886, 0.482744284, 0.909538399], abs=1e-9)
    assert kernel("erf", 1, 1, 0.3) == pytest.approx(0.128188434, abs=1e-9)
    assert kernel("sign", 1, 1, 0.3) == pytest.approx(0.193973368, abs=1e-9)


def test_kernels_of_each_other() -> None:
    """Identities up to rounding, 1e-14 for numbers below 10."""
    exact = {"rtol": 0, "atol": 1e-14}
    u, v = draw(6, 3, dtype=torch.float64) / 2, draw(7, 3, dtype=torch.float64, seed=1) / 2

    def k(name: str, other: Tensor = v) -> Tensor:
        return expected_kernel(u, other, activation=name)

    ones = torch.ones(6, 7, dtype=torch.float64)
    torch.testing.assert_close(k("relu") - k("relu", -v), u @ v.T / 2, **exact)
    torch.testing.assert_close(k("abs"), 2 * (k("relu") + k("relu", -v)), **exact)
    torch.testing.assert_close(k("sign"), 4 * k("step") - ones, **exact)
    torch.testing.assert_close(k("squared_relu") + k("squared_relu", -v), k("square") / 2, **exact)
    torch.testing.assert_close(expected_kernel(u, v, activation="erf"), 4 * k_cdf(u, v) - ones, **exact)
    torch.testing.assert_close(k("cos") + k("sin"), expected_kernel_of_waves(u, v), **exact)
    squares = u.square().sum(1)
    for name, diagonal in {
        "relu": squares / 2,
        "abs": squares,
        "step": torch.full_like(squares, 0.5),
        "sign": torch.ones_like(squares),
        "square": 3 * squares.square(),
        "squared_relu": 1.5 * squares.square(),
        "exp": torch.exp(2 * squares),
        "gaussian": (1 + 2 * squares).rsqrt(),
    }.items():
        torch.testing.assert_close(expected_kernel(u, activation=name).diagonal(), diagonal, rtol=1e-14, atol=1e-14)


def k_cdf(u: Tensor, v: Tensor) -> Tensor:
    """erf(x) = 2 normal_cdf(sqrt(2) x) - 1, whose kernel is this but for the means, which are 1/2."""
    return expected_kernel(math.sqrt(2) * u, math.sqrt(2) * v, activation="normal_cdf")


def expected_kernel_of_waves(u: Tensor, v: Tensor) -> Tensor:
    """E cos(x - y)."""
    return torch.exp(-(u.unsqueeze(1) - v).square().sum(2) / 2)


@pytest.mark.parametrize("activation", NAMES)
def test_kernels_have_no_negative_eigenvalues(activation: str) -> None:
    """Nor with samples that are nearly parallel or opposite. 1e-10: a series leaves out 1e-12 of the power."""
    u = draw(12, 4, dtype=torch.float64) / 2
    u = torch.cat([u, u * 1.0001, -u, u + 1e-7])
    values = torch.linalg.eigvalsh(expected_kernel(u, activation=activation))
    assert float(values[0]) >= -1e-10 * float(values[-1])


def test_squared_relu_of_nearly_opposite_samples() -> None:
    """3 sin cos + (pi - t) (1 + 2 cos^2) cancels near t = pi, where it is 4 x^5 / 15 with x = pi - t."""
    for x in (1e-2, 1e-5, 1e-8):
        u, v = vectors([1.0, math.tan(x / 2)]), vectors([-1.0, math.tan(x / 2)])
        wanted = 4 * x**5 / 15 / (2 * math.pi) / math.cos(x / 2) ** 4
        # 2e-5: the next term of the series, of the order x^2
        assert float(expected_kernel(u, v, activation="squared_relu")) == pytest.approx(wanted, rel=2e-5)


def test_empirical_kernels_converge_with_the_root_of_the_width() -> None:
    """The slope of log error in log n is -0.5, and 0.03 its standard deviation over 16 networks a width."""
    u = draw(40, 10, dtype=torch.float64) / math.sqrt(10)
    k = expected_kernel(u)
    widths = [2**j for j in range(6, 12)]
    errors = [
        sum(float((empirical_kernel(u, n, seed=0, stream=s) - k).square().sum()) for s in range(16)) for n in widths
    ]
    slope = np.polyfit(np.log(widths), np.log(errors) / 2, 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.05)


def test_functions_are_series() -> None:
    """A function has the kernel and the mean of its name, to the 1e-11 that a series adds."""
    u, shift = draw(9, 3, dtype=torch.float64) / 2, draw(9, dtype=torch.float64, seed=1)
    for name, function in {"sin": torch.sin, "gaussian": lambda x: torch.exp(-x * x / 2), "tanh": torch.tanh}.items():
        for options in ({}, {"shift": shift}):
            wanted = expected_kernel(u, activation=name, **options)
            torch.testing.assert_close(expected_kernel(u, activation=function, **options), wanted, rtol=0, atol=1e-11)
            wanted = expected_mean(u, activation=name, **options)
            torch.testing.assert_close(expected_mean(u, activation=function, **options), wanted, rtol=0, atol=1e-12)


def test_covariance_of_weights() -> None:
    """Only u cov u, v cov v and u cov v enter. 1e-13: rounding of a root of cov with numbers below 10."""
    u, v = draw(5, 4, dtype=torch.float64), draw(6, 4, dtype=torch.float64, seed=1)
    root = draw(4, 2, dtype=torch.float64, seed=2) / 2  # a covariance of rank 2
    cov = root @ root.T
    shift, shift_v = draw(5, dtype=torch.float64, seed=3), draw(6, dtype=torch.float64, seed=4)
    for options in ({}, {"shift": shift, "shift_v": shift_v}):
        wanted = expected_kernel(u @ root, v @ root, **options)
        torch.testing.assert_close(expected_kernel(u, v, cov=cov, **options), wanted, rtol=0, atol=1e-13)
    wanted = expected_mean(u @ root, shift=shift)
    torch.testing.assert_close(expected_mean(u, shift=shift, cov=cov), wanted, rtol=0, atol=1e-13)
    torch.testing.assert_close(expected_kernel(u, v, cov=torch.eye(4)), expected_kernel(u, v), rtol=0, atol=1e-13)


@pytest.mark.parametrize("activation", ["relu", "tanh", "step", bent])
def test_kernel_of_a_gram_matrix(activation) -> None:
    u = draw(7, 5, dtype=torch.float64) / 2
    u[3] = 0
    wanted = expected_kernel(u, activation=activation)
    # 1e-13: rounding; angles that are not small are as exact as the cosines
    for options in ({}, {"max_pairs": 8}):
        k = expected_kernel_of_gram(u @ u.T, activation=activation, **options)
        torch.testing.assert_close(k, wanted, rtol=0, atol=1e-13)


def test_two_layers_by_gram_matrices() -> None:
    """The kernel of the kernel is the limit of two wide layers, within 5 standard errors of 20 networks."""
    u, n = draw(4, 3, dtype=torch.float64), 1000
    limit = expected_kernel_of_gram(expected_kernel(u))
    samples = []
    for s in range(20):
        first = torch.linalg.cholesky(empirical_kernel(u, n, seed=0, stream=s))
        samples.append(empirical_kernel(first, n, seed=1, stream=s))
    stack = torch.stack(samples)
    error = (stack.mean(0) - limit).abs() / (stack.std(0) / math.sqrt(20))
    assert float(error.max()) < 5 + 20 / math.sqrt(n)  # and a bias of the order 1/n, over an error of 1/sqrt(20 n)


@pytest.mark.parametrize(
    "function, arguments, error, message",
    [
        (expected_kernel, {"activation": 3}, TypeError, "activation is 3: wanted a name or a function of tensors"),
        (expected_kernel, {"activation": torch.sum}, ValueError, r"activation: sum gives shape \(\) for shape"),
        (expected_kernel, {"activation": lambda x: 1.0}, ValueError, "activation: <lambda> gives float for shape"),
        (expected_kernel, {"activation": torch.log}, ValueError, "activation: log is not finite between -13 and 13"),
        (expected_kernel, {"activation": torch.sinh, "u": torch.ones(1, 1) * 20}, ValueError, "sinh grows too fast"),
        (expected_kernel, {"activation": torch.relu}, ValueError, "makes relu too steep for its Hermite series"),
        (expected_mean, {"activation": "swish"}, ValueError, "activation='swish': wanted one of identity, relu"),
        (expected_kernel, {"u": [[1.0]]}, TypeError, "u is a list: wanted a torch.Tensor"),
        (expected_kernel, {"cov": torch.eye(2)}, ValueError, r"cov has shape \(2, 2\): wanted \(r, r\) = \(1, 1\)"),
        (expected_kernel, {"cov": torch.ones(2, 1)}, ValueError, r"cov has shape \(2, 1\): wanted a square matrix"),
        (expected_kernel, {"cov": -torch.eye(1)}, ValueError, "cov has the eigenvalue -1: wanted none below 0"),
        (expected_kernel, {"cov": torch.full((1, 1), torch.nan)}, ValueError, "cov is not finite"),
        (
            expected_kernel,
            {"u": torch.ones(1, 2), "cov": vectors([1, 2], [0, 1])},
            ValueError,
            "cov is not symmetric",
        ),
        (expected_kernel_of_gram, {"K": torch.ones(2, 1)}, ValueError, r"K has shape \(2, 1\): wanted a square matrix"),
        (expected_kernel_of_gram, {"K": vectors([1, 2], [0, 1])}, ValueError, "K is not symmetric"),
        (expected_kernel_of_gram, {"K": -torch.eye(2)}, ValueError, "K has the diagonal entry -1: wanted none below 0"),
        (expected_kernel_of_gram, {"K": torch.eye(2) / 0}, ValueError, "K is not finite"),
    ],
)
def test_refusals(function, arguments: dict, error: type, message: str) -> None:
    first = {} if "K" in arguments else {"u": torch.ones(1, 1)}
    with pytest.raises(error, match=message):
        function(**first | arguments)


def test_shifts_need_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without_scipy(name: str, *rest):
        if name.startswith("scipy"):
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_scipy)
    u, shift = torch.ones(2, 2), torch.ones(2)
    expected_kernel(u)
    with pytest.raises(ImportError, match=r'kernels with a shift need scipy: pip install "rainbow_fast\[analysis\]"'):
        expected_kernel(u, shift=shift)
