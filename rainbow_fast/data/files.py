# SPDX-License-Identifier: BSD-3-Clause
"""Images and arrays on disk as batches, which are read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rainbow_fast.arguments import integer
from rainbow_fast.data.batching import Batch
from rainbow_fast.data.datasets import MEAN, STD, check_statistics, normalised
from rainbow_fast.data.dtypes import as_numbers

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
DTYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.uint8))


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches (x, y) of samples that are read when they are reached, in the same order in each iteration.

    `len` is the number of batches.

    Attributes:
        samples: the number of samples.
        batch_size: samples in each batch; the last batch may be smaller.
        classes: names of the classes, in the order of their labels; empty if they have no names.
        read: ``read(start, stop)`` returns the samples from `start` to before `stop`.
    """

    samples: int
    batch_size: int
    classes: tuple[str, ...]
    read: Callable[[int, int], Batch]

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, self.batch_size):
            yield self.read(start, min(start + self.batch_size, self.samples))


def image_folder(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    grey: bool = False,
    seed: int | None = 0,
    batch_size: int = 256,
    name: str = "path",
) -> Batches:
    """The images in a folder that has one sub-folder for each class.

        x_c = (pixel_c / 255 - mean_c) / std_c,    grey:  x = sum_c LUMA_c x_c

    Classes are numbered in the order of the names of their folders. An image is a file at any depth with suffix bmp,
    gif (first frame only), jpg, jpeg, pgm, png, ppm, tif, tiff or webp, in lower or upper case. Other files and hidden
    files are ignored. All images are converted to red, green and blue with 8 bits; transparency is dropped.

    Args:
        path: the folder with the sub-folders.
        size: the largest central square of each image is resized to `size` by `size` pixels (bilinear, with
            antialiasing). `None` (default) does not resize: all images must have the same size.
        mean, std: one number for each channel, for pixels between 0 and 1; by default the statistics of ImageNet.
        grey: combine the channels into one after the normalisation, as in `cifar10`. False by default.
        seed: seed of a fixed random order, 0 to 2^32 - 1. It mixes the classes, so that any part of the data can be
            held out. `None` sorts the images by class and path. 0 by default.
        batch_size: images in each batch.
        name: what error messages call the folder.

    Returns:
        `Batches`, which can be iterated several times: x float32 (n, 3 or 1, H, W), y int64 (n,), on the CPU.

    Raises:
        ImportError: Pillow is not installed.
        FileNotFoundError: there is no folder, no sub-folder in it, or no image in a sub-folder.
        ValueError: an argument is out of its range; a file cannot be read as an image with 8 bits in each channel, or
            has another size than the first one. Only the first file is checked at once, the others when they are read.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError('image_folder needs Pillow: pip install "rainbow_fast[data]"') from error
    size = None if size is None else integer("size", size, 1)
    batch_size = integer("batch_size", batch_size, 1)
    check_statistics(mean, std)
    seed = None if seed is None else integer("seed", seed, 0, 2**32 - 1)
    folders = _class_folders(Path(path), name)
    files = [(file, label) for label, folder in enumerate(folders) for file in _images(folder, name)]
    if seed is not None:
        files = [files[i] for i in np.random.RandomState(seed).permutation(len(files))]
    wanted = _decode(files[0][0], size, name).shape

    def read(start: int, stop: int) -> Batch:
        pixels = []
        for file, _ in files[start:stop]:
            pixels.append(_decode(file, size, name))
            if pixels[-1].shape != wanted:
                actual, first = (f"{height} x {width} pixels" for height, width, _ in (pixels[-1].shape, wanted))
                raise ValueError(f"{name}: {file} has {actual}, {files[0][0]} has {first}: wanted one size, or size=")
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        y = torch.tensor([label for _, label in files[start:stop]], device="cpu")
        return normalised(x, mean=mean, std=std, grey=grey), y

    return Batches(len(files), batch_size, tuple(folder.name for folder in folders), read)


def npy_pair(
    x_path: str | os.PathLike[str],
    y_path: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 1000,
    names: tuple[str, str] = ("x_path", "y_path"),
) -> Batches:
    """Arrays in npy files of NumPy as batches, in the order of the files. Only the current batch is in memory.

    Args:
        x_path: file with samples (N, ...) of float32, float64 or uint8. Floats are returned unchanged, uint8 is divided
            by 255 and returned as float32.
        y_path: file with labels (N,), integers of any width, which are returned as int64. `None` (default): no labels.
        batch_size: samples in each batch.
        names: what error messages call the two files.

    Returns:
        `Batches` (x, y) on the CPU, which can be iterated several times; y is None if there are no labels.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not an npy array, or has another dtype or shape; the lengths differ; or `batch_size` is
            below 1.
    """
    batch_size = integer("batch_size", batch_size, 1)
    x = _mapped(names[0], x_path)
    if x.dtype not in DTYPES or x.ndim < 2 or len(x) == 0:
        raise ValueError(f"{names[0]}: wanted float32, float64 or uint8 (N, ...) with N >= 1, got {x.dtype} {x.shape}")
    y = None if y_path is None else _mapped(names[1], y_path)
    if y is not None and (y.dtype.kind not in "iu" or y.shape != x.shape[:1]):
        raise ValueError(f"{names[1]}: wanted integers of shape ({len(x)},) as x has samples, got {y.dtype} {y.shape}")

    def read(start: int, stop: int) -> Batch:
        rows = torch.from_numpy(np.array(x[start:stop], order="C"))
        labels = None if y is None else torch.from_numpy(y[start:stop].astype(np.int64))
        return as_numbers(rows, "cpu", torch.float32) if rows.dtype == torch.uint8 else rows, labels

    return Batches(len(x), batch_size, (), read)


def _class_folders(path: Path, name: str) -> list[Path]:
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: no folder {path}")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise FileNotFoundError(f"{name}: no sub-folder in {path}, wanted one for each class")
    return folders


def _images(folder: Path, name: str) -> list[Path]:
    images = []
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and file.suffix.lower() in SUFFIXES and file.is_file():
            images.append(file)
    if not images:
        raise FileNotFoundError(f"{name}: no image in {folder}, wanted files named {', '.join(sorted(SUFFIXES))}")
    return images


def _decode(file: Path, size: int | None, name: str) -> np.ndarray:
    """The image in a file as uint8 (H, W, 3)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode}, wanted 8 bits a channel")
            colour = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: {file} cannot be read as an image ({error})") from error
    return np.asarray(colour if size is None else ImageOps.fit(colour, (size, size), Image.Resampling.BILINEAR))


def _mapped(name: str, path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an npy file, memory-mapped. Nothing is unpickled."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name}: no file {path}")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {path} is no npy file that can be mapped ({error})") from error
