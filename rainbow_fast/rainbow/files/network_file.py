# SPDX-License-Identifier: BSD-3-Clause
"""Files of sampled networks: safetensors with a versioned header. The reference is not in the file."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rainbow_fast.fields import renamed
from rainbow_fast.io import fingerprint
from rainbow_fast.rainbow.network.packing import copied, pack, unpack
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork, assemble, refit_site
from rainbow_fast.rainbow.network.same_network import check_network, white
from rainbow_fast.tensor_files import Format
from rainbow_fast.tracing.joined import JoinedNetwork
from rainbow_fast.tracing.trace import trace

NETWORK = Format("rainbow_fast.network", 3, "sampled network")  # 1: the scale is in A; 2: no own layers


def save(network: RainbowNetwork, path: str | os.PathLike[str]) -> None:
    """Write a sampled network to a safetensors file. The write is atomic: either the whole file is written or none.

    The file contains only what differs from the reference. To load it, the reference is needed.

    Args:
        network: the sampled network.
        path: the file.

    Raises:
        TypeError: `network` is not a `RainbowNetwork` (save a materialised network by its state dict).
        ValueError: the network was sampled from several references.
        FileNotFoundError: the folder of `path` is missing.
    """
    if not isinstance(network, RainbowNetwork):
        raise TypeError(f"network: wanted a RainbowNetwork, got {type(network).__name__}")
    if isinstance(network.body, JoinedNetwork):
        raise ValueError("network: sampled from several references, wanted one; or save materialize()'s state dict")
    tensors: dict[str, Tensor] = {}
    sites = []
    for name in network.sampled:
        options, buffers = pack(network.site(name))
        sites.append({"name": name} | options)
        tensors |= {f"{name}.{b}": value for b, value in buffers.items()}
    if network.head is not None:
        head = network.body.get_submodule(network.head)
        tensors |= {f"classifier.{key}": copied(value) for key, value in head.state_dict().items()}
    for name, module in network.own_layers.items():
        layer: Any = network.body.get_submodule(module)
        tensors[f"{name}.layer"] = copied(layer.weight)
    header = {
        "sites": sites,
        "own_layers": list(network.own_layers),
        "classifier": network.classifier,
        "input_shape": network.input_shape,
        "reference": network.fingerprint,
    }
    NETWORK.write(Path(path), header, tensors)


@renamed(pointwise="pointwise_modules")
def load(
    path: str | os.PathLike[str], reference: nn.Module, *, pointwise_modules: Iterable[type[nn.Module]] = ()
) -> RainbowNetwork:
    """Read a sampled network that `save` has written. Nothing is unpickled.

    Args:
        path: the file.
        reference: the trained network that it was sampled from. It is copied.
        pointwise_modules: as in `fit`.

    Raises:
        TypeError: `reference` is not an nn.Module.
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is truncated, damaged, of another format or of a newer version, or the network was sampled
            from another reference. The message names the file.
        RuntimeError: the network is not deterministic, or differs from the layers of the reference with the sampled
            sites. The message names the first site that differs.
    """
    if not isinstance(reference, nn.Module):
        raise TypeError(f"reference: wanted an nn.Module, got {type(reference).__name__}")
    path = Path(path)
    header, tensors = NETWORK.read(path)
    digest = fingerprint(reference.state_dict())
    if header["reference"] != digest:
        raise ValueError(
            f"path: {path} was sampled from another reference (its weights have SHA-256 {header['reference'][:12]}..., "
            f"those of this one {digest[:12]}...)"
        )
    device, kinds = next(reference.parameters()).device, tuple(pointwise_modules)
    shape = tuple(header["input_shape"])
    example = next(reference.parameters()).new_zeros(1, *shape)
    traced, classifier = trace(reference, example, kinds), header["classifier"]
    activations, head = {}, None
    try:
        weights = {name: tensors[f"{name}.layer"] for name in header.get("own_layers", ())}
        traced = traced.with_weights(weights, kinds) if weights else traced
        sites = {site.name: site for site in traced.sites}
        for entry in header["sites"]:
            name, site = entry["name"], sites[entry["name"]]
            if classifier == "refit" and site is traced.sites[-1]:
                site = refit_site(site, traced.tail(), flattened=entry["flattened"])
            activations[name] = unpack(site, entry, tensors, f"{name}.", device)
        if classifier == "refit_aligned":
            head = copy.deepcopy(traced.tail().last)
            head.weight = nn.Parameter(tensors["classifier.weight"].to(device))
            head.bias = nn.Parameter(tensors["classifier.bias"].to(device))
    except KeyError as error:
        raise ValueError(f"path: {path} is damaged, it has no {error.args[0]!r}") from None
    network = assemble(
        traced,
        activations,
        classifier=classifier,
        head=head,
        input_shape=shape,
        fingerprint=digest,
        own_layers={name: traced.writer_name(sites[name]) for name in weights},
    )
    check_network(network.body, activations, traced, white(example), head=head, refit=classifier == "refit")
    return network
