# SPDX-License-Identifier: BSD-3-Clause
"""Residual networks with basic blocks, for small images and for ImageNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.functional import pad

from rainbow_fast.networks.mlp import check_positive, seeded

Activation = Callable[[], nn.Module]
Shortcut = Callable[[int, int, int, bool], nn.Module]


def resnet_cifar(
    depth: int = 20,
    *,
    width: int = 16,
    image_channels: int = 3,
    classes: int = 10,
    preactivation: bool = False,
    activation: Activation = nn.ReLU,
    seed: int | None = None,
) -> nn.Sequential:
    """A residual network for small images: three stages of (depth - 2) / 6 basic blocks, shortcuts without weights.

    The stages have `width`, 2 `width` and 4 `width` channels. The second and the third stage halve the side of the map.
    A shortcut between stages takes every second pixel and adds channels of zeros, half of them on either side.

    Args:
        depth: number of linear layers on the longest path, 6 k + 2 for k blocks in each stage: 20, 32, 44, 56, 110.
        width: channels of the first stage; 16 in the paper.
        image_channels: 3 for colour, 1 for grey images.
        classes: number of logits.
        preactivation: with `False` (default), a block is sigma(x + bn2(conv2(sigma(bn1(conv1(x)))))). With `True`, it
            is x + conv2(sigma(bn2(conv1(sigma(bn1(x)))))), the last stage is followed by a batch norm and a
            non-linearity, and a shortcut that changes the shape starts after the first non-linearity of its block.
        activation: a function that returns a new activation module; called once for each block, which uses the module
            twice. ReLU by default.
        seed: as in `mlp`.

    Returns:
        A module on the CPU, in torch's default dtype, from (N, `image_channels`, H, W) with any H, W >= 1 to
        (N, `classes`) logits. Its state dict has the keys `conv1`, `bn1`, `layer{1,2,3}.i.{conv1,bn1,conv2,bn2}` and
        `linear`. With `preactivation`, it has `bn`, the last batch norm, instead of `bn1`.

    Raises:
        TypeError: a number is not an integer.
        ValueError: a number is below 1, the depth is not 6 k + 2, or the seed is outside 0 .. 2^63 - 1.

    Source: He, Zhang, Ren, Sun (2016), Deep residual learning for image recognition, section 4.2, option A. For
    `preactivation`: Identity mappings in deep residual networks (2016), figure 4e.
    """
    check_positive(depth=depth, width=width, image_channels=image_channels, classes=classes)
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth: wanted 6 k + 2 with k >= 1 blocks in each stage, got {depth}")
    with seeded(seed):
        conv1 = _conv(image_channels, width, 3)
        return _resnet(conv1, None, (depth // 6,) * 3, "linear", classes, preactivation, activation, _Padded)


def resnet_imagenet(
    blocks: Sequence[int] = (2, 2, 2, 2),
    *,
    width: int = 64,
    image_channels: int = 3,
    classes: int = 1000,
    preactivation: bool = False,
    activation: Activation = nn.ReLU,
    seed: int | None = None,
) -> nn.Sequential:
    """A residual network for images of 224 pixels: a 7x7 convolution and max-pooling, then stages of basic blocks.

    Stage j = 0, 1, ... has 2^j `width` channels. The first convolution and the max-pooling together divide the side of
    the map by four; each stage but the first divides it by two. A shortcut between stages is a strided 1x1 convolution
    with batch norm (without batch norm if `preactivation`).

    Args:
        blocks: number of blocks in each stage: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34.
        width: channels of the first stage; 64 in the paper.
        image_channels: 3 for colour, 1 for grey images.
        classes: number of logits.
        preactivation: as in `resnet_cifar`.
        activation: as in `resnet_cifar`.
        seed: as in `mlp`.

    Returns:
        A module on the CPU, in torch's default dtype, from (N, `image_channels`, H, W) with any H, W >= 1 to
        (N, `classes`) logits. With `preactivation=False`, its state dict has the keys of `resnet18` and `resnet34` of
        torchvision, and their weights can be loaded.

    Raises:
        TypeError: a number is not an integer.
        ValueError: there is no stage, a number is below 1, or the seed is outside 0 .. 2^63 - 1.

    Source: He, Zhang, Ren, Sun (2016), Deep residual learning for image recognition, table 1. For `preactivation`:
    Identity mappings in deep residual networks (2016), figure 4e.
    """
    if len(blocks) < 1:
        raise ValueError("blocks: wanted the number of blocks in each stage, at least one stage; got ()")
    check_positive(blocks=blocks, width=width, image_channels=image_channels, classes=classes)
    with seeded(seed):
        conv1, maxpool = _conv(image_channels, width, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)
        return _resnet(conv1, maxpool, blocks, "fc", classes, preactivation, activation, _projection)


class BasicBlock(nn.Module):
    """sigma(shortcut(x) + bn2(conv2(sigma(bn1(conv1(x)))))): (N, C, H, W) -> (N, C', H / stride, W / stride)."""

    def __init__(self, before: int, width: int, stride: int, activation: Activation, shortcut: nn.Module | None):
        super().__init__()
        self.conv1 = _conv(before, width, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        return self.activation(branch + (x if self.downsample is None else self.downsample(x)))


class PreactivationBlock(nn.Module):
    """x + conv2(sigma(bn2(conv1(y)))) with y = sigma(bn1(x)); if the shape changes, with shortcut(y) instead of x."""

    def __init__(self, before: int, width: int, stride: int, activation: Activation, shortcut: nn.Module | None):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = _conv(before, width, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.downsample = shortcut
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.bn1(x))
        branch = self.conv2(self.activation(self.bn2(self.conv1(y))))
        return branch + (x if self.downsample is None else self.downsample(y))


class _Padded(nn.Module):
    """Takes every `stride`-th pixel, and adds channels of zeros, half of them on either side."""

    def __init__(self, before: int, width: int, stride: int, preactivation: bool):
        super().__init__()
        missing = width - before
        self.stride, self.padding = stride, (0, 0, 0, 0, missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def _projection(before: int, width: int, stride: int, preactivation: bool) -> nn.Module:
    """A strided 1x1 convolution, with batch norm unless `preactivation`."""
    norm = [] if preactivation else [nn.BatchNorm2d(width)]
    return nn.Sequential(_conv(before, width, 1, stride=stride), *norm)


def _conv(before: int, width: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, width, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)


def _resnet(
    conv1: nn.Conv2d,
    maxpool: nn.Module | None,
    blocks: Sequence[int],
    head: str,
    classes: int,
    preactivation: bool,
    activation: Activation,
    shortcut: Shortcut,
) -> nn.Sequential:
    """The stem, the stages `layer1`, `layer2`, ..., and the classifier `head` on the mean over the map."""
    width = before = conv1.out_channels
    parts: dict[str, nn.Module] = {"conv1": conv1}
    if not preactivation:
        parts |= {"bn1": nn.BatchNorm2d(width), "activation": activation()}
    if maxpool is not None:
        parts["maxpool"] = maxpool
    make = PreactivationBlock if preactivation else BasicBlock
    for stage, count in enumerate(blocks):
        after = width * 2**stage
        layers: list[nn.Module] = []
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            link = shortcut(before, after, stride, preactivation) if stride > 1 else None
            layers.append(make(before, after, stride, activation, link))
            before = after
        parts[f"layer{stage + 1}"] = nn.Sequential(*layers)
    if preactivation:
        parts |= {"bn": nn.BatchNorm2d(before), "activation": activation()}
    parts |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), head: nn.Linear(before, classes)}
    return nn.Sequential(OrderedDict(parts))
