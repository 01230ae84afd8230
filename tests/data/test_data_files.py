# SPDX-License-Identifier: BSD-3-Clause
"""Folders of images and npy files: what comes, in which order, and what is refused."""

import sys
import tracemalloc
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
        (add_nothing, {"batch_size": 0}, ValueError, "batch_size=0: wanted batch_size >= 1"),
        (add_nothing, {"mean": (0.5,)}, ValueError, r"mean: wanted three numbers, got \(0.5,\)"),
        (add_nothing, {"std": (1, 0, 1)}, ValueError, r"std: wanted three positive numbers, got \(1, 0, 1\)"),
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
        (lambda path: save(path, pixels(0)[..., 0].astype(np.uint16)), r"bad.png cannot .*mode I;16, wanted 8 bits"),
        (
            lambda path: save(path, pixels(0, 5, 7)),
            r"path: .*bad.png has 5 x 7 pixels, .*ant.0.bmp has 6 x 6 pixels: wanted one size, or size=",
        ),
    ],
    ids=["foreign", "truncated", "16 bits", "another size"],
)
def test_image_folder_names_a_bad_file_when_it_gets_there(folder, spoil: Callable, message):
    spoil(folder / "zebra" / "bad.png")
    batches = iter(data.image_folder(folder, seed=None, batch_size=5))
    next(batches)
    with pytest.raises(ValueError, match=message):
        next(batches)


X = np.random.default_rng(0).standard_normal((7, 2, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_floats_come_as_they_are(tmp_path, dtype, order):
    np.save(tmp_path / "x.npy", np.asarray(X, dtype, order=order))
    np.save(tmp_path / "y.npy", np.arange(7, dtype=np.int16))
    pairs = data.npy_pair(tmp_path / "x.npy", tmp_path / "y.npy", batch_size=3)
    for _ in range(2):
        x, y = zip(*pairs, strict=True)
        assert [len(part) for part in x] == [3, 3, 1] and len(pairs) == 3
        assert all(part.is_contiguous() for part in x)
        assert np.array_equal(torch.cat(x), X.astype(dtype)) and x[0].numpy().dtype == dtype
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


@pytest.mark.parametrize(
    "x, y, error, message",
    [
        (None, None, FileNotFoundError, "x_path: no file .*x.npy"),
        (b"no array", None, ValueError, "x_path: .*x.npy is no npy file that can be mapped"),
        (b"\x93NUMPY\x01\x00", None, ValueError, "x_path: .*x.npy is no npy file that can be mapped"),
        (np.array([[{}]]), None, ValueError, "x_path: .*x.npy is no npy file that can be mapped"),
        (X.astype(np.int32), None, ValueError, r"x_path: wanted float32, float64 or uint8 .*got int32 \(7, 2, 3\)"),
        (X.astype(">f4"), None, ValueError, r"x_path: wanted float32, float64 or uint8 .*got >f4 \(7, 2, 3\)"),
        (X[:, 0, 0], None, ValueError, r"x_path: wanted .*\(N, ...\) with N >= 1, got float64 \(7,\)"),
        (X[:0], None, ValueError, r"x_path: wanted .*with N >= 1, got float64 \(0, 2, 3\)"),
        (X, np.zeros(7), ValueError, r"y_path: wanted integers of shape \(7,\) as x has samples, got float64 \(7,\)"),
        (X, np.arange(6), ValueError, r"y_path: wanted integers of shape \(7,\) as x has samples, got int64 \(6,\)"),
    ],
)
def test_npy_pair_refuses(tmp_path, x, y, error, message):
    if isinstance(x, bytes):
        (tmp_path / "x.npy").write_bytes(x)
    elif x is not None:
        np.save(tmp_path / "x.npy", x, allow_pickle=True)
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
