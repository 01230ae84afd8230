# SPDX-License-Identifier: BSD-3-Clause
"""Deep perceptrons on CIFAR-10 with several norms: what is trained, and what is measured by layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images
from rainbow_fast.infinite_width import KernelMap
from rainbow_fast.networks import accuracy, train
from rainbow_fast.networks.mlp import seeded
from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks import measure

MEAN = STD = (0.5, 0.5, 0.5)  # pixels from -1 to 1
BATCH, MOMENTUM = 100, 0.9
SAMPLES, BATCHES = 250, 4  # of the batches on which layers are measured
GROUP = 8  # units of a group of group norm
PIXELS, CLASSES = 3072, 10
DIRECTIONS = ("stable_rank", "mean_cosine")
SIZES = ("variance", "gradient")  # shown as logarithms
ARMS: dict[str, Callable[[int], nn.Module] | None] = {
    "no norm": None,
    "batch norm": nn.BatchNorm1d,
    "layer norm": nn.LayerNorm,
    "group norm": lambda width: nn.GroupNorm(width // GROUP, width),
}


@dataclass(frozen=True)
class Setting:
    """One network: everything that its record depends on. Depth is the number of linear layers."""

    depth: int
    arm: str
    rate: float
    seed: int
    width: int
    images: int
    epochs: int

    @property
    def layers(self) -> int:
        return self.depth

    @property
    def name(self) -> str:
        return f"{self.arm}, {self.depth} layers, rate {self.rate:g}, seed {self.seed}"

    def record(self, images: Images, step: Step) -> Record:
        return run(self, images, step)


@dataclass(frozen=True)
class Kernel:
    """The theory of layers of infinite width without a norm, or with layer norm, before training."""

    kernel_layers: int
    layers = 1
    name = "infinite width"

    def record(self, images: Images, step: Step) -> Record:
        return kernel_directions(self, images)


@dataclass(frozen=True)
class Study:
    """All networks of a study: the rates to choose from, and the seeds at the best one."""

    depths: Sequence[int]
    rates: Sequence[float]
    seeds: int
    width: int
    images: int
    epochs: int

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.depths[-1] - 1)

    def choices(self) -> list[list[Setting]]:
        """The networks of seed 0 at all rates, for each depth and norm."""
        return [
            [Setting(depth, arm, rate, 0, self.width, self.images, self.epochs) for rate in self.rates]
            for depth in self.depths
            for arm in ARMS
        ]

    @property
    def cost(self) -> int:
        """In layers to train."""
        return self.kernel.layers + len(ARMS) * sum(self.depths) * (len(self.rates) + self.seeds - 1)


def best_rate(records: Sequence[Record]) -> float:
    """The rate with the lowest last loss. A loss that is not finite counts as the highest."""
    return float(min(records, key=last_loss)["rate"])


def last_loss(record: Record) -> float:
    """The loss of the last epoch; infinite if a loss was not finite."""
    return math.inf if record["accuracy"] is None else record["losses"][-1]


def build(setting: Setting) -> nn.Sequential:
    """The network before training: He's normal weights without biases, and the norm before each ReLU."""
    parts: list[nn.Module] = [nn.Flatten()]
    norm = ARMS[setting.arm]
    with seeded(setting.seed):
        for before, after in pairwise([PIXELS, *[setting.width] * (setting.depth - 1), CLASSES]):
            linear = nn.Linear(before, after, bias=False)
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            parts.append(linear)
            if len(parts) > 1 and after == setting.width:
                parts += [*([norm(after)] if norm is not None else []), nn.ReLU()]
    return nn.Sequential(*parts)


def run(setting: Setting, images: Images, step: Step) -> Record:
    """Train one network, and measure it before, after each epoch, and at the end.

    A loss that is not finite ends the training: the record has the epochs before it, and no last measures.
    """
    network = build(setting)
    x, y = images.x_train[: setting.images], images.y_train[: setting.images]
    some = list(x[: SAMPLES * BATCHES].split(SAMPLES))
    before = by_layer(network, some, y[:SAMPLES])
    losses: list[float] = []
    last = {name: [before[name][-1]] for name in DIRECTIONS}
    after: dict[str, list[float]] | None = None
    reached: float | None = None

    def after_epoch(epoch: int, epochs: int, loss: float) -> None:
        losses.append(_short(loss))
        for name, values in directions(network, some).items():
            last[name].append(values[-1])
        step(epoch / epochs, f"loss {loss:.2f}")

    options = {"epochs": setting.epochs, "lr": setting.rate, "momentum": MOMENTUM, "batch_size": BATCH}
    try:
        train(network, x, y, **options, seed=setting.seed, progress=after_epoch)  # type: ignore[arg-type]
        after = by_layer(network, some, y[:SAMPLES])
        reached = accuracy(network, images.x_test, images.y_test)
    except FloatingPointError:
        step(1.0, "the loss is not finite")
    return asdict(setting) | {
        "losses": losses, "accuracy": reached, "before": before, "after": after, "last_layer": last
    }  # fmt: skip


