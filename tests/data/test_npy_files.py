# SPDX-License-Identifier: BSD-3-Clause
"""npy files: which arrays come, in which order, and what is refused: by name, before it takes memory."""

import io
import os
import pickle
import random
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from here import fresh_python

import rainbow_fast as rf
from rainbow_fast import data
from rainbow_fast.data import npy_file
from rainbow_fast.data.npy_file import NpyFile
from rainbow_fast.networks import mlp

X = np.random.default_rng(0).standard_normal((7, 2, 3))


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_floats_come_as_they_are(tmp_path, dtype, order):
    np.save(tmp_path / "x.npy", np.asarray(X, dtype, order=order))
    np.save(tmp_path / "y.npy", np.arange(7, dtype=np.int16))
    pairs = data.npy_pair(tmp_path / "x.npy", tmp_path / "y.npy", batch_size=3)
    for _ in range(2):
        x, y = zip(*pairs, strict=True)
        assert [len(part) for part in x] == [3, 3, 1] and len(pairs) == 3
        assert all(part.is_contiguous() for part in x)
        assert np.array_equal(torch.cat(x), X.astype(dtype)) and x[0].numpy().dtype == np.dtype(dtype).newbyteorder("=")
        assert torch.equal(torch.cat(y), torch.arange(7))


def test_npy_bytes_come_between_0_and_1_and_labels_need_not(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(256, dtype=np.uint8).reshape(2, 128))
    [(x, y)] = data.npy_pair(tmp_path / "x.npy")
    assert y is None and x.dtype == torch.float32
    assert torch.equal(x.flatten(), torch.arange(256) / 255)


def test_npy_files_are_not_loaded_and_not_changed(tmp_path):
    path = tmp_path / "x.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1000, 1000)).flush()
    tracemalloc.start()
    for x, _ in data.npy_pair(path, batch_size=10):
        x.add_(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000  # of 4,000,000 bytes: two batches of 40,000 and what Python itself takes
    assert not np.load(path).any()


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3, 4), (1, 7), (6, 1, 1)])
@pytest.mark.parametrize("block_bytes", [1, 200, 2**26])
def test_rows_of_both_orders_are_those_of_numpy(tmp_path, monkeypatch, shape, block_bytes):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    for order in "CF":
        np.save(tmp_path / "x.npy", np.asarray(array, order=order))
        file = NpyFile.at(tmp_path / "x.npy", "x_path")
        monkeypatch.setattr(npy_file, "BLOCK_BYTES", block_bytes)
        for start, stop in ((0, len(array)), (0, 1), (len(array) // 2, len(array))):
            assert np.array_equal(file.rows(start, stop), array[start:stop])


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">i4", "<i8", ">u8"])
def test_npy_labels_of_any_integers(tmp_path, dtype):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", np.arange(7).astype(dtype))
    [(_, y)] = data.npy_pair(tmp_path / "x.npy", tmp_path / "y.npy")
    assert y.dtype == torch.int64 and y.tolist() == list(range(7))
    y.zero_()
    assert next(iter(data.npy_pair(tmp_path / "x.npy", tmp_path / "y.npy", batch_size=3)))[1].tolist() == [0, 1, 2]


