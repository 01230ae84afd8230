# SPDX-License-Identifier: BSD-3-Clause
"""Images from scikit-learn and from the files of CIFAR-10, and batches from every form of data."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from rainbow_fast import data
from rainbow_fast.data.datasets import normalised


def test_digits_are_the_same_fixed_split_each_time():
    pytest.importorskip("sklearn")
    images = data.digits()
    assert images.x_train.shape == (1437, 1, 8, 8) and images.x_test.shape == (360, 1, 8, 8)
    assert images.x_train.dtype == torch.float32 and images.y_train.dtype == torch.int64
    assert abs(images.x_train.mean()) < 1e-5 and abs(images.x_train.std() - 1) < 1e-5  # float32 sums of 92,000 numbers
    assert images.y_test[:8].tolist() == [7, 9, 4, 7, 0, 2, 6, 1]
    assert all(torch.equal(a, b) for a, b in zip(images, data.digits(), strict=True))


def test_digits_hold_every_image_once():
    datasets = pytest.importorskip("sklearn.datasets")
    images = data.digits()
    x = torch.cat([images.x_train, images.x_test]).flatten(1)
    pixels = (16 * (x - x.min()) / (x.max() - x.min())).round().int().tolist()
    labelled = zip(pixels, torch.cat([images.y_train, images.y_test]).tolist(), strict=True)
    bunch = datasets.load_digits()
    assert sorted(labelled) == sorted(zip(bunch.data.astype(int).tolist(), bunch.target.tolist(), strict=True))


def test_digits_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn: pip install \"rainbow_fast\[data\]\""):
        data.digits()


def test_cifar10_in_colour_is_the_published_normalisation(cifar10_folder):
    images = data.cifar10(cifar10_folder)
    assert images.x_train.shape == (50000, 3, 32, 32) and images.x_test.shape == (10000, 3, 32, 32)
    assert images.y_train.bincount().tolist() == [5000] * 10 and images.y_test.bincount().tolist() == [1000] * 10
    pixels = 255 * (images.x_train.mean((0, 2, 3), dtype=torch.float64) * torch.tensor(data.STD))
    pixels += 255 * torch.tensor(data.MEAN)
    # Published with three decimals
    assert torch.allclose(pixels.float(), torch.tensor([125.307, 122.950, 113.865]), atol=1e-3)
    record = np.fromfile(cifar10_folder / "data_batch_2.bin", dtype=np.uint8, count=3073, offset=7 * 3073)
    assert images.y_train[10007] == record[0]
    blue = torch.from_numpy(record[1 + 2048 :].reshape(32, 32).astype(np.float32))
    # float32 numbers below 3, rounded three times
    assert torch.allclose(images.x_train[10007, 2], (blue / 255 - 0.406) / 0.225, atol=1e-6)


def test_cifar10_takes_other_statistics(cifar10_folder):
    usual, other = (
        data.cifar10(cifar10_folder, **statistics).x_test[:50]
        for statistics in ({}, {"mean": (0.5, 0, 1), "std": (2, 1, 0.5)})
    )
    pixels = usual * torch.tensor(data.STD).view(3, 1, 1) + torch.tensor(data.MEAN).view(3, 1, 1)
    wanted = (pixels - torch.tensor([0.5, 0, 1]).view(3, 1, 1)) / torch.tensor([2, 1, 0.5]).view(3, 1, 1)
    assert torch.allclose(other, wanted, atol=1e-6)  # the same, there and back


@pytest.mark.parametrize(
    "statistics, message",
    [
        ({"mean": (1, 2)}, r"mean: wanted three finite numbers, got \(1, 2\)"),
        ({"mean": (1, 2, torch.nan)}, r"mean: wanted three finite numbers, got \(1, 2, nan\)"),
        ({"mean": (1, 2, 1e39)}, r"mean: wanted three finite numbers, got \(1, 2, 1e\+39\)"),
        ({"mean": "abc"}, "mean: wanted three finite numbers, got 'abc'"),
        ({"mean": 0.5}, "mean: wanted three finite numbers, got 0.5"),
        ({"std": (1, 1, 0)}, r"std: wanted three finite positive numbers, got \(1, 1, 0\)"),
        ({"std": (1, torch.inf, 1)}, r"std: wanted three finite positive numbers, got \(1, inf, 1\)"),
        ({"std": (torch.nan, 1, 1)}, r"std: wanted three finite positive numbers, got \(nan, 1, 1\)"),
        ({"std": (1, 1, 1e-50)}, r"std: wanted three finite positive numbers, got \(1, 1, 1e-50\)"),
    ],
)
def test_cifar10_names_wrong_statistics(statistics, message):
    with pytest.raises(ValueError, match=message):
        data.cifar10("nowhere", **statistics)


def test_cifar10_grey_combines_after_the_normalisation(cifar10_folder):
    grey, colour = data.cifar10(cifar10_folder.parent, grey=True), data.cifar10(cifar10_folder)
    assert grey.x_train.shape == (50000, 1, 32, 32)
    red, green, blue = colour.x_test.unbind(1)
    # float32 sums of three such numbers
    assert torch.allclose(grey.x_test[:, 0], 0.2989 * red + 0.587 * green + 0.114 * blue, atol=1e-6)
    assert torch.equal(grey.y_train, colour.y_train)


NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


@pytest.fixture
def synthetic_folder(tmp_path: Path) -> Path:
    """Files of the right size, all bytes 0."""
    for name in NAMES:
        with open(tmp_path / name, "wb") as file:
            file.truncate(30_730_000)
    return tmp_path


def test_cifar10_names_a_missing_file(synthetic_folder):
    (synthetic_folder / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"folder: no file .*data_batch_4\.bin; wanted the binary version"):
        data.cifar10(synthetic_folder)


@pytest.mark.parametrize(
    "size", [30_729_999, 3_073 * 9_999, 3_074 * 10_000, 0], ids=["truncated", "a record short", "CIFAR-100", "empty"]
)
def test_cifar10_names_a_file_of_the_wrong_size(synthetic_folder, size):
    with open(synthetic_folder / "test_batch.bin", "r+b") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match=rf"folder: .*test_batch\.bin has {size} bytes, wanted 30730000"):
        data.cifar10(synthetic_folder)


def test_cifar10_names_a_foreign_file_by_its_labels(synthetic_folder):
    with open(synthetic_folder / "data_batch_2.bin", "r+b") as file:
        file.seek(7005 * 3073)
        file.write(b"\x0a")
    with pytest.raises(ValueError, match=r"folder: .*data_batch_2\.bin has a label 10 in record 7005, wanted 0 to 9"):
        data.cifar10(synthetic_folder)


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the right size, pixels and labels at random."""
    folder, generator = tmp_path_factory.mktemp("random"), np.random.default_rng(0)
    for name in NAMES:
        records = generator.integers(0, 256, (10_000, 3_073), dtype=np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / name)
    return folder


