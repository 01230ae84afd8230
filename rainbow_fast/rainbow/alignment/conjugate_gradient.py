# SPDX-License-Identifier: BSD-3-Clause
"""The regression A = M (S + lambda I)^-1 of a site by products with S alone: nothing of size n x n is stored."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rainbow_fast.rainbow.laws.law import EIGENVECTORS

Apply = Callable[[Tensor], Tensor]  # V (k, m), m <= n, to (V, 0) S (k, n) float64: columns of V that are missing are 0

# Of n neurons, the preconditioner is made of n / 16, at most 2048, and at most what 4 GiB hold. More save products,
# whose number falls as l^-1/2, but take as long to multiply with and to factor as they save.
SKETCHED, MOST_SKETCH, SKETCH_NUMBERS = 16, 2048, 2**29
SKETCH_ROWS = 512  # neurons of it that are multiplied with at a time
# Products until predictions are certain to 1e-4, over (n / l)^1/2: 7 to 16 at sites of small networks and ResNet-20.
PRODUCTS = 14
COLUMNS = 4096  # of the preconditioner that are solved with at a time


class NotSolvedError(RuntimeError):
    """The regression was not solved."""


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

        C^T (W + nu I)^-1 C = B^T B = U^T diag(e) U <= S,    U (l, n) with orthonormal rows
        P     = U^T diag(e + lambda) U + mu (I - U^T U)
        S_hat = P^-1/2 (S + lambda I) P^-1/2,    A_hat S_hat = M P^-1/2,    A = A_hat P^-1/2

    (Neurons are independent, so the first l are as good as a random choice; they need no pass of their own to be
    multiplied with.) ``mu - lambda`` is a third of the mean of what is left, ``(tr S - tr B^T B) / (n - l)``: most of
    its eigenvalues are below the mean, and far above lambda. Each step takes an orthonormal basis of the new
    directions, so that rows which are zero, dependent or done do no harm. As ``S + lambda I`` is at least P with lambda
    for mu, the residual R bounds the error E of A:

        E|E phi'|^2 + lambda |E|^2 = tr(E (S + lambda I) E^T) <= tr(R (U^T diag(e) U + lambda I)^-1 R^T),    row by row

    and steps end where, in every row, its root is at most `tolerance` times that of ``tr(A M^T) = E|A phi'|^2 +
    lambda |A|^2``: that is the relative error of the predictions ``A phi'``. The entries of A are less certain, by up
    to ``(|A phi'|^2 / (lambda |A|^2))^1/2``, along directions in which phi' hardly varies; so they are with a direct
    solve, which rounding of S and M in float32 moves by as much.

    Memory, in float64: M, A, and up to eight more of size (d, n); B, and some of (l, l); nothing of size n x n.

    Args:
        apply: multiplies V (k, m) of dtype `dtype` by the first m rows of S, m = n but for the sketch, m = k = l:
            `random_features_projection` by V, then `random_features_covariance` of what it gives, over samples.
        M: E[phi phi'^T], float64.
        mean_diagonal: of S: E|phi'|^2 / n.
        ridge: lambda over the mean of the diagonal, above 0. (Without one the pseudo-inverse needs S itself.)
        tolerance: relative error of the predictions, in each row. Passes in float32 support 1e-4 or more.
        sketch: l, at most n; by default n / 16, at most 2048, and at most what 4 GiB hold.
        dtype: that of the passes. Directions are rounded to it first, so that the product is of the very direction.
        max_products: products of d rows, after which the solve has failed.

    Returns:
        A, float64.

    Raises:
        ValueError: a shape, a dtype or a number outside its range, M or a product that is not finite.
        NotSolvedError: the tolerance is not reached, or products are not certain enough to go on.

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
    """Products of all d rows with S until the predictions are certain to 1e-4, the sketch aside."""
    return PRODUCTS * math.sqrt(n / sketch_size(n))


def regress_flops(d: int, n: int) -> float:
    """Of the algebra of `regress` with M (d, n), products with S aside: the preconditioner P of l rows, then for each
    product two of d rows with P^-1/2 and six among directions and residuals."""
    sketch = sketch_size(n)
    preconditioner = 4.0 * sketch**2 * n + 2 * (EIGENVECTORS + 1) * sketch**3
    return preconditioner + (8.0 * sketch + 12.0 * d) * d * n * products_expected(n)


class Nystroem:
    """P of `regress`, by ``B = (W + nu I)^-1/2 C`` (l, n) and the eigenvectors of B B^T (l, l)."""

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
        """Of the error of each row, given R P^-1/2."""
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
    """Products with the second moment of normalised features, ``E[f f^T]``, ``f = inverse (phi' - subtracted)``.

    Args:
        covariance: gives ``E[(V phi' - c)(phi' - center)^T]`` (k, n) float64 of V (k, m), as for `regress`, and c (k,),
            both of `dtype`. (c is taken off between the passes, so that the sums of the second are of small numbers.)
        mean, subtracted, inverse: E[phi'] and the two vectors above, (n,) float64.
        dtype: that of the passes; what they multiply is rounded to it here, so that means cancel.
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
    """The size of the sketch."""
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
    """Neurons that the preconditioner is made of, by default."""
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
    """Orthonormal rows that span those of V, whatever its rank."""
    return torch.linalg.qr(V.T).Q.T
