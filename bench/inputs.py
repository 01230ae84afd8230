# SPDX-License-Identifier: BSD-3-Clause
"""Inputs of the sampling benches: CIFAR-10 if it is found, else maps or vectors with a spectrum like its own."""

import functools
import subprocess
import sys
import tempfile

import torch
from here import DATA
from torch import Tensor

from rainbow_fast.data import cifar10


@functools.cache
def training_images(count: int, grey: bool = False) -> Tensor | None:
    """The first training images of CIFAR-10, (count, channels, 32, 32); None if there is no CIFAR-10."""
    unpack = DATA / "cifar10" / "unpack.py"
    if not unpack.exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(unpack), folder], check=True, stdout=subprocess.DEVNULL)
        return cifar10(folder, grey=grey, images=count, test_images=0).x_train.clone()


def maps(count: int) -> Tensor:
    """Random maps (count, 3, 32, 32) whose spectrum falls as that of natural images does."""
    frequency = (torch.fft.fftfreq(32)[:, None] ** 2 + torch.fft.rfftfreq(32) ** 2).sqrt().clamp(min=1 / 32)
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return torch.fft.irfft2(torch.fft.rfft2(noise) / frequency)


def vectors(count: int, d: int) -> Tensor:
    """Correlated inputs (count, d), whose spectrum falls like that of natural images."""
    source = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, d + 1).float().rsqrt()
    mix = torch.linalg.qr(torch.randn(d, d, generator=source)).Q
    return (torch.randn(count, d, generator=source) * spectrum) @ mix


def grey_images(count: int, side: int = 28) -> tuple[Tensor, str]:
    """Grey images cut to their middle, (count, side^2), and the name of what they are."""
    images = training_images(count, grey=True)
    if images is None:
        return vectors(count, side**2), "vectors"
    edge = (32 - side) // 2
    return images[:, 0, edge : edge + side, edge : edge + side].flatten(1), "CIFAR-10"
