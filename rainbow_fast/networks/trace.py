# SPDX-License-Identifier: BSD-3-Clause
"""What of a network can be sampled: its sites, and the layers between them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

# The pointwise non-linearities that the kernels know, by their exact type (a subclass may compute something else).
POINTWISE: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
}
LINEAR = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
OTHERS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
)


@dataclass(frozen=True, eq=False)
class Site:
    """A pointwise non-linearity, with the max-pooling directly before or after it and the normalisation directly after.

    phi = norm(after(sigma(before(z)))): `z` has d channels, the neurons of the layers before.

    Attributes:
        index: place in the full list of sites; part of the stream of its random numbers.
        name: of the activation module, dotted.
        activation, negative_slope: sigma, in the words of `rainbow_fast.random_features`.
        before, after: max-pooling, or None.
        norm: batch norm in eval mode without its affine part, or None; `affine` is that part, a layer of its own.
        axis: the channel axis of z, 1 or -1; None where only (N, d) is unambiguous.
        writer: the one bias-free linear layer that writes z, if that is what writes it.
        feeds_flatten: whether a Flatten takes phi as it is.
        output: whether no linear layer comes after it; an output activation is sampled only if it is named.
        layers: names of the modules it stands for.
    """

    index: int
    name: str
    activation: str
    negative_slope: float
    before: nn.Module | None
    after: nn.Module | None
    norm: nn.Module | None
    affine: nn.Module | None
    axis: int | None
    writer: nn.Linear | nn.Conv2d | None
    feeds_flatten: bool
    output: bool
    layers: tuple[str, ...]
    reference: nn.Sequential  # z -> phi, leaves z as it is


@dataclass(frozen=True, eq=False)
class Trace:
    """A chain ``segments[0], sites[0], segments[1], ..., sites[-1], segments[-1]`` that computes the reference."""

    sites: tuple[Site, ...]
    segments: tuple[nn.Sequential, ...]
    tail: tuple[str, ...]  # names of the layers after the last site


def trace(reference: nn.Module) -> Trace:
    """Cut a Sequential, nested ones flattened in order, into sites and the layers between them.

    Understood are Linear, Conv2d, BatchNorm1d and 2d (as in eval mode), ReLU, LeakyReLU, PReLU with one parameter,
    Tanh, GELU (its erf form), SiLU, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, Flatten from axis 1, Dropout, Identity.
    The reference is not changed; segments share its modules, sites hold copies.

    Raises:
        TypeError: `reference` is no Sequential, or it holds a module of another kind.
        ValueError: a module with an option that cannot be sampled. Either message names the module.
    """
    layers = list(_leaves(reference, ""))
    for name, module in layers:
        _check(name, module)
    linear = [i for i, (_, module) in enumerate(layers) if isinstance(module, LINEAR)]
    last_linear = linear[-1] if linear else -1
    sites: list[Site] = []
    segments: list[list[nn.Module]] = [[]]
    start, tail = 0, 0
    while start < len(layers):
        stop = _site_end(layers, start)
        if stop == start:
            segments[-1].append(layers[start][1])
            start += 1
            continue
        site = _site(len(sites), layers, start, stop, output=stop > last_linear)
        sites.append(site)
        segments.append([site.affine] if site.affine is not None else [])
        start = tail = stop
    names = tuple(name for name, _ in layers[tail:])
    return Trace(tuple(sites), tuple(nn.Sequential(*segment).eval() for segment in segments), names)


def rebuild(reference: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a nested Sequential, by position, with the modules named replaced. Shared weights stay shared."""
    memo: dict[int, object] = {}

    def build(module: nn.Module, name: str) -> nn.Module:
        if name in replacements:
            return replacements[name]
        if not isinstance(module, nn.Sequential):
            return copy.deepcopy(module, memo)
        made = nn.Sequential()
        for key, child in module._modules.items():
            assert child is not None
            made.add_module(key, build(child, f"{name}.{key}" if name else key))
        return made

    return build(reference, "").eval()


