# SPDX-License-Identifier: BSD-3-Clause
"""Which wavelets of a graph are sites, and whether their maps and the weights before them are complex."""

from __future__ import annotations

from torch import fx, nn

from rainbow_fast.networks.scattering import ComplexConv2d, RealConv2d, UnitNorm, Wavelets
from rainbow_fast.tracing.graph import module_of


def is_paired(z: fx.Node, owner: fx.GraphModule) -> bool | None:
    """Whether the maps z are complex, by the layer that writes them; None if it is no convolution."""
    module = _writer(z, owner)
    return isinstance(module, RealConv2d | ComplexConv2d) if isinstance(module, nn.Conv2d) else None


def has_complex_weights(z: fx.Node, owner: fx.GraphModule) -> bool:
    """Whether the layer that writes the maps z has complex weights."""
    module = _writer(z, owner)
    return isinstance(module, ComplexConv2d) and module.weight.is_complex()


def reason_kept(sigma: nn.Module | None, z: fx.Node, owner: fx.GraphModule) -> str | None:
    """Why wavelets of the maps z are no site; None if they are one, or if `sigma` is another non-linearity."""
    if not isinstance(sigma, Wavelets):
        return None
    module, paired = _writer(z, owner), is_paired(z, owner)
    if paired is None:
        return "no convolution writes the maps that it filters"
    if isinstance(module, ComplexConv2d) and module.bias is not None:
        return "the complex convolution before it has a bias"
    return "with skip=True it makes complex maps of real ones" if sigma.skip and not paired else None


def _writer(z: fx.Node, owner: fx.GraphModule) -> nn.Module | None:
    """The layer that writes the maps z, or their values before a division by their norm."""
    module = module_of(z, owner)
    return _writer(z.all_input_nodes[0], owner) if isinstance(module, UnitNorm) else module
