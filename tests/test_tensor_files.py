# SPDX-License-Identifier: BSD-3-Clause
"""A file of tensors that is damaged anywhere is refused by name; one that is not has the same bits."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from damage import flipped
from here import fresh_python
from safetensors.torch import load_file, save_file
from torch import Tensor

from rainbow_fast import tensor_files

DTYPES = sorted(tensor_files.DTYPES.values(), key=str)


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = {str(dtype): torch.randn(3, 5, generator=generator).to(dtype) for dtype in DTYPES}
    base = torch.randn(4, 6, generator=generator)
    more = {"none": torch.empty(0, 7), "number": torch.tensor(2.5), "strided": base.T[1:], "base": base, "again": base}
    return values | more


def read(path: Path) -> dict[str, Tensor]:
    with tensor_files.opened(path) as file:
        return file.tensors()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == t.dtype and a[name].shape == t.shape and a[name].tolist() == t.tolist()
        for name, t in b.items()
    )


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_what_is_written_is_read_here_and_by_the_safetensors_library(tmp_path):
    path = tmp_path / "file"
    tensor_files.write(path, tensors(), {"note": "text"})
    assert same(read(path), tensors()) and same(load_file(path), tensors())
    with tensor_files.opened(path) as file:
        assert file.metadata["note"] == "text" and len(json.loads(file.metadata["sha256"])) == len(tensors())
    save_file({name: t.contiguous().clone() for name, t in tensors().items()}, path)  # without checksums
    assert same(read(path), tensors())


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_flipped_bits_and_every_truncation_are_noticed(tmp_path, bits):
    """A bit in the name of the entry with the checksums disables them; the tensors are then unchanged."""
    path = tmp_path / "file"
    some = {"a": torch.arange(24.0).view(4, 6), "b": torch.arange(9), "c": torch.tensor(1.0, dtype=torch.float64)}
    tensor_files.write(path, some, {})
    data = path.read_bytes()
    unnoticed = 0
    for place in range(bits * len(data)):
        byte, bit = place // bits, (place // bits + place % bits) % 8
        damaged = data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :]
        path.write_bytes(damaged)
        try:
            assert same(read(path), some), (byte, bit)
            unnoticed += 1
        except ValueError as error:
            assert str(error).startswith((f"path: {path} is ", f"path: {path} holds tensor "))
    assert unnoticed <= bits * len('"sha256"')
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=f"^path: {path} is "):
            read(path)


def test_one_large_tensor_with_flipped_bits(tmp_path):
    path = tmp_path / "file"
    tensor_files.write(path, {"a": torch.zeros(50_000)}, {})
    data = path.read_bytes()
    for damaged in flipped(data[1000:], seed=1, count=50):
        path.write_bytes(data[:1000] + damaged)
        with pytest.raises(ValueError, match="tensor 'a' does not have its checksum"):
            read(path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header, data, message",
    [
        (b"[" * 100_000, b"", "is damaged: its header cannot be read"),
        (b"[]", b"", "is damaged: its header cannot be read"),
        (b'{"a":1}', b"", "is damaged: its header cannot be read"),
        (b"\xff\xfe", b"", "is damaged: its header cannot be read"),
        ({"__metadata__": {"a": 1}}, b"", "is damaged: its header cannot be read"),
        ({"a": ENTRY | {"more": 1}}, b"01234567", "is damaged: its header cannot be read"),
        ({"a": ENTRY | {"dtype": "F31"}}, b"01234567", "holds tensor 'a' of dtype F31, wanted one of torch"),
        ({"a": ENTRY | {"shape": [3]}}, b"01234567", r"tensor 'a' is described as F32 \[3\]"),
        ({"a": ENTRY | {"shape": [-1, -2]}}, b"01234567", "tensor 'a' is described as"),
        ({"a": ENTRY | {"shape": [2**62, 2**62]}}, b"01234567", "tensor 'a' is described as"),
        ({"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, b"", "cannot have the shape"),
        ({"a": ENTRY | {"data_offsets": [8, 16]}}, b"0" * 16, "tensor 'a' is described as"),
        ({"a": ENTRY, "b": ENTRY}, b"01234567", "tensor 'b' is described as"),
        ({"a": ENTRY}, b"012345678", "is not a whole safetensors file: .* bytes, wanted"),
        ({"a": ENTRY}, b"0123456", "is not a whole safetensors file"),
        ({"a": ENTRY, "__metadata__": {"sha256": "{}"}}, b"01234567", "it has checksums of other tensors: 'a'"),
        ({"a": ENTRY, "__metadata__": {"sha256": "["}}, b"01234567", "is damaged: its header cannot be read"),
        ({"a": ENTRY, "__metadata__": {"sha256": '{"a": 1}'}}, b"01234567", "is damaged: its header cannot be read"),
    ],
)
def test_headers_that_are_refused(tmp_path, header, data, message):
    path = raw(tmp_path / "file", header, data)
    with pytest.raises(ValueError, match=f"^path: {path} .*{message}"):
        read(path)


def test_no_safetensors_file(tmp_path):
    path = tmp_path / "file"
    for data in (b"", b"x", struct.pack("<Q", 2**63), struct.pack("<Q", 10**9) + b"{}"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"path: {path} is not a whole safetensors file"):
            read(path)
    for missing in (tmp_path / "none", tmp_path, Path("/dev/null")):
        with pytest.raises(FileNotFoundError, match=f"path: no file at {missing}"):
            read(missing)


def test_a_file_that_is_truncated_while_it_is_read(tmp_path):
    """A mapped file would end the process by SIGBUS."""
    path = tmp_path / "file"
    tensor_files.write(path, {"a": torch.zeros(100_000), "b": torch.ones(100_000)}, {})
    with tensor_files.opened(path) as file:
        os.truncate(path, 500_000)
        with pytest.raises(ValueError, match="became shorter while it was read, at tensor '[ab]'"):
            file.tensors()


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed(tmp_path):
    path = tmp_path / "file"
    tensor_files.write(path, {"a": torch.zeros(1000)}, {})
    with tensor_files.opened(path) as file:
        tensor_files.write(path, {"a": torch.ones(1000)}, {})
        assert not file.tensors()["a"].any()


def test_a_full_disk_is_named_with_the_bytes(tmp_path):
    fresh_python(f"""
