# SPDX-License-Identifier: BSD-3-Clause
"""Arrays in npy files of NumPy, read row by row. Their headers are checked against the length of the file."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass, field

import numpy as np

from rainbow_fast.data.steady_file import SteadyFile

HEADER_BYTES = 2**14  # more than NumPy's own limit for a header, 10,000 characters, and what stands before it
BLOCK_BYTES = 2**26  # of rows that are read together from an array in Fortran order
AXES = 32  # as many as every version of NumPy allows


@dataclass(frozen=True)
class NpyFile:
    """An array in an npy file.

    Attributes:
        file: the file.
        dtype, shape: of the array.
        offset: position of its first number in the file, in bytes.
        fortran: whether the first index runs fastest in the file.
        block: with Fortran order, the block of rows that was read last, by its first row.
    """

    file: SteadyFile
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    fortran: bool
    block: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def at(cls, path: str | os.PathLike[str], name: str) -> NpyFile:
        """The array in the file at a path. Only its header is read, and nothing is unpickled.

        Args:
            name: what error messages call the file.

        Raises:
            FileNotFoundError: there is no file.
            ValueError: the file has no valid header. The message names it.
        """
        file = SteadyFile.at(path, name)
        start = np.empty(min(file.size, HEADER_BYTES), np.uint8)
        file.fill([(start, 0)])
        stream = io.BytesIO(start.tobytes())
        try:
            version = np.lib.format.read_magic(stream)
            if version not in HEADERS:
                raise ValueError(f"version {version}")
            shape, fortran, dtype = HEADERS[version](stream)
        except Exception as error:  # a damaged header can raise almost anything, RecursionError and MemoryError too
            first = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"{name}: {file.path} is no npy file ({first})") from error
        if len(shape) > AXES or any(isinstance(length, bool) or length < 0 for length in shape):
            wanted = f"at most {AXES} whole numbers, none below 0"
            raise ValueError(f"{name}: {file.path} has a header with the shape {_short(shape)}, wanted {wanted}")
        return cls(file, dtype, shape, stream.tell(), fortran)

    def check_length(self) -> None:
        """Check that the file holds the numbers of the array and nothing else.

        Raises:
            ValueError: it does not. The message names the file.
        """
        wanted = self.offset + math.prod(self.shape) * self.dtype.itemsize
        if self.file.size != wanted:
            raise ValueError(
                f"{self.file.name}: {self.file.path} has {self.file.size} bytes, wanted {wanted} for {self.dtype} "
                f"{self.shape}, as its header says"
            )

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The rows start..stop of the array, contiguous and in the machine's byte order.

        With Fortran order the numbers of a row are far apart in the file, so that blocks of rows are read, and the last
        one is kept for the next call.

        Raises:
            ValueError: the file has changed, or cannot be read.
        """
        native, per_row = self.dtype.newbyteorder("="), math.prod(self.shape[1:])
        if not self.fortran:
            rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
            self.file.fill([(rows, self.offset + start * per_row * self.dtype.itemsize)])
            return rows.astype(native, copy=False)
        size = max(BLOCK_BYTES // (per_row * self.dtype.itemsize), 1)
        rows = np.empty((stop - start, *self.shape[1:]), native)
        for first in range(start // size * size, stop, size):
            begin, end = max(start, first), min(stop, first + size)
            rows[begin - start : end - start] = self._block(first, size)[begin - first : end - first]
        return rows

    def _block(self, first: int, size: int) -> np.ndarray:
        """At most `size` rows from `first` on."""
        block = self.block.get(first)
        if block is None:
            count, per_row = min(size, self.shape[0] - first), math.prod(self.shape[1:])
            block = np.empty((*self.shape[:0:-1], count), self.dtype)
            step, begin = self.shape[0] * self.dtype.itemsize, self.offset + first * self.dtype.itemsize
            columns = block.reshape(1, -1) if count == self.shape[0] else block.reshape(per_row, count)
            self.block.clear()
            self.file.fill((column, begin + place * step) for place, column in enumerate(columns))
            self.block[first] = block
        return block.T

    def __str__(self) -> str:
        return f"{self.file.path} holds {self.dtype} {_short(self.shape)}"


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _short(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) <= 200 else f"{text[:200]}..."
