# SPDX-License-Identifier: BSD-3-Clause
"""The least-squares alignment A = M (S' + lambda I)^-1 of a site, with three solvers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast.arguments import between, one_of
from rainbow_fast.maps import as_rows, per_channel
from rainbow_fast.ops.cross_covariance import cross_covariance_, cross_covariance_flops
from rainbow_fast.rainbow.alignment.alignment import AlignedSite, Alignment, Problem
from rainbow_fast.rainbow.alignment.conjugate_gradient import (
    SKETCH_ROWS,
    NotSolvedError,
    products_about,
    products_expected,
    regress,
    regress_flops,
    sketch_size,
)
from rainbow_fast.rainbow.laws.law import EIGENVECTORS
from rainbow_fast.rainbow.network.features import blocks

RTOL = 1e-10  # eigenvalues of a singular S below this fraction of the largest count as zero
SQUARE_BYTES = 2**33  # largest size of S or of the kernel, which are factored in place: 32,768 rows of float64
FEATURE_NUMBERS = 2**24  # numbers of phi' in memory at a time, if all n neurons of a sample are needed together
FLOAT64 = 4  # LAPACK and matrix products in float64 take about four times as long for a flop as our float32 products
SOLVERS = ("summed", "kernel", "products")
RIDGE = between(0, math.inf, "a finite number, at least 0", open_high=True)  # the check of the ridge


@dataclass(frozen=True)
class Regression(Alignment):
    """``A = M (S' + lambda I)^-1`` with ``S' = E[f f^T]`` (n, n).

    This is a layerwise regression on random features. The result is not a rainbow network.

    Attributes:
        ridge: lambda relative to the mean of the diagonal of S' (default 1e-3); 0 uses the pseudo-inverse.
        solver: "summed" computes S' itself; "kernel" computes F F^T of the samples; "products" only multiplies with
            S'. None (default) chooses the fastest that fits, see `fastest_solver`.

    Raises:
        TypeError: the ridge is not a number.
        ValueError: the ridge is below 0 or not finite, or the solver is unknown.
    """

    ridge: float = 1e-3
    solver: str | None = None

    scales_itself = True

    def __post_init__(self) -> None:
        RIDGE("ridge", self.ridge)
        if self.solver is not None:
            one_of("solver", self.solver, SOLVERS)

    def begin(self, site: AlignedSite) -> Alignment:
        channels = site.statistics.channels if site.activation.fused else None
        kinds: dict[str, type[_Solver]] = {"summed": Summed, "kernel": Kernel, "products": Products}
        paired = site.activation.kind.paired
        return kinds[self.chosen(site.features, site.samples, channels, paired=paired)](site, self.ridge)

    def chosen(self, features: int, samples: int, channels: int | None, *, paired: bool = False) -> str:
        """The name of the solver for a site; arguments as in `fastest_solver`.

        Args:
            paired: whether features are complex, which only "summed" can solve.

        Raises:
            ValueError: another solver is asked for complex features.
        """
        if paired and self.solver not in (None, "summed"):
            raise ValueError(f"solver={self.solver!r}: features are complex, wanted 'summed'")
        return "summed" if paired else self.solver or fastest_solver(self.ridge, features, samples, channels)


class SolverCost(NamedTuple):
    """The cost of a regression, in addition to the sums of M.

    Attributes:
        passes: how often the features phi' of all samples are computed.
        products: flops of products with the features.
        algebra: flops in float64.
        bytes: memory of matrices, without those that are as large as M.
    """

    passes: int = 0
    products: float = 0.0
    algebra: float = 0.0
    bytes: int = 0


def solver_cost(solver: str, d: int, n: int, N: int, *, ridge: bool) -> SolverCost:
    """The cost of one of `SOLVERS`.

    S or the kernel is factored in place by Cholesky; its pseudo-inverse needs three matrices of this size.

    Args:
        d, n: shape of M.
        N: number of samples.
        ridge: whether lambda is above 0.
    """
    if solver == "products":
        count, sketch = math.ceil(products_expected(n)), sketch_size(n)
        products = 2.0 * N * sketch * (n + sketch) + 4.0 * N * d * n * count
        blocks = -(-sketch // SKETCH_ROWS)
        return SolverCost(2 * (count + blocks), products, regress_flops(d, n), 8 * (sketch + SKETCH_ROWS) * n)
    size = n if solver == "summed" else N
    algebra = 2.0 * d * size**2 + (size**3 / 3 if ridge else (EIGENVECTORS + 2) * size**3)
    square = 8 * size**2 * (1 if ridge else 3)
    if solver == "summed":
        return SolverCost(1, cross_covariance_flops((N, n), []), algebra, square)
    block = 12 * min(FEATURE_NUMBERS, N * n)  # of features, once in float32 and once in float64
    return SolverCost(2, cross_covariance_flops((n, N), []), algebra + 2.0 * d * N * n, square + block)


def fastest_solver(
    ridge: float, features: int, samples: int, channels: int | None = None, budget: int = SQUARE_BYTES
) -> str:
    """The solver with the fewest flops among those whose matrices fit into memory; "products" if none fits.

    "summed" computes S (n, n), "kernel" the kernel (N, N) of the samples. "products" only multiplies with S; it is not
    used without a ridge, because S may be singular. Without a ridge, the smaller of the two matrices is used, whether
    it fits or not.

    Flops are those of `solver_cost`, and 2 N n d for each time that features are computed, which stands for
    projections of rank d. A flop in float64 counts as `FLOAT64` flops of the products.

    Args:
        ridge: as in `Regression`.
        features: n.
        samples: N.
        channels: d if features are computed in fused passes. None if features must be stored: then d = 1 is counted,
            and "products" is used only if nothing else fits, because it would store them for every product.
        budget: bytes that S or the kernel may take; default `SQUARE_BYTES`.
    """
    sizes = {"summed": features, "kernel": samples}
    if ridge == 0:
        return min(sizes, key=lambda name: sizes[name])
    fitting = [name for name, size in sizes.items() if 8 * size**2 <= budget]
    if channels or not fitting:
        fitting.append("products")

    def flops(name: str) -> float:
        d = channels or 1
        cost = solver_cost(name, d, features, samples, ridge=True)
        return cost.products + FLOAT64 * cost.algebra + cost.passes * 2.0 * samples * features * d

    return min(fitting, key=flops)


class _Solver(Alignment):
    """The regression of one site."""

    scales_itself = True

    def __init__(self, site: AlignedSite, ridge: float) -> None:
        self.site, self.ridge = site, ridge


class Summed(_Solver):
    """Computes S = E[phi' phi'^T] itself, (n, n) float64, from sums about the center of the features."""

    def __init__(self, site: AlignedSite, ridge: float) -> None:
        super().__init__(site, ridge)
        self.S = torch.zeros(site.features, site.features, dtype=torch.float64, device=site.device)

    def add(self, start: int, zh: Tensor, samples: int, center: Tensor) -> None:
        activation = self.site.activation
        per_sample = len(zh) // samples  # rows of zh: more than one if the channel axis is the last
        rows = max(FEATURE_NUMBERS // (activation.n * zh[:per_sample, 0].numel()), 1) * per_sample
        for first in range(0, len(zh), rows):
            select, parts = self.site.select(start + first // per_sample), []
            for block in blocks(activation.n, activation.strategy.block(activation)):
                parts.append(activation.strategy.rows(activation, zh[first : first + rows], lambda t: t, *block))
            phi = select(parts[0] if len(parts) == 1 else torch.cat(parts, 1)).contiguous()
            parts.clear()
            cross_covariance_(self.S, phi.sub_(per_channel(center, phi)), precision="highest")
            del phi  # freed before the next ones are computed

    def solve(self, M: Tensor, problem: Problem) -> Tensor:
        """Solve by a Cholesky factor of S + lambda I; without a ridge, by the pseudo-inverse of S."""
        moments, subtracted, inverse = problem
        off, left = (t.view(len(t), -1) for t in (moments.y.off, moments.mean_y - subtracted))
        S = self.S.div_(moments.count).addmm_(off, off.T, alpha=-1).addmm_(left, left.T)
        if (inverse != 1).any():
            S.mul_(inverse).mul_(inverse[:, None])
        _check(S, moments.name)
        if self.ridge == 0:
            return M @ torch.linalg.pinv(S, hermitian=True, rtol=RTOL)
        return _solve(S, self.ridge * float(S.diagonal().mean()), M.T, moments.name).T


class Kernel(_Solver):
    """Computes K = F F^T (N, N) for the features F (N, n) and targets X (N, d) of N samples.

    ``A = X^T (K + N lambda I)^-1 F`` is the same A.
    """

    def solve(self, M: Tensor, problem: Problem) -> Tensor:
        """Solve by a Cholesky factor of K + N lambda I; without a ridge, by the pseudo-inverse of K."""
        moments, subtracted, inverse = problem
        count, center = moments.count, moments.y.center
        assert center is not None
        apart = (center - subtracted) * inverse  # F = D + 1 apart^T, where D has the features minus their center
        K, along = M.new_zeros(count, count), M.new_zeros(count)
        for at, rows in self._blocks(M.shape[1], problem):
            cross_covariance_(K, rows.T, precision="highest")
            along += rows.double() @ apart[at]
            del rows  # freed before the next ones are computed
        K += along
        K += along.unsqueeze(1) + apart.square().sum()
        _check(K, moments.name)
        X = torch.cat([as_rows(select(phi)) for phi, _, select in self.site.batches()]).double()
        if torch.equal(subtracted, moments.mean_y):  # then sum F = 0, and the mean of X does not change A
            X -= moments.mean_x
        if self.ridge > 0:
            mean_diagonal = moments.y.second_moment_about(subtracted, inverse) / M.shape[1]
            Y = _solve(K, count * self.ridge * mean_diagonal, X, moments.name).T
        else:
            Y = X.T @ torch.linalg.pinv(K, hermitian=True, rtol=RTOL)
        A = torch.empty_like(M)
        for at, rows in self._blocks(M.shape[1], problem):
            A[:, at] = (Y @ rows.double()).addr_(Y.sum(1), apart[at])
            del rows
        return A

    def _blocks(self, features: int, problem: Problem) -> Iterator[tuple[slice, Tensor]]:
        """D for a few neurons at a time: the slice of their features, and (N, features of these neurons)."""
        activation, center, inverse = self.site.activation, problem.moments.y.center, problem.inverse
        assert center is not None
        n, size = activation.n, max(FEATURE_NUMBERS // problem.moments.count, 1)
        positions, strategy = features // n, activation.strategy
        for start in range(0, n, size):
            stop = min(start + size, n)
            at = slice(start * positions, stop * positions)
            parts = []
            for _, zh, select in self.site.batches():
                parts.append(as_rows(strategy.rows(activation, zh, select, start, stop)))
            rows = [torch.cat(parts)]
            parts.clear()
            rows[0].sub_(center[at].to(rows[0].dtype)).mul_(inverse[at].to(rows[0].dtype))
            yield at, rows.pop()  # not held here, so that the caller can free it before the next one is computed


class Products(_Solver):
    """Multiplies with S, two passes over the samples for each product. No (n, n) matrix is stored."""

    def solve(self, M: Tensor, problem: Problem) -> Tensor:
        """Solve by conjugate gradients. The relative error of the predictions is at most 1e-4."""
        moments, subtracted, inverse = problem
        dtype, center = self.site.dtype, moments.y.center
        assert center is not None
        apply = products_about(
            self._covariance(M.shape[1], problem), moments.mean_y, subtracted, inverse, dtype, center=center
        )
        mean_diagonal = moments.y.second_moment_about(subtracted, inverse) / M.shape[1]
        try:
            return regress(apply, M, mean_diagonal, self.ridge, dtype=dtype)
        except NotSolvedError as error:
            raise ValueError(f"site {moments.name!r}: ridge: {error}") from None

    def _covariance(self, features: int, problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
        """The function that maps V (k, m) and c (k,) to ``E[(V phi' - c)(phi' - center)^T]`` (k, features) float64.

        V multiplies the first m features.
        """
        activation, center = copy.copy(self.site.activation), problem.moments.y.center
        assert center is not None
        activation.precision = "highest"  # the tolerance of the predictions is that of float32 products

        def covariance(V: Tensor, c: Tensor) -> Tensor:
            product, total = V.new_zeros(len(V), features, dtype=torch.float64), center.new_zeros(features)
            sums, zero = (product, total, torch.zeros_like(total)), center.new_zeros(len(V))
            for _, zh, select in self.site.batches():
                y = activation.strategy.project(activation, zh, select, V)
                y -= per_channel(c, y)
                activation.strategy.covariance(activation, y, zh, select, (zero, center), sums)
            return product.div_(problem.moments.count)

        return covariance


def _check(S: Tensor, site: str | None) -> None:
    if not all(torch.isfinite(end) for end in torch.aminmax(S)):
        raise ValueError(f"site {site!r}: the products of features overflow")


def _solve(S: Tensor, shift: float, B: Tensor, site: str | None) -> Tensor:
    """``(S + shift I)^-1 B`` for a symmetric, contiguous S, which is overwritten by its factor."""
    S.diagonal().add_(shift)
    factor, failed = S.mT, torch.empty((), dtype=torch.int32, device=S.device)  # column-major, for LAPACK
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    if failed:
        why = "S + lambda I is singular to float64, wanted a larger one, or 0 for a pseudo-inverse"
        raise ValueError(f"site {site!r}: ridge: {why}")
    half = torch.linalg.solve_triangular(factor, B, upper=False)  # cholesky_solve copies the factor
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)