def test_labels_of_one_batch_are_not_those_of_another_iteration(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", np.arange(7))
    pairs = data.npy_pair(tmp_path / "x.npy", tmp_path / "y.npy")
    next(iter(pairs))[1].zero_()
    assert next(iter(pairs))[1].tolist() == list(range(7))


@pytest.mark.parametrize(
    "value, dtype, text", [(-7, np.int8, "-7"), (2**64 - 1, np.uint64, "18446744073709551615"), (-1, ">i8", "-1")]
)
def test_labels_that_are_no_classes_are_refused_by_their_place(tmp_path, value, dtype, text):
    y = np.zeros(7, dtype)
    y[5] = value
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", y)
    message = rf"^y_path: {tmp_path}/y.npy has the label {text} at index 5, wanted 0 to 2\^63 - 1"
    with pytest.raises(ValueError, match=message):
        data.npy_pair(tmp_path / "x.npy", tmp_path / "y.npy")


@pytest.mark.parametrize(
    "x, y, error, message",
    [
        (None, None, FileNotFoundError, "x_path: no file .*x.npy"),
        (b"no array", None, ValueError, "x_path: .*x.npy is no npy file"),
        (b"", None, ValueError, "x_path: .*x.npy is no npy file"),
        (b"\x93NUMPY\x01\x00", None, ValueError, "x_path: .*x.npy is no npy file"),
        (b"\x93NUMPY\x09\x00", None, ValueError, "x_path: .*x.npy is no npy file"),
        (X.astype(np.int32), None, ValueError, r"x_path: .*x.npy holds int32 \(7, 2, 3\), wanted float32, float64 or"),
        (X[:, 0, 0], None, ValueError, r"x_path: .*x.npy holds float64 \(7,\), wanted .*\(N, ...\) with no size 0"),
        (X[:0], None, ValueError, r"x_path: .*x.npy holds float64 \(0, 2, 3\), wanted .* with no size 0"),
        (X[:, :0], None, ValueError, r"x_path: .*x.npy holds float64 \(7, 0, 3\), wanted .* with no size 0"),
        (X, np.zeros(7), ValueError, r"y_path: .*y.npy holds float64 \(7,\), wanted integers of shape \(7,\) as x has"),
        (X, np.arange(6), ValueError, r"y_path: .*y.npy holds int64 \(6,\), wanted integers of shape \(7,\) as x has"),
        (X, np.ones(7, bool), ValueError, r"y_path: .*y.npy holds bool \(7,\), wanted integers"),
    ],
)
def test_npy_pair_refuses(tmp_path, x, y, error, message):
    if isinstance(x, bytes):
        (tmp_path / "x.npy").write_bytes(x)
    elif x is not None:
        np.save(tmp_path / "x.npy", x)
    if y is not None:
        np.save(tmp_path / "y.npy", y)
    with pytest.raises(error, match=message):
        data.npy_pair(tmp_path / "x.npy", None if y is None else tmp_path / "y.npy")


def test_npy_pair_refuses_missing_labels_and_empty_batches(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(FileNotFoundError, match="y_path: no file .*y.npy"):
        data.npy_pair(tmp_path / "x.npy", tmp_path / "y.npy")
    with pytest.raises(ValueError, match="batch_size=0: wanted batch_size >= 1"):
        data.npy_pair(tmp_path / "x.npy", batch_size=0)


def header(text: object, *, version: tuple[int, int] = (1, 0), numbers: int = 100) -> bytes:
    """An npy file with this header and so many bytes of numbers."""
    written = str(text).encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(written))
    return b"\x93NUMPY" + bytes(version) + length + written + bytes(numbers)


def described(shape: object, descr: object = "<f4", fortran: object = False) -> dict[str, object]:
    return {"descr": descr, "fortran_order": fortran, "shape": shape}


HEADERS = {
    "petabytes": (described((2**25, 2**25)), r"has \d+ bytes, wanted 4503599627370\d+ for float32"),
    "overflow": (described((2**32, 2**31, 4)), r"has \d+ bytes, wanted 1475739525896764\d+ for float32"),
    "huge": (described((10**30, 3)), r"has \d+ bytes, wanted 12000000000000000000000000000\d+ for float32"),
    "more digits than an int may have": (described((1, 3)).__repr__().replace("1", "9" * 5000), "is no npy file"),
    "negative": (described((-5, 3)), r"has a header with the shape \(-5, 3\)"),
    "bools": (described((True, 3)), r"has a header with the shape \(True, 3\)"),
    "floats": (described((5.0, 3)), "is no npy file .shape is not valid"),
    "many sizes": (
        described((5, *[1] * 99)),
        r"has a header with the shape \(5, 1, .*, wanted at most 32 whole numbers",
    ),
    "too few numbers": (described((5, 6)), r"has \d+ bytes, wanted \d+ for float32 \(5, 6\), as its header says"),
    "too many numbers": (described((5, 4)), r"has \d+ bytes, wanted \d+ for float32 \(5, 4\), as its header says"),
    "objects": (described((5, 5), "|O"), r"holds object \(5, 5\), wanted float32, float64 or uint8"),
    "structured": (described((5, 5), [("a", "<f4")]), r"holds \[\('a', '<f4'\)\] \(5, 5\), wanted float32"),
    "nested": (described((5, 5), [("a", [("b", "<f4")])]), r"holds .*, wanted float32, float64 or uint8"),
    "no dtype": (described((5, 5), "nothing"), "is no npy file"),
    "no keys": ({}, "is no npy file .Header does not contain the correct keys"),
    "code": ("__import__('os').mkdir('ran')", "is no npy file"),
    "deep brackets": ("(" * 5000 + ")" * 5000, "is no npy file"),
    "deep signs": ("-" * 9000 + "1", "is no npy file"),
    "deep sums": ("1" + "+1" * 4000, "is no npy file"),
    "65 KB": (described((5, 5)) | {"x": "a" * 60_000}, "is no npy file"),
    "NUL": ("\0", "is no npy file"),
}


@pytest.mark.parametrize("text, message", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)], ids=str)
def test_headers_are_not_trusted(tmp_path, monkeypatch, text, message, version):
    """Each is an error by name, of both arguments, and nothing as large as what it says is allocated."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "z.npy").write_bytes(header(text, version=version))
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"^x_path: {tmp_path}/z.npy {message}"):
        data.npy_pair(tmp_path / "z.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6, "what Python's parser takes for 10 KB at most"
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ValueError, match=f"^y_path: {tmp_path}/z.npy "):
        data.npy_pair(tmp_path / "x.npy", tmp_path / "z.npy")
    assert not (tmp_path / "ran").exists()


def test_a_header_that_says_that_it_has_gigabytes_is_refused(tmp_path):
    start = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)
    with open(tmp_path / "x.npy", "wb") as file:
        file.write(start)
        file.truncate(2**32)
    with pytest.raises(ValueError, match="^x_path: .*x.npy is no npy file"):
        data.npy_pair(tmp_path / "x.npy")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    array = io.BytesIO()
    np.save(array, np.array([[Evil()]], dtype=object), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, x=X)
    for content in (array.getvalue(), pickle.dumps(Evil()), archive.getvalue()):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(ValueError, match="^x_path: .*x.npy "):
            data.npy_pair(tmp_path / "x.npy")
    assert not (tmp_path / "ran").exists()


def test_damaged_files_are_right_or_refused(tmp_path):
    """600 files with one bit turned in their header, or some bytes missing at their end."""
    array = np.random.default_rng(0).standard_normal((50, 3, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    whole, chosen = (tmp_path / "x.npy").read_bytes(), random.Random(0)
    refused = 0
    for number in range(600):
        damaged = bytearray(whole)
        if number % 3:
            damaged[chosen.randrange(128)] ^= 1 << chosen.randrange(8)
        else:
            del damaged[chosen.randrange(len(whole)) :]
        (tmp_path / "x.npy").write_bytes(damaged)
        try:
            pairs = data.npy_pair(tmp_path / "x.npy", batch_size=20)
        except ValueError as error:
            assert str(error).startswith(f"x_path: {tmp_path}/x.npy ")
            refused += 1
        else:
            x = torch.cat([x for x, _ in pairs])
            assert x.shape.numel() == array.size or x.dtype != torch.float32, "all numbers of the file"
    assert refused > 400


CHANGES = """
import os, sys
import numpy as np
from rainbow_fast.data import npy_file, npy_pair

