# SPDX-License-Identifier: BSD-3-Clause
"""Single layers with the weights of `init_orthogonal_`, and samples of known condition."""

import copy

import torch
from torch import Tensor, nn

from rainbow_fast import random_networks as rn

GENERATOR = torch.Generator().manual_seed(0)
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # identities of float64, for inputs of condition 1e3 and eigenvalues of 1e6


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR).to(dtype)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)


def scaled(n: int, d: int) -> Tensor:
    """Samples whose singular values fall to a thousandth, in directions that are no axes."""
    return random(n, d) * torch.logspace(0, -3, d).double() @ torch.linalg.qr(random(d, d))[0]


def initialised(layer: nn.Module, x: Tensor, **options: object) -> nn.Module:
    return rn.init_orthogonal_(copy.deepcopy(layer), x, **options)


def singular_values(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.linalg.svdvals(layer(x).detach())
