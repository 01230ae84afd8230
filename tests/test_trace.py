# SPDX-License-Identifier: BSD-3-Clause
"""The trace of a Sequential: which sites it finds, that the pieces compute the reference, what it refuses."""

import pytest
import torch
from torch import Tensor, nn

from rainbow_fast.networks import cnn, mlp
from rainbow_fast.networks.trace import Trace, rebuild, trace


def run(cut: Trace, x: Tensor) -> Tensor:
    for site, segment in zip(cut.sites, cut.segments, strict=False):
        x = site.reference(segment(x))
    return cut.segments[-1](x)


def varied() -> nn.Sequential:
    """Every kind of module, nested, with a batch norm that has seen data."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=2, dilation=2), nn.MaxPool2d(2), nn.LeakyReLU(0.2))
    middle = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.GELU(), nn.BatchNorm2d(6), nn.AvgPool2d(2, padding=1)
    )
    head = nn.Sequential(
        nn.Flatten(), nn.Dropout(), nn.Linear(54, 5, bias=False), nn.Identity(), nn.SiLU(), nn.Linear(5, 3)
    )
    net = nn.Sequential(stem, nn.Sequential(middle, nn.Tanh(), nn.MaxPool2d(2, stride=1, padding=1)), head)
    nn.init.normal_(middle[2].weight)
    nn.init.normal_(middle[2].bias)
    net.train()(torch.randn(50, 2, 14, 14))
    return net.eval()


def test_pieces_compute_the_reference():
    for net, shape in ((varied(), (2, 14, 14)), (mlp((16, 8, 6, 3), batch_norm="before"), (16,))):
        net.eval()
        x = torch.randn(7, *shape)
        torch.testing.assert_close(run(trace(net), x), net(x))


def test_sites_of_nested_sequentials():
    sites = trace(varied()).sites
    assert [s.name for s in sites] == ["0.2", "1.0.1", "1.1", "2.4"]
    assert [s.activation for s in sites] == ["leaky_relu", "gelu", "tanh", "silu"]
    assert [s.layers for s in sites] == [("0.1", "0.2"), ("1.0.1", "1.0.2"), ("1.1", "1.2"), ("2.4",)]
    assert [s.axis for s in sites] == [1, 1, 1, -1]
    assert [s.feeds_flatten for s in sites] == [False, False, True, False]
    assert sites[0].negative_slope == 0.2 and sites[0].before is not None and sites[2].after is not None


def test_normalisation_after_is_of_the_site_and_its_affine_part_is_not():
    site = trace(varied()).sites[1]
    assert isinstance(site.norm, nn.BatchNorm2d) and torch.equal(site.norm.weight, torch.ones(6))
    x = torch.randn(3, 6, 4, 4)
    net = varied()
    torch.testing.assert_close(site.affine(site.norm(x)), net[1][0][2](x))
    assert trace(cnn((1, 4), image_size=8, batch_norm="after")).sites[0].affine is None


def test_writer_is_the_one_bias_free_linear_layer():
    assert trace(mlp((4, 3, 2))).sites[0].writer is not None
    assert trace(mlp((4, 3, 2), bias=True)).sites[0].writer is None
    assert trace(mlp((4, 3, 2), batch_norm="before")).sites[0].writer is None


def test_a_module_used_twice_is_two_sites():
    relu, block = nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    net = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, block, block, nn.Linear(4, 2))
    assert [s.name for s in trace(net).sites] == ["1", "3", "4.1", "5.1"]
    made = rebuild(net, {"4.1": nn.ReLU()})
    assert isinstance(made[4][1], nn.ReLU) and isinstance(made[5][1], nn.Tanh) and made[4][0] is made[5][0]
    assert isinstance(net[4][1], nn.Tanh), "the reference is not changed"


def test_output_activation_is_marked():
    sites = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())).sites
    assert [s.output for s in sites] == [False, True]


def test_in_place_activation_leaves_z_as_it_is():
    site = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))).sites[0]
    z = torch.randn(5, 4)
    before = z.clone()
    assert torch.equal(site.reference(z), before.relu()) and torch.equal(z, before)


def test_prelu_with_one_slope_is_a_leaky_relu():
    site = trace(nn.Sequential(nn.Linear(4, 4), nn.PReLU(init=0.3), nn.Linear(4, 2))).sites[0]
    assert site.activation == "leaky_relu" and site.negative_slope == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (nn.Softmax(1), TypeError, r"module 'block.1' \(Softmax\) is of a kind that cannot be sampled"),
        (nn.PReLU(4), ValueError, r"module 'block.1' \(PReLU\) has 4 slopes, one a channel"),
        (nn.GELU(approximate="tanh"), ValueError, r"module 'block.1' \(GELU\) has approximate='tanh'"),
        (nn.BatchNorm1d(4, track_running_stats=False), ValueError, r"'block.1' \(BatchNorm1d\) has no running stat"),
        (nn.MaxPool2d(2, return_indices=True), ValueError, r"module 'block.1' \(MaxPool2d\) has return_indices=True"),
        (nn.Flatten(2), ValueError, r"module 'block.1' \(Flatten\) has start_dim=2, end_dim=-1: wanted 1 and -1"),
    ],
)
def test_what_cannot_be_sampled_is_named(module, kind, message):
    net = nn.Sequential()
    net.add_module("block", nn.Sequential(nn.Linear(4, 4), module))
    with pytest.raises(kind, match=message):
        trace(net)


def test_a_module_with_its_own_forward_is_refused():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    with pytest.raises(TypeError, match="reference: wanted an nn.Sequential, got Linear"):
        trace(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"module '0' \(Residual\) is of a kind"):
        trace(nn.Sequential(Residual(nn.Linear(2, 2))))
