# SPDX-License-Identifier: BSD-3-Clause
"""The rates of the machine that a sampling run is limited by, measured on the very operations of its passes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import nn

from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.ops.polar import polar
from rainbow_fast.ops.random_features import random_features_covariance, random_features_projection

# polar of a (d, n) matrix, d <= n, in float64, of condition 1e6 to 1e8 as cross-covariances are: three stages. d^2 n: a
# Gram matrix (1) and a product (2) in each, a Newton-Schulz step (1 + 2). d^3: three inverses in each, four and three
# products more in the last, which reach about two thirds of a long product's rate.
POLAR_LONG, POLAR_SHORT = 12, 24
ENOUGH = 0.02  # seconds of each measurement


@dataclass(frozen=True)
class Machine:
    """What a machine does in a second, on as many threads as torch has.

    Attributes:
        kernels: flops of the package's own products in the network's dtype: fused passes, covariances.
        activations: features that the fused passes activate, beside their products.
        layers: flops of torch's products in that dtype: the reference's own layers.
        polar: flops of `polar`, as `polar_flops` counts them.
        float64: flops of torch's other float64 algebra: products and Cholesky factors.
        pooling: numbers that torch's max-pooling reads, each once a window.
        copy: bytes, read and written, of an elementwise step into new memory.

    Raises:
        ValueError: a rate that is no finite number above 0.
    """

    kernels: float
    activations: float
    layers: float
    polar: float
    float64: float
    pooling: float
    copy: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{field.name}={value!r}: wanted a finite number above 0")

    @classmethod
    def measure(
        cls,
        dtype: torch.dtype = torch.float32,
        activation: str | None = "relu",
        clock: Callable[[], float] = time.perf_counter,
    ) -> Machine:
        """The rates of this machine now, in about half a second.

        Args:
            dtype, activation: of the network; None for an activation without fused kernels.
            clock: gives the time in seconds; `time.process_time` leaves out what other work takes, with one thread.
        """
        source, activation = torch.Generator("cpu").manual_seed(0), activation or "identity"

        def seconds(run: Callable[[], object]) -> float:
            """The least of at least three rounds, after one that is not counted."""
            run()
            taken: list[float] = []
            while len(taken) < 3 or sum(taken) < ENOUGH:
                start = clock()
                run()
                taken.append(clock() - start)
            return min(taken)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=source, dtype=torch.float64, device="cpu").to(dtype)

        def fused(N: int, d: int, n: int) -> float:
            """Seconds of the two passes over N samples, d = r channels and n neurons."""
            x, A = normal(N, d), normal(d, n)
            moments = seconds(lambda: random_features_covariance(x, x, n, activation=activation, seed=0))
            return moments + seconds(lambda: random_features_projection(x, A, activation=activation, seed=0))

        N, d, n = 1024, 256, 1536
        few, wide = 4, 2048  # channels and neurons of a pass that is nearly all activation
        large, small = fused(N, d, n), fused(N, few, wide)
        # Of two passes each: large = 2 (4 N d n / kernels + N n / activations), small alike, solved for the two rates.
        per_flop = (large / (N * n) - small / (N * wide)) / (8 * (d - few))
        per_feature = small / (2 * N * wide) - 4 * few * per_flop
        if per_flop <= 0 or per_feature <= 0:  # a disturbed measurement: all time to either
            per_flop, per_feature = large / (8 * N * d * n), small / (2 * N * wide)
        x, W = normal(N, d), normal(2 * d, d)
        layers = 4 * N * d * d / seconds(lambda: x @ W.T)
        M = _correlation(d, 4 * d)
        polar_rate = polar_flops(*M.shape) / seconds(lambda: polar(M, rtol=1e-10))
        S = 2 * M @ M.T
        S.diagonal().add_(1)
        float64 = (2 + 1 / 3) * d**3 / seconds(lambda: torch.linalg.cholesky(S @ S.T))
        maps = normal(16, 32, 32, 32)
        pooling = maps.numel() / seconds(lambda: nn.functional.max_pool2d(maps, 2))
        numbers = torch.ones(2**24 // dtype.itemsize, dtype=dtype, device="cpu")
        copy = 2 * numbers.nbytes / seconds(lambda: numbers * 2)
        return cls(1 / per_flop, 1 / per_feature, layers, polar_rate, float64, pooling, copy)


def polar_flops(d: int, n: int) -> float:
    """Of `rainbow_fast.polar` on a (d, n) matrix, in units of its float64 products."""
    short, long = min(d, n), max(d, n)
    return POLAR_LONG * short**2 * long + POLAR_SHORT * short**3


def _correlation(d: int, n: int) -> torch.Tensor:
    """A (d, n) float64 matrix of condition d^3, about 1e7."""
    left, right = (torch.linalg.qr(gaussian(m, d, seed=0, stream=m).double()).Q for m in (d, n))
    return left * torch.arange(1, d + 1, device="cpu").double().pow(-3) @ right.T
