# SPDX-License-Identifier: BSD-3-Clause
"""Limiting spectra: the law of Marchenko and Pastur, identities, and the eigenvalues of random features."""

import math

import pytest
import torch
from here import draw
from torch import Tensor

from rainbow_fast.random_networks import LimitingSpectrum, feature_spectrum

TWO = torch.tensor([1.0, 6.0] * 50, dtype=torch.float64)


def white(c: float) -> LimitingSpectrum:
    return LimitingSpectrum(torch.ones(50), c)


def at(limit: LimitingSpectrum, z: complex) -> complex:
    return complex(limit.stieltjes(torch.tensor(z, dtype=torch.complex128)))


def points(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "c, edges, densities, m",
    [
        (0.5, (0.0857864376, 2.9142135624), (0.3183098862, 0.2105421997, 0.1052710998), 0.7807764064),
        (2.0, (0.1715728753, 5.8284271247), (0.4210843993, 0.3183098862, 0.2105421997), 0.4142135624),
    ],
)
def test_published_values_of_marchenko_and_pastur(c: float, edges: tuple, densities: tuple, m: float) -> None:
    """Ten digits are printed; the density at x = 0.5, 1 and 2 has a bias of 1e-8 times some units: 1e-7."""
    limit = white(c)
    assert limit.edges()[0].tolist() == pytest.approx(edges, abs=1e-10)
    assert limit.density(points(0.5, 1, 2)).tolist() == pytest.approx(densities, abs=1e-7)
    assert at(limit, -1.0) == pytest.approx(m, abs=1e-10)
    assert limit.atom == max(0, 1 - c)


@pytest.mark.parametrize("c", [0.01, 0.5, 1.0, 2.0, 30.0])
def test_white_kernel_gives_marchenko_and_pastur(c: float) -> None:
    """Phi = I. The density is off by eta inside and outside, and by sqrt(eta), with some units, at the edges."""
    limit = white(c)
    low, high = (1 - math.sqrt(c)) ** 2, (1 + math.sqrt(c)) ** 2
    x = torch.cat([torch.linspace(0.3 * low + 1e-3, 1.3 * high, 200).double(), points(max(low, 1e-3), high)])
    exact = ((high - x) * (x - low)).clamp(min=0).sqrt() / (2 * math.pi * x)
    error = (limit.density(x) - exact).abs()
    width = high - low
    away = torch.minimum((x - low).abs(), (x - high).abs()) > 0.02 * width
    assert float(error[away].max()) < 1e-7 and float(error.max()) < 1e-3
    torch.testing.assert_close(limit.edges(), points(low, high).unsqueeze(0), rtol=1e-12, atol=1e-14)
    for z in (0.3 + 0.1j, low + 1e-3j, -2 - 3j, high + 1e-6j):
        m = at(limit, z)
        assert abs(z * m**2 + (z + 1 - c) * m + 1) < 1e-11 * (1 + c) * (1 + abs(m)) ** 2  # rounding of its terms


