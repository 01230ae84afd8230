# SPDX-License-Identifier: BSD-3-Clause
"""Lyapunov exponents of products of Gaussian matrices: frames against Newman's closed form, and what an SVD loses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks import lyapunov_estimate, lyapunov_exponents
from rainbow_fast.random_networks.gaussian_layer import gaussian_layer
from studies.random_chains.chain_measurements import FLOAT, Effort, curve, number

EPS = torch.finfo(FLOAT).eps
EXPONENT_WIDTHS = (8, 32, 128)
LAYERS, RUNS = 100, 20
PRODUCTS = {8: 200, 32: 60}  # numbers of layers, by width, after which float64 does not hold all singular values
SHOWN = 32  # width of the products in the figure


def exponents(effort: Effort) -> list[Record]:
    """All exponents of weights of variance 1/d by width, and their errors over the exact standard deviation."""
    spectra, errors, squares, scores = [], [], [], []
    for place, d in enumerate(EXPONENT_WIDTHS):
        estimate = lyapunov_estimate(d, LAYERS, runs=RUNS, seed=effort.seed + place, variance=1 / d)
        shares = (torch.arange(d, dtype=FLOAT, device="cpu") + 0.5) / d
        limit = 0.5 * (1 - shares).log()
        spectra.append(curve("exponents", f"width {d}", shares, estimate.exponents, estimate.theory, limit))
        errors.append(curve("scores", f"width {d}", shares, estimate.scores[None], torch.zeros_like(shares)))
        squares.append(_of_scores(f"mean square of {d} scores, width {d}", estimate.scores.square().mean(), d))
        scores.append(estimate.scores)
    joined = torch.cat(scores)
    most = float(joined.abs().max())
    squares.append(_of_scores(f"mean square of all {len(joined)} scores", joined.square().mean(), len(joined)))
    squares.append(number("scores", f"largest of all {len(joined)} scores", [most], largest_score(len(joined))))
    return [*spectra, *errors, *squares]


def largest_score(count: int) -> float:
    """The median of the largest absolute value of independent standard normal numbers."""
    level = torch.tensor((1 + 0.5 ** (1 / count)) / 2, dtype=FLOAT, device="cpu")
    return float(torch.special.ndtri(level))


def naive_products(effort: Effort) -> list[Record]:
    """The singular values of products whose factors the frames share, in float64, scaled after every layer."""
    records = []
    for d, layers in PRODUCTS.items():
        logs = torch.stack([log_singular_values(d, layers, effort.seed + run) for run in range(RUNS)])
        held = (logs - logs[:, :1] > math.log(d * EPS)).sum(1)
        theory = lyapunov_exponents(d, variance=1 / d)
        expected = int((layers * (theory - theory[0]) > math.log(d * EPS)).sum())
        if d == SHOWN:
            index = range(1, d + 1)
            frames = torch.cat([
                lyapunov_estimate(d, layers, seed=effort.seed + run, variance=1 / d).exponents for run in range(RUNS)
            ])  # fmt: skip
            records.append(curve("products", "frames", index, frames, theory))
            records.append(curve("products", "SVD of the product", index, logs / layers, theory))
        records.append(
            number("products", f"singular values above round-off, width {d}, {layers} layers", held, expected)
        )
    return records


def log_singular_values(d: int, layers: int, seed: int) -> Tensor:
    """log of the singular values of a product (d, d) of weights of variance 1/d, those of `lyapunov_estimate`."""
    S, size = torch.eye(d, dtype=FLOAT, device="cpu")[None], 0.0
    for layer in range(layers):
        S = gaussian_layer(S, d, seed=seed, layer=layer, scale=d**-0.5)
        length = float(torch.linalg.matrix_norm(S))
        S, size = S / length, size + math.log(length)
    return torch.linalg.svdvals(S[0]).log() + size


def _of_scores(name: str, mean: Tensor, count: int) -> Record:
    """The mean of squares of independent standard normal numbers, with its exact standard deviation."""
    return {"panel": "scores", "number": name, "mean": float(mean), "error": math.sqrt(2 / count), "theory": 1.0}


EXPONENT_MEASUREMENTS = {"exponents": exponents, "products": naive_products}