npy_file.BLOCK_BYTES = 2**15
path, preadv = "x.npy", os.preadv
changes = {
    "shorter": lambda: os.truncate(path, 4096),
    "longer": lambda: open(path, "ab").write(b"more"),
    "replaced": lambda: os.replace("other.npy", path),
    "removed": lambda: os.unlink(path),
    "shorter while it is read": lambda: setattr(os, "preadv", lambda *a: os.truncate(path, 4096) or preadv(*a)),
}
for order in "CF":
    for name, change in changes.items():
        for file_name in (path, "other.npy"):
            with open(file_name, "wb") as file:
                np.save(file, np.zeros((4000, 10), np.float32, order=order))
        batches = iter(npy_pair(path, batch_size=1000))
        next(batches)
        change()
        try:
            list(batches)
            print(order, name, "not seen")
        except ValueError as error:
            print(order, name, error, sep=": ")
        os.preadv = preadv
"""


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    """In a process of its own, which a mapped file would end."""
    printed = fresh_python(CHANGES, folder=tmp_path)
    messages = dict.fromkeys(("shorter", "longer", "replaced"), "has changed since it was opened, wanted the same file")
    messages |= {"removed": "cannot be read (No such file or directory)"}
    messages |= {"shorter while it is read": "too early: it has become shorter since it was opened"}
    wanted = [(order, name, message) for order in "CF" for name, message in messages.items()]
    for line, (order, name, message) in zip(printed.splitlines(), wanted, strict=True):
        assert line.startswith(f"{order}: {name}: x_path: {tmp_path}/x.npy ") and message in line


def test_a_file_is_read_after_a_change_of_the_working_directory(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", X)
    monkeypatch.chdir(tmp_path)
    pairs = data.npy_pair("x.npy")
    monkeypatch.chdir("/")
    assert np.array_equal(next(iter(pairs))[0], X)


def test_fit_names_the_data_that_is_not_finite(tmp_path):
    X_nan = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    X_nan[17, 3] = np.nan
    np.save(tmp_path / "x.npy", X_nan)
    for pairs in (data.npy_pair(tmp_path / "x.npy"), torch.from_numpy(X_nan)):
        for call in (rf.fit, rf.sample):
            with pytest.raises(ValueError, match="not finite"):
                call(mlp((6, 8, 4), seed=0), pairs, holdout=0)
