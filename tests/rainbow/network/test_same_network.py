# SPDX-License-Identifier: BSD-3-Clause
"""It is an error if a sampled network is no function, or differs from what its run computed or from what is written
out. The error names the first site that differs."""

import copy
from collections.abc import Callable

import architectures
import pytest
import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import mlp, resnet_cifar
from rainbow_fast.rainbow.network.same_network import FEW, check_network, check_run

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(200) % 3


def check(spoil: Callable[[rf.RainbowNetwork], None], **options: object) -> None:
    """Samples a network, changes it, and compares it with what its run computed."""
    data = (X, Y) if "classifier" in options else X
    model = rf.fit(mlp((6, 8, 5, 3), seed=0), data)
    network, _ = model.sample(factor=3, **options)
    sites = {name: network.site(name) for name in network.sampled}
    head = None if network.head is None else network.body.get_submodule(network.head)
    how = {"head": head, "refit": options.get("classifier") == "refit"}
    check_network(network.body, sites, model.prepared.trace, X[:FEW], **how)
    spoil(network)
    check_network(network.body, sites, model.prepared.trace, X[:FEW], **how)


def hooked(name: str) -> Callable[[rf.RainbowNetwork], None]:
    """A site that returns something else at every call."""

    def spoil(network: rf.RainbowNetwork) -> None:
        factors = iter(range(1, 100))
        network.site(name).register_forward_hook(lambda module, args, result: result * next(factors))

    return spoil


def another(name: str) -> Callable[[rf.RainbowNetwork], None]:
    """A site whose scale is not the one of the run."""

    def spoil(network: rf.RainbowNetwork) -> None:
        site = copy.deepcopy(network.site(name))
        site.scale *= 1.001
        network.body.set_submodule(name, site)

    return spoil


@pytest.mark.parametrize("options", [{}, {"method": "calibrated"}, {"classifier": "refit"}], ids=str)
@pytest.mark.parametrize("name", ["2", "4"])
def test_a_network_that_gives_other_bits(name, options):
    with pytest.raises(
        RuntimeError, match=f"network: called twice on 8 samples it gives two outputs.*at site '{name}'"
    ):
        check(hooked(name), **options)


@pytest.mark.parametrize("options", [{}, {"storage_dtype": torch.bfloat16}, {"classifier": "refit"}], ids=str)
@pytest.mark.parametrize("name", ["2", "4"])
def test_a_network_that_is_not_what_was_sampled(name, options):
    message = (
        rf"network: it differs from what its sites.*on 8 samples by .* first at site '{name}', wanted at most 1.0e-05"
    )
    with pytest.raises(RuntimeError, match=message):
        check(another(name), **options)


def test_a_refit_classifier_is_compared_too():
    def spoil(network: rf.RainbowNetwork) -> None:
        head = copy.deepcopy(network.body.get_submodule(network.head))
        head.bias.data += 1
        network.body.set_submodule(network.head, head)

    with pytest.raises(RuntimeError, match="network: it differs from .* first after the last site, wanted at most"):
        check(spoil, classifier="refit_aligned")


def test_what_the_run_computed_is_held_against_it():
    network, _ = rf.sample(mlp((6, 8, 5, 3), seed=0), X, factor=2)
    outputs = network(X)
    check_run(network, X, outputs, "4")
    with pytest.raises(RuntimeError, match="network: after its last site '4' it differs from what its run computed by"):
        check_run(network, X, 1.001 * outputs, "4")


class Louder(nn.Linear):
    """A linear layer whose weights do not determine its function."""

    def forward(self, x):
        return 1.01 * super().forward(x)


def test_a_layer_with_a_forward_of_its_own_is_written_out_as_it_computes():
    net = mlp((6, 8, 5, 3), seed=0)
    louder = Louder(8, 5, bias=False)
    louder.weight = net[3].weight
    net[3] = louder
    network, _ = rf.sample(net, X, factor=3)
    torch.testing.assert_close(network.materialize()(X), network(X), rtol=1e-4, atol=1e-5)  # float32, two layers


def test_hooks_of_a_layer_are_not_written_out():
    """If the layer is folded into a wide one, this is an error, and never another function."""
    net = mlp((6, 8, 5, 3), seed=0)
    net[3].register_forward_hook(lambda module, inputs, result: result + 1)
    network, _ = rf.sample(net, X, factor=3)
    with pytest.raises(RuntimeError, match="materialize: the module written out differs from .* first at site '4'"):
        network.materialize()


@pytest.mark.parametrize("kind", architectures.KINDS)
@pytest.mark.parametrize("method", ["paper", "calibrated", "regression"])
def test_networks_that_are_functions_are_sampled_and_written_out(kind, method):
    net = architectures.build(kind)
    x, y = torch.randn(60, *net.image), torch.arange(60) % 10
    network, report = rf.sample(net, (x, y), factor=1.5, method=method, storage_dtype=torch.bfloat16)
    assert network.materialize()(x).shape == (60, 10) and 0 <= report.accuracy["held_out"] <= 1


def test_a_network_in_training_is_written_out_as_in_eval_mode():
    net = resnet_cifar(8, width=4, seed=0)
    network, _ = rf.sample(nn.Sequential(net, nn.Dropout()), torch.randn(40, 3, 8, 8), factor=2)
    network.train()
    plain = network.materialize()
    assert network.training and network.body.training and not plain.training


class Amplifying(nn.Module):
    """The input, with an error of 2^-7 in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 2.0**16) - 2.0**16


def test_rounding_that_a_network_amplifies_is_allowed():
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    other_order = x + 2.0**-8
    check_run(Amplifying(), x, other_order, "last")
    with pytest.raises(RuntimeError, match="after its last site 'last' it differs from what its run computed by"):
        check_run(Amplifying(), x, x + 0.1, "last")
    with pytest.raises(RuntimeError, match="wanted at most 1.0e-05"):
        check_run(nn.Identity(), x, x + 1e-4, "last")
