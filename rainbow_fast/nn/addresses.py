# SPDX-License-Identifier: BSD-3-Clause
"""Finds layers of one network that have the same random matrix."""

from __future__ import annotations

import warnings

from torch import nn

from rainbow_fast.nn.expansion import RandomFeatures


def shared_keys(network: nn.Module) -> list[tuple[str, ...]]:
    """The dotted names of random features with the same seed and stream, which have the same rows of G: (first, ...).

    A module that the network calls at several places is one layer, and is not listed for that.
    """
    names: dict[tuple[int, ...], list[str]] = {}
    for name, module in network.named_modules():
        if isinstance(module, RandomFeatures):
            names.setdefault(tuple(module.key.tolist()), []).append(name)
    return [tuple(group) for group in names.values() if len(group) > 1]


def warn_if_shared(network: nn.Module, *, stacklevel: int) -> None:
    """Warn with the names of layers whose neurons are not independent, see `shared_keys`.

    Args:
        stacklevel: as in `warnings.warn`, counted from the caller of this function.
    """
    groups = shared_keys(network)
    if groups:
        layers = "; ".join(", ".join(map(repr, group)) for group in groups)
        warnings.warn(
            f"random features with the same seed and stream, which have the same neurons: {layers}; wanted another "
            "stream for each layer",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
