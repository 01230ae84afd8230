# SPDX-License-Identifier: BSD-3-Clause
"""`init_orthogonal_` on a residual network and on a mixer: gaps before, after, and after 100 steps of training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images
from rainbow_fast.networks import train
from rainbow_fast.networks.mlp import seeded
from rainbow_fast.networks.resnet import resnet_cifar
from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks import init_orthogonal_, measure
from rainbow_fast.random_networks.measure import OUTPUTS
from studies.random_networks.training_experiment import BATCHES, INITIAL, SAMPLES

IMAGES, BATCH, EPOCHS = 2000, 100, 5  # 100 steps
SIDE, PATCH, WIDTH, HIDDEN, BLOCKS = 32, 4, 32, 64, 4  # of the mixer
COST = 20  # of one network, in layers of perceptrons


class Mixing(nn.Module):
    """Two perceptrons with skip-connections: over the patches, and then over the channels."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.over_patches, self.over_channels = _perceptron(patches), _perceptron(WIDTH)

    def forward(self, x: Tensor) -> Tensor:  # (N, patches, channels)
        x = x + self.over_patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.over_channels(self.norm2(x))


class SmallMixer(nn.Module):
    """An MLP-Mixer for images of 32 x 32 pixels (Tolstikhin et al., NeurIPS 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.blocks = nn.Sequential(*(Mixing((SIDE // PATCH) ** 2) for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


def _mixer(seed: int) -> nn.Module:
    with seeded(seed):
        return SmallMixer()


RATES = {"ResNet-20": (0.01,), "MLP-Mixer": (0.01, 0.001)}
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "ResNet-20": lambda seed: resnet_cifar(20, seed=seed),
    "MLP-Mixer": _mixer,
}


@dataclass(frozen=True)
class TracedSetting:
    """One network: everything that its records depend on."""

    traced: str
    rate: float
    seed: int
    images: int = IMAGES
    epochs: int = EPOCHS

    @property
    def cost(self) -> int:
        """In layers of perceptrons."""
        return COST

    def __str__(self) -> str:
        return f"{self.traced}, rate {self.rate:g}, seed {self.seed}"

    def run(self, images: Images, step: Step) -> Record:
        """The gaps of the network with standard and with orthogonal weights, and both again after the same training."""
        x, y = images.x_train[: self.images], images.y_train[: self.images]
        batches = list(x[: SAMPLES * BATCHES].split(min(SAMPLES, len(x))))
        standard = NETWORKS[self.traced](self.seed).train()
        orthogonal = init_orthogonal_(copy.deepcopy(standard), x[:INITIAL])
        sites, before = _gaps(standard, batches)
        gaps: dict[str, list[float] | None] = {"before": before, "after": _gaps(orthogonal, batches)[1]}
        losses: dict[str, list[float]] = {"orthogonal": [], "standard": []}
        for number, (name, network) in enumerate({"orthogonal": orthogonal, "standard": standard}.items()):

            def after_epoch(epoch: int, epochs: int, loss: float, name: str = name, number: int = number) -> None:
                losses[name].append(loss)
                step((number + epoch / epochs) / 2, f"{name}, loss {loss:.2f}")

            options = {"epochs": self.epochs, "lr": self.rate, "momentum": 0.0, "batch_size": BATCH}
            try:
                train(network, x, y, **options, seed=self.seed, progress=after_epoch)  # type: ignore[arg-type]
                gaps[f"{name}, trained"] = _gaps(network, batches)[1]
            except FloatingPointError:
                gaps[f"{name}, trained"] = None
        return asdict(self) | {"sites": sites, "gaps": gaps, "losses": losses}


def settings(seeds: int) -> list[TracedSetting]:
    """All networks, the first seed of each first."""
    return [TracedSetting(name, rate, seed) for seed in range(seeds) for name in NETWORKS for rate in RATES[name]]


def _gaps(network: nn.Module, batches: list[Tensor]) -> tuple[list[str], list[float]]:
    """The outputs of the non-linearities and of the network, by name, and their orthogonality gaps.

    Gaps are means over batches. Batch norms have the statistics of each batch, as in training.
    """
    table = measure(network, batches, measures=["orthogonality_gap"], places=["phi"])
    return [OUTPUTS if each.place == OUTPUTS else each.site for each in table], [each.mean() for each in table]


def _perceptron(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, size))
