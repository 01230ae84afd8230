# SPDX-License-Identifier: BSD-3-Clause
"""Lyapunov exponents of products of Gaussian matrices: ours, and torch.randn with torch.linalg.qr in every layer.

All exponents of width 512, where frames take longer than products, and 16 of width 10,000, where drawing the weights
takes longest. In float64 ours computes a frame for every fourth layer, as far as rounding allows; the best plain torch
does so too. In float32 it computes one in every layer. The error is that of the exponents, against float64 with the
same weights. It is far below the standard deviation of the estimates.
"""

import functools
from collections.abc import Callable

import torch
from draws import normal
from floor import Floor
from race import BEST, OURS, PLAIN, Candidate, Race, entries, relative
from torch import Tensor

import rainbow_fast as rf
from rainbow_fast.random_networks import longest_stretch, lyapunov_estimate

Weights = list[Callable[[], Tensor]]  # for each layer, a function that draws its weights


def by_frames(d: int, k: int, weights: Weights, every: int, dtype: torch.dtype) -> Tensor:
    """The exponents, with a frame for every `every` layers; each function draws the weights of a layer."""
    Q = torch.eye(d, k, dtype=dtype)
    sums = torch.zeros(k, dtype=torch.float64)
    for layer, draw in enumerate(weights, start=1):
        Q = draw() @ Q
        if layer % every == 0 or layer == len(weights):
            Q, R = torch.linalg.qr(Q)
            sums += R.diagonal().abs().double().log()
    return sums / len(weights)


def exponents(d: int, k: int, layers: int, dtype_name: str) -> Race:
    dtype = getattr(torch, dtype_name)
    every = min(4, longest_stretch(d, k, dtype), layers) if dtype == torch.float64 else 1
    source = torch.Generator()

    def drawn() -> Weights:
        source.manual_seed(1)
        return [lambda: torch.randn(d, d, dtype=dtype, generator=source)] * layers

    def fast() -> Weights:
        return [lambda: normal(d, d).to(dtype)] * layers  # the same numbers in every layer, for time is what counts

    def generated() -> Weights:
        return [functools.partial(rf.gaussian, d, d, seed=1, stream=layer) for layer in range(layers)]

    @functools.cache
    def exact(draw: Callable[[], Weights]) -> Tensor:
        """In float64, a frame for every layer; products by blocks of rows."""

        return by_frames(d, k, [lambda each=each: Blocks(each()) for each in draw()], 1, torch.float64)

    def error(draw: Callable[[], Weights]) -> Callable[[Tensor], float]:
        return lambda result: relative(result, exact(draw))

    candidates = {
        OURS: Candidate(
            lambda: lyapunov_estimate(d, layers, k, seed=1, every=every, dtype=dtype).exponents[0], error(generated)
        ),
        PLAIN: Candidate(lambda: by_frames(d, k, drawn(), 1, dtype), error(drawn)),
        BEST: Candidate(lambda: by_frames(d, k, fast(), every, dtype), error(fast)),
    }
    flops = layers * 2.0 * d**2 * k + layers / every * 4.0 * (d - k / 3) * k**2
    kind = "f64" if dtype == torch.float64 else "f32"
    return Race(
        f"Lyapunov exponents {dtype_name} d {d:,}, k {k}, {layers} layers", candidates, Floor({kind: flops}), rounds=3,
        slack=1e-6,
    )  # fmt: skip


class Blocks:
    """A float32 or float64 matrix whose products with float64 ones are computed by blocks of rows, in float64."""

    def __init__(self, W: Tensor) -> None:
        self.W = W

    def __matmul__(self, Q: Tensor) -> Tensor:
        return torch.cat([rows.double() @ Q for rows in self.W.split(1000)])


cases = [(512, 512, 4, "float64"), (512, 512, 4, "float32"), (10_000, 16, 2, "float32")]
bench_lyapunov = entries(exponents, cases, (OURS, PLAIN, BEST))
