# SPDX-License-Identifier: BSD-3-Clause
"""Collects a whole data set into one tensor, in memory or in a memory-mapped file."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.data import batches
from rainbow_fast.data.dtypes import as_labels
from rainbow_fast.io import bytes_of_tensor, explained, write_all

Labelled = tuple[Tensor, Tensor | None]


def gather(
    data: object,
    name: str,
    *,
    memory_budget: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    labelled: bool = True,
    classes: bool = True,
) -> Labelled:
    """A whole data set as (x, y): x in its own dtype; y, or None without labels or if they are not wanted.

    Tensors are returned without a copy. Batches are concatenated in memory. If they are larger than `memory_budget`
    bytes, they are written to a temporary file in the folder `scratch`, which is memory-mapped. The file has no name
    and is deleted together with the tensor.

    Args:
        data: as in `batches`.
        name: what error messages call the data.
        memory_budget: bytes that may be collected in memory; None (default) for no limit.
        scratch: folder of the temporary file; None (default) for that of the system.
        labelled: whether labels are wanted.
        classes: whether labels are classes (see `data.dtypes.as_labels`). If not, y is any tensor.

    Raises:
        OSError: the disk of `scratch` is full.
        TypeError, ValueError: `data` is not accepted by `batches`, samples have several shapes or dtypes, or labels are
            not classes, or have several shapes or dtypes. The message begins with `name`.
    """
    images, labels = _Collected(name, memory_budget, scratch), []
    for x, y in batches(data, batch_size=2**62, name=name):
        images.add(x)
        labels += [as_labels(y, name) if classes else y] if labelled and y is not None else []
    return images.tensor(), _together(labels, name)


def _together(labels: list[Tensor], name: str) -> Tensor | None:
    """The labels of all batches."""
    kinds = {(tuple(y.shape[1:]), y.dtype) for y in labels}
    if len(kinds) > 1:
        one, other = sorted(f"(N{''.join(f', {n}' for n in s)}) {str(dtype)[6:]}" for s, dtype in kinds)[:2]
        raise ValueError(f"{name}: batches with labels {one} and {other}, wanted one shape and dtype")
    return torch.cat(labels) if labels else None


class _Collected:
    """Concatenates batches of samples, in memory or, beyond the budget, in a temporary file."""

    def __init__(self, name: str, memory_budget: int | None, scratch: str | os.PathLike[str] | None) -> None:
        self.name, self.scratch = name, scratch
        self.budget = math.inf if memory_budget is None else memory_budget
        self.parts: list[Tensor] = []
        self.count = self.bytes = 0
        self.file: IO[bytes] | None = None

    def add(self, x: Tensor) -> None:
        if self.count == 0:
            self.shape, self.dtype = x.shape[1:], x.dtype
        if x.shape[1:] != self.shape:
            shapes = tuple(self.shape), tuple(x.shape[1:])
            raise ValueError(f"{self.name}: samples of shapes {shapes[0]} and {shapes[1]}, wanted one shape")
        if x.dtype != self.dtype:
            raise ValueError(f"{self.name}: samples of dtypes {self.dtype} and {x.dtype}, wanted one dtype")
        self.count += len(x)
        self.bytes += x.nbytes
        self.parts.append(x)
        if len(self.parts) > 1 and self.bytes > self.budget:
            self._spill()

    def tensor(self) -> Tensor:
        if self.file is None:
            return self.parts[0] if len(self.parts) == 1 else self._joined()
        self._spill()
        raw = torch.from_numpy(np.memmap(self.file, dtype=np.uint8, mode="c"))
        self.file.close()
        return raw.view(self.dtype).view(self.count, *self.shape)

    def _joined(self) -> Tensor:
        """All parts in one tensor. Each is freed once it is copied, so that not all data are held twice."""
        whole = self.parts[0].new_empty(self.count, *self.shape)
        self.parts.reverse()
        filled = 0
        while self.parts:
            part = self.parts.pop()
            whole[filled : filled + len(part)] = part
            filled += len(part)
        return whole

    def _spill(self) -> None:
        with explained("scratch_dir", Path(self.scratch or tempfile.gettempdir()), sum(p.nbytes for p in self.parts)):
            if self.file is None:
                self.file = tempfile.TemporaryFile(dir=self.scratch, buffering=0)  # noqa: SIM115  closed once mapped
            for part in self.parts:
                write_all(self.file.fileno(), bytes_of_tensor(part.cpu().contiguous()))
        self.parts.clear()
