# SPDX-License-Identifier: BSD-3-Clause
"""The choice of how the features of a sampled site are computed, from shapes and options alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from rainbow_fast.rainbow.kinds import kind_of
from rainbow_fast.rainbow.laws.law import INFINITE
from rainbow_fast.rainbow.network.wide_layer import foldable
from rainbow_fast.rainbow.options import alignment_of
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.rainbow.spec import NetworkSpec
from rainbow_fast.tracing.chain import linear_chain

FUSED, KEPT, WIDE, LIMIT = "fused", "kept", "wide", "limit"


class Route(NamedTuple):
    """How the features of a sampled site are computed.

    Attributes:
        name: ``"fused"``: the kernels compute the features twice, once to sum M and once to apply A; none is stored.
            ``"kept"``: the features are computed once from z and stored in the place of phih until the next site.
            ``"wide"``: likewise, but from the stored features of the site before, through the wide weights
            ``W' = s G_eff W A``. Neither z nor phih is computed. ``"limit"``: there are infinitely many neurons, and
            only their kernel is computed.
        between, shape: with "wide", the modules between the two sites, and the sizes; else empty and None.
    """

    name: str
    between: tuple[nn.Module, ...] = ()
    shape: Shape | None = None


class Shape(NamedTuple):
    """The sizes that decide between the routes "kept" and "wide".

    Attributes:
        samples: how many positions z has in the alignment set and the held-out data.
        ratio: positions of the output of the site before for each position of z.
        d, n, r: channels of z, neurons, and columns of the random rows.
        d_before, n_before: channels and neurons of the site before.
        taps: positions of the kernel between the sites.
    """

    samples: int
    ratio: float
    d: int
    n: int
    r: int
    d_before: int
    n_before: int
    taps: int


def kept_multiplications(shape: Shape) -> float:
    """Multiplications from the stored features of the site before to those of this site: phih, z, then R u."""
    through = shape.ratio * shape.d_before * shape.n_before + float(shape.d) * shape.d_before * shape.taps
    return shape.samples * (through + float(shape.n) * shape.r)


def wide_multiplications(shape: Shape) -> float:
    """The same through wide weights: ``W A``, its product with the random rows, then the wide layer."""
    rows = float(shape.n) * shape.r + (float(shape.r) * shape.d if shape.r < shape.d else 0.0)
    weights = float(shape.taps) * shape.n_before * (float(shape.d) * shape.d_before + rows)
    return weights + shape.samples * float(shape.n) * shape.n_before * shape.taps


def choose_routes(
    spec: NetworkSpec, images: int, dtype: torch.dtype, storage_dtype: torch.dtype | None
) -> dict[str, Route]:
    """The route of every sampled site of a network, by name. It depends on shapes and options only.

    Features are kept if there are no more neurons than channels, so that this takes no more memory than phih, unless
    a neuron has several features, the alignment reads z, the alignment is of flattened maps, activations are stored in
    half precision, or torch.fx cannot trace the network. They are then computed through wide weights if one linear
    layer lies between two such sites, z is not recalibrated, and this takes fewer multiplications.

    Args:
        images: number of images in the alignment set and the held-out data.
        dtype: of the reference.
        storage_dtype: the limit of this name.
    """
    routes: dict[str, Route] = {}
    before: SiteStatistics | None = None
    for place, s in enumerate(spec.sites):
        name = s.site.name
        if name not in spec.widths:
            before = None
            continue
        if spec.widths[name] == INFINITE:
            routes[name], before = Route(LIMIT), None
            continue
        kept = _keeps(spec, s, dtype, storage_dtype)
        routes[name] = Route(KEPT if kept else FUSED)
        if kept and before is not None and routes[before.site.name].name != FUSED:
            between = _folded(spec, before, place)
            if between is not None:
                shape = _shape(spec, s, before, images, between)
                if wide_multiplications(shape) < kept_multiplications(shape):
                    routes[name] = Route(WIDE, tuple(between), shape)
        before = s
    return routes


def _keeps(spec: NetworkSpec, s: SiteStatistics, dtype: torch.dtype, storage_dtype: torch.dtype | None) -> bool:
    options = spec.options
    return (
        spec.widths[s.site.name] <= s.channels
        and s.site.features == 1
        and not alignment_of(options).reads_inputs
        and not (options.align_flattened and s.site.feeds_flatten)
        and dtype in (torch.float32, torch.float64)
        and storage_dtype is None
        and spec.trace.graph is not None
    )


def _folded(spec: NetworkSpec, before: SiteStatistics, place: int) -> list[nn.Module] | None:
    """The modules between two sites, if the random rows of the second can be multiplied into them."""
    between = linear_chain(spec.trace.segments[place])
    offset = spec.options.offset or kind_of(before.site).normalisation is not None
    if between is None or spec.options.recalibrate or not foldable(between, offset=offset):
        return None
    axis = -1 if any(isinstance(module, nn.Linear) for module in between) else 1
    if axis == -1 and len(between) > 1 and len(spec.sites[place].z_shape) > 1:
        return None  # channels of a batch norm are axis 1, those of a Linear the last axis
    return between if _on_axis(before, axis) and _on_axis(spec.sites[place], axis) else None


def _on_axis(s: SiteStatistics, axis: int) -> bool:
    """Whether channels are this axis; the two axes of (N, d) are the same for a Linear."""
    return s.site.axis == axis or (axis == -1 and len(s.z_shape) == len(s.phi_shape) == 1)


def _shape(
    spec: NetworkSpec, s: SiteStatistics, before: SiteStatistics, images: int, between: Sequence[nn.Module]
) -> Shape:
    layer = next(module for module in between if isinstance(module, nn.Linear | _ConvNd))
    U, positions = spec.directions[s.site.name], math.prod(s.z_shape) // s.d
    return Shape(
        samples=images * positions,
        ratio=before.positions / positions,
        d=s.d,
        n=spec.widths[s.site.name],
        r=s.d if U is None else U.shape[1],
        d_before=before.channels,
        n_before=spec.widths[before.site.name],
        taps=math.prod(layer.weight.shape[2:]),
    )
