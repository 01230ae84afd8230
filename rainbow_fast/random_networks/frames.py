# SPDX-License-Identifier: BSD-3-Clause
"""Orthonormal frames of batches: H = L Q with a triangular factor L and orthonormal rows Q."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast.arguments import one_of, tensor

METHODS = ("householder", "cholesky")
NEAR = 5 / 64  # the second pass is as good as Householder's if the first one is orthonormal to this


class Frame(NamedTuple):
    """The result of `orthonormal_frame`: H = L Q for each matrix of the batch."""

    Q: Tensor  # (*batch, k, d), orthonormal rows, dtype of H
    L: Tensor  # (*batch, k, k), lower triangular with a diagonal >= 0, dtype of H
    fallbacks: int  # number of matrices for which method="cholesky" took Householder reflections


def orthonormal_frame(H: Tensor, *, method: str | None = None) -> Frame:
    r"""The factors of ``H = L Q``, where L is lower triangular with a diagonal >= 0, and Q has orthonormal rows.

    Equivalent to::

        Q, R = torch.linalg.qr(H.mT)
        signs = R.diagonal(dim1=-2, dim2=-1).sign()
        Q.mT * signs[..., :, None], R.mT * signs[..., None, :]

    Args:
        H: (*batch, k, d), float32 or float64, with k <= d; finite.
        method: ``"householder"`` takes reflections, by LAPACK. ``"cholesky"`` is CholeskyQR2: two passes of a Cholesky
            factor of the Gram matrix, in float64, and a triangular solve. A matrix whose first pass is not orthonormal
            to 5/64, because its condition number is too large, gets Householder reflections instead. None (default) is
            "householder" on CPUs, where it is at least as fast, and "cholesky" on other devices.

    Returns:
        `Frame`: the tensors Q (*batch, k, d) and L (*batch, k, k), and the number of fall-backs. Q is orthonormal to
        rounding, for any H.

    Raises:
        TypeError: H is not a tensor of dtype float32 or float64.
        ValueError: H has another shape, k > d, or `method` is unknown.

    Source: Yamamoto, Nakatsukasa, Yanagisawa and Fukaya, "Roundoff error analysis of the CholeskyQR2 algorithm",
    Electronic Transactions on Numerical Analysis 44 (2015), 306-326, for CholeskyQR2 and its bound.
    """
    if tensor("H", H).dtype not in (torch.float32, torch.float64):
        raise TypeError(f"H is {H.dtype}: wanted torch.float32 or torch.float64")
    if H.dim() < 2 or 0 in H.shape or H.shape[-2] > H.shape[-1]:
        raise ValueError(f"H has shape {tuple(H.shape)}: wanted (*batch, k, d), none of them 0, with k <= d")
    if method is not None:
        one_of("method", method, METHODS)
    if (method or ("householder" if H.device.type == "cpu" else "cholesky")) == "householder":
        return _householder(H)
    flat = H.reshape(-1, *H.shape[-2:])
    Q, L, near = _cholesky(flat)
    apart = (~near).nonzero()[:, 0]
    if len(apart):
        frame = _householder(flat[apart])
        Q[apart], L[apart] = frame.Q, frame.L
    return Frame(Q.view(H.shape), L.view(*H.shape[:-1], H.shape[-2]), len(apart))


def _householder(H: Tensor) -> Frame:
    Q, R = torch.linalg.qr(H.mT)
    signs = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(H.dtype)
    return Frame(Q.mT * signs[..., :, None], R.mT * signs[..., None, :], 0)


def _cholesky(H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q, L and whether they are good, for each matrix (runs, k, d)."""
    first, Q, before = _pass(H.double())
    second, Q, far = _pass(Q)
    return Q.to(H.dtype), (first @ second).to(H.dtype), before.isfinite() & (far <= NEAR)


def _pass(H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A pass of CholeskyQR: L, Q, and how far the rows of H are from orthonormal, NaN where L does not exist."""
    C = H @ H.mT
    L, failed = torch.linalg.cholesky_ex(C)
    far = torch.linalg.matrix_norm(C - torch.eye(C.shape[-1], dtype=C.dtype, device=C.device))
    far = torch.where(failed == 0, far, torch.nan)
    return L, torch.linalg.solve_triangular(L, H, upper=False), far
