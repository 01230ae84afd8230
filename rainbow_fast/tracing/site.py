# SPDX-License-Identifier: BSD-3-Clause
"""A site: a pointwise non-linearity or wavelets with moduli, with what belongs to it: pooling and normalisations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from rainbow_fast.networks.scattering import Wavelets
from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.tracing.graph import is_changed, is_function, module_of
from rainbow_fast.tracing.nonlinearities import KERNELS
from rainbow_fast.tracing.operations import name_of
from rainbow_fast.tracing.wavelet_maps import AsComplex, ByChannel, ByFilter, features_of

LINEAR = frozenset(  # names of functions, methods and operators
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution matmul bmm mm addmm "
    "baddbmm einsum scaled_dot_product_attention".split()
)
FLATTENS = ("flatten", "view", "reshape")


@dataclass(frozen=True, eq=False)
class Site:
    """A pointwise non-linearity, with the max-pooling directly before or after it and the normalisation directly after.

    It computes ``phi = norm(after(sigma(before(z))))``. The d channels of its input z are the neurons of the layer that
    writes z; its output phi are the activations. A site is one call: a module that is called twice makes two sites.

    A site with an `expansion` computes ``phi = norm(after(sigma(G z / sqrt(r))))``: its neurons are those of random
    features (`rainbow_fast.nn.RandomFeatures`) of the r channels of z.

    If sigma is `Wavelets`, `before` may be a division by the norm over channels, and phi has several features of each
    channel of z, which are adjacent, see `wavelet_maps`.

    Attributes:
        index: position in the list of all sites of the network; part of the stream of the site's random numbers.
        name: the dotted name of the activation module. For a function: the name of the module that calls it, a dot, and
            the name of the function. Repeated names get ``_1``, ``_2``, ... added.
        sigma: the non-linearity, as a module.
        activation, negative_slope: the arguments of `rainbow_fast.random_features` that compute sigma. `activation` is
            None if the fused kernels do not have sigma, or if sigma has hooks, which the kernels would not run.
        before, after: the max-pooling before and after sigma, or None.
        norm: the batch norm in eval mode without its affine part, or None.
        following: what makes the output of these layers from phi: the affine part of the batch norm as a separate
            layer, or the order of the channels that `Wavelets` have; None if phi is the output.
        paired: whether z and phi are complex, as pairs of real numbers on a last axis.
        complex_weights: whether the weights of `writer` are complex. Then random rows and A are complex, too.
        axis: the channel axis of z, 1 or -1; None if it is not known, so that only z of shape (N, d) can be sampled.
        writer: the linear layer without bias whose output is z, or None if z is computed in another way.
        feeds_flatten: whether a Flatten is the only reader of phi.
        output: whether no linear layer comes after the site. These sites are sampled only if they are named.
        gate: whether phi multiplies another activation and lies between 0 and 1. These sites are sampled only if they
            are named.
        modules: dotted names of the modules that the site replaces; None if a part of the site is a function, or a
            module that is called elsewhere too.
        expansion: the random features that the site computes, or None.
        reference: the module that computes phi from z in the trained network; it leaves z unchanged.
    """

    index: int
    name: str
    sigma: nn.Module
    activation: str | None
    negative_slope: float
    before: nn.Module | None
    after: nn.Module | None
    norm: nn.Module | None
    following: nn.Module | None
    axis: int | None
    writer: nn.Linear | _ConvNd | None
    feeds_flatten: bool
    output: bool
    gate: bool
    modules: tuple[str, ...] | None
    expansion: RandomFeatures | None
    reference: nn.Sequential
    paired: bool = False
    complex_weights: bool = False

    @property
    def features(self) -> int:
        """Number of features of each neuron at each position."""
        return features_of(self.sigma) if isinstance(self.sigma, Wavelets) else 1

    @property
    def fused(self) -> bool:
        """Whether the fused kernels compute the site; the features are then never stored."""
        return self.activation is not None and self.before is None and self.after is None


def make(
    index: int,
    name: str,
    sigma: nn.Module,
    *,
    axis: int | None,
    writer: nn.Linear | _ConvNd | None,
    output: bool,
    modules: tuple[str, ...] | None,
    before: nn.Module | None = None,
    after: nn.Module | None = None,
    norm: nn.Module | None = None,
    following: nn.Module | None = None,
    feeds_flatten: bool = False,
    gate: bool = False,
    paired: bool = False,
    complex_weights: bool = False,
) -> Site:
    """The site of the non-linearity `sigma`, a module that nothing else uses; arguments as in `Site`.

    `sigma` may be `RandomFeatures`, which are then the expansion of the site.
    """
    layers = [layer for layer in (before, sigma, after, norm) if layer is not None]
    if isinstance(sigma, Wavelets):
        features = features_of(sigma)
        layers = [*[AsComplex()] * paired, *layers, ByChannel(features)]
        order = ByFilter(features)
        following = order if following is None else nn.Sequential(order, following)
    expansion = sigma if isinstance(sigma, RandomFeatures) else None
    if expansion is not None:
        sigma, after = expansion.sigma, expansion.pool or after
    if getattr(sigma, "inplace", False):
        sigma.inplace = False  # type: ignore[assignment]  # z is still read after phi is computed
    return Site(
        index=index,
        name=name,
        sigma=sigma,
        activation=_kernel(sigma) if expansion is None else expansion.activation,
        negative_slope=_slope(sigma) if expansion is None else expansion.negative_slope,
        before=before,
        after=after,
        norm=norm,
        following=following,
        axis=axis,
        writer=writer,
        feeds_flatten=feeds_flatten,
        output=output,
        gate=gate,
        modules=modules,
        expansion=expansion,
        reference=nn.Sequential(*layers).eval().requires_grad_(False),
        paired=paired,
        complex_weights=complex_weights,
    )


def _kernel(sigma: nn.Module) -> str | None:
    """The fused kernel of a non-linearity; None if there is none, or if hooks or a replaced forward may change it."""
    return None if is_changed(sigma) or getattr(sigma, "approximate", "none") != "none" else KERNELS.get(type(sigma))


def _slope(sigma: nn.Module) -> float:
    if isinstance(sigma, nn.PReLU):
        return float(sigma.weight.detach()[0])  # `trace` refuses a PReLU with several slopes
    return float(sigma.negative_slope) if isinstance(sigma, nn.LeakyReLU) else 0.01


def is_linear(node: fx.Node, owner: fx.GraphModule) -> bool:
    """Whether a node mixes channels by a linear map, whose matrix is a parameter or another activation."""
    if isinstance(module_of(node, owner), nn.Linear | _ConvNd | nn.MultiheadAttention | RandomFeatures):
        return True
    return name_of(node) in LINEAR


def is_flatten(node: fx.Node, owner: fx.GraphModule) -> bool:
    """Whether a node flattens each sample into one row."""
    module = module_of(node, owner)
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if not is_function(node, FLATTENS, (torch.flatten, torch.reshape)):
        return False
    arguments = node.args[1:]
    if node.target in ("flatten", torch.flatten):
        return arguments in ((1,), (1, -1)) and not node.kwargs
    shape = arguments[0] if arguments and isinstance(arguments[0], tuple | list) else arguments
    return len(shape) == 2
