# SPDX-License-Identifier: BSD-3-Clause
"""Inputs at which non-linearities are tested, their exact values, and errors in units of the last place."""

import math
from functools import cache

import torch
from torch import Tensor

from rainbow_fast.ops.activations import ACTIVATIONS

SMALLEST, NORMAL, LARGEST = 2.0**-149, 2.0**-126, torch.finfo(torch.float32).max

INF, NAN = math.inf, math.nan
LIMITS = {  # at inf, -inf, NaN. As in PyTorch, 0 times an infinity is NaN, and a comparison with NaN is false.
    "identity": [INF, -INF, NAN],
    "relu": [INF, 0, NAN],
    "abs": [INF, INF, NAN],
    "leaky_relu": [INF, -INF, NAN],
    "tanh": [1, -1, NAN],
    "erf": [1, -1, NAN],
    "gelu": [INF, NAN, NAN],
    "silu": [INF, NAN, NAN],
    "sign": [1, -1, NAN],  # PyTorch gives 0; here a NaN is not lost
    "step": [1, 0, 0],
    "cos": [NAN, NAN, NAN],
}


def exact(x: Tensor, activation: str) -> Tensor:
    """The values in float64. PyTorch's gelu cancels in its left tail, so erfc is used here."""
    x = x.double()
    if activation == "gelu":
        return 0.5 * x * torch.special.erfc(-x / math.sqrt(2))
    # the kernel's slope is the float next to 0.01
    return ACTIVATIONS[activation][0](x, float(torch.tensor(0.01)))


def units(got: Tensor, wanted: Tensor) -> Tensor:
    """The error of float32 numbers, in units of the last place of the exact values."""
    exponent = torch.frexp(wanted)[1].clamp(min=-125) - 24  # subnormal numbers share one last place
    return (got.double() - wanted).abs() / torch.exp2(exponent.double())


@cache
def inputs() -> Tensor:
    codes = torch.arange(0, 2**31, 9973).to(torch.int32)  # floats of every exponent, subnormal ones included
    every = codes.view(torch.float32)
    every = every[every.isfinite()]
    ranges = [(-20.0, 20.0), (-1.0, 1.0), (-15.0, -5.0), (-120.0, -80.0), (-1e5, 1e5), (-(2.0**21), 2.0**21)]
    dense = [torch.linspace(low, high, 200_003) for low, high in ranges]
    edges = [
        0.0,
        -0.0,
        0.5,
        0.625,
        1.0,
        10.0,
        14.5,
        104.0,
        120.0,
        2.0**20,
        NORMAL,
        SMALLEST,
        NORMAL - SMALLEST,
        LARGEST,
    ]
    edge = torch.tensor([*edges, *(-e for e in edges)])
    around = torch.cat([edge, edge.nextafter(torch.tensor(0.0)), edge.nextafter(2 * edge)])
    return torch.cat([every, -every, *dense, around[around.isfinite()]])
