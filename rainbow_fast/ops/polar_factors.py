# SPDX-License-Identifier: BSD-3-Clause
"""For matrices with null directions: thin singular factors from Gram matrices, and isometries of null spaces."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.ops.gaussian import gaussian, key

# A Gram matrix M M^T loses half of the digits of M. Two of them are used, for singular values above and below SPLIT
# times the largest. Singular values below RESOLUTION times the largest are lost in rounding, and need an SVD.
SPLIT = 1e-4
RESOLUTION = 1e-11
CORRECTED_ONCE = 1e-6  # from an error below this, one more correction leads to float64 rounding
MOST_CORRECTIONS = 6
ENOUGH = {torch.float32: 1e-9, torch.float64: 0.0}  # error of orthogonality that is lost in the rounding of the output


def multiply(Q: Tensor, M: Tensor) -> Tensor:
    """Q (p, d) times M (d, m) in float64; on the CPU, by the matrix product of the kernels."""
    if M.device.type != "cpu":
        return Q @ M
    out = Q.new_empty(Q.shape[0], M.shape[1])
    Q, M = Q.contiguous(), M.contiguous()
    _backend.kernels().polar_multiply(
        Q.data_ptr(), M.data_ptr(), out.data_ptr(), *Q.shape, M.shape[1], torch.get_num_threads()
    )
    return out


def _gram(X: Tensor, Y: Tensor) -> Tensor:
    """X (p, m) times the transpose of Y (d, m) in float64; on the CPU, a cross-covariance with columns as samples."""
    if X.device.type != "cpu":
        return X @ Y.T
    return torch.ops.rainbow_fast.cross_covariance(
        X.unsqueeze(0), [] if Y is X else [Y.unsqueeze(0)], "identity", 0.0, False, "highest", "cpu"
    )


def gram_factors(M: Tensor, rtol: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor] | None:
    """The thin factors (U, S, Vh) of a wide float64 M from Gram matrices, for singular values above the tolerance.

    The first Gram matrix resolves singular values above SPLIT times the largest. The second one, of M projected on the
    other directions, resolves those below. The rows of the factor are then orthonormal up to an error that each
    correction squares; no correction is made if the first error is lost in the rounding of the result.

    Returns None if Gram matrices do not resolve the rank, or if the corrections do not converge.
    """
    eigenvalues, U = torch.linalg.eigh(_gram(M, M))
    projected = multiply(U.T, M)
    weak = eigenvalues <= SPLIT**2 * eigenvalues[-1]
    if weak.any():
        rest = projected[weak]
        eigenvalues[weak], W = torch.linalg.eigh(_gram(rest, rest))
        U[:, weak] = U[:, weak] @ W
        projected[weak] = multiply(W.T, rest)
    S = eigenvalues.clamp(min=0).sqrt()
    if rtol < RESOLUTION and S.min() <= RESOLUTION * S.max():
        return None
    keep = S > rtol * S.max()
    U, S, projected = U[:, keep], S[keep], projected[keep]
    K = projected / S[:, None]
    for _ in range(MOST_CORRECTIONS):
        E = _gram(K, K)
        E.diagonal().sub_(1)
        error = float(E.abs().max())
        if error < ENOUGH[dtype]:
            return U, (K * projected).sum(1), K
        # To first order, (1 - E/2 + X) K has orthonormal rows. The skew X makes its product with M symmetric.
        N = _gram(K, projected)
        N -= 0.5 * E @ N
        X = (N.T - N) / (S[:, None] + S[None, :])
        K = K + multiply(X - 0.5 * E, K)
        if error < CORRECTED_ONCE:
            return U, (K * projected).sum(1), K
    return None


def complete(
    A: Tensor, left: Tensor, columns: Callable[[Tensor], Iterable[slice]], factor: Callable[[Tensor], object]
) -> None:
    """Add an isometry between its null spaces to a wide partial isometry A. `left` has the left null space of A.

    The isometry is the polar factor of P_left Z P_right, with Z a fixed Gaussian matrix and P the projections on the
    null spaces. `columns` returns blocks of columns to work on; `factor` overwrites a matrix with its polar factor.
    """
    values, vectors = torch.linalg.eigh(left @ left.T)
    null = vectors[:, values < 0.5]
    Z = torch.empty(null.shape[1], A.shape[1], dtype=torch.float64, device=A.device)
    for at in columns(A):
        Z[:, at] = null.T @ gaussian(
            len(A), A[:, at].shape[1], seed=key(0, col_offset=at.start), dtype=torch.float64, device=A.device
        )
    for _ in range(2):  # the second pass removes the rounding errors of the first; more are not needed
        along = torch.zeros(len(Z), len(A), dtype=torch.float64, device=A.device)
        for at in columns(A):
            along += Z[:, at] @ A[:, at].double().T
        for at in columns(A):
            Z[:, at] -= along @ A[:, at].double()
    factor(Z)
    for at in columns(A):
        A[:, at] += (null @ Z[:, at]).to(A.dtype)
