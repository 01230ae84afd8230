# SPDX-License-Identifier: BSD-3-Clause
"""The sampled network: the reference with its sites replaced by sampled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.joint_inputs import arguments, first_parameter, layout_of
from rainbow_fast.rainbow.laws.law import INFINITE
from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.same_network import written_out
from rainbow_fast.tracing.own_inputs import with_own_inputs
from rainbow_fast.tracing.tail import Tail
from rainbow_fast.tracing.trace import Site, Trace


class RainbowNetwork(nn.Module):
    """A network sampled from a reference. It is an ordinary nn.Module in eval mode.

    `RainbowModel.sample` and `rainbow_fast.load` make it. Its constructor is not part of the public interface.

    `body` is the reference with a `RainbowActivation` in the place of each sampled site. The `RainbowActivation`
    includes the pooling and the normalisation of the site; only an affine part of the normalisation stays in the body.
    If every sampled non-linearity of the reference is a module that is called once, the body is a copy of the reference
    with the same class and names. Otherwise it is a `torch.fx.GraphModule` with the same parameters.

    Attributes:
        body: the network that is run.
        sampled: names of the sampled sites, in order.
        classifier: the option `classifier`: None, "refit", "refit_aligned" or "retrained".
        head: name of the last layer if it was fitted again to phih ("refit_aligned"); None otherwise.
        retrained: names of the layers after the last site that were trained again ("retrained"); otherwise empty.
        input_shape: shape of one sample.
        fingerprint: SHA-256 of the weights of the reference.
        own_layers: by the name of a site, the name of the module that writes its z, if that is not the reference's.
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        sampled: tuple[str, ...],
        classifier: str | None,
        head: str | None,
        input_shape: tuple[int, ...],
        fingerprint: str,
        own_layers: Mapping[str, str] | None = None,
        retrained: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.body = body
        self.sampled, self.classifier, self.head = sampled, classifier, head
        self.input_shape, self.fingerprint, self.own_layers = input_shape, fingerprint, dict(own_layers or {})
        self.retrained = retrained
        self._probes: Tensor | None = None
        self.eval()

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """As `forward`. A single input may also have the name that it has in the reference."""
        if not inputs and len(named) == 1 and first_parameter(self.body) in named:
            inputs, named = tuple(named.values()), {}
        return super().__call__(*inputs, **named)

    def forward(self, x: Tensor) -> Any:
        """The outputs for a batch x (N, *input_shape)."""
        return self.body(x)

    @property
    def inputs(self) -> dict[str | int, tuple[int, ...]] | None:
        """The shape of a sample of each input by its name, or by its place, if there are several; None for one."""
        layout = layout_of(self.body)
        return None if layout is None else {each.name: each.shape for each in layout.inputs}

    def site(self, name: str) -> RainbowActivation:
        """The sampled site of this name.

        Raises:
            ValueError: no sampled site has this name.
        """
        if name not in self.sampled:
            raise ValueError(f"name={name!r}: wanted one of the sampled sites {', '.join(self.sampled)}")
        module = self.body.get_submodule(name)
        assert isinstance(module, RainbowActivation)
        return module

    @torch.no_grad()
    def materialize(self) -> nn.Module:
        """The same network as a plain wide module of standard PyTorch layers, with the weights ``W' = s G_eff W A``.

        Between two sites, linear layers and convolutions become one dense wide layer. Biases, eval-mode batch norms,
        recalibration and scale are folded into it. A skip connection becomes a dense 1x1 map parallel to it. An offset
        becomes one more neuron with zero weights and bias 1, so that zero padding remains correct. Averages over
        positions and Flatten are applied to the wide feature maps.

        Other operations (grouped convolutions, layer norm, attention, products, max-pooling that is not part of a
        site) read the d channels of the reference. For these, the linear map to d channels is written as a separate
        layer. The same holds for a value that is read twice, unless it is one map of channels.

        Memory: n m k numbers between two sites of widths n and m and a kernel of k positions, in float64 during the
        multiplication.

        Returns:
            A Sequential if the network is a chain of layers, otherwise a `torch.fx.GraphModule`, in eval mode. Its
            outputs equal those of this network up to rounding. A network that torch.fx cannot trace is copied, and
            each site becomes a Sequential of linear map, non-linearity and linear map.

        Raises:
            ValueError: a site has infinitely many neurons.
            RuntimeError: on a few inputs (Gaussian numbers, or token ids of the data) the outputs differ by more than
                1e-5 of the largest output (8 units of a half precision), beyond rounding. The message names the first
                site that differs.
        """
        for name in self.sampled:
            if self.site(name).n == INFINITE:
                raise ValueError(f"site {name!r} has infinitely many neurons: wanted a network of finite width")
        return with_own_inputs(written_out(self.body, self.input_shape, self._probes))

    def keep_probes(self, x: Tensor) -> None:
        """Keep a few samples to compare `materialize` on, if they are indices: a network may refuse other ones.

        They are not saved.
        """
        self._probes = None if x.is_floating_point() else x


