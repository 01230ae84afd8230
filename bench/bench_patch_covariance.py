# SPDX-License-Identifier: BSD-3-Clause
"""cross_covariance of patches by shifts, against products of an im2col: plain, in float64, and by our own kernel.

Rivals are both im2cols, multiplied as the gradient of the weights of a convolution, and an im2col of one side only,
with a kernel of the convolution as large as the patch. The second is faster with 64 channels, the first with 256.
"""

import torch
from convolutions import covariance_of_maps
from floor import Floor
from race import OURS, PLAIN, Candidate, Race, entries, relative
from torch import Tensor
from torch.nn.functional import unfold
from torch.nn.grad import conv2d_weight

import rainbow_fast as rf

UNFOLDED, DOUBLE = "rainbow_fast, of unfolded", "torch, float64"
BOTH, ONE = "torch, both sides unfolded", "torch, one side unfolded"


def plain(x: Tensor, y: Tensor | None, k: int) -> Tensor:
    a, b = (unfold(t, k, padding=k // 2).movedim(1, 0).flatten(1) for t in (x, x if y is None else y))
    return a @ b.T


def patches(x: Tensor, k: int) -> Tensor:
    """Maps (N, d k^2, H, W) whose channels are the patches of x."""
    return unfold(x, k, padding=k // 2).view(len(x), -1, *x.shape[2:])


def both(x: Tensor, y: Tensor | None, k: int) -> Tensor:
    a = patches(x, k)
    return covariance_of_maps(a, a if y is None else patches(y, k))


def one(x: Tensor, y: Tensor | None, k: int, images: int = 4) -> Tensor:
    """Sums over a few images at a time, to lose less to rounding."""
    y = x if y is None else y
    total = torch.zeros(x.shape[1] * k * k, y.shape[1] * k * k)
    for a, b in zip(x.split(images), y.split(images), strict=True):
        columns = patches(a, k)
        total += conv2d_weight(b, (columns.shape[1], b.shape[1], k, k), columns, padding=k // 2).flatten(1)
    return total


def unfolded(x: Tensor, y: Tensor | None, k: int) -> Tensor:
    """The algebra of an im2col with our arithmetic. Plain torch over this is the gain of the arithmetic."""
    a, *b = (unfold(t, k, padding=k // 2) for t in (x, y) if t is not None)
    return rf.cross_covariance(a, b[0] if b else None)


def patch_covariance(of: str, k: int, *shape: int) -> Race:
    source = torch.Generator().manual_seed(0)
    x, other = (torch.randn(shape, generator=source).relu_() for _ in "xy")
    y = other if of == "cross" else None
    exact = plain(x.double(), None if y is None else y.double(), k)
    ways = {
        OURS: lambda: rf.cross_covariance(x, y, patch=k),
        PLAIN: lambda: plain(x, y, k),
        BOTH: lambda: both(x, y, k),
        ONE: lambda: one(x, y, k),
        UNFOLDED: lambda: unfolded(x, y, k),
        DOUBLE: lambda: plain(x.double(), None if y is None else y.double(), k),
    }
    # Pairs of positions that stay inside the map, summed over all shifts along lines and along columns.
    lines, columns = (sum(max(0, size - abs(shift)) for shift in range(1 - k, k)) for size in shape[2:])
    flops = 2.0 * shape[0] * shape[1] ** 2 * lines * columns / (1 if of == "cross" else 2)
    return Race(
        f"patch_covariance {of} k={k} {list(shape)}",
        {name: Candidate(way, lambda M: relative(M, exact), part=name == UNFOLDED) for name, way in ways.items()},
        Floor({"f32": flops}),
        rounds=3,
    )


MAPS = (32, 64, 32, 32)
CASES = [("cross", 3, *MAPS), ("self", 3, *MAPS), ("cross", 5, *MAPS), ("cross", 3, 32, 256, 14, 14)]
bench_patches = entries(patch_covariance, CASES, (OURS, PLAIN, BOTH, ONE, UNFOLDED, DOUBLE))
