# SPDX-License-Identifier: BSD-3-Clause
"""The non-linearities of the kernels as modules."""

from __future__ import annotations

from torch import Tensor, nn

from rainbow_fast.ops.activations import ACTIVATIONS

MODULES = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class Activation(nn.Module):
    """A non-linearity of `rainbow_fast.random_features` that torch has no module of.

    Args:
        name: one of ``abs erf sign step cos``.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, s: Tensor) -> Tensor:
        return ACTIVATIONS[self.name][0](s, 0.0)

    def extra_repr(self) -> str:
        return self.name


def activation_module(name: str, negative_slope: float) -> nn.Module:
    """The module of a non-linearity of the kernels: torch's own class if there is one."""
    if name not in MODULES:
        return Activation(name)
    return nn.LeakyReLU(negative_slope) if name == "leaky_relu" else MODULES[name]()
