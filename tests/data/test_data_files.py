# SPDX-License-Identifier: BSD-3-Clause
"""Folders of images: what comes, in which order, and what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import rainbow_fast
from rainbow_fast import data
from rainbow_fast.networks import cnn


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    image = pytest.importorskip("PIL.Image").fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image.convert(mode) if mode else image).save(path)


def pixels(seed: int, height: int = 6, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 2, 3 and 4 images, made out of order, at two depths, with other files between them."""
    for label, name, count in ((2, "zebra", 4), (0, "ant", 2), (1, "cow", 3)):
        for i in reversed(range(count)):
            save(tmp_path / name / ("deep" if i == 1 else "") / f"{i}.{'PNG' if i else 'bmp'}", pixels(10 * label + i))
    (tmp_path / "cow" / "notes.txt").write_text("no image")
    save(tmp_path / "cow" / ".checkpoints" / "hidden.png", pixels(99))
    (tmp_path / ".git").mkdir()
    return tmp_path


def test_image_folder_in_the_order_of_classes_and_names(folder):
    images = data.image_folder(folder, seed=None, batch_size=4)
    assert images.classes == ("ant", "cow", "zebra") and images.samples == 9
    x, y = (torch.cat(part) for part in zip(*images, strict=True))
    assert [len(batch) for batch, _ in images] == [4, 4, 1] and len(images) == 3
    assert y.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2] and y.dtype == torch.int64
    order = [0, 1, 10, 12, 11, 20, 22, 23, 21]  # by path: "deep/1.PNG" stands after the digits
    wanted = np.stack([(pixels(i) / 255 - data.MEAN) / data.STD for i in order]).transpose(0, 3, 1, 2)
    assert x.dtype == torch.float32 and x.shape == (9, 3, 6, 6)
    np.testing.assert_allclose(x, wanted, rtol=0, atol=1e-6)  # rounding of a few float32 of size 1


def test_image_folder_mixes_classes_in_an_order_fixed_by_the_seed(folder):
    plain = torch.cat([x for x, _ in data.image_folder(folder, seed=None)])
    for seed in (0, 1):
        images = data.image_folder(folder, seed=seed, batch_size=5)
        order = np.random.RandomState(seed).permutation(9)
        for _ in range(2):
            x, y = (torch.cat(part) for part in zip(*images, strict=True))
            assert torch.equal(x, plain[order])
            assert y.tolist() == [[0, 0, 1, 1, 1, 2, 2, 2, 2][i] for i in order]


