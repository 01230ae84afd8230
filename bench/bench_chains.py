# SPDX-License-Identifier: BSD-3-Clause
"""Random chains with batch norm: the law of the batch, against weights that are drawn and multiplied.

Both jobs are linear chains of n = 4 samples with the analysed batch norm; their results are orthogonality gaps. All
candidates draw other random numbers, so the error is that of the mean gap against theory, and sampling decides it: it
is checked to 4 of its standard deviations.

The published code draws W in float64, multiplies, scales the units and computes the gap, for one width, run and layer
after another. It runs 500 layers; here all candidates run `LAYERS` of them, to save minutes. Times are proportional to
the number of layers, for all candidates.
"""

import math

import torch
from floor import Floor
from race import BEST, OURS, PLAIN, PUBLISHED, Candidate, Race, entries
from torch import Tensor

from rainbow_fast.random_networks import gram_chain, weight_chain
from rainbow_fast.random_networks.chain_theory import stationary_gap

SAMPLES, RUNS, LAYERS, BURN = 4, 20, 100, 40
WIDTHS = (16, 32, 64, 128, 256, 512)
FUSED = "rainbow_fast, weights"


def gap(H: Tensor) -> Tensor:
    """|H^T H - I / n|_F of H (d, n) with |H|_F = 1, as the published code computes it."""
    return (H.T @ H - torch.eye(H.shape[1], dtype=H.dtype) / H.shape[1]).norm()


def wide(d: int, depth: int) -> Race:
    """One chain at one large width, in float32 where there are weights."""
    H = torch.eye(SAMPLES, dtype=torch.float64)
    source = torch.Generator()

    def plain() -> Tensor:
        source.manual_seed(1)
        x, gaps = H.float(), []
        for _ in range(depth):
            x = x @ torch.randn(d, x.shape[1], generator=source).T
            x = x / (x.norm(dim=0) * math.sqrt(d))
            gaps.append(gap(x.T))
        return torch.stack(gaps)

    def best() -> Tensor:
        """The same in one buffer for W."""
        source.manual_seed(1)
        x, gaps, W = H.float(), [], torch.empty(d, d)
        for _ in range(depth):
            rows = W[:, : x.shape[1]].normal_(generator=source)
            x = x @ rows.T
            x = x / (x.norm(dim=0) * math.sqrt(d))
            gaps.append(gap(x.T))
        return torch.stack(gaps)

    noise = math.sqrt((1 - 1 / SAMPLES) / d)

    def error(gaps: Tensor) -> float:
        return abs(float(gaps[..., -1].mean()) / noise - 1)

    candidates = {
        OURS: Candidate(lambda: gram_chain(H, depth, width=d).orthogonality_gap[0, 1:], error),
        PLAIN: Candidate(plain, error),
        BEST: Candidate(best, error),
        FUSED: Candidate(lambda: weight_chain(H.float(), depth, width=d).orthogonality_gap[0, 1:], error, part=True),
    }
    # After some layers V is 1.3 times the noise of one, with a relative deviation of 0.23.
    flops = depth * 4.0 * SAMPLES**2 * d
    return Race(f"random chain, n {SAMPLES}, d {d}, {depth} layers", candidates, Floor({"f64": flops}), slack=1.3)


def figure_2b(runs: int, layers: int) -> Race:
    """The data of figure 2b: gaps at six widths, in all runs and layers."""
    H = torch.eye(SAMPLES, dtype=torch.float64)
    expected = torch.tensor([stationary_gap(SAMPLES, d).mean_log for d in WIDTHS], dtype=torch.float64)
    source = torch.Generator()

    def published() -> Tensor:
        source.manual_seed(1)
        gaps = torch.zeros(len(WIDTHS), runs, layers, dtype=torch.float64)
        for i, d in enumerate(WIDTHS):
            for j in range(runs):
                x = torch.eye(d, SAMPLES, dtype=torch.float64)
                for k in range(layers):
                    x = torch.randn(d, d, dtype=torch.float64, generator=source) @ x
                    x = x / x.norm(dim=1, keepdim=True) / math.sqrt(d)
                    gaps[i, j, k] = gap(x)
        return gaps

    def best() -> Tensor:
        """All runs of a width at once, in float32, and all gaps of a width at the end."""
        source.manual_seed(1)
        every = []
        for d in WIDTHS:
            x, grams, W = torch.eye(d, SAMPLES).expand(runs, -1, -1), [], torch.empty(runs, d, d)
            for _ in range(layers):
                x = W.normal_(generator=source) @ x
                x = x * (x.square().sum(-1, keepdim=True) * d).rsqrt_()
                grams.append(x.mT @ x)
            apart = torch.stack(grams, 1) - torch.eye(SAMPLES) / SAMPLES
            every.append(torch.linalg.matrix_norm(apart).double())
        return torch.stack(every)

    def error(gaps: Tensor) -> float:
        return float((gaps[..., BURN:].log().mean((1, 2)) - expected).abs().max())

    candidates = {
        OURS: Candidate(lambda: gram_chain(H, layers, width=WIDTHS, runs=runs).orthogonality_gap[..., 1:], error),
        PUBLISHED: Candidate(published, error),
        BEST: Candidate(best, error),
        FUSED: Candidate(
            lambda: weight_chain(H, layers, width=WIDTHS, runs=runs).orthogonality_gap[..., 1:], error, part=True
        ),
    }
    flops = layers * runs * 4.0 * SAMPLES**2 * sum(WIDTHS)
    # log V: 0.035 at width 16, where d is small; a deviation of 0.24 / sqrt(20 runs of 60 / 4 layers) = 0.014
    return Race(
        f"figure 2b: {len(WIDTHS)} widths to {max(WIDTHS)}, {runs} runs, {layers} layers",
        candidates,
        Floor({"f64": flops}),
        slack=0.1,
        rounds=1,
    )


bench_wide = entries(wide, [(10_000, 5)], (OURS, PLAIN, BEST, FUSED))
bench_figure_2b = entries(figure_2b, [(RUNS, LAYERS)], (OURS, PUBLISHED, BEST, FUSED))
