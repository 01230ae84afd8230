# SPDX-License-Identifier: BSD-3-Clause
"""A pass with resampled neurons, forward and backward, against the same in plain PyTorch.

Plain torch makes a G' by `torch.randn` (and then takes ours, to be compared), stores the features of all neurons, and
takes the polar factor from an SVD, in float32. It has as many samples for the alignment. The error is that of the
gradient of W, against float64.
"""

import math

import torch
from floor import Floor
from race import OURS, PLAIN, Candidate, Race, entries, relative
from torch import Tensor
from torch.nn import functional as F

import rainbow_fast as rf
from rainbow_fast.nn import RainbowConv2d, resample

SIZES = (32, 64, 256, 16, 32, 512)  # N, in, out, rank, side of the maps; fresh neurons
MAX_SAMPLES = 16384
SEED = 5


def phih(z: Tensor, own: Tensor, fresh: Tensor) -> Tensor:
    """The aligned features of z (N, r, *space), with G (n, r) and G' (n', r)."""
    n, r = own.shape
    rows = z.movedim(1, -1).flatten(0, -2) / math.sqrt(r)
    phi = (rows @ fresh.T).relu()
    with torch.no_grad():
        step = len(rows) // MAX_SAMPLES | 1
        M = (rows[::step] @ own.T).relu().T @ phi[::step]
        U, _, Vh = torch.linalg.svd(M, full_matrices=False)
        A = math.sqrt(n / len(fresh)) * U @ Vh
    return (phi @ A.T).view(len(z), *z.shape[2:], n).movedim(-1, 1)


def resampling(threads: int, N: int, channels: int, n: int, r: int, side: int, width: int) -> Race:
    torch.manual_seed(0)
    layer = RainbowConv2d(channels, n, 3, r, seed=1, padding=1)
    W = layer.projection.weight
    model = resample(layer, width, seed=SEED, max_samples=MAX_SAMPLES)
    start = model.key
    x = torch.randn(N, channels, side, side, generator=torch.Generator().manual_seed(2))
    above = torch.randn(N, n, side, side, generator=torch.Generator().manual_seed(3))
    own, fresh = (
        rf.gaussian(rows, r, seed=seed, dtype=torch.float64) for rows, seed in ((n, layer.features.key), (width, SEED))
    )
    single = own.float(), fresh.float()

    def ours() -> Tensor:
        model.key = start
        with torch.enable_grad():
            return torch.autograd.grad(model(x), W, above)[0]

    def plain(x: Tensor, W: Tensor, own: Tensor, fresh: Tensor) -> Tensor:
        with torch.enable_grad():
            return torch.autograd.grad(phih(F.conv2d(x, W, padding=1), own, fresh), W, above.to(x.dtype))[0]

    exact: list[Tensor] = []

    def error(got: Tensor) -> float:
        if not exact:  # computed once, at the first check
            exact.append(plain(x.double(), W.detach().double().requires_grad_(), own, fresh))
        return relative(got, exact[0])

    candidates = {
        OURS: Candidate(ours, error),
        PLAIN: Candidate(lambda: plain(x, W, single[0], torch.randn(width, r).copy_(single[1])), error),  # with our G'
    }
    flops = 2.0 * N * side**2 * (9 * channels * r * 2 + 3 * (width * r + n * width)) + 2.0 * MAX_SAMPLES * n * width
    job = f"resampled RainbowConv2d, N {N}, {side} x {side}, in {channels}, out {n}, rank {r}, {width} fresh neurons"
    return Race(job, candidates, Floor({"f32": flops}), threads=threads, variant=threads == 1, slack=1e-2)


bench_resampling = entries(resampling, [(threads, *SIZES) for threads in (2, 1)], (OURS, PLAIN))
