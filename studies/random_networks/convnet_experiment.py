# SPDX-License-Identifier: BSD-3-Clause
"""Figure 7: convolutional networks of the kind of AlexNet on CIFAR-10, of two depths, from several initial weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images
from rainbow_fast.networks.mlp import seeded
from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks import init_orthogonal_
from studies.random_networks.training_experiment import GAIN, Initial, trained

FIXED = 5  # convolutions before the equal ones; all have kernels of 3 x 3
SIDE = 2  # of the last feature maps
LEARNING_RATE, BATCH = 0.01, 30
INITIAL = 256  # images of which the initial weights whiten the activations, as published


@dataclass(frozen=True)
class ConvSetting:
    """One convolutional network: everything that its records depend on. `channels` are those of the equal layers."""

    convolutions: int
    arm: str
    seed: int
    channels: int
    images: int
    epochs: int

    @property
    def cost(self) -> int:
        """In layers."""
        return self.convolutions

    def __str__(self) -> str:
        return f"{self.arm}, {self.convolutions} convolutions, seed {self.seed}"

    def run(self, images: Images, step: Step) -> Record:
        """Train one network on images whose pixels lie between 0 and 1."""
        images = images._replace(x_train=images.x_train[: self.images] / 2 + 0.5, x_test=images.x_test / 2 + 0.5)
        return asdict(self) | trained(build(self, images.x_train), self, images, LEARNING_RATE, BATCH, step)


def _exact(network: nn.Sequential, x: Tensor, equal: list[str]) -> object:
    return init_orthogonal_(network, x[:INITIAL], layers=equal)


def _published(network: nn.Sequential, x: Tensor, equal: list[str]) -> object:
    """The published code: exponent 1/2, a slice in the place of Q, and norm 1; eps only lets dead units pass."""
    options = {"exponent": 0.5, "factor": "slice", "scale": "frobenius", "eps": 1e-10}
    return init_orthogonal_(network, x[:INITIAL], layers=equal, **options)  # type: ignore[arg-type]


ARMS: dict[str, Initial | None] = {"standard": None, "orthogonal": _exact, "orthogonal, published": _published}


def settings(convolutions: Sequence[int], seeds: int, channels: int, images: int, epochs: int) -> list[ConvSetting]:
    """All networks, the first seed of every depth first."""
    return [
        ConvSetting(count, arm, seed, channels, images, epochs)
        for seed in range(seeds)
        for count in convolutions
        for arm in ARMS
    ]


def build(setting: ConvSetting, x: Tensor) -> nn.Sequential:
    """The network before training: Xavier's weights with gain sqrt 2, no biases at first, and weights of the arm.

    With 256 channels the sizes are the published ones. The weights of the arm are those of the convolutions with as
    many inputs as outputs.
    """
    few, some, most = setting.channels // 4, 3 * setting.channels // 4, setting.channels
    parts: list[nn.Module] = [nn.Conv2d(3, few, 3, stride=2, padding=1), nn.MaxPool2d(2), nn.ReLU()]
    parts += [_conv(few, some), nn.MaxPool2d(2), nn.ReLU(), _conv(some, some), nn.ReLU()]
    parts += [_conv(some, most), _conv(most, most), nn.ReLU()]
    for _ in range(setting.convolutions - FIXED):
        parts += [_conv(most, most), nn.ReLU()]
    inputs, wide = SIDE**2 * most, 16 * most
    parts += [nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(inputs, wide), nn.ReLU()]
    parts += [nn.Dropout(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, 10)]
    network = nn.Sequential(*parts)
    equal = []
    with seeded(setting.seed):
        for name, part in network.named_modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(part.weight, GAIN)
                assert part.bias is not None
                nn.init.zeros_(part.bias)
            if isinstance(part, nn.Conv2d) and part.in_channels == part.out_channels:
                equal.append(name)
    initial = ARMS[setting.arm]
    if initial is not None:
        initial(network, x, equal)
    return network


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
