# SPDX-License-Identifier: BSD-3-Clause
"""Trains a reference network on digits or CIFAR-10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from torch import nn

from rainbow_fast.cli.checkpoints import BUILDERS, About
from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images, cifar10, digits
from rainbow_fast.networks import accuracy, train

DIGITS_TRAINING = {"epochs": 20, "batch_size": 32}
CIFAR10_TRAINING = {"epochs": 5, "batch_size": 128}


def new_reference(
    architecture: str, data: str, *, grey: bool = True, widths: Sequence[int] | None = None, seed: int = 0
) -> About:
    """A network for the images: for CIFAR-10 as in the published tutorial, for digits a smaller one.

    Raises:
        ValueError: the architecture is not mlp or cnn.
    """
    if architecture not in BUILDERS:
        raise ValueError(f"architecture: wanted mlp or cnn, got {architecture!r}")
    on_digits = data == "digits"
    channels, side = (1, 8) if on_digits else (1 if grey else 3, 32)
    if architecture == "mlp":
        hidden = widths or ((64, 32) if on_digits else (512, 256))
        arguments: dict[str, Any] = {"sizes": [channels * side * side, *hidden, 10]}
    else:
        hidden = widths or ((16, 32) if on_digits else (32, 64))
        kernel = {"kernel_size": 3, "stride": 1} if on_digits else {"kernel_size": 5, "stride": 2}
        arguments = {"channels": [channels, *hidden], "image_size": side, **kernel}
    about = About(architecture, arguments, data, grey or on_digits, {"seed": seed}, 0.0)
    about.build()  # raises an error if the widths are not valid
    return about


def load_images(about: About, data: str | None) -> Images:
    """The images that a network is trained on: digits, or CIFAR-10 from the folder `data`."""
    if about.data == "digits":
        if data not in (None, "digits"):
            raise ValueError(f"--data: the checkpoint was trained on digits, got {data!r}")
        return digits()
    if data is None or data == "digits":
        raise ValueError("--data: the checkpoint was trained on CIFAR-10, wanted the folder with its binary version")
    return cifar10(data, grey=about.grey)


def train_reference(
    about: About, images: Images, settings: Mapping[str, Any], step: Step
) -> tuple[nn.Sequential, About]:
    """Train a network with arguments `settings` of `train`; returns the network and its description with accuracy."""
    settings = (DIGITS_TRAINING if about.data == "digits" else CIFAR10_TRAINING) | dict(settings)
    module = about.build(settings["seed"])

    def tell(epoch: int, epochs: int, loss: float) -> None:
        step(epoch / epochs, f"epoch {epoch} of {epochs}, loss {loss:.3f}")

    train(module, images.x_train, images.y_train, **settings, progress=tell)
    reached = accuracy(module, images.x_test, images.y_test)
    return module, msgspec.structs.replace(about, training=dict(settings), accuracy=reached)
