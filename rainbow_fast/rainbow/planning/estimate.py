# SPDX-License-Identifier: BSD-3-Clause
"""What a sampling run takes: the steps of `sampling.sample_network`, and of `fit`, counted from shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from rainbow_fast.rainbow.alignment.classifier import RIDGES
from rainbow_fast.rainbow.options import Limits
from rainbow_fast.rainbow.planning.cost import Cost, SiteCost, Work
from rainbow_fast.rainbow.planning.machine import Machine
from rainbow_fast.rainbow.planning.site_cost import SiteCount, Sizes
from rainbow_fast.rainbow.prepare import Prepared
from rainbow_fast.rainbow.sampling.flight import in_flight_bytes
from rainbow_fast.rainbow.sampling.storage import choose_storage
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.rainbow.spec import NetworkSpec
from rainbow_fast.tracing.trace import State, Trace

LAYERS = Work(rate="layers")  # none yet


@torch.no_grad()
def estimate(prepared: Prepared, spec: NetworkSpec, limits: Limits, *, machine: Machine, fitted: bool) -> Cost:
    """What `sample_networks` takes with these arguments, from shapes alone; and `fit` before it, unless `fitted`.

    One image of zeros goes through the reference, for the shapes between its layers.
    """
    trace, statistics, align, held = prepared.trace, prepared.sites, prepared.align, prepared.held
    plan, max_samples = spec, prepared.max_samples
    waits = choose_storage(in_flight_bytes(statistics, 1, [align, held], limits.storage_dtype), limits)
    waiting = (waits.dtype or align.dtype).itemsize if waits.kind == "memory" else 0  # bytes of memory of a number
    b = align.dtype.itemsize
    sizes = Sizes(align.count, held.count, align.size, b, waiting, max_samples)
    layers, steps = _layers(trace, align.example)
    passes = 1 if trace.references == 1 else 2  # one more, for the rotations
    rest = {} if fitted else {k: work * passes for k, work in _fit(layers, steps, statistics, sizes).items()}
    sites: list[SiteCost] = []
    pending, profile, features = LAYERS, LAYERS, Work()
    arriving = kept = 0  # numbers of one image from the step before; bytes that stay of the sites before
    peak = 0 if fitted else max(_fit_bytes(s, sizes) for s in statistics)
    for place, known in enumerate(statistics):
        sides = 2 if sites else 1  # reference and sample are one up to the first sampled site
        pending += layers[place] * (sides * sizes.both)
        if known.site.name not in plan.widths:
            pending += steps[place] * (sides * sizes.both)
            arriving = math.prod(known.phi_shape) + known.alive
            peak = max(peak, kept + waiting * sides * sizes.both * max(arriving, math.prod(known.z_shape)))
            continue
        refit = plan.options.classifier == "refit" and place == len(statistics) - 1
        count = SiteCount(known, plan, sizes, first=not sites)
        site = count.cost(pending, arriving, kept, _classifier(trace, count) if refit else None)
        sites.append(site)
        peak = max(peak, site.peak_bytes)
        kept, arriving, pending = kept + site.disk_bytes, count.phi, LAYERS
        features += count.projection(1)
        if plan.options.accuracy_profile:
            profile += sum([*layers[place + 1 :], *steps[place + 1 :]], LAYERS) * sizes.held
    rest["reference"] = pending + profile
    disk = kept
    if plan.options.classifier is not None:
        classes, width = _classifier(trace, count if plan.options.classifier == "refit" else None)
        rest["classifier"] = _ridge(sizes.align, width, classes)
        peak = max(peak, kept + 2 * waiting * arriving * sizes.both + _ridge_bytes(sizes.align, width, b))
        disk += b * classes * (width + 1) if plan.options.classifier == "refit_aligned" else 0
    for name, data in (("accuracy", align), ("held-out accuracy", held)):
        if data.labels is not None and data.count:
            again = sum([*layers[:-1], *steps], LAYERS) if plan.options.classifier else LAYERS
            rest[name] = (layers[-1] * 2 + again) * data.count
            if plan.options.classifier:
                rest[f"{name}, features"] = features * data.count
    return Cost(plan.options.method, sizes.align, sizes.held, tuple(sites), rest, peak, disk, machine)


def _layers(trace: Trace, example: Tensor) -> tuple[list[Work], list[Work]]:
    """Of one image: each segment between sites, and each site, as the reference computes them."""
    state: State = (example.new_zeros(1, *example.shape[1:]),)
    segments, sites = [], []
    done: list[nn.Module] = []
    for place in range(len(trace.segments)):
        with FlopCounterMode(display=False) as flops, _Traffic() as moved:
            z, *rest = trace.advance(place, state, done)
        segments.append(Work(float(flops.get_total_flops()), "layers", bytes=float(moved.bytes)))
        if place < len(trace.sites):
            phi = trace.sites[place].reference(z)
            sites.append(Work(rate="layers", bytes=float(z.nbytes + phi.nbytes)))
            state = (phi, *rest)
            done.append(trace.sites[place].reference)
    return segments, sites


class _Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move nothing, and weights stay in the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            given = next((t for t in tree_leaves(args) if isinstance(t, Tensor)), None)
            self.bytes += result.nbytes + (0 if given is None else given.nbytes)
        return result


def _fit(layers: list[Work], steps: list[Work], statistics: Sequence[SiteStatistics], sizes: Sizes) -> dict[str, Work]:
    """The forward pass of `fit` and its second moments of z, one triangle of each."""
    moments = Work()
    for s in statistics:
        z = math.prod(s.z_shape)
        samples = sizes.samples(z // s.d)
        moments += Work(1.0 * samples * s.d * (s.d + 1), bytes=float(6 * sizes.itemsize * samples * s.d))
    return {"fit": sum([*layers[:-1], *steps], LAYERS) * sizes.align, "fit, moments": moments}


def _fit_bytes(s: SiteStatistics, sizes: Sizes) -> int:
    """z, phi and what their moments are made of, for a chunk; two of its second moments."""
    largest = max(math.prod(s.z_shape), math.prod(s.phi_shape))
    return 4 * sizes.itemsize * min(sizes.chunk, sizes.align) * largest + 2 * 8 * s.d**2


def _classifier(trace: Trace, refit: SiteCount | None) -> tuple[int, int]:
    """Classes and features of a refit classifier: of the wide features of the last site, or else of phih."""
    tail = trace.tail()
    if refit is None:
        return tail.last.out_features, tail.last.in_features
    phi = torch.empty(1, refit.n, *refit.known.phi_shape[1:], device="meta")
    return tail.last.out_features, tail.between(phi).numel()


def _ridge(N: int, F: int, classes: int) -> Work:
    """Of `ridge_classifier`: a Gram matrix of four fifths of the samples and one of all, a solve for each ridge and one
    more."""
    flops = 0.0
    for samples, ridges in ((N - N // 5, len(RIDGES)), (N, 1)):
        short, long = min(samples, F), max(samples, F)
        flops += 2.0 * short**2 * long + ridges * (short**3 / 3 + 2.0 * classes * (short**2 + samples * F))
    return Work(flops, "float64", bytes=8.0 * 8 * N * F)


def _ridge_bytes(N: int, F: int, itemsize: int) -> int:
    """The features as they come and in one piece, in float64 as they are and centred; or the Gram matrix, thrice."""
    return 2 * itemsize * N * F + 8 * N * F + 8 * max(N * F, 3 * min(N, F) ** 2)