@pytest.mark.parametrize("grey", [False, True])
def test_the_first_cifar10_images_are_those_of_all(random_folder, grey):
    """To the bit, and as the records of a file normalised at once."""
    whole = data.cifar10(random_folder, grey=grey, images=12_345, test_images=10_000)
    assert len(whole.x_train) == 12_345 and len(whole.x_test) == 10_000
    for images, test_images in ((0, 0), (1, 2_001), (999, 7), (11_007, 10**9)):
        part = data.cifar10(random_folder, grey=grey, images=images, test_images=test_images)
        assert len(part.x_train) == len(part.y_train) == images and len(part.x_test) == min(test_images, 10_000)
        for few, many in zip(part, whole, strict=True):
            assert torch.equal(few, many[: len(few)]) and few.shape[1:] == many.shape[1:]
    records = np.fromfile(random_folder / "test_batch.bin", np.uint8).reshape(-1, 3073)
    pixels = torch.from_numpy(records[:, 1:].copy()).view(-1, 3, 32, 32)
    assert torch.equal(whole.x_test, normalised(pixels, mean=data.MEAN, std=data.STD, grey=grey))
    assert torch.equal(whole.y_test, torch.from_numpy(records[:, 0].astype(np.int64)))


def test_only_cifar10_files_that_are_needed_are_read(synthetic_folder):
    (synthetic_folder / "data_batch_3.bin").write_bytes(b"")
    (synthetic_folder / "test_batch.bin").unlink()
    assert data.cifar10(synthetic_folder, images=20_000, test_images=0).x_train.shape == (20_000, 3, 32, 32)
    with pytest.raises(ValueError, match=r"data_batch_3\.bin has 0 bytes"):
        data.cifar10(synthetic_folder, images=20_001, test_images=0)
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin"):
        data.cifar10(synthetic_folder, images=1, test_images=1)
    for name in ("images", "test_images"):
        with pytest.raises(ValueError, match=f"^{name}=-1: wanted {name} >= 0"):
            data.cifar10(synthetic_folder, **{name: -1})


