# SPDX-License-Identifier: BSD-3-Clause
"""Arguments that the commands of several studies share."""

from itertools import pairwise
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


def increasing(option: str, text: str, least: int) -> list[int]:
    """The numbers of a text such as "10,50,100".

    Raises:
        ValueError: they are not whole numbers of at least `least` that increase; the message names the option.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < least or any(b <= a for a, b in pairwise(numbers)):
        wanted = f"wanted increasing whole numbers above {least - 1}, separated by commas"
        raise ValueError(f"{option}: {wanted}; got {text!r}")
    return numbers
