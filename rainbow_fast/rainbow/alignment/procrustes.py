# SPDX-License-Identifier: BSD-3-Clause
"""Generalised Procrustes: the rotations that align several references to their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from rainbow_fast.ops.polar import polar
from rainbow_fast.rainbow.alignment.alignment import RTOL


def rotations(C: Tensor, K: int, iterations: int, site: str) -> Tensor:
    r"""Orthogonal A_k that align K activations phi_k to their mean, from their second moments alone.

        A_k = polar(E[phi phi_k^T]),    phi = mean_k A_k phi_k,    again and again; phi = phi_1 to begin with.

    The mean is not rescaled, so it is smaller than the phi_k where these differ.

    Args:
        C: (K d, K d) float64, E of the product of phi_1, ..., phi_K one after the other with itself.
        iterations: polar factors taken of each reference, at least 1; 1 aligns to the first.
        site: for error messages.

    Returns:
        A (K, d, d) float64; null directions of a moment are mapped to each other, so that A_k is orthogonal.

    Raises:
        ValueError: a reference that is not correlated with the mean, as one whose activations vanish.

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
