# SPDX-License-Identifier: BSD-3-Clause
"""Linear features ``phi' = R u + zbar``: neurons combine sums over samples, not the samples.

With w = (u, zbar) and R' = (R, 1), or w = u and R' = R without a shift::

    phi' = R' w,    A phi' = (A R') w,    sum x phi'^T = (sum x w^T) R'^T,    sum phi'^2 = diag(R' (sum w w^T) R'^T)

so that n multiplies r^2 numbers, and not those of every sample.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rainbow_fast.ops.center import first_center
from rainbow_fast.ops.cross_covariance import cross_covariance
from rainbow_fast.ops.random_features import random_features
from rainbow_fast.rainbow.channel_moments import NEAR, about
from rainbow_fast.rainbow.pair_moments import total_of_pairs


def joined(u: Tensor, shift: Tensor | None) -> Tensor:
    """w (N, r', *space) of u (N, r, *space) and zbar (N, *space)."""
    return u if shift is None else torch.cat([u, shift.unsqueeze(1)], 1)


def basis(u: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """u (r', r) and zbar (r',) of the r' unit vectors w. Their features are the columns of R'."""
    r = u.shape[1]
    return apart(torch.eye(r + (shift is not None), dtype=u.dtype, device=u.device), r)


def apart(w: Tensor, r: int) -> tuple[Tensor, Tensor | None]:
    """u (N, r) and zbar (N,) of w (N, r')."""
    return w[:, :r], w[:, r] if w.shape[1] > r else None


class LinearSums:
    """The sums over samples from which those of a linear feature follow, for any neurons.

    Args:
        x: (N, k, *space), or (N, k, *space, 2) for pairs.
        u, shift: of the feature, with the N and positions of x.
        a: the center of x, (k,) float64.
        paired: whether the last axis has the real and imaginary parts, which are samples with sums of their own.
        precision: of float32 products.
    """

    def __init__(self, x: Tensor, u: Tensor, shift: Tensor | None, a: Tensor, *, paired: bool, precision: str) -> None:
        w = joined(u, shift)
        center = first_center(w, zero=NEAR)
        x, w = about(x, a), about(w, center)
        self.k, self.r, self.paired = x.shape[1], u.shape[1], paired
        self.count = count_of(w) // (1 + paired)
        self.of_x, totals = sum_of(x), total_of_pairs(w).T if paired else sum_of(w).unsqueeze(0)
        self.products = torch.cat(
            [
                cross_covariance(x, w, precision=precision),
                cross_covariance(w, precision=precision),
                torch.eye(len(center), dtype=torch.float64, device=w.device),
                center.unsqueeze(0),
                totals,
            ]
        )

    def of(self, b: Tensor, how: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of ``(x - a)(phi' - b)^T`` (k, n), ``phi' - b`` (n,), or (n, 2) for pairs, and its square (n,).

        Args:
            b: the center of these n neurons, (n,) float64.
            how: keyword arguments of `random_features`: the rows of the neurons in float64, the identity and its scale.
        """
        u, shift = apart(self.products, self.r)
        features = random_features(u, len(b), shift=shift, **how)  # R' times each row
        M, P, R, rest = features.split([self.k, *2 * [self.products.shape[1]], 2 + self.paired])
        off, totals = rest[0] - b, rest[1:]
        M = M + self.of_x.unsqueeze(1) * off
        square = (P * R).sum(0) + (off * (2 * totals + self.count * off)).sum(0)
        totals = totals + self.count * off
        return M, totals.T if self.paired else totals[0], square


def sum_of(x: Tensor) -> Tensor:
    """The sums of x (N, d, *space) over samples, (d,) float64. Positions of one image are summed in the dtype of x."""
    images = x.flatten(2).sum(2) if x.dim() > 2 else x
    return images.sum(0, dtype=torch.float64)


def count_of(x: Tensor) -> int:
    """The number of samples of x (N, d, *space)."""
    return x.numel() // max(x.shape[1], 1)
