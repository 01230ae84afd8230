# SPDX-License-Identifier: BSD-3-Clause
"""The trace of a module: which sites it finds, that its pieces compute the reference, and what it refuses."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rainbow_fast.networks import cnn, mlp
from rainbow_fast.tracing.trace import Trace, trace


def run(traced: Trace, x: Tensor) -> Tensor:
    return traced.finish(0, (x,), [])


class Block(nn.Module):
    """A residual block with one activation module that is called twice, a function, a method, and in-place sums."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        y = F.gelu(self.conv(y), approximate="tanh")
        y = self.conv(y).tanh_()
        y = self.conv(y)
        y += x
        return self.relu(y)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = F.leaky_relu(F.max_pool2d(self.stem(x), 2), 0.2)
        x = self.blocks(x)
        x = F.avg_pool2d(x, x.size()[3])
        return self.fc(x.view(x.size(0), -1) if scale is None else x)


def residual() -> Residual:
    torch.manual_seed(0)
    net = Residual()
    net.train()(torch.randn(30, 2, 10, 10))
    return net.eval()


def varied() -> nn.Sequential:
    """Many kinds of nested modules, with a batch norm that has seen data."""
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
    for net, shape in (
        (varied(), (2, 14, 14)),
        (mlp((16, 8, 6, 3), batch_norm="before"), (16,)),
        (residual(), (2, 10, 10)),
    ):
        net.eval()
        x = torch.randn(7, *shape)
        torch.testing.assert_close(run(trace(net), x), net(x))


def test_sites_of_nested_sequentials():
    sites = trace(varied()).sites
    assert [s.name for s in sites] == ["0.2", "1.0.1", "1.1", "2.4"]
    assert [s.activation for s in sites] == ["leaky_relu", "gelu", "tanh", "silu"]
    assert [s.modules for s in sites] == [("0.1", "0.2"), ("1.0.1", "1.0.2"), ("1.1", "1.2"), ("2.4",)]
    assert [s.axis for s in sites] == [1, 1, 1, -1]
    assert [s.feeds_flatten for s in sites] == [False, False, True, False]
    assert sites[0].negative_slope == 0.2 and sites[0].before is not None and sites[2].after is not None


def test_sites_of_functions_methods_and_shared_modules():
    sites = trace(residual()).sites
    block = ["relu", "gelu", "tanh", "relu_1"]
    assert [s.name for s in sites] == ["leaky_relu", *(f"blocks.{i}.{name}" for i in (0, 1) for name in block)]
    assert [s.activation for s in sites[:5]] == ["leaky_relu", "relu", None, "tanh", "relu"]
    assert sites[0].negative_slope == 0.2 and isinstance(sites[0].before, nn.MaxPool2d) and sites[0].axis == 1
    assert all(s.modules is None for s in sites)
    assert [s.writer is not None for s in sites] == [False, False, True, True, False] + [False, True, True, False]


def test_only_what_is_read_later_is_alive():
    traced, state, alive = trace(residual()), (torch.randn(2, 2, 10, 10),), []
    for place, site in enumerate(traced.sites):
        z, *rest = traced.advance(place, state, [])
        alive.append(len(rest))
        state = (site.reference(z), *rest)
    assert alive == [0, 1, 1, 1, 0, 1, 1, 1, 0], "the input of a block, up to its sum"


def test_the_network_given_is_not_changed():
    net, seen = residual().train(), []
    hook = net.blocks.register_forward_hook(lambda *_: seen.append(1))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    traced = trace(net)
    run(traced, torch.randn(3, 2, 10, 10))
    assert net.training and net.blocks[0].relu.inplace and not traced.reference.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    seen.clear()
    net(torch.randn(3, 2, 10, 10))
    assert len(seen) == 1, "its hooks are kept"
    hook.remove()


def test_what_is_overwritten_in_place_is_read_overwritten():
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.linear, self.drop = nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return self.linear(self.relu(self.drop(x))) + x  # x is positive here

    net = PreActivation().eval()
    x = torch.randn(5, 4)
    traced = trace(net)
    assert not traced.swappable
    torch.testing.assert_close(run(traced, x), net(x))
    torch.testing.assert_close(traced.rebuild({"relu": nn.ReLU()})(x), net(x))


def test_normalisation_after_is_of_the_site_and_its_affine_part_is_not():
    site = trace(varied()).sites[1]
    assert isinstance(site.norm, nn.BatchNorm2d) and torch.equal(site.norm.weight, torch.ones(6))
    x = torch.randn(3, 6, 4, 4)
    net = varied()
    torch.testing.assert_close(site.following(site.norm(x)), net[1][0][2](x))
    assert trace(cnn((1, 4), image_size=8, batch_norm="after")).sites[0].following is None


def test_writer_is_the_one_bias_free_linear_layer():
    assert trace(mlp((4, 3, 2))).sites[0].writer is not None
    assert trace(mlp((4, 3, 2), bias=True)).sites[0].writer is None
    assert trace(mlp((4, 3, 2), batch_norm="before")).sites[0].writer is None


def test_a_module_used_twice_is_two_sites():
    relu, block = nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    net = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, block, block, nn.Linear(4, 2))
    traced = trace(net)
    assert [s.name for s in traced.sites] == ["1", "1_1", "4.1", "4.1_1"]
    rebuilt, x = traced.rebuild({"4.1": nn.ReLU()}), torch.randn(6, 4)
    y = net[:4](x)
    torch.testing.assert_close(rebuilt(x), net[6](block(block[0](y).relu())))


