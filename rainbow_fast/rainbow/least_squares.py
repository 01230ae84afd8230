# SPDX-License-Identifier: BSD-3-Clause
"""The least-squares alignment A = M (S + lambda I)^-1 of a site, from S summed or from products with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast.ops.cross_covariance import cross_covariance_, cross_covariance_flops
from rainbow_fast.rainbow.activation import RainbowActivation, Select
from rainbow_fast.rainbow.channel_moments import shaped
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.parts import Parts
from rainbow_fast.rainbow.regression import (
    EIGENVECTORS,
    SKETCH_ROWS,
    NotSolvedError,
    centred,
    products_expected,
    regress,
    regress_flops,
    sketch_size,
)

RTOL = 1e-10  # eigenvalues of a singular S below this share of the largest are null
SQUARE_BYTES = 2**33  # that S, or the kernel, may take, factored in place: 32,768 rows of float64
FEATURE_NUMBERS = 2**24  # numbers of phi' at a time, where all n neurons of a sample are needed together

Batches = Callable[[], Iterator[tuple[Tensor, Tensor, Select]]]  # phi and zh, and which of their samples are taken


def solver(parts: Parts, features: int, samples: int, channels: int | None = None) -> str:
    """Which is the fastest that fits: S (n, n) summed, the kernel of the N samples where they are fewer than features,
    or products with S alone. Without a ridge, where S is singular, not the last.

    Args:
        channels: d, where passes are fused; None where features must be stored, which is slow to do at each product.
    """
    way, size = ("kernel", samples) if samples < features else ("summed", features)
    if parts.ridge == 0:
        return way
    # Flops for each sample and feature: two passes a product, with as many rows again that make the features.
    by_products = 2 * sketch_size(features) + 8 * channels * products_expected(features) if channels else math.inf
    return way if 8 * size**2 <= SQUARE_BYTES and size <= by_products else "products"


class SolverCost(NamedTuple):
    """What a regression takes beside the sums of M.

    Attributes:
        passes: times that the features phi' of all samples are computed.
        products: flops of products with them.
        algebra: flops in float64.
        bytes: of matrices beside those as large as M.
    """

    passes: int = 0
    products: float = 0.0
    algebra: float = 0.0
    bytes: int = 0


def solver_cost(way: str, d: int, n: int, N: int, *, ridge: bool) -> SolverCost:
    """Of one `way` that `solver` names: M is (d, n), of N samples; `ridge`: lambda is above 0.

    The matrix of S or of the kernel takes a Cholesky factor in place, or three as large for its pseudo-inverse.
    """
    if way == "products":
        count, sketch = math.ceil(products_expected(n)), sketch_size(n)
        products = 2.0 * N * sketch * (n + sketch) + 4.0 * N * d * n * count
        blocks = -(-sketch // SKETCH_ROWS)
        return SolverCost(2 * (count + blocks), products, regress_flops(d, n), 8 * (sketch + SKETCH_ROWS) * n)
    size = n if way == "summed" else N
    algebra = 2.0 * d * size**2 + (size**3 / 3 if ridge else (EIGENVECTORS + 2) * size**3)
    square = 8 * size**2 * (1 if ridge else 3)
    if way == "summed":
        return SolverCost(1, cross_covariance_flops((N, n), []), algebra, square)
    block = 16 * min(FEATURE_NUMBERS, N * n)  # of features, in float32 twice and in float64
    return SolverCost(2, cross_covariance_flops((n, N), []), algebra + 2.0 * d * N * n, square + block)


class Summed:
    """S = E[phi' phi'^T] itself, (n, n) float64, from sums about the center of the features."""

    def __init__(self, activation: RainbowActivation, features: int, device: torch.device) -> None:
        self.activation = activation
        self.S = torch.zeros(features, features, dtype=torch.float64, device=device)

    def add(self, zh: Tensor, samples: int, select_from: Callable[[int], Select], center: Tensor) -> None:
        """A batch of so many samples; `select_from` those of it that follow the first so many."""
        per_sample = len(zh) // samples  # rows of zh: more than one where the channel axis is the last
        rows = max(FEATURE_NUMBERS // (self.activation.n * zh[:per_sample, 0].numel()), 1) * per_sample
        for start in range(0, len(zh), rows):
            select = select_from(start // per_sample)
            phi = select(self.activation.features(zh[start : start + rows]))
            cross_covariance_(self.S, phi - shaped(center, phi))

    def solve(self, M: Tensor, moments: CrossCovariance, subtracted: Tensor, inverse: Tensor, ridge: float) -> Tensor:
        """A, for features ``inverse (phi' - subtracted)``; the pseudo-inverse of S where it is singular and there is no
        ridge."""
        off, left = moments.y.off, moments.mean_y - subtracted
        S = self.S.div_(moments.count).addr_(off, off, alpha=-1).addr_(left, left)
        if (inverse != 1).any():
            S.mul_(inverse).mul_(inverse[:, None])
        _check(S, moments.name)
        if ridge == 0:
            return M @ torch.linalg.pinv(S, hermitian=True, rtol=RTOL)
        return _solve(S, ridge * float(S.diagonal().mean()), M.T, moments.name).T


class Kernel:
    """K = F F^T (N, N) of the features F (N, n) of N samples: ``A = X^T (K + N lambda I)^-1 F`` is the same A."""

    def __init__(self, activation: RainbowActivation, batches: Batches) -> None:
        self.activation, self.batches = activation, batches

    def solve(self, M: Tensor, moments: CrossCovariance, subtracted: Tensor, inverse: Tensor, ridge: float) -> Tensor:
        """A, for features ``inverse (phi' - subtracted)``; by the pseudo-inverse of K where there is no ridge."""
        count, n = moments.count, self.activation.n
        positions, size = M.shape[1] // n, max(FEATURE_NUMBERS // count, 1)
        center = moments.y.center
        assert center is not None
        apart = (center - subtracted) * inverse  # F = D + 1 apart^T, D of features about their center

        def blocks() -> Iterator[tuple[slice, Tensor]]:
            for start in range(0, n, size):
                stop = min(start + size, n)
                at = slice(start * positions, stop * positions)
                rows = torch.cat([self.activation.rows(zh, take, start, stop) for _, zh, take in self.batches()])
                yield at, (rows - center[at].to(rows.dtype)) * inverse[at].to(rows.dtype)

        K, along = M.new_zeros(count, count), M.new_zeros(count)
        for at, rows in blocks():
            cross_covariance_(K, rows.T)
            along += rows.double() @ apart[at]
        K += along
        K += along.unsqueeze(1) + apart.square().sum()
        _check(K, moments.name)
        X = torch.cat([_rows(take(phi)) for phi, _, take in self.batches()]).double()
        if torch.equal(subtracted, moments.mean_y):  # sum F = 0, so that the mean of X has no part in A
            X -= moments.mean_x
        if ridge > 0:
            Y = _solve(
                K, count * ridge * moments.y.second_moment_about(subtracted, inverse) / M.shape[1], X, moments.name
            ).T
        else:
            Y = X.T @ torch.linalg.pinv(K, hermitian=True, rtol=RTOL)
        A = torch.empty_like(M)
        for at, rows in blocks():
            A[:, at] = (Y @ rows.double()).addr_(Y.sum(1), apart[at])
        return A


class Products:
    """S known by products with it, two passes over the samples each: nothing of size n x n is stored."""

    def __init__(self, activation: RainbowActivation, batches: Batches, dtype: torch.dtype) -> None:
        self.activation, self.batches, self.dtype = activation, batches, dtype

    def solve(self, M: Tensor, moments: CrossCovariance, subtracted: Tensor, inverse: Tensor, ridge: float) -> Tensor:
        """A, for features ``inverse (phi' - subtracted)``, with predictions certain to 1e-4."""

        center = moments.y.center
        assert center is not None

        def covariance(V: Tensor, c: Tensor) -> Tensor:
            out = torch.zeros(len(V), M.shape[1], dtype=torch.float64, device=V.device)
            for _, zh, select in self.batches():
                self.activation.add_product(out, V, c, zh, select, center)
            return out.div_(moments.count)

        apply = centred(covariance, moments.mean_y, subtracted, inverse, self.dtype, center=center)
        mean_diagonal = moments.y.second_moment_about(subtracted, inverse) / M.shape[1]
        try:
            return regress(apply, M, mean_diagonal, ridge, dtype=self.dtype)
        except NotSolvedError as error:
            raise ValueError(f"site {moments.name!r}: ridge: {error}") from None


def _check(S: Tensor, site: str | None) -> None:
    if not all(torch.isfinite(end) for end in torch.aminmax(S)):
        raise ValueError(f"site {site!r}: the products of features overflow")


def _solve(S: Tensor, shift: float, B: Tensor, site: str | None) -> Tensor:
    """``(S + shift I)^-1 B`` of a symmetric S, contiguous, in its memory."""
    S.diagonal().add_(shift)
    factor, failed = S.mT, torch.empty((), dtype=torch.int32, device=S.device)  # columns in one piece, for LAPACK
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    if failed:
        why = "S + lambda I is singular to float64, wanted a larger one, or 0 for a pseudo-inverse"
        raise ValueError(f"site {site!r}: ridge: {why}")
    half = torch.linalg.solve_triangular(factor, B, upper=False)  # cholesky_solve copies the factor
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def _rows(x: Tensor) -> Tensor:
    return x.movedim(1, -1).reshape(-1, x.shape[1])
