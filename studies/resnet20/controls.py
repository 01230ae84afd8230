# SPDX-License-Identifier: BSD-3-Clause
"""Two other samplers of ResNets in plain PyTorch: one as in the published code, and one with white weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from rainbow_fast.maps import every, take
from rainbow_fast.ops.gaussian import SITE_BITS, gaussian
from rainbow_fast.rainbow.alignment.classifier import ridge_classifier
from rainbow_fast.rainbow.channel_moments import ChannelMoments
from rainbow_fast.rainbow.moments import CrossCovariance
from rainbow_fast.rainbow.options import METHODS, MethodOptions, alignment_of
from rainbow_fast.rainbow.report import Error
from rainbow_fast.rainbow.sampling.align import align, offset, scale, size_of

CHUNK = 125  # images that are computed on at a time
MAX_SAMPLES = 400_000  # most samples (images times positions) for the moments of a site

Labelled = tuple[Tensor, Tensor]


class Outcome(NamedTuple):
    """The test accuracies with the trained classifier and with one refit to the wide features, and site records."""

    accuracy: float
    refit_accuracy: float
    sites: list[dict[str, Any]]


class Layer(NamedTuple):
    """A convolution, its batch norm, and at the end of a block the shortcut from its input. ReLU follows."""

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    shortcut: nn.Module | None


def layers(net: nn.Sequential) -> Iterator[Layer]:
    """The layers of a `resnet_cifar` without preactivation, with the names of the sites of its trace."""
    yield Layer("activation", net.conv1, net.bn1, None)  # type: ignore[arg-type]
    for name, block in net.named_modules():
        if hasattr(block, "conv2"):
            yield Layer(f"{name}.activation", block.conv1, block.bn1, None)
            shortcut = block.downsample if isinstance(block.downsample, nn.Module) else nn.Identity()
            yield Layer(f"{name}.activation_1", block.conv2, block.bn2, shortcut)


@dataclass
class Chunked:
    """The activations of a data set between two layers, in chunks of images.

    Attributes:
        phi: activations of the reference.
        phih: aligned activations of the sampled network.
        block: activations of the reference at the input of the current block.
        kept: input of the shortcut of the current block in the sampled network.
    """

    phi: list[Tensor]
    phih: list[Tensor]
    block: list[Tensor]
    kept: list[Tensor]

    @classmethod
    def of(cls, x: Tensor) -> Chunked:
        return cls(*(list(x.split(CHUNK)) for _ in range(4)))

    def advance(self, layer: Layer) -> None:
        """Apply one layer to the activations of the reference."""
        for i, phi in enumerate(self.phi):
            z = layer.norm(layer.conv(phi))
            self.phi[i] = (z if layer.shortcut is None else z + layer.shortcut(self.block[i])).relu_()


class Sampler(Protocol):
    """Computes the features of a layer of a sampled network.

    Attributes:
        parts: how features are aligned, as in the methods of `RainbowModel.sample`.
        wide: whether shortcuts take the features themselves; otherwise they take the aligned activations.
    """

    parts: MethodOptions
    wide: bool

    def enter(self, layer: Layer, number: int, data: Chunked) -> int:
        """Sample the weights of a layer, before the reference is advanced; returns the number of neurons.

        `data` is the alignment set.
        """

    def features(self, layer: Layer, data: Chunked, i: int) -> Tensor: ...


class Naive:
    """Samples ResNets as the published code does: each convolution separately.

        z' = batch_norm(G conv(phih) / sqrt(d)) + shortcut(phi' at the input of the block)

    The rows of the convolution are N(0, W^T W / d). The batch norm has the statistics of the sampled network on the
    alignment set. Its affine part for neuron i is that of neuron i mod d of the reference, though the two neurons are
    not related. The shortcut adds activations in another random basis than that of the convolution.
    """

    parts, wide = METHODS["paper"], True

    def __init__(self, factor: float, seed: int, network: int) -> None:
        self.factor, self.seed, self.network = factor, seed, network

    def enter(self, layer: Layer, number: int, data: Chunked) -> int:
        d = layer.conv.out_channels
        n = max(round(self.factor * d), 1)
        moments = CrossCovariance(layer.name)
        for phih in data.phih:
            moments.update(layer.conv(phih))
        C, mean = moments.covariance(), moments.mean_x
        G = gaussian(n, d, seed=self.seed, stream=self.network << SITE_BITS | number, dtype=torch.float64) / d**0.5
        variance = ((G @ C) * G).sum(1)
        k = torch.arange(n, device="cpu") % d
        rows = G * (layer.norm.weight[k] * (variance + layer.norm.eps).rsqrt()).unsqueeze(1)
        self.rows, self.shift = rows.float(), (layer.norm.bias[k] - rows @ mean).float()
        return n

    def features(self, layer: Layer, data: Chunked, i: int) -> Tensor:
        z = torch.einsum("nchw,mc->nmhw", layer.conv(data.phih[i]), self.rows) + self.shift.view(-1, 1, 1)
        if layer.shortcut is not None:
            z += _widened(layer.shortcut, data.kept[i], len(self.rows))
        return z.relu_()


class White:
    """The method "calibrated" with white weights in the convolutions, as at initialisation.

        z' = c G p(phih) + sbar + G_2 (s - sbar) / sqrt(d),    s = bias + shortcut(phih at the input of the block)

    p takes the patches of the convolution. c is such that ``E|c G p|^2 / n`` is the mean power of the trained
    convolution (with its batch norm) over its d neurons. s has no weights and is combined as in the method
    "calibrated"; sbar is its mean over channels. Only alignments, scales, offsets and one c for each layer are learned.
    """

    parts, wide = METHODS["calibrated"], False

    def __init__(self, factor: float, seed: int, network: int) -> None:
        self.factor, self.seed, self.network = factor, seed, network

    def enter(self, layer: Layer, number: int, data: Chunked) -> int:
        d = layer.conv.out_channels
        variance, average = layer.norm.running_var, layer.norm.running_mean
        assert variance is not None and average is not None
        gain = layer.norm.weight * (variance + layer.norm.eps).rsqrt()
        self.bias = layer.norm.bias - gain * average
        trained = sum(_power(gain.view(-1, 1, 1) * layer.conv(phi)) for phi in data.phi)
        self.c = math.sqrt(trained / d / sum(_power(_patches(layer.conv, phih)) for phih in data.phih))
        n, columns = max(round(self.factor * d), 1), layer.conv.weight[0].numel() + d
        self.G = gaussian(n, columns, seed=self.seed, stream=self.network << SITE_BITS | number)
        return n

    def features(self, layer: Layer, data: Chunked, i: int) -> Tensor:
        patches = self.c * _patches(layer.conv, data.phih[i])
        s = self.bias.view(1, -1, 1, 1).expand(len(patches), -1, *patches.shape[2:])
        s = s if layer.shortcut is None else s + layer.shortcut(data.kept[i])
        mean = s.mean(1, keepdim=True)
        u = torch.cat([patches, (s - mean) / math.sqrt(s.shape[1])], 1)
        return (torch.einsum("nchw,mc->nmhw", u, self.G) + mean).relu_()


@torch.no_grad()
def sample_layerwise(net: nn.Sequential, sampler: Sampler, align: Labelled, test: Labelled) -> Outcome:
    """Sample a network site by site; `align` is the alignment set, and errors are measured on `test`."""
    data = [Chunked.of(x) for x, _ in (align, test)]
    steps, sites = list(layers(net.eval())), []
    for number, layer in enumerate(steps):
        n = sampler.enter(layer, number, data[0])
        for images in data:
            images.advance(layer)
        A, c = _align(layer, sampler, data[0])
        last = number == len(steps) - 1
        starts = last or steps[number + 1].shortcut is None
        errors = []
        for images in data:
            error = Error()
            for i, phi in enumerate(images.phi):
                features = sampler.features(layer, images, i)
                images.phih[i] = torch.einsum("nm...,dm->nd...", features, A) + c.view(-1, 1, 1)
                error.update(phi, images.phih[i])
                if last:
                    images.kept[i] = features.mean((2, 3))
                elif starts:
                    images.block[i], images.kept[i] = phi, features if sampler.wide else images.phih[i]
            errors.append(error.relative()[0])
        names = {"index": number, "site": layer.name, "d": layer.conv.out_channels, "n": n}
        sites.append(names | {"alignment_error": errors[0], "error": errors[1]})
    means, wide = torch.cat([phih.mean((2, 3)) for phih in data[1].phih]), [torch.cat(images.kept) for images in data]
    B, b, _ = ridge_classifier(wide[0], align[1], net.linear.out_features)  # type: ignore[union-attr, arg-type]
    refit = wide[1].double() @ B.T + b
    return Outcome(_share(net.linear(means), test[1]), _share(refit, test[1]), sites)  # type: ignore[operator]


def _align(layer: Layer, sampler: Sampler, data: Chunked) -> tuple[Tensor, Tensor]:
    """s A (d, n) and the offset (d,) of a layer, after the reference was advanced."""
    moments, projected = CrossCovariance(layer.name), ChannelMoments()
    positions = data.phi[0][0, 0].numel()
    step, before = every(sum(map(len, data.phi)) * positions, MAX_SAMPLES, positions), 0
    chosen = []
    for i, phi in enumerate(data.phi):
        features = take(sampler.features(layer, data, i), before * positions, step)
        moments.update(take(phi, before * positions, step), features)
        chosen.append(features)
        before += len(phi)
    B, aligned = align(moments, sampler.parts, alignment_of(sampler.parts))
    for features in chosen:
        projected.update(torch.einsum("nm...,dm->nd...", features.double(), B))
    s = scale(aligned, size_of(projected, aligned, sampler.parts), sampler.parts, layer.name)
    c = offset(aligned, s, moments, sampler.parts)
    return (s * B).float(), torch.zeros(len(B), device="cpu") if c is None else c.float()


def _widened(shortcut: nn.Module, kept: Tensor, n: int) -> Tensor:
    """The shortcut without weights, applied to any number of features."""
    if isinstance(shortcut, nn.Identity):
        return kept
    stride: Any = shortcut.stride
    missing = n - kept.shape[1]
    return pad(kept[:, :, ::stride, ::stride], (0, 0, 0, 0, missing // 2, missing - missing // 2))


def _patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The patches of x by which rows of the weights are multiplied, (N, in k k, *space)."""
    rows = unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
    side = (x.shape[2] + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1  # type: ignore[operator]
    return rows.view(len(x), rows.shape[1], side, -1)


def _power(x: Tensor) -> float:
    return float(x.square().flatten(1).sum(1).sum(dtype=torch.float64))


def _share(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == labels).double().mean())