def test_a_cifar10_file_that_becomes_shorter_is_an_error(synthetic_folder, monkeypatch):
    """Truncated when its second thousand records are read."""
    path, preadv, calls = synthetic_folder / "data_batch_1.bin", os.preadv, []

    def reading(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            os.truncate(path, 3073 * 1500)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", reading)
    with pytest.raises(ValueError, match=r"folder: .*data_batch_1\.bin ends at byte 4609500, .* too early"):
        data.cifar10(synthetic_folder)


def test_a_cifar10_file_that_is_a_folder_is_an_error(synthetic_folder):
    (synthetic_folder / "data_batch_1.bin").unlink()
    (synthetic_folder / "data_batch_1.bin").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder: no file .*data_batch_1\.bin"):
        data.cifar10(synthetic_folder)


X, Y = torch.arange(14.0).view(7, 2), torch.arange(7)


@pytest.mark.parametrize(
    "source, labelled",
    [
        (X, False),
        ((X, Y), True),
        ((X, None), False),
        ([X[:3], X[3:]], False),
        ([(X[:3], Y[:3]), [X[3:], Y[3:]]], True),
        (((X[:3], Y[:3]), (X[3:], Y[3:])), True),
        (DataLoader(TensorDataset(X), batch_size=3), False),
        (DataLoader(TensorDataset(X, Y), batch_size=3), True),
    ],
    ids=["x", "pair", "pair without y", "list of x", "list of pairs", "tuple of pairs", "loader of x", "loader"],
)
def test_batches_of_every_kind_of_data_can_be_iterated_twice(source, labelled):
    batches = data.batches(source, batch_size=3)
    for _ in range(2):
        x, y = zip(*batches, strict=True)
        assert torch.equal(torch.cat(x), X)
        assert torch.equal(torch.cat(y), Y) if labelled else set(y) == {None}


def test_batches_of_a_tensor_are_views_of_the_size_asked_for():
    batches = [x for x, _ in data.batches(X, batch_size=3)]
    assert [len(x) for x in batches] == [3, 3, 1]
    assert batches[1].data_ptr() == X[3:].data_ptr()


def test_a_batch_of_a_loader_is_data():
    """A list of samples and labels, and of samples, labels and indices, is one batch; two batches are a loader."""
    labels, index = torch.arange(7) % 3, torch.arange(7)
    for batch in ([X, labels], [X, labels, index]):
        (only,) = data.batches(batch)
        assert torch.equal(only[0], X) and torch.equal(only[1], labels)
        (x, y) = next(iter(data.batches([batch])))
        assert torch.equal(x, X) and torch.equal(y, labels)
    assert [y for _, y in data.batches([X, X])] == [None, None]


@pytest.mark.parametrize(
    "source, error, message",
    [
        ((x for x in [X]), TypeError, "data: wanted data that can be .*got generator, which can be iterated only once"),
        (iter([X]), TypeError, "data: wanted data that can be iterated several.*got list_iterator"),
        (
            7,
            TypeError,
            r"data: wanted a tensor, a tuple \(x, y\) of tensors, a dict of tensors, a DataLoader.*; got int",
        ),
        ("x", TypeError, "data: wanted a tensor.*; got str"),
        (
            (X, Y, X),
            TypeError,
            r"data: wanted a tensor x, a dict of tensors, or a pair.*got tuple \(Tensor, Tensor, Tensor\)",
        ),
        ((X, [1, 2]), TypeError, r"data: wanted a tensor x, a dict of tensors, or a pair.*got tuple \(Tensor, list\)"),
        ((X, Y[:5]), ValueError, r"data: wanted one label for each of the 7 samples, got y of shape \(5,\)"),
        (X[:0], ValueError, r"data: wanted x of shape \(N, ...\) with N >= 1, got \(0, 2\)"),
        (torch.tensor(1.0), ValueError, r"data: wanted x of shape \(N, ...\) with N >= 1, got \(\)"),
        ([], ValueError, "data: list yields no batch"),
        (DataLoader(TensorDataset(X), batch_size=8, drop_last=True), ValueError, "data: DataLoader yields no batch"),
        (
            [X, X.numpy()],
            TypeError,
            r"data: batch 1: wanted a tensor x, a dict of tensors, or a pair.*got ndarray \(ndarray\)",
        ),
        ([(X, Y), (X, Y[:5])], ValueError, "data: batch 1: wanted one label for each of the 7 samples"),
        ([(X, Y), X], ValueError, "data: batch 1 is unlabelled, those before it are not"),
        ([X, (X, Y)], ValueError, "data: batch 1 is labelled, those before it are not"),
    ],
)
def test_batches_refuse_what_is_no_data(source, error, message):
    with pytest.raises(error, match=message):
        list(data.batches(source))


def test_batches_refuse_a_batch_size_below_one():
    with pytest.raises(ValueError, match="batch_size=0: wanted batch_size >= 1"):
        data.batches(X, batch_size=0)
