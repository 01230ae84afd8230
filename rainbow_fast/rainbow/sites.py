# SPDX-License-Identifier: BSD-3-Clause
"""The sites of a network, and which of them would be sampled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rainbow_fast.data.batching import batches, rows_of
from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.fields import renamed
from rainbow_fast.joint_inputs import JointInputs, layout_of
from rainbow_fast.nn.addresses import warn_if_shared
from rainbow_fast.plots.by_site import channels_by_site
from rainbow_fast.rainbow.inputs import dtype_of_inputs, taking
from rainbow_fast.rainbow.prepare import site_shapes
from rainbow_fast.rainbow.results import Results
from rainbow_fast.rainbow.site_statistics import reason_kept
from rainbow_fast.tracing.site import Site
from rainbow_fast.tracing.trace import checked, trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SiteInfo:
    """One site of a network.

    Attributes:
        name: the name that options such as `sites` and `width` use.
        activation: classes of its non-linearity, and of the pooling and the normalisation that belong to it.
        fused: whether fused kernels compute it, which store no features.
        channels: number of channels of its input z; None without data, and if it cannot be sampled.
        z_shape, phi_shape: shapes of its input and its output for one sample; None without data, and as above.
        kept: why it is not sampled by default, or not at all; None if it is sampled.
    """

    name: str
    activation: str
    fused: bool
    channels: int | None
    z_shape: tuple[int, ...] | None
    phi_shape: tuple[int, ...] | None
    kept: str | None


class Sites(Results, tuple[SiteInfo, ...]):
    """All sites in order of execution, a tuple of `SiteInfo`; `print` gives a table.

    Non-linearities that cannot be sampled are listed too, with the reason and without shapes.

    Attributes:
        route: how they were found: ``"graph"``: in the graph of the network, with all functions; ``"modules"``: among
            the modules that the network calls, because torch.fx cannot trace it.
    """

    route: str

    def __new__(cls, sites: Iterable[SiteInfo] = (), route: str = "graph") -> Sites:
        table = super().__new__(cls, sites)
        table.route = route
        return table

    def to_dict(self) -> dict[str, Any]:
        """The sites as numbers, strings, lists and dicts."""
        sites = [{name: list(v) if isinstance(v, tuple) else v for name, v in each.items()} for each in self._records()]
        return {"sites": sites}

    def plot(self) -> Figure:
        """One figure: channels by site, and which sites are sampled (`plots.channels_by_site`).

        Returns:
            A `matplotlib.figure.Figure` of 8 by at most 10.5 inches.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: there are no sites, or their channels are unknown: `sites` was called without data.
        """
        records = [record for record in self._records() if record["channels"] is not None]
        if len(self) and not records:
            raise ValueError("sites: channels are unknown without data, wanted sites(reference, data)")
        kept = sum(site.kept is not None for site in self)
        return channels_by_site(records, title=f"sites: {len(self) - kept} sampled, {kept} kept")

    def _below(self) -> list[str]:
        sampled = sum(site.kept is None for site in self)
        return [f"{sampled} of {len(self)} non-linearities sampled, by {self.route}"]

    def _records(self) -> list[dict[str, Any]]:
        return [asdict(site) for site in self]

    def _cells(self) -> list[list[str]]:
        rows = [["site", "non-linearity", "channels", "z", "phi", "sampled"]]
        for site in self:
            shapes = ["x".join(map(str, shape)) if shape else "-" for shape in (site.z_shape, site.phi_shape)]
            rows.append([site.name, site.activation, str(site.channels or "-"), *shapes, site.kept or "yes"])
        return rows


@renamed(pointwise="pointwise_modules")
def sites(
    reference: nn.Module,
    data: object = None,
    *,
    pointwise_modules: Iterable[type[nn.Module]] = (),
    channel_axes: Mapping[str, int] | None = None,
) -> Sites:
    """The sites that `fit` and `sample` find in a network.

    Args:
        reference, pointwise_modules, channel_axes: as in `fit`.
        data: as in `fit`; one sample is read, to find the shapes. Without data (default) the shapes are None.

    Returns:
        `Sites`; `print` gives a table.

    Raises:
        TypeError, ValueError: the network cannot be split into sites, as in `fit`; or the data cannot be used.

    Warns:
        UserWarning: two layers have the same random features, as in `fit`.
    """
    reference = checked(reference, "reference")
    example: Tensor | None = None
    if data is not None:
        like = next(reference.parameters(), None)
        if like is None:
            raise ValueError("reference: no parameters, wanted a network with linear layers")
        first = rows_of(next(iter(batches(data)))[0], 0, 1)
        if isinstance(first, dict):
            layout = JointInputs.of(first)
            reference = taking(reference, layout)
            first = next(iter(first.values())) if layout_of(reference) is None else layout.join(first)
        example = as_numbers(first, like.device, dtype_of_inputs(reference, first, like.device, like.dtype.to_real()))
    traced = trace(reference, example, pointwise_modules, channel_axes=channel_axes)
    warn_if_shared(reference, stacklevel=3)
    infos: list[SiteInfo] = []
    left = [SiteInfo(each.name, each.function, False, None, None, None, each.reason) for each in traced.left]
    places = [each.place for each in traced.left]
    shapes = [None] * len(traced.sites) if example is None else site_shapes(traced, example)
    for site, statistics in zip(traced.sites, shapes, strict=True):
        info = SiteInfo(site.name, described(site), site.fused, None, None, None, reason_kept(site))
        if statistics is not None:
            info = replace(info, channels=statistics.d, z_shape=statistics.z_shape, phi_shape=statistics.phi_shape)
        infos += [each for each, place in zip(left, places, strict=True) if place == site.index] + [info]
    infos += [each for each, place in zip(left, places, strict=True) if place == len(traced.sites)]
    return Sites(infos, "modules" if traced.graph is None else "graph")


def described(site: Site) -> str:
    """The classes of the site's parts in order, such as ``MaxPool2d + ReLU``."""
    return " + ".join(
        type(part).__name__
        for part in (site.before, site.expansion, site.sigma, site.after, site.norm)
        if part is not None
    )
