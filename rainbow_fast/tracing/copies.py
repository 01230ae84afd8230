# SPDX-License-Identifier: BSD-3-Clause
"""Copies of a user's network."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network in eval mode.

    Tensors that it keeps from a call, such as its last output, belong to the graph of derivatives of this call, so that
    torch refuses to copy them. The copy has their values.
    """
    kept = [value for module in network.modules() for value in _tensors(vars(module))]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in kept if not value.is_leaf}
    return copy.deepcopy(network, memo).eval()


def _tensors(value: object) -> Iterable[Tensor]:
    """The tensors in a value, in lists, tuples and dicts inside it; not those of modules."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
