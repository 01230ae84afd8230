# SPDX-License-Identifier: BSD-3-Clause
"""The kernel that a network with learned covariances has at a site of infinitely many neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from rainbow_fast.arguments import integer
from rainbow_fast.infinite_width import NeuronKernel
from rainbow_fast.maps import as_rows, channels_first
from rainbow_fast.rainbow.network.limit_activation import LimitActivation
from rainbow_fast.rainbow.network.rainbow_network import RainbowNetwork


class SiteKernel:
    r"""The kernel of infinitely many neurons at a site, with learned C: k(x, x') = E[phi'(x) phi'(x')], at its zh.

    It is the kernel of the paper if the sites before have infinitely many neurons, too. With maps it is the mean over
    equal positions, which is the kernel of flattened features::

        kernel = SiteKernel(network)                 # of rainbow_fast.sample(reference, x, factor=math.inf)
        u = kernel.embedded(x)
        K = kernel(u, u)

    C = I, the kernel of an untrained network, is `rainbow_fast.infinite_width.Gram`.

    Args:
        network: a sampled network.
        site: name of a sampled site of infinitely many neurons, or of Gaussian rows; None (default) for the last one.
        batch_size: images that the network runs on at a time.

    Attributes:
        site: the name.

    Raises:
        ValueError: the site is not sampled, or has no closed form.
        TypeError: the network is none that was sampled.

    Source: Guth, Menard, Rochette and Mallat (JMLR 2024), equation 11.
    """

    def __init__(self, network: RainbowNetwork, site: str | None = None, *, batch_size: int = 512) -> None:
        if not isinstance(network, RainbowNetwork):
            raise TypeError(f"network: wanted a RainbowNetwork, got {type(network).__name__}")
        self.network, self.site = network, network.sampled[-1] if site is None else site
        self.batch_size = integer("batch_size", batch_size, 1)
        self._activation = network.site(self.site)
        at = self._activation
        if isinstance(at, LimitActivation):
            self._neurons = at.neurons
            return
        how = at.kind.expected()
        if how is None or not at.drawn.implicit:
            raise ValueError(
                f"site {self.site!r} has no closed form: wanted infinitely many neurons, or Gaussian rows "
                "(law='gaussian'), without pooling, of a known activation"
            )
        self._neurons = NeuronKernel(**how)

    @torch.no_grad()
    def embedded(self, x: Tensor) -> Tensor:
        """What the kernel depends on, (N, positions, r + 1) float64: u and zbar, which is 0 unless the mean is kept."""
        parts: list[Tensor] = []

        def embed(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            z = channels_first(inputs[0], self._activation.axis, flattened=True).double()
            u, shift = self._activation.project(z)
            zbar = u.new_zeros(len(u), 1, *u.shape[2:]) if shift is None else shift.unsqueeze(1)
            rows = torch.cat([u, zbar], 1)
            parts.append(as_rows(rows).view(len(z), -1, rows.shape[1]).cpu())

        hook = self._activation.register_forward_pre_hook(embed)
        try:
            for batch in x.split(self.batch_size):
                self.network(batch)
        finally:
            hook.remove()
        return torch.cat(parts)

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        """The kernel of embedded inputs u (N, positions, r + 1) and v (N', positions, r + 1), (N, N') float64.

        Raises:
            ValueError: as `rainbow_fast.infinite_width.expected_kernel`.
        """
        total = u.new_zeros(len(u), len(v))
        for a, b in zip(u.unbind(1), v.unbind(1), strict=True):
            total += self._neurons(a[:, :-1], b[:, :-1], a[:, -1], b[:, -1])
        return total.div_(u.shape[1])
