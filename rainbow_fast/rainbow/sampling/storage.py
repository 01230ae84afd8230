# SPDX-License-Identifier: BSD-3-Clause
"""Where activations wait between two sites: in memory, in files, or nowhere, to be computed again."""

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

from rainbow_fast.rainbow.chunks import freshly_laid
from rainbow_fast.rainbow.options import Limits


class Cell(Protocol):
    """A value that is kept; whoever holds the last reference to the cell lets it go."""

    def load(self) -> Any: ...


Keep = Callable[[Any], Cell]


class InMemory:
    """A value as it is, or a tensor rounded."""

    def __init__(self, value: Any, dtype: torch.dtype | None) -> None:
        self.value, self.dtype = value, value.dtype if isinstance(value, Tensor) else None
        if dtype is not None:
            self.value = value.to(dtype)

    def load(self) -> Any:
        return self.value if self.dtype is None else self.value.to(self.dtype)


class InFile:
    """A tensor in a file of its own, which goes when the cell does."""

    def __init__(self, value: Tensor, folder: Path, dtype: torch.dtype | None) -> None:
        self.dtype, self.device, self.shape = value.dtype, value.device, value.shape
        stored = value.detach().to("cpu", dtype).contiguous()
        self.stored = stored.dtype
        handle, name = tempfile.mkstemp(dir=folder)
        self.path = Path(name)
        weakref.finalize(self, self.path.unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            stored.view(-1).view(torch.uint8).numpy().tofile(file)

    def load(self) -> Tensor:
        # Read, not mapped: the pages of a map count as the process's own, and a site reads each file once or twice.
        tensor = torch.empty(self.shape, dtype=self.stored, device="cpu")
        with self.path.open("rb") as file:
            file.readinto(memoryview(tensor.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
        return tensor.to(self.device, self.dtype)


@dataclass(frozen=True)
class Storage:
    """How activations wait.

    Attributes:
        kind: ``"memory"``, ``"file"`` or ``"recompute"``. The bits of a sample do not depend on it.
        bytes: that they take at most, wherever they are.
        dtype: what they are rounded to, None for their own; bfloat16 halves their size, and changes the sample.
    """

    kind: str
    bytes: int
    dtype: torch.dtype | None = None

    def round(self, value: Any) -> Any:
        """What comes back of a value that was stored."""
        value = value.to(self.dtype).to(value.dtype) if self.rounds(value) else value
        return freshly_laid(value) if isinstance(value, Tensor) else value

    def rounds(self, value: Any) -> bool:
        return self.dtype is not None and isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64)

    def __str__(self) -> str:
        rounded = ", rounded to bfloat16" if self.dtype is not None else ""
        where = {"memory": "in memory", "file": "in files", "recompute": "nowhere, computed again for every site"}
        return f"activations wait {where[self.kind]} ({self.bytes / 1e6:.1f} MB{rounded})"


def choose_storage(bytes_needed: int, limits: Limits) -> Storage:
    """The first of memory, files and recomputation that has the room; or the one that is named."""
    kind = limits.storage
    if kind is None and (limits.memory_budget is None or bytes_needed <= limits.memory_budget):
        kind = "memory"
    if kind is None:
        free = shutil.disk_usage(limits.scratch_dir or tempfile.gettempdir()).free
        kind = "file" if bytes_needed < free // 2 else "recompute"
    return Storage(kind, bytes_needed, limits.storage_dtype)


def keeper(storage: Storage, folder: Path) -> Keep | None:
    """What puts a value where the storage says, files into `folder`; None where nothing is kept."""
    if storage.kind == "recompute":
        return None

    def keep(value: Any) -> Cell:
        dtype = storage.dtype if storage.rounds(value) else None
        if not isinstance(value, Tensor):
            return InMemory(value, dtype)
        return InFile(value, folder, dtype) if storage.kind == "file" else InMemory(freshly_laid(value), dtype)

    return keep
