# SPDX-License-Identifier: BSD-3-Clause
"""Rainbow layers for tests, and their values with G as a tensor."""

import copy
import math

import torch
from torch import Tensor, nn

import rainbow_fast as rf
from rainbow_fast.nn import RainbowConv2d, RainbowLinear
from rainbow_fast.ops.activations import ACTIVATIONS

F64 = torch.float64
Layer = RainbowLinear | RainbowConv2d


def linear(rank: int = 5, n: int = 17, **options) -> RainbowLinear:
    torch.manual_seed(0)
    return biased(RainbowLinear(12, n, rank, seed=5, stream=2, **options))


def convolution(kernel_size: int | tuple[int, int] = 3, rank: int = 5, n: int = 17, **options) -> RainbowConv2d:
    torch.manual_seed(0)
    return biased(RainbowConv2d(3, n, kernel_size, rank, seed=5, stream=2, **options))


def biased(layer: Layer) -> Layer:
    if layer.projection.bias is not None:
        nn.init.normal_(layer.projection.bias)
    return layer


FEW = {  # layers that sample their weights for inputs of this shape
    "linear": (lambda **options: linear(12, 6, **options), (60, 12)),
    "tokens": (lambda **options: linear(12, 6, **options), (4, 15, 12)),
    "convolution": (lambda **options: convolution(3, 27, 6, padding=1, **options), (4, 3, 9, 8)),
}


def explicit(layer: Layer, x: Tensor) -> Tensor:
    """sigma(G (W x + b) / sqrt(r)) with G as a tensor, in the dtype of x."""
    r, n = layer.features.rank, layer.features.n
    G = rf.gaussian(n, r, seed=rf.key(5, 2, col_offset=2**33), dtype=F64).to(x.dtype)
    z = copy.deepcopy(layer.projection).to(x.dtype)(x)
    s = (z @ G.T if isinstance(layer, RainbowLinear) else torch.einsum("nr,brhw->bnhw", G, z)) / math.sqrt(r)
    return ACTIVATIONS[layer.features.activation][0](s, layer.features.negative_slope)
