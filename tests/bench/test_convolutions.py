# SPDX-License-Identifier: BSD-3-Clause
"""The rivals in plain torch: products by convolutions, sums in blocks, the polar factor by polynomials."""

import pytest
import torch
from bench_patch_covariance import both, one, plain
from bench_polar import polar_express, svd
from bench_regression import moments_of_features
from convolutions import covariance, covariance_of_maps, product, second_moments
from draws import normal
from here import draw, threads
from tolerance import assert_close_to_float64


def test_product() -> None:
    a, b = draw(48, 5), draw(5, 7, seed=1)
    assert_close_to_float64(product(a, b), a.double() @ b.double(), a @ b, terms=5)


def test_covariance() -> None:
    x, y = draw(64, 5), draw(64, 7, seed=1)
    assert_close_to_float64(covariance(x, y), x.double().T @ y.double(), x.T @ y, terms=64)


def test_covariance_of_maps() -> None:
    x, y = draw(3, 5, 4, 6), draw(3, 7, 4, 6, seed=1)
    exact = torch.einsum("nchw,ndhw->cd", x.double(), y.double())
    assert_close_to_float64(covariance_of_maps(x, y), exact, torch.einsum("nchw,ndhw->cd", x, y), terms=72)


@pytest.mark.parametrize("way", [both, one])
@pytest.mark.parametrize("sides", [1, 2])
def test_covariance_of_patches(way, sides: int) -> None:
    x, y = draw(5, 3, 6, 4), draw(5, 3, 6, 4, seed=1) if sides == 2 else None
    exact = plain(x.double(), None if y is None else y.double(), 3)
    assert_close_to_float64(way(x, y, 3), exact, plain(x, y, 3), terms=120)


def test_second_moments_of_parts() -> None:
    x = draw(3, 7, 4, 6)
    exact = torch.einsum("nchw,ndhw->cd", x.double(), x.double())
    got = second_moments(x.split(3, 1))
    assert_close_to_float64(got, exact, torch.einsum("nchw,ndhw->cd", x, x), terms=72)


def test_second_moments_of_features() -> None:
    u, G = draw(32, 4), draw(600, 4, seed=1)
    phi = (u @ G.T).relu()
    exact = (u.double() @ G.double().T).relu()
    assert_close_to_float64(moments_of_features(u, G), exact.T @ exact, phi.T @ phi, terms=32)


def test_polynomials_give_the_polar_factor() -> None:
    """The condition is 10^3. float32 has 1e-7 for each unit of the condition in the weakest direction."""
    U, V = (torch.linalg.qr(draw(size, 16, dtype=torch.float64, seed=size)).Q for size in (16, 40))
    M = (U * torch.logspace(0, -3, 16, dtype=torch.float64)) @ V.mT
    got = polar_express(M.float(), 2e-4)
    assert torch.linalg.vector_norm(got - svd(M)) / 4 < 1e-4


@pytest.mark.parametrize("count", [1, 2, 3])
def test_draws_are_normal_and_the_same_again(count: int) -> None:
    with threads(count):
        first, again = normal(1000, 100), normal(1000, 100, out=torch.empty(1000, 100))
    assert torch.equal(first, again)
    assert abs(float(first.mean())) < 0.016 and abs(float(first.var()) - 1) < 0.023  # five standard errors
