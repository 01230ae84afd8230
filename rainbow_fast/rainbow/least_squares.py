# SPDX-License-Identifier: BSD-3-Clause
"""The least-squares alignment A = M (S + lambda I)^-1 of a site, from S summed or from products with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rainbow_fast.ops.cross_covariance import cross_covariance_
from rainbow_fast.rainbow.activation import RainbowActivation, Select
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.parts import Parts
from rainbow_fast.rainbow.regression import Apply, centred, regress

RTOL = 1e-10  # eigenvalues of a singular S below this share of the largest are null
SUMMED_BYTES = 2**33  # that S and its factor may take: beyond, products with S
SOLVED_S = 3  # float64 matrices of the size of S, while it is solved with
FEATURE_NUMBERS = 2**24  # numbers of phi' at a time, where all n neurons of a sample are needed together

Batches = Callable[[], Iterator[tuple[Tensor, Select]]]  # zh as rows, and which of its samples are taken


def is_summed(parts: Parts, features: int) -> bool:
    """Whether the regression sums S, which is always faster: where S fits, and without a ridge, if it is singular."""
    return parts.ridge == 0 or SOLVED_S * 8 * features**2 <= SUMMED_BYTES


class Summed:
    """S = E[phi' phi'^T] itself, (n, n) float64."""

    def __init__(self, activation: RainbowActivation, features: int, device: torch.device) -> None:
        self.activation = activation
        self.S = torch.zeros(features, features, dtype=torch.float64, device=device)

    def add(self, zh: Tensor, samples: int, select_from: Callable[[int], Select]) -> None:
        """A batch of so many samples; `select_from` those of it that follow the first so many."""
        per_sample = len(zh) // samples  # rows of zh: more than one where the channel axis is the last
        rows = max(FEATURE_NUMBERS // (self.activation.n * zh[:per_sample, 0].numel()), 1) * per_sample
        for start in range(0, len(zh), rows):
            select = select_from(start // per_sample)
            cross_covariance_(self.S, select(self.activation.features(zh[start : start + rows])))

    def solve(self, M: Tensor, moments: CrossCovariance, subtracted: Tensor, inverse: Tensor, ridge: float) -> Tensor:
        """A, for features ``inverse (phi' - subtracted)``; the pseudo-inverse of S where it is singular and there is no
        ridge."""
        mean = moments.mean_y
        S = self.S.div_(moments.count)
        if subtracted.any():
            cross = torch.outer(subtracted, mean - subtracted / 2)
            S -= cross + cross.T
        if (inverse != 1).any():
            S *= inverse * inverse[:, None]
        S.diagonal().add_(ridge * S.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(S)
        if ridge > 0 and not failed:
            return torch.cholesky_solve(M.T, factor).T
        return M @ torch.linalg.pinv(S, hermitian=True, rtol=RTOL)


class Products:
    """S known by products with it, two passes over the samples each: nothing of size n x n is stored."""

    def __init__(self, activation: RainbowActivation, batches: Batches, dtype: torch.dtype) -> None:
        self.activation, self.batches, self.dtype = activation, batches, dtype

    def solve(self, M: Tensor, moments: CrossCovariance, subtracted: Tensor, inverse: Tensor, ridge: float) -> Tensor:
        """A, for features ``inverse (phi' - subtracted)``, with predictions certain to 1e-4."""

        def covariance(V: Tensor, c: Tensor) -> Tensor:
            out = torch.zeros(len(V), M.shape[1], dtype=torch.float64, device=V.device)
            for zh, select in self.batches():
                self.activation.add_product(out, V, c, zh, select)
            return out.div_(moments.count)

        def plain(V: Tensor) -> Tensor:
            return covariance(V, V.new_zeros(len(V)))

        apply: Apply = plain
        if subtracted.any() or (inverse != 1).any():
            apply = centred(covariance, moments.mean_y, subtracted, inverse, self.dtype)
        mean_diagonal = moments.y.second_moment_about(subtracted, inverse) / M.shape[1]
        return regress(apply, M, mean_diagonal, ridge, dtype=self.dtype)
