# SPDX-License-Identifier: BSD-3-Clause
"""VGG networks for small images as `torch.nn.Sequential`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from rainbow_fast.networks.mlp import BatchNorm, check_batch_norm, check_positive, nonlinearity, seeded

# Convolutions in each of the five stages: columns A, B, D and E of table 1 of the paper.
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
    """A VGG network: five stages of 3x3 convolutions, each followed by max-pooling, then three linear layers.

    The stages have 1, 2, 4, 8 and 8 times `width` channels. The two hidden linear layers have 8 times `width` neurons
    (4,096 in the paper, whose images have 224 pixels). All layers have biases.

    Args:
        depth: number of convolutions and linear layers: 11, 13, 16 or 19.
        width: channels of the first stage; 64 in the paper.
        image_channels: 3 for colour, 1 for grey images.
        image_size: side of the square images in pixels, a multiple of 32.
        classes: number of logits.
        activation: a function that returns a new activation module; called once for each hidden layer. ReLU by default.
        batch_norm: `"before"` puts an affine batch norm before the non-linearity of each convolution; `"after"` puts
            one without parameters (`affine=False`) after it; `None` (default) uses none. The hidden linear layers have
            no batch norm.
        dropout: probability of dropout before each hidden linear layer; with 0 (default) there is no dropout module.
        seed: as in `mlp`.

    Returns:
        A module on the CPU, in torch's default dtype, from (N, `image_channels`, `image_size`, `image_size`) to
        (N, `classes`) logits, with the submodules `features`, `flatten` and `classifier`.

    Raises:
        TypeError: a number other than `depth` and `dropout` is not an integer.
        ValueError: `depth` is not one of these, a number is below 1, `image_size` is not a multiple of 32, `batch_norm`
            is unknown, `dropout` is outside [0, 1), or the seed is outside 0 .. 2^63 - 1.

    Source: Simonyan, Zisserman (2015), Very deep convolutional networks for large-scale image recognition, table 1.
    """
    if depth not in CONVOLUTIONS:
        raise ValueError(f"depth: wanted 11, 13, 16 or 19, got {depth}")
    check_positive(width=width, image_channels=image_channels, image_size=image_size, classes=classes)
    if image_size % 32:
        raise ValueError(f"image_size: wanted a multiple of 32, as the map is halved five times; got {image_size}")
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
