# SPDX-License-Identifier: BSD-3-Clause
"""The sampled network: the reference with its sites replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rainbow_fast.networks.trace import Site, Trace, leaves, rebuild
from rainbow_fast.rainbow.activation import RainbowActivation
from rainbow_fast.rainbow.materialize import materialize

CLASSIFIERS = (None, "refit", "refit_aligned")


class RainbowNetwork(nn.Module):
    """A network sampled from a reference: an ordinary module, made by `RainbowModel.sample` or `rainbow_fast.load`.

    `body` is a copy of the reference, of the same structure and names, in which a `RainbowActivation` stands in the
    place of each sampled non-linearity; a pooling or normalisation that belongs to it has become an identity (an affine
    part stays). In eval mode.

    Attributes:
        sampled: names of the sampled sites, in order.
        classifier: None, "refit" or "refit_aligned", as it was asked for; `head` names the layer refit to phih.
        input_shape: of one sample.
        fingerprint: of the weights of the reference.
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
    ) -> None:
        super().__init__()
        self.body = body
        self.sampled, self.classifier, self.head = sampled, classifier, head
        self.input_shape, self.fingerprint = input_shape, fingerprint
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

    def materialize(self) -> nn.Sequential:
        """The same network as a plain, wide Sequential of torch's own layers: ``W' = s G_eff W A`` written out.

        Biases, eval-mode batch norms, recalibration and scale are folded into the weights; an offset is one more neuron
        with zero weights and bias 1, so that zero padding stays right. Equal to rounding. Memory: n m numbers between
        two sites of widths n and m.
        """
        with torch.no_grad():
            return materialize(self.body, self.input_shape)


def assemble(
    reference: nn.Module,
    trace: Trace,
    activations: Mapping[str, RainbowActivation],
    *,
    classifier: str | None,
    head: nn.Linear | None,
    input_shape: tuple[int, ...],
) -> RainbowNetwork:
    """Put the sampled sites into a copy of the reference.

    With ``classifier="refit"`` the last site's A is the refit classifier itself, so the last linear layer becomes an
    identity, and so does all between where A takes every position; with ``"refit_aligned"`` `head` replaces that layer.
    """
    replacements: dict[str, nn.Module] = {}
    for site in trace.sites:
        if site.name in activations:
            replacements |= {name: nn.Identity() for name in site.layers}
            if site.affine is not None:
                replacements[site.layers[-1]] = site.affine
            replacements[site.name] = activations[site.name]
    if classifier == "refit":
        flattened = activations[trace.sites[-1].name].flattened
        replacements |= {name: nn.Identity() for name in (trace.tail if flattened else trace.tail[-1:])}
    elif head is not None:
        replacements[trace.tail[-1]] = head
    return RainbowNetwork(
        rebuild(reference, replacements),
        sampled=tuple(activations),
        classifier=classifier,
        head=None if head is None else trace.tail[-1],
        input_shape=input_shape,
        fingerprint=fingerprint(reference),
    )


def fingerprint(reference: nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in reference.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def tail_layers(reference: nn.Module, trace: Trace) -> tuple[list[nn.Module], nn.Linear]:
    """The layers between the last site and the classifier, and the classifier, where that can be refit.

    Raises:
        ValueError: the network does not end in a linear layer after channelwise linear ones.
    """
    found = [(name, module) for name, module in leaves(reference) if name in trace.tail]
    linear_maps = nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.Flatten | nn.Dropout | nn.Dropout2d | nn.Identity
    between = [module for _, module in found[:-1]]
    last = found[-1][1] if found else None
    affine = trace.sites[-1].affine is not None
    if not isinstance(last, nn.Linear) or affine or not all(isinstance(m, linear_maps) for m in between):
        kinds = ["affine part of a normalisation"] * affine + [type(module).__name__ for _, module in found]
        raise ValueError(
            "classifier: only a Linear at the very end can be refit, after average pooling and Flatten alone; "
            f"after the last site come {', '.join(kinds) or 'no layers'}"
        )
    return between, last


def refit_layout(site: Site, between: list[nn.Module], positions: int) -> tuple[bool, nn.Module | None]:
    """How a site holds a classifier that sees `positions` of each neuron: whether flattened, and its pooling after.

    One position: a map of channels, which commutes with the average over positions that follows. More: a map of all
    features, behind the pooling that the reference has between.
    """
    pools = [module for module in between if isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d)]
    padded = any(getattr(pool, "padding", 0) not in (0, (0, 0)) for pool in pools)  # then a constant is not kept
    if not pools or (positions == 1 and not padded):
        return positions > 1, site.after
    return True, nn.Sequential(*([] if site.after is None else [site.after]), *pools)
