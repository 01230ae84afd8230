# SPDX-License-Identifier: BSD-3-Clause
"""Trains a reference network on digits or CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from rainbow_fast.cli.checkpoints import BUILDERS, TUTORIAL, About, save_checkpoint
from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images, cifar10, digits
from rainbow_fast.networks import PRESETS, accuracy, train

STATE = ".training"  # suffix of the file with the state of an unfinished training


def new_reference(
    architecture: str,
    data: str,
    *,
    grey: bool = True,
    widths: Sequence[int] | None = None,
    scattering: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> About:
    """A network for the images: for CIFAR-10 as in the published tutorial, for digits a smaller one.

    Args:
        architecture: `mlp`, `cnn` or `scattering`.
        data: `digits` or `cifar10`.
        grey: whether the images of CIFAR-10 are grey.
        widths: of the hidden layers of an mlp or a cnn; None (default) for those of the tutorial.
        scattering: arguments of `networks.scattering`; None (default) for its defaults.
        seed: of the training.

    Raises:
        ValueError: the architecture is not one of these, digits are too small for it, or an argument is not valid.
    """
    if architecture not in BUILDERS:
        raise ValueError(f"architecture: wanted mlp, cnn or scattering, got {architecture!r}")
    on_digits = data == "digits"
    channels, side = (1, 8) if on_digits else (1 if grey else 3, 32)
    arguments: dict[str, Any]
    if architecture == "mlp":
        hidden = widths or ((64, 32) if on_digits else (512, 256))
        arguments = {"sizes": [channels * side * side, *hidden, 10]}
    elif architecture == "cnn":
        hidden = widths or ((16, 32) if on_digits else (32, 64))
        kernel = {"kernel_size": 3, "stride": 1} if on_digits else {"kernel_size": 5, "stride": 2}
        arguments = {"channels": [channels, *hidden], "image_size": side, **kernel}
    else:
        if on_digits:
            raise ValueError("--data: digits are too small for scattering; wanted the folder of CIFAR-10")
        arguments = dict(scattering or {}) | {"image_channels": channels, "image_size": side}
    about = About(architecture, arguments, data, grey or on_digits, {"seed": seed}, 0.0)
    about.build()  # raises an error if the widths are not valid
    return about


def default_preset(about: About) -> str:
    """The name in `PRESETS` by which a network is trained if none is chosen."""
    if about.architecture in TUTORIAL:
        return "digits" if about.data == "digits" else "tutorial"
    return "scattering" if about.arguments.get("norm", True) else "scattering-no-norm"


def load_images(about: About, data: str | None, *, images: int | None = None, test_images: int | None = None) -> Images:
    """The images that a network is trained on: digits, or CIFAR-10 from the folder `data`.

    Of CIFAR-10, only the first `images` and `test_images` are read, if they are given.
    """
    if about.data == "digits":
        if data not in (None, "digits"):
            raise ValueError(f"--data: the checkpoint was trained on digits, got {data!r}")
        return digits()
    if data is None or data == "digits":
        raise ValueError("--data: the checkpoint was trained on CIFAR-10, wanted the folder with its binary version")
    return cifar10(data, grey=about.grey, images=images, test_images=test_images)


def train_reference(
    about: About,
    images: Images,
    settings: Mapping[str, Any],
    step: Step,
    *,
    state: Path | None = None,
    after_epoch: Callable[[nn.Sequential, int], None] | None = None,
) -> tuple[nn.Sequential, About]:
    """Train a network with arguments `settings` of `train`; returns the network and its description with accuracy.

    Args:
        about: the description of the network.
        images: the images.
        settings: arguments that replace those of the preset.
        step: is told of each epoch.
        state: the checkpoint of `train`.
        after_epoch: is called with the network and the number of epochs that are done, from 0 on; not again for those
            before an interruption.
    """
    settings = dict(PRESETS[default_preset(about)]) | dict(settings)
    module = about.build(settings["seed"])
    if after_epoch is not None and (state is None or not state.exists()):
        after_epoch(module, 0)

    def tell(epoch: int, epochs: int, loss: float) -> None:
        step(epoch / epochs, f"epoch {epoch} of {epochs}, loss {loss:.3f}")
        if after_epoch is not None:
            after_epoch(module, epoch)

    train(module, images.x_train, images.y_train, **settings, progress=tell, checkpoint=state)
    return module, measured(module, about, images, settings)


def measured(module: nn.Sequential, about: About, images: Images, training: Mapping[str, Any]) -> About:
    """The description of a network with its training, and with its accuracy on the test images."""
    reached = accuracy(module, images.x_test, images.y_test)
    return msgspec.structs.replace(about, training=dict(training), accuracy=reached)


def train_into(
    path: Path,
    about: About,
    images: Images,
    settings: Mapping[str, Any],
    step: Step,
    snapshots: Sequence[int] = (),
    facts: Mapping[str, Any] | None = None,
) -> About:
    """Train a network and write it to a checkpoint; go on if a training into this file was interrupted.

    The state of an unfinished training is in a file beside it, with the suffix `STATE`.

    Args:
        path: the file of the checkpoint.
        about, images, settings, step: as in `train_reference`.
        snapshots: numbers of epochs after which the network is written to a checkpoint of its own, too.
        facts: what else the description of the training has.

    Raises:
        ValueError: the unfinished training is another one, or its file is damaged.
        FloatingPointError: the loss of an epoch is not finite. The state is deleted then.
    """
    state, facts = path.with_name(path.name + STATE), facts or {}

    def after_epoch(module: nn.Sequential, epoch: int) -> None:
        if epoch in snapshots:
            now = measured(module, about, images, {**settings, **facts, "epoch": epoch})
            save_checkpoint(module, now, snapshot_path(path, epoch))

    try:
        module, trained = train_reference(about, images, settings, step, state=state, after_epoch=after_epoch)
    except ValueError as error:
        if str(error).startswith(f"checkpoint: {state}"):
            raise ValueError(
                f"--out: an interrupted training is there, which cannot go on ({error}); delete it"
            ) from error
        raise
    except FloatingPointError:
        state.unlink(missing_ok=True)
        raise
    trained = msgspec.structs.replace(trained, training={**trained.training, **facts})
    save_checkpoint(module, trained, path)
    state.unlink(missing_ok=True)
    return trained


def snapshot_path(path: Path, epoch: int) -> Path:
    """The file of a snapshot, beside that of the trained network."""
    return path.with_name(f"{path.stem}-epoch-{epoch}{path.suffix}")
