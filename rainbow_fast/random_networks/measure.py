# SPDX-License-Identifier: BSD-3-Clause
"""Measures of the orthogonality of activations at every site of a network, before, during and after training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rainbow_fast.arguments import one_of
from rainbow_fast.plots.gaps import gap_by_site
from rainbow_fast.progress import Progress, reported
from rainbow_fast.rainbow.results import Results
from rainbow_fast.random_networks.measured_inputs import Batch, read
from rainbow_fast.random_networks.orthogonality import Activations
from rainbow_fast.tables import cell
from rainbow_fast.tracing.copies import copied
from rainbow_fast.tracing.random_state import untouched
from rainbow_fast.tracing.trace import State, Trace, checked, trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT = ("orthogonality_gap", "effective_rank", "stable_rank", "mean_cosine")
MEASURES = (*DEFAULT, "isometry_gap", "singular_value_gap", "gaussian_distance")
WIDE = ("isometry_gap", "gaussian_distance")  # for at most as many samples as units
OF_DIRECTIONS = ("stable_rank", "mean_cosine")  # for samples that are not zero
PLACES = ("z", "phi")
OUTPUTS = "outputs"


@dataclass(frozen=True)
class SiteMeasures:
    """The measures of one tensor of a network.

    Attributes:
        site: name of the site; ``"outputs"`` for what the network returns.
        place: ``"z"``, the input of the non-linearity; ``"phi"``, its output; or ``"outputs"``.
        units: d, the numbers of one sample.
        values: for each measure, a number for each batch; NaN where it is not defined: all samples are zero; one sample
            is zero, for measures of directions; or there are more samples than units, for `isometry_gap` and
            `gaussian_distance`.
    """

    site: str
    place: str
    units: int
    values: Mapping[str, tuple[float, ...]]

    def mean(self, measure: str = "orthogonality_gap") -> float:
        """The mean of a measure over the batches.

        Raises:
            ValueError: it was not measured.
        """
        values = self._of(measure)
        return sum(values) / len(values)

    def deviation(self, measure: str = "orthogonality_gap") -> float:
        """The standard deviation of a measure over the batches (divisor: batches - 1); NaN for one batch.

        Raises:
            ValueError: it was not measured.
        """
        values, mean = self._of(measure), self.mean(measure)
        if len(values) < 2:
            return math.nan
        return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))

    def _of(self, measure: str) -> tuple[float, ...]:
        return self.values[one_of("measure", measure, self.values)]


class Measures(Results, tuple[SiteMeasures, ...]):
    """The measures of all sites in order of execution, a tuple of `SiteMeasures`; `print` gives a table of means.

    Attributes:
        samples: n, the samples of each batch. Gaps depend on it: see `orthogonality_gap`.
        batches: the number of batches.
    """

    samples: int
    batches: int

    def __new__(cls, sites: Iterable[SiteMeasures] = (), samples: int = 0, batches: int = 0) -> Measures:
        table = super().__new__(cls, sites)
        table.samples, table.batches = samples, batches
        return table

    def to_dict(self) -> dict[str, Any]:
        """Samples, batches, and for each site the mean, the deviation and the values of each measure."""
        sites = []
        for each in self:
            measures = {
                name: {"mean": each.mean(name), "deviation": each.deviation(name), "values": list(values)}
                for name, values in each.values.items()
            }
            sites.append({"site": each.site, "place": each.place, "units": each.units, "measures": measures})
        return {"samples": self.samples, "batches": self.batches, "sites": sites}

    def plot(self, measure: str = "orthogonality_gap") -> Figure:
        """One figure: a measure by site, with one curve for z and one for phi (`plots.gap_by_site`).

        Args:
            measure: its name. For the orthogonality gap, a dashed line is the gap of parallel samples, sqrt(1 - 1/n).

        Returns:
            A `matplotlib.figure.Figure`, 4 inches high.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: it was not measured, or there is no site.
        """
        curves: dict[str, list[tuple[str, tuple[float, ...]]]] = {}
        for each in self:
            curves.setdefault(each.place, []).append((each.site, each._of(measure)))
        levels = {"parallel samples": math.sqrt(1 - 1 / self.samples)} if measure == "orthogonality_gap" else {}
        label = measure.replace("_", " ")
        return gap_by_site(curves, label=label, levels=levels, title=f"{label}, {self.samples} samples")

    def _records(self) -> list[dict[str, Any]]:
        return [
            {"site": each.site, "place": each.place, "units": each.units}
            | {name: each.mean(name) for name in each.values}
            | {f"{name}_deviation": each.deviation(name) for name in each.values}
            for each in self
        ]

    def _cells(self) -> list[list[str]]:
        names = list(self[0].values) if self else []
        rows = [["site", "", "units", *(name.replace("_", " ") for name in names)]]
        for each in self:
            numbers = []
            for name in names:
                mean, deviation = each.mean(name), each.deviation(name)
                spread = "" if math.isnan(deviation) else f" ± {deviation:.1g}"
                numbers.append("-" if math.isnan(mean) else cell(mean) + spread)
            rows.append([each.site, "" if each.place == OUTPUTS else each.place, str(each.units), *numbers])
        return rows

    def _below(self) -> list[str]:
        return [f"{self.batches} batch{'es' * (self.batches != 1)} of {self.samples} samples"]


def measure(
    module: nn.Module,
    batches: object,
    *,
    measures: Iterable[str] = DEFAULT,
    places: Iterable[str] = PLACES,
    pointwise_modules: Iterable[type[nn.Module]] = (),
    progress: Progress | bool | None = None,
) -> Measures:
    """Measure how far from orthogonal the activations of a batch are at every site of a network, and at its outputs.

    The module is copied and traced; no hook is set, and it may be in training. It runs with dropout off. Batch norms in
    train mode use the statistics of the batch, as in training, and those in eval mode their running ones. The module,
    its mode, its running statistics and its gradients do not change. Each sample counts with all of its numbers: a
    feature map (channels, height, width) is one row of channels height width units. All measures are computed in
    float64, and the Gram matrix of a site once for all of them.

    Args:
        module: any network that `sites` can split, of one input or of several.
        batches: a tensor (n, ...), one batch; or a pair (x, y), a dict of inputs, or a loader or list of batches, as in
            `fit`. Labels are not used. All batches have the same number of samples. Several inputs are padded as in
            `fit`; what a site computes at a position that a mask leaves out counts as zero.
        measures: names of measures of `rainbow_fast.random_networks`: ``orthogonality_gap``, ``effective_rank``,
            ``stable_rank``, ``mean_cosine`` (the default), ``isometry_gap``, ``singular_value_gap``,
            ``gaussian_distance``.
        places: ``"z"``, the inputs of the non-linearities, ``"phi"``, their outputs with pooling and batch norm that
            belong to the site, or both (default). The outputs of the network are always measured.
        pointwise_modules: as in `fit`.
        progress: a function that is called as ``progress(done, total, what)`` after each tensor of each batch, with the
            name of its site as ``what``; or True for a bar. The total grows where the number of batches is unknown.

    Returns:
        `Measures`: a row for z and for phi of each site, and one for the outputs if they are a tensor (n, ...).

    Raises:
        TypeError: `module` is not an nn.Module, `batches` are none, or `progress` is no function.
        ValueError: a measure or a place is unknown or there is none; the network cannot be split into sites, or does
            not take the inputs; a batch is empty or has another size; or activations are not finite: the message names
            the site.
    """
    module = checked(module, "module")
    names = _names("measures", measures, MEASURES)
    chosen = _names("places", places, PLACES)
    if next(module.parameters(), None) is None:
        raise ValueError("module: no parameters, wanted a network")
    table: dict[tuple[str, str], tuple[int, dict[str, list[float]]]] = {}
    count, samples, traced = 0, 0, None
    by_batch = any(isinstance(part, _BatchNorm) and part.training for part in module.modules())
    with reported(progress) as report:
        module, inputs, number = read(module, batches)
        for batch in inputs:
            x = batch.x
            if count and len(x) != samples:
                raise ValueError(f"batches: batch {count} has {len(x)} samples, wanted {samples} as in those before it")
            samples, count = len(x), count + 1
            if traced is None or by_batch:
                network = _with_statistics_of(module, x) if by_batch else module
                traced = trace(network, x[:1], tuple(pointwise_modules), "module")
            tensors = 2 * len(traced.sites) + 1
            for done, (site, place, H) in enumerate(_activations(traced, batch), start=(count - 1) * tensors + 1):
                if place == OUTPUTS or place in chosen:
                    units, values = table.setdefault((site, place), (H.shape[1], {name: [] for name in names}))
                    for name, value in _measured(names, H, site, place).items():
                        values[name].append(value)
                if report is not None:
                    report(done, max(number, count) * tensors, site)
    rows = [
        SiteMeasures(site, place, units, {name: tuple(each) for name, each in values.items()})
        for (site, place), (units, values) in table.items()
    ]
    return Measures(rows, samples, count)


class _ByBatch(nn.Module):
    """A batch norm that normalises by its input and keeps these statistics as its running ones."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.norm = norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        dims = [0, *range(2, x.dim())]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        self.norm.running_mean.copy_(wide.mean(dims))
        self.norm.running_var.copy_(wide.var(dims, correction=0))
        return self.norm(x)


