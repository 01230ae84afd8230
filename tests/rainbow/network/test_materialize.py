# SPDX-License-Identifier: BSD-3-Clause
"""The network written out: which layers are dense and wide, where factors stay, and which layers a bias can cross.

tests/rainbow/test_identity.py checks that it is equal for every architecture; for random
graphs: tests/rainbow/test_random_graphs.py.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.networks.resnet import resnet_cifar

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
F64 = torch.float64


def images(*shape: int, N: int = 40) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)


def written(net: nn.Module, x: Tensor, labels: Tensor | None = None, **options: object) -> nn.Module:
    """The wide network, after a check that it is equal on other images."""
    torch.manual_seed(0)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.bias, 0, 0.3)
    data = x if labels is None else (x, labels)
    network, _ = rf.sample(net.double(), data, holdout=0, **{"factor": 2, "method": "calibrated"} | options)
    plain, new = network.materialize(), x.flip(-1) + 0.1
    # 1e-12: the same products of float64 in another order, over some layers
    assert (plain(new) - network(new)).norm() <= 1e-12 * network(new).norm()
    return plain


def convolutions(net: nn.Module) -> list[tuple[int, int, int]]:
    """The input channels, output channels and kernel size of each convolution."""
    return [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in net.modules() if isinstance(m, nn.Conv2d)]


def test_a_residual_network_is_dense_and_wide():
    """Each block has two 3x3 convolutions of the sampled widths (and the neuron that carries the offset). Its skip is a
    1x1 map between them, also from one stage to the next."""
    plain = written(resnet_cifar(8, width=4, seed=0), images(3, 8, 8))
    stages = [[(a, b, 3), (b, b, 3), (a, b, 1)] for a, b in ((9, 9), (9, 17), (17, 33))]
    assert convolutions(plain) == [(3, 9, 3), *sum(stages, [])]
    assert [(m.in_features, m.out_features) for m in plain.modules() if isinstance(m, nn.Linear)] == [(33, 10)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())


def test_a_stream_that_is_read_twice_is_written_once():
    """So the cost is linear in depth: each block maps the stream to its first site, this site to the next one, and that
    one back to the stream."""
    counts = [
        len(convolutions(written(resnet_cifar(depth, width=4, preactivation=True, seed=0), images(3, 8, 8))))
        for depth in (14, 20, 26)
    ]
    assert counts[2] - counts[1] == counts[1] - counts[0] == 3 * 3


def test_grouped_convolutions_stay_grouped():
    net = nn.Sequential(nn.Conv2d(2, 6, 1), nn.GELU(), nn.Conv2d(6, 6, 3, groups=6), nn.GELU(), nn.Conv2d(6, 2, 1))
    plain = written(nn.Sequential(*net, nn.Flatten(), nn.Linear(18, 2)), images(2, 5, 5))
    assert type(plain) is nn.Sequential
    assert convolutions(plain) == [(2, 13, 1), (13, 6, 1), (6, 6, 3), (6, 13, 1)] and plain[3].groups == 6
    assert plain[-1].in_features == 13 * 9, "the last convolution and the classifier are one map"


def test_what_no_bias_can_cross():
    """A bias that a batch norm adds is added before zeros are padded. An offset is a neuron, unless sigma(1) = 0."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)]
    layers += [nn.ReLU(), nn.AvgPool2d(3, stride=2, padding=1), nn.Flatten(), nn.Linear(36, 3)]
    for layer in (layers[0], layers[3]):
        nn.init.normal_(layer.weight)
    plain = written(nn.Sequential(*layers), images(2, 5, 5))
    assert convolutions(plain) == [(2, 9, 3), (9, 4, 1), (4, 9, 3)] and plain[-1].in_features == 9 * 9
    layers[1] = layers[4] = nn.Hardshrink(1.0)
    plain = written(nn.Sequential(*layers), images(2, 5, 5))
    assert convolutions(plain) == [(2, 8, 3), (8, 4, 1), (4, 8, 3), (8, 4, 1)] and plain[-1].in_features == 4 * 9


def test_a_refit_classifier_with_an_offset_behind_a_padded_average():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(10, padding=1), nn.Flatten(), nn.Linear(4, 3))
    x = images(1, 10, 10)
    written(net, x, (x.mean((1, 2, 3)) > 0).long(), classifier="refit")


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 7), nn.Linear(28, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.embed(x)).flatten(1))


@pytest.mark.parametrize("options", [{}, {"method": "calibrated"}, {"method": "regression", "ridge": 0.0}], ids=str)
def test_flattened_alignment_of_channels_that_are_last(options):
    torch.manual_seed(0)
    net, x = Tokens().double(), images(4, 5)
    network, report = rf.sample(net, x, holdout=0, law="identity", align_flattened=True, **options)
    assert network.site("relu").A.shape == (28, 28)
    # 1e-8: rounding of float64 times the condition number of M; an error is the square
    assert (network(x) - net(x)).norm() <= 1e-8 * net(x).norm() and report.sites[0].error <= 1e-16
    written(net, x, align_flattened=True, **options)


class Dense(nn.Module):
    """Concatenations, read by a convolution and by a non-linear layer; sizes of tensors; a view of fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(before, 4, 3, padding=1) for before in (2, 4, 8))
        self.norm, self.head = nn.GroupNorm(2, 12), nn.Linear(12 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.convs[0](x))
        b = F.silu(self.convs[1](a))
        c = F.silu(self.convs[2](torch.cat([b, a], 1)))
        n, d, h, w = torch.cat((a, b, c), 1).shape
        y = self.norm(torch.cat((a, b, c), dim=-3)).view(n, d, h * w).view(n, d, h, w)
        return self.head(F.adaptive_avg_pool2d(y, h // 2).view(-1, 48))


def test_concatenations_and_sizes():
    plain = written(Dense(), images(2, 4, 4))
    assert (9, 9, 3) in convolutions(plain), "of the concatenation, a wide convolution for each part"
    assert (9, 4, 1) in convolutions(plain), "part by part, for the normalisation"


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.linear, self.b = nn.Conv1d(1, 3, 3), nn.GELU(), nn.Linear(18, 4), nn.Tanh()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = x * 0
        return self.head(self.b(self.linear(self.a(self.conv(x)).flatten(1))))


def test_without_a_graph_each_site_is_written_alone():
    plain = written(Untraceable(), images(1, 8))
    assert type(plain) is Untraceable
    assert [type(part).__name__ for part in plain.a] == ["Conv1d", "GELU", "Conv1d"]
    assert [type(part).__name__ for part in plain.b] == ["Linear", "Tanh", "Linear"]


def test_shares_no_memory_with_the_network():
    for net, site in ((resnet_cifar(8, width=2, seed=0), "activation"), (Untraceable(), "a")):
        x = images(3, 8, 8) if isinstance(net, nn.Sequential) else images(1, 8)
        network, _ = rf.sample(net.double(), x, sites=[site], factor=2)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        plain = network.materialize()
        for value in plain.state_dict().values():
            value.zero_()
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
