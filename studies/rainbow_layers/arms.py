# SPDX-License-Identifier: BSD-3-Clause
"""What is trained: three architectures, each in the usual way and as networks of rainbow layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from rainbow_fast.networks import cnn, resnet_cifar
from rainbow_fast.networks.mlp import seeded
from rainbow_fast.rainbow.rainbowize import rainbowize

Resampling = Literal["never", "last epoch", "always"]
ENDINGS: dict[Resampling, str] = {"never": "", "last epoch": " fine-tuned", "always": " resampled"}


@dataclass(frozen=True)
class Arm:
    """One way to train an architecture.

    Attributes:
        expand: n / d, where d is the width of the architecture.
        rank: r / d of rainbow layers; None has usual layers.
        resampled: the epochs with fresh neurons.
    """

    expand: int = 1
    rank: float | None = None
    resampled: Resampling = "never"

    @property
    def name(self) -> str:
        """The name in options, records and tables, such as "e4 r1/4 fine-tuned"."""
        if self.rank is None:
            return "usual" if self.expand == 1 else f"usual x{self.expand}"
        return f"e{self.expand} r{Fraction(self.rank)}{ENDINGS[self.resampled]}"

    @property
    def tuned_as(self) -> Arm:
        """The arm whose learning rate this one has."""
        return replace(self, resampled="never") if self.resampled == "last epoch" else self

    @property
    def step(self) -> float:
        """r / n, by which rates of rainbow layers are smaller than those of usual layers."""
        return 1.0 if self.rank is None else self.rank / self.expand


EXPANSIONS, RANKS = (1, 2, 4), (1 / 8, 1 / 4, 1 / 2, 1.0)
_ALL = (
    *(Arm(expand) for expand in EXPANSIONS),
    *(Arm(expand, rank, when) for expand in EXPANSIONS for rank in RANKS for when in ENDINGS),
)
ARMS = {arm.name: arm for arm in _ALL}
CHOSEN = (  # the most important ones first
    *("usual", "e4 r1/4", "e2 r1/4", "e4 r1/4 fine-tuned", "e2 r1/4 fine-tuned", "e1 r1/4", "e4 r1/4 resampled"),
    *("e4 r1", "usual x4"),
)


def _tutorial(expand: int, seed: int) -> nn.Sequential:
    return cnn((3, 32 * expand, 64 * expand), seed=seed)


def _four(expand: int, seed: int) -> nn.Sequential:
    channels, layers = [3, *(width * expand for width in (32, 64, 64, 128))], []
    with seeded(seed):
        for number, (before, width) in enumerate(pairwise(channels)):
            conv = nn.Conv2d(before, width, 3, stride=2 - number % 2, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels[-1] * 16, 10))


def _resnet20(expand: int, seed: int) -> nn.Sequential:
    return resnet_cifar(20, width=16 * expand, seed=seed)


NETWORKS: dict[str, Callable[[int, int], nn.Sequential]] = {
    "cnn": _tutorial,
    "four convolutions": _four,
    "resnet20": _resnet20,
}
TITLES = {
    "cnn": "CNN 5x5/2 3-32-64",
    "four convolutions": "Four convolutions 3x3 3-32-64-64-128 with batch norm",
    "resnet20": "ResNet-20 of width 16",
}


def build(network: str, arm: Arm, seed: int) -> nn.Module:
    """A network before training, for images 3 x 32 x 32."""
    if arm.rank is None:
        return NETWORKS[network](arm.expand, seed)
    plain = NETWORKS[network](1, seed)
    with seeded(seed):
        return rainbowize(plain, torch.zeros(1, 3, 32, 32, device="cpu"), rank=arm.rank, expand=arm.expand, seed=seed)
