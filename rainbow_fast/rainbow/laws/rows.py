# SPDX-License-Identifier: BSD-3-Clause
"""Drawn rows: what a law leaves behind, as tensors, so that sampled networks need no law any more."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rainbow_fast.ops.gaussian import further, gaussian

ROW_BLOCK = 4096  # rows at a time, where they must be made


class Rows(NamedTuple):
    r"""The n rows of G_eff: ``z' = zbar + R U^T (zh - zbar) / sqrt(d)``, zbar the mean over channels if `mean_row`.

    R (n, r) is one of four; None stands for absent, of U for the identity::

        matrix                              where a law gives R itself
        T G                                 where there is T
        sqrt((1 - h^2) d) U[k] + h G        where there is k
        G                                   else: never stored, made from its address in every kernel

    Attributes:
        n, d: neurons of the sample, channels of z.
        key: the address of the white Gaussian matrix G, (4,) int64, on the CPU.
        U: the directions that are combined, (d, r) float64, orthonormal columns but for what a law folds into them.
        T: (n, n) float64. k: reference neurons, (n,) int64, smoothed by h. matrix: (n, r).
        mean_row: keep the mean over channels of zh, else zbar = 0.
    """

    n: int
    d: int
    key: Tensor
    U: Tensor | None = None
    T: Tensor | None = None
    k: Tensor | None = None
    h: float = 0.0
    matrix: Tensor | None = None
    mean_row: bool = False

    @property
    def r(self) -> int:
        """Columns of R."""
        return self.d if self.U is None else self.U.shape[1]

    @property
    def stored(self) -> dict[str, Tensor]:
        """What is stored, by its name; the address aside."""
        tensors = {"U": self.U, "T": self.T, "k": self.k, "matrix": self.matrix}
        return {name: t for name, t in tensors.items() if t is not None}

    @property
    def implicit(self) -> bool:
        """Whether R is G itself, which is nowhere stored."""
        return self.T is None and self.k is None and self.matrix is None

    def rows(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Rows start..stop of R, (stop - start, r), made for this call; where R = G, their address, (4,) int64."""
        if self.matrix is not None:
            return self.matrix.narrow(0, start, stop - start).to(dtype)
        if self.T is not None:
            G = gaussian(self.n, self.r, seed=self.key, dtype=dtype, device=device)
            return self.T.narrow(0, start, stop - start).to(dtype) @ G
        here = self.key if start == 0 else further(self.key, start)
        if self.k is None:
            return here
        k = self.k.narrow(0, start, stop - start)
        chosen = nn.functional.one_hot(k, self.r) if self.U is None else self.U.index_select(0, k)
        R = math.sqrt((1 - self.h**2) * self.d) * chosen.to(dtype)
        if self.h:
            R = R + self.h * gaussian(stop - start, self.r, seed=here, dtype=dtype, device=device)
        return R

    def effective(self, device: torch.device) -> Tensor:
        """G_eff, (n, d) float64."""
        R = self.rows(0, self.n, torch.float64, device)
        if not R.is_floating_point():
            R = gaussian(self.n, self.r, seed=R, dtype=torch.float64, device=device)
        rows = (R if self.U is None else R @ self.U.double().T) / math.sqrt(self.d)
        return rows - rows.mean(1, keepdim=True) + 1 / self.d if self.mean_row else rows
