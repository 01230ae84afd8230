# SPDX-License-Identifier: BSD-3-Clause
"""The closed forms of random chains: values that are known, limits, and the inequalities of the theorems."""

import math

import pytest
import torch
from torch import Tensor

from rainbow_fast.random_networks import RandomLayer
from rainbow_fast.random_networks import chain_theory as theory

EXACT = {"rtol": 1e-12, "atol": 1e-13}  # float64, up to rounding
EIGHT = {"rtol": 0, "atol": 1e-8}  # the digits of the values


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def spectra(count: int, n: int) -> Tensor:
    """Random spectra: some near isotropy, some near rank one."""
    generator = torch.Generator().manual_seed(n)
    raw = torch.rand(count, n, dtype=torch.float64, generator=generator)
    powers = 10 ** torch.linspace(-1, 1.5, count, dtype=torch.float64)[:, None]
    return raw.pow(powers) / raw.pow(powers).sum(-1, keepdim=True)


@pytest.mark.parametrize(
    "before, after",
    [
        ((0.9, 0.1), (0.75, 0.25)),
        ((0.6, 0.3, 0.1), (0.49606355, 0.33754602, 0.16639043)),  # of Carlson's R_D
        ((0.7, 0.2, 0.1), (0.55214539, 0.27389180, 0.17396281)),
        ((0.4, 0.3, 0.2, 0.1), (0.34885568, 0.29183468, 0.22343191, 0.13587773)),
        ((0.25, 0.25, 0.25, 0.25), (0.25, 0.25, 0.25, 0.25)),
        ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0)),
    ],
)
def test_mean_field_values(before, after):
    torch.testing.assert_close(theory.mean_field(numbers(*before)), numbers(*after), **EIGHT)
    torch.testing.assert_close(theory.mean_field(7 * numbers(*before).float()), numbers(*after), rtol=0, atol=1e-7)


def test_mean_field_of_two_samples():
    """p_i is proportional to sqrt(lambda_i), for ratios up to 10^300; the cosine has its own map."""
    small = 10.0 ** -torch.arange(0, 301, 20, dtype=torch.float64)
    p = theory.mean_field(torch.stack([torch.ones_like(small), small], -1))
    torch.testing.assert_close(
        p[:, 1] / p[:, 0], small.sqrt(), rtol=1e-12, atol=0
    )  # logarithms of up to 700 are rounded
    c = torch.linspace(-1, 1, 9, dtype=torch.float64)
    p = theory.mean_field(torch.stack([1 + c, 1 - c], -1) / 2)
    torch.testing.assert_close(theory.batch_norm_cosine(c), p[:, 0] - p[:, 1], **EXACT)


def test_mean_field_sums_to_one():
    for n in (2, 5, 40):
        p = theory.mean_field(spectra(20, n))
        torch.testing.assert_close(p.sum(-1), torch.ones(20, dtype=torch.float64), **EXACT)
    batch = spectra(6, 3).view(2, 3, 3)
    torch.testing.assert_close(theory.mean_field(batch)[1, 2], theory.mean_field(batch[1, 2]), **EXACT)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_contraction(n):
    """The derivative of the mean field at isotropy, by a difference of 1e-4: its error is of the second order."""
    h, direction = 1e-4, torch.linspace(-1, 1, n, dtype=torch.float64)
    direction = direction - direction.mean()
    change = (theory.mean_field(1 / n + h * direction) - theory.mean_field(1 / n - h * direction)) / (2 * h)
    torch.testing.assert_close(change, theory.contraction(n) * direction, rtol=1e-6, atol=1e-6)


def test_cosine_map():
    assert float(theory.batch_norm_cosine(numbers(0.6))) == pytest.approx(1 / 3, rel=1e-14)
    c, values = numbers(1 / math.hypot(1, 1e-3 / (1 - 1e-3))), []  # the start of figure 1
    for _ in range(8):
        c = theory.batch_norm_cosine(c)
        values.append(round(float(c), 4))
    assert values == [0.9990, 0.9562, 0.7398, 0.4422, 0.2331, 0.1182, 0.0593, 0.0297]


def test_layer_noise():
    """Lemma 6: at most 1/d; at isotropy (1 - 1/n) / d."""
    assert float(theory.layer_noise(numbers(1, 1, 1, 1), 50)) == pytest.approx(0.75 / 50, rel=1e-12)
    assert bool((theory.layer_noise(spectra(50, 6), 50) <= 1 / 50).all())


