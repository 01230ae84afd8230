# SPDX-License-Identifier: BSD-3-Clause
"""The kinds of sites, one file for each. A kind defines how the features of a neuron are computed."""

from rainbow_fast.networks.scattering import Wavelets
from rainbow_fast.rainbow.kinds.kind import Kind
from rainbow_fast.rainbow.kinds.pointwise import Pointwise
from rainbow_fast.rainbow.kinds.wavelet import Wavelet
from rainbow_fast.tracing.site import Site

__all__ = ["Kind", "Pointwise", "Wavelet", "kind_of"]


def kind_of(site: Site) -> Kind:
    """The kind of a traced site."""
    return Wavelet(site) if isinstance(site.sigma, Wavelets) else Pointwise(site)
