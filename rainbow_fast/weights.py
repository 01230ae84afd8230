# SPDX-License-Identifier: BSD-3-Clause
"""State dicts in files: of safetensors, and of torch (tensors only)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast import tensor_files

TORCH = (".pt", ".pth")
HOLDERS = ("state_dict", "model")  # keys under which training scripts put a state dict
PREFIX = "module."  # prefix of the keys that nn.DataParallel adds
COUNTER = ".num_batches_tracked"  # counter of a batch norm; older files do not have it, and eval mode does not read it
SHOWN = 4  # most problems that a message lists


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """The state dict in a file. Files .pt and .pth are read as files of torch (tensors only), others as safetensors.

    If the file holds a dict with the state dict under "state_dict" or "model", this entry is used. If all keys begin
    with "module.", this prefix is removed. If a safetensors file has checksums, the tensors are compared with them.

    Args:
        path: the file.
        name: every error message begins with it.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is damaged or holds no state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no file {path}")
    state = _of_torch(path, name) if path.suffix in TORCH else _of_safetensors(path, name)
    for holder in HOLDERS:
        if isinstance(state, Mapping) and isinstance(state.get(holder), Mapping):
            state = state[holder]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{name}: {path} holds no state dict of tensors")
    if not all(isinstance(key, str) for key in state):
        raise ValueError(f"{name}: {path} holds no state dict: its keys are not all names")
    if all(key.startswith(PREFIX) for key in state):
        return {key.removeprefix(PREFIX): value for key, value in state.items()}
    return dict(state)


def load_state(module: nn.Module, path: Path, name: str) -> None:
    """Load the state dict in a file into a module. After an error the module is unchanged.

    Raises:
        FileNotFoundError, ValueError: as `read_state`; or keys or shapes are not those of the module.
    """
    state, wanted = read_state(path, name), module.state_dict()
    state = {key: value for key, value in wanted.items() if key.endswith(COUNTER)} | state
    problems = [f"missing {key}" for key in wanted if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in wanted]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, wanted {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{name}: {path} does not fit the network: {'; '.join(problems[:SHOWN])}{more}")
    module.load_state_dict(state)


def _of_safetensors(path: Path, name: str) -> dict[str, Tensor]:
    with tensor_files.opened(path, name) as file:
        return file.tensors()


def _of_torch(path: Path, name: str) -> Any:
    try:
        with warnings.catch_warnings():  # torch warns of other versions of pickle; they raise an error anyway
            warnings.simplefilter("ignore")
            return torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # damaged files raise errors of many types, from KeyError to MemoryError
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{name}: {path} cannot be read as a file of tensors that torch has written ({first})"
        ) from error