@torch.no_grad()
def _with_statistics_of(module: nn.Module, x: Tensor) -> nn.Module:
    """A copy in eval mode whose batch norms have the statistics of the batch x, where those of the module train."""
    network = copied(module)
    norms: dict[str, _BatchNorm] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, _BatchNorm) and part.training and part.running_mean is not None:
            ours = network.get_submodule(name)
            assert isinstance(ours, _BatchNorm)
            norms[name] = ours
    for name, norm in norms.items():
        network.set_submodule(name, _ByBatch(norm))
    with untouched(x.device):
        network(x.clone())
    for name, norm in norms.items():
        network.set_submodule(name, norm)
    return network


@torch.no_grad()
def _activations(traced: Trace, batch: Batch) -> Iterator[tuple[str, str, Tensor]]:
    """z and phi of each site, and the outputs, each (n, d), with the name of the site and of the place."""
    x, counted = batch
    with untouched(x.device):
        state: State = (x.clone(),)  # a network without a graph may write into its input
        done: list[nn.Module] = []
        for number, site in enumerate(traced.sites):
            z, *rest = traced.advance(number, state, done)
            yield site.name, "z", _rows(z, site.axis, counted)
            phi = site.reference(z)
            yield site.name, "phi", _rows(phi, site.axis, counted)
            state = (phi, *rest)
            done.append(site.reference)
        outputs = traced.advance(len(traced.sites), state, done)[0]
        if isinstance(outputs, Tensor) and outputs.dim() > 1 and len(outputs) == len(x):
            yield OUTPUTS, OUTPUTS, _rows(outputs, -1, counted)


