# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance on maps read in place and on plain samples, against einsum and the published codes' way.

The best plain torch depends on the channels and on the CPU: products image by image, in one call of bmm or in a loop
that stays in the cache, or the gradient of the weights of a convolution (see `convolutions.py`).
"""

from collections.abc import Callable

import torch
from convolutions import covariance, covariance_of_maps, second_moments
from floor import Floor
from race import AVX2, BEST, OURS, PLAIN, PUBLISHED, Candidate, Race, entries, relative, with_avx2
from torch import Tensor

import rainbow_fast as rf

BATCHED, LOOP, CONVOLUTION = "torch, bmm by image", "torch, image by image", "torch, as a convolution"
DOUBLE, COPIED, TWO = "torch, float64", "rainbow_fast, of copies", "rainbow_fast, two sides"
BARE, EACH = "rainbow_fast, no activation", "rainbow_fast, one by one"
PARTS = {AVX2, COPIED, TWO, BARE, EACH}  # they show where a gain comes from


def samples_last(x: Tensor) -> Tensor:
    """(N, d, *space) to (N S, d), as a copy, as the published codes do."""
    return x.flatten(2).permute(0, 2, 1).reshape(-1, x.shape[1]) if x.dim() > 2 else x


def published(x: Tensor, y: Tensor, batch: int = 128) -> Tensor:
    """A running sum in the dtype of the data, over one batch at a time."""
    total = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype)
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        total += samples_last(a).T @ samples_last(b)
    return total


def plain(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype == torch.bfloat16:
        x, y = x.float(), y.float()
    return x.T @ y if x.dim() == 2 else torch.einsum("nds,nms->dm", x.flatten(2), y.flatten(2))


def batched(x: Tensor, y: Tensor) -> Tensor:
    return torch.bmm(x.flatten(2), y.flatten(2).mT).sum(0)


def image_by_image(x: Tensor, y: Tensor, sigma: Callable[[Tensor], Tensor], tau: Callable[[Tensor], Tensor]) -> Tensor:
    """Sums of sigma(x) tau(y)^T, whose factors stay in the cache."""
    total = torch.zeros(x.shape[1], y.shape[1])
    for a, b in zip(x.flatten(2), y.flatten(2), strict=True):
        total.addmm_(sigma(a), tau(b).T)
    return total


def draw(seed: int, dtype: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu_().to(getattr(torch, dtype))


def race(job: str, ways: dict, exact: Tensor, x: Tensor, columns: int, share: float = 1.0) -> Race:
    """A race whose floor is `share` of the products of x with `columns` columns, with each side read once."""
    flops = 2.0 * x.numel() * columns * share
    size = x.numel() * x.element_size() * (1 + columns / x.shape[1] if share == 1 else 1)
    return Race(
        f"cross_covariance {job}",
        {name: Candidate(way, lambda M: relative(M, exact), name in PARTS) for name, way in ways.items()},
        Floor({"bf16" if x.dtype == torch.bfloat16 else "f32": flops}, bytes=size),
    )


def two_sides(dtype: str, *shape: int) -> Race:
    x, y = draw(0, dtype, *shape), draw(1, dtype, *shape)
    ways = {
        OURS: lambda: rf.cross_covariance(x, y),
        PLAIN: lambda: plain(x, y),
        PUBLISHED: lambda: published(x, y),
        DOUBLE: lambda: plain(x.double(), y.double()),
        AVX2: with_avx2(lambda: rf.cross_covariance(x, y)),
    }
    if x.dim() > 2:
        ways[BATCHED] = lambda: batched(x, y)
        ways[CONVOLUTION] = lambda: covariance_of_maps(x.float(), y.float())
        ways[COPIED] = lambda: rf.cross_covariance(samples_last(x), samples_last(y))
    else:
        ways[CONVOLUTION] = lambda: covariance(x, y)
    return race(f"{dtype} {list(shape)}", ways, plain(x.double(), y.double()), x, shape[1])


def one_side(*shape: int) -> Race:
    x = draw(0, "float32", *shape)
    ways = {
        OURS: lambda: rf.cross_covariance(x),
        PLAIN: lambda: plain(x, x),
        BATCHED: lambda: batched(x, x),
        CONVOLUTION: lambda: second_moments(x.split(128, 1)),
        TWO: lambda: rf.cross_covariance(x, x),
    }
    return race(f"of one side {list(shape)}", ways, plain(x.double(), x.double()), x, shape[1], 0.5)


def activated(*shape: int) -> Race:
    """Samples that relu does not change: one candidate goes without it. The floor counts the products."""
    x, y = draw(0, "float32", *shape), draw(1, "float32", *shape)
    ways = {
        OURS: lambda: rf.cross_covariance(x, y, activation="relu"),
        PLAIN: lambda: plain(x.relu(), y.relu()),
        LOOP: lambda: image_by_image(x, y, torch.relu, torch.relu),
        CONVOLUTION: lambda: covariance_of_maps(x.relu(), y.relu()),
        BARE: lambda: rf.cross_covariance(x, y),
    }
    return race(f"of relu {list(shape)}", ways, plain(x.double(), y.double()), x, shape[1])


def centered(*shape: int) -> Race:
    x, y = draw(0, "float32", *shape) + 1, draw(1, "float32", *shape) + 1

    def about(t: Tensor) -> Tensor:
        return t - t.mean((0, 2, 3), keepdim=True)

    def best() -> Tensor:
        a, b = (t.mean((0, 2, 3))[:, None] for t in (x, y))
        return image_by_image(x, y, lambda t: t - a, lambda t: t - b)

    ways = {
        OURS: lambda: rf.cross_covariance(x, y, center=True),
        PLAIN: lambda: plain(about(x), about(y)),
        BEST: best,
    }
    return race(f"about the mean {list(shape)}", ways, plain(about(x.double()), about(y.double())), x, shape[1])


def several(count: int, *shape: int) -> Race:
    x, *ys = (draw(seed, "float32", *shape) for seed in range(count + 1))
    ways = {
        OURS: lambda: torch.cat(rf.cross_covariance(x, ys), 1),
        PLAIN: lambda: torch.cat([plain(x, y) for y in ys], 1),
        BEST: lambda: torch.cat([batched(x, y) for y in ys], 1),
        EACH: lambda: torch.cat([rf.cross_covariance(x, y) for y in ys], 1),
    }
    exact = torch.cat([plain(x.double(), y.double()) for y in ys], 1)
    return race(f"with {count} sides {list(shape)}", ways, exact, x, count * shape[1])


def in_blocks(x: Tensor, y: Tensor, samples: int = 1000) -> Tensor:
    """Sums of some samples in float32, which are added in float64."""
    total = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64)
    for a, b in zip(x.split(samples), y.split(samples), strict=True):
        total += a.T @ b
    return total


def long_sum(C: int, N: int) -> Race:
    """Errors are the largest relative error of an entry. Plain torch is float64, the simple way to eight digits."""
    x, y = draw(0, "float32", N, C), draw(1, "float32", N, C)
    exact = plain(x.double(), y.double())
    ways = {
        OURS: lambda: rf.cross_covariance(x, y),
        DOUBLE: lambda: plain(x.double(), y.double()),
        BEST: lambda: in_blocks(x, y),
        "torch, float32": lambda: plain(x, y),
    }
    return Race(
        f"cross_covariance, long sum {[N, C]}",
        {name: Candidate(way, lambda M: float(((M - exact) / exact).abs().max())) for name, way in ways.items()},
        Floor({"f32": 2.0 * N * C * C}, bytes=8.0 * N * C),
        slack=1e-8 * (4e6 / N) ** 0.5,  # 1e-8 at four million samples: the error falls with the root of N
    )


MAPS = [("float32", 128, 64, 32, 32), ("float32", 32, 512, 16, 16)]
bench_maps = entries(two_sides, MAPS, (OURS, PLAIN, PUBLISHED, BATCHED, CONVOLUTION, COPIED, DOUBLE, AVX2))
bench_bfloat16 = entries(
    two_sides, [("bfloat16", 32, 512, 16, 16)], (OURS, PLAIN, PUBLISHED, BATCHED, CONVOLUTION, DOUBLE)
)
bench_samples = entries(two_sides, [("float32", 20_000, 512)], (OURS, PLAIN, PUBLISHED, CONVOLUTION, DOUBLE, AVX2))
SHAPES = [(128, 64, 32, 32), (32, 512, 16, 16)]
bench_one_side = entries(one_side, SHAPES, (OURS, PLAIN, BATCHED, CONVOLUTION, TWO))
bench_activated = entries(activated, SHAPES, (OURS, PLAIN, LOOP, CONVOLUTION, BARE))
bench_centered = entries(centered, [(128, 64, 32, 32)], (OURS, PLAIN, BEST))
bench_several = entries(several, [(4, 128, 64, 32, 32)], (OURS, PLAIN, BEST, EACH))
bench_long_sums = entries(long_sum, [(64, 4_000_000), (512, 262_144)], (OURS, DOUBLE, BEST, "torch, float32"))
