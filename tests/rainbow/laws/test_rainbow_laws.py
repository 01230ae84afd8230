# SPDX-License-Identifier: BSD-3-Clause
"""The laws of the sampled rows, against their closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import mlp
from rainbow_fast.rainbow.laws import Bootstrap
from rainbow_fast.rainbow.model import RainbowModel

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
F64 = torch.float64


def gaussian_data(N: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(N, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("smoothing", [2.0, -1, math.nan])
def test_a_share_of_noise_is_between_0_and_1(smoothing: float) -> None:
    with pytest.raises(ValueError, match=f"smoothing={smoothing}: wanted 0 <= smoothing <= 1"):
        Bootstrap(smoothing)
    with pytest.raises(TypeError, match="smoothing is a str: wanted a number"):
        Bootstrap("much")


def white_linear_site(r: int, d: int) -> RainbowModel:
    """z = W x with W^T W / d = I_r, with the identity as activation and data with E[x x^T] = I exactly."""
    net = nn.Sequential(nn.Linear(r, d, bias=False), nn.LeakyReLU(1.0), nn.Linear(d, 1)).double()
    Q = torch.linalg.qr(gaussian_data(d, r))[0]
    with torch.no_grad():
        net[0].weight.copy_(math.sqrt(d) * Q)
    x = math.sqrt(r) * torch.eye(r, dtype=F64)
    return rf.fit(net, torch.cat([x, -x]).repeat(4, 1), holdout=0)


@pytest.mark.parametrize(
    ("scale", "constant"), [("sqrt", lambda r: (r + 1) / 4), ("optimal", lambda r: (r - 1) * (r + 2) / (4 * r))]
)
def test_error_of_a_white_linear_site(scale, constant):
    """To leading order: (r + 1) / (4 n) with sqrt(d / n), and (r - 1)(r + 2) / (4 r n) with the optimal scale."""
    r, n = 5, 200
    model = white_linear_site(r, d=6)
    errors = [model.sample(width=n, seed=seed, scale=scale)[1].sites[0].error for seed in range(200)]
    assert sum(errors) / len(errors) == pytest.approx(constant(r) / n, rel=0.05)  # 200 networks, and terms of 1 / n^2


def test_orthonormal_rows_align_a_white_linear_site_exactly():
    network, report = white_linear_site(5, d=6).sample(width=50, law="orthonormal")
    assert report.sites[0].error < 1e-20  # rounding of float64, squared
    assert report.sites[0].M_rank == 5, "the factor is partial"


@pytest.fixture(scope="module")
def first_site() -> tuple[RainbowModel, Tensor, Tensor]:
    """A ReLU site of 7 neurons with a bias: its z on some inputs, and its weights with the bias as one more column."""
    net = mlp((4, 7, 2), bias=True, seed=3).double()
    x = gaussian_data(60, 4)
    weight = torch.cat([net[1].weight, net[1].bias[:, None]], 1).detach()
    return rf.fit(net, x, holdout=0), net[:2](x).detach(), weight


def test_kernels_of_the_first_site(first_site):
    """E (k_n - k)^2 = Var(sigma sigma') / n, where k is the arc-cosine kernel; on the diagonal it is 5 k^2 / n."""
    model, z, _ = first_site
    networks, n = 4000, 16
    site = model.sample(width=networks * n)[0].site("2")
    for i, j in ((0, 0), (0, 1), (2, 3)):
        features = site.features(z[[i, j]])
        sampled = (features[0] * features[1]).view(networks, n).mean(1)
        a, b = z[i].norm() / 7**0.5, z[j].norm() / 7**0.5
        c = (z[i] @ z[j] / 7 / (a * b)).clamp(-1, 1)
        t, s = torch.arccos(c), (1 - c * c).clamp(min=0).sqrt()
        kernel = a * b * (s + (math.pi - t) * c) / (2 * math.pi)
        fourth = (a * b) ** 2 * (3 * s * c + (math.pi - t) * (1 + 2 * c * c)) / (2 * math.pi)
        variance = fourth - kernel**2
        if i == j:
            torch.testing.assert_close(variance, 5 * kernel**2)
        spread = (sampled - kernel).square().mean()
        assert float(spread * n / variance) == pytest.approx(1, rel=0.15)  # sampling error of 4000 networks
        assert abs(sampled.mean() - kernel) < 5 * (variance / (n * networks)).sqrt()


def test_covariance_of_gaussian_rows(first_site):
    """E |C_n - C|_F^2 = (tr^2 C + tr C^2) / n, C = W^T W / d with the bias as one more input."""
    model, _, W = first_site
    networks, n = 2000, 8
    rows = (model.sample(width=networks * n)[0].site("2").effective_rows() @ W).view(networks, n, -1)
    C = W.T @ W / 7
    deviation = (torch.einsum("kni,knj->kij", rows, rows) / n - C).square().sum((1, 2)).mean()
    assert float(deviation * n) == pytest.approx(float(C.trace() ** 2 + (C @ C).trace()), rel=0.1)  # of 2000 networks


@pytest.mark.parametrize("n", [7, 8, 30])
def test_orthonormal_rows_have_the_very_covariance(first_site, n):
    model, _, W = first_site
    rows = model.sample(width=n, law="orthonormal")[0].site("2").effective_rows() @ W
    torch.testing.assert_close(rows.T @ rows / n, W.T @ W / 7)


def test_fewer_orthonormal_rows_than_neurons(first_site):
    rows = first_site[0].sample(width=4, law="orthonormal")[0].site("2").effective_rows()
    torch.testing.assert_close(rows @ rows.T, torch.eye(4, dtype=F64))


def test_gaussian_rows_are_active_half_of_the_time():
    """This holds at each input, whatever the biases; with the mean row kept, rows follow the reference."""
    net = mlp((4, 30, 2), bias=True, seed=0).double()
    nn.init.constant_(net[1].bias, 2.0)
    x = gaussian_data(50, 4)
    model, n = rf.fit(net, x, holdout=0), 4000
    active = model.sample(width=n)[0].site("2").features(net[:2](x)).gt(0).double().mean(1)
    assert (active - 0.5).abs().max() < 4.5 * 0.5 / math.sqrt(n)
    _, report = model.sample(width=n, keep_mean=True)
    assert report.sites[0].activity > 0.9 and report.sites[0].sampled_activity > 0.9
    assert model.sample(width=n)[1].sites[0].sampled_activity == pytest.approx(0.5, abs=0.02)  # 2.5 s / sqrt n


@pytest.mark.parametrize("h", [0.0, 0.5, 1.0])
def test_smoothed_bootstrap_keeps_mean_and_covariance(first_site, h):
    model, z, _ = first_site
    n = 100_000
    sampled = model.sample(width=n, law="bootstrap", smoothing=h)[0].site("2").effective_rows() @ z[:5].T  # (n, inputs)
    centred = z[:5] - z[:5].mean(1, keepdim=True)
    scale = centred.square().mean(1)
    assert ((sampled.mean(0) - z[:5].mean(1)).abs() < 5 * (scale / n).sqrt()).all()
    error = sampled.T.cov(correction=0) - centred @ centred.T / 7
    assert (error.abs() < 0.03 * torch.outer(scale, scale).sqrt()).all()


def test_bootstrap_without_smoothing_tends_to_the_reference():
    net, x = mlp((6, 8, 5, 3), bias=True, seed=0).double(), gaussian_data(300, 6)
    model = rf.fit(net, x)
    site = model.sample(factor=2, law="bootstrap")[0].site("2")
    z = net[:2](x)
    assert torch.equal(site.effective_rows() @ z.T, z.T[rf.ops.gaussian.choices(16, 8, seed=site.key)])
    errors = [max(s.held_out_error for s in model.sample(factor=f, law="bootstrap")[1].sites) for f in (20, 2000)]
    assert errors[1] < errors[0] / 20 and errors[1] < 1e-3


def test_bootstrap_fully_smoothed_is_the_mean_kept_gaussian(first_site):
    model, _, _ = first_site
    rows = [
        model.sample(width=20, **o)[0].site("2").effective_rows() for o in ({"law": "bootstrap", "smoothing": 1.0}, {})
    ]
    rows[1] = rows[1] - rows[1].mean(1, keepdim=True) + 1 / 7
    torch.testing.assert_close(rows[0], rows[1])


@pytest.mark.parametrize("law", ["gaussian", "orthonormal", "bootstrap"])
def test_rank_restricts_z_to_the_leading_directions(law):
    net = mlp((4, 9, 2), seed=0).double()
    x = gaussian_data(60, 4)
    model = rf.fit(net, x, holdout=0)
    full, _ = model.sample(width=30, rank=4, law=law)  # W has rank 4: nothing is lost
    z = net[:2](x)
    U = model.sites[0].directions(centred=law == "bootstrap")[1]
    projected = model.sample(width=30, rank=2, law=law)[0].site("2").effective_rows() @ z.T
    assert torch.linalg.matrix_rank(projected, rtol=1e-9) == 2 + (law == "bootstrap"), "and the mean row"
    assert full.site("2").effective_rows().shape == (30, 9)
    torch.testing.assert_close(U.T @ U, torch.eye(9, dtype=F64))
    assert (U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all()
    _, report = model.sample(width=30, explained_variance=0.999999, law=law)
    assert report.sites[0].rank == 4


@pytest.mark.parametrize("keep_mean", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_enough_rank_loses_nothing(bias, keep_mean):
    """W has rank 4, and so has z - zbar; with a bias, E[z z^T] has rank 5."""
    net, x = mlp((4, 9, 2), bias=bias, seed=0).double(), gaussian_data(60, 4)
    model, z = rf.fit(net, x, holdout=0), net[:2](x)
    for rank, kept in ((4 + bias, True), (3, False)):
        network, _ = model.sample(law="identity", rank=rank, keep_mean=keep_mean)
        assert torch.allclose(network.site("2").effective_rows() @ z.T, z.T) == kept


def test_regression_converges():
    """The held-out error falls along n = 16, 64, 256, 1024 to below 0.001, with d = 4 and a ridge of 1e-3."""
    net = mlp((4, 4, 2), bias=True, seed=0)
    model = rf.fit(net, gaussian_data(22_000, 4).float())
    errors = [model.sample(width=n, method="regression")[1].sites[0].held_out_error for n in (16, 64, 256, 1024)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 < errors[0]
