# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints of `rainbow-fast train`: weights and how to build their network, in one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from rainbow_fast.formats import Format
from rainbow_fast.networks import cnn, mlp, scattering

TUTORIAL: dict[str, Callable[..., nn.Sequential]] = {"mlp": mlp, "cnn": cnn}  # the networks of the published tutorial
BUILDERS = TUTORIAL | {"scattering": scattering}


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description of a network in a checkpoint.

    Attributes:
        architecture: the builder: `mlp`, `cnn` or `scattering`.
        arguments: the arguments of the builder.
        data: the images it was trained on, `digits` or `cifar10`.
        grey: whether the images were grey.
        training: the arguments of `rainbow_fast.networks.train`; beside them `images`, if only the first images were
            trained on, and `epoch` in a snapshot, the number of epochs before it.
        accuracy: accuracy on the test images, a fraction; 0 before it is trained.
    """

    architecture: Annotated[str, msgspec.Meta(pattern=r"^(mlp|cnn|scattering)\Z")]
    arguments: dict[str, Any]
    data: Annotated[str, msgspec.Meta(pattern=r"^(digits|cifar10)\Z")]
    grey: bool
    training: dict[str, int | float | str | bool | None]
    accuracy: float

    def build(self, seed: int = 0) -> nn.Sequential:
        """The network with initial weights from `seed`."""
        return BUILDERS[self.architecture](**self.arguments, seed=seed)

    def __str__(self) -> str:
        return f"{self.architecture} on {self.data}, test accuracy {100 * self.accuracy:.1f} %"


# Version 1 has no checksums.
CHECKPOINT = Format(
    "rainbow_fast.checkpoint", 2, "checkpoint of `rainbow-fast train`", About, summed_since=2, key="about"
)


def save_checkpoint(module: nn.Module, about: About, path: Path) -> None:
    """Write the weights and the description of a network to one safetensors file.

    Raises:
        FileNotFoundError, ValueError, OSError: as `io.whole`.
    """
    CHECKPOINT.write(path, about, module.state_dict(), "--out")


def load_checkpoint(path: Path) -> tuple[nn.Sequential, About]:
    """Read a file that `save_checkpoint` wrote. Nothing is unpickled.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is not a checkpoint of this package, or is damaged, or has a newer version; the message
            names the file.

    Warns:
        UserWarning: an older version wrote the file, without checksums.
    """
    about, tensors = CHECKPOINT.read(path, "checkpoint")
    try:
        module = _shaped(about, tensors)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"checkpoint: {path} is damaged: it describes no network ({error})") from error
    module.load_state_dict(tensors)
    return module, about


def _shaped(about: About, tensors: dict[str, Tensor]) -> nn.Sequential:
    """The described network, without values. Its sizes are those of the tensors of the file, and no others."""
    longest = max((len(v) for v in about.arguments.values() if isinstance(v, Sequence)), default=0)
    if longest > len(tensors) + 1:
        raise ValueError(f"{longest - 1} layers, but {len(tensors)} tensors")
    with torch.device("meta"):
        module = about.build()
    wanted: dict[str, Any] = {name: (t.shape, t.dtype) for name, t in module.state_dict().items()}
    there = {name: (t.shape, t.dtype) for name, t in tensors.items()}
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            raise ValueError(f"tensor {name!r} is {there.get(name)}, wanted {wanted.get(name)}")
    return module.to_empty(device="cpu")
