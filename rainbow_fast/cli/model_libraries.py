# SPDX-License-Identifier: BSD-3-Clause
"""The networks of timm and torchvision by their names, where these libraries are installed. Nothing is downloaded."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import nn

from rainbow_fast.data.image_file import INTERPOLATIONS, Framing

# PyTorch without CUDA lacks these operators of the published torchvision, which cannot be imported then.
OPERATORS = ("nms", "qnms")
NEAR = 3  # most names that a message suggests


@dataclass(frozen=True)
class Preprocessing:
    """How a library reads images for one of its networks.

    Attributes:
        title: the network, and what the library says of its images; for messages.
        mean: mean of each colour, for pixels between 0 and 1; None if the library says none.
        std: standard deviation of each colour; None if the library says none.
        framing: how images become squares; None if the library has a way that `Framing` has not.
    """

    title: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    framing: Framing | None


@dataclass(frozen=True)
class Timm:
    """A network of timm by its name, with or without a tag, which chooses its preprocessing."""

    name: str
    option: ClassVar[str] = "--timm"

    @property
    def title(self) -> str:
        return f"timm:{self.name}"

    def factory(self) -> Callable[..., nn.Module]:
        """The function of keyword arguments that makes the network with random weights.

        Raises:
            ImportError: timm is not installed or cannot be imported.
            ValueError: it has no network of this name; the message names the nearest ones.
        """
        timm = _library(self.option, "timm")
        if not timm.is_model(self.name):  # names with "hf_hub:" too, whose networks would be downloaded
            raise _unknown(self.option, self.name, timm.list_models())

        def make(**arguments: Any) -> nn.Module:
            return timm.create_model(self.name, pretrained=False, checkpoint_path=None, **arguments)

        return make

    def preprocessing(self, network: nn.Module) -> Preprocessing:
        """What `timm.data.create_transform` does with the configuration of a network, without augmentation."""
        config = import_module("timm.data").resolve_model_data_config(network)
        (channels, height, width), mode = config["input_size"], config["crop_mode"]
        share, interpolation = config["crop_pct"], config["interpolation"]
        title = f"{self.title} ({channels} x {height} x {width}, {interpolation}, crop mode {mode})"
        framing = None
        if height == width and mode in ("center", "squash") and interpolation in INTERPOLATIONS:
            side = math.floor(height / share)
            framing = Framing(height, side if mode == "center" else (side, side), interpolation)
        return Preprocessing(title, _colours(config["mean"]), _colours(config["std"]), framing)


@dataclass(frozen=True)
class Torchvision:
    """A network of torchvision by its name."""

    name: str
    option: ClassVar[str] = "--torchvision"

    @property
    def title(self) -> str:
        return f"torchvision:{self.name}"

    def factory(self) -> Callable[..., nn.Module]:
        """The function of keyword arguments that makes the network with random weights, those of its backbone too.

        Raises:
            ImportError: torchvision is not installed or cannot be imported.
            ValueError: it has no network of this name; the message names the nearest ones.
        """
        models = _library(self.option, "torchvision").models
        if self.name not in models.list_models():
            raise _unknown(self.option, self.name, models.list_models())
        builder = models.get_model_builder(self.name)
        backbone = {"weights_backbone": None}  # backbones have weights by default
        none = backbone if "weights_backbone" in inspect.signature(builder).parameters else {}

        def make(**arguments: Any) -> nn.Module:
            return builder(weights=None, **none, **arguments)

        return make

    def preprocessing(self, network: nn.Module) -> Preprocessing:
        """The transforms of the best published weights of a network. The weights themselves are not loaded."""
        transforms = import_module("torchvision").models.get_model_weights(self.name).DEFAULT.transforms()
        size: list[int] = getattr(transforms, "crop_size", [])
        resize: list[int] = getattr(transforms, "resize_size", [])
        interpolation = getattr(getattr(transforms, "interpolation", None), "value", None)
        framing = None
        if len(size) == len(resize) == 1 and interpolation in INTERPOLATIONS:  # not those of films and segmentation
            framing = Framing(size[0], resize[0], interpolation)
        mean, std = (_colours(getattr(transforms, name, None)) for name in ("mean", "std"))
        return Preprocessing(f"{self.title} ({type(transforms).__name__})", mean, std, framing)


def import_torchvision() -> Any:
    """The module torchvision.

    Its published wheel is built for PyTorch with CUDA. Beside the build for CPUs it can be imported once two operators
    are declared, which it expects from its own compiled part. They cannot be called.

    Raises:
        ImportError, RuntimeError: it is not installed, or cannot be imported.
    """
    try:
        return import_module("torchvision")
    except RuntimeError:
        _declared()
        return import_module("torchvision")


@functools.cache  # operators exist as long as this object
def _declared() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _library(option: str, name: str) -> Any:
    """The module of a library that an option needs."""
    if find_spec(name) is None:
        raise ImportError(f"{option}: needs {name}, which is not installed: pip install {name}")
    try:
        if find_spec("torchvision") is not None:  # timm imports it, too
            import_torchvision()
        return import_module(name)
    except Exception as error:  # versions of libraries that do not fit together raise anything
        first = str(error).strip().partition("\n")[0]
        raise ImportError(f"{option}: {name} cannot be imported ({type(error).__name__}: {first})") from error


def _unknown(option: str, name: str, names: Iterable[str]) -> ValueError:
    """The error for a name that a library does not have."""
    near, library = difflib.get_close_matches(name, names, NEAR, 0.5), option.removeprefix("--")
    wanted = f"did you mean {' or '.join(near)}?" if near else f"wanted one of {library}'s list_models()"
    return ValueError(f"{option}: {library} has no network {name!r}, {wanted}")


def _colours(numbers: Iterable[float] | None) -> tuple[float, ...] | None:
    """One number for each of three colours; None for others."""
    each = () if numbers is None else tuple(float(number) for number in numbers)
    return each if len(each) == 3 else None