@pytest.mark.parametrize(
    "n, value", [(2, 2 / 3), (3, 25 / 24), (4, 27 / 20), (8, 2.430556), (16, 4.466912)], ids=lambda v: f"{v:.3g}"
)
def test_stationary_gap(n, value):
    gap = theory.stationary_gap(n, 100)
    assert 100 * gap.mean_square == pytest.approx(value, rel=1e-6)  # the digits of the values
    noise, factor = (1 - 1 / n) / 100, theory.contraction(n)
    assert gap.mean_square == pytest.approx(noise / (1 - factor**2), rel=1e-12)
    if n == 4:
        assert gap.mean / math.sqrt(gap.mean_square) == pytest.approx(0.97266, abs=5e-6)
        assert gap.mean_log - math.log(gap.mean_square) / 2 == pytest.approx(-0.05760, abs=5e-6)


def test_stationary_gap_centred():
    """For large d the floor 1 / sqrt(n (n - 1))."""
    for n, floor in ((2, 0.70711), (3, 0.40825), (4, 0.28868), (8, 0.13363)):
        assert theory.stationary_gap(n, 10**12, centred=True).mean == pytest.approx(floor, abs=5e-6)
    assert theory.stationary_gap(8, 100, centred=True).mean == pytest.approx(0.1989, abs=5e-5)


def test_wide_batch():
    """Measured at d = 1024: effective ranks, and the edges of the spectrum at n = 16."""
    for n, rank in ((16, 15.06), (32, 25.60), (64, 32), (128, 32)):
        assert theory.wide_batch(n, 1024).effective_rank == pytest.approx(rank, abs=5e-3)
    assert theory.wide_batch(16, 1024)[1:] == pytest.approx((0.0352, 0.0977), abs=5e-5)
    assert theory.wide_batch(64, 1024)[1:] == pytest.approx((0, 4 / 64), abs=1e-15), "the edges are continuous"


def test_relu_angle():
    """Theta is about 3 pi / l after l layers, from orthogonal samples; a small angle loses theta^2 / (3 pi)."""
    theta, values = numbers(math.pi / 2), {}
    for layer in range(1, 1001):
        theta = theory.relu_angle(theta)
        values[layer] = layer * float(theta) / (3 * math.pi)
    assert [values[layer] for layer in (10, 100, 1000)] == pytest.approx([0.5437, 0.8977, 0.9854], abs=5e-5)
    small = numbers(1e-6)
    assert float((small - theory.relu_angle(small)) / small.square()) == pytest.approx(1 / (3 * math.pi), rel=1e-4)
    angle = torch.linspace(0, math.pi, 7, dtype=torch.float64)
    cosine = (angle.sin() + (math.pi - angle) * angle.cos()) / math.pi
    torch.testing.assert_close(theory.relu_angle(angle).cos(), cosine, **EXACT)


def test_lemma_8():
    for n in (2, 4, 9):
        lam = spectra(300, n)
        slack = theory.mean_field_bound(lam) - (1 / n - theory.mean_field(lam).amin(-1))
        assert float(slack.min()) >= -1e-13, "rounding"


def test_bounds():
    """Theorem 1 says nothing before d = 768 for n = 4, and theorem 5 is at least the bound of the mean field."""
    largest = math.sqrt(1 - 1 / 4)
    assert theory.gap_bound(4, 768, 1 / 4, 10**6) == pytest.approx(largest, rel=1e-12)
    assert theory.gap_bound(4, 10**4, 1 / 4, 0) == pytest.approx(2 + 3 * 4 * 4 / 200, rel=1e-12)
    lam = spectra(50, 5)
    assert bool((theory.layer_bound(lam, 100) >= theory.mean_field_bound(lam) + 0.1 - 1e-12).all())
    assert theory.haar_isometry_factor(20) == 20 / 22
    assert float(theory.haar_isometry_bound(numbers(1e-3), 20)) == pytest.approx(1e-6 / 44, rel=1e-6)


