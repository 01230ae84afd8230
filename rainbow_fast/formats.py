# SPDX-License-Identifier: BSD-3-Clause
"""The file formats of this package: safetensors with a format name, a version, a typed header and checksums."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from torch import Tensor

from rainbow_fast import tensor_files
from rainbow_fast.io import sha256

Header = TypeVar("Header")
SUM = "sha256_of_header"  # metadata key of the checksum of format, version and header


@dataclass(frozen=True)
class Format(Generic[Header]):
    """A file format.

    Attributes:
        name: the name of the format, which is written into each file.
        version: the version that is written. Older versions can be read.
        holds: what the files contain, in words, for messages.
        header: the type of the header: a `msgspec.Struct`, or another type that msgspec decodes. A header that does not
            fit it is refused.
        summed_since: the first version with checksums.
        key: the metadata key of the header.
    """

    name: str
    version: int
    holds: str
    header: type[Header]
    summed_since: int
    key: str

    def write(self, path: Path, header: Header, tensors: Mapping[str, Tensor], argument: str = "path") -> None:
        """Write a file, completely or not at all. Numbers of the header that are not finite become null.

        Raises:
            FileNotFoundError, ValueError, OSError: as `io.whole`.
        """
        text = msgspec.json.encode(header).decode()
        metadata = {"format": self.name, "version": str(self.version), self.key: text}
        tensor_files.write(path, tensors, metadata | {SUM: self.checksum(metadata)}, argument)

    def read(self, path: Path, argument: str = "path") -> tuple[Header, dict[str, Tensor]]:
        """The header and tensors of a file that `write` wrote, with the same bits. Nothing is unpickled.

        Args:
            path: the file.
            argument: every error message begins with it.

        Raises:
            FileNotFoundError: there is no file at `path`.
            ValueError: the file is truncated or damaged, its header is not one of this format, or it has another format
                or a newer version; the message names the file.

        Warns:
            UserWarning: an older version wrote the file, without checksums.
        """
        with tensor_files.opened(path, argument, self.holds) as file:
            summed = self._check(file, f"{argument}: {path}")
            header = file.json(file.metadata.get(self.key, ""), self.header)
            tensors = file.tensors()
        if not summed:
            warnings.warn(
                f"{argument}: {path} was written by an older version, without checksums: damage cannot be noticed",
                stacklevel=4,  # the caller of `load` or `load_model`, which `renamed` wraps
            )
        return header, tensors

    def checksum(self, metadata: Mapping[str, str]) -> str:
        """The checksum of the format, the version and the header. `metadata` holds all texts of a file."""
        return sha256(text="\n".join(metadata.get(key, "") for key in ("format", "version", self.key)))

    def _check(self, file: tensor_files.TensorFile, what: str) -> bool:
        """Check format, version and header; returns whether the file has checksums."""
        metadata = file.metadata
        name, version = metadata.get("format"), metadata.get("version", "")
        if name != self.name:
            raise ValueError(f"{what} holds no {self.holds}: its format is {name!r}, not {self.name!r}")
        if not (version.isascii() and version.isdecimal() and 1 <= int(version) <= self.version):
            raise ValueError(f"{what} has version {version}, this package reads versions up to {self.version}")
        summed = {SUM, tensor_files.SUMS} & metadata.keys()
        if int(version) < self.summed_since and not summed:
            return False
        if len(summed) < 2 or metadata[SUM] != self.checksum(metadata):
            raise file.damaged("its header does not have its checksum")
        return True
