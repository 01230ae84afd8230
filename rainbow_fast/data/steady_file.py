# SPDX-License-Identifier: BSD-3-Clause
"""Files that are read part by part. A file that is too short, or that changes in between, is an error by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rainbow_fast.io import read_all

Part = tuple[np.ndarray, int]  # a contiguous array that is filled, and the position of its first byte in the file


@dataclass(frozen=True)
class SteadyFile:
    """A file that is read part by part, and must stay the same until the last part is read.

    Parts are read, not memory-mapped: a mapped file that shrinks ends the process.

    Attributes:
        path: absolute, so that the file can be read after a change of the working directory.
        name: what error messages call the file.
        size: bytes in the file.
        state: device, inode, size and time of the last change, when the file was first seen.
    """

    path: Path
    name: str
    size: int
    state: tuple[int, ...]

    @classmethod
    def at(cls, path: str | os.PathLike[str], name: str, wanted: str = "") -> SteadyFile:
        """The file at a path.

        Args:
            wanted: is added to the message if there is no file.

        Raises:
            FileNotFoundError: there is no regular file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{name}: no file {path}{wanted}")
        status = os.stat(path)
        return cls(Path(path).absolute(), name, status.st_size, _state(status))

    def fill(self, parts: Iterable[Part]) -> None:
        """Fill arrays with bytes of the file.

        Raises:
            ValueError: the file has changed since it was first seen, ends too early, or cannot be read. The message
                names it.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                if _state(os.fstat(file.fileno())) != self.state:
                    raise ValueError(f"{self.name}: {self.path} has changed since it was opened, wanted the same file")
                for array, position in parts:
                    self._fill(file.fileno(), array, position)
        except OSError as error:
            raise ValueError(f"{self.name}: {self.path} cannot be read ({error.strerror or error})") from error

    def _fill(self, descriptor: int, array: np.ndarray, position: int) -> None:
        data = array.reshape(-1).view(np.uint8).data
        done = read_all(descriptor, data, position)
        if done < len(data):
            raise ValueError(
                f"{self.name}: {self.path} ends at byte {position + done}, {len(data) - done} bytes too early: it has "
                "become shorter since it was opened"
            )


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
