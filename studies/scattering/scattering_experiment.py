# SPDX-License-Identifier: BSD-3-Clause
"""Learned scattering networks with three hidden layers on CIFAR-10: what is trained, and what is recorded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images
from rainbow_fast.io import read_records, write_records
from rainbow_fast.networks import PRESETS, accuracy, scattering, train
from rainbow_fast.rainbow.report import Record

TRAINING: dict[str, Any] = dict(PRESETS["scattering-short"])
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

    @property
    def cost(self) -> float:
        """In the units of a progress bar: about the CPU seconds."""
        return self.images * self.epochs / 50_000 * 80 * self.width * (4 if self.skip else 1)

    def __str__(self) -> str:
        return f"width {self.width:g}{', skip' if self.skip else ''}, seed {self.seed}"


def settings(
    widths: Sequence[float], skip_widths: Sequence[float], seeds: int, images: int, epochs: int, skip_epochs: int
) -> list[Setting]:
    """All networks; the first seed of every width first, so that an interrupted run has the whole figure."""
    kinds = [(width, False, epochs) for width in widths] + [(width, True, skip_epochs) for width in skip_widths]
    return [Setting(width, skip, seed, images, count) for seed in range(seeds) for width, skip, count in kinds]


def build(setting: Setting) -> nn.Sequential:
    """The network before training."""
    return scattering(3, setting.width, scale_last=True, skip=setting.skip, seed=setting.seed)


def run(setting: Setting, images: Images, step: Step, folder: Path) -> Record:
    """Train one network, and measure it after each epoch and at the end.

    The state of the training, and what was measured after each epoch, are kept in the two `files` of the setting, so
    that an interrupted training goes on.
    """
    state, curve = files(setting, folder)
    network, epochs = build(setting), read_records(curve)
    began = time.process_time()

    def after_epoch(epoch: int, total: int, loss: float) -> None:
        nonlocal began
        del epochs[epoch - 1 :]
        reached = accuracy(network, images.x_test[:FIRST], images.y_test[:FIRST])
        now = time.process_time()
        epochs.append({"loss": loss, "accuracy": reached, "cpu_seconds": now - began})
        began = now
        write_records(curve, epochs)
        step(epoch / total, f"loss {loss:.2f}")

    x, y = images.x_train[: setting.images], images.y_train[: setting.images]
    options = TRAINING | {"epochs": setting.epochs, "seed": setting.seed}
    train(network, x, y, **options, progress=after_epoch, checkpoint=state)
    return asdict(setting) | {
        "parameters": sum(value.numel() for value in network.parameters()),
        "losses": [epoch["loss"] for epoch in epochs],
        "accuracies": [epoch["accuracy"] for epoch in epochs],
        "accuracy": accuracy(network, images.x_test, images.y_test),
        "cpu_seconds": round(sum(epoch["cpu_seconds"] for epoch in epochs), 1),
    }


def files(setting: Setting, folder: Path) -> tuple[Path, Path]:
    """The files of an unfinished network: the state of its training, and what was measured after each epoch."""
    name = f"width-{setting.width:g}{'-skip' if setting.skip else ''}-seed-{setting.seed}"
    return folder / f"{name}.training", folder / f"{name}.jsonl"
