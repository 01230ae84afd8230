# SPDX-License-Identifier: BSD-3-Clause
"""Linear layers of weights in memory, and the wide one between two sampled sites, ``W' = s G_eff W A``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from rainbow_fast.ops.precision import in_force
from rainbow_fast.ops.random_features import random_features
from rainbow_fast.rainbow.laws.rows import Rows
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.affine import keeps_constants, norm_of
from rainbow_fast.tracing.chain import linear_chain

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by the number of axes of space


@dataclass(frozen=True)
class WideLayer:
    """``z' = W' phi' + b'``: for example the pre-activations of a sampled site from the features of the site before.

    Attributes:
        weight: W', (n, m), or (n, m, *kernel) of a convolution, in the dtype of phi'.
        bias: b', (n,), or None.
        options: stride, padding and dilation of the convolution.
        precision: of float32 products without a kernel.
    """

    weight: Tensor
    bias: Tensor | None
    options: Mapping[str, Any]
    precision: str = "highest"

    def __call__(self, phi: Tensor) -> Tensor:
        """z' (..., n) or (N, n, *space) from phi' (..., m) or (N, m, *space)."""
        if self.weight.dim() > 2:
            return CONVOLUTIONS[self.weight.dim() - 2](phi, self.weight, self.bias, **self.options)
        z = _times(phi.flatten(0, -2), self.weight, self.precision)
        return (z if self.bias is None else z.add_(self.bias)).view(*phi.shape[:-1], -1)


def _times(x: Tensor, W: Tensor, precision: str) -> Tensor:
    """``x W^T`` over channels, (N, n, *space) for x (N, m, *space), by our product."""
    return random_features(x, len(W), G=W, activation="identity", precision=precision)


def product_of(segment: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The product that computes a segment which is one `nn.Linear` on a CPU, behind a Flatten or not; else None.

    On a CPU of AMD it takes less than half of the time of torch's product, on one of Intel the same time. Its precision
    is the one that is in force for torch's products now.
    """
    chain = linear_chain(segment, flatten=True)
    if chain is None or not isinstance(chain[-1], nn.Linear) or not all(isinstance(m, nn.Flatten) for m in chain[:-1]):
        return None
    weight, bias = chain[-1].weight.detach(), chain[-1].bias
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return None
    product = WideLayer(weight, None if bias is None else bias.detach(), {}, in_force(weight.device))
    return product if len(chain) == 1 else lambda x: product(x.flatten(1))


def wide_layer(before: RainbowActivation, between: Sequence[nn.Module], rows: Rows) -> WideLayer:
    """The wide weights ``W' = s G_eff V A`` of the linear layer V between two sampled sites.

    Args:
        before: the first site, with its alignment A, scale s and offset.
        between: the modules between the sites, as `tracing.chain.linear_chain` returns them.
        rows: the drawn rows of the second site, ``G_eff``.

    Returns:
        The layer. Biases, batch norms and the offset are part of it. The offset and norms before a convolution must be
        zero if the convolution pads with zeros; see `foldable`.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), equations 13 to 15.
    """
    assert before.A is not None
    A, at = before.A, _place(between)
    layer: Any = between[at]
    V, one = layer.weight.to(A.dtype), A.new_ones((), dtype=torch.float64)
    d, k = V.shape[1], V.shape[0]
    offset = one.new_zeros(d) if before.offset is None else before.offset.double()
    gain, shift = _through(between[:at], one.expand(d), offset)
    bias = V.flatten(2).sum(2).double() @ shift if V.dim() > 2 else V.double() @ shift
    if layer.bias is not None:
        bias = bias + layer.bias.double()
    scale, bias = _through(between[at + 1 :], before.scale.expand(k), bias)
    Q = _times((V * _along(scale, V, 0) * _along(gain, V, 1)).contiguous(), A.T, before.precision)
    weight = rows.times(Q.flatten(1), before.precision).view(rows.n, *Q.shape[1:])
    b = rows.times(bias.to(A.dtype).unsqueeze(1)).squeeze(1) if bias.any() else None
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation") if isinstance(layer, _ConvNd)}
    return WideLayer(weight, b, options, before.precision)


def foldable(between: Sequence[nn.Module], *, offset: bool) -> bool:
    """Whether the modules between two sites are one affine map, also at the borders of padded maps.

    Args:
        offset: whether the first site may have an offset.
    """
    at = _place(between)
    return keeps_constants(between[at]) or not (offset or at > 0)


def _place(between: Sequence[nn.Module]) -> int:
    """The place of the linear layer among batch norms."""
    return next(i for i, module in enumerate(between) if isinstance(module, nn.Linear | _ConvNd))


def _through(norms: Sequence[nn.Module], gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The map ``gain x + shift`` of each channel, followed by batch norms."""
    for norm in norms:
        factor, moved = norm_of(norm)
        gain, shift = factor * gain, factor * shift + moved
    return gain, shift


def _along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """values reshaped to multiply `like` along an axis, in its dtype."""
    return values.view(*[1] * axis, -1, *[1] * (like.dim() - 1 - axis)).to(like.dtype)
