# SPDX-License-Identifier: BSD-3-Clause
"""Affine maps of wide tensors. They become layers only when another operation reads their result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from rainbow_fast.networks.scattering import ComplexConv2d, RealConv2d

CONVOLUTIONS: dict[int, type[_ConvNd]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}  # by the dimensions of a batch
GEOMETRY = ("stride", "padding", "dilation", "padding_mode")


@dataclass(frozen=True)
class Linear:
    """A linear layer or convolution.

    Attributes:
        weight: (k, d) or (k, d, *kernel), float64 or complex128.
        bias: (k,), of the same dtype.
        options: stride, padding and the like of a convolution.
    """

    weight: Tensor
    bias: Tensor
    options: Mapping[str, Any]

    @property
    def keeps_constants(self) -> bool:
        return _keeps_constants(self.options)


@dataclass(frozen=True)
class Term:
    """One term of an affine map: a linear map of one tensor of the new network.

    Attributes:
        source: the node of the tensor.
        weight: a matrix over channels (d, c), or the kernel (d, c, *kernel) of a convolution, float64 or complex128;
            None stands for the identity.
        options: of the convolution.
    """

    source: fx.Node
    weight: Tensor | None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Affine:
    """The sum of its terms and of a bias: a tensor of `dims` dimensions with d channels along `axis`.

    Attributes:
        terms: the linear terms.
        bias: (d,), float64; complex128 if the tensors are complex. The weights may then be complex, too.
        axis: the channel axis of the result.
        dims: number of dimensions of the result.
        positions: if above 1, the result is flattened to (N, d * positions), and the source of each term to
            (N, c * positions).
    """

    terms: tuple[Term, ...]
    bias: Tensor
    axis: int
    dims: int
    positions: int = 1

    @property
    def pointwise(self) -> bool:
        """Whether each term is a matrix over channels, the same at every position."""
        return all(term.weight is None or term.weight.dim() == 2 for term in self.terms)

    def then(self, layer: Linear) -> Affine:
        """This map, followed by a linear layer. Only for pointwise maps; with a bias, the layer must keep constants."""
        k, d = len(layer.weight), len(self.bias)
        split = layer.weight.reshape(k, d, -1)
        terms = []
        for term in self.terms:
            weight = layer.weight
            if term.weight is not None:
                weight = _einsum("kdp,dc->kcp", split, term.weight).reshape(k, -1, *weight.shape[2:])
            terms.append(Term(term.source, weight, layer.options))
        return Affine(tuple(terms), layer.bias + _times(split.sum(2), self.bias), self.axis, self.dims)

    def mixed(self, G: Tensor, *, constant: bool) -> Affine:
        """This map, followed by the matrix G (n, d); `constant` adds a channel that is always 1."""
        one = int(constant)
        bias = _times(G, self.bias)
        bias = torch.cat([bias, bias.new_ones(one)])
        mixed = [G if w is None else _einsum("nd,d...->n...", G, w) for w in (term.weight for term in self.terms)]
        return self._with([torch.cat([w, w.new_zeros(one, *w.shape[1:])]) for w in mixed], bias)

    def scaled(self, factor: Tensor, shift: Tensor) -> Affine:
        """This map, followed by ``factor x + shift`` for each channel."""
        weights = [factor.view(-1, *[1] * (w.dim() - 1)) * w for w in self._weights()]
        return self._with(weights, factor * self.bias + shift)

    def padded(self, before: int, after: int) -> Affine:
        """This map with `before` channels of zeros before its channels, and `after` channels of zeros after them."""
        weights = [
            torch.cat([w.new_zeros(before, *w.shape[1:]), w, w.new_zeros(after, *w.shape[1:])]) for w in self._weights()
        ]
        bias = self.bias
        return self._with(weights, torch.cat([bias.new_zeros(before), bias, bias.new_zeros(after)]))

    def permuted(self, order: Tensor) -> Affine:
        """This map with its channels in another order."""
        return self._with([weight[order] for weight in self._weights()], self.bias[order])

    def plus(self, other: Affine) -> Affine:
        return replace(self, terms=self.terms + other.terms, bias=self.bias + other.bias)

    def layers(self, dtype: torch.dtype) -> Iterator[tuple[fx.Node, nn.Module | None]]:
        """The source and the layer of each term; the layer is None for the identity. The first layer has the bias."""
        bias: Tensor | None = self.bias if self.bias.any() else None
        for term in self.terms:
            if term.weight is None:
                yield term.source, None
            else:
                yield term.source, self._layer(term.weight, bias, term.options, dtype)
                bias = None

    def _layer(self, weight: Tensor, bias: Tensor | None, options: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
        k, c, *kernel = weight.shape
        common: dict[str, Any] = dict(bias=bias is not None, dtype=dtype, device=weight.device)
        if self.bias.is_complex():
            complex_weights = bias is not None or weight.is_complex()
            kind: type[nn.Conv2d] = ComplexConv2d if complex_weights else RealConv2d
            common["dtype"] = dtype.to_complex() if complex_weights else dtype
            layer: Any = nn.utils.skip_init(kind, c, k, tuple(kernel) or (1, 1), **common, **options)
        elif self.axis == self.dims - 1:
            layer = nn.utils.skip_init(nn.Linear, c, k, **common)
        else:
            kernel = kernel or [1] * (self.dims - 2)
            layer = nn.utils.skip_init(CONVOLUTIONS[self.dims], c, k, tuple(kernel), **common, **options)
        layer.weight.copy_(weight.view_as(layer.weight))
        if bias is not None:
            layer.bias.copy_(bias)
        return layer

    def _weights(self) -> list[Tensor]:
        one = torch.eye(len(self.bias), dtype=torch.float64, device=self.bias.device)
        return [one if term.weight is None else term.weight for term in self.terms]

    def _with(self, weights: list[Tensor], bias: Tensor) -> Affine:
        terms = [replace(term, weight=weight) for term, weight in zip(self.terms, weights, strict=True)]
        return replace(self, terms=tuple(terms), bias=bias)


def _times(W: Tensor, bias: Tensor) -> Tensor:
    """W bias for real or complex weights and a real or complex bias."""
    return _einsum("kd,d->k", W, bias)


def _einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """`torch.einsum` of real or complex tensors."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return torch.einsum(equation, a.to(dtype), b.to(dtype))


