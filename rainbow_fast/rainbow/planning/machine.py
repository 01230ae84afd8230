# SPDX-License-Identifier: BSD-3-Clause
"""The rates of a machine that limit a sampling run, measured with the operations of its passes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from rainbow_fast.ops.polar import RTOL, polar, polar_flops
from rainbow_fast.ops.random_features import random_features, random_features_covariance, random_features_projection
from rainbow_fast.ops.random_features_flops import random_features_covariance_flops, random_features_projection_flops


@dataclass(frozen=True)
class Machine:
    """The rates of a machine: work per second, with torch's number of threads.

    Attributes:
        kernels: flops of this package's products in the network's dtype: fused passes and covariances.
        activations: features that the fused passes activate, counted separately from their products.
        layers: flops of the products of layers: by this package's kernels, or by torch's in half precision.
        polar: flops of `polar`, as counted by `polar_flops`.
        float64: flops of torch's other float64 algebra: products and Cholesky factors.
        pooling: numbers that torch's max-pooling reads, counted once for each window.
        copy: bytes that an elementwise step reads and writes, into new memory.

    Raises:
        ValueError: a rate is not a finite number above 0.
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
        precision: str | None = None,
    ) -> Machine:
        """Measure the rates of this machine, in about half a second.

        Args:
            dtype: of the network; default torch.float32.
            activation: of the network; default "relu"; None for an activation without fused kernels.
            clock: returns the time in seconds. With one thread, `time.process_time` does not count the time that other
                processes use.
            precision: of float32 products; None (default) for that of torch's own products.
        """
        source, activation = torch.Generator("cpu").manual_seed(0), activation or "identity"
        wide = torch.promote_types(dtype, torch.float32)  # features of half precision are computed in float32

        def seconds(run: Callable[[], object]) -> float:
            """The shortest time of at least three rounds and 0.02 s in all, after one round that is not counted."""
            run()
            taken: list[float] = []
            while len(taken) < 3 or sum(taken) < 0.02:
                start = clock()
                run()
                taken.append(clock() - start)
            return min(taken)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=source, dtype=torch.float64, device="cpu").to(dtype)

        def fused(N: int, d: int, n: int) -> tuple[int, int, float]:
            """Flops, features and seconds of the two fused passes over N samples, with d = r channels and n neurons."""
            x, A = normal(N, d).to(wide), normal(d, n).to(wide)
            how: dict[str, Any] = {"activation": activation, "seed": 0, "precision": precision}
            taken = seconds(lambda: random_features_covariance(x, x, n, **how))
            taken += seconds(lambda: random_features_projection(x, A, **how))
            flops = random_features_covariance_flops(x.shape, x.shape, n)
            return flops + random_features_projection_flops(x.shape, [A.shape]), 2 * N * n, taken

        N, d = 1024, 256
        flops, features, large = fused(N, d, 1536)
        few_flops, many_features, small = fused(N, 4, 2048)  # the time is mostly that of activations
        per_flop = (large * many_features - small * features) / (flops * many_features - few_flops * features)
        per_feature = (small - few_flops * per_flop) / many_features
        if per_flop <= 0 or per_feature <= 0:  # a disturbed measurement: use one pass for each rate
            per_flop, per_feature = large / flops, small / many_features
        x, W = normal(N, d), normal(2 * d, d)
        product = (  # as layers are computed, see `wide_layer.product_of`
            (lambda: x @ W.T)
            if dtype != wide
            else (lambda: random_features(x, 2 * d, G=W, activation="identity", precision=precision))
        )
        layers = 4 * N * d * d / seconds(product)
        accuracy = None if dtype == torch.float64 else "float32"
        M = normal(d, 4 * d).double() / torch.arange(1, d + 1, device="cpu").pow(3).unsqueeze(1)  # condition number 1e7
        polar_rate = polar_flops(M.shape) / seconds(lambda: polar(M, rtol=RTOL, accuracy=accuracy))
        S = M @ M.T + torch.eye(d, dtype=torch.float64, device="cpu")
        float64 = (2 + 1 / 3) * d**3 / seconds(lambda: torch.linalg.cholesky(S @ S.T))
        maps = normal(16, 32, 32, 32)
        pooling = maps.numel() / seconds(lambda: nn.functional.max_pool2d(maps, 2))
        numbers = torch.ones(2**24 // dtype.itemsize, dtype=dtype, device="cpu")
        copy = 2 * numbers.nbytes / seconds(lambda: numbers * 2)
        return cls(1 / per_flop, 1 / per_feature, layers, polar_rate, float64, pooling, copy)
