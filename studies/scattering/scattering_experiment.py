# SPDX-License-Identifier: BSD-3-Clause
"""Learned scattering networks with three hidden layers on CIFAR-10: what is trained, and what is recorded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images
from rainbow_fast.networks import PRESETS, accuracy, scattering, train
from rainbow_fast.rainbow.report import Record

TRAINING: dict[str, Any] = {name: value for name, value in PRESETS["scattering-short"].items() if name != "epochs"}
FIRST = 2000  # test images on which the accuracy is measured after each epoch


@dataclass(frozen=True)
class Setting:
    """One network: everything that its record depends on.

    Attributes:
        width: factor of the numbers of channels, the last one too.
        skip: whether the network has skip-connections.
        seed: of the initial weights, of the order of the images, and of their augmentation.
        images: number of training images.
        epochs: passes over them.
    """

    width: float
    skip: bool
    seed: int
    images: int
    epochs: int


def settings(widths: Sequence[float], skips: Sequence[float], seeds: int, images: int, epochs: int) -> list[Setting]:
    """All networks: those of `widths` without and of `skips` with skip-connections, the first seed of each first."""
    kinds = [(width, False) for width in widths] + [(width, True) for width in skips]
    return [Setting(width, skip, seed, images, epochs) for seed in range(seeds) for width, skip in kinds]


def build(setting: Setting) -> nn.Sequential:
    """The network before training."""
    return scattering(3, setting.width, scale_last=True, skip=setting.skip, seed=setting.seed)


def run(setting: Setting, images: Images, step: Step) -> Record:
    """Train one network, and measure it after each epoch and at the end."""
    began = time.process_time()
    network = build(setting)
    losses: list[float] = []
    accuracies: list[float] = []

    def after_epoch(epoch: int, epochs: int, loss: float) -> None:
        losses.append(loss)
        accuracies.append(accuracy(network, images.x_test[:FIRST], images.y_test[:FIRST]))
        step(epoch / epochs, f"loss {loss:.2f}")

    x, y = images.x_train[: setting.images], images.y_train[: setting.images]
    train(network, x, y, epochs=setting.epochs, seed=setting.seed, progress=after_epoch, **TRAINING)
    return asdict(setting) | {
        "parameters": sum(value.numel() for value in network.parameters()),
        "losses": losses,
        "accuracies": accuracies,
        "accuracy": accuracy(network, images.x_test, images.y_test),
        "cpu_seconds": round(time.process_time() - began, 1),
    }
