# SPDX-License-Identifier: BSD-3-Clause
"""Collects a whole data set into one tensor, in memory or in a memory-mapped file."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.data import batches
from rainbow_fast.data.dtypes import IGNORED, as_labels
from rainbow_fast.io import bytes_of_tensor, explained, write_all
from rainbow_fast.joint_inputs import JointInputs, padded


class Gathered(NamedTuple):
    """A whole data set.

    Attributes:
        x: samples (N, ...) in their own dtype; of several inputs, the rows of bytes (N, size) that `inputs` describes.
        y: labels (N, ...); None without.
        inputs: the layout of several inputs in x; None for one.
    """

    x: Tensor
    y: Tensor | None
    inputs: JointInputs | None


def gather(
    data: object,
    name: str,
    *,
    memory_budget: int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    labelled: bool = True,
    classes: bool = True,
) -> Gathered:
    """A whole data set, in memory or in a memory-mapped file.

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
    inputs: JointInputs | None = None
    for x, y in batches(data, batch_size=2**62, name=name):
        if isinstance(x, dict):
            before, inputs = inputs, _together_with(inputs, JointInputs.of(x), name)
            if before is not None and inputs != before:
                images.change(lambda rows, a=before, b=inputs: b.join(b.padded(a.named(rows))))  # type: ignore[misc]
            x = inputs.join(inputs.padded(x))
        elif inputs is not None:
            raise ValueError(f"{name}: a batch of one tensor, wanted {inputs} as before")
        images.add(x)
        labels += [as_labels(y, name) if classes else y] if labelled and y is not None else []
    return Gathered(images.tensor(), _together(labels, inputs, name), inputs)


def _together_with(before: JointInputs | None, inputs: JointInputs, name: str) -> JointInputs:
    """The layout for the inputs of a batch and of those before it."""
    wide = inputs if before is None else before.wider(inputs)
    if wide is None:
        raise ValueError(
            f"{name}: batches of inputs {before} and {inputs}: wanted samples of one shape, or a mask of padding "
            "beside shorter ones"
        )
    return wide


def _together(labels: list[Tensor], inputs: JointInputs | None, name: str) -> Tensor | None:
    """The labels of all batches. Those of padded positions are `IGNORED`."""
    kinds = {(tuple(y.shape[1:]), y.dtype) for y in labels}
    if len(kinds) > 1 and inputs is not None and all(y.dtype == torch.int64 and y.dim() > 1 for y in labels):
        longest = max(shape for shape, _ in kinds)
        if all(shape[1:] == longest[1:] for shape, _ in kinds):
            return torch.cat([padded(y, longest, IGNORED) for y in labels])
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

    def change(self, how: Callable[[Tensor], Tensor]) -> None:
        """Replace the samples so far by others.

        Raises:
            ValueError: some are in the file already.
        """
        if self.file is not None:
            raise ValueError(f"{self.name}: longer samples after {self.budget} bytes: wanted all of one length")
        self.parts = [how(part) for part in self.parts]
        self.shape, self.bytes = self.parts[0].shape[1:], sum(part.nbytes for part in self.parts)

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
