# SPDX-License-Identifier: BSD-3-Clause
"""ResNets on CIFAR-10 of which only some parameters are trained: the arms, and what is recorded of each network."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images
from rainbow_fast.io import fingerprint
from rainbow_fast.networks import accuracy, resnet_cifar, train
from rainbow_fast.rainbow.report import Record

BATCH, MOMENTUM = 50, 0.9
TUNING = 1  # epochs that each learning rate is tried for
VALIDATION = 2000  # training images after those that are trained on, to choose learning rates
ALIGNMENT = 5000  # most images on which sampled networks are aligned
STATISTICS = 1000  # images of which fixed batch norms have the mean and the variance
CHUNK = 500


@dataclass(frozen=True)
class Setting:
    """One network: everything that its record depends on.

    Attributes:
        arm: a key of `ARMS`.
        seed: of the initial weights or of the sampled ones, and of the order of the images.
        rate: the first learning rate; None if nothing is trained.
        tuning: whether this is a short training, to choose the learning rate.
        epochs: passes over the training images; 0 if nothing is trained.
        images, test: numbers of training and test images.
        depth: of the residual network.
        weights: the fingerprint of the trained network; empty if the arm does not need it.
    """

    arm: str
    seed: int
    rate: float | None
    tuning: bool
    epochs: int
    images: int
    test: int
    depth: int
    weights: str


class Study:
    """The images, the trained network, and the networks that are sampled from it."""

    def __init__(self, images: Images, count: int, reference: nn.Module, depth: int) -> None:
        """`count`: number of training images. The next `VALIDATION` images of the training set are held out."""
        self.x, self.y = images.x_train[:count], images.y_train[:count]
        self.validation = images.x_train[count : count + VALIDATION], images.y_train[count : count + VALIDATION]
        self.test = images.x_test, images.y_test
        self.reference, self.depth = reference.eval(), depth
        self.weights = fingerprint(reference.state_dict())[:12]
        self._model: rf.RainbowModel | None = None
        self._sampled: dict[tuple[str, int], nn.Module] = {}

    def setting(self, arm: str, seed: int, epochs: int, rate: float | None = None, *, tuning: bool = False) -> Setting:
        """The setting of a network of this study. Without a rate, nothing is trained."""
        weights = "" if ARMS[arm].start is initial else self.weights
        count = 0 if rate is None else TUNING if tuning else epochs
        return Setting(arm, seed, rate, tuning, count, len(self.x), len(self.test[0]), self.depth, weights)

    def sampled(self, method: str, seed: int) -> nn.Module:
        """The trained network sampled at its own width, as a plain module."""
        if self._model is None:
            self._model = rf.fit(self.reference, (self.x[:ALIGNMENT], self.y[:ALIGNMENT]))
        if (method, seed) not in self._sampled:
            network, _ = self._model.sample(method=method, network_index=seed)
            self._sampled[method, seed] = network.materialize()
        return copy.deepcopy(self._sampled[method, seed])


Start = Callable[[Study, int], nn.Module]


def initial(study: Study, seed: int) -> nn.Module:
    """The residual network with torch's initial weights."""
    return resnet_cifar(study.depth, seed=seed)


def trained(study: Study, seed: int) -> nn.Module:
    """The trained network."""
    return study.reference


def sample(method: str) -> Start:
    """The function that gives the network that is sampled by a method."""
    return lambda study, seed: study.sampled(method, seed)


def sample_with_norms(method: str) -> Start:
    """The same network, with a batch norm before each non-linearity."""
    return lambda study, seed: insert_batch_norms(study.sampled(method, seed), study.x[:STATISTICS])


@dataclass(frozen=True)
class Arm:
    """What a network starts from, and which of its layers are trained. `once`: its seed changes nothing."""

    start: Start
    layers: tuple[type[nn.Module], ...] = ()
    once: bool = False

    @property
    def on_features(self) -> bool:
        """Whether only the classifier is trained, so that the features are computed once."""
        return self.layers == (nn.Linear,)


ARMS = {
    "random: batch norms": Arm(initial, (nn.BatchNorm2d,)),
    "random: batch norms, classifier": Arm(initial, (nn.BatchNorm2d, nn.Linear)),
    "random: classifier": Arm(initial, (nn.Linear,)),
    "random: all parameters": Arm(initial, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)),
    "paper: as sampled": Arm(sample("paper")),
    "paper: batch norms": Arm(sample_with_norms("paper"), (nn.BatchNorm2d,)),
    "calibrated: as sampled": Arm(sample("calibrated")),
    "calibrated: batch norms": Arm(sample_with_norms("calibrated"), (nn.BatchNorm2d,)),
    "trained network": Arm(trained, once=True),
}


