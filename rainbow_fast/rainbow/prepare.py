# SPDX-License-Identifier: BSD-3-Clause
"""What is given to fit, checked: the reference with its sites, the data in chunks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rainbow_fast.arguments import integer
from rainbow_fast.data.gather import gather
from rainbow_fast.data.samples import as_numbers, check_classes
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.sampling.flight import Data
from rainbow_fast.rainbow.site_statistics import SiteStatistics
from rainbow_fast.tracing.joined import join
from rainbow_fast.tracing.random_state import untouched
from rainbow_fast.tracing.same_function import check
from rainbow_fast.tracing.trace import State, Trace, trace

HOLDOUT = 0.1
CHUNK_NUMBERS = 2**21  # numbers of the largest map of the reference in one chunk of samples
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def prepare(
    reference: nn.Module | Sequence[nn.Module],
    data: object,
    holdout: object,
    max_samples: int,
    pointwise: Iterable[type[nn.Module]],
    images: int | None = None,
    memory_budget: int | None = None,
    scratch: str | None = None,
    labelled: bool = True,
    only_shapes: bool = False,
) -> tuple[Trace, tuple[SiteStatistics, ...], Data, Data]:
    """Checks the arguments of `fit`; the trace of the reference, its sites without moments, the two data sets.

    `images`: as if `data` had so many. `labelled`: labels are wanted. `only_shapes`: the reference runs on one sample,
    else on the first chunk, on which it is compared with its trace.
    """
    references = _checked(reference)
    device, dtype = _check_parameters(references[0])
    max_samples = integer("max_samples", max_samples, 1)
    if isinstance(holdout, int | float | np.number) and not 0 <= holdout < 1:
        raise ValueError(f"holdout={holdout}: wanted a share of the data, 0 <= holdout < 1, or data")
    limits: dict[str, Any] = {"memory_budget": memory_budget, "scratch": scratch, "labelled": labelled}
    x, y = gather(data, "data", **limits)
    if images is not None:
        x, y = repeat(x, images), None if y is None else repeat(y, images)
    if holdout is None or isinstance(holdout, int | float | np.number):
        kept = len(x) - int(len(x) * (HOLDOUT if holdout is None else holdout))
        (x, x_held), (y, y_held) = (x[:kept], x[kept:]), (None, None) if y is None else (y[:kept], y[kept:])
    else:
        x_held, y_held = gather(holdout, "holdout", **limits)
        if x_held.shape[1:] != x.shape[1:]:
            came, wanted = tuple(x_held.shape[1:]), tuple(x.shape[1:])
            raise ValueError(f"holdout: samples of shape {came}, wanted {wanted} as in data")
    example, pointwise = as_numbers(x[:1], device, dtype), tuple(pointwise)
    cuts = [trace(network, example, pointwise) for network in references]
    if not cuts[0].sites:
        raise ValueError("reference: no site, wanted at least one pointwise non-linearity")
    cut = cuts[0] if len(cuts) == 1 else join(cuts, example)
    sites = site_shapes(cut, example)
    size = chunk_size(sites, example)
    made = [Data(x, _to(y, device), size, device, dtype), Data(x_held, _to(y_held, device), size, device, dtype)]
    first = example if only_shapes else made[0].chunk(0)
    for number, (network, its) in enumerate(zip(references, cuts, strict=True), 1):
        outputs = check(network, its, first, pointwise, "reference" + f" (number {number})" * (len(cuts) > 1))
    for name, each in zip(("data", "holdout"), made, strict=True):
        if each.labels is not None:
            check_classes(each.labels, outputs, name)
    for s in sites:
        if not (s.site.output or s.site.gate):
            warn_if_few(s.site.name, len(x) * s.positions, s.channels)
    return cut, sites, made[0], made[1]


def chunk_size(sites: Sequence[SiteStatistics], example: Tensor) -> int:
    """Samples whose largest map has about `CHUNK_NUMBERS` numbers."""
    largest = max(math.prod(shape) for s in sites for shape in (s.z_shape, s.phi_shape, example.shape[1:]))
    return max(CHUNK_NUMBERS // largest, 1)


def repeat(x: Tensor, images: int) -> Tensor:
    """So many views of the first image, which take no memory.

    Raises:
        TypeError, ValueError: `images` is no integer of at least 1.
    """
    images = integer("images", images, 1)
    return x[:1].expand(images, *x.shape[1:])


def _to(y: Tensor | None, device: torch.device) -> Tensor | None:
    return None if y is None else y.to(device)


def _checked(reference: object) -> list[nn.Module]:
    """One network or several, of one device and dtype."""
    given = reference if isinstance(reference, list | tuple) else [reference]
    if not given:
        raise ValueError("reference: got an empty list, wanted at least one nn.Module")
    references: list[nn.Module] = []
    found = []
    for network in given:
        if not isinstance(network, nn.Module):
            raise TypeError(f"reference: wanted an nn.Module, got {type(network).__name__}")
        references.append(network)
        found.append(_check_parameters(network))
        if found[-1] != found[0]:
            here, there = (f"{dtype} on {device}" for device, dtype in (found[-1], found[0]))
            raise TypeError(f"reference: number {len(found)} is {here}, the first {there}: wanted one dtype and device")
    return references


def _check_parameters(reference: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameters = dict(reference.named_parameters())
    if not parameters:
        raise ValueError("reference: no parameters, wanted a network with linear layers")
    first = next(iter(parameters.values()))
    for name, p in parameters.items():
        if p.dtype not in DTYPES or p.dtype != first.dtype or p.device != first.device:
            raise TypeError(
                f"reference: parameter {name!r} is {p.dtype} on {p.device}: wanted float32, float64, bfloat16 or "
                "float16, and one dtype and device for all"
            )
    return first.device, first.dtype


@torch.no_grad()
def site_shapes(cut: Trace, example: Tensor) -> tuple[SiteStatistics, ...]:
    """Every site with its shapes, for one input; no moments yet. Random state is left as it was."""
    with untouched(example.device):
        return tuple(_shapes(cut, example))


def _shapes(cut: Trace, example: Tensor) -> Iterator[SiteStatistics]:
    state: State = (example.clone(),)  # a network without a graph may write into its input
    for place, site in enumerate(cut.sites):
        z, *rest = cut.advance(place, state, [s.reference for s in cut.sites[:place]])
        if z.dim() > 2 and site.axis is None:
            raise ValueError(
                f"site {site.name!r}: the channel axis of z, of shape {tuple(z.shape)}, is ambiguous: wanted (N, d), "
                "or a convolution or linear layer before it"
            )
        phi = site.reference(z)
        state = (phi, *rest)
        d = z.shape[-1 if site.axis == -1 else 1]
        alive = sum(t.numel() for t in {id(t): t for t in rest if isinstance(t, Tensor)}.values())
        moments = CrossCovariance(site.name)
        yield SiteStatistics(site, d, tuple(z.shape[1:]), tuple(phi.shape[1:]), alive, moments)


def warn_if_few(site: str, samples: int, d: int) -> None:
    if samples < 2 * d:
        warnings.warn(
            f"site {site!r}: {samples} samples for {d} channels: an alignment over-fits with fewer than 2 d = {2 * d}",
            UserWarning,
            stacklevel=5,
        )
