# SPDX-License-Identifier: BSD-3-Clause
"""What the study of random chains measures: a function for each panel, which returns records of curves.

A curve has points x, the mean and standard deviation over runs of what is measured, theory at the same points (or
None), and perhaps a limit, a coarser theory. A record of a number has its mean, its standard error and its theory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks import chain_theory
from rainbow_fast.random_networks.chain_layer import RandomLayer
from rainbow_fast.random_networks.chains import ChainResult, weight_chain
from rainbow_fast.random_networks.gram_chain import gram_chain
from rainbow_fast.random_networks.products import coupled_chain
from rainbow_fast.random_networks.rank_collapse import log_sine_mean
from rainbow_fast.random_networks.single_layer import feature_spectrum
from rainbow_fast.random_networks.stieltjes import LimitingSpectrum

FLOAT = torch.float64
WIDTHS = (16, 32, 64, 128, 256, 512)
ACTIVATIONS: dict[str, Any] = {
    "tanh + 1": lambda t: t.tanh() + 1,
    "ReLU": "relu",
    "tanh": "tanh",
    "sin": torch.sin,
    "identity": "identity",
}
BURN_IN = 50  # layers
RANKS_AT = 1024
SAMPLES = (4, 8, 16, 32, 64, 128)
T, FEATURES, INPUTS = 300, 600, 150
RIDGES = (0.1, 1.0)
PUBLISHED_RATE = 0.015  # the constant of the published curve of figure 1 of ICLR 2024


@dataclass(frozen=True)
class Effort:
    """How much is measured: the width of explicit weights, layers of long averages, and the seed."""

    width: int = 100_000
    layers: int = 500
    seed: int = 0


def curve(
    panel: str, name: str, x: Iterable[Any], values: Any, theory: Any = None, limit: Any = None, **more: Any
) -> Record:
    """The record of a curve: values (runs, points), theory and limit (points)."""
    values = np.asarray(values, dtype=float)
    spread = values.std(0, ddof=1) if len(values) > 1 else None
    return {
        "panel": panel, "curve": name, "runs": len(values), "x": _short(x), "mean": _short(values.mean(0)),
        "deviation": _short(spread), "theory": _short(theory), "limit": _short(limit), **more,
    }  # fmt: skip


def number(panel: str, name: str, runs: Any, theory: float | None) -> Record:
    """The record of a number, measured in several runs."""
    runs = np.asarray(runs, dtype=float)
    error = float(runs.std(ddof=1) / math.sqrt(len(runs))) if len(runs) > 1 else None
    return {"panel": panel, "number": name, "mean": float(runs.mean()), "error": error, "theory": theory}


def cosines(effort: Effort) -> list[Record]:
    """Figure 1: |cos| of two samples at width 32, by explicit weights, and the exact law without weights."""
    d, depth, runs = 32, 50, 1000
    layers = list(range(depth + 1))
    start = torch.zeros(2, d, dtype=FLOAT, device="cpu")
    start[:, 0], start[1, 0], start[1, 1] = 1, 1 - 1e-3, 1e-3
    measured = _cosines(weight_chain(start, depth, width=d, runs=runs, seed=effort.seed))
    law = _cosines(gram_chain(start, depth, width=d, runs=20_000, seed=effort.seed + 1)).mean(0)
    field = [_cosine(start @ start.mT)]
    for _ in range(depth):
        field.append(chain_theory.batch_norm_cosine(field[-1]))
    level = math.sqrt(chain_theory.stationary_gap(2, d).mean_square * 2 / math.pi)
    limit = np.maximum(np.array([float(each) for each in field]), level)
    apart = torch.eye(2, d, dtype=FLOAT, device="cpu")
    plain = RandomLayer(normaliser="none")
    alone = _cosines(weight_chain(apart, depth, width=d, runs=runs, seed=effort.seed, layer=plain))
    coupled = coupled_chain(apart, depth, runs=50_000, seed=effort.seed + 1)
    theory = coupled.cosines[..., 0, 1].abs().mean(1)
    sines = coupled_chain(apart, depth, runs=runs, seed=effort.seed, weights=True, record=[depth]).log_diagonal[0, :, 1]
    return [
        curve("1", "batch norm", layers, measured, law, limit),
        curve("1", "no norm", layers, alone, theory),
        number("1", "batch norm, mean of layers 15 to 50", measured[:, 15:].mean(1), level),
        number("1", "no norm, layer 49", alone[:, 49], float(theory[49])),
        number("1", "no norm, mean of log sin at layer 50", sines, log_sine_mean(d, depth)),
    ]


def gaps_by_layer(effort: Effort) -> list[Record]:
    """Figure 2a: log V by layer from a collapsed start, n = 4."""
    records, layers = [], list(range(51))
    for d in (32, 512):
        result = gram_chain(collapsed(), 50, width=d, runs=200, seed=effort.seed)
        logs = result.orthogonality_gap.log()
        level = chain_theory.stationary_gap(4, d).mean_log
        records.append(curve("2a", f"width {d}", layers, logs, _gap(result, d).log(), level=level))
        records.append(number("2a", f"log V at width {d}, layers 30 to 50", logs[:, 30:].mean(1), level))
    return records


def gaps_by_width(effort: Effort) -> list[Record]:
    """Figure 2b: the logarithm of V, averaged over layers, against the width."""
    result = gram_chain(collapsed(), effort.layers, width=list(WIDTHS), runs=20, seed=effort.seed)
    gaps, x = result.orthogonality_gap, np.log(WIDTHS)
    by_layer = [_gap(result, d, place) for place, d in enumerate(WIDTHS)]
    records = []
    for name, first in (("all layers", 1), ("after burn-in", BURN_IN + 1)):
        logs = gaps[..., first:].mean(-1).log()  # (widths, runs)
        theory = [float(each[first:].mean().log()) for each in by_layer]
        if first > 1:
            theory = [math.log(chain_theory.stationary_gap(4, d).mean) for d in WIDTHS]
        records += against_width("2b", name, x, logs.T, theory)
    return records


def samples_of_eight(effort: Effort) -> list[Record]:
    """Figure 5a: V of 50 synthetic batches of 8 samples in nets of width 100 with ReLU, recorded before each block."""
    n, d, depth, nets, batches = 8, 100, 30, 20, 50
    generator = torch.Generator().manual_seed(effort.seed)
    common, own = (torch.randn(batches, k, d, generator=generator, dtype=FLOAT, device="cpu") for k in (1, n))
    cosine = 0.7 * math.sqrt(n / (n - 1))  # of two samples, so that V is 0.7
    start = math.sqrt(cosine) * common + math.sqrt(1 - cosine) * own
    limits = {"batch_standard": chain_theory.stationary_gap(n, d, centred=True).mean, "none": math.sqrt(1 - 1 / n)}
    records = []
    for normaliser, limit in limits.items():
        layer = RandomLayer("relu", normaliser, "activation-linear-norm", gain=math.sqrt(2))
        gaps = gram_chain(start, depth, width=d, layer=layer, runs=nets, seed=effort.seed).orthogonality_gap.mean(1)
        name = "no norm" if normaliser == "none" else "batch norm"
        records.append(curve("5a", name, range(1, depth + 2), gaps, level=limit))
        last, where = (gaps[:, -2], "30") if normaliser == "none" else (gaps[:, 9:].mean(1), "10 to 31")
        records.append(number("5a", f"{name}, layer {where}", last, limit))
    return records


def activations(effort: Effort) -> list[Record]:
    """Figure 6: the deviation of the Gram matrix from its mean, by activation, against the width."""
    n, widths, records = 4, WIDTHS[:-1], []
    start = torch.eye(n, dtype=FLOAT, device="cpu")
    for name, activation in ACTIVATIONS.items():
        layer = RandomLayer(activation, order="activation-linear-norm")

        def grams(seed: int, layer: RandomLayer = layer) -> Tensor:
            result = gram_chain(start, 2 * effort.layers, width=list(widths), layer=layer, runs=10, seed=seed)
            return result.grams[:, :, BURN_IN:]

        center = grams(effort.seed + 1).mean((1, 2), keepdim=True)  # (widths, 1, 1, n, n)
        logs = torch.linalg.matrix_norm(grams(effort.seed) - center).mean(-1).log()
        theory = [math.log(chain_theory.stationary_gap(n, d).mean) for d in widths] if name == "identity" else None
        records += against_width("6", name, np.log(widths), logs.T, theory)
        off = center[-1, 0, 0][~torch.eye(n, dtype=torch.bool, device="cpu")]
        records.append(number("6", f"{name}, mean cosine at width {widths[-1]}", [n * float(off.mean())], None))
    return records


def orthogonal_weights(effort: Effort) -> list[Record]:
    """Figure 1 of ICLR 2024: the isometry gap with Haar weights, n = d, and the published curve of its theorem 1."""
    records, depth, runs = [], 100, 10
    layers = np.arange(depth + 1)
    for d in (50, 100):
        generator = torch.Generator().manual_seed(effort.seed)
        u, v = torch.rand(2, runs, 1, d, generator=generator, dtype=FLOAT, device="cpu")
        start = 0.995 * torch.eye(d, dtype=FLOAT, device="cpu") + 0.005 * u.mT * v
        result = weight_chain(start[:, None], depth, width=d, weights="haar", runs=runs, seed=effort.seed)
        logs = result.isometry_gap[:, 0].log()
        first, slope = float(logs[:, 0].mean()), math.log(chain_theory.haar_isometry_factor(d))
        published = first - layers / (PUBLISHED_RATE * d**2 * (1 + d * math.exp(first)))
        slopes = np.polyfit(layers[20:], logs.numpy()[:, 20:].T, 1)[0]
        records += [
            curve("ICLR 1", f"n = d = {d}", layers, logs, first + slope * layers, published),
            number("ICLR 1", f"n = d = {d}, slope of log gap per layer, layers 20 to 100", slopes, slope),
        ]
    return records


def ranks(effort: Effort) -> list[Record]:
    """The effective rank against the number of samples, at width 1024, after many layers."""
    generator = torch.Generator().manual_seed(effort.seed)
    measured, deviations, records = [], [], []
    for n in SAMPLES:
        start = torch.randn(n, RANKS_AT, generator=generator, dtype=FLOAT, device="cpu")
        result = gram_chain(start, effort.layers, width=RANKS_AT, seed=effort.seed, runs=4, every=10)
        last = result.effective_rank[:, -max(1, effort.layers // 50) :].mean(1)
        measured.append(last.mean())
        deviations.append(last.numpy())
        records.append(number("ranks", f"effective rank, n = {n}", last, chain_theory.wide_batch(n, RANKS_AT)[0]))
    theory = [chain_theory.wide_batch(n, RANKS_AT).effective_rank for n in SAMPLES]
    return [curve("ranks", f"width {RANKS_AT}", SAMPLES, np.array(deviations).T, theory), *records]


def features(effort: Effort) -> list[Record]:
    """The eigenvalues of one layer of random features of ReLU, against the limit of Louart, Liao and Couillet."""
    generator = torch.Generator().manual_seed(effort.seed)
    X = torch.randn(T, INPUTS, generator=generator, dtype=FLOAT, device="cpu") / math.sqrt(INPUTS)
    limit = LimitingSpectrum.of_features(X, FEATURES)
    draws = np.array([feature_spectrum(X, FEATURES, seed=effort.seed + k).numpy() for k in range(20)])
    edges = np.linspace(0, float(limit.edges()[0, 1]), 41)
    heights = np.array([np.histogram(draw, edges)[0] / T / np.diff(edges) for draw in draws])
    # the mean of the limit over each bin, as the histogram has
    fine = torch.linspace(0, float(edges[-1]), 40 * 25 + 1, dtype=FLOAT, device="cpu")
    middle = (fine[1:] + fine[:-1]) / 2
    theory = limit.density(middle).view(40, 25).mean(1)
    records = [curve("features", "eigenvalues", (edges[1:] + edges[:-1]) / 2, heights, theory)]
    for ridge in RIDGES:
        z = torch.tensor([-ridge], dtype=FLOAT, device="cpu")
        name = f"mean of 1 / (eigenvalue + {ridge:g})"
        records.append(number("features", name, (1 / (draws + ridge)).mean(1), float(limit.stieltjes(z).real)))
    return records


def explicit_weights(effort: Effort) -> list[Record]:
    """V of one chain with explicit weights at a width that does not fit into memory, and its time."""
    depth, n = 8, 4
    start = torch.linalg.cholesky(torch.full((n, n), 0.5, device="cpu") + 0.5 * torch.eye(n, device="cpu"))
    before = time.process_time()
    result = weight_chain(start, depth, width=effort.width, seed=effort.seed)
    seconds = time.process_time() - before
    before = time.process_time()
    law = gram_chain(start, depth, width=effort.width, runs=10, seed=effort.seed + 1)
    short = (time.process_time() - before) / 10
    theory, layers = _gap(result, effort.width).log(), list(range(depth + 1))
    shape = {"width": effort.width, "depth": depth, "seconds": round(seconds, 1), "short": float(f"{short:.2g}")}
    last, end = law.orthogonality_gap[:, -1].log(), float(theory[-1])
    return [
        curve("wide", "explicit weights", layers, result.orthogonality_gap.log(), theory, **shape),
        curve("wide", "law without weights", layers, law.orthogonality_gap.log(), theory),
        number("wide", f"explicit weights, log V at layer {depth}", result.orthogonality_gap[:, -1].log(), end),
        number("wide", f"law without weights, log V at layer {depth}", last, end),
    ]


MEASUREMENTS = {
    "figure 1": cosines,
    "figure 2a": gaps_by_layer,
    "figure 2b": gaps_by_width,
    "figure 5a": samples_of_eight,
    "figure 6": activations,
    "orthogonal weights": orthogonal_weights,
    "ranks": ranks,
    "features": features,
    "explicit weights": explicit_weights,
}


def against_width(panel: str, name: str, x: np.ndarray, logs: Tensor, theory: list[float] | None) -> list[Record]:
    """Logarithms (runs, widths) against log width: the curve, its value at the last width, and its slope."""
    slopes = np.polyfit(x, logs.numpy().T, 1)[0]
    expected = -0.5 if theory is None else float(np.polyfit(x, theory, 1)[0])
    last = round(math.exp(x[-1]))
    return [
        curve(panel, name, x, logs, theory),
        number(panel, f"{name}, value at width {last}", logs[:, -1], None if theory is None else theory[-1]),
        number(panel, f"{name}, slope", slopes, expected),
    ]


def collapsed() -> Tensor:
    return torch.diag(torch.tensor([1, 1e-6, 1e-6, 1e-6], dtype=FLOAT, device="cpu"))


def _gap(result: ChainResult, d: int, place: int | None = None) -> Tensor:
    """Theory of V by layer: the root of the sum of squares of the mean field and of the stationary level.

    The level is exp E log V, or E V for a `place` among several widths.
    """
    field, stationary = result.theory["mean_field_gap"], chain_theory.stationary_gap(4, d)
    if place is not None:
        return field[place].square().add(stationary.mean**2).sqrt()
    return field.square().add(math.exp(2 * stationary.mean_log)).sqrt()


def _cosines(result: ChainResult) -> Tensor:
    return _cosine(result.grams)


def _cosine(grams: Tensor) -> Tensor:
    """|cos| of two samples from their Gram matrices."""
    return (grams[..., 0, 1].abs() / (grams[..., 0, 0] * grams[..., 1, 1]).sqrt()).clamp(max=1)


def _short(values: Any) -> list[float] | None:
    """Six digits of each number."""
    return None if values is None else [float(f"{float(each):.6g}") for each in values]
