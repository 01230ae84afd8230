# SPDX-License-Identifier: BSD-3-Clause
"""Storage of activations between two sites: in memory, in files on disk, or none, so that they are recomputed."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rainbow_fast.io import bytes_of_tensor, explained, read_all, write_all
from rainbow_fast.rainbow.chunks import freshly_laid, is_channels_last
from rainbow_fast.rainbow.options import Limits


class Cell(Protocol):
    """Holds one stored value. The storage is freed when the cell is garbage-collected."""

    def load(self) -> Any: ...


Keep = Callable[[Any], Cell]


class InMemory:
    """A value in memory. A tensor may be rounded to `dtype`."""

    def __init__(self, value: Any, dtype: torch.dtype | None) -> None:
        self.value, self.dtype = value, value.dtype if isinstance(value, Tensor) else None
        if dtype is not None:
            self.value = value.to(dtype)

    def load(self) -> Any:
        return self.value if self.dtype is None else self.value.to(self.dtype)


class InFile:
    """A tensor in one file, which is deleted together with the cell.

    Raises:
        OSError: the disk is full, or the folder cannot be written into; the message names the folder and the bytes.
    """

    def __init__(self, value: Tensor, folder: Path, dtype: torch.dtype | None) -> None:
        self.dtype, self.device, self.last = value.dtype, value.device, is_channels_last(value)
        stored = (value.permute(0, 2, 3, 1) if self.last else value).detach().to("cpu", dtype).contiguous()
        self.shape = stored.shape
        self.stored = stored.dtype
        with explained("scratch_dir", folder, stored.nbytes):
            handle, name = tempfile.mkstemp(dir=folder)
        self.path = Path(name)
        weakref.finalize(self, self.path.unlink, missing_ok=True)
        try:
            with explained("scratch_dir", folder, stored.nbytes):
                write_all(handle, bytes_of_tensor(stored))
        finally:
            os.close(handle)

    def load(self) -> Tensor:
        # Read, not memory-mapped: mapped pages would count as memory of the process, and a site reads each file only
        # once or twice.
        tensor = torch.empty(self.shape, dtype=self.stored, device="cpu")
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            count = read_all(handle, bytes_of_tensor(tensor), 0)
        finally:
            os.close(handle)
        if count < tensor.nbytes:
            raise OSError(f"scratch_dir: {self.path} has {count} bytes, wanted {tensor.nbytes}: it was damaged")
        tensor = tensor.to(self.device, self.dtype)
        return tensor.permute(0, 3, 1, 2) if self.last else tensor


@dataclass(frozen=True)
class Storage:
    """How activations are stored between two sites.

    Attributes:
        kind: ``"memory"``, ``"file"`` or ``"recompute"``. The bits of the sampled network do not depend on it.
        bytes: their largest total size.
        dtype: the dtype that they are rounded to; None keeps their own. bfloat16 halves the size of float32
            activations and changes the sampled network.
    """

    kind: str
    bytes: int
    dtype: torch.dtype | None = None

    def round(self, value: Any) -> Any:
        """The value as it would be loaded after being stored."""
        value = value.to(self.dtype).to(value.dtype) if self.rounds(value) else value
        return freshly_laid(value) if isinstance(value, Tensor) else value

    def rounds(self, value: Any) -> bool:
        return self.dtype is not None and isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64)

    def __str__(self) -> str:
        rounded = ", rounded to bfloat16" if self.dtype is not None else ""
        how = {"memory": "kept in memory", "file": "kept in files", "recompute": "computed again for every site"}
        return f"activations are {how[self.kind]} ({self.bytes / 1e6:.1f} MB{rounded})"


def choose_storage(bytes_needed: int, limits: Limits) -> Storage:
    """The storage that `limits` names; otherwise the first of memory, files and recomputation that has enough room.

    Memory is used within `limits.memory_budget`, files up to half of the free disk space.
    """
    kind = limits.storage
    if kind is None and (limits.memory_budget is None or bytes_needed <= limits.memory_budget):
        kind = "memory"
    if kind is None:
        free = shutil.disk_usage(limits.scratch_dir or tempfile.gettempdir()).free
        kind = "file" if bytes_needed < free // 2 else "recompute"
    return Storage(kind, bytes_needed, limits.storage_dtype)


def keeper(storage: Storage, folder: Path) -> Keep | None:
    """The function that stores a value; files go into `folder`. None if activations are recomputed."""
    if storage.kind == "recompute":
        return None

    def keep(value: Any) -> Cell:
        dtype = storage.dtype if storage.rounds(value) else None
        if not isinstance(value, Tensor):
            return InMemory(value, dtype)
        return InFile(value, folder, dtype) if storage.kind == "file" else InMemory(freshly_laid(value), dtype)

    return keep
