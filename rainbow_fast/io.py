# SPDX-License-Identifier: BSD-3-Clause
"""Writing files whole, hashing, and JSON that every reader takes: one copy of each for the whole package."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PART = ".part"  # ends the name of a file that is being written; it begins with a dot
HASHED = 2**24  # numbers of a tensor at a time


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
