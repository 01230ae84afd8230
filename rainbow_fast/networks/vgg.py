# SPDX-License-Identifier: BSD-3-Clause
"""VGG networks for small images as plain `torch.nn.Sequential`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from rainbow_fast.networks.mlp import BatchNorm, check_batch_norm, check_positive, nonlinearity, seeded

# Convolutions in each of the five stages, columns A, B, D and E of the paper's table 1.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg(
    depth: int = 16,
    *,
    width: int = 64,
    image_channels: int = 3,
    image_size: int = 32,
    classes: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
    batch_norm: BatchNorm | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
) -> nn.Sequential:
    """Five stages of 3x3 convolutions, a max-pooling after each, then three linear layers.

    The stages have 1, 2, 4, 8 and 8 times `width` channels, and so have the two hidden linear layers 8 `width`
    neurons (4,096 in the paper, whose images have 224 pixels). Every layer has a bias.

    Args:
        depth: convolutions and linear layers: 11, 13, 16 or 19.
        width: channels of the first stage; 64 in the paper.
        image_channels: 3 for colour, 1 for grey images.
        image_size: side of the square images in pixels, a multiple of 32.
        classes: number of logits.
        activation: makes the non-linearity, one module per hidden layer.
        batch_norm: `"before"` puts an affine batch norm before each non-linearity, `"after"` one without parameters
            (`affine=False`) after it, `None` none; the hidden linear layers have none.
        dropout: probability of the dropout before each hidden linear layer; 0: no such module.
        seed: as in `mlp`.

    Returns:
        A module on the CPU, float32 unless torch's default dtype is another, from (N, `image_channels`, `image_size`,
        `image_size`) to (N, `classes`) logits, with the parts `features`, `flatten` and `classifier`.

    Raises:
        ValueError: another depth, a number below 1, an `image_size` that is no multiple of 32, an unknown `batch_norm`,
            a `dropout` outside [0, 1), a seed outside 0 .. 2^63 - 1.

    Source: Simonyan, Zisserman (2015), Very deep convolutional networks for large-scale image recognition, table 1.
    """
    if depth not in CONVOLUTIONS:
        raise ValueError(f"depth: wanted 11, 13, 16 or 19, got {depth}")
    check_positive(width=width, image_channels=image_channels, image_size=image_size, classes=classes)
    if image_size % 32:
        raise ValueError(f"image_size: wanted a multiple of 32, for the map is halved five times; got {image_size}")
    check_batch_norm(batch_norm)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: wanted a probability from 0 to below 1, got {dropout}")
    hidden = 8 * width

    def hidden_layer(before: int) -> list[nn.Module]:
        drop = [nn.Dropout(dropout)] if dropout else []
        return [*drop, nn.Linear(before, hidden), activation()]

    features: list[nn.Module] = []
    before = image_channels
    with seeded(seed):
        for multiple, count in zip((1, 2, 4, 8, 8), CONVOLUTIONS[depth], strict=True):
            for _ in range(count):
                features.append(nn.Conv2d(before, multiple * width, 3, padding=1))
                features += nonlinearity(multiple * width, activation, batch_norm, nn.BatchNorm2d)
                before = multiple * width
            features.append(nn.MaxPool2d(2))
        classifier = [
            *hidden_layer(hidden * (image_size // 32) ** 2),
            *hidden_layer(hidden),
            nn.Linear(hidden, classes),
        ]
    parts = {"features": nn.Sequential(*features), "flatten": nn.Flatten(), "classifier": nn.Sequential(*classifier)}
    return nn.Sequential(OrderedDict(parts))
