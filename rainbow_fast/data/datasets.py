# SPDX-License-Identifier: BSD-3-Clause
"""Published data sets of labelled images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Channel statistics of ImageNet and luma weights of ITU-R 601; the published experiments apply both to CIFAR-10.
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
    """The 1,797 handwritten digits that come with scikit-learn: 1 x 8 x 8 grey images, 10 classes.

        x = (pixel / 16 - mean) / std,    with one mean and one std of all pixels of the training images

    Returns:
        `Images` with 1,437 training and 360 test images. The split is fixed: the training images are the first 1,437 of
        `numpy.random.RandomState(0).permutation(1797)`, a sequence that NumPy guarantees not to change.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI repository (its test part).
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('digits needs scikit-learn: pip install "rainbow_fast[data]"') from error
    dataset = load_digits()
    x = torch.from_numpy(dataset.images / 16).to(torch.float32).unsqueeze(1)
    y = torch.from_numpy(dataset.target).to(torch.int64)
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
    train, test = order[:1437], order[1437:]
    x = (x - x[train].mean()) / x[train].std()
    return Images(x[train], y[train], x[test], y[test])


def cifar10(
    folder: str | os.PathLike[str],
    *,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    grey: bool = False,
    name: str = "folder",
) -> Images:
    """CIFAR-10 from its published binary files: 3 x 32 x 32 images, 10 classes, 50,000 training and 10,000 test images.

        x_c = (pixel_c / 255 - mean_c) / std_c,    grey:  x = sum_c LUMA_c x_c

    Args:
        folder: the folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or the folder that
            contains it under the name `cifar-10-batches-bin`.
        mean, std: one number for each channel, for pixels between 0 and 1; by default the statistics of ImageNet.
        grey: combine the channels into one *after* the normalisation, as the published experiments do. Default: False.
        name: what error messages call the folder.

    Returns:
        `Images`, in the order of the files; 0.7 GB in colour.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: a file does not have 10,000 records of 3,073 bytes, or has a label above 9 (the message names the
            file); or `mean` or `std` is not three numbers, or a number of `std` is not positive.

    Source: Krizhevsky (2009), Learning multiple layers of features from tiny images; the archive is
    https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz.
    """
    check_statistics(mean, std)
    folder = Path(folder)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    parts = [_read_cifar10(folder / f"data_batch_{i}.bin", name) for i in range(1, 6)]
    x_test, y_test = _read_cifar10(folder / "test_batch.bin", name)
    x_train, y_train = (torch.cat(part) for part in zip(*parts, strict=True))
    x_train, x_test = (normalised(x, mean=mean, std=std, grey=grey) for x in (x_train, x_test))
    return Images(x_train, y_train, x_test, y_test)


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ValueError unless `mean` has three numbers, and `std` three positive numbers."""
    if len(mean) != 3:
        raise ValueError(f"mean: wanted three numbers, got {tuple(mean)}")
    if len(std) != 3 or min(std) <= 0:
        raise ValueError(f"std: wanted three positive numbers, got {tuple(std)}")


def normalised(images: Tensor, *, mean: Sequence[float], std: Sequence[float], grey: bool) -> Tensor:
    """Convert uint8 (N, 3, H, W) to float32 and normalise each channel; if `grey`, then combine them: (N, 1, H, W)."""
    mean_, std_ = torch.tensor(mean, device="cpu").view(3, 1, 1), torch.tensor(std, device="cpu").view(3, 1, 1)
    x = images.to(torch.float32).div_(255).sub_(mean_).div_(std_)
    return torch.einsum("nchw,c->nhw", x, torch.tensor(LUMA, device="cpu")).unsqueeze(1) if grey else x


def _read_cifar10(path: Path, name: str) -> tuple[Tensor, Tensor]:
    """The images (10000, 3, 32, 32) uint8 and labels (10000,) int64 of one file."""
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no file {path}; wanted the binary version of CIFAR-10, not the pickled one")
    size, wanted = path.stat().st_size, CIFAR10_RECORDS * CIFAR10_RECORD_BYTES
    if size != wanted:
        raise ValueError(f"{name}: {path} has {size} bytes, wanted {wanted}: 10,000 records of 3,073 bytes")
    records = np.fromfile(path, dtype=np.uint8).reshape(CIFAR10_RECORDS, CIFAR10_RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() > 9:
        raise ValueError(f"{name}: {path} has a label {labels.max()} in record {labels.argmax()}, wanted 0 to 9")
    images = torch.from_numpy(records[:, 1:].copy()).view(-1, 3, 32, 32)
    return images, torch.from_numpy(labels.astype(np.int64))
