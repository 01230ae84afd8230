# SPDX-License-Identifier: BSD-3-Clause
"""The kernel of one layer of infinite width as a map of correlations, and what repeating it does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.arguments import between, flag, integer, tensor
from rainbow_fast.infinite_width import hermite
from rainbow_fast.infinite_width.expectations import Expectations, expectations
from rainbow_fast.infinite_width.gaussian_pairs import Pairs, angles_of
from rainbow_fast.infinite_width.truncated import density

PANELS, POINTS, REACH = 26, 64, 13.0  # of the quadrature; no panel has 0, where activations have kinks, inside
SLACK = 1e-12  # correlations may be this far beyond -1 and 1, by rounding


class KernelMap:
    r"""``kappa(rho) = E[sigma(size X) sigma(size Y)]`` for standard normal X and Y of correlation rho.

    It is the kernel of `expected_kernel` for two inputs of norm `size` whose directions have the cosine rho. With the
    Hermite coefficients ``c_k = E[sigma(size X) He_k(X)] / sqrt(k!)`` it is the sum of ``c_k^2 rho^k``.

    Args:
        activation, negative_slope: as in `expected_kernel`.
        size: norm of the inputs, above 0; 1.0 by default. For weights of variance v it is sqrt(v) times the norm.

    Attributes:
        power: ``kappa(1) = E[sigma^2]``.
        mean_squared: ``kappa(0) = E[sigma]^2 = c_0^2``.
        slope_at_0: ``kappa'(0) = c_1^2``.
        slope_at_1: ``kappa'(1) = size^2 E[sigma'^2]``; infinite for step and sign. A derivative is that of PyTorch.

    Numbers are float64, and have an error of 1e-13 of `power`; with a Hermite series 1e-11.

    Raises:
        ValueError, TypeError: as `expected_kernel`; or `size` is not above 0 and finite, or the function has no
            derivative by PyTorch.

    Source: Daniely, Frostig and Singer, "Toward deeper understanding of neural networks: the power of initialization
    and a dual view on expressivity" (NeurIPS 2016), for the series and its derivatives.
    """

    def __init__(
        self,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        *,
        negative_slope: float = 0.01,
        size: float = 1.0,
    ) -> None:
        form = self._form = expectations(activation, negative_slope)
        wanted = "a finite number above 0"
        self.size = float(between(0, math.inf, wanted, open_low=True, open_high=True)("size", size))
        side = torch.tensor([self.size], dtype=torch.float64, device="cpu")
        self._terms = torch.zeros(1, 0, dtype=torch.float64, device="cpu")
        if form.centred is None:
            self._terms = hermite.coefficients(form.name, form.sigma, side, torch.zeros_like(side))
        mean = self._terms[:, 0] if form.mean is None else form.mean(side, torch.zeros_like(side))
        self.mean_squared, self.power = float(mean) ** 2, float(self(torch.ones_like(side)))
        first, steepness = _slopes(form, self.size)
        self.slope_at_0 = first**2
        self.slope_at_1 = self.size**2 * steepness if form.smooth else math.inf

    def __call__(self, rho: Tensor) -> Tensor:
        """kappa of each correlation, float64 on the CPU in the shape of rho.

        Raises:
            ValueError: a correlation is not from -1 to 1, up to 1e-12.
            TypeError: rho is not a tensor.
        """
        flat = _correlations(rho).reshape(1, -1)
        angles = angles_of(flat)
        if self._form.centred is None:
            return hermite.series(self._terms, self._terms, angles).reshape(rho.shape)
        s, zero = torch.full_like(flat, self.size), torch.zeros_like(flat)
        return self._form.centred(Pairs(s, s, angles, zero, zero)).reshape(rho.shape)

    def correlation(self, rho: Tensor, *, centred: bool = False) -> Tensor:
        """The correlation after the layer, ``kappa(rho) / kappa(1)``, float64 in the shape of rho.

        Args:
            rho: correlations of the inputs, from -1 to 1.
            centred: take ``(kappa(rho) - kappa(0)) / (kappa(1) - kappa(0))`` instead, the correlation of features
                whose mean is subtracted; False by default.

        Raises:
            ValueError: as the map; or the features are constant, so that they have no correlation.
            TypeError: as the map; or `centred` is not a flag.
        """
        mean = self.mean_squared if flag("centred", centred) else 0.0
        if self.power - mean <= SLACK * self.power:
            raise ValueError(f"activation: {self._form.name} is constant: its features have no correlation")
        return ((self(rho) - mean) / (self.power - mean)).clamp(-1, 1)

    def iterate(self, rho: Tensor, layers: int, *, centred: bool = False) -> Tensor:
        """The correlations in a deep network, (layers + 1, \\*shape of rho) float64: rho, then after each layer.

        Each layer is scaled so that its inputs have the norm `size`. Each layer rounds by 1e-15, so that angles below
        1e-7 are lost.

        Args:
            rho: correlations of the inputs, from -1 to 1.
            layers: number of layers, at least 0.
            centred: as in `correlation`.

        Raises:
            ValueError, TypeError: as `correlation`; or `layers` is not an integer of at least 0.
        """
        now = _correlations(rho).reshape(rho.shape)
        path = [now]
        for _ in range(integer("layers", layers)):
            path.append(self.correlation(path[-1], centred=centred))
        return torch.stack(path)

    @property
    def beta_0(self) -> float:
        """``2 - c_1^2 / (E[sigma^2] - c_0^2)``: how fast orthogonality is reached by layers with normalisation.

        1 for the identity, 1.26652890 for relu, 2 for even functions; larger is faster.

        Source: Joudaki, Daneshmand and Bach, "On the impact of activation and normalization in obtaining isometric
        embeddings at initialization" (NeurIPS 2023).
        """
        return 2 - self.slope_at_0 / (self.power - self.mean_squared)


class _Slopes(NamedTuple):
    first: float  # c_1 = E[sigma(size X) X]
    steepness: float  # E[sigma'(size X)^2]


def _slopes(form: Expectations, size: float) -> _Slopes:
    """By Gauss-Legendre quadrature in panels, with the derivative of PyTorch."""
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)
    edges = np.linspace(-REACH, REACH, PANELS + 1)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    z = torch.from_numpy((middle[:, None] + half[:, None] * nodes).ravel())
    w = torch.from_numpy((half[:, None] * weights).ravel()) * density(z)
    with torch.enable_grad():
        x = (size * z).requires_grad_()
        values = hermite.pointwise(form.name, form.sigma, x)
        if not form.smooth:
            return _Slopes(float((values.detach() * z) @ w), math.inf)
        if not values.requires_grad:
            raise ValueError(f"activation: {form.name} has no derivative: wanted one by PyTorch")
        (derivative,) = torch.autograd.grad(values.sum(), x)
    steepness = derivative.square() @ w
    rim = derivative[[0, -1]].square() * density(z[-1])
    if not bool((rim <= hermite.TAIL * steepness).all()):
        raise ValueError(f"activation: {form.name} grows too fast for size={size:g}")
    return _Slopes(float((values.detach() * z) @ w), float(steepness))


def _correlations(rho: Tensor) -> Tensor:
    value = tensor("rho", rho).detach().cpu().double()
    if not bool((value.abs() <= 1 + SLACK).all()):
        low, high = float(value.min()), float(value.max())
        raise ValueError(f"rho has entries from {low:.6g} to {high:.6g}: wanted numbers from -1 to 1")
    return value.clamp(-1, 1)
