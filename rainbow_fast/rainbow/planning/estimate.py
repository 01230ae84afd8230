# SPDX-License-Identifier: BSD-3-Clause
"""The cost of a sampling run: the steps of `sampling.run.sample_networks` and of `fit`, counted from shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rainbow_fast.ops.cross_covariance import cross_covariance_flops
from rainbow_fast.rainbow.alignment.classifier import ridge_bytes, ridge_flops
from rainbow_fast.rainbow.alignment.retraining import EPOCHS
from rainbow_fast.rainbow.options import Limits
from rainbow_fast.rainbow.planning.cost import Cost, SiteCost, Work
from rainbow_fast.rainbow.planning.machine import Machine
from rainbow_fast.rainbow.planning.site_cost import COPIES, SiteCount
from rainbow_fast.rainbow.planning.sizes import Sizes
from rainbow_fast.rainbow.prepare import Prepared
from rainbow_fast.rainbow.sampling.flight import in_flight_bytes
from rainbow_fast.rainbow.sampling.route import FUSED, LIMIT, WIDE, Route, choose_routes
from rainbow_fast.rainbow.sampling.storage import choose_storage
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.rainbow.spec import NetworkSpec
from rainbow_fast.tracing.agreement import tensors
from rainbow_fast.tracing.trace import State, Trace

KEPT = 2**26  # freed bytes that glibc keeps at most at the end of its heap: twice its largest mmap threshold, 32 MiB
LAYERS = Work(rate="layers")  # no work, to add the work of layers to


@torch.no_grad()
def estimate(prepared: Prepared, spec: NetworkSpec, limits: Limits, *, machine: Machine, fitted: bool) -> Cost:
    """The cost of `sample_networks` with these arguments, from shapes only. Unless `fitted`, `fit` is included.

    The reference runs on one image of zeros, to find the shapes between its layers.
    """
    trace, statistics, align, held = prepared.trace, prepared.sites, prepared.align, prepared.held
    options, b = spec.options, align.dtype.itemsize
    waits = choose_storage(in_flight_bytes([statistics, spec.sites], [align, held], limits.storage_dtype), limits)
    waiting = (waits.dtype or align.dtype).itemsize if waits.kind == "memory" else 0  # memory for each number
    sizes = Sizes(align.count, held.count, align.size, b, waiting, prepared.max_samples)
    layers, expansions = _layers(trace, align.example)
    passes = 1 if trace.references == 1 else 2  # one more for the rotations
    rest = {} if fitted else {name: work * passes for name, work in _fit(layers, expansions, statistics, sizes).items()}
    routes = choose_routes(spec, sizes.both, align.dtype, limits.storage_dtype)
    sites: list[SiteCost] = []
    pending, profile, features = LAYERS, LAYERS, Work()
    arriving = earlier = 0  # numbers of one image after the previous step; bytes of the sites sampled before
    peak = 0 if fitted else max(_fit_bytes(s, sizes) for s in statistics)
    for place, stats in enumerate(statistics):
        sides = 2 if sites else 1  # reference and sampled network are the same up to the first sampled site
        route = routes.get(stats.site.name, Route(FUSED))
        pending += layers[place] * ((1 if route.name == WIDE else sides) * sizes.both)
        sampled = stats.site.name in spec.widths
        pending += expansions[place] * ((1 if sampled else sides) * sizes.both)
        if not sampled:
            before, arriving = arriving, math.prod(stats.phi_shape) + stats.alive
            each = max(arriving, before) + (sides - 1) * max(arriving, before, math.prod(stats.z_shape))
            peak = max(peak, earlier + waiting * sizes.both * each)
            continue
        refit = options.classifier == "refit" and place == len(statistics) - 1
        apart = _apart(statistics[place + 1 :], routes, sizes, labelled=align.labels is not None)
        own = spec.own(stats.site.name)
        count = SiteCount(own, spec, sizes, first=not sites, route=route, apart=apart)
        site = count.cost(pending, arriving, earlier, _classifier(trace, count) if refit else None)
        sites.append(site)
        peak = max(peak, site.peak_bytes)
        earlier, arriving, pending = earlier + site.disk_bytes, count.phi, LAYERS
        features += count.projection(1)
        if options.accuracy_profile:
            profile += sum(layers[place + 1 :] + expansions[place + 1 :], LAYERS) * sizes.held
    rest["reference"] = pending + profile
    disk = earlier
    peak = max(peak, earlier + 2 * waiting * arriving * sizes.both + _reference_bytes(trace))  # the network is made
    if options.classifier == "retrained":
        rest["classifier"] = layers[-1] * (3 * EPOCHS * sizes.align)  # forward, and two products backward
        numbers = sum(t.numel() for layer in trace.tail().layers().values() for t in layer.state_dict().values())
        peak = max(peak, earlier + 2 * waiting * arriving * sizes.both + b * (arriving * sizes.align + 3 * numbers))
        disk += b * numbers
    elif options.classifier is not None:
        classes, F = _classifier(trace, count if options.classifier == "refit" else None)
        rest["classifier"] = Work(ridge_flops(sizes.align, F, classes), "float64")
        ridge = 0 if options.classifier == "refit" else ridge_bytes(sizes.align, F, b)  # that of refit is its site's
        peak = max(peak, earlier + 2 * waiting * arriving * sizes.both + ridge)
        disk += b * classes * (F + 1) if options.classifier == "refit_aligned" else 0
    for name, data in (("accuracy", align), ("held-out accuracy", held)):
        if data.labels is not None and data.count:
            again = sum(layers[:-1], LAYERS) if options.classifier else LAYERS
            rest[name] = (layers[-1] * 2 + again) * data.count
            if options.classifier:
                rest[f"{name}, features"] = features * data.count
    peak += min(peak, KEPT)
    return Cost(options.method, sizes.align, sizes.held, tuple(sites), rest, peak, disk, machine)


def _apart(later: Sequence[SiteStatistics], routes: Mapping[str, Route], sizes: Sizes, *, labelled: bool) -> int:
    """For how many images phih of a site is computed from stored features, because the layers after it read it.

    After the last site, the layers run on all images if there are labels, and otherwise on one chunk, for a check.
    """
    if not later:
        return sizes.both if labelled else min(sizes.chunk, sizes.align)
    following = routes.get(later[0].site.name)
    return 0 if following is not None and following.name == WIDE else sizes.both


def _bytes(values: Any) -> int:
    """Bytes of a tensor, or of all tensors of an output."""
    return sum(t.nbytes for t in tensors(values))


def _layers(trace: Trace, example: Tensor) -> tuple[list[Work], list[Work]]:
    """The work for one image of each segment of the reference, with the memory of the site at its end; and the products
    of each site, which are those of random features."""
    state: State = (example.clone(),)
    layers, expansions, modules = [], [], [site.reference for site in trace.sites]
    for place in range(len(trace.segments)):
        with FlopCounterMode(display=False) as flops:
            z, *rest = trace.advance(place, state, modules[:place])
        with FlopCounterMode(display=False) as products:
            phi = modules[place](z) if place < len(modules) else z
        expansions.append(Work(products.get_total_flops(), "layers"))
        layers.append(Work(flops.get_total_flops(), "layers", bytes=sum(map(_bytes, (state[0], z, z, phi)))))
        state = (phi, *rest)
    return layers, expansions


def _reference_bytes(trace: Trace) -> int:
    """Memory of the copy of the reference that a sampled network has."""
    return sum(t.nbytes for t in (*trace.reference.parameters(), *trace.reference.buffers()))


def _fit(
    layers: list[Work], expansions: list[Work], statistics: Sequence[SiteStatistics], sizes: Sizes
) -> dict[str, Work]:
    """The work of `fit`: its forward pass, and the second moments of z."""
    moments = Work()
    for s in statistics:
        z = sizes.samples(math.prod(s.z_shape) // s.d), s.d
        moments += Work(cross_covariance_flops(z, []), bytes=COPIES * sizes.itemsize * math.prod(z))
    return {"fit": sum(layers[:-1] + expansions, LAYERS) * sizes.align, "fit, moments": moments}


def _fit_bytes(s: SiteStatistics, sizes: Sizes) -> int:
    """Memory of `fit` at one site: z, phi and temporaries for one chunk, and two second moments."""
    largest = max(math.prod(s.z_shape), math.prod(s.phi_shape))
    return COPIES * sizes.itemsize * min(sizes.chunk, sizes.align) * largest + 2 * 8 * s.d**2


def _classifier(trace: Trace, refit: SiteCount | None) -> tuple[int, int]:
    """Numbers of classes and of features of a new classifier.

    The features are the wide ones of the last site if `refit` is given, or images whose kernel takes their place;
    otherwise those of phih.
    """
    tail = trace.tail()
    if refit is None:
        return tail.last.out_features, tail.last.in_features
    if refit.route.name == LIMIT:
        return tail.last.out_features, refit.images
    phi = torch.empty(1, refit.n, *refit.statistics.phi_shape[1:], device="meta")
    return tail.last.out_features, tail.between(phi).numel()
