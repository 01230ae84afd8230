# SPDX-License-Identifier: BSD-3-Clause
"""Kernel ridge regression and classification, whose ridge a validation split chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rainbow_fast.arguments import between, integer, one_of, tensor
from rainbow_fast.rainbow.alignment.conjugate_gradient import regress
from rainbow_fast.rainbow.alignment.regression import RIDGE

Kernel = Callable[[Tensor, Tensor], Tensor]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # relative to the mean of the diagonal of K
LARGEST = 10_000  # inputs whose kernel is stored and factored
ROWS = 1024  # inputs whose kernel is computed at a time
SOLVERS = ("cholesky", "products")
_share = between(0, 1, "a number between 0 and 1", open_low=True, open_high=True)


@dataclass(frozen=True)
class KernelRegression:
    r"""A function of the space of a kernel, ``f(z) = sum_i alpha_i k(x_i, z) + mean``.

    Attributes:
        kernel: k.
        x: the N inputs that it was fitted to.
        coefficients: alpha, (N, C) float64.
        mean: of the targets, (C,) float64.
        ridge: the ridge that was chosen, relative to the mean of the diagonal of K.
        scores: the score of each ridge on the validation inputs: the accuracy for labels, else minus the mean squared
            error; empty if there was one ridge only.
    """

    kernel: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    coefficients: Tensor
    mean: Tensor
    ridge: float
    scores: dict[float, float]

    def __call__(self, z: Tensor) -> Tensor:
        """f at inputs z (N', ...), (N', C) float64."""
        parts = [self.kernel(rows, self.x) @ self.coefficients for rows in z.split(ROWS)]
        return torch.cat(parts).add_(self.mean)


@torch.no_grad()
def kernel_regression(
    kernel: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    targets: Tensor,
    *,
    ridges: Sequence[float] = RIDGES,
    validation: float = 0.2,
    seed: int = 0,
    solver: str | None = None,
    tolerance: float = 1e-4,
) -> KernelRegression:
    r"""Kernel ridge regression, ``alpha = (K + lambda I)^-1 (y - mean y)``, in float64.

    lambda is a ridge times the mean of the diagonal of K. With several ridges, the one with the best score on a share
    of the inputs that is left out is taken; then all inputs are fitted. Labels are fitted as one-hot rows.

    ``"cholesky"`` stores K and factors it for each ridge. ``"products"`` stores no kernel: conjugate gradients, with
    Nystrom's approximation as preconditioner, multiply with K, which is computed anew each time
    (`rainbow.alignment.conjugate_gradient`).

    Args:
        kernel: a function of inputs (N, ...) and (N', ...) that gives (N, N') float64, such as
            `rainbow_fast.infinite_width.expected_kernel` or `SiteKernel`.
        x: inputs, (N, ...).
        targets: integer labels (N,), or numbers (N, C).
        ridges: to choose from; `RIDGES` by default.
        validation: share of the inputs that is left out to choose the ridge; 0.2 by default.
        seed: of the random choice of these inputs.
        solver: "cholesky" or "products"; None (default) takes "cholesky" for at most 10,000 inputs.
        tolerance: relative error of the predictions of "products"; 1e-4 by default.

    Raises:
        ValueError: there are no inputs or no ridges, shapes do not match, targets or the kernel are not finite, a
            ridge is below 0, K is singular for a ridge (the message says which), or the solver is unknown.
        TypeError: an argument is of another type.
        NotSolvedError: "products" does not reach the tolerance.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), definition 1: the outputs are in the space of the kernel.
    """
    y, labels = _targets(tensor("targets", targets), len(tensor("x", x)))
    ridges = [RIDGE("ridges", ridge) for ridge in ridges]
    if not ridges:
        raise ValueError("ridges is empty: wanted at least one number")
    validation = _share("validation", validation)
    if solver is not None:
        one_of("solver", solver, SOLVERS)
    solver = solver or ("cholesky" if len(x) <= LARGEST else "products")
    solve = _by_cholesky if solver == "cholesky" else partial(_by_products, tolerance=tolerance)
    scores: dict[float, float] = {}
    if len(ridges) > 1:
        generator = torch.Generator("cpu").manual_seed(integer("seed", seed))
        count = max(round(validation * len(x)), 1)
        left_out, used = torch.randperm(len(x), generator=generator, device="cpu").split([count, len(x) - count])
        if not len(used):
            raise ValueError(f"x has {len(x)} inputs: wanted more, to leave some out")
        for ridge, fitted in zip(ridges, solve(kernel, x[used], y[used], ridges), strict=True):
            scores[ridge] = _score(fitted(x[left_out]), y[left_out], labels=labels)
        ridges = [max(ridges, key=lambda ridge: scores[ridge])]
    (fitted,) = solve(kernel, x, y, ridges)
    return KernelRegression(kernel, x, fitted.coefficients, fitted.mean, ridges[0], scores)


def _targets(targets: Tensor, count: int) -> tuple[Tensor, bool]:
    """The targets as (N, C) float64, and whether they are labels."""
    labels = not targets.is_floating_point()
    if not count or len(targets) != count or targets.dim() != (1 if labels else 2):
        raise ValueError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)} for {count} inputs: wanted integer labels "
            "(N,) or numbers (N, C), N above 0"
        )
    if labels:
        if int(targets.min()) < 0:
            raise ValueError(f"targets: the label {int(targets.min())}, wanted labels of at least 0")
        return torch.nn.functional.one_hot(targets.long().cpu()).double(), True
    if not bool(targets.isfinite().all()):
        raise ValueError("targets are not finite")
    return targets.detach().cpu().double(), False


def _score(f: Tensor, y: Tensor, *, labels: bool) -> float:
    if labels:
        return float((f.argmax(1) == y.argmax(1)).double().mean())
    return -float((f - y).square().sum(1).mean())


def _by_cholesky(kernel: Kernel, x: Tensor, y: Tensor, ridges: Sequence[float]) -> list[KernelRegression]:
    """A regression for each ridge, by Cholesky factors of K."""
    K = torch.cat([_checked(kernel(rows, x), len(rows), len(x)) for rows in x.split(ROWS)])
    mean, size = y.mean(0), float(K.diagonal().mean())
    fitted = []
    for ridge in ridges:
        regular = K.clone()
        regular.diagonal().add_(ridge * size)
        factor, info = torch.linalg.cholesky_ex(regular)
        if int(info):
            raise ValueError(f"ridges: with {ridge:g}, the kernel of {len(x)} inputs is singular: wanted a larger one")
        fitted.append(KernelRegression(kernel, x, torch.cholesky_solve(y - mean, factor), mean, ridge, {}))
        del regular, factor  # freed before the next ones are computed
    return fitted


def _by_products(
    kernel: Kernel, x: Tensor, y: Tensor, ridges: Sequence[float], *, tolerance: float
) -> list[KernelRegression]:
    """A regression for each ridge, by conjugate gradients on products with K."""
    diagonal = [float(kernel(row, row)) for row in x[:: max(len(x) // ROWS, 1)].split(1)]  # of some inputs
    mean, size = y.mean(0), sum(diagonal) / len(diagonal)

    def apply(V: Tensor) -> Tensor:
        rows = x[: V.shape[1]]
        return torch.cat([V @ _checked(kernel(rows, columns), len(rows), len(columns)) for columns in x.split(ROWS)], 1)

    fitted = []
    for ridge in ridges:
        M = (y - mean).T.contiguous()
        A = regress(apply, M, size, ridge, tolerance=tolerance, dtype=torch.float64)
        fitted.append(KernelRegression(kernel, x, A.T, mean, ridge, {}))
    return fitted


def _checked(K: Tensor, rows: int, columns: int) -> Tensor:
    if tuple(K.shape) != (rows, columns) or K.dtype != torch.float64 or not bool(K.isfinite().all()):
        raise ValueError(
            f"kernel gave {K.dtype} of shape {tuple(K.shape)}: wanted finite float64 numbers of shape {(rows, columns)}"
        )
    return K
