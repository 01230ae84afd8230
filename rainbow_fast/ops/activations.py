# SPDX-License-Identifier: BSD-3-Clause
"""The pointwise non-linearities of the kernels and their derivatives, in plain PyTorch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _gelu_derivative(s: Tensor) -> Tensor:
    return torch.special.ndtr(s) + s * torch.exp(-0.5 * s * s) / math.sqrt(2 * math.pi)


def _silu_derivative(s: Tensor) -> Tensor:
    t = torch.sigmoid(s)
    return t * (1 + s * (1 - t))


# name -> (function, derivative); both take (s, negative_slope). Same order as enum Activation in csrc/kernels.h.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "identity": (lambda s, _: s, lambda s, _: torch.ones_like(s)),
    "relu": (lambda s, _: s.relu(), lambda s, _: (s > 0).to(s.dtype)),
    "abs": (lambda s, _: s.abs(), lambda s, _: s.sign()),
    "leaky_relu": (lambda s, a: torch.where(s > 0, s, a * s), lambda s, a: torch.where(s > 0, torch.ones_like(s), a)),
    "tanh": (lambda s, _: s.tanh(), lambda s, _: 1 - s.tanh() ** 2),
    "erf": (lambda s, _: s.erf(), lambda s, _: 2 / math.sqrt(math.pi) * torch.exp(-s * s)),
    "gelu": (lambda s, _: torch.nn.functional.gelu(s), lambda s, _: _gelu_derivative(s)),
    "silu": (lambda s, _: torch.nn.functional.silu(s), lambda s, _: _silu_derivative(s)),
    "sign": (lambda s, _: s.sign(), lambda s, _: torch.zeros_like(s)),
    "step": (lambda s, _: (s > 0).to(s.dtype), lambda s, _: torch.zeros_like(s)),
    "cos": (lambda s, _: s.cos(), lambda s, _: -s.sin()),
}
CODE = {name: code for code, name in enumerate(ACTIVATIONS)}
HOMOGENEOUS = ("identity", "relu", "abs", "leaky_relu")  # sigma(c s) = c sigma(s) for c > 0
MODULUS = "modulus"  # of complex numbers, in random_features and its fused ops; a kernel applies it to two products


def modulus(s: Tensor) -> Tensor:
    """|s| of pairs (..., 2), whose squares may be out of range. The gradient at 0 is 0."""
    size = s.detach().abs().amax(-1)
    size = size.masked_fill((size == 0) | size.isinf(), 1)
    square = (s / size.unsqueeze(-1)).square().sum(-1)
    zero = square == 0
    return size * square.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def modulus_gradient(s: Tensor) -> Tensor:
    """s / |s| of pairs (..., 2), which is 0 where |s| is."""
    size = modulus(s).unsqueeze(-1)
    return s / size.masked_fill(size == 0, 1)
