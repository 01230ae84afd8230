# SPDX-License-Identifier: BSD-3-Clause
"""The regression of a site: summing S, the kernel of its samples, and products with S give the same alignment."""

import pytest
import torch
from torch import nn

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp
from rainbow_fast.rainbow.alignment.regression import SOLVERS, Regression, fastest_solver

SOURCE = torch.Generator().manual_seed(0)
X, MAPS = torch.randn(400, 16, generator=SOURCE), torch.randn(200, 1, 10, 10, generator=SOURCE)
POOLED = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 2))


@pytest.mark.parametrize(
    ("net", "x", "options"),
    [
        (mlp((16, 12, 8, 2), seed=0), X, {"width": 300}),
        (mlp((16, 12, 8, 2), seed=0), X, {"width": 300, "center": True, "offset": True, "law": "orthonormal"}),
        (mlp((16, 12, 8, 2), batch_norm="after", seed=0), X, {"width": 300}),
        (cnn((1, 6, 8), kernel_size=3, image_size=10, seed=0), MAPS, {"factor": 30}),
        (POOLED, MAPS, {"factor": 20, "align_flattened": True}),
    ],
    ids=["plain", "centred", "normalised", "maps", "pooled-flattened"],
)
def test_products_give_what_the_sum_gives(net, x, options) -> None:
    """The solvers agree up to the tolerance of the products, 1e-4 of the predictions at each site."""
    net = net.double().eval()
    outputs = []
    for solver in SOLVERS:
        network, _ = rf.sample(net, x, alignment=Regression(solver=solver), **options)
        outputs.append(network(x.double()))
    size = torch.linalg.vector_norm(outputs[0] - outputs[0].mean(0))
    kernel, products = (float(torch.linalg.vector_norm(other - outputs[0]) / size) for other in outputs[1:])
    assert 0 < products < 1e-3  # two sites, and the effect of the next layers
    assert kernel < 1e-9  # float64 throughout, condition numbers below 1e6


def test_the_fastest_way_that_fits() -> None:
    for wanted, features, samples, channels in (
        ("summed", 1000, 5000, 64),
        ("summed", 30_000, 400_000, 64),
        ("kernel", 100_000, 5000, 64),
        ("kernel", 100_000, 30_000, None),
        ("products", 100_000, 400_000, 64),
        ("products", 40_000, 50_000, None),  # neither S nor the kernel fits into memory
        ("products", 30_000, 400_000, 16),  # S would fit, and take longer
        ("products", 100_000, 30_000, 16),
    ):
        assert fastest_solver(1e-3, features, samples, channels) == wanted
    assert fastest_solver(0.0, 100_000, 400_000, 64) == "summed", "products need a ridge"


def test_a_ridge_too_small_to_factor_with() -> None:
    with pytest.raises(ValueError, match="ridge: S \\+ lambda I is singular to float64, wanted a larger one, or 0"):
        rf.sample(
            mlp((16, 12, 2), seed=0).double(), X[:5].repeat(40, 1), alignment=Regression(1e-30, "summed"), width=300
        )


def test_without_a_ridge_the_pseudo_inverse_is_that_of_either() -> None:
    net, outputs = mlp((16, 12, 2), seed=0).double(), []
    for solver in ("summed", "kernel"):
        outputs.append(rf.sample(net, X, alignment=Regression(0.0, solver), width=500)[0](X.double()))
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)  # float64, times the condition number of S


def test_a_hundred_thousand_neurons_fit() -> None:
    """S would take 80 GB. The error falls with the width, down to that of the ridge."""
    net = mlp((16, 12, 2), seed=0)
    errors = [rf.sample(net, X, method="regression", width=n)[1].sites[0].error for n in (1_000, 100_000)]
    assert errors[1] < errors[0] / 2