def test_identities() -> None:
    """Up to rounding: residuals of 1e-12, and numbers of order one."""
    z = torch.tensor([0.5 + 1e-6j, 3 + 0.1j, 10 + 1e-9j, -2 + 5j, 60 + 1e-3j, -1.0, -0.01], dtype=torch.complex128)
    for c in (0.4, 1.0, 5.0):
        limit = LimitingSpectrum(TWO, c)
        m, delta = limit.stieltjes(z), limit.delta(z)
        residual = delta - (TWO / (c * TWO / (1 + delta).unsqueeze(1) - z.unsqueeze(1))).mean(1)
        assert float(residual.abs().max()) < 1e-12 * (1 + float(delta.abs().max()))
        assert bool(((delta.imag > 0) & (m.imag > 0) & ((z * delta).imag >= 0))[z.imag > 0].all())
        torch.testing.assert_close(m, (c * delta / (1 + delta) - 1) / z, rtol=1e-10, atol=1e-10)
        companion = -1 / (z * (1 + delta))
        torch.testing.assert_close(c * companion, m - (c - 1) / z, rtol=1e-10, atol=1e-10)
        inverse = -1 / companion + (TWO / (1 + c * TWO * companion.unsqueeze(1))).mean(1)
        torch.testing.assert_close(inverse, z, rtol=1e-10, atol=1e-10)
        s = 1e4
        scaled = LimitingSpectrum(s * TWO, c)
        torch.testing.assert_close(scaled.stieltjes(s * z) * s, m, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(scaled.delta(s * z), delta, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(limit.stieltjes(z.conj()), m.conj().resolve_conj(), rtol=0, atol=0)


def test_an_equation_that_is_not_solved_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rainbow_fast.random_networks.fixed_point.STEPS", 0)  # of Newton's method: too few
    message = r"^the equation at z=\(2\+1e-08j\) \(over the mean eigenvalue\) is not solved to 1e-12"
    with pytest.raises(ArithmeticError, match=message):
        white(0.5).density(points(2))


def test_zero_kernel() -> None:
    limit = LimitingSpectrum(torch.zeros(3), 2.0)
    z = torch.tensor([1 + 1j, -2.0 + 0j], dtype=torch.complex128)
    torch.testing.assert_close(limit.stieltjes(z), -1 / z)
    assert limit.atom == 1 and limit.edges().shape == (0, 2) and limit.moments() == (0, 0)
    assert limit.density(points(0.5, 1)).tolist() == [0, 0] and limit.delta(z).tolist() == [0, 0]


def test_real_arguments_are_monotone() -> None:
    """m and delta rise with z < 0, and go to -1 / z and to 0 for z to -infinity."""
    limit = LimitingSpectrum(TWO, 0.7)
    z = -torch.logspace(3, -3, 40, dtype=torch.float64)
    for values in (limit.stieltjes(z), limit.delta(z)):
        assert (values.imag == 0).all() and (values.real.diff() > 0).all()
    assert at(limit, -1e6) == pytest.approx(1e-6, rel=1e-5)  # the next term is M_1 / z^2
    assert complex(limit.delta(torch.tensor(-1e6))) == pytest.approx(float(TWO.mean()) / 1e6, rel=1e-4)


def test_masses_and_moments() -> None:
    """Sums over a grid of the square root of x: 1e-3, the error of the trapezoidal rule at the edges."""
    for c in (0.3, 1.0, 4.0):
        for values in (TWO[:2], torch.cat([TWO[:2], torch.zeros(2, dtype=torch.float64)])):
            limit = LimitingSpectrum(values, c)
            root = torch.linspace(1e-4, math.sqrt(1.1 * float(limit.edges()[-1, 1])), 2000, dtype=torch.float64)
            x = root.square()
            weight = limit.density(x) * 2 * root
            assert float(torch.trapezoid(weight, root)) == pytest.approx(1 - limit.atom, abs=1e-3)
            for power, moment in enumerate(limit.moments(), 1):
                assert float(torch.trapezoid(weight * x**power, root)) == pytest.approx(moment, rel=1e-3)
    assert limit.atom == 0.5 and LimitingSpectrum(values, 0.3).atom == 0.7


def test_edges_of_two_bulks() -> None:
    """Four digits are printed. Around each edge the density goes to 0 within 1e-3 of it."""
    limit = LimitingSpectrum(TWO, 5.0)
    assert limit.edges().flatten().tolist() == pytest.approx([1.9587, 7.8074, 14.6877, 52.5461], abs=5e-5)
    inward = points(1, -1, 1, -1) * 1e-3
    edges = limit.edges().flatten()
    assert (limit.density(edges - inward) < 1e-5).all() and (limit.density(edges + inward) > 5e-5).all()
    assert len(LimitingSpectrum(TWO, 0.9).edges()) == 1, "with fewer neurons the bulks meet"


def test_edges_of_random_features() -> None:
    """The extreme eigenvalues of each bulk are up to 3 T^(-2/3) from its edge, relative to it."""
    for T in (100, 300):
        X = torch.diag(TWO.repeat(3)[:T].sqrt())
        values = feature_spectrum(X, 5 * T, activation="identity", seed=1)
        ends = values[[0, T // 2 - 1, T // 2, T - 1]]
        edges = LimitingSpectrum(X.square().sum(0), 5.0).edges().flatten()
        assert float(((ends - edges) / edges).abs().max()) < 3 * T ** (-2 / 3)


@pytest.fixture(scope="module")
def relu() -> tuple[LimitingSpectrum, Tensor]:
    """relu on 300 samples of 150 Gaussian inputs of variance 1/150, 600 neurons; the spectra of four draws."""
    X = draw(300, 150, dtype=torch.float64) / math.sqrt(150)
    draws = torch.stack([feature_spectrum(X, 600, seed=0, stream=s) for s in range(4)])
    return LimitingSpectrum.of_features(X, 600), draws


def test_resolvents_of_random_features(relu: tuple[LimitingSpectrum, Tensor]) -> None:
    """Four standard errors of four draws, and a bias of 1/T. Other inputs of this law had 3.074 and 0.70257."""
    limit, draws = relu
    for gamma, other in ((0.1, 3.074), (1.0, 0.70257)):
        means = (1 / (draws + gamma)).mean(1)
        theory = at(limit, -gamma).real
        tolerance = 4 * float(means.std()) / 2 + theory / 300
        assert float(means.mean()) == pytest.approx(theory, abs=tolerance)
        assert theory == pytest.approx(other, rel=0.01)  # 1 / sqrt(T p) = 0.005 between inputs


def test_moments_of_random_features(relu: tuple[LimitingSpectrum, Tensor]) -> None:
    """M_1 is the mean of the draws, within four standard errors; M_2 with a bias of some 1/T as well."""
    limit, draws = relu
    for power, moment, bias in ((1, limit.moments()[0], 0), (2, limit.moments()[1], 5 / 300)):
        means = (draws**power).mean(1)
        assert float(means.mean()) == pytest.approx(moment, abs=4 * float(means.std()) / 2 + bias * moment)


def test_distribution_of_random_features(relu: tuple[LimitingSpectrum, Tensor]) -> None:
    """Kolmogorov-Smirnov distance of four draws to the limit: 2/T, and half a step of the 1200 eigenvalues.

    The mean direction of relu is an isolated eigenvalue near 100, of mass 1/T. It is off the grid.
    """
    limit, draws = relu
    intervals = limit.edges()
    assert len(intervals) == 2 and 80 < float(intervals[1, 0]) < float(draws[:, -1].mean()) < float(intervals[1, 1])
    low, high = 0.9 * float(intervals[0, 0]), 1.05 * float(intervals[0, 1])
    root = torch.linspace(math.sqrt(low), math.sqrt(high), 800, dtype=torch.float64)  # points where eigenvalues are
    x = root.square()
    mass = torch.cumulative_trapezoid(limit.density(x) * 2 * root, root)
    assert float(mass[-1]) == pytest.approx(1 - 1 / 300, abs=1e-3)  # error of the trapezoidal rule at the edges
    below = (draws.flatten().unsqueeze(0) <= x[1:].unsqueeze(1)).double().mean(1)
    assert float((below - mass).abs().max()) < 2 / 300


def test_far_apart_and_tiny_eigenvalues() -> None:
    """Fourteen orders of magnitude: the equation is solved at every x, and the intervals are in order."""
    limit = LimitingSpectrum(torch.logspace(-11, 3, 120, dtype=torch.float64), 0.8)
    x = torch.logspace(-9, 4, 150, dtype=torch.float64)
    assert (limit.density(x) >= 0).all() and (limit.density(x, eta=1e-12).isfinite()).all()
    edges = limit.edges().flatten()
    assert (edges.diff() >= 0).all() and float(edges[-1]) < 1e4


def test_functions_have_limits_too() -> None:
    """activation may be any of `expected_kernel`; here the same one, by its name and as a function, to 1e-9."""
    X = draw(40, 10, dtype=torch.float64) / math.sqrt(10)
    named, function = (LimitingSpectrum.of_features(X, 20, activation=each) for each in ("tanh", torch.tanh))
    torch.testing.assert_close(named.eigenvalues, function.eigenvalues, rtol=0, atol=1e-9)
    assert named.aspect == 0.5 and named.eigenvalues.shape == (40,)


@pytest.mark.parametrize(
    "eigenvalues, aspect, error, message",
    [
        ([1.0], 1, TypeError, "eigenvalues is a list: wanted a torch.Tensor"),
        (torch.ones(2, 2), 1, ValueError, r"eigenvalues has shape \(2, 2\): wanted \(T,\) with T >= 1"),
        (torch.ones(0), 1, ValueError, r"eigenvalues has shape \(0,\): wanted \(T,\) with T >= 1"),
        (torch.ones(2) + 0j, 1, TypeError, "eigenvalues is torch.complex64: wanted real numbers"),
        (torch.tensor([1, math.nan]), 1, ValueError, "eigenvalues is not finite"),
        (torch.tensor([1, -1e-3]), 1, ValueError, "eigenvalues has the entry -0.001: wanted none below 0"),
        (torch.ones(2), 0, ValueError, "aspect=0: wanted a finite number above 0"),
        (torch.ones(2), -1.0, ValueError, "aspect=-1.0: wanted a finite number above 0"),
        (torch.ones(2), math.inf, ValueError, "aspect=inf: wanted a finite number above 0"),
        (torch.ones(2), math.nan, ValueError, "aspect=nan: wanted a finite number above 0"),
        (torch.ones(2), "1", TypeError, "aspect is a str: wanted a number"),
    ],
)
def test_constructor_refuses(eigenvalues, aspect, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        LimitingSpectrum(eigenvalues, aspect)


def test_methods_refuse() -> None:
    limit = white(1.0)
    for z in (0.0, 2.0, complex(0.5, 0)):
        with pytest.raises(ValueError, match=r"^z has the entry .*: wanted finite numbers off the half line \[0, inf"):
            limit.stieltjes(torch.tensor([1j, z]))
    for z in (math.nan, complex(1, math.inf)):
        with pytest.raises(ValueError, match="^z has the entry .*: wanted finite numbers off the half line"):
            limit.delta(torch.tensor(z))
    with pytest.raises(TypeError, match="^z is a complex: wanted a torch.Tensor"):
        limit.stieltjes(1j)
    for x in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"^x has the entry {x}: wanted finite numbers above 0"):
            limit.density(points(1, x))
    with pytest.raises(TypeError, match="^x is torch.complex64: wanted real numbers"):
        limit.density(torch.ones(2) + 0j)
    with pytest.raises(TypeError, match="^x is a float: wanted a torch.Tensor"):
        limit.density(1.0)
    for eta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"^eta={eta}: wanted a finite number above 0"):
            limit.density(points(1), eta=eta)
    with pytest.raises(ValueError, match=r"^X has shape \(0, 3\): wanted \(T, p\) with T >= 1"):
        LimitingSpectrum.of_features(torch.ones(0, 3), 2)
    with pytest.raises(ValueError, match="^n_features=0: wanted n_features >= 1"):
        LimitingSpectrum.of_features(torch.ones(2, 3), 0)
