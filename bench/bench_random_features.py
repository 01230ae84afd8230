# SPDX-License-Identifier: BSD-3-Clause
"""random_features and its two fused passes against the same with every feature stored."""

import torch
from floor import Floor
from race import OURS, PLAIN, PUBLISHED, Candidate, Race, entries, relative
from torch import Tensor

import rainbow_fast as rf

SHAPE = (4096, 64, 16384, 128)  # N, r, n, d
BATCH = 128


def random_features(form: str, activation: str, N: int, r: int, n: int, d: int) -> Race:
    source, drawing = torch.Generator().manual_seed(0), torch.Generator()
    u = torch.randn(N, r, generator=source) / r**0.5
    x, A = torch.randn(N, d, generator=source).relu_(), torch.randn(d, n, generator=source) / n**0.5
    sigma = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation]

    def draw() -> Tensor:
        return torch.randn(n, r, generator=drawing.manual_seed(1))

    def exact(G: Tensor) -> Tensor:
        total = torch.zeros(N, d, dtype=torch.float64)
        parts = []
        for k, part in enumerate(G.split(2048)):
            phi = sigma(u.double() @ part.double().T)
            if form == "projection":
                total += phi @ A[:, 2048 * k : 2048 * k + len(part)].double().T
            else:
                parts.append(phi if form == "features" else x.double().T @ phi)
        return total if form == "projection" else torch.cat(parts, 1)

    def published_covariance() -> Tensor:
        """A batch at a time: the features, the running sums of the covariance and of both moments, in float32."""
        G = draw()
        M, first, second = torch.zeros(d, n), torch.zeros(n), torch.zeros(n)
        for a, b in zip(x.split(BATCH), u.split(BATCH), strict=True):
            phi = sigma(b @ G.T)
            M += a.T @ phi
            first += phi.sum(0)
            second += phi.square().sum(0)
        return M

    def published_projection() -> Tensor:
        G = draw()
        return torch.cat([sigma(b @ G.T) @ A.T for b in u.split(BATCH)])

    def plain_covariance() -> Tensor:
        phi = sigma(u @ draw().T)
        phi.sum(0), phi.square().sum(0)  # the moments that ours gives too
        return x.T @ phi

    ways = {
        "features": (
            lambda: rf.random_features(u, n, seed=1, activation=activation),
            lambda: sigma(u @ draw().T),
            lambda: torch.cat([sigma(b @ draw().T) for b in u.split(BATCH)]),
        ),
        "covariance": (
            lambda: rf.random_features_covariance(x, u, n, seed=1, activation=activation)[0],
            plain_covariance,
            published_covariance,
        ),
        "projection": (
            lambda: rf.random_features_projection(u, A, seed=1, activation=activation),
            lambda: sigma(u @ draw().T) @ A.T,
            published_projection,
        ),
    }
    ours, plain, published = ways[form]
    candidates = {
        OURS: Candidate(ours, lambda got: relative(got, exact(rf.gaussian(n, r, seed=1)))),
        PLAIN: Candidate(plain, lambda got: relative(got, exact(draw()))),
        PUBLISHED: Candidate(published, lambda got: relative(got, exact(draw()))),
    }
    if form == "features":
        del candidates[PUBLISHED]
    products = r if form == "features" else r + d
    return Race(
        f"random_features {form}, {activation}, N {N}, r {r}, n {n}" + f", d {d}" * (form != "features"),
        candidates,
        Floor({"f32": 2.0 * N * n * products}, bytes=4 * N * n if form == "features" else 0),
    )


fused = [(form, "relu", *SHAPE) for form in ("covariance", "projection")] + [("covariance", "gelu", *SHAPE)]
bench_fused = entries(random_features, fused)
bench_features = entries(random_features, [("features", "relu", *SHAPE)], (OURS, PLAIN))