import resource, torch
from pathlib import Path
from rainbow_fast import tensor_files
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    tensor_files.write(Path({str(tmp_path / "file")!r}), {{"a": torch.zeros(10000)}}, {{}}, "resume_dir")
except OSError as error:
    assert str(error).count("resume_dir: cannot write 40000 bytes into {tmp_path} (the disk is full): ") == 1, error
else:
    raise SystemExit("no error")
""")
    assert not list(tmp_path.iterdir())


def test_complex_numbers_of_both_precisions(tmp_path):
    """safetensors has no complex128: such tensors are pairs in the file, which their checksums name."""
    path = tmp_path / "tensors.safetensors"
    z = torch.complex(torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64))
    tensors = {"z": z, "conjugate": z.conj(), "number": z[0, 0], "single": z.to(torch.complex64), "real": z.real}
    tensor_files.write(path, tensors, {})
    with tensor_files.opened(path) as file:
        again = file.tensors()
    assert all(again[name].dtype == t.dtype and torch.equal(again[name], t) for name, t in tensors.items())
    assert torch.equal(load_file(path)["z"], torch.view_as_real(z))


def test_pairs_that_are_none_are_refused(tmp_path):
    path = tmp_path / "tensors.safetensors"
    tensor_files.write(path, {"x": torch.zeros(3)}, {})
    with tensor_files.opened(path) as file:
        sums = json.loads(file.metadata[tensor_files.SUMS])
    save_file({"x": torch.zeros(3)}, path, {tensor_files.SUMS: json.dumps({"x": tensor_files.PAIRS + sums["x"]})})
    with (
        tensor_files.opened(path) as file,
        pytest.raises(ValueError, match="tensor 'x' is F32 .3., no pairs of float64"),
    ):
        file.tensors()
