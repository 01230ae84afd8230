# SPDX-License-Identifier: BSD-3-Clause
"""Networks that are no functions of their input, or whose trace is another function, are refused; the error names the
first call that differs. The comparison changes nothing."""

import random
import time
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import mlp, resnet_cifar
from rainbow_fast.tracing import agreement

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
X = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two linear layers, with `between` applied between them, and the modules that it may use."""

    def __init__(self, between: Callable[["Net", Tensor], Tensor] = lambda net, h: h) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3)
        self.drop, self.bn, self.between = nn.Dropout(), nn.BatchNorm1d(8), between
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))
        self.calls, self.cache = 0, None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, self.body(x)))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Dropping(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(self.a(x)), 0.5)  # training=True is the default


class AlwaysTraining(Net):
    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


def counted(net: Net, h: Tensor) -> Tensor:
    net.calls += 1
    return h * net.calls


def warmed_up(net: Net, h: Tensor) -> Tensor:
    net.calls += 1
    return h * (2 if net.calls > 1 else 1)


def centred_once(net: Net, h: Tensor) -> Tensor:
    if net.cache is None:
        net.cache = h.mean(0)
    return h - net.cache


def first_features(net: Net, h: Tensor) -> Tensor:
    if net.cache is None:
        net.cache = h
    return net.cache


def seeded_dropout(net: Net, h: Tensor) -> Tensor:
    torch.manual_seed(0)
    return F.dropout(h)


def pooled_at_random(net: Net, h: Tensor) -> Tensor:
    pooled = F.fractional_max_pool2d(h[:, None, None], (1, 3), (1, 4), return_indices=True)[0].flatten(1)
    return torch.cat([pooled, pooled], 1)


def without_a_graph(net: Net, h: Tensor) -> Tensor:
    return F.dropout(h) if h.sum() < 1e9 else h


def by_batch_size(net: Net, h: Tensor) -> Tensor:
    return h * 2 if len(h) > 32 else h


def squeezed(net: Net, h: Tensor) -> Tensor:
    return h.squeeze()


def counts_in_a_buffer(net: Net, h: Tensor) -> Tensor:
    net.count += 1
    return h


def running_mean(net: Net, h: Tensor) -> Tensor:
    net.mean.lerp_(h.mean(0), 0.1)
    return h


def decays(net: Net, h: Tensor) -> Tensor:
    net.head.weight.data.mul_(0.999)
    return h


TWICE = "reference: two calls with the same input differ by .* of the largest output, first in module "
MIXED = "reference: the output for a sample depends on the other samples of the batch, first in module "
CHANGED = "reference: a call changes its parameter or buffer '{}': wanted a network that leaves"
REFUSED = {
    "functional dropout": (Inner, TWICE + "'body', dropout: wanted outputs that depend only on the input, bit for bit"),
    "a module left in training": (lambda: Net(lambda net, h: net.drop.train()(h)), TWICE + "'drop', dropout"),
    "a network left in training": (lambda: AlwaysTraining(lambda net, h: net.drop(h)), TWICE + "'drop', dropout"),
    "noise that is traced": (lambda: Net(lambda net, h: h + torch.randn_like(h)), TWICE + "'reference', randn_like"),
    "noise that a trace freezes": (lambda: Net(lambda net, h: h + torch.randn(8)), TWICE + "'reference', randn"),
    "Python's random state": (lambda: Net(lambda net, h: h * random.random()), TWICE + "'reference', mul"),
    "NumPy's random state": (lambda: Net(lambda net, h: h * np.random.rand()), TWICE + "'reference', mul"),
    "time": (lambda: Net(lambda net, h: h * (time.perf_counter_ns() % 10**6)), TWICE + "'reference', mul"),
    "one of several results": (
        lambda: Net(pooled_at_random),
        TWICE + "'reference', fractional_max_pool2d_with_indices",
    ),
    "a count of calls": (lambda: Net(counted), TWICE + "'reference', mul"),
    "a warm-up": (lambda: Net(warmed_up), TWICE + "'reference', mul"),
    "a cached mean": (lambda: Net(centred_once), TWICE + "'reference', sub"),
    "cached features": (lambda: Net(first_features), TWICE + "'head', linear"),
    "no graph": (lambda: Net(without_a_graph), TWICE + "'reference', dropout"),
    "a seed of its own": (lambda: Net(seeded_dropout), MIXED + "'reference', dropout"),
    "the mean of a batch": (lambda: Net(lambda net, h: h - h.mean(0)), MIXED + "'reference', sub"),
    "batch norm without statistics": (
        lambda: Net(lambda net, h: F.batch_norm(h, None, None, training=True)),
        r"a second call, with a batch of 1, raises ValueError \(Expected more than 1 value per channel",
    ),
    "attention between samples": (lambda: Net(lambda net, h: (h @ h.T).softmax(1) @ h), MIXED + "'reference', matmul"),
    "places in a batch": (
        lambda: Net(lambda net, h: h + torch.arange(h.shape[0]).unsqueeze(1)),
        MIXED + "'reference', arange",
    ),
    "the sample before": (lambda: Net(lambda net, h: h + h.roll(1, 0)), MIXED + "'reference', roll"),
    "the samples after": (lambda: Net(lambda net, h: h.flip(0).cumsum(0).flip(0)), MIXED + "'reference', flip"),
    "the size of a batch": (lambda: Net(by_batch_size), MIXED + "'head', linear"),
    "one sample that loses its axis": (
        lambda: Net(squeezed),
        r"of the batch: \[\(33, 3\)\] for 33 samples and \[\(3,\)\] for one of them alone differ by inf",
    ),
    "a buffer that counts": (lambda: Net(counts_in_a_buffer), CHANGED.format("count")),
    "a running mean": (lambda: Net(running_mean), CHANGED.format("mean")),
    "a batch norm in training": (lambda: Net(lambda net, h: net.bn.train()(h)), CHANGED.format("bn.running_mean")),
    "a parameter that changes": (lambda: Net(decays), CHANGED.format("head.weight")),
}


class Outputs:
    def __init__(self, logits: Tensor) -> None:
        self.logits, self.parts = logits, [logits[:, 0]]


@pytest.mark.parametrize("wrap", [Outputs, lambda y: (y, {"more": [y]}), lambda y: {"y": y, "none": None}])
def test_outputs_of_every_kind_are_looked_into(wrap):
    class Wrapped(Net):
        def forward(self, x: Tensor) -> object:
            return wrap(super().forward(x))

    with pytest.raises(ValueError, match=TWICE + "'reference', dropout"):
        rf.fit(Wrapped(lambda net, h: F.dropout(h)).eval(), X)
    with pytest.raises(ValueError, match=MIXED + "'reference', sub"):
        rf.fit(Wrapped(lambda net, h: h - h.mean(0)).eval(), X)


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_what_is_no_function_of_its_input_is_refused(make, message):
    net = make().eval()
    for call in (lambda: rf.fit(net, X), lambda: rf.sample(net, X, factor=2)):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_scalar_of_the_batch():
    class Loss(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean()

    with pytest.raises(ValueError, match=MIXED + r"'reference', mean: \[\(\)\] for 33 samples"):
        rf.fit(Loss().eval(), X)


def test_an_input_that_is_written_to():
    """A network with a graph does not write to it, as every operation makes a new tensor; one without would."""

    class InPlace(Net):
        def __init__(self, graph: bool) -> None:
            super().__init__()
            self.graph = graph

        def forward(self, x: Tensor) -> Tensor:
            x.add_(1)
            return super().forward(x if self.graph or x.sum() < 1e9 else -x)

    x = X.clone()
    with pytest.raises(ValueError, match="reference: a call changes its input, and torch.fx cannot trace it"):
        rf.fit(InPlace(graph=False), x)
    network, _ = rf.sample(InPlace(graph=True), (x, torch.arange(300) % 3), classifier="refit", factor=2)
    assert torch.equal(x, X) and network(x.clone()).shape == (300, 3)


def hooked(net: nn.Module) -> nn.Module:
    net.register_forward_hook(lambda module, inputs, result: 2 * result)
    return net


def doubled_input(net: nn.Module) -> nn.Module:
    net.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    return net


def own_forward(net: nn.Module) -> nn.Module:
    net.forward = types.MethodType(lambda self, x: 3 * self.head(self.body(x)), net)
    return net


@pytest.mark.parametrize(
    "change, where",
    [
        (hooked, "module 'reference', its forward hooks"),
        (doubled_input, "module 'body.0', linear"),
        (own_forward, "module 'reference', the forward of this instance"),
    ],
)
def test_what_a_trace_passes_by(change, where):
    message = f"reference: its trace computes something else, first in {where}: for 16 samples they differ by .* of"
    with pytest.raises(ValueError, match=message):
        rf.fit(change(Net().eval()), X)


def test_hooks_of_a_non_linearity_are_sampled_with_it():
    """The fused kernels would not call them."""
    net = Net().eval().double()
    hooked(net.body[1])
    assert not rf.sites(net)[0].fused
    network, _ = rf.sample(net, X.double(), law="identity", holdout=0)
    # 1e-8: rounding of float64 times the condition number of M
    assert (network(X.double()) - net(X.double())).norm() <= 1e-8 * net(X.double()).norm()
    # 1e-12: the same products in another order
    assert (network.materialize()(X.double()) - network(X.double())).norm() <= 1e-12 * net(X.double()).norm()


def test_one_of_several_references_is_named():
    networks = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)) for _ in range(2)]
    hooked(networks[1])
    with pytest.raises(ValueError, match=r"reference \(number 2\): its trace computes something else"):
        rf.fit(networks, X)


def test_half_precision_is_held_to_its_own_rounding():
    assert agreement.bound(torch.float32) == agreement.bound(torch.float64) == 1e-5
    assert agreement.bound(torch.float32, torch.float16) == 8 * 2**-10
    for dtype in (torch.bfloat16, torch.float16):
        net = resnet_cifar(8, width=4, seed=0).to(dtype)
        rf.sample(net, torch.randn(40, 3, 8, 8), factor=2, holdout=0)
        net.register_forward_hook(lambda module, inputs, result: 1.1 * result)
        with pytest.raises(ValueError, match=f"wanted at most {agreement.bound(dtype):.1e}"):
            rf.fit(net, torch.randn(40, 3, 8, 8), holdout=0)


def test_rounding_that_a_chaotic_network_amplifies_is_not_taken_for_a_difference():
    """Sixty layers of gain 3: a sample alone has outputs up to 1 away from its outputs in a batch."""
    net = mlp((6, *[64] * 60, 3), activation=nn.Tanh, seed=0)
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(
                    layer.weight, std=3 / layer.in_features**0.5, generator=torch.Generator().manual_seed(1)
                )
    x = torch.randn(200, 6)
    assert (net(x)[-1:] - net(x[-1:])).abs().max() > 1e-5 * net(x).abs().max(), "the test's own premise"
    network, _ = rf.sample(net, x, factor=2, method="calibrated", holdout=0)
    network.materialize()


def test_nan_are_equal_to_nan():
    """NaN in the data are an error at their site. In held-out data they are no error."""
    with pytest.raises(ValueError, match="site 'body.1': the reference's z is not finite"):
        rf.fit(Net().eval(), X * torch.nan)
    model = rf.fit(Net().eval(), (X, torch.arange(300) % 3), holdout=(X * torch.nan, torch.arange(300) % 3))
    model.sample(factor=2)


def test_everything_is_left_as_it_was():
    torch.manual_seed(0)  # two masks of dropout may be equal by chance
    net = Net(lambda net, h: F.dropout(h)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    for call in (rf.fit, rf.sites, rf.plan):
        try:
            call(net, X)
        except ValueError as error:
            assert "dropout" in str(error)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert net.training and net.drop.training and net.calls == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_watches_and_what_keeps_its_features_is_no_other_function():
    """Hooks that return nothing, attributes that are set in a forward pass, functional dropout that drops nothing, and
    outputs in a dict."""

    class Watched(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            self.features = self.body(x)
            return {"logits": self.head(F.dropout(self.features, 0.0)), "bias": self.head.bias}

    net, seen = Watched().eval(), []
    net.head.register_forward_hook(lambda module, inputs, result: seen.append(len(result)))
    network, _ = rf.sample(net, X, factor=2)
    assert seen and network(X[:5])["logits"].shape == (5, 3)
    network.materialize()


def test_plan_compares_on_one_sample():
    with pytest.raises(ValueError, match=TWICE + "'body', dropout"):
        rf.plan(Inner().eval(), X[:1], images=10**6)
    rf.plan(Net(by_batch_size).eval(), X[:1], images=10**6)


def test_models_and_networks_of_files(tmp_path):
    """The weights come from the file, the forward pass from the given architecture."""
    plain = Net().eval()
    model = rf.fit(plain, X)
    rf.save_model(model, tmp_path / "model")
    network, _ = model.sample(factor=2)
    rf.save(network, tmp_path / "network")
    assert torch.equal(rf.load(tmp_path / "network", plain)(X), network(X))
    other = Net(lambda net, h: F.dropout(h)).eval()
    with pytest.raises(ValueError, match=TWICE + "'reference', dropout"):
        rf.load_model(tmp_path / "model", other)
    with pytest.raises(
        RuntimeError, match="network: called twice on 4 samples it gives two outputs, .* after the last"
    ):
        rf.load(tmp_path / "network", other)
