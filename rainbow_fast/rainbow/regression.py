# SPDX-License-Identifier: BSD-3-Clause
"""The regression A = M (S + lambda I)^-1 of a site by products with S alone: nothing of size n x n is stored."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Apply = Callable[[Tensor], Tensor]  # V (k, m), m <= n, to (V, 0) S (k, n) float64: columns of V that are missing are 0

LEAST_SKETCH, MOST_SKETCH, SKETCH_PER_ROW = 256, 1024, 8
# Products until predictions are certain to 1e-4, over (n / l)^1/2: 8 at the stem of ResNet-20, 18 in its third stage.
PRODUCTS = 18


def regress(
    apply: Apply,
    M: Tensor,  # (d, n)
    mean_diagonal: float,
    ridge: float,
    *,
    tolerance: float = 1e-4,
    sketch: int | None = None,
    dtype: torch.dtype = torch.float32,
    max_products: int = 500,
) -> Tensor:  # (d, n)
    r"""``A = M (S + lambda I)^-1``, S = E[phi' phi'^T] (n, n), lambda = ridge times the mean of the diagonal of S.

    Equivalent to, up to `tolerance`::

        torch.linalg.solve(S + ridge * mean_diagonal * torch.eye(n), M, left=False)

    Conjugate gradients on all d rows at once, between the two halves of a preconditioner P. With C (l, n) the first l
    rows of S, W its first l columns and ``nu = lambda l / n``:

        P     = lambda I + C^T (W + nu I)^-1 C = lambda I + U^T diag(e) U,    U (l, n) with orthonormal rows
        S_hat = P^-1/2 (S + lambda I) P^-1/2,    A_hat S_hat = M P^-1/2,    A = A_hat P^-1/2

    (Neurons are independent, so the first l are as good as a random choice; they need no pass of their own to be
    multiplied with.) Each step takes an orthonormal basis of the new directions, so that rows which are zero, dependent
    or done do no harm. As ``P <= S + lambda I``, the residual R bounds the error E of A:

        E|E phi'|^2 + lambda |E|^2 = tr(E (S + lambda I) E^T) <= tr(R P^-1 R^T),    row by row

    and steps end where, in every row, its root is at most `tolerance` times that of ``tr(A M^T) = E|A phi'|^2 +
    lambda |A|^2``: that is the relative error of the predictions ``A phi'``. The entries of A are less certain, by up
    to ``(|A phi'|^2 / (lambda |A|^2))^1/2``, along directions in which phi' hardly varies; so they are with a direct
    solve, which rounding of S and M in float32 moves by as much.

    Memory, in float64: M, A, and up to eight more of size (d, n); three of (l, n) while P is made, one after; nothing
    of size n x n.

    Args:
        apply: multiplies V (k, m) of dtype `dtype` by the first m rows of S, m = n but for the sketch, m = k = l:
            `random_features_projection` by V, then `random_features_covariance` of what it gives, over samples.
        M: E[phi phi'^T], float64.
        mean_diagonal: of S: E|phi'|^2 / n.
        ridge: lambda over the mean of the diagonal, above 0. (Without one the pseudo-inverse needs S itself.)
        tolerance: relative error of the predictions, in each row. Passes in float32 support 1e-4 or more.
        sketch: l; by default 8 d, at least 256 and at most 1024. At most n.
        dtype: that of the passes. Directions are rounded to it first, so that the product is of the very direction.
        max_products: products of d rows, after which the solve has failed.

    Returns:
        A, float64.

    Raises:
        ValueError: a shape, a dtype or a number outside its range, M or a product that is not finite.
        RuntimeError: the tolerance is not reached.

    Source: Frangella, Tropp and Udell (SIAM J. Matrix Anal. Appl. 2023), section 5, for the preconditioner; Dubrulle
    (Electron. Trans. Numer. Anal. 2001), for block conjugate gradients with orthonormal directions.
    """
    positive = {"mean_diagonal": mean_diagonal, "ridge": ridge, "tolerance": tolerance, "max_products": max_products}
    sketch = _check(M, positive, sketch)
    shift = ridge * mean_diagonal
    U, values = _nystroem(_product(apply, torch.eye(sketch, dtype=dtype, device=M.device), M.shape[1]), shift)
    inner, outer = (values + shift).rsqrt(), shift**-0.5

    def half(V: Tensor) -> Tensor:
        """V P^-1/2"""
        c = V @ U.T
        return (V * outer).addmm_(c * (inner - outer), U)

    A, R = torch.zeros_like(M), half(M)
    D = _orthonormal(R)
    for _ in range(max_products):
        P = half(D).to(dtype)
        S_P = _product(apply, P, M.shape[1])
        P = P.double()
        Q = half(S_P.add(P, alpha=shift))
        factor = torch.linalg.cholesky(_symmetric(D @ Q.T))
        step = torch.cholesky_solve(D @ R.T, factor).T
        A.addmm_(step, P)
        R.addmm_(step, Q, alpha=-1)
        bound = R.square().sum(1)
        energy = (A * M).sum(1)
        if (bound <= tolerance**2 * energy).all():
            return A
        D = _orthonormal(R - torch.cholesky_solve(Q @ R.T, factor).T @ D)
    reached = float((bound / energy.clamp(min=torch.finfo(torch.float64).tiny)).max().sqrt())
    raise RuntimeError(
        f"after {max_products} products the predictions are certain to {reached:.1e}: wanted tolerance={tolerance}"
    )


def products_expected(d: int, n: int) -> float:
    """Products of all d rows with S until the predictions are certain to 1e-4, the sketch aside."""
    return PRODUCTS * math.sqrt(n / sketch_size(d, n))


def centred(
    covariance: Callable[[Tensor, Tensor], Tensor],
    mean: Tensor,
    subtracted: Tensor,
    inverse: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Apply:
    """Products with the second moment of normalised features, ``E[f f^T]``, ``f = inverse (phi' - subtracted)``.

    Args:
        covariance: gives ``E[(V phi' - c) phi'^T]`` (k, n) float64 of V (k, m), as for `regress`, and c (k,), both
            of `dtype`. (c is taken off between the passes, so that the sums of the second are of small numbers.)
        mean, subtracted, inverse: E[phi'] and the two vectors above, (n,) float64.
        dtype: that of the passes; what they multiply is rounded to it here, so that means cancel.
    """

    def product(V: Tensor) -> Tensor:
        m = V.shape[1]
        W = (V * inverse[:m]).to(dtype)
        c = W.double() @ subtracted[:m]
        near = c.to(dtype)
        out = covariance(W, near) - torch.outer(c - near.double(), mean)
        return (out - torch.outer(W.double() @ mean[:m] - c, subtracted)) * inverse

    return product


def _check(M: Tensor, positive: dict[str, float], sketch: int | None) -> int:
    """The size of the sketch."""
    if M.dim() != 2 or not M.numel() or M.dtype != torch.float64:
        raise ValueError(f"M is {M.dtype} of shape {tuple(M.shape)}: wanted float64 of shape (d, n), d and n above 0")
    if not torch.isfinite(M).all():
        raise ValueError("M is not finite")
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: wanted a finite number above 0")
    d, n = M.shape
    if sketch is None:
        return sketch_size(d, n)
    if not 1 <= sketch <= n:
        raise ValueError(f"sketch={sketch}: wanted 1 to n = {n}")
    return sketch


def sketch_size(d: int, n: int) -> int:
    """Neurons that the preconditioner is made of, by default."""
    return min(max(SKETCH_PER_ROW * d, LEAST_SKETCH), MOST_SKETCH, n)


def _product(apply: Apply, V: Tensor, n: int) -> Tensor:
    out = apply(V)
    if out.shape != (len(V), n) or out.dtype != torch.float64:
        raise ValueError(f"apply gave {out.dtype} of shape {tuple(out.shape)}: wanted float64 of {(len(V), n)}")
    if not torch.isfinite(out).all():
        raise ValueError("apply gave a product that is not finite")
    return out


def _nystroem(C: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """U with orthonormal rows and e above `shift`, of the first rows C (l, n) of S: U^T diag(e) U is at most S."""
    sketch, n = C.shape
    w, V = torch.linalg.eigh(_symmetric(C[:, :sketch]))
    B = (V * (w.clamp(min=0) + shift * sketch / n).rsqrt()).T @ C
    values, V = torch.linalg.eigh(_symmetric(B @ B.T))
    kept = values > shift
    return (V[:, kept] * values[kept].rsqrt()).T @ B, values[kept]


def _symmetric(G: Tensor) -> Tensor:
    return (G + G.T) / 2


def _orthonormal(V: Tensor) -> Tensor:
    """Orthonormal rows that span those of V, whatever its rank."""
    return torch.linalg.qr(V.T).Q.T
