# SPDX-License-Identifier: BSD-3-Clause
"""A sampled network that is no function, or another one than its run computed or than is written out, is an error by
the first site that differs."""

import copy
from dataclasses import replace
from typing import Any

import architectures
import pytest
import torch
from torch import nn

import rainbow_fast as rf
from rainbow_fast.networks import mlp, resnet_cifar
from rainbow_fast.rainbow.network import materialize
from rainbow_fast.rainbow.sampling import run as sampling

pytestmark = pytest.mark.filterwarnings("ignore:site .* samples for")
X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(200) % 3


def sampled(monkeypatch: pytest.MonkeyPatch, spoil: Any, **options: object) -> rf.RainbowNetwork:
    """With a network that something happens to while it is put together."""
    whole = sampling.assemble

    def assemble(*args: Any, **kwargs: Any) -> rf.RainbowNetwork:
        network = whole(*args, **kwargs)
        spoil(network)
        return network

    monkeypatch.setattr(sampling, "assemble", assemble)
    data = (X, Y) if "classifier" in options else X
    return rf.sample(mlp((6, 8, 5, 3), seed=0), data, factor=3, **options)[0]


def hooked(name: str) -> Any:
    """A site gives something else at every call."""

    def spoil(network: rf.RainbowNetwork) -> None:
        factors = iter(range(1, 100))
        network.site(name).register_forward_hook(lambda module, given, result: result * next(factors))

    return spoil


def another(name: str) -> Any:
    """A site whose scale is not that of the run."""

    def spoil(network: rf.RainbowNetwork) -> None:
        made = copy.deepcopy(network.site(name))
        made.scale *= 1.001
        network.body.set_submodule(name, made)

    return spoil


@pytest.mark.parametrize("options", [{}, {"method": "calibrated"}, {"classifier": "refit"}], ids=str)
@pytest.mark.parametrize("name", ["2", "4"])
def test_a_network_that_gives_other_bits(monkeypatch, name, options):
    with pytest.raises(
        RuntimeError, match=f"network: called twice on 8 samples it gives two outputs.*at site '{name}'"
    ):
        sampled(monkeypatch, hooked(name), **options)


@pytest.mark.parametrize("options", [{}, {"storage_dtype": torch.bfloat16}, {"classifier": "refit"}], ids=str)
@pytest.mark.parametrize("name", ["2", "4"])
def test_a_network_that_is_not_what_was_sampled(monkeypatch, name, options):
    message = (
        rf"network: it differs from what its sites.*on 8 samples by .* first at site '{name}', wanted at most 1.0e-05"
    )
    with pytest.raises(RuntimeError, match=message):
        sampled(monkeypatch, another(name), **options)


def test_a_refit_classifier_is_compared_too(monkeypatch):
    def spoil(network: rf.RainbowNetwork) -> None:
        head = copy.deepcopy(network.body.get_submodule(network.head))
        head.bias.data += 1
        network.body.set_submodule(network.head, head)

    with pytest.raises(RuntimeError, match="network: it differs from .* first behind the last site, wanted at most"):
        sampled(monkeypatch, spoil, classifier="refit_aligned")


def test_what_the_run_computed_is_held_against_it(monkeypatch):
    outputs = sampling.Flight.outputs
    monkeypatch.setattr(sampling.Flight, "outputs", lambda self, lane, start: 1.001 * outputs(self, lane, start))
    with pytest.raises(
        RuntimeError, match="network: behind its last site '4' it differs from what its run computed by"
    ):
        rf.sample(mlp((6, 8, 5, 3), seed=0), X, factor=2)


def test_what_is_written_out_is_held_against_the_network(monkeypatch):
    """By the first site whose neurons differ."""
    read = materialize.read

    def wrong(module: nn.Linear) -> Any:
        made = read(module)
        return replace(made, weight=1.01 * made.weight) if module.out_features == 5 else made

    network, _ = rf.sample(mlp((6, 8, 5, 3), seed=0), X, factor=3)
    network.materialize()
    monkeypatch.setattr(materialize, "read", wrong)
    message = (
        "materialize: the module written out differs from the network by .* on 4 Gaussian inputs, first at site '4', "
    )
    with pytest.raises(RuntimeError, match=message + "wanted at most 1.0e-05"):
        network.materialize()


def test_hooks_of_a_layer_are_not_written_out():
    """The layer is folded into a wide one: an error, never another function."""
    net = mlp((6, 8, 5, 3), seed=0)
    net[3].register_forward_hook(lambda module, given, result: result + 1)
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
