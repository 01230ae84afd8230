# SPDX-License-Identifier: BSD-3-Clause
"""Modules with the address of a random matrix: the key is in the state dict, and stays on the CPU."""

from __future__ import annotations

from torch import Tensor, nn

from rainbow_fast.ops.gaussian import check_key


class Keyed(nn.Module):
    """Base class of modules that generate a random matrix G from its address.

    ``key`` (4,) int64 is the address. It is in the state dict but is not a buffer: it stays on the CPU, where kernels
    are launched, so that a forward pass on a GPU does not wait for it. A CUDA graph keeps the key that it was captured
    with. A function compiled by `torch.compile` is not compiled again for another key.

    Args:
        key: the address, as `rainbow_fast.key` makes it.
    """

    key: Tensor

    def __init__(self, key: Tensor) -> None:
        super().__init__()
        check_key(key)
        self.key = key

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "key"] = self.key

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, metadata: dict, strict: bool, missing: list, unexpected: list, errors: list
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        name = prefix + "key"
        if name not in state_dict:
            missing.append(name)
            return
        if name in unexpected:
            unexpected.remove(name)
        try:
            check_key(state_dict[name].cpu())
        except ValueError as error:
            errors.append(f"{name}: {error}")
            return
        self.key = state_dict[name].detach().cpu().clone()
