# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints of `rainbow-fast train`: the weights of a trained network, and a description of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from rainbow_fast.io import write_whole
from rainbow_fast.networks import cnn, load_weights, mlp

FORMAT, VERSION = "rainbow_fast.checkpoint", 1
BUILDERS: dict[str, Callable[..., nn.Sequential]] = {"mlp": mlp, "cnn": cnn}


@dataclass(frozen=True)
class About:
    """The description of a network in a checkpoint.

    Attributes:
        architecture: the builder, `mlp` or `cnn`.
        arguments: the arguments of the builder.
        data: the images it was trained on, `digits` or `cifar10`.
        grey: whether the images were grey.
        training: the arguments of `rainbow_fast.networks.train`.
        accuracy: accuracy on the test images, a fraction.
    """

    architecture: str
    arguments: dict[str, Any]
    data: str
    grey: bool
    training: dict[str, Any]
    accuracy: float

    def build(self, seed: int = 0) -> nn.Sequential:
        """The network with initial weights from `seed`."""
        return BUILDERS[self.architecture](**self.arguments, seed=seed)

    def __str__(self) -> str:
        return f"{self.architecture} on {self.data}, test accuracy {100 * self.accuracy:.1f} %"


def save_checkpoint(module: nn.Module, about: About, path: Path) -> None:
    """Write the weights and the description of a network to one safetensors file."""
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    write_whole(path, to_bytes(state, {"format": FORMAT, "version": str(VERSION), "about": json.dumps(asdict(about))}))


def load_checkpoint(path: Path) -> tuple[nn.Sequential, About]:
    """Read a file that `save_checkpoint` wrote. Nothing is unpickled.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is not a checkpoint of this package, or has a newer version; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of `rainbow-fast train`: its format is {header.get('format')!r}")
    if int(header["version"]) > VERSION:
        raise ValueError(f"{path} has version {header['version']}, this package reads versions up to {VERSION}")
    about = About(**json.loads(header["about"]))
    module = about.build()
    load_weights(module, path)
    return module, about
