# SPDX-License-Identifier: BSD-3-Clause
"""Cross-covariances at a site of wavelets: of complex maps, and of each filter with itself."""

from __future__ import annotations

import torch
from torch import Tensor

from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.pair_moments import PairMoments


class FilterCovariance(CrossCovariance):
    """``Re E[x y^H]`` of x and y with the F features of a channel adjacent, (N, d F, *space) and (N, n F, *space).

    Complex maps are pairs (N, ..., 2). `begin` and `consume` are used as those of `CrossCovariance`.

    Args:
        name: name of the site, for error messages.
        paired: whether x and y are pairs.
        filters: F, if features are only correlated with the same feature: sums and M are then (F, d, n). 1 (default)
            correlates all features of all channels, (d F, n F).
    """

    def __init__(self, name: str | None = None, *, paired: bool = False, filters: int = 1) -> None:
        self.paired, self.filters = paired, filters
        super().__init__(name)

    def reset(self) -> None:
        super().reset()
        if self.paired:
            self.x, self.y = PairMoments(), PairMoments()

    def begin(self, x: Tensor, m: int, center: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if self.cross is None:
            shape = (
                (x.shape[1], m) if self.filters == 1 else (self.filters, x.shape[1] // self.filters, m // self.filters)
            )
            self.cross = torch.zeros(shape, dtype=torch.float64, device=x.device)
            zeros = self.cross.new_zeros(m)
            self.y.add(self.cross.new_zeros(m, 2) if self.paired else zeros, zeros, 0, center)
            self.y.dtype = torch.promote_types(x.dtype, torch.float32)
        if not self._known:
            self.x.update(x)
        self.y.count += x.numel() // (x.shape[1] * (2 if self.paired else 1))
        assert self.y.total is not None and self.y.square is not None
        return self.cross, self.y.total, self.y.square

    def consume(self, about: Tensor | None = None) -> Tensor:
        M, self.cross = self._checked_cross().div_(self.count), None
        self._add_outer(M, -self.x.off, self.y.off)
        return self._add_outer(M, self.x.mean, self.y.mean if about is None else self.y.mean - about)

    def _add_outer(self, M: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Add ``Re a b^H`` to M."""
        a, b = by_filter(a, self.filters), by_filter(b, self.filters)
        M.view(self.filters, a.shape[1], -1).baddbmm_(a, b.transpose(1, 2))
        return M


def times(B: Tensor, values: Tensor) -> Tensor:
    """``B values`` for values (n F,) or (n F, 2), and B (d F, n F), or (F, d, n) for each of the features."""
    if B.dim() == 2:
        return B @ values
    product = B @ by_filter(values, len(B))
    return product.transpose(0, 1).reshape(-1, *values.shape[1:])


def by_filter(values: Tensor, filters: int) -> Tensor:
    """values (d F,) or (d F, 2) of each of F features, (F, d, 1) or (F, d, 2)."""
    return values.view(-1, filters, *values.shape[1:], *[1] * (values.dim() == 1)).transpose(0, 1)
