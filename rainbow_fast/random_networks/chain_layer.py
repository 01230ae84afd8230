# SPDX-License-Identifier: BSD-3-Clause
"""RandomLayer: what a layer of a random chain does beside its weights, and the normalisers.

A normaliser takes a batch as a product S Z, with S (*, n, k) and Z (*, k, d), and returns such a product. Without S the
batch is Z. So it applies to a batch as well as to its factors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rainbow_fast.arguments import between, number, one_of
from rainbow_fast.ops.activations import ACTIVATIONS, HOMOGENEOUS

Product = tuple[Tensor | None, Tensor]

ORDERS = ("linear-norm-activation", "activation-linear-norm", "linear-activation-norm")
SKIPS = (None, "linear", "block")


def _none(S: Tensor | None, Z: Tensor, eps: float) -> Product:
    return S, Z


def _batch(S: Tensor | None, Z: Tensor, eps: float) -> Product:
    return S, Z * _inverse_root(_batch_of(S, Z).square().sum(-2, keepdim=True))


def _batch_centred(S: Tensor | None, Z: Tensor, eps: float) -> Product:
    return _batch(*_less_mean(S, Z), eps)


def _batch_standard(S: Tensor | None, Z: Tensor, eps: float) -> Product:
    S, Z = _less_mean(S, Z)
    return S, Z * (_batch_of(S, Z).square().mean(-2, keepdim=True) + eps).rsqrt()


def _layer(S: Tensor | None, Z: Tensor, eps: float) -> Product:
    Z = Z - Z.mean(-1, keepdim=True)
    scale = (_batch_of(S, Z).square().mean(-1, keepdim=True) + eps).rsqrt()
    return (None, scale * Z) if S is None else (scale * S, Z)


NORMALISERS: dict[str, Callable[[Tensor | None, Tensor, float], Product]] = {
    "none": _none,
    "batch": _batch,
    "batch_centred": _batch_centred,
    "batch_standard": _batch_standard,
    "layer": _layer,
}


@dataclass(frozen=True)
class RandomLayer:
    r"""A layer of a random chain: linear, activation and norm in some order, for a batch H (n samples, d units).

    The linear step is ``H -> H W^T``. By default W has independent entries N(0, gain^2 / d_in), for d_in units before.

    Attributes:
        activation: ``identity relu abs leaky_relu tanh erf gelu silu sign step cos``, or a pointwise function of a
            tensor. "identity" by default.
        normaliser: ``"batch"`` (default) scales each unit to length 1 over the n samples, without a mean and without
            eps. ``"batch_centred"`` subtracts the mean over samples first. ``"batch_standard"`` is torch's batch norm
            in training: centred, variance 1, with eps. ``"layer"`` is torch's layer norm, over the units of a sample.
            ``"none"`` does nothing. A unit that is zero for all samples stays zero.
        order: ``"linear-norm-activation"`` (default), ``"activation-linear-norm"`` or ``"linear-activation-norm"``.
            The published figures use the first two. They are different chains unless the activation is the identity.
        gain: factor of the weights; 1 by default. sqrt(2) is that of He for relu.
        skip: None (default); ``"linear"`` adds the input of the layer to the linear step, ``H + branch H W^T``;
            ``"block"`` adds it to the whole layer, ``H + branch layer(H)``.
        branch: factor of the branch beside a skip; 1 by default.
        negative_slope: slope of leaky_relu; 0.01 by default.
        eps: of ``"batch_standard"`` and ``"layer"``; 1e-5 by default.

    Raises:
        ValueError: a name is unknown, or a number is outside its range.
        TypeError: the activation is neither a name nor a function, or a number is no number.

    Source: Daneshmand, Joudaki and Bach, "Batch normalization orthogonalizes representations in deep random networks"
    (NeurIPS 2021), equations 1 and 2 and appendix F, for the chains; Daneshmand, Kohler, Bach, Hofmann and Lucchi,
    "Batch normalization provably avoids rank collapse for randomly initialised deep networks" (NeurIPS 2020), for the
    skip.
    """

    activation: str | Callable[[Tensor], Tensor] = "identity"
    normaliser: str = "batch"
    order: str = ORDERS[0]
    gain: float = 1.0
    skip: str | None = None
    branch: float = 1.0
    negative_slope: float = 0.01
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if isinstance(self.activation, str):
            one_of("activation", self.activation, ACTIVATIONS)
        elif not callable(self.activation):
            raise TypeError(f"activation={self.activation!r}: wanted a name or a function of a tensor")
        one_of("normaliser", self.normaliser, NORMALISERS)
        one_of("order", self.order, ORDERS)
        if self.skip not in SKIPS:
            raise ValueError(f"skip={self.skip!r}: wanted None, linear or block")
        positive = between(0, math.inf, "a positive number", open_low=True, open_high=True)
        positive("gain", self.gain)
        positive("eps", self.eps)
        for name in ("branch", "negative_slope"):
            if not math.isfinite(number(name, getattr(self, name))):
                raise ValueError(f"{name}={getattr(self, name)}: wanted a finite number")

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a linear step and a norm, and nothing else."""
        return self.activation == "identity" and self.skip is None

    @property
    def is_homogeneous(self) -> bool:
        """Whether c > 0 times a batch becomes c times the result."""
        return self.normaliser == "none" and self.activation in HOMOGENEOUS

    def normalise(self, S: Tensor | None, Z: Tensor) -> tuple[Tensor | None, Tensor]:
        """The normaliser, for a batch S Z, or Z if S is None: factors of the result."""
        return NORMALISERS[self.normaliser](S, Z, self.eps)

    def activate(self, H: Tensor) -> Tensor:
        """The activation of H.

        Raises:
            ValueError: a function returns another shape.
        """
        if isinstance(self.activation, str):
            return ACTIVATIONS[self.activation][0](H, self.negative_slope)
        result = self.activation(H)
        if not isinstance(result, Tensor) or result.shape != H.shape:
            shape = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else repr(result)
            raise ValueError(f"activation returned {shape}: wanted a tensor of the shape it takes, {tuple(H.shape)}")
        return result

    def __call__(self, H: Tensor, linear: Callable[[Tensor], Tensor]) -> Tensor:
        """The layer, for H (*, n, d_in) and the linear step: (*, n, d)."""
        start = H
        for step in self.order.split("-"):
            if step == "linear":
                H = linear(H)
                H = start + self.branch * H if self.skip == "linear" else H
            elif step == "norm":
                H = _batch_of(*self.normalise(None, H))
            else:
                H = self.activate(H)
        return start + self.branch * H if self.skip == "block" else H


def _batch_of(S: Tensor | None, Z: Tensor) -> Tensor:
    return Z if S is None else S @ Z


def _less_mean(S: Tensor | None, Z: Tensor) -> Product:
    """The batch without its mean over samples, the rows of S."""
    return (None, Z - Z.mean(-2, keepdim=True)) if S is None else (S - S.mean(-2, keepdim=True), Z)


def _inverse_root(squares: Tensor) -> Tensor:
    """``1 / sqrt(squares)``; where squares are 0 a finite number."""
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).rsqrt()