def keeps_constants(module: nn.Module) -> bool:
    """Whether a layer maps a constant feature map to a constant one. Padding with zeros breaks this."""
    return _keeps_constants({name: getattr(module, name) for name in GEOMETRY} if isinstance(module, _ConvNd) else {})


def _keeps_constants(options: Mapping[str, Any]) -> bool:
    padding = options.get("padding", 0)
    return options.get("padding_mode") != "zeros" or padding == "valid" or not any(padding)


def linear_of(module: nn.Linear | _ConvNd) -> Linear:
    """The layer of a module. A 1x1 convolution without stride and padding becomes a matrix over channels."""
    weight = module.weight.detach()
    weight = weight.to(torch.complex128 if weight.is_complex() else torch.float64)
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().to(weight.dtype)
    if isinstance(module, nn.Linear):
        return Linear(weight, bias, {})
    padded = not isinstance(module.padding, str) and any(module.padding)
    if not padded and set(module.kernel_size) == {1} and set(module.stride) == {1}:
        return Linear(weight.flatten(1), bias, {})
    return Linear(weight, bias, {name: getattr(module, name) for name in GEOMETRY})


def norm_of(module: nn.Module) -> tuple[Tensor, Tensor]:
    """An eval-mode batch norm as ``factor x + shift``."""
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    assert module.running_mean is not None and module.running_var is not None
    factor = (module.running_var.double() + module.eps).rsqrt()
    if module.affine:
        factor = factor * module.weight.double()
    shift = -factor * module.running_mean.double()
    return factor, shift + module.bias.double() if module.affine else shift
