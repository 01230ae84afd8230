# SPDX-License-Identifier: BSD-3-Clause
"""Any small graph of supported modules is cut, sampled and written out. hypothesis draws the examples, the same in
every run."""

import operator
from collections.abc import Callable

import pytest
import torch
from architectures import settle
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerance import REORDERED
from torch import Tensor, nn
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.tracing.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
few = settings(max_examples=30, deadline=None, derandomize=True, database=None)

CHANNELS, SIDE, IMAGES = 3, 6, 12

ACTIVATIONS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "module": nn.GELU,
    "module in place": lambda: nn.LeakyReLU(0.3, inplace=True),
    "function": lambda: lambda z: F.silu(z),
    "function in place": lambda: lambda z: F.elu(z, inplace=True),
    "method": lambda: operator.methodcaller("sigmoid"),
    "method in place": lambda: operator.methodcaller("tanh_"),
}


class Layer(nn.Module):
    """A convolution, and perhaps a batch norm before or after the non-linearity. The map keeps its size."""

    def __init__(self, kernel: int, groups: int, norm: str | None, activation: str | None, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, after, kernel, padding=kernel // 2, groups=groups if after == CHANNELS else 1)
        self.bn, self.norm = nn.BatchNorm2d(after) if norm else None, norm
        self.activation = (lambda z: z) if activation is None else ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.bn(x) if self.norm == "before" else x
        x = self.activation(x)
        return self.bn(x) if self.norm == "after" else x


class Drawn(nn.Module):
    """Layers joined in the ways of `joins`, then `head`, then a hidden layer and the logits."""

    def __init__(self, layers: list[tuple], joins: list[str], head: str) -> None:
        super().__init__()
        self.joins, self.head = joins, head
        pairs = zip(layers, joins, strict=True)
        self.layers = nn.ModuleList(Layer(*arguments, 2 if join == "padded" else CHANNELS) for arguments, join in pairs)
        self.mixes = nn.ModuleList(nn.Conv2d(2 * CHANNELS, CHANNELS, 1) for _ in joins)
        self.lasts = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in joins)
        self.average, self.dropout = nn.AvgPool2d(3, stride=1, padding=1), nn.Dropout2d()
        self.hidden = nn.Linear(CHANNELS * SIDE**2 if head in ("view", "flatten") else CHANNELS, 4)
        self.logits = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer, join, mix, last in zip(self.layers, self.joins, self.mixes, self.lasts, strict=True):
            y = layer(x)
            if join == "sum":
                y += x
            elif join == "padded":
                y = x + F.pad(y, (0, 0, 0, 0, 1, 0))
            elif join == "concatenation":
                y = mix(torch.cat((y, x), dim=1))
            elif join == "average":
                y = self.dropout(self.average(y))
            elif join == "maximum":
                y = F.max_pool2d(y, 3, stride=1, padding=1)
            elif join == "channels last":
                y = last(F.gelu(last(y.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2).contiguous()
            elif join == "product":
                y = x * y
            x = y
        if self.head == "view":
            x = x.view(x.size(0), -1)
        elif self.head == "flatten":
            x = torch.flatten(x, 1)
        elif self.head == "mean":
            x = x[:, :, ::2, 1:].mean((2, 3))
        else:
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.logits(F.gelu(self.hidden(x), approximate="tanh"))


JOINS = ["chain", "sum", "padded", "concatenation", "average", "maximum", "channels last", "product"]
LAYERS = st.tuples(
    st.sampled_from([1, 3]),
    st.sampled_from([1, CHANNELS]),
    st.sampled_from([None, "before", "after"]),
    st.sampled_from([None, *ACTIVATIONS]),
)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    layers = draw(st.lists(st.tuples(LAYERS, st.sampled_from(JOINS)), min_size=1, max_size=4))
    head = draw(st.sampled_from(["view", "flatten", "mean", "adaptive"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 100)))
        net = Drawn([layer for layer, _ in layers], [join for _, join in layers], head).double()
        for part in net.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):  # so that no signal dies on the way
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1, 0.3)
                nn.init.normal_(part.bias, 0, 0.3)
    return net.eval()


def images() -> Tensor:
    return torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@few
@given(
    networks(), st.sampled_from([{"method": "paper"}, {"method": "calibrated"}, {"method": "regression", "ridge": 0.0}])
)
@torch.no_grad()
def test_any_graph_is_cut_sampled_and_written_out(net, options) -> None:
    x = images()
    settle(net, x)
    wanted = net(x)
    traced = trace(net)
    torch.testing.assert_close(traced.finish(0, (x,), []), wanted, **REORDERED)
    model = rf.fit(net, x, holdout=0)
    network, _ = model.sample(factor=2, **options)
    plain, new = network.materialize(), x.flip(-1) + 0.1
    assert not any(type(part).__module__.startswith("rainbow_fast") for part in plain.modules())
    # float64, over as many layers as a graph has
    assert (plain(new) - network(new)).norm() <= 1e-11 * network(new).norm()
    network, report = model.sample(law="identity", **options)
    assume(all(site.M_rank == site.d and site.M_condition < 1e6 for site in report.sites))  # else M leaves out a little
    assert (network(x) - wanted).norm() <= 1e-8 * wanted.norm()  # float64 times a condition of 1e6, and some layers
