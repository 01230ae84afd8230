# SPDX-License-Identifier: BSD-3-Clause
"""The kernel of a site with learned covariances: the limit of that of wide features, and of its own alignment."""

import math

import pytest
import torch
from here import draw
from torch import nn

import rainbow_fast as rf
from rainbow_fast.analysis import SiteKernel
from rainbow_fast.infinite_width import Gram
from rainbow_fast.networks import mlp

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
F64 = torch.float64


@pytest.mark.parametrize("options", [{}, {"keep_mean": True}])
def test_it_is_the_mean_over_neurons(options: dict) -> None:
    """Of a site of 2^16 neurons, with the zh of the same network; 5 standard deviations of a mean of as many."""
    reference = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 9, 3)
    ).double()
    x, n = draw(12, 2, 6, 6, dtype=F64), 2**16
    network, _ = rf.sample(reference, x, width={"1": 8, "3": n}, **options)
    kernel = SiteKernel(network, batch_size=5)
    assert kernel.site == "3"
    u = kernel.embedded(x)
    inputs = []
    hook = network.site("3").register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    network(x)
    hook.remove()
    phi = network.site("3").features(inputs[0]).flatten(2)  # (N, n, positions)
    products = torch.einsum("inp,jnp->nij", phi[:4], phi[4:8]) / phi.shape[2]
    bound = 5 * products.std(0) / n**0.5
    assert ((kernel(u[:4], u[4:8]) - products.mean(0)).abs() < bound).all()


def test_after_the_identity_it_is_that_of_white_weights() -> None:
    """A first layer of orthonormal rows has C = 1 / d."""
    reference = mlp((6, 6, 3), seed=0).double()
    with torch.no_grad():
        next(reference.parameters()).copy_(torch.linalg.qr(draw(6, 6, dtype=F64)).Q)
    x = draw(30, 6, dtype=F64)
    kernel = SiteKernel(rf.sample(reference, x, factor=math.inf)[0])
    u = kernel.embedded(x)
    wanted = Gram.of(x).linear().activation("relu").values
    torch.testing.assert_close(kernel(u, u), wanted, rtol=1e-12, atol=1e-12)  # rounding of sums of six


def test_bad_input() -> None:
    reference, x = mlp((6, 6, 3), seed=0).double(), draw(30, 6, dtype=F64)
    with pytest.raises(TypeError, match="network: wanted a RainbowNetwork, got Sequential"):
        SiteKernel(reference)
    with pytest.raises(ValueError, match="name='no': wanted one of the sampled sites"):
        SiteKernel(rf.sample(reference, x)[0], "no")
    with pytest.raises(
        ValueError, match=r"has no closed form: wanted infinitely many neurons, or Gaussian rows \(law="
    ):
        SiteKernel(rf.sample(reference, x, law="bootstrap")[0])


def test_the_kernel_of_bootstrapped_neurons() -> None:
    """Without smoothing it is that of the reference's own features."""
    reference, x = mlp((6, 5, 4, 3), seed=0).double(), draw(30, 6, dtype=F64)
    kernel = SiteKernel(rf.sample(reference, x, factor=math.inf, law="bootstrap")[0])
    u = kernel.embedded(x)
    phi = reference[:5](x).detach()
    torch.testing.assert_close(kernel(u, u), phi @ phi.T / 4, rtol=1e-9, atol=1e-10)  # the condition of M, below 1e4
