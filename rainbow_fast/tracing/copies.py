# SPDX-License-Identifier: BSD-3-Clause
"""Copies of a user's network."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network in eval mode.

    Tensors that it keeps from a call, such as its last output, belong to the graph of derivatives of this call, so that
    torch refuses to copy them. The copy has their values. A network of transformers does not return its cache of keys
    and values: the copy has ``config.use_cache=False``.
    """
    values = (value for module in network.modules() for value in tree_leaves(vars(module)))
    kept = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in kept}
    other = copy.deepcopy(network, memo).eval()
    for module in other.modules():
        if getattr(getattr(module, "config", None), "use_cache", False) is True:
            module.config.use_cache = False  # type: ignore[union-attr]
    return other
