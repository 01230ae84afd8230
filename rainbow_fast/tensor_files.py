# SPDX-License-Identifier: BSD-3-Clause
"""Files of this package: safetensors with a format, a version and a header; whole, or not there."""

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
    """A kind of file.

    Attributes:
        name: written into each; the header stands under its last word.
        version: that is written; older ones are read.
        holds: in words, for messages.
    """

    name: str
    version: int
    holds: str

    def write(self, path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
        """Tensors that share no memory, and a header of what JSON knows.

        Raises:
            FileNotFoundError: the folder of `path` is missing.
        """
        metadata = {"format": self.name, "version": str(self.version), self._key: json.dumps(header)}
        dense = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        with whole(path) as temporary:
            save_file(dense, temporary, metadata)  # a tensor at a time, not all of the file in memory

    def read(self, path: Path, argument: str = "path") -> tuple[Header, dict[str, Tensor]]:
        """What `write` wrote, by the number to the same bits. Nothing is unpickled.

        Raises:
            FileNotFoundError: no file at `path`.
            ValueError: it is truncated, of another format, or of a newer version; the message names it.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{argument}: no {self.holds} at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                self._check(metadata, f"{argument}: {path}")
                # Cloned, for in the file they lie at any address, and libraries round by it.
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
