# SPDX-License-Identifier: BSD-3-Clause
"""Errors of sampled layers and networks of known laws at growing widths: what is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rainbow_fast.analysis.convergence import kernel_convergence
from rainbow_fast.cli.grid import Step
from rainbow_fast.networks.mlp import mlp
from rainbow_fast.rainbow.model import RainbowModel, fit
from rainbow_fast.rainbow.report import Record

RANK = 10  # of white features
CHANNELS = 64  # of every hidden layer of the deep network


@dataclass(frozen=True)
class Layer:
    """One layer of linear neurons ``N(0, C)`` on white inputs: C has the eigenvalues ``m^-alpha``, or is white."""

    alpha: float | None  # None: the identity of rank `RANK`
    widths: tuple[int, ...]
    networks: int
    inputs: int

    def records(self, step: Step) -> list[Record]:
        """The errors of the kernel and of the aligned features, for each width and network."""
        columns = RANK if self.alpha is None else self.inputs
        white = torch.linalg.qr(_normal(self.inputs, columns, seed=0)).Q * math.sqrt(self.inputs)
        u = white * (1.0 if self.alpha is None else _roots(columns, self.alpha))
        measured = kernel_convergence(
            u,
            self.widths,
            activation="identity",
            networks=self.networks,
            progress=lambda done, total, what: step(done / total, what),
        )
        about = {"alpha": self.alpha, "inputs": self.inputs}
        return [
            about | {"width": n, "network": i, "kernel": float(measured.kernel[i, at]), "aligned": float(error)}
            for at, n in enumerate(self.widths)
            for i, error in enumerate(measured.limit[:, at])
        ]


@dataclass(frozen=True)
class Deep:
    """A network of three ReLU layers whose covariances have the eigenvalues ``m^-alpha``; one width is finite."""

    depth_alpha: float
    layer: int  # whose width varies: 1 to 3
    widths: tuple[int, ...]
    networks: int
    inputs: int

    def records(self, step: Step) -> list[Record]:
        """The errors of the last aligned features against those of the network of infinite widths only."""
        model, x = reference(self.depth_alpha, self.inputs)
        names = [s.site.name for s in model.sites]
        limit = dict.fromkeys(names, math.inf)
        wanted = _features(model, x, limit)
        listed = []
        for n in self.widths:
            for index in range(self.networks):
                width = limit | {names[self.layer - 1]: n}
                apart = (_features(model, x, width, index) - wanted).square().sum() / wanted.square().sum()
                about = {name: value for name, value in asdict(self).items() if name not in ("widths", "networks")}
                listed.append(about | {"width": n, "network": index, "aligned": float(apart)})
                step(len(listed) / (len(self.widths) * self.networks), f"layer {self.layer}, n = {n}")
        return listed


@dataclass(frozen=True)
class Study:
    """The layers and networks that are measured."""

    alphas: tuple[float, ...] = (1.5, 2.0, 3.0)
    widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    deep_widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    networks: int = 12
    deep_networks: int = 4
    inputs: int = 384

    def __iter__(self) -> Iterator[Layer | Deep]:
        for alpha in (None, *self.alphas):
            yield Layer(alpha, self.widths, self.networks, self.inputs)
        for alpha in self.alphas:
            for layer in (1, 2, 3):
                yield Deep(alpha, layer, self.deep_widths, self.deep_networks, self.inputs)


def reference(alpha: float, inputs: int) -> tuple[RainbowModel, Tensor]:
    """A perceptron of three hidden layers with known covariances, fitted on white inputs, and these inputs."""
    network = mlp((CHANNELS,) * 4 + (10,), seed=0).double()
    layers = [part for part in network.modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        for place, layer in enumerate(layers[:-1]):
            left, right = (torch.linalg.qr(_normal(CHANNELS, CHANNELS, seed=2 * place + side)).Q for side in (1, 2))
            layer.weight.copy_(left @ (_roots(CHANNELS, alpha) * right).mul_(math.sqrt(CHANNELS)))
    x = _normal(inputs, CHANNELS, seed=100)
    return fit(network, x, holdout=0), x


def _features(model: RainbowModel, x: Tensor, width: dict[str, float], index: int = 0) -> Tensor:
    """phih of the last site."""
    network, _ = model.sample(width=width, network_index=index)
    kept: list[Tensor] = []
    hook = network.site(network.sampled[-1]).register_forward_hook(lambda _, args, phi: kept.append(phi))
    network(x)
    hook.remove()
    return kept[0].detach()


def _roots(count: int, alpha: float) -> Tensor:
    """The roots of the eigenvalues ``m^-alpha``."""
    return torch.arange(1, count + 1, dtype=torch.float64, device="cpu") ** (-alpha / 2)


def _normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def errors_of(records: Sequence[Record], name: str) -> tuple[list[int], np.ndarray]:
    """The widths, and the errors of this name, (networks, widths)."""
    widths = sorted({record["width"] for record in records})
    columns = [[record[name] for record in records if record["width"] == n] for n in widths]
    return widths, np.array(columns).T
