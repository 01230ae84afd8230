# SPDX-License-Identifier: BSD-3-Clause
"""Joins several trained networks of one architecture into one reference, whose activations are aligned and averaged."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.tracing.site import Site
from rainbow_fast.tracing.trace import State, Trace

CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@dataclass(frozen=True, eq=False)
class Joined(Trace):
    r"""The traces of K networks as one trace.

    At each site, ``z = (z_1, ..., z_K)`` has K d channels and ``phi = mean_k A_k phi_k`` has d channels. The rotations
    A_k (d, d) are orthogonal matrices; they are identities until `rotate` is called. Network k computes its next z_k
    from its own phi_k. After a sampled site it computes z_k from ``A_k^T phih`` instead, where phih are the activations
    of the sampled network. The outputs are the mean of the outputs of the K networks. The state after a site is
    ``(phi, z)``.

    Attributes:
        reference: the network that computes these outputs; it holds the K networks and the rotations.
        graph: the graph of the first network.
    """

    def advance(self, place: int, state: State, activations: Sequence[nn.Module]) -> State:
        aligned = place > 0 and activations[place - 1] is not self.sites[place - 1].reference
        result = self.segments[place](state[0 if aligned else -1], aligned)
        return (result,) if place == len(self.sites) else (result, result)

    def rebuild(self, replacements: Mapping[str, nn.Module], *, ends_at: str | None = None) -> nn.Module:
        sampled = [site.name if site.name in replacements else None for site in self.sites]
        head = next((name for name in replacements if name not in sampled), None)
        between: list[nn.Module] = []
        if head is not None:
            between = [self.tail().between] if sampled[-1] else [self.sites[-1].reference, self.tail().between]
        segments = self.segments if head is None and ends_at is None else self.segments[:-1]
        body = JoinedNetwork(copy.deepcopy(nn.ModuleList(segments)), sampled, copy.deepcopy(between), head)
        for name, module in replacements.items():
            _add(body, name, module)
        return body.eval()

    @torch.no_grad()
    def rotate(self, place: int, A: Tensor) -> None:
        """Set the rotations A (K, d, d) of site number `place`."""
        following = self.segments[place + 1]
        assert isinstance(following, Stage)
        _set_weight(self.sites[place].reference[-1], torch.cat(list(A / len(A)), 1))
        for layer, rotation in zip(following.back, A, strict=True):
            _set_weight(layer, rotation.T)


class JoinedNetwork(nn.Module):
    """A network sampled from several references. Sampled sites and a refit classifier keep their names as submodules.

    Args:
        stages: the `Stage` before each site and the one after the last site.
        sampled: for each site, its name if it is sampled, else None.
        between: the layers between the last site and a refit classifier.
        head: the name of the refit classifier, or None.
    """

    def __init__(
        self, stages: nn.ModuleList, sampled: Sequence[str | None], between: Sequence[nn.Module], head: str | None
    ) -> None:
        super().__init__()
        self.joined_stages, self.joined_between = stages, nn.Sequential(*between)
        self.sampled, self.head = tuple(sampled), head

    def forward(self, x: Tensor) -> Tensor:
        aligned = False
        for stage, name in zip(self.joined_stages, (*self.sampled, None), strict=False):
            x = stage(x, aligned)
            aligned = name is not None
            if name is not None:
                x = self.get_submodule(name)(x)
        return x if self.head is None else self.get_submodule(self.head)(self.joined_between(x))


class Own(nn.Module):
    """Computes ``phi_k = site_k(z_k)`` for each network and concatenates the results along the channel axis.

    Args:
        sites: the site of each network.
        d: the channels of one network.
        axis: the channel axis of z.
    """

    def __init__(self, sites: Sequence[nn.Module], d: int, axis: int) -> None:
        super().__init__()
        self.sites, self.d, self.axis = nn.ModuleList(sites), d, axis

    def each(self, z: Tensor) -> list[Tensor]:
        return [site(z.narrow(self.axis, k * self.d, self.d)) for k, site in enumerate(self.sites)]

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat(self.each(z), self.axis)


class Stage(nn.Module):
    """The layers from one site to the next, in all networks.

    Args:
        segments: the segment of each network.
        axis: the axis along which their z are concatenated; None after the last site: the outputs are averaged.
        own: the site before these layers in all networks; None at the beginning.
        back: for each network, the layer that multiplies by A_k^T.
    """

    def __init__(
        self, segments: Sequence[nn.Module], axis: int | None, own: Own | None, back: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.segments, self.axis, self.own, self.back = nn.ModuleList(segments), axis, own, nn.ModuleList(back)

    def forward(self, x: Tensor, aligned: bool) -> Tensor:
        """z of the next site. x is the input, or z of the site before, or phih of the site before if `aligned`."""
        if self.own is None:
            each = [x] * len(self.segments)
        else:
            each = [rotation(x) for rotation in self.back] if aligned else self.own.each(x)
        outputs = [segment(value)[0] for segment, value in zip(self.segments, each, strict=True)]
        return reduce(add, outputs) / len(outputs) if self.axis is None else torch.cat(outputs, self.axis)


@torch.no_grad()
def join(traces: Sequence[Trace], example: Tensor) -> Joined:
    """Join the traces of several networks into one; all rotations are identities.

    Args:
        traces: the trace of each network.
        example: a batch of inputs.

    Raises:
        ValueError: torch.fx cannot trace a network, a network is not a chain (it has a skip connection or a gate), or
            its sites differ from those of the first network. The message gives the number of the network, counted from
            1, and the name of the site.
    """
    for number, trace in enumerate(traces, 1):
        if trace.graph is None:
            raise ValueError(f"reference: torch.fx cannot trace number {number}, which is needed for several networks")
        for site in trace.sites:
            if site.complex_weights:
                raise ValueError(
                    f"reference: site {site.name!r} of number {number} has complex weights, wanted one reference"
                )
            if site.expansion is not None:
                raise ValueError(
                    f"reference: site {site.name!r} of number {number} has random features, wanted one reference"
                )
    maps = [_maps(trace, example, number) for number, trace in enumerate(traces, 1)]
    _check_alike(traces, maps)
    sites, stages = [], []
    own: Own | None = None
    back: list[nn.Module] = []
    for place, site in enumerate(traces[0].sites):
        axis, phi = site.axis or 1, maps[0][place]
        stages.append(Stage([trace.segments[place] for trace in traces], axis, own, back))
        d = phi.shape[axis]
        own = Own([trace.sites[place].reference for trace in traces], d, axis)
        back = [_channels(phi, axis, d, d) for _ in traces]
        layer = nn.Sequential(own, _channels(phi, axis, d * len(traces), d)).eval()
        sites.append(replace(site, writer=None, feeds_flatten=False, modules=None, reference=layer))
    stages.append(Stage([trace.segments[-1] for trace in traces], None, own, back))
    reference = JoinedNetwork(nn.ModuleList(stages), [None] * len(sites), [], None).eval()
    joined = Joined(reference, tuple(sites), traces[0].graph, tuple(stages), False, len(traces))
    for place, site in enumerate(sites):
        channels = maps[0][place].shape[site.axis or 1]
        joined.rotate(place, torch.eye(channels, device="cpu").expand(len(traces), -1, -1))
    return joined


def _maps(trace: Trace, example: Tensor, number: int) -> list[Tensor]:
    """The activations phi at every site, and then the outputs."""
    values = [example]
    for place, site in enumerate(trace.sites):
        z, *rest = trace.advance(place, (values[-1],), ())
        if rest:
            raise ValueError(
                f"reference: number {number} is not a chain: later layers read {len(rest)} more values than phi after "
                f"its site {site.name!r} (a skip connection): wanted chains if there are several networks"
            )
        values.append(site.reference(z))
    return [*values[1:], trace.advance(len(trace.sites), (values[-1],), ())[0]]


def _check_alike(traces: Sequence[Trace], maps: Sequence[Sequence[Tensor]]) -> None:
    def steps(trace: Trace, values: Sequence[Tensor]) -> list[str]:
        names = [f"site {site.name!r} of {_layers(site)}" for site in trace.sites]
        return [f"{name}, shape {tuple(t.shape[1:])}" for name, t in zip([*names, "outputs"], values, strict=True)]

    wanted = steps(traces[0], maps[0])
    for number, (trace, values) in enumerate(zip(traces, maps, strict=True), 1):
        for mine, expected in itertools.zip_longest(steps(trace, values), wanted):
            if mine != expected:
                raise ValueError(
                    f"reference: number {number} has {mine}; the first has {expected}: wanted one architecture"
                )


def _layers(site: Site) -> str:
    """A text of the layers of a site, their options and the parameters of sigma; equal for sites that can be joined."""
    layers = [repr(layer) for layer in site.reference]
    return " + ".join([*layers, *(str(value.tolist()) for value in site.sigma.state_dict().values())])


def _channels(phi: Tensor, axis: int, channels: int, d: int) -> nn.Module:
    """A linear layer from `channels` to d channels, applied at every position of a feature map of the shape of phi."""
    like: dict[str, Any] = {"bias": False, "dtype": phi.dtype, "device": phi.device}
    if axis == -1 or phi.dim() == 2:
        layer: nn.Module = nn.Linear(channels, d, **like)
    else:
        layer = CONVOLUTIONS[phi.dim()](channels, d, 1, **like)
    return layer.requires_grad_(False)


def _set_weight(layer: nn.Module, W: Tensor) -> None:
    weight = layer.get_parameter("weight")
    weight.copy_(W.reshape(weight.shape))


def _add(owner: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module to `owner` under a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    owner.add_module(last, module)
