# SPDX-License-Identifier: BSD-3-Clause
"""Published data sets of labelled images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rainbow_fast.arguments import integer, number
from rainbow_fast.data.steady_file import SteadyFile

# Channel statistics of ImageNet and luma weights of ITU-R 601; the published experiments apply both to CIFAR-10.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)

CIFAR10_RECORDS = 10_000
CIFAR10_RECORD_BYTES = 3_073  # one label, then 1,024 red, 1,024 green and 1,024 blue bytes, row by row
CIFAR10_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",)  # of training and test images
TOGETHER = 1000  # records that are read and normalised at a time


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
    images: int | None = None,
    test_images: int | None = None,
    name: str = "folder",
) -> Images:
    """CIFAR-10 from its published binary files: 3 x 32 x 32 images, 10 classes, 50,000 training and 10,000 test images.

        x_c = (pixel_c / 255 - mean_c) / std_c,    grey:  x = sum_c LUMA_c x_c

    Args:
        folder: the folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or the folder that
            contains it under the name `cifar-10-batches-bin`.
        mean, std: one number for each channel, for pixels between 0 and 1; by default the statistics of ImageNet.
        grey: combine the channels into one *after* the normalisation, as the published experiments do. Default: False.
        images, test_images: read only the first so many training and test images; None (default) for all.
        name: what error messages call the folder.

    Returns:
        `Images`, in the order of the files; 0.7 GB in colour.

    Raises:
        FileNotFoundError: a file that is read is missing; the message names it.
        TypeError: `images` or `test_images` is not an integer.
        ValueError: a file that is read does not have 10,000 records of 3,073 bytes, changes while it is read, or has a
            label above 9 in a record that is read (the message names the file); `mean` or `std` is not three finite
            numbers, or a number of `std` is not positive; or `images` or `test_images` is below 0.

    Source: Krizhevsky (2009), Learning multiple layers of features from tiny images; the archive is
    https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz.
    """
    check_statistics(mean, std)
    wanted = {"images": images, "test_images": test_images}
    limits = [None if count is None else integer(option, count) for option, count in wanted.items()]
    folder = Path(folder)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    parts = []
    for names, limit in zip(CIFAR10_FILES, limits, strict=True):
        total = CIFAR10_RECORDS * len(names)
        count = total if limit is None else min(limit, total)
        parts.append((count, _cifar10_files(folder, names, count, name)))
    tensors: list[Tensor] = []
    for count, files in parts:
        x = torch.empty(count, 1 if grey else 3, 32, 32, device="cpu")
        y = torch.empty(count, dtype=torch.int64, device="cpu")
        for at, records in _cifar10_records(files, count):
            pixels = torch.from_numpy(records[:, 1:]).view(-1, 3, 32, 32)
            x[at] = normalised(pixels, mean=mean, std=std, grey=grey)
            y[at] = torch.from_numpy(records[:, 0].astype(np.int64))
        tensors += [x, y]
    return Images(*tensors)


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ValueError unless `mean` has three finite numbers, and `std` three finite positive ones, as float32."""
    if _as_three(mean) is None:
        raise ValueError(f"mean: wanted three finite numbers, got {mean!r}")
    if min(_as_three(std) or [0]) <= 0:
        raise ValueError(f"std: wanted three finite positive numbers, got {std!r}")


def _as_three(values: Sequence[float]) -> list[float] | None:
    """Three numbers, rounded to float32; None if they are not three finite ones."""
    try:
        three = torch.tensor([number("", value) for value in values], dtype=torch.float32, device="cpu")
    except (TypeError, OverflowError):
        return None
    return three.tolist() if len(three) == 3 and torch.isfinite(three).all() else None


def normalised(images: Tensor, *, mean: Sequence[float], std: Sequence[float], grey: bool) -> Tensor:
    """Convert uint8 (N, 3, H, W) to float32 and normalise each channel; if `grey`, then combine them: (N, 1, H, W)."""
    mean_, std_ = torch.tensor(mean, device="cpu").view(3, 1, 1), torch.tensor(std, device="cpu").view(3, 1, 1)
    x = images.to(torch.float32).div_(255).sub_(mean_).div_(std_)
    # Not a matrix product: on some CPUs its bits depend on the number of images.
    return LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:] if grey else x


def _cifar10_files(folder: Path, names: Sequence[str], count: int, argument: str) -> list[SteadyFile]:
    """The first of these files that hold `count` records; each is there and has the right length."""
    files = []
    for name in names[: -(-count // CIFAR10_RECORDS)]:
        file = SteadyFile.at(folder / name, argument, "; wanted the binary version of CIFAR-10, not the pickled one")
        wanted = CIFAR10_RECORDS * CIFAR10_RECORD_BYTES
        if file.size != wanted:
            raise ValueError(
                f"{argument}: {file.path} has {file.size} bytes, wanted {wanted}: 10,000 records of 3,073 bytes"
            )
        files.append(file)
    return files


def _cifar10_records(files: Sequence[SteadyFile], count: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The first `count` records of some files, some at a time: their place among all, and uint8 (n, 3073)."""
    for place, file in enumerate(files):
        before = CIFAR10_RECORDS * place
        here = min(count - before, CIFAR10_RECORDS)
        for start in range(0, here, TOGETHER):
            stop = min(start + TOGETHER, here)
            records = np.empty((stop - start, CIFAR10_RECORD_BYTES), np.uint8)
            file.fill([(records, start * CIFAR10_RECORD_BYTES)])
            labels = records[:, 0]
            if labels.max() > 9:
                what = f"a label {labels.max()} in record {start + labels.argmax()}"
                raise ValueError(f"{file.name}: {file.path} has {what}, wanted 0 to 9")
            yield slice(before + start, before + stop), records
