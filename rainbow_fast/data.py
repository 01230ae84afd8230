# SPDX-License-Identifier: BSD-3-Clause
"""Images with labels, and what turns a user's data into batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor | None]

# Channel statistics of ImageNet and the luma weights of ITU-R 601, as the published experiments apply them to CIFAR-10.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)

CIFAR10_RECORDS = 10_000
CIFAR10_RECORD_BYTES = 3_073  # one label, then 1,024 red, 1,024 green and 1,024 blue bytes, row by row


class Images(NamedTuple):
    """A training and a test set: `x_*` float32 (N, C, H, W), `y_*` int64 (N,), all on the CPU."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def digits() -> Images:
    """The 1,797 hand-written digits that scikit-learn ships: 1 x 8 x 8 grey images, 10 classes.

        x = (pixel / 16 - mean) / std,    mean and std (numbers) over the pixels of the training images

    Returns:
        `Images` with 1,437 images to train and 360 to test: a fixed split, by the first 1,437 of
        `numpy.random.RandomState(0).permutation(1797)`, whose values NumPy keeps for ever.

    Raises:
        ImportError: scikit-learn is missing.

    Source: Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI repository (its test part).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('digits needs scikit-learn: pip install "rainbow_fast[data]"') from error
    found = load_digits()
    x = torch.from_numpy(found.images / 16).to(torch.float32).unsqueeze(1)
    y = torch.from_numpy(found.target).to(torch.int64)
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
    train, test = order[:1437], order[1437:]
    x = (x - x[train].mean()) / x[train].std()
    return Images(x[train], y[train], x[test], y[test])


def cifar10(folder: str | os.PathLike[str], *, grey: bool = False) -> Images:
    """CIFAR-10 from its published binary version: 3 x 32 x 32 images, 10 classes, 50,000 to train, 10,000 to test.

        x_c = (pixel_c / 255 - MEAN_c) / STD_c,    grey:  x = sum_c LUMA_c x_c

    Args:
        folder: holds `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or the folder
            `cifar-10-batches-bin` that does.
        grey: one channel, combined *after* the normalisation, as the published experiments do it.

    Returns:
        `Images`, in the order of the files. Colour takes 0.7 GB.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: a file is not 10,000 records of 3,073 bytes, or holds a label above 9; the message names it.

    Source: Krizhevsky (2009), Learning multiple layers of features from tiny images; the archive is
    https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz.
    """
    folder = Path(folder)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    parts = [_read_cifar10(folder / f"data_batch_{i}.bin") for i in range(1, 6)]
    x_test, y_test = _read_cifar10(folder / "test_batch.bin")
    x_train, y_train = (torch.cat(part) for part in zip(*parts, strict=True))
    return Images(_normalised(x_train, grey), y_train, _normalised(x_test, grey), y_test)


def batches(data: object, *, batch_size: int = 1000) -> Iterable[Batch]:
    """What a user calls data, as batches `(x, y)`, where `y` is None if there are no labels. Nothing is copied.

    Args:
        data: a tensor `x` (N, ...); a tuple `(x, y)` of tensors with as many rows; or a `DataLoader` or anything else
            that can be iterated again and again over batches, each of them `x`, `(x,)`, `(x, y)` or `(x, None)`, in a
            tuple or a list.
        batch_size: rows a batch where `data` is a tensor or a tuple; a loader keeps its own batches.

    Returns:
        An iterable that starts afresh each time it is iterated.

    Raises:
        TypeError: `data` or one of its batches is none of these; a one-shot iterator or generator is not either, for
            several passes are made.
        ValueError: no samples, labels that do not match, batches with and without labels, a `batch_size` below 1.

    What is wrong with a batch of a loader is raised when the iteration gets there.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: wanted at least 1, got {batch_size}")
    if isinstance(data, Tensor) or _is_tuple_of_tensors(data):
        x, y = _batch(data, "data")
        return _Batches(lambda: _slices(x, y, batch_size))
    if isinstance(data, Iterator):
        raise TypeError(
            f"data: a re-iterable is wanted, for several passes are made; got {type(data).__name__}, which can be "
            "iterated only once (a list of the batches, or a DataLoader, would do)"
        )
    if isinstance(data, str | bytes | dict) or not isinstance(data, Iterable):
        raise TypeError(
            f"data: wanted a tensor, a tuple (x, y) of tensors, a DataLoader or another re-iterable of batches; "
            f"got {type(data).__name__}"
        )
    loader: Iterable[object] = data
    return _Batches(lambda: _checked(loader))


@dataclass(frozen=True)
class _Batches:
    """An iterable from a function that starts an iteration."""

    start: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.start()


def _slices(x: Tensor, y: Tensor | None, batch_size: int) -> Iterator[Batch]:
    """Views of consecutive rows."""
    for i in range(0, len(x), batch_size):
        yield x[i : i + batch_size], None if y is None else y[i : i + batch_size]


def _checked(loader: Iterable[object]) -> Iterator[Batch]:
    """The batches of a loader, each checked on its way."""
    labelled: bool | None = None
    for index, item in enumerate(loader):
        x, y = _batch(item, f"data: batch {index}")
        if labelled is None:
            labelled = y is not None
        elif labelled != (y is not None):
            raise ValueError(f"data: batch {index} is {'un' if labelled else ''}labelled, those before it are not")
        yield x, y
    if labelled is None:
        raise ValueError(f"data: {type(loader).__name__} yields no batch")


def _batch(item: object, name: str) -> Batch:
    """`x`, `(x,)`, `(x, y)` or `(x, None)` as a checked pair; `name` opens the error messages."""
    parts = tuple(item) if isinstance(item, tuple | list) else (item,)
    x, y = (*parts, None)[:2] if len(parts) in (1, 2) else (None, None)
    if not isinstance(x, Tensor) or not (y is None or isinstance(y, Tensor)):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise TypeError(f"{name}: wanted a tensor x or a pair (x, y) of tensors, got {type(item).__name__} ({kinds})")
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"{name}: wanted x of shape (N, ...) with N >= 1, got {tuple(x.shape)}")
    if y is not None and (y.ndim == 0 or len(y) != len(x)):
        raise ValueError(f"{name}: wanted one label for each of the {len(x)} samples, got y of shape {tuple(y.shape)}")
    return x, y


def _is_tuple_of_tensors(data: object) -> bool:
    """Whether `data` is meant as (x, y); a list, or a tuple of pairs, is a loader."""
    return isinstance(data, tuple) and any(isinstance(part, Tensor) for part in data)


def _read_cifar10(path: Path) -> tuple[Tensor, Tensor]:
    """One file: images (10000, 3, 32, 32) uint8 and labels (10000,) int64."""
    if not path.is_file():
        raise FileNotFoundError(f"folder: no file {path}; wanted the binary version of CIFAR-10, not the pickled one")
    size, wanted = path.stat().st_size, CIFAR10_RECORDS * CIFAR10_RECORD_BYTES
    if size != wanted:
        raise ValueError(f"folder: {path} has {size} bytes, wanted {wanted}: 10,000 records of 3,073 bytes")
    records = np.fromfile(path, dtype=np.uint8).reshape(CIFAR10_RECORDS, CIFAR10_RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() > 9:
        raise ValueError(f"folder: {path} has a label {labels.max()} in record {labels.argmax()}, wanted 0 to 9")
    images = torch.from_numpy(records[:, 1:].copy()).view(-1, 3, 32, 32)
    return images, torch.from_numpy(labels.astype(np.int64))


def _normalised(images: Tensor, grey: bool) -> Tensor:
    """uint8 (N, 3, 32, 32) to float32, per channel; grey: (N, 1, 32, 32)."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    x = images.to(torch.float32).div_(255).sub_(mean).div_(std)
    return torch.einsum("nchw,c->nhw", x, torch.tensor(LUMA)).unsqueeze(1) if grey else x
