# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance on maps read in place and on plain samples, against einsum and the published codes' way."""

import torch
from floor import Floor
from race import OURS, PLAIN, PUBLISHED, Candidate, Race, entries, relative
from torch import Tensor

import rainbow_fast as rf

BATCHED, DOUBLE = "torch, bmm by image", "torch, float64"


def samples_last(x: Tensor) -> Tensor:
    """(N, d, *space) -> (N S, d), copied, as the published codes do."""
    return x.flatten(2).permute(0, 2, 1).reshape(-1, x.shape[1]) if x.dim() > 2 else x


def published(x: Tensor, y: Tensor, batch: int = 128) -> Tensor:
    """A running sum in the dtype of the data, a batch at a time."""
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


def cross_covariance(dtype: str, *shape: int) -> Race:
    source = torch.Generator().manual_seed(0)
    x, y = (torch.randn(shape, generator=source).relu_().to(getattr(torch, dtype)) for _ in "xy")
    exact = plain(x.double(), y.double())
    ways = {
        OURS: lambda: rf.cross_covariance(x, y),
        PLAIN: lambda: plain(x, y),
        PUBLISHED: lambda: published(x, y),
        DOUBLE: lambda: plain(x.double(), y.double()),
    }
    if x.dim() > 2:
        ways[BATCHED] = lambda: batched(x, y)
    flops = 2.0 * x.numel() * shape[1]
    return Race(
        f"cross_covariance {dtype} {list(shape)}",
        {name: Candidate(way, lambda M: relative(M, exact)) for name, way in ways.items()},
        Floor({"bf16" if dtype == "bfloat16" else "f32": flops}, bytes=2 * x.numel() * x.element_size()),
    )


MAPS = [("float32", 128, 64, 32, 32), ("float32", 32, 512, 16, 16)]
bench_maps = entries(
    cross_covariance, [*MAPS, ("bfloat16", 32, 512, 16, 16)], (OURS, PLAIN, PUBLISHED, BATCHED, DOUBLE)
)
bench_samples = entries(cross_covariance, [("float32", 20_000, 512)], (OURS, PLAIN, PUBLISHED, DOUBLE))
