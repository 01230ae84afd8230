# SPDX-License-Identifier: BSD-3-Clause
"""polar against the singular value decomposition, which is what a user writes and what the published codes do.

Rivals in plain torch: the decomposition in float64, the eigenvectors of the Gram matrix in float64, rational functions
of the Gram matrix in float64, and polynomials of M in float32. Rational steps on M with Cholesky factors in float32 are
left out: their error is 2 to 30 times that of the decomposition in float32.
"""

import math

import torch
from floor import Floor
from race import OURS, PLAIN, Candidate, Race, entries, relative
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.ops.polar_factors import multiply

SVD, DOUBLE, GRAM = "plain torch = published", "torch, svd float64", "torch, eigh of the Gram, float64"
SAME, EXPRESS = "torch, QDWH on Gram matrices, float64", "torch, Polar Express, float32"
SINGLE = 'rainbow_fast, accuracy="float32"'


def svd(M: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ Vh


def gram(M: Tensor) -> Tensor:
    M = M.double()
    values, V = torch.linalg.eigh(M @ M.mT)
    return (V * values.rsqrt().unsqueeze(-2)) @ (V.mT @ M)


def qdwh(M: Tensor, low: float) -> Tensor:
    """The same algebra with torch's products and LAPACK: rational steps on the Gram matrix, with one pole each.

    `low` is a lower bound of the singular values of M, divided by the root of the largest row sum of the Gram matrix. A
    user would have to find it.
    """
    dtype, M = M.dtype, M.double()
    R = M @ M.mT
    bound = R.abs().sum(-1).amax(-1)[..., None, None]
    R, Q = R / bound, 1 / bound.sqrt()
    while 1 - low > 1e-8:
        h = (4 * (1 - low**2) / low**4) ** (1 / 3)
        a = (1 + h) ** 0.5 + 0.5 * (8 - 4 * h + 8 * (2 - low**2) / (low**2 * (1 + h) ** 0.5)) ** 0.5
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        Z = (a - b / c) * torch.cholesky_inverse(torch.linalg.cholesky(c * R + torch.eye(R.shape[-1], dtype=R.dtype)))
        Z.diagonal(dim1=-2, dim2=-1).add_(b / c)
        R = Z @ R @ Z
        Q = Z * Q if Q.shape[-1] == 1 else Z @ Q
        low = low * (a + b * low**2) / (1 + c * low**2)
    return (Q @ M).to(dtype)


def quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd polynomial of degree five that is closest to 1 on an interval, by the algorithm of Remez."""
    if low > 0.999 * high:
        return 15 / (8 * high), -10 / (8 * high**3), 3 / (8 * high**5)
    inner = torch.tensor([(3 * low + high) / 4, (low + 3 * high) / 4], dtype=torch.float64)
    for _ in range(20):
        x = torch.tensor([low, *inner.tolist(), high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        a, b, c, _ = torch.linalg.solve(torch.stack([x, x**3, x**5, signs], 1), torch.ones_like(x)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        inner = torch.tensor([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)], dtype=torch.float64).sqrt()
    return a, b, c


def polar_express(M: Tensor, low: float) -> Tensor:
    """The best polynomials one after another, and a step of Newton and Schulz; `low` as in `qdwh`.

    Source: Amsel, Persson, Musco, Gower (2025), The Polar Express.
    """
    X = M / (M @ M.mT).abs().sum(-1).amax(-1).sqrt()[..., None, None]
    high = 1.0
    while 1 - low > 1e-7:
        a, b, c = quintic(low, high)
        R = X @ X.mT
        X = a * X + (b * R + c * (R @ R)) @ X
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
    return 1.5 * X - 0.5 * (X @ X.mT) @ X


def polar(d: int, m: int, condition: float, batch: int = 0) -> Race:
    source = torch.Generator().manual_seed(0)
    sizes = (batch,) if batch else ()
    U, V = (torch.linalg.qr(torch.randn(*sizes, s, d, generator=source, dtype=torch.float64)).Q for s in (d, m))
    M = ((U * torch.logspace(0, -torch.tensor(condition).log10(), d, dtype=torch.float64)) @ V.mT).float()
    exact = svd(M.double())
    ways = {
        OURS: lambda: rf.polar(M).A,
        SVD: lambda: svd(M),
        DOUBLE: lambda: svd(M.double()),
        GRAM: lambda: gram(M),
        SAME: lambda: qdwh(M, 0.2 / condition),
        SINGLE: lambda: rf.polar(M, accuracy="float32").A,
    }
    if max(d, m) < 2048:
        ways[EXPRESS] = lambda: polar_express(M, 0.2 / condition)
    # A symmetric Gram matrix and a product, and between them eight times d^3: five inverses, and a symmetric product
    # for each of the two functions and for their product.
    flops = max(batch, 1) * (3.0 * d * d * m + 8.0 * d**3)
    return Race(
        f"polar float32 {f'{batch} x ' if batch else ''}{d} x {m}, condition {condition:.0e}",
        {name: Candidate(way, lambda A: relative(A, exact)) for name, way in ways.items()},
        Floor({"f64": flops}),
    )


def polar_in_noise(d: int, m: int, condition: float) -> Race:
    """`polar` of a float64 cross-covariance whose smallest singular values are noise, as `sample` computes it.

    The error is the backward error |M - H A|_F / |M|_F with H = sym(M A^T): noise has no polar factor that matters.
    """
    source = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(s, d, generator=source, dtype=torch.float64)).Q for s in (d, m))
    M = (U * torch.logspace(0, -torch.tensor(condition).log10(), d, dtype=torch.float64)) @ V.mT

    def backward_error(A: Tensor) -> float:
        P = A.double() @ M.mT
        return relative((P + P.mT) / 2 @ A.double(), M)

    ways = {
        OURS: lambda: rf.polar(M, rtol=1e-10).A,
        SVD: lambda: svd(M.float()),
        DOUBLE: lambda: svd(M),
        SINGLE: lambda: rf.polar(M, rtol=1e-10, accuracy="float32").A,
    }
    return Race(
        f"polar float64 {d} x {m}, condition {condition:.0e}",
        {name: Candidate(way, backward_error) for name, way in ways.items()},
        # A stage takes a symmetric Gram matrix, three inverses and a product. There are two of them before the last
        # one, which takes the flops of `polar`.
        Floor({"f64": 2 * (3.0 * d * d * m + 3.0 * d**3) + 3.0 * d * d * m + 8.0 * d**3}),
    )


def polar_in_place(d: int, m: int, condition: float) -> Race:
    """`polar_` of a cross-covariance with many sampled neurons, in float64. An SVD is out of reach.

    The time of ours includes the copy of M that it overwrites. It needs no more memory than this copy; the other two
    need more than M.
    """
    source = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(s, d, generator=source, dtype=torch.float64)).Q for s in (d, m))
    exact = U @ V.mT
    M = (U * torch.logspace(0, -torch.tensor(condition).log10(), d, dtype=torch.float64)) @ V.mT
    written = torch.empty_like(M)
    ways = {
        OURS: lambda: rf.polar_(written.copy_(M)).A,
        GRAM: lambda: gram(M),
        SAME: lambda: qdwh(M, 0.2 / condition),
    }
    return Race(
        f"polar in place float64 {d} x {m}, condition {condition:.0e}",
        {name: Candidate(way, lambda A: relative(A, exact)) for name, way in ways.items()},
        Floor({"f64": 6.0 * d * d * m}),  # two symmetric Gram matrices and two products
        slack=1e-10,
    )


def float64_product(size: int) -> Race:
    source = torch.Generator().manual_seed(0)
    A, B = (torch.randn(size, size, generator=source, dtype=torch.float64) for _ in "AB")
    exact = A @ B
    ways = {OURS: lambda: multiply(A, B), PLAIN: lambda: A @ B}
    return Race(
        f"float64 product {size} x {size} x {size}",
        {name: Candidate(way, lambda C: relative(C, exact)) for name, way in ways.items()},
        Floor({"f64": 2.0 * size**3}),
    )


CASES = [(64, 1024, 1e3), (512, 512, 1e3), (1024, 1024, 1e3), (64, 64, 1e3, 256)]
LONG = [(512, 8192, 1e3), (2048, 2048, 1e3)]  # polynomials take too long here
bench_polar = entries(polar, CASES, (OURS, SINGLE, SVD, DOUBLE, GRAM, SAME, EXPRESS))
bench_long_polar = entries(polar, LONG, (OURS, SINGLE, SVD, DOUBLE, GRAM, SAME))
bench_polar_in_noise = entries(polar_in_noise, [(1024, 1024, 1e8)], (OURS, SINGLE, SVD, DOUBLE))
bench_polar_in_place = entries(polar_in_place, [(128, 200_000, 1e3)], (OURS, GRAM, SAME))
bench_float64_product = entries(float64_product, [(1024,)], (OURS, PLAIN))
