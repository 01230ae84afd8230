# SPDX-License-Identifier: BSD-3-Clause
"""Conversion of a sampled site to the options and tensors that files contain, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor

from rainbow_fast.rainbow.laws.law import INFINITE
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.limit_activation import LimitActivation
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.tracing.site import Site

REQUIRED = ("key", "A")
_BUFFERS = (*REQUIRED, "scale", "U", "T", "k", "matrix", "gain", "bias", "offset", "rows", "shifts", "pooling")
_INTEGERS = ("key", "k")  # int64; all other buffers are floating point

Positive = Annotated[int, msgspec.Meta(ge=1)]


class Packed(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The options of a sampled site in the header of a file, see `RainbowActivation` and `Rows`.

    n is None for a `LimitActivation`.
    """

    n: Positive | None
    d: Positive
    mean_row: bool
    h: Annotated[float, msgspec.Meta(ge=0, le=1)]
    flattened: bool
    precision: Literal["highest", "high", "medium"] = "highest"


def pack(activation: RainbowActivation) -> tuple[Packed, dict[str, Tensor]]:
    """The options and the buffers that a sampled site has in addition to the reference's site."""
    buffers = {b: copied(value) for b in _BUFFERS if (value := getattr(activation, b, None)) is not None}
    options = {name: getattr(activation, name) for name in Packed.__struct_fields__}
    return Packed(**options | {"n": None if activation.n == INFINITE else activation.n}), buffers


def unpack(
    site: Site, options: Packed, tensors: Mapping[str, Tensor], prefix: str, device: torch.device
) -> RainbowActivation:
    """The sampled site from the result of `pack`.

    Args:
        site: the reference's site.
        options: from `pack`.
        tensors: the buffers, each named `prefix` + its name; other tensors are ignored.
        device: of the site.

    Raises:
        KeyError: a buffer is missing.
        ValueError: a buffer does not fit the options.
    """
    mine = {b: tensors[prefix + b] for b in _BUFFERS if b in REQUIRED or prefix + b in tensors}
    _check_buffers(options, mine, 1 + site.complex_weights)
    mine = {b: t if b == "key" else t.to(device) for b, t in mine.items()}
    drawn: dict[str, Any] = {name: mine.get(name) for name in ("key", "U", "T", "k", "matrix")}
    n = INFINITE if options.n is None else options.n
    rows = Rows(n, options.d, h=options.h, mean_row=options.mean_row, **drawn)
    recalibration = (mine["gain"], mine["bias"]) if "gain" in mine else None
    how: dict[str, Any] = {"recalibration": recalibration, "precision": options.precision, "device": device}
    if options.n is None:
        limit = LimitActivation(site, rows, pooling=mine.get("pooling"), **how)
        limit.rows, limit.shifts = mine["rows"], mine.get("shifts")
        activation: RainbowActivation = limit
    else:
        activation = RainbowActivation(site, rows, flattened=options.flattened, **how)
    activation.A, activation.offset = mine["A"], mine.get("offset")
    activation.scale = mine.get("scale", activation.scale)  # in files of version 1 it is part of A
    return activation


@torch.no_grad()
def check_fits(activation: RainbowActivation, s: SiteStatistics, *, outputs: int | None = None) -> None:
    """Check that a sampled site from a file fits a site of the reference.

    Args:
        activation: the sampled site.
        s: the site, with the shapes of z and phi.
        outputs: number of classes, if A is a new classifier.

    Raises:
        ValueError: z has another number of channels, or A other sizes.
    """
    if activation.d != s.columns:
        raise ValueError(f"site {s.site.name!r} has d = {activation.d}, the reference {s.columns}")
    assert activation.A is not None
    parts = 1 + s.site.complex_weights
    own = math.prod(s.phi_shape) if activation.flattened else parts * s.channels
    features = activation.kind.features
    if activation.flattened and not isinstance(activation, LimitActivation):
        z = activation.scale.new_zeros(1, *s.z_shape, dtype=activation.A.dtype)
        features = activation.strategy.rows(activation, z, lambda t: t, 0, 1).numel()
    columns = activation.n * features
    if isinstance(activation, LimitActivation):
        positions = activation.positions_of_a_sample
        columns = len(activation.rows) // positions
        wanted_positions = math.prod(s.z_shape) // s.d
        if activation.flattened and positions != wanted_positions:
            raise ValueError(f"site {s.site.name!r} has pooling of {positions} positions, wanted {wanted_positions}")
    wanted: tuple[int, ...] = own if outputs is None else outputs, columns
    if activation.A.dim() == 3:
        wanted = features, parts * s.width, activation.n
    if tuple(activation.A.shape) != wanted:
        raise ValueError(f"site {s.site.name!r} has A of shape {tuple(activation.A.shape)}, wanted {wanted}")


def _check_buffers(options: Packed, buffers: Mapping[str, Tensor], parts: int) -> None:
    """Check shapes and dtypes; `parts` is 2 with complex weights, whose real and imaginary parts are rows of A."""
    n, d, A, U = options.n, options.d, buffers["A"], buffers.get("U")
    r = d if U is None else U.shape[-1:].numel()
    shapes = {"key": (4,), "scale": (), "U": (d, r), "T": (n, n), "k": (n,), "matrix": (n, r), "gain": (d // parts,)}
    pair = (2,) * ("offset" in buffers and buffers["offset"].dim() == 2)  # of complex maps
    shapes |= {"bias": (d // parts,), "offset": (A.shape[:-1].numel() // parts, *pair)}
    shapes["A"] = tuple(A.shape[: 2 + (A.dim() == 3)])
    positions = len(buffers["pooling"]) if "pooling" in buffers and buffers["pooling"].dim() else 1
    samples = positions * A.shape[-1]
    if n is None and "matrix" in buffers:
        shapes["matrix"] = (*buffers["matrix"].shape[:1], r)  # any number of centers
        if buffers["matrix"].numel() == 0:
            raise ValueError("matrix has no centers, wanted at least one")
    shapes |= {"rows": (samples, r), "shifts": (samples,), "pooling": (positions, positions)}
    for name, t in buffers.items():
        if tuple(t.shape) != shapes[name] or t.is_floating_point() == (name in _INTEGERS):
            raise ValueError(f"{name} is {t.dtype} of shape {tuple(t.shape)}, wanted shape {shapes[name]}")
    if ("rows" in buffers) != (n is None):
        raise ValueError("rows: wanted for a site of infinitely many neurons, and for no other")
    if ("pooling" in buffers) != (n is None and options.flattened):
        raise ValueError("pooling: wanted for images at a site of infinitely many neurons, and for no other site")
    if ("gain" in buffers) != ("bias" in buffers):
        raise ValueError("gain and bias: wanted both or none")
    if "k" in buffers and not 0 <= int(buffers["k"].min()) <= int(buffers["k"].max()) < d // parts:
        raise ValueError(f"k names neurons outside 0 .. {d // parts - 1}")


def copied(t: Tensor) -> Tensor:
    """A contiguous copy on the CPU. safetensors does not accept tensors that share memory."""
    return t.detach().cpu().clone(memory_format=torch.contiguous_format)
