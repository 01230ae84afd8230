# SPDX-License-Identifier: BSD-3-Clause
"""`rainbowize`: every architecture with rainbow layers runs, trains, is traced, sampled and written out."""

import copy
import pickle
from collections.abc import Callable
from functools import partial

import architectures
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import cnn, mlp, resnet_cifar, resnet_imagenet, vgg
from rainbow_fast.nn import RainbowConv2d, RainbowLinear, RandomFeatures

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:site .* samples for")]
F64 = torch.float64

CIFAR, IMAGENET = {"depth": 8, "width": 8}, {"blocks": (1, 1), "width": 8, "classes": 10}
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (partial(mlp, (20, 16, 12, 10)), (20,)),
    "mlp batch norm": (partial(mlp, (20, 16, 12, 10), batch_norm="before", bias=True), (20,)),
    "mlp batch norm after": (partial(mlp, (20, 16, 12, 10), batch_norm="after"), (20,)),
    "cnn": (partial(cnn, (1, 8, 16), image_size=16), (1, 16, 16)),
    "vgg": (partial(vgg, 11, width=4, batch_norm="after", dropout=0.3), (3, 32, 32)),
    "resnet cifar": (partial(resnet_cifar, **CIFAR), (3, 8, 8)),
    "resnet cifar preactivation": (partial(resnet_cifar, **CIFAR, preactivation=True), (3, 8, 8)),
    "resnet imagenet": (partial(resnet_imagenet, **IMAGENET), (3, 16, 16)),
    "resnet imagenet preactivation": (partial(resnet_imagenet, **IMAGENET, preactivation=True), (3, 16, 16)),
    **{kind.__name__: (partial(architectures.build, kind), kind().image) for kind in architectures.KINDS},
}
CHAINS = ("mlp", "mlp batch norm", "mlp batch norm after", "cnn", "vgg")


class Calls(nn.Module):
    """A forward of one's own: ``calls(self, x)``."""

    def __init__(self, calls: Callable, **parts: nn.Module):
        super().__init__()
        self.calls = calls
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.calls(self, x)


