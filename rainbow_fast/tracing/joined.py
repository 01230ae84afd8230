# SPDX-License-Identifier: BSD-3-Clause
"""Several networks of one architecture as one reference, in the coordinates of their mean."""

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
    r"""K chains as one: at each site ``z = (z_1, ..., z_K)``, K d channels, and ``phi = mean_k A_k phi_k``, d channels.

    Network k makes its z_k of its own phi_k, but of ``A_k^T phih`` behind a sampled site. The outputs are the mean of
    the K networks'. A_k (d, d) are orthogonal, identities until `rotate` is called. The state after a site is
    ``(phi, z)``.

    Attributes:
        reference: gives these outputs; it holds the networks and the rotations.
        graph: of the first network.
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
        """Set the rotations of a site, A (K, d, d)."""
        following = self.segments[place + 1]
        assert isinstance(following, Stage)
        _set_weight(self.sites[place].reference[-1], torch.cat(list(A / len(A)), 1))
        for layer, rotation in zip(following.back, A, strict=True):
            _set_weight(layer, rotation.T)


class JoinedNetwork(nn.Module):
    """A network sampled from several references: sampled sites and a refit classifier under their own names."""

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
    """phi_k = site_k(z_k) of each network, one after the other along the channels."""

    def __init__(self, sites: Sequence[nn.Module], d: int, axis: int) -> None:
        super().__init__()
        self.sites, self.d, self.axis = nn.ModuleList(sites), d, axis

    def each(self, z: Tensor) -> list[Tensor]:
        return [site(z.narrow(self.axis, k * self.d, self.d)) for k, site in enumerate(self.sites)]

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat(self.each(z), self.axis)


class Stage(nn.Module):
    """From one site to the next in all networks.

    Args:
        segments: of each network.
        axis: along which their z are put together; None at the end, where their mean is taken.
        own: the site before, None at the beginning.
        back: A_k^T.
    """

    def __init__(
        self, segments: Sequence[nn.Module], axis: int | None, own: Own | None, back: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.segments, self.axis, self.own, self.back = nn.ModuleList(segments), axis, own, nn.ModuleList(back)

    def forward(self, x: Tensor, aligned: bool) -> Tensor:
        """Of the input; of the z before; or, `aligned`, of phih."""
        if self.own is None:
            each = [x] * len(self.segments)
        else:
            each = [rotation(x) for rotation in self.back] if aligned else self.own.each(x)
        outputs = [segment(value)[0] for segment, value in zip(self.segments, each, strict=True)]
        return reduce(add, outputs) / len(outputs) if self.axis is None else torch.cat(outputs, self.axis)


@torch.no_grad()
def join(traces: Sequence[Trace], example: Tensor) -> Joined:
    """Make one reference of the traces of several networks, the rotations being identities.

    Args:
        example: a batch of inputs.

    Raises:
        ValueError: a network that torch.fx cannot trace, that is no chain (a skip, a gate), or whose sites differ from
            those of the first; the message says which, counted from 1, and names the site.
    """
    for number, trace in enumerate(traces, 1):
        if trace.graph is None:
            raise ValueError(f"reference: torch.fx cannot trace number {number}, as it must where there are several")
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
    """phi at every site, then the outputs."""
    values = [example]
    for place, site in enumerate(trace.sites):
        z, *rest = trace.advance(place, (values[-1],), ())
        if rest:
            raise ValueError(
                f"reference: number {number} is no chain, {len(rest)} more values than z are read behind its site "
                f"{site.name!r}, as by a skip: wanted chains where there are several"
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
                    f"reference: number {number} has {mine}; the first {expected}: wanted one architecture"
                )


def _layers(site: Site) -> str:
    """All in which a site of another network has to be alike: kinds, options, and the parameters of sigma."""
    layers = [repr(layer) for layer in site.reference]
    return " + ".join([*layers, *(str(value.tolist()) for value in site.sigma.state_dict().values())])


def _channels(phi: Tensor, axis: int, channels: int, d: int) -> nn.Module:
    """A map from so many channels to d, alike at all positions of a map like phi."""
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
    """Put a module under a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    owner.add_module(last, module)
