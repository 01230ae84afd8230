# SPDX-License-Identifier: BSD-3-Clause
"""Makes public architectures with random weights, and traces them."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.rainbow.report import Record
from studies.breadth import hugging_face

ARCHITECTURES = Path(__file__).parent / "architectures.tsv"
SEGMENTATION = ("deeplabv3", "fcn", "lraspp")  # torchvision loads the weights of their backbones by default
# PyTorch without CUDA lacks these operators of the published torchvision, which cannot be imported then.
OPERATORS = ("nms", "qnms")


class Architecture(NamedTuple):
    """A public architecture: its library, its name there, and the shape of a batch."""

    library: str
    name: str
    shape: tuple[int, ...]


def architectures(library: str | None = None) -> list[Architecture]:
    """The architectures of the study, of all libraries or of one."""
    rows = [line.split("\t") for line in ARCHITECTURES.read_text().splitlines()]
    listed = [Architecture(of, name, tuple(map(int, shape.split("x")))) for of, name, shape in rows]
    return [each for each in listed if library in (None, each.library)]


def build(architecture: Architecture) -> nn.Module:
    """The network with random weights from seed 0, in eval mode."""
    torch.manual_seed(0)
    name, size = architecture.name, architecture.shape[-1]
    torchvision = _torchvision()  # the others import it, too
    if architecture.library == "timm":
        network: nn.Module = import_module("timm").create_model(name, pretrained=False)
        return network.eval()
    if architecture.library == "transformers":
        return hugging_face.build(name).eval()
    models = torchvision.models
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    if name.startswith(SEGMENTATION):
        options["weights_backbone"] = None
    network = models.get_model(name, weights=None, **options)
    return network.eval()


def record(architecture: Architecture) -> Record:
    """What `rf.sites` says of one architecture: counts, and for each reason how many non-linearities have it.

    An architecture that is refused has the key "error" instead.
    """
    about = {
        "library": architecture.library,
        "name": architecture.name,
        "shape": "x".join(map(str, architecture.shape)),
    }
    try:
        sites = rf.sites(build(architecture), samples(architecture))
    except Exception as error:  # libraries and networks may raise anything
        return about | {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    reasons = Counter(_without_shape(site.kept) for site in sites if site.kept is not None)
    return about | {"route": sites.route, "sites": len(sites), "kept": dict(sorted(reasons.items()))}


def samples(architecture: Architecture) -> Tensor:
    """A batch of Gaussian numbers, or of token ids for networks of text."""
    source = torch.Generator().manual_seed(0)
    if architecture.library == "transformers" and len(architecture.shape) == 2 and architecture.name != "wav2vec2":
        return torch.randint(0, hugging_face.TEXT["vocab_size"], architecture.shape, generator=source)
    return torch.randn(architecture.shape, generator=source)


def _without_shape(reason: str) -> str:
    """A reason without the shape in it, so that reasons can be counted."""
    before, shape, after = reason.partition(", of shape ")
    return before + after.partition(")")[2].removeprefix(",") if shape else reason


def _torchvision() -> Any:
    try:
        return import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _defined.append(library)
        return import_module("torchvision")


_defined: list[torch.library.Library] = []  # operators exist as long as their library does
