# SPDX-License-Identifier: BSD-3-Clause
"""Arguments that the commands of several studies share."""

from pathlib import Path
from typing import Annotated

import typer

CifarFolder = Annotated[
    Path | None,
    typer.Argument(
        help="Folder of CIFAR-10's binary version (default: none, and the page is made from the kept records)."
    ),
]
ResNetWeights = Annotated[
    Path | None,
    typer.Argument(help="Weights of a trained `resnet_cifar`, a file .safetensors, .pt or .pth. Wanted with the data."),
]


def check_both(data: Path | None, weights: Path | None) -> None:
    """Raise ValueError if one of the two arguments is missing."""
    if (data is None) != (weights is None):
        raise ValueError("weights: wanted with data, or neither")