def _rows(t: Tensor, axis: int | None, counted: dict[int, Tensor]) -> Tensor:
    """Each sample as one row, (n, d), with zeros at positions that do not count; `axis` is that of channels."""
    space = t.shape[1:-1] if axis == -1 else t.shape[2:]
    if axis is not None and len(space) == 1 and space[0] in counted:
        t = t.masked_fill(~counted[space[0]].unsqueeze(axis), 0)
    return t.flatten(1)


def _measured(names: Iterable[str], H: Tensor, site: str, place: str) -> dict[str, float]:
    """Measures of H (n, d) by name; NaN where one is not defined."""
    if not bool(H.isfinite().all()):
        raise ValueError(f"site {site!r}: {place} is not finite")
    zeros, (n, d) = int((H == 0).all(1).sum()), H.shape
    if zeros == n:
        return dict.fromkeys(names, math.nan)
    defined = {name: not (name in WIDE and n > d or name in OF_DIRECTIONS and zeros) for name in names}
    if n < 2 and "mean_cosine" in defined:
        defined["mean_cosine"] = False
    activations = Activations(H.double())
    return {name: float(getattr(activations, name)()) if defined[name] else math.nan for name in names}


def _names(argument: str, wanted: Iterable[str], allowed: Iterable[str]) -> list[str]:
    """The wanted names, each checked."""
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise TypeError(f"{argument}={wanted!r}: wanted several names, such as {tuple(allowed)[:2]}")
    names = [one_of(argument, name, allowed) for name in wanted]
    if not names:
        raise ValueError(f"{argument}: none, wanted some of {', '.join(allowed)}")
    return names
