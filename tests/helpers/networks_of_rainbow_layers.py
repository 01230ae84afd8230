# SPDX-License-Identifier: BSD-3-Clause
"""Networks of rainbow layers: chains, a skip connection, and one that torch.fx cannot trace."""

import torch
from architectures import settle
from here import draw
from torch import Tensor, nn

from rainbow_fast.nn import RainbowConv2d, RainbowLinear, RandomFeatures

F64 = torch.float64


class Skip(nn.Module):
    """Rainbow layers beside usual ones, and a skip connection around one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), RainbowLinear(10, 10, 4, seed=1)
        self.third, self.last = RainbowLinear(10, 12, 5, seed=1, stream=1, activation="tanh"), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(self.third(x + self.second(x)))


class Branching(nn.Module):
    """It branches on values, so that torch.fx cannot trace it. For 200 rows the second layer would sample weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(6, 10), nn.ReLU()
        self.second, self.third = RainbowLinear(10, 9, 10, seed=1), RainbowLinear(9, 12, 4, seed=1, stream=1)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.isnan().any()):
            return x
        return self.last(self.third(self.second(self.act(self.first(x)))))


def maps(norm: bool = False) -> nn.Sequential:
    """A pooling after random features and one before them, channels that feed a Flatten, an average pooling."""
    return nn.Sequential(
        RainbowConv2d(2, 9, 3, 4, seed=1, padding=1),
        *([nn.BatchNorm2d(9)] if norm else []),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(9, 5, 1), nn.MaxPool2d(2, stride=1), RandomFeatures(5, 11, seed=1, stream=1)),
        RainbowConv2d(11, 6, 2, 6, seed=1, stream=2, activation="gelu", bias=True),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def rows(bias: bool = False) -> nn.Sequential:
    """No layer but the last has a bias by default; the second has fewer neurons than its rank."""
    return nn.Sequential(
        RainbowLinear(6, 15, 4, seed=1, bias=bias),
        RainbowLinear(15, 7, 12, seed=1, stream=1, activation="leaky_relu", negative_slope=0.2),
        RainbowLinear(7, 12, 5, seed=1, stream=2, activation="tanh", bias=bias),
        nn.Linear(12, 3),
    )


def tokens() -> nn.Sequential:
    return nn.Sequential(
        *(RainbowLinear(5, 12, 3, seed=1, activation="erf"), RainbowLinear(12, 8, 4, seed=1, stream=1)),
        *(nn.Flatten(), nn.Linear(32, 3)),
    )


def normalised() -> nn.Sequential:
    """Batch norms with affine parts."""
    return nn.Sequential(
        RainbowLinear(6, 12, 4, seed=1),
        nn.BatchNorm1d(12),
        RainbowLinear(12, 10, 4, seed=1, stream=1, bias=True),
        nn.BatchNorm1d(10),
        nn.Linear(10, 3),
    )


NETS = {
    "maps": (maps, (2, 8, 8)),
    "maps normalised": (lambda: maps(norm=True), (2, 8, 8)),
    "rows": (rows, (6,)),
    "rows normalised": (normalised, (6,)),
    "tokens": (tokens, (4, 5)),
    "skip": (Skip, (6,)),
    "branching": (Branching, (6,)),
}
SITES = {
    "maps": ["0.features", "2.2", "3.features"],
    "maps normalised": ["0.features", "3.2", "4.features"],
    "rows": ["0.features", "1.features", "2.features"],
    "rows normalised": ["0.features", "2.features"],
    "tokens": ["0.features", "1.features"],
    "skip": ["relu", "second.features", "third.features"],
    "branching": ["act", "second.features", "third.features"],
}


def built(kind: str, dtype: torch.dtype = F64) -> tuple[nn.Module, Tensor]:
    """The network and its data, which give the running statistics of all its batch norms."""
    make, shape = NETS[kind]
    torch.manual_seed(0)
    net, x = make().to(dtype), draw(200, *shape, dtype=dtype)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.bias, 0, 0.3)
    return settle(net, x).eval(), x
