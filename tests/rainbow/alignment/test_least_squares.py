# SPDX-License-Identifier: BSD-3-Clause
"""The regression of a site: summing S, the kernel of its samples, and products with S give the same alignment."""

import itertools
import math

import pytest
import torch
from torch import nn

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp
from rainbow_fast.rainbow.alignment.regression import SOLVERS, Regression, fastest_solver
from rainbow_fast.rainbow.laws.law import EIGENVECTORS

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


def flops_of_each(n: int, N: int, d: int) -> dict[str, float]:
    """The flops of each solver, written out; those in float64 count four times."""
    l = max(min(n // 16, 2048, 2**29 // n), 1)  # noqa: E741  # the sketch
    products = math.ceil(14 * math.sqrt(n / l))
    passes = 2 * (products + -(-l // 512))
    of_P = 4 * l**2 * n + 2 * (EIGENVECTORS + 1) * l**3 + (8 * l + 12 * d) * d * n * 14 * math.sqrt(n / l)
    return {
        "summed": N * n * (n + 1) + 4 * (n**3 / 3 + 2 * d * n**2) + 2 * N * n * d,
        "kernel": n * N * (N + 1) + 4 * (N**3 / 3 + 2 * d * N**2 + 2 * d * N * n) + 4 * N * n * d,
        "products": 2 * N * l * (n + l) + 4 * N * d * n * products + 4 * of_P + passes * 2 * N * n * d,
    }


def test_the_choice_is_the_best_of_all() -> None:
    chosen = set()
    for n, N, d in itertools.product((64, 1000, 5120, 30_000, 100_000), (500, 8192, 40_000, 400_000), (1, 8, 64, 512)):
        flops = flops_of_each(n, N, d)
        for budget in (0, 8 * 2000**2, 2**33, 2**40):
            bytes_needed = {"summed": 8 * n * n, "kernel": 8 * N * N, "products": 0}
            fits = {name: flops[name] for name in SOLVERS if bytes_needed[name] <= budget}
            got = fastest_solver(1e-3, n, N, d, budget)
            assert fits[got] == pytest.approx(min(fits.values()), rel=1e-9), (n, N, d, budget)
            stored = fastest_solver(1e-3, n, N, None, budget)
            assert (stored == "products") == (len(fits) == 1)
            chosen |= {got, stored}
    assert chosen == set(SOLVERS)


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
