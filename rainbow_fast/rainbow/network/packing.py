# SPDX-License-Identifier: BSD-3-Clause
"""A sampled site as options and tensors, as files hold it, and back."""

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
    """What a sampled site has beyond the reference's, as options and buffers."""
    buffers = {b: copied(value) for b in _BUFFERS if (value := getattr(activation, b)) is not None}
    return {option: getattr(activation, option) for option in _OPTIONS}, buffers


def unpack(
    site: Site, options: Header, tensors: Mapping[str, Tensor], prefix: str, device: torch.device
) -> RainbowActivation:
    """The sampled site that `pack` took apart, the names of its buffers having a prefix.

    Raises:
        KeyError: one that is missing.
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
    activation.scale = mine.get("scale", activation.scale)  # version 1 has it in A
    return activation


def copied(t: Tensor) -> Tensor:
    """In memory of its own, for safetensors refuses what is shared."""
    return t.detach().cpu().clone(memory_format=torch.contiguous_format)
