# SPDX-License-Identifier: BSD-3-Clause
"""Weights that whiten the input of one linear layer: singular values in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from whitened_layers import EXACT, initialised, linear, random, scaled, singular_values

from rainbow_fast import polar
from rainbow_fast import random_networks as rn
from rainbow_fast.random_networks.whitening import FACTORS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("factor", ["identity", "haar", "polar_slice"])
@pytest.mark.parametrize("n, d, outputs", [(60, 8, 8), (60, 8, 5), (60, 8, 13), (10, 16, 7), (10, 16, 9)])
def test_singular_values(n, d, outputs, factor):
    """Exponent 1 makes all of them equal, exponent 1/2 takes their roots; of the leading ones, with fewer outputs."""
    x, k = scaled(n, d), min(d, outputs)
    sigma = torch.linalg.svdvals(x)[:k]
    for exponent in (1.0, 0.5):
        layer = initialised(linear(d, outputs), x, exponent=exponent, factor=factor, eps=0)
        values = singular_values(layer, x)
        wanted = sigma ** (1 - exponent)
        wanted = wanted * math.sqrt(n * outputs) / torch.linalg.vector_norm(wanted)  # the outputs have mean square 1
        torch.testing.assert_close(values[:k], wanted, **EXACT)
        assert (values[k:] < 1e-12).all()  # rounding
    white = initialised(linear(d, outputs), x, factor=factor, eps=0)
    floor = math.sqrt(1 / k - 1 / n)  # of n samples that span k dimensions
    assert float(rn.orthogonality_gap(white(x).detach())) == pytest.approx(floor, rel=1e-9)


def test_orthonormal_samples_of_a_square_batch():
    """As many samples as units: the outputs of samples are orthogonal, and the gap vanishes."""
    x = scaled(7, 7)
    layer = initialised(linear(7, 7), x, eps=0)
    rounding = 1e-16 * float(torch.linalg.cond(x)) ** 2  # of H^T H, relative to its smallest eigenvalue
    assert float(rn.orthogonality_gap(layer(x).detach())) < 10 * rounding < 1e-4


def test_the_identity_factor_gives_the_polar_factor():
    x = scaled(40, 6)
    z = initialised(linear(6, 6), x, eps=0)(x).detach()
    U, _, Vh = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(z, U @ Vh * math.sqrt(40), rtol=1e-8, atol=1e-9)  # 1e-16 times the squared condition
    white = torch.linalg.qr(random(40, 6))[0]
    layer = initialised(linear(6, 6), white, eps=0)
    torch.testing.assert_close(layer.weight / layer.weight[0, 0], torch.eye(6).double(), **EXACT)


@pytest.mark.parametrize("factor", ["identity", "haar"])
def test_the_gap_decreases_strictly(factor):
    """For every exponent, and with eps: at each layer and along the exponents."""
    x = scaled(100, 12)
    for eps in (0, 1e-5, 1e-2):
        gaps = [float(rn.orthogonality_gap(x))]
        for exponent in (0.25, 0.5, 0.75, 1.0):
            z = initialised(linear(12, 12), x, exponent=exponent, factor=factor, eps=eps)(x).detach()
            gaps.append(float(rn.orthogonality_gap(z)))
        assert all(after < before for before, after in pairwise(gaps))


def test_eps_bounds_weak_directions():
    """The singular values of the outputs are s (s^2 + eps m)^(-1/2), up to the gain; m is the mean of s^2."""
    x, eps = scaled(50, 6), 1e-3
    s = torch.linalg.svdvals(x)
    wanted = s * (s.square() + eps * s.square().mean()) ** -0.5
    values = singular_values(initialised(linear(6, 6), x, eps=eps), x)
    torch.testing.assert_close(values / values[0], wanted / wanted[0], **EXACT)


def test_scales():
    x = scaled(50, 6)
    rounding = 1e-16 * float(torch.linalg.cond(x)) ** 2  # of x^T x, relative to its smallest eigenvalue
    assert rounding < 1e-9
    z = initialised(linear(6, 9), x, gain=3)(x).detach()
    assert float(z.square().mean()) == pytest.approx(9, rel=rounding)
    z = initialised(linear(6, 4), x, gain=3, scale="frobenius")(x).detach()
    assert float(torch.linalg.matrix_norm(z)) == pytest.approx(3, rel=rounding)


def test_a_slice_is_not_orthogonal():
    """The law of Jacobi: of n = 3 d, the squared singular values of a slice fill [0, 8/9], with mean 1/3.

    Of d = 300, the largest is below 8/9 by about d^(-2/3), and mean square and ratio are known to about 1/d.
    """
    d = 300
    x = random(3 * d, d)
    layer = initialised(linear(d, d), x, factor="slice", scale="frobenius", eps=0)
    s = singular_values(layer, x)
    U = torch.linalg.svd(x, full_matrices=False)[0]
    sliced = torch.linalg.svdvals(U[:d])
    torch.testing.assert_close(s, sliced / torch.linalg.vector_norm(sliced), rtol=1e-8, atol=1e-10)
    assert float(sliced[0].square()) == pytest.approx(8 / 9, abs=0.03) and sliced[0].square() < 8 / 9 + 0.005
    assert float(sliced.square().mean()) == pytest.approx(1 / 3, abs=0.01)
    assert float(2 - 2 * s.mean() / s.square().mean().sqrt()) == pytest.approx(0.240, abs=0.01)
    whole = initialised(linear(d, d), x, eps=0)
    floor = math.sqrt(1 / d - 1 / (3 * d))
    assert float(rn.orthogonality_gap(whole(x).detach())) == pytest.approx(floor, rel=1e-9)
    assert rn.orthogonality_gap(layer(x).detach()) > 1.3 * floor


def test_the_polar_factor_of_a_slice():
    """It is the polar factor of the first rows of the left singular vectors."""
    x = scaled(40, 6)
    U = torch.linalg.svd(x, full_matrices=False)[0]
    for outputs in (6, 9):
        z = initialised(linear(6, outputs), x, factor="polar_slice", eps=0)(x).detach()
        wanted = U @ polar(U[:outputs]).A.T * math.sqrt(40 * outputs / 6)
        torch.testing.assert_close(z, wanted, rtol=1e-8, atol=1e-9)  # 1e-16 times the squared condition


@pytest.mark.parametrize("factor", FACTORS)
def test_fewer_rows_than_inputs(factor):
    """Rows of zeros change no moments: 9 samples of 14 inputs alone, and with 11 rows of zeros, give one weight."""
    x = scaled(9, 14)
    more = torch.cat([x, torch.zeros(11, 14, dtype=torch.float64)])
    for exponent in (1.0, 0.5):
        for eps in (0, 1e-5):
            options = {"factor": factor, "exponent": exponent, "eps": eps, "scale": "frobenius"}
            few, many = (initialised(linear(14, 6), h, **options).weight for h in (x, more))
            torch.testing.assert_close(few, many, **EXACT)


def test_fewer_rows_than_inputs_of_low_rank():
    """Null directions get weights of the size that eps sets, and eps=0 is refused."""
    x = scaled(9, 14)
    x[6:] = x[:3]
    layer = initialised(linear(14, 8), x, eps=1e-5)
    s = torch.linalg.svdvals(x)[:8]
    assert (s[6:] < 1e-15).all()
    wanted = (s.square() + 1e-5 * s.square().sum() / 14) ** -0.5
    values = torch.linalg.svdvals(layer.weight.detach()).flip(0)
    torch.testing.assert_close(values / values[0], wanted / wanted[0], **EXACT)
    with pytest.raises(ValueError, match=r"^eps=0: layer '': its input on the batch has rank 6, wanted 8: another bat"):
        rn.init_orthogonal_(linear(14, 8), x, eps=0)


def test_unused_inputs():
    """Inputs that are always zero, as the border of digits: their weights are zero, and eps is needed for all."""
    x = random(40, 6)
    x[:, :3] = 0
    layer = initialised(linear(6, 3), x, eps=0)
    assert layer.weight[:, :3].abs().max() < 1e-12  # rounding
    assert float(singular_values(layer, x).std()) < 1e-9
    with pytest.raises(ValueError, match=r"^eps=0: layer '': its input on the batch has rank 3, wanted 6: another bat"):
        rn.init_orthogonal_(linear(6, 6), x, eps=0)
    s = singular_values(initialised(linear(6, 6), x), x)
    torch.testing.assert_close(s[:3] / s[0], torch.ones(3).double(), rtol=1e-4, atol=0)  # eps = 1e-5
