# SPDX-License-Identifier: BSD-3-Clause
"""Kernels and alignments of random features converge as theory says; sites of whole networks are measured alike."""

import math

import numpy as np
import pytest
import torch
from here import draw
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import mlp

pytest.importorskip("scipy")

from rainbow_fast.analysis import convergence
from rainbow_fast.analysis.convergence import (
    bures_wasserstein,
    kernel_convergence,
    site_convergence,
    site_features,
)
from rainbow_fast.analysis.rates import fit_power
from rainbow_fast.infinite_width.kernels import empirical_kernel

pytestmark = pytest.mark.usefixtures("one_thread")


def images(N: int = 150) -> Tensor:
    """Data like digits: 64 numbers whose variances fall by a power law."""
    return draw(N, 64, dtype=torch.float64) * torch.arange(1, 65) ** -0.75


def white(N: int, r: int) -> Tensor:
    """(N, r) with E[u u^T] = I exactly."""
    return torch.linalg.qr(draw(N, r, dtype=torch.float64))[0] * math.sqrt(N)


def test_distance_of_kernels_is_the_least_over_rotations() -> None:
    """The distance agrees with Procrustes on the features themselves, also for other widths; it is 0 for a rotation."""
    phi, other = draw(40, 7, dtype=torch.float64), draw(40, 12, dtype=torch.float64, seed=1)
    M = phi.T @ other / 40
    A = rf.polar(M, rank="complete").A
    isometry = torch.linalg.matrix_norm(other - phi @ A) ** 2 / 40  # (7, 12): embeds phi
    # Square roots of kernels keep half of the digits
    assert bures_wasserstein(phi @ phi.T, other @ other.T) == pytest.approx(float(isometry), rel=1e-7)
    rotated = phi @ torch.linalg.qr(draw(7, 7, dtype=torch.float64, seed=2))[0]
    assert bures_wasserstein(phi @ phi.T, rotated @ rotated.T) < 1e-7 * 7  # the same for a trace of 7
    with pytest.raises(ValueError, match=r"K and K2 have shapes \(2, 2\) and \(3, 3\): wanted \(N, N\) of both"):
        bures_wasserstein(torch.eye(2), torch.eye(3))


def test_white_linear_features_of_rank_r() -> None:
    """E BW^2 = r (r + 1) / (4 n) to leading order, within four standard errors and the next order, a share of r / n."""
    r, n, u = 10, 1600, white(30, 10)
    distances = [
        bures_wasserstein(empirical_kernel(u, n, activation="identity", seed=0, stream=s), u @ u.T) for s in range(60)
    ]
    wanted = r * (r + 1) / (4 * n)
    assert abs(np.mean(distances) - wanted) < 4 * np.std(distances) / math.sqrt(60) + wanted * r / n


@pytest.fixture(scope="module")
def features() -> convergence.KernelConvergence:
    return kernel_convergence(images(), [64, 128, 256, 512, 1024, 2048], shift=draw(150, seed=3) / 4, networks=8)


def test_kernels_converge_as_one_over_n(features: convergence.KernelConvergence) -> None:
    n = np.broadcast_to(features.widths, features.kernel.shape)
    fit = fit_power(n, features.kernel, e_inf=0)
    assert fit.p_interval[0] < 1 < fit.p_interval[1] < fit.p_interval[0] + 0.6
    ratio = features.between.mean() / features.kernel.mean()
    assert 1.4 < ratio < 2.6  # two independent errors of the same law; here 48 of each
    assert features.kernel.mean(0)[0] > 10 * features.kernel.mean(0)[-1]


def test_alignments_converge(features: convergence.KernelConvergence) -> None:
    """Errors fall faster than theorem 1 allows. With a wide sample they end at the error of that sample."""
    n = np.broadcast_to(features.widths, features.limit.shape)
    fit = fit_power(n, features.limit)
    assert 0.7 < fit.p < 1.3 and fit.e_inf < features.limit.mean(0)[-1]
    assert features.wide_width == 4 * 2048 and (features.wide.mean(0) > features.limit.mean(0))[-3:].all()
    assert (np.diff(features.limit.mean(0)) < 0).all() and (np.diff(features.wide.mean(0)) < 0).all()
    assert (np.diff(features.spectrum) <= 0).all() and features.spectrum[0] > 0


