# SPDX-License-Identifier: BSD-3-Clause
"""Training of deep networks with batch norm by plain stochastic gradient descent: what is trained, and its records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images
from rainbow_fast.rainbow.report import Record
from studies.orthogonal_chains.normed_network import Kind, draw


@dataclass(frozen=True)
class Setting:
    """Networks that are trained together, one for each seed: everything that their record depends on."""

    arm: str
    depth: int
    rate: float
    width: int  # and images of a batch
    images: int
    epochs: int
    seeds: int


ARMS = {
    "identity, Haar": ("Haar", Kind()),
    "tanh, gain, Haar": ("Haar", Kind("tanh", gain=True)),
    "sin, gain, Haar": ("Haar", Kind("sin", gain=True)),
    "tanh, Haar": ("Haar", Kind("tanh")),
    "identity, Gaussian": ("Gaussian", Kind()),
    "tanh, gain, Gaussian": ("Gaussian", Kind("tanh", gain=True)),
}


def settings(
    depths: Sequence[int], rates: Sequence[float], width: int, images: int, epochs: int, seeds: int
) -> list[Setting]:
    """All networks, rate by rate, the smallest depths first."""
    return [
        Setting(arm, depth, rate, width, images, epochs, seeds) for rate in rates for depth in depths for arm in ARMS
    ]


def run(setting: Setting, images: Images, step: Step) -> Record:
    """Train the networks of a setting.

    As in the published code, the accuracy and the loss of an epoch are means over its batches, each before its step.
    The record has them by seed and epoch; they are None from the epoch on in which a loss is not finite.
    """
    x, y = images.x_train[: setting.images].flatten(1), images.y_train[: setting.images]
    law, kind = ARMS[setting.arm]
    drawn = [draw(law, x.shape[1], setting.width, setting.depth, seed) for seed in range(setting.seeds)]
    first, hidden, last = (torch.stack(parts).float() for parts in zip(*drawn, strict=True))
    weights = [each.contiguous().requires_grad_() for each in (first, *hidden.unbind(1), last)]
    generator = torch.Generator().manual_seed(0)
    accuracies, losses = [], []
    for epoch in range(1, setting.epochs + 1):
        order = torch.randperm(len(x), generator=generator)
        batches = order[: len(x) // setting.width * setting.width].view(-1, setting.width)
        right, lost = (torch.zeros(setting.seeds, dtype=torch.float64, device="cpu") for _ in range(2))
        for batch in batches:
            outputs = _outputs(kind, x[batch], weights)
            each = F.cross_entropy(outputs.movedim(0, -1), y[batch, None].expand(-1, setting.seeds), reduction="none")
            loss = each.mean(0)  # of each network
            gradients = torch.autograd.grad(loss.sum(), weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    weight.sub_(gradient, alpha=setting.rate)
            right += (outputs.argmax(-1) == y[batch]).double().mean(1) / len(batches)
            lost += loss.detach() / len(batches)
        accuracies.append(right.where(lost.isfinite(), math.nan))
        losses.append(lost)
        step(epoch / setting.epochs, f"loss {float(lost.mean()):.2f}")
    return asdict(setting) | {"accuracies": _by_seed(accuracies), "losses": _by_seed(losses)}


def _outputs(kind: Kind, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The outputs (seeds, n, classes) of networks of the same batch x (n, pixels)."""
    H = x
    for number, W in enumerate(weights[:-1]):
        H = kind.apply(number, H, W)
    return H @ weights[-1].mT


def _by_seed(epochs: list[Tensor]) -> list[list[float | None]]:
    table = torch.stack(epochs, 1).tolist()
    return [[float(f"{value:.5g}") if math.isfinite(value) else None for value in row] for row in table]
