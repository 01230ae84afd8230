# SPDX-License-Identifier: BSD-3-Clause
"""Changes files of this package as a damaged disk, an older version or an attacker would."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rainbow_fast import tensor_files
from rainbow_fast.formats import SUM, Format


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def as_older(path: Path, version: int, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Turn a file into one of an older version, which has no checksums."""
    metadata = metadata_of(path) | {"version": str(version)}
    del metadata[SUM], metadata[tensor_files.SUMS]
    save_file(dict(load_file(path) if tensors is None else tensors), path, metadata)


def resealed(
    path: Path,
    kind: Format[Any],
    change: Callable[[dict[str, Any]], Any] = lambda header: header,
    tensors: Mapping[str, Tensor] | None = None,
    text: str | None = None,
) -> None:
    """Write a file again with a changed header or other tensors, and with checksums that fit them.

    Args:
        path: the file.
        kind: its format.
        change: takes the header, and returns another one.
        tensors: the tensors; None for those of the file.
        text: what stands in the place of the header's JSON; None for the changed header.
    """
    metadata = metadata_of(path)
    metadata[kind.key] = json.dumps(change(json.loads(metadata[kind.key]))) if text is None else text
    metadata[SUM] = kind.checksum(metadata)
    tensor_files.write(path, load_file(path) if tensors is None else tensors, metadata)


def flipped(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Copies of a file with one flipped bit each, which is drawn from a seed."""
    draw = random.Random(seed)
    for _ in range(count):
        byte, bit = draw.randrange(len(data)), draw.randrange(8)
        yield data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]
