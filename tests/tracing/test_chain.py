# SPDX-License-Identifier: BSD-3-Clause
"""Which segments between two sites are one linear layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rainbow_fast.tracing.chain import linear_chain
from rainbow_fast.tracing.trace import trace


def between(*layers: nn.Module) -> list[str] | None:
    """The classes of the modules of the chain between two ReLUs."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), *layers, nn.ReLU()).eval()
    chain = linear_chain(trace(net).segments[1])
    return None if chain is None else [type(module).__name__ for module in chain]


def test_one_linear_layer_with_norms():
    assert between(nn.Conv2d(4, 5, 3, padding=1, stride=2)) == ["Conv2d"]
    assert between(nn.Dropout(), nn.Linear(4, 5), nn.Identity()) == ["Linear"]
    assert between(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)) == ["Conv2d", "BatchNorm2d"]


def test_everything_else_is_none():
    assert between(nn.Conv2d(4, 5, 1), nn.Conv2d(5, 5, 1)) is None, "two layers"
    assert between(nn.Conv2d(4, 4, 1, groups=2)) is None
    assert between(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")) is None
    assert between(nn.ConvTranspose2d(4, 4, 2)) is None
    assert between(nn.Conv2d(4, 4, 1), nn.AvgPool2d(2)) is None
    assert between(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)) is None
    assert between() is None


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_of_the_user_are_none():
    hooked, patched, normalised = (
        nn.Linear(4, 4),
        nn.Linear(4, 4),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    )
    hooked.register_forward_hook(lambda module, args, y: 2 * y)
    patched.forward = lambda x: 2 * x  # type: ignore[method-assign]
    for layer in (hooked, patched, normalised, Own(4, 4)):
        assert between(layer) is None


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        return F.relu(self.b(y)) + y


class Branches(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x)))) + F.relu(x)


class Sum(Skip):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        return F.relu(self.b(y) + y)


def test_a_value_that_is_read_twice_is_none():
    for kind in (Skip, Branches, Sum):
        assert linear_chain(trace(kind()).segments[1]) is None
    assert linear_chain(torch.nn.Linear(3, 3)) is None, "no segment of a graph"
