# SPDX-License-Identifier: BSD-3-Clause
"""The files of this package: safetensors with a format name, a version and a header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rainbow_fast.io import whole

Header = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: the name of the format, which is written into each file. The part after its last dot is the metadata key
            of the header.
        version: the version that is written. Older versions can be read.
        holds: what the files contain, in words, for messages.
    """

    name: str
    version: int
    holds: str

    def write(self, path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Write a file, completely or not at all.

        Args:
            path: the file.
            header: a dict of values that JSON can represent.
            tensors: tensors that share no memory.

        Raises:
            FileNotFoundError: the folder of `path` does not exist.
        """
        metadata = {"format": self.name, "version": str(self.version), self._key: json.dumps(header)}
        dense = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        with whole(path) as temporary:
            save_file(dense, temporary, metadata)  # writes one tensor at a time

    def read(self, path: Path, argument: str = "path") -> tuple[Header, dict[str, Tensor]]:
        """The header and tensors of a file that `write` wrote, with the same bits. Nothing is unpickled.

        Args:
            path: the file.
            argument: every error message begins with it.

        Raises:
            FileNotFoundError: there is no file at `path`.
            ValueError: the file is truncated, or has another format or a newer version; the message names the file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{argument}: no {self.holds} at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self._check(metadata, f"{argument}: {path}")
                # Tensors in the file may be unaligned, and the rounding of libraries depends on the alignment: clone.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                return json.loads(metadata[self._key]), tensors
        except SafetensorError as error:
            raise ValueError(f"{argument}: {path} is not a whole safetensors file ({error})") from error
        except (KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{argument}: {path} is damaged, its header cannot be read ({error})") from error

    @property
    def _key(self) -> str:
        return self.name.rpartition(".")[2]

    def _check(self, metadata: Mapping[str, str], what: str) -> None:
        file_format = metadata.get("format")
        if file_format != self.name:
            raise ValueError(f"{what} holds no {self.holds}: its format is {file_format!r}, not {self.name!r}")
        version = metadata["version"]
        if not version.isdecimal() or int(version) > self.version:
            raise ValueError(f"{what} has version {version}, this package reads versions up to {self.version}")
