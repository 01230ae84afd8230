# SPDX-License-Identifier: BSD-3-Clause
"""Sites whose neurons have several features: the kernels compute and use one of them, of all neurons, at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.ops.activations import MODULUS
from rainbow_fast.ops.center import first_center, spread_samples
from rainbow_fast.ops.random_features import random_features, random_features_covariance, random_features_projection
from rainbow_fast.rainbow.channel_moments import NEAR
from rainbow_fast.rainbow.laws.rows import ROW_BLOCK
from rainbow_fast.rainbow.network.features import FeatureSite, Select, Stored, blocks, pass_block, projection_blocks

Pass = tuple[Tensor, Tensor | None, dict[str, Any]]  # u and the shift of one feature, and the activation


class EachFeature(Stored):
    """As `Fused`, one feature after the other. Only `rows`, and the choice of the first center, store features.

    A complex map is a pair of real numbers on a last axis. The parts of a linear feature are samples of one pass. A
    modulus has the imaginary part 0.
    """

    def project(self, site: FeatureSite, z: Tensor, select: Select, A: Tensor | None = None) -> Tensor:
        A = site.A if A is None else A
        assert A is not None
        parts: list[Tensor] = []
        for f, (u, shift, sigma) in enumerate(_passes(site, *_selected(site, z, select))):
            of_f = A[f] if A.dim() == 3 else A[:, f :: site.kind.features]
            total: Tensor | None = None
            for part, rows in projection_blocks(site, u, of_f):
                y = random_features_projection(u, part, shift=shift, **sigma, **rows)
                total = y if total is None else total + y
            assert total is not None
            parts.append(_as_pairs(total) if site.kind.paired and sigma["activation"] == MODULUS else total)
        return torch.stack(parts, 2).flatten(1, 2) if A.dim() == 3 else sum(parts[1:], parts[0])

    def covariance(
        self,
        site: FeatureSite,
        x: Tensor,
        z: Tensor,
        select: Select,
        centers: tuple[Tensor, Tensor],
        sums: tuple[Tensor, Tensor, Tensor],
        *,
        first: bool = False,
    ) -> None:
        maps, shifts = _selected(site, z, select)
        F = site.kind.features
        if first:
            _choose_centers(site, maps, shifts, centers[1])
        for f, (u, shift, sigma) in enumerate(_passes(site, maps, shifts)):
            alone = slice(f, None, F) if sums[0].dim() == 3 else slice(None)
            M = sums[0][f] if sums[0].dim() == 3 else sums[0][:, f::F]
            of_x, a, b = x[:, alone], centers[0][alone], centers[1][f::F]
            real = site.kind.paired and sigma["activation"] == MODULUS
            against = of_x[..., 0] if real else of_x
            for start, stop in blocks(site.n, pass_block(site)):
                here, rows = slice(start, stop), site.source(x, start, stop)
                about: dict[str, Any] = {"x_center": a.to(x.dtype), "center": b[here].to(x.dtype), "shift": shift}
                part, total, square = random_features_covariance(against, u, stop - start, **about, **sigma, **rows)
                M[:, here] += part
                sums[2][f::F][here] += square
                if not site.kind.paired:
                    sums[1][f::F][here] += total
                elif real:
                    sums[1][f::F][here, 0] += total
                else:
                    imaginary = _imaginary_sums(site, u, shift, sigma, start, stop) - _count(u[..., 0]) * b[here]
                    sums[1][f::F][here] += torch.stack([total - imaginary, imaginary], 1)
            if real and b.any():  # the imaginary parts, which are 0, less the center
                count = _count(against)
                M -= (_sum(of_x[..., 1]) - count * a)[:, None] * b
                sums[1][f::F, 1] -= count * b
                sums[2][f::F] += count * b.square()


EACH = EachFeature()


def _selected(site: FeatureSite, z: Tensor, select: Select) -> tuple[Tensor, Tensor | None]:
    """u (N', r, filters, *space, 2) and the shift (N', filters, *space, 2) of the selected samples."""
    u, shift = site.mixed(z)
    return _of_pairs(u, select, site.kind.paired), (
        None if shift is None else _of_pairs(shift.unsqueeze(1), select, site.kind.paired).squeeze(1)
    )


def _of_pairs(u: Tensor, select: Select, paired: bool) -> Tensor:
    maps = u.flatten(1, 2)
    if paired:
        return select(maps).unflatten(1, u.shape[1:3])
    real = maps[..., 0]
    taken = select(real)
    return u if taken is real else torch.stack([taken, select(maps[..., 1])], -1).unflatten(1, u.shape[1:3])


def _passes(site: FeatureSite, u: Tensor, shift: Tensor | None) -> Iterator[Pass]:
    """For each feature, the arguments of the ops, with those that all features share."""
    for of_u, of_shift, activation in site.kind.each_feature(u, shift):
        yield of_u, of_shift, site.kernel | {"activation": activation}


def _choose_centers(site: FeatureSite, u: Tensor, shift: Tensor | None, center: Tensor) -> None:
    few = _spread(u)
    few_shift = None if shift is None else _spread(shift.unsqueeze(1)).squeeze(1)
    F = site.kind.features
    for start, stop in blocks(site.n, ROW_BLOCK):
        s = random_features(few, stop - start, shift=few_shift, **site.kernel, **site.source(u, start, stop))
        center[start * F : stop * F] = first_center(site.pooled(s), zero=NEAR)


def _spread(u: Tensor) -> Tensor:
    """`spread_samples` of pairs (N, r, filters, *space, 2), (S, r, filters, 2)."""
    maps = torch.view_as_complex(u.contiguous()).flatten(1, 2)
    return torch.view_as_real(spread_samples(maps).unflatten(1, u.shape[1:3]))


def _imaginary_sums(
    site: FeatureSite, u: Tensor, shift: Tensor | None, sigma: dict[str, Any], start: int, stop: int
) -> Tensor:
    """The sums of the imaginary parts of a linear feature, (stop - start,) float64."""
    total = _sum(u[..., 1]).unsqueeze(0)
    of_shift = None if shift is None else shift[..., 1].sum(dtype=torch.float64).view(1)
    return random_features(total, stop - start, shift=of_shift, **sigma, **site.source(total, start, stop))[0]


def _as_pairs(real: Tensor) -> Tensor:
    return torch.stack([real, torch.zeros_like(real)], -1)


def _sum(x: Tensor) -> Tensor:
    """The sums of x (N, d, *space) over samples, (d,) float64."""
    return x.flatten(2).sum(2, dtype=torch.float64).sum(0) if x.dim() > 2 else x.sum(0, dtype=torch.float64)


def _count(x: Tensor) -> int:
    return x.numel() // max(x.shape[1], 1)
