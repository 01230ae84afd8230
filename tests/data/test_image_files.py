# SPDX-License-Identifier: BSD-3-Clause
"""Single image files, written by Pillow: rotation, depth, size, and damage."""

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from here import fresh_python

from rainbow_fast.data import image_folder
from rainbow_fast.data.image_file import FORMATS, MAX_PIXELS, Framing, decode

Image = pytest.importorskip("PIL.Image")
ORIENTATION = 0x0112  # tag of EXIF


def read(path: Path, **options) -> np.ndarray:
    return decode(path, **({"framing": None, "max_pixels": MAX_PIXELS, "name": "path"} | options))


def pixels(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def turned(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels that a camera stores for this orientation, EXIF 2.3, table 4: where row 0 and column 0 are."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1],
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: upright.swapaxes(0, 1)[:, ::-1],
    }
    return np.ascontiguousarray(stored[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_the_rotation_of_exif_is_applied(tmp_path, suffix, orientation):
    upright = pixels(2, 3, 3).repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exact = {"lossless": True} if suffix == ".webp" else {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
    Image.fromarray(turned(upright, orientation)).save(tmp_path / f"x{suffix}", exif=exif, **exact)
    read_ = read(tmp_path / f"x{suffix}").astype(int)
    assert read_.shape == upright.shape
    # JPEG rounds colours and cosines, to a few of 255 levels
    assert abs(read_ - upright).max() <= (4 if suffix == ".jpg" else 0)
    if suffix == ".png":
        whole = read(tmp_path / "x.png", framing=Framing(2)).astype(int)
        Image.fromarray(upright).save(tmp_path / "y.png")
        assert np.array_equal(whole, read(tmp_path / "y.png", framing=Framing(2))), (
            "the square in the middle of the upright image"
        )


def test_folders_with_turned_images_have_one_size(tmp_path):
    upright = pixels(4, 6, 3)
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(turned(upright, orientation)).save(tmp_path / "a" / f"{orientation}.png", exif=exif)
    [(x, _)] = image_folder(tmp_path, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(x, torch.from_numpy(upright).permute(2, 0, 1).expand(4, 3, 4, 6).float().div(255))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_grey_images_keep_their_upper_8_bits(tmp_path, suffix):
    values = pixels(5, 7, dtype=np.uint16)
    values[0, :4] = 0, 255, 256, 65535
    Image.fromarray(values).save(tmp_path / f"x{suffix}")
    assert np.array_equal(read(tmp_path / f"x{suffix}"), np.stack([values >> 8] * 3, -1).astype(np.uint8))


def test_16_bit_images_in_colour_keep_their_upper_8_bits(tmp_path):
    """As grey ones; a PPM by hand, as Pillow writes no such images."""
    values = pixels(5, 7, 3, dtype=np.uint16)
    (tmp_path / "x.ppm").write_bytes(b"P6 7 5 65535\n" + values.astype(">u2").tobytes())
    # the decoder of PPM rounds to the nearest of 255 levels, those of PNG and TIFF drop the lower bits
    assert abs(read(tmp_path / "x.ppm").astype(int) - (values >> 8)).max() <= 1


def test_16_bit_images_are_turned_too(tmp_path):
    upright, exif = pixels(4, 6, dtype=np.uint16), Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(turned(upright, 6)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read(tmp_path / "x.png")[..., 0], (upright >> 8).astype(np.uint8))


@pytest.mark.parametrize("dtype, mode", [(np.float32, "F"), (np.int32, "I")])
def test_pixels_without_a_range_are_refused(tmp_path, dtype, mode):
    Image.fromarray(np.ones((3, 4), dtype)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=rf"^path: .*x.tif cannot be read .*mode {mode}, whose pixels have no fixed"):
        read(tmp_path / "x.tif")


def test_oversized_images_are_refused_before_they_are_decoded(tmp_path):
    """Also those that Pillow only warns about, between its limit and twice that; no warning comes through."""
    side = int(MAX_PIXELS**0.5)
    for width, height in ((side + 1, side + 1), (2 * side, side), (30_000, 30_000)):
        Image.new("1", (width, height)).save(tmp_path / "x.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=rf"^path: .*x.png .*{width * height} pixels"):
                read(tmp_path / "x.png")
    Image.new("L", (10, 10)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"^path: .*x.png has 100 pixels, wanted at most max_pixels=99"):
        read(tmp_path / "x.png", max_pixels=99)
    assert read(tmp_path / "x.png", max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(ValueError, match=r"^path: .*x.png is resized to 121 pixels, wanted at most max_pixels=100"):
        read(tmp_path / "x.png", framing=Framing(2, 11), max_pixels=100)


def test_a_larger_limit_can_be_given(tmp_path):
    """Up to twice the limit of Pillow, without its warning."""
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path / "x.png", framing=Framing(2), max_pixels=side**2).shape == (2, 2, 3)


@pytest.mark.parametrize(
    "framing, wanted",
    [
        (Framing(4, 5), [[99, 116, 68, 92], [123, 90, 108, 138], [87, 59, 115, 152], [164, 144, 133, 73]]),
        (Framing(3, (6, 4), "bicubic"), [[167, 83, 97], [141, 108, 136], [186, 189, 105]]),
        (
            Framing(6, 3),
            [
                [0, 0, 0, 0, 0, 0],
                [0, 122, 116, 94, 118, 0],
                [0, 152, 107, 112, 124, 0],
                [0, 170, 154, 123, 68, 0],
                [0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 0],
            ],
        ),
    ],
    ids=["shorter side", "both sides", "smaller than the square"],
)
def test_images_are_resized_and_cut_as_in_torchvision(tmp_path, framing, wanted):
    """The numbers are those of Resize and CenterCrop of torchvision 0.28.0, whose parts timm uses, too."""
    grey = (np.arange(70).reshape(7, 10) ** 2 * 37 % 256).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "x.png")
    # with Pillow 13.0 they are equal; versions of Pillow may round a level otherwise
    assert abs(read(tmp_path / "x.png", framing=framing)[..., 0].astype(int) - np.array(wanted)).max() <= 1
    if isinstance(framing.resize, int):
        Image.fromarray(grey.T.copy()).save(tmp_path / "x.png")
        # Pillow rounds after the rows, then after the columns: here in the other order
        assert abs(read(tmp_path / "x.png", framing=framing)[..., 0].T.astype(int) - np.array(wanted)).max() <= 2


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_damaged_images_are_read_or_refused_by_name(tmp_path, suffix):
    """Truncated anywhere, or with some bytes changed: an image, or a ValueError that names the file."""
    path, chosen = tmp_path / f"x{suffix}", random.Random(0)
    Image.fromarray(pixels(16, 16, 3) if suffix != ".pgm" else pixels(16, 16)).save(path)
    whole = path.read_bytes()
    for number in range(60):
        damaged = bytearray(whole)
        if number % 2:
            del damaged[chosen.randrange(len(whole)) :]
        else:
            for _ in range(3):
                damaged[chosen.randrange(len(whole))] = chosen.randrange(256)
        path.write_bytes(damaged)
        try:
            assert read(path).shape[2] == 3
        except ValueError as error:
            assert str(error).startswith(f"path: {path} ")


def test_truncated_images_are_refused(tmp_path):
    for suffix, options in ((".png", {}), (".bmp", {}), (".tif", {}), (".jpg", {}), (".webp", {"lossless": True})):
        path = tmp_path / f"x{suffix}"
        Image.fromarray(pixels(64, 64, 3)).save(path, **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=rf"^path: .*x{suffix} cannot be read as an image"):
            read(path)


def test_other_formats_are_not_read(tmp_path):
    """Whatever the suffix: EPS would run Ghostscript."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match=r"^path: .*x.png cannot be read as an image .*cannot identify"):
        read(tmp_path / "x.png")


SHRINKS = """
import os, sys
from pathlib import Path
from PIL import ImageOps
from rainbow_fast.data.image_file import decode

exif_transpose = ImageOps.exif_transpose
for name in sys.argv[1:]:
    def truncating(image):
        os.truncate(name, 4096)
        return exif_transpose(image)

    ImageOps.exif_transpose = truncating
    try:
        decode(Path(name), None, 10**9, "path")
        print("not seen")
    except ValueError as error:
        print(error)
"""


def test_a_file_that_becomes_shorter_while_it_is_decoded_is_an_error(tmp_path):
    """In a process of its own, which a mapped file would end: Pillow maps grey images, libtiff all that it reads."""
    names = ["x.pgm", "x.bmp", "x.tif", "x.tiff", "x.png", "x.jpg"]
    for name in names:
        options = {"compression": "tiff_lzw"} if name == "x.tiff" else {}
        Image.fromarray(pixels(1000, 1000)).save(tmp_path / name, **options)
    printed = fresh_python(SHRINKS, *names, folder=tmp_path)
    for name, line in zip(names, printed.splitlines(), strict=True):
        assert line.startswith(f"path: {name} cannot be read as an image")
