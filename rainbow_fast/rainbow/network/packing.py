# SPDX-License-Identifier: BSD-3-Clause
"""Conversion of a sampled site to the options and tensors that files contain, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.tensor_files import Header
from rainbow_fast.tracing.site import Site

REQUIRED = ("key", "A")
_BUFFERS = (*REQUIRED, "scale", "U", "T", "k", "matrix", "gain", "bias", "offset")
_OPTIONS = ("n", "d", "mean_row", "h", "flattened")


def pack(activation: RainbowActivation) -> tuple[Header, dict[str, Tensor]]:
    """The options and the buffers that a sampled site has in addition to the reference's site."""
    buffers = {b: copied(value) for b in _BUFFERS if (value := getattr(activation, b)) is not None}
    return {option: getattr(activation, option) for option in _OPTIONS}, buffers


def unpack(
    site: Site, options: Header, tensors: Mapping[str, Tensor], prefix: str, device: torch.device
) -> RainbowActivation:
    """The sampled site from the result of `pack`.

    Args:
        site: the reference's site.
        options: from `pack`.
        tensors: the buffers, each named `prefix` + its name; other tensors are ignored.
        device: of the site.

    Raises:
        KeyError: an option or a buffer is missing.
    """
    mine = {b: tensors[prefix + b] for b in _BUFFERS if b in REQUIRED or prefix + b in tensors}
    mine = {b: t if b == "key" else t.to(device) for b, t in mine.items()}
    row_options = {option: options[option] for option in _OPTIONS if option != "flattened"}
    drawn: dict[str, Any] = {name: mine.get(name) for name in ("key", "U", "T", "k", "matrix")}
    rows = Rows(**drawn, **row_options)
    recalibration = (mine["gain"], mine["bias"]) if "gain" in mine else None
    activation = RainbowActivation(
        site, rows, flattened=options["flattened"], recalibration=recalibration, device=device
    )
    activation.A, activation.offset = mine["A"], mine.get("offset")
    activation.scale = mine.get("scale", activation.scale)  # in files of version 1 it is part of A
    return activation


def copied(t: Tensor) -> Tensor:
    """A contiguous copy on the CPU. safetensors does not accept tensors that share memory."""
    return t.detach().cpu().clone(memory_format=torch.contiguous_format)
