# SPDX-License-Identifier: BSD-3-Clause
"""The three forms of random features, by the ops and in plain PyTorch, and data to test them with."""

import torch
from here import draw
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.random_features import random_features_reference

FAR = {"seed": 2**63 - 2, "stream": 7, "row_offset": 2**32 - 5}  # numbers of neurons cross 2^32
SAMPLES = {2: "nm,nd->dm", 3: "nms,nds->dm", 4: "nmhw,ndhw->dm", 5: "nmxyz,ndxyz->dm"}


def three(x: Tensor, u: Tensor, A: Tensor, shift: Tensor | None, **options) -> tuple[Tensor, ...]:
    """The features phi'; the sums of x phi', phi' and phi'^2; and phi' A^T."""
    n = A.shape[1]
    return (
        rf.random_features(u, n, shift=shift, **options),
        *rf.random_features_covariance(x, u, n, shift=shift, **options),
        rf.random_features_projection(u, A, shift=shift, **options),
    )


def plainly(
    x: Tensor, u: Tensor, A: Tensor, shift: Tensor | None, G: Tensor, activation: str, scale: float = 0.7
) -> tuple[Tensor, ...]:
    """The same in plain PyTorch and in the dtype of the arguments."""
    phi = random_features_reference(u, G, shift, activation, 0.01, scale)
    over = [axis for axis in range(phi.dim()) if axis != 1]
    projection = torch.einsum("nm...,dm->nd...", phi, A)
    return phi, torch.einsum(SAMPLES[x.dim()], phi, x), phi.sum(over), (phi * phi).sum(over), projection


def problem(shape: tuple[int, ...], n: int, d: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, u, A, shift"""
    N, _, *space = shape
    return (
        draw(N, d, *space, dtype=dtype),
        draw(*shape, dtype=dtype, seed=1),
        draw(d, n, dtype=dtype, seed=2),
        draw(N, *space, dtype=dtype, seed=3),
    )