def by_layer(network: nn.Module, batches: list[Tensor], labels: Tensor) -> dict[str, list[float]]:
    """The measures of each hidden layer: means over batches, but the gradient, which is that of the first batch."""
    sizes = [_variances(network, x) for x in batches]
    return directions(network, batches) | {
        "variance": [_short(float(value)) for value in torch.tensor(sizes, device="cpu").mean(0)],
        "gradient": _gradients(network, batches[0], labels),
    }


def directions(network: nn.Module, batches: list[Tensor]) -> dict[str, list[float]]:
    """Stable rank and mean cosine of the activations of each hidden layer, means over batches; NaN if a sample is 0."""
    sites = [site for site in measure(network, batches, measures=DIRECTIONS, places=["phi"]) if site.place == "phi"]
    return {name: [_short(site.mean(name)) for site in sites] for name in DIRECTIONS}


def kernel_directions(setting: Kernel, images: Images) -> Record:
    """Stable rank and mean cosine of the activations of each layer at infinite width, without sampling of weights.

    Layer norm then changes no direction: the mean over units is 0. The variance is that without a norm, 2 |x|^2 over
    the number of pixels, in every layer.
    """
    ranks, cosines = [], []
    some = images.x_train[: SAMPLES * BATCHES].double().flatten(1)
    for x in some.split(SAMPLES):
        lengths = x.norm(dim=1)
        start = (x @ x.mT / lengths.outer(lengths)).clamp(-1, 1)
        path = KernelMap("relu").iterate(start, setting.kernel_layers)[1:]
        n = len(start)
        ranks.append(n / torch.linalg.eigvalsh(path)[:, -1])
        cosines.append((path.sum((1, 2)) - n) / (n * (n - 1)))
    means = {name: torch.stack(each).mean(0).tolist() for name, each in zip(DIRECTIONS, (ranks, cosines), strict=True)}
    means["variance"] = [2 * float(some.square().mean())] * setting.kernel_layers
    return asdict(setting) | {name: [_short(value) for value in values] for name, values in means.items()}


def batch_norm_limits(samples: int = SAMPLES) -> dict[str, float]:
    """Stable rank and mean cosine of activations after many layers with batch norm and infinite width.

    Before the ReLU all samples have the same cosine, and their sum is 0.
    """
    opposite = torch.tensor([-1 / (samples - 1)], dtype=torch.float64, device="cpu")
    cosine = float(KernelMap("relu").correlation(opposite))
    return {"stable_rank": samples / (1 + (samples - 1) * cosine), "mean_cosine": cosine}


def batch_norm_growth() -> float:
    """``sqrt(pi / (pi - 1))``, 1.211: the factor of gradients a layer, towards the first one, with batch norm and ReLU.

    For samples that are orthogonal before the ReLU, and many of them: a norm divides by the deviation of what it gets,
    sqrt(E[relu^2] - E[relu]^2) in units of the weights, and half of the units pass a gradient.

    Source: Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz, "A mean field theory of batch normalization" (ICLR
    2019).
    """
    return math.sqrt(math.pi / (math.pi - 1))


@torch.no_grad()
def _variances(network: nn.Module, x: Tensor) -> list[float]:
    """The variance, over samples and units, of the input of each ReLU."""
    variances, x = [], x
    for part in copy.deepcopy(network).children():
        if isinstance(part, nn.ReLU):
            variances.append(float(x.double().var(correction=0)))
        x = part(x)
    return variances


def _gradients(network: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """The norm of the gradient of the loss by the weights of each hidden layer."""
    network = copy.deepcopy(network)  # a batch norm in train mode keeps what it sees
    weights = [part.weight for part in network.children() if isinstance(part, nn.Linear)][:-1]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(network(x), y), weights)
    return [_short(float(torch.linalg.vector_norm(each))) for each in gradients]


def _short(value: float) -> float:
    return float(f"{value:.5g}")
