# SPDX-License-Identifier: BSD-3-Clause
"""The sampled network: the reference with its sites replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from rainbow_fast.rainbow.network.activation import RainbowActivation
from rainbow_fast.rainbow.network.same_network import written_out
from rainbow_fast.tracing.tail import Tail
from rainbow_fast.tracing.trace import Site, Trace


class RainbowNetwork(nn.Module):
    """A network sampled from a reference: an ordinary module.

    `RainbowModel.sample` and `rainbow_fast.load` make it. Its constructor is not part of the public interface.

    `body` is the reference with a `RainbowActivation` in the place of each sampled site; a pooling or normalisation
    that belongs to it is gone (an affine part stays). It is a copy of the reference, of the same class and names, where
    every sampled non-linearity is a module that is called once; else a `torch.fx.GraphModule` of the same parameters.
    In eval mode.

    Attributes:
        sampled: names of the sampled sites, in order.
        classifier: None, "refit" or "refit_aligned", as it was asked for; `head` names the layer refit to phih.
        input_shape: of one sample.
        fingerprint: of the weights of the reference.
        own_layers: by the name of a site the module that writes it, where that is not the reference's.
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
    ) -> None:
        super().__init__()
        self.body = body
        self.sampled, self.classifier, self.head = sampled, classifier, head
        self.input_shape, self.fingerprint, self.own_layers = input_shape, fingerprint, dict(own_layers or {})
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def site(self, name: str) -> RainbowActivation:
        """The sampled site of that name.

        Raises:
            ValueError: no sampled site has it.
        """
        if name not in self.sampled:
            raise ValueError(f"name={name!r}: wanted one of the sampled sites {', '.join(self.sampled)}")
        module = self.body.get_submodule(name)
        assert isinstance(module, RainbowActivation)
        return module

    @torch.no_grad()
    def materialize(self) -> nn.Module:
        """The same network as a plain, wide module of torch's own layers: ``W' = s G_eff W A`` written out.

        Between two sites, linear layers and convolutions become one dense wide layer, into which biases, eval-mode
        batch norms, recalibration and scale are folded; a skip becomes a dense 1x1 map beside it. An offset is one more
        neuron with zero weights and bias 1, so that zero padding stays right. Averages over positions and Flatten act
        on the wide maps. Whatever else reads a value (grouped convolutions, layer norm, attention, products,
        max-pooling that is not of a site), and what is read twice and is no map of channels, gets it written out in the
        d channels of the reference, as a factor of its own.

        Returns:
            A Sequential where one layer follows the other, else a `torch.fx.GraphModule`, in eval mode; equal to
            rounding. A network that torch.fx cannot trace is copied, with a Sequential of linear map, non-linearity and
            linear map in the place of each site. Memory: n m k numbers between two sites of widths n and m with kernels
            of k positions, in float64 while they are multiplied.

        Raises:
            RuntimeError: on a few Gaussian inputs it differs from the network by more than 1e-5 of the largest output
                (8 units of a half precision), beyond rounding; the message names the first site that differs.
        """
        return written_out(self.body, self.input_shape)


def assemble(
    trace: Trace,
    activations: Mapping[str, RainbowActivation],
    *,
    classifier: str | None,
    head: nn.Linear | None,
    input_shape: tuple[int, ...],
    fingerprint: str,
    own_layers: Mapping[str, str] | None = None,
) -> RainbowNetwork:
    """Put the sampled sites into a copy of the reference.

    With ``classifier="refit"`` the last site's A is the refit classifier itself, so the last linear layer becomes an
    identity, and all between is left out where A takes every position; with ``"refit_aligned"`` `head` replaces it.
    """
    replacements: dict[str, nn.Module] = dict(activations)
    name, ends_at = None, None
    if classifier is not None:
        name = trace.tail().name
        replacements[name] = nn.Identity() if head is None else head
        if head is None and activations[trace.sites[-1].name].flattened:
            del replacements[name]
            ends_at = trace.sites[-1].name
    return RainbowNetwork(
        trace.rebuild(replacements, ends_at=ends_at),
        sampled=tuple(activations),
        classifier=classifier,
        head=None if head is None else name,
        input_shape=input_shape,
        fingerprint=fingerprint,
        own_layers=own_layers,
    )


def refit_flattened(tail: Tail, phi: Tensor) -> bool:
    """Whether a site holds a refit classifier as a map of all its features, phi being what it gives the layers between.

    Where these leave one feature for each neuron, and of a map of ones one, a map of channels does, which commutes with
    the averages.
    """
    return not (tail.features(phi) == 1 and tail.keeps_constants(phi))


def refit_site(site: Site, tail: Tail, *, flattened: bool) -> Site:
    """A site that holds a refit classifier: of all features, it takes the layers between into its pooling."""
    if not flattened:
        return site
    return replace(site, after=nn.Sequential(*([] if site.after is None else [site.after]), tail.between))
