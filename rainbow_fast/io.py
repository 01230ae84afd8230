# SPDX-License-Identifier: BSD-3-Clause
"""Files written whole, hashes, states of modules, and JSON that every reader takes: one copy of each."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

PART = ".part"  # ends the name of a file that is being written; it begins with a dot
HASHED = 2**24  # numbers of a tensor at a time
TORCH = (".pt", ".pth")
HOLDERS = ("state_dict", "model")  # under which training scripts put a state dict
PREFIX = "module."  # of nn.DataParallel
COUNTER = ".num_batches_tracked"  # of a batch norm: older files lack it, and eval mode does not read it
SHOWN = 4  # problems in a message


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write into, which then takes its place: the whole of it or nothing.

    Raises:
        FileNotFoundError: the folder of `path` is missing.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: no folder {path.parent}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Put `data` at `path`, the whole of it or nothing."""
    with whole(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sha256(tensors: Iterable[Tensor] = (), text: str = "") -> str:
    """SHA-256 of a text, and of dtypes, shapes and values."""
    digest = hashlib.sha256(text.encode())
    for t in tensors:
        digest.update(f"{t.dtype} {tuple(t.shape)}\n".encode())
        rows = t.detach() if t.dim() else t.detach().view(1)
        for part in rows.split(max(HASHED // max(rows[:1].numel(), 1), 1)):
            digest.update(part.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def dumps(value: Any, *, indent: int | None = None) -> str:
    """As `json.dumps`, but numbers that are not finite, which JSON has no word for, are null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """The state dict in a file: .pt and .pth as torch wrote it, of which tensors alone are read; else safetensors.

    A dict that holds the state dict as "state_dict" or "model" is looked into, and "module." is taken off where all
    keys begin with it.

    Args:
        name: begins every message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or one that holds no state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no file {path}")
    state = _read_tensors(path, name)
    for holder in HOLDERS:
        if isinstance(state, Mapping) and isinstance(state.get(holder), Mapping):
            state = state[holder]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{name}: {path} holds no state dict of tensors")
    if all(key.startswith(PREFIX) for key in state):
        return {key.removeprefix(PREFIX): value for key, value in state.items()}
    return dict(state)


def load_state(module: nn.Module, path: Path, name: str) -> None:
    """Read the state dict in a file into a module: all of it. On an error the module is as it was.

    Raises:
        FileNotFoundError, ValueError: as `read_state`; keys or shapes that are not those of the module.
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


def _read_tensors(path: Path, name: str) -> Any:
    try:
        if path.suffix not in TORCH:
            return load_file(path)
        with warnings.catch_warnings():  # of other versions of pickle, which are refused anyway
            warnings.simplefilter("ignore")
            return torch.load(path, "cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{name}: {path} is not a whole safetensors file ({error})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name}: {path} is no file of tensors alone that torch has written ({first})") from error


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    write_whole(path, "".join(dumps(record) + "\n" for record in records))


def read_records(path: Path) -> list[dict[str, Any]]:
    """What `write_records` wrote; nothing where there is no file.

    Raises:
        ValueError: a line that is not JSON; the message names it.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error})") from error
    return records


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
