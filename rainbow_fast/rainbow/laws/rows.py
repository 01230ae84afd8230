# SPDX-License-Identifier: BSD-3-Clause
"""Drawn rows, stored as tensors, so that sampled networks do not need the law any more."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rainbow_fast.ops.gaussian import further, gaussian
from rainbow_fast.ops.sample_project_align import sample_project_align

ROW_BLOCK = 4096  # number of rows that are stored at a time


class Rows(NamedTuple):
    r"""The n rows of G_eff: ``z' = zbar + R U^T (zh - zbar) / sqrt(d)``.

    R (n, r) depends on which tensors are given::

        matrix                              if the law gives R itself
        T G                                 if T is given
        sqrt((1 - h^2) d) U[k] + h G        if k is given
        G                                   otherwise; it is never stored, every kernel makes it from its address

    With n = `INFINITE`, `matrix` (K, r) are the centers of infinitely many Gaussian neurons, and h is the standard
    deviation about them; see `Law.limit`.

    Attributes:
        n: number of neurons of the sampled network.
        d: number of columns of G_eff: the channels of z, or twice as many with complex weights. These are the real
            matrices ``(Re G_eff, Im G_eff)``, so that white entries of R give circular numbers g with E|g|^2 = 1.
        key: the address of the white Gaussian matrix G, (4,) int64, on the CPU.
        U: the directions that are combined, (d, r) float64. The columns are orthonormal, unless the law folds a matrix
            into them. None stands for the identity.
        T: (n, n) float64, or None.
        k: indices of neurons of the reference, (n,) int64, or None.
        h: share of Gaussian noise that is added to these neurons.
        matrix: (n, r), or None; (K, r) with n = `INFINITE`.
        mean_row: if True, zbar is the mean of zh over channels, which is kept; otherwise zbar = 0.
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
        """Number of columns of R."""
        return self.d if self.U is None else self.U.shape[1]

    @property
    def stored(self) -> dict[str, Tensor]:
        """The tensors that are stored, by name, without the address."""
        tensors = {"U": self.U, "T": self.T, "k": self.k, "matrix": self.matrix}
        return {name: t for name, t in tensors.items() if t is not None}

    @property
    def implicit(self) -> bool:
        """Whether R is G itself, which is not stored."""
        return self.T is None and self.k is None and self.matrix is None

    def rows(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Rows start..stop of R, (stop - start, r), computed in this call. If R = G, their address, (4,) int64."""
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

    def times(self, Q: Tensor, precision: str | None = None) -> Tensor:
        """``G_eff Q``, (n, m), for Q (d, m) of dtype float32 or float64. If R = G, the product makes its entries.

        Args:
            precision: of that product, as in `rainbow_fast.sample_project_align`.
        """
        mean = Q.mean(0, keepdim=True) if self.mean_row else None
        P = Q if mean is None else Q - mean
        P = (P if self.U is None else self.U.to(P.dtype).T @ P) / math.sqrt(self.d)
        R = self.rows(0, self.n, P.dtype, P.device)
        product = R @ P if R.is_floating_point() else sample_project_align(self.n, P, seed=R, precision=precision)
        return product if mean is None else product + mean

    def root(self, device: torch.device) -> Tensor:
        """K with ``|K u| = |R u|``, (r, r) float64; with `mean_row`, ``|K (u, zbar)| = |R u + zbar|``, one row more."""
        size = self.r + self.mean_row
        gram = torch.zeros(size, size, dtype=torch.float64, device=device)
        for start in range(0, self.n, ROW_BLOCK):
            R = self.rows(start, min(start + ROW_BLOCK, self.n), torch.float64, device)
            if not R.is_floating_point():
                R = gaussian(min(ROW_BLOCK, self.n - start), self.r, seed=R, dtype=torch.float64, device=device)
            R = torch.cat([R, R.new_ones(len(R), 1)], 1) if self.mean_row else R
            gram += R.T @ R
        values, vectors = torch.linalg.eigh(gram)
        return values.clamp(min=0).sqrt().unsqueeze(1) * vectors.T

    def effective(self, device: torch.device) -> Tensor:
        """The matrix G_eff, (n, d) float64, on this device."""
        R = self.rows(0, self.n, torch.float64, device)
        if not R.is_floating_point():
            R = gaussian(self.n, self.r, seed=R, dtype=torch.float64, device=device)
        rows = (R if self.U is None else R @ self.U.double().T) / math.sqrt(self.d)
        return rows - rows.mean(1, keepdim=True) + 1 / self.d if self.mean_row else rows
