# SPDX-License-Identifier: BSD-3-Clause
"""Complex rows as real ones: their law, and features that equal those of n filtered channels."""

import math
from functools import partial

import pytest
import torch
from here import draw
from scattering_networks import VARIANTS, images, maps, relative, unitary
from scattering_networks import network as any_network

import rainbow_fast as rf
from rainbow_fast.networks.scattering import UnitNorm, Wavelets
from rainbow_fast.rainbow.laws.real_form import complex_of, real_form
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.tracing.trace import trace
from rainbow_fast.tracing.wavelet_maps import AsComplex, ByChannel

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
network = partial(any_network, complex=True)


# Complex matrices as real ones


def test_the_real_form_keeps_products_and_adjoints() -> None:
    C, D = (torch.view_as_complex(draw(*size, 2, seed=i).double()) for i, size in enumerate(((3, 5), (5, 4))))
    assert relative(real_form(C) @ real_form(D), real_form(C @ D)) < 1e-14
    assert torch.equal(real_form(C.mH), real_form(C).T)
    assert torch.equal(complex_of(real_form(C)[:3]), C)


# Rows


def test_rows_are_circular() -> None:
    """E|g|^2 = 1 and E g^2 = 0: entries of variance 1/2, the Gaussian numbers of real rows with 2 d columns."""
    [site, *_] = trace(network(), images(1)).sites
    n, d, key = 4000, 4, rf.key(3, 1)
    g = RainbowActivation(site, Rows(n, 2 * d, key)).effective_rows() * math.sqrt(d)
    real = rf.gaussian(n, 2 * d, seed=key, dtype=torch.float64)
    assert relative(g, torch.complex(real[:, :d], real[:, d:]) / math.sqrt(2)) < 1e-14
    error = 5 / math.sqrt(n * d)  # five standard deviations of a mean of n d numbers of variance 1
    assert abs(g.abs().square().mean() - 1) < error and g.square().mean().abs() < error


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("mean_row", [False, True], ids=["", "mean"])
@pytest.mark.parametrize("rank", [None, 3], ids=["all", "rank"])
def test_features_are_those_of_n_filtered_channels(options: dict, mean_row: bool, rank: int | None) -> None:
    net, x = network(**options), images()
    for site, z in zip(trace(net, x[:1]).sites, maps(net, x), strict=True):
        d, n = z.shape[1], 12
        U = None if rank is None else real_form(unitary(d)[:, :rank])
        sampled = RainbowActivation(site, Rows(n, 2 * d, rf.key(3, 1), U, mean_row=mean_row))
        G = sampled.effective_rows()
        assert G.shape == (n, d) and G.is_complex()
        wide = torch.einsum("nd,bdhw->bnhw", G, AsComplex()(z))
        wide = UnitNorm()(wide) if site.before is not None else wide
        wanted = ByChannel(site.features)(Wavelets(site.sigma.bank, site.sigma.skip)(wide))
        assert sampled.features(z).shape == wanted.shape == (len(x), n * site.features, *wanted.shape[2:])
        assert relative(sampled.features(z), wanted) < 1e-12  # some tens of roundings of float64


def test_the_law_has_the_covariance_of_complex_weights() -> None:
    """Rows g W / sqrt(d) have E row^H row = W^H W / d, also in its leading directions."""
    net, x = network(), images()
    site = trace(net, x[:1]).sites[1]
    W = site.writer.weight.flatten(1)
    sampled, report = rf.sample(net, x, holdout=0, law="orthonormal", factor=8, rank=5)
    rows = sampled.site(site.name).effective_rows() @ W
    values, U = torch.linalg.eigh(W @ W.mH)
    U = U[:, values.argsort(descending=True)[:5]]
    d, n = W.shape[0], 64
    assert relative(rows.mH @ rows / n, W.mH @ U @ U.mH @ W / d) < 1e-12
    assert report.sites[1].rank == 5
