# SPDX-License-Identifier: BSD-3-Clause
"""Sampling a rainbow network from a perceptron of four hidden layers of width 1024: the method "paper".

Every candidate draws W' = G W A / sqrt(d) at each layer and aligns the result with the reference. Plain torch keeps the
activations of the last layer, as a user would. The published codes run both networks in full, batch by batch, for every
layer; they sum in float32 and call torch.linalg.svd. The error is that of the logits on 512 images, against the same
algorithm in float64 with the same G. Only ours computes means, moments and the report of every site.
"""

import functools

import torch
from floor import Floor
from race import OURS, PLAIN, PUBLISHED, Candidate, Race, entries, relative
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks.mlp import mlp

DEPTH, WIDTH, BATCH = 4, 1024, 128
FITTED = "rainbow_fast, fitted before"


def images(N: int) -> Tensor:
    """Correlated inputs, whose spectrum falls like that of natural images."""
    source = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, WIDTH + 1).float().rsqrt()
    mix = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=source)).Q
    return (torch.randn(N, WIDTH, generator=source) * spectrum) @ mix


def polar(M: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ Vh


def site_by_site(weights: list[Tensor], x: Tensor, draws: list[Tensor]) -> list[Tensor]:
    """The weights of a sampled network. The activations are kept and advanced one layer at a time."""
    y, A = x, None
    sampled = []
    for W, G in zip(weights, draws, strict=False):
        W_new = G @ W / W.shape[0] ** 0.5
        W_new = W_new if A is None else W_new @ A
        x, y = torch.relu(x @ W.T), torch.relu(y @ W_new.T)
        A = polar(x.T @ y / len(x))
        sampled.append(W_new)
    return [*sampled, weights[-1] @ A]


def layer_by_layer(weights: list[Tensor], x: Tensor, draws: list[Tensor]) -> list[Tensor]:
    """As published: two forward passes over the data for every layer."""

    def activations(network: list[Tensor], batch: Tensor) -> list[Tensor]:
        kept = []
        for W in network[:-1]:
            batch = torch.relu(batch @ W.T)
            kept.append(batch)
        return [*kept, batch @ network[-1].T]

    network = list(weights)
    A = None
    for j, G in enumerate(draws):
        W = weights[j]
        W_new = G @ W / W.shape[0] ** 0.5
        network[j] = W_new if A is None else W_new @ A
        M = torch.zeros(W.shape[0], G.shape[0])
        for batch in x.split(BATCH):
            M += activations(weights, batch)[j].T @ activations(network, batch)[j]
        A = polar(M / len(x))
    return [*network[:-1], weights[-1] @ A]


def logits(weights: list[Tensor], x: Tensor) -> Tensor:
    for W in weights[:-1]:
        x = torch.relu(x @ W.T)
    return x @ weights[-1].T


def sampling(N: int) -> Race:
    n = d = WIDTH
    reference = mlp([WIDTH] * (DEPTH + 1) + [10], seed=0)
    weights = [layer.weight.detach() for layer in reference if isinstance(layer, nn.Linear)]
    x = images(N)
    probe = x[:512]
    source = torch.Generator()

    def draw() -> list[Tensor]:
        source.manual_seed(1)
        return [torch.randn(n, d, generator=source) for _ in range(DEPTH)]

    @functools.cache
    def exact(generated: bool) -> Tensor:
        draws = [rf.gaussian(n, d, seed=1, stream=site) for site in range(DEPTH)] if generated else draw()
        wide = site_by_site([W.double() for W in weights], x.double(), [G.double() for G in draws])
        return logits(wide, probe.double())

    def error_of_weights(wide: list[Tensor]) -> float:
        return relative(logits(wide, probe), exact(generated=False))

    def error_of_network(result: tuple[nn.Module, object]) -> float:
        return relative(result[0](probe), exact(generated=True))

    model = rf.fit(reference, x, holdout=0)
    candidates = {
        OURS: Candidate(lambda: rf.sample(reference, x, holdout=0, width=n, seed=1), error_of_network),
        PLAIN: Candidate(lambda: site_by_site(weights, x, draw()), error_of_weights),
        PUBLISHED: Candidate(lambda: layer_by_layer(weights, x, draw()), error_of_weights),
        FITTED: Candidate(lambda: model.sample(width=n, seed=1), error_of_network),
    }
    # For each site: the linear maps of both networks, the features in two passes, their covariance and projection.
    flops = 2.0 * N * (2 * d * d + 4 * n * d)
    return Race(
        f"sampling, {DEPTH} layers of {d}, N {N}",
        candidates,
        Floor({"f32": DEPTH * flops, "f64": DEPTH * 3.0 * d * d * n}),
        rounds=2,
        slack=1e-6,
    )


bench_sampling = entries(sampling, [(4096,)], (OURS, FITTED, PLAIN, PUBLISHED))
