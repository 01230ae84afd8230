# SPDX-License-Identifier: BSD-3-Clause
"""State dicts in files, as training scripts write them: of safetensors, and of torch (tensors only)."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rainbow_fast import tensor_files

ZIP = b"PK\x03\x04"  # how files of torch begin since version 1.6; before, they were pickles
HEADER = 8  # bytes of a safetensors file before its header, which begins with {
HOLDERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "ema")  # keys of state dicts
DEPTH = 3  # of dicts inside each other in which state dicts are looked for
# Names that wrappers put into keys: DataParallel and DistributedDataParallel, torch.compile, checkpointing, FSDP.
WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
PREFIXES = ("", "model.", "net.", "network.")  # names of a network inside a larger module; preferred to others
COUNTER = ".num_batches_tracked"  # counter of a batch norm; older files do not have it, and eval mode does not read it
# Classes beside tensors in checkpoints, which hold data only: options, and numbers of numpy.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("?", "i4", "i8", "f4", "f8")),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]
SHOWN = 4  # most problems, and most keys, that a message lists

State = dict[str, Tensor]


def read_state(path: Path, name: str) -> State:
    """The largest state dict in a file; among equal ones that under the first key of `HOLDERS`.

    Names of `WRAPPERS` are removed from its keys. Entries that are not tensors are left out. If a safetensors file has
    checksums, the tensors are compared with them.

    Args:
        path: the file. Its content decides how it is read, not its suffix.
        name: every error message begins with it.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is damaged or holds no state dict.
    """
    state = max(_read(path, name), key=len)
    plain = {_plain(key): value for key, value in state.items()}
    return plain if len(plain) == len(state) else state


def load_state(module: nn.Module, path: Path, name: str) -> None:
    """Load the state dict in a file into a module. After an error the module is unchanged.

    Among the state dicts in the file, the first one is taken that has a tensor of the right shape for each key of the
    module: `HOLDERS` have the order of preference. Names of `WRAPPERS` in keys do not count. All keys may have one
    prefix, as if the module were a part of a larger one; keys without the prefix are then ignored.

    Raises:
        FileNotFoundError, ValueError: as `read_state`; or no state dict has the keys and shapes of the module. The
            message shows keys of both.
    """
    states, wanted = _read(path, name), module.state_dict()
    fitted = [_fitted(state, wanted) for state in states]
    differing = [problems(state, wanted) for state in fitted]
    best = min(range(len(states)), key=lambda place: len(differing[place]))
    if differing[best]:
        more = f"; and {len(differing[best]) - SHOWN} more" if len(differing[best]) > SHOWN else ""
        raise ValueError(
            f"{name}: {path} does not fit the network: {'; '.join(differing[best][:SHOWN])}{more}. "
            f"The file has {_shown(list(states[best]))}; the network has {_shown(list(wanted))}"
        )
    module.load_state_dict(fitted[best])


def _read(path: Path, name: str) -> list[State]:
    """All state dicts in a file, in the order of preference; at least one."""
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no file {path}")
    content = _of_torch(path, name) if _is_of_torch(path) else _of_safetensors(path, name)
    states = list(_states(content, DEPTH))
    if not states:
        raise ValueError(f"{name}: {path} holds no state dict: wanted a dict from names to tensors{_inside(content)}")
    return states


def _states(content: Any, depth: int) -> Iterator[State]:
    """The state dicts in a dict, and in dicts inside it."""
    if not isinstance(content, Mapping):
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors and all(isinstance(key, str) for key in tensors):
        yield tensors
    if depth:
        order = [key for key in HOLDERS if key in content]
        for key in [*order, *(key for key in content if key not in order)]:
            yield from _states(content[key], depth - 1)


def _fitted(state: State, wanted: Mapping[str, Tensor]) -> State:
    """The state with the keys of `wanted`, where it has them. Other keys keep their names."""
    plain, names = {_plain(key): key for key in state}, {_plain(key): key for key in wanted}
    if len(plain) < len(state) or len(names) < len(wanted):  # a module whose own parts have names of wrappers
        plain, names = {key: key for key in state}, {key: key for key in wanted}
    prefix = _prefix(list(plain), [key for key in names if not key.endswith(COUNTER)])
    plain = {key: old for key, old in plain.items() if key.startswith(prefix)}
    outer = {plain[prefix + key].partition(".")[0] for key in names if prefix + key in plain}
    if len(outer) == 1 and outer <= set(WRAPPERS):  # such as the counter beside "module." in an averaged network
        plain = {key: old for key, old in plain.items() if old.startswith(f"{min(outer)}.")}
    inside = {key.removeprefix(prefix): state[old] for key, old in plain.items()}
    counters = {key: value for key, value in wanted.items() if key.endswith(COUNTER)}
    return counters | {names.get(key, key): value for key, value in inside.items()}


def _prefix(keys: Sequence[str], wanted: Sequence[str]) -> str:
    """The prefix with which most wanted keys are among the keys; among equal ones the first of `PREFIXES`."""
    there, first = set(keys), wanted[0] if wanted else ""
    others = [key.removesuffix(first) for key in keys if key.endswith("." + first)]
    return max(dict.fromkeys([*PREFIXES, *others]), key=lambda prefix: sum(prefix + key in there for key in wanted))


def _plain(key: str) -> str:
    """A key without the names of wrappers."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def problems(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What a state dict lacks of the keys and shapes of another, in words."""
    differing = [f"missing {key}" for key in wanted if key not in state]
    differing += [f"unexpected {key}" for key in state if key not in wanted]
    differing += [
        f"{key} has shape {tuple(state[key].shape)}, wanted {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    return differing


def _shown(keys: Sequence[str]) -> str:
    more = ", ..." if len(keys) > SHOWN else ""
    return f"{len(keys)} keys ({', '.join(keys[:SHOWN])}{more})"


def _inside(content: Any) -> str:
    """What a file holds instead of a state dict, for a message."""
    if isinstance(content, Mapping):
        return f", got {_shown([str(key) for key in content])}" if content else ", got an empty dict"
    return f", got {type(content).__name__}"


def _is_of_torch(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(HEADER + 1)
    if start[HEADER:] == b"{":
        return False
    return start.startswith(ZIP) or path.suffix != ".safetensors"


def _of_safetensors(path: Path, name: str) -> State:
    with tensor_files.opened(path, name) as file:
        return file.tensors()


def _of_torch(path: Path, name: str) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # torch warns of other versions of pickle; they raise an error anyway
            return torch.load(file, "cpu", weights_only=True)  # a file, because the suffix of a path would count
    except Exception as error:  # damaged files raise errors of many types, from KeyError to MemoryError
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{name}: {path} cannot be read as a file of tensors that torch has written ({first}): wanted one of "
            "`torch.save(network.state_dict(), path)`"
        ) from error
