# SPDX-License-Identifier: BSD-3-Clause
"""Kernels of infinite width, compared with quadrature in two dimensions and with n features, and at their edges."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from here import assert_same_for_threads, draw
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.infinite_width.expectations import NAMES, expectations
from rainbow_fast.infinite_width.hermite import SAMPLES
from rainbow_fast.infinite_width.kernels import empirical_kernel, expected_kernel, expected_mean

pytest.importorskip("scipy")

SLOPE = 0.25
LEGENDRE = np.polynomial.legendre.leggauss(64)
# |u|, |v|, cosine, shift of u, shift of v
PAIRS = [(1.0, 2.0, 0.5, 0.0, 0.0), (1.5, 0.7, -0.95, -0.4, 0.6), (0.8, 3.0, 0.99, 1.0, 1.2)]


def quadrature(function, breaks: list[float]) -> float:
    """E[function(X)] for X standard normal, by Gauss-Legendre quadrature between -11 and 11, split at kinks."""
    cuts = np.unique(np.clip([-11, *breaks, *np.linspace(-10, 10, 11), 11], -11, 11))
    middle, half = (cuts[1:] + cuts[:-1]) / 2, (cuts[1:] - cuts[:-1]) / 2
    x = (middle[:, None] + half[:, None] * LEGENDRE[0]).ravel()
    weights = (half[:, None] * LEGENDRE[1]).ravel() * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float((function(x) * weights).sum())


def sigma(activation: str, x: np.ndarray) -> np.ndarray:
    return expectations(activation, SLOPE).sigma(torch.from_numpy(np.asarray(x))).numpy()


def expectation(activation: str, s: float, t: float, cos: float, a: float, b: float) -> float:
    """E[sigma(a + s X) sigma(b + t Y)], as one integral inside the other."""
    sin = math.sqrt(1 - cos**2)

    def conditional(x: float) -> float:
        y = b + t * cos * x
        return quadrature(lambda z: sigma(activation, y + t * sin * z), [-y / (t * sin)])

    return quadrature(
        lambda x: sigma(activation, a + s * x) * np.array([conditional(v) for v in x]), [-a / s, -b / t / cos]
    )


def vectors(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("pair", [0, pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("activation", NAMES)
def test_kernel_is_the_integral(activation: str, pair: int) -> None:
    """Without a shift, and with one at nearly opposite and nearly parallel inputs. 1e-13: rounding of sums of 1e4.

    It is relative for squares and exponentials, whose values are large; for exp it is 1e-12, because the quadrature
    ends at 11.
    """
    s, t, cos, a, b = PAIRS[pair]
    u, v = vectors([s, 0.0]), vectors([t * cos, t * math.sqrt(1 - cos**2)])
    shifts = {} if a == b == 0 else {"shift": vectors(a), "shift_v": vectors(b)}
    shifts = {name: value.view(1) for name, value in shifts.items()}
    kernel = expected_kernel(u, v, activation=activation, negative_slope=SLOPE, **shifts)
    wanted = expectation(activation, s, t, cos, a, b)
    scale = (1 + s + abs(a)) * (1 + t + abs(b))
    if activation in ("square", "squared_relu"):
        scale = scale**2
    if activation == "exp":
        scale = 10 * max(scale, wanted)
    assert abs(float(kernel) - wanted) < 1e-13 * scale


@pytest.mark.parametrize("activation", NAMES)
def test_mean_is_the_integral(activation: str) -> None:
    u, shift = vectors([1.0, 0.0], [0.6, 0.8], [2.0, 1.5]), vectors([0.0], [-0.7], [1.3]).view(3)
    means = expected_mean(u, activation=activation, negative_slope=SLOPE, shift=shift)
    for size, a, value in zip([1, 1, 2.5], shift.tolist(), means.tolist(), strict=True):
        wanted = quadrature(lambda x, a=a, size=size: sigma(activation, a + size * x), [-a / size])
        assert abs(value - wanted) < 1e-13 * max(1, wanted)  # rounding of the quadrature's sums of 1e3


@pytest.mark.parametrize("activation", NAMES)
def test_rows_of_zeros_are_constants(activation: str) -> None:
    """For a row of zeros only sigma(shift) is left: the kernel is its product with the means of the others."""
    u = vectors([0.0, 0.0], [1.0, 2.0], [-1.0, -2.0], [0.0, 0.0])
    for shift in (torch.zeros(4, dtype=torch.float64), vectors([0.7, 0.0, -3.0, 0.0]).view(4)):
        options = {"activation": activation, "shift": shift}
        k, mean = expected_kernel(u, **options), expected_mean(u, **options)
        constant = expectations(activation, 0.01).sigma(shift[0])
        # 1e-13: what `expected_kernel` promises for the closed forms, for numbers of order one.
        torch.testing.assert_close(k[0], constant * mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(mean[0], constant, rtol=0, atol=1e-13)


def test_nearly_opposite_and_nearly_parallel() -> None:
    """sin t + (pi - t) cos t would cancel at t near pi, and arccos of a rounded cosine is off by 1e-8 near 0."""
    for tilt in (1e-2, 1e-6, 1e-9):
        x = 2 * math.atan(tilt)  # pi minus the angle
        u, v = vectors([1.0, tilt]), vectors([-1.0, tilt])
        series = x**3 / 3 - x**5 / 30 + x**7 / 840
        # 1e-8, 1e-9: half of the digits of float64; a form that cancels would keep none at the smallest tilts
        assert float(expected_kernel(u, v)) == pytest.approx((1 + tilt**2) * series / (2 * math.pi), rel=1e-8)
        assert float(expected_kernel(u, v, activation="step")) == pytest.approx(x / (2 * math.pi), rel=1e-9)
        parallel = float(expected_kernel(u, vectors([1.0, -tilt]), activation="step"))
        # 1e-16: the rounding of 0.5
        assert 0.5 - parallel == pytest.approx(x / (2 * math.pi), abs=1e-16)
    u = draw(50, 7, dtype=torch.float64)
    assert (expected_kernel(u, activation="step").diagonal() == 0.5).all()
    assert float(expected_kernel(u, -u).diagonal().abs().max()) == 0


def test_kernels_of_data_are_positive_and_agree_block_by_block() -> None:
    u, shift = draw(40, 5, dtype=torch.float64), draw(40, dtype=torch.float64, seed=1)
    whole = {name: expected_kernel(u, activation=name, shift=shift) for name in ("relu", "tanh")}
    for name, k in whole.items():
        blocks = expected_kernel(u, activation=name, shift=shift, max_pairs=70)  # a row at a time
        torch.testing.assert_close(blocks, k, rtol=0, atol=1e-14)  # products in another order, of order one
        part = expected_kernel(u[:9], u[7:], activation=name, shift=shift[:9], shift_v=shift[7:], max_pairs=70)
        torch.testing.assert_close(part, k[:9, 7:], rtol=0, atol=1e-11)  # a series of another length
        # 1e-14: as for blocks; 1e-13: 40 of these roundings, in a spectrum that ends at zero
        assert float((k - k.T).abs().max()) < 1e-14 and torch.linalg.eigvalsh(k)[0] > -1e-13


def test_series_of_many_samples_is_computed_in_parts() -> None:
    """Later parts need more terms than the first; each pair is as in a kernel of few samples."""
    sizes: list[int] = []

    def sigma(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return torch.tanh(x)

    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(3 * SAMPLES, 8, dtype=torch.float64))
    u = torch.linspace(0.1, 3, len(directions), dtype=torch.float64).unsqueeze(1) * directions
    K, mean = expected_kernel(u, activation=sigma), expected_mean(u, activation=sigma)
    assert max(sizes) == SAMPLES
    few = torch.tensor([0, 1, SAMPLES, 2 * SAMPLES + 5, len(u) - 1])
    # a series of another length; quadratures in another order
    torch.testing.assert_close(K[few][:, few], expected_kernel(u[few], activation="tanh"), rtol=0, atol=1e-11)
    torch.testing.assert_close(mean[few], expected_mean(u[few], activation="tanh"), rtol=0, atol=1e-13)


def test_series_refuses_what_is_too_steep() -> None:
    far = vectors([20.0, 0.0])
    with pytest.raises(ValueError, match="u: a row of norm 20 makes tanh too steep for its Hermite series"):
        expected_kernel(far, activation="tanh")
    with pytest.raises(ValueError, match="u: a row of norm 40 makes tanh too steep: wanted 24"):
        expected_mean(2 * far, activation="tanh")
    assert 0.8 < float(expected_kernel(far * 0.375, activation="tanh")) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empirical_kernel_is_of_the_features(dtype: torch.dtype) -> None:
    u, shift, n = draw(30, 6, dtype=dtype), draw(30, dtype=dtype, seed=1), 300
    options = {"seed": 3, "stream": 5, "row_offset": 7, "activation": "leaky_relu", "negative_slope": SLOPE}
    phi = rf.random_features(u, n, shift=shift, **options).double()
    blocks = options | {"max_features": 30 * 128}  # three blocks of neurons, the last a small one
    kernel = empirical_kernel(u, n, shift=shift, **blocks)
    assert torch.equal(kernel, kernel.T)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14  # products in the dtype of u, sums in float64
    torch.testing.assert_close(kernel, phi @ phi.T / n, rtol=0, atol=tolerance * 10)
    crossed = empirical_kernel(u[:4], n, u[2:], shift=shift[:4], shift_v=shift[2:], **blocks)
    torch.testing.assert_close(crossed, kernel[:4, 2:], rtol=0, atol=tolerance * 10)


@pytest.mark.parametrize("activation", ["exp", "normal_cdf", lambda x: x.sin() * x])
def test_empirical_kernel_of_what_the_op_lacks(activation: str | Callable) -> None:
    """sigma of the projections, with shifts, in blocks: products of float64 in another order; and for all threads."""
    u, shift, n = draw(30, 6, dtype=torch.float64), draw(30, dtype=torch.float64, seed=1), 300
    phi = expectations(activation, SLOPE).sigma(u @ rf.gaussian(n, 6, seed=3, dtype=torch.float64).T + shift[:, None])
    blocks = {"activation": activation, "seed": 3, "max_features": 30 * 128}
    kernel, wanted = empirical_kernel(u, n, shift=shift, **blocks), phi @ phi.T / n
    torch.testing.assert_close(kernel, wanted, rtol=0, atol=1e-13 * float(wanted.max()))
    crossed = empirical_kernel(u[:4], n, u[2:], shift=shift[:4], shift_v=shift[2:], **blocks)
    torch.testing.assert_close(crossed, wanted[:4, 2:], rtol=0, atol=1e-13 * float(wanted.max()))
    assert_same_for_threads(lambda: empirical_kernel(u, n, shift=shift, **blocks))


def test_empirical_kernel_of_moduli() -> None:
    """The op takes complex inputs for the modulus, which has no function of real numbers."""
    u = torch.complex(draw(5, 3, dtype=torch.float64), draw(5, 3, dtype=torch.float64, seed=1))
    phi = rf.random_features(u, 9, activation="modulus", seed=2)
    kernel = empirical_kernel(u, 9, activation="modulus", seed=2)
    torch.testing.assert_close(kernel, phi @ phi.T / 9, rtol=1e-13, atol=0)  # sums of nine positive products


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_kernel_of_many_features_is_the_expected_one(activation: str) -> None:
    """The means agree within five standard errors, which are estimated from 32 samples, at all 36 pairs."""
    u, shift = draw(8, 5, dtype=torch.float64), draw(8, dtype=torch.float64, seed=1)
    options = {"activation": activation, "shift": shift}
    samples = torch.stack([empirical_kernel(u, 2000, seed=0, stream=s, **options) for s in range(32)])
    error = (samples.mean(0) - expected_kernel(u, **options)).abs() / (samples.std(0) / math.sqrt(32))
    assert float(error.max()) < 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"u": torch.zeros(3)}, r"u has shape \(3,\): wanted \(N, r\)"),
        ({"v": torch.zeros(2, 5)}, "v has rank 5: wanted that of u, 4"),
        ({"activation": "softmax"}, "activation='softmax': wanted one of identity, relu"),
        ({"shift": torch.zeros(2)}, r"shift has shape \(2,\): wanted \(3,\)"),
        ({"shift_v": torch.zeros(3)}, "shift_v is given without v: wanted both, or shift alone"),
        ({"u": torch.full((3, 4), torch.nan)}, "u is not finite"),
        ({"shift": torch.full((3,), torch.inf)}, "shift is not finite"),
        ({"max_pairs": 0}, "max_pairs=0: wanted max_pairs >= 1"),
    ],
)
def test_expected_kernel_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expected_kernel(**{"u": torch.zeros(3, 4)} | arguments)


def test_empirical_kernel_refuses() -> None:
    with pytest.raises(ValueError, match="n=0: wanted n >= 1"):
        empirical_kernel(torch.zeros(3, 4), 0, seed=0)
    with pytest.raises(ValueError, match="max_features=0: wanted max_features >= 1"):
        empirical_kernel(torch.zeros(3, 4), 2, seed=0, max_features=0)
    with pytest.raises(ValueError, match="shift_v is given without v"):
        empirical_kernel(torch.zeros(3, 4), 2, seed=0, shift_v=torch.zeros(3))
    with pytest.raises(ValueError, match="activation='softmax': wanted one of identity, relu"):
        empirical_kernel(torch.zeros(3, 4), 2, seed=0, activation="softmax")
    with pytest.raises(TypeError, match="activation is None: wanted a name or a function of tensors"):
        empirical_kernel(torch.zeros(3, 4), 2, seed=0, activation=None)
