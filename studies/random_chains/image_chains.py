# SPDX-License-Identifier: BSD-3-Clause
"""Figures 5a and 5b on the images of CIFAR-10: the orthogonality gap by layer, of perceptrons and of convolutions.

As in the published code, all three channels are normalised by the mean and the deviation of MNIST; a block is ReLU,
weights, norm, and the first ReLU acts on the image; weights have Xavier's normal law, with gain sqrt 2 in perceptrons
and 1 in convolutions. The published code pads by reflection, and its caption says zeros: both are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rainbow_fast.infinite_width import KernelMap
from rainbow_fast.networks.mlp import seeded
from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks import orthogonality_gap
from rainbow_fast.random_networks.chain_layer import RandomLayer
from rainbow_fast.random_networks.chain_theory import stationary_gap
from rainbow_fast.random_networks.gram_chain import gram_chain
from rainbow_fast.random_networks.orthogonality import gap_of_gram
from studies.random_chains.chain_measurements import curve, number

MEAN, STD = (0.1307,) * 3, (0.3081,) * 3  # of MNIST, in all channels
SAMPLES = 8  # images of a batch
BLOCKS = 30
NORMS = {"batch norm": True, "no norm": False}
PUBLISHED = (2, 3, 5, 10, 30)  # layers whose published values of figure 5a could be read off; 1 is the image
PADDINGS: dict[str, Literal["reflect", "zeros"]] = {"5b": "reflect", "5b, zeros": "zeros"}


@dataclass(frozen=True)
class ImageEffort:
    """How much is measured on images: batches of 8, units or channels, networks of each kind, and the seed."""

    batches: int = 50
    width: int = 100
    nets: int = 20
    conv_nets: int = 2
    seed: int = 0


def perceptrons(effort: ImageEffort, images: Tensor) -> list[Record]:
    """Figure 5a: explicit networks, against the exact law without weights from the same images."""
    d, records = effort.width, []
    batches = _batches(effort, images)
    for name, norm in NORMS.items():
        nets = range(effort.seed, effort.seed + effort.nets)
        gaps = torch.stack([_gaps(_perceptron(d, norm, seed), batches.flatten(2))[0].mean(0) for seed in nets])
        layer = RandomLayer("relu", "batch_standard" if norm else "none", "activation-linear-norm", gain=math.sqrt(2))
        result = gram_chain(
            batches.flatten(2), BLOCKS, width=d, layer=layer, runs=effort.nets, seed=effort.seed + effort.nets
        )
        law = result.orthogonality_gap.mean((0, 1))
        level = stationary_gap(SAMPLES, d, centred=True).mean if norm else math.sqrt(1 - 1 / SAMPLES)
        records.append(curve("5a, images", name, _layers(), gaps, law, level=level))
        for at in PUBLISHED:
            records.append(number("5a, images", f"{name} on images, layer {at}", gaps[:, at - 1], float(law[at - 1])))
    return records


def convolutions(panel: str, effort: ImageEffort, images: Tensor) -> list[Record]:
    """Figure 5b: runs are batches of all networks. Theory is that of infinitely many channels without a norm."""
    padding = PADDINGS[panel]
    batches = _batches(effort, images)
    nets = range(effort.seed, effort.seed + effort.conv_nets)
    records = []
    for name, norm in NORMS.items():
        pairs = [_gaps(_convnet(effort.width, norm, padding, seed), batches) for seed in nets]
        gaps, of_directions = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        if norm:
            records += _of_networks(panel, name, gaps, effort)
            records += _of_networks(panel, "batch norm, length 1", of_directions, effort)
        else:
            theory = infinite_channels(batches, padding).mean(0)
            records += _of_networks(panel, name, gaps, effort, theory, level=math.sqrt(1 - 1 / SAMPLES))
    return records


def _of_networks(
    panel: str, name: str, gaps: Tensor, effort: ImageEffort, theory: Tensor | None = None, **more: float
) -> list[Record]:
    """The curve of gaps (networks batches, layers), and numbers whose runs are the networks."""
    records, by_network = (
        [curve(panel, name, _layers(), gaps, theory, **more)],
        gaps.unflatten(0, (effort.conv_nets, -1)),
    )
    for at in (2, 10, BLOCKS):
        expected = None if theory is None else float(theory[at - 1])
        records.append(number(panel, f"{name}, {PADDINGS[panel]}, layer {at}", by_network.mean(1)[:, at - 1], expected))
    return records


@torch.no_grad()
def infinite_channels(batches: Tensor, padding: str, blocks: int = BLOCKS) -> Tensor:
    """V of blocks of ReLU and convolution with infinitely many channels, (batches, blocks + 1).

    The covariance of two samples at one position is the mean over the window around it of that before the convolution,
    so that covariances between positions are not needed.
    """
    path = [orthogonality_gap(batches.flatten(2))]
    H, kappa = batches.relu(), KernelMap("relu")
    K = torch.einsum("bichw,bjchw->bijhw", H, H)
    for _ in range(blocks):
        K = _window_mean(K, padding)
        path.append(gap_of_gram(K.sum((-2, -1))))
        size = K.diagonal(dim1=1, dim2=2).movedim(-1, 1).sqrt()
        scale = size.unsqueeze(1) * size.unsqueeze(2)
        K = scale * kappa((K / scale.where(scale > 0, 1)).clamp(-1, 1))
    return torch.stack(path, 1)


def _batches(effort: ImageEffort, images: Tensor) -> Tensor:
    """The first images, float64 (batches, 8, 3, 32, 32)."""
    return images[: SAMPLES * effort.batches].double().unflatten(0, (-1, SAMPLES))


def _layers() -> range:
    return range(1, BLOCKS + 2)


def _perceptron(d: int, norm: bool, seed: int) -> list[nn.Module]:
    blocks = []
    with seeded(seed):
        for before, after in pairwise([3072, *[d] * BLOCKS]):
            linear = nn.Linear(before, after, bias=False)
            nn.init.xavier_normal_(linear.weight, math.sqrt(2))
            blocks.append(_block(linear, nn.BatchNorm1d(after) if norm else None))
    return blocks


def _convnet(d: int, norm: bool, padding: Literal["reflect", "zeros"], seed: int) -> list[nn.Module]:
    blocks = []
    with seeded(seed):
        for before, after in pairwise([3, *[d] * BLOCKS]):
            conv = nn.Conv2d(before, after, 3, padding=1, padding_mode=padding, bias=False)
            nn.init.xavier_normal_(conv.weight)
            blocks.append(_block(conv, nn.BatchNorm2d(after) if norm else None))
    return blocks


def _block(linear: nn.Module, norm: nn.Module | None) -> nn.Module:
    return nn.Sequential(nn.ReLU(), linear, *([norm] if norm is not None else []))


@torch.no_grad()
def _gaps(blocks: list[nn.Module], batches: Tensor) -> tuple[Tensor, Tensor]:
    """V of each batch before each block and after the last, and V of its samples scaled to length 1."""
    paths: list[list[Tensor]] = [[], []]
    for x in batches.float():
        activations = [H.flatten(1) for H in _forward(blocks, x)]
        paths[0].append(torch.stack([orthogonality_gap(H) for H in activations]))
        paths[1].append(torch.stack([orthogonality_gap(F.normalize(H)) for H in activations]))
    return torch.stack(paths[0]), torch.stack(paths[1])


def _forward(blocks: list[nn.Module], x: Tensor) -> Iterator[Tensor]:
    yield x
    for block in blocks:
        x = block(x)
        yield x


def _window_mean(K: Tensor, padding: str) -> Tensor:
    """The mean over windows of 3 x 3 of maps (b, n, n, h, w)."""
    mode = "constant" if padding == "zeros" else padding
    return F.avg_pool2d(F.pad(K.flatten(1, 2), (1, 1, 1, 1), mode=mode), 3, 1).view_as(K)


IMAGE_MEASUREMENTS: dict[str, Callable[[ImageEffort, Tensor], list[Record]]] = {
    "perceptrons": perceptrons,
    **{f"convolutions, {padding}": partial(convolutions, panel) for panel, padding in PADDINGS.items()},
}
