# SPDX-License-Identifier: BSD-3-Clause
"""Files that are written completely or not at all, reads and writes of exact lengths, hashes, and JSON without NaN."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rainbow_fast.owner import Owner

PREFIX, PART = ".rainbow_fast-", ".part"  # of the name of an unfinished file, with its owner and a random number
HASHED = 2**24  # numbers of a tensor that are hashed at a time
INFINITIES = {"inf": math.inf, "-inf": -math.inf}  # numbers by the text that stands for them in JSON
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, the quota, or the limit of the process is exhausted


@contextmanager
def whole(path: Path, argument: str = "path", size: int | None = None) -> Iterator[Path]:
    """A context that gives a temporary file in the folder of `path`, and on exit renames it to `path`.

    `path` therefore never holds an incomplete file, also after a crash of the machine: the contents reach the disk
    before the name, and the name reaches it before the context ends. If several threads or processes write to one path,
    one of their files remains. A symbolic link is followed. The permissions of a file that is replaced are kept. After
    an error, the temporary file is deleted.

    Args:
        path: the file.
        argument: every error message begins with it.
        size: number of bytes that will be written, for messages; None if it is unknown.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        ValueError: `path` is a folder, a device or a pipe.
        OSError: the folder cannot be written into, or the disk is full; the message names the folder.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{argument}: no folder {target.parent}")
    before = target.stat().st_mode if target.exists() else None
    if before is not None and not stat.S_ISREG(before):
        kind = "a folder" if stat.S_ISDIR(before) else "a device or a pipe"
        raise ValueError(f"{argument}: {path} is {kind}, wanted a file")
    temporary = target.with_name(f"{PREFIX}{Owner.here()}-{secrets.token_hex(8)}{PART}")
    try:
        with explained(argument, target.parent, size):
            # a new file gets the permissions of the process; a replacement stays private until it gets those it has
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if before is None else 0o600))
            yield temporary
            if before is not None:
                temporary.chmod(stat.S_IMODE(before))
            _sync(temporary)
            os.replace(temporary, target)
            _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str, argument: str = "path") -> None:
    """Write `data` to `path`, completely or not at all. Arguments and errors are those of `whole`."""
    with whole(path, argument) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def explained(argument: str, folder: Path, size: int | None = None) -> Iterator[None]:
    """A context in which an OSError of the system gets a message with the argument, the folder and the bytes.

    Args:
        argument: every error message begins with it.
        folder: the folder that is written into.
        size: number of bytes that are written; None if it is unknown.

    Raises:
        OSError: with the same errno and type.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        what = "" if size is None else f"{size} bytes "
        full = " (the disk is full)" if error.errno in NO_ROOM else ""
        raise type(error)(
            error.errno, f"{argument}: cannot write {what}into {folder}{full}: {error.strerror}"
        ) from error


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all bytes of `data` to an open file. Unlike `numpy.tofile`, it reports every error of the disk."""
    while data:
        data = data[os.write(descriptor, data) :]


def read_all(descriptor: int, data: memoryview, start: int) -> int:
    """Fill `data` from the byte `start` of an open file. Returns the number of bytes read, fewer at the file's end."""
    done = 0
    while done < len(data) and (count := os.preadv(descriptor, [data[done:]], start + done)):
        done += count
    return done


def bytes_of_tensor(t: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(t.detach().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def sha256(tensors: Iterable[Tensor] = (), text: str = "") -> str:
    """SHA-256 of a text and of the dtypes, shapes and values of tensors, as "sha256:..."."""
    digest = hashlib.sha256(text.encode())
    for t in tensors:
        digest.update(described(t))
        rows = t.detach() if t.dim() else t.detach().view(1)
        for part in rows.split(max(HASHED // max(rows[:1].numel(), 1), 1)):
            digest.update(bytes_of_tensor(part.cpu().contiguous()))
    return f"sha256:{digest.hexdigest()}"


def described(t: Tensor) -> bytes:
    """The dtype and the shape of a tensor, as `sha256` hashes them before its values."""
    return f"{t.dtype} {tuple(t.shape)}\n".encode()


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name} ".encode() + described(value))
        digest.update(bytes_of_tensor(value.cpu().contiguous()))
    return digest.hexdigest()


def dumps(value: Any, *, indent: int | None = None) -> str:
    """`json.dumps`, with "inf" and "-inf" for infinite numbers and null for NaN, because JSON has none of them.

    `infinite` is the way back from "inf".
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def infinite(value: Any) -> Any:
    """The value with numbers in the place of "inf" and "-inf", also in dicts and lists."""
    if isinstance(value, Mapping):
        return {key: infinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [infinite(item) for item in value]
    return INFINITIES.get(value, value) if isinstance(value, str) else value


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write each record as one line of JSON."""
    write_whole(path, "".join(dumps(record) + "\n" for record in records))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records that `write_records` wrote, with `infinite` numbers; an empty list if there is no file.

    Raises:
        ValueError: a line is not JSON; the message gives its number.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines() if path.is_file() else [], start=1):
        try:
            records.append(infinite(json.loads(line)))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error})") from error
    return records


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)
