# SPDX-License-Identifier: BSD-3-Clause
"""The laws of the sampled rows: what each needs besides the address of G."""

from __future__ import annotations

import torch
from torch import Tensor

from rainbow_fast.ops.gaussian import choices, further, gaussian
from rainbow_fast.rainbow.network.activation import ROW_BLOCK, Law


def draw(
    law: str,
    *,
    n: int,
    d: int,
    mean_row: bool,
    h: float,
    U: Tensor | None,
    key: Tensor,
    device: torch.device | None = None,
) -> Law:
    r"""Draw n rows of a law at the address `key` of the white Gaussian matrix G; r is d, or the columns of U.

    =============  ==============================================================================================
    gaussian       R = G: rows ``N(0, W^T W / d)``, the paper's law
    orthonormal    n >= r: R = G T, T = (G^T G / n)^(-1/2), folded into U; n < r: R = sqrt(r) (G G^T)^(-1/2) G
    bootstrap      R_i = sqrt((1 - h^2) d) U[k(i)] + h g_i, k uniform: reference neurons, smoothed by h
    identity       R = sqrt(d) U: the reference's own neurons in their order (n = d), a control
    =============  ==============================================================================================

    Args:
        U: (d, r) float64, orthonormal columns; None for the identity.
        device: where what is drawn lies; the CPU by default.

    Source: Gaussian: Guth, Menard, Rochette and Mallat (JMLR 2024), equation 15. Smoothed bootstrap: Efron and
    Tibshirani, "An introduction to the bootstrap" (1993), section 16.5, with shrinkage so that the covariance is kept.
    """
    r, device = d if U is None else U.shape[1], device or torch.device("cpu")
    drawn = Law(n, d, mean_row, key, U)
    if law == "orthonormal" and n >= r:
        T = _inverse_root(_gram(n, r, key, device) / n)
        return drawn._replace(U=T if U is None else U @ T)
    if law == "orthonormal":
        G = gaussian(n, r, seed=key, dtype=torch.float64, device=device)
        return drawn._replace(T=_inverse_root(G @ G.T / r))
    if law == "bootstrap":
        return drawn._replace(k=choices(n, d, seed=key).to(device), h=h)
    if law == "identity":
        return drawn._replace(k=torch.arange(n, device=device))
    return drawn


def _gram(n: int, r: int, key: Tensor, device: torch.device) -> Tensor:
    """G^T G in float64, a few thousand rows at a time."""
    total = torch.zeros(r, r, dtype=torch.float64, device=device)
    for start in range(0, n, ROW_BLOCK):
        rows = min(ROW_BLOCK, n - start)
        G = gaussian(rows, r, seed=further(key, start), dtype=torch.float64, device=device)
        total += G.T @ G
    return total


def _inverse_root(C: Tensor) -> Tensor:
    """C^(-1/2) of a positive definite matrix."""
    values, vectors = torch.linalg.eigh(C)
    return (vectors * values.rsqrt()) @ vectors.T
