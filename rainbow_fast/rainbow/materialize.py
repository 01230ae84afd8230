# SPDX-License-Identifier: BSD-3-Clause
"""A sampled network written out as a plain, wide Sequential."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rainbow_fast.networks.graph import capture
from rainbow_fast.rainbow.activation import RainbowActivation


@dataclass
class Linear:
    """A linear layer not written yet: ``weight`` (out, in, *kernel) and ``bias`` (out,), float64, and its geometry."""

    weight: Tensor
    bias: Tensor
    options: dict  # of a Conv2d: stride, padding, dilation, padding_mode

    def scaled(self, factor: Tensor, shift: Tensor) -> Linear:
        """Followed by ``factor x + shift`` per channel."""
        weight = self.weight * factor.view(-1, *[1] * (self.weight.dim() - 1))
        return Linear(weight, factor * self.bias + shift, self.options)

    def mixed(self, G: Tensor, constant: bool) -> Linear:
        """Followed by the rows of G (n, out); `constant` adds a neuron that is always 1."""
        weight, bias = torch.einsum("nd,d...->n...", G, self.weight), G @ self.bias
        if constant:
            weight = torch.cat([weight, torch.zeros_like(weight[:1])])
            bias = torch.cat([bias, torch.ones_like(bias[:1])])
        return Linear(weight, bias, self.options)

    def module(self, dtype: torch.dtype) -> nn.Module:
        shape, bias = self.weight.shape, bool(self.bias.any())
        if self.weight.dim() == 2:
            made = nn.utils.skip_init(nn.Linear, shape[1], shape[0], bias=bias, dtype=dtype)
        else:
            made = nn.utils.skip_init(
                nn.Conv2d, shape[1], shape[0], tuple(shape[2:]), bias=bias, dtype=dtype, **self.options
            )
        made.to(self.weight.device)
        made.weight.copy_(self.weight)
        if bias:
            made.bias.copy_(self.bias)
        return made


class _Writer:
    """The wide network so far. `P` (d, c) maps its c channels to the d of the reference, None for the identity; after a
    Flatten each channel has `positions` features; `channel_last` says that the channel axis of a map is its last.
    `held` is the last linear layer, in reference coordinates."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.layers: list[nn.Module] = []
        self.P: Tensor | None = None
        self.positions = 1
        self.channel_last = False
        self.held: Linear | None = None

    def linear(self, layer: Linear) -> None:
        """A linear layer of the reference: its input is what P makes of the wide channels."""
        self.write()
        if self.P is not None:
            weight = layer.weight
            if weight.dim() == 2 and self.P.shape[0] != weight.shape[1]:
                split = weight.view(len(weight), -1, self.positions)
                weight = torch.einsum("kdp,dc->kcp", split, self.P).flatten(1)
            else:
                weight = torch.einsum("kd...,dc->kc...", weight, self.P)
            layer = Linear(weight, layer.bias, layer.options)
        self.P, self.positions, self.held = None, 1, layer

    def write(self) -> None:
        """Append the held layer."""
        if self.held is not None:
            self.layers.append(self.held.module(self.dtype))
            self.held = None

    def narrow(self, x: Tensor) -> None:
        """Make sure that a linear layer is held: the map of channels to those of x, where there is none."""
        if self.held is None:
            d, dims = (x.shape[-1], 2) if self.channel_last else (x.shape[1], x.dim())
            identity = torch.eye(d, dtype=torch.float64, device=x.device).view(d, d, *[1] * (dims - 2))
            self.linear(Linear(identity, identity.new_zeros(d), {}))

    def site(self, site: RainbowActivation) -> None:
        assert self.held is not None and site.A is not None
        if site.gain is not None and site.bias is not None:
            self.held = self.held.scaled(site.gain.double(), site.bias.double())
        self.held = self.held.mixed(site.effective_rows(), constant=site.offset is not None)
        self.write()
        self.layers += [] if site.before is None else [copy.deepcopy(site.before)]
        self.layers.append(copy.deepcopy(site.sigma))
        self.layers += [] if site.after is None else [copy.deepcopy(site.after)]
        self.P = site.scale * site.A.double()
        if site.offset is not None:
            one = site.sigma(torch.ones((), dtype=torch.float64))
            extra = self.P.new_zeros(len(self.P), self.P.shape[1] // site.n)
            extra[:, 0] = site.offset.double() / one.to(extra.device)
            self.P = torch.cat([self.P, extra], 1)


@torch.no_grad()
def materialize(body: nn.Module, input_shape: tuple[int, ...]) -> nn.Sequential:
    """Write out the body of a `RainbowNetwork`, for inputs of `input_shape`, as a Sequential of torch's own layers."""
    weight = next(p for p in body.parameters() if p.is_floating_point())
    writer = _Writer(weight.dtype)
    x = torch.zeros(1, *input_shape, dtype=weight.dtype, device=weight.device)
    graph, _ = capture(body, (RainbowActivation,))
    for module in [graph.get_submodule(node.target) for node in graph.graph.nodes if node.op == "call_module"]:
        y = module(x)
        if isinstance(module, nn.Identity | nn.Dropout | nn.Dropout1d | nn.Dropout2d):
            pass
        elif isinstance(module, nn.Linear | nn.Conv2d):
            writer.linear(_read(module))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and x.dim() != 3:
            factor, shift = _affine(module)
            writer.narrow(x)
            assert writer.held is not None
            writer.held = writer.held.scaled(factor, shift)
        elif isinstance(module, RainbowActivation):
            writer.channel_last = module.axis == -1 and x.dim() > 2
            writer.narrow(x)
            writer.site(module)
            if module.flattened:
                writer.layers.append(nn.Flatten())
        else:
            _between(writer, module, x)
        x = y
    if writer.P is not None:
        writer.narrow(x)
    writer.write()
    return nn.Sequential(*writer.layers).eval()


def _between(writer: _Writer, module: nn.Module, x: Tensor) -> None:
    """A layer that is not folded: on the wide channels if it is linear and treats them alike, else on those of x."""
    if isinstance(module, nn.Flatten) and x.dim() == 2:
        return
    writer.write()
    alike = isinstance(module, nn.Flatten | nn.AvgPool2d | nn.AdaptiveAvgPool2d) and not writer.channel_last
    if writer.P is not None and not alike:
        writer.narrow(x)
        writer.write()
    elif writer.P is not None and isinstance(module, nn.Flatten):
        writer.positions = math.prod(x.shape[2:])
    writer.layers.append(copy.deepcopy(module))


def _read(module: nn.Linear | nn.Conv2d) -> Linear:
    weight = module.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
    if isinstance(module, nn.Linear):
        return Linear(weight, bias, {})
    if module.groups > 1:
        each, inside = len(weight) // module.groups, weight.shape[1]
        dense = weight.new_zeros(len(weight), module.in_channels, *weight.shape[2:])
        for g in range(module.groups):
            dense[g * each : (g + 1) * each, g * inside : (g + 1) * inside] = weight[g * each : (g + 1) * each]
        weight = dense
    names = ("stride", "padding", "dilation", "padding_mode")
    return Linear(weight, bias, {name: getattr(module, name) for name in names})


def _affine(module: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """An eval-mode batch norm as ``factor x + shift``."""
    assert module.running_mean is not None and module.running_var is not None
    factor = (module.running_var.double() + module.eps).rsqrt()
    if module.affine:
        factor = factor * module.weight.double()
    shift = -factor * module.running_mean.double()
    return factor, shift + module.bias.double() if module.affine else shift