def test_kernel_convergence_is_reproducible_and_tells_its_progress() -> None:
    seen: list[tuple] = []
    u, widths = draw(20, 4), [8, 16]
    first = kernel_convergence(u, widths, networks=2, seed=5, progress=lambda *told: seen.append(told))
    again = kernel_convergence(u, widths, networks=2, seed=5)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.kernel, kernel_convergence(u, widths, networks=2, seed=6).kernel)
    assert seen == [
        (1, 5, "width 64"), (2, 5, "width 8, network 0"), (3, 5, "width 8, network 1"),
        (4, 5, "width 16, network 0"), (5, 5, "width 16, network 1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"widths": []}, r"widths=\[\]: wanted one or more, increasing, at least 1"),
        ({"widths": [8, 8]}, r"widths=\[8, 8\]: wanted one or more, increasing"),
        ({"widths": [0, 8]}, r"widths=\[0, 8\]: wanted one or more, increasing"),
        ({"networks": 1}, "networks=1: wanted at least 2, to compare one with another"),
    ],
)
def test_kernel_convergence_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_convergence(torch.ones(3, 2), **{"widths": [2, 4]} | arguments)


@pytest.fixture(scope="module")
def model() -> rf.RainbowModel:
    return rf.fit(mlp((64, 24, 16, 10), seed=0), images(300).float(), holdout=0)


@pytest.mark.parametrize("options", [{}, {"keep_mean": True, "rank": 9}])
def test_sites_are_measured_at_what_they_see(model: rf.RainbowModel, options: dict) -> None:
    """The kernel of a site is that of the features that the network computes from its own input."""
    network, _ = model.sample(width=40, seed=1, **options)
    x = images(30).float()
    by_site = site_features(network, x)
    assert list(by_site) == ["2", "4"]
    z = network.body[:2](x)
    for name, layers in (("2", network.body[2:4]), ("4", None)):
        phi = network.site(name).features(z).double()
        torch.testing.assert_close(by_site[name].empirical(), phi @ phi.T / 40, rtol=1e-5, atol=1e-6)  # phi is float32
        z = z if layers is None else layers(z)
    assert not network.site("2")._forward_pre_hooks
    assert len(site_features(network, x, sites=["4"], samples=7)["4"].u) == 7


def test_networks_converge_site_by_site(model: rf.RainbowModel) -> None:
    x, drawn = images(60).float(), []

    def sample(n: int, index: int) -> rf.RainbowNetwork:
        drawn.append((n, index))
        return model.sample(width=n, network_index=index)[0]

    by_site = site_convergence(sample, x, [32, 512], networks=3, sites=["2", "4"])
    assert sorted(index for _, index in drawn) == list(range(7)) and drawn[0][0] == 2048  # all independent
    for site in by_site.values():
        assert site.kernel.shape == (3, 2)
        for errors in (site.kernel, site.between, site.limit, site.wide):
            wide, narrow = errors.mean(0)[::-1]
            assert 0 < wide < narrow / 4  # mean over many: 16


def test_positions_of_maps_are_samples() -> None:
    reference = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))
    model = rf.fit(reference, draw(60, 1, 8, 8), holdout=0)
    network, _ = model.sample(width=12)
    site = site_features(network, draw(4, 1, 8, 8, seed=1), samples=100)["1"]
    assert site.u.shape == (100, 6)
    assert site_features(network, draw(1, 1, 8, 8), samples=100)["1"].u.shape == (36, 6)


@pytest.mark.parametrize("law", [{"law": "orthonormal"}, {"law": "bootstrap"}, {"pool": True}])
def test_sites_without_a_closed_form_are_refused(law: dict) -> None:
    pool = [nn.MaxPool2d(2)] if law.pop("pool", False) else []
    reference = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *pool, nn.Flatten(), nn.LazyLinear(3))
    reference(draw(1, 1, 8, 8))
    network, _ = rf.sample(reference, draw(40, 1, 8, 8), holdout=0, width=3, **law)
    with pytest.raises(ValueError, match="site '1': wanted Gaussian rows .*, of finite width, without pooling"):
        site_features(network, draw(2, 1, 8, 8))