def insert_batch_norms(network: nn.Module, x: Tensor) -> nn.Module:
    """Put a batch norm before each ReLU of `network`, in place. In eval mode the network stays the same function.

        ReLU(z) = ReLU(scale (z - mean) / sqrt(variance + eps) + shift),  scale = sqrt(variance + eps),  shift = mean

    Args:
        network: a plain module from images to logits, in which each ReLU is a module that is called once, on
            (N, C, H, W).
        x: images (N, ...), of which mean and variance of each channel are taken, over images and positions.

    Returns:
        `network`, in eval mode.
    """
    places = [name for name, part in network.named_modules() if isinstance(part, nn.ReLU)]
    sums: dict[str, list[Tensor]] = {name: [] for name in places}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            z = inputs[0].double()
            sums[name].append(torch.stack([z.mean((0, 2, 3)), z.square().mean((0, 2, 3))]) * len(z))

        return hook

    handles = [network.get_submodule(name).register_forward_pre_hook(keep(name)) for name in places]
    with torch.no_grad():
        for chunk in x.split(CHUNK):
            network.eval()(chunk)
    for handle in handles:
        handle.remove()
    for name in places:
        mean, square = torch.stack(sums[name]).sum(0) / len(x)
        network.set_submodule(name, nn.Sequential(_identity(mean, square - mean.square()), network.get_submodule(name)))
    return network.eval()


def _identity(mean: Tensor, variance: Tensor) -> nn.BatchNorm2d:
    """A batch norm with these statistics that does not change what it reads."""
    norm = nn.BatchNorm2d(len(mean))
    state = {
        "running_mean": mean,
        "running_var": variance,
        "weight": (variance + norm.eps).sqrt(),
        "bias": mean,
    }
    norm.load_state_dict(state, strict=False)
    return norm


def fix_batch_norms(network: nn.Module, x: Tensor) -> nn.Module:
    """Give the batch norms of `network` the statistics of the images x, in place; the network is in eval mode then."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # running statistics are then the mean over all batches
    with torch.no_grad():
        for chunk in x.split(CHUNK):
            network.train()(chunk)
    return network.eval()


def run(setting: Setting, study: Study, step: Step) -> Record:
    """Train one network, and measure it. Of a loss that is not finite, the record has the epochs before it."""
    began, arm = time.process_time(), ARMS[setting.arm]
    network = arm.start(study, setting.seed)
    sets = [study.x, study.validation[0], study.test[0]]
    if arm.on_features:
        assert isinstance(network, nn.Sequential)
        body, network = fix_batch_norms(network[:-1], study.x[:STATISTICS]), network[-1]
        sets = [_outputs(body, x) for x in sets]
    x, validation, test = sets
    count = _choose(network, arm.layers)
    losses: list[float] = []

    def after_epoch(epoch: int, epochs: int, loss: float) -> None:
        losses.append(loss)
        step(epoch / epochs, f"loss {loss:.2f}")

    finite = True
    if setting.rate is not None:
        try:
            train(
                network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
                *(x, study.y),
                epochs=setting.epochs,
                lr=setting.rate,
                momentum=MOMENTUM,
                batch_size=BATCH,
                schedule="cosine",
                seed=setting.seed,
                progress=after_epoch,
            )
        except FloatingPointError:
            finite = False
            step(1.0, "the loss is not finite")
    return asdict(setting) | {
        "parameters": count,
        "losses": losses,
        "validation": accuracy(network, validation, study.validation[1]) if finite else None,
        "accuracy": accuracy(network, test, study.test[1]) if finite else None,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def best_rate(records: Sequence[Record]) -> float:
    """The learning rate of the highest validation accuracy among the records of one arm; of equal ones the least.

    A training that diverges comes last.
    """
    ranked = [(1.0 if r["validation"] is None else -r["validation"], r["rate"]) for r in records]
    return min(ranked)[1]


def _choose(network: nn.Module, layers: tuple[type[nn.Module], ...]) -> int:
    """Freeze all parameters but those of `layers`; returns the number of trained parameters."""
    network.requires_grad_(False)
    chosen = [part.requires_grad_(True) for part in network.modules() if isinstance(part, layers)]
    return sum(value.numel() for part in chosen for value in part.parameters())


def _outputs(body: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([body(chunk) for chunk in x.split(CHUNK)])
