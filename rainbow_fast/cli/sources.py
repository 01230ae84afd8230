# SPDX-License-Identifier: BSD-3-Clause
"""The data of commands: what an option names, the number of samples and one sample, and later all samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rainbow_fast.cli.checkpoints import About
from rainbow_fast.cli.model_libraries import Preprocessing
from rainbow_fast.cli.references import Reference
from rainbow_fast.cli.training import load_images
from rainbow_fast.cli.words import DataWords, SampleWords
from rainbow_fast.data import MEAN, STD, Images, cifar10, digits, image_folder, npy_pair
from rainbow_fast.data.batching import Batch
from rainbow_fast.data.dtypes import as_numbers
from rainbow_fast.data.files import Batches
from rainbow_fast.rainbow.inputs import dtype_of_inputs

COUNTS = {"digits": (1_437, 360), "cifar10": (50_000, 10_000)}  # numbers of training and test images
SHARE = 0.1  # fraction that is held out by default from data without a test set
WORDS = "digits, the folder of CIFAR-10 or one with a sub-folder of images for each class, or x.npy,y.npy"

Samples = tuple[Tensor, Tensor | None] | Batches


@dataclass(frozen=True)
class Source:
    """A data set that `--data` or `--holdout` names.

    Attributes:
        name: the name of the data set.
        samples: number of samples.
        tested: number of samples in its test set; 0 if it has none.
        example: a function that returns one sample without reading the others.
        read: a function that reads samples. Its arguments are how many, the first ones, and whether the test set is
            read too. It returns the samples, and the test set or None.
    """

    name: str
    samples: int
    tested: int
    example: Callable[[], Batch]
    read: Callable[[int, bool], tuple[Samples, Samples | None]]

    def check_takes(self, module: nn.Module, option: str) -> None:
        """Run a network, which is in eval mode, on one sample.

        Raises:
            ValueError: the network raises an error; the message names the option.
        """
        x, like = self.example()[0], next(module.parameters(), None)
        try:
            with torch.no_grad():
                if like is not None:
                    x = as_numbers(x, like.device, dtype_of_inputs(module, x, like.device, like.dtype))
                module(x)
        except Exception as error:  # the user's network may raise anything
            first, shape = str(error).strip().partition("\n")[0], tuple(x.shape[1:])
            raise ValueError(f"{option}: the network does not take a sample of shape {shape} ({first})") from error


@dataclass(frozen=True)
class Pixels:
    """The options for reading images, as given on the command line; None or False if they are not given.

    `own` is the preprocessing of the network, which stands for options that are not given; None if it has none.
    """

    size: int | None = None
    mean: str | None = None
    std: str | None = None
    grey: bool = False
    own: Preprocessing | None = None

    @classmethod
    def in_words(cls, words: SampleWords, own: Preprocessing | None = None) -> Pixels:
        return cls(words.size, words.mean, words.std, words.grey, own)

    def of(self, data: str, *taken: str) -> dict[str, Any]:
        """The keyword arguments for a function that reads images and has the options `taken`.

        Raises:
            ValueError: another option is given, or `mean` or `std` is not three numbers; or an option is not given,
                and the preprocessing of the network has nothing in its place.
        """
        options: dict[str, Any] = {}
        for name, value in (("size", self.size), ("mean", self.mean), ("std", self.std), ("grey", self.grey)):
            if name not in taken and value:
                raise ValueError(f"--{name}: {data} does not take it")
            if name in taken:
                options[name] = value
        for name in ("mean", "std"):
            if options.get(name) is not None:
                options[name] = _three(f"--{name}", options[name])
        for name, instead in self._instead().items():
            if name in taken and options[name] is None:
                if self.own is not None and instead[name] is None:
                    raise ValueError(f"--{name}: wanted, {self.own.title} has none that applies to images of a folder")
                options |= instead
        return options

    def _instead(self) -> dict[str, dict[str, Any]]:
        """For each option, the keyword arguments that stand for it where it is not given."""
        if self.own is None:
            return {"mean": {"mean": MEAN}, "std": {"std": STD}}
        sizes = {"size": None} if self.own.framing is None else asdict(self.own.framing)
        return {"size": sizes, "mean": {"mean": self.own.mean}, "std": {"std": self.own.std}}


def open_source(option: str, words: str, pixels: Pixels) -> Source:
    """The data set that the value `words` of an option names. At most one sample is read.

    Raises:
        ValueError, FileNotFoundError: there is no data of this name; the message names the option.
    """
    folder = Path(words)
    if words == "digits":
        pixels.of("digits")
        return _known("digits", (1, 8, 8), lambda **counts: digits())
    if words.endswith(".npy"):
        pixels.of("an array")
        x, _, y = words.partition(",")
        names = f"{option}: x_path", f"{option}: y_path"
        return _loader(Path(x).stem, npy_pair(x, y or None, names=names))
    if any((folder / part).exists() for part in ("cifar-10-batches-bin", "data_batch_1.bin")):
        numbers = pixels.of("CIFAR-10", "mean", "std", "grey")
        shape = 1 if pixels.grey else 3, 32, 32
        return _known("cifar10", shape, lambda **counts: cifar10(folder, **numbers, **counts, name=option))
    if folder.is_dir():
        numbers = pixels.of("", "size", "mean", "std", "grey")
        return _loader(folder.resolve().name, image_folder(folder, **numbers, name=option))
    raise ValueError(f"{option}: {words!r} is no data: wanted {WORDS}")


def source_of(about: About | None, data: str | None, pixels: Pixels) -> Source:
    """The data set of a command: the one that a checkpoint was trained on, or the one that `--data` names."""
    if about is None:
        if data is None:
            raise ValueError(f"--data: wanted {WORDS}")
        return open_source("--data", data, pixels)
    pixels.of("a checkpoint, which has its own,")
    side, channels = (8, 1) if about.data == "digits" else (32, 1 if about.grey else 3)
    return _known(about.data, (channels, side, side), lambda **counts: load_images(about, data, **counts))


@dataclass(frozen=True)
class Split:
    """The alignment set and the held-out data.

    Attributes:
        source: the data set of the alignment set.
        aligned: number of samples in the alignment set.
        held: number of held-out samples.
        share: fraction of the samples that is held out at random; None if the held-out data are other data.
        other: the data set of the held-out data; None for the test set of the source.
    """

    source: Source
    aligned: int
    held: int
    share: float | None
    other: Source | None

    def load(self) -> tuple[Samples, Samples | int]:
        """The arguments `data` and `holdout` of `fit`."""
        if self.share is not None:
            return self.source.read(self.aligned + self.held, False)[0], self.held
        data, test = self.source.read(self.aligned, self.other is None)
        if self.other is not None:
            samples, its_test = self.other.read(0 if self.other.tested else self.held, self.other.tested > 0)
            test = its_test if self.other.tested else samples
        assert test is not None
        return data, test

    def memory(self, budget: int | None) -> int:
        """Bytes of all samples and labels once they are read; without samples that exceed the budget, see `gather`."""
        x, y = self.source.example()
        counts = [(self.source, self.aligned), (self.other or self.source, self.held)]
        if self.share is not None:
            counts = [(self.source, self.aligned + self.held)]
        total = 0
        for source, count in counts:
            in_file = budget is not None and not source.tested and count * x.nbytes > budget
            total += count * ((0 if y is None else y.nbytes) + (0 if in_file else x.nbytes))
        return total

    def shapes(self) -> tuple[Batch, tuple[Tensor, Tensor | None]]:
        """One sample, and a view of it that is expanded to the number of held-out samples."""
        x, y = self.source.example()
        return (x, y), (x.expand(self.held, *x.shape[1:]), None if y is None else y.expand(self.held))


def choose_data(reference: Reference, words: DataWords) -> Split:
    """The data that the options `--data`, `--holdout` and `--images` ask for."""
    about, pixels = reference.about, Pixels.in_words(words, reference.preprocessing)
    source = source_of(about, words.data, pixels)
    if about is not None:
        pixels = Pixels(grey=about.grey and about.data != "digits")
    return split_data(source, words.holdout, words.images, pixels)


def split_data(source: Source, holdout: str | None, images: int, pixels: Pixels) -> Split:
    """Choose at most `images` samples to align on, and the held-out data.

    The held-out data are a fraction of the samples, another data set, or the test set of the source.

    Raises:
        ValueError: a fraction is outside of 0 to 1, or leaves no sample; the message names the option.
    """
    share = _share(holdout)
    if holdout is not None and share is None:
        other = open_source("--holdout", holdout, pixels)
        return Split(source, min(images, source.samples), other.tested or other.samples, None, other)
    if holdout is None and source.tested:
        return Split(source, min(images, source.samples), source.tested, None, None)
    share = SHARE if share is None else share
    total = min(int(images / (1 - share)), source.samples)
    while total < source.samples and total - int(total * share) < images:
        total += 1
    held = int(total * share)
    if not held:
        raise ValueError(f"--holdout: a share {share:g} of {total} samples is none, wanted at least one")
    return Split(source, total - held, held, share, None)


def _known(name: str, shape: tuple[int, ...], load: Callable[..., Images]) -> Source:
    """A data set with a test set. `load` takes how many training and test images are needed, see `cifar10`."""

    def read(count: int, test: bool) -> tuple[Samples, Samples | None]:
        images = load(images=count, test_images=None if test else 0)
        return _first((images.x_train, images.y_train), count), (images.x_test, images.y_test) if test else None

    return Source(
        name,
        *COUNTS[name],
        lambda: (torch.zeros(1, *shape, device="cpu"), torch.zeros(1, dtype=torch.int64, device="cpu")),
        read,
    )


def _loader(name: str, loader: Batches) -> Source:
    return Source(name, loader.samples, 0, lambda: loader.read(0, 1), lambda count, _: (_first(loader, count), None))


def _first(data: Samples, count: int) -> Samples:
    if isinstance(data, Batches):
        return replace(data, samples=min(count, data.samples))
    x, y = data
    return x[:count], None if y is None else y[:count]


def _share(holdout: str | None) -> float | None:
    try:
        share = float(holdout or "")
    except ValueError:
        return None
    if not 0 < share < 1:
        raise ValueError(f"--holdout: wanted a share above 0 and below 1, or data; got {holdout}")
    return share


def _three(option: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    finite = len(numbers) == 3 and all(map(math.isfinite, numbers))
    if not finite or (option == "--std" and min(numbers) <= 0):
        kind = "positive numbers" if option == "--std" else "numbers"
        raise ValueError(f"{option}: wanted three finite {kind} separated by commas, got {text!r}")
    return numbers
