# SPDX-License-Identifier: BSD-3-Clause
"""Matrices with given singular values, and checks that a matrix is their polar factor."""

import math

import torch
from torch import Tensor

EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


def isometry(rows: int, cols: int, seed: int) -> Tensor:
    G = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(G)[0]


def matrix(d: int, m: int, singular_values: Tensor, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    k = len(singular_values)
    return ((isometry(d, k, seed) * singular_values.double()) @ isometry(m, k, seed + 1).T).to(dtype)


def power_law(count: int, condition: float) -> Tensor:
    return torch.logspace(0, -math.log10(condition), count, dtype=torch.float64)


def orthogonality(A: Tensor) -> float:
    """|A A^T - I|_F / sqrt d for the d rows or columns of the short side."""
    Q = A.double() if A.shape[0] <= A.shape[1] else A.double().T
    return float(torch.linalg.norm(Q @ Q.T - torch.eye(len(Q))) / math.sqrt(len(Q)))


def assert_is_polar(M: Tensor, A: Tensor, *, forward: float, condition: float) -> None:
    """The metrics of an alignment: optimality of the objective, symmetry, positivity, forward error.

    The rounding of `A` to the dtype of M is small compared with the bounds. `forward` is the condition number times the
    rounding of float64, in which everything is computed.
    """
    M64, A64 = M.double(), A.double()
    U, S, Vh = torch.linalg.svd(M64, full_matrices=False)
    # The goals for float32 are 5e-8 (gap) and 5e-7 (orthogonality), for float64 1e-11.
    single = M.dtype == torch.float32
    assert abs(1 - (A64 * M64).sum() / S.sum()) <= (5e-8 if single else 1e-11)
    assert orthogonality(A) <= (5e-7 if single else 1e-13)
    H = A64 @ M64.T if M.shape[0] <= M.shape[1] else A64.T @ M64
    # Rounding the entries of A moves H by eps |M| (sqrt d + sqrt m) / sqrt d at most. In float64 the
    # Gram matrix of a stage decides; its condition number is at most 2e3 squared.
    slack = (64 if single else 5e4) * EPS[M.dtype] * S[0]
    assert torch.linalg.matrix_norm(H - H.T, 2) <= slack
    assert torch.linalg.eigvalsh((H + H.T) / 2)[0] >= -slack
    backward = M64 - ((H + H.T) / 2 @ A64 if M.shape[0] <= M.shape[1] else A64 @ (H + H.T) / 2)
    assert torch.linalg.norm(backward) / torch.linalg.norm(M64) <= (5e-7 if single else 1e-10)
    assert torch.linalg.norm(A64 - U @ Vh) / math.sqrt(len(S)) <= forward
    assert abs(S[0] / S[-1] / condition - 1) < 0.2  # the matrix of the test has the claimed singular values
