# SPDX-License-Identifier: BSD-3-Clause
"""polar: the orthogonal polar factor of a matrix, which is the alignment that a cross-covariance defines."""

from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast import backend as _backend
from rainbow_fast.ops.gaussian import gaussian_reference

DTYPES = (torch.float32, torch.float64)

# Squaring M costs half of the digits. Singular values below RESOLUTION times the largest cannot be told from rounding
# in the eigenvalues of the two Gram matrices, split at SPLIT, and are left to an SVD.
SPLIT = 1e-4
RESOLUTION = 1e-11
CORRECTED_ONCE = 1e-6  # an error below is below float64 rounding after one more correction
MOST_CORRECTIONS = 6
ENOUGH = {torch.float32: 1e-9, torch.float64: 0.0}  # the error of orthogonality that the output does not show


class Polar(NamedTuple):
    A: Tensor  # (d, m), dtype of M
    nuclear_norm: Tensor  # tr(A M^T) of the partial factor: the sum of the singular values kept; float64
    rank: Tensor  # singular values above rtol times the largest; int64
    condition: Tensor  # largest over smallest singular value kept; float64
    residual: Tensor  # |M - H A|_F / |M|_F, H = sym(M A^T): the backward error; float64


def polar(
    M: Tensor,  # (d, m)
    *,
    rank: str = "partial",
    rtol: float | None = None,
    backend: str | None = None,
) -> Polar:
    r"""The polar factor ``A = U V^T`` of ``M = U S V^T``: it maximises ``tr(A M^T)`` over matrices of norm at most 1.

    Equivalent to::

        U, S, Vh = torch.linalg.svd(M.double(), full_matrices=False)
        keep = S > rtol * S[0]
        A = (U[:, keep] @ Vh[keep]).to(M.dtype)

    The compiled kernel takes the eigenvectors of Gram matrices of the short side in float64 and corrects the factor to
    second order until orthogonality and symmetry of ``A M^T`` hold to the rounding of the result; where singular values
    near the tolerance lie below what Gram matrices resolve (1e-11 of the largest), it takes a float64 SVD. No gradient.

    Args:
        M: tall, wide or square; scale does not matter.
        rank: ``"partial"`` maps the directions below the tolerance to zero (a partial isometry, which is unique);
            ``"complete"`` adds an isometry between the left and right null spaces: the polar factor of a fixed Gaussian
            matrix restricted to them, so that it depends on the null spaces alone.
        rtol: directions with singular values at most rtol times the largest count as null; ``max(d, m) eps`` of M's
            dtype by default.
        backend: ``"cpu"`` or ``"reference"``; None takes the best one that is there.

    Returns:
        `Polar`: A, nuclear_norm, rank, condition, residual, all tensors.

    Raises:
        ValueError: M is not a matrix, is empty, all zero or not finite; an unknown `rank`; rtol outside [0, 1).
        TypeError: a dtype that is not float32 or float64.

    Source: orthogonal Procrustes, equation 6 of Guth, Menard, Rochette and Mallat (JMLR 2024); Higham, "Functions of
    Matrices" (2008), chapter 8.
    """
    _check(M)
    if rank not in ("partial", "complete"):
        raise ValueError(f"rank={rank!r}: wanted 'partial' or 'complete'")
    if rtol is not None and not 0 <= rtol < 1:
        raise ValueError(f"rtol={rtol}: wanted 0 <= rtol < 1")
    return Polar(*torch.ops.rainbow_fast.polar(M.detach(), rank == "complete", rtol, backend))


