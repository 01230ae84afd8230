# SPDX-License-Identifier: BSD-3-Clause
"""Sampled networks on disk: safetensors with a versioned header, beside the reference, which is not in the file."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from rainbow_fast.networks.trace import trace
from rainbow_fast.rainbow.activation import Law, RainbowActivation
from rainbow_fast.rainbow.network import RainbowNetwork, assemble, fingerprint

FORMAT, VERSION = "rainbow_fast.network", 2
REQUIRED = ("key", "A")
_BUFFERS = (*REQUIRED, "scale", "U", "T", "k", "gain", "bias", "offset")


def save(network: RainbowNetwork, path: str | os.PathLike[str]) -> None:
    """Write what a sampled network has beyond its reference to `path`, in safetensors: the whole file or none.

    Raises:
        TypeError: `network` is not a `RainbowNetwork` (a materialised one is saved by its state dict).
        FileNotFoundError: the folder of `path` is missing.
    """
    if not isinstance(network, RainbowNetwork):
        raise TypeError(f"network: wanted a RainbowNetwork, got {type(network).__name__}")
    tensors: dict[str, Tensor] = {}
    sites = []
    for name in network.sampled:
        site = network.site(name)
        options = ("n", "d", "mean_row", "h", "flattened")
        sites.append({"name": name} | {option: getattr(site, option) for option in options})
        tensors |= {f"{name}.{b}": value for b in _BUFFERS if (value := getattr(site, b)) is not None}
    if network.head is not None:
        head = network.body.get_submodule(network.head)
        tensors |= {f"classifier.{key}": value for key, value in head.state_dict().items()}
    header = {
        "sites": sites,
        "classifier": network.classifier,
        "input_shape": network.input_shape,
        "reference": network.fingerprint,
    }
    metadata = {"format": FORMAT, "version": str(VERSION), "network": json.dumps(header)}
    dense = torch.contiguous_format  # copies: safetensors refuses strided and shared memory
    data = to_bytes({name: t.detach().cpu().clone(memory_format=dense) for name, t in tensors.items()}, metadata)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(
    path: str | os.PathLike[str], reference: nn.Module, *, pointwise: Iterable[type[nn.Module]] = ()
) -> RainbowNetwork:
    """Read the network that `save` wrote to `path`, sampled from `reference`, which is copied. Nothing is unpickled.

    Args:
        pointwise: as it was given to `fit`.

    Raises:
        FileNotFoundError: no file at `path`.
        ValueError: the file is truncated, foreign, of a newer version, or was sampled from another reference; the
            message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no network at {path}")
    header, tensors = _read(path)
    found = fingerprint(reference)
    if header["reference"] != found:
        raise ValueError(
            f"path: {path} was sampled from another reference (its weights have SHA-256 {header['reference'][:12]}..., "
            f"those of this one {found[:12]}...)"
        )
    device = next(reference.parameters()).device
    shape = tuple(header["input_shape"])
    example = next(reference.parameters()).new_zeros(1, *shape)
    cut = trace(reference, example, pointwise)
    sites = {site.name: site for site in cut.sites}
    activations = {}
    try:
        for entry in header["sites"]:
            name, site = entry["name"], sites[entry["name"]]
            mine = {b: tensors[f"{name}.{b}"].to(device) for b in _BUFFERS if b in REQUIRED or f"{name}.{b}" in tensors}
            if header["classifier"] == "refit" and site is cut.sites[-1] and entry["flattened"]:
                after = [] if site.after is None else [site.after]
                site = replace(site, after=nn.Sequential(*after, cut.tail().between))
            options = {option: entry[option] for option in ("n", "d", "mean_row", "h")}
            law = Law(key=mine["key"], U=mine.get("U"), T=mine.get("T"), k=mine.get("k"), **options)
            recalibration = (mine["gain"], mine["bias"]) if "gain" in mine else None
            made = RainbowActivation(site, law, flattened=entry["flattened"], recalibration=recalibration)
            made.A, made.offset = mine["A"], mine.get("offset")
            made.scale = mine.get("scale", made.scale)  # version 1 has it in A
            activations[name] = made
        head = None
        if header["classifier"] == "refit_aligned":
            head = copy.deepcopy(cut.tail().last)
            head.weight = nn.Parameter(tensors["classifier.weight"].to(device))
            head.bias = nn.Parameter(tensors["classifier.bias"].to(device))
    except KeyError as error:
        raise ValueError(f"path: {path} is damaged, it has no {error.args[0]!r}") from None
    return assemble(cut, activations, classifier=header["classifier"], head=head, input_shape=shape, fingerprint=found)


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                came = metadata.get("format")
                raise ValueError(f"path: {path} holds no sampled network: its format is {came!r}, not {FORMAT!r}")
            version = int(metadata["version"])
            if version > VERSION:
                raise ValueError(f"path: {path} has version {version}, this package reads versions up to {VERSION}")
            return json.loads(metadata["network"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"path: {path} is not a whole safetensors file ({error})") from error
