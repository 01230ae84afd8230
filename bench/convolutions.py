# SPDX-License-Identifier: BSD-3-Clause
"""float32 products in plain torch by way of its convolutions, the best plain torch on many CPUs.

torch computes `a @ b` in MKL, which takes vectors of 256 bits on CPUs of AMD, and convolutions in oneDNN, which takes
the widest vectors of any CPU. A 1 x 1 convolution is the product of pixels and weights, and the gradient of its weights
is the covariance of two maps. Both read images in the order (N, H, W, channels), which is that of a matrix of samples.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

IMAGES = 16  # the fewest for which torch takes oneDNN on one thread


def images(x: Tensor) -> Tensor:
    """(N, d) as `IMAGES` images of one line with d channels, without a copy. `IMAGES` must divide N."""
    return x.view(IMAGES, 1, len(x) // IMAGES, x.shape[1]).permute(0, 3, 1, 2)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for a (N, d) and b (d, m); a as in `images`."""
    out = F.conv2d(images(a), b.T.reshape(*b.T.shape, 1, 1))
    return out.permute(0, 2, 3, 1).reshape(len(a), b.shape[1])


def covariance_of_maps(x: Tensor, y: Tensor) -> Tensor:
    """The sum of x[n, :, p] y[n, :, p]^T over images n and pixels p, for maps (N, d, H, W) and (N, m, H, W)."""
    return conv2d_weight(y, (x.shape[1], y.shape[1], 1, 1), x)[:, :, 0, 0]


def covariance(x: Tensor, y: Tensor) -> Tensor:
    """x^T y for samples (N, d) and (N, m), as in `images`."""
    return covariance_of_maps(images(x), images(y))


def second_moments(parts: Iterable[Tensor]) -> Tensor:
    """The sum of x[n, :, p] x[n, :, p]^T for maps x that come in parts of some channels, in their order.

    The blocks below the diagonal are copies of those above it.
    """
    blocks = []
    rows = []
    for part in parts:
        blocks.append(part.contiguous(memory_format=torch.channels_last))
        rows.append([covariance_of_maps(block, blocks[-1]) for block in blocks])
    whole = [[rows[max(i, j)][min(i, j)] for j in range(len(rows))] for i in range(len(rows))]
    return torch.cat([torch.cat([b.T if j < i else b for j, b in enumerate(line)], 1) for i, line in enumerate(whole)])
