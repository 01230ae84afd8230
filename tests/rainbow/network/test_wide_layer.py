# SPDX-License-Identifier: BSD-3-Clause
"""Wide layers equal the way through the coordinates of the reference: phih, its layers, then the random rows."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.rainbow.network.wide_layer import foldable, product_of, wide_layer
from rainbow_fast.tracing.trace import trace

# float64: some hundred roundings of 1e-16, with condition numbers below a hundred
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def sites(between: list[nn.Module], before: nn.Module, x: Tensor, **options) -> tuple:
    """The two sampled sites of a network, and z, phi' of the first one."""
    torch.manual_seed(0)
    net = nn.Sequential(before, nn.ReLU(), *between, nn.ReLU()).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    names = ["1", str(len(net) - 1)]
    model = rf.fit(net, x, holdout=0)
    network, _ = model.sample(sites=names, **options)
    first, second = (network.site(name) for name in names)
    z = before(x)
    return first, second, z, first.features(z)


CHAINS = {
    "linear": [nn.Linear(6, 7)],
    "conv": [nn.Conv2d(6, 7, 3, stride=2, dilation=2)],
    "padded conv without offset": [nn.Conv2d(6, 7, 3, padding=1, bias=False)],
    "strings of padding": [nn.Conv2d(6, 7, 3, padding="same")],
    "conv, norm": [nn.Conv2d(6, 7, 3, padding=1), nn.BatchNorm2d(7)],
    "norm, conv, norm": [nn.BatchNorm2d(6), nn.Conv2d(6, 7, 2), nn.BatchNorm2d(7)],
}
OPTIONS = [
    {},
    {"law": "orthonormal"},
    {"keep_mean": True},
    {"rank": 4, "keep_mean": True},
    {"law": "bootstrap", "smoothing": 0.5},
    {"offset": True, "center": True},
]


FOLDABLE = [(name, o) for name, c in CHAINS.items() for o in OPTIONS if foldable(c, offset=o.get("offset", False))]


@torch.no_grad()
@pytest.mark.parametrize("name, options", FOLDABLE, ids=str)
def test_wide_layers_are_the_layers_between(name, options):
    chain = CHAINS[name]
    linear = isinstance(chain[0], nn.Linear)
    x = torch.randn(
        200, 5, *([] if linear else [8, 8]), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    before = (nn.Linear(5, 6) if linear else nn.Conv2d(5, 6, 1)).double()
    chain = copy.deepcopy(chain)
    first, second, z, phi = sites(chain, before, x, **options)
    wanted = second.preactivations(nn.Sequential(*chain)(first(z)))
    torch.testing.assert_close(wide_layer(first, chain, second.drawn)(phi), wanted, **CLOSE)


def test_zero_padding_and_constants():
    padded, norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    assert foldable([padded], offset=False) and not foldable([padded], offset=True)
    assert not foldable([norm, padded], offset=False) and foldable([padded, norm], offset=False)
    assert foldable([norm, nn.Conv2d(4, 4, 3)], offset=True) and foldable([nn.Linear(4, 4)], offset=True)


@torch.no_grad()
def test_products_of_single_layers():
    net = nn.Sequential(
        nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.Dropout(), nn.ReLU(), nn.Linear(4, 2)
    )
    segments = trace(net).segments
    for segment, size in zip(segments, (5, 6, 4), strict=True):
        product, h = product_of(segment), torch.randn(3, 7, size)
        assert product is not None
        torch.testing.assert_close(product(h), segment(h)[0])
    assert product_of(trace(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())).segments[0]) is None
    assert product_of(trace(net.to(torch.bfloat16)).segments[0]) is None
    flat = trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU())).segments[0]
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(product_of(flat)(x), F.linear(x.flatten(1), *flat.get_submodule("1").parameters()))
