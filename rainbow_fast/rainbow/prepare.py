# SPDX-License-Identifier: BSD-3-Clause
"""The checked arguments of `fit`: the reference with its sites, and the data in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.joint_inputs import is_plain
from rainbow_fast.networks.scattering import ComplexConv2d
from rainbow_fast.nn.addresses import warn_if_shared
from rainbow_fast.rainbow.chunks import Data, runs_channels_last
from rainbow_fast.rainbow.holdout import Part, Split, split
from rainbow_fast.rainbow.inputs import dtype_of_inputs, taking
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.options import DataLimits, FitOptions
from rainbow_fast.rainbow.scores import Score
from rainbow_fast.rainbow.site_statistics import SiteStatistics, warn_if_few
from rainbow_fast.tracing.joined import join
from rainbow_fast.tracing.random_state import untouched
from rainbow_fast.tracing.same_function import COMPARED, check
from rainbow_fast.tracing.trace import State, Trace, checked, trace

CHUNK_NUMBERS = 2**21  # size of the reference's largest feature map for one chunk of samples
MOST_CHUNK_NUMBERS = 2**24  # the same where wide layers make larger chunks worth their memory
POSITIONS_A_ROW = 4  # samples for each row of a layer's weights, which make the pass over the weights cheap
COMPARED_PART = 8  # at most this part of the samples is compared; all of them would take as long as a run
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Prepared:
    """Everything that networks are sampled from: a traced reference, its sites, and the data in chunks.

    Attributes:
        trace: of the reference; with several references, the trace of the network that is their mean.
        traces: each reference with its own trace.
        sites: a `SiteStatistics` for each site. They have no moments before `fit` measures them.
        align, held: the alignment set and the held-out data.
        options: the options of `fit`.
        holdout_seed: the seed with which the held-out samples were drawn from the data; None if they are other data, or
            none.
    """

    trace: Trace
    traces: tuple[tuple[nn.Module, Trace], ...]
    sites: tuple[SiteStatistics, ...]
    align: Data
    held: Data
    options: FitOptions
    holdout_seed: int | None = None

    @property
    def max_samples(self) -> int:
        """Number of samples that the moments of a site are estimated from, at most."""
        return self.options.max_samples

    @property
    def score(self) -> Score:
        """How outputs are compared with labels."""
        return Score(self.options.output, self.options.metric)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights of the reference."""
        return self.trace.fingerprint

    def on(self, data: object, options: FitOptions, limits: DataLimits, *, labelled: bool = True) -> Prepared:
        """The same reference with other data. The reference is compared with its trace on some samples."""
        parts = _alone(split(data, options, limits, labelled=labelled), self.traces[0][0])
        if parts[0].inputs != self.align.joint:
            raise ValueError(f"data: inputs {parts[0].inputs}, wanted {self.align.joint}")
        align, held = (self._chunks(part) for part in parts)
        prepared = replace(self, align=align, held=held, options=options, holdout_seed=_seed(parts[1], options))
        prepared.check(prepared.first_samples())
        return prepared

    def first_samples(self) -> Tensor:
        """The samples that the reference is compared on: a part of the first chunk, which costs little beside a run."""
        return self.align.chunk(0)[: max(self.align.count // COMPARED_PART, COMPARED)]

    def check(self, x: Tensor, names: tuple[str, str] = ("reference", "data")) -> None:
        """Compare each reference with its trace on the samples x, and check the labels against its outputs.

        Args:
            names: of the reference and of the data, for messages.

        Raises:
            TypeError, ValueError: the reference is not the function that was traced, or labels are not classes of its
                outputs.

        Warns:
            UserWarning: a site has fewer samples than twice its channels.
        """
        pointwise = tuple(self.options.pointwise_modules)
        for data in (self.align, self.held):
            _ = data.attended  # raises the error of masks
        for number, (network, traced) in enumerate(self.traces, 1):
            name = names[0] + f" (number {number})" * (len(self.traces) > 1)
            counts = None if self.options.output is None else self.score.of
            outputs = check(network, traced, x, pointwise, name, counts)
        for name, each in ((names[1], self.align), ("holdout", self.held)):
            if each.labels is not None:
                self.score.check(each.labels, outputs, name)
        for s in self.sites:
            if not (s.site.output or s.site.gate):
                warn_if_few(s.site.name, self.align.count * s.positions, s.width)

    def _chunks(self, part: Part) -> Data:
        return replace(self.align, x=part.x, labels=part.labels_on(self.align.device), index=part.index)


def prepare(
    reference: nn.Module | Sequence[nn.Module],
    data: object,
    options: FitOptions,
    limits: DataLimits,
    *,
    names: tuple[str, str] = ("reference", "data"),
    labelled: bool = True,
    only_shapes: bool = False,
) -> Prepared:
    """Check the arguments of `fit`, trace the reference, find its sites, and collect the data.

    Args:
        names: of the first two arguments, for messages.
        data: as in `fit`; or the result of `split`.
        labelled: whether labels are used.
        only_shapes: if True, only shapes are needed. The reference then runs on a single sample, and
            `options.images` may be larger than the number of samples. If False, the reference is compared with its
            trace on some samples.

    Raises:
        TypeError, ValueError: as `fit`.
    """
    references = _check_references(reference, names[0])
    device, dtype = _check_parameters(references[0], names[0])
    parts = split(data, options, limits, labelled=labelled, only_shapes=only_shapes)
    references, parts = _joint(references, parts, names)
    inputs = dtype_of_inputs(references[0], parts[0].first, device, dtype)
    example = as_numbers(parts[0].first, device, inputs)
    kinds = options.pointwise_modules
    axes = options.channel_axes
    traces = tuple((network, trace(network, example, kinds, names[0], axes)) for network in references)
    if not traces[0][1].sites:
        reasons = "".join(f"; {each.name!r}: {each.reason}" for each in traces[0][1].left)
        raise ValueError(f"{names[0]}: no site, wanted at least one pointwise non-linearity{reasons}")
    joined = traces[0][1] if len(traces) == 1 else join([traced for _, traced in traces], example)
    sites = site_shapes(joined, example)
    size = options.batch_size or chunk_size(sites, example)
    last = runs_channels_last((each for _, each in traces), example)
    align, held = (
        Data(part.x, part.labels_on(device), size, device, dtype, part.index, last, inputs, part.inputs)
        for part in parts
    )
    prepared = Prepared(joined, traces, sites, align, held, options, _seed(parts[1], options))
    prepared.check(example if only_shapes else prepared.first_samples(), names)
    for network in references:
        warn_if_shared(network, stacklevel=5)
    return prepared


def _joint(references: list[nn.Module], parts: Split, names: tuple[str, str]) -> tuple[list[nn.Module], Split]:
    """Networks that take the rows of several inputs, if the data have them; a single first input stays as it is."""
    parts = _alone(parts, references[0])
    layout = parts[0].inputs
    if layout is None:
        return references, parts
    if len(references) > 1:
        raise ValueError(f"{names[1]}: several inputs ({layout}), wanted one for several references")
    return [taking(references[0], layout, names)], parts


def _alone(parts: Split, network: nn.Module) -> Split:
    """The data as a tensor, if they have a single input, which is the first one of the network."""
    layout = parts[0].inputs
    if layout is None or not is_plain(layout, network):
        return parts
    first, second = (replace(part, x=layout.split(part.x)[0], inputs=None) for part in parts)
    return first, second


def _seed(held: Part, options: FitOptions) -> int | None:
    """The seed with which samples were drawn; None if they were not drawn."""
    return None if held.index is None else options.holdout_seed


def chunk_size(sites: Sequence[SiteStatistics], example: Tensor) -> int:
    """Number of samples whose largest feature map has about `CHUNK_NUMBERS` numbers; at least 1.

    Of several features of a neuron, one counts: kernels compute and use one after the other.

    If a site has many channels and few positions, it is the number of samples that have `POSITIONS_A_ROW` positions for
    each channel, up to `MOST_CHUNK_NUMBERS` numbers.
    """
    maps = [(math.prod(s.z_shape), math.prod(s.phi_shape) // s.site.features) for s in sites]
    largest = max(math.prod(example.shape[1:]), *(numbers for site in maps for numbers in site))
    worth = max(POSITIONS_A_ROW * s.d**2 // math.prod(s.z_shape) for s in sites)
    return max(CHUNK_NUMBERS // largest, min(worth, MOST_CHUNK_NUMBERS // largest), 1)


def _check_references(reference: object, name: str) -> list[nn.Module]:
    """The references as a list; all must have the same device and dtype."""
    references: list[nn.Module] = list(reference) if isinstance(reference, list | tuple) else [reference]  # type: ignore[list-item]
    if not references:
        raise ValueError(f"{name}: got an empty list, wanted at least one nn.Module")
    references = [checked(network, name) for network in references]
    kinds = []
    for network in references:
        kinds.append(_check_parameters(network, name))
        if kinds[-1] != kinds[0]:
            here, there = (f"{dtype} on {device}" for device, dtype in (kinds[-1], kinds[0]))
            raise TypeError(f"{name}: number {len(kinds)} is {here}, the first {there}: wanted one dtype and device")
    return references


def _check_parameters(reference: nn.Module, argument: str) -> tuple[torch.device, torch.dtype]:
    parameters = dict(reference.named_parameters())
    if not parameters:
        raise ValueError(f"{argument}: no parameters, wanted a network with linear layers")
    first = next(iter(parameters.values()))
    allowed = {id(p) for m in reference.modules() if isinstance(m, ComplexConv2d) for p in m.parameters()}
    dtype = first.dtype.to_real() if id(first) in allowed else first.dtype
    for name, p in parameters.items():
        own = p.dtype.to_real() if id(p) in allowed else p.dtype
        if own not in DTYPES or own != dtype or p.device != first.device:
            raise TypeError(
                f"{argument}: parameter {name!r} is {p.dtype} on {p.device}: wanted float32, float64, bfloat16 or "
                "float16, and one dtype and device for all; complex weights in a ComplexConv2d only"
            )
    return first.device, dtype


@torch.no_grad()
def site_shapes(traced: Trace, example: Tensor) -> tuple[SiteStatistics, ...]:
    """Every site with its shapes, as the trace knows them or by running one input; no moments yet.

    The random state is not changed.
    """
    if traced.sizes is not None and traced.example is not None and traced.example.shape == example.shape:
        return tuple(
            SiteStatistics(
                site,
                z[-1 if site.axis == -1 else 0],
                z,
                phi,
                alive,
                example.device,
                CrossCovariance(site.name, precision="highest"),
            )
            for site, (z, phi, alive) in zip(traced.sites, traced.sizes, strict=True)
        )
    with untouched(example.device):
        return tuple(_shapes(traced, example))


@torch.no_grad()
def own_shapes(own: Trace, reference: Trace, example: Tensor) -> tuple[SiteStatistics, ...]:
    """The sites of a network with its own layers, found by running one input.

    Every site receives the reference's phi of the site before, so that only z differs from the reference.
    """
    with untouched(example.device):
        phis = []
        state: State = (example.clone(),)
        for place, site in enumerate(reference.sites):
            z, *rest = reference.advance(place, state, [s.reference for s in reference.sites[:place]])
            phis.append(site.reference(z))
            state = (phis[-1], *rest)
        return tuple(_shapes(own, example, phis))


def _shapes(traced: Trace, example: Tensor, phis: Sequence[Tensor] | None = None) -> Iterator[SiteStatistics]:
    """Each site with its shapes, in order; `phis`, if given, replace the outputs of the sites."""
    state: State = (example.clone(),)  # a network without a graph may write into its input
    for place, site in enumerate(traced.sites):
        z, *rest = traced.advance(place, state, [s.reference for s in traced.sites[:place]])
        if z.dim() > 2 and site.axis is None:
            raise ValueError(
                f"site {site.name!r}: the channel axis of z, of shape {tuple(z.shape)}, is ambiguous: wanted (N, d), "
                "or a convolution or linear layer before it"
            )
        phi = site.reference(z) if phis is None else phis[place]
        state = (phi, *rest)
        d = z.shape[-1 if site.axis == -1 else 1]
        alive = sum(t.numel() for t in {id(t): t for t in rest if isinstance(t, Tensor)}.values())
        moments = CrossCovariance(site.name, precision="highest")
        yield SiteStatistics(site, d, tuple(z.shape[1:]), tuple(phi.shape[1:]), alive, example.device, moments)
