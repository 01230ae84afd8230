# SPDX-License-Identifier: BSD-3-Clause
"""polar where there are null directions: thin singular factors from Gram matrices."""

import torch
from torch import Tensor

from rainbow_fast import backend as _backend

# Squaring M costs half of the digits. Singular values below RESOLUTION times the largest cannot be told from rounding
# in the eigenvalues of the two Gram matrices, split at SPLIT, and are left to an SVD.
SPLIT = 1e-4
RESOLUTION = 1e-11
CORRECTED_ONCE = 1e-6  # an error below is below float64 rounding after one more correction
MOST_CORRECTIONS = 6
ENOUGH = {torch.float32: 1e-9, torch.float64: 0.0}  # the error of orthogonality that the output does not show


def multiply(Q: Tensor, M: Tensor) -> Tensor:
    """Q (p, d) times M (d, m) in float64, on the CPU by the loop nest of the kernels."""
    if M.device.type != "cpu":
        return Q @ M
    out = Q.new_empty(Q.shape[0], M.shape[1])
    Q, M = Q.contiguous(), M.contiguous()
    _backend.kernels().polar_multiply(
        Q.data_ptr(), M.data_ptr(), out.data_ptr(), *Q.shape, M.shape[1], torch.get_num_threads()
    )
    return out


def _gram(X: Tensor, Y: Tensor) -> Tensor:
    """X (p, m) times Y (d, m) transposed in float64, on the CPU as the cross-covariance of columns as samples."""
    if X.device.type != "cpu":
        return X @ Y.T
    return torch.ops.rainbow_fast.cross_covariance(
        X.unsqueeze(0), [] if Y is X else [Y.unsqueeze(0)], "identity", 0.0, False, "cpu"
    )


def gram_factors(M: Tensor, rtol: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor] | None:
    """The thin factors (U, S, Vh) of a wide float64 M, of its singular values above the tolerance, from Gram matrices;
    None where those do not resolve the rank or the corrections do not converge.

    The first Gram matrix resolves the directions above SPLIT times the largest singular value, the second, of M
    projected on the others, what lies below. Then the rows of the factor are orthonormal up to an error that each
    correction squares; none is made where the first error does not show in the result.
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
        # To first order, (1 - E/2 + X) K has orthonormal rows and, X being skew, a symmetric product with those of M.
        N = _gram(K, projected)
        N -= 0.5 * E @ N
        X = (N.T - N) / (S[:, None] + S[None, :])
        K = K + multiply(X - 0.5 * E, K)
        if error < CORRECTED_ONCE:
            return U, (K * projected).sum(1), K
    return None
