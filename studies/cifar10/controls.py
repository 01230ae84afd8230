# SPDX-License-Identifier: BSD-3-Clause
"""Two networks that a sample is compared with: one of white weights, and a second trained one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rainbow_fast.ops.cross_covariance import cross_covariance
from rainbow_fast.ops.polar import polar
from rainbow_fast.ops.random_features import random_features_covariance, random_features_projection
from rainbow_fast.rainbow.options import SITE_BITS
from rainbow_fast.tracing.site import Site
from rainbow_fast.tracing.trace import Trace, trace

CHUNK = 500  # images

Labelled = tuple[Tensor, Tensor]
Outcome = tuple[float, list[dict[str, Any]]]  # test accuracy, and a record of each site


def white_weights(
    reference: nn.Module, align: Tensor, test: Labelled, *, factor: float, seed: int = 0, network: int = 0
) -> Outcome:
    """A network whose layers have the covariance C = I of an untrained one, in place of the trained covariance.

        phih_j = sqrt(d / n) A sigma(c G p(phih_{j-1})),    A = polar(E[phi phi'^T]),  c^2 = tr(C_j) / dim(C_j)

    where p takes the patches that the weights of layer j see. All but C_j is as with the method "paper", its trace too.
    """
    return _compare(reference, [_White(s, factor, seed, network) for s in trace(reference).sites], align, test)


def another_network(reference: nn.Module, other: nn.Module, align: Tensor, test: Labelled) -> Outcome:
    """A second trained network, each of its sites aligned to the reference's: phih_j = A phi_j, phi_j of the second.

    The accuracy is that of its last site through the reference's classifier.
    """
    cut = trace(other)
    stages = [_Trained(cut, site) for site in cut.sites]
    return _compare(reference, stages, align, test)


class _Stage(Protocol):
    """One site of the compared network.

    `follows`: whether the next site starts from the aligned activations, or from the network's own.
    """

    n: int
    follows: bool

    def enter(self, y: Tensor) -> Tensor: ...

    def covariance(self, phi: Tensor, a: Tensor) -> Tensor: ...

    def project(self, a: Tensor, A: Tensor) -> Tensor: ...


class _White:
    follows = True

    def __init__(self, site: Site, factor: float, seed: int, network: int) -> None:
        self.writer = _writer(site)
        self.n = max(round(factor * self.writer.weight.shape[0]), 1)
        weights = self.writer.weight.detach().double().flatten(1)
        self.c = float(weights.square().mean().sqrt())  # C = W^T W / rows
        self.at: dict[str, Any] = {"seed": seed, "stream": network << SITE_BITS | site.index}
        self.at |= {"activation": site.activation, "negative_slope": site.negative_slope}

    def enter(self, y: Tensor) -> Tensor:
        return y

    def covariance(self, phi: Tensor, a: Tensor) -> Tensor:
        return random_features_covariance(phi, self.c * _patches(self.writer, a), self.n, **self.at)[0]

    def project(self, a: Tensor, A: Tensor) -> Tensor:
        return random_features_projection(self.c * _patches(self.writer, a), A, **self.at)


class _Trained:
    follows = False

    def __init__(self, cut: Trace, site: Site) -> None:
        self.n, self.cut, self.site = _writer(site).weight.shape[0], cut, site

    def enter(self, y: Tensor) -> Tensor:
        return _pass(self.cut, self.site, y)

    def covariance(self, phi: Tensor, a: Tensor) -> Tensor:
        return cross_covariance(phi, a)

    def project(self, a: Tensor, A: Tensor) -> Tensor:
        return torch.einsum("nm...,dm->nd...", a, A)


@torch.no_grad()
def _compare(reference: nn.Module, stages: Sequence[_Stage], align: Tensor, test: Labelled) -> Outcome:
    """Site by site: align on one data set, measure on both."""
    cut = trace(reference)
    x, y = [list(chunks.split(CHUNK)) for chunks in (align, test[0])], [list(c.split(CHUNK)) for c in (align, test[0])]
    records = []
    for site, stage in zip(cut.sites, stages, strict=True):
        x = [[_pass(cut, site, phi) for phi in chunks] for chunks in x]
        y = [[stage.enter(a) for a in chunks] for chunks in y]
        M = torch.stack([stage.covariance(phi, a) for phi, a in zip(x[0], y[0], strict=True)]).sum(0)
        A = (polar(M, rank="partial", rtol=1e-10).A * math.sqrt(len(M) / stage.n)).to(align.dtype)
        phih = [[stage.project(a, A) for a in chunks] for chunks in y]
        differences = [[p - phi for p, phi in zip(*pair, strict=True)] for pair in zip(phih, x, strict=True)]
        errors = [sum(map(_power, a)) / sum(map(_power, b)) for a, b in zip(differences, x, strict=True)]
        records.append(
            {"index": site.index, "site": site.name, "d": len(M), "n": stage.n}
            | {"alignment_error": errors[0], "error": errors[1]}
        )
        y = phih if stage.follows else y
    answers = torch.cat([cut.finish(len(cut.sites), (a,), []).argmax(1) for a in phih[1]])
    return float((answers == test[1]).double().mean()), records


def _pass(cut: Trace, site: Site, phi: Tensor) -> Tensor:
    """From one site through the next, in a chain."""
    return site.reference(cut.advance(site.index, (phi,), [])[0])


def _power(t: Tensor) -> float:
    return float(t.double().square().sum())


def _writer(site: Site) -> nn.Linear | nn.Conv2d:
    """The layer that writes a site, which must be a plain one."""
    if not isinstance(site.writer, nn.Linear | nn.Conv2d) or not (site.before is site.after is site.norm is None):
        raise ValueError(f"site {site.name!r}: wanted a bias-free layer and a non-linearity, no pooling, no batch norm")
    if isinstance(site.writer, nn.Conv2d) and site.writer.groups > 1:
        raise ValueError(f"site {site.name!r}: groups={site.writer.groups}, wanted rows that read all channels")
    return site.writer


def _patches(writer: nn.Linear | nn.Conv2d, y: Tensor) -> Tensor:
    """What a row of the weights is multiplied by: (N, in) or (N, in k k, *space)."""
    if isinstance(writer, nn.Linear):
        return y.flatten(1)
    given = (writer.kernel_size, writer.dilation, writer.padding, writer.stride)
    rows = nn.functional.unfold(y, *given)  # type: ignore[arg-type]
    return rows.view(len(y), rows.shape[1], *writer(y[:1]).shape[2:])
