# SPDX-License-Identifier: BSD-3-Clause
"""The law `orthonormal`: Gaussian rows that are orthonormalised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rainbow_fast.ops.gaussian import further, gaussian
from rainbow_fast.rainbow.laws.law import EIGENVECTORS, PLANNED, Law, without_values
from rainbow_fast.rainbow.laws.real_form import complex_of, real_form
from rainbow_fast.rainbow.laws.rows import ROW_BLOCK, Rows
from rainbow_fast.rainbow.site_statistics import SiteStatistics


@dataclass(frozen=True)
class Orthonormal(Law):
    """Gaussian rows that are orthonormalised, so that their sample covariance is exactly that of the law.

    For n >= r, ``R = G T`` with ``T = (G^T G / n)^(-1/2)``; T is folded into U. For n < r,
    ``R = sqrt(r) (G G^T)^(-1/2) G``.

    With complex weights G is complex, with entries of E|g|^2 = 2, and G^H stands for G^T:
    ``T = (G^H G / 2 n)^(-1/2)`` and ``R = sqrt(2 r) (G G^H)^(-1/2) G``, which are stored in their real forms.
    """

    gaussian_limit = True

    def draw(self, n: int, site: SiteStatistics, U: Tensor | None, key: Tensor) -> Rows:
        rows, device = Rows(n, site.columns, key, U), site.device
        if site.site.complex_weights:
            return _complex_rows(rows, device)
        if n >= rows.r:
            T = _inverse_root(_gram(n, rows.r, key, device) / n)
            return rows._replace(U=T if U is None else U @ T)
        G = gaussian(n, rows.r, seed=key, dtype=torch.float64, device=device)
        return rows._replace(T=_inverse_root(G @ G.T / rows.r))

    def planned(self, n: int, site: SiteStatistics, U: Tensor | None) -> Rows:
        rows, parts = Rows(n, site.columns, PLANNED, U), 1 + site.site.complex_weights
        if parts * n >= rows.r:
            return rows._replace(U=without_values(site.columns, rows.r))
        if parts > 1:
            return rows._replace(matrix=without_values(n, rows.r))
        return rows._replace(T=without_values(n, n))

    def flops(self, n: int, r: int) -> float:
        """Float64 flops of a Gram matrix of the shorter side, its eigenvectors, and two products with them."""
        short = min(n, r)
        return (2.0 * n * r + (EIGENVECTORS + 2) * short**2) * short


def _complex_rows(rows: Rows, device: torch.device) -> Rows:
    """Orthonormalised complex rows G (n, r / 2), of rows with the real matrix (Re G, Im G)."""
    n, r = rows.n, rows.r
    if 2 * n >= r:
        (first, mixed), (_, second) = (half.chunk(2, 1) for half in _gram(n, r, rows.key, device).chunk(2))
        T = real_form(_inverse_root(torch.complex(first + second, mixed - mixed.T) / (2 * n)))
        return rows._replace(U=T if rows.U is None else rows.U @ T)
    G = complex_of(gaussian(n, r, seed=rows.key, dtype=torch.float64, device=device))
    return rows._replace(matrix=real_form(_inverse_root(G @ G.mH / r) @ G)[:n].contiguous())


def _gram(n: int, r: int, key: Tensor, device: torch.device) -> Tensor:
    """G^T G in float64, computed `ROW_BLOCK` rows at a time."""
    total = torch.zeros(r, r, dtype=torch.float64, device=device)
    for start in range(0, n, ROW_BLOCK):
        rows = min(ROW_BLOCK, n - start)
        G = gaussian(rows, r, seed=further(key, start), dtype=torch.float64, device=device)
        total += G.T @ G
    return total


def _inverse_root(C: Tensor) -> Tensor:
    """C^(-1/2) of a positive definite matrix C, real or complex."""
    values, vectors = torch.linalg.eigh(C)
    return (vectors * values.rsqrt()) @ vectors.mH
