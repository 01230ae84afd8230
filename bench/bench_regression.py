# SPDX-License-Identifier: BSD-3-Clause
"""The regression A = M (S + lambda I)^-1 of a site: by products with S in fused passes, and with S itself.

Plain torch stores the features and S in float32 and solves in float64. The best plain torch computes the blocks of S on
one side of the diagonal only, as convolutions (see `convolutions.py`). In float32 its Cholesky factor would gain a
tenth of the time, and the error would be five times as large. Ours is the way that
`rainbow.alignment.regression.fastest_solver` chooses: S itself at the first size here, and at the second one products,
because the reference has few channels there. The other way is a candidate, too. The error is that of the predictions
A phi', against S of the same features in float64.
"""

import functools

import torch
from convolutions import images, product, second_moments
from floor import Floor
from race import BEST, OURS, PLAIN, Candidate, Race, entries, relative
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.rainbow.alignment.conjugate_gradient import regress
from rainbow_fast.rainbow.alignment.regression import fastest_solver

RIDGE = 1e-3
OTHER = "rainbow_fast, the other way"
BLOCK = 512  # neurons


def moments_of_features(u: Tensor, G: Tensor) -> Tensor:
    """The sum of phi phi^T for phi = relu(G u)."""
    return second_moments(images(product(u, part.T).relu_()) for part in G.split(BLOCK))


def regression(N: int, r: int, d: int, n: int) -> Race:
    source = torch.Generator().manual_seed(0)
    u = torch.randn(N, r, generator=source) * torch.arange(1, r + 1).rsqrt()
    x = (u @ torch.randn(r, d, generator=source)).relu()
    M, _, square = (t / N for t in rf.random_features_covariance(x, u, n, seed=1))
    mean_diagonal = float(square.mean())
    G = rf.gaussian(n, r, seed=1)

    def apply(V: Tensor) -> Tensor:
        y = rf.random_features_projection(u, V, seed=1)
        return rf.random_features_covariance(y, u, n, seed=1)[0] / N

    def solve(S: Tensor) -> Tensor:
        S.diagonal().add_(RIDGE * mean_diagonal)
        return torch.cholesky_solve(M.T, torch.linalg.cholesky(S)).T

    def plain() -> Tensor:
        phi = (u @ G.T).relu()
        return solve((phi.T @ phi / N).double())

    @functools.cache
    def features() -> Tensor:
        return rf.random_features(u, n, seed=1).double()

    @functools.cache
    def exact() -> Tensor:
        return features() @ solve(features().T @ features() / N).T

    def error(A: Tensor) -> float:
        return relative(features() @ A.T, exact())

    ways = {
        "products": lambda: regress(apply, M, mean_diagonal, RIDGE),
        "summed": lambda: solve(rf.cross_covariance(rf.random_features(u, n, seed=1)) / N),
    }
    chosen = fastest_solver(RIDGE, n, N, d)
    [other] = ways.keys() - {chosen}
    return Race(
        f"regression, N {N}, r {r}, d {d}, n {n}: {chosen}",
        {
            OURS: Candidate(ways[chosen], error),
            PLAIN: Candidate(plain, error),
            BEST: Candidate(lambda: solve((moments_of_features(u, G) / N).double()), error),
            OTHER: Candidate(ways[other], error, part=True),
        },
        Floor({"f32": 1.0 * N * n**2, "f64": n**3 / 3 + 2.0 * d * n**2}),
        rounds=2,
        slack=1e-4,  # the tolerance of the products
    )


bench_regression = entries(regression, [(8192, 32, 32, 2048), (8192, 8, 8, 5120)], (OURS, PLAIN, BEST, OTHER))
