# SPDX-License-Identifier: BSD-3-Clause
"""Files of sampled networks: safetensors with a versioned header. The reference is not in the file."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from rainbow_fast.fields import renamed
from rainbow_fast.formats import Format
from rainbow_fast.io import fingerprint
from rainbow_fast.joint_inputs import Input, layout_of
from rainbow_fast.rainbow.files.several_inputs import of_inputs
from rainbow_fast.rainbow.inputs import probes_for
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.packing import Packed, Positive, check_fits, copied, pack, unpack
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork, assemble, refit_site
from rainbow_fast.rainbow.network.same_network import WRITTEN, check_network
from rainbow_fast.rainbow.prepare import own_shapes, site_shapes
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.tracing.joined import JoinedNetwork
from rainbow_fast.tracing.tail import Tail
from rainbow_fast.tracing.trace import Trace, checked, trace

LARGEST_INPUT = 2**26  # numbers in one input, at most: `load` runs the reference on an input of this size


class PackedSite(Packed, kw_only=True):
    """A sampled site and its name."""

    name: str


class NetworkHeader(msgspec.Struct, forbid_unknown_fields=True):
    """The header of the file of a network, see `RainbowNetwork`."""

    sites: Annotated[list[PackedSite], msgspec.Meta(min_length=1)]
    classifier: Literal["refit", "refit_aligned", "retrained"] | None
    input_shape: list[Positive]
    reference: str
    own_layers: list[str] = []
    inputs: list[Input] = []


# Version 1 has the scale in A, version 2 no own layers, version 3 no checksums, version 4 one input only, version 5 no
# precision, version 6 no sites of infinitely many neurons, version 7 no layers that were trained again.
NETWORK = Format("rainbow_fast.network", 8, "sampled network", NetworkHeader, summed_since=4, key="network")


def save(network: RainbowNetwork, path: str | os.PathLike[str]) -> None:
    """Write a sampled network to a safetensors file. The write is atomic: either the whole file is written or none.

    The file contains only what differs from the reference. To load it, the reference is needed.

    Args:
        network: the sampled network.
        path: the file.

    Raises:
        TypeError: `network` is not a `RainbowNetwork` (save a materialised network by its state dict).
        ValueError: the network was sampled from several references, or one input has more than 2^26 numbers; or `path`
            is a folder, a device or a pipe.
        FileNotFoundError: the folder of `path` is missing.
        OSError: the folder of `path` cannot be written into, or its disk is full.
    """
    if not isinstance(network, RainbowNetwork):
        raise TypeError(f"network: wanted a RainbowNetwork, got {type(network).__name__}")
    if isinstance(network.body, JoinedNetwork):
        raise ValueError("network: sampled from several references, wanted one; or save materialize()'s state dict")
    if math.prod(network.input_shape) > LARGEST_INPUT:
        raise ValueError(f"network: takes inputs {network.input_shape}, wanted at most {LARGEST_INPUT} numbers")
    tensors: dict[str, Tensor] = {}
    sites = []
    for name in network.sampled:
        options, buffers = pack(network.site(name))
        sites.append(PackedSite(name=name, **msgspec.structs.asdict(options)))
        tensors |= {f"{name}.{b}": value for b, value in buffers.items()}
    if network.head is not None:
        head = network.body.get_submodule(network.head)
        tensors |= {f"classifier.{key}": copied(value) for key, value in head.state_dict().items()}
    for name in network.retrained:
        state = network.body.get_submodule(name).state_dict()
        tensors |= {f"tail.{name}.{key}": copied(value) for key, value in state.items()}
    for name, module in network.own_layers.items():
        layer: Any = network.body.get_submodule(module)
        tensors[f"{name}.layer"] = copied(layer.weight)
    classifier: Any = network.classifier
    shape = list(network.input_shape)
    layout = layout_of(network.body)
    inputs = [] if layout is None else list(layout.inputs)
    header = NetworkHeader(sites, classifier, shape, network.fingerprint, list(network.own_layers), inputs)
    NETWORK.write(Path(path), header, tensors)


@renamed(pointwise="pointwise_modules")
def load(
    path: str | os.PathLike[str],
    reference: nn.Module,
    *,
    pointwise_modules: Iterable[type[nn.Module]] = (),
    channel_axes: Mapping[str, int] | None = None,
) -> RainbowNetwork:
    """Read a sampled network that `save` has written. Nothing is unpickled.

    Args:
        path: the file.
        reference: the trained network that it was sampled from. It is copied.
        pointwise_modules, channel_axes: as in `fit`.

    Warns:
        UserWarning: an older version wrote the file, without checksums.

    Raises:
        TypeError: `reference` is not an nn.Module.
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is truncated, damaged, of another format or of a newer version, or the network was sampled
            from another reference. The message names the file.
        RuntimeError: the network is not deterministic, or differs from the layers of the reference with the sampled
            sites. The message names the first site that differs.
    """
    reference = checked(reference, "reference")
    path = Path(path)
    header, tensors = NETWORK.read(path)
    digest = fingerprint(reference.state_dict())
    if header.reference != digest:
        raise ValueError(
            f"path: {path} was sampled from another reference (its weights have SHA-256 {header.reference[:12]}..., "
            f"those of this one {digest[:12]}...)"
        )
    if math.prod(header.input_shape) > LARGEST_INPUT:
        raise ValueError(f"path: {path} is damaged, it names an input of shape {header.input_shape}")
    reference = of_inputs(reference, header.inputs, math.prod(header.input_shape), path)
    device, kinds = next(reference.parameters()).device, tuple(pointwise_modules)
    shape = tuple(header.input_shape)
    example = probes_for(reference, 1, shape)
    traced = of_reference = trace(reference, example, kinds, channel_axes=channel_axes)
    try:
        weights = {name: tensors[f"{name}.layer"] for name in header.own_layers}
        if weights:
            traced = of_reference.with_weights(weights, kinds)
        sites = own_shapes(traced, of_reference, example) if weights else site_shapes(traced, example)
        shapes = {s.site.name: s for s in sites}
        activations = _activations(header, tensors, traced, shapes, device)
        head = _head(header, tensors, traced, device)
        tail = _tail(tensors, traced) if header.classifier == "retrained" else None
    except KeyError as error:
        raise ValueError(f"path: {path} is damaged, it has no {error.args[0]!r}") from None
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"path: {path} does not fit the reference: {first}") from error
    network = assemble(
        traced,
        activations,
        classifier=header.classifier,
        head=head,
        input_shape=shape,
        fingerprint=digest,
        own_layers={name: traced.writer_name(shapes[name].site) for name in weights},
        tail=tail,
    )
    check_network(
        network.body,
        activations,
        traced,
        probes_for(reference, WRITTEN, shape),
        head=head,
        refit=header.classifier == "refit",
        tail=tail,
    )
    return network


def _activations(
    header: NetworkHeader,
    tensors: Mapping[str, Tensor],
    traced: Trace,
    shapes: Mapping[str, SiteStatistics],
    device: torch.device,
) -> dict[str, RainbowActivation]:
    """The sampled sites in a file, by name."""
    activations = {}
    for entry in header.sites:
        if entry.name not in shapes:
            raise ValueError(f"it has no site {entry.name!r}, wanted one of {', '.join(shapes)}")
        s, outputs = shapes[entry.name], None
        site = s.site
        if header.classifier == "refit" and site is traced.sites[-1]:
            site = refit_site(site, traced.tail(), flattened=entry.flattened)
            outputs = traced.tail().last.out_features
        activations[entry.name] = unpack(site, entry, tensors, f"{entry.name}.", device)
        check_fits(activations[entry.name], s, outputs=outputs)
    return activations


def _tail(tensors: Mapping[str, Tensor], traced: Trace) -> Tail:
    """The layers after the last site, as they were trained again."""
    tail = traced.tail()
    tail = replace(tail, between=copy.deepcopy(tail.between), last=copy.deepcopy(tail.last))
    for name, layer in tail.layers().items():
        layer.load_state_dict({key: tensors[f"tail.{name}.{key}"] for key in layer.state_dict()})
    return tail


def _head(
    header: NetworkHeader, tensors: Mapping[str, Tensor], traced: Trace, device: torch.device
) -> nn.Linear | None:
    """The new classifier that reads phih, if the network has one."""
    if header.classifier != "refit_aligned":
        return None
    head = copy.deepcopy(traced.tail().last)
    weight, bias = (tensors[f"classifier.{name}"].to(device) for name in ("weight", "bias"))
    if weight.shape != head.weight.shape or bias.shape != weight.shape[:1]:
        raise ValueError(f"its classifier has shapes {tuple(weight.shape)} and {tuple(bias.shape)}")
    head.weight, head.bias = nn.Parameter(weight), nn.Parameter(bias)
    return head
