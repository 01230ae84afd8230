# SPDX-License-Identifier: BSD-3-Clause
"""Files that are written completely or not at all, hashes, state dicts in files, and JSON without NaN."""

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

PART = ".part"  # suffix of the name of an unfinished file; the name begins with a dot
HASHED = 2**24  # numbers of a tensor that are hashed at a time
TORCH = (".pt", ".pth")
HOLDERS = ("state_dict", "model")  # keys under which training scripts put a state dict
PREFIX = "module."  # prefix of the keys that nn.DataParallel adds
COUNTER = ".num_batches_tracked"  # counter of a batch norm; older files do not have it, and eval mode does not read it
SHOWN = 4  # most problems that a message lists


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A context that gives a temporary file in the folder of `path`, and on exit renames it to `path`.

    `path` therefore never holds an incomplete file. After an error, the temporary file is deleted.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
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
    """Write `data` to `path`, completely or not at all."""
    with whole(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sha256(tensors: Iterable[Tensor] = (), text: str = "") -> str:
    """SHA-256 of a text and of the dtypes, shapes and values of tensors, as "sha256:..."."""
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
    """`json.dumps`, with null for numbers that are not finite, because JSON cannot represent them."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def read_state(path: Path, name: str) -> dict[str, Tensor]:
    """The state dict in a file. Files .pt and .pth are read as files of torch (tensors only), others as safetensors.

    If the file holds a dict with the state dict under "state_dict" or "model", this entry is used. If all keys begin
    with "module.", this prefix is removed.

    Args:
        path: the file.
        name: every error message begins with it.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is damaged or holds no state dict.
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


def _read_tensors(path: Path, name: str) -> Any:
    try:
        if path.suffix not in TORCH:
            return load_file(path)
        with warnings.catch_warnings():  # torch warns of other versions of pickle; they raise an error anyway
            warnings.simplefilter("ignore")
            return torch.load(path, "cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{name}: {path} is not a whole safetensors file ({error})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name}: {path} cannot be read as a file of tensors that torch has written ({first})"
        ) from error


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write each record as one line of JSON."""
    write_whole(path, "".join(dumps(record) + "\n" for record in records))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records that `write_records` wrote; an empty list if there is no file.

    Raises:
        ValueError: a line is not JSON; the message gives its number.
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
