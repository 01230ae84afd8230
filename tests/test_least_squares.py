# SPDX-License-Identifier: BSD-3-Clause
"""The regression of a site: S summed and products with it give the same alignment, of every kind of site."""

import pytest
import torch
from torch import nn

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp
from rainbow_fast.rainbow import least_squares

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
        (POOLED, MAPS, {"factor": 20, "align": "flattened"}),
    ],
    ids=["plain", "centred", "normalised", "maps", "pooled-flattened"],
)
def test_products_give_what_the_sum_gives(net, x, options, monkeypatch) -> None:
    """Up to the tolerance of the products, 1e-4 of the predictions at each site."""
    net = net.double().eval()
    found = []
    for budget in (least_squares.SUMMED_BYTES, 0):
        monkeypatch.setattr(least_squares, "SUMMED_BYTES", budget)
        network, _ = rf.sample(net, x, method="regression", **options)
        found.append(network(x.double()))
    error = torch.linalg.vector_norm(found[1] - found[0]) / torch.linalg.vector_norm(found[0] - found[0].mean(0))
    assert 0 < error < 1e-3  # two sites, and what the next layers make of it


def test_without_a_ridge_it_is_summed(monkeypatch) -> None:
    net = mlp((16, 12, 2), seed=0)
    wanted = rf.sample(net, X, method="regression", ridge=0.0, width=50)[0](X)
    monkeypatch.setattr(least_squares, "SUMMED_BYTES", 0)
    assert torch.equal(rf.sample(net, X, method="regression", ridge=0.0, width=50)[0](X), wanted)
