# SPDX-License-Identifier: BSD-3-Clause
"""What of a network would be sampled, before anything is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from rainbow_fast.data import batches
from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.rainbow.prepare import site_shapes
from rainbow_fast.rainbow.site_statistics import reason_kept
from rainbow_fast.tables import aligned
from rainbow_fast.tracing.site import Site
from rainbow_fast.tracing.trace import trace


@dataclass(frozen=True)
class SiteInfo:
    """One site.

    Attributes:
        name: by which `sample` knows it.
        activation: the kind of its non-linearity, with the pooling and the normalisation that belong to it.
        fused: whether it runs in the fused kernels, which store no features.
        channels, z_shape, phi_shape: neurons; shapes of one sample before and behind it; None without data.
        kept: why it is not sampled unless it is named, None for what is.
    """

    name: str
    activation: str
    fused: bool
    channels: int | None
    z_shape: tuple[int, ...] | None
    phi_shape: tuple[int, ...] | None
    kept: str | None


class Sites(tuple[SiteInfo, ...]):
    """All sites in order of execution; `print` gives a table."""

    def __str__(self) -> str:
        rows = [["site", "non-linearity", "channels", "z", "phi", "sampled"]]
        for site in self:
            shapes = ["x".join(map(str, shape)) if shape else "-" for shape in (site.z_shape, site.phi_shape)]
            rows.append([site.name, site.activation, str(site.channels or "-"), *shapes, site.kept or "yes"])
        return "\n".join(aligned(rows))


def sites(reference: nn.Module, data: object = None, *, pointwise: Iterable[type[nn.Module]] = ()) -> Sites:
    """The sites of a network: what `fit` and `sample` find in it.

    Args:
        reference, pointwise: as in `fit`.
        data: as in `fit`; of it one sample is read, for the shapes, which are unknown without.

    Raises:
        TypeError, ValueError: a network that cannot be cut into sites, as in `fit`; data that cannot be used.
    """
    if not isinstance(reference, nn.Module):
        raise TypeError(f"reference: wanted an nn.Module, got {type(reference).__name__}")
    example: Tensor | None = None
    if data is not None:
        like = next(reference.parameters(), None)
        if like is None:
            raise ValueError("reference: no parameters, wanted a network with linear layers")
        example = as_numbers(next(iter(batches(data)))[0][:1], like.device, like.dtype)
    traced = trace(reference, example, pointwise)
    infos: list[SiteInfo] = []
    shapes = [None] * len(traced.sites) if example is None else site_shapes(traced, example)
    for site, statistics in zip(traced.sites, shapes, strict=True):
        info = SiteInfo(site.name, described(site), site.fused, None, None, None, reason_kept(site))
        if statistics is not None:
            info = replace(info, channels=statistics.d, z_shape=statistics.z_shape, phi_shape=statistics.phi_shape)
        infos.append(info)
    return Sites(infos)


def described(site: Site) -> str:
    """Its parts in order: ``MaxPool2d + ReLU``."""
    return " + ".join(
        type(part).__name__ for part in (site.before, site.sigma, site.after, site.norm) if part is not None
    )