class SeveralInputs(RainbowNetwork):
    """A sampled network of several inputs, which is called as the reference is. `body` takes the rows that join them.

    The samples of each input must have the shapes of the data that the network was sampled with.
    """

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """The outputs for these inputs, or for their rows."""
        layout = layout_of(self.body)
        assert layout is not None
        if len(inputs) == 1 and not named and isinstance(inputs[0], Tensor) and inputs[0].dtype == torch.uint8:
            return self.body(inputs[0])
        return self.body(arguments(layout, inputs, named, next(self.body.parameters()).device))


def assemble(
    trace: Trace,
    activations: Mapping[str, RainbowActivation],
    *,
    classifier: str | None,
    head: nn.Linear | None,
    input_shape: tuple[int, ...],
    fingerprint: str,
    own_layers: Mapping[str, str] | None = None,
    tail: Tail | None = None,
) -> RainbowNetwork:
    """Put the sampled sites into a copy of the reference.

    With ``classifier="refit"``, A of the last site is the new classifier, so the last linear layer becomes an identity.
    If A is applied to all positions together, the layers between are left out too. With ``"refit_aligned"``, `head`
    replaces the last linear layer. With ``"retrained"``, the layers of `tail` replace those after the last site.
    """
    replacements: dict[str, nn.Module] = dict(activations)
    name, ends_at = None, None
    if tail is not None:
        replacements |= tail.layers()
    elif classifier is not None:
        name = trace.tail().name
        replacements[name] = nn.Identity() if head is None else head
        if head is None and activations[trace.sites[-1].name].flattened:
            del replacements[name]
            ends_at = trace.sites[-1].name
    body = trace.rebuild(replacements, ends_at=ends_at)
    return (RainbowNetwork if layout_of(body) is None else SeveralInputs)(
        body,
        sampled=tuple(activations),
        classifier=classifier,
        head=None if head is None else name,
        input_shape=input_shape,
        fingerprint=fingerprint,
        own_layers=own_layers,
        retrained=() if tail is None else tuple(tail.layers()),
    )


def refit_flattened(tail: Tail, phi: Tensor) -> bool:
    """Whether a new classifier in the last site must be a map of the features of all positions.

    A map of channels is enough if the layers between the site and the classifier give one feature per neuron and map
    constants to themselves: it then commutes with these averages.

    Args:
        phi: output of the site, which the layers between receive.
    """
    return not (tail.features(phi) == 1 and tail.keeps_constants(phi))


def refit_site(site: Site, tail: Tail, *, flattened: bool) -> Site:
    """The last site with a new classifier. If it is `flattened`, the layers in between become part of its pooling."""
    if not flattened:
        return site
    return replace(site, after=nn.Sequential(*([] if site.after is None else [site.after]), tail.between))
