# SPDX-License-Identifier: BSD-3-Clause
"""Feature maps of wavelets as sites have them: features of a channel are adjacent, and complex numbers are pairs.

`Wavelets` orders its output by filter. In a site, phi is (N, d F, H, W), the F features of channel 0 first; a complex
phi or z has one more axis of length 2 at the end. The layers between two sites are not changed: modules at the ends of
a site convert.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rainbow_fast.networks.scattering import Wavelets

FILTERS = 5  # the low-pass filter and four wavelets


def order_by_channel(channels: int, features: int, device: torch.device | None = None) -> Tensor:
    """The channels of the output of `Wavelets` for so many channels of z, in the order of a site, (channels F,)."""
    places = torch.arange(FILTERS * channels, device=device)
    half = torch.cat([places[:channels, None], places[channels:].view(channels, -1)], 1)
    return torch.cat([half + len(places) * i for i in range(features // FILTERS)], 1).flatten()


class ByChannel(nn.Module):
    """The output of `Wavelets` (N, F d, H, W) in the order of a site. Complex numbers become pairs."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, phi: Tensor) -> Tensor:
        phi = phi[:, order_by_channel(phi.shape[1] // self.features, self.features, phi.device)]
        return torch.view_as_real(phi) if phi.is_complex() else phi


class ByFilter(ByChannel):
    """The inverse of `ByChannel`."""

    def forward(self, phi: Tensor) -> Tensor:
        phi = torch.view_as_complex(phi.contiguous()) if phi.dim() == 5 else phi
        return phi[:, order_by_channel(phi.shape[1] // self.features, self.features, phi.device).argsort()]


class AsComplex(nn.Module):
    """Pairs (..., 2) as complex numbers."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.view_as_complex(z.contiguous())


def features_of(wavelets: Wavelets) -> int:
    """Number of features of each channel."""
    return 2 * FILTERS if wavelets.skip else FILTERS
