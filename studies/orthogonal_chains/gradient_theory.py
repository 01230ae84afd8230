# SPDX-License-Identifier: BSD-3-Clause
"""What theory says of gradients in networks with a norm over samples, before training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from rainbow_fast.infinite_width import KernelMap
from rainbow_fast.random_networks.chain_theory import contraction
from studies.orthogonal_chains.normed_network import ACTIVATIONS, Kind


@dataclass(frozen=True)
class Growth:
    """The growth of the gradient of a kind of networks, which is computed once."""

    theory_of: str
    depths: list[int]


def haar_gradient(H: Tensor, y: Tensor, last: Tensor, depth: int) -> float:
    r"""``sqrt(E |grad of the loss by W_1|^2)`` of linear layers with the plain norm and Haar weights, n = d.

    The samples after layer 0 are orthogonal and of one length, and so they are after every layer. Let R be the product
    (d, d) of the gradient of the loss by the last activations and these, A and S its antisymmetric and its symmetric
    part, S without its trace. A norm takes the diagonal off, and a Haar weight conjugates what is left. A has no
    diagonal in any basis, and of S the part ``d / (d + 2)`` is left on average, so that

        E |grad|^2 = |A|^2 + (d / (d + 2))^(depth - 1) |S|^2.

    So the gradient stays bounded at any depth.

    Args:
        H: the last activations, (n, d) float64 with n = d.
        y: labels.
        last: weights of the outputs, (classes, d).
        depth: number of layers, at least 2.
    """
    R = torch.func.grad(lambda h: F.cross_entropy(h @ last.mT, y))(H).mT @ H
    d = len(R)
    antisymmetric, symmetric = (R - R.mT) / 2, (R + R.mT) / 2
    symmetric = symmetric - R.trace() / d * torch.eye(d, dtype=R.dtype, device=R.device)
    left = contraction(d) ** (depth - 1)
    return math.sqrt(float(antisymmetric.square().sum() + left * symmetric.square().sum()))


def growth(kind: Kind, depths: Sequence[int]) -> list[float]:
    r"""The logarithm of the gradient by W_1 at each depth, less that at the first one, for orthogonal samples.

    For wide layers and many more units than samples, a layer of size a multiplies the squared gradient by ``a^2
    E[f'(a X)^2] / E[f(a X)^2]``, with X standard normal, and the last activations, and so the gradients by them, have
    the size of the last gain.
    """
    sizes = {kind.size(number) for number in range(depths[0], depths[-1])}
    maps = {size: KernelMap(ACTIVATIONS[kind.activation], size=size) for size in sizes}
    total, logs = 0.0, []
    for before, depth in pairwise([depths[0], *depths]):
        layers = [maps[kind.size(number)] for number in range(before, depth)]
        total += sum(math.log(layer.slope_at_1 / layer.power) / 2 for layer in layers)
        logs.append(total + math.log(kind.size(depth - 1) / kind.size(depths[0] - 1)))
    return logs


def gaussian_growth(samples: int) -> float:
    """``log((n - 1) / (n - 2)) / 2``: growth of the log gradient a layer, linear, Gaussian weights, width infinite.

    It is ``E[n / chi_n^2]`` of the norm, less the direction that it takes off, for orthogonal samples.
    """
    return math.log((samples - 1) / (samples - 2)) / 2
