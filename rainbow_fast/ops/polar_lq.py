# SPDX-License-Identifier: BSD-3-Clause
"""polar of a matrix with many more columns than rows, by M = L Q with a small L: polar(M) = polar(L) Q.

Q is written into the memory of M, or of the result, one block of columns at a time. The other memory is d x d matrices,
a few blocks of columns, and eight rows as long as those of M.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast.ops.cross_covariance import cross_covariance_
from rainbow_fast.ops.gaussian import gaussian_reference
from rainbow_fast.ops.polar_factors import multiply

BLOCK_NUMBERS = 2**18  # numbers in a block of columns, for each thread; a block stays in the cache
PROBES = 8
FLOOR = 1e-14  # eigenvalues of a Gram matrix below this share of the largest are mostly rounding
NOTHING = 4 * torch.finfo(torch.float64).eps  # directions below this share of the largest are the rounding of M
# The largest condition number of a Gram matrix at which a step is the last one: the error of orthogonality of its rows
# is this condition number times the rounding of float64.
TRUSTED = {torch.float32: 1e6, torch.float64: 4.0}


class LQ(NamedTuple):
    """The decomposition M = L Q, where Q = T X has orthonormal rows; d, n are the sides of M."""

    L: Tensor  # (d, r) float64
    T: Tensor  # (r, p) float64
    X: Tensor  # (p, n), dtype of M: M itself, or rows stored in the memory of the result
    pending: list[Tensor]  # matrices that still have to be multiplied to X from the left, the first one first
    W: Tensor  # (w, d): Gaussian rows for the estimate of the residual, E[W^T W] = 1
    WM: Tensor  # (w, n) float64
    norm: float  # |M|_F


def decompose(M: Tensor, out: Tensor, single: bool) -> LQ:
    """The LQ decomposition of a wide M by eigenvectors of Gram matrices.

    `out` has the shape of M and is overwritten; it may be M itself. With `single`, rows that are orthonormal to the
    accuracy of float32 are enough.

    A step projects the rows on the eigenvectors of their Gram matrix and divides each new row by its norm. The divisor
    is at least 1e-7 of the largest, because smaller norms are lost in rounding when M is squared. Three steps bring all
    directions above the rounding of M to norm 1; the others are left out of L. The relative error of each row is that
    of float64, so L Q = M to the rounding of float64. Float64 rows are stored after each step; float32 rows are
    computed again from M.
    """
    d = len(M)
    W = torch.eye(d, dtype=torch.float64, device="cpu")
    if d > PROBES:
        W = torch.from_numpy(gaussian_reference([0, 0, 0, 0], PROBES, d)).double() / PROBES**0.5
    WM = W.new_empty(len(W), M.shape[1])
    L, norm = torch.eye(d, dtype=torch.float64, device="cpu"), 0.0
    X, pending = M, list[Tensor]()
    while True:
        R = L.new_zeros(L.shape[1], L.shape[1])
        for at, block in _blocks(X, pending):
            cross_covariance_(R, block.unsqueeze(0), backend="cpu")
            if not norm:
                WM[:, at] = multiply(W, block)
            if pending and M.dtype == torch.float64:
                out[: len(R), at] = block
        norm = norm or float(R.diagonal().sum().sqrt())
        if pending and M.dtype == torch.float64:
            X, pending = out[: len(R)], []
        alive = R.diagonal() > 0  # rows of zeros stay exactly zero
        values, vectors = torch.linalg.eigh(R[alive][:, alive])
        V = R.new_zeros(len(R), len(values))
        V[alive] = vectors
        size = values.clamp(min=FLOOR * values[-1]).sqrt()
        L = L @ (V * size)
        share = torch.linalg.vector_norm(L, dim=0)
        keep = share > NOTHING * share.max()
        L, T = L[:, keep], (V / size)[:, keep].T
        if values[-1] <= TRUSTED[torch.float32 if single else M.dtype] * values[keep].min():
            return LQ(L, T, X, pending, W, WM, norm)
        pending.append(T)


def assemble_factor(lq: LQ, A: Tensor, out: Tensor) -> float:
    """Write ``A Q`` into `out`, A (d, r) the polar factor of L; returns ``|M - H A Q|_F / |M|_F, H = sym(A L^T)``."""
    H = A @ lq.L.T
    WH = lq.W @ (H + H.T) / 2
    square = 0.0
    for at, block in _blocks(lq.X, [*lq.pending, A @ lq.T]):
        out[:, at] = block
        square += float((lq.WM[:, at] - multiply(WH, out[:, at].double())).square().sum())
    return square**0.5 / lq.norm


def columns(M: Tensor) -> Iterator[slice]:
    """Slices of the columns of M, each of a size that stays in the cache."""
    width = max(BLOCK_NUMBERS * torch.get_num_threads() // len(M), 1)
    for start in range(0, M.shape[1], width):
        yield slice(start, start + width)


def _blocks(X: Tensor, factors: list[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """The slices of columns, and these columns of the product of `factors` with X, in float64."""
    for at in columns(X):
        block = X[:, at].double()
        for factor in factors:
            block = multiply(factor, block)
        yield at, block
