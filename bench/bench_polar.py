# SPDX-License-Identifier: BSD-3-Clause
"""polar against the singular value decomposition, which is what a user writes and what the published codes do."""

import torch
from floor import Floor
from race import OURS, Candidate, Race, entries, relative
from torch import Tensor

import rainbow_fast as rf

SVD, DOUBLE, GRAM = "plain torch = published", "torch, svd float64", "torch, eigh of the Gram, float64"


def svd(M: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ Vh


def gram(M: Tensor) -> Tensor:
    M = M.double()
    values, V = torch.linalg.eigh(M @ M.T)
    return (V * values.rsqrt()) @ (V.T @ M)


def polar(d: int, m: int, condition: float) -> Race:
    source = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(size, d, generator=source, dtype=torch.float64)).Q for size in (d, m))
    M = ((U * torch.logspace(0, -torch.tensor(condition).log10(), d, dtype=torch.float64)) @ V.T).float()
    exact = svd(M.double())
    ways = {
        OURS: lambda: rf.polar(M).A,
        SVD: lambda: svd(M),
        DOUBLE: lambda: svd(M.double()),
        GRAM: lambda: gram(M),
    }
    return Race(
        f"polar float32 {d} x {m}, condition {condition:.0e}",
        {name: Candidate(way, lambda A: relative(A, exact)) for name, way in ways.items()},
        Floor({"f64": 3.0 * d * d * m}),  # a symmetric Gram matrix and one product: what no way with a Gram goes below
    )


CASES = [(64, 1024, 1e3), (512, 8192, 1e3), (512, 512, 1e3), (1024, 1024, 1e3)]
bench_polar = entries(polar, CASES, (OURS, SVD, DOUBLE, GRAM))