def test_a_network_of_modules_keeps_its_class():
    net = varied()
    rebuilt = trace(net).rebuild({"1.0.1": nn.Hardswish(), "2.4": nn.ReLU()})
    assert isinstance(rebuilt, nn.Sequential) and isinstance(rebuilt[1][0][1], nn.Hardswish)
    assert isinstance(rebuilt[1][0][2], nn.BatchNorm2d), "the affine part stays"
    assert isinstance(net[1][0][1], nn.GELU), "the reference is not changed"


def test_outputs_and_gates_are_marked():
    sites = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())).sites
    assert [s.output for s in sites] == [False, True]

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x)) * self.scale  # a constant is no gate
            return self.b(torch.sigmoid(self.a(h)) * self.b(h))

    assert [s.gate for s in trace(Gated()).sites] == [False, True]


def test_channel_axis_behind_permutations():
    class Axes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.linear = nn.Conv2d(2, 3, 1), nn.LayerNorm(3), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            last = self.norm(self.conv(x).permute(0, 2, 3, 1)).relu()
            last = self.linear(last).relu() + 1
            return self.conv(x) + last.relu().transpose(1, 2).tanh().sum()

    assert [s.axis for s in trace(Axes()).sites] == [-1, -1, -1, None]


def test_pooling_over_the_neurons_of_a_linear_layer_is_not_of_the_site():
    for layers in ([nn.ReLU(), nn.MaxPool1d(2)], [nn.MaxPool1d(2), nn.ReLU()]):
        site = trace(nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(2, 2))).sites[0]
        assert site.before is None and site.after is None


def test_in_place_activation_leaves_z_as_it_is():
    site = trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))).sites[0]
    z = torch.randn(5, 4)
    before = z.clone()
    assert torch.equal(site.reference(z), before.relu()) and torch.equal(z, before)


def test_prelu_with_one_slope_is_a_leaky_relu():
    site = trace(nn.Sequential(nn.Linear(4, 4), nn.PReLU(init=0.3), nn.Linear(4, 2))).sites[0]
    # The slope is a float32 number
    assert site.activation == "leaky_relu" and site.negative_slope == pytest.approx(0.3)


class Untraceable(nn.Module):
    """A network whose forward pass depends on values."""

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.conv, self.a, self.linear, self.b = nn.Conv1d(1, 3, 3), nn.ReLU(inplace=True), nn.Linear(18, 4), nn.Tanh()
        self.head, self.twice = nn.Linear(4, 2), twice

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = x * 0
        y = self.a(self.conv(x))
        y = self.b(self.linear(y.flatten(1)))
        return self.head(self.b(y) if self.twice else y)


def test_a_network_without_a_graph_is_cut_at_its_activation_modules():
    net, x = Untraceable().eval(), torch.randn(4, 1, 8)
    traced = trace(net, x)
    assert (
        traced.graph is None
        and [s.name for s in traced.sites] == ["a", "b"]
        and [s.axis for s in traced.sites] == [1, -1]
    )
    torch.testing.assert_close(run(traced, x), net(x))
    z, *rest = traced.advance(1, (torch.zeros(1), x), [nn.GELU()])
    torch.testing.assert_close(z, net.linear(F.gelu(net.conv(x)).flatten(1)))
    assert len(rest) == 1 and rest[0] is x
    rebuilt = traced.rebuild({"a": nn.GELU()})
    assert isinstance(rebuilt, Untraceable) and isinstance(rebuilt.a, nn.GELU)


def test_what_cannot_be_traced_is_named_with_its_line():
    line = r"line \d+ of .*test_trace.py, `if x.sum\(\) > 1e9:`"
    with pytest.raises(ValueError, match=f"torch.fx cannot trace it .*{line}.*only with an example input"):
        trace(Untraceable())
    with pytest.raises(ValueError, match=f"{line}.*only with an example input"):
        trace(Untraceable(twice=True))

    class Value(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) if x.sum() > 1e9 else x

    with pytest.raises(ValueError, match=r"`return torch.relu\(x\) if .*it calls no activation module once"):
        trace(Value(), torch.randn(2, 2))

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(x) + y

    with pytest.raises(ValueError, match="its forward reads 'y' besides 'x': wanted one input"):
        trace(Two())


def test_what_a_network_without_a_graph_leaves_is_named():
    """Modules that are called twice, functions, and activations whose parameters differ by channel."""
    net = Untraceable(twice=True)
    net.a = nn.PReLU(3)
    net.c, body = nn.ReLU(), net.linear
    net.linear = nn.Sequential(body, net.c)
    traced = trace(net, torch.randn(4, 1, 8))
    assert [site.name for site in traced.sites] == ["linear.1"]
    assert {each.name: each.reason.partition(",")[0] for each in traced.left} == {
        "a": "it has parameters by channel",
        "b": "a module that is called 2 times",
    }


def test_modules_of_ones_own_are_sites_where_they_are_declared():
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x

    net = nn.Sequential(nn.Linear(4, 4), Square(), nn.Linear(4, 2))
    assert trace(net).sites == ()
    (site,) = trace(net, pointwise_modules=[Square]).sites
    assert site.name == "1" and site.activation is None
    assert torch.equal(site.reference(torch.arange(3.0)), torch.arange(3.0) ** 2)
    with pytest.raises(TypeError, match="pointwise_modules: wanted classes of nn.Module, got 'Square'"):
        trace(net, pointwise_modules=["Square"])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.BatchNorm1d(4, track_running_stats=False), r"'block.1' \(BatchNorm1d\) has no running stat"),
    ],
)
def test_what_cannot_be_sampled_is_named(module, message):
    net = nn.Sequential()
    net.add_module("block", nn.Sequential(nn.Linear(4, 4), module))
    with pytest.raises(ValueError, match=message):
        trace(net)
    with pytest.raises(TypeError, match="reference: wanted an nn.Module, got function"):
        trace(lambda x: x)
