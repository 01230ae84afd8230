# SPDX-License-Identifier: BSD-3-Clause
"""Modules with the address of a random matrix: the key is in the state dict, and stays on the CPU."""

from __future__ import annotations

from torch import Tensor, nn

from rainbow_fast.arguments import tensor
from rainbow_fast.ops.gaussian import check_key


class Keyed(nn.Module):
    """Base class of modules that generate a random matrix G from its address.

    ``key`` (4,) int64 is the address. It is in the state dict but is not a buffer: it stays on the CPU, where kernels
    are launched, so that a forward pass on a GPU does not wait for it. A CUDA graph keeps the key that it was captured
    with. A function compiled by `torch.compile` is not compiled again for another key.

    Args:
        key: the address, as `rainbow_fast.key` makes it.

    Raises:
        ValueError: the key is no int64 tensor of shape (4,) on the CPU.
    """

    key: Tensor

    def __init__(self, key: Tensor) -> None:
        super().__init__()
        self.key = _one(key)

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
            self.key = _one(tensor("key", state_dict[name]).detach().cpu()).clone()
        except (TypeError, ValueError) as error:
            errors.append(f"{name}: {error}")


def _one(key: Tensor) -> Tensor:
    """The key, after a check that it is one key on the CPU."""
    check_key(key)
    if key.dim() != 1:
        raise ValueError(f"key has shape {tuple(key.shape)}: wanted one key, (4,)")
    return key