def leaves(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of a nested Sequential in order of execution; a module used twice comes twice."""
    return _leaves(module, "")


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module).forward is not nn.Sequential.forward:
        if not name:
            raise TypeError(f"reference: wanted an nn.Sequential, got {type(module).__name__}")
        yield name, module
        return
    for key, child in module._modules.items():
        assert child is not None
        yield from _leaves(child, f"{name}.{key}" if name else key)


def _check(name: str, module: nn.Module) -> None:
    """A module that can be sampled or left as it is, or an error with its name."""
    kind = type(module)
    what = f"reference: module {name!r} ({kind.__name__})"
    if kind not in POINTWISE and kind not in (*LINEAR, *NORMS, *OTHERS):
        known = ", ".join(k.__name__ for k in (*LINEAR, *NORMS, *POINTWISE, *OTHERS))
        raise TypeError(f"{what} is of a kind that cannot be sampled: wanted one of {known}")
    if isinstance(module, nn.PReLU) and module.num_parameters != 1:
        raise ValueError(
            f"{what} has {module.num_parameters} slopes, one a channel: wanted one, for a site treats channels alike"
        )
    if isinstance(module, nn.GELU) and module.approximate != "none":
        raise ValueError(f"{what} has approximate={module.approximate!r}: wanted 'none', the erf form")
    if isinstance(module, NORMS) and module.running_mean is None:
        raise ValueError(f"{what} has no running statistics: wanted track_running_stats=True")
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        raise ValueError(f"{what} has return_indices=True: wanted a pooling that returns the map alone")
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        raise ValueError(
            f"{what} has start_dim={module.start_dim}, end_dim={module.end_dim}: wanted 1 and -1, all but the samples"
        )


def _site_end(layers: list[tuple[str, nn.Module]], start: int) -> int:
    """Where the site that starts at `start` ends; `start` itself if none does."""

    def at(i: int, *kinds: type[nn.Module]) -> bool:
        return i < len(layers) and type(layers[i][1]) in kinds

    stop = start + at(start, nn.MaxPool2d)
    if not at(stop, *POINTWISE):
        return start
    stop += 1
    stop += at(stop, nn.MaxPool2d)
    return stop + at(stop, *NORMS)


def _site(index: int, layers: list[tuple[str, nn.Module]], start: int, stop: int, *, output: bool) -> Site:
    parts = [copy.deepcopy(module) for _, module in layers[start:stop]]
    norm = affine = None
    if type(parts[-1]) in NORMS:
        norm, affine = _split(parts[-1])
        parts[-1] = norm
    place = next(i for i, part in enumerate(parts) if type(part) in POINTWISE)
    sigma = parts[place]
    if getattr(sigma, "inplace", False):
        sigma.inplace = False  # type: ignore[assignment]  # z is read again after phi
    slope = 0.01
    if isinstance(sigma, nn.LeakyReLU):
        slope = float(sigma.negative_slope)
    elif isinstance(sigma, nn.PReLU):
        slope = float(sigma.weight.detach())
    after = parts[place + 1] if place + 1 < len(parts) and norm is not parts[place + 1] else None
    transparent = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
    following = next((module for _, module in layers[stop:] if not isinstance(module, transparent)), None)
    reference = nn.Sequential(*parts).eval().requires_grad_(False)
    return Site(
        index=index,
        name=layers[start + place][0],
        activation=POINTWISE[type(sigma)],
        negative_slope=slope,
        before=parts[0] if place else None,
        after=after,
        norm=norm,
        affine=affine,
        axis=_axis(layers[:start], norm is not None),
        writer=_writer(layers[:start]),
        feeds_flatten=isinstance(following, nn.Flatten) and affine is None,
        output=output,
        layers=tuple(name for name, _ in layers[start:stop]),
        reference=reference,
    )


def _split(norm: nn.Module) -> tuple[nn.Module, nn.Module | None]:
    """A batch norm as its normalisation and its affine part (None if it has none), both batch norms themselves."""
    assert isinstance(norm, NORMS)
    if not norm.affine:
        return norm, None
    affine = copy.deepcopy(norm)
    assert affine.running_mean is not None and affine.running_var is not None
    with torch.no_grad():
        norm.weight.fill_(1)
        norm.bias.zero_()
        affine.running_mean.zero_()
        affine.running_var.fill_(1)
    affine.eps = 0.0
    return norm, affine.eval()


def _axis(before: list[tuple[str, nn.Module]], normalised: bool) -> int | None:
    maps = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)
    for _, module in reversed(before):
        if isinstance(module, nn.Linear):
            return None if normalised else -1  # a batch norm takes axis 1, the linear layer the last
        if isinstance(module, maps):
            return 1
        if isinstance(module, nn.BatchNorm1d):
            return None
    return None


def _writer(before: list[tuple[str, nn.Module]]) -> nn.Linear | nn.Conv2d | None:
    module = before[-1][1] if before else None
    return module if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is None else None
