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
from rainbow_fast.data.image_file import FORMATS, INTERPOLATIONS, MAX_PIXELS, Framing, decode
from rainbow_fast.data.npy_file import NpyFile

LABELS = 2**20  # labels that are read at a time
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
    resize: int | tuple[int, int] | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    grey: bool = False,
    seed: int | None = 0,
    batch_size: int = 256,
    max_pixels: int = MAX_PIXELS,
    name: str = "path",
) -> Batches:
    """The images in a folder that has one sub-folder for each class.

        x_c = (pixel_c / 255 - mean_c) / std_c,    grey:  x = sum_c LUMA_c x_c

    Classes are numbered in the order of the names of their folders. An image is a file at any depth with suffix bmp,
    gif (first frame only), jpg, jpeg, pgm, png, ppm, tif, tiff or webp, in lower or upper case. Other files and hidden
    files are ignored. The rotation or reflection that the EXIF data of an image asks for is applied. All images are
    converted to red, green and blue with 8 bits: 16-bit pixels keep their upper 8 bits, and transparency is dropped.

    Args:
        path: the folder with the sub-folders.
        size: the largest central square of each image is resized to `size` by `size` pixels, with antialiasing. `None`
            (default) does not resize: all images must have the same size.
        resize: each image is first resized so that its shorter side has `resize` pixels; then the central square of
            `size` by `size` pixels is kept, and black is added where the image is smaller. A pair (height, width) is
            the size of both sides. These are the pixels that torchvision and timm give images of Pillow. `None`
            (default): see `size`.
        interpolation: "bilinear" (default) or "bicubic".
        mean, std: one number for each channel, for pixels between 0 and 1; by default the statistics of ImageNet.
        grey: combine the channels into one after the normalisation, as in `cifar10`. False by default.
        seed: seed of a fixed random order, 0 to 2^32 - 1. It mixes the classes, so that any part of the data can be
            held out. `None` sorts the images by class and path. 0 by default.
        batch_size: images in each batch.
        max_pixels: images with more pixels are refused before they are decoded. The default, 89,478,485, is Pillow's
            own limit: 256 MiB in colour. Pillow refuses images with more than twice its limit,
            ``PIL.Image.MAX_IMAGE_PIXELS``. Images that `resize` makes larger than that are refused, too.
        name: what error messages call the folder.

    Returns:
        `Batches`, which can be iterated several times: x float32 (n, 3 or 1, H, W), y int64 (n,), on the CPU.

    Raises:
        ImportError: Pillow is not installed.
        FileNotFoundError: there is no folder, no sub-folder in it, or no image in a sub-folder.
        TypeError: `size`, `resize`, `seed`, `batch_size` or `max_pixels` is not an integer.
        ValueError: an argument is out of its range; `resize` without `size`; a file cannot be read as an image, or ends
            too early; its pixels are 32-bit integers or floats, which have no fixed range; it has more than
            `max_pixels`, or another size than the first one. The message names the file. Only the first file is checked
            at once, the others when they are read.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError('image_folder needs Pillow: pip install "rainbow_fast[data]"') from error
    framing = _framing(size, resize, interpolation)
    batch_size = integer("batch_size", batch_size, 1)
    max_pixels = integer("max_pixels", max_pixels, 1)
    check_statistics(mean, std)
    seed = None if seed is None else integer("seed", seed, 0, 2**32 - 1)
    folders = _class_folders(Path(path), name)
    files = [(file, label) for label, folder in enumerate(folders) for file in _images(folder, name)]
    if seed is not None:
        files = [files[i] for i in np.random.RandomState(seed).permutation(len(files))]
    wanted = decode(files[0][0], framing, max_pixels, name).shape

    def read(start: int, stop: int) -> Batch:
        pixels = []
        for file, _ in files[start:stop]:
            pixels.append(decode(file, framing, max_pixels, name))
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

    Batches are read, not memory-mapped. An array in Fortran order is read in blocks of up to 64 MiB, the last of which
    stays in memory.

    Args:
        x_path: file with samples (N, ...) of float32, float64 or uint8, in either byte order. Floats are returned
            unchanged, uint8 is divided by 255 and returned as float32.
        y_path: file with labels (N,), integers of any width from 0 to 2^63 - 1, which are returned as int64. All
            labels are read by this function, the samples later. `None` (default): no labels.
        batch_size: samples in each batch.
        names: what error messages call the two files.

    Returns:
        `Batches` (x, y) on the CPU, which can be iterated several times; y is None if there are no labels.

    Raises:
        FileNotFoundError: a file is missing.
        TypeError: `batch_size` is not an integer.
        ValueError: a file is not an npy array, has another dtype or shape, an axis of length 0, or another length than
            its header says; the lengths of the two arrays differ; a label is out of range; or `batch_size` is below 1.
            While iterating: a file has changed since this call, or cannot be read. The message names the file.
    """
    batch_size = integer("batch_size", batch_size, 1)
    x = NpyFile.at(x_path, names[0])
    if x.dtype.newbyteorder("=") not in DTYPES or len(x.shape) < 2 or 0 in x.shape:
        raise ValueError(f"{names[0]}: {x}, wanted float32, float64 or uint8 (N, ...) with no size 0")
    x.check_length()
    y = None if y_path is None else _labels(y_path, names[1], x.shape[0])

    def read(start: int, stop: int) -> Batch:
        rows = torch.from_numpy(x.rows(start, stop))
        labels = None if y is None else y[start:stop].clone()
        return as_numbers(rows, "cpu", torch.float32) if rows.dtype == torch.uint8 else rows, labels

    return Batches(x.shape[0], batch_size, (), read)


def _labels(path: str | os.PathLike[str], name: str, samples: int) -> torch.Tensor:
    """All labels of an npy file, (samples,) int64."""
    y = NpyFile.at(path, name)
    if y.dtype.kind not in "iu" or y.shape != (samples,):
        raise ValueError(f"{name}: {y}, wanted integers of shape ({samples},) as x has samples")
    y.check_length()
    labels = torch.empty(samples, dtype=torch.int64, device="cpu")
    for start in range(0, samples, LABELS):
        part = y.rows(start, min(start + LABELS, samples))
        outside = np.flatnonzero((part < 0) | (part > np.iinfo(np.int64).max))
        if len(outside):
            value, index = part[outside[0]], start + outside[0]
            raise ValueError(f"{name}: {y.file.path} has the label {value} at index {index}, wanted 0 to 2^63 - 1")
        labels[start : start + len(part)] = torch.from_numpy(part.astype(np.int64))
    return labels


def _framing(size: int | None, resize: int | tuple[int, int] | None, interpolation: str) -> Framing | None:
    """The arguments of `image_folder` for the sizes of images, checked."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation={interpolation!r}: wanted one of {', '.join(INTERPOLATIONS)}")
    if size is None:
        if resize is not None:
            raise ValueError(f"resize={resize!r}: wanted only with size, the side of the square that is kept")
        return None
    if isinstance(resize, tuple | list):
        if len(resize) != 2:
            raise ValueError(f"resize={resize!r}: wanted an integer, or two: height and width")
        resize = integer("resize", resize[0], 1), integer("resize", resize[1], 1)
    elif resize is not None:
        resize = integer("resize", resize, 1)
    return Framing(integer("size", size, 1), resize, interpolation)


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
        if not hidden and file.suffix.lower() in FORMATS and file.is_file():
            images.append(file)
    if not images:
        raise FileNotFoundError(f"{name}: no image in {folder}, wanted files named {', '.join(sorted(FORMATS))}")
    return images
