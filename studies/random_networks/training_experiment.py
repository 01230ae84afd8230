# SPDX-License-Identifier: BSD-3-Clause
"""Deep perceptrons on CIFAR-10 from several initial weights: what is trained, and what is recorded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images
from rainbow_fast.infinite_width import KernelMap
from rainbow_fast.networks import accuracy, mlp, train
from rainbow_fast.networks.mlp import seeded
from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks import init_orthogonal_, measure, singular_value_gap
from rainbow_fast.random_networks.orthogonality import gap_of_gram

MEAN = STD = (0.5, 0.5, 0.5)  # the published normalisation: pixels from -1 to 1
LEARNING_RATE = 0.01
SAMPLES = 500  # of a batch on which gaps are measured
BATCHES = 4
INITIAL = 1000  # images of which the exact initial weights whiten the activations
GAIN = 2**0.5


@dataclass(frozen=True)
class Setting:
    """One network: everything that its records depend on."""

    depth: int
    arm: str
    seed: int
    width: int
    images: int
    epochs: int
    batch: int

    @property
    def cost(self) -> int:
        """In layers."""
        return self.depth

    def __str__(self) -> str:
        return f"{self.arm}, {self.depth} layers, seed {self.seed}"

    def run(self, images: Images, step: Step) -> Record:
        """Train one network. A loss that is not finite ends the training: the record has the epochs before it."""
        network = build(self, images.x_train[: self.images])
        return asdict(self) | trained(network, self, images, LEARNING_RATE, self.batch, step)


@dataclass(frozen=True)
class Kernel:
    """The theory of the standard weights before training: hidden layers of infinite width."""

    kernel_layers: int

    @property
    def cost(self) -> int:
        """In layers of a network that is trained."""
        return 1

    def __str__(self) -> str:
        return "infinite width"

    def run(self, images: Images, step: Step) -> Record:
        """The orthogonality gap by hidden layer, the mean over the batches on which networks have it."""
        path = []
        for x in images.x_train[: SAMPLES * BATCHES].double().flatten(1).split(SAMPLES):
            lengths = x.norm(dim=1)
            cosines = (x @ x.mT / lengths.outer(lengths)).clamp(-1, 1)
            kernels = KernelMap("relu").iterate(cosines, self.kernel_layers)[1:]  # layers keep ratios of lengths
            path.append(gap_of_gram(kernels * lengths.outer(lengths)))
        return asdict(self) | {"site_gaps": torch.stack(path).mean(0).tolist()}


Initial = Callable[[nn.Sequential, Tensor, list[str]], object]


def _exact(factor: str) -> Initial:
    return lambda network, x, hidden: init_orthogonal_(network, x[:INITIAL], layers=hidden, factor=factor)


def _published(network: nn.Sequential, x: Tensor, hidden: list[str]) -> object:
    """The published code: a batch of three times the width, a slice in the place of Q, and norm 1.

    eps only lets a unit pass that is not active in the batch; the published code divides by its singular value.
    """
    width = network.get_parameter(f"{hidden[0]}.weight").shape[0]
    return init_orthogonal_(network, x[: 3 * width], layers=hidden, factor="slice", scale="frobenius", eps=1e-10)


ARMS: dict[str, Initial | None] = {
    "standard": None,
    "orthogonal": _exact("identity"),
    "orthogonal, Haar": _exact("haar"),
    "orthogonal, published": _published,
    "batch norm": None,
}


def settings(depths: Sequence[int], seeds: int, width: int, images: int, epochs: int, batch: int) -> list[Setting]:
    """All networks, the first seed of every depth first, so that an interrupted run has the whole figure."""
    return [
        Setting(depth, arm, seed, width, images, epochs, batch)
        for seed in range(seeds)
        for depth in depths
        for arm in ARMS
    ]


def build(setting: Setting, x: Tensor) -> nn.Sequential:
    """The network before training: Xavier's weights with gain sqrt 2, and those of the arm in the hidden layers."""
    sizes = (3072, *[setting.width] * (setting.depth - 1), 10)
    network = mlp(sizes, batch_norm="before" if setting.arm == "batch norm" else None, seed=setting.seed)
    layers = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    with seeded(setting.seed):
        for name in layers:
            nn.init.xavier_uniform_(network.get_parameter(f"{name}.weight"), GAIN)
    initial = ARMS[setting.arm]
    if initial is not None:
        initial(network, x, layers[1:-1])
    return network


class Training(Protocol):
    """What the settings of perceptrons and of convolutional networks share."""

    @property
    def seed(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def epochs(self) -> int: ...


def trained(network: nn.Sequential, setting: Training, images: Images, rate: float, batch: int, step: Step) -> Record:
    """Train a network on the first images, and measure it before, after each epoch and at the end."""
    x, y = images.x_train[: setting.images], images.y_train[: setting.images]
    some = list(x[: SAMPLES * BATCHES].split(SAMPLES))
    losses: list[float] = []
    gaps = [_output_gap(network, some)]
    before, gradients = _gaps_by_site(network, some), _gradients(network, x[:SAMPLES], y[:SAMPLES])

    def after_epoch(epoch: int, epochs: int, loss: float) -> None:
        losses.append(loss)
        gaps.append(_output_gap(network, some))
        step(epoch / epochs, f"loss {loss:.2f}")

    options = {"epochs": setting.epochs, "lr": rate, "momentum": 0.0, "batch_size": batch}
    reached: float | None = None
    after: list[float] | None = None
    try:
        train(network, x, y, **options, seed=setting.seed, progress=after_epoch)  # type: ignore[arg-type]
        after = _gaps_by_site(network, some)
        reached = accuracy(network, images.x_test, images.y_test)
    except FloatingPointError:
        step(1.0, "the loss is not finite")
    return {
        "losses": losses,
        "output_gaps": gaps,
        "site_gaps": before,
        "trained_site_gaps": after,
        "gradient_ratio": gradients[0] / gradients[-1],
        "accuracy": reached,
    }


def _output_gap(network: nn.Module, batches: list[Tensor]) -> float:
    """The published measure: the gap of the singular values of the outputs, its mean over batches."""
    network = _copied(network)
    with torch.no_grad():
        return float(torch.stack([singular_value_gap(network(x)) for x in batches]).mean())


def _gaps_by_site(network: nn.Module, batches: list[Tensor]) -> list[float]:
    """The orthogonality gap of the activations of each layer, its mean over batches."""
    table = measure(network, batches, measures=["orthogonality_gap"], places=["phi"])
    return [each.mean() for each in table if each.place == "phi"]


def _gradients(network: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """The norms of the gradients of the loss by the weights of the hidden layers, from the second to the last one."""
    network = _copied(network)
    layers = [part for part in network.modules() if isinstance(part, nn.Linear | nn.Conv2d)][1:-1]
    loss = nn.functional.cross_entropy(network(x), y)
    grads = torch.autograd.grad(loss, [layer.weight for layer in layers])
    return [float(torch.linalg.vector_norm(grad)) for grad in grads]


def _copied(network: nn.Module) -> nn.Module:
    """A copy, as a batch norm in train mode keeps what it sees. Dropout is off."""
    network = copy.deepcopy(network)
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    return network
