# SPDX-License-Identifier: BSD-3-Clause
"""Sampling a rainbow network from a perceptron: the method "paper".

Every candidate draws W' = G W A / sqrt(d) at each layer and aligns the result with the reference. Plain torch keeps the
activations of the last layer, as a user would. The best plain torch does the same with products in oneDNN and fewer
passes over memory. The published codes run both networks in full, batch by batch, for every layer; they sum in
float32, and call torch.linalg.svd for the covariance of the weights and for the alignment. Their draws lack the factor
1 / sqrt(d), which is put in here. They also evaluate both networks, which no candidate does here.

The error is that of the logits on 512 inputs, against the same algorithm in float64 with the same G. In float64 the
widest network would take minutes: its results are not checked, those at width 1024 stand for them. Only ours computes
means, moments and the report of every site.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from convolutions import covariance, product
from floor import Floor
from inputs import grey_images, vectors
from race import BEST, OURS, PLAIN, PUBLISHED, Candidate, Race, at_precision, entries, relative
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.networks.mlp import mlp

BATCH, PROBES = 128, 512
FITTED = "rainbow_fast, fitted before"
CHECKED = 1024  # the widest network whose results are compared with float64


def polar(M: Tensor) -> Tensor:
    U, _, Vh = torch.linalg.svd(M, full_matrices=False)
    return U @ Vh


def site_by_site(weights: list[Tensor], x: Tensor, draws: Sequence[Tensor]) -> list[Tensor]:
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


def in_place(weights: list[Tensor], x: Tensor, draws: Sequence[Tensor]) -> list[Tensor]:
    """The same, with products by convolutions, relu in place and scales on the smallest matrix."""
    y, A = x, None
    sampled = []
    for W, G in zip(weights, draws, strict=False):
        W_new = product(G, W * W.shape[0] ** -0.5)
        W_new = W_new if A is None else product(W_new, A)
        x, y = product(x, W.T).relu_(), product(y, W_new.T).relu_()
        A = polar(covariance(x, y))
        sampled.append(W_new)
    return [*sampled, weights[-1] @ A]


def layer_by_layer(weights: list[Tensor], x: Tensor, draws: Sequence[Tensor]) -> list[Tensor]:
    """As published: for every layer the spectrum of its weights, and two forward passes over the data."""

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
        _, S, Vh = torch.linalg.svd(W, full_matrices=False)
        W_new = (G * (S / W.shape[0] ** 0.5)) @ Vh
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


def draw(shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    source = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=source) for shape in shapes]


def judges(weights: list[Tensor], x: Tensor) -> dict[str, Callable]:
    """For each law of draws, the error of a result: the logits of its network against those of float64."""
    hidden, probes = weights[:-1], x[:PROBES]

    def generated() -> list[Tensor]:
        return [rf.gaussian(len(W), len(W), seed=1, stream=site) for site, W in enumerate(hidden)]

    def drawn() -> list[Tensor]:
        return draw([(len(W), len(W)) for W in hidden])

    def of_singular_vectors() -> list[Tensor]:
        """Z S V^T = Z U^T W, with the U of the decomposition that the candidate has used."""
        U = [torch.linalg.svd(W, full_matrices=False)[0] for W in hidden]
        return [Z.double() @ u.T.double() for Z, u in zip(draw([tuple(u.shape) for u in U]), U, strict=True)]

    @functools.cache
    def exact(draws: Callable[[], list[Tensor]]) -> Tensor:
        wide = site_by_site([W.double() for W in weights], x.double(), [G.double() for G in draws()])
        return logits(wide, probes.double())

    return {
        OURS: lambda result: relative(result[0](probes), exact(generated)),
        PLAIN: lambda wide: relative(logits(wide, probes), exact(drawn)),
        PUBLISHED: lambda wide: relative(logits(wide, probes), exact(of_singular_vectors)),
    }


def race(
    job: str, reference: nn.Module, x: Tensor, rounds: int, fitted: bool = False, precision: str = "highest"
) -> Race:
    weights = [layer.weight.detach() for layer in reference if isinstance(layer, nn.Linear)]
    hidden = weights[:-1]
    width = len(hidden[0])
    square, reduced = [(len(W), len(W)) for W in hidden], [(len(W), min(W.shape)) for W in hidden]
    error = judges(weights, x)
    candidates = {
        OURS: Candidate(lambda: rf.sample(reference, x, holdout=0, width=width, seed=1), error[OURS]),
        PLAIN: Candidate(lambda: site_by_site(weights, x, draw(square)), error[PLAIN]),
        BEST: Candidate(lambda: in_place(weights, x, draw(square)), error[PLAIN]),
        PUBLISHED: Candidate(lambda: layer_by_layer(weights, x, draw(reduced)), error[PUBLISHED]),
    }
    if fitted:
        model = rf.fit(reference, x, holdout=0)
        candidates[FITTED] = Candidate(lambda: model.sample(width=width, seed=1), error[OURS])
    # For each site: the layer of the reference, the features of the sampled network, and their covariance.
    flops = sum(2.0 * len(x) * (W.numel() + 2 * len(W) ** 2) for W in hidden)
    wide = sum(3.0 * len(W) ** 3 for W in hidden)
    floor = Floor({"f32": flops, "f64": wide})
    if precision != "highest":
        runs = {name: at_precision(precision, c.run) for name, c in candidates.items() if name != PUBLISHED}
        candidates = {name: Candidate(run, candidates[name].error) for name, run in runs.items()}
        job += f', at "{precision}"'
    return Race(job, candidates, floor, rounds=rounds, slack=1e-6, unchecked=width > CHECKED)


def sampling(depth: int, width: int, N: int) -> Race:
    reference = mlp([width] * (depth + 1) + [10], seed=0)
    return race(f"sampling, {depth} layers of {width}, N {N}", reference, vectors(N, width), rounds=2, fitted=True)


def sampling_images(N: int, width: int, precision: str = "highest") -> Race:
    """The perceptron of a common task. At width 2048, where the published way takes 20 s, there is one round.

    Below the highest precision, the candidates run at torch's own setting.
    """
    x, what = grey_images(N)
    reference = mlp([x.shape[1], width, width, width, 10], seed=0)
    job = f"sampling, MLP {x.shape[1]}-{width}-{width}-{width}-10, {what}, N {N}"
    return race(job, reference, x, rounds=2 if width <= CHECKED else 1, precision=precision)


bench_sampling = entries(sampling, [(4, 1024, 4096)], (OURS, FITTED, PLAIN, BEST, PUBLISHED))
bench_sampling_images = entries(sampling_images, [(16_384, w) for w in (1024, 2048)], (OURS, PLAIN, BEST, PUBLISHED))
bench_sampling_at_high = entries(sampling_images, [(16_384, w, "high") for w in (1024, 2048)], (OURS, PLAIN, BEST))