def images(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def rainbow(module: nn.Module, x: Tensor, **options: object) -> nn.Module:
    """With initial weights that are the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return rf.rainbowize(module, x, **options)


def conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


@pytest.fixture(scope="module", params=NETS)
def case(request) -> tuple[str, nn.Module, nn.Module, Tensor]:
    make, shape = NETS[request.param]
    with torch.random.fork_rng(devices=[]):
        module = make()
    x = images(24, *shape)
    return request.param, module, rainbow(module, x), x


def test_it_has_random_features_at_every_site_and_trains(case):
    name, module, net, x = case
    net = copy.deepcopy(net)
    assert isinstance(net, nn.Sequential) == (name in CHAINS) and net.training
    before = [site for site in rf.sites(module, x) if site.kept is None]
    after = [site for site in rf.sites(net, x) if site.kept is None]
    assert len(before) == len(after) > 0
    for old, new in zip(before, after, strict=True):
        assert new.activation.startswith("RandomFeatures"), new
        assert new.channels == max(round(0.25 * old.channels), 1)
    expansions = [part for part in net.modules() if isinstance(part, RandomFeatures)]
    assert len(expansions) == len(before)
    assert sorted(each.n for each in expansions) == sorted(4 * old.channels for old in before)
    assert len({tuple(each.key.tolist()) for each in expansions}) == len(expansions), "independent neurons"

    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    start = copy.deepcopy(list(net.parameters()))
    for _ in range(3):
        optimiser.zero_grad()
        net(x).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimiser.step()
    assert not all(torch.equal(a, b) for a, b in zip(start, net.parameters(), strict=True))
    assert net(x).shape == module(x).shape


def test_state_dict_and_module_are_kept_and_it_is_pickled(case):
    _, module, net, x = case
    before = copy.deepcopy(module.state_dict())
    other = rf.rainbowize(module, x, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), module.state_dict().values(), strict=True))
    net, other = copy.deepcopy(net).eval(), other.eval()
    assert not torch.equal(net(x), other(x))
    other.load_state_dict(net.state_dict())  # with the keys of the random features, which had another seed
    assert torch.equal(net(x), other(x))
    assert torch.equal(net(x), pickle.loads(pickle.dumps(net))(x))


@torch.no_grad()
def test_it_is_sampled_and_written_out(case):
    _, _, net, x = case
    network, report = rf.sample(net, x, factor=4, holdout=0)
    assert report.kept == {}
    assert list(network.sampled) == [site.name for site in rf.sites(net, x) if site.kept is None]
    plain = network.materialize()
    # Two orders of the same float32 sums, of up to a thousand terms, through ten layers.
    assert (plain(x) - network(x)).norm() <= 1e-4 * network(x).norm()


@torch.no_grad()
def test_its_own_neurons_give_it_back(case):
    """With batch norms that have exactly the statistics of these images, as centred moments after them need."""
    _, _, net, x = case
    net, x = copy.deepcopy(net).double(), x.double()
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    architectures.settle(net, x) if norms else net.eval()
    network, _ = rf.sample(net, x, law="identity", center=True, offset=True, holdout=0)
    # Directions of M below 1e-13 of the largest may be rounding. The features in them, 3e-7 of all, are lost at each of
    # about ten sites.
    assert (network(x) - net(x)).norm() <= 3e-6 * net(x).norm()


def test_number_of_parameters_by_hand():
    net = rf.rainbowize(mlp((20, 16, 12, 10), bias=True), images(2, 20), rank={"2": 5}, expand=2)
    # W and b of 5 rows on 20 inputs, of 3 rows on 2 * 16 neurons, and the classifier on 2 * 12 neurons.
    assert sum(p.numel() for p in net.parameters()) == (20 * 5 + 5) + (32 * 3 + 3) + (24 * 10 + 10)
    assert [type(part) for part in net] == [nn.Flatten, RainbowLinear, RainbowLinear, nn.Linear]
    assert not any(net[number].projection.bias.any() for number in (1, 2))
    net = rf.rainbowize(resnet_cifar(8, width=8), images(2, 3, 8, 8))
    block = net.get_submodule("layer2.0")
    # 4 channels; conv1 reads 32 maps, conv2 64; the shortcut is a projection of the 32 without channels of zeros.
    shapes = [tuple(p.shape) for name, p in sorted(block.named_parameters()) if "bn" not in name]
    assert shapes == [(4, 32, 3, 3), (4, 64, 3, 3), (4, 32, 1, 1)]


def test_pairs_keep_geometry_activation_and_address():
    layers = nn.Sequential(nn.Conv2d(2, 8, 3, 2, padding=2, dilation=2, padding_mode="circular"), nn.LeakyReLU(0.2))
    net = rf.rainbowize(nn.Sequential(layers, head(8)), images(2, 2, 9, 9), seed=7)
    pair = net[0]
    assert type(pair) is RainbowConv2d and list(net._modules)[0] == "0_0"
    assert repr(pair.projection) == repr(nn.Conv2d(2, 2, 3, 2, padding=2, dilation=2, padding_mode="circular"))
    assert (pair.features.activation, pair.features.negative_slope) == ("leaky_relu", 0.2)
    assert torch.equal(pair.features.key, RandomFeatures(2, 8, seed=7, stream=0).key)


def test_dtype_and_device_are_those_of_the_module():
    for dtype in (F64, torch.bfloat16):
        module = resnet_cifar(8, width=4).to(dtype)
        net = rf.rainbowize(module, images(2, 3, 8, 8))
        assert all(p.dtype == dtype for p in net.parameters()) and net(images(4, 3, 8, 8).to(dtype)).dtype == dtype


def test_initial_weights_come_from_the_global_generator():
    module = mlp((20, 16, 10))
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.flatten() for p in rf.rainbowize(module, images(2, 20)).parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).all(), "all layers are new"
    assert not torch.equal(weights[0][-160:], module[-1].weight.flatten())


def test_pooling_after_the_activation_belongs_to_the_layer() -> None:
    """It is then done before the alignment, in `resample` as in `sample`."""
    x = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 2))
    net = rf.rainbowize(plain, x, rank=3)
    assert [type(layer) for layer in net] == [rf.nn.RainbowConv2d, nn.Flatten, nn.Linear]
    assert str(net[0].features.pool) == str(plain[2])
    normed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 2, 1))
    features = rf.rainbowize(normed, x)[2]
    assert isinstance(features, rf.nn.RandomFeatures) and isinstance(features.pool, nn.MaxPool2d)
    sampled, _ = rf.sample(net, x, width=20, seed=3, holdout=0.0)
    passed = rf.nn.resample(net, 20, align="clean", seed=3)(x)
    # float32, times the condition of M
    torch.testing.assert_close(passed, sampled(x), rtol=1e-3, atol=1e-3 * float(passed.detach().abs().max()))


def test_what_forwards_write():
    """Max-pooling before the activation, a formula, dropout functions, scalings, and broadcast sums."""
    x = images(6, 3, 8, 8)
    pooled = Calls(lambda m, x: m.h(F.relu(F.max_pool2d(m.c(x), 2))), c=conv(3, 8), h=head(8))
    net = rf.rainbowize(pooled, x)
    assert isinstance(net.c, nn.Conv2d) and net.c.out_channels == 2 and net.h.get_submodule("2").in_features == 32

    def swish(m: Calls, x: Tensor) -> Tensor:
        z = m.c(x)
        return m.h(F.dropout(z * torch.sigmoid(z), 0.5, m.training))

    net = rf.rainbowize(Calls(swish, c=conv(3, 8), h=head(8)), x)
    assert net[0].features.activation == "silu"
    assert not torch.equal(net(x), net(x)) and torch.equal(net.eval()(x), net(x)), "dropout in training mode only"

    scaled = Calls(lambda m, x: m.h(torch.tanh(2 * m.c(x) / 3 + m.p(x) - 1)), c=conv(3, 8), p=conv(3, 1), h=head(8))
    net = rf.rainbowize(scaled, x)
    assert (net.c.out_channels, net.p.out_channels) == (2, 1)


def test_a_sum_that_no_site_reads_keeps_its_channels():
    """``s = relu(stem(x)); s = s + conv2(relu(conv1(s)))``: phi is projected to the channels of the sum."""

    def forward(m: Calls, x: Tensor) -> Tensor:
        s = torch.relu(m.stem(x))
        return m.h(s + m.conv2(torch.relu(m.conv1(s))))

    parts = {"stem": conv(3, 8), "conv1": conv(8, 8), "conv2": conv(8, 8), "h": head(8)}
    net = rf.rainbowize(Calls(forward, **parts), images(2, 3, 8, 8))
    assert tuple(net.skip.weight.shape) == (8, 32, 1, 1) and net.conv2.out_channels == 8


def test_sites_that_share_a_sum_share_their_rank():
    module = resnet_cifar(8, width=8, preactivation=True)
    net = rf.rainbowize(module, images(2, 3, 8, 8), rank={"layer2.0.activation": 3})
    assert net.conv1.out_channels == net.get_submodule("layer1.0.conv2").out_channels == 3
    assert net.get_submodule("layer1.0.conv1").out_channels == 2, "of z inside of the block"


def test_layers_called_twice_stay_shared():
    layer = nn.Linear(16, 16)
    net = rf.rainbowize(
        nn.Sequential(nn.Linear(16, 16), nn.ReLU(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(16, 3)), images(2, 16)
    )
    assert sum(isinstance(part, nn.Linear) for part in net.modules()) == 3
    assert len([site for site in rf.sites(net, images(2, 16)) if site.kept is None]) == 3


def test_some_sites():
    x = images(4, 3, 8, 8)
    net = rf.rainbowize(resnet_cifar(8, width=8), x, sites=["layer1.0.activation"])
    sites = {site.name: site.activation for site in rf.sites(net, x)}
    assert [name for name, kind in sites.items() if kind.startswith("RandomFeatures")] == ["layer1.0.activation_1"]
    assert net(x).shape == (4, 10), "the other call of the same module stays as it is"


def test_a_fraction_is_at_most_the_inputs_of_a_neuron():
    net = rf.rainbowize(mlp((3, 16, 10)), images(2, 3), rank=1.0)
    assert net[1].features.rank == 3


def mean_squares(net: nn.Module, x: Tensor) -> list[float]:
    """Of phi at each site, in order."""
    values: list[float] = []
    kinds = (RainbowLinear, RainbowConv2d)
    inside = {id(part.features) for part in net.modules() if isinstance(part, kinds)}
    for part in net.modules():
        if isinstance(part, kinds) or (isinstance(part, RandomFeatures) and id(part) not in inside):
            part.register_forward_hook(lambda _, args, phi: values.append(float(phi.square().mean())))
    with torch.no_grad():
        net(x)
    return values


def test_depth_neither_shrinks_nor_amplifies():
    x = images(64, 256)
    values = mean_squares(rainbow(mlp((256,) * 21 + (10,)), x), x)
    assert len(values) == 20
    # A layer multiplies the mean square by a number of mean 1 and variance 2 / r + 5 / n: r = 64, n = 1024. Twenty
    # layers have a standard deviation of 0.85 in the logarithm; three of them are a factor of 13.
    assert all(1 / 13 < value < 13 for value in values), values


@pytest.mark.slow
def test_depth_of_residual_networks():
    x = images(16, 3, 16, 16)
    values = mean_squares(rainbow(resnet_cifar(20, preactivation=True), x), x)
    # z is normalised: E relu(g)^2 = 1/2. 5 / n is the relative variance over n >= 64 neurons; three deviations.
    assert len(values) == 19 and all(abs(value - 0.5) < 0.5 * 3 * (5 / 64) ** 0.5 for value in values), values
    values = mean_squares(rainbow(resnet_cifar(20), x), x)
    # Inside of a block as before. After block j, z = (normalised) + P phi, with E |P phi|^2 / r = 2 E |phi|^2 / n: the
    # mean square grows by 1/2 a block, to 5, as that of a residual network does. P has r = 4 to 16 rows, whose relative
    # deviation is (2 / r)^(1/2) in each block, and the blocks' add up: a factor of 3 allows for them.
    assert all(0.5 / 3 < value < 0.5 * 3 for value in values[1::2]), values
    assert all((j + 1) / 6 < value < 1.5 * (j + 1) for j, value in enumerate(values[::2])), values
