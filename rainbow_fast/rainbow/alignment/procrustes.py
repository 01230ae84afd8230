# SPDX-License-Identifier: BSD-3-Clause
"""Generalised Procrustes alignment: the rotations that align several references to their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from rainbow_fast.ops.polar import RTOL, polar


def rotations(C: Tensor, K: int, iterations: int, site: str) -> Tensor:
    r"""Orthogonal matrices A_k that align K activations phi_k to their mean, computed from their second moments.

    Starting with phi = phi_1, these two steps are repeated:

        A_k = polar(E[phi phi_k^T]),    phi = mean_k A_k phi_k

    The mean is not rescaled, so it is smaller than the phi_k if these differ.

    Args:
        C: (K d, K d) float64, the second moment of the concatenated activations phi_1, ..., phi_K.
        K: number of references.
        iterations: how often the polar factors are computed, at least 1. With 1, all are aligned to the first.
        site: name of the site, for error messages.

    Returns:
        A (K, d, d) float64. Null directions of a moment are mapped to each other, so that A_k is orthogonal.

    Raises:
        ValueError: a reference is not correlated with the mean, for example because its activations are zero.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), section 2, for equation 17; Gower, "Generalized Procrustes
    analysis", Psychometrika 40 (1975).
    """
    blocks = C.unflatten(0, (K, -1)).unflatten(2, (K, -1))  # (k, d, l, d): E[phi_k phi_l^T]
    M = blocks[0].movedim(1, 0)
    for _ in range(iterations):
        for number, moment in enumerate(M, 1):
            if not moment.any():
                raise ValueError(f"site {site!r}: the activations of reference {number} do not correlate with the mean")
        A = polar(M.contiguous(), rank="complete", rtol=RTOL).A
        M = torch.einsum("kab,kblc->lac", A, blocks) / K
    return A
