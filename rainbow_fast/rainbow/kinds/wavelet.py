# SPDX-License-Identifier: BSD-3-Clause
"""The kind of site of learned scattering networks: wavelets along space and moduli of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.maps import as_pairs, real_columns
from rainbow_fast.networks.scattering import Wavelets
from rainbow_fast.ops.activations import MODULUS, modulus
from rainbow_fast.ops.wavelet_modulus import wavelet_modulus
from rainbow_fast.ops.wavelet_modulus_arguments import wavelet_modulus_flops
from rainbow_fast.rainbow.kinds.kind import Kind
from rainbow_fast.tracing.site import Site
from rainbow_fast.tracing.wavelet_maps import FILTERS, order_by_channel


class Wavelet(Kind):
    """``phi' = [(N z') * phi, |(N z') * psi_t|]`` with ``z' = G_eff zh``: 5 features per neuron, or 10 with `skip`.

    Wavelets act on space and G on channels, so they commute. N, which divides by the norm over the neurons at each
    position, is a factor of each position:

        (N z') * psi = G_eff ((q zh) * psi),    q = 1 / |G_eff zh|

    So the d channels of zh are filtered, never the n neurons. A modulus is that of a pair of real numbers,
    ``|z' * psi|^2 = (G_eff Re u)^2 + (G_eff Im u)^2`` with ``u = (q zh) * psi``. A standardisation may follow.
    With complex weights the real matrix (Re G_eff, Im G_eff) takes the place of G_eff, and (u, i u) that of u.

    Args:
        site: a traced site whose non-linearity is `Wavelets`.
    """

    has_activity = False

    def __init__(self, site: Site) -> None:
        super().__init__()
        wavelets = site.sigma
        assert isinstance(wavelets, Wavelets)
        self.bank, self.skip, self.paired = wavelets.bank, wavelets.skip, site.paired
        self.complex_weights = site.complex_weights
        self.divides, self.features = site.before is not None, site.features
        self.normalisation = None if site.norm is None else float(site.norm.eps)  # type: ignore[arg-type]

    def mapped(self, before: int, after: int) -> int:
        return (FILTERS if self.paired else 2 * FILTERS - 1) * after

    def prepare(self, u: Tensor, shift: Tensor | None, root: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The maps of the 5 filters, complex numbers as pairs: u (N, r, 5, H', W', 2), the shift (N, 5, H', W', 2)."""
        maps = u if shift is None else torch.cat([u, shift.unsqueeze(1)], 1)
        q = None if root is None else _inverse_norm(root.to(maps.dtype), maps, self.paired)
        r = u.shape[1]
        if self.complex_weights:  # of (w, i w), only w is filtered
            r //= 2
            maps = u[:, :r] if shift is None else torch.cat([u[:, :r], shift.unsqueeze(1)], 1)
        maps = maps if q is None else maps * q
        maps = self._filtered(torch.view_as_complex(maps) if self.paired else maps)
        of_u, of_shift = maps[:, :r], None if shift is None else maps[:, r]
        return real_columns(of_u) if self.complex_weights else of_u, of_shift

    def flops(self, u: tuple[int, ...]) -> int:
        constants = self.bank.phi_sigma, self.bank.psi_sigma, self.bank.xi
        maps = (u[0], u[1] // (1 + self.complex_weights), *u[2:])
        filtered = wavelet_modulus_flops(maps, constants, self.bank.stride, self.bank.taps)
        return filtered + (2 * math.prod(u) * u[1] if self.divides else 0)

    def kernel(self) -> dict[str, Any]:
        return {"activation": "identity"}

    def each_feature(self, u: Tensor, shift: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None, str]]:
        for f in range(self.features):
            place = f % FILTERS
            of_u, of_shift = u[:, :, place], None if shift is None else shift[:, place]
            if f >= (FILTERS if self.skip else 1):
                yield (
                    torch.view_as_complex(of_u),
                    None if of_shift is None else torch.view_as_complex(of_shift),
                    MODULUS,
                )
            elif self.paired:
                yield of_u, of_shift, "identity"
            else:
                yield of_u[..., 0], None if of_shift is None else of_shift[..., 0], "identity"

    def finish(self, s: Tensor) -> Tensor:
        size = modulus(s)
        if not self.paired:
            return torch.cat([s[:, :, :1, ..., 0], size[:, :, 1:]], 2).flatten(1, 2)
        size = as_pairs(size)
        parts = [s, size] if self.skip else [s[:, :, :1], size[:, :, 1:]]
        return torch.cat(parts, 2).flatten(1, 2)

    def floor(self, norm: nn.Module) -> Tensor:
        each = super().floor(norm)
        return each[order_by_channel(len(each) // self.features, self.features, each.device)]

    def _filtered(self, z: Tensor) -> Tensor:
        """``z * phi`` and ``z * psi_t`` of maps (N, c, H, W) as pairs (N, c, 5, H', W', 2)."""
        c = z.shape[1]
        linear = torch.view_as_real(wavelet_modulus(z, self.bank, skip=True)[:, : FILTERS * c])
        return torch.cat([linear[:, :c].unsqueeze(2), linear[:, c:].unflatten(1, (c, -1))], 2)

    def extra_repr(self) -> str:
        return f"{self.bank}, skip={self.skip}"


def _inverse_norm(root: Tensor, maps: Tensor, paired: bool) -> Tensor:
    """``q = 1 / |K maps|`` at each position, where the norm is over channels and parts; 0 where the norm is 0."""
    square = (root @ maps.flatten(2)).square().sum(1, keepdim=True).view(maps.shape[0], 1, *maps.shape[2:])
    square = square.sum(-1, keepdim=True) if paired else square
    zero = square == 0
    q = square.masked_fill(zero, 1).rsqrt().masked_fill(zero, 0)
    return q.expand(maps[:, :1].shape).contiguous()  # torch is slow at products that are broadcast over a last axis
