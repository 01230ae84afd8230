# SPDX-License-Identifier: BSD-3-Clause
"""What `rainbowize` refuses, and what it says."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks import mlp, resnet_cifar

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Calls(nn.Module):
    """A forward of one's own: ``calls(self, x)``."""

    def __init__(self, calls: Callable, **parts: nn.Module | nn.Parameter):
        super().__init__()
        self.calls = calls
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.calls(self, x)


class TwoInputs(nn.Linear):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return x + y


class Own(nn.Linear):
    pass


def conv(before: int = 3, after: int = 6, **options: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, **options)


def net(*layers: nn.Module, channels: int = 6) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def rows(*layers: nn.Module, width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), *layers, nn.Linear(width, 5))


def hooked() -> nn.Module:
    layer = conv()
    layer.register_forward_hook(lambda *_: None)
    return layer


def tied() -> nn.Module:
    a, b = nn.Linear(16, 16), nn.Linear(16, 16)
    b.weight = a.weight
    return rows(a, nn.ReLU(), b, nn.ReLU())


def twice() -> nn.Module:
    layer = nn.Linear(16, 16)
    return rows(layer, nn.ReLU(), layer, nn.ReLU())


def with_other_inputs() -> nn.Module:
    """A layer that reads phi in one call and the input in the other."""
    parts = {"a": nn.Linear(192, 16), "b": nn.Linear(16, 16), "h": nn.Linear(16, 5)}

    def forward(m: Calls, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return m.h(torch.relu(m.b(torch.relu(m.a(x)))) + torch.relu(m.b(x[:, :16])))

    return Calls(forward, **parts)


def two_activations() -> nn.Module:
    def forward(m: Calls, x: Tensor) -> Tensor:
        z = m.a(x.flatten(1))
        return m.h(torch.cat((torch.relu(z), torch.tanh(z)), 1))

    return Calls(forward, a=nn.Linear(192, 16), h=nn.Linear(32, 5))


def viewed(*sizes: int) -> nn.Module:
    return Calls(lambda m, x: m.fc(torch.relu(m.c(x)).view(*sizes)), c=conv(), fc=nn.Linear(384, 5))


def biased() -> nn.Module:
    shape = torch.ones(6, 1, 1)
    return Calls(lambda m, x: m.h(torch.relu(m.c(x) + m.b)), c=conv(), b=nn.Parameter(shape), h=net())


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"rank": 0}, ValueError, "rank=0: wanted rank >= 1"),
        ({"rank": 0.0}, ValueError, "rank=0.0: wanted a finite fraction of the channels above 0"),
        ({"rank": float("nan")}, ValueError, "rank=nan: wanted a finite fraction"),
        ({"rank": True}, TypeError, "rank is a bool: wanted a number"),
        ({"rank": "all"}, TypeError, "rank is a str: wanted a number"),
        ({"rank": 17}, ValueError, "rank=17: wanted at most 16, the inputs of a neuron of '4'"),
        ({"rank": {"2": 193}}, ValueError, "rank['2']=193: wanted at most 192, the inputs of a neuron of '2'"),
        ({"rank": {"2": 0}}, ValueError, "rank['2']=0: wanted rank['2'] >= 1"),
        ({"rank": {"9": 2}}, ValueError, "rank: '9' is not a chosen site: wanted some of 2, 4"),
        ({"rank": {"4": 2}, "sites": ["2"]}, ValueError, "rank: '4' is not a chosen site: wanted some of 2"),
        ({"rank": 1.0, "expand": 0.1}, ValueError, "layer '3' (Linear): rank=16: wanted at most 2, the inputs of one"),
        ({"expand": 0}, ValueError, "expand=0: wanted a finite number above 0"),
        ({"expand": float("inf")}, ValueError, "expand=inf: wanted a finite number above 0"),
        ({"expand": "4"}, TypeError, "expand is a str: wanted a number"),
        ({"seed": -1}, ValueError, "seed=-1: wanted 0 <= seed < 2^63"),
        ({"seed": 0.5}, TypeError, "seed=0.5: wanted an integer"),
        ({"sites": ["7"]}, ValueError, "sites: '7' is not a site that can be sampled: wanted some of 2, 4"),
        ({"sites": "2"}, ValueError, "sites='2': wanted a list of names"),
        ({"sites": []}, ValueError, "sites=[]: nothing to sample"),
    ],
)
def test_options(options, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        rf.rainbowize(mlp((192, 16, 16, 5)), X, **options)


@pytest.mark.parametrize(
    "module, message",
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "module: no site, wanted at least one"),
        (nn.ReLU(), "module: no parameters, wanted a network with linear layers"),
        (TwoInputs(2, 2), "module: torch.fx cannot trace it (its forward reads 'y' besides 'x': wanted one input)"),
        (rows(width=15), "x: the module does not run on a sample of (1, 3, 8, 8): mat1"),
        (
            net(conv(), nn.ReLU(), conv(6, groups=6), nn.ReLU()),
            "site '3': z comes from layer '2' (Conv2d), with groups=6: wanted a Linear or a convolution with groups=1",
        ),
        (
            net(nn.ConvTranspose2d(3, 6, 2), nn.BatchNorm2d(6), nn.ReLU()),
            "site '2': z comes from layer '0' (ConvTranspose2d), a transposed convolution: wanted",
        ),
        (net(hooked(), nn.ReLU()), "site '1': z comes from layer '0' (Conv2d), with hooks or a forward of its own: "),
        (net(conv(), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU()), "site '3': z comes from layer '1' (ReLU): wanted"),
        (rows(Own(16, 16), nn.ReLU()), "site '4': z comes from linear in module '3' (node 'linear'): wanted"),
        (net(conv(), nn.Hardswish()), "site '1': no kernel computes Hardswish as it is here: wanted one of relu, "),
        (net(conv(), nn.GELU("tanh")), "site '1': no kernel computes GELU as it is here"),
        (net(conv(), nn.GroupNorm(3, 6), nn.ReLU()), "layer '1' (GroupNorm): num_channels (2) must be divisible by"),
        (net(conv(), nn.LayerNorm((6, 8, 8)), nn.ReLU()), "layer '1' (LayerNorm): normalized_shape=(6, 8, 8) with an"),
        (
            viewed(-1, 384),
            "view in module 'module' (node 'view'): it gives (4, 384), where the module gives (1, 384): ",
        ),
        (biased(), "add in module 'module' (node 'add'): it adds a tensor of shape (6, 1, 1), whose channels cannot"),
        (tied(), "layer '3' (Linear): its weight is also that of '5': wanted weights that are not tied"),
        (with_other_inputs(), "layer 'b' (Linear): it does not run on the new numbers of channels (mat1"),
    ],
)
def test_modules(module, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        rf.rainbowize(module, X)


@pytest.mark.parametrize(
    "module, options, message",
    [
        (
            net(conv(), nn.ReLU(), conv(6, groups=6), nn.ReLU()),
            {"sites": ["1"]},
            "layer '2' (Conv2d): groups=6 with 24 instead of 6 channels of input: wanted groups=1",
        ),
        (twice(), {"sites": ["4"]}, "layer '3' is called 2 times, 1 of them before '4': wanted all of them"),
        (two_activations(), {"sites": ["relu"]}, "sites: 'tanh' reads the same channels as 'relu': wanted all of them"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU()),
            {"sites": ["2"]},
            "an output has shape (1, 20), that of the module (1, 5): wanted a layer after the last site",
        ),
        (
            resnet_cifar(8, width=8, preactivation=True),
            {"rank": {"layer1.0.activation": 2, "layer2.0.activation": 3}},
            "rank={'layer1.0.activation': 2, 'layer2.0.activation': 3}: wanted one rank for sites that share",
        ),
        (rf.rainbowize(mlp((192, 16, 5)), X), {}, "site '1.features': it is a rainbow layer already"),
    ],
)
def test_modules_with_options(module, options, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        rf.rainbowize(module, X, **options)


def test_module_and_data_of_other_kinds():
    with pytest.raises(TypeError, match=r"^module: wanted an nn\.Module, got int"):
        rf.rainbowize(3, X)
    with pytest.raises(ValueError, match=r"^x: inputs 'a', 'b', wanted one tensor"):
        rf.rainbowize(rows(), {"a": X, "b": X})
