# SPDX-License-Identifier: BSD-3-Clause
"""The kinds of sites, one file each: what a neuron is made of, and what is done with it."""

from rainbow_fast.rainbow.kinds.kind import Kind
from rainbow_fast.rainbow.kinds.pointwise import Pointwise
from rainbow_fast.tracing.site import Site

__all__ = ["Kind", "Pointwise", "kind_of"]


def kind_of(site: Site) -> Kind:
    """The kind of a traced site."""
    return Pointwise(site)