def polar_reference(M: Tensor, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
    """The thin factors (U, S, Vh) of the singular values kept, in float64."""
    U, S, Vh = torch.linalg.svd(M.double(), full_matrices=False)
    keep = S > rtol * S[0]
    return U[:, keep], S[keep], Vh[keep]


def _check(M: Tensor) -> None:
    if M.dim() != 2 or 0 in M.shape:
        raise ValueError(f"M has shape {tuple(M.shape)}: wanted (d, m), neither of them 0")
    if M.dtype not in DTYPES:
        raise TypeError(f"M is {M.dtype}: wanted torch.float32 or torch.float64")


def _multiply(Q: Tensor, M: Tensor) -> Tensor:
    """Q (p, d) times M (d, m) in float64, on the loop nest of the kernels."""
    out = torch.empty(Q.shape[0], M.shape[1], dtype=torch.float64)
    Q, M = Q.contiguous(), M.contiguous()
    _backend.kernels().polar_multiply(
        Q.data_ptr(), M.data_ptr(), out.data_ptr(), *Q.shape, M.shape[1], torch.get_num_threads()
    )
    return out


def _gram(X: Tensor, Y: Tensor) -> Tensor:
    """X (p, m) times Y (d, m) transposed in float64: the cross-covariance of columns as samples."""
    return torch.ops.rainbow_fast.cross_covariance(
        X.unsqueeze(0), [] if Y is X else [Y.unsqueeze(0)], "identity", 0.0, False, "cpu"
    )


def _gram_factors(M: Tensor, rtol: float, enough: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """As `polar_reference`, for a wide float64 M, from Gram matrices; None where those do not resolve the rank
    or the corrections do not converge.

    The first Gram matrix resolves the directions above SPLIT times the largest singular value, the second, of M
    projected on the others, what lies below. Then the rows of the factor are orthonormal up to an error that each
    correction squares; none is made where the first error is below `enough`.
    """
    eigenvalues, U = torch.linalg.eigh(_gram(M, M))
    projected = _multiply(U.T, M)
    weak = eigenvalues <= SPLIT**2 * eigenvalues[-1]
    if weak.any():
        rest = projected[weak]
        eigenvalues[weak], W = torch.linalg.eigh(_gram(rest, rest))
        U[:, weak] = U[:, weak] @ W
        projected[weak] = _multiply(W.T, rest)
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
        if error < enough:
            return U, (K * projected).sum(1), K
        # To first order, (1 - E/2 + X) K has orthonormal rows and, X being skew, a symmetric product with those of M.
        N = _gram(K, projected)
        N -= 0.5 * E @ N
        X = (N.T - N) / (S[:, None] + S[None, :])
        K = K + _multiply(X - 0.5 * E, K)
        if error < CORRECTED_ONCE:
            return U, (K * projected).sum(1), K
    return None


def _completion(U: Tensor, Vh: Tensor, d: int, m: int) -> Tensor:
    """The isometry between the null spaces of a wide matrix: polar factor of P_left Z P_right, Z a fixed Gaussian."""
    Z = torch.from_numpy(gaussian_reference([0, 0, 0, 0], d, m)).double().to(U.device)
    for _ in range(2):  # twice is enough: the second pass removes what rounding left of the first
        Z = Z - U @ (U.T @ Z)
        Z = Z - (Z @ Vh.T) @ Vh
    left, _, right = torch.linalg.svd(Z, full_matrices=False)
    null = d - U.shape[1]
    return left[:, :null] @ right[:null]


def _polar_out(
    M: Tensor, complete: bool, rtol: float | None, backend: str | None, out: Tensor, statistics: Tensor
) -> None:
    _check(M)
    _backend.refuse_grad("polar_out", M)
    if out.shape != M.shape or out.dtype != M.dtype:
        raise ValueError(f"out is {out.dtype} of shape {tuple(out.shape)}: wanted {M.dtype} of shape {tuple(M.shape)}")
    if statistics.shape != (4,) or statistics.dtype != torch.float64:
        raise ValueError(
            f"statistics is {statistics.dtype} of shape {tuple(statistics.shape)}: wanted float64 of shape (4,)"
        )
    chosen = _backend.choose(backend, M.device, M.dtype, DTYPES)
    largest = M.detach().abs().max().double()
    if not torch.isfinite(largest):
        raise ValueError("M has entries that are not finite: its polar factor is not defined")
    if largest == 0:
        raise ValueError(f"M of shape {tuple(M.shape)} is all zero: its polar factor is not defined")
    if rtol is None:  # here, so that a compiled function does not depend on it
        rtol = min(max(M.shape) * torch.finfo(M.dtype).eps, 0.5)
    scaled = M.detach().double() / largest
    tall = M.shape[0] > M.shape[1]
    wide = scaled.T.contiguous() if tall else scaled
    factors = _gram_factors(wide, rtol, ENOUGH[M.dtype]) if chosen == "cpu" else None
    U, S, Vh = factors or polar_reference(wide, rtol)
    A = _multiply(U, Vh) if chosen == "cpu" else U @ Vh
    B = (U * S) @ U.T  # H of the partial factor, exactly symmetric up to rounding
    residual = torch.linalg.norm(wide - (_multiply(B, A) if chosen == "cpu" else B @ A)) / torch.linalg.norm(wide)
    if complete and len(S) < wide.shape[0]:
        A = A + _completion(U, Vh, *wide.shape)
    out.copy_(A.T if tall else A)
    statistics[0] = S.sum() * largest
    statistics[1] = len(S)
    statistics[2] = S.max() / S.min()
    statistics[3] = residual


def _polar(M: Tensor, complete: bool, rtol: float | None, backend: str | None) -> tuple[Tensor, ...]:
    A = torch.empty(M.shape, dtype=M.dtype, device=M.device)
    statistics = M.new_empty(4, dtype=torch.float64)
    _polar_out(M.detach(), complete, rtol, backend, A, statistics)
    nuclear_norm, rank, condition, residual = (s.clone() for s in statistics)
    return A, nuclear_norm, rank.long(), condition, residual


def _polar_fake(M: Tensor, complete: bool, rtol: float | None, backend: str | None) -> tuple[Tensor, ...]:
    number = [M.new_empty((), dtype=dtype) for dtype in (torch.float64, torch.int64, torch.float64, torch.float64)]
    return torch.empty(M.shape, dtype=M.dtype, device=M.device), *number


_NAME = "rainbow_fast::polar"
torch.library.define(
    _NAME, "(Tensor M, bool complete, float? rtol, str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
torch.library.define(
    f"{_NAME}_out",
    "(Tensor M, bool complete, float? rtol, str? backend, Tensor(a!) out, Tensor(b!) statistics) -> ()",
)
torch.library.impl(_NAME, "CompositeExplicitAutograd")(_polar)
torch.library.impl(f"{_NAME}_out", "CompositeExplicitAutograd")(_polar_out)
torch.library.register_fake(_NAME)(_polar_fake)
torch.library.register_fake(f"{_NAME}_out")(lambda M, complete, rtol, backend, out, statistics: None)
