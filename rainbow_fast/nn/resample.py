# SPDX-License-Identifier: BSD-3-Clause
"""Training with resampling: at every step, rainbow layers have fresh neurons, aligned to their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from rainbow_fast.arguments import flag, integer, one_of
from rainbow_fast.nn.addresses import warn_if_shared
from rainbow_fast.nn.expansion import RandomFeatures
from rainbow_fast.nn.fresh_neurons import FreshNeurons
from rainbow_fast.nn.keyed import Keyed
from rainbow_fast.ops.gaussian import NETWORK_BITS, SITE_BITS, site_key

MOMENTS = {"local": "to_own", "clean": "to_clean", "closed_form": "of_gaussian"}  # methods of FreshNeurons
MAX_SAMPLES = 16384


def resample(
    network: nn.Module,
    width: int | Mapping[str, int] | None = None,
    *,
    align: str = "local",
    gradient: bool = False,
    seed: int = 0,
    max_samples: int = MAX_SAMPLES,
) -> Resampled:
    r"""Train a network of rainbow layers so that its samples work: fresh neurons in every forward pass.

    Each `RandomFeatures` of the network, ``phi = sigma(G z / sqrt(r))`` with n neurons, computes instead

        phih = sqrt(n / n') A sigma(G' z / sqrt(r)),    A = polar(M)

    with a new matrix G' (n', r) in each pass. `align` chooses M:

    - ``"local"`` (default): ``M = E[phi phi'^T]`` over the batch, with phi the layer's own neurons on the same z. One
      pass of the network.
    - ``"clean"``: the same with phi from a pass of the network itself, which is computed first and without gradient.
      This is the alignment of `rainbow_fast.sample` with ``method="paper"``.
    - ``"closed_form"``: ``M = E[sigma(G z / sqrt(r)) sigma(G' z / sqrt(r))^T]`` for a Gaussian z with the second moment
      of the batch, by `rainbow_fast.infinite_width.expected_kernel`. One pass. M leaves the pooling of a layer out.

    Max-pooling after a layer is part of a site for `rainbow_fast.sample`: the fresh neurons are pooled, and A comes
    after it. This is so here if the layer has the pooling (`RandomFeatures`, ``pool=``). Other layers that follow,
    batch norms among them, read phih.

    Usage::

        resampled = rf.nn.resample(network, width=256)
        for x, y in loader:  # with `resampled` in the place of the network
            loss(resampled(x), y).backward()

    or ``with rf.nn.resample(network, width=256): network(x)``. One epoch of it after usual training is a fine-tuning
    that makes samples better and costs the network's own accuracy little; with all epochs, both can become worse.
    In eval mode the module computes the network itself.

    Args:
        network: the network; its parameters are shared.
        width: n', the number of fresh neurons: for all layers, or by name of a `RandomFeatures`; layers that are not
            named, and all with None (default), keep n.
        align: "local", "clean" or "closed_form".
        gradient: whether the gradient goes through A. It then needs an M of full rank, and is a little better and
            much slower; False by default.
        seed: of the fresh neurons. Pass t has the neurons of the network that `rainbow_fast.sample` makes with this
            seed and ``network_index=t``, if all sites of the network are rainbow layers, called in the order of
            ``network.modules()``.
        max_samples: at most so many samples (positions of the batch) are in M; 16384 by default.

    Raises:
        TypeError, ValueError: an argument is outside its range; the network has no `RandomFeatures`; `width` names
            another module.
        FloatingPointError: in a forward pass, features are not finite or all zero, as they become if training
            diverges; names the layer.

    Warns:
        UserWarning: layers have the same seed and stream, and therefore the same neurons; names them.

    Source: White, Chaudhary, Wolf, Lajoie and Harris, "Learning stochastic rainbow networks" (2024); the alignment is
    equation 6 of Guth, Menard, Rochette and Mallat (JMLR 2024).
    """
    one_of("align", align, MOMENTS)
    if not isinstance(network, nn.Module):
        raise TypeError(f"network: wanted an nn.Module, got {type(network).__name__}")
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, RandomFeatures)}
    if not layers:
        raise ValueError("network: no rainbow layer, wanted at least one rainbow_fast.nn.RandomFeatures")
    widths = _widths(width, layers)
    warn_if_shared(network, stacklevel=2)
    how: dict[str, Any] = {
        "gradient": flag("gradient", gradient),
        "max_samples": integer("max_samples", max_samples, 1),
    }
    fresh = [FreshNeurons(layer, name, widths[name], **how) for name, layer in layers.items()]
    return Resampled(network, fresh, align, seed)


def _widths(width: int | Mapping[str, int] | None, layers: Mapping[str, RandomFeatures]) -> dict[str, int]:
    own = {name: layer.n for name, layer in layers.items()}
    if width is None:
        return own
    if not isinstance(width, Mapping):
        return dict.fromkeys(own, integer("width", width, 1))
    for name in width:
        if name not in own:
            raise ValueError(f"width: {name!r} is no rainbow layer: wanted some of {', '.join(own)}")
    return own | {name: integer(f"width of {name!r}", n, 1) for name, n in width.items()}


class Resampled(Keyed):
    """A network whose rainbow layers have fresh neurons in each forward pass; `resample` makes it.

    The state dict has the network's under ``network.``, and ``key``, the address of the neurons of the next pass, so
    that training that is continued goes on with other neurons.

    Attributes:
        network: the network itself.
        align: "local", "clean" or "closed_form".
    """

    def __init__(self, network: nn.Module, fresh: list[FreshNeurons], align: str, seed: int) -> None:
        super().__init__(site_key(seed, 0, 0))
        self.network, self.align = network, align
        self._fresh = fresh
        self._handle: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns, with fresh neurons in train mode, with its own in eval mode."""
        if not self.training:
            return self.network(*args, **kwargs)
        with self:
            return self.network(*args, **kwargs)

    def __enter__(self) -> Resampled:
        """From here on, each forward pass of the network has fresh neurons."""
        if self._handle is not None or any(each.layer.in_place_of is not None for each in self._fresh):
            raise RuntimeError("network: its neurons are resampled already")
        self._handle = self.network.register_forward_pre_hook(self._begin, with_kwargs=True)
        return self

    def __exit__(self, *exception: object) -> None:
        """The network has its own neurons again."""
        self._handle.remove()
        self._handle = None
        for each in self._fresh:
            each.layer.in_place_of = None

    def _begin(self, network: nn.Module, args: tuple, kwargs: dict) -> None:
        """Draw the neurons of a pass; for clean targets, run the network itself."""
        seed, step = int(self.key[0]), int(self.key[1]) >> SITE_BITS
        for place, each in enumerate(self._fresh):
            each.key = site_key(seed, step, place)
            each.clean.clear()
        if self.align == "clean":
            for each in self._fresh:
                each.layer.in_place_of = each.keep
            with torch.no_grad(), _leaving_no_trace(network):
                network.forward(*args, **kwargs)
        for each in self._fresh:
            each.layer.in_place_of = partial(each.aligned, moment=getattr(each, MOMENTS[self.align]))
        seed, step = (seed, step + 1) if step + 1 < 2**NETWORK_BITS else (seed + 1, 0)
        self.key = site_key(seed, step, 0)


@contextmanager
def _leaving_no_trace(network: nn.Module) -> Iterator[None]:
    """Buffers, such as running statistics, and the random state become what they were."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
