# SPDX-License-Identifier: BSD-3-Clause
"""Gradients by the first square weights against the depth, before training: what is measured, and its records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rainbow_fast.cli.grid import Step
from rainbow_fast.data import Images
from rainbow_fast.rainbow.report import Record
from rainbow_fast.random_networks import isometry_gap
from studies.orthogonal_chains.gradient_theory import Growth, growth, haar_gradient
from studies.orthogonal_chains.normed_network import LAWS, Kind, Weights, draw

ORTHOGONAL, PLAIN, FEW = "orthogonal samples", "identity, plain norm", "a quarter of the samples"


@dataclass(frozen=True)
class Case:
    """A kind of network and its samples.

    These are the first images, as many as units, or a quarter of them (`FEW`), or, after layer 0, orthogonal ones of
    the length that the plain norm gives (`ORTHOGONAL`). The latter two are taken with Haar weights only.
    """

    kind: Kind
    samples: str = "images"

    def start(self, x: Tensor, first: Tensor) -> Tensor:
        """The activations after layer 0, for images x and the weights of layer 0."""
        if self.samples == ORTHOGONAL:
            return math.sqrt(len(x)) * torch.eye(len(x), dtype=x.dtype, device=x.device)
        return self.kind.apply(0, x[: len(x) // 4] if self.samples == FEW else x, first)


CASES = {
    PLAIN: Case(Kind(norm="plain")),
    ORTHOGONAL: Case(Kind(norm="plain"), ORTHOGONAL),
    FEW: Case(Kind(norm="plain"), FEW),
    "identity": Case(Kind()),
    "tanh": Case(Kind("tanh")),
    "sin": Case(Kind("sin")),
    "tanh, gain": Case(Kind("tanh", gain=True)),
    "sin, gain": Case(Kind("sin", gain=True)),
    f"tanh, gain, {ORTHOGONAL}": Case(Kind("tanh", gain=True, norm="plain"), ORTHOGONAL),
    f"sin, gain, {ORTHOGONAL}": Case(Kind("sin", gain=True, norm="plain"), ORTHOGONAL),
}
POINTS = 40  # layers at which the isometry gap is recorded, about


@dataclass(frozen=True)
class Run:
    """The networks of one draw of weights: those of a smaller depth are the first layers of the deepest one."""

    law: str
    run: int
    width: int  # and number of samples
    depths: list[int]


def settings(runs: int, width: int, depths: list[int]) -> list[Run]:
    """All draws, the first of each law first, so that an interrupted study has all curves."""
    return [Run(law, run, width, depths) for run in range(runs) for law in LAWS]


def theories(depths: list[int]) -> list[Growth]:
    """What theory has to say of the kinds of networks that are not linear."""
    return [Growth(name, depths) for name in ("tanh", "sin", "tanh, gain", "sin, gain")]


def theory(setting: Growth) -> Record:
    """The record of a theory."""
    return asdict(setting) | {"growth": growth(CASES[setting.theory_of].kind, setting.depths)}


def run(setting: Run, images: Images, step: Step) -> Record:
    """The logarithms of the gradients of all kinds of networks, and the isometry gaps by layer of linear ones."""
    x, y = images.x_train[: setting.width].double().flatten(1), images.y_train[: setting.width]
    depth = setting.depths[-1]
    weights = draw(setting.law, x.shape[1], setting.width, depth, setting.run)
    record: Record = asdict(setting) | {"log_gradients": {}}
    for place, (name, case) in enumerate(CASES.items()):
        if setting.law == "Gaussian" and case.samples != "images":
            continue
        step(place / len(CASES), name)
        path = activations(case.kind, case.start(x, weights.first), weights.hidden)
        norms = gradients(case.kind, path, y[: len(path[0])], weights, setting.depths)
        record["log_gradients"][name] = _short(norms.log())
        if name == ORTHOGONAL:
            expected = [haar_gradient(path[each - 1], y, weights.last, each) for each in setting.depths]
            record["theory"] = _short(torch.tensor(expected, device="cpu").log())
        if name == PLAIN:
            record |= _isometry(setting.law, path, weights.hidden)
    return record


def activations(kind: Kind, start: Tensor, hidden: Tensor) -> list[Tensor]:
    """The activations after layer 0, which are `start`, after layer 1, and so on."""
    path = [start]
    for number, W in enumerate(hidden, 1):
        path.append(kind.apply(number, path[-1], W))
    return path


def gradients(kind: Kind, path: Sequence[Tensor], y: Tensor, weights: Weights, depths: Sequence[int]) -> Tensor:
    """The Frobenius norms of the gradients of the mean cross entropy by the weights of layer 1, (depths,).

    A network of depth L ends after layer L - 1 of `path`. All depths, at least 2 and increasing, are pulled back
    together.
    """

    def loss(H: Tensor) -> Tensor:
        return F.cross_entropy(H @ weights.last.mT, y)

    pulled = path[0].new_zeros(0, *path[0].shape)
    for number in range(depths[-1] - 1, 0, -1):
        if number + 1 in depths:
            pulled = torch.cat([torch.func.grad(loss)(path[number])[None], pulled])
        layer = partial(kind.apply, number)
        pull = torch.func.vjp(layer, path[number - 1], weights.hidden[number - 1])[1]
        pulled, by_weights = torch.vmap(pull)(pulled)
    return torch.linalg.matrix_norm(by_weights)


def isometry_identity(path: Sequence[Tensor], hidden: Tensor) -> Tensor:
    """The isometry gaps after each layer by the exact identity of linear layers with Haar weights, n = d.

    ``phi' = phi + mean over units of log |z|^2``, with z the unit before the norm and units of length 1 before it.
    """
    H = torch.stack(list(path))
    lengths = (H[:-1] @ hidden.mT).square().mean(-2)
    return isometry_gap(H[0]) + F.pad(lengths.log().mean(-1).cumsum(0), (1, 0))


def _isometry(law: str, path: list[Tensor], hidden: Tensor) -> Record:
    layers = (np.unique(np.geomspace(1, len(path), POINTS).round().astype(int)) - 1).tolist()
    gaps = isometry_gap(torch.stack([path[number] for number in layers]))
    error = float((isometry_identity(path, hidden)[layers] - gaps).abs().max()) if law == "Haar" else None
    return {"layers": layers, "isometry_gaps": _short(gaps), "identity_error": error}


def _short(values: Tensor) -> list[float]:
    """Six digits of each number."""
    return [float(f"{value:.6g}") for value in values.tolist()]
