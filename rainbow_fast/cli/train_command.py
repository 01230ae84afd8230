# SPDX-License-Identifier: BSD-3-Clause
"""The command `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rainbow_fast.arguments import integer, one_of
from rainbow_fast.cli import terminal
from rainbow_fast.cli.checkpoints import TUTORIAL
from rainbow_fast.cli.readers import numbers
from rainbow_fast.cli.sampling import check_folder
from rainbow_fast.cli.training import STATE, default_preset, load_images, new_reference, snapshot_path, train_into
from rainbow_fast.cli.words import Seed, Threads, flowing, set_threads
from rainbow_fast.networks import PRESETS

HIDDEN = (
    "Numbers of neurons of the hidden layers of an mlp or a cnn, separated by commas (default: 64,32 of an mlp and "
    "16,32 of a cnn for digits, 512,256 and 32,64 for CIFAR-10)."
)
PRESET = (
    "Which training the options below have their values of, unless they are given: tutorial (5 epochs), digits (20), "
    "scattering (150, as published), scattering-no-norm (the same without weight decay) or scattering-short (14 epochs "
    "at a rate of 0.05, which falls as a cosine). By default it is the one that is published for the network."
)
NETWORK, TRAINING = "Scattering network", "Training"


def _scattering(help: str, *names: str, **how: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=NETWORK, **how)


def _training(help: str, *names: str, **how: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=TRAINING, **how)


@flowing
def train(
    architecture: Annotated[str, typer.Argument(help="Architecture of the network: mlp, cnn or scattering.")],
    data: Annotated[
        str, typer.Option(help="Images to train on: digits, or the folder of CIFAR-10's binary version.")
    ] = "digits",
    widths: Annotated[str | None, typer.Option(help=HIDDEN)] = None,
    colour: Annotated[
        bool,
        typer.Option(
            "--colour", metavar="", help="Train on CIFAR-10 in colour, not in grey levels. Scattering always does."
        ),
    ] = False,
    images: Annotated[
        int | None, typer.Option(help="Number of training images of CIFAR-10, the first ones (default: all).")
    ] = None,
    layers: Annotated[int | None, _scattering("Number of hidden layers: 3 or 7 (default: 3).")] = None,
    width: Annotated[float | None, _scattering("Factor of the numbers of channels (default: 1).")] = None,
    scale_last: Annotated[
        bool, _scattering("Let --width change the last number of channels of 3 layers, too.", "--scale-last")
    ] = False,
    skip: Annotated[bool, _scattering("Keep the wavelets without modulus, too.", "--skip")] = False,
    no_norm: Annotated[
        bool, _scattering("Do not divide by the norm over channels after each layer.", "--no-norm")
    ] = False,
    complex_weights: Annotated[bool, _scattering("Train complex weights.", "--complex-weights")] = False,
    preset: Annotated[str | None, _training(PRESET)] = None,
    epochs: Annotated[int | None, _training("Number of passes over the training images.")] = None,
    lr: Annotated[float | None, _training("Learning rate of the first step of stochastic gradient descent.")] = None,
    momentum: Annotated[float | None, _training("Momentum of stochastic gradient descent.")] = None,
    weight_decay: Annotated[float | None, _training("Weight decay of all parameters.")] = None,
    batch_size: Annotated[int | None, _training("Number of images in a step.")] = None,
    schedule: Annotated[
        str | None, _training("Learning rate of later steps: constant, steps (a tenth after each third) or cosine.")
    ] = None,
    crop: Annotated[
        int | None, _training("Pixels of zeros that each image is padded with, to be cropped at random.")
    ] = None,
    flip: Annotated[bool | None, _training("Mirror each image with probability 1/2.", "--flip/--no-flip")] = None,
    snapshots: Annotated[
        str | None,
        _training(
            "Numbers of epochs after which the network is written to a checkpoint of its own, too, separated by "
            "commas; 0 is before the training. These files have names such as NAME-epoch-5.safetensors."
        ),
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File of the checkpoint (default: ARCHITECTURE-DATA-SEED.safetensors in this folder)."),
    ] = None,
) -> None:
    """Train a network on images and write it to a checkpoint, which the other commands read.

    Call it again after an interruption: it goes on after the last epoch that was done, with the same result. Until it
    is done, a file with the suffix .training stands beside the checkpoint.
    """
    set_threads({"threads": threads})
    digits = data == "digits"
    shape = {
        "J": layers, "width": width, "scale_last": scale_last or None, "skip": skip or None,
        "norm": False if no_norm else None, "complex": complex_weights or None,
    }  # fmt: skip
    hidden = None if widths is None else tuple(int(each) for each in numbers("--widths", widths, once=False))
    _check_words(architecture, widths, shape)
    about = new_reference(
        architecture,
        "digits" if digits else "cifar10",
        grey=not colour and architecture in TUTORIAL,
        widths=hidden,
        scattering={"J": 3} | {name: value for name, value in shape.items() if value is not None},
        seed=seed,
    )
    chosen = {
        "epochs": epochs, "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "batch_size": batch_size,
        "schedule": schedule, "crop": crop, "flip": flip,
    }  # fmt: skip
    settings = dict(PRESETS[one_of("--preset", preset or default_preset(about), PRESETS)])
    settings |= {name: value for name, value in chosen.items() if value is not None} | {"seed": seed}
    at = _epochs(snapshots, settings["epochs"])
    path = Path(f"{architecture}-{about.data}-{seed}.safetensors") if out is None else out
    for each in (path, path.with_name(path.name + STATE), *(snapshot_path(path, epoch) for epoch in at)):
        _check_file(each)
    if images is not None:
        if digits:
            raise ValueError("--images: wanted with the folder of CIFAR-10 only")
        integer("--images", images, 1)
    data_set = load_images(about, data, images=images)
    facts = {} if images is None else {"images": images}
    with terminal.bar(1) as bar, bar.job(1, f"train {architecture}") as step:
        about = train_into(path, about, data_set, settings, step, at, facts)
    terminal.out().print(f"{path}: {about}", markup=False, soft_wrap=True)


def _check_words(architecture: str, widths: str | None, shape: dict[str, Any]) -> None:
    """Raise an error if an option belongs to another architecture."""
    options = {"J": "--layers", "norm": "--no-norm", "complex": "--complex-weights", "scale_last": "--scale-last"}
    if architecture == "scattering":
        if widths is not None:
            raise ValueError("--widths: wanted with mlp or cnn only; scattering has --width")
        return
    for name, value in shape.items():
        if value is not None:
            raise ValueError(f"{options.get(name, f'--{name}')}: wanted with scattering only, got {architecture}")


def _epochs(text: str | None, last: int) -> list[int]:
    """The numbers of --snapshots."""
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    epochs = [int(part) for part in parts if part.isascii() and part.isdecimal()]
    if len(epochs) < len(parts) or len(set(epochs)) < len(epochs) or max(epochs) > last:
        raise ValueError(f"--snapshots: wanted numbers from 0 to {last}, each once, separated by commas; got {text!r}")
    return epochs


def _check_file(path: Path) -> None:
    """Raise an error if no file can be written at `path`, before any work is done."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out: no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"--out: {path} is a folder, wanted a file")
    check_folder(path.parent)
