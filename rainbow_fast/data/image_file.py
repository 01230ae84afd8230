# SPDX-License-Identifier: BSD-3-Clause
"""Image files of any mode as 8-bit pixels in red, green and blue."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image as Images

# By suffix, the format of Pillow. A file may have any of these formats, whatever its suffix.
FORMATS = {
    **dict.fromkeys((".jpeg", ".jpg"), "JPEG"),
    **dict.fromkeys((".pgm", ".ppm"), "PPM"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **{".bmp": "BMP", ".gif": "GIF", ".png": "PNG", ".webp": "WEBP"},
}
MAX_PIXELS = 2**30 // 12  # an image of 256 MiB in colour; Pillow's own limit
INTERPOLATIONS = ("bilinear", "bicubic")
GREY16 = ("I;16", "I;16B", "I;16L")  # Pillow's names of grey images with 16 bits, by byte order


@dataclass(frozen=True)
class Framing:
    """How an image becomes a square. Images are resized with antialiasing, by Pillow.

    Attributes:
        size: pixels of each side of the square.
        resize: the image is resized so that its shorter side has this many pixels, or to these two, (height, width);
            then the square in its middle is kept. What it lacks is black. None: the largest central square is resized.
        interpolation: one of `INTERPOLATIONS`.
    """

    size: int
    resize: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The width and the height of an image of this width and height after it was resized."""
        if self.resize is None:
            return self.size, self.size
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        short = min(width, height)
        return int(self.resize * width / short), int(self.resize * height / short)

    def of(self, image: Images.Image) -> Images.Image:
        """The square that an image becomes."""
        from PIL import Image, ImageOps

        method = Image.Resampling[self.interpolation.upper()]
        if self.resize is None:
            return ImageOps.fit(image, (self.size, self.size), method)
        whole = image.resize(self.resized(*image.size), method)
        left, top = (_before(side, self.size) for side in whole.size)
        return whole.crop((left, top, left + self.size, top + self.size))


def _before(side: int, size: int) -> int:
    """Where the middle part of `size` of `side` pixels begins, rounded as in torchvision; negative if it is larger."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)


def decode(file: Path, framing: Framing | None, max_pixels: int, name: str) -> np.ndarray:
    """The image in a file as uint8 (H, W, 3).

    The rotation or reflection that its EXIF data asks for is applied. 16-bit pixels keep their upper 8 bits, in grey
    images as in those with colour.

    Args:
        framing: how it becomes a square; None for the image as it is.
        max_pixels: images with more pixels are refused, before they are decoded, and those that would have more once
            they are resized.
        name: what error messages call the file.

    Raises:
        ValueError: the file cannot be read as an image, ends too early, has too many pixels, or has pixels without a
            fixed range (32-bit integers or floats). The message names the file.
    """
    from PIL import Image, ImageOps

    try:
        with io.BufferedReader(_NotMapped(file)) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` is the limit
            with Image.open(stream, formats=sorted(set(FORMATS.values()))) as image:
                pixels = image.width * image.height
                if pixels <= max_pixels:
                    colour = _eight_bits(ImageOps.exif_transpose(image), image.format).convert("RGB")
    except Exception as error:  # a damaged file can raise almost anything
        raise ValueError(f"{name}: {file} cannot be read as an image ({str(error) or type(error).__name__})") from error
    if pixels > max_pixels:
        raise ValueError(f"{name}: {file} has {pixels} pixels, wanted at most max_pixels={max_pixels}")
    if framing is None:
        return np.asarray(colour)
    width, height = framing.resized(*colour.size)
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: {file} is resized to {width * height} pixels, wanted at most max_pixels={max_pixels}"
        )
    return np.asarray(framing.of(colour))


class _NotMapped(io.FileIO):
    """A file that decoders read and cannot memory-map: a mapped file that shrinks ends the process."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def _eight_bits(image: Images.Image, kind: str | None) -> Images.Image:
    """The image with 8 bits in each channel; `kind` is the format of its file."""
    from PIL import Image

    if image.mode in GREY16 or (image.mode == "I" and kind in ("PNG", "PPM")):  # in these formats, 16 bits at most
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode}, whose pixels have no fixed range: wanted 8 or 16 bits a channel")
    return image
