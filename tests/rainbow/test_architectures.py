# SPDX-License-Identifier: BSD-3-Clause
"""The networks that other tests sample are traceable, reproducible, and active at every non-linearity."""

import pytest
import torch
from architectures import KINDS, ConvNeXt, Mixer, Residual, Transformer, UNet, build
from torch import fx, nn

NONLINEARITIES = {"relu", "relu_", "gelu", "leaky_relu"}


def nonlinearities(graph: fx.GraphModule) -> list[fx.Node]:
    def is_one(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(graph.get_submodule(node.target), nn.ReLU | nn.GELU)
        return (node.target if node.op == "call_method" else getattr(node.target, "__name__", "")) in NONLINEARITIES

    return [node for node in graph.graph.nodes if is_one(node)]


@pytest.mark.parametrize("kind, calls", [(Residual, 4), (Mixer, 4), (ConvNeXt, 3), (Transformer, 2), (UNet, 5)])
def test_fx_traces_what_the_network_computes(kind, calls):
    net = build(kind)
    graph = fx.symbolic_trace(net)
    for samples in (5, 1):  # the trace must not depend on the number of images
        x = torch.randn(samples, *net.image, generator=torch.Generator().manual_seed(1))
        assert torch.equal(graph(x.clone()), net(x)) and net(x).shape == (samples, 10)
    assert len(nonlinearities(graph)) == calls


@pytest.mark.parametrize("kind", KINDS)
def test_no_nonlinearity_is_idle(kind):
    """The input of a non-linearity has both signs, and a spread that is neither zero nor huge."""
    net = build(kind)
    graph = fx.symbolic_trace(net)
    inputs = {}

    class Watch(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            if node in watched:
                inputs[node.name] = self.env[node.args[0]].clone()  # copied before an in-place call overwrites it
            return super().run_node(node)

    watched = set(nonlinearities(graph))
    Watch(graph).run(torch.randn(32, *net.image, generator=torch.Generator().manual_seed(1)))
    for name, z in inputs.items():
        assert 0.05 < (z > 0).float().mean() < 0.95 and 0.1 < z.std() < 10, name
    assert len(inputs) == len(watched)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_the_weights_and_leaves_the_global_state(kind):
    before = torch.get_rng_state()
    first, second, other = build(kind), build(kind), build(kind, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    same = second.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in first.state_dict().items())
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_options_set_image_and_width():
    net = build(UNet, image=(1, 8, 8), width=2)
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 10) and net.head.in_channels == 2