def test_image_folder_grey_combines_after_the_normalisation(folder):
    options = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    [(colour, _)], [(grey, _)] = (data.image_folder(folder, grey=grey, **options) for grey in (False, True))
    red, green, blue = colour.unbind(1)
    assert grey.shape == (9, 1, 6, 6)
    torch.testing.assert_close(grey[:, 0], 0.2989 * red + 0.587 * green + 0.114 * blue)
    plain = data.image_folder(folder, mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(colour[:, 2] * 0.6 + 0.3, next(iter(plain))[0][:, 2])


def test_image_folder_takes_the_square_in_the_middle(tmp_path):
    """An image of 4 x 8 blocks of constant colour, four pixels wide, gives its middle 4 x 4 blocks, one pixel each."""
    blocks = pixels(0, 4, 8)
    save(tmp_path / "a" / "wide.png", blocks.repeat(4, 0).repeat(4, 1))
    save(tmp_path / "a" / "tall.png", blocks.transpose(1, 0, 2).repeat(4, 0).repeat(4, 1))
    [(x, _)] = data.image_folder(tmp_path, size=16, seed=None, mean=(0, 0, 0), std=(1, 1, 1))
    wanted = torch.from_numpy(blocks[:, 2:6].repeat(4, 0).repeat(4, 1) / 255).permute(2, 0, 1)
    assert x.shape == (2, 3, 16, 16)
    # float32 numbers below 1, resized by weights that sum to 1
    torch.testing.assert_close(x[1].double(), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(x[0].double(), wanted.transpose(1, 2), rtol=0, atol=1e-6)
    [(x, _)] = data.image_folder(tmp_path, size=4)
    assert x.shape == (2, 3, 4, 4)
    [(x, _)] = data.image_folder(tmp_path, size=8, resize=16, seed=None, mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(x[1].double(), wanted[:, 4:12, 4:12], rtol=0, atol=1e-6)  # not resized: it has 16 rows


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_image_folder_turns_other_modes_into_colour(tmp_path, mode):
    black_and_white = np.where(pixels(0)[..., :1] < 128, 0, 255).astype(np.uint8).repeat(3, 2)
    save(tmp_path / "a" / "image.png", black_and_white, mode)
    [(x, _)] = data.image_folder(tmp_path, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(255 * x[0], torch.from_numpy(black_and_white).permute(2, 0, 1).float())


def test_image_folder_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"Pillow: pip install \"rainbow_fast\[data\]\""):
        data.image_folder(folder)


def add_nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    "spoil, options, error, message",
    [
        (lambda path: path.rename(path.with_name("gone")), {}, FileNotFoundError, "path: no folder .*"),
        (
            lambda path: (path / "bat").mkdir(),
            {},
            FileNotFoundError,
            "path: no image in .*bat, wanted files named .bmp",
        ),
        (add_nothing, {"size": 0}, ValueError, "size=0: wanted size >= 1"),
        (add_nothing, {"size": 2.5}, TypeError, "size=2.5: wanted an integer, got float"),
        (add_nothing, {"size": 4, "resize": 0}, ValueError, "resize=0: wanted resize >= 1"),
        (add_nothing, {"size": 4, "resize": (5, 2.5)}, TypeError, "resize=2.5: wanted an integer, got float"),
        (add_nothing, {"size": 4, "resize": (5,)}, ValueError, r"resize=\(5,\): wanted an integer, or two: height and"),
        (
            add_nothing,
            {"resize": 5},
            ValueError,
            "resize=5: wanted only with size, the side of the square that is kept",
        ),
        (add_nothing, {"interpolation": "box"}, ValueError, "interpolation='box': wanted one of bilinear, bicubic"),
        (add_nothing, {"batch_size": 0}, ValueError, "batch_size=0: wanted batch_size >= 1"),
        (add_nothing, {"max_pixels": 0}, ValueError, "max_pixels=0: wanted max_pixels >= 1"),
        (add_nothing, {"max_pixels": 35}, ValueError, "path: .* has 36 pixels, wanted at most max_pixels=35"),
        (add_nothing, {"mean": (0.5,)}, ValueError, r"mean: wanted three finite numbers, got \(0.5,\)"),
        (add_nothing, {"std": (1, 0, 1)}, ValueError, r"std: wanted three finite positive numbers, got \(1, 0, 1\)"),
        (add_nothing, {"seed": -1}, ValueError, r"seed=-1: wanted 0 <= seed < 2\^32"),
    ],
)
def test_image_folder_refuses_at_once(folder, spoil: Callable, options, error, message):
    spoil(folder)
    with pytest.raises(error, match=message):
        data.image_folder(folder, **options)


def test_image_folder_refuses_a_folder_without_classes(tmp_path):
    save(tmp_path / "image.png", pixels(0))
    with pytest.raises(FileNotFoundError, match="path: no sub-folder in .*, wanted one for each class"):
        data.image_folder(tmp_path)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.write_bytes(b"no image"), "path: .*bad.png cannot be read as an image"),
        (lambda path: path.write_bytes(path.with_name("0.bmp").read_bytes()[:80]), "path: .*bad.png cannot be read"),
        (
            lambda path: save(path, pixels(0, 5, 7)),
            r"path: .*bad.png has 5 x 7 pixels, .*ant.0.bmp has 6 x 6 pixels: wanted one size, or size=",
        ),
    ],
    ids=["foreign", "truncated", "another size"],
)
def test_image_folder_names_a_bad_file_when_it_gets_there(folder, spoil: Callable, message):
    spoil(folder / "zebra" / "bad.png")
    batches = iter(data.image_folder(folder, seed=None, batch_size=5))
    next(batches)
    with pytest.raises(ValueError, match=message):
        next(batches)


def test_fit_takes_both(folder, tmp_path):
    """Files give the same numbers as the tensors that were stored in them."""
    reference = cnn((3, 4), kernel_size=3, image_size=6, classes=3, seed=0)
    images = data.image_folder(folder, batch_size=4)
    x, y = (torch.cat(part) for part in zip(*images, strict=True))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    arrays = data.npy_pair(tmp_path / "x.npy", tmp_path / "y.npy", batch_size=2)
    reports = [rainbow_fast.sample(reference, kept, holdout=0.3, factor=2)[1] for kept in (images, arrays, (x, y))]
    assert str(reports[0]) == str(reports[1]) == str(reports[2])
