# SPDX-License-Identifier: BSD-3-Clause
"""Safetensors files with a checksum of every tensor.

A file is read here, not by the safetensors library: that maps it into memory, and a mapped file that somebody else
truncates ends the process. All reads are from one open file, so that a file that is replaced meanwhile is not mixed.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rainbow_fast.backend import empty
from rainbow_fast.io import bytes_of_tensor, described, read_all, sha256, whole

LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
PIECE = 2**20  # bytes that are read and hashed at a time, while they are in the cache
SUMS = "sha256"  # metadata key of the checksums: a JSON object from the names of the tensors
PAIRS = "pairs of complex128, "  # before the checksum of a float64 tensor (..., 2) that stands for complex128
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """The description of one tensor in a safetensors file; `data_offsets` are its first byte and the one after it."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]

    @property
    def bytes(self) -> int:
        return self.data_offsets[1] - self.data_offsets[0]

    def fits(self) -> bool:
        """Whether the shape needs the bytes that the tensor has."""
        return min(self.shape, default=0) >= 0 and math.prod(self.shape) * DTYPES[self.dtype].itemsize == self.bytes


class TensorFile:
    """An open safetensors file.

    Attributes:
        metadata: its texts.
        entries: the descriptions of its tensors.
    """

    def __init__(self, path: Path, argument: str) -> None:
        self._what = f"{argument}: {path}"
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, each in memory of its own. They are compared with their checksums, if the file has some.

        Raises:
            ValueError: a tensor is not the one that was written, or the file became shorter; the message names both.
        """
        sums = None
        if SUMS in self.metadata:
            sums = self.json(self.metadata[SUMS], dict[str, str])
            if sums.keys() != self.entries.keys():
                raise self.damaged(f"it has checksums of other tensors: {min(sums.keys() ^ self.entries.keys())!r}")
        return {name: self._tensor(name, entry, sums and sums[name]) for name, entry in self.entries.items()}

    def json(self, text: str | bytes, kind: Any) -> Any:
        """The value of this type in a text of JSON.

        Raises:
            ValueError: the text is something else.
        """
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.damaged(f"its header cannot be read ({error})") from error

    def damaged(self, why: str) -> ValueError:
        return ValueError(f"{self._what} is damaged: {why}")

    def _read_header(self) -> None:
        size = os.fstat(self._descriptor).st_size
        length = int.from_bytes(self._bytes(0, 8), "little")
        self._start = 8 + length
        if length > LARGEST_HEADER or self._start > size:
            raise ValueError(f"{self._what} is not a whole safetensors file: it has {size} bytes")
        header = self.json(self._bytes(8, length), dict[str, msgspec.Raw])
        self.metadata = self.json(bytes(header.pop("__metadata__", b"{}")), dict[str, str])
        self.entries = {name: self.json(bytes(raw), Entry) for name, raw in header.items()}
        end = 0
        for name, entry in sorted(self.entries.items(), key=lambda item: item[1].data_offsets):
            if entry.dtype not in DTYPES:
                raise ValueError(f"{self._what} holds tensor {name!r} of dtype {entry.dtype}, wanted one of torch")
            if entry.data_offsets[0] != end or not entry.fits():
                raise self.damaged(
                    f"tensor {name!r} is described as {entry.dtype} {entry.shape} at {entry.data_offsets}"
                )
            end = entry.data_offsets[1]
        if self._start + end != size:
            raise ValueError(f"{self._what} is not a whole safetensors file: {size} bytes, wanted {self._start + end}")

    def _tensor(self, name: str, entry: Entry, wanted: str | None) -> Tensor:
        try:
            t = empty(entry.shape, DTYPES[entry.dtype], torch.device("cpu"))
        except RuntimeError as error:  # sizes whose product overflows beside a zero
            raise self.damaged(f"tensor {name!r} cannot have the shape {entry.shape}") from error
        paired = wanted is not None and wanted.startswith(PAIRS)
        wanted = None if wanted is None else wanted.removeprefix(PAIRS)
        digest = hashlib.sha256(described(t))
        for first in range(0, t.nbytes, PIECE):
            piece = bytes_of_tensor(t)[first : first + PIECE]
            if read_all(self._descriptor, piece, self._start + entry.data_offsets[0] + first) < len(piece):
                raise self.damaged(f"it became shorter while it was read, at tensor {name!r}")
            if wanted is not None:
                digest.update(piece)
        if wanted not in (None, f"sha256:{digest.hexdigest()}"):
            raise self.damaged(f"tensor {name!r} does not have its checksum")
        if paired and (t.dtype != torch.float64 or t.shape[-1:] != (2,)):
            raise self.damaged(f"tensor {name!r} is {entry.dtype} {entry.shape}, no pairs of float64")
        return torch.view_as_complex(t) if paired else t

    def _bytes(self, start: int, count: int) -> bytes:
        data = bytearray(count)
        if read_all(self._descriptor, memoryview(data), start) < len(data):
            raise ValueError(f"{self._what} is not a whole safetensors file: it ends in its header")
        return bytes(data)


@contextmanager
def opened(path: Path, argument: str = "path", holds: str = "file") -> Iterator[TensorFile]:
    """A context that opens a safetensors file.

    Args:
        path: the file.
        argument: every error message begins with it.
        holds: what the file should contain, in words.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ValueError: the file is truncated or damaged; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: no {holds} at {path}")
    file = TensorFile(path, argument)
    try:
        yield file
    finally:
        file.close()


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], argument: str = "path") -> None:
    """Write tensors and their checksums to a safetensors file, completely or not at all.

    Args:
        path: the file.
        tensors: any tensors; they may share memory. The format has no complex128: such tensors are written as float64
            with one more axis of length 2, and their checksums say so.
        metadata: texts that are written too.
        argument: every error message begins with it.

    Raises:
        FileNotFoundError, ValueError, OSError: as `io.whole`.
    """
    pairs = {name for name, t in tensors.items() if t.dtype == torch.complex128}
    dense = _apart({name: torch.view_as_real(t.resolve_conj()) if name in pairs else t for name, t in tensors.items()})
    sums = msgspec.json.encode({n: PAIRS * (n in pairs) + sha256([t]) for n, t in dense.items()}).decode()
    size = sum(t.nbytes for t in dense.values())
    with whole(path, argument, size) as temporary:
        try:
            save_file(dense, temporary, {**metadata, SUMS: sums})  # writes one tensor at a time
        except SafetensorError as error:
            raise _as_os_error(error) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, dense on the CPU. Those that share memory are copied, because safetensors refuses them."""
    dense: dict[str, Tensor] = {}
    seen = set()
    for name, t in tensors.items():
        t = t.detach().cpu().contiguous()
        address = t.untyped_storage().data_ptr()
        dense[name] = t.clone() if address in seen or t.untyped_storage().nbytes() != t.nbytes else t
        seen.add(address)
    return dense


def _as_os_error(error: SafetensorError) -> Exception:
    """The error of the operating system that the safetensors library reports in words; others as they are."""
    number = re.search(r"os error (\d+)", str(error))
    return error if number is None else OSError(int(number[1]), os.strerror(int(number[1])))
