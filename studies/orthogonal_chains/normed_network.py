# SPDX-License-Identifier: BSD-3-Clause
"""Perceptrons with a norm over samples in every layer: the laws of their weights, and their layers.

A network of depth L has L layers of linear step, norm and activation, and a linear step to ten outputs. Layers count
from 0, and layer 0 takes the pixels. With a gain, layer l has the activation ``t -> activation((l + 1)^-0.4 t)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rainbow_fast.ops.gaussian import gaussian
from rainbow_fast.ops.polar import polar
from rainbow_fast.random_networks.chain_layer import RandomLayer
from rainbow_fast.random_networks.gaussian_layer import layer_keys

CLASSES = 10
EXPONENT = -0.4  # of the published gain
LAWS = ("Haar", "Gaussian")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"identity": lambda t: t, "tanh": torch.tanh, "sin": torch.sin}
NORMS = {"plain": "batch", "torch": "batch_standard"}


@dataclass(frozen=True)
class Kind:
    """What the layers of a network do beside their weights.

    Attributes:
        activation: a name of `ACTIVATIONS`.
        gain: whether activations have the published gain.
        norm: ``"torch"``, torch's batch norm without parameters, or ``"plain"``, which only scales each unit to mean
            square 1 over the samples.
    """

    activation: str = "identity"
    gain: bool = False
    norm: str = "torch"

    def size(self, number: int) -> float:
        """The gain of layer `number`."""
        return (number + 1) ** EXPONENT if self.gain else 1.0

    def apply(self, number: int, H: Tensor, W: Tensor) -> Tensor:
        """Layer `number` of a batch H (*, n, d_in) with weights W (*, d, d_in): (*, n, d)."""
        # the plain norm of chains gives units length 1
        scale = self.size(number) * (math.sqrt(H.shape[-2]) if self.norm == "plain" else 1.0)
        activation = ACTIVATIONS[self.activation]
        return RandomLayer(lambda t: activation(scale * t), NORMS[self.norm])(H, lambda batch: batch @ W.mT)


class Weights(NamedTuple):
    """The weights of a network of depth L, float64."""

    first: Tensor  # (d, pixels)
    hidden: Tensor  # (L - 1, d, d)
    last: Tensor  # (CLASSES, d)


def draw(law: str, pixels: int, width: int, depth: int, seed: int) -> Weights:
    """Random weights: those of a smaller depth are the first of a larger one.

    ``"Haar"`` are uniform matrices with orthonormal rows or columns, ``"Gaussian"`` independent entries N(0, 1 / d_in).
    """
    first, last = _matrices(law, width, pixels, [0], seed)[0], _matrices(law, CLASSES, width, [1], seed)[0]
    return Weights(first, _matrices(law, width, width, range(2, depth + 1), seed), last)


def _matrices(law: str, rows: int, columns: int, numbers: Sequence[int], seed: int) -> Tensor:
    keys = torch.cat([layer_keys(1, seed, number) for number in numbers])
    G = gaussian(rows, columns, seed=keys, dtype=torch.float64)
    return polar(G).A if law == "Haar" else G / math.sqrt(columns)
