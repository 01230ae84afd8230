# SPDX-License-Identifier: BSD-3-Clause
"""Small convolutional networks as `torch.nn.Sequential`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from rainbow_fast.networks.mlp import BatchNorm, check_batch_norm, check_positive, nonlinearity, seeded


def cnn(
    channels: Sequence[int] = (1, 32, 64),
    *,
    kernel_size: int = 5,
    stride: int = 2,
    image_size: int = 32,
    classes: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = False,
    batch_norm: BatchNorm | None = None,
    seed: int | None = None,
) -> nn.Sequential:
    """Convolutions without padding, then a linear classifier: `Conv2d, activation, ..., Flatten, Linear`.

    A convolution turns a map of side `s` into a map of side `(s - kernel_size) // stride + 1`. With the defaults:
    1 x 32 x 32 -> 32 x 14 x 14 -> 64 x 5 x 5, flattened to 1,600 features, 10 classes.

    Args:
        channels: channels of the image, then of each convolution.
        kernel_size: in pixels, the same for all convolutions.
        stride: in pixels, the same for all convolutions.
        image_size: side of the square images in pixels; it determines the number of inputs of the classifier.
        classes: number of logits.
        activation: a function that returns a new activation module; called once for each convolution. ReLU by default.
        bias: whether convolutions and classifier have biases; False by default.
        batch_norm: `"before"` puts an affine `BatchNorm2d` before each non-linearity; `"after"` puts one without
            parameters (`affine=False`) after it; `None` (default) uses none.
        seed: as in `mlp`.

    Returns:
        A module on the CPU, in torch's default dtype, from (N, `channels[0]`, `image_size`, `image_size`) to
        (N, `classes`) logits.

    Raises:
        TypeError: a number is not an integer.
        ValueError: there is no convolution, a number is below 1, a map is smaller than the kernel, `batch_norm` is
            unknown, or the seed is outside 0 .. 2^63 - 1.

    Source: the default is the convolutional network in the tutorial of Guth, Menard, Rochette, Mallat (2024).
    """
    if len(channels) < 2:
        raise ValueError(f"channels: wanted those of the image and of each convolution, got {tuple(channels)}")
    check_positive(channels=channels, kernel_size=kernel_size, stride=stride, image_size=image_size, classes=classes)
    check_batch_norm(batch_norm)
    side = image_size
    with seeded(seed):
        layers: list[nn.Module] = []
        for number, (before, width) in enumerate(pairwise(channels), start=1):
            if side < kernel_size:
                raise ValueError(
                    f"image_size: {image_size} leaves a map of side {side} before convolution {number}, "
                    f"wanted at least kernel_size={kernel_size}"
                )
            layers.append(nn.Conv2d(before, width, kernel_size, stride=stride, bias=bias))
            layers += nonlinearity(width, activation, batch_norm, nn.BatchNorm2d)
            side = (side - kernel_size) // stride + 1
        layers += [nn.Flatten(), nn.Linear(channels[-1] * side * side, classes, bias=bias)]
    return nn.Sequential(*layers)