def test_columns():
    layers, start = [0, 2, 5], torch.diag(numbers(1, 0.1, 0.1, 0.1))
    batch = theory.columns(RandomLayer(), "gaussian", start, 64, layers)
    names = ["gap", "gap_squared", "largest", "log_gap", "rank", "smallest"]
    assert sorted(batch) == ["contraction", "mean_field_gap", *(f"stationary_{name}" for name in names)]
    assert all(column.shape == (3,) for column in batch.values())
    wide = [float(batch[f"stationary_{name}"][0]) for name in ("rank", "smallest", "largest")]
    assert wide == list(theory.wide_batch(4, 64)) and float(batch["contraction"][2]) == theory.contraction(4) == 4 / 6
    lam = torch.diag(start).square() / start.square().sum()
    for _ in range(2):
        lam = theory.mean_field(lam)
    assert float(batch["mean_field_gap"][1]) == pytest.approx(float((lam - 0.25).norm()), rel=1e-12)
    same = torch.ones(2, 4, 6, dtype=torch.float64)  # parallel samples stay parallel, in spite of rounding
    gaps = theory.columns(RandomLayer(), "gaussian", same, 64, [0, 40])["mean_field_gap"]
    torch.testing.assert_close(gaps, torch.full((2, 2), math.sqrt(0.75), dtype=torch.float64), **EXACT)

    relu = theory.columns(RandomLayer("relu", "none"), "gaussian", torch.eye(3).double(), 64, layers)
    theta = numbers(math.pi / 2)
    assert float(relu["mean_field_cosine"][0]) == pytest.approx(0, abs=1e-15)
    cosine = float(theory.relu_angle(theory.relu_angle(theta)).cos())
    assert float(relu["mean_field_cosine"][1]) == pytest.approx(cosine, rel=1e-12)

    for normaliser in ("none", "layer"):
        collapsed = theory.columns(RandomLayer(normaliser=normaliser), "gaussian", start, 64, layers)
        assert list(collapsed) == ["collapsed_gap"]
    for normaliser in ("batch_centred", "batch_standard"):
        centred = theory.columns(RandomLayer(normaliser=normaliser), "gaussian", start, 64, layers)
        assert sorted(centred) == ["contraction", "stationary_gap_squared"]
        assert float(centred["contraction"][0]) == theory.contraction(3)
    assert list(theory.columns(RandomLayer(), "haar", start, 4, layers)) == ["isometry_factor"]
    for layer, weights in (
        (RandomLayer("tanh"), "gaussian"),
        (RandomLayer("relu", normaliser="layer"), "gaussian"),
        (RandomLayer("tanh", normaliser="none"), "gaussian"),
        (RandomLayer("relu", normaliser="none", order="activation-linear-norm"), "gaussian"),
        (RandomLayer(skip="block"), "gaussian"),
        (RandomLayer(), "uniform"),
        (RandomLayer(), "function"),
        (RandomLayer(), "haar"),
    ):
        assert theory.columns(layer, weights, start, 64, layers) == {}


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: theory.mean_field(numbers(-1, 2)), ValueError, "^eigenvalues: wanted finite numbers of at least 0"),
        (lambda: theory.mean_field(numbers(0, 0)), ValueError, "^eigenvalues: wanted finite numbers of at least 0"),
        (lambda: theory.mean_field(numbers(1, math.nan)), ValueError, "^eigenvalues: wanted finite numbers"),
        (lambda: theory.mean_field(numbers(1, math.inf)), ValueError, "^eigenvalues: wanted finite numbers"),
        (lambda: theory.mean_field(torch.tensor(1.0)), ValueError, r"^eigenvalues has shape \(\): wanted"),
        (lambda: theory.mean_field([0.5, 0.5]), TypeError, "^eigenvalues is a list: wanted a torch.Tensor"),
        (lambda: theory.contraction(0), ValueError, "^n=0: wanted n >= 1"),
        (lambda: theory.layer_noise(numbers(1, 1), 0), ValueError, "^d=0: wanted d >= 1"),
        (lambda: theory.layer_bound(numbers(1, 1), 1.5), TypeError, "^d=1.5: wanted an integer"),
        (lambda: theory.stationary_gap(1, 10), ValueError, "^n=1: wanted n >= 2"),
        (lambda: theory.stationary_gap(2, 10, centred=1), TypeError, "^centred=1: wanted True or False"),
        (lambda: theory.wide_batch(3, 0), ValueError, "^d=0: wanted d >= 1"),
        (lambda: theory.batch_norm_cosine(numbers(1.1)), ValueError, r"^cosine: wanted numbers in \[-1, 1\]"),
        (lambda: theory.batch_norm_cosine(0.5), TypeError, "^cosine is a float: wanted a torch.Tensor"),
        (lambda: theory.relu_angle(numbers(-0.1)), ValueError, r"^angle: wanted radians in \[0, pi\]"),
        (lambda: theory.gap_bound(4, 10, 0.3, 1), ValueError, "^alpha=0.3: wanted 0 < alpha <= 1/n = 0.25"),
        (lambda: theory.gap_bound(4, 10, 0.2, -1), ValueError, "^layers=-1: wanted layers >= 0"),
        (lambda: theory.haar_isometry_factor(0), ValueError, "^d=0: wanted d >= 1"),
        (lambda: theory.haar_isometry_bound(numbers(2), 5), ValueError, r"^gap: wanted numbers in \[0, 1\]"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
