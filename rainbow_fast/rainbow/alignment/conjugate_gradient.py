# SPDX-License-Identifier: BSD-3-Clause
"""The regression A = M (S + lambda I)^-1 of a site, computed only by products with S. No (n, n) matrix is stored."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rainbow_fast.rainbow.laws.law import EIGENVECTORS

Apply = Callable[[Tensor], Tensor]  # maps V (k, m), m <= n, to (V, 0) S (k, n) float64: missing columns of V are 0

# The preconditioner is made of l = n / 16 of the n neurons, at most 2048, and at most as many as fit into 4 GiB. More
# neurons reduce the number of products as l^-1/2, but cost as much time to multiply with and to factor as they save.
SKETCHED, MOST_SKETCH, SKETCH_NUMBERS = 16, 2048, 2**29
SKETCH_ROWS = 512  # neurons of the preconditioner that are multiplied with at a time
# Number of products until predictions are accurate to 1e-4, divided by (n / l)^1/2: 7 to 16 at sites of small networks
# and of ResNet-20.
PRODUCTS = 14
COLUMNS = 4096  # columns of the preconditioner that are solved at a time


class NotSolvedError(RuntimeError):
    """The regression was not solved to the tolerance."""


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
    r"""``A = M (S + lambda I)^-1`` with S = E[phi' phi'^T] (n, n) and lambda = ridge * mean of the diagonal of S.

    Equivalent to, up to `tolerance`::

        torch.linalg.solve(S + ridge * mean_diagonal * torch.eye(n), M, left=False)

    Conjugate gradients run on all d rows at once, with a preconditioner P that is applied as P^-1/2 from both sides.
    With C (l, n) the first l rows of S, W the first l columns of C, and ``nu = lambda l / n``:

        C^T (W + nu I)^-1 C = B^T B = U^T diag(e) U <= S,    U (l, n) with orthonormal rows
        P     = U^T diag(e + lambda) U + mu (I - U^T U)
        S_hat = P^-1/2 (S + lambda I) P^-1/2,    A_hat S_hat = M P^-1/2,    A = A_hat P^-1/2

    The neurons are independent, so the first l are as good as a random choice, and multiplying with them needs no extra
    pass. ``mu - lambda`` is a third of the mean remaining eigenvalue ``(tr S - tr B^T B) / (n - l)``, because most of
    the remaining eigenvalues are below the mean, and far above lambda. Each step uses an orthonormal basis of the new
    directions, so that rows that are zero, dependent or converged do no harm.

    ``S + lambda I`` is at least P with mu replaced by lambda. So the residual R bounds the error E of A, row by row:

        E|E phi'|^2 + lambda |E|^2 = tr(E (S + lambda I) E^T) <= tr(R (U^T diag(e) U + lambda I)^-1 R^T)

    The iteration ends when, in every row, the root of this bound is at most `tolerance` times the root of
    ``tr(A M^T) = E|A phi'|^2 + lambda |A|^2``. This is the relative error of the predictions ``A phi'``. The entries of
    A are less accurate, by a factor of up to ``(|A phi'|^2 / (lambda |A|^2))^1/2``, along directions in which phi'
    hardly varies. A direct solve has the same problem: rounding S and M to float32 changes its result by as much.

    Memory, in float64: M, A, and up to eight more matrices of size (d, n); B, and a few matrices of size (l, l). There
    is no (n, n) matrix.

    Args:
        apply: multiplies V (k, m) of dtype `dtype` by the first m rows of S. m = n, except for the preconditioner,
            where m = l. It can be `random_features_projection` by V, followed by `random_features_covariance` of the
            result, over all samples.
        M: E[phi phi'^T], (d, n) float64.
        mean_diagonal: mean of the diagonal of S, E|phi'|^2 / n.
        ridge: lambda relative to the mean of the diagonal, above 0. (Without a ridge, the pseudo-inverse needs S.)
        tolerance: relative error of the predictions in each row; default 1e-4. Passes in float32 support 1e-4 or more.
        sketch: l, at most n; default: n / 16, at most 2048, and at most as many as fit into 4 GiB.
        dtype: of the passes; default float32. Directions are rounded to it before the product, so that each product
            belongs exactly to its direction.
        max_products: largest number of products with d rows; default 500.

    Returns:
        A, (d, n) float64.

    Raises:
        ValueError: a shape or a dtype is wrong, a number is out of range, or M or a product is not finite.
        NotSolvedError: the tolerance is not reached, or products are not accurate enough to continue.

    Source: Frangella, Tropp and Udell (SIAM J. Matrix Anal. Appl. 2023), section 5, for the preconditioner; Dubrulle
    (Electron. Trans. Numer. Anal. 2001), for block conjugate gradients with orthonormal directions.
    """
    positive = {"mean_diagonal": mean_diagonal, "ridge": ridge, "tolerance": tolerance, "max_products": max_products}
    sketch = _check(M, positive, sketch)
    shift = ridge * mean_diagonal
    P = Nystroem(apply, M, sketch, shift, mean_diagonal, dtype)
    A, R = torch.zeros_like(M), P.half(M)
    D = _orthonormal(R)
    for _ in range(max_products):
        V = P.half(D).to(dtype)
        S_V = _product(apply, V, M.shape[1])
        V = V.double()
        Q = P.half(S_V.add_(V, alpha=shift))
        factor, failed = torch.linalg.cholesky_ex(_symmetric(D @ Q.T))
        if failed:
            raise NotSolvedError("S + lambda I is not positive to the precision of products, wanted a larger one")
        step = torch.cholesky_solve(D @ R.T, factor).T
        A.addmm_(step, V)
        R.addmm_(step, Q, alpha=-1)
        energy = (A * M).sum(1)
        wanted = tolerance**2 * energy
        if (R.square().sum(1) <= wanted).all() and (P.bound(R) <= wanted).all():  # the first is below the second
            return A
        D = _orthonormal(R - torch.cholesky_solve(Q @ R.T, factor).T @ D)
    reached = float((P.bound(R) / energy.clamp(min=torch.finfo(torch.float64).tiny)).max().sqrt())
    raise NotSolvedError(
        f"after {max_products} products the predictions are certain to {reached:.1e}: wanted tolerance={tolerance}"
    )


def products_expected(n: int) -> float:
    """Number of products of d rows with S until predictions are accurate to 1e-4, without the preconditioner's."""
    return PRODUCTS * math.sqrt(n / sketch_size(n))


def regress_flops(d: int, n: int) -> float:
    """Flops of `regress` with M (d, n), without the products with S.

    They are the preconditioner P of l rows, and for each product with S two products of d rows with P^-1/2, and six
    among directions and residuals.
    """
    sketch = sketch_size(n)
    preconditioner = 4.0 * sketch**2 * n + 2 * (EIGENVECTORS + 1) * sketch**3
    return preconditioner + (8.0 * sketch + 12.0 * d) * d * n * products_expected(n)


class Nystroem:
    """The preconditioner P of `regress`, from ``B = (W + nu I)^-1/2 C`` (l, n) and the eigenvectors of B B^T (l, l)."""

    def __init__(self, apply: Apply, M: Tensor, sketch: int, shift: float, mean_diagonal: float, dtype: torch.dtype):
        n = M.shape[1]
        self.B = M.new_empty(sketch, n)
        for start in range(0, sketch, SKETCH_ROWS):
            rows = self.B[start : start + SKETCH_ROWS]
            ones = torch.zeros(len(rows), sketch, dtype=dtype, device=M.device)
            ones[:, start:].fill_diagonal_(1)
            rows.copy_(_product(apply, ones, n))
        w, V = torch.linalg.eigh(_symmetric(self.B[:, :sketch]))
        root = (V * (w.clamp(min=0) + shift * sketch / n).rsqrt()).T
        for start in range(0, n, COLUMNS):
            columns = self.B[:, start : start + COLUMNS]
            columns.copy_(root @ columns)
        e, V = torch.linalg.eigh(_symmetric(self.B @ self.B.T))
        left = max(n * mean_diagonal - float(e.sum()), 0.0) / max(n - sketch, 1)
        self.shift, self.mu = shift, shift + left / 3
        kept = e > shift
        e, V = e[kept], V[:, kept]
        self.unit = V * e.rsqrt()  # U = unit^T B
        self.correction = (V * ((e + shift).rsqrt() - self.mu**-0.5) / e) @ V.T

    def half(self, R: Tensor) -> Tensor:
        """R P^-1/2"""
        return (R * self.mu**-0.5).addmm_(R @ self.B.T @ self.correction, self.B)

    def bound(self, R: Tensor) -> Tensor:
        """The bound of the squared error of each row, from R P^-1/2."""
        inside = (R @ self.B.T @ self.unit).square().sum(1)
        return inside + (R.square().sum(1) - inside) * (self.mu / self.shift)


def products_about(
    covariance: Callable[[Tensor, Tensor], Tensor],
    mean: Tensor,
    subtracted: Tensor,
    inverse: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    center: Tensor | None = None,
) -> Apply:
    """The function `apply` of `regress` for the second moment ``E[f f^T]`` of ``f = inverse (phi' - subtracted)``.

    Args:
        covariance: maps V (k, m), as in `regress`, and c (k,), both of `dtype`, to
            ``E[(V phi' - c)(phi' - center)^T]`` (k, n) float64. c is subtracted between the two passes, so that the
            second pass sums small numbers.
        mean: E[phi'], (n,) float64.
        subtracted, inverse: (n,) float64.
        dtype: of the passes. V is rounded to it here, so that means cancel.
        center: near the mean, (n,) float64; None for 0.
    """
    center = torch.zeros_like(mean) if center is None else center
    about = center if center.any() else subtracted
    off, left = mean - center, center - subtracted

    def product(V: Tensor) -> Tensor:
        m = V.shape[1]
        W = (V * inverse[:m]).to(dtype)
        c = W.double() @ subtracted[:m]
        near = (W.double() @ about[:m]).to(dtype)
        out = covariance(W, near) - torch.outer(c - near.double(), off)
        return (out + torch.outer(W.double() @ mean[:m] - c, left)) * inverse

    return product


def _check(M: Tensor, positive: dict[str, float], sketch: int | None) -> int:
    """Check the arguments of `regress`; returns the size of the sketch."""
    if M.dim() != 2 or not M.numel() or M.dtype != torch.float64:
        raise ValueError(f"M is {M.dtype} of shape {tuple(M.shape)}: wanted float64 of shape (d, n), d and n above 0")
    if not torch.isfinite(M).all():
        raise ValueError("M is not finite")
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: wanted a finite number above 0")
    n = M.shape[1]
    if sketch is None:
        return sketch_size(n)
    if not 1 <= sketch <= n:
        raise ValueError(f"sketch={sketch}: wanted 1 to n = {n}")
    return sketch


def sketch_size(n: int) -> int:
    """Default number of neurons that the preconditioner is made of."""
    return max(min(n // SKETCHED, MOST_SKETCH, SKETCH_NUMBERS // n), 1)


def _product(apply: Apply, V: Tensor, n: int) -> Tensor:
    out = apply(V)
    if out.shape != (len(V), n) or out.dtype != torch.float64:
        raise ValueError(f"apply gave {out.dtype} of shape {tuple(out.shape)}: wanted float64 of {(len(V), n)}")
    if not torch.isfinite(out).all():
        raise ValueError("apply gave a product that is not finite")
    return out


def _symmetric(G: Tensor) -> Tensor:
    return (G + G.T) / 2


def _orthonormal(V: Tensor) -> Tensor:
    """Orthonormal rows whose span contains the rows of V, which may have any rank."""
    return torch.linalg.qr(V.T).Q.T
