# SPDX-License-Identifier: BSD-3-Clause
"""Sites whose neurons have several features: the kernels compute and use one of them, of all neurons, at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.maps import as_pairs, complex_rows
from rainbow_fast.ops.activations import MODULUS
from rainbow_fast.ops.center import first_center, spread_samples
from rainbow_fast.ops.random_features import random_features, random_features_covariance, random_features_projection
from rainbow_fast.rainbow.channel_moments import NEAR
from rainbow_fast.rainbow.laws.rows import ROW_BLOCK
from rainbow_fast.rainbow.network.features import (
    IDENTITY,
    FeatureSite,
    Select,
    Stored,
    blocks,
    pass_block,
    projection_blocks,
)
from rainbow_fast.rainbow.network.linear_feature import LinearSums, basis, count_of, joined, sum_of

Pass = tuple[Tensor, Tensor | None, dict[str, Any]]  # u and the shift of one feature, and the activation


class EachFeature(Stored):
    """As `Fused`, one feature after the other. Only `rows`, and the choice of the first center, store features.

    A complex map is a pair of real numbers on a last axis. The parts of a linear feature are samples of one pass. A
    modulus has the imaginary part 0. Linear features are combined before they meet the samples, see `linear_feature`.
    Complex A is (Re A; Im A), and x of the covariance is then (x, -i x), so that M is (Re M; Im M).
    """

    def project(self, site: FeatureSite, z: Tensor, select: Select, A: Tensor | None = None) -> Tensor:
        A = site.A if A is None else A
        assert A is not None
        parts: list[Tensor] = []
        for f, (u, shift, sigma) in enumerate(_passes(site, *_selected(site, z, select))):
            of_f = A[f] if A.dim() == 3 else A[:, f :: site.kind.features]
            is_linear = sigma["activation"] != MODULUS
            of_u, of_shift = basis(u, shift) if is_linear else (u, shift)
            total: Tensor | None = None
            for part, rows in projection_blocks(site, of_u, of_f):
                y = random_features_projection(of_u, part, shift=of_shift, **sigma, **rows)
                total = y if total is None else total + y
            assert total is not None
            if is_linear:
                total = random_features(joined(u, shift), len(of_f), G=total.T, **IDENTITY, precision=site.precision)
            parts.append(as_pairs(total) if site.kind.paired and not is_linear else total)
        y = torch.stack(parts, 2).flatten(1, 2) if A.dim() == 3 else sum(parts[1:], parts[0])
        return complex_rows(y) if site.kind.complex_weights else y

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
            a, b, of_phi = centers[0][alone], centers[1][f::F], (sums[1][f::F], sums[2][f::F])
            add = _add_moduli if sigma["activation"] == MODULUS else _add_linear
            add(site, x[:, alone], (u, shift, sigma), (a, b), (M, *of_phi))


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


def _add_linear(
    site: FeatureSite, x: Tensor, of: Pass, centers: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor, Tensor]
) -> None:
    (u, shift, sigma), (a, b) = of, centers
    linear = LinearSums(x, u, shift, a, paired=site.kind.paired, precision=site.precision)
    for start, stop in blocks(site.n, ROW_BLOCK):
        M, total, square = linear.of(b[start:stop], sigma | site.source(linear.products, start, stop))
        sums[0][:, start:stop] += M
        sums[1][start:stop] += total
        sums[2][start:stop] += square


def _add_moduli(
    site: FeatureSite, x: Tensor, of: Pass, centers: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor, Tensor]
) -> None:
    (u, shift, sigma), (a, b) = of, centers
    against = x[..., 0] if site.kind.paired else x
    totals = sums[1][:, 0] if site.kind.paired else sums[1]
    for start, stop in blocks(site.n, pass_block(site)):
        about: dict[str, Any] = {"x_center": a.to(x.dtype), "center": b[start:stop].to(x.dtype), "shift": shift}
        parts = random_features_covariance(against, u, stop - start, **about, **sigma, **site.source(x, start, stop))
        for out, part in zip((sums[0], totals, sums[2]), parts, strict=True):
            out[..., start:stop] += part
    if site.kind.paired and b.any():  # the imaginary parts, which are 0, less the center
        samples = count_of(against)
        sums[0].sub_((sum_of(x[..., 1]) - samples * a).unsqueeze(1) * b)
        sums[1][:, 1] -= samples * b
        sums[2].add_(samples * b.square())
