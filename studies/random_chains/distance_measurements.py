# SPDX-License-Identifier: BSD-3-Clause
"""The Wasserstein-2 distance W of the next layer of a chain from a Gaussian law: by layer, by width, and against V."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks import gaussian_distance
from rainbow_fast.random_networks.chain_layer import RandomLayer
from rainbow_fast.random_networks.chain_theory import mean_field, stationary_gap
from rainbow_fast.random_networks.chains import ChainResult, weight_chain
from rainbow_fast.random_networks.gram_chain import gram_chain
from rainbow_fast.random_networks.products import coupled_chain
from studies.random_chains.chain_measurements import (
    BURN_IN,
    FLOAT,
    WIDTHS,
    Effort,
    against_width,
    collapsed,
    curve,
    number,
)

N, DEPTH = 4, 50
DISTANCE_WIDTHS = (32, 128)
SAMPLES = (4, 8)  # of stationary distances
PLAIN = RandomLayer(normaliser="none")


def distances_by_layer(effort: Effort) -> list[Record]:
    """W by layer of explicit weights, and the law without weights: from collapsed samples, and from orthogonal ones."""
    records, layers = [], range(DEPTH + 1)
    for d in DISTANCE_WIDTHS:
        measured = weight_chain(collapsed(), DEPTH, width=d, runs=200, seed=effort.seed).gaussian_distance
        law = gram_chain(collapsed(), DEPTH, width=d, runs=2000, seed=effort.seed + 1).gaussian_distance.mean(0)
        level = math.sqrt(N) / 2 * stationary_gap(N, d).mean
        limit = [max(value, level) for value in _mean_field_distances(DEPTH)]
        records.append(curve("distances", f"batch norm, width {d}", layers, measured, law, limit))
        after = measured[:, DEPTH - 20 :].mean(1)
        records.append(number("distances", f"batch norm, W at width {d}, layers 30 to 50", after, level))
    d = DISTANCE_WIDTHS[0]
    measured = weight_chain(_orthogonal(d), DEPTH, width=d, runs=200, layer=PLAIN, seed=effort.seed).gaussian_distance
    law = _collapse(d, layers, effort).mean(-1)
    most = math.sqrt(2 - 2 / math.sqrt(N))  # of samples that are parallel
    name, limit = f"no norm, width {d}", [most] * DEPTH
    records.append(curve("distances", name, layers[1:], measured[:, 1:], law[1:], limit))  # the start has no log W
    records.append(number("distances", f"no norm, W at width {d}, layer {DEPTH}", measured[:, -1], float(law[-1])))
    return records


def distances_by_width(effort: Effort) -> list[Record]:
    """log W^2 against the logarithm of the width: stationary with batch norm, and after 50 layers without a norm."""
    records, x = [], np.log(WIDTHS)
    for n in SAMPLES:
        start = torch.eye(n, dtype=FLOAT, device="cpu")
        result = gram_chain(start, effort.layers, width=list(WIDTHS), runs=20, seed=effort.seed)
        squares = result.gaussian_distance[..., BURN_IN + 1 :].square().mean(-1)  # (widths, runs)
        theory = [math.log(n / 4 * stationary_gap(n, d).mean_square) for d in WIDTHS]
        records += against_width("distances by width", f"batch norm, n = {n}", x, squares.log().T, theory)
    logs = torch.stack([
        2 * weight_chain(_orthogonal(d), DEPTH, width=d, runs=50, layer=PLAIN, seed=effort.seed, every=DEPTH)
        .gaussian_distance[:, -1].log() for d in WIDTHS
    ])  # fmt: skip
    law = [float(2 * _collapse(d, [DEPTH], effort).log().mean()) for d in WIDTHS]
    name = f"no norm, n = {N}, layer {DEPTH}"
    return records + against_width("distances by width", name, x, logs.T, law)


def distances_and_gaps(effort: Effort) -> list[Record]:
    """W against the orthogonality gap V of the same samples, in all layers of four runs."""
    records, numbers = [], []
    for d in DISTANCE_WIDTHS:
        result = gram_chain(collapsed(), DEPTH, width=d, runs=4, seed=effort.seed)
        records.append(_points(f"batch norm, width {d}", result))
        last = gram_chain(collapsed(), effort.layers, width=d, runs=20, seed=effort.seed + 1)
        V, W = (each[:, BURN_IN + 1 :] for each in (last.orthogonality_gap, last.gaussian_distance))
        ratios = W.square().sum(1) / (N / 4 * V.square().sum(1))
        numbers.append(number("distances and gaps", f"4 W^2 over n V^2, width {d}", ratios, 1.0))
    d = DISTANCE_WIDTHS[0]
    plain = weight_chain(_orthogonal(d), DEPTH, width=d, runs=4, layer=PLAIN, seed=effort.seed)
    return [*records, _points(f"no norm, width {d}", plain), *numbers]


def _points(name: str, result: ChainResult) -> Record:
    """A point for each layer after the start of each run; theory for small gaps, and the bound of all gaps."""
    gaps, order = result.orthogonality_gap[:, 1:].flatten().sort()
    distances = result.gaussian_distance[:, 1:].flatten()[order]
    bound = math.sqrt(N) * gaps
    return curve("distances and gaps", name, gaps, distances[None], bound / 2, bound)


def _mean_field_distances(depth: int) -> list[float]:
    """W by layer from the collapsed start, at infinite width."""
    eigenvalues = collapsed().diagonal().square()
    eigenvalues, path = eigenvalues / eigenvalues.sum(), []
    for layer in range(depth + 1):
        eigenvalues = mean_field(eigenvalues) if layer else eigenvalues
        path.append(float(gaussian_distance(eigenvalues.sqrt().diag())))
    return path


def _collapse(d: int, layers: range | list[int], effort: Effort) -> Tensor:
    """W of orthogonal samples in layers without a norm, (layers, runs), by the law without weights."""
    chain = coupled_chain(_orthogonal(d), DEPTH, runs=5000, seed=effort.seed + 1, record=list(layers))
    return gaussian_distance(chain.factors * chain.log_norms.sub(chain.log_norms.amax(-1, True)).exp()[..., None])


def _orthogonal(d: int) -> Tensor:
    return torch.eye(N, d, dtype=FLOAT, device="cpu")


DISTANCE_MEASUREMENTS = {
    "distances": distances_by_layer,
    "distances by width": distances_by_width,
    "distances and gaps": distances_and_gaps,
}
